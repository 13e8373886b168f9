//! What will work, what will be lost, and what blocks: found out before anything is moved.
//!
//! `probe` asks each side what it is and what it lets us do, `surroundings` what it has beside its keys; `rules` makes
//! findings of what both are together, `differences` of what a copy of the data does not bring.
//! Invariant: the user's keys are not touched; the probe's own key has a random name and ends by itself.

mod differences;
mod files;
mod finding;
mod indexes;
mod merge;
mod module_types;
mod notified;
mod probe;
mod rules;
mod surroundings;
mod users;

pub use finding::{Finding, Severity};
pub use probe::Facts;

use crate::error::Result;
use crate::plan::{Job, Mode, Source};
use crate::source::psync;
use crate::target::restoring;
use crate::types::DbIndex;
use serde::Serialize;

/// The answer of `check --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Nothing blocks.
    pub ok: bool,
    /// `replica`, `scan` or `rdb`; absent when the source does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<&'static str>,
    /// What is certain in that mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guarantee: Option<&'static str>,
    /// A guess at how long the copy takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate_s: Option<u64>,
    pub source: Option<Facts>,
    pub target: Option<Facts>,
    /// The heaviest first.
    pub findings: Vec<Finding>,
}

/// Findings that keep a new migration from beginning; what the others block shows itself, key by key, and is resumed.
pub const STOPS: [&str; 11] = [
    "clocks",
    "databases_conflict",
    "eviction",
    "psync_refused",
    "restore",
    "scripts_verbatim",
    "source_clients",
    "source_commands",
    "target_clients",
    "target_commands",
    "rename_conflict",
];

impl Report {
    /// The blockers for which a migration is not begun, but for those that the user ignores.
    pub fn stops<'a>(&'a self, ignored: &'a [String]) -> impl Iterator<Item = &'a Finding> + 'a {
        self.findings.iter().filter(move |f| {
            f.severity == Severity::Blocker
                && STOPS.contains(&f.id)
                && !ignored.iter().any(|i| i == f.id)
        })
    }
}

const REPLICA: &str = "every write of the source arrives once and in order, by its replication stream; resume, failover and verification are exact by offset";
const SCAN: &str = "each key is what the source had when it was read last; after the writers have stopped, one sweep without a difference proves both sides alike";
const RDB: &str = "the target holds what the snapshot holds";

