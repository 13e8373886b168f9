//! What the state file holds, as values.

use crate::types::{DbIndex, ReplId, ReplOffset, ShardId, Slot};
use serde::Serialize;
use serde_json::Value;
use std::fmt;

/// Where a migration stands as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    New,
    Snapshot,
    Stream,
    Verified,
    Frozen,
    Switched,
    RolledBack,
    Failed,
}

impl Phase {
    const ALL: [Phase; 8] = [
        Phase::New,
        Phase::Snapshot,
        Phase::Stream,
        Phase::Verified,
        Phase::Frozen,
        Phase::Switched,
        Phase::RolledBack,
        Phase::Failed,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Phase::New => "new",
            Phase::Snapshot => "snapshot",
            Phase::Stream => "stream",
            Phase::Verified => "verified",
            Phase::Frozen => "frozen",
            Phase::Switched => "switched",
            Phase::RolledBack => "rolled-back",
            Phase::Failed => "failed",
        }
    }

    pub fn parse(name: &str) -> Option<Phase> {
        Phase::ALL.into_iter().find(|p| p.as_str() == name)
    }
}

impl PartialEq<&str> for Phase {
    fn eq(&self, name: &&str) -> bool {
        self.as_str() == *name
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A stay in a phase; the last one has no end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PhaseSpan {
    pub phase: Phase,
    pub entered_ms: i64,
    pub left_ms: Option<i64>,
}

/// What a run is about, as it was when the process started.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub plan: String,
    /// Of `Job::fingerprint`; a saved state fits only the same one.
    pub fingerprint: String,
    /// The plan without secrets.
    pub redacted: Value,
    pub mode: String,
    /// Url without secrets, or the snapshot's path.
    pub source: String,
    pub target: String,
    pub started_ms: i64,
}

/// A run as it was saved.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedRun {
    pub run_id: String,
    /// The keyferry that worked on it last.
    pub version: String,
    pub run: Run,
}

/// One source master's position and counters: what a restart needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardState {
    pub shard: ShardId,
    pub address: String,
    /// As the cluster named them, `0-5460`; empty for a standalone source.
    pub slots: String,
    pub replid: Option<ReplId>,
    /// The offset at which the snapshot was taken.
    pub snapshot_offset: Option<ReplOffset>,
    /// Everything of the snapshot before this byte is acknowledged, and the database selected there.
    pub snapshot_at: u64,
    pub snapshot_db: DbIndex,
    /// Whose numbering the snapshot follows, to go on in its middle.
    pub snapshot_valkey: bool,
    pub snapshot_version: u32,
    pub snapshot_len: u64,
    /// The snapshot lies whole on disk.
    pub snapshot_complete: bool,
    /// The snapshot is whole on the target.
    pub snapshot_loaded: bool,
    /// Keys of an attempt before may have to go from the target.
    pub reconcile: bool,
    /// Every write before this offset is acknowledged, and the database selected there.
    pub applied: Option<ReplOffset>,
    pub applied_db: DbIndex,
    /// Every write before this offset survives a failover of the target.
    pub stable: Option<ReplOffset>,
    pub stable_db: DbIndex,
    /// What holds it up at the moment; empty when nothing does.
    pub note: String,
    /// The highest offset seen from the source.
    pub source_offset: Option<ReplOffset>,
    /// Keys on the target may hold a state up to this offset.
    pub fence_high: Option<ReplOffset>,
    /// Nothing beyond `applied` has touched the target; false while it runs.
    pub clean: bool,
    pub keys_read: u64,
    pub keys_written: u64,
    pub bytes_read: u64,
    pub bytes_total: u64,
    pub commands_applied: u64,
    pub healed_keys: u64,
    pub lag_ms: u64,
    pub updated_at: i64,
}

impl ShardState {
    /// Whether something of it may have reached the target.
    pub fn has_written(&self) -> bool {
        self.snapshot_loaded || self.snapshot_at > 0 || self.keys_written > 0
    }

