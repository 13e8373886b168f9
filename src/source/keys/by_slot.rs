//! Lists a cluster's keys slot by slot: some slots in one list, and several lists on their way.

use super::depth::PAGE;
use super::list::{Listing, Out, Position};
use crate::error::{Error, ErrorKind, Result};
use crate::net::scan::{self, Holder};
use crate::net::{Conn, Tries};
use crate::types::{DbIndex, Slot};
use futures::StreamExt;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// A slot with more keys than this is not listed in one answer, nor one whose names take more than this.
const SLOT_LIMIT: i64 = 500_000;
const SLOT_ROOM: usize = 24 << 20;

/// The keys of some slots; `None` for a slot that is too large for one answer.
type Listed = Vec<Option<Vec<Vec<u8>>>>;

/// Connections that list nothing now, by their masters.
#[derive(Default)]
struct Idle(Mutex<HashMap<String, Vec<Conn>>>);

impl Idle {
    fn take(&self, address: &str) -> Option<Conn> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.get_mut(address)?.pop()
    }

    fn put(&self, address: &str, conn: Conn) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.entry(address.to_owned()).or_default().push(conn);
    }
}

impl Listing {
    pub(super) async fn by_slot(&self, out: &mut Out) -> Result<()> {
        let first = match self.from {
            Some(Position::Slot(n)) => usize::from(n),
            _ => 0,
        };
        let wanted: Vec<Slot> = (Slot::all().skip(first))
            .filter(|s| self.wants(*s))
            .collect();
        let idle = Idle::default();
        let groups = self.groups(&idle, &wanted).await?;
        let lists = futures::stream::iter(groups)
            .map(|slots| async {
                // All that are on their way share the room.
                let room = SLOT_ROOM / self.depth.lists.max(1);
                let listed = self.listed(&idle, &slots, room).await;
                (slots, listed)
            })
            .buffered(self.depth.lists.max(1));
        let mut lists = std::pin::pin!(lists);
        while let Some((slots, listed)) = lists.next().await {
            let told = match listed? {
                Some(listed) => self.hand_out(&slots, listed, out).await?,
                None => self.in_parts(&idle, slots, out).await?,
            };
            if !told {
                break;
            }
        }
        Ok(())
    }

    /// Parts slots, in their order, into lists of about so many keys as are asked for at a time.
    async fn groups(&self, idle: &Idle, wanted: &[Slot]) -> Result<Vec<Vec<Slot>>> {
        let mut tries = Tries::new(self.patience);
        let counts = loop {
            match self.counts(idle, wanted).await {
                Ok(counts) => break counts,
                Err(e) => self.again(e, &mut tries).await?,
            }
        };
        let (mut groups, mut keys): (Vec<Vec<Slot>>, u64) = (Vec::new(), 0);
        for slot in wanted {
            let count = counts.get(slot).copied().unwrap_or(0);
            keys = keys.saturating_add(count);
            match groups.last_mut() {
                Some(group) if group.len() < self.depth.slots && keys <= self.depth.keys.into() => {
                    group.push(*slot);
                }
                _ => {
                    groups.push(vec![*slot]);
                    keys = count;
                }
            }
        }
        Ok(groups)
    }

    /// About how many keys each slot has.
    async fn counts(&self, idle: &Idle, wanted: &[Slot]) -> Result<HashMap<Slot, u64>> {
        let layout = self.side.layout();
        let counts = layout.masters.iter().map(|master| async {
            let slots: Vec<Slot> = (wanted.iter().copied())
                .filter(|s| master.slots.has(*s))
                .collect();
            if slots.is_empty() {
                return Ok(Vec::new());
            }
            let mut conn = self.conn(idle, &master.address).await?;
            let counts = scan::slots_sizes(&mut conn, &slots).await?;
            idle.put(&master.address, conn);
            Ok::<_, Error>(slots.into_iter().zip(counts).collect())
        });
        let counts = futures::future::try_join_all(counts).await?;
        Ok(counts.into_iter().flatten().collect())
    }

    async fn conn(&self, idle: &Idle, address: &str) -> Result<Conn> {
        match idle.take(address) {
            Some(conn) => Ok(conn),
            None => self.side.connect(address).await,
        }
    }

