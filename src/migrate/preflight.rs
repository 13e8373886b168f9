//! What a run looks at before it starts: the source, what it had left, whether the target fits.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::migrate::context::{Facts, Shared};
use crate::migrate::load::existing;
use crate::migrate::write::losses;
use crate::net;
use crate::net::server::{self, Layout, Master, Product, Server};
use crate::plan::{Endpoint, Job, Mode, OnExisting, RdbPath, Source};
use crate::rdb::modules::ways::Takes;
use crate::source::{files, psync};
use crate::store::{Existing, MODE, ShardState, Store};
use crate::target::topology::{self, Pairs, Topology};
use crate::target::{health, restoring};
use crate::types::{DbIndex, ShardId, SlotSet, unix_ms};
use std::collections::BTreeSet;
use std::path::Path;

pub(super) fn mode_name(source: &Source) -> &'static str {
    match source {
        Source::Server { .. } => "replica",
        Source::Rdb { .. } => "rdb",
    }
}

pub(super) fn source_name(source: &Source) -> String {
    match source {
        Source::Server { endpoint, .. } => endpoint.redacted_url(),
        Source::Rdb {
            path: RdbPath::Stdin,
        } => "-".into(),
        Source::Rdb { path } => path.to_string(),
    }
}

/// What the source is, and how it is read.
pub(super) struct Found {
    /// Its masters; for a snapshot file there is one, which is the file, and for a scan one, which is all of it.
    pub layout: Layout,
    pub server: Option<Server>,
    pub scan: bool,
}

/// Looks at the source; "auto" means PSYNC where that is allowed.
///
/// `checked` is the mode that `check` has found just now.
pub(super) async fn find_source(
    job: &Job,
    store: &mut Store,
    checked: Option<&str>,
) -> Result<Found> {
    match &job.source {
        Source::Server { endpoint, mode } => {
            let (mut layout, server) = server::layout(endpoint)
                .await
                .map_err(|e| e.context("look at the source"))?;
            let before = store.json(MODE)?;
            let scan = match (mode, before.as_ref().and_then(|v| v.as_str())) {
                (Mode::Scan, _) => true,
                (Mode::Replica, _) => false,
                (Mode::Auto, Some(before)) => before == "scan",
                (Mode::Auto, None) if checked == Some("replica") => false,
                (Mode::Auto, None) => !psync::allowed(endpoint).await?,
            };
            store.put_json(MODE, &if scan { "scan" } else { "replica" }.into())?;
            if scan {
                if job.on_existing == OnExisting::Replace {
                    return Err(Error::new(
                        ErrorKind::Plan,
                        "a scan cannot tell the target's own keys from those that the source has deleted",
                    )
                    .hint("set on_existing to \"skip\" to keep the target's own keys, or to \"reconcile\" to have only the source's"));
                }
                layout = Layout {
                    cluster: false,
                    masters: vec![Master {
                        address: endpoint.address(),
                        slots: SlotSet::all(),
                        replicas: Vec::new(),
                    }],
                };
            }
            Ok(Found {
                layout,
                server: Some(server),
                scan,
            })
        }
        Source::Rdb { path } => {
            let named = files::named(path)?;
            // What one file is, is looked at when it is read: that of an append-only file may take a while.
            if named.len() > 1 {
                files::parts(&named)?;
            }
            let master = Master {
                address: source_name(&job.source),
                slots: SlotSet::all(),
                replicas: Vec::new(),
            };
            Ok(Found {
                layout: Layout {
                    cluster: false,
                    masters: vec![master],
                },
                server: None,
                scan: false,
            })
        }
    }
}

/// What a run asks both sides, all at once, when it knows where they are.
pub(super) struct Asking<'a> {
    pub job: &'a Job,
    pub source: Option<&'a Server>,
    pub topology: &'a Topology,
    pub claimed: Option<&'a SlotSet>,
}

/// What they have answered.
pub(super) struct Asked {
    pub watch: Option<health::Watch>,
    pub estimate_ms: i64,
    pub modules: Takes,
    /// By how much the target's clock is ahead.
    pub ahead_ms: i64,
    pub pairs: Pairs,
}

