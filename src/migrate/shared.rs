//! What all pumps of a run share: the plan, the store, and what is known of both sides.

use crate::error::Result;
use crate::migrate::control::Control;
use crate::migrate::ownership::Ownership;
use crate::migrate::saver::Saver;
use crate::plan::Job;
use crate::store::{Own, Store};
use crate::target::health::Health;
use crate::task::{Shutdown, Throttle};
use crate::types::unix_ms;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};

/// How long an event is not repeated.
const REPEAT: Duration = Duration::from_secs(5);

/// What all pumps of a run share.
pub struct Shared {
    pub job: Job,
    pub store: Mutex<Store>,
    pub saver: Saver,
    pub runtime: Handle,
    pub stop: Shutdown,
    pub dry_run: bool,
    pub until_caught_up: bool,
    /// What a new full sync or sweep at the start of this run would remove may go.
    pub accept_loss: bool,
    /// It has: the run ends by itself, not because somebody has asked for it.
    pub reached: AtomicBool,
    /// How long the target may be away before the run gives up.
    pub patience: Duration,
    /// The source is read by SCAN and DUMP: it has no stream.
    pub scan: bool,
    /// The source sends relative TTLs in its stream (Redis before 7.0).
    pub relative_ttls: bool,
    /// The source replicates scripts as they were called by its configuration only (Redis 5.0 to 6.2).
    pub scripts_can_be_effects: bool,
    /// The source does not replicate how many entries a group has read (Redis before 7.4, Valkey before 8.0).
    pub silent_entries_read: bool,
    /// An HSET of the stream may have been an HINCRBYFLOAT, after which the field keeps its expiry.
    pub silent_field_expiry: bool,
    /// The watcher of the target; none in a dry run.
    pub health: Option<Arc<Health>>,
    /// Who owns which slot; none where the source is no cluster.
    pub ownership: Option<Arc<Ownership>>,
    /// The target's modules.
    pub target_modules: Vec<String>,
    pub target_has_functions: bool,
    /// Its SET takes PXAT.
    pub target_has_set_pxat: bool,
    /// What the snapshot is estimated to take, in ms: expiries nearer than that are held.
    pub load_estimate_ms: i64,
    /// The target's own keys (on_existing "skip" and "replace").
    pub own: Own,
    /// Hash fields of the source may expire, and those of the target may not.
    pub loses_field_expiry: bool,
    /// How many shards there were at the start: they share the limits.
    pub shards: usize,
    /// KiB that are free of [`Limits::loaded`](crate::plan::Limits::loaded).
    pub for_loaded: Semaphore,
    /// How fast the snapshot may be loaded.
    pub throttle: Throttle,
    /// What a cutover asks for.
    pub control: Arc<Control>,
    /// The last event, and when.
    pub told: Mutex<Option<(String, Instant)>>,
}

impl Shared {
    pub fn store<T>(&self, work: impl FnOnce(&mut Store) -> Result<T>) -> Result<T> {
        work(&mut self.store.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until so many bytes are free for a load's keys; `None` when a stop is asked for.
    pub async fn room_for_loaded(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX);
        tokio::select! {
            () = self.stop.wait() => None,
            room = self.for_loaded.acquire_many(kib) => room.ok(),
        }
    }

    /// Takes the limits of the moment: those that `keyferry limit` has set, else the plan's.
    pub fn meet_limits(&self) -> Result<()> {
        let limits = self.store(|s| s.limits(&self.job.limits))?;
        self.throttle.set(limits.keys_per_s, limits.bytes_per_s);
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
