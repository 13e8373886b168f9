//! `keyferry verify`: compares both sides; the answer is the exit code.

use super::{Common, block_on, load_and_warn, output};
use crate::error::{Error, ErrorKind, Result};
use crate::report::{duration, grouped};
use crate::task::Shutdown;
use crate::verify;
use clap::Args;
use serde_json::Value;
use std::fmt::Write;
use std::path::PathBuf;

/// How many keys of each kind are listed for people; --json and the report have more.
const LISTED: usize = 10;

/// Compare source and target, slot by slot and down to the key
///
/// Every key of both sides is read and summed per slot; slots that differ are compared key by key, and a key counts
/// as different only when it still is after being read again.
#[derive(Args)]
#[command(after_help = "\
Exit codes: 0 equal, 1 differences were found, 3 the comparison failed.

Examples:
  keyferry verify move.json
  keyferry verify move.json --json | jq .missing_count")]
pub struct Arguments {
    /// The plan; "-" is standard input
    plan: PathBuf,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, common: &Common) -> Result<u8> {
    let job = load_and_warn(&arguments.plan)?;
    let options = verify::Options {
        work_dir: common.state_dir(&job),
    };
    let summary = block_on(async {
        let stop = Shutdown::default();
        stop.on_signals()?;
        verify::run(job, options, stop).await
    })?;
    let answer = serde_json::to_value(&summary)
        .map_err(|e| Error::new(ErrorKind::Bug, "write the answer as JSON").cause(e))?;
    if arguments.json {
        output::json(&answer)?;
    } else {
        output::print(&text(&answer))?;
    }
    Ok(if answer["equal"].as_bool() == Some(true) {
        0
    } else {
        1
    })
}

/// The answer for people, from the keys of `verify --json`.
fn text(answer: &Value) -> String {
    let n = |key: &str| answer[key].as_u64().unwrap_or(0);
    let equal = answer["equal"].as_bool() == Some(true);
    let mut text = format!(
        "{}: {} keys at the source, {} at the target, {} of {} slots differ, in {}\n",
        if equal { "equal" } else { "NOT equal" },
        grouped(n("keys_source")),
        grouped(n("keys_target")),
        grouped(n("slots_different")),
        grouped(n("slots")),
        duration(n("elapsed_ms"))
    );
    for kind in ["missing", "extra", "different", "unprovable"] {
        let keys = answer[kind].as_array().map_or(&[][..], Vec::as_slice);
        let count = answer[format!("{kind}_count")]
            .as_u64()
            .unwrap_or(keys.len() as u64);
        if count == 0 {
            continue;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {kind}: {}", grouped(count));
        for key in keys.iter().take(LISTED) {
            let reason = key["reason"].as_str().unwrap_or("");
            let _ = writeln!(
                text,
                "    db {} slot {} {} {reason}",
                key["db"], key["slot"], key["key"]
            );
        }
        if count > LISTED as u64 {
            let _ = writeln!(
                text,
                "    and {} more: see --json or the report",
                grouped(count - LISTED as u64)
            );
        }
    }
    if n("repaired_count") > 0 {
        let _ = writeln!(text, "  repaired: {}", grouped(n("repaired_count")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_answer_names_the_verdict_and_the_keys() {
        let answer = json!({
            "equal": false, "slots": 16384, "slots_different": 1, "keys_source": 1000, "keys_target": 999,
            "missing": [{"db": 0, "key": "a\nb", "slot": 7, "reason": "not there"}], "missing_count": 11,
            "extra": [], "extra_count": 0, "elapsed_ms": 5
        });
        assert_eq!(
            text(&answer),
            "NOT equal: 1 000 keys at the source, 999 at the target, 1 of 16 384 slots differ, in 5 ms\n  missing: 11\n    \
             db 0 slot 7 \"a\\nb\" not there\n    and 1 more: see --json or the report\n"
        );
    }
}
