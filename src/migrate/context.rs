//! What the parts of a run share: the plan, what is known of both sides, the store, and what one source shard has.

use crate::error::Result;
use crate::migrate::checkpoint::writer::Saver;
use crate::migrate::control::orders::Control;
use crate::migrate::progress::ShardProgress;
use crate::migrate::slots::ownership::Ownership;
use crate::migrate::tally::{Tally, cannot_hold, command_name, loss_text};
use crate::migrate::write::losses;
use crate::plan::{Job, OnLoss};
use crate::rdb::modules::ways::Takes;
use crate::source::spool::Spool;
use crate::store::{MASTERS, Own, Store};
use crate::target::health::Health;
use crate::task::{Shutdown, Throttle};
use crate::types::{DbIndex, ReplOffset, ShardId, unix_ms};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};

/// How long an event is not repeated.
const REPEAT: Duration = Duration::from_secs(5);

/// How this run was started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunOptions {
    pub dry_run: bool,
    pub until_caught_up: bool,
    /// What a new full sync or sweep at the start of this run would remove may go.
    pub accept_loss: bool,
    /// Snapshots of unknown versions are refused.
    pub strict: bool,
    /// The source is read by SCAN and DUMP: it has no stream.
    pub scan: bool,
    /// How long a side may be away before the run gives up.
    pub patience: Duration,
    /// How long the snapshot is estimated to take, in ms: expiries nearer than that are held back.
    pub load_estimate_ms: i64,
}

/// What the versions of both sides can and cannot do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// The source sends relative TTLs in its stream (Redis before 7.0).
    pub relative_ttls: bool,
    /// The source replicates scripts as they were called by its configuration only (Redis 5.0 to 6.2).
    pub scripts_can_be_effects: bool,
    /// The source does not replicate how many entries a group has read (Redis before 7.4, Valkey before 8.0).
    pub silent_entries_read: bool,
    /// An HSET of the stream may have been an HINCRBYFLOAT, after which the field keeps its expiry.
    pub silent_field_expiry: bool,
    /// Hash fields of the source may expire, and those of the target may not.
    pub loses_field_expiry: bool,
    /// What is known of the modules of both sides.
    pub modules: Takes,
    /// The source has modules, so perhaps search indexes.
    pub source_has_modules: bool,
    pub target_has_functions: bool,
    /// The target's SET takes PXAT.
    pub target_has_set_pxat: bool,
}

/// How fast, and in how much memory, the shards of a run may load.
pub(crate) struct Pace {
    /// How many shards there were at the start: they share the limits.
    pub shards: usize,
    /// KiB that are free of [`Limits::loaded`](crate::plan::Limits::loaded).
    for_loaded: Semaphore,
    pub throttle: Throttle,
}

impl Pace {
    pub fn new(job: &Job, shards: usize) -> Pace {
        Pace {
            shards,
            for_loaded: Semaphore::new(job.limits.loaded() >> 10),
            throttle: Throttle::new(job.limits.keys_per_s, job.limits.bytes_per_s),
        }
    }
}

/// What all shards of a run share.
pub(crate) struct Shared {
    pub job: Job,
    pub run: RunOptions,
    pub facts: Facts,
    pub store: Mutex<Store>,
    pub saver: Saver,
    pub runtime: Handle,
    pub stop: Shutdown,
    /// The run has caught up, as it was asked to: it ends by itself.
    pub reached: AtomicBool,
    /// The watcher of the target; none in a dry run.
    pub health: Option<Arc<Health>>,
    /// Who owns which slot; none where the source is no cluster.
    pub ownership: Option<Arc<Ownership>>,
    /// The target's own keys (on_existing "skip" and "replace").
    pub own: Own,
    pub pace: Pace,
    /// What a cutover asks for.
    pub control: Arc<Control>,
    /// How many losses of the target each shard's saved marks have taken in.
    pub losses_seen: Mutex<BTreeMap<ShardId, u64>>,
    /// The last event, and when.
    pub told: Mutex<Option<(String, Instant)>>,
}

