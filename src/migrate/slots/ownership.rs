//! Which source shard a slot belongs to, while slots move inside the source cluster.
//!
//! A slot that is seen with a new owner is on its way: every shard stops to apply commands on it and says so. When all
//! have, the new owner's shard copies the whole slot (fenced reads of all its keys) and applies its own stream from there.
//! Invariant: at no time do two shards write to one slot; what a shard leaves out is covered by the copy that follows.

use crate::net::server::Master;
use crate::types::{SLOTS, ShardId, Slot, SlotSet};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub(crate) const NOBODY: u16 = u16::MAX;
/// A master of another worker.
pub(crate) const ELSEWHERE: u16 = u16::MAX - 1;

/// The owners of all slots, shared by all shards.
pub(crate) struct Ownership {
    state: Mutex<State>,
    /// A worker's slots; all others are not its business. `None` where everything is.
    claimed: Option<SlotSet>,
}

struct State {
    epoch: u64,
    owner: Vec<u16>,
    moving: BTreeMap<u16, Move>,
    /// Since when something is on its way.
    unsettled: Option<Instant>,
    /// The epoch up to which each shard has stopped writing to moving slots.
    acks: BTreeMap<u16, u64>,
}

struct Move {
    since: u64,
    /// The owner that the last picture showed.
    seen: u16,
    /// Shown twice: the move is over.
    settled: bool,
}

/// One shard's copy: the slots that it may write to.
#[derive(Default)]
pub(crate) struct Mine {
    epoch: u64,
    /// `None` before the first meeting.
    slots: Option<SlotSet>,
}

impl Mine {
    pub fn has(&self, slot: Slot) -> bool {
        self.slots.as_ref().is_none_or(|s| s.has(slot))
    }

    /// "0-5460,6000".
    pub fn text(&self) -> String {
        self.slots
            .as_ref()
            .map(SlotSet::to_string)
            .unwrap_or_default()
    }
}

/// The owner of each slot, [`NOBODY`] where none is named.
pub(crate) fn owners<'s>(sets: impl IntoIterator<Item = (ShardId, &'s SlotSet)>) -> Vec<u16> {
    let mut owners = vec![NOBODY; SLOTS];
    for (shard, slots) in sets {
        for slot in slots.iter() {
            if let Some(owner) = owners.get_mut(slot.index()) {
                *owner = shard.0;
            }
        }
    }
    owners
}

impl Ownership {
    /// `saved` is what an earlier run had settled; without it the present owners are taken as they are.
    pub fn new(
        present: &[(ShardId, &Master)],
        saved: &[(ShardId, String)],
        claimed: Option<SlotSet>,
    ) -> Ownership {
        let owner = owners(
            present
                .iter()
                .map(|(shard, master)| (*shard, &master.slots)),
        );
        let mut moving = BTreeMap::new();
        if !saved.is_empty() {
            let saved: Vec<(ShardId, SlotSet)> = (saved.iter())
                .filter_map(|(shard, ranges)| Some((*shard, SlotSet::parse(ranges)?)))
                .collect();
            let before = owners(saved.iter().map(|(shard, slots)| (*shard, slots)));
            for (slot, (now, before)) in owner.iter().zip(&before).enumerate() {
                if now != before {
                    let step = Move {
                        since: 1,
                        seen: *now,
                        settled: *now != NOBODY,
                    };
                    moving.insert(slot as u16, step);
                }
            }
        }
        let state = Mutex::new(State {
            epoch: 1,
            owner,
            unsettled: (!moving.is_empty()).then(Instant::now),
            moving,
            acks: present.iter().map(|(shard, _)| (shard.0, 0)).collect(),
        });
        Ownership { state, claimed }
    }

