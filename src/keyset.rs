//! Sets of keys by their hashes: 9 to 18 bytes a key, whatever its length.
//!
//! The hashes are keyed and of 64 bits: a key is taken for one of n others n times in 2^64, and nobody can choose which.

use crate::types::DbIndex;
use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};

/// Tables that grow one after the other, so that growing never takes the memory twice.
const PARTS: usize = 64;

/// Bytes of a place: the hash, and a byte that says whether it is taken.
const PLACE: usize = 9;

/// A set of keys with their databases that takes no more than so many.
pub struct KeySet {
    keyed: RandomState,
    parts: Vec<HashSet<u64, BuildHasherDefault<Same>>>,
    len: usize,
    most: usize,
}

/// What a set has to say of a key that is put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    New,
    Known,
    /// The set is full, and the key is not in it.
    Full,
}

impl KeySet {
    fn new(most: usize) -> KeySet {
        KeySet {
            keyed: RandomState::new(),
            parts: vec![HashSet::default(); PARTS],
            len: 0,
            most,
        }
    }

    pub fn unbounded() -> KeySet {
        KeySet::new(usize::MAX)
    }

    /// A set that fits into so many bytes.
    pub fn within(bytes: u64) -> KeySet {
        KeySet::new(KeySet::room(bytes))
    }

    /// How many keys fit into so many bytes: tables have a power of two of places, of which one in eight stays free.
    pub fn room(bytes: u64) -> usize {
        let places = usize::try_from(bytes).unwrap_or(usize::MAX) / PARTS / PLACE;
        let places = (places / 2 + 1).next_power_of_two().max(16);
        // The parts are not quite alike.
        PARTS * (places / 8 * 7 / 20 * 19)
    }

    /// What a set of so many keys takes.
    pub fn bytes(keys: usize) -> usize {
        let part = keys / PARTS / 19 * 20 / 7 * 8;
        PARTS * PLACE * (part + 1).next_power_of_two()
    }

    pub fn put(&mut self, db: DbIndex, key: &[u8]) -> Put {
        self.put_hash(self.hash(db, key))
    }

    /// Puts a key in by its [`hash`](KeySet::hash): many hashes first, then many of these, which each wait for memory,
    /// and so wait together.
    pub fn put_hash(&mut self, hash: u64) -> Put {
        let full = self.len >= self.most;
        let Some(part) = self.parts.get_mut(part(hash)) else {
            return Put::Full;
        };
        if full {
            return match part.contains(&hash) {
                true => Put::Known,
                false => Put::Full,
            };
        }
        match part.insert(hash) {
            true => {
                self.len += 1;
                Put::New
            }
            false => Put::Known,
        }
    }

    pub fn has(&self, db: DbIndex, key: &[u8]) -> bool {
        self.has_hash(self.hash(db, key))
    }

    pub fn has_hash(&self, hash: u64) -> bool {
        (self.parts.get(part(hash))).is_some_and(|p| p.contains(&hash))
    }

    /// Takes a hash out.
    pub fn take_hash(&mut self, hash: u64) {
        if let Some(part) = self.parts.get_mut(part(hash))
            && part.remove(&hash)
        {
            self.len -= 1;
        }
    }

    /// All that are in it.
    pub fn hashes(&self) -> impl Iterator<Item = u64> {
        self.parts.iter().flatten().copied()
    }

    pub fn hash(&self, db: DbIndex, key: &[u8]) -> u64 {
        self.keyed.hash_one((db.0, key))
    }

    /// The same of a hash that is not keyed.
    pub fn rehash(&self, hash: u64) -> u64 {
        self.keyed.hash_one(hash)
    }
}

/// Of bits that the tables themselves do not look at first.
fn part(hash: u64) -> usize {
    (hash >> 48) as usize % PARTS
}

/// The hasher of what is a hash already.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_to_its_memory() {
        assert_eq!(KeySet::room(80 << 20), 6_972_544);
        assert_eq!(KeySet::bytes(6_972_544), 72 << 20);
        assert_eq!(KeySet::bytes(6_972_544 / 2 - 10_000), 36 << 20);
        let bytes = 1 << 20;
        let mut set = KeySet::within(bytes);
        let mut n = 0u64;
        while set.put(DbIndex(0), &n.to_le_bytes()) != Put::Full {
            n += 1;
        }
        assert!(n > 50_000, "{n}");
        // The tables say what they can take; each has an eighth more.
        let places: usize = set.parts.iter().map(|p| p.capacity() / 7 * 8).sum();
        assert!((places * PLACE) as u64 <= bytes, "{places}");
    }

    #[test]
    fn it_knows_what_was_put_in_until_it_is_full() {
        let keys: Vec<Vec<u8>> = (0..20_000)
            .map(|i| format!("key:{i}").into_bytes())
            .collect();
        let (there, not) = keys.split_at(10_000);
        let mut set = KeySet::new(there.len() + 1);
        for key in there {
            assert_eq!(set.put(DbIndex(1), key), Put::New);
            assert_eq!(set.put(DbIndex(1), key), Put::Known);
        }
        assert!(there.iter().all(|k| set.has(DbIndex(1), k)));
        assert!(!not.iter().any(|k| set.has(DbIndex(1), k)));
        assert!(!there.iter().any(|k| set.has(DbIndex(2), k)));
        assert_eq!(set.put(DbIndex(2), &there[0]), Put::New);
        assert_eq!(set.put(DbIndex(2), &there[1]), Put::Full);
        assert_eq!(set.put(DbIndex(2), &there[0]), Put::Known);
        assert!(!set.has(DbIndex(2), &there[1]));
    }
}
