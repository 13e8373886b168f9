//! Lists the keys of one side page by page, in an order in which a stopped comparison can go on.
//!
//! By slot where the server can list a slot, else by SCAN, which may repeat a key.

use super::depth::{Depth, PAGE};
use super::fact::KeyFact;
use super::side::Side;
use crate::error::{Error, Result};
use crate::keyset::{KeySet, Put};
use crate::net::scan::{self, Scan};
use crate::net::server::{self, Layout};
use crate::net::{Conn, Tries};
use crate::resp::{Reply, info};
use crate::task::Shutdown;
use crate::types::{DbIndex, SLOTS, Slot, SlotSet};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Where a listing goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Position {
    /// In the order of slots: the next one.
    Slot(u16),
    /// SCAN: the master, its database, and the cursor of the next page.
    Scan {
        node: String,
        db: u32,
        cursor: String,
    },
    End,
}

/// Where the keys of a slot are.
#[derive(PartialEq, Eq)]
struct Stands {
    master: String,
    /// The node that it is leaving for.
    rest_at: Option<String>,
    /// The master's, which is another one once the slot has left it and come back.
    epoch: Option<u64>,
}

/// Some keys of one database.
pub struct Page {
    pub seq: u64,
    pub db: DbIndex,
    pub keys: Vec<Vec<u8>>,
    /// What they hold, where the listing tells (a snapshot file).
    pub facts: Option<Vec<KeyFact>>,
    /// Where the listing goes on once this page is done; `None` in the middle of slots.
    pub next: Option<Position>,
}

/// What is listed.
pub struct Listing {
    pub side: Arc<Side>,
    pub from: Option<Position>,
    /// Only these slots.
    pub slots: Option<SlotSet>,
    /// Only these databases; empty is all.
    pub dbs: Vec<DbIndex>,
    pub stop: Shutdown,
    pub patience: Duration,
    /// Leaves repetitions of SCAN out, with so many bytes to know them by; beyond these a key may come twice.
    pub distinct: Option<u64>,
    /// How much is asked for at a time.
    pub depth: Depth,
}

/// Pages on their way to the workers.
pub struct Out {
    pages: mpsc::Sender<Page>,
    seq: u64,
}

impl Out {
    pub fn new(pages: mpsc::Sender<Page>) -> Out {
        Out { pages, seq: 0 }
    }

    /// How many pages were sent.
    pub fn sent(&self) -> u64 {
        self.seq
    }

    /// Nobody listens any more.
    pub fn is_closed(&self) -> bool {
        self.pages.is_closed()
    }

    /// Sends keys by pages, of which the last one has the position; false when nobody listens any more.
    pub(super) async fn send_all(
        &mut self,
        db: DbIndex,
        mut keys: Vec<Vec<u8>>,
        next: Option<Position>,
    ) -> bool {
        // SCAN brings a few more than it was asked for.
        while keys.len() > PAGE + PAGE / 4 {
            let rest = keys.split_off(PAGE);
            if !self
                .send(db, std::mem::replace(&mut keys, rest), None, None)
                .await
            {
                return false;
            }
        }
        self.send(db, keys, None, next).await
    }

    /// False when nobody listens any more.
    pub async fn send(
        &mut self,
        db: DbIndex,
        keys: Vec<Vec<u8>>,
        facts: Option<Vec<KeyFact>>,
        next: Option<Position>,
    ) -> bool {
        let page = Page {
            seq: self.seq,
            db,
            keys,
            facts,
            next,
        };
        self.seq = self.seq.saturating_add(1);
        self.pages.send(page).await.is_ok()
    }
}

impl Listing {
    /// Sends all pages; ends early when nobody listens or a stop is asked for.
    pub async fn run(self, pages: mpsc::Sender<Page>) -> Result<()> {
        let mut out = Out::new(pages);
        let by_slot = match &self.from {
            Some(Position::End) => return Ok(()),
            Some(Position::Slot(_)) => true,
            Some(Position::Scan { .. }) => false,
            None => {
                let mut tries = Tries::new(self.patience);
                loop {
                    match self.goes_by_slot().await {
                        Ok(by_slot) => break by_slot,
                        Err(e) => self.again(e, &mut tries).await?,
                    }
                }
            }
        };
        match by_slot {
            true => self.by_slot(&mut out).await,
            false => self.by_scan(&mut out).await,
        }
    }