impl Asking<'_> {
    /// `begins`: nothing of ours is at the target yet; `known` are its masters of the run before, to watch it by.
    pub(super) async fn ask(&self, begins: bool, known: Option<BTreeSet<String>>) -> Result<Asked> {
        let (job, topology) = (self.job, self.topology);
        let watch = async {
            Ok(match known {
                Some(known) => Some(health::Watch::begin(&job.target, topology, known).await?),
                None => None,
            })
        };
        let is_empty = async {
            match self.claimed {
                _ if !begins || job.on_existing != OnExisting::Fail => Ok(()),
                Some(claimed) => existing::refuse_of(job, topology, claimed).await,
                None => refuse_existing(&job.target, topology).await,
            }
        };
        let estimate_ms = async {
            Ok(match (&job.source, self.source) {
                (Source::Server { endpoint, .. }, Some(_)) => load_estimate_ms(endpoint).await,
                _ => 0,
            })
        };
        let no_restore = async { Ok(restoring::refused(&job.target, &topology.nodes).await) };
        let pairs = async { Ok(topology::pairs(topology, &job.target).await) };
        let (watch, (), estimate_ms, modules, no_restore, ahead_ms, pairs) = futures::try_join!(
            watch,
            is_empty,
            estimate_ms,
            modules(job, self.source),
            no_restore,
            target_ahead_ms(job),
            pairs
        )?;
        Ok(Asked {
            watch,
            estimate_ms,
            modules: Takes {
                no_restore,
                ..modules
            },
            ahead_ms,
            pairs,
        })
    }
}

/// What is known of the modules of both sides.
async fn modules(job: &Job, source: Option<&Server>) -> Result<Takes> {
    let of_source = async {
        match job.source.endpoint() {
            Some(endpoint) => server::modules(endpoint).await,
            None => Ok(None),
        }
    };
    let (of_source, target) = futures::try_join!(of_source, server::modules(&job.target))?;
    Ok(Takes {
        target,
        source: of_source.unwrap_or_default(),
        source_valkey: source.is_some_and(|s| s.product == Product::Valkey),
        no_restore: false,
    })
}

/// What the versions of both sides can and cannot do; a file has no server.
pub(super) fn facts(source: Option<&Server>, target: &Server, modules: Takes) -> Facts {
    Facts {
        relative_ttls: source.is_some_and(|s| s.product == Product::Redis && !s.at_least(7, 0)),
        scripts_can_be_effects: source.is_some_and(|s| s.at_least(5, 0)),
        silent_entries_read: source.is_some_and(Server::silent_entries_read),
        silent_field_expiry: source.is_some_and(Server::silent_field_expiry)
            && target.has_field_expiry(),
        loses_field_expiry: source.is_some_and(Server::has_field_expiry)
            && !target.has_field_expiry(),
        modules,
        source_has_modules: source.is_some_and(|s| s.modules),
        target_has_functions: target.has_functions(),
        target_has_set_pxat: target.has_set_pxat(),
    }
}

/// Gives each master the state it had: by its address, else by its slots (it was promoted), else a new one.
///
/// A worker's first shards have the numbers of their masters; numbers below `used` belong to others.
pub(super) fn assign(
    masters: &[Master],
    saved: &[ShardState],
    numbers: &[u16],
    used: u16,
) -> Vec<ShardState> {
    let mut free: Vec<&ShardState> = saved.iter().collect();
    let next = saved.iter().map(|s| s.shard.0 + 1).max().unwrap_or(0);
    let first = if saved.is_empty() { numbers } else { &[] };
    let mut numbers = first.iter().copied().chain(next.max(used)..);
    let take = |free: &mut Vec<&ShardState>, fits: &dyn Fn(&ShardState) -> bool| {
        let at = free.iter().position(|s| fits(s))?;
        Some(free.remove(at).clone())
    };
    let by_address: Vec<Option<ShardState>> = (masters.iter())
        .map(|m| take(&mut free, &|s| s.address == m.address))
        .collect();
    (masters.iter().zip(by_address))
        .map(|(master, known)| {
            let slots = master.slots.to_string();
            let known = known.or_else(|| take(&mut free, &|s| s.slots == slots));
            known.unwrap_or_else(|| {
                let text = if saved.is_empty() {
                    slots
                } else {
                    String::new()
                };
                let number = numbers.next().unwrap_or(u16::MAX - 1);
                ShardState::new(ShardId(number), master.address.clone(), text)
            })
        })
        .collect()
}

