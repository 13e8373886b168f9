//! Verification: every key of both sides read and compared, sums per slot, differences proven, live.
//!
//! First the source's keys are listed, and each is read on both sides at the same time; then the target's keys, for
//! those that the source lacks; what did not agree is read again until it is equal, or proven different (`confirm`).
//! Invariant: a key is called different only if the source did not change between the readings that say so, and the
//! migration, where one runs, had applied everything before them.

mod answer;
mod confirm;
mod file;
mod functions;
mod incremental;
mod live;
mod migration;
mod progress;
mod walk;

use crate::digest::{Unreplicated, Width};
use crate::error::{Error, ErrorKind, Result};
use crate::keyset::KeySet;
use crate::net::guard;
use crate::plan::{Endpoint, Job, OnExisting, Source};
use crate::source::keys::fact::Found;
use crate::source::keys::list;
use crate::source::keys::side::{Role, Side};
use crate::store::{Existing, Lock, Own, Run, Store};
use crate::task::{Shutdown, Throttle, private_dir};
use crate::types::{DbIndex, SLOTS, Slot, SlotSet, unix_ms};
pub use answer::{KeyReport, Summary};
pub use live::Live;

use answer::{conclude, dbsize};
use file::Snap;
use migration::Migration;
pub use progress::UNPROVABLE;
use progress::{Done, Name, Pass, Progress};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// How long a side may be away.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a verification is run, beside its plan.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The plan's own folder.
    pub work_dir: PathBuf,
    /// Where else workers' states lie.
    pub also: Vec<PathBuf>,
    /// Only these slots; `None` is all of them.
    pub slots: Option<SlotSet>,
    /// Only slots that were written to since they were compared last.
    pub incremental: bool,
    /// What earlier verifications have found of other slots stays.
    pub keep: bool,
    /// Asks the migration to write again what differs.
    pub repair: bool,
    /// Forgets what an earlier verification has left when it was stopped.
    pub fresh: bool,
    pub width: Width,
    /// Told how far it is.
    pub gauge: Arc<Gauge>,
}

/// How far a verification is.
#[derive(Debug, Default)]
pub struct Gauge {
    pub done: AtomicU64,
    /// 0 while it is not known.
    pub total: AtomicU64,
}

/// The slots that `--slots` names.
pub fn slots(text: &str) -> Result<SlotSet> {
    SlotSet::parse(text)
        .filter(|s| s.count() > 0)
        .ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("--slots cannot be {text:?}"))
                .hint("give numbers and ranges of 0 to 16383, as in 0-4095,8000")
        })
}

/// A share of the slots, spread over all of them; the same share is always the same slots.
pub fn sample(text: &str) -> Result<SlotSet> {
    let percent = text.trim().strip_suffix('%').unwrap_or("").trim();
    match percent.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => {
            let wanted = (percent / 100.0 * SLOTS as f64).ceil() as usize;
            // An odd step visits every slot once.
            let visited =
                (0..wanted.min(SLOTS)).map(|i| Slot::numbered((i * 6_151 % SLOTS) as u16));
            Ok(visited.collect())
        }
        _ => Err(
            Error::new(ErrorKind::Usage, format!("--sample cannot be {text:?}"))
                .hint("give a share of the slots, as in 1%"),
        ),
    }
}

/// Where the keys come from that the target is compared with.
pub enum Origin {
    Server(Arc<Side>),
    File(Snap),
}

impl Origin {
    fn server(&self) -> Option<&Arc<Side>> {
        match self {
            Origin::Server(side) => Some(side),
            Origin::File(_) => None,
        }
    }

    fn file_fact(&self, name: &Name) -> Found {
        match self {
            Origin::File(file) => file.fact(name),
            Origin::Server(_) => Found::Gone,
        }
    }
}

