//! `keyferry latency`: measures both sides and says what differs.

use super::common::{Common, load_and_warn};
use super::output;
use crate::cutover;
use crate::error::Result;
use crate::latency::{self, Options};
use crate::store::recall_nodes;
use crate::task::Shutdown;
use clap::Args;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

/// Measure source and target under the same traffic, and say what differs
///
/// Requests are planned ahead at the rate that the source has, or multiples of it (latency.rates), whether or not the
/// server keeps up; the sides take turns. Nothing is written unless latency.allow_writes says so. Run it on a host
/// like the application's, with a core to spare.
#[derive(Args)]
#[command(after_help = "\
Exit codes: 0 measured, 2 wrong plan, 3 failed, 130 interrupted; after 3 and 130 the same command goes on with the next block.

Examples:
  keyferry latency move.json
  keyferry latency move.json --json | jq '.results[] | {workload, rate, verdict, why}'")]
pub struct Arguments {
    /// The plan; "-" is standard input
    plan: PathBuf,
    /// Begin anew, even if an earlier measurement was stopped before its end
    #[arg(long)]
    fresh: bool,
    /// Plan requests at even distances instead of random ones
    #[arg(long)]
    even: bool,
    /// The same requests in the same order each time
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, common: &Common) -> Result<u8> {
    let mut job = load_and_warn(&arguments.plan)?;
    let options = Options {
        work_dir: common.state_dir(&job),
        fresh: arguments.fresh,
        even: arguments.even,
        seed: arguments.seed,
        tell: Arc::new(|line| output::say(&format!("{line} …"))),
    };
    let answer = latency::spin(async {
        let stop = Shutdown::default();
        stop.on_signals()?;
        if job.latency.allow_writes {
            // After a cutover the source is closed to writers, but not to the measurement.
            recall_nodes(&options.work_dir, &job);
            cutover::admit(&mut job, &options.work_dir).await?;
        }
        latency::run(&job, &options, &stop).await
    })?;
    match arguments.json {
        true => output::json(&answer)?,
        false => output::print(&text(&answer))?,
    }
    Ok(0)
}

/// A percentile that there were too few requests for is not told.
fn told(us: &Value) -> String {
    us.as_u64().map_or("-".into(), |n| n.to_string())
}

fn text(answer: &Value) -> String {
    let mut text = String::new();
    for result in answer["results"].as_array().into_iter().flatten() {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{} at {:.0}/s: {}\n  {}",
            result["workload"].as_str().unwrap_or(""),
            result["rate_per_s"].as_f64().unwrap_or(0.0),
            result["verdict"].as_str().unwrap_or(""),
            result["why"].as_str().unwrap_or(""),
        );
        for (name, other) in result["against"].as_object().into_iter().flatten() {
            let _ = writeln!(
                text,
                "  against {name}: {}: {}",
                other["verdict"].as_str().unwrap_or(""),
                other["why"].as_str().unwrap_or(""),
            );
        }
        for (side, of) in result["endpoints"].as_object().into_iter().flatten() {
            let us = |kind: &str, name: &str| told(&of[kind][name]);
            let _ = writeln!(
                text,
                "  {side}: {} requests, response p50 {} p99 {} p99.9 {} max {} µs (service p50 {} p99 {})",
                of["count"],
                us("response", "p50_us"),
                us("response", "p99_us"),
                us("response", "p99_9_us"),
                us("response", "max_us"),
                us("service", "p50_us"),
                us("service", "p99_us"),
            );
        }
    }
    for stage in answer["sweep"].as_array().into_iter().flatten() {
        let _ = writeln!(
            text,
            "sweep, {} at {:.0}/s: {:.0}/s answered, p50 {} p99 {} µs{}",
            stage["side"].as_str().unwrap_or(""),
            stage["rate_per_s"].as_f64().unwrap_or(0.0),
            stage["answered_per_s"].as_f64().unwrap_or(0.0),
            told(&stage["response"]["p50_us"]),
            told(&stage["response"]["p99_us"]),
            match (stage["kept_up"] == true, stage["shed_by_client"] == 0) {
                (true, _) => "",
                (false, true) => ": saturated",
                (false, false) => ": this program's own limit",
            },
        );
    }
    for stage in answer["overload"].as_array().into_iter().flatten() {
        let _ = writeln!(
            text,
            "overload, {} at {:.0}/s: {} of {} answered, {} shed, p99 {} µs",
            stage["side"].as_str().unwrap_or(""),
            stage["rate_per_s"].as_f64().unwrap_or(0.0),
            stage["answered"],
            stage["planned"],
            stage["shed"],
            told(&stage["response"]["p99_us"]),
        );
    }
    for skipped in answer["skipped"].as_array().into_iter().flatten() {
        let _ = writeln!(
            text,
            "{} was not measured: {}",
            skipped["workload"].as_str().unwrap_or(""),
            skipped["why"].as_str().unwrap_or("")
        );
    }
    let _ = writeln!(
        text,
        "this program, on one core, has held {} requests/s{}",
        answer["client"]["held_per_s"],
        match answer["client"]["was_the_limit"] == true {
            true => ", which is its limit here",
            false => " (more was not asked of it)",
        }
    );
    let _ = writeln!(
        text,
        "histograms for HdrHistogram's tools: {}",
        answer["files"].as_str().unwrap_or("")
    );
    text
}
