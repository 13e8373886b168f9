//! `keyferry fleet`: one command over many plans, and the roll-up.

use super::common::{Common, block_on};
use super::output;
use crate::error::Result;
use crate::fleet::{self, Options, Row, Summary};
use crate::report::duration;
use crate::task::Shutdown;
use clap::{Args, ValueEnum};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

/// Run one command over many plans, so many at a time
///
/// After a plan that fails or is refused no other is begun, and those that run come to their end.
#[derive(Args)]
#[command(after_help = "\
Exit codes: 0 all are done, 1 one was refused, failed or was not begun, 130 interrupted.

Examples:
  keyferry fleet check plans/*.json
  keyferry fleet cutover wave-1/*.json --at-once 5
  keyferry fleet cutover wave-1/*.json -- --dry-run
  keyferry fleet migrate plans/*.json --at-once 20 -- --until caught-up")]
pub struct Arguments {
    command: FleetCommand,
    /// The plans, in the order in which they are begun
    #[arg(required = true)]
    plans: Vec<PathBuf>,
    /// How many at a time
    #[arg(long, value_name = "N", default_value_t = 1)]
    at_once: usize,
    /// Go on with the others after a failure
    #[arg(long)]
    keep_going: bool,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
    /// More words for the command itself, after --
    #[arg(last = true)]
    more: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum FleetCommand {
    Check,
    Migrate,
    Status,
    Verify,
    Cutover,
    Rollback,
    Report,
}

pub fn run(arguments: &Arguments, common: &Common) -> Result<u8> {
    let command = arguments.command.to_possible_value();
    let options = Options {
        command: command.map(|c| c.get_name().to_owned()).unwrap_or_default(),
        plans: arguments.plans.clone(),
        more: arguments.more.clone(),
        work_dir: common.work_dir.clone(),
        at_once: arguments.at_once,
        keep_going: arguments.keep_going,
        tell: Arc::new(tell),
    };
    let (summary, interrupted) = block_on(async {
        let stop = Shutdown::default();
        stop.on_signals()?;
        let summary = fleet::run(&options, &stop).await?;
        Ok((summary, stop.requested()))
    })?;
    match arguments.json {
        true => output::json(&summary)?,
        false => output::print(&text(&summary))?,
    }
    Ok(match (interrupted, summary.done == summary.plans.len()) {
        (true, _) => 130,
        (false, true) => 0,
        (false, false) => 1,
    })
}

fn tell(row: &Row) {
    let line = match row.state {
        "running" => format!("{}: begun", row.plan),
        state => format!("{}: {state} after {}", row.plan, duration(row.elapsed_ms)),
    };
    output::say(&line);
}

fn text(summary: &Summary) -> String {
    let mut text = format!(
        "{}: {} done, {} not, {} not begun\n",
        summary.command, summary.done, summary.not_done, summary.not_begun
    );
    let width = summary
        .plans
        .iter()
        .map(|r| r.plan.len())
        .max()
        .unwrap_or(0);
    for row in &summary.plans {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  {:<width$}  {:<9}  {:>9}  {}",
            row.plan,
            row.state,
            duration(row.elapsed_ms),
            told(row)
        );
    }
    text
}

/// What matters most of an answer.
fn told(row: &Row) -> String {
    let answer = &row.answer;
    if let Some(why) = answer["refused"]["why"].as_str() {
        return why.to_owned();
    }
    if let Some(ms) = answer["pause_ms"].as_f64() {
        return format!(
            "pause {ms:.1} ms, clients at the {}",
            answer["clients_at"].as_str().unwrap_or("?")
        );
    }
    if let Some(ms) = answer["predicted_pause_ms"].as_u64() {
        return format!("expected pause {ms} ms and the switch hook");
    }
    if let Some(equal) = answer["equal"].as_bool() {
        return if equal { "equal" } else { "NOT equal" }.to_owned();
    }
    if let Some(phase) = answer["phase"].as_str() {
        return format!("{phase}, lag {} ms", answer["stream"]["lag_ms"]);
    }
    row.said.clone()
}