/// A comparison on its way: what every worker shares.
pub struct Check {
    job: Job,
    origin: Origin,
    target: Arc<Side>,
    /// Keys that the first pass has found on both sides: it counts them once, and the second need not ask the source for
    /// them again.
    seen: RwLock<KeySet>,
    /// The migration's states: the plan's own, or those of its workers.
    migrations: Vec<Migration>,
    slots: Option<SlotSet>,
    width: Width,
    repair: bool,
    /// The target's own keys: with on_existing "skip" they are not compared, with "replace" they are no extra ones.
    own: Vec<Own>,
    /// Listed losses are not compared.
    lost: RwLock<Existing>,
    throttle: Throttle,
    /// Bytes that the throttle has taken.
    paced: AtomicU64,
    stop: Shutdown,
    patience: Duration,
    gauge: Arc<Gauge>,
    /// What saved progress must be about to go on with it.
    about: String,
    store: Mutex<Store>,
    progress: Mutex<Progress>,
    /// Held by the one worker that confirms before the end.
    confirming: tokio::sync::Mutex<()>,
}

impl Check {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error when a stop was asked for.
    fn go_on(&self) -> Result<()> {
        match self.stop.requested() {
            false => Ok(()),
            true => Err(Error::stopped("the verification was stopped")),
        }
    }

    /// Whether a key is compared; `db` is the target's.
    fn compared(&self, db: DbIndex, key: &[u8]) -> bool {
        self.job.filter.accepts(key)
            && self.job.verify.exclude.accepts(key)
            && (self.slots.as_ref()).is_none_or(|s| s.has(Slot::of(key)))
            && !self.is_lost(db, key)
            && (self.job.on_existing != OnExisting::Skip || !self.is_own(db, key))
    }

    /// Whether a key, by the source's name, is one that the target held before the migration.
    fn is_own(&self, db: DbIndex, key: &[u8]) -> bool {
        let has = |name: &[u8]| self.own.iter().any(|own| own.has(db, name));
        !self.own.is_empty() && (self.job.renames.to_target(key)).is_some_and(|name| has(&name))
    }

    fn is_lost(&self, db: DbIndex, key: &[u8]) -> bool {
        let lost = self.lost.read().unwrap_or_else(PoisonError::into_inner);
        lost.contains(db, key)
    }

    /// Takes in the losses that the migrations have listed until now; returns how many there are.
    fn learn_losses(&self) -> Result<u64> {
        let (mut lost, mut count) = (Existing::default(), 0);
        for migration in &self.migrations {
            for (db, key, _) in &migration.losses()? {
                lost.insert(*db, key);
                count += 1;
            }
        }
        *self.lost.write().unwrap_or_else(PoisonError::into_inner) = lost;
        Ok(count)
    }

    /// What of a key may differ because the source does not replicate it.
    fn unreplicated(&self) -> Unreplicated {
        let settling = self.migrations.iter().any(Migration::runs);
        (self.origin.server()).map_or_else(Unreplicated::default, |s| s.unreplicated(settling))
    }

    /// How many read at the same time: each has a connection to every master of a side.
    fn workers(&self) -> usize {
        let masters = |side: &Arc<Side>| side.layout().masters.len();
        let most = (self.origin.server().map(masters)).max(Some(masters(&self.target)));
        let limit = self
            .job
            .limits
            .connections
            .map_or(usize::MAX, |n| n as usize);
        // Some are needed beside: for lists, the guard and what is confirmed.
        (limit.saturating_sub(4) / most.unwrap_or(1).max(1)).clamp(1, walk::WORKERS)
    }

    /// The masters of both sides.
    fn nodes(&self) -> Vec<(Endpoint, String)> {
        let sides = self.origin.server().into_iter().chain([&self.target]);
        let of = |side: &Arc<Side>| {
            let addresses: Vec<String> = (side.layout().masters.iter())
                .map(|m| m.address.clone())
                .collect();
            addresses
                .into_iter()
                .map(|a| (side.endpoint.clone(), a))
                .collect::<Vec<_>>()
        };
        sides.flat_map(of).collect()
    }

    /// The databases of a side that are compared; empty is all.
    fn dbs(&self, role: Role) -> Vec<DbIndex> {
        role.databases(&self.job.databases)
    }

    /// Waits as long as the plan's limits want after so many keys.
    async fn pace(&self, keys: usize) -> Result<()> {
        let bytes = self.target.bytes.load(Relaxed)
            + self.origin.server().map_or(0, |s| s.bytes.load(Relaxed));
        let before = self.paced.swap(bytes, Relaxed);
        let wait = self
            .throttle
            .take(keys as u64, bytes.saturating_sub(before));
        if !wait.is_zero() {
            self.stop.sleep(wait).await;
        }
        self.go_on()
    }

