//! The migration: bulk load, then follow the stream. The file to read first.
//!
//! [`run`] finds the source's masters, decides for each whether to begin or to go on, and starts a link (task) and a
//! loop (thread) for it. Links hear the wish to stop first; loops end with their spool.

mod apply;
mod checkpoint;
mod context;
pub mod control;
mod expiry;
mod heal;
mod indexes;
mod load;
mod preflight;
pub mod progress;
mod recover;
mod scan;
mod shard;
mod slots;
mod stream;
mod tally;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod testing;
mod workers;
mod write;

use crate::error::{Error, ErrorKind, Result};
use crate::migrate::preflight::{
    Asked, Asking, Found, assign, compare_clocks, facts, find_source, fits_databases, mode_name,
    note_refused_restore, remove_spool, since_then, source_name,
};

use crate::migrate::checkpoint::writer::Saver;
use crate::migrate::context::{Pace, RunOptions, Shared};
use crate::migrate::control::desk::{self, Desk};
use crate::migrate::control::port::{Listen, Port};
use crate::migrate::control::token;
use crate::migrate::indexes::Building;
use crate::migrate::load::existing;
use crate::migrate::progress::{ENDED, Progress, ShardProgress};
use crate::migrate::shard::set::Shards;
use crate::migrate::slots::ownership::Ownership;
use crate::migrate::slots::watch;
use crate::net::guard;
use crate::net::server::{Layout, Master};
use crate::plan::{Endpoint, Job, Share, Source};
use crate::source::place::Place;
use crate::source::pulse::{Pulse, While};
use crate::store::{
    CHECKED, Claim, Lock, MASTERS, PULSE, Phase, Run, Stage, Store, UnknownCommand, recall_nodes,
    stage_of, worker_dir,
};
use crate::target::{health, topology};
use crate::task::{Shutdown, peak_rss, private_dir};
use crate::types::ShardId;
use crate::types::unix_ms;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
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
    /// What the source has lost since an earlier run is removed from the target too.
    pub accept_loss: bool,
    /// A snapshot of a version that is newer than all that are known is refused.
    pub strict: bool,
    /// Forget the saved state and begin anew.
    pub fresh: bool,
    /// The plan's own folder.
    pub work_dir: PathBuf,
    /// Only these of the source's masters, with a state of their own below the plan's folder.
    pub share: Option<Share>,
    /// Where a cutover on another machine may ask this worker.
    pub listen: Option<Listen>,
    /// What `check` has found out just now.
    pub checked: Option<serde_json::Value>,
}

impl Options {
    /// Where the state lies: a worker's is its own.
    pub fn home(&self) -> PathBuf {
        match &self.share {
            Some(share) => worker_dir(&self.work_dir, &share.folder()),
            None => self.work_dir.clone(),
        }
    }
}

/// The answer of `migrate --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub keys_written: u64,
    pub commands_applied: u64,
    pub healed_keys: u64,
    pub skipped: BTreeMap<String, u64>,
    /// Commands of the stream that keyferry does not know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown_commands: Vec<UnknownCommand>,
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
    let home = options.home();
    let dir = match options.dry_run {
        true => home.join("dry-run"),
        false => home,
    };
    private_dir(&dir)?;
    let _lock = Lock::acquire(&dir)?;
    if options.share.is_none() && !options.dry_run {
        workers::refuse_workers(&options.work_dir)?;
    }
    let mut store = Store::open(&dir)?;
    let desk = Desk {
        dir: dir.clone(),
        plan_dir: options.work_dir.clone(),
        control: Default::default(),
        progress: progress.clone(),
        scan: false,
        held: false,
        instance: token::number()?,
        stop: stop.clone(),
    };
    let port = match &options.listen {
        Some(listen) if !options.dry_run => Some(Port::open(listen).await?),
        _ => None,
    };
    let mut stage = stage_of(&dir, &options.work_dir)?;
    if let (Stage::Switching, Some(port)) = (stage, &port) {
        tracing::warn!(
            "a cutover was cut off while it moved the clients: nothing is moved until it is run again and says where they are"
        );
        stage = port.hold(desk.held()).await;
        if stage == Stage::Switching {
            return Err(Error::stopped(
                "stopped before it was known where the clients are",
            ));
        }
    }
    // After a rollback one may start over.
    let over = options.fresh && stage == Stage::RolledBack;
    if stage.is_fenced() && !over && !options.dry_run {
        return Err(switched(stage));
    }
    let frozen = match Store::open_readonly(&options.work_dir)? {
        Some(plans) => store.is_frozen()? || plans.is_frozen()?,
        None => store.is_frozen()?,
    };
    if options.fresh && frozen {
        return Err(Error::new(
            ErrorKind::State,
            "a cutover that was cut off has left users without their rights",
        )
        .hint("run `keyferry rollback` first: it gives them back"));
    }
    if options.fresh {
        if over && options.share.is_some() {
            workers::begin_over(&options.work_dir)?;
        }
        store.wipe()?;
        remove_spool(&dir)?;
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
    recall_nodes(&options.work_dir, &job);
    let result = migrate(&job, &options, store, desk, port).await;
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
        unknown_commands: store.unknown_commands()?,
        elapsed_ms,
        keys_per_s: keys_written.saturating_mul(1000) / elapsed_ms.max(1),
        peak_rss_bytes: peak_rss(),
        caught_up,
        dry_run,
        interrupted,
        census: store.json("census")?.filter(|_| dry_run),
    })
}

