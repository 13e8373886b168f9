//! `keyferry migrate`: runs the flow, draws it, and says how it ended.

use super::common::{Common, block_on, load_and_warn};
use super::control::ListenArgs;
use super::metrics;
use super::output::{self, unknown_command};
use super::progress::Painter;
use crate::check;
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::progress::Progress;
use crate::migrate::{self, Summary};
use crate::plan::{Job, Share};
use crate::report::{bytes, duration, grouped};
use crate::store::{MODE, Store, recall_nodes};
use crate::task::{Shutdown, TaskGroup};
use clap::{Args, ValueEnum};
use serde_json::Value;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Load everything, then follow the source until Ctrl-C
///
/// Started again, it goes on where it was. The source is only read; the target is written.
///
/// One migration of a source cluster can be spread over processes and machines: each moves a share of the source's
/// masters, has a state of its own in WORK_DIR/<plan>/workers/, and needs nothing of the others. `keyferry status`,
/// `report` and `verify` take them together.
#[derive(Args)]
#[command(after_help = "\
Exit codes: 0 done or caught up, 1 not begun because of what check has found, 2 wrong plan, 3 failed, 130 interrupted; after 3 and 130 the same command goes on.

Examples:
  keyferry migrate move.json                     until Ctrl-C
  keyferry migrate move.json --until caught-up   until the target holds what the source holds
  keyferry migrate move.json --dry-run           read and count everything, write nothing
  keyferry migrate move.json --shards 0-2        only the first three masters of the source cluster
  keyferry migrate move.json --worker 0/3        the first of three workers that share the masters out
  keyferry migrate move.json --workers 3         the same, where an engine sets JOB_COMPLETION_INDEX")]
