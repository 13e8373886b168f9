//! `keyferry status`: where a migration stands, from its state file.

use super::common::{Common, block_on, load, plan_of};
use super::control::RemoteArgs;
use super::output::{self, unknown_command};
use crate::cutover;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::validate;
use crate::report::steps::closed_text;
use crate::report::{Status, bytes, duration, grouped, instant};
use crate::store::{worker_dir, workers};
use clap::Args;
use serde_json::Value;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Say where a migration stands: progress, lag, positions
///
/// Reads the saved state only, so it works while another process migrates, and after it. Where workers have shared the
/// source out (`keyferry migrate --worker`), their states are taken together: sums, the worst lag, the phase of the
/// least advanced, and what no worker has.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keyferry status move.json --watch       look again each second, until Ctrl-C
  keyferry status move.json --json | jq .stream.lag_bytes
  keyferry status move.json --worker-at workers:7411 --control-token-file token
  keyferry status move.json --also /volumes/worker-1 --also /volumes/worker-2")]
pub struct Arguments {
    /// The plan; "-" is standard input
    plan: PathBuf,
    /// Answer with one JSON object (with --watch: one per line)
    #[arg(long)]
    json: bool,
    /// Look again each second, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Where else workers' states lie, when the migration is spread over machines: a worker's folder, or another
    /// machine's --work-dir; may be given more than once
    #[arg(long, value_name = "DIR")]
    also: Vec<PathBuf>,
    #[command(flatten)]
    remote: RemoteArgs,
    /// Copy the workers' states found here to DIR, whole also while they run, for --also on another machine
    #[arg(long, value_name = "DIR", conflicts_with = "watch")]
    copy: Option<PathBuf>,
}

pub fn run(arguments: &Arguments, common: &Common) -> Result<u8> {
    let afar = match arguments.remote.remote()? {
        Some(remote) => Some((plan_of(&arguments.plan)?, remote)),
        None => None,
    };
    let job = match &afar {
        Some((plan, _)) => validate(plan)?,
        None => load(&arguments.plan)?,
    };
    let dir = common.state_dir(&job);
    let look = || match &afar {
        Some((plan, remote)) => block_on(cutover::look(plan, &dir, remote)),
        None => Ok(()),
    };
    look()?;
    if let Some(to) = &arguments.copy {
        let found = workers(&dir)?;
        if found.is_empty() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{} holds no worker's state to copy", dir.display()),
            )
            .hint("start a worker with `keyferry migrate --worker`, or name its --work-dir"));
        }
        for worker in found {
            worker.store.copy_to(&worker_dir(to, &worker.name))?;
        }
    }
    if !arguments.watch {
        let status = Status::read(&dir, &arguments.also, &job)?;
        return if arguments.json {
            output::json(&status)
        } else {
            output::print(&text(&status))
        }
        .map(|()| 0);
    }
    while !output::closed() {
        look()?;
        let status = Status::read(&dir, &arguments.also, &job)?;
        if arguments.json {
            output::json_line(&status)?;
        } else {
            output::clear()?;
            output::print(&text(&status))?;
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
    let running = s.workers.iter().filter(|w| w.pid.is_some()).count();
    line(
        "running",
        match (s.pid, s.workers.len()) {
            (Some(pid), _) => format!("process {pid}"),
            (None, 0) => "no".into(),
            (None, of) => format!("{running} of {of} workers on this machine"),
        },
    );
    for worker in &s.workers {
        let at = worker.updated_at.map_or("never saved".into(), instant);
        let who = match worker.pid {
            Some(pid) => format!("process {pid}"),
            None => "not running here".into(),
        };
        line(
            "worker",
            format!("{}: {}, {who}, saved {at}", worker.share, worker.phase),
        );
    }
    if let Some(slots) = &s.slots_missing {
        line(
            "MISSING",
            format!(
                "no worker was found that has the slots {slots}: start it, or name where its state lies with --also"
            ),
        );
    }
    if let Some(slots) = &s.slots_twice {
        line(
            "TWICE",
            format!(
                "more than one worker has the slots {slots}: stop them, and start over with on_existing \"reconcile\""
            ),
        );
    }
    if let Some(at) = s.updated_at {
        line("snapshot", snapshot(&s.snapshot));
        line("stream", stream(&s.stream));
        if let Some(guarantee) = s.guarantee() {
            line("guarantee", guarantee.to_owned());
        }
        if let Some(why) = s.sweeps_because() {
            line(
                "cutover",
                format!("needs a whole sweep in its pause: {why}"),
            );
        }
        if s.shards.len() > 1 || !s.workers.is_empty() {
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
        for shard in s.shards.iter().filter(|shard| !shard.note.is_empty()) {
            let note = match s.shards.len() {
                1 => shard.note.clone(),
                _ => format!("{}: {}", shard.address, shard.note),
            };
            line("note", note);
        }
        if s.healed_keys > 0 {
            line("healed", format!("{} keys", grouped(s.healed_keys)));
        }
        for (reason, n) in &s.skipped {
            line("left out", format!("{} ({reason})", grouped(*n)));
        }
        for c in &s.unknown_commands {
            line("unknown", unknown_command(c));
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
        line("cutover", where_clients_are(cutover));
        let old = &cutover["old_side"];
        let moved = matches!(cutover["stage"].as_str(), Some("switched" | "committed"));
        if moved {
            let closed = old["closed"].as_str().unwrap_or("");
            line("old side", closed_text(closed).into());
        }
        let late = old["late"]["writes"].as_u64().unwrap_or(0);
        if late > 0 {
            line(
                "late writes",
                format!(
                    "{} commands wrote to the old side after the freeze; --json lists their keys",
                    grouped(late)
                ),
            );
        }
        if let Some(ms) = cutover["way_back"]["data_loss_bound_ms"].as_u64() {
            line("way back", format!("behind by {}", duration(ms)));
        }
    }
    text
}

/// In a sentence.
fn where_clients_are(cutover: &Value) -> String {
    let step = cutover["steps"].as_array().and_then(|s| s.last());
    let last = step.map(|s| {
        let word = |key: &str| s[key].as_str().unwrap_or("?").to_owned();
        let ended = s["ended_ms"].as_i64().map(instant).unwrap_or_default();
        format!(
            "attempt {}: {} {} {ended}",
            cutover["attempt"],
            word("step"),
            word("state")
        )
    });
    let last = last.unwrap_or_default();
    match cutover["stage"].as_str() {
        Some("source") => format!("the clients are at the source ({last})"),
        Some("switching") => format!(
            "nobody knows where the clients are: look, and run the same command with --clients-at source or target ({last})"
        ),
        Some("switched") => {
            format!("the clients are at the target; the way back is kept open ({last})")
        }
        Some("committed") => {
            format!("done: the clients are at the target, and it is committed ({last})")
        }
        Some("rolled-back") => format!("the clients are back at the source ({last})"),
        _ => last,
    }
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