async fn migrate(
    job: &Job,
    options: &Options,
    mut store: Store,
    mut desk: Desk,
    port: Option<Port>,
) -> Result<bool> {
    let (dir, stop) = (&desk.dir.clone(), &desk.stop.clone());
    let checked = options.checked.as_ref().and_then(|c| c["mode"].as_str());
    let target = async {
        let discovered = topology::discover(&job.target).await;
        discovered.map_err(|e| e.context("look at the target"))
    };
    // The first error ends it, whatever the other side does.
    let found = futures::try_join!(find_source(job, &mut store, checked), target)?;
    let (found, (mut topology, target)) = found;
    let Found {
        mut layout,
        server: source,
        scan,
    } = found;
    let claim = match &options.share {
        Some(share) => Some(workers::take(
            share,
            &mut layout.masters,
            &mut store,
            &options.work_dir,
            options.dry_run,
        )?),
        None => None,
    };
    let claimed = claim.as_ref().map(Claim::slot_set);
    let ends = Shutdown::default();
    let pulse = feel_pulse(job, options, &layout, &store, &ends)?;
    store.keep_nodes(job)?;
    fits_databases(job, &topology)?;
    let saved = store.shards()?;
    if let Source::Server { .. } = &job.source {
        let stale = since_then(&saved);
        store.save_shards(&stale, &Default::default(), None)?;
    }
    let begins = saved.is_empty() && !options.dry_run;
    let known = known_masters(&store)?;
    let Asked {
        watch,
        estimate_ms,
        modules,
        ahead_ms,
        pairs,
    } = (Asking {
        job,
        source: source.as_ref(),
        topology: &topology,
        claimed: claimed.as_ref(),
    })
    .ask(begins, (!options.dry_run).then_some(known))
    .await?;
    topology.pairs = pairs;
    if let Some(view) = watch.as_ref().map(|w| w.health().view())
        && view.losses == 0
    {
        store.put_json(MASTERS, &view.masters_document())?;
    }
    let numbers = claim.as_ref().map_or(Vec::new(), Claim::numbers);
    let used = claim.as_ref().map_or(0, Claim::used);
    let assigned = assign(&layout.masters, &saved, &numbers, used);
    let ownership = layout.cluster.then(|| {
        let present: Vec<(ShardId, &Master)> = (assigned.iter())
            .map(|s| s.shard)
            .zip(&layout.masters)
            .collect();
        let before: Vec<(ShardId, String)> =
            saved.iter().map(|s| (s.shard, s.slots.clone())).collect();
        Arc::new(Ownership::new(&present, &before, claimed.clone()))
    });
    let shared = Arc::new(Shared {
        job: job.clone(),
        store: Mutex::new(store),
        saver: Saver::start(dir)?,
        runtime: Handle::current(),
        stop: stop.clone(),
        run: RunOptions {
            dry_run: options.dry_run,
            until_caught_up: options.until_caught_up,
            accept_loss: options.accept_loss,
            strict: options.strict,
            scan,
            patience: job.limits.outage_s.map_or(PATIENCE, Duration::from_secs),
            load_estimate_ms: estimate_ms,
        },
        facts: facts(source.as_ref(), &target, modules),
        reached: AtomicBool::new(false),
        health: watch.as_ref().map(health::Watch::health),
        ownership,
        own: existing::own(job, &topology, dir, claimed.as_ref(), &saved).await?,
        pace: Pace::new(job, layout.masters.len().max(1)),
        control: desk.control.clone(),
        // All of them, so that none that is still connecting is passed over.
        losses_seen: Mutex::new(assigned.iter().map(|s| (s.shard, 0)).collect()),
        told: Default::default(),
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
    note_refused_restore(&shared);
    compare_clocks(ahead_ms, &shared);
    let phase = if !saved.is_empty() && saved.iter().all(|s| s.snapshot_loaded) {
        Phase::Stream
    } else {
        Phase::Snapshot
    };
    shared.store(|s| s.enter_phase(phase, unix_ms()))?;

    desk.scan = scan;
    if !options.dry_run {
        let (shared, desk, ended) = (shared.clone(), desk.clone(), ends.clone());
        let beside = desk.clone();
        let beside = async move {
            if let Err(e) = desk::serve(beside).await {
                let what = format!("a cutover cannot ask this migration: {e}");
                shared.event("warning", "control", &what);
            }
        };
        let from_afar = async move {
            if let Some(port) = port {
                port.serve(desk).await;
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                _ = futures::future::join(beside, from_afar) => {}
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
        shared.pace.throttle.clone(),
        ends.clone(),
    ));
    let watching = watch.map(|w| tokio::spawn(w.run(ends.clone())));
    let shards = Shards {
        shared: shared.clone(),
        topology,
        target,
        dir: dir.join("spool"),
        used,
        progress: desk.progress.clone(),
        running: Default::default(),
    };
    if let Some(pulse) = &pulse {
        if saved.is_empty() {
            tokio::time::sleep_until(pulse.began + BASELINE).await;
        }
        pulse.enter(match phase {
            Phase::Stream => While::Stream,
            _ => While::Snapshot,
        });
    }
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
        let phases = watch_phases(&shards, pulse.as_deref(), &desk);
        let slots = async {
            match &shared.ownership {
                Some(ownership) => watch::watch(&shards, ownership).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(joining);
        tokio::select! {
            joined = &mut joining => joined,
            () = phases => joining.await,
            watched = slots => {
                if watched.is_err() {
                    stop.request();
                }
                joining.await.and(watched)
            }
        }
    };
    ends.request();
    save_seen(&shared, pulse.as_deref())?;
    if let Some(watching) = watching {
        watching.abort();
    }
    // Masters that have joined meanwhile are known ones for the next run.
    shared.note_masters()?;
    let all = || shards.views().iter().all(|v| v.caught_up.load(Relaxed));
    // What it had when it ended counts, whatever the link's end has made of it since.
    joined.map(|()| shared.reached.load(Relaxed) || all())
}

fn known_masters(store: &Store) -> Result<BTreeSet<String>> {
    let saved = store.json(MASTERS)?.unwrap_or_default();
    let ids = saved.as_array().into_iter().flatten();
    Ok(ids.filter_map(|v| v.as_str().map(str::to_owned)).collect())
}

/// How long the source is asked before it is read, at least.
const BASELINE: Duration = Duration::from_millis(120);

/// Begins to ask the source's masters how fast they answer; `None` where there is no server, or nothing is moved.
fn feel_pulse(
    job: &Job,
    options: &Options,
    layout: &Layout,
    store: &Store,
    ends: &Shutdown,
) -> Result<Option<Arc<Pulse>>> {
    let Source::Server { endpoint, .. } = &job.source else {
        return Ok(None);
    };
    if options.dry_run {
        return Ok(None);
    }
    let pulse = Arc::new(Pulse::recall(store.json(PULSE)?.as_ref()));
    for master in &layout.masters {
        let (pulse, ends) = (pulse.clone(), ends.clone());
        let (endpoint, address) = (endpoint.clone(), master.address.clone());
        tokio::spawn(async move { pulse.ask(&endpoint, &address, &ends).await });
    }
    Ok(Some(pulse))
}

/// Saves how fast the source answers, and the nodes that both sides' clusters have told.
fn save_seen(shared: &Shared, pulse: Option<&Pulse>) -> Result<()> {
    if let Some(pulse) = pulse {
        let document = pulse.document()?;
        shared.store(|s| s.put_json(PULSE, &document))?;
    }
    shared.store(|s| s.keep_nodes(&shared.job))
}

/// How often a run looks whether the clients have been moved.
const STAGE_EVERY: Duration = Duration::from_secs(1);
/// How often it saves how fast the source answers: seldom, as a loop waits for the disk meanwhile.
const PULSE_EVERY: Duration = Duration::from_secs(10);

/// Notes when all shards are past the snapshot, and ends a run that was to end when caught up.
async fn watch_phases(shards: &Shards, pulse: Option<&Pulse>, desk: &Desk) {
    let (shared, mut streaming, mut looked) = (&shards.shared, false, Instant::now());
    let mut felt = Instant::now();
    let mut building = Building::new();
    while !shared.stop.requested() {
        // The end of a phase is waited for.
        let nap = match streaming && !shared.run.until_caught_up {
            true => Duration::from_millis(50),
            false => Duration::from_millis(10),
        };
        tokio::time::sleep(nap).await;
        if looked.elapsed() > STAGE_EVERY && !shared.run.dry_run {
            looked = Instant::now();
            // A cutover may have been finished by others; one that is still here may have us watch the old side.
            let moved = !matches!(desk.stage(), Stage::Source | Stage::Switching);
            if moved && !shared.control.attended() {
                shared.stop.request();
                return;
            }
            if felt.elapsed() > PULSE_EVERY {
                felt = Instant::now();
                if let Err(e) = save_seen(shared, pulse) {
                    tracing::warn!("{e}");
                }
            }
        }
        let views = shards.views();
        let phase = |v: &ShardProgress| v.view().phase;
        if !streaming && views.iter().all(|v| matches!(phase(v), "stream" | ENDED)) {
            streaming = true;
            if let Some(pulse) = pulse {
                pulse.enter(While::Stream);
            }
            if let Err(e) = shared.store(|s| s.enter_phase(Phase::Stream, unix_ms())) {
                tracing::warn!("{e}");
            }
        }
        let built = streaming
            && (shared.run.dry_run || building.is_over(shared, &shards.topology.nodes).await);
        if shared.run.until_caught_up && built && views.iter().all(|v| v.caught_up.load(Relaxed)) {
            shared.reached.store(true, Relaxed);
            shared.stop.request();
            return;
        }
    }
}