    /// Takes what a page has come to; now and then everything so far goes to SQLite.
    fn commit(&self, seq: u64, done: Done) -> Result<()> {
        let mut progress = self.progress();
        progress.done(seq, done);
        if progress.wants_saving() {
            self.save(&mut progress)?;
        }
        Ok(())
    }

    fn save(&self, progress: &mut Progress) -> Result<()> {
        let limits = self.store().limits(&self.job.limits)?;
        self.throttle.set(limits.keys_per_s, limits.bytes_per_s);
        match self.origin {
            Origin::Server(_) => progress.save(&mut self.store(), &self.about),
            // A file is read from its beginning again.
            Origin::File(_) => Ok(()),
        }
    }

    /// All passes that are still to be made.
    async fn run(self: &Arc<Check>) -> Result<()> {
        if self.progress().at.pass == Pass::Source {
            walk::pass(self, Pass::Source, self.slots.clone()).await?;
            self.progress().enter(Pass::Target);
        }
        if self.progress().at.pass == Pass::Target {
            match &self.origin {
                Origin::Server(_) => {
                    walk::pass(self, Pass::Target, self.slots.clone()).await?;
                }
                Origin::File(file) => {
                    for range in file.ranges(&self.job.limits) {
                        file.search(self, range.clone()).await?;
                        // Each range is listed from its beginning.
                        self.progress().enter(Pass::Target);
                        walk::pass(self, Pass::Target, Some(range)).await?;
                    }
                }
            }
            let mut progress = self.progress();
            progress.enter(Pass::Confirm);
            self.save(&mut progress)?;
        }
        confirm::run(self).await
    }
}

/// Compares source and target of `job`.
///
/// Errors: as for any connection; `Interrupted` after a stop, with the state saved: the same call goes on.
pub async fn run(job: Job, options: Options, stop: Shutdown) -> Result<Summary> {
    let started = Instant::now();
    private_dir(&options.work_dir)?;
    let verify_dir = options.work_dir.join("verify");
    private_dir(&verify_dir)?;
    // A migration may run meanwhile; only a second verification may not.
    let _lock = Lock::acquire(&verify_dir)?;
    let mut store = Store::open(&options.work_dir)?;
    store.recall(&job)?;
    store.begin_run(&Run {
        plan: job.name.clone(),
        fingerprint: job.fingerprint.clone(),
        redacted: job.redacted.clone(),
        mode: match job.source {
            Source::Server { .. } => "replica",
            Source::Rdb { .. } => "rdb",
        }
        .into(),
        source: job.source.to_string(),
        target: job.target.redacted_url(),
        started_ms: unix_ms(),
    })?;
    let mut check = assemble(job, &options, store, stop).await?;
    if options.incremental {
        let store = Store::open(&options.work_dir)?;
        let slots = incremental::slots(&check, &store).await?;
        check.slots = Some(slots);
    }
    check.about = about(&check, &options);
    let saved = match options.fresh {
        true => None,
        false => Progress::load(&check.store(), &check.about)?,
    };
    let progress = match saved {
        Some(progress) => progress,
        None => {
            check.store().clear_verify()?;
            Progress::new(unix_ms())
        }
    };
    let (resumed, started_ms) = (progress.resumed, progress.at.started_ms);
    options.gauge.done.store(progress.at.compared, Relaxed);
    check.progress = Mutex::new(progress);
    if let Origin::Server(side) = &check.origin {
        let slots = check.slots.as_ref();
        let (ours, theirs) = (
            list::estimate(side, slots).await,
            list::estimate(&check.target, slots).await,
        );
        let total = ours.saturating_add(theirs);
        options.gauge.total.store(total, Relaxed);
    }
    let check = Arc::new(check);
    let watched = Shutdown::default();
    tokio::spawn(guard::watch(
        check.nodes(),
        check.job.limits.latency_ms.map(Duration::from_millis),
        check.throttle.clone(),
        watched.clone(),
    ));
    let cpu = cpu_s(&check).await;
    let ran = check.run().await;
    watched.request();
    if let Err(e) = ran {
        // What was compared is worth keeping, whatever went wrong.
        let saved = check.save(&mut check.progress());
        return Err(e).inspect_err(|_| {
            if let Err(e) = saved {
                tracing::warn!("{e}");
            }
        });
    }
    let functions = functions::compare(&check).await?;
    if check.repair && !functions.is_empty() {
        (check.migrations.iter()).try_for_each(Migration::ask_functions)?;
    }
    let cpu_now = cpu_s(&check).await;
    let seconds = started.elapsed().as_secs_f64().max(0.001);
    let percent = |before: Option<f64>, after: Option<f64>| {
        Some((100.0 * (after? - before?).max(0.0) / seconds).round() as u64)
    };
    let mut summary = conclude(&check, started, started_ms, &options)?;
    summary.known_losses = check.learn_losses()?;
    summary.resumed = resumed;
    summary.cpu_percent_source = percent(cpu.0, cpu_now.0);
    summary.cpu_percent_target = percent(cpu.1, cpu_now.1);
    summary.dbsize = dbsize(&check).await?;
    summary.functions_different = functions;
    summary.equal &= summary.functions_different.is_empty();
    let value = serde_json::to_value(&summary).unwrap_or_default();
    (check.store()).save_verify(&value, started_ms, unix_ms(), summary.equal)?;
    let whole = options.slots.is_none() || options.keep;
    for migration in &check.migrations {
        migration.note_verdict(summary.equal, whole)?;
    }
    Ok(summary)
}

