//! What a running migration shows of itself: numbers that the shards write and the surface reads.

use crate::types::ShardId;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// The phase of a shard that has nothing more to bring.
pub const ENDED: &str = "ended";

/// One source shard's line in the progress display.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardView {
    pub shard: u16,
    pub address: String,
    pub phase: &'static str,
    pub bytes_done: u64,
    pub bytes_total: u64,
    pub keys: u64,
    pub commands: u64,
    pub lag_bytes: u64,
    pub lag_ms: u64,
    pub note: String,
}

/// A source shard's live numbers.
pub struct ShardProgress {
    pub shard: ShardId,
    pub address: String,
    phase: Mutex<&'static str>,
    note: Mutex<String>,
    pub bytes_done: AtomicU64,
    pub bytes_total: AtomicU64,
    pub keys_read: AtomicU64,
    pub keys_written: AtomicU64,
    pub commands: AtomicU64,
    /// Commands that write, but for those that remove expired keys.
    pub writes: AtomicU64,
    pub healed: AtomicU64,
    pub lag_bytes: AtomicU64,
    pub lag_ms: AtomicU64,
    /// The target holds everything that had arrived moments ago, held expiries included.
    pub caught_up: AtomicBool,
}

impl ShardProgress {
    pub fn new(shard: ShardId, address: String) -> ShardProgress {
        ShardProgress {
            shard,
            address,
            phase: Mutex::new("connecting"),
            note: Mutex::default(),
            bytes_done: AtomicU64::new(0),
            bytes_total: AtomicU64::new(0),
            keys_read: AtomicU64::new(0),
            keys_written: AtomicU64::new(0),
            commands: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            healed: AtomicU64::new(0),
            lag_bytes: AtomicU64::new(0),
            lag_ms: AtomicU64::new(0),
            caught_up: AtomicBool::new(false),
        }
    }

    pub fn set_phase(&self, phase: &'static str) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    pub fn set_note(&self, note: impl Into<String>) {
        *self.note.lock().unwrap_or_else(PoisonError::into_inner) = note.into();
    }

    pub fn view(&self) -> ShardView {
        ShardView {
            shard: self.shard.0,
            address: self.address.clone(),
            phase: *self.phase.lock().unwrap_or_else(PoisonError::into_inner),
            bytes_done: self.bytes_done.load(Relaxed),
            bytes_total: self.bytes_total.load(Relaxed),
            keys: self.keys_written.load(Relaxed),
            commands: self.commands.load(Relaxed),
            lag_bytes: self.lag_bytes.load(Relaxed),
            lag_ms: self.lag_ms.load(Relaxed),
            note: self
                .note
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }
}

/// All shards of a run; filled when the source's masters are known.
#[derive(Default)]
pub struct Progress {
    pub shards: Mutex<Vec<Arc<ShardProgress>>>,
}

impl Progress {
    pub fn views(&self) -> Vec<ShardView> {
        self.shards
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|s| s.view())
            .collect()
    }

    pub fn set_shards(&self, shards: Vec<Arc<ShardProgress>>) {
        *self.shards.lock().unwrap_or_else(PoisonError::into_inner) = shards;
    }
}
