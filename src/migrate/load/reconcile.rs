//! on_existing "reconcile", and a flush of the source: which of the target's keys are older than what was just brought,
//! so that they are compared with the source, where they may be gone or new.

use crate::error::Result;
use crate::keyset::KeySet;
use crate::migrate::context::ShardContext;
use crate::migrate::load::loaded_keys::LoadedKeys;
use crate::types::{DbIndex, key_hash};

/// Which of the target's keys are compared with the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Older {
    /// Those that the snapshot which was just loaded has not brought.
    NotLoaded,
    /// All keys of this database of the target, or of all: the source has flushed it.
    Flushed(Option<DbIndex>),
}

impl Older {
    /// The target's database that it is about; `None` for all.
    pub fn only(self) -> Option<DbIndex> {
        match self {
            Older::Flushed(db) => db,
            Older::NotLoaded => None,
        }
    }

    /// What people are told.
    pub fn text(self) -> &'static str {
        match self {
            Older::NotLoaded => {
                "the target's keys that the snapshot did not bring are compared with the source's: what is gone there is removed"
            }
            Older::Flushed(_) => {
                "the target's keys are compared with the source's after its flush: what is gone there is removed"
            }
        }
    }

    /// In how many parts the keys are gone through, and what one of them takes in bytes.
    pub fn parts(self, ctx: &ShardContext, loaded: &mut LoadedKeys) -> Result<(u64, usize)> {
        match self {
            Older::Flushed(_) => Ok((1, 0)),
            Older::NotLoaded => loaded.parts(ctx.job().limits.loaded()),
        }
    }

    /// One of the parts.
    pub fn part(self, loaded: &mut LoadedKeys, part: u64, parts: u64) -> Result<Part> {
        let brought = match self {
            Older::Flushed(_) => KeySet::unbounded(),
            Older::NotLoaded => loaded.part(part, parts)?,
        };
        Ok(Part {
            brought,
            part,
            parts,
        })
    }
}

/// Some of the keys, by their hashes.
pub(crate) struct Part {
    /// What the snapshot has brought of this part.
    brought: KeySet,
    part: u64,
    parts: u64,
}

impl Part {
    /// Whether a key of the target belongs to this part, and the snapshot has not brought it.
    pub fn has(&self, db: DbIndex, key: &[u8]) -> bool {
        let hash = key_hash(db, key);
        hash % self.parts == self.part && !self.brought.has_hash(self.brought.rehash(hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_that_was_not_brought_is_in_one_part() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut loaded = LoadedKeys::open(dir.path(), false);
        let key = |n: u32| format!("key:{n}").into_bytes();
        for n in 0..100 {
            let hash = key_hash(DbIndex(0), &key(n));
            loaded.add(hash).expect("it is noted");
        }
        loaded.save().expect("it is written");
        let count = |older: Older, loaded: &mut LoadedKeys, db: u32, n: u32, parts: u64| {
            let in_part = |part| {
                older
                    .part(loaded, part, parts)
                    .expect("a part")
                    .has(DbIndex(db), &key(n))
            };
            (0..parts).map(in_part).filter(|has| *has).count()
        };
        assert_eq!(count(Older::NotLoaded, &mut loaded, 0, 7, 3), 0);
        assert_eq!(count(Older::NotLoaded, &mut loaded, 1, 7, 3), 1);
        assert_eq!(count(Older::NotLoaded, &mut loaded, 0, 100, 3), 1);
        assert_eq!(count(Older::Flushed(None), &mut loaded, 0, 7, 1), 1);
    }
}
