//! The loss guard: a source that comes back with much less than it had must not take the rest from the target.
//!
//! After a new full sync, keys of the target that the source does not hold are removed. A source that was restarted
//! without its data, or another server behind its address, would so remove the last copy. So what would go is counted
//! first, and beyond the plan's `max_loss_percent` the run stops.
//! Invariant: the count comes before the first removal, and is made anew by every run until a person has accepted it
//! or the source holds the keys again.

use crate::error::{Error, ErrorKind, Result};
use crate::migrate::context::{ShardContext, Shared};
use crate::plan::OnExisting;
use crate::store::ShardState;
use crate::types::ShardId;
use serde::{Deserialize, Serialize};

/// Fewer keys than this may always go.
pub(crate) const FEW: u64 = 1_000;
/// A new full sync whose load and removals are not done, and what the target held when it began.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Pending {
    /// The source's replication id before.
    replid: Option<String>,
    /// Keys of ours at the target before the new snapshot was loaded; `None` until they are counted.
    keys: Option<u64>,
    /// The load before was complete: what the attempts since have added does not count.
    complete: bool,
    accepted: bool,
}

fn document(shard: ShardId) -> String {
    format!("loss_guard.{shard}")
}

fn pending(shared: &Shared, shard: ShardId) -> Result<Option<Pending>> {
    let saved = shared.store(|s| s.json(&document(shard)))?;
    Ok(saved.and_then(|v| serde_json::from_value(v).ok()))
}

fn save(shared: &Shared, shard: ShardId, pending: Option<&Pending>) -> Result<()> {
    let value = serde_json::to_value(pending).unwrap_or_default();
    shared.store(|s| s.put_json(&document(shard), &value))
}

/// Notes that a full sync begins over what an earlier one has brought; `before` is the shard as it was.
///
/// Only the first after a complete one counts: until its removals are done, the target holds what that one brought.
/// Where none was complete yet, each attempt has added to what the target got.
pub(crate) fn begin(shared: &Shared, before: &ShardState) -> Result<()> {
    if shared.run.dry_run {
        return Ok(());
    }
    if let Some(pending) = pending(shared, before.shard)? {
        let counted = pending.complete.then_some(pending.keys).flatten();
        let again = Pending {
            keys: counted,
            ..pending
        };
        return save(shared, before.shard, Some(&again));
    }
    // The plan wants what the target held before our first load to go.
    if shared.job.on_existing == OnExisting::Reconcile && !before.snapshot_loaded {
        return Ok(());
    }
    let begun = Pending {
        replid: before.replid.map(|id| id.to_string()),
        complete: before.snapshot_loaded,
        ..Pending::default()
    };
    save(shared, before.shard, Some(&begun))
}

/// `--accept-loss`: what the full sync that is under way, or begins this run, removes may go.
pub(crate) fn accept(shared: &Shared, shard: ShardId) -> Result<()> {
    match pending(shared, shard)? {
        Some(pending) if shared.run.accept_loss => {
            let accepted = Pending {
                accepted: true,
                ..pending
            };
            save(shared, shard, Some(&accepted))
        }
        _ => Ok(()),
    }
}

/// Whether so many keys of so many are more than may go without a word.
pub(crate) fn is_loss(gone: u64, of: u64, percent: u8) -> bool {
    gone >= FEW && u128::from(gone) * 100 > u128::from(of) * u128::from(percent)
}

/// The stop, with what a person needs to decide.
pub(crate) fn refused(seen: &str) -> Error {
    Error::new(ErrorKind::State, format!("{seen}; nothing was removed from the target")).hint(
        "look at the source first: was it restarted without its data, or is another server behind its address? When its data is back, run the same command again; when those keys are to go, `keyferry migrate PLAN --accept-loss` removes them (max_loss_percent in the plan sets the share)",
    )
}

/// Whether it is still to be counted how much the target holds of what this shard has brought: before the new snapshot
/// is loaded.
pub(crate) fn wants_count(ctx: &ShardContext) -> Result<bool> {
    Ok(pending(&ctx.shared, ctx.id)?.is_some_and(|p| p.keys.is_none()))
}

/// So many keys.
pub(crate) fn counted(ctx: &ShardContext, keys: u64) -> Result<()> {
    let Some(pending) = pending(&ctx.shared, ctx.id)? else {
        return Ok(());
    };
    let counted = Pending {
        keys: Some(keys),
        ..pending
    };
    save(&ctx.shared, ctx.id, Some(&counted))
}

/// Whether what a full sync would remove has to be counted first.
pub(crate) fn guards(ctx: &ShardContext) -> Result<bool> {
    Ok(pending(&ctx.shared, ctx.id)?.is_some_and(|p| !p.accepted))
}

/// Stops when `lost` keys are more than may go; the new snapshot held `keys_read`.
pub(crate) fn refuse(ctx: &ShardContext, lost: u64, keys_read: u64) -> Result<()> {
    let before = pending(&ctx.shared, ctx.id)?.unwrap_or_default();
    let of = before.keys.unwrap_or(0);
    if !is_loss(lost, of, ctx.job().max_loss_percent) {
        return Ok(());
    }
    let now = (ctx.spool.replid()).map_or("unknown".into(), |id| id.to_string());
    Err(refused(&format!(
        "the source {} has lost data or is another one: of the {of} keys that the target got from it, it does not hold {lost} any more (its new snapshot held {keys_read}; its replication id was {} and is {now})",
        ctx.address,
        before.replid.as_deref().unwrap_or("unknown"),
    )))
}

/// The removals are done.
pub(crate) fn settled(ctx: &ShardContext) -> Result<()> {
    match pending(&ctx.shared, ctx.id)? {
        Some(_) => save(&ctx.shared, ctx.id, None),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_many_keys_and_a_large_share() {
        assert!(!is_loss(999, 999, 20), "few keys may go");
        assert!(is_loss(1_000, 1_000, 20));
        assert!(!is_loss(1_000, 5_000, 20) && is_loss(1_001, 5_000, 20));
        assert!(!is_loss(5_000, 5_000, 100), "100 never stops");
        assert!(is_loss(u64::MAX, u64::MAX, 0));
    }
}
