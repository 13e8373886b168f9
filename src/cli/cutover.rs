//! `keyferry cutover` and `keyferry rollback`: runs them, tells each step as it happens, and says how it ended.

use super::common::{Common, block_on, plan_of};
use super::control::RemoteArgs;
use super::output;
use crate::cutover::{self, Options, Outcome};
use crate::error::Result as Done;
use crate::report::steps::{closed_text, step_text, step_time, way_back};
use crate::store::{CutoverStep, Stage};
use crate::task::Shutdown;
use clap::{Args, ValueEnum};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Freeze the writers, drain, prove both sides equal, move the clients
///
/// Any gate that refuses before the clients are moved lets the writers go on at the source, with the migration as it
/// was. After the switch the way back is kept open for cutover.watch_s; `keyferry rollback` takes it. The old side stays
/// closed to writers until --reopen (cutover.old_side); what is written to it all the same is listed, and then the answer
/// is not "done".
#[derive(Args)]
#[command(after_help = "\
Exit codes: 0 the clients are at the target, 1 a gate has refused and nothing has changed for the users, 2 wrong plan, 3 failed, 130 interrupted.

Examples:
  keyferry cutover move.json --dry-run                   rehearse: all but the freeze and the switch
  keyferry cutover move.json --dry-run --freeze-for 2s   freeze the writers too, and measure the pause
  keyferry cutover move.json
  keyferry cutover move.json --reopen                    afterwards: let the old side take writes again
  keyferry rollback move.json")]
pub struct Arguments {
    #[command(flatten)]
    usual: Usual,
    /// Everything but the freeze and the switch; foretells the pause
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: freeze the writers for so long at most, and measure the pause that clients feel
    #[arg(long, value_name = "TIME", requires = "dry_run", value_parser = duration)]
    freeze_for: Option<Duration>,
    /// Let writers write again at the side that the clients have left; nothing else is done
    #[arg(long, conflicts_with_all = ["dry_run", "clients_at", "accept_late", "ignore"])]
    reopen: bool,
}

/// `2s`, `500ms`, `1m`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write 500ms, 2s or 1m");
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return Err(wrong()),
    };
    match number.checked_mul(ms) {
        Some(ms) if ms > 0 && ms <= 3_600_000 => Ok(Duration::from_millis(ms)),
        _ => Err(format!("{text:?} is out of range: from 1ms to 60m")),
    }
}

/// Take the clients back to the source, with everything that was written to the target
///
/// Before the switch it is a thaw. After it: the target's writers are frozen, what they have written is drained to the
/// old source, both are proven equal, and the program cutover.hooks.switch_back moves the clients.
#[derive(Args)]
pub struct RollbackArguments {
    #[command(flatten)]
    usual: Usual,
}

