//! Keys that wait to be healed: read at the source and written as they are then.
//!
//! Healing many at a time costs one round trip, and a key that is written to all the time is read now and then only.

use crate::migrate::heal::Key;
use crate::types::{DbIndex, Mark, db_key};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// With so many keys nothing more waits.
const MOST: usize = 512;
/// How long a key may wait while the stream goes on.
const PATIENCE: Duration = Duration::from_millis(20);

/// Keys by [`db_key`], and where the source stood before the first command that one of them waits for.
#[derive(Debug, Default)]
pub(super) struct HealQueue {
    keys: HashMap<Vec<u8>, Key>,
    from: Option<Mark>,
    since: Option<Instant>,
}

impl HealQueue {
    pub fn push(&mut self, key: Key, mark: Mark) {
        self.keys.insert(db_key(key.0, &key.1), key);
        self.from.get_or_insert(mark);
        self.since.get_or_insert_with(Instant::now);
    }

    /// Whether a command on the key has to wait as well.
    pub fn has(&self, db: DbIndex, key: &[u8]) -> bool {
        !self.keys.is_empty() && self.keys.contains_key(&db_key(db, key))
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// No checkpoint passes this.
    pub fn mark(&self) -> Option<Mark> {
        self.from
    }

    /// Whether the keys have waited long enough, or are enough.
    pub fn is_due(&self) -> bool {
        self.keys.len() >= MOST || self.since.is_some_and(|since| since.elapsed() >= PATIENCE)
    }

    /// Empties it: the keys in their order, and the mark.
    pub fn take(&mut self) -> (Vec<Key>, Option<Mark>) {
        let mut keys: Vec<Key> = self.keys.drain().map(|(_, key)| key).collect();
        keys.sort_unstable();
        self.since = None;
        (keys, self.from.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ReplOffset;

    fn mark(at: u64) -> Mark {
        Mark::Stream {
            at: ReplOffset(at),
            db: DbIndex::ZERO,
        }
    }

    #[test]
    fn a_key_waits_once_and_the_first_mark_holds() {
        let mut queue = HealQueue::default();
        assert!(queue.is_empty() && !queue.is_due() && queue.mark().is_none());
        queue.push((DbIndex(1), b"k".to_vec()), mark(10));
        queue.push((DbIndex(1), b"k".to_vec()), mark(20));
        queue.push((DbIndex(0), b"k".to_vec()), mark(30));
        assert!(queue.has(DbIndex(1), b"k") && !queue.has(DbIndex(2), b"k"));
        assert_eq!(queue.mark(), Some(mark(10)));
        let (keys, from) = queue.take();
        assert_eq!(
            keys,
            [(DbIndex(0), b"k".to_vec()), (DbIndex(1), b"k".to_vec())]
        );
        assert_eq!(from, Some(mark(10)));
        assert!(queue.is_empty() && queue.mark().is_none());
    }

    #[test]
    fn enough_keys_are_due_at_once() {
        let mut queue = HealQueue::default();
        for n in 0..MOST {
            assert!(!queue.is_due() || queue.since.is_some_and(|s| s.elapsed() >= PATIENCE));
            queue.push((DbIndex(0), n.to_le_bytes().to_vec()), mark(1));
        }
        assert!(queue.is_due());
    }
}
