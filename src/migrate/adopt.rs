//! Slots that have come to this source shard: every key of them is copied before its stream is applied to them.

use crate::command::{self, Command};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::heal::Key;
use crate::migrate::pump::Pump;
use crate::net::scan::{self, Scan};
use crate::net::{self, Conn};
use crate::plan::Renames;
use crate::types::{DbIndex, Slot, SlotSet};
use std::collections::{BTreeMap, BTreeSet};

/// Keys copied at a time.
const CHUNK: usize = 512;

impl Pump {
    /// Whether this shard's commands on a key are to be applied.
    pub(super) fn owns(&self, name: &[u8]) -> bool {
        self.shared.ownership.is_none() || self.mine.has(Slot::of(&self.source_name(name)))
    }

    /// The same of a key by the name that it has at the source.
    pub(super) fn has_slot_of(&self, key: &[u8]) -> bool {
        self.shared.ownership.is_none() || self.mine.has(Slot::of(key))
    }

    /// Stops writing to slots on their way, and says so; true when the snapshot must be read again from its mark.
    pub(super) fn meet_ownership(&mut self) -> Result<bool> {
        let Some(ownership) = self.shared.ownership.clone() else {
            return Ok(false);
        };
        if !ownership.changed(&self.mine) {
            return Ok(false);
        }
        let again = self.settle_all()?;
        ownership.meet(self.shard.shard, &mut self.mine);
        self.shard.slots = self.mine.text();
        self.save(false)?;
        Ok(again)
    }

    /// Copies the slots that have come to us.
    pub(super) fn adopt_slots(&mut self) -> Result<()> {
        let Some(ownership) = self.shared.ownership.clone() else {
            return Ok(());
        };
        let slots = ownership.arrived(self.shard.shard);
        if slots.is_empty() {
            return Ok(());
        }
        self.shared.event(
            "info",
            "adopt",
            &format!(
                "{} copies {} slots that have come to it",
                self.shard.address,
                slots.len()
            ),
        );
        self.heal_queued()?;
        self.adopting = true;
        // What the target refuses of the copy is healed as part of it.
        let copied = (self.copy_slots(&slots)).and_then(|copied| Ok(copied && !self.settle_all()?));
        self.adopting = false;
        if !copied? {
            // The cluster was not ready: the next tick tries again.
            return Ok(());
        }
        ownership.adopt(self.shard.shard, &slots);
        self.meet_ownership().map(drop)
    }

