//! What a shard's run counts, and what the target cannot hold; both go to the store with the next checkpoint.

use crate::error::{Error, ErrorKind};
use crate::keyset::{KeySet, Put};
use crate::store::Loss;
use crate::types::{DbIndex, shown};
use std::collections::BTreeMap;

/// Memory for the names of counted losses, in bytes: beyond it a loss may be counted twice.
const LOST_BYTES: u64 = 1 << 20;

/// Counters and losses that are not saved yet.
pub(crate) struct Tally {
    counts: BTreeMap<&'static str, u64>,
    losses: Vec<Loss>,
    /// Losses already listed.
    lost: KeySet,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            counts: BTreeMap::new(),
            losses: Vec::new(),
            lost: KeySet::within(LOST_BYTES),
        }
    }
}

impl Tally {
    /// Adds to a counter; true the first time since the last checkpoint.
    pub fn add(&mut self, name: &'static str, n: u64) -> bool {
        let count = self.counts.entry(name).or_default();
        *count += n;
        *count == n
    }

    /// Lists a key of the target's database `db`, by its name at the source; false when it is listed already.
    pub fn list(&mut self, db: DbIndex, key: &[u8], code: &'static str) -> bool {
        if self.lost.put(db, key) == Put::Known {
            return false;
        }
        let what = code.trim_start_matches("skipped.");
        self.losses.push(Loss {
            db,
            key: key.to_vec(),
            what,
        });
        true
    }

    /// What has gathered since this was called last.
    pub fn take(&mut self) -> (BTreeMap<&'static str, u64>, Vec<Loss>) {
        (
            std::mem::take(&mut self.counts),
            std::mem::take(&mut self.losses),
        )
    }
}

/// The stop at a key that the target cannot hold (`on_loss: "fail"`).
pub(crate) fn cannot_hold(key: &[u8], why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, loss_text(key, why)).hint(
        "leave such keys out with filter.exclude, choose a target that can hold them, or set on_loss to \"list\" to go on without them",
    )
}

/// The message of a listed loss.
pub(crate) fn loss_text(key: &[u8], why: &str) -> String {
    format!("the target cannot hold the key {}: {why}", shown(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_listed_once_and_counted_each_time() {
        let mut tally = Tally::default();
        assert!(tally.add("skipped.type", 1) && !tally.add("skipped.type", 1));
        assert!(tally.list(DbIndex(0), b"k", "skipped.type"));
        assert!(!tally.list(DbIndex(0), b"k", "skipped.type"));
        assert!(tally.list(DbIndex(1), b"k", "skipped.type"));
        let (counts, losses) = tally.take();
        assert_eq!((counts["skipped.type"], losses.len()), (2, 2));
        assert_eq!(losses[0].what, "type");
        // A saved loss is not listed again.
        assert!(!tally.list(DbIndex(0), b"k", "skipped.type"));
        assert!(tally.take().1.is_empty());
    }
}
