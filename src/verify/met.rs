//! Which keys were met on both sides; where every key of the target was, none of them is an extra one.
//!
//! The target's keys are listed beside the first pass. What is listed before it is met is kept by its hash until it is;
//! if none is left in the end, the target need not be listed again.

use crate::keyset::{KeySet, Put};
use crate::types::DbIndex;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

/// Keys that were met on both sides, and those that are to be.
pub struct Met {
    /// The first pass counts them once, and the second need not ask the source for them again.
    seen: RwLock<KeySet>,
    /// `None` where the target is not listed beside, or has too many keys to be kept.
    target: Mutex<Option<Target>>,
}

/// The target's keys that were listed.
struct Target {
    /// Those that were not met before that.
    unmet: KeySet,
    /// All were listed.
    whole: bool,
}

impl Met {
    /// Knows keys with so many bytes.
    pub fn within(bytes: u64) -> Met {
        Met {
            seen: RwLock::new(KeySet::within(bytes)),
            target: Mutex::default(),
        }
    }

    fn seen(&self) -> RwLockReadGuard<'_, KeySet> {
        self.seen.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn target(&self) -> MutexGuard<'_, Option<Target>> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes keys of a database of the source that were met on both sides; returns for each whether it was before.
    pub fn meet<'k>(
        &self,
        from: DbIndex,
        keys: impl Iterator<Item = Option<&'k [u8]>>,
    ) -> Vec<bool> {
        let seen = self.seen();
        let hashes: Vec<Option<u64>> = keys.map(|key| Some(seen.hash(from, key?))).collect();
        drop(seen);
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        let mut put = |hash: &Option<u64>| hash.is_some_and(|h| seen.put_hash(h) == Put::Known);
        let known = hashes.iter().map(&mut put).collect();
        drop(seen);
        if let Some(target) = &mut *self.target() {
            for hash in hashes.into_iter().flatten() {
                target.unmet.take_hash(hash);
            }
        }
        known
    }

    /// Those of some keys that were not met in a database of the source.
    pub fn unmet<'k>(&self, from: DbIndex, mut keys: Vec<&'k [u8]>) -> Vec<&'k [u8]> {
        let seen = self.seen();
        // Each waits for memory, and so they wait together.
        let hashes: Vec<u64> = keys.iter().map(|k| seen.hash(from, k)).collect();
        let known: Vec<bool> = hashes.iter().map(|h| seen.has_hash(*h)).collect();
        let mut known = known.into_iter();
        keys.retain(|_| known.next() != Some(true));
        keys
    }

    /// From now on keys of the target are listed: so many bytes are there for those that were not met before.
    pub fn begin(&self, bytes: u64) {
        *self.target() = Some(Target {
            unmet: KeySet::within(bytes),
            whole: false,
        });
    }

    /// Takes keys of the target; false when there are too many to keep.
    pub fn list(&self, db: DbIndex, keys: &[&[u8]]) -> bool {
        let seen = self.seen();
        let hashes: Vec<u64> = keys.iter().map(|k| seen.hash(db, k)).collect();
        let unmet = hashes.into_iter().filter(|h| !seen.has_hash(*h));
        let unmet: Vec<u64> = unmet.collect();
        drop(seen);
        let mut target = self.target();
        let Some(listed) = &mut *target else {
            return false;
        };
        let fits = (unmet.into_iter()).all(|hash| listed.unmet.put_hash(hash) != Put::Full);
        if !fits {
            *target = None;
        }
        fits
    }

    /// All keys of the target were listed.
    pub fn listed(&self) {
        if let Some(target) = &mut *self.target() {
            target.whole = true;
        }
    }

    /// Whether all keys of the target were listed, and every one was met.
    pub fn all(&self) -> bool {
        let seen = self.seen();
        match self.target().take() {
            // One that was met while it was listed may be left here.
            Some(target) => target.whole && target.unmet.hashes().all(|h| seen.has_hash(h)),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DB: DbIndex = DbIndex(0);

    fn meet(met: &Met, keys: &[&[u8]]) -> Vec<bool> {
        met.meet(DB, keys.iter().map(|k| Some(*k)))
    }

    #[test]
    fn all_are_met_whichever_side_tells_first() {
        let met = Met::within(1 << 20);
        met.begin(1 << 20);
        assert_eq!(meet(&met, &[b"a", b"b"]), [false, false]);
        assert!(met.list(DB, &[b"b", b"c"]));
        assert_eq!(meet(&met, &[b"b", b"c"]), [true, false]);
        met.listed();
        assert!(met.all());
        assert!(!met.all(), "only once");
    }

    #[test]
    fn one_that_is_left_or_was_not_listed_says_nothing() {
        let met = Met::within(1 << 20);
        assert!(!met.all());
        met.begin(1 << 20);
        meet(&met, &[b"a"]);
        assert!(!met.all(), "not all were listed");
        met.begin(1 << 20);
        assert!(met.list(DB, &[b"a", b"extra"]));
        met.listed();
        assert!(!met.all());
        // The same name in another database is another key.
        met.begin(1 << 20);
        assert!(met.list(DbIndex(1), &[b"a"]));
        met.listed();
        assert!(!met.all());
    }

    #[test]
    fn too_many_are_not_kept() {
        let met = Met::within(1 << 20);
        met.begin(1 << 10);
        let names: Vec<Vec<u8>> = (0..100_000u32).map(|n| n.to_le_bytes().to_vec()).collect();
        let keys: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        assert!(!met.list(DB, &keys));
        assert!(!met.list(DB, &[b"a"]));
        met.listed();
        assert!(!met.all());
    }

    #[test]
    fn what_does_not_fit_was_not_met() {
        let met = Met::within(1 << 10);
        met.begin(1 << 20);
        let names: Vec<Vec<u8>> = (0..10_000u32).map(|n| n.to_le_bytes().to_vec()).collect();
        let keys: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        meet(&met, &keys);
        assert!(met.list(DB, &keys));
        met.listed();
        assert!(!met.all());
    }
}
