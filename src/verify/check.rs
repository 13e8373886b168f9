//! A comparison on its way: what every worker of it shares.

use super::file::Snap;
use super::met::Met;
use super::migration::{self, Migration};
use super::options::{Gauge, Options};
use super::progress::{Done, Name, Progress};
use crate::digest::{Unreplicated, Width};
use crate::error::{Error, Result};
use crate::plan::{Endpoint, Job, OnExisting, Source};
use crate::source::keys::depth;
use crate::source::keys::fact::{Found, KeyFact};
use crate::source::keys::side::{Role, Side};
use crate::store::{Existing, Own, Store};
use crate::task::{Shutdown, Throttle};
use crate::types::{DbIndex, Slot, SlotSet, unix_ms};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

/// How long a side may be away.
const PATIENCE: Duration = Duration::from_secs(60);

/// With fewer connections than this, both sides are not listed at the same time.
const ENOUGH: u32 = 40;

/// Where the keys come from that the target is compared with.
pub enum Origin {
    Server(Arc<Side>),
    File(Snap),
}

impl Origin {
    pub fn server(&self) -> Option<&Arc<Side>> {
        match self {
            Origin::Server(side) => Some(side),
            Origin::File(_) => None,
        }
    }

    pub fn file_fact(&self, name: &Name) -> Found {
        match self {
            Origin::File(file) => file.fact(name),
            Origin::Server(_) => Found::Gone,
        }
    }
}

/// A comparison on its way: what every worker shares.
pub struct Check {
    pub job: Job,
    pub origin: Origin,
    pub target: Arc<Side>,
    pub met: Met,
    /// The migration's states: the plan's own, or those of its workers.
    pub migrations: Vec<Migration>,
    pub slots: Option<SlotSet>,
    pub width: Width,
    pub repair: bool,
    spared: Spared,
    pace: Pace,
    pub stop: Shutdown,
    pub patience: Duration,
    pub gauge: Arc<Gauge>,
    saved: Saved,
    /// Held by the one worker that confirms before the end.
    pub confirming: tokio::sync::Mutex<()>,
}

/// Keys that are not compared, or not as others are.
struct Spared {
    /// The target's own: with on_existing "skip" they are not compared, with "replace" they are no extra ones.
    own: Vec<Own>,
    /// Listed losses are not compared.
    lost: RwLock<Existing>,
}

/// How fast it may go.
struct Pace {
    throttle: Throttle,
    /// Bytes that the throttle has taken.
    taken: AtomicU64,
}

/// What it goes on with when it was stopped.
struct Saved {
    /// What saved progress must be about to go on with it.
    about: String,
    store: Mutex<Store>,
    progress: Mutex<Progress>,
}

impl Check {
    /// Opens both sides.
    pub async fn open(job: Job, options: &Options, store: Store, stop: Shutdown) -> Result<Check> {
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
        let source = async {
            match &job.source {
                Source::Server { endpoint, .. } => {
                    let side = measured(Side::source(endpoint).await?).await;
                    Ok::<_, Error>(Origin::Server(Arc::new(side)))
                }
                Source::Rdb { path } => Ok(Origin::File(Snap::open(path)?)),
            }
        };
        let target = async { Ok::<_, Error>(measured(Side::target(&job).await?).await) };
        let (origin, target) = tokio::join!(source, target);
        let (origin, target) = (origin?, Arc::new(target?));
        let check = Check {
            met: Met::within(job.limits.key_set()),
            patience: job.limits.outage_s.map_or(PATIENCE, Duration::from_secs),
            origin,
            target,
            migrations,
            slots: options.slots.clone(),
            width: options.width,
            repair: options.repair,
            spared: Spared {
                own,
                lost: RwLock::default(),
            },
            pace: Pace {
                throttle: Throttle::new(job.limits.keys_per_s, job.limits.bytes_per_s),
                taken: AtomicU64::new(0),
            },
            stop,
            gauge: options.gauge.clone(),
            saved: Saved {
                about: String::new(),
                store: Mutex::new(store),
                progress: Mutex::new(Progress::new(unix_ms())),
            },
            confirming: Default::default(),
            job,
        };
        check.learn_losses()?;
        Ok(check)
    }

    /// Goes on from saved progress, which is about the same as this.
    pub fn resume(&mut self, progress: Progress) {
        self.saved.progress = Mutex::new(progress);
    }

    /// Names what saved progress must be about to go on with it.
    pub fn name(&mut self, about: String) {
        self.saved.about = about;
    }

    pub fn about(&self) -> &str {
        &self.saved.about
    }

    pub fn throttle(&self) -> Throttle {
        self.pace.throttle.clone()
    }

    pub fn progress(&self) -> MutexGuard<'_, Progress> {
        self.saved
            .progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.saved
            .store
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// An error when a stop was asked for.
    pub fn go_on(&self) -> Result<()> {
        match self.stop.requested() {
            false => Ok(()),
            true => Err(Error::stopped("the verification was stopped")),
        }
    }