/// What the source has written since a run has ended is not known: until this one knows, its lag is all that time.
pub(super) fn since_then(saved: &[ShardState]) -> Vec<ShardState> {
    let behind = |shard: &ShardState| {
        let away = u64::try_from(unix_ms() - shard.updated_at).unwrap_or(0);
        ShardState {
            lag_ms: shard.lag_ms.max(away),
            ..shard.clone()
        }
    };
    saved.iter().map(behind).collect()
}

/// Databases that the target cannot hold are found before anything is written.
pub(super) fn fits_databases(job: &Job, topology: &Topology) -> Result<()> {
    if !topology.one_database {
        return Ok(());
    }
    let beyond = job.databases.moved().any(|(_, to)| to != DbIndex::ZERO);
    if beyond && !job.databases.is_identity() {
        return Err(Error::new(
            ErrorKind::Plan,
            "databases.map leads to a database other than 0, but the target has only database 0",
        )
        .hint("map the databases to 0, or leave them out with databases.include"));
    }
    Ok(())
}

async fn refuse_existing(endpoint: &Endpoint, topology: &Topology) -> Result<()> {
    let asked = topology.nodes.iter().map(async |address| {
        let mut conn = net::control(endpoint, address).await?;
        Ok::<_, Error>((address, conn.call(&[b"INFO", b"keyspace"]).await?))
    });
    for (address, reply) in futures::future::try_join_all(asked).await? {
        let text = reply.text().unwrap_or_default();
        if let Some(line) = text.lines().find(|l| l.starts_with("db")) {
            return Err(Error::new(
                ErrorKind::TargetNotEmpty,
                format!("the target {address} holds keys already ({})", line.trim()),
            ));
        }
    }
    Ok(())
}

/// A generous guess at how long the load takes, from the source's memory: expiries nearer than that are held.
async fn load_estimate_ms(endpoint: &Endpoint) -> i64 {
    let ask = async {
        let mut conn = net::question(endpoint).await.ok()?;
        let reply = conn.ask(&[b"INFO", b"memory"]).await.ok()?;
        crate::resp::info::field(&reply.text()?, "used_memory")?
            .parse::<i64>()
            .ok()
    };
    // 10 MB/s, and two minutes for the source's fork.
    ask.await.unwrap_or(1 << 30) / 10_000 + 120_000
}

/// What a target that refuses RESTORE costs is in the report.
pub(super) fn note_refused_restore(shared: &Shared) {
    if shared.facts.modules.no_restore {
        shared.event("warning", "restore_refused", losses::WITHOUT_RESTORE);
    }
}

/// By how much the target's clock is ahead of the source's; 0 where they do not tell.
async fn target_ahead_ms(job: &Job) -> Result<i64> {
    let Source::Server { endpoint, .. } = &job.source else {
        return Ok(0);
    };
    let source = server::clock_ahead_ms(endpoint);
    let told = futures::try_join!(source, server::clock_ahead_ms(&job.target))?;
    Ok(match told {
        (Some(source), Some(target)) => target.saturating_sub(source),
        _ => 0,
    })
}

/// Expiries are absolute, so a target whose clock is ahead lets keys go early: that is said before it surprises.
pub(super) fn compare_clocks(ahead: i64, shared: &Shared) {
    if ahead.saturating_abs() > CLOCK_TOLERANCE_MS {
        shared.event(
            "warning",
            "clocks",
            &format!(
                "the target's clock is {} ms {} the source's: keys with an expiry live that much {} there",
                ahead.saturating_abs(),
                if ahead > 0 { "ahead of" } else { "behind" },
                if ahead > 0 { "shorter" } else { "longer" },
            ),
        );
    }
}

/// By how much clocks may differ without a word.
const CLOCK_TOLERANCE_MS: i64 = 250;

pub(super) fn remove_spool(dir: &Path) -> Result<()> {
    let _ = std::fs::remove_file(Existing::path(dir));
    let _ = std::fs::remove_file(Existing::taken_path(dir));
    match std::fs::remove_dir_all(dir.join("spool")) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e)
            .context(ErrorKind::Disk, || {
                format!("remove {}", dir.join("spool").display())
            }),
        _ => Ok(()),
    }
}
