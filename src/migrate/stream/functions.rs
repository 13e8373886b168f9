//! Libraries of functions: sent on as they come, and made what they are at the source where a command alone cannot.
//!
//! FUNCTION RESTORE brings a payload that another version refuses, and FLUSH would take the target's own libraries too:
//! after those, and after a refusal, the source is asked for its libraries.

use crate::command::Command;
use crate::error::Result;
use crate::migrate::context::ShardContext;
use crate::net;
use crate::plan::{Endpoint, OnExisting};
use crate::resp::{self, Reply};
use crate::source::keys::functions::{self, Libraries};

/// Rounds of loading: a library that takes over another's function can only be loaded after that other one.
const ROUNDS: usize = 3;

/// What becomes of a FUNCTION command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Function {
    /// Every node gets this.
    Broadcast(Vec<u8>),
    /// The source is asked for its libraries.
    Compare,
    /// The target has no functions.
    LeaveOut,
}

/// Decides on a FUNCTION command of the stream; `asks`: the source can be asked for its libraries.
pub(crate) fn route(cmd: &Command<'_>, target_has_functions: bool, asks: bool) -> Function {
    if !target_has_functions {
        return Function::LeaveOut;
    }
    let is = |word: &[u8]| cmd.arg(1).is_some_and(|sub| sub.eq_ignore_ascii_case(word));
    if is(b"LOAD") {
        return Function::Broadcast(load(cmd.arg(cmd.len() - 1).unwrap_or_default()));
    }
    if !is(b"RESTORE") && !is(b"FLUSH") {
        return Function::Broadcast(cmd.raw.to_vec());
    }
    if asks {
        return Function::Compare;
    }
    // Of a file there is nothing to ask.
    let flushes = cmd.arg(3).is_some_and(|p| p.eq_ignore_ascii_case(b"FLUSH"));
    if is(b"FLUSH") || flushes {
        return Function::Broadcast(cmd.raw.to_vec());
    }
    let mut out = Vec::new();
    let payload = cmd.arg(2).unwrap_or_default();
    resp::command(&mut out, &[b"FUNCTION", b"RESTORE", payload, b"REPLACE"]);
    Function::Broadcast(out)
}

/// The command that loads a library; with REPLACE it may run twice.
pub(crate) fn load(code: &[u8]) -> Vec<u8> {
    let mut command = Vec::new();
    resp::command(&mut command, &[b"FUNCTION", b"LOAD", b"REPLACE", code]);
    command
}

/// Counts a library that is left out because the target has no functions.
pub(crate) fn note_left_out(ctx: &ShardContext) {
    ctx.note(
        "skipped.function",
        "the target has no functions: the source's function libraries are left out",
    );
}

/// What has become of the libraries of one node.
#[derive(Debug, Default)]
pub(crate) struct Synced {
    /// Libraries that were written or removed.
    pub changed: u64,
    /// Libraries that the node has refused, and why.
    pub refused: Vec<(String, String)>,
}

/// Makes the libraries of one node of the target those of the source.
pub(crate) async fn sync_node(
    endpoint: &Endpoint,
    address: &str,
    ours: &Libraries,
    on_existing: OnExisting,
) -> Result<Synced> {
    // Libraries that nobody has moved may be the target's own.
    let keeps_own = matches!(on_existing, OnExisting::Skip | OnExisting::Replace);
    let mut conn = net::control(endpoint, address).await?;
    let theirs = functions::libraries_at(&mut conn)
        .await?
        .unwrap_or_default();
    let mut synced = Synced::default();
    for name in theirs
        .keys()
        .filter(|name| !keeps_own && !ours.contains_key(*name))
    {
        conn.ask(&[b"FUNCTION", b"DELETE", name.as_bytes()]).await?;
        synced.changed += 1;
    }
    let mut missing: Vec<(&String, &Vec<u8>)> = (ours.iter())
        .filter(|(name, code)| theirs.get(*name) != Some(*code))
        .collect();
    for _ in 0..ROUNDS {
        synced.refused.clear();
        let mut again = Vec::new();
        for (name, code) in missing {
            let reply = conn.ask(&[b"FUNCTION", b"LOAD", b"REPLACE", code]).await?;
            match reply {
                Reply::Error(text) if net::passes(&text) => {
                    return Err(net::refusal("FUNCTION LOAD", &text));
                }
                Reply::Error(text) => {
                    synced.refused.push((name.clone(), net::said(&text)));
                    again.push((name, code));
                }
                _ => synced.changed += 1,
            }
        }
        missing = again;
    }
    Ok(synced)
}
