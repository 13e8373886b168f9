//! `keyferry verify`: compares both sides; the answer is the exit code.

use super::common::{Common, block_on, load_and_warn};
use super::output;
use super::progress::Meter;
use crate::digest::Width;
use crate::error::{Error, ErrorKind, Result};
use crate::migrate;
use crate::plan::{Job, Share};
use crate::report::{bytes, duration, grouped};
use crate::store::{Lock, Store, workers};
use crate::task::Shutdown;
use crate::types::{Slot, SlotSet};
use crate::verify::{self, Summary};
use clap::Args;
use serde_json::Value;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// How many keys of each kind are listed for people; --json and the report have more.
const LISTED: usize = 10;

/// Compare source and target, slot by slot and down to the key
///
/// Every key is read on both sides at the same time; a key counts as different only when it still is after the
/// migration has applied what the source had written. Stopped (Ctrl-C), it goes on at the next call.
///
/// Where workers have shared the source out, those that run on this machine are waited for.
#[derive(Args)]
#[command(after_help = "\
Exit codes: 0 equal, 1 differences were found, 3 the comparison failed.

Examples:
  keyferry verify move.json
  keyferry verify move.json --json | jq .missing_count
  keyferry verify move.json --sample 1%
  keyferry verify move.json --incremental
  keyferry verify move.json --repair")]
pub struct Arguments {
    /// The plan; "-" is standard input
    plan: PathBuf,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
    /// Compare only these slots, as in 0-4095,8000
    #[arg(long, value_name = "RANGES", conflicts_with = "sample")]
    slots: Option<String>,
    /// Compare a share of the slots, as in 1%
    #[arg(long, value_name = "PERCENT")]
    sample: Option<String>,
    /// Read only slots that were written to since they were last found equal
    #[arg(long, conflicts_with_all = ["slots", "sample"])]
    incremental: bool,
    /// Write keys that differ again, as the source has them, and compare them once more
    #[arg(long)]
    repair: bool,
    /// Where else workers' states lie, when the migration is spread over machines: a worker's folder, or another
    /// machine's --work-dir; may be given more than once
    #[arg(long, value_name = "DIR", conflicts_with = "repair")]
    also: Vec<PathBuf>,
    /// Digests of 128 bits instead of 64
    #[arg(long)]
    strong: bool,
    /// Begin anew, even if an earlier verification was stopped before its end
    #[arg(long)]
    fresh: bool,
}