    async fn goes_by_slot(&self) -> Result<bool> {
        // Under another name a key lies in another slot.
        Ok(self.side.cluster
            && self.side.renames.is_empty()
            && self.lists_slots().await?
            && !self.has_more_databases().await?)
    }

    async fn lists_slots(&self) -> Result<bool> {
        let layout = self.side.layout();
        let Some(master) = layout.masters.first() else {
            return Ok(false);
        };
        let mut conn = self.side.connect(&master.address).await?;
        let count = conn.ask(&[b"CLUSTER", b"COUNTKEYSINSLOT", b"0"]).await?;
        let list = conn
            .ask(&[b"CLUSTER", b"GETKEYSINSLOT", b"0", b"1"])
            .await?;
        Ok(matches!((count, list), (Reply::Int(_), Reply::Array(_))))
    }

    /// A cluster's own list of a slot is that of one database.
    async fn has_more_databases(&self) -> Result<bool> {
        let layout = self.side.layout();
        let more = layout.masters.iter().map(|master| async {
            let mut conn = self.side.control(&master.address).await?;
            let found = server::databases(&mut conn).await?;
            Ok::<_, Error>(found.iter().any(|(db, _)| *db != DbIndex::ZERO))
        });
        let more = futures::future::try_join_all(more).await?;
        Ok(more.contains(&true))
    }

    pub(super) fn wants(&self, slot: Slot) -> bool {
        self.slots.as_ref().is_none_or(|s| s.has(slot))
    }

    /// Lists a slot that is too large for one answer, anew if it has moved meanwhile; false when nobody listens any more.
    pub(super) async fn search(&self, slot: Slot, out: &mut Out) -> Result<bool> {
        let mut seen = self.distinct.map(KeySet::within);
        let mut tries = Tries::new(self.patience);
        let mut stood = self.stands(slot).await?;
        let only: SlotSet = [slot].into_iter().collect();
        loop {
            let mut found = Ok(true);
            for node in [Some(&stood.master), stood.rest_at.as_ref()]
                .into_iter()
                .flatten()
            {
                if let Ok(true) = found {
                    let place = (node.as_str(), DbIndex::ZERO);
                    found = self.found(&only, place, &mut seen, out, &mut tries).await;
                }
            }
            match found {
                Ok(false) => return Ok(false),
                Ok(true) => {}
                Err(e) => {
                    self.again(e, &mut tries).await?;
                    stood = self.stands(slot).await?;
                    continue;
                }
            }
            let stands = self.stands(slot).await?;
            // What it is leaving for was not looked at, if that has begun meanwhile.
            if stands == stood {
                return Ok(true);
            }
            stood = stands;
        }
    }

