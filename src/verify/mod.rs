//! Verification: every key of both sides read and compared, sums per slot, differences proven, live.
//!
//! First the source's keys are listed, and each is read on both sides at the same time; then the target's keys, for
//! those that the source lacks; what did not agree is read again until it is equal, or proven different (`confirm`).
//! Invariant: a key is called different only if the source did not change between the readings that say so, and the
//! migration, where one runs, had applied everything before them.

mod confirm;
mod file;
mod functions;
mod incremental;
mod live;
mod progress;
mod walk;

use crate::digest::Width;
use crate::error::{Error, ErrorKind, Result};
use crate::net::guard;
use crate::plan::{Endpoint, Job, OnExisting, Source};
use crate::source::keys::fact::Found;
use crate::source::keys::list;
use crate::source::keys::side::{Role, Side};
use crate::source::private_dir;
use crate::store::{Existing, Lock, Phase, Run, SlotRow, Store};
use crate::task::{Shutdown, Throttle, peak_rss};
use crate::types::{DbIndex, SLOTS, Slot, SlotSet, unix_ms};
pub use live::Live;

use file::Snap;
pub use progress::UNPROVABLE;
use progress::{Done, Name, Pass, Progress};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a side may be away.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a verification is run, beside its plan.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The plan's own folder.
    pub work_dir: PathBuf,
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
    pub repaired_count: u64,
    /// Keys that are not compared, because the migration has listed them as losses.
    pub known_losses: u64,
    /// Function libraries that are missing at the target, are too much there, or have other code.
    pub functions_different: Vec<String>,
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
    work_dir: PathBuf,
    slots: Option<SlotSet>,
    width: Width,
    repair: bool,
    /// Keys that are not compared: the target's own, which on_existing "skip" has kept.
    apart: Existing,
    /// Nor are listed losses.
    lost: Existing,
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
    /// The source does not replicate what groups have read: while a migration runs, that lags.
    silent: bool,
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
            true => Err(Error::new(
                ErrorKind::Interrupted,
                "the verification was stopped",
            )),
        }
    }

    /// Whether a key is compared; `db` is the target's.
    fn compared(&self, db: DbIndex, key: &[u8]) -> bool {
        self.job.filter.accepts(key)
            && self.job.verify.exclude.accepts(key)
            && (self.slots.as_ref()).is_none_or(|s| s.has(Slot::of(key)))
            && !self.lost.contains(db, key)
            && (self.apart.is_empty()
                || (self.job.renames.to_target(key)).is_none_or(|k| !self.apart.contains(db, &k)))
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
                    for range in file.ranges() {
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
    let known_losses = store.losses(i64::MAX as u64)?.len() as u64;
    let mut check = assemble(job, &options, store, stop).await?;
    if options.incremental {
        let store = Store::open(&options.work_dir)?;
        let slots =
            incremental::slots(&check.origin, &options.work_dir, &store, &check.stop).await?;
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
        let total = list::estimate(side, slots).await + list::estimate(&check.target, slots).await;
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
    let cpu_now = cpu_s(&check).await;
    let seconds = started.elapsed().as_secs_f64().max(0.001);
    let percent = |before: Option<f64>, after: Option<f64>| {
        Some((100.0 * (after? - before?).max(0.0) / seconds).round() as u64)
    };
    let mut summary = conclude(&check, started, started_ms, &options)?;
    summary.known_losses = known_losses;
    summary.resumed = resumed;
    summary.cpu_percent_source = percent(cpu.0, cpu_now.0);
    summary.cpu_percent_target = percent(cpu.1, cpu_now.1);
    summary.dbsize = dbsize(&check).await?;
    summary.functions_different = functions;
    summary.equal &= summary.functions_different.is_empty();
    let mut store = check.store();
    let value = serde_json::to_value(&summary).unwrap_or_default();
    store.save_verify(&value, started_ms, unix_ms(), summary.equal)?;
    let whole = options.slots.is_none() || options.keep;
    // A later difference takes the word back.
    match store.phase()? {
        Phase::Stream if summary.equal && whole => store.enter_phase(Phase::Verified, unix_ms())?,
        Phase::Verified if !summary.equal => store.enter_phase(Phase::Stream, unix_ms())?,
        _ => {}
    }
    Ok(summary)
}

/// Opens both sides.
async fn assemble(job: Job, options: &Options, store: Store, stop: Shutdown) -> Result<Check> {
    let apart = (job.on_existing == OnExisting::Skip)
        .then(|| Existing::load(&options.work_dir))
        .flatten()
        .unwrap_or_default();
    let mut lost = Existing::default();
    for (db, key, _) in &store.losses(i64::MAX as u64)? {
        lost.insert(*db, key);
    }
    let origin = match &job.source {
        Source::Server { endpoint, .. } => Origin::Server(Arc::new(Side::source(endpoint).await?)),
        Source::Rdb { path } => Origin::File(Snap::open(path)?),
    };
    let target = Arc::new(Side::target(&job).await?);
    let silent = (origin.server()).is_some_and(|s| s.silent_entries_read)
        && Lock::holder(&options.work_dir).is_some();
    Ok(Check {
        silent,
        throttle: Throttle::new(job.limits.keys_per_s, job.limits.bytes_per_s),
        patience: job.limits.outage_s.map_or(PATIENCE, Duration::from_secs),
        origin,
        target,
        work_dir: options.work_dir.clone(),
        slots: options.slots.clone(),
        width: options.width,
        repair: options.repair,
        apart,
        lost,
        stop,
        gauge: options.gauge.clone(),
        about: String::new(),
        store: Mutex::new(store),
        progress: Mutex::new(Progress::new(unix_ms())),
        confirming: Default::default(),
        paced: AtomicU64::new(0),
        job,
    })
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

async fn dbsize(check: &Check) -> Result<Vec<DbSize>> {
    let Origin::Server(side) = &check.origin else {
        return Ok(Vec::new());
    };
    let mut sizes: std::collections::BTreeMap<u32, (u64, u64)> = Default::default();
    for (db, keys) in side.sizes().await? {
        if let Some(to) = check.job.databases.map(db) {
            sizes.entry(to.0).or_default().0 += keys;
        }
    }
    for (db, keys) in check.target.sizes().await? {
        sizes.entry(db.0).or_default().1 += keys;
    }
    let list = sizes
        .into_iter()
        .map(|(db, (source, target))| DbSize { db, source, target });
    Ok(list.collect())
}

/// Writes the slots' rows and makes the answer.
fn conclude(
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
    let other = |r: &str| r != "missing" && r != "extra" && r != UNPROVABLE;
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
    let read: u64 = rows.iter().map(|r| r.source_keys + r.target_keys).sum();
    Ok(Summary {
        equal: counts.is_empty(),
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
        repaired_count: 0,
        known_losses: 0,
        functions_different: Vec::new(),
        dbsize: Vec::new(),
        resumed: false,
        incremental: options.incremental,
        elapsed_ms,
        keys_per_s: read.saturating_mul(1000) / elapsed_ms.max(1),
        bytes_source: check.origin.server().map_or(0, |s| s.bytes.load(Relaxed)),
        bytes_target: check.target.bytes.load(Relaxed),
        cpu_percent_source: None,
        cpu_percent_target: None,
        peak_rss_bytes: peak_rss(),
    })
}
