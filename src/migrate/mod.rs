//! The migration: bulk load, then follow the stream. The file to read first.
//!
//! [`run`] finds the source's masters, decides for each whether to begin or to go on, and starts a link (task) and a
//! pump (thread) for it. Links hear the wish to stop first; pumps end with their spool.

mod adopt;
mod bulk;
mod census;
mod checkpoint;
pub mod control;
mod existing;
mod expiry;
mod heal;
mod loaded;
mod losses;
mod obey;
mod ownership;
pub mod progress;
mod pump;
pub mod rebuild;
mod reconcile;
mod reload;
mod renamed;
mod repair;
mod rewind;
mod router;
mod shard;
mod shards;
mod shared;
mod sweep;
mod timed;
mod touched;
mod trouble;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::migrate::ownership::Ownership;
use crate::migrate::progress::{ENDED, Progress, ShardProgress};
use crate::migrate::shards::Shards;
use crate::migrate::shared::Shared;
use crate::net;
use crate::net::guard;
use crate::net::server::{self, Layout, Master, Product, Server};
use crate::plan::{Endpoint, Job, Mode, OnExisting, RdbPath, Source};
use crate::source::place::Place;
use crate::source::{private_dir, psync};
use crate::store::{CHECKED, Existing, Lock, MODE, Phase, Run, ShardState, Stage, Store};
use crate::target::health;
use crate::target::topology::{self, Topology};
use crate::task::{Shutdown, Throttle, peak_rss};
use crate::types::unix_ms;
use crate::types::{DbIndex, ShardId, SlotSet};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// How long source or target may be away before a run gives up (state is saved, the next run goes on).
const PATIENCE: Duration = Duration::from_secs(600);

/// How a migration is run, beside its plan.
#[derive(Debug, Clone)]
pub struct Options {
    pub dry_run: bool,
    pub until_caught_up: bool,
    /// Forget the saved state and begin anew.
    pub fresh: bool,
    /// The plan's own folder.
    pub work_dir: PathBuf,
    /// What `check` has found out just now.
    pub checked: Option<serde_json::Value>,
}

/// The answer of `migrate --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub keys_written: u64,
    pub commands_applied: u64,
    pub healed_keys: u64,
    pub skipped: BTreeMap<String, u64>,
    pub elapsed_ms: u64,
    pub keys_per_s: u64,
    pub peak_rss_bytes: u64,
    pub caught_up: bool,
    pub dry_run: bool,
    pub interrupted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub census: Option<serde_json::Value>,
}

/// Runs the migration of `job` until it is done, caught up (if asked), or stopped.
///
/// Errors leave the state saved; running again goes on. `Locked` when another process works on the plan.
pub async fn run(
    job: Job,
    options: Options,
    progress: Arc<Progress>,
    stop: Shutdown,
) -> Result<Summary> {
    let started = Instant::now();
    let dir = if options.dry_run {
        options.work_dir.join("dry-run")
    } else {
        options.work_dir.clone()
    };
    private_dir(&dir)?;
    let _lock = Lock::acquire(&dir)?;
    let mut store = Store::open(&dir)?;
    let stage = store.stage()?;
    if options.fresh && !options.dry_run && !matches!(stage, Stage::Source | Stage::RolledBack) {
        return Err(switched(stage));
    }
    if options.fresh && store.is_frozen()? {
        return Err(Error::new(
            ErrorKind::State,
            "a cutover that was cut off has left users without their rights",
        )
        .hint("run `keyferry rollback` first: it gives them back"));
    }
    if options.fresh {
        store.wipe()?;
        remove_spool(&dir)?;
    }
    if store.stage()?.is_fenced() && !options.dry_run {
        return Err(switched(store.stage()?));
    }
    store.begin_run(&Run {
        plan: job.name.clone(),
        fingerprint: job.fingerprint.clone(),
        redacted: job.redacted.clone(),
        mode: mode_name(&job.source).into(),
        source: source_name(&job.source),
        target: job.target.redacted_url(),
        started_ms: unix_ms(),
    })?;
    if let Some(checked) = &options.checked {
        store.put_json(CHECKED, checked)?;
    }
    store.remember(&job)?;
    let result = migrate(&job, &options, &dir, store, progress, &stop).await;
    let mut store = Store::open(&dir)?;
    store.remember(&job)?;
    match &result {
        Err(e) if e.kind() != ErrorKind::Interrupted => {
            store.event(unix_ms(), "error", "failed", &e.to_string())?;
            // A run that never began has not failed: nothing was touched.
            if !store.shards()?.is_empty() {
                store.enter_phase(Phase::Failed, unix_ms())?;
            }
        }
        _ => {}
    }
    let caught_up = match result {
        Ok(caught_up) => caught_up,
        Err(e) if e.kind() == ErrorKind::Interrupted => false,
        Err(e) => return Err(e),
    };
    summary(
        &store,
        started,
        caught_up,
        options.dry_run,
        stop.requested() && !(caught_up && options.until_caught_up),
    )
}

