//! Which slots a second verification must read: those not proven equal, and those written to since they were.
//!
//! What the source has written is known from the migration's stream. What somebody else writes to the target is not:
//! that takes a verification of everything.

use super::{Origin, confirm};
use crate::error::Result;
use crate::store::{Lock, Store, Written};
use crate::task::Shutdown;
use crate::types::{Slot, SlotSet};
use std::path::Path;

/// A slot written to this long before its comparison began is read again as well: clocks are only so good.
const MARGIN_MS: i64 = 2_000;

/// The slots to read; all of them where the stream does not tell what was written.
pub async fn slots(
    origin: &Origin,
    work_dir: &Path,
    store: &Store,
    stop: &Shutdown,
) -> Result<SlotSet> {
    let all = |why: &str| {
        tracing::warn!("every slot is read: {why}");
        Ok(SlotSet::all())
    };
    let Origin::Server(source) = origin else {
        return all("a file has no stream that tells what has changed");
    };
    let running = Lock::holder(work_dir).is_some();
    if !confirm::wait_for_stream(source, work_dir, stop, running).await? {
        return all("the migration does not run, or lags, and the source has been written to");
    }
    let (shards, written) = (store.shards()?, store.written()?);
    let covered = |w: &Written| shards.iter().any(|s| s.shard == w.shard);
    if shards.is_empty() || shards.len() != written.iter().filter(|w| covered(w)).count() {
        return all("the migration has not followed the source's writes from its beginning");
    }
    let compared = store.compared_slots()?;
    let unchanged = |slot: &Slot| {
        let Some(equal_ms) = compared.get(&slot.number()) else {
            return false;
        };
        (written.iter()).all(|w| match w.last_ms(*slot) {
            _ if w.since_ms > *equal_ms => false,
            Some(ms) => ms < equal_ms - MARGIN_MS,
            None => true,
        })
    };
    Ok(Slot::all().filter(|slot| !unchanged(slot)).collect())
}
