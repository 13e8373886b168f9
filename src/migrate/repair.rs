//! Keys that a verification found to differ: read from the source and written again, in step with the stream.
//!
//! `verify --repair` writes them to SQLite; the pump of their slots heals them and takes them off the list.

use crate::error::Result;
use crate::migrate::heal::Key;
use crate::migrate::pump::Pump;
use crate::store::REPAIR_FUNCTIONS;
use crate::types::DbIndex;
use std::borrow::Cow;

/// Keys taken at a time.
const CHUNK: u32 = 1000;

impl Pump {
    /// Heals what has been asked for; called with every checkpoint.
    pub(super) fn repair(&mut self) -> Result<()> {
        if self.source.is_none() || self.shared.dry_run {
            self.repairs_pending = false;
            return Ok(());
        }
        if !self.shard.snapshot_loaded {
            return Ok(());
        }
        if self.shared.store(|s| s.json(REPAIR_FUNCTIONS))? == Some(true.into()) {
            self.sync_functions()?;
            self.shared
                .store(|s| s.put_json(REPAIR_FUNCTIONS, &false.into()))?;
        }
        let asked = self.shared.store(|s| s.repairs(CHUNK))?;
        self.repairs_pending = !asked.is_empty();
        let mine: Vec<(DbIndex, Vec<u8>)> = (asked.into_iter())
            .filter(|(_, key)| self.has_slot_of(key))
            .collect();
        if mine.is_empty() {
            return Ok(());
        }
        self.heal_queued()?;
        let mut keys: Vec<Key> = Vec::with_capacity(mine.len());
        for (db, key) in &mine {
            if let Some(name) = self.shared.job.renames.to_target(key).map(Cow::into_owned) {
                keys.push((self.source_of(*db, &name)?, name));
            }
        }
        let mark = self.now();
        self.heal(&keys, mark)?;
        self.settle_all()?;
        *self.counts.entry("repaired").or_default() += mine.len() as u64;
        self.shared.store(|s| s.repaired(&mine))
    }
}
