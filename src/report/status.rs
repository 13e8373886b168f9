//! Where a migration stands: the answer of `status`, and the head of a report.

use crate::error::Result;
use crate::plan::Job;
use crate::store::{
    LATE, Lock, MODE, Phase, SWEEPS, ShardState, Store, UnknownCommand, VerifyRun, frozen,
};
use crate::types::{ReplOffset, unix_ms};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The answer of `status --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    pub plan: String,
    pub phase: Phase,
    pub mode: String,
    /// The process that works on it now.
    pub pid: Option<u32>,
    /// Sums over the shards.
    pub snapshot: SnapshotStatus,
    /// Sums over the shards; the time lag is that of the slowest.
    pub stream: StreamStatus,
    pub shards: Vec<ShardStatus>,
    /// Where the migration is spread over workers: those whose states were found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub workers: Vec<WorkerStatus>,
    /// Slots of the source that none of them has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots_missing: Option<String>,
    /// Slots that more than one of them has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots_twice: Option<String>,
    pub healed_keys: u64,
    /// What was left out, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Commands of the stream that keyferry does not know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown_commands: Vec<UnknownCommand>,
    pub last_verify: Option<Value>,
    /// Where the clients are, and how the way back stands; null before the first cutover.
    pub cutover: Option<Value>,
    /// Unix time in milliseconds; null when it never ran.
    pub updated_at: Option<i64>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct SnapshotStatus {
    pub keys_read: u64,
    pub keys_written: u64,
    pub bytes_read: u64,
    pub bytes_total: u64,
    pub done: bool,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct StreamStatus {
    pub source_offset: Option<u64>,
    pub applied_offset: Option<u64>,
    pub stable_offset: Option<u64>,
    pub lag_bytes: u64,
    pub lag_ms: u64,
    pub commands_applied: u64,
    /// Of a scan: its sweeps, what is guaranteed now, and whether a cutover needs a whole sweep in its pause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scan: Option<Value>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ShardStatus {
    pub shard: u16,
    /// Whose it is, where the migration is spread over workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    pub address: String,
    pub slots: String,
    pub phase: &'static str,
    pub snapshot: SnapshotStatus,
    pub stream: StreamStatus,
    pub healed_keys: u64,
    /// What holds it up at the moment; empty when nothing does.
    pub note: String,
    /// Nothing beyond the applied offset has touched the target.
    pub clean: bool,
    pub updated_at: i64,
}

/// One worker in the answer of `status --json`.
#[derive(Debug, Clone, Serialize)]
pub struct WorkerStatus {
    /// The name of its folder.
    pub worker: String,
    /// As it was started: `--worker 0/3`.
    pub share: String,
    /// The numbers of its masters when it began, and how many there were.
    pub masters: Vec<usize>,
    pub of: usize,
    pub slots: String,
    pub phase: Phase,
    /// The process that works on it now, where that is this machine.
    pub pid: Option<u32>,
    pub updated_at: Option<i64>,
}

impl Status {
    /// A plan that never ran.
    pub fn new(job: &Job) -> Status {
        Status {
            plan: job.name.clone(),
            phase: Phase::New,
            mode: job.source.mode_name().into(),
            pid: None,
            snapshot: SnapshotStatus::default(),
            stream: StreamStatus::default(),
            shards: Vec::new(),
            workers: Vec::new(),
            slots_missing: None,
            slots_twice: None,
            healed_keys: 0,
            skipped: BTreeMap::new(),
            unknown_commands: Vec::new(),
            last_verify: None,
            cutover: None,
            updated_at: None,
        }
    }

    pub fn of(store: &Store, job: &Job, pid: Option<u32>) -> Result<Status> {
        let run = store.run()?;
        let phases = store.phases()?;
        let now = pid.map(|_| unix_ms());
        let shards: Vec<ShardStatus> = (store.shards()?.iter())
            .map(|shard| ShardStatus::of(shard, now))
            .collect();
        let updated_at = shards
            .iter()
            .map(|s| s.updated_at)
            .chain(run.iter().map(|r| r.run.started_ms))
            .chain(phases.iter().map(|p| p.entered_ms))
            .max();
        let skipped = store
            .counts()?
            .into_iter()
            .filter_map(|(name, n)| Some((name.strip_prefix("skipped.")?.to_string(), n)));
        let (snapshot, mut stream) = totals(&shards);
        stream.scan = store.json(SWEEPS)?;
        Ok(Status {
            plan: job.name.clone(),
            phase: phases.last().map_or(Phase::New, |p| p.phase),
            // "auto" has become one or the other.
            mode: match store.json(MODE)?.as_ref().and_then(Value::as_str) {
                Some(found) => found.to_owned(),
                None => run.map_or_else(|| job.source.mode_name().to_string(), |r| r.run.mode),
            },
            pid,
            snapshot,
            stream,
            healed_keys: shards.iter().map(|s| s.healed_keys).sum(),
            skipped: skipped.collect(),
            unknown_commands: store.unknown_commands()?,
            last_verify: store.last_verify()?.map(|v| verify_answer(&v)),
            cutover: cutover(store, job)?,
            shards,
            workers: Vec::new(),
            slots_missing: None,
            slots_twice: None,
            updated_at,
        })
    }
}

impl Status {
    /// What a scan guarantees now; `None` of anything else.
    pub fn guarantee(&self) -> Option<&str> {
        self.stream.scan.as_ref()?["guarantee"].as_str()
    }

    /// Why a cutover needs a whole sweep in its pause.
    pub fn sweeps_because(&self) -> Option<&str> {
        self.stream.scan.as_ref()?["why"].as_str()
    }
}

/// Sums over the shards; the time lag is that of the slowest.
pub(super) fn totals(shards: &[ShardStatus]) -> (SnapshotStatus, StreamStatus) {
    let snapshot = SnapshotStatus {
        keys_read: shards.iter().map(|s| s.snapshot.keys_read).sum(),
        keys_written: shards.iter().map(|s| s.snapshot.keys_written).sum(),
        bytes_read: shards.iter().map(|s| s.snapshot.bytes_read).sum(),
        bytes_total: shards.iter().map(|s| s.snapshot.bytes_total).sum(),
        done: !shards.is_empty() && shards.iter().all(|s| s.snapshot.done),
    };
    let stream = StreamStatus {
        source_offset: sum(shards.iter().map(|s| s.stream.source_offset)),
        applied_offset: sum(shards.iter().map(|s| s.stream.applied_offset)),
        stable_offset: sum(shards.iter().map(|s| s.stream.stable_offset)),
        lag_bytes: shards.iter().map(|s| s.stream.lag_bytes).sum(),
        lag_ms: shards.iter().map(|s| s.stream.lag_ms).max().unwrap_or(0),
        commands_applied: shards.iter().map(|s| s.stream.commands_applied).sum(),
        scan: None,
    };
    (snapshot, stream)
}

/// Where the clients are, the last attempt, and how far the way back is behind; `None` before the first cutover.
fn cutover(store: &Store, job: &Job) -> Result<Option<Value>> {
    let mut steps = store.cutover_steps()?;
    let Some(last) = steps.last().map(|s| s.attempt) else {
        return Ok(None);
    };
    steps.retain(|s| s.attempt == last);
    let dir = store.path().with_file_name("back").join(&job.name);
    let way_back = match Store::open_readonly(&dir)? {
        None => Value::Null,
        Some(back) => {
            let shards = back.shards()?;
            let running = Lock::is_held(&dir);
            // What was written since it was looked at last would be lost as well, if the new side were gone now.
            let behind = |s: &ShardState| match running {
                true => s.lag_ms,
                false => s.lag_ms + u64::try_from(unix_ms() - s.updated_at).unwrap_or(0),
            };
            json!({
                "running": running,
                "ready": !shards.is_empty() && shards.iter().all(|s| s.snapshot_loaded),
                "data_loss_bound_ms": shards.iter().map(behind).max(),
            })
        }
    };
    let old_side = json!({
        "closed": store.json(&frozen("source"))?.unwrap_or_default()["closed"],
        "late": store.json(LATE)?,
    });
    Ok(Some(json!({
        "stage": store.stage()?, "attempt": last, "steps": steps, "way_back": way_back, "old_side": old_side,
    })))
}

/// A process that works saves every second; from this age on its state says that it does not.
const UNSAVED_MS: u64 = 5_000;

impl ShardStatus {
    /// `now`: the time, where a process works on it.
    fn of(s: &ShardState, now: Option<i64>) -> ShardStatus {
        let at = |o: Option<ReplOffset>| o.map(|o| o.0);
        let age_ms = now.and_then(|now| u64::try_from(now - s.updated_at).ok());
        // What has happened since then is not known here, so the lag may be all that time.
        let unsaved_ms = age_ms.filter(|age| *age > UNSAVED_MS);
        let mut note = s.note.clone();
        if let Some(ms) = unsaved_ms {
            let old = format!("its process has saved nothing for {} s", ms / 1000);
            note = match note.is_empty() {
                true => old,
                false => format!("{old}; before: {note}"),
            };
        }
        ShardStatus {
            shard: s.shard.0,
            worker: None,
            address: s.address.clone(),
            slots: s.slots.clone(),
            phase: if s.snapshot_loaded {
                "stream"
            } else {
                "snapshot"
            },
            snapshot: SnapshotStatus {
                keys_read: s.keys_read,
                keys_written: s.keys_written,
                bytes_read: s.bytes_read,
                bytes_total: s.bytes_total,
                done: s.snapshot_loaded,
            },
            stream: StreamStatus {
                source_offset: at(s.source_offset),
                applied_offset: at(s.applied),
                stable_offset: at(s.stable),
                lag_bytes: s.lag_bytes(),
                lag_ms: s.lag_ms.max(unsaved_ms.unwrap_or(0)),
                commands_applied: s.commands_applied,
                scan: None,
            },
            healed_keys: s.healed_keys,
            note,
            clean: s.clean,
            updated_at: s.updated_at,
        }
    }
}

/// The saved totals of a verification with its verdict and times, without lists of keys.
pub(super) fn verify_answer(run: &VerifyRun) -> Value {
    let mut answer =
        json!({"equal": run.equal, "started_at": run.started_ms, "ended_at": run.ended_ms});
    if let (Some(into), Some(totals)) = (answer.as_object_mut(), run.answer.as_object()) {
        for (key, value) in totals.iter().filter(|(_, v)| !v.is_array()) {
            into.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    answer
}

/// The sum of what is known; nothing when nothing is.
fn sum(parts: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    parts.flatten().reduce(u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Plan, validate};
    use crate::types::ShardId;

    pub(crate) fn job() -> Job {
        let plan =
            r#"{"name": "a", "source": {"url": "redis://s:1"}, "target": {"url": "redis://t:2"}}"#;
        validate(&Plan::parse(plan).unwrap()).unwrap()
    }

    #[test]
    fn a_plan_that_never_ran_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let status =
            serde_json::to_value(Status::read(&dir.path().join("none"), &[], &job()).unwrap())
                .unwrap();
        assert_eq!(
            (&status["phase"], &status["mode"], &status["updated_at"]),
            (&json!("new"), &json!("auto"), &Value::Null)
        );
        assert_eq!(status["snapshot"]["done"], json!(false));
        assert!(
            !dir.path().join("none").exists(),
            "looking must not create anything"
        );
    }

    #[test]
    fn totals_are_sums_over_the_shards() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let shard = |n: u16| ShardState {
            keys_read: 10,
            keys_written: 9,
            bytes_read: 100,
            bytes_total: 200,
            snapshot_loaded: n == 0,
            applied: Some(ReplOffset(50)),
            source_offset: Some(ReplOffset(70)),
            lag_ms: u64::from(n),
            updated_at: 5 + i64::from(n),
            ..ShardState::new(ShardId(n), format!("h:{n}"), String::new())
        };
        let counts = BTreeMap::from([("skipped.filter", 3), ("cross_slot", 3)]);
        store
            .save_shards(&[shard(0), shard(1)], &counts, None)
            .unwrap();
        store.enter_phase(Phase::Snapshot, 1).unwrap();
        let lock = Lock::acquire(dir.path()).unwrap();
        let status = serde_json::to_value(Status::read(dir.path(), &[], &job()).unwrap()).unwrap();
        assert_eq!(status["phase"], "snapshot");
        // The process works, and has not saved since 1970.
        let lag = &status["stream"]["lag_ms"];
        assert!(lag.as_i64() > Some(unix_ms() - 60_000), "{lag}");
        let note = status["shards"][1]["note"].as_str();
        assert!(note.is_some_and(|n| n.contains("saved nothing for")));
        assert_eq!(status["pid"], json!(std::process::id()));
        drop(lock);
        let status = serde_json::to_value(Status::read(dir.path(), &[], &job()).unwrap()).unwrap();
        assert_eq!(status["shards"][1]["note"], "");
        assert_eq!(
            status["snapshot"],
            json!({"keys_read": 20, "keys_written": 18, "bytes_read": 200, "bytes_total": 400, "done": false})
        );
        assert_eq!(
            status["stream"],
            json!({"source_offset": 140, "applied_offset": 100, "stable_offset": null, "lag_bytes": 40, "lag_ms": 1, "commands_applied": 0})
        );
        assert_eq!(status["skipped"], json!({"filter": 3}));
        assert_eq!(
            (&status["updated_at"], &status["pid"]),
            (&json!(6), &Value::Null)
        );
        assert_eq!(status["shards"][0]["phase"], "stream");
    }
}
