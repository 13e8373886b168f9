//! `keyferry status`: where a migration stands, from its state file.

use super::{Common, load, output};
use crate::error::{Error, ErrorKind, Result};
use crate::report::{Status, bytes, duration, grouped, instant};
use clap::Args;
use std::fmt::Write;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

/// Say where a migration stands: progress, lag, positions
///
/// Reads the saved state only, so it works while another process migrates, and after it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keyferry status move.json --watch       look again each second, until Ctrl-C
  keyferry status move.json --json | jq .stream.lag_bytes")]
pub struct Arguments {
    /// The plan; "-" is standard input
    plan: PathBuf,
    /// Answer with one JSON object (with --watch: one per line)
    #[arg(long)]
    json: bool,
    /// Look again each second, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

pub fn run(arguments: &Arguments, common: &Common) -> Result<u8> {
    let job = load(&arguments.plan)?;
    let dir = common.state_dir(&job);
    if !arguments.watch {
        let status = Status::read(&dir, &job)?;
        return if arguments.json {
            output::json(&status)
        } else {
            output::print(&text(&status))
        }
        .map(|()| 0);
    }
    let clear = if std::io::stdout().is_terminal() {
        "\x1b[H\x1b[J"
    } else {
        ""
    };
    while !output::closed() {
        let status = Status::read(&dir, &job)?;
        if arguments.json {
            let line = serde_json::to_string(&status)
                .map_err(|e| Error::new(ErrorKind::Bug, "write the status as JSON").cause(e))?;
            output::print(&(line + "\n"))?;
        } else {
            output::print(&format!("{clear}{}", text(&status)))?;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(0)
}

fn text(s: &Status) -> String {
    let mut text = format!("{}: {} (mode {})\n", s.plan, s.phase, s.mode);
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<10} {value}");
    };
    line(
        "running",
        s.pid.map_or("no".into(), |pid| format!("process {pid}")),
    );
    if let Some(at) = s.updated_at {
        line("snapshot", snapshot(&s.snapshot));
        line("stream", stream(&s.stream));
        if s.shards.len() > 1 {
            for shard in &s.shards {
                let of = if shard.snapshot.done {
                    stream(&shard.stream)
                } else {
                    snapshot(&shard.snapshot)
                };
                line(
                    &format!("shard {}", shard.shard),
                    format!("{}: {of}", shard.address),
                );
            }
        }
        if s.healed_keys > 0 {
            line("healed", format!("{} keys", grouped(s.healed_keys)));
        }
        for (reason, n) in &s.skipped {
            line("left out", format!("{} ({reason})", grouped(*n)));
        }
        line("saved", instant(at));
    }
    let verified = match &s.last_verify {
        None => "never".into(),
        Some(v) => {
            let verdict = if v["equal"].as_bool() == Some(true) {
                "equal"
            } else {
                "NOT equal"
            };
            format!(
                "{verdict}, {}",
                instant(v["ended_at"].as_i64().unwrap_or(0))
            )
        }
    };
    line("verified", verified);
    if let Some(cutover) = &s.cutover {
        let step = cutover["steps"].as_array().and_then(|s| s.last());
        let step = step.map(|s| format!("{} {}", s["step"], s["state"]).replace('"', ""));
        line(
            "cutover",
            format!(
                "the clients are at: {}; attempt {}: {}",
                cutover["stage"].as_str().unwrap_or("?"),
                cutover["attempt"],
                step.unwrap_or_default()
            ),
        );
        if let Some(ms) = cutover["way_back"]["data_loss_bound_ms"].as_u64() {
            line("way back", format!("behind by {}", duration(ms)));
        }
    }
    text
}

fn snapshot(s: &crate::report::SnapshotStatus) -> String {
    let done = if s.done {
        "done".to_string()
    } else {
        format!("{} of {}", bytes(s.bytes_read), bytes(s.bytes_total))
    };
    format!(
        "{done}, {} keys read, {} written",
        grouped(s.keys_read),
        grouped(s.keys_written)
    )
}

fn stream(s: &crate::report::StreamStatus) -> String {
    let at = s
        .applied_offset
        .map_or("not begun".into(), |o| format!("offset {o}"));
    format!(
        "{at}, {} commands applied, lag {} and {}",
        grouped(s.commands_applied),
        bytes(s.lag_bytes),
        duration(s.lag_ms)
    )
}
