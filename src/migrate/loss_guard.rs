//! The loss guard: a source that comes back with much less than it had must not take the rest from the target.
//!
//! After a new full sync, keys of the target that the source does not hold are removed. A source that was restarted
//! without its data, or another server behind its address, would so remove the last copy. So what would go is counted
//! first, and beyond the plan's `max_loss_percent` the run stops.
//! Invariant: the count comes before the first removal, and is made anew by every run until a person has accepted it
//! or the source holds the keys again.

use crate::error::{Error, ErrorKind, Result};
use crate::migrate::pump::Pump;
use crate::migrate::shared::Shared;
use crate::net;
use crate::net::scan::{self, Scan};
use crate::plan::OnExisting;
use crate::store::ShardState;
use crate::types::{DbIndex, ShardId};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Fewer keys than this may always go.
pub(super) const FEW: u64 = 1_000;
/// Keys that are listed, and asked for, at a time.
const PAGE: u32 = 1_000;

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

/// Takes some keys of one of the target's databases.
type TakePage<'a> = dyn FnMut(&mut Pump, DbIndex, Vec<Vec<u8>>) -> Result<()> + 'a;

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
pub(super) fn begin(shared: &Shared, before: &ShardState) -> Result<()> {
    if shared.dry_run {
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
pub(super) fn accept(shared: &Shared, shard: ShardId) -> Result<()> {
    match pending(shared, shard)? {
        Some(pending) if shared.accept_loss => {
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
pub(super) fn is_loss(gone: u64, of: u64, percent: u8) -> bool {
    gone >= FEW && u128::from(gone) * 100 > u128::from(of) * u128::from(percent)
}

/// The stop, with what a person needs to decide.
pub(super) fn refused(seen: &str) -> Error {
    Error::new(ErrorKind::State, format!("{seen}; nothing was removed from the target")).hint(
        "look at the source first: was it restarted without its data, or is another server behind its address? When its data is back, run the same command again; when those keys are to go, `keyferry migrate PLAN --accept-loss` removes them (max_loss_percent in the plan sets the share)",
    )
}

impl Pump {
    /// Before the new snapshot is loaded: how much the target holds of what this shard has brought.
    pub(super) fn count_before(&mut self) -> Result<()> {
        let shared = self.shared.clone();
        let Some(pending) = pending(&shared, self.shard.shard)? else {
            return Ok(());
        };
        if pending.keys.is_some() {
            return Ok(());
        }
        let mut keys = 0;
        self.asked("counting the target's keys", |me| {
            keys = 0;
            me.each_page_of_ours(None, &|_, _| true, &mut |_, _, ours| {
                keys += ours.len() as u64;
                Ok(())
            })
        })?;
        let counted = Pending {
            keys: Some(keys),
            ..pending
        };
        save(&shared, self.shard.shard, Some(&counted))
    }

    /// Counts what would be removed of the target's keys that are `older` than the new snapshot, in several parts.
    pub(super) fn count_lost(&mut self, older: &impl Fn(DbIndex, &[u8]) -> bool) -> Result<u64> {
        let mut lost = 0;
        self.asked("listing the target's keys", |me| {
            lost = 0;
            me.each_page_of_ours(None, older, &mut |me, db, ours| {
                let mut sources: Vec<(DbIndex, Vec<Vec<u8>>)> = Vec::new();
                for key in ours {
                    let from = me.source_of(db, &key)?;
                    match sources.iter_mut().find(|(of, _)| *of == from) {
                        Some((_, keys)) => keys.push(key),
                        None => sources.push((from, vec![key])),
                    }
                }
                for (from, keys) in sources {
                    let asked: Vec<Cow<[u8]>> = keys.iter().map(|k| me.source_name(k)).collect();
                    let asked: Vec<&[u8]> = asked.iter().map(Cow::as_ref).collect();
                    let there = me.fenced(|fence, rt| rt.block_on(fence.exist(from, &asked)))?;
                    lost += there.iter().filter(|there| !**there).count() as u64;
                }
                Ok(())
            })
        })?;
        Ok(lost)
    }

    /// Whether what a full sync would remove has to be counted first.
    pub(super) fn guards_loss(&self) -> Result<bool> {
        Ok(pending(&self.shared, self.shard.shard)?.is_some_and(|p| !p.accepted))
    }

    /// Stops when `lost` keys are more than may go.
    pub(super) fn refuse_loss(&self, lost: u64) -> Result<()> {
        let before = pending(&self.shared, self.shard.shard)?.unwrap_or_default();
        let of = before.keys.unwrap_or(0);
        if !is_loss(lost, of, self.shared.job.max_loss_percent) {
            return Ok(());
        }
        let now = (self.spool.replid()).map_or("unknown".into(), |id| id.to_string());
        Err(refused(&format!(
            "the source {} has lost data or is another one: of the {of} keys that the target got from it, it does not hold {lost} any more (its new snapshot held {}; its replication id was {} and is {now})",
            self.shard.address,
            self.shard.keys_read,
            before.replid.as_deref().unwrap_or("unknown"),
        )))
    }

    /// The removals are done.
    pub(super) fn loss_settled(&mut self) -> Result<()> {
        match pending(&self.shared, self.shard.shard)? {
            Some(_) => save(&self.shared, self.shard.shard, None),
            None => Ok(()),
        }
    }

    /// Lists the target's keys that are ours and pass `older`, by its databases, or of one.
    pub(super) fn each_page_of_ours(
        &mut self,
        only: Option<DbIndex>,
        older: &impl Fn(DbIndex, &[u8]) -> bool,
        take: &mut TakePage<'_>,
    ) -> Result<()> {
        let endpoint = self.pipe.endpoint().clone();
        let runtime = self.shared.runtime.clone();
        for node in 0..self.pipe.node_count() {
            let address = self.pipe.address(node).to_owned();
            let mut conn = runtime.block_on(net::connect(&endpoint, &address))?;
            for (db, _) in runtime.block_on(scan::databases(&mut conn))? {
                let moved = self.shared.job.databases.sources_of(db).next().is_some();
                if !moved || only.is_some_and(|only| only != db) {
                    continue;
                }
                runtime.block_on(conn.select(db))?;
                let mut scan = Scan::new();
                while let Some(page) = runtime.block_on(scan.next(&mut conn, PAGE))? {
                    if self.shared.stop.requested() {
                        return Err(super::reconcile::interrupted());
                    }
                    let mut ours = page;
                    ours.retain(|key| {
                        older(db, key)
                            && self.accepts(key)
                            && self.owns(key)
                            && !self.shared.own.has(db, key)
                    });
                    take(self, db, ours)?;
                }
            }
        }
        Ok(())
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