/// The clients are not where this migration would have them.
fn switched(stage: Stage) -> Error {
    let (text, hint) = match stage {
        Stage::RolledBack => (
            "this migration was rolled back: the source has gone on, and the target holds what was there before",
            "start over with --fresh, with on_existing \"reconcile\" for what the target still holds",
        ),
        Stage::Switching => (
            "a cutover of this plan was cut off while it moved the clients",
            "run `keyferry cutover` again: it finds out, or asks, where they are",
        ),
        _ => (
            "the clients have been moved to the target: nothing of the old source may be applied to it any more",
            "`keyferry rollback` takes them back, with what was written meanwhile",
        ),
    };
    Error::new(ErrorKind::State, text).hint(hint)
}

fn summary(
    store: &Store,
    started: Instant,
    caught_up: bool,
    dry_run: bool,
    interrupted: bool,
) -> Result<Summary> {
    let shards = store.shards()?;
    let keys_written = shards.iter().map(|s| s.keys_written).sum();
    let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let skipped = (store.counts()?.into_iter())
        .filter_map(|(name, n)| Some((name.strip_prefix("skipped.")?.to_owned(), n)));
    Ok(Summary {
        keys_written,
        commands_applied: shards.iter().map(|s| s.commands_applied).sum(),
        healed_keys: shards.iter().map(|s| s.healed_keys).sum(),
        skipped: skipped.collect(),
        elapsed_ms,
        keys_per_s: keys_written.saturating_mul(1000) / elapsed_ms.max(1),
        peak_rss_bytes: peak_rss(),
        caught_up,
        dry_run,
        interrupted,
        census: store.json("census")?.filter(|_| dry_run),
    })
}

fn mode_name(source: &Source) -> &'static str {
    match source {
        Source::Server { .. } => "replica",
        Source::Rdb { .. } => "rdb",
    }
}

fn source_name(source: &Source) -> String {
    match source {
        Source::Server { endpoint, .. } => endpoint.redacted_url(),
        Source::Rdb {
            path: RdbPath::Stdin,
        } => "-".into(),
        Source::Rdb {
            path: RdbPath::File(path),
        } => path.display().to_string(),
    }
}

fn remove_spool(dir: &Path) -> Result<()> {
    let _ = std::fs::remove_file(Existing::path(dir));
    match std::fs::remove_dir_all(dir.join("spool")) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e)
            .context(ErrorKind::Disk, || {
                format!("remove {}", dir.join("spool").display())
            }),
        _ => Ok(()),
    }
}

/// What the source is, and how it is read.
struct Found {
    /// Its masters; for a snapshot file there is one, which is the file, and for a scan one, which is all of it.
    layout: Layout,
    server: Option<Server>,
    scan: bool,
}