    /// Whether a key is compared; `db` is the target's.
    pub fn compared(&self, db: DbIndex, key: &[u8]) -> bool {
        self.job.filter.accepts(key)
            && self.job.verify.exclude.accepts(key)
            && (self.slots.as_ref()).is_none_or(|s| s.has(Slot::of(key)))
            && !self.is_lost(db, key)
            && (self.job.on_existing != OnExisting::Skip || !self.is_own(db, key))
    }

    /// Whether a key, by the source's name, is one that the target held before the migration.
    pub fn is_own(&self, db: DbIndex, key: &[u8]) -> bool {
        let has = |name: &[u8]| self.spared.own.iter().any(|own| own.has(db, name));
        !self.spared.own.is_empty()
            && (self.job.renames.to_target(key)).is_some_and(|name| has(&name))
    }

    pub fn is_lost(&self, db: DbIndex, key: &[u8]) -> bool {
        let lost = self
            .spared
            .lost
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        lost.contains(db, key)
    }

    /// Takes in the losses that the migrations have listed until now; returns how many there are.
    pub fn learn_losses(&self) -> Result<u64> {
        let (mut lost, mut count) = (Existing::default(), 0u64);
        for migration in &self.migrations {
            for (db, key, _) in &migration.losses()? {
                lost.insert(*db, key);
                count = count.saturating_add(1);
            }
        }
        *self
            .spared
            .lost
            .write()
            .unwrap_or_else(PoisonError::into_inner) = lost;
        Ok(count)
    }

    /// What of a key may differ because the source does not replicate it.
    pub fn unreplicated(&self) -> Unreplicated {
        let settling = self.migrations.iter().any(Migration::runs);
        (self.origin.server()).map_or_else(Unreplicated::default, |s| s.unreplicated(settling))
    }

    /// How many read at the same time: each has a connection to every master of a side.
    pub fn workers(&self) -> usize {
        let masters = |side: &Arc<Side>| side.layout().masters.len();
        let most = (self.origin.server().map(masters)).max(Some(masters(&self.target)));
        let limit = self
            .job
            .limits
            .connections
            .map_or(usize::MAX, |n| n as usize);
        // Some are needed beside: for lists, the guard and what is confirmed.
        let wanted = depth::pages(self.round_trip(), &self.job.limits);
        (limit.saturating_sub(4) / most.unwrap_or(1).max(1)).clamp(1, wanted)
    }

    /// How long an answer of the farther side takes.
    pub fn round_trip(&self) -> Duration {
        let source = (self.origin.server()).map_or(Duration::ZERO, |s| s.round_trip());
        source.max(self.target.round_trip())
    }

    /// Whether the target's keys are listed beside the first pass: not where connections are few, nor where names or
    /// databases are not the same on both sides.
    pub fn lists_beside(&self) -> bool {
        self.origin.server().is_some()
            && self.job.databases.is_identity()
            && self.job.limits.connections.is_none_or(|n| n >= ENOUGH)
    }

    /// The masters of both sides.
    pub fn nodes(&self) -> Vec<(Endpoint, String)> {
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
    pub fn dbs(&self, role: Role) -> Vec<DbIndex> {
        role.databases(&self.job.databases)
    }

    /// Waits as long as the plan's limits want after so many keys.
    pub async fn pace(&self, keys: usize) -> Result<()> {
        let source = self.origin.server().map_or(0, |s| s.bytes.load(Relaxed));
        let bytes = self.target.bytes.load(Relaxed).saturating_add(source);
        let before = self.pace.taken.swap(bytes, Relaxed);
        let wait = self
            .pace
            .throttle
            .take(keys as u64, bytes.saturating_sub(before));
        if !wait.is_zero() {
            self.stop.sleep(wait).await;
        }
        self.go_on()
    }

    /// Takes what a page has come to; now and then everything so far goes to SQLite.
    pub fn commit(&self, seq: u64, done: Done) -> Result<()> {
        let mut progress = self.progress();
        progress.done(seq, done);
        if progress.wants_saving() {
            self.save(&mut progress)?;
        }
        Ok(())
    }

    pub fn save(&self, progress: &mut Progress) -> Result<()> {
        let limits = self.store().limits(&self.job.limits)?;
        self.pace
            .throttle
            .set(limits.keys_per_s, limits.bytes_per_s);
        match self.origin {
            Origin::Server(_) => progress.save(&mut self.store(), &self.saved.about),
            // A file is read from its beginning again.
            Origin::File(_) => Ok(()),
        }
    }

    /// Asks both sides anew who serves which slot.
    pub async fn look_again(&self) {
        let _ = self.target.refresh().await;
        if let Some(source) = self.origin.server() {
            let _ = source.refresh().await;
        }
    }

    /// Whether two facts are the same, the plan's tolerance granted.
    pub fn agree(&self, a: &KeyFact, b: &KeyFact) -> bool {
        a.difference(b, self.job.verify.ttl_tolerance_ms, Unreplicated::default())
            .is_none()
    }
}

/// A side of which is known how far away it is; where that fails, it is taken for near.
async fn measured(side: Side) -> Side {
    if let Err(e) = side.measure().await {
        tracing::debug!("how far a side is was not measured: {e}");
    }
    side
}
