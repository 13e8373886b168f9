//! One side of a comparison: where its keys are, and what they hold.

use super::replicas;
use crate::digest::Unreplicated;
use crate::error::{Error, Result};
use crate::net::fork::Fork;
use crate::net::server::{self, Layout};
use crate::net::{self, Conn, Control};
use crate::plan::{Databases, Endpoint, Job, Renames};
use crate::resp::info;
use crate::types::{DbIndex, Slot};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Of so many round trips the shortest is the distance.
const PINGS: usize = 3;

/// Which side: it decides how databases and filters apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Source,
    Target,
}

impl Role {
    /// The databases of this side that the plan moves; empty is all.
    pub fn databases(self, databases: &Databases) -> Vec<DbIndex> {
        match self {
            _ if databases.is_identity() => Vec::new(),
            Role::Source => databases.moved().map(|(from, _)| from).collect(),
            Role::Target => databases.moved().map(|(_, to)| to).collect(),
        }
    }
}

/// What of a side may have come to it without being replicated further.
struct History {
    /// Its version does not replicate how many entries a group has read.
    silent_entries_read: bool,
    /// A master has been a replica, or a replica is read: see [`Unreplicated::was_replica`].
    was_replica: AtomicBool,
}

/// A side, shared by everything that reads it.
pub struct Side {
    pub role: Role,
    pub endpoint: Endpoint,
    pub cluster: bool,
    pub pexpiretime: bool,
    pub field_expiry: bool,
    history: History,
    /// What the source's keys are called here.
    pub renames: Renames,
    layout: Mutex<Arc<Layout>>,
    /// The replica that is read instead of a master (`source.read_from`).
    replicas: Mutex<HashMap<String, String>>,
    /// Held by the one reader that holds a value that is more than a window should be.
    pub(super) wide: tokio::sync::Mutex<()>,
    /// What was received so far.
    pub bytes: AtomicU64,
    /// False where DUMP is refused: then values are read by the commands of their types.
    pub dump: AtomicBool,
    /// False where short strings cannot be read by themselves: then they are read as all other values are.
    pub short: AtomicBool,
    /// False where MEMORY USAGE is refused: then every value is taken for small.
    pub memory: AtomicBool,
    /// The shortest round trip that was measured, in microseconds.
    round_trip_us: AtomicU64,
}

impl Side {
    pub async fn source(endpoint: &Endpoint) -> Result<Side> {
        Side::open(endpoint, Role::Source, Renames::default()).await
    }

    /// The target: it is asked for the source's keys by their new names, and tells its own by their old ones.
    pub async fn target(job: &Job) -> Result<Side> {
        Side::open(&job.target, Role::Target, job.renames.clone()).await
    }

    async fn open(endpoint: &Endpoint, role: Role, renames: Renames) -> Result<Side> {
        let name = match role {
            Role::Source => "source",
            Role::Target => "target",
        };
        let (layout, server) = server::layout(endpoint)
            .await
            .map_err(|e| e.context(format!("look at the {name}")))?;
        let side = Side {
            role,
            endpoint: endpoint.clone(),
            cluster: layout.cluster,
            pexpiretime: server.has_pexpiretime(),
            field_expiry: server.has_field_expiry(),
            history: History {
                silent_entries_read: server.silent_entries_read(),
                was_replica: AtomicBool::new(false),
            },
            renames,
            wide: Default::default(),
            layout: Mutex::new(Arc::new(layout)),
            bytes: AtomicU64::new(0),
            dump: AtomicBool::new(server.fork.is_none_or(Fork::dumps)),
            short: AtomicBool::new(true),
            memory: AtomicBool::new(true),
            round_trip_us: AtomicU64::new(0),
            replicas: Mutex::default(),
        };
        side.meet_replicas().await?;
        side.meet_histories().await?;
        Ok(side)
    }

    /// What of a key may differ at the target because this side does not replicate it; `settling`: a migration runs,
    /// which asks for what its stream does not tell a moment later.
    ///
    /// Where the master that a group was read at still is the master and is read itself, how much the group has read is
    /// known exactly and was brought over: then a difference of it is a real one.
    pub fn unreplicated(&self, settling: bool) -> Unreplicated {
        let was_replica = self.history.was_replica.load(Relaxed);
        Unreplicated {
            entries_read: self.history.silent_entries_read && (settling || was_replica),
            was_replica,
        }
    }