/// Looks at the source; "auto" means PSYNC where that is allowed.
async fn find_source(job: &Job, store: &mut Store) -> Result<Found> {
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
        Source::Rdb { .. } => {
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

async fn migrate(
    job: &Job,
    options: &Options,
    dir: &Path,
    mut store: Store,
    progress: Arc<Progress>,
    stop: &Shutdown,
) -> Result<bool> {
    let Found {
        layout,
        server: source,
        scan,
    } = find_source(job, &mut store).await?;
    let (topology, target) = topology::discover(&job.target)
        .await
        .map_err(|e| e.context("look at the target"))?;
    fits_databases(job, &topology)?;
    let watch = if options.dry_run {
        None
    } else {
        let known = known_masters(&store)?;
        let watch = health::Watch::begin(&job.target, &topology, known).await?;
        store.put_json(MASTERS, &watch.health().masters())?;
        Some(watch)
    };
    let saved = store.shards()?;
    if let Source::Server { .. } = &job.source {
        let stale = since_then(&saved);
        store.save_shards(&stale, &Default::default(), None)?;
    }
    if saved.is_empty() && !options.dry_run && job.on_existing == OnExisting::Fail {
        refuse_existing(&job.target, &topology).await?;
    }
    let estimate = match (&job.source, &source) {
        (Source::Server { endpoint, .. }, Some(_)) => load_estimate_ms(endpoint).await,
        _ => 0,
    };
    let assigned = assign(&layout.masters, &saved);
    let ownership = layout.cluster.then(|| {
        let present: Vec<(ShardId, &Master)> = (assigned.iter())
            .map(|s| s.shard)
            .zip(&layout.masters)
            .collect();
        let before: Vec<(ShardId, String)> =
            saved.iter().map(|s| (s.shard, s.slots.clone())).collect();
        Arc::new(Ownership::new(&present, &before))
    });
    let shared = Arc::new(Shared {
        job: job.clone(),
        store: Mutex::new(store),
        runtime: Handle::current(),
        stop: stop.clone(),
        dry_run: options.dry_run,
        until_caught_up: options.until_caught_up,
        scan,
        patience: job.limits.outage_s.map_or(PATIENCE, Duration::from_secs),
        relative_ttls: source
            .as_ref()
            .is_some_and(|s| s.product == Product::Redis && !s.at_least(7, 0)),
        silent_entries_read: source.as_ref().is_some_and(Server::silent_entries_read),
        ownership,
        health: watch.as_ref().map(health::Watch::health),
        target_modules: server::modules(&job.target).await?,
        target_has_functions: target.has_functions(),
        load_estimate_ms: estimate,
        throttle: Throttle::new(job.limits.keys_per_s, job.limits.bytes_per_s),
        told: Default::default(),
        control: Default::default(),
        existing: if job.on_existing == OnExisting::Skip {
            existing::find(&job.target, &topology, dir).await?
        } else {
            Default::default()
        },
    });
    shared.event(
        "info",
        "start",
        &format!(
            "from {} ({}) to {} ({target}, masters: {})",
            source_name(&job.source),
            source.as_ref().map_or("a file".into(), |s| format!(
                "{s}, masters: {}",
                layout.masters.len()
            )),
            job.target.redacted_url(),
            topology.nodes.len(),
        ),
    );
    compare_clocks(job, &shared).await?;
    let phase = if !saved.is_empty() && saved.iter().all(|s| s.snapshot_loaded) {
        Phase::Stream
    } else {
        Phase::Snapshot
    };
    shared.store(|s| s.enter_phase(phase, unix_ms()))?;

    let ends = Shutdown::default();
    if !options.dry_run {
        let served = control::serve(
            dir.to_owned(),
            shared.control.clone(),
            progress.clone(),
            scan,
            stop.clone(),
        );
        let (shared, ended) = (shared.clone(), ends.clone());
        tokio::spawn(async move {
            tokio::select! {
                served = served => if let Err(e) = served {
                    shared.event("warning", "control", &format!("a cutover cannot ask this migration: {e}"));
                },
                () = ended.wait() => {}
            }
        });
    }
    shared.meet_limits()?;
    let mut nodes: Vec<(Endpoint, String)> = Vec::new();
    if let Some(endpoint) = job.source.endpoint() {
        nodes.extend(
            layout
                .masters
                .iter()
                .map(|m| (endpoint.clone(), m.address.clone())),
        );
    }
    nodes.extend(
        topology
            .nodes
            .iter()
            .map(|n| (job.target.clone(), n.clone())),
    );
    tokio::spawn(guard::watch(
        nodes,
        job.limits.latency_ms.map(Duration::from_millis),
        shared.throttle.clone(),
        ends.clone(),
    ));
    let watching = watch.map(|w| tokio::spawn(w.run(ends.clone())));
    let shards = Shards {
        shared: shared.clone(),
        topology,
        target,
        dir: dir.join("spool"),
        count: layout.masters.len(),
        progress,
        running: Default::default(),
    };
    for (master, shard) in layout.masters.iter().zip(assigned) {
        let place = match &job.source {
            Source::Server { endpoint, .. } => {
                Some(Arc::new(Place::new(endpoint, layout.cluster, master)))
            }
            Source::Rdb { .. } => None,
        };
        shards.start(shard, place);
    }
    // Which shards there are may change; the run ends when all of them have.
    let joined = {
        let joining = shards.join();
        let phases = watch_phases(&shards);
        let slots = async {
            match &shared.ownership {
                Some(ownership) => ownership::watch(&shards, ownership).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(joining);
        tokio::select! {
            joined = &mut joining => joined,
            () = phases => joining.await,
            watched = slots => joining.await.and(watched),
        }
    };
    ends.request();
    if let Some(watching) = watching {
        watching.abort();
    }
    if let Some(health) = &shared.health {
        shared.store(|s| s.put_json(MASTERS, &health.masters()))?;
    }
    let rdb = source.is_none();
    let views = shards.views();
    let caught_up = views.iter().all(|v| v.caught_up.load(Relaxed));
    if joined.is_ok() && rdb && !stop.requested() {
        return Ok(true);
    }
    joined.map(|()| caught_up)
}

/// Expiries are absolute, so a target whose clock is ahead lets keys go early: that is said before it surprises.
async fn compare_clocks(job: &Job, shared: &Shared) -> Result<()> {
    let Source::Server { endpoint, .. } = &job.source else {
        return Ok(());
    };
    let source = server::clock_ahead_ms(endpoint).await?;
    let target = server::clock_ahead_ms(&job.target).await?;
    let (Some(source), Some(target)) = (source, target) else {
        return Ok(());
    };
    let ahead = target - source;
    if ahead.abs() > CLOCK_TOLERANCE_MS {
        shared.event(
            "warning",
            "clocks",
            &format!(
                "the target's clock is {} ms {} the source's: keys with an expiry live that much {} there",
                ahead.abs(),
                if ahead > 0 { "ahead of" } else { "behind" },
                if ahead > 0 { "shorter" } else { "longer" },
            ),
        );
    }
    Ok(())
}

/// By how much clocks may differ without a word.
const CLOCK_TOLERANCE_MS: i64 = 250;

/// The document that keeps the run ids of the target's masters.
pub(crate) const MASTERS: &str = "target_masters";

fn known_masters(store: &Store) -> Result<BTreeSet<String>> {
    let saved = store.json(MASTERS)?.unwrap_or_default();
    let ids = saved.as_array().into_iter().flatten();
    Ok(ids.filter_map(|v| v.as_str().map(str::to_owned)).collect())
}

/// Gives each master the state it had: by its address, else by its slots (it was promoted), else a new one.
fn assign(masters: &[Master], saved: &[ShardState]) -> Vec<ShardState> {
    let mut free: Vec<&ShardState> = saved.iter().collect();
    let mut next = saved.iter().map(|s| s.shard.0 + 1).max().unwrap_or(0);
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
                next += 1;
                let text = if saved.is_empty() {
                    slots
                } else {
                    String::new()
                };
                ShardState::new(ShardId(next - 1), master.address.clone(), text)
            })
        })
        .collect()
}