    /// A shard of which nothing has been carried over.
    pub fn new(shard: ShardId, address: String, slots: String) -> ShardState {
        ShardState {
            shard,
            address,
            slots,
            replid: None,
            snapshot_offset: None,
            snapshot_at: 0,
            snapshot_db: DbIndex::ZERO,
            snapshot_valkey: false,
            snapshot_version: 0,
            snapshot_len: 0,
            snapshot_complete: false,
            snapshot_loaded: false,
            reconcile: false,
            applied: None,
            applied_db: DbIndex::ZERO,
            stable: None,
            stable_db: DbIndex::ZERO,
            note: String::new(),
            source_offset: None,
            fence_high: None,
            clean: false,
            keys_read: 0,
            keys_written: 0,
            bytes_read: 0,
            bytes_total: 0,
            commands_applied: 0,
            healed_keys: 0,
            lag_ms: 0,
            updated_at: 0,
        }
    }

    /// How many bytes of the stream wait to be applied.
    pub fn lag_bytes(&self) -> u64 {
        match (self.source_offset, self.applied) {
            (Some(source), Some(applied)) => source.since(applied),
            _ => 0,
        }
    }
}

/// Something that happened and that a person may want to know later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    pub at_ms: i64,
    pub level: String,
    pub code: String,
    pub message: String,
}

/// A slot on both sides, as the last verification saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRow {
    pub slot: u16,
    pub source_keys: u64,
    pub source_sum: u64,
    pub target_keys: u64,
    pub target_sum: u64,
    /// `equal`, `different` or what else the verification says of it.
    pub state: &'static str,
}

/// A slot that is not equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SlotApart {
    pub slot: u16,
    pub state: String,
    pub keys_source: u64,
    pub keys_target: u64,
}

/// A key that is not the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub db: DbIndex,
    pub key: Vec<u8>,
    pub slot: u16,
    /// `missing`, `extra`, `different`, `unprovable`.
    pub reason: String,
    pub detail: String,
}

/// A verification that came to its end.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifyRun {
    pub started_ms: i64,
    pub ended_ms: i64,
    pub equal: bool,
    /// The answer of `verify --json`.
    pub answer: Value,
}

/// Something of a key that the target cannot hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The target's database.
    pub db: DbIndex,
    pub key: Vec<u8>,
    pub what: &'static str,
}

/// How far an unfinished verification has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyProgress {
    /// What it compares, and how.
    pub about: String,
    /// Its position, as JSON.
    pub at: String,
    /// Four little-endian words for each slot: sum and count of the source, sum and count of the target.
    pub sums: Vec<u8>,
    /// Names of keys, each behind its length in four bytes.
    pub candidates: Vec<u8>,
}

/// When the slots of a source shard were written to last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub shard: ShardId,
    /// Nothing is known of what was written before.
    pub since_ms: i64,
    /// For each slot seconds after `since_ms`, plus one; 0 is never.
    pub last: Vec<u32>,
}

impl Written {
    /// When a slot was written to last, rounded up; `None` when it was not.
    pub fn last_ms(&self, slot: Slot) -> Option<i64> {
        let seconds = self.last.get(slot.index()).copied().filter(|n| *n > 0)?;
        Some(self.since_ms + i64::from(seconds) * 1000)
    }
}

/// The document with the source's own traffic, as it was seen last.
pub const MIX: &str = "observed_mix";

/// The document with how fast the source has answered before, and while it was read.
pub const PULSE: &str = "source_pulse";

/// The document with the answer of the last latency measurement.
pub const LATENCY: &str = "latency";

/// The document that holds what the last check has found out.
pub const CHECKED: &str = "check";
/// The document that keeps the run ids of the target's masters.
pub const MASTERS: &str = "target_masters";
/// The document that holds the limits set while it runs.
pub const LIMITS: &str = "limits";
/// The document that holds the commands that each side refuses.
pub const REFUSED: &str = "refused";
/// The document with the nodes that clusters have told, by the address that leads there.
pub(super) const NODES: &str = "cluster_nodes";
/// The document that remembers how a source is read: `replica` or `scan`.
pub const MODE: &str = "mode";
/// The document that says what the last sweep of mode "scan" has found.
pub const SWEEPS: &str = "scan";
/// The document that says what has become of each search index.
pub const INDEXES: &str = "indexes";
/// Set by a verification that wants the target's function libraries made the source's.
pub const REPAIR_FUNCTIONS: &str = "repair_functions";