/// What both directions take.
#[derive(Args)]
struct Usual {
    /// The plan; "-" is standard input
    plan: PathBuf,
    /// Go on in spite of a finding of `keyferry check`, by its id; may be given more than once
    #[arg(long, value_name = "ID")]
    ignore: Vec<String>,
    /// Where the clients are, after a cutover that was cut off with its guard
    #[arg(long, value_name = "SIDE")]
    clients_at: Option<Side>,
    /// Go on although something was written to the old side that is not at the new one
    #[arg(long)]
    accept_late: bool,
    #[command(flatten)]
    remote: RemoteArgs,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Side {
    Source,
    Target,
}

impl Side {
    fn stage(self) -> Stage {
        match self {
            Side::Source => Stage::Source,
            Side::Target => Stage::Switched,
        }
    }
}

pub fn run(arguments: &Arguments, common: &Common) -> Done<u8> {
    let what = match (arguments.reopen, arguments.dry_run) {
        (true, _) => What::Reopen,
        (false, true) => What::Rehearse(arguments.freeze_for),
        (false, false) => What::Move,
    };
    perform(&arguments.usual, what, common)
}

pub fn roll_back(arguments: &RollbackArguments, common: &Common) -> Done<u8> {
    perform(&arguments.usual, What::Return, common)
}

#[derive(Clone, Copy)]
enum What {
    Move,
    Rehearse(Option<Duration>),
    Return,
    Reopen,
}

fn perform(usual: &Usual, what: What, common: &Common) -> Done<u8> {
    let plan = plan_of(&usual.plan)?;
    let options = Options {
        work_dir: common.work_dir.clone(),
        dry_run: matches!(what, What::Rehearse(_)),
        freeze_for: match what {
            What::Rehearse(time) => time,
            _ => None,
        },
        accept_late: usual.accept_late,
        ignore: usual.ignore.clone(),
        clients_at: usual.clients_at.map(Side::stage),
        remote: usual.remote.remote()?,
        tell: Arc::new(tell),
    };
    let outcome = block_on(async {
        let stop = Shutdown::default();
        stop.on_signals()?;
        match what {
            What::Return => cutover::roll_back(&plan, &options, &stop).await,
            What::Reopen => cutover::reopen(&plan, &options, &stop).await,
            What::Move | What::Rehearse(_) => cutover::run(&plan, &options, &stop).await,
        }
    })?;
    match usual.json {
        true => output::json(&outcome)?,
        false => output::print(&text(&outcome))?,
    }
    Ok(u8::from(!outcome.done || outcome.refused.is_some()))
}

/// The process that freezes and moves the clients.
pub fn guard() -> Done<u8> {
    block_on(cutover::serve_guard()).map(|()| 0)
}

/// A line for each step, when it has ended, and for those that take a while also when they begin.
fn tell(step: &CutoverStep) {
    let line = match (step.state.as_str(), step.step.as_str()) {
        ("running", "wait-for-operator") => {
            "stop the writers now: the cutover goes on when nothing is written any more".to_owned()
        }
        ("running", "preflight" | "warm-up" | "watch" | "arm-rollback") => {
            format!("{} …", step.step)
        }
        ("running", _) => return,
        (state, name) => {
            let said = match step_text(name, &step.detail) {
                none if none.is_empty() => none,
                said => format!(": {said}"),
            };
            format!("{name}: {state} in {}{said}", step_time(step))
        }
    };
    output::say(&line);
}

fn text(outcome: &Outcome) -> String {
    let mut text = match (&outcome.refused, outcome.direction) {
        (Some(_), _) => format!("refused; the clients are at the {}\n", outcome.clients_at),
        (None, "rehearsal") if outcome.pause_ms.is_some() => {
            "the rehearsal is done; the writers were frozen and go on, nothing was switched\n"
                .into()
        }
        (None, "rehearsal") => {
            "the rehearsal is done; nothing was frozen, nothing was switched\n".into()
        }
        _ => format!("done; the clients are at the {}\n", outcome.clients_at),
    };
    let mut line = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<16} {value}");
    };
    if let Some(refused) = &outcome.refused {
        line("gate", refused["gate"].as_str().unwrap_or("-"));
        line("why", refused["why"].as_str().unwrap_or("-"));
        line("what to do", refused["hint"].as_str().unwrap_or("-"));
    }
    if let Some(ms) = outcome.pause_ms {
        let parts: Vec<String> = (outcome.parts_ms.as_object().into_iter().flatten())
            .map(|(name, ms)| format!("{name} {:.1}", ms.as_f64().unwrap_or(0.0)))
            .collect();
        line("pause", &format!("{ms:.1} ms ({})", parts.join(", ")));
    }
    if let Some(ms) = outcome.predicted_pause_ms {
        line(
            "expected pause",
            &format!("{ms} ms and what the switch hook takes"),
        );
        line("would run", &outcome.would_run.join(" "));
    }
    if !outcome.way_back.is_null() {
        line("way back", &way_back(&outcome.way_back));
    }
    if let Some(closed) = outcome.old_side["closed"].as_str() {
        line("old side", closed_text(closed));
    }
    let late = outcome.old_side["late_keys"]
        .as_array()
        .into_iter()
        .flatten();
    for key in late {
        line(
            "late write",
            &format!("database {}, key {}", key["db"], key["key"]),
        );
    }
    if !outcome.message.is_empty() {
        line("note", &outcome.message);
    }
    text
}