    /// The keys of slots; `None` when they take more than so many bytes all together.
    async fn listed(&self, idle: &Idle, slots: &[Slot], room: usize) -> Result<Option<Listed>> {
        let mut tries = Tries::new(self.patience);
        loop {
            match self.slots(idle, slots, room).await {
                Ok(listed) => return Ok(Some(listed)),
                Err(e) if e.kind() == ErrorKind::Oversized => return Ok(None),
                Err(e) => self.again(e, &mut tries).await?,
            }
        }
    }

    /// Lists slots that were too much for one list by fewer; false when nobody listens any more.
    async fn in_parts(&self, idle: &Idle, slots: Vec<Slot>, out: &mut Out) -> Result<bool> {
        let mut parts = VecDeque::from([slots]);
        while let Some(slots) = parts.pop_front() {
            let listed = match self.listed(idle, &slots, SLOT_ROOM).await? {
                Some(listed) => listed,
                None if slots.len() == 1 => vec![None],
                None => {
                    let (first, second) = slots.split_at(slots.len() / 2);
                    parts.push_front(second.to_vec());
                    parts.push_front(first.to_vec());
                    continue;
                }
            };
            if !self.hand_out(&slots, listed, out).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sends the keys of slots, of which small ones share a page and a large one has several; false when nobody listens
    /// any more.
    async fn hand_out(&self, slots: &[Slot], listed: Listed, out: &mut Out) -> Result<bool> {
        let db = DbIndex::ZERO;
        let mut page = Vec::new();
        for (slot, keys) in slots.iter().zip(listed) {
            let mut keys = match keys {
                Some(keys) => keys.into_iter(),
                None if self.search(*slot, out).await? => Vec::new().into_iter(),
                None => return Ok(false),
            };
            loop {
                page.extend(keys.by_ref().take(PAGE.saturating_sub(page.len())));
                if page.len() < PAGE {
                    break;
                }
                if !out.send(db, std::mem::take(&mut page), None, None).await {
                    return Ok(false);
                }
            }
        }
        let next = slots.last().map(|s| s.number().saturating_add(1));
        Ok(out.send(db, page, None, next.map(Position::Slot)).await)
    }

    /// The keys of each slot, asked of its master.
    ///
    /// Errors: `Oversized` when the keys of a master take more than so many bytes.
    async fn slots(&self, idle: &Idle, slots: &[Slot], room: usize) -> Result<Listed> {
        let layout = self.side.layout();
        let mut by_master: BTreeMap<&str, Vec<(usize, Slot)>> = BTreeMap::new();
        for (i, slot) in slots.iter().enumerate() {
            if let Some(master) = layout.master_of(*slot) {
                let of_master = by_master.entry(&master.address).or_default();
                of_master.push((i, *slot));
            }
        }
        // Neighbours are one master's mostly.
        let room = room / by_master.len().max(1);
        let lists = by_master.into_iter().map(|(address, slots)| async move {
            let asked: Vec<Slot> = slots.iter().map(|(_, s)| *s).collect();
            let mut conn = self.conn(idle, address).await?;
            let found =
                scan::slots_keys(&mut conn, &asked, SLOT_LIMIT, room, Holder::Master).await?;
            idle.put(address, conn);
            let mut listed = Vec::with_capacity(slots.len());
            for ((i, slot), found) in slots.into_iter().zip(found) {
                let keys = match (found.keys, found.rest_at) {
                    (Some(keys), Some(at)) => self.with_rest(keys, slot, &at).await?,
                    (keys, _) => keys,
                };
                listed.push((i, keys));
            }
            Ok::<_, Error>(listed)
        });
        let mut all = vec![Some(Vec::new()); slots.len()];
        for (i, keys) in futures::future::try_join_all(lists)
            .await?
            .into_iter()
            .flatten()
        {
            if let Some(place) = all.get_mut(i) {
                *place = keys;
            }
        }
        Ok(all)
    }

    /// The keys of a slot that is leaving, with those that are at the other node already; asked after its master, so that
    /// none is on neither list.
    async fn with_rest(
        &self,
        keys: Vec<Vec<u8>>,
        slot: Slot,
        at: &str,
    ) -> Result<Option<Vec<Vec<u8>>>> {
        let mut conn = self.side.connect(at).await?;
        let (slots, holder) = ([slot], Holder::Importing);
        let listed = scan::slots_keys(&mut conn, &slots, SLOT_LIMIT, SLOT_ROOM, holder).await?;
        let rest = listed.into_iter().next().and_then(|found| found.keys);
        Ok(rest.map(|rest| {
            let all: BTreeSet<Vec<u8>> = keys.into_iter().chain(rest).collect();
            all.into_iter().collect()
        }))
    }
}
