//! The source shards of a run: one runner for each master, more when the cluster grows, fewer when it shrinks.

use crate::error::{Error, ErrorKind, Result};
use crate::migrate::context::Shared;
use crate::migrate::progress::{ENDED, Progress, ShardProgress};
use crate::migrate::shard::runner::Runner;
use crate::migrate::slots::ownership::Ownership;
use crate::net::server::{Master, Server};
use crate::source::place::Place;
use crate::store::ShardState;
use crate::target::topology::Topology;
use crate::task::Shutdown;
use crate::types::ShardId;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::task::JoinHandle;

/// What every runner needs, and who runs.
pub(crate) struct Shards {
    pub shared: Arc<Shared>,
    pub topology: Topology,
    pub target: Server,
    /// The spools' folder.
    pub dir: PathBuf,
    /// Numbers below this are other workers'.
    pub used: u16,
    pub progress: Arc<Progress>,
    pub running: Mutex<Running>,
}

#[derive(Default)]
pub(crate) struct Running {
    shards: Vec<Entry>,
    handles: Vec<JoinHandle<Result<()>>>,
    next: u16,
}

struct Entry {
    shard: ShardId,
    place: Option<Arc<Place>>,
    view: Arc<ShardProgress>,
    stop: Shutdown,
}

impl Shards {
    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stop(&self) -> &Shutdown {
        &self.shared.stop
    }

    pub fn event(&self, level: &str, code: &str, message: &str) {
        self.shared.event(level, code, message);
    }

    /// The shards that are followed now.
    pub fn places(&self) -> Vec<(ShardId, Arc<Place>)> {
        let running = self.running();
        (running.shards.iter())
            .filter(|e| !e.stop.requested())
            .filter_map(|e| Some((e.shard, e.place.clone()?)))
            .collect()
    }

    pub fn views(&self) -> Vec<Arc<ShardProgress>> {
        self.running()
            .shards
            .iter()
            .map(|e| e.view.clone())
            .collect()
    }

    /// A number that no shard has had.
    pub fn next_id(&self, used: u16) -> ShardId {
        let mut running = self.running();
        running.next = running.next.max(used);
        running.next += 1;
        ShardId(running.next - 1)
    }

    /// Starts a shard.
    pub fn start(&self, shard: ShardState, place: Option<Arc<Place>>) {
        let view = Arc::new(ShardProgress::new(shard.shard, shard.address.clone()));
        let stop = Shutdown::default();
        let (all, own) = (self.shared.stop.clone(), stop.clone());
        tokio::spawn(async move {
            all.wait().await;
            own.request();
        });
        let runner = Runner {
            shared: self.shared.clone(),
            topology: self.topology.clone(),
            target: self.target.clone(),
            dir: self.dir.join(format!("shard-{}", shard.shard)),
            view: view.clone(),
            place: place.clone(),
            stop: stop.clone(),
        };
        let id = shard.shard;
        let handle = tokio::spawn(async move {
            let result = runner.run(shard).await;
            if result.is_err() {
                runner.shared.stop.request();
            } else {
                runner.view.set_phase(ENDED);
                // Where only this shard has ended, it has nothing more to bring: nobody waits for it.
                if !runner.shared.stop.requested() {
                    runner
                        .view
                        .caught_up
                        .store(true, std::sync::atomic::Ordering::Relaxed);
                }
            }
            result
        });
        {
            let mut running = self.running();
            running.next = running.next.max(id.0 + 1);
            running.shards.push(Entry {
                shard: id,
                place,
                view,
                stop,
            });
            running.handles.push(handle);
        }
        self.progress.set_shards(self.views());
    }

    /// A master that the cluster did not have before.
    pub fn add(&self, master: &Master, ownership: &Ownership) -> Result<()> {
        let Some(first) = self.places().into_iter().next() else {
            return Ok(());
        };
        let shard = self.next_id(self.used);
        self.event(
            "info",
            "source_master",
            &format!("the source has a new master: {}", master.address),
        );
        ownership.join(shard);
        let place = Place::new(first.1.endpoint(), true, master);
        let state = ShardState::new(shard, master.address.clone(), String::new());
        self.start(state, Some(Arc::new(place)));
        Ok(())
    }

    /// A master that has given all its slots away.
    pub fn remove(&self, shard: ShardId) {
        let running = self.running();
        if let Some(entry) = running.shards.iter().find(|e| e.shard == shard) {
            self.event(
                "info",
                "source_master",
                &format!(
                    "the source's master {} has no slots any more",
                    entry.view.address
                ),
            );
            entry.stop.request();
        }
        drop(running);
        self.shared.shard_gone(shard);
    }

    /// Waits for all, those that come in the meantime included; the first error stops the others.
    pub async fn join(&self) -> Result<()> {
        let mut first = Ok(());
        loop {
            let handle = self.running().handles.pop();
            let Some(handle) = handle else { return first };
            let ended = handle.await.unwrap_or_else(|e| {
                Err(Error::new(ErrorKind::Bug, "a shard's task panicked").cause(e))
            });
            if ended.is_err() {
                self.shared.stop.request();
                if first.is_ok() {
                    first = ended;
                }
            }
        }
    }
}
