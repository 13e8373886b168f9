//! What is known about one migration, as a page that a person can trust: the model.
//!
//! Everything comes from the state file; what that does not prove is said on the page.
//! Invariant: no secret and no value of a user's key gets in; names of keys do.

mod charts;
pub mod fleet;
pub mod html;
mod indexes;
pub mod json;
pub mod markdown;
mod measured;
mod merged;
mod status;
pub mod steps;
mod view;

pub use status::{SnapshotStatus, Status, StreamStatus};

use crate::error::Result;
use crate::plan::{Job, OnExisting};
use crate::source::pulse::Pulse;
use crate::store::{
    CutoverStep, Difference, Event, INDEXES, LATENCY, Lock, PULSE, Phase, PhaseSpan, SavedRun,
    SlotApart, Stage, Store, UnknownCommand, VerifyRun, Worker, workers_and,
};
use crate::types::DbIndex;
use merged::{add, merge, together};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How many differences a report lists.
const DIFFERENCES_LISTED: u32 = 1000;
const EVENTS_LISTED: u32 = 500;
const LOSSES_LISTED: u64 = 1000;

/// Everything a report says.
pub struct Report {
    pub generated_ms: i64,
    pub job: Job,
    /// Absent when the plan never ran.
    pub run: Option<SavedRun>,
    pub status: Status,
    pub phases: Vec<PhaseSpan>,
    pub counts: BTreeMap<String, u64>,
    pub events: Vec<Event>,
    pub verify: Option<Verification>,
    /// What a dry run of this plan counted, with the time of its last state.
    pub dry_run: Option<DryRun>,
    /// What the target could not hold, as the plan allows: its database, the key, and what is lost.
    pub losses: Vec<(DbIndex, Vec<u8>, String)>,
    /// What has become of each search index.
    pub indexes: Option<Value>,
    /// The answer of the last latency measurement.
    pub latency: Option<Value>,
    /// How fast the source has answered a PING before, and while it was read.
    pub pulse: Option<Value>,
    /// The steps of all cutovers, rehearsals and rollbacks.
    pub cutover: Vec<CutoverStep>,
    /// What this page must not be taken for; one sentence each.
    pub unproven: Vec<String>,
}

/// The last verification that came to its end.
pub struct Verification {
    pub run: VerifyRun,
    /// How many slots are in each state.
    pub slot_states: BTreeMap<String, u64>,
    pub slots_apart: Vec<SlotApart>,
    /// The first of them; the answer holds the true numbers.
    pub differences: Vec<Difference>,
}

pub struct DryRun {
    pub status: Status,
    pub census: Option<Value>,
}

impl Report {
    /// Reads the state in a plan's folder; workers' states in it, and in `also`, count.
    pub fn read(dir: &Path, also: &[PathBuf], job: &Job, now_ms: i64) -> Result<Report> {
        let dry_dir = dir.join("dry-run");
        let dry_run = match Store::open_readonly(&dry_dir)? {
            Some(store) => Some(DryRun {
                status: Status::of(&store, job, Lock::holder(&dry_dir))?,
                census: store.json("census")?,
            }),
            None => None,
        };
        let mut report = Report {
            generated_ms: now_ms,
            job: job.clone(),
            run: None,
            status: Status::new(job),
            phases: Vec::new(),
            counts: BTreeMap::new(),
            events: Vec::new(),
            verify: None,
            dry_run,
            losses: Vec::new(),
            cutover: Vec::new(),
            indexes: None,
            latency: None,
            pulse: None,
            unproven: Vec::new(),
        };
        if let Some(store) = Store::open_readonly(dir)? {
            report.run = store.run()?;
            report.status = Status::of(&store, job, Lock::holder(dir))?;
            report.phases = store.phases()?;
            report.counts = store.counts()?;
            report.events = store.events(EVENTS_LISTED)?;
            report.losses = store.losses(LOSSES_LISTED)?;
            report.cutover = store.cutover_steps()?;
            report.indexes = store.json(INDEXES)?;
            report.latency = store.json(LATENCY)?;
            report.pulse = store.json(PULSE)?;
            report.verify = store
                .last_verify()?
                .map(|run| verification(&store, run))
                .transpose()?;
        }
        report.add_workers(&workers_and(dir, &job.name, also)?)?;
        let parts = report.pulse.as_mut().and_then(Value::as_object_mut);
        for part in parts.into_iter().flat_map(|p| p.values_mut()) {
            // For merging, not for reading.
            if let Some(part) = part.as_object_mut() {
                part.remove("histogram");
            }
        }
        report.unproven = unproven(&report);
        Ok(report)
    }