pub struct Arguments {
    /// The plan; "-" is standard input
    plan: PathBuf,
    /// Read, decode, route and count everything, but write nothing
    #[arg(long)]
    dry_run: bool,
    /// End by itself when the target has caught up with the source
    #[arg(long, value_name = "WHEN")]
    until: Option<Until>,
    /// Remove from the target what the source has lost
    ///
    /// When the source comes back without much of its data, or another server answers at its address, the migration
    /// stops before it removes anything from the target (more than max_loss_percent of the plan, and at least 1,000
    /// keys). With this, the run removes it. It holds for the full sync or sweep that this run begins with, not for
    /// later ones.
    #[arg(long)]
    accept_loss: bool,
    /// Refuse a snapshot whose RDB version is newer than all that are known (else: a warning)
    #[arg(long)]
    strict: bool,
    /// Forget the saved state and begin anew
    #[arg(long)]
    fresh: bool,
    /// Move only these masters of the source, counted from 0 in the order of their lowest slots, as in 0-2,5
    #[arg(long, value_name = "LIST", conflicts_with_all = ["worker", "workers"])]
    shards: Option<String>,
    /// Move every Nth master of the source, beginning with I: worker I of N, counted from 0
    #[arg(long, value_name = "I/N", conflicts_with = "workers")]
    worker: Option<String>,
    /// As --worker I/N, with I from the environment variable JOB_COMPLETION_INDEX (a Kubernetes indexed Job sets it)
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    #[command(flatten)]
    control: ListenArgs,
    /// Begin in spite of a finding of `keyferry check`, by its id; may be given more than once
    #[arg(long, value_name = "ID")]
    ignore: Vec<String>,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Until {
    CaughtUp,
}

/// Where an engine puts a worker's number.
const INDEX: &str = "JOB_COMPLETION_INDEX";

impl Arguments {
    fn share(&self) -> Result<Option<Share>> {
        match (&self.shards, &self.worker, self.workers) {
            (Some(list), _, _) => Share::listed(list).map(Some),
            (_, Some(worker), _) => Share::worker(worker).map(Some),
            (_, _, Some(of)) => {
                Share::numbered(of, INDEX, std::env::var(INDEX).ok().as_deref()).map(Some)
            }
            (None, None, None) => Ok(None),
        }
    }
}

pub fn run(arguments: &Arguments, common: &Common) -> Result<u8> {
    let share = arguments.share()?;
    let listen = arguments.control.listen(share.is_some())?;
    let job = load_and_warn(&arguments.plan)?;
    let mut options = migrate::Options {
        checked: None,
        dry_run: arguments.dry_run,
        until_caught_up: matches!(arguments.until, Some(Until::CaughtUp)),
        accept_loss: arguments.accept_loss,
        strict: arguments.strict,
        fresh: arguments.fresh,
        work_dir: common.state_dir(&job),
        share,
        listen,
    };
    recall_nodes(&options.work_dir, &job);
    options.checked = checked(&job, arguments, &options.home())?;
    if options.checked.is_none() {
        return Ok(1);
    }
    let summary = block_on(follow(job, options, common))?;
    if arguments.json {
        output::json(&summary)?;
    } else {
        output::print(&text(&summary))?;
    }
    Ok(if summary.interrupted { 130 } else { 0 })
}

/// What both sides let us do, found out before anything else; `None` when that keeps a new migration from beginning.
fn checked(job: &Job, arguments: &Arguments, dir: &Path) -> Result<Option<Value>> {
    let store = match arguments.fresh || arguments.dry_run {
        true => None,
        false => Store::open_readonly(dir)?,
    };
    let (known, begun) = match &store {
        Some(store) => (store.json(MODE)?, !store.shards()?.is_empty()),
        None => (None, false),
    };
    // Before anything was begun, rights may have been given: it is asked anew.
    let known = known.as_ref().and_then(Value::as_str).filter(|_| begun);
    let report = block_on(check::run(job, !arguments.dry_run && !begun, known))?;
    let answer = serde_json::to_value(&report)
        .map_err(|e| Error::new(ErrorKind::Bug, "write the check's answer as JSON").cause(e))?;
    let stops: Vec<_> = match begun || arguments.dry_run {
        // What was begun goes on; a rehearsal harms nobody.
        true => Vec::new(),
        false => report.stops(&arguments.ignore).collect(),
    };
    if stops.is_empty() {
        return Ok(Some(answer));
    }
    for finding in &stops {
        output::say(super::check::one(finding).trim_end_matches('\n'));
    }
    eprintln!(
        "the migration was not begun and nothing was touched; with --ignore {} it begins in spite of that",
        stops
            .iter()
            .map(|f| f.id)
            .collect::<Vec<_>>()
            .join(" --ignore ")
    );
    if arguments.json {
        output::json(&answer)?;
    }
    Ok(None)
}

/// Runs the migration and shows its numbers four times a second.
async fn follow(job: Job, options: migrate::Options, common: &Common) -> Result<Summary> {
    let stop = Shutdown::default();
    stop.on_signals()?;
    let progress = Arc::new(Progress::default());
    let mut side = TaskGroup::new();
    if let Some(address) = common.metrics {
        let listener = metrics::listen(address).await?;
        side.spawn(metrics::serve(
            listener,
            progress.clone(),
            side.stop.clone(),
        ));
    }
    let mut painter = Painter::new(common.no_progress);
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    let flow = migrate::run(job, options, progress.clone(), stop);
    tokio::pin!(flow);
    let result = loop {
        tokio::select! {
            result = &mut flow => break result,
            _ = tick.tick() => painter.draw(&progress.views()),
        }
    };
    painter.finish();
    side.stop.request();
    side.join().await?;
    result
}

fn text(s: &Summary) -> String {
    let end = match (s.interrupted, s.caught_up, s.dry_run) {
        (true, _, _) => "stopped; state is saved, the same command goes on",
        (false, _, true) => "the dry run is done; nothing was written",
        (false, true, false) => "done; the target has caught up",
        (false, false, false) => "ended; the target has not caught up",
    };
    let mut text = format!("{end}\n");
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<17} {value}");
    };
    let (keys, commands) = if s.dry_run {
        ("keys to write", "commands seen")
    } else {
        ("keys written", "commands applied")
    };
    line(keys, grouped(s.keys_written));
    line(commands, grouped(s.commands_applied));
    if s.healed_keys > 0 {
        line("keys healed", grouped(s.healed_keys));
    }
    for (reason, n) in &s.skipped {
        line("left out", format!("{} ({reason})", grouped(*n)));
    }
    for c in &s.unknown_commands {
        line("unknown command", unknown_command(c));
    }
    line(
        "time",
        format!(
            "{} ({} keys/s)",
            duration(s.elapsed_ms),
            grouped(s.keys_per_s)
        ),
    );
    line("peak memory", bytes(s.peak_rss_bytes));
    for (kind, of) in s
        .census
        .iter()
        .flat_map(|c| c["types"].as_object())
        .flatten()
    {
        let n = |key: &str| of[key].as_u64().unwrap_or(0);
        line(
            kind,
            format!("{} keys, {}", grouped(n("keys")), bytes(n("bytes"))),
        );
    }
    if let Some(largest) = s.census.as_ref().and_then(|c| c["largest"].get(0)) {
        let size = bytes(largest["bytes"].as_u64().unwrap_or(0));
        line(
            "largest key",
            format!("{} ({size})", largest["key"].as_str().unwrap_or("")),
        );
        line("more", "in `keyferry report` and --json".into());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_dry_run_does_not_claim_to_have_written() {
        let summary = Summary {
            keys_written: 1000,
            commands_applied: 0,
            healed_keys: 0,
            skipped: [("filter".to_string(), 3)].into(),
            unknown_commands: Vec::new(),
            elapsed_ms: 10,
            keys_per_s: 5,
            peak_rss_bytes: 0,
            caught_up: true,
            dry_run: true,
            interrupted: false,
            census: Some(
                json!({"types": {"hash": {"keys": 2, "bytes": 2048}}, "largest": [{"key": "k", "bytes": 9}]}),
            ),
        };
        let said = text(&summary);
        assert!(
            said.contains("nothing was written") && said.contains("keys to write     1 000"),
            "{said}"
        );
        assert!(
            said.contains("2 keys, 2.0 KiB")
                && said.contains("k (9 B)")
                && said.contains("3 (filter)"),
            "{said}"
        );
        assert!(!said.contains("keys written"), "{said}");
    }
}