    /// The keys of some slots that a node holds in a database, by SCAN.
    async fn found(
        &self,
        slots: &SlotSet,
        (address, db): (&str, DbIndex),
        seen: &mut Option<KeySet>,
        out: &mut Out,
        tries: &mut Tries,
    ) -> Result<bool> {
        let (endpoint, mut scan) = (&self.side.endpoint, Scan::new());
        let mut conn = self.open(address, db).await?;
        while let Some(mut keys) = scan.next(endpoint, &mut conn, self.depth.keys).await? {
            *tries = Tries::new(self.patience);
            keys.retain(|key| slots.has(Slot::of(key)));
            let keys = self.wanted(keys, db, seen);
            if !keys.is_empty() && !out.send_all(db, keys, None).await {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What is listed of some keys: by the names of the source, and once.
    fn wanted(
        &self,
        mut keys: Vec<Vec<u8>>,
        db: DbIndex,
        seen: &mut Option<KeySet>,
    ) -> Vec<Vec<u8>> {
        if !self.side.renames.is_empty() {
            keys = (keys.iter())
                .filter_map(|key| Some(self.side.renames.to_source(key)?.into_owned()))
                .collect();
        }
        keys.retain(|key| {
            self.wants(Slot::of(key))
                && (seen.as_mut()).is_none_or(|s| s.put(db, key) != Put::Known)
        });
        keys
    }

    /// Where a slot is now.
    async fn stands(&self, slot: Slot) -> Result<Stands> {
        let mut tries = Tries::new(self.patience);
        loop {
            let stands = async {
                self.side.refresh().await?;
                let layout = self.side.layout();
                let master = layout.master_of(slot).map(|m| m.address.clone());
                let master = master.unwrap_or_default();
                let mut conn = self.side.connect(&master).await?;
                Ok(Stands {
                    rest_at: (scan::leaving(&mut conn, &[slot]).await?.pop())
                        .map(|(_, address)| address),
                    epoch: epoch(&mut conn, "cluster_my_epoch").await?,
                    master,
                })
            };
            match stands.await {
                Ok(stands) => return Ok(stands),
                Err(e) => self.again(e, &mut tries).await?,
            }
        }
    }

    async fn by_scan(&self, out: &mut Out) -> Result<()> {
        let (mut from, mut seen) = (self.from.clone(), self.distinct.map(KeySet::within));
        let mut tries = Tries::new(self.patience);
        let units = loop {
            match self.units().await {
                Ok(units) => break units,
                Err(e) => self.again(e, &mut tries).await?,
            }
        };
        let began = self.side.layout();
        for (i, (address, db)) in units.iter().enumerate() {
            let mut scan = match &from {
                Some(Position::Scan { node, db: at, .. }) if (node, at) != (address, &db.0) => {
                    continue;
                }
                Some(Position::Scan { cursor, .. }) => Scan::from(cursor.clone().into_bytes()),
                _ => Scan::new(),
            }
            .ahead();
            from = None;
            let after = match units.get(i + 1) {
                Some((node, db)) => Some(at(node, *db, b"0")),
                // What has moved meanwhile comes behind it.
                None if self.side.cluster => None,
                None => Some(Position::End),
            };
            let mut tries = Tries::new(self.patience);
            let mut conn = loop {
                match self.open(address, *db).await {
                    Ok(conn) => break conn,
                    Err(e) => self.again(e, &mut tries).await?,
                }
            };
            loop {
                let keys = match scan
                    .next(&self.side.endpoint, &mut conn, self.depth.keys)
                    .await
                {
                    Ok(Some(keys)) => keys,
                    Ok(None) => break,
                    Err(e) => {
                        self.again(e, &mut tries).await?;
                        if let Ok(next) = self.open(address, *db).await {
                            conn = next;
                        }
                        continue;
                    }
                };
                tries = Tries::new(self.patience);
                let keys = self.wanted(keys, *db, &mut seen);
                let next = match scan.cursor() {
                    Some(cursor) => Some(at(address, *db, cursor)),
                    None => after.clone(),
                };
                if !out.send_all(*db, keys, next).await {
                    return Ok(());
                }
            }
        }
        if self.side.cluster && self.moved(began, &mut seen, out).await? {
            let (db, end) = (DbIndex::ZERO, Some(Position::End));
            out.send(db, Vec::new(), None, end).await;
        }
        Ok(())
    }

    /// Lists the slots that have moved since `began`, or are on their way, at the node that they come to, which may have
    /// been scanned before. False when nobody listens any more.
    async fn moved(
        &self,
        mut began: Arc<Layout>,
        seen: &mut Option<KeySet>,
        out: &mut Out,
    ) -> Result<bool> {
        let mut tries = Tries::new(self.patience);
        let mut looked_at = BTreeMap::new();
        loop {
            let come = async {
                let come = self.come(&began).await?;
                let units = self.units().await?;
                Ok((come, units))
            };
            let (come, units) = match come.await {
                Ok(found) => found,
                Err(e) => {
                    self.again(e, &mut tries).await?;
                    continue;
                }
            };
            if come == looked_at {
                return Ok(true);
            }
            let now = self.side.layout();
            let mut failed = None;
            for (address, slots) in &come {
                let dbs = units.iter().filter(|(node, _)| node == address);
                let mut dbs: BTreeSet<DbIndex> = dbs.map(|(_, db)| *db).collect();
                // A node that has no slot yet is no master.
                dbs.insert(DbIndex::ZERO);
                for db in dbs {
                    let place = (address.as_str(), db);
                    match self.found(slots, place, seen, out, &mut tries).await {
                        Ok(true) => {}
                        Ok(false) => return Ok(false),
                        Err(e) => failed = Some(e),
                    }
                }
            }
            match failed {
                Some(e) => self.again(e, &mut tries).await?,
                None => (began, looked_at) = (now, come),
            }
        }
    }

    /// The slots that have another master than in `began`, by that one, and those on their way, by where they go.
    async fn come(&self, began: &Layout) -> Result<BTreeMap<String, SlotSet>> {
        self.side.refresh().await?;
        let mut come: BTreeMap<String, SlotSet> = BTreeMap::new();
        for master in &self.side.layout().masters {
            let slots: Vec<Slot> = master.slots.iter().collect();
            let mut conn = self.side.connect(&master.address).await?;
            for (slot, to) in scan::leaving(&mut conn, &slots).await? {
                come.entry(to).or_insert_with(SlotSet::none).insert(slot);
            }
            let was = |slot: Slot| began.master_of(slot).map(|m| m.address.as_str());
            for slot in slots {
                if was(slot) != Some(&master.address) {
                    let to = come.entry(master.address.clone());
                    to.or_insert_with(SlotSet::none).insert(slot);
                }
            }
        }
        Ok(come)
    }

    /// Masters and databases in the order in which they are scanned.
    async fn units(&self) -> Result<Vec<(String, DbIndex)>> {
        let mut units = Vec::new();
        let layout = self.side.layout();
        let found = layout.masters.iter().map(|master| async {
            let mut conn = self.side.control(&master.address).await?;
            server::databases(&mut conn).await
        });
        let found = futures::future::try_join_all(found).await?;
        for (master, found) in layout.masters.iter().zip(found) {
            let mut found: BTreeSet<DbIndex> = found.into_iter().map(|(db, _)| db).collect();
            if self.side.cluster {
                // Keys may come to a master that has none now.
                found.insert(DbIndex::ZERO);
            }
            let wanted = |db: &DbIndex| self.dbs.is_empty() || self.dbs.contains(db);
            let dbs = found.into_iter().filter(wanted);
            units.extend(dbs.map(|db| (master.address.clone(), db)));
        }
        Ok(units)
    }

    async fn open(&self, address: &str, db: DbIndex) -> Result<Conn> {
        let mut conn = self.side.connect(address).await?;
        conn.select(db).await?;
        Ok(conn)
    }

    pub(super) async fn again(&self, e: Error, tries: &mut Tries) -> Result<()> {
        tries.again(e, "listing keys", &self.stop).await?;
        let _ = self.side.refresh().await;
        Ok(())
    }
}

fn at(node: &str, db: DbIndex, cursor: &[u8]) -> Position {
    Position::Scan {
        node: node.to_owned(),
        db: db.0,
        cursor: String::from_utf8_lossy(cursor).into_owned(),
    }
}

async fn epoch(conn: &mut Conn, field: &str) -> Result<Option<u64>> {
    let reply = conn.ask(&[b"CLUSTER", b"INFO"]).await?;
    let text = reply.text().unwrap_or_default();
    Ok(info::field(&text, field).and_then(|n| n.parse().ok()))
}

/// About how many keys are listed, for a display.
pub async fn estimate(side: &Side, slots: Option<&SlotSet>) -> u64 {
    let Ok(sizes) = side.sizes().await else {
        return 0;
    };
    let all = (sizes.values()).fold(0u64, |sum, n| sum.saturating_add(*n));
    let share = slots.map_or(SLOTS, SlotSet::count) as u64;
    (all.saturating_mul(share).checked_div(SLOTS as u64)).unwrap_or(0)
}