    /// Takes in the workers' states; what is not of the migration itself is the plan's own.
    fn add_workers(&mut self, workers: &[Worker]) -> Result<()> {
        if workers.is_empty() {
            return Ok(());
        }
        let own = self.status.clone();
        self.status = merge(own, workers, &self.job)?;
        let (mut phases, pulse) = (Vec::new(), Pulse::default());
        for worker in workers {
            let store = &worker.store;
            let run = store.run()?;
            let earlier = |now: i64| run.as_ref().is_some_and(|r| r.run.started_ms < now);
            if (self.run.as_ref()).is_none_or(|r| earlier(r.run.started_ms)) {
                self.run = run;
            }
            if self.indexes.is_none() {
                self.indexes = store.json(INDEXES)?;
            }
            add(&mut self.counts, store.counts()?);
            for mut event in store.events(EVENTS_LISTED)? {
                event.message = format!("{}: {}", worker.name, event.message);
                self.events.push(event);
            }
            let left = LOSSES_LISTED.saturating_sub(self.losses.len() as u64);
            self.losses.extend(store.losses(left)?);
            pulse.add(store.json(PULSE)?.as_ref());
            phases.push(store.phases()?);
        }
        self.events.sort_by_key(|e| e.at_ms);
        let excess = self.events.len().saturating_sub(EVENTS_LISTED as usize);
        self.events.drain(..excess);
        self.phases = together(&phases);
        self.pulse = Some(pulse.document()?);
        Ok(())
    }

    /// One row for each search index.
    fn index_table(&self) -> Option<view::Table> {
        let answer = self.verify.as_ref().map(|v| &v.run.answer);
        indexes::table(self.indexes.as_ref(), answer)
    }

    /// The comparison that the first screen tells: the first one that allows a verdict.
    fn told_result(&self) -> Option<&Value> {
        let results = self.latency.as_ref()?["results"].as_array()?;
        let told = results.iter().find(|r| r["conclusive"] == true);
        told.or(results.first())
    }

    /// Where the clients are; `None` before the first cutover.
    fn stage(&self) -> Option<Stage> {
        let stage = self.status.cutover.as_ref()?["stage"].clone();
        serde_json::from_value(stage).ok()
    }

    /// How long the last switch has paused writers, in ms, and that switch.
    fn pause(&self) -> Option<(f64, &CutoverStep)> {
        let switched =
            (self.cutover.iter().rev()).find(|s| s.step == "switch" && s.state == "done")?;
        let parts = ["freeze", "drain", "verify", "fence", "switch"];
        let us: i64 = (self.cutover.iter())
            .filter(|s| s.attempt == switched.attempt && parts.contains(&s.step.as_str()))
            .filter_map(|s| s.took_us)
            .sum();
        Some((us as f64 / 1000.0, switched))
    }

    /// What the last start found on both sides, in words.
    pub fn products(&self) -> Option<&str> {
        self.events
            .iter()
            .rev()
            .find(|e| e.code == "start")
            .map(|e| e.message.as_str())
    }
}

fn verification(store: &Store, run: VerifyRun) -> Result<Verification> {
    Ok(Verification {
        run,
        slot_states: store.slot_states()?,
        slots_apart: store.slots_apart()?,
        differences: store.differences(DIFFERENCES_LISTED)?,
    })
}

/// What a month costs on both sides, and the change.
pub fn price_text(source: f64, target: f64, currency: &str) -> String {
    let change = match source > 0.0 {
        true => format!(" ({:+.0} %)", (target / source - 1.0) * 100.0),
        false => String::new(),
    };
    format!("{source:.0} → {target:.0} {currency}{change}")
}

