//! How far a comparison has come, kept in SQLite so that a stopped one goes on.
//!
//! Invariant: sums, candidates and position are those of the same moment; a page counts when all before it do.

use crate::digest::SlotSum;
use crate::error::Result;
use crate::source::keys::fact::NOT_REPLICATED;
use crate::source::keys::list::Position;
use crate::store::{Store, VerifyProgress};
use crate::types::{DbIndex, SLOTS, Slot, SlotSet, db_key, split_db_key};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How many differences of one reason are listed; all are counted.
const DIFFERENCES_KEPT: u64 = 10_000;
/// The reason of a key that was written faster than it could be compared.
pub const UNPROVABLE: &str = "written while it was compared";
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// A key's name on both sides: the target's database.
pub type Name = (DbIndex, Vec<u8>);

/// Which listing is walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Pass {
    /// The source's keys: each is read on both sides.
    Source,
    /// The target's keys: those that the source lacks are searched for.
    Target,
    Confirm,
}

/// What is saved beside the sums.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct At {
    pub pass: Pass,
    /// Where the listing goes on; none at its beginning.
    pub position: Option<Position>,
    pub started_ms: i64,
    /// Keys compared so far.
    pub compared: u64,
    /// Differences by their reasons.
    pub counts: BTreeMap<String, u64>,
    /// Slots with differences, and slots with keys that could not be proven, as `0-5,7`.
    pub different: String,
    pub unprovable: String,
}

/// The state of a running comparison.
pub struct Progress {
    pub at: At,
    pub sums: Vec<(SlotSum, SlotSum)>,
    /// Keys that were not equal when they were read.
    pub candidates: BTreeSet<Name>,
    pub different: SlotSet,
    pub unprovable: SlotSet,
    /// Pages that are done before those in front of them.
    early: BTreeMap<u64, Done>,
    /// Pages after the last position: a listing that goes on there brings them again.
    staged: Vec<Done>,
    next: u64,
    saved: Instant,
    /// Whether this went on where another process had stopped.
    pub resumed: bool,
}

/// What one page has come to.
#[derive(Default)]
pub struct Done {
    pub position: Option<Position>,
    pub sums: Vec<(u16, SlotSum, SlotSum)>,
    pub candidates: Vec<Name>,
    pub compared: u64,
}

impl Progress {
    pub fn new(started_ms: i64) -> Progress {
        Progress {
            at: At {
                pass: Pass::Source,
                position: None,
                started_ms,
                compared: 0,
                counts: BTreeMap::new(),
                different: String::new(),
                unprovable: String::new(),
            },
            sums: vec![Default::default(); SLOTS],
            candidates: BTreeSet::new(),
            different: SlotSet::none(),
            unprovable: SlotSet::none(),
            early: BTreeMap::new(),
            staged: Vec::new(),
            next: 0,
            saved: Instant::now(),
            resumed: false,
        }
    }