    /// A TRIMSLOTS of the stream: the source has removed the keys of slots that it has handed to another master.
    ///
    /// Nothing is removed at the target: there the keys are the other master's, whose pump copies them. A slot that the
    /// last picture of the cluster still shows here is on its way, or was trimmed for a reason that we do not know:
    /// whoever turns out to own it copies it from the source, which removes what is gone.
    pub(super) fn trim_slots(&mut self, cmd: &Command<'_>) -> Result<()> {
        let slots = command::trimmed_slots(cmd).ok_or_else(|| {
            Error::new(
                ErrorKind::Protocol,
                format!("TRIMSLOTS with {} arguments names no slots", cmd.len()),
            )
        })?;
        let Some(ownership) = &self.shared.ownership else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the source has removed the keys of the slots {slots}, which it has handed to another master of its cluster (TRIMSLOTS), and the plan moves it as a single server"
                ),
            )
            .hint("set source.topology to \"cluster\", so that the other masters are read as well, then start over with --fresh and \"on_existing\": \"reconcile\""));
        };
        let here = (slots.iter())
            .filter(|slot| self.mine.has(*slot) && !ownership.has_left(self.shard.shard, *slot));
        here.for_each(|slot| ownership.suspect(slot));
        self.count("slots_trimmed");
        Ok(())
    }

    /// False when the slots are not (or no longer) where the cluster said they were.
    fn copy_slots(&mut self, slots: &[u16]) -> Result<bool> {
        let Some(place) = self.source.clone() else {
            return Ok(false);
        };
        let runtime = self.shared.runtime.clone();
        let source = runtime.block_on(async {
            let mut conn = net::connect(place.endpoint(), &place.address()).await?;
            list(&mut conn, slots).await
        });
        let mut keys: BTreeSet<Key> = match source {
            Ok(keys) => keys,
            Err(e) if e.retry() == crate::error::Retry::Later => return Ok(false),
            Err(e) => return Err(e),
        };
        let job = self.shared.job.clone();
        for (to, key) in self.asked("listing the target's keys", |me| me.target_keys(slots))? {
            keys.extend(job.databases.sources_of(to).map(|from| (from, key.clone())));
        }
        let keys: Vec<Key> = (keys.into_iter())
            .filter(|(_, k)| job.filter.accepts(k))
            .filter_map(|(db, k)| Some((db, job.renames.to_target(&k)?.into_owned())))
            .collect();
        for chunk in keys.chunks(CHUNK) {
            let mark = self.now();
            self.heal(chunk, mark)?;
            if self.pipe.troubled() {
                self.resolve()?;
            }
        }
        Ok(true)
    }

    /// The keys of some of the source's slots that the target holds, by the source's names.
    fn target_keys(&mut self, slots: &[u16]) -> Result<BTreeSet<Key>> {
        if self.shared.dry_run {
            return Ok(BTreeSet::new());
        }
        let endpoint = self.pipe.endpoint().clone();
        let runtime = self.shared.runtime.clone();
        let mut by_node: BTreeMap<usize, Vec<u16>> = BTreeMap::new();
        let renames = self.shared.job.renames.clone();
        for slot in slots {
            // Under other names they may lie anywhere.
            let nodes = match renames.is_empty() {
                true => {
                    self.pipe.node_of(Slot::numbered(*slot))
                        ..=self.pipe.node_of(Slot::numbered(*slot))
                }
                false => 0..=self.pipe.node_count() - 1,
            };
            for node in nodes {
                by_node.entry(node).or_default().push(*slot);
            }
        }
        let listed = self.pipe.topology().cluster && renames.is_empty();
        let mut keys = BTreeSet::new();
        for (node, slots) in by_node {
            let address = self.pipe.address(node).to_owned();
            let found = runtime.block_on(async {
                let mut conn = net::connect(&endpoint, &address).await?;
                match listed {
                    true => list(&mut conn, &slots).await,
                    false => search(&mut conn, &slots, &renames).await,
                }
            })?;
            keys.extend(found);
        }
        Ok(keys)
    }
}

/// The databases of a node, the first always among them: clusters of Valkey 9 may have several.
async fn databases(conn: &mut Conn) -> Result<BTreeSet<DbIndex>> {
    let found = scan::databases(conn).await?.into_iter().map(|(db, _)| db);
    Ok(found.chain([DbIndex::ZERO]).collect())
}

/// The keys of slots, as a cluster node lists them.
async fn list(conn: &mut Conn, slots: &[u16]) -> Result<BTreeSet<Key>> {
    let slots: Vec<Slot> = slots.iter().copied().map(Slot::numbered).collect();
    let mut keys = BTreeSet::new();
    for db in databases(conn).await? {
        conn.select(db).await?;
        for some in slots.chunks(16) {
            let listed = scan::slots_keys(conn, some, i64::MAX - 1000).await?;
            keys.extend(listed.into_iter().flatten().flatten().map(|key| (db, key)));
        }
    }
    Ok(keys)
}

/// The same of a server that is no cluster, or has the keys under other names.
async fn search(conn: &mut Conn, slots: &[u16], renames: &Renames) -> Result<BTreeSet<Key>> {
    let wanted: SlotSet = slots.iter().copied().map(Slot::numbered).collect();
    let mut keys = BTreeSet::new();
    for db in databases(conn).await? {
        conn.select(db).await?;
        let mut scan = Scan::new();
        while let Some(page) = scan.next(conn, 1000).await? {
            let named = (page.iter()).filter_map(|k| Some(renames.to_source(k)?.into_owned()));
            let named = named.filter(|k| wanted.has(Slot::of(k)));
            keys.extend(named.map(|key| (db, key)));
        }
    }
    Ok(keys)
}