impl Shared {
    pub fn store<T>(&self, work: impl FnOnce(&mut Store) -> Result<T>) -> Result<T> {
        work(&mut self.store.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says that a shard's saved marks have taken in so many losses of the target, and notes its masters once those of
    /// all shards have: a run that is killed before must find the loss again, or it would go on behind what was lost.
    pub fn loss_taken_in(&self, shard: ShardId, losses: u64) -> Result<()> {
        self.losses_seen().insert(shard, losses);
        self.note_masters()
    }

    fn losses_seen(&self) -> MutexGuard<'_, BTreeMap<ShardId, u64>> {
        (self.losses_seen.lock()).unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the target's masters as known, if all of its losses are taken in.
    pub fn note_masters(&self) -> Result<()> {
        let Some(health) = &self.health else {
            return Ok(());
        };
        let view = health.view();
        let all = (self.losses_seen().values()).all(|seen| *seen == view.losses);
        match all {
            true => self.store(|s| s.put_json(MASTERS, &view.masters_document())),
            false => Ok(()),
        }
    }

    /// A shard has nothing more to bring: nobody waits for it.
    pub fn shard_gone(&self, shard: ShardId) {
        self.losses_seen().remove(&shard);
    }

    /// Waits until so many bytes are free for a load's keys; `None` when a stop is asked for.
    pub async fn room_for_loaded(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX);
        tokio::select! {
            () = self.stop.wait() => None,
            room = self.pace.for_loaded.acquire_many(kib) => room.ok(),
        }
    }

    /// Takes the limits of the moment: those that `keyferry limit` has set, else the plan's.
    pub fn meet_limits(&self) -> Result<()> {
        let limits = self.store(|s| s.limits(&self.job.limits))?;
        self.pace
            .throttle
            .set(limits.keys_per_s, limits.bytes_per_s);
        Ok(())
    }

    /// Tells and stores what has happened; the same again is told every few seconds only.
    pub fn event(&self, level: &str, code: &str, message: &str) {
        {
            let mut last = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let again = |(text, at): &(String, Instant)| text == message && at.elapsed() < REPEAT;
            if last.as_ref().is_some_and(again) {
                return;
            }
            *last = Some((message.to_owned(), Instant::now()));
        }
        match level {
            "error" => tracing::error!("{message}"),
            "warning" => tracing::warn!("{message}"),
            _ => tracing::info!("{message}"),
        }
        // An event that cannot be stored must not stop the run that it describes.
        if let Err(e) = self.store(|s| s.event(unix_ms(), level, code, message)) {
            tracing::warn!("{e}");
        }
    }
}

/// What the parts of one source shard share: read-only, but for the counters.
pub(crate) struct ShardContext {
    pub shared: Arc<Shared>,
    pub spool: Arc<Spool>,
    pub progress: Arc<ShardProgress>,
    pub id: ShardId,
    pub address: String,
    tally: RefCell<Tally>,
}

impl ShardContext {
    pub fn new(
        shared: Arc<Shared>,
        spool: Arc<Spool>,
        progress: Arc<ShardProgress>,
        id: ShardId,
        address: String,
    ) -> ShardContext {
        ShardContext {
            shared,
            spool,
            progress,
            id,
            address,
            tally: RefCell::default(),
        }
    }

    pub fn job(&self) -> &Job {
        &self.shared.job
    }

    pub fn facts(&self) -> &Facts {
        &self.shared.facts
    }

    pub fn dry_run(&self) -> bool {
        self.shared.run.dry_run
    }

    /// The size up to which a value is held whole, in bytes.
    pub fn whole_value(&self) -> usize {
        self.job().limits.whole_value(self.shared.pace.shards)
    }

    pub fn count(&self, name: &'static str) {
        self.add(name, 1);
    }

    pub fn add(&self, name: &'static str, n: u64) {
        if n > 0 {
            self.tally.borrow_mut().add(name, n);
        }
    }

    /// Counts an event, and tells of it the first time.
    pub fn note(&self, code: &'static str, message: &str) {
        if self.tally.borrow_mut().add(code, 1) {
            self.shared.event("warning", code, message);
        }
    }

    /// Counters and losses since the last checkpoint.
    pub fn take_tally(&self) -> (BTreeMap<&'static str, u64>, Vec<crate::store::Loss>) {
        self.tally.borrow_mut().take()
    }

    /// Counts a command of the stream that is not known, and tells of it the first time.
    pub fn note_unknown(&self, name: &[u8], at: ReplOffset, read: bool) {
        self.count(match read {
            true => "unknown_command.read_again",
            false => "skipped.unknown_command",
        });
        if self.tally.borrow_mut().unknown(name, at, read) {
            let what = match read {
                true => "the keys that it writes are read from the source instead",
                false => {
                    "it is left out; `verify` finds what it has written, and `verify --repair` mends it"
                }
            };
            let message = format!(
                "the stream of {} holds the command {} at offset {at}, which keyferry does not know: {what}",
                self.address,
                command_name(name)
            );
            self.shared.event("warning", "unknown_command", &message);
        }
    }

    /// Unknown commands since the last checkpoint.
    pub fn take_unknown(&self) -> Vec<crate::store::UnknownCommand> {
        self.tally.borrow_mut().take_unknown(&self.address)
    }

    /// A key of the target's database `db` that cannot be held: an error, or a line in the list of losses.
    pub fn lose(&self, db: DbIndex, name: &[u8], code: &'static str, why: &str) -> Result<()> {
        self.lose_source_key(db, &self.source_name(name), code, why)
    }

    /// A key of the source's database `from` that cannot be held, as the target lacks the database `to`.
    pub fn lose_for_want_of(&self, from: DbIndex, to: DbIndex, name: &[u8]) -> Result<()> {
        self.lose(to, name, losses::DATABASE, &losses::no_database(from))
    }

    /// The same of a key by the name that it has at the source.
    pub fn lose_source_key(
        &self,
        db: DbIndex,
        key: &[u8],
        code: &'static str,
        why: &str,
    ) -> Result<()> {
        if self.job().on_loss == OnLoss::Fail && !self.dry_run() {
            return Err(cannot_hold(key, why));
        }
        let new = self.tally.borrow_mut().list(db, key, code);
        if new {
            self.note(code, &loss_text(key, why));
        }
        Ok(())
    }

    /// What a key is called at the source. Within a shard, keys have the names that they get at the target.
    pub fn source_name<'k>(&self, name: &'k [u8]) -> Cow<'k, [u8]> {
        (self.job().renames.to_source(name)).unwrap_or(Cow::Borrowed(name))
    }

    /// Whether the plan moves a key that is called so at the target.
    pub fn accepts(&self, name: &[u8]) -> bool {
        let job = self.job();
        (job.renames.to_source(name)).is_some_and(|key| job.filter.accepts(&key))
    }
}
