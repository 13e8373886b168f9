//! Which slots a second verification must read: those not proven equal, and those written to since they were.
//!
//! What the source has written is known from the migration's stream. What somebody else writes to the target is not:
//! that takes a verification of everything.

use super::check::{Check, Origin};
use super::migration;
use crate::error::Result;
use crate::store::{Store, Written};
use crate::types::{Slot, SlotSet};

/// A slot written to this long before its comparison began is read again as well: clocks are only so good.
const MARGIN_MS: i64 = 2_000;

/// The slots to read; all of them where the stream does not tell what was written.
pub async fn slots(check: &Check, own: &Store) -> Result<SlotSet> {
    let all = |why: &str| {
        tracing::warn!("every slot is read: {why}");
        Ok(SlotSet::all())
    };
    let Origin::Server(source) = &check.origin else {
        return all("a file has no stream that tells what has changed");
    };
    let migrations = &check.migrations;
    let run = migrations.iter().filter(|m| m.runs()).count();
    if run > 0 && run < migrations.len() {
        return all("some workers of the migration do not run");
    }
    if !migration::wait_for_stream(source, migrations, &check.stop, run > 0).await? {
        return all("the migration does not run, or lags, and the source has been written to");
    }
    let mut written: Vec<Written> = Vec::new();
    let mut known = SlotSet::none();
    for migration in migrations {
        let Some(store) = Store::open_readonly(&migration.dir)? else {
            continue;
        };
        let (shards, noted) = (store.shards()?, store.written()?);
        let covered = |w: &Written| shards.iter().any(|s| s.shard == w.shard);
        if !shards.is_empty() && shards.len() == noted.iter().filter(|w| covered(w)).count() {
            migration.slots.iter().for_each(|s| known.insert(s));
        }
        written.extend(noted);
    }
    if known != SlotSet::all() {
        return all("the migration has not followed the source's writes from its beginning");
    }
    let compared = own.compared_slots()?;
    let unchanged = |slot: &Slot| {
        let Some(equal_ms) = compared.get(&slot.number()) else {
            return false;
        };
        (written.iter()).all(|w| match w.last_ms(*slot) {
            _ if w.since_ms > *equal_ms => false,
            Some(ms) => ms < equal_ms.saturating_sub(MARGIN_MS),
            None => true,
        })
    };
    Ok(Slot::all().filter(|slot| !unchanged(slot)).collect())
}