/// How often a run looks whether the clients have been moved.
const STAGE_EVERY: Duration = Duration::from_secs(1);

/// Notes when all shards are past the snapshot, and ends a run that was to end when caught up.
async fn watch_phases(shards: &Shards) {
    let (shared, mut streaming, mut looked) = (&shards.shared, false, Instant::now());
    while !shared.stop.requested() {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if looked.elapsed() > STAGE_EVERY && !shared.dry_run {
            looked = Instant::now();
            // A cutover may have been finished by others.
            let stage = shared.store(|s| s.stage()).unwrap_or_default();
            if !matches!(stage, Stage::Source | Stage::Switching) {
                shared.stop.request();
                return;
            }
        }
        let views = shards.views();
        let phase = |v: &ShardProgress| v.view().phase;
        if !streaming && views.iter().all(|v| matches!(phase(v), "stream" | ENDED)) {
            streaming = true;
            if let Err(e) = shared.store(|s| s.enter_phase(Phase::Stream, unix_ms())) {
                tracing::warn!("{e}");
            }
        }
        if shared.until_caught_up && streaming && views.iter().all(|v| v.caught_up.load(Relaxed)) {
            shared.stop.request();
            return;
        }
    }
}

/// What the source has written since a run has ended is not known: until this one knows, its lag is all that time.
fn since_then(saved: &[ShardState]) -> Vec<ShardState> {
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
fn fits_databases(job: &Job, topology: &Topology) -> Result<()> {
    if !topology.one_slot {
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
    for address in &topology.nodes {
        let mut conn = net::connect(endpoint, address).await?;
        let reply = conn.call(&[b"INFO", b"keyspace"]).await?;
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
        let mut conn = net::connect(endpoint, &endpoint.address()).await.ok()?;
        let reply = conn.ask(&[b"INFO", b"memory"]).await.ok()?;
        net::info_field(&reply.text()?, "used_memory")?
            .parse::<i64>()
            .ok()
    };
    // 10 MB/s, and two minutes for the source's fork.
    ask.await.unwrap_or(1 << 30) / 10_000 + 120_000
}