/// How long a step has taken; nothing while it runs.
/// What the state does not prove; the order is that of weight.
fn unproven(report: &Report) -> Vec<String> {
    let mut list = Vec::new();
    let status = &report.status;
    if report.run.is_none() {
        list.push("Nothing was moved: this plan never ran.".to_string());
        return list;
    }
    if let Some(slots) = &status.slots_missing {
        list.push(format!(
            "No worker's state was found that has the slots {slots}: what is said here of the migration leaves them out."
        ));
    }
    if let Some(slots) = &status.slots_twice {
        list.push(format!(
            "More than one worker has the slots {slots}: they may have written over each other, and sums count them twice."
        ));
    }
    if status.phase == Phase::Failed {
        list.push(
            "The last run failed; the events say why. What is on the target is not complete."
                .into(),
        );
    }
    if !status.snapshot.done {
        list.push("The bulk load has not come to its end: keys are missing on the target.".into());
    }
    match &report.verify {
        None => list.push(
            "Source and target were never compared: nothing here proves that they are equal."
                .into(),
        ),
        Some(verify) => {
            let ended = instant(verify.run.ended_ms);
            if !verify.run.equal {
                list.push(format!(
                    "The last comparison, ended {ended}, found differences."
                ));
            }
            let unprovable = verify.run.answer["unprovable_count"].as_u64().unwrap_or(0);
            if unprovable > 0 {
                list.push(format!("{unprovable} keys changed faster than they could be compared; of them nothing is proven."));
            }
            // A cutover compares what was written since, key by key, while the writers wait.
            let switched = (report.cutover.iter().rev())
                .find(|step| step.step == "switch" && step.state == "done")
                .filter(|step| step.started_ms >= verify.run.ended_ms);
            if let Some(step) = switched {
                list.push(format!(
                    "Everything was compared at {ended}, and what was written since then, key by key, just before the switch at {}; what came after the switch is on one side only.",
                    instant(step.started_ms)
                ));
            } else if status.updated_at.is_some_and(|at| at > verify.run.ended_ms)
                && status.mode != "rdb"
            {
                list.push(format!("The comparison ended {ended}; the migration went on after that, and what was written since is not compared."));
            } else if status.mode != "rdb" {
                list.push(format!(
                    "What clients wrote to the source after {ended} is not compared."
                ));
            }
        }
    }
    list.extend(indexes::unproven(report.indexes.as_ref()));
    let job = &report.job;
    if !job.filter.is_empty() {
        list.push(format!(
            "The plan moves {}; other keys were neither moved nor compared.",
            job.filter
        ));
    }
    if !job.databases.is_identity() {
        list.push(format!(
            "The plan moves databases {}; others were neither moved nor compared.",
            job.databases
        ));
    }
    if !job.verify.exclude.is_empty() {
        list.push("Keys that match verify.exclude were moved, but not compared.".into());
    }
    if job.on_existing == OnExisting::Skip {
        list.push(
            "Keys that the target held before were left as they were (on_existing \"skip\")."
                .into(),
        );
    }
    let skipped: u64 = status.skipped.values().sum();
    if skipped > 0 {
        list.push(format!(
            "{skipped} items were left out; the counters say why."
        ));
    }
    for command in &status.unknown_commands {
        list.push(unknown_text(command));
    }
    if job.verify.ttl_tolerance_ms > 0 {
        list.push(format!(
            "Expiries count as equal when they differ by no more than {} ms.",
            job.verify.ttl_tolerance_ms
        ));
    }
    list.push(
        "Equal means equal by a 64-bit digest of each key and its slot, not byte by byte.".into(),
    );
    list
}

/// What is not proven because of a command that is not known.
fn unknown_text(command: &UnknownCommand) -> String {
    let UnknownCommand {
        name,
        source,
        first_offset,
        left_out,
        read_again,
    } = command;
    let stood = format!(
        "The stream of {source} held the command {name}, which keyferry does not know (first at offset {first_offset})"
    );
    let read = format!("of {read_again} of them the keys that the source names were read there");
    match (left_out, read_again) {
        (0, _) => format!("{stood}; {read}, and what else they changed is not known."),
        (n, 0) => format!(
            "{stood}; {n} of them were left out: a verification after them finds keys that they wrote, and nothing else."
        ),
        (n, _) => format!(
            "{stood}; {n} of them were left out, {read}: a verification after them finds keys that they wrote, and nothing else."
        ),
    }
}

/// A Unix time as `2026-11-21 00:14:38 UTC`.
pub fn instant(unix_ms: i64) -> String {
    let seconds = unix_ms.div_euclid(1000);
    let (days, in_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a civil date: Howard Hinnant, "chrono-compatible low-level date algorithms".
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        in_day / 3600,
        in_day / 60 % 60,
        in_day % 60
    )
}

/// A duration as `850 ms`, `12.3 s`, `4 min 05 s` or `2 h 03 min`.
pub fn duration(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        60_000..3_600_000 => format!("{} min {:02} s", ms / 60_000, ms / 1000 % 60),
        _ => format!("{} h {:02} min", ms / 3_600_000, ms / 60_000 % 60),
    }
}

/// A number of bytes as `512 B`, `1.5 KiB` and so on.
pub fn bytes(n: u64) -> String {
    let (mut unit, mut scaled) = ("B", n);
    let mut tenth = 0;
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if scaled < 1024 {
            break;
        }
        tenth = scaled % 1024 * 10 / 1024;
        scaled /= 1024;
        unit = next;
    }
    if unit == "B" {
        format!("{n} B")
    } else {
        format!("{scaled}.{tenth} {unit}")
    }
}

/// A number with its thousands apart: `1 234 567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests;