    /// What an earlier process has left, if it was about the same comparison.
    pub fn load(store: &Store, about: &str) -> Result<Option<Progress>> {
        let Some(saved) = store.verify_progress()?.filter(|s| s.about == about) else {
            return Ok(None);
        };
        let Ok(at) = serde_json::from_str::<At>(&saved.at) else {
            return Ok(None);
        };
        let mut progress = Progress::new(at.started_ms);
        if let (Some(a), Some(b)) = (
            SlotSet::parse(&at.different),
            SlotSet::parse(&at.unprovable),
        ) {
            (progress.different, progress.unprovable) = (a, b);
        }
        progress.at = at;
        progress.resumed = true;
        let mut words = (saved.sums.chunks_exact(8))
            .map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default()));
        let mut sum = || {
            Some(SlotSum {
                sum: words.next()?,
                count: words.next()?,
            })
        };
        for place in &mut progress.sums {
            if let (Some(a), Some(b)) = (sum(), sum()) {
                *place = (a, b);
            }
        }
        let mut rest = saved.candidates.as_slice();
        while let Some((len, after)) = rest.split_first_chunk::<4>() {
            let Some((name, after)) = after.split_at_checked(u32::from_le_bytes(*len) as usize)
            else {
                break;
            };
            progress.candidates.insert(split_db_key(name));
            rest = after;
        }
        Ok(Some(progress))
    }

    pub fn save(&mut self, store: &mut Store, about: &str) -> Result<()> {
        self.saved = Instant::now();
        self.at.different = self.different.to_string();
        self.at.unprovable = self.unprovable.to_string();
        let mut sums = Vec::with_capacity(SLOTS * 32);
        for (a, b) in &self.sums {
            for word in [a.sum, a.count, b.sum, b.count] {
                sums.extend_from_slice(&word.to_le_bytes());
            }
        }
        let mut candidates = Vec::new();
        for (db, key) in &self.candidates {
            let name = db_key(*db, key);
            let len = u32::try_from(name.len()).unwrap_or(u32::MAX);
            candidates.extend_from_slice(&len.to_le_bytes());
            candidates.extend_from_slice(&name);
        }
        store.save_verify_progress(&VerifyProgress {
            about: about.to_owned(),
            at: serde_json::to_string(&self.at).unwrap_or_default(),
            sums,
            candidates,
        })
    }

    pub fn wants_saving(&self) -> bool {
        self.saved.elapsed() >= SAVE_EVERY
    }

    /// Begins another listing.
    pub fn enter(&mut self, pass: Pass) {
        self.at.pass = pass;
        self.at.position = None;
        self.begin();
    }

    /// The pages that come now are counted from 0.
    pub fn begin(&mut self) {
        self.early.clear();
        self.staged.clear();
        self.next = 0;
    }

    /// How many pages of the listing are done, and all before them.
    pub fn pages_done(&self) -> u64 {
        self.next
    }

    /// Takes the result of a page, and of those after it that were done before.
    pub fn done(&mut self, seq: u64, page: Done) {
        self.early.insert(seq, page);
        while let Some(page) = self.early.remove(&self.next) {
            self.next = self.next.saturating_add(1);
            let position = page.position.clone();
            self.staged.push(page);
            if position.is_none() {
                continue;
            }
            self.at.position = position;
            for page in std::mem::take(&mut self.staged) {
                self.at.compared = self.at.compared.saturating_add(page.compared);
                self.candidates.extend(page.candidates);
                for (slot, a, b) in page.sums {
                    self.add(slot, a, b);
                }
            }
        }
    }

    /// Counts a difference; false when as many of its reason are listed as are kept.
    pub fn differs(&mut self, slot: u16, reason: &str) -> bool {
        match reason {
            UNPROVABLE => self.unprovable.insert(Slot::numbered(slot)),
            // Listed, but no difference.
            NOT_REPLICATED => {}
            _ => self.different.insert(Slot::numbered(slot)),
        }
        let count = self.at.counts.entry(reason.to_owned()).or_default();
        *count = count.saturating_add(1);
        *count <= DIFFERENCES_KEPT
    }

    /// Adds to the sums of a slot.
    pub fn add(&mut self, slot: u16, source: SlotSum, target: SlotSum) {
        if let Some((ours, theirs)) = self.sums.get_mut(usize::from(slot)) {
            ours.merge(source);
            theirs.merge(target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_counts_when_all_before_it_do_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let mut progress = Progress::new(5);
        let page = |n: u16| Done {
            position: Some(Position::Slot(n)),
            sums: vec![(
                n,
                SlotSum { sum: 7, count: 1 },
                SlotSum { sum: 8, count: 2 },
            )],
            candidates: vec![(DbIndex(1), vec![n as u8])],
            compared: 1,
        };
        progress.done(1, page(2));
        assert_eq!((progress.at.compared, progress.candidates.len()), (0, 0));
        progress.done(0, page(1));
        // In the middle of a slot: not yet.
        progress.done(
            2,
            Done {
                position: None,
                ..page(3)
            },
        );
        assert_eq!((progress.at.compared, progress.candidates.len()), (2, 2));
        progress.save(&mut store, "this").unwrap();
        assert!(Progress::load(&store, "that").unwrap().is_none());
        let again = Progress::load(&store, "this").unwrap().unwrap();
        assert_eq!(again.at.position, Some(Position::Slot(2)));
        assert_eq!(again.sums, progress.sums);
        assert_eq!(again.candidates, progress.candidates);
    }
}
