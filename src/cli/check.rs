//! `keyferry check`: what will work and what blocks, before anything is moved.

use super::common::{Common, block_on, load_and_warn};
use super::output;
use crate::check::{self, Facts, Finding, Report, Severity};
use crate::error::{Error, ErrorKind, Result};
use crate::report::{bytes, duration, grouped};
use crate::store::recall_nodes;
use clap::Args;
use std::fmt::Write;
use std::path::PathBuf;

/// Probe both sides: what will work, what will be lost, what blocks
///
/// Keys of yours are not touched. At the target a key with a random name is written, which ends after ten seconds and
/// is deleted before; so is one at a source that will be scanned and does not tell whether it sends keyspace
/// notifications (--no-write leaves both out).
#[derive(Args)]
#[command(after_help = "\
Exit codes: 0 nothing blocks, 1 something does.

Examples:
  keyferry check move.json
  keyferry check move.json --json | jq '.findings[] | select(.severity == \"blocker\")'")]
pub struct Arguments {
    /// The plan; "-" is standard input
    plan: PathBuf,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
    /// Write nothing at all, not even the probe's own key
    #[arg(long)]
    no_write: bool,
}

pub fn run(arguments: &Arguments, common: &Common) -> Result<u8> {
    let job = load_and_warn(&arguments.plan)?;
    recall_nodes(&common.state_dir(&job), &job);
    let report = block_on(check::run(&job, !arguments.no_write, None))?;
    if arguments.json {
        let answer = serde_json::to_value(&report)
            .map_err(|e| Error::new(ErrorKind::Bug, "write the answer as JSON").cause(e))?;
        output::json(&answer)?;
    } else {
        output::print(&text(&report))?;
    }
    Ok(u8::from(!report.ok))
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for (name, facts) in [("source", &report.source), ("target", &report.target)] {
        if let Some(facts) = facts {
            side(&mut text, name, facts);
        }
    }
    if let (Some(mode), Some(guarantee)) = (report.mode, report.guarantee) {
        let _ = writeln!(text, "mode     {mode}: {guarantee}");
    }
    if let Some(s) = report.estimate_s {
        let _ = writeln!(text, "copy     about {}", duration(s.saturating_mul(1000)));
    }
    for finding in &report.findings {
        text.push('\n');
        text.push_str(&one(finding));
    }
    let blockers = (report.findings.iter()).filter(|f| f.severity == Severity::Blocker);
    let _ = match blockers.count() {
        0 => writeln!(text, "\nnothing blocks"),
        n => writeln!(text, "\n{n} of these block the migration"),
    };
    text
}

/// A finding with what to do about it.
pub fn one(finding: &Finding) -> String {
    let weight = match finding.severity {
        Severity::Blocker => "BLOCKER",
        Severity::Warning => "warning",
        Severity::Info => "info",
    };
    let mut text = format!("{weight}  {} ({})\n", finding.message, finding.id);
    if !finding.fix.is_empty() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "         do: {}", finding.fix);
    }
    text
}

fn side(text: &mut String, name: &str, f: &Facts) {
    let memory = match f.maxmemory {
        Some(0) => format!("{}, no limit", bytes(f.used_memory)),
        Some(max) => format!("{} of {}", bytes(f.used_memory), bytes(max)),
        None => bytes(f.used_memory),
    };
    let refused: Vec<&str> = (f.commands.iter())
        .filter(|(_, allowed)| !**allowed)
        .map(|(c, _)| *c)
        .collect();
    let _ = writeln!(
        text,
        "{name:<8} {} {} {}, masters: {}, {}\n         keys: {} ({} expire), data: {memory}, round trip: {:.1} ms",
        f.url,
        f.server,
        f.topology,
        f.masters,
        if f.tls { "TLS" } else { "no TLS" },
        grouped(f.keys),
        grouped(f.expires),
        f.rtt_us as f64 / 1000.0,
    );
    if !refused.is_empty() {
        let _ = writeln!(text, "         refused: {}", refused.join(", "));
    }
}
