//! Short strings for a cluster, gathered by slot, so that those of one slot go in one MSET.
//!
//! A snapshot has its keys in no order of slots, so many have to wait before a few share one. Slots get their turn one
//! after the other: what a slot has gathered since its last turn goes, so that the target has something to do always.

use crate::resp;
use crate::target::batch::{Database, PAIRS};
use crate::types::{Mark, SLOTS, Slot};

/// Strings of at most this many bytes: for larger ones the command around them costs nothing to speak of.
pub const MOST: usize = 512;
/// Slots get their turns in steps of this (odd, so that each gets one): neighbours are on one node, which would have
/// all the work while others wait.
const STEP: u16 = 5_461 * 2 + 1;
/// So many are added before they go to their slots.
const AT_ONCE: usize = 64;
/// A buffer larger than this is not kept for the next turn.
const KEEP: usize = 2 << 10;

#[derive(Default)]
struct Group {
    /// Names and values, as the arguments of a command.
    bytes: Vec<u8>,
    count: usize,
}

/// The strings that wait.
#[derive(Default)]
pub struct Groups {
    slots: Vec<Group>,
    /// Added, but not in their slots yet; and where each one ends.
    unsorted: Vec<u8>,
    ends: Vec<(Slot, usize)>,
    /// Bytes of all of them.
    len: usize,
    /// Turns taken.
    turn: u16,
    /// The database of all, and where the source stood before the first of them.
    pub from: Option<(Database, Mark)>,
    /// Where it stood when this round of turns began: after it, nothing older waits.
    round: Option<Mark>,
}

impl Groups {
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when it is time to [`sort`](Groups::sort).
    pub fn add(&mut self, slot: Slot, key: &[u8], value: &[u8]) -> bool {
        let before = self.unsorted.len();
        resp::bulk(&mut self.unsorted, key);
        resp::bulk(&mut self.unsorted, value);
        self.len += self.unsorted.len() - before;
        self.ends.push((slot, self.unsorted.len()));
        self.ends.len() == AT_ONCE
    }

    /// Puts what was added to its slots; `full` gets the slots that have as many as one command takes.
    pub fn sort(&mut self, full: &mut Vec<Slot>) {
        if self.slots.is_empty() {
            self.slots.resize_with(SLOTS, Group::default);
        }
        // Each slot is far from the others in memory. To look at all of them first lets the processor fetch them side
        // by side; the sum is for nothing else.
        let mut seen = 0u64;
        for (slot, _) in &self.ends {
            if let Some(group) = self.slots.get(slot.index()) {
                seen = seen.saturating_add(group.bytes.last().copied().map_or(0, u64::from));
            }
        }
        std::hint::black_box(seen);
        let mut start = 0;
        for (slot, end) in self.ends.drain(..) {
            let pair = self.unsorted.get(start..end).unwrap_or_default();
            start = end;
            let Some(group) = self.slots.get_mut(slot.index()) else {
                continue;
            };
            // To grow twofold would take twice the memory, in so many buffers.
            if group.bytes.capacity() - group.bytes.len() < pair.len() {
                group.bytes.reserve_exact(pair.len().max(KEEP / 4));
            }
            group.bytes.extend_from_slice(pair);
            group.count += 1;
            if group.count == PAIRS {
                full.push(slot);
            }
        }
        self.unsorted.clear();
    }

    /// The slot whose turn it is; `mark` is where the source stands.
    pub fn turn(&mut self, mark: Mark) -> Slot {
        if self.turn == 0 {
            let begun = self.round.replace(mark);
            if let (Some((_, from)), Some(begun)) = (&mut self.from, begun) {
                *from = begun;
            }
        }
        let slot = Slot::numbered(self.turn.wrapping_mul(STEP));
        self.turn = Slot::numbered(self.turn.wrapping_add(1)).number();
        slot
    }

    /// Takes a slot's strings out as a command; false when there are none.
    pub fn put(&mut self, slot: Slot, out: &mut Vec<u8>) -> bool {
        let Some(group) = self.slots.get_mut(slot.index()) else {
            return false;
        };
        if group.count == 0 {
            return false;
        }
        let name: &[u8] = match group.count {
            1 => b"SET",
            _ => b"MSET",
        };
        resp::array(out, 1 + 2 * group.count);
        resp::bulk(out, name);
        out.extend_from_slice(&group.bytes);
        self.len -= group.bytes.len();
        group.count = 0;
        group.bytes.clear();
        if group.bytes.capacity() > KEEP {
            group.bytes = Vec::new();
        }
        true
    }

    /// All have been put.
    pub fn emptied(&mut self) {
        (self.from, self.round, self.turn) = (None, None, 0);
    }
}
