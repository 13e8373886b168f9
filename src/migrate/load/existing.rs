//! What the target holds before the first write: refused, or noted so that our keys are never taken for it later.
//!
//! A worker looks at the slots that it has claimed, as others may have written theirs already.

use crate::error::{Error, ErrorKind, Result};
use crate::net;
use crate::net::scan::{self, Scan};
use crate::plan::{Job, OnExisting};
use crate::store::{Existing, NameFile, Own, ShardState};
use crate::target::topology::Topology;
use crate::types::{DbIndex, Slot, SlotSet, shown};
use std::path::Path;

/// Keys of a slot's name at the source: a name that no key of the source gets counts by itself.
fn is_in(claimed: &SlotSet, job: &Job, key: &[u8]) -> bool {
    match job.renames.to_source(key) {
        Some(name) => claimed.has(Slot::of(&name)),
        None => claimed.has(Slot::of(key)),
    }
}

/// Shows every key of the target, or of these slots on it: the node that holds it, its database, its name.
async fn each(
    job: &Job,
    topology: &Topology,
    claimed: Option<&SlotSet>,
    mut see: impl FnMut(&str, DbIndex, &[u8]) -> Result<()>,
) -> Result<()> {
    for address in &topology.nodes {
        let mut conn = net::connect(&job.target, address).await?;
        for (db, _) in scan::databases(&mut conn).await? {
            conn.select(db).await?;
            let mut scan = Scan::new();
            while let Some(page) = scan.next(&job.target, &mut conn, 1000).await? {
                for key in page {
                    if claimed.is_none_or(|c| is_in(c, job, &key)) {
                        see(address, db, &key)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// on_existing "fail": an error when the target holds a key in these slots.
pub(crate) async fn refuse_of(job: &Job, topology: &Topology, claimed: &SlotSet) -> Result<()> {
    each(job, topology, Some(claimed), |address, db, key| {
        Err(Error::new(
            ErrorKind::TargetNotEmpty,
            format!(
                "the target {address} holds keys of this worker's slots already, {} in database {db} for one",
                shown(key)
            ),
        ))
    })
    .await
}

/// on_existing "skip" and "replace": the target's own keys; listed at the first start, read from the file later.
pub(crate) async fn own(
    job: &Job,
    topology: &Topology,
    dir: &Path,
    claimed: Option<&SlotSet>,
    saved: &[ShardState],
) -> Result<Own> {
    if !matches!(job.on_existing, OnExisting::Skip | OnExisting::Replace) {
        return Ok(Own::default());
    }
    let keys = match Existing::load(dir)? {
        Some(known) => known,
        None if saved.iter().any(ShardState::has_written) => {
            return Err(Error::new(
                ErrorKind::State,
                format!(
                    "{}, which names the keys that the target held before this migration, is gone: they cannot be told from those that were moved",
                    Existing::path(dir).display()
                ),
            ));
        }
        None => {
            let mut file = NameFile::begin(&Existing::path(dir))?;
            let mut found = Existing::default();
            each(job, topology, claimed, |_, db, key| {
                found.insert(db, key);
                file.put(db, key)
            })
            .await?;
            file.finish()?;
            found
        }
    };
    match job.on_existing {
        OnExisting::Replace => Own::replaceable(keys, dir),
        _ => Ok(Own::kept(keys)),
    }
}
