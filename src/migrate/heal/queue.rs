//! Keys that wait to be healed: read at the source and written as they are then.
//!
//! Healing many at a time costs one round trip, and a key that is written to all the time is read now and then only.

use crate::types::{DbIndex, db_key};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// With so many keys nothing more waits.
const MOST: usize = 512;
/// How long a key may wait while the stream goes on.
const PATIENCE: Duration = Duration::from_millis(20);

/// A key of the source's database, by the name that it gets at the target.
pub(crate) type Key = (DbIndex, Vec<u8>);

/// Keys by [`db_key`], and since when the first of them waits.
#[derive(Debug, Default)]
pub(crate) struct HealQueue {
    keys: HashMap<Vec<u8>, Key>,
    since: Option<Instant>,
}

impl HealQueue {
    pub fn push(&mut self, key: Key, now: Instant) {
        self.keys.insert(db_key(key.0, &key.1), key);
        self.since.get_or_insert(now);
    }

    /// Takes one out that has been healed by itself.
    pub fn remove(&mut self, db: DbIndex, key: &[u8]) {
        self.keys.remove(&db_key(db, key));
        if self.keys.is_empty() {
            self.since = None;
        }
    }

    /// Whether a command on the key has to wait as well.
    pub fn has(&self, db: DbIndex, key: &[u8]) -> bool {
        !self.keys.is_empty() && self.keys.contains_key(&db_key(db, key))
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether the keys have waited long enough, or are enough.
    pub fn is_due(&self, now: Instant) -> bool {
        let waited = |since: Instant| now.saturating_duration_since(since) >= PATIENCE;
        self.keys.len() >= MOST || self.since.is_some_and(waited)
    }

    /// Empties it: the keys in their order.
    pub fn take(&mut self) -> Vec<Key> {
        let mut keys: Vec<Key> = self.keys.drain().map(|(_, key)| key).collect();
        keys.sort_unstable();
        self.since = None;
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_waits_once_and_in_its_database() {
        let (mut queue, now) = (HealQueue::default(), Instant::now());
        assert!(queue.is_empty() && !queue.is_due(now));
        queue.push((DbIndex(1), b"k".to_vec()), now);
        queue.push((DbIndex(1), b"k".to_vec()), now);
        queue.push((DbIndex(0), b"k".to_vec()), now);
        assert!(queue.has(DbIndex(1), b"k") && !queue.has(DbIndex(2), b"k"));
        let keys = queue.take();
        let both = [(DbIndex(0), b"k".to_vec()), (DbIndex(1), b"k".to_vec())];
        assert!(keys == both && queue.is_empty());
    }

    #[test]
    fn keys_are_due_when_they_are_enough_or_the_first_has_waited() {
        let (mut queue, now) = (HealQueue::default(), Instant::now());
        for n in 0..MOST {
            assert!(!queue.is_due(now));
            queue.push((DbIndex(0), n.to_le_bytes().to_vec()), now);
        }
        assert!(queue.is_due(now));
        queue.take();
        queue.push((DbIndex(0), b"a".to_vec()), now);
        queue.push((DbIndex(0), b"b".to_vec()), now + PATIENCE);
        assert!(!queue.is_due(now + PATIENCE / 2) && queue.is_due(now + PATIENCE));
        queue.remove(DbIndex(0), b"a");
        queue.remove(DbIndex(0), b"b");
        assert!(queue.is_empty() && !queue.is_due(now + PATIENCE));
    }
}