    /// Asks the source's masters whether they have been another's replica: then they have a second history.
    async fn meet_histories(&self) -> Result<()> {
        if self.role == Role::Target {
            return Ok(());
        }
        let layout = self.layout();
        let asked = layout.masters.iter().map(|master| async {
            let mut conn = net::control(&self.endpoint, &master.address).await?;
            let reply = conn.ask(&[b"INFO", b"replication"]).await?;
            let text = reply.text().unwrap_or_default();
            let second = info::field(&text, "master_replid2");
            // What does not tell may have been anything.
            Ok::<_, Error>(second.is_none_or(|id| id.bytes().any(|b| b != b'0')))
        });
        let were = futures::future::try_join_all(asked).await?;
        let was_replica = self.endpoint.from_replicas || were.contains(&true);
        self.history.was_replica.fetch_or(was_replica, Relaxed);
        Ok(())
    }

    pub fn layout(&self) -> Arc<Layout> {
        self.layout
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Asks anew who serves which slot; any master that answers will do.
    pub async fn refresh(&self) -> Result<()> {
        if !self.cluster {
            self.meet_replicas().await?;
            return self.meet_histories().await;
        }
        let nodes = self.layout().nodes(self.endpoint.addresses());
        let masters = server::masters_of(&self.endpoint, nodes, Ok).await?;
        let layout = Layout {
            cluster: true,
            masters,
        };
        *self.layout.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(layout);
        self.meet_replicas().await?;
        self.meet_histories().await
    }

    /// Finds the replicas that are read, and waits until they have what their masters have written until now.
    pub async fn meet_replicas(&self) -> Result<()> {
        if !self.endpoint.from_replicas {
            return Ok(());
        }
        let mut found = HashMap::new();
        for master in &self.layout().masters {
            match replicas::in_step(&self.endpoint, &master.address).await? {
                Some(replica) => {
                    found.insert(master.address.clone(), replica);
                }
                None => tracing::warn!(
                    "{} has no replica that is in step: it is read itself",
                    master.address
                ),
            }
        }
        *self.replicas.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(())
    }

    /// The master that serves a name.
    pub fn address_of(&self, key: &[u8]) -> String {
        let layout = self.layout();
        let master = layout.master_of(Slot::of(key));
        master.map(|m| m.address.clone()).unwrap_or_default()
    }

    /// A connection for reading what a master serves, by its address.
    pub async fn connect(&self, address: &str) -> Result<Conn> {
        let replica = {
            let replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
            replicas.get(address).cloned()
        };
        match replica {
            Some(replica) => replicas::connect(&self.endpoint, &replica, self.cluster).await,
            None => net::connect(&self.endpoint, address).await,
        }
    }

    /// The same for questions.
    pub async fn control(&self, address: &str) -> Result<Control> {
        Control::over(self.connect(address).await?).await
    }

    /// Whether it tells how much memory a value takes.
    pub fn tells_sizes(&self) -> bool {
        let refused = self.endpoint.learnt.refuses(&[b"MEMORY", b"USAGE"]);
        !refused && self.memory.load(Relaxed)
    }

    /// Measures how far away this side is, which decides how much is asked of it at a time.
    pub async fn measure(&self) -> Result<()> {
        let Some(master) = self.layout().masters.first().cloned() else {
            return Ok(());
        };
        let mut conn = self.control(&master.address).await?;
        let mut shortest = u64::MAX;
        for _ in 0..PINGS {
            let began = Instant::now();
            conn.ask(&[b"PING"]).await?;
            let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            shortest = shortest.min(us);
        }
        self.round_trip_us.store(shortest, Relaxed);
        Ok(())
    }

    /// How long an answer of this side takes, as far as that was measured.
    pub fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip_us.load(Relaxed))
    }

    /// The keys of each database, as the masters count them.
    pub async fn sizes(&self) -> Result<BTreeMap<DbIndex, u64>> {
        let layout = self.layout();
        let asked = layout.masters.iter().map(|master| async {
            let mut conn = self.control(&master.address).await?;
            server::databases(&mut conn).await
        });
        let told = futures::future::try_join_all(asked).await?;
        let mut sizes = BTreeMap::new();
        for (db, keys) in told.into_iter().flatten() {
            let sum: &mut u64 = sizes.entry(db).or_default();
            *sum = sum.saturating_add(keys);
        }
        Ok(sizes)
    }

    /// Seconds of CPU that all masters have used; `None` where they do not tell.
    pub async fn cpu_s(&self) -> Option<f64> {
        let layout = self.layout();
        let asked = layout.masters.iter().map(|master| async {
            let mut conn = self.control(&master.address).await.ok()?;
            let reply = conn.ask(&[b"INFO", b"cpu"]).await.ok()?;
            let text = reply.text()?;
            let used = |field| info::field(&text, field)?.parse::<f64>().ok();
            Some(used("used_cpu_sys")? + used("used_cpu_user")?)
        });
        let used = futures::future::join_all(asked).await;
        used.into_iter().sum()
    }
}
