//! on_existing "reconcile", and a flush of the source: what the target holds and nobody has just brought is compared.

use crate::error::{Error, ErrorKind, Result};
use crate::keyset::KeySet;
use crate::migrate::heal::Key;
use crate::migrate::pump::Pump;
use crate::net;
use crate::net::scan::{self, Scan};
use crate::types::{DbIndex, key_hash};

fn interrupted() -> Error {
    Error::new(
        ErrorKind::Interrupted,
        "stopped while comparing the target's older keys with the source's",
    )
}

/// Which of the target's keys are compared with the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Older {
    /// Those that the snapshot which was just loaded has not brought.
    NotLoaded,
    /// All keys of this database of the target, or of all: the source has flushed it.
    Flushed(Option<DbIndex>),
}

impl Pump {
    /// Makes exact what the target holds beside the keys of the snapshot that was just loaded, or after a flush
    /// everything: it is older than that, so it is read from the source, where it may be gone or new.
    pub(super) fn reconcile(&mut self, which: Older) -> Result<()> {
        self.shared.event(
            "info",
            "reconcile",
            match which {
                Older::NotLoaded => {
                    "the target's keys that the snapshot did not bring are compared with the source's: what is gone there is removed"
                }
                Older::Flushed(_) => {
                    "the target's keys are compared with the source's after its flush: what is gone there is removed"
                }
            },
        );
        self.settle_all()?;
        let shared = self.shared.clone();
        let (parts, bytes) = match which {
            Older::Flushed(_) => (1, 0),
            Older::NotLoaded => self.loaded.parts(shared.job.limits.loaded())?,
        };
        // All shards may have come to this: as many compare at once as there is memory for.
        let Some(_room) = shared.runtime.block_on(shared.room_for_loaded(bytes)) else {
            return Err(interrupted());
        };
        for part in 0..parts {
            let brought = match which {
                Older::Flushed(_) => KeySet::unbounded(),
                Older::NotLoaded => self.loaded.part(part, parts)?,
            };
            let older = |db: DbIndex, key: &[u8]| {
                let hash = key_hash(db, key);
                hash % parts == part && !brought.has_hash(brought.rehash(hash))
            };
            // A failover in the middle: once more from the beginning, as nothing is healed wrong by that.
            self.asked("listing the target's keys", |me| {
                me.compare_older(&older, which)
            })?;
        }
        self.settle_all()?;
        Ok(())
    }

    /// Heals the target's keys that are `older`.
    fn compare_older(
        &mut self,
        older: &impl Fn(DbIndex, &[u8]) -> bool,
        which: Older,
    ) -> Result<()> {
        let endpoint = self.pipe.endpoint().clone();
        let runtime = self.shared.runtime.clone();
        for node in 0..self.pipe.node_count() {
            let address = self.pipe.address(node).to_owned();
            let mut conn = runtime.block_on(net::connect(&endpoint, &address))?;
            let dbs = runtime.block_on(scan::databases(&mut conn))?;
            for (db, _) in dbs {
                if matches!(which, Older::Flushed(Some(flushed)) if flushed != db) {
                    continue;
                }
                runtime.block_on(conn.select(db))?;
                let mut scan = Scan::new();
                while let Some(mut page) = runtime.block_on(scan.next(&mut conn, 1000))? {
                    page.retain(|key| older(db, key));
                    self.reread(db, &page)?;
                }
            }
        }
        Ok(())
    }

    /// Heals keys of the target's `db`, as far as they are ours.
    fn reread(&mut self, db: DbIndex, keys: &[Vec<u8>]) -> Result<()> {
        if self.shared.job.databases.sources_of(db).next().is_none() {
            return Ok(());
        }
        let mut ours: Vec<Key> = Vec::new();
        for key in keys {
            // The target's own keys are no older state of the source's.
            if self.accepts(key) && self.owns(key) && !self.shared.own.has(db, key) {
                ours.push((self.source_of(db, key)?, key.clone()));
            }
        }
        if !ours.is_empty() {
            *self.counts.entry("reconciled").or_default() += ours.len() as u64;
            let mark = self.now();
            self.heal(&ours, mark)?;
        }
        if self.shared.stop.requested() {
            return Err(interrupted());
        }
        Ok(())
    }
}
