//! on_existing "reconcile", and a flush of the source: what the target holds and nobody has just brought is compared.

use crate::error::{Error, ErrorKind, Result};
use crate::keyset::KeySet;
use crate::migrate::heal::Key;
use crate::migrate::pump::Pump;
use crate::types::{DbIndex, Mark, key_hash};

pub(super) fn interrupted() -> Error {
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

/// Whether a key belongs to this part and the snapshot has not brought it.
fn is_older(brought: &KeySet, part: u64, parts: u64, db: DbIndex, key: &[u8]) -> bool {
    let hash = key_hash(db, key);
    hash % parts == part && !brought.has_hash(brought.rehash(hash))
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
        if which == Older::NotLoaded && self.guards_loss()? {
            let mut lost = 0;
            for part in 0..parts {
                let brought = self.loaded.part(part, parts)?;
                lost += self.count_lost(&|db: DbIndex, key: &[u8]| {
                    is_older(&brought, part, parts, db, key)
                })?;
            }
            self.refuse_loss(lost)?;
        }
        for part in 0..parts {
            let brought = match which {
                Older::Flushed(_) => KeySet::unbounded(),
                Older::NotLoaded => self.loaded.part(part, parts)?,
            };
            let older = |db: DbIndex, key: &[u8]| is_older(&brought, part, parts, db, key);
            // A failover in the middle: once more from the beginning, as nothing is healed wrong by that.
            self.asked("listing the target's keys", |me| {
                me.compare_older(&older, which)
            })?;
        }
        self.settle_all()?;
        Ok(())
    }

    /// A flush may not have run on a node of the target, where others have gone on: [`Pump::finish_flush`] makes it good.
    ///
    /// `db` is the target's database, `None` stands for all of them.
    pub(super) fn compare_flushed(&mut self, db: Option<DbIndex>, mark: Mark) {
        self.flush_again = Some(match self.flush_again {
            None => (mark, db),
            Some((before, of)) if of == db => (before.earlier(mark), db),
            Some((before, _)) => (before.earlier(mark), None),
        });
    }

    /// Compares what a flush may have left with the source.
    pub(super) fn finish_flush(&mut self) -> Result<()> {
        let Some((mark, db)) = self.flush_again else {
            return Ok(());
        };
        if self.source.is_none() {
            return Err(Error::new(
                ErrorKind::NotReady,
                "the target was away while the file's flush was sent to it, and a file cannot be asked what was to be flushed",
            )
            .hint("run the same command again: the file is loaded from its beginning"));
        }
        let before = self.hold(mark);
        self.flush_again = None;
        // After an error the floor stays: the next run meets the flush again.
        self.reconcile(Older::Flushed(db))?;
        self.floor = before;
        Ok(())
    }

    /// Heals the target's keys that are `older`.
    fn compare_older(
        &mut self,
        older: &impl Fn(DbIndex, &[u8]) -> bool,
        which: Older,
    ) -> Result<()> {
        let only = match which {
            Older::Flushed(db) => db,
            Older::NotLoaded => None,
        };
        self.each_page_of_ours(only, older, &mut |me, db, ours| me.reread(db, ours))
    }

    /// Heals keys of ours of the target's `db`.
    fn reread(&mut self, db: DbIndex, keys: Vec<Vec<u8>>) -> Result<()> {
        if self.source.is_none() {
            // A file that says FLUSHALL: at this point of it there is nothing.
            let Some(to) = self.database(db)? else {
                return Ok(());
            };
            let mark = self.now();
            return keys.iter().try_for_each(|key| self.remove(to, key, mark));
        }
        let mut ours: Vec<Key> = Vec::with_capacity(keys.len());
        for key in keys {
            ours.push((self.source_of(db, &key)?, key));
        }
        if !ours.is_empty() {
            *self.counts.entry("reconciled").or_default() += ours.len() as u64;
            let mark = self.now();
            self.heal(&ours, mark)?;
        }
        Ok(())
    }
}
