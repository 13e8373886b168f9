//! One migration out of the states of its workers: sums, the worst lag, the least advanced phase.
//!
//! Invariant: a share of the source that no worker is known to have is said, and nothing is called done without it.

use super::status::{ShardStatus, Status, WorkerStatus, totals};
use crate::error::Result;
use crate::plan::Job;
use crate::store::{Lock, Phase, PhaseSpan, Store, Worker, coverage, workers_and};
use crate::types::unix_ms;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

impl Status {
    /// Reads the state of `job` in its folder, also while others work on it; workers' states in it, and in `also`, count.
    pub fn read(dir: &Path, also: &[PathBuf], job: &Job) -> Result<Status> {
        let own = match Store::open_readonly(dir)? {
            Some(store) => Status::of(&store, job, Lock::holder(dir))?,
            None => Status::new(job),
        };
        merge(own, &workers_and(dir, &job.name, also)?, job)
    }
}

/// Puts the workers' states into the plan's own, which holds the verifications.
pub fn merge(own: Status, workers: &[Worker], job: &Job) -> Result<Status> {
    if workers.is_empty() {
        return Ok(own);
    }
    let some_run = workers.iter().any(|w| w.pid.is_some());
    let own_phase = own.phase;
    let mut merged = own;
    let mut phases = Vec::new();
    if !merged.shards.is_empty() {
        phases.push(merged.phase);
    }
    for worker in workers {
        let status = Status::of(&worker.store, job, worker.pid)?;
        // What the source has written since a worker was seen last is not known: its lag is all that time.
        let away = match (some_run, worker.pid, status.updated_at) {
            (true, None, Some(at)) => u64::try_from(unix_ms() - at).unwrap_or(0),
            _ => 0,
        };
        merged.shards.extend(status.shards.into_iter().map(|mut s| {
            s.stream.lag_ms = s.stream.lag_ms.max(away);
            ShardStatus {
                worker: Some(worker.name.clone()),
                ..s
            }
        }));
        merged.healed_keys += status.healed_keys;
        add(&mut merged.skipped, status.skipped);
        merged.unknown_commands.extend(status.unknown_commands);
        merged.updated_at = merged.updated_at.max(status.updated_at);
        merged.mode = status.mode;
        phases.push(status.phase);
        merged.workers.push(WorkerStatus {
            worker: worker.name.clone(),
            share: worker.claim.share.clone(),
            masters: worker.claim.shards.clone(),
            of: worker.claim.of,
            slots: worker.claim.slots.clone(),
            phase: status.phase,
            pid: worker.pid,
            updated_at: status.updated_at,
        });
    }
    let (missing, twice) = coverage(workers.iter().map(|w| &w.claim));
    if missing.count() > 0 {
        merged.slots_missing = Some(missing.to_string());
        phases.push(Phase::New);
    }
    if twice.count() > 0 {
        merged.slots_twice = Some(twice.to_string());
    }
    merged.shards.sort_by_key(|s| s.shard);
    merged.phase = match own_phase {
        // From the freeze on, the cutover knows more than those that it asks.
        Phase::Frozen | Phase::Switched | Phase::RolledBack => own_phase,
        _ => least(&phases),
    };
    (merged.snapshot, merged.stream) = totals(&merged.shards);
    merged.snapshot.done &= missing.count() == 0;
    Ok(merged)
}

/// Adds counters of the same name.
pub fn add(sums: &mut BTreeMap<String, u64>, more: BTreeMap<String, u64>) {
    for (name, n) in more {
        *sums.entry(name).or_default() += n;
    }
}

/// How far the whole is: one that has failed counts for all.
fn least(phases: &[Phase]) -> Phase {
    let rank = |phase: &Phase| match phase {
        Phase::Failed => 0,
        Phase::New => 1,
        Phase::Snapshot => 2,
        Phase::Stream => 3,
        Phase::Verified => 4,
        Phase::Frozen => 5,
        Phase::Switched => 6,
        Phase::RolledBack => 7,
    };
    phases
        .iter()
        .copied()
        .min_by_key(rank)
        .unwrap_or(Phase::New)
}

