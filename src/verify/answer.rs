//! What a verification answers: the shape of `verify --json`, made from the state.

use super::check::{Check, Origin};
use super::indexes::IndexReport;
use super::options::Options;
use super::progress::UNPROVABLE;
use crate::error::Result;
use crate::source::keys::fact::NOT_REPLICATED;
use crate::store::SlotRow;
use crate::task::peak_rss;
use crate::types::{SLOTS, Slot};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

/// A key in the answer.
#[derive(Debug, Clone, Serialize)]
pub struct KeyReport {
    pub db: u32,
    pub key: String,
    /// Its bytes.
    #[serde(skip)]
    pub name: Vec<u8>,
    pub slot: u16,
    pub reason: String,
}

/// The answer of `verify --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub equal: bool,
    pub slots: usize,
    /// Fewer with --slots or --sample.
    pub slots_compared: usize,
    pub slots_different: usize,
    pub keys_source: u64,
    pub keys_target: u64,
    pub missing: Vec<KeyReport>,
    pub missing_count: u64,
    pub extra: Vec<KeyReport>,
    pub extra_count: u64,
    pub different: Vec<KeyReport>,
    pub different_count: u64,
    pub unprovable: Vec<KeyReport>,
    pub unprovable_count: u64,
    /// Keys that differ in nothing but what the source's version does not replicate, so no replica of it gets: no
    /// difference.
    pub not_replicated: Vec<KeyReport>,
    pub not_replicated_count: u64,
    pub repaired_count: u64,
    /// Keys that are not compared, because the migration has listed them as losses.
    pub known_losses: u64,
    /// Function libraries that are missing at the target, are too much there, or have other code.
    pub functions_different: Vec<String>,
    /// The source's search indexes, each with what was found of it at the target.
    pub indexes: Vec<IndexReport>,
    /// Keys as the servers count them, by the target's database: a cross-check that knows no filter.
    pub dbsize: Vec<DbSize>,
    /// True when this went on where an earlier verification was stopped.
    pub resumed: bool,
    /// True when only slots were read that were written to since they were compared last.
    pub incremental: bool,
    pub elapsed_ms: u64,
    pub keys_per_s: u64,
    /// Bytes received.
    pub bytes_source: u64,
    pub bytes_target: u64,
    /// The share of one CPU that all masters of a side used meanwhile, other work included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_percent_source: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_percent_target: Option<u64>,
    pub peak_rss_bytes: u64,
}

/// How many keys a database holds on each side.
#[derive(Debug, Clone, Serialize)]
pub struct DbSize {
    pub db: u32,
    pub source: u64,
    pub target: u64,
}

const LISTED: usize = 1000;

pub(super) async fn dbsize(check: &Check) -> Result<Vec<DbSize>> {
    let Origin::Server(side) = &check.origin else {
        return Ok(Vec::new());
    };
    let mut sizes: BTreeMap<u32, (u64, u64)> = Default::default();
    for (db, keys) in side.sizes().await? {
        if let Some(to) = check.job.databases.map(db) {
            let sum = &mut sizes.entry(to.0).or_default().0;
            *sum = sum.saturating_add(keys);
        }
    }
    for (db, keys) in check.target.sizes().await? {
        let sum = &mut sizes.entry(db.0).or_default().1;
        *sum = sum.saturating_add(keys);
    }
    let list = sizes
        .into_iter()
        .map(|(db, (source, target))| DbSize { db, source, target });
    Ok(list.collect())
}

/// Writes the slots' rows and makes the answer.
pub(super) fn conclude(
    check: &Check,
    started: Instant,
    started_ms: i64,
    options: &Options,
) -> Result<Summary> {
    let (progress, mut store) = (check.progress(), check.store());
    let rows: Vec<SlotRow> = Slot::all()
        .filter(|slot| (check.slots.as_ref()).is_none_or(|s| s.has(*slot)))
        .map(|slot| {
            let (source, target) = progress.sums.get(slot.index()).copied().unwrap_or_default();
            SlotRow {
                slot: slot.number(),
                source_keys: source.count,
                source_sum: source.sum,
                target_keys: target.count,
                target_sum: target.sum,
                state: match slot {
                    s if progress.different.has(s) => "different",
                    s if progress.unprovable.has(s) => "unprovable",
                    _ => "equal",
                },
            }
        })
        .collect();
    store.save_slot_sums(&rows, started_ms, options.keep || options.incremental)?;
    store.end_verify_progress()?;
    let counts = &progress.at.counts;
    let count = |wanted: &dyn Fn(&str) -> bool| -> u64 {
        counts
            .iter()
            .filter(|(r, _)| wanted(r))
            .map(|(_, n)| n)
            .sum()
    };
    let other = |r: &str| !["missing", "extra", UNPROVABLE, NOT_REPLICATED].contains(&r);
    let list = |wanted: &dyn Fn(&str) -> bool| -> Result<Vec<KeyReport>> {
        let mut listed = Vec::new();
        for reason in counts.keys().filter(|r| wanted(r)) {
            for d in store.differences_of(reason, (LISTED - listed.len()) as u32)? {
                listed.push(KeyReport {
                    db: d.db.0,
                    key: String::from_utf8_lossy(&d.key).into_owned(),
                    name: d.key,
                    slot: d.slot,
                    reason: d.reason,
                });
            }
        }
        Ok(listed)
    };
    let (keys_source, keys_target) = store.slot_keys()?;
    let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let read = (rows.iter()).fold(0u64, |sum, r| {
        sum.saturating_add(r.source_keys)
            .saturating_add(r.target_keys)
    });
    Ok(Summary {
        equal: counts.keys().all(|r| r == NOT_REPLICATED),
        slots: SLOTS,
        slots_compared: rows.len(),
        slots_different: rows.iter().filter(|r| r.state == "different").count(),
        keys_source,
        keys_target,
        missing: list(&|r| r == "missing")?,
        missing_count: count(&|r| r == "missing"),
        extra: list(&|r| r == "extra")?,
        extra_count: count(&|r| r == "extra"),
        different: list(&other)?,
        different_count: count(&other),
        unprovable: list(&|r| r == UNPROVABLE)?,
        unprovable_count: count(&|r| r == UNPROVABLE),
        not_replicated: list(&|r| r == NOT_REPLICATED)?,
        not_replicated_count: count(&|r| r == NOT_REPLICATED),
        repaired_count: 0,
        known_losses: 0,
        functions_different: Vec::new(),
        indexes: Vec::new(),
        dbsize: Vec::new(),
        resumed: false,
        incremental: options.incremental,
        elapsed_ms,
        keys_per_s: (read.saturating_mul(1000).checked_div(elapsed_ms)).unwrap_or(0),
        bytes_source: check.origin.server().map_or(0, |s| s.bytes.load(Relaxed)),
        bytes_target: check.target.bytes.load(Relaxed),
        cpu_percent_source: None,
        cpu_percent_target: None,
        peak_rss_bytes: peak_rss(),
    })
}