    /// A worker's slots; `None` where all are ours.
    pub fn claimed(&self) -> Option<&SlotSet> {
        self.claimed.as_ref()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `mine` is out of date.
    pub fn changed(&self, mine: &Mine) -> bool {
        self.state().epoch != mine.epoch
    }

    /// Brings `mine` up to date; the caller has settled everything that it had on its way.
    pub fn meet(&self, me: ShardId, mine: &mut Mine) {
        let mut state = self.state();
        mine.epoch = state.epoch;
        let settled = Slot::all().filter(|slot| {
            state.owner.get(slot.index()) == Some(&me.0)
                && !state.moving.contains_key(&slot.number())
        });
        mine.slots = Some(settled.collect());
        let epoch = state.epoch;
        state.acks.insert(me.0, epoch);
    }

    /// Slots that have come to `me` and that nobody writes to any more.
    pub fn arrived(&self, me: ShardId) -> Vec<u16> {
        let state = self.state();
        let met = state.acks.values().copied().min().unwrap_or(0);
        (state.moving.iter())
            .filter(|(_, m)| m.settled && m.seen == me.0 && m.since <= met)
            .map(|(slot, _)| *slot)
            .collect()
    }

    /// The slots have been copied: `me` writes to them from now on.
    pub fn adopt(&self, me: ShardId, slots: &[u16]) {
        let mut state = self.state();
        state.epoch += 1;
        for slot in slots {
            // Gone on in the meantime: the next owner copies it again.
            if state.moving.get(slot).is_some_and(|m| m.seen == me.0) {
                state.moving.remove(slot);
                if let Some(owner) = state.owner.get_mut(usize::from(*slot)) {
                    *owner = me.0;
                }
            }
        }
        if state.moving.is_empty() {
            state.unsettled = None;
        }
    }

    /// Whether a slot is no longer (or not for sure) the shard's.
    pub fn has_left(&self, me: ShardId, slot: Slot) -> bool {
        let state = self.state();
        state.owner.get(slot.index()) != Some(&me.0) || state.moving.contains_key(&slot.number())
    }

    /// Whether a slot is on its way to `me`, as far as the last picture shows.
    pub fn is_coming(&self, me: ShardId, slot: Slot) -> bool {
        let state = self.state();
        (state.moving.get(&slot.number())).is_some_and(|m| m.seen == me.0)
    }

    /// A command on a slot came from a shard that does not own it: the slot is about to move there.
    pub fn suspect(&self, slot: Slot) {
        if self.claimed.as_ref().is_some_and(|c| !c.has(slot)) {
            // On its way from another worker: the watch sees whether it stays.
            return;
        }
        let mut state = self.state();
        if !state.moving.contains_key(&slot.number()) {
            state.epoch += 1;
            let step = Move {
                since: state.epoch,
                seen: NOBODY,
                settled: false,
            };
            state.moving.insert(slot.number(), step);
            state.unsettled.get_or_insert_with(Instant::now);
        }
    }

    /// For how long something has been on its way, in ms; `None` when nothing is.
    pub fn unsettled_ms(&self) -> Option<u64> {
        let since = self.state().unsettled?;
        Some(u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    pub fn join(&self, shard: ShardId) {
        let mut state = self.state();
        let epoch = state.epoch;
        state.acks.entry(shard.0).or_insert(epoch);
    }

    pub fn leave(&self, shard: ShardId) {
        self.state().acks.remove(&shard.0);
    }

    /// Takes a new picture of the cluster; `owners` is [`NOBODY`] where it shows none that we follow.
    pub fn observe(&self, owners: &[u16]) -> usize {
        let mut state = self.state();
        let next = state.epoch + 1;
        let mut begun = 0;
        let State { owner, moving, .. } = &mut *state;
        for (slot, now) in owners.iter().enumerate() {
            if *now == NOBODY {
                continue;
            }
            match moving.get_mut(&(slot as u16)) {
                Some(m) => {
                    m.settled = m.seen == *now;
                    m.seen = *now;
                }
                None if owner.get(slot) != Some(now) => {
                    let step = Move {
                        since: next,
                        seen: *now,
                        settled: false,
                    };
                    moving.insert(slot as u16, step);
                    begun += 1;
                }
                None => {}
            }
        }
        if begun > 0 {
            state.epoch = next;
            state.unsettled.get_or_insert_with(Instant::now);
        }
        begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master(address: &str, slots: std::ops::RangeInclusive<u16>) -> Master {
        Master {
            address: address.into(),
            slots: slots.map(Slot::numbered).collect(),
            replicas: Vec::new(),
        }
    }

    #[test]
    fn a_slot_changes_hands_only_when_everybody_has_let_go() {
        let (a, b) = (master("a", 0..=8191), master("b", 8192..=16383));
        let (one, two) = (ShardId(0), ShardId(1));
        let ownership = Ownership::new(&[(one, &a), (two, &b)], &[], None);
        let (mut of_one, mut of_two) = (Mine::default(), Mine::default());
        ownership.meet(one, &mut of_one);
        ownership.meet(two, &mut of_two);
        assert_eq!(
            (of_one.text(), of_two.text()),
            ("0-8191".into(), "8192-16383".into())
        );
        let mut picture = vec![0u16; 8192];
        picture.extend(vec![1u16; 8192]);
        picture[5] = 1;
        assert_eq!(ownership.observe(&picture), 1);
        assert!(ownership.changed(&of_one) && ownership.changed(&of_two));
        ownership.meet(two, &mut of_two);
        ownership.observe(&picture);
        // The old owner may still be writing.
        assert!(ownership.arrived(two).is_empty());
        ownership.meet(one, &mut of_one);
        assert_eq!(of_one.text(), "0-4,6-8191");
        assert_eq!(ownership.arrived(two), [5]);
        assert!(ownership.arrived(one).is_empty());
        ownership.adopt(two, &[5]);
        ownership.meet(two, &mut of_two);
        assert_eq!(of_two.text(), "5,8192-16383");
        assert!(ownership.unsettled_ms().is_none());
    }

    #[test]
    fn another_workers_slots_are_nobodys_business() {
        let (a, one) = (master("a", 0..=99), ShardId(0));
        let claimed = Some(a.slots.clone());
        let ownership = Ownership::new(&[(one, &a)], &[], claimed);
        let mut mine = Mine::default();
        ownership.meet(one, &mut mine);
        assert_eq!(mine.text(), "0-99");
        ownership.suspect(Slot::numbered(100));
        assert!(!ownership.changed(&mine) && ownership.unsettled_ms().is_none());
        // One has gone: it is let go of, and copied when it is back for good.
        let mut picture = vec![NOBODY; SLOTS];
        picture[..100].fill(0);
        picture[7] = ELSEWHERE;
        assert_eq!(ownership.observe(&picture), 1);
        ownership.meet(one, &mut mine);
        assert_eq!(mine.text(), "0-6,8-99");
        picture[7] = 0;
        ownership.observe(&picture);
        assert!(ownership.arrived(one).is_empty());
        ownership.observe(&picture);
        assert_eq!(ownership.arrived(one), [7]);
    }

    #[test]
    fn what_an_earlier_run_had_otherwise_is_copied_first() {
        let (a, b) = (master("a", 0..=99), master("b", 100..=16383));
        let saved = [
            (ShardId(0), "0-149".to_string()),
            (ShardId(1), "160-16383".to_string()),
        ];
        let ownership = Ownership::new(&[(ShardId(0), &a), (ShardId(1), &b)], &saved, None);
        let mut mine = Mine::default();
        ownership.meet(ShardId(0), &mut mine);
        assert_eq!(mine.text(), "0-99");
        ownership.meet(ShardId(1), &mut mine);
        assert_eq!(
            ownership.arrived(ShardId(1)),
            (100..160).collect::<Vec<u16>>()
        );
    }
}