/// The phases of the whole over time, once all have begun.
pub fn together(workers: &[Vec<PhaseSpan>]) -> Vec<PhaseSpan> {
    let mut times: Vec<i64> = workers.iter().flatten().map(|p| p.entered_ms).collect();
    times.sort_unstable();
    times.dedup();
    let at = |spans: &Vec<PhaseSpan>, time: i64| {
        let span = spans.iter().rev().find(|p| p.entered_ms <= time);
        span.map_or(Phase::New, |p| p.phase)
    };
    let mut whole: Vec<PhaseSpan> = Vec::new();
    for time in times {
        let phases: Vec<Phase> = workers.iter().map(|w| at(w, time)).collect();
        let phase = least(&phases);
        let same = whole.last().is_some_and(|last| last.phase == phase);
        if same || (whole.is_empty() && phase == Phase::New) {
            continue;
        }
        if let Some(last) = whole.last_mut() {
            last.left_ms = Some(time);
        }
        whole.push(PhaseSpan {
            phase,
            entered_ms: time,
            left_ms: None,
        });
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Plan, validate};
    use crate::report::{Report, markdown};
    use crate::store::{Claim, Lock, Run, ShardState, Store, worker_dir, workers};
    use crate::types::{ReplOffset, ShardId};
    use std::path::Path;

    fn job() -> Job {
        let plan =
            r#"{"name": "a", "source": {"url": "redis://s:1"}, "target": {"url": "redis://t:2"}}"#;
        validate(&Plan::parse(plan).unwrap()).unwrap()
    }

    fn worker(dir: &Path, n: u16, slots: &str, phase: Phase) -> std::path::PathBuf {
        let dir = worker_dir(dir, &format!("worker-{n}-of-3"));
        let mut store = Store::open(&dir).unwrap();
        let claim = Claim {
            share: format!("--worker {n}/3"),
            shards: vec![usize::from(n)],
            of: 3,
            slots: slots.into(),
        };
        store.put_claim(Some(&claim)).unwrap();
        let job = job();
        store
            .begin_run(&Run {
                plan: job.name.clone(),
                fingerprint: job.fingerprint.clone(),
                redacted: job.redacted.clone(),
                mode: "replica".into(),
                source: job.source.to_string(),
                target: job.target.to_string(),
                started_ms: 5,
            })
            .unwrap();
        let shard = ShardState {
            keys_read: 10,
            keys_written: 9,
            snapshot_loaded: phase == Phase::Stream,
            applied: Some(ReplOffset(50)),
            source_offset: Some(ReplOffset(70)),
            lag_ms: 3 + u64::from(n),
            commands_applied: 100,
            updated_at: unix_ms(),
            ..ShardState::new(ShardId(n), format!("h:{n}"), slots.into())
        };
        let counts = BTreeMap::from([("skipped.filter", 3)]);
        store.save_shards(&[shard], &counts, None).unwrap();
        store.event(5, "info", "start", "from s to t").unwrap();
        store
            .enter_phase(Phase::Snapshot, 10 + i64::from(n))
            .unwrap();
        store.enter_phase(phase, 20 + i64::from(n)).unwrap();
        dir
    }

    #[test]
    fn workers_become_one_migration() {
        let dir = tempfile::tempdir().unwrap();
        worker(dir.path(), 0, "0-5460", Phase::Stream);
        worker(dir.path(), 1, "5461-10922", Phase::Snapshot);
        worker(dir.path(), 2, "10923-16383", Phase::Stream);
        let status = Status::read(dir.path(), &[], &job()).unwrap();
        assert_eq!((status.phase, status.shards.len()), (Phase::Snapshot, 3));
        assert_eq!(
            (status.snapshot.keys_read, status.snapshot.keys_written),
            (30, 27)
        );
        assert_eq!((status.stream.lag_bytes, status.stream.lag_ms), (60, 5));
        assert_eq!(status.stream.commands_applied, 300);
        assert!(!status.snapshot.done && status.slots_missing.is_none());
        assert_eq!(status.skipped.get("filter"), Some(&9));
        assert_eq!(status.shards[1].worker.as_deref(), Some("worker-1-of-3"));
        let report = Report::read(dir.path(), &[], &job(), 0).unwrap();
        assert_eq!(report.counts.get("skipped.filter"), Some(&9));
        assert_eq!(report.events.len(), 3);
        // The snapshot of all began when the last began.
        let phases: Vec<(Phase, i64)> = report
            .phases
            .iter()
            .map(|p| (p.phase, p.entered_ms))
            .collect();
        assert_eq!(phases, [(Phase::Snapshot, 12)]);
    }

    #[test]
    fn a_worker_that_is_not_there_is_missed() {
        let dir = tempfile::tempdir().unwrap();
        worker(dir.path(), 0, "0-5460", Phase::Stream);
        worker(dir.path(), 2, "10923-16383", Phase::Stream);
        let status = Status::read(dir.path(), &[], &job()).unwrap();
        assert_eq!(status.slots_missing.as_deref(), Some("5461-10922"));
        assert!(!status.snapshot.done && status.phase == Phase::New);
        let report = Report::read(dir.path(), &[], &job(), 0).unwrap();
        assert!(markdown::render(&report).contains("5461-10922"));
        let other = tempfile::tempdir().unwrap();
        let there = worker(other.path(), 1, "5461-10922", Phase::Stream);
        let status = Status::read(dir.path(), &[there], &job()).unwrap();
        assert!(status.snapshot.done && status.phase == Phase::Stream);
        assert!(status.slots_missing.is_none() && status.slots_twice.is_none());
    }

    #[test]
    fn the_lag_of_a_worker_that_does_not_run_grows() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (
            worker(dir.path(), 0, "0-8191", Phase::Stream),
            worker(dir.path(), 1, "8192-16383", Phase::Stream),
        );
        let mut store = Store::open(&second).unwrap();
        let mut shards = store.shards().unwrap();
        shards[0].updated_at -= 60_000;
        store.save_shards(&shards, &BTreeMap::new(), None).unwrap();
        let lag = || {
            let status = Status::read(dir.path(), &[], &job()).unwrap();
            status.stream.lag_ms
        };
        // Nobody runs: what was saved last is told.
        assert_eq!(lag(), 4);
        let _lock = Lock::acquire(&first).unwrap();
        assert!(workers(dir.path()).unwrap()[0].pid.is_some());
        assert!((60_000..120_000).contains(&lag()), "{}", lag());
    }
}
