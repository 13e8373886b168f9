//! Keys of modules' types at the source: how many there are, and which way they will go.

use super::finding::{Finding, Severity, add};
use super::probe::{Counted, Facts};
use crate::error::Result;
use crate::net::{Control, control, server};
use crate::plan::{Endpoint, Job, OnLoss};
use crate::rdb::modules::ways::{Takes, Way};
use crate::rdb::value::module_holds;
use crate::resp::Reply;
use std::time::{Duration, Instant};

/// How long counting may take, over all masters, databases and types.
const LIMIT: Duration = Duration::from_secs(2);
/// Keys that one SCAN looks at.
const PAGE: &[u8] = b"1000";
/// Time series that are asked for their rules.
const SERIES: usize = 20;
const SERIES_TYPE: &str = "TSDB-TYPE";

/// What both sides' modules are to each other.
fn takes(source: &Facts, target: &Facts) -> Takes {
    Takes {
        target: target.loaded.clone(),
        source: source.loaded.clone().unwrap_or_default(),
        source_valkey: source.format.is_some_and(|f| f.valkey),
        no_restore: target.commands.get("RESTORE") == Some(&false),
    }
}

/// Counts the keys of the types that the source's modules bring.
pub async fn count(endpoint: &Endpoint, facts: &mut Facts) -> Result<()> {
    let types: Vec<&'static str> = takes(facts, &Facts::default()).types().collect();
    if types.is_empty() || facts.commands.get("SCAN") != Some(&true) {
        return Ok(());
    }
    let databases: Vec<u32> = facts.databases.keys().copied().collect();
    let (layout, _) = server::layout(endpoint).await?;
    let mut found: Vec<(&'static str, Counted)> = (types.into_iter())
        .map(|name| {
            let complete = true;
            (
                name,
                Counted {
                    complete,
                    ..Counted::default()
                },
            )
        })
        .collect();
    // Each type has its share of the time, so that a large keyspace hides none behind the first.
    let share = LIMIT / u32::try_from(found.len()).unwrap_or(1).max(1);
    for (name, counted) in &mut found {
        let began = Instant::now();
        for master in &layout.masters {
            let mut conn = control(endpoint, &master.address).await?;
            for db in &databases {
                if *db > 0 && conn.select(crate::types::DbIndex(*db)).await.is_err() {
                    continue;
                }
                scan(&mut conn, name, counted, (began, share)).await?;
            }
        }
    }
    facts.module_types = (found.into_iter())
        .filter(|(_, counted)| counted.keys > 0 || !counted.complete)
        .collect();
    Ok(())
}

/// Counts the keys of a type in the selected database of one master.
async fn scan(
    conn: &mut Control,
    name: &str,
    counted: &mut Counted,
    (began, limit): (Instant, Duration),
) -> Result<()> {
    let mut cursor = b"0".to_vec();
    loop {
        if began.elapsed() > limit {
            counted.complete = false;
            return Ok(());
        }
        let ask: [&[u8]; 6] = [b"SCAN", &cursor, b"COUNT", PAGE, b"TYPE", name.as_bytes()];
        let reply = conn.ask(&ask).await?;
        let Some([next, keys]) = reply.array() else {
            // It takes no TYPE (before Redis 6.0).
            counted.complete = false;
            return Ok(());
        };
        let keys = keys.array().unwrap_or_default();
        counted.keys = counted.keys.saturating_add(keys.len() as u64);
        if name == SERIES_TYPE {
            for key in keys.iter().filter_map(Reply::bytes).take(SERIES) {
                let rules = u64::from(has_rules(conn, key).await?);
                let sum = counted.with_rules.get_or_insert(0);
                *sum = sum.saturating_add(rules);
            }
        }
        cursor = next.bytes().unwrap_or(b"0").to_vec();
        if cursor == b"0" {
            return Ok(());
        }
    }
}

/// Whether a time series has compaction rules.
async fn has_rules(conn: &mut Control, key: &[u8]) -> Result<bool> {
    let reply = conn.ask(&[b"TS.INFO", key]).await?;
    let told = reply.array().unwrap_or_default();
    let at = told
        .iter()
        .position(|item| item.text().as_deref() == Some("rules"));
    let rules = at.and_then(|at| told.get(at.checked_add(1)?)?.array());
    Ok(rules.is_some_and(|rules| !rules.is_empty()))
}

/// Which way the keys of each type will go.
pub fn both(job: &Job, source: &Facts, target: &Facts, scan: bool, findings: &mut Vec<Finding>) {
    const ID: &str = "module_types";
    let takes = takes(source, target);
    let Some(format) = target.format else { return };
    for (name, counted) in &source.module_types {
        let keys = match (counted.keys, counted.complete) {
            (1, true) => "1 key".to_owned(),
            (n, true) => format!("{n} keys"),
            (n, false) => format!(
                "at least {n} keys (not all were looked at within {} s)",
                LIMIT.as_secs()
            ),
        };
        let (from, to) = takes.between(name, &format);
        let holds = module_holds(name).unwrap_or("module");
        let text = |way: &str| {
            format!("{holds} ({name}), {keys}: {way} ({from} at the source, {to} at the target)")
        };
        match takes.way_of_type(name, &format) {
            Way::Restore => add(
                findings,
                ID,
                Severity::Info,
                text("copied by RESTORE"),
                "nothing to do",
            ),
            Way::Commands => add(
                findings,
                ID,
                Severity::Info,
                text("written by the module's own commands"),
                "nothing to do; compaction rules of time series have to be created after the run (TS.CREATERULE)",
            ),
            Way::Lost(why) => add(
                findings,
                ID,
                match job.on_loss {
                    OnLoss::Fail if counted.keys > 0 => Severity::Blocker,
                    _ => Severity::Warning,
                },
                text(&format!("not copied, {why}")),
                "load the module at the target, leave the keys out with filter.exclude, or set on_loss to \"list\"",
            ),
        }
        if scan && let Some(n) = counted.with_rules.filter(|n| *n > 0) {
            add(
                findings,
                "series_rules",
                Severity::Warning,
                format!(
                    "at least {n} time series have compaction rules, which DUMP does not tell: in mode \"scan\" they are not copied"
                ),
                "move by replication (mode \"replica\"), or create the rules at the target with TS.CREATERULE",
            );
        }
    }
}
