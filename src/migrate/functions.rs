//! Libraries of functions: sent on as they come, and made what they are at the source where a command alone cannot.
//!
//! FUNCTION RESTORE brings a payload that another version refuses, and FLUSH would take the target's own libraries too:
//! after those, and after a refusal, the source is asked for its libraries.

use crate::command::Command;
use crate::error::Result;
use crate::migrate::pump::Pump;
use crate::net;
use crate::plan::OnExisting;
use crate::resp::{self, Reply};
use crate::source::keys::functions::{self, Libraries};
use crate::source::keys::side::Side;
use crate::types::{Mark, shown};
use std::time::Instant;

/// Rounds of loading: a library that takes over another's function can only be loaded after that other one.
const ROUNDS: usize = 3;

impl Pump {
    /// A library of functions goes to every node.
    pub(super) fn function(&mut self, code: &[u8], mark: Mark) -> Result<()> {
        if self.lacks_functions() {
            return Ok(());
        }
        let mut command = Vec::new();
        resp::command(&mut command, &[b"FUNCTION", b"LOAD", b"REPLACE", code]);
        self.broadcast(&command, mark)
    }

    pub(super) fn lost_function(&mut self, name: &[u8]) -> Result<()> {
        let name = shown(name);
        self.note("skipped.function", &format!("the function library {name} has the format of a Redis 7.0 release candidate and is left out"));
        Ok(())
    }

    fn lacks_functions(&mut self) -> bool {
        if !self.shared.target_has_functions {
            self.note(
                "skipped.function",
                "the target has no functions: the source's function libraries are left out",
            );
        }
        !self.shared.target_has_functions
    }

    /// A FUNCTION command of the stream.
    pub(super) fn stream_function(&mut self, cmd: &Command<'_>, mark: Mark) -> Result<()> {
        if self.lacks_functions() {
            return Ok(());
        }
        let is = |word: &[u8]| cmd.arg(1).is_some_and(|sub| sub.eq_ignore_ascii_case(word));
        if is(b"LOAD") {
            // With REPLACE it may run twice.
            let code = cmd.arg(cmd.len() - 1).unwrap_or_default();
            return self.function(code, mark);
        }
        if !is(b"RESTORE") && !is(b"FLUSH") {
            return self.broadcast(cmd.raw, mark);
        }
        if self.source.is_some() {
            self.owe_functions(mark);
            return Ok(());
        }
        // Of a file there is nothing to ask.
        let flushes = cmd.arg(3).is_some_and(|p| p.eq_ignore_ascii_case(b"FLUSH"));
        if is(b"FLUSH") || flushes {
            return self.broadcast(cmd.raw, mark);
        }
        let mut out = Vec::new();
        let payload = cmd.arg(2).unwrap_or_default();
        resp::command(&mut out, &[b"FUNCTION", b"RESTORE", payload, b"REPLACE"]);
        self.broadcast(&out, mark)
    }

    /// The target's libraries are to be made the source's, before a checkpoint passes `mark`.
    pub(super) fn owe_functions(&mut self, mark: Mark) {
        self.debts.functions = true;
        if !self.in_load {
            (self.debts.from).get_or_insert_with(|| (mark, Instant::now()));
        }
    }

    /// Makes the target's libraries those of the source; returns how many were written or removed.
    pub(super) fn sync_functions(&mut self) -> Result<u64> {
        self.debts.functions = false;
        let job = self.shared.job.clone();
        let Some(endpoint) = job.source.endpoint() else {
            return Ok(0);
        };
        if !self.shared.target_has_functions || self.shared.dry_run {
            return Ok(0);
        }
        let runtime = self.shared.runtime.clone();
        let ours = self.asked("asking the source for its function libraries", |_| {
            runtime.block_on(async {
                let side = Side::source(endpoint).await?;
                functions::of(&side).await
            })
        })?;
        let Some(ours) = ours else {
            self.note(
                "skipped.function",
                "the source does not tell its function libraries (FUNCTION LIST): what its stream has not brought as code is missing",
            );
            return Ok(0);
        };
        self.settle_all()?;
        let mut changed = 0;
        for node in 0..self.pipe.node_count() {
            let refused = self.asked("writing the function libraries", |me| {
                let (done, refused) = me.sync_node(node, &ours)?;
                changed += done;
                Ok(refused)
            })?;
            for (name, why) in refused {
                self.note(
                    "skipped.function",
                    &format!("the target refuses the function library {name}: {why}"),
                );
            }
        }
        Ok(changed)
    }

    /// The same for one node of the target; also which libraries it has refused, and why.
    fn sync_node(&mut self, node: usize, ours: &Libraries) -> Result<(u64, Vec<(String, String)>)> {
        // Libraries that nobody has moved may be the target's own.
        let keeps_own = matches!(
            self.shared.job.on_existing,
            OnExisting::Skip | OnExisting::Replace
        );
        let endpoint = self.pipe.endpoint().clone();
        let address = self.pipe.address(node).to_owned();
        let runtime = self.shared.runtime.clone();
        runtime.block_on(async {
            let mut conn = net::connect(&endpoint, &address).await?;
            let theirs = functions::libraries_at(&mut conn)
                .await?
                .unwrap_or_default();
            let mut changed = 0;
            for name in theirs
                .keys()
                .filter(|name| !keeps_own && !ours.contains_key(*name))
            {
                conn.ask(&[b"FUNCTION", b"DELETE", name.as_bytes()]).await?;
                changed += 1;
            }
            let mut missing: Vec<(&String, &Vec<u8>)> = (ours.iter())
                .filter(|(name, code)| theirs.get(*name) != Some(*code))
                .collect();
            let mut refused = Vec::new();
            for _ in 0..ROUNDS {
                refused.clear();
                let mut again = Vec::new();
                for (name, code) in missing {
                    let reply = conn.ask(&[b"FUNCTION", b"LOAD", b"REPLACE", code]).await?;
                    match reply {
                        Reply::Error(text) if net::passes(&text) => {
                            return Err(net::refusal("FUNCTION LOAD", &text));
                        }
                        Reply::Error(text) => {
                            refused.push((name.clone(), text));
                            again.push((name, code));
                        }
                        _ => changed += 1,
                    }
                }
                missing = again;
            }
            Ok((changed, refused))
        })
    }
}
