//! When each slot was written to last, so that a later verification reads only those written to since.
//!
//! Invariant: it is saved in one transaction with the marks, so it covers everything before `applied`.

use crate::store::Written;
use crate::types::{SLOTS, ShardId, Slot, unix_ms};

/// One source shard's record; times are of routing, never before the write itself.
pub(crate) struct WrittenSlots {
    since_ms: i64,
    /// Seconds after `since_ms`, plus one; 0 is never.
    last: Vec<u32>,
    changed: bool,
    /// The second in which all were noted last.
    all: u32,
}

impl WrittenSlots {
    /// Begins now: nothing is known of what was before.
    pub fn new() -> WrittenSlots {
        WrittenSlots {
            since_ms: unix_ms(),
            last: vec![0; SLOTS],
            changed: true,
            all: 0,
        }
    }

    /// Resumes what an earlier run has saved.
    pub fn resume(saved: &Written) -> WrittenSlots {
        WrittenSlots {
            since_ms: saved.since_ms,
            last: saved.last.clone(),
            changed: false,
            all: 0,
        }
    }

    fn now(&self) -> u32 {
        let seconds = (unix_ms() - self.since_ms).max(0) / 1000 + 1;
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    /// Notes a key by its name at the source.
    pub fn note(&mut self, key: &[u8]) {
        let now = self.now();
        if let Some(last) = self.last.get_mut(Slot::of(key).index()) {
            *last = now;
            self.changed = true;
        }
    }

    pub fn note_all(&mut self) {
        let now = self.now();
        // A script does so each time that it is called.
        if std::mem::replace(&mut self.all, now) != now {
            self.last.fill(now);
            self.changed = true;
        }
    }

    /// What is to be saved, if anything has changed since this was asked.
    pub fn take(&mut self, shard: ShardId) -> Option<Written> {
        std::mem::take(&mut self.changed).then(|| Written {
            shard,
            since_ms: self.since_ms,
            last: self.last.clone(),
        })
    }
}
