//! Slots that have come to this source shard: which keys are copied before its stream is applied to them.

use crate::error::{ErrorKind, Result, Retry};
use crate::migrate::context::ShardContext;
use crate::migrate::heal::queue::Key;
use crate::net::scan::{self, Holder, Scan};
use crate::net::{self, Conn};
use crate::plan::{Endpoint, Renames};
use crate::source::place::Place;
use crate::types::{DbIndex, Slot, SlotSet};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The keys of some slots at the source; `None` when the slots are not (or no longer) where the cluster said they were.
pub(crate) fn source_keys(
    ctx: &ShardContext,
    place: &Place,
    slots: &[u16],
) -> Result<Option<BTreeSet<Key>>> {
    let listed = ctx.shared.runtime.block_on(async {
        let conn = net::connect(place.endpoint(), &place.address()).await?;
        list(place.endpoint(), conn, slots).await
    });
    match listed {
        Ok(keys) => Ok(Some(keys)),
        Err(e) if e.retry() == Retry::Later => Ok(None),
        Err(e) => Err(e),
    }
}

/// The keys of some of the source's slots that the target holds, by the source's names; `nodes` are the slots to look
/// for by the address of the node, and `listed` says that it is a cluster which lists the keys of its slots.
pub(crate) fn target_keys(
    ctx: &ShardContext,
    nodes: &BTreeMap<String, Vec<u16>>,
    listed: bool,
) -> Result<BTreeSet<Key>> {
    let (endpoint, renames) = (&ctx.job().target, &ctx.job().renames);
    let mut keys = BTreeSet::new();
    for (address, slots) in nodes {
        keys.extend(ctx.shared.runtime.block_on(async {
            let conn = net::connect(endpoint, address).await?;
            match listed && renames.is_empty() {
                true => list(endpoint, conn, slots).await,
                false => search(endpoint, conn, slots, renames).await,
            }
        })?);
    }
    Ok(keys)
}

/// What is copied: the keys that either side holds and the plan moves, in the source's databases and by the target's
/// names.
pub(crate) fn to_copy(
    ctx: &ShardContext,
    mut source: BTreeSet<Key>,
    target: BTreeSet<Key>,
) -> Vec<Key> {
    let job = ctx.job();
    for (to, key) in target {
        source.extend(job.databases.sources_of(to).map(|from| (from, key.clone())));
    }
    (source.into_iter())
        .filter(|(_, k)| job.filter.accepts(k))
        .filter_map(|(db, k)| Some((db, job.renames.to_target(&k)?.into_owned())))
        .collect()
}

/// The databases of a node, the first always among them: clusters of Valkey 9 may have several.
async fn databases(conn: &mut Conn) -> Result<BTreeSet<DbIndex>> {
    let found = scan::databases(conn).await?.into_iter().map(|(db, _)| db);
    Ok(found.chain([DbIndex::ZERO]).collect())
}

/// What the names of some slots may take.
const LIST_ROOM: usize = 48 << 20;

/// The keys of slots, as their master lists them, and after it the nodes that slots are leaving for.
async fn list(endpoint: &Endpoint, conn: Conn, slots: &[u16]) -> Result<BTreeSet<Key>> {
    let slots: Vec<Slot> = slots.iter().copied().map(Slot::numbered).collect();
    let (mut keys, mut leaving) = (BTreeSet::new(), BTreeMap::new());
    list_node(
        endpoint,
        conn,
        &slots,
        Holder::Master,
        &mut keys,
        &mut leaving,
    )
    .await?;
    for (address, slots) in std::mem::take(&mut leaving) {
        let conn = net::connect(endpoint, &address).await?;
        list_node(
            endpoint,
            conn,
            &slots,
            Holder::Importing,
            &mut keys,
            &mut leaving,
        )
        .await?;
    }
    Ok(keys)
}

/// What one node lists of slots, and which of them are leaving for which node; slots too large for one answer by SCAN.
async fn list_node(
    endpoint: &Endpoint,
    mut conn: Conn,
    slots: &[Slot],
    holder: Holder,
    keys: &mut BTreeSet<Key>,
    leaving: &mut BTreeMap<String, Vec<Slot>>,
) -> Result<()> {
    for db in databases(&mut conn).await? {
        conn.select(db).await?;
        let mut some: VecDeque<&[Slot]> = slots.chunks(4).collect();
        let mut large = Vec::new();
        while let Some(asked) = some.pop_front() {
            match scan::slots_keys(&mut conn, asked, i64::MAX, LIST_ROOM, holder).await {
                Ok(listed) => {
                    for (slot, found) in asked.iter().zip(listed) {
                        keys.extend(found.keys.into_iter().flatten().map(|key| (db, key)));
                        note(found.rest_at.map(|address| (*slot, address)), leaving);
                    }
                }
                Err(e) if e.kind() == ErrorKind::Oversized => {
                    conn = net::connect(endpoint, conn.address()).await?;
                    conn.select(db).await?;
                    match asked {
                        [slot] => large.push(*slot),
                        _ => some.extend(asked.chunks(1)),
                    }
                }
                Err(e) => return Err(e),
            }
        }
        if !large.is_empty() {
            let (set, renames) = (large.iter().copied().collect(), Renames::default());
            keys.extend(named(endpoint, &mut conn, db, &set, &renames).await?);
            if holder == Holder::Master {
                note(scan::leaving(&mut conn, &large).await?, leaving);
            }
        }
    }
    Ok(())
}

fn note(
    found: impl IntoIterator<Item = (Slot, String)>,
    leaving: &mut BTreeMap<String, Vec<Slot>>,
) {
    for (slot, address) in found {
        let slots = leaving.entry(address).or_default();
        if !slots.contains(&slot) {
            slots.push(slot);
        }
    }
}

/// The same of a server that is no cluster, or has the keys under other names.
async fn search(
    endpoint: &Endpoint,
    mut conn: Conn,
    slots: &[u16],
    renames: &Renames,
) -> Result<BTreeSet<Key>> {
    let wanted: SlotSet = slots.iter().copied().map(Slot::numbered).collect();
    let mut keys = BTreeSet::new();
    for db in databases(&mut conn).await? {
        keys.extend(named(endpoint, &mut conn, db, &wanted, renames).await?);
    }
    Ok(keys)
}

/// The keys of a database whose names at the source belong to some slots.
async fn named(
    endpoint: &Endpoint,
    conn: &mut Conn,
    db: DbIndex,
    slots: &SlotSet,
    renames: &Renames,
) -> Result<BTreeSet<Key>> {
    let (mut scan, mut keys) = (Scan::new(), BTreeSet::new());
    conn.select(db).await?;
    while let Some(page) = scan.next(endpoint, conn, 1000).await? {
        let names = (page.iter()).filter_map(|k| Some(renames.to_source(k)?.into_owned()));
        let names = names.filter(|k| slots.has(Slot::of(k)));
        keys.extend(names.map(|key| (db, key)));
    }
    Ok(keys)
}
