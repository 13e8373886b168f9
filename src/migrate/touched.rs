//! When each slot was written to last, so that a later verification reads only those written to since.
//!
//! Invariant: it is saved in one transaction with the marks, so it covers everything before `applied`.

use crate::migrate::pump::Pump;
use crate::store::Written;
use crate::types::{DbIndex, SLOTS, ShardId, Slot, unix_ms};

/// One source shard's record; times are of routing, never before the write itself.
pub struct Touched {
    since_ms: i64,
    /// Seconds after `since_ms`, plus one; 0 is never.
    last: Vec<u32>,
    changed: bool,
}

impl Touched {
    /// Begins now: nothing is known of what was before.
    pub fn new() -> Touched {
        Touched {
            since_ms: unix_ms(),
            last: vec![0; SLOTS],
            changed: true,
        }
    }

    /// Goes on with what an earlier run has saved.
    pub fn resume(saved: &Written) -> Touched {
        Touched {
            since_ms: saved.since_ms,
            last: saved.last.clone(),
            changed: false,
        }
    }

    fn now(&self) -> u32 {
        let seconds = (unix_ms() - self.since_ms).max(0) / 1000 + 1;
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    /// A key by its name at the source.
    fn note(&mut self, key: &[u8]) {
        let now = self.now();
        if let Some(last) = self.last.get_mut(Slot::of(key).index()) {
            *last = now;
            self.changed = true;
        }
    }

    fn note_all(&mut self) {
        let now = self.now();
        self.last.fill(now);
        self.changed = true;
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

impl Pump {
    /// Notes that a key is written: for verifications of what has changed.
    pub(super) fn touch(&mut self, db: DbIndex, name: &[u8]) {
        let job = &self.shared.job;
        let key = self.source_name(name);
        if self.shared.control.attended()
            && let Some(to) = job.databases.map(db)
            && job.filter.accepts(&key)
        {
            self.shared.control.note(to, &key);
        }
        if let Some(touched) = &mut self.touched {
            touched.note(&key);
        }
    }

    /// Any key may have been written.
    pub(super) fn touch_all(&mut self) {
        self.shared.control.note_all();
        if let Some(touched) = &mut self.touched {
            touched.note_all();
        }
    }
}
