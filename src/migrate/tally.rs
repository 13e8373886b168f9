//! What a shard's run counts, and what the target cannot hold; both go to the store with the next checkpoint.

use crate::error::{Error, ErrorKind};
use crate::keyset::{KeySet, Put};
use crate::store::{Loss, UnknownCommand};
use crate::types::{DbIndex, ReplOffset, shown};
use std::collections::BTreeMap;

/// Memory for the names of counted losses, in bytes: beyond it a loss may be counted twice.
const LOST_BYTES: u64 = 1 << 20;

/// Names of unknown commands that are told apart, and characters of each: a source may send anything.
const UNKNOWN_NAMES: usize = 256;
const UNKNOWN_NAME_CHARS: usize = 64;

/// Counters and losses that are not saved yet.
pub(crate) struct Tally {
    /// By name; those that are saved stay, with nothing to count.
    unknown: BTreeMap<String, Unknown>,
    counts: BTreeMap<&'static str, u64>,
    losses: Vec<Loss>,
    /// Losses already listed.
    lost: KeySet,
}

/// What is not saved yet of an unknown command.
struct Unknown {
    first: ReplOffset,
    left_out: u64,
    read_again: u64,
}

/// The name of a command of the stream, for people.
pub(crate) fn command_name(name: &[u8]) -> String {
    let text = name.escape_ascii().map(char::from);
    text.take(UNKNOWN_NAME_CHARS)
        .collect::<String>()
        .to_ascii_uppercase()
}

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            unknown: BTreeMap::new(),
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

    /// Counts a command that is not known, whose keys are `read` from the source or which is left out; true when it is
    /// the first of its name.
    pub fn unknown(&mut self, name: &[u8], at: ReplOffset, read: bool) -> bool {
        let mut name = command_name(name);
        let new = !self.unknown.contains_key(&name);
        if new && self.unknown.len() >= UNKNOWN_NAMES {
            name = "(others)".to_owned();
        }
        let entry = self.unknown.entry(name).or_insert(Unknown {
            first: at,
            left_out: 0,
            read_again: 0,
        });
        match read {
            true => entry.read_again += 1,
            false => entry.left_out += 1,
        }
        new && self.unknown.len() < UNKNOWN_NAMES
    }

    /// The unknown commands since this was called last.
    pub fn take_unknown(&mut self, source: &str) -> Vec<UnknownCommand> {
        let seen = (self.unknown.iter_mut()).filter(|(_, u)| u.left_out + u.read_again > 0);
        seen.map(|(name, u)| UnknownCommand {
            name: name.clone(),
            source: source.to_owned(),
            first_offset: u.first.0,
            left_out: std::mem::take(&mut u.left_out),
            read_again: std::mem::take(&mut u.read_again),
        })
        .collect()
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
    fn unknown_commands_are_counted_by_name_within_bounds() {
        let mut tally = Tally::default();
        assert!(tally.unknown(b"foo.bar", ReplOffset(7), false));
        assert!(!tally.unknown(b"FOO.BAR", ReplOffset(9), true));
        let seen = tally.take_unknown("h:1");
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].name, "FOO.BAR");
        assert_eq!(
            (seen[0].first_offset, seen[0].left_out, seen[0].read_again),
            (7, 1, 1)
        );
        assert!(tally.take_unknown("h:1").is_empty());
        for n in 0..10_000 {
            tally.unknown(format!("{n:0200}").as_bytes(), ReplOffset(n), false);
        }
        let seen = tally.take_unknown("h:1");
        assert!(seen.len() <= UNKNOWN_NAMES + 1, "{}", seen.len());
        assert!(seen.iter().all(|u| u.name.len() <= UNKNOWN_NAME_CHARS));
        assert_eq!(seen.iter().map(|u| u.left_out).sum::<u64>(), 10_000);
    }

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