pub fn run(arguments: &Arguments, common: &Common) -> Result<u8> {
    let job = load_and_warn(&arguments.plan)?;
    let slots = match (&arguments.slots, &arguments.sample) {
        (Some(ranges), _) => Some(verify::slots(ranges)?),
        (None, Some(share)) => Some(verify::sample(share)?),
        (None, None) => None,
    };
    let options = verify::Options {
        work_dir: common.state_dir(&job),
        also: arguments.also.clone(),
        slots,
        incremental: arguments.incremental,
        keep: false,
        repair: arguments.repair,
        fresh: arguments.fresh,
        width: match arguments.strong {
            true => Width::Bits128,
            false => Width::Bits64,
        },
        gauge: Arc::default(),
    };
    let summary = block_on(async {
        let stop = Shutdown::default();
        stop.on_signals()?;
        let first = follow(job.clone(), options.clone(), stop.clone(), common).await?;
        if arguments.repair && !first.equal {
            repair(job, options, first, stop).await
        } else {
            Ok(first)
        }
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

/// Runs a verification and shows how far it is.
async fn follow(
    job: Job,
    options: verify::Options,
    stop: Shutdown,
    common: &Common,
) -> Result<Summary> {
    let gauge = options.gauge.clone();
    let mut meter = Meter::new(common.no_progress);
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    let flow = verify::run(job, options, stop);
    tokio::pin!(flow);
    let result = loop {
        tokio::select! {
            result = &mut flow => break result,
            _ = tick.tick() => {
                meter.draw("compare", gauge.done.load(Relaxed), gauge.total.load(Relaxed));
            }
        }
    };
    meter.finish();
    result
}

/// Has the migration write the keys that differ again (the one that runs, or one of our own until it has caught up), and
/// proves them.
async fn repair(
    job: Job,
    options: verify::Options,
    first: Summary,
    stop: Shutdown,
) -> Result<Summary> {
    let mut last = first;
    for _ in 0..REPAIR_ROUNDS {
        let store = Store::open(&options.work_dir)?;
        let slots: SlotSet = (store.slots_apart()?.iter())
            .filter_map(|s| Slot::new(s.slot))
            .collect();
        let before = last.missing_count + last.extra_count + last.different_count;
        if before == 0 {
            return Ok(last);
        }
        drop(store);
        let workers = workers(&options.work_dir)?;
        if workers.is_empty() {
            write_again(&job, &options.work_dir, &options.work_dir, None, &stop).await?;
        }
        for worker in workers {
            let share = Some(Share::typed(&worker.claim.share)?);
            write_again(&job, &options.work_dir, &worker.dir, share, &stop).await?;
        }
        let proof = verify::Options {
            slots: Some(slots),
            incremental: false,
            keep: true,
            fresh: true,
            ..options.clone()
        };
        let next = verify::run(job.clone(), proof, stop.clone()).await?;
        let left = next.missing_count + next.extra_count + next.different_count;
        last = Summary {
            slots_compared: last.slots_compared,
            repaired_count: last.repaired_count + before.saturating_sub(left),
            elapsed_ms: last.elapsed_ms + next.elapsed_ms,
            ..next
        };
        if last.equal {
            break;
        }
    }
    Ok(last)
}

/// Has one process write what it was asked for: the one that works on the state in `home`, or one of our own.
async fn write_again(
    job: &Job,
    work_dir: &Path,
    home: &Path,
    share: Option<Share>,
    stop: &Shutdown,
) -> Result<()> {
    let store = Store::open(home)?;
    while Lock::is_held(home) && !store.repairs(1)?.is_empty() {
        if !stop.sleep(Duration::from_millis(200)).await {
            return Err(Error::stopped("the repair was stopped"));
        }
    }
    if store.repairs(1)?.is_empty() {
        return Ok(());
    }
    drop(store);
    let run = migrate::Options {
        checked: None,
        dry_run: false,
        until_caught_up: true,
        accept_loss: false,
        strict: false,
        fresh: false,
        work_dir: work_dir.to_owned(),
        share,
        listen: None,
    };
    // A stop of its own: reaching the end of this run is no reason to stop the proof.
    let own = Shutdown::default();
    let (all, one) = (stop.clone(), own.clone());
    tokio::spawn(async move {
        all.wait().await;
        one.request();
    });
    migrate::run(job.clone(), run, Default::default(), own).await?;
    Ok(())
}

/// How often keys are written again that still differ.
const REPAIR_ROUNDS: u32 = 3;

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
    let kinds = [
        "missing",
        "extra",
        "different",
        "unprovable",
        "not_replicated",
    ];
    for kind in kinds {
        let keys = answer[kind].as_array().map_or(&[][..], Vec::as_slice);
        let count = answer[format!("{kind}_count")]
            .as_u64()
            .unwrap_or(keys.len() as u64);
        if count == 0 {
            continue;
        }
        // Writing to a String cannot fail.
        let what = match kind {
            "not_replicated" => "not counted as different, as no replica of the source has it",
            kind => kind,
        };
        let _ = writeln!(text, "  {what}: {}", grouped(count));
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
    for library in answer["functions_different"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let _ = writeln!(text, "  function {}", library.as_str().unwrap_or(""));
    }
    for index in answer["indexes"].as_array().into_iter().flatten() {
        let text_of = |key: &str| index[key].as_str().unwrap_or_default().to_owned();
        let count = |key: &str| index[key].as_u64().map_or("-".into(), grouped);
        let reason = match text_of("reason") {
            none if none.is_empty() => none,
            reason => format!(": {reason}"),
        };
        let _ = writeln!(
            text,
            "  search index {}: {}, documents {} and {}{reason}",
            text_of("name"),
            text_of("state").replace('_', " "),
            count("source_documents"),
            count("target_documents")
        );
    }
    if answer["slots_compared"].is_number() && n("slots_compared") < n("slots") {
        let _ = writeln!(
            text,
            "  compared: {} slots only",
            grouped(n("slots_compared"))
        );
    }
    if n("known_losses") > 0 {
        let _ = writeln!(
            text,
            "  listed losses, not compared: {}",
            grouped(n("known_losses"))
        );
    }
    let rate = |key: &str| bytes(n(key).saturating_mul(1000) / n("elapsed_ms").max(1));
    if answer["bytes_target"].is_number() {
        let _ = write!(
            text,
            "  read: {} keys/s, {}/s of the source and {}/s of the target",
            grouped(n("keys_per_s")),
            rate("bytes_source"),
            rate("bytes_target")
        );
        for side in ["source", "target"] {
            if let Some(percent) = answer[format!("cpu_percent_{side}")].as_u64() {
                let _ = write!(text, "; the {side} used {percent} % of a CPU");
            }
        }
        let _ = writeln!(text, "; peak memory {}", bytes(n("peak_rss_bytes")));
    }
    for db in answer["dbsize"].as_array().into_iter().flatten() {
        if db["source"] != db["target"] {
            let _ = writeln!(
                text,
                "  the servers count {} and {} keys in database {} (expired ones that they have not removed included)",
                grouped(db["source"].as_u64().unwrap_or(0)),
                grouped(db["target"].as_u64().unwrap_or(0)),
                db["db"]
            );
        }
    }
    if answer["resumed"] == true {
        text += "  this went on where an earlier verification was stopped\n";
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