/// Probes both sides of a plan.
///
/// What a side refuses becomes a finding; an error is only what stands in the way of any answer.
///
/// `known` is the mode that an earlier run has found: then PSYNC is not asked about again.
pub async fn run(job: &Job, write: bool, known: Option<&str>) -> Result<Report> {
    let mut findings = Vec::new();
    let source = async {
        match job.source.endpoint() {
            Some(endpoint) => Some(probe::facts(endpoint, false).await),
            None => None,
        }
    };
    let (source, target) = futures::join!(source, probe::facts(&job.target, write));
    if let Source::Rdb { path } = &job.source {
        files::findings(path, &mut findings);
    }
    let source = source.and_then(|facts| rules::reached("source", facts, &mut findings));
    let mut target = rules::reached("target", target, &mut findings);
    let told = Told::by(job, source.as_ref(), target.as_ref(), known).await;
    if let Some(facts) = &mut target {
        facts.commands.insert("RESTORE", !told.restore_refused);
    }
    let mode = match &job.source {
        Source::Rdb { .. } => Some("rdb"),
        Source::Server { endpoint, mode } if source.is_some() => {
            let allowed = told.psync_allowed;
            rules::mode(*mode, allowed, &endpoint.commands, &mut findings);
            Some(match mode {
                Mode::Scan => "scan",
                Mode::Replica => "replica",
                Mode::Auto if allowed => "replica",
                Mode::Auto => "scan",
            })
        }
        Source::Server { .. } => None,
    };
    let mut source = source;
    if let (Some(facts), Some(endpoint)) = (&mut source, job.source.endpoint())
        && (write && mode == Some("scan") && facts.notifications.is_none())
    {
        facts.notified = notified::heard(endpoint).await;
    }
    if let (Some(facts), Some(endpoint)) = (&source, job.source.endpoint()) {
        rules::certificate(
            endpoint,
            facts,
            "source",
            "source_certificate",
            &mut findings,
        );
        if !facts.databases.is_empty() {
            let found = merge::conflicts(job, endpoint, &facts.databases).await;
            rules::merge(found, &mut findings);
        }
        if !job.renames.is_empty() {
            rules::renames(merge::taken_names(job, endpoint).await, &mut findings);
        }
        let replica = mode == Some("replica");
        rules::source(job, facts, replica, &mut findings);
        let unknown = told.unknown_to_us?;
        if replica && tells_commands(facts) {
            rules::unknown_in_stream(job, &unknown, &mut findings);
        }
        differences::source(job, facts, replica, &mut findings);
    }
    if let Some(facts) = &target {
        let id = "target_certificate";
        rules::certificate(&job.target, facts, "target", id, &mut findings);
        rules::target(job, facts, write, &mut findings);
    }
    if let (Some(facts), Some(endpoint)) = (&mut source, job.source.endpoint()) {
        module_types::count(endpoint, facts).await?;
    }
    if let (Some(source), Some(target)) = (&source, &target) {
        module_types::both(job, source, target, mode == Some("scan"), &mut findings);
        rules::both(job, source, target, &mut findings);
        let replica = mode == Some("replica");
        differences::both(job, source, target, replica, &mut findings);
        let count = source.surroundings.indexes.unwrap_or(0);
        if let (Some(endpoint), 1..) = (job.source.endpoint(), count) {
            indexes::findings(job, endpoint, count, target, &mut findings).await?;
        }
        let used = source.databases.keys();
        let highest = used.filter_map(|db| job.databases.map(DbIndex(*db))).max();
        // Where there is only database 0, that is said already.
        if let Some(DbIndex(highest)) = highest.filter(|db| db.0 > 1)
            && target.select
            && !probe::has_database(&job.target, highest).await?
        {
            differences::beyond(highest, target, &mut findings);
        }
        let unknown = told.unknown_there?;
        // Where the target does not let us ask, nothing is known of it.
        if tells_commands(target) && !source.called.is_empty() {
            rules::unknown(&unknown, target, &mut findings);
        }
    }
    findings.sort_by_key(|f| f.severity);
    Ok(Report {
        ok: findings.iter().all(|f| f.severity != Severity::Blocker),
        guarantee: mode.map(|m| match m {
            "replica" => REPLICA,
            "scan" => SCAN,
            _ => RDB,
        }),
        estimate_s: source.as_ref().map(|s| rules::estimate_s(job, s)),
        mode,
        source,
        target,
        findings,
    })
}

/// What is asked of both sides at once when it is known what they are.
struct Told {
    restore_refused: bool,
    psync_allowed: bool,
    /// Commands that clients of the source call, which write there, and which keyferry does not know.
    unknown_to_us: Result<Vec<String>>,
    /// Commands that clients of the source call, and the target does not know.
    unknown_there: Result<Vec<String>>,
}

impl Told {
    async fn by(
        job: &Job,
        source: Option<&Facts>,
        target: Option<&Facts>,
        known: Option<&str>,
    ) -> Told {
        let restore_refused = async {
            match target {
                Some(facts) => restoring::refused(&job.target, &facts.nodes).await,
                None => false,
            }
        };
        let psync_allowed = async {
            match (&job.source, known) {
                (Source::Rdb { .. }, _) => false,
                (
                    Source::Server {
                        mode: Mode::Scan, ..
                    },
                    _,
                ) => false,
                (_, Some(known)) => known == "replica",
                // A connection that fails says nothing of rights: the migration will tell.
                (Source::Server { endpoint, mode }, None) if source.is_some() => {
                    (psync::allowed(endpoint).await).unwrap_or(*mode == Mode::Replica)
                }
                (Source::Server { .. }, None) => false,
            }
        };
        let unknown_to_us = async {
            match (&job.source, source) {
                (Source::Server { endpoint, mode }, Some(facts))
                    if *mode != Mode::Scan && tells_commands(facts) =>
                {
                    probe::unknown_to_us(endpoint, &facts.called).await
                }
                _ => Ok(Vec::new()),
            }
        };
        let unknown_there = async {
            match (source, target) {
                (Some(source), Some(facts))
                    if tells_commands(facts) && !source.called.is_empty() =>
                {
                    probe::unknown(&job.target, &source.called).await
                }
                _ => Ok(Vec::new()),
            }
        };
        let (restore_refused, psync_allowed, unknown_to_us, unknown_there) =
            futures::join!(restore_refused, psync_allowed, unknown_to_us, unknown_there);
        Told {
            restore_refused,
            psync_allowed,
            unknown_to_us,
            unknown_there,
        }
    }
}

fn tells_commands(facts: &Facts) -> bool {
    facts.commands.get("COMMAND") == Some(&true)
}