/// Opens both sides.
async fn assemble(job: Job, options: &Options, store: Store, stop: Shutdown) -> Result<Check> {
    let migrations = migration::find(&job, options)?;
    let mut own = Vec::new();
    for migration in &migrations {
        let Some(keys) = Existing::load(&migration.dir)? else {
            continue;
        };
        match job.on_existing {
            OnExisting::Skip => own.push(Own::kept(keys)),
            OnExisting::Replace => own.push(Own::replaceable(keys, &migration.dir)?),
            OnExisting::Fail | OnExisting::Reconcile => {}
        }
    }
    let origin = match &job.source {
        Source::Server { endpoint, .. } => Origin::Server(Arc::new(Side::source(endpoint).await?)),
        Source::Rdb { path } => Origin::File(Snap::open(path)?),
    };
    let target = Arc::new(Side::target(&job).await?);
    let check = Check {
        seen: RwLock::new(KeySet::within(job.limits.key_set())),
        throttle: Throttle::new(job.limits.keys_per_s, job.limits.bytes_per_s),
        patience: job.limits.outage_s.map_or(PATIENCE, Duration::from_secs),
        origin,
        target,
        migrations,
        slots: options.slots.clone(),
        width: options.width,
        repair: options.repair,
        own,
        lost: RwLock::default(),
        stop,
        gauge: options.gauge.clone(),
        about: String::new(),
        store: Mutex::new(store),
        progress: Mutex::new(Progress::new(unix_ms())),
        confirming: Default::default(),
        paced: AtomicU64::new(0),
        job,
    };
    check.learn_losses()?;
    Ok(check)
}

/// Names the comparison that saved progress belongs to: the plan, its options, and the nodes on both sides.
fn about(check: &Check, options: &Options) -> String {
    let nodes = |side: &Side| {
        let layout = side.layout();
        let nodes: Vec<&str> = layout.masters.iter().map(|m| m.address.as_str()).collect();
        nodes.join(",")
    };
    format!(
        "{} slots={} {:?} {} {}",
        check.job.fingerprint,
        (check.slots.as_ref()).map_or("all".into(), SlotSet::to_string),
        options.width,
        (check.origin.server()).map_or("file".into(), |s| nodes(s)),
        nodes(&check.target),
    )
}

async fn cpu_s(check: &Check) -> (Option<f64>, Option<f64>) {
    let source = match &check.origin {
        Origin::Server(side) => side.cpu_s().await,
        Origin::File(_) => None,
    };
    (source, check.target.cpu_s().await)
}
