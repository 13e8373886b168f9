//! Watches the target beside the data path: what has reached a replica, and whether a master was lost with what it held.
//!
//! Each master's replication offset is sampled; once a replica has reached a sample's offset, everything acknowledged
//! before that sample is stable (what WAIT would say, without a command among the data). A master without a replica
//! counts as stable after [`SAFETY`]. A master whose run_id is gone (killed, restarted, demoted) may have taken
//! acknowledged writes with it: that is a loss, and whoever wrote must write again what was not stable.

use crate::error::{Error, ErrorKind, Result};
use crate::net::{self, Control};
use crate::plan::Endpoint;
use crate::resp::info;
use crate::target::topology::Topology;
use crate::task::Shutdown;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Without a replica, writes are taken for safe after this time.
pub const SAFETY: Duration = Duration::from_secs(10);
const EVERY: Duration = Duration::from_millis(500);
/// Samples kept for a replica that does not keep up.
const SAMPLES: usize = 4096;

/// What the watcher has found out; read by every shard's loop.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// What was acknowledged before this moment is stable.
    pub stable_until: Option<Instant>,
    /// How many losses there were.
    pub losses: u64,
    /// Set when a master came back without its keys, which no healing mends.
    pub emptied: Option<String>,
    /// The run ids of the masters.
    pub masters: BTreeSet<String>,
}

impl View {
    /// The run ids of the masters, to be kept for the next run.
    pub fn masters_document(&self) -> serde_json::Value {
        self.masters.iter().cloned().collect()
    }
}

/// The watcher's findings.
#[derive(Default)]
pub struct Health(Mutex<View>);

struct Sample {
    run_id: String,
    offset: u64,
    /// The best offset of an online replica, if there is one.
    replica: Option<u64>,
    keys: u64,
}

/// One watch over all masters.
pub struct Watch {
    health: Arc<Health>,
    endpoint: Endpoint,
    topology: Topology,
    conns: BTreeMap<String, Control>,
    history: BTreeMap<String, VecDeque<(Instant, u64)>>,
    keys: u64,
}

impl Health {
    pub fn view(&self) -> View {
        self.lock().clone()
    }

    /// Shows what a test wants to be seen.
    #[cfg(test)]
    pub fn show(&self, view: View) {
        *self.lock() = view;
    }

    fn lock(&self) -> MutexGuard<'_, View> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// Takes the first sample; `known` are the masters of the run before, and another set is a loss.
    pub async fn begin(
        endpoint: &Endpoint,
        topology: &Topology,
        known: BTreeSet<String>,
    ) -> Result<Watch> {
        let health = Arc::new(Health::default());
        health.lock().masters = known;
        let mut watch = Watch {
            health,
            endpoint: endpoint.clone(),
            topology: topology.clone(),
            conns: BTreeMap::new(),
            history: BTreeMap::new(),
            keys: 0,
        };
        watch.look().await?;
        Ok(watch)
    }

    pub fn health(&self) -> Arc<Health> {
        self.health.clone()
    }

    /// Looks again and again until `stop`; a target that does not answer is the loops' trouble, not ours.
    pub async fn run(mut self, stop: Shutdown) {
        while stop.sleep(EVERY).await {
            if let Err(e) = self.look().await {
                tracing::debug!("the target's state could not be read: {e}");
                self.conns.clear();
                if let Ok(topology) = self.topology.refresh(&self.endpoint).await {
                    self.topology = topology;
                }
            }
        }
    }

    async fn look(&mut self) -> Result<()> {
        let now = Instant::now();
        let endpoint = &self.endpoint;
        let nodes = self.topology.nodes.iter().map(|address| {
            let conn = self.conns.remove(address);
            async move {
                let (conn, sample) = sample(endpoint, address, conn).await?;
                Ok::<_, Error>((address.clone(), conn, sample))
            }
        });
        let mut samples = BTreeMap::new();
        for (address, conn, sample) in futures::future::try_join_all(nodes).await? {
            self.conns.insert(address.clone(), conn);
            samples.insert(address, sample);
        }
        let masters: BTreeSet<String> = samples.values().map(|s| s.run_id.clone()).collect();
        let keys = (samples.values()).fold(0u64, |sum, s| sum.saturating_add(s.keys));
        self.history
            .retain(|address, _| samples.contains_key(address));
        let mut view = self.health.lock();
        if !view.masters.is_empty() && !view.masters.is_subset(&masters) {
            view.losses = view.losses.saturating_add(1);
            self.history.clear();
            if self.keys > 1_000 && keys < self.keys / 2 {
                view.emptied = Some(format!(
                    "the target had {} keys, and after a restart or failover has {keys}",
                    self.keys
                ));
            }
        }
        view.masters = masters;
        self.keys = keys;
        let mut stable = now.checked_sub(SAFETY).unwrap_or(now);
        let mut first = true;
        for (address, sample) in &samples {
            let history = self.history.entry(address.clone()).or_default();
            let node = match sample.replica {
                None => {
                    history.clear();
                    now.checked_sub(SAFETY)
                }
                Some(reached) => {
                    history.push_back((now, sample.offset));
                    if history.len() > SAMPLES {
                        history.pop_front();
                    }
                    let mut node = None;
                    while let Some((at, offset)) = history.front().copied() {
                        node = node.max(Some(at).filter(|_| offset <= reached));
                        // The last sample that was reached stays: it says how far this node is.
                        let next = history.get(1).is_some_and(|(_, o)| *o <= reached);
                        if !next {
                            break;
                        }
                        history.pop_front();
                    }
                    node
                }
            };
            let Some(node) = node else {
                // Nothing of this node is known to be safe yet.
                return Ok(());
            };
            stable = if first { node } else { stable.min(node) };
            first = false;
        }
        view.stable_until = view.stable_until.max(Some(stable));
        Ok(())
    }
}

/// Asks a master, over a connection that is kept where there is one.
async fn sample(
    endpoint: &Endpoint,
    address: &str,
    kept: Option<Control>,
) -> Result<(Control, Sample)> {
    let mut conn = match kept {
        Some(conn) => conn,
        None => net::control(endpoint, address).await?,
    };
    // A target that refuses INFO tells nothing: then only time counts.
    let reply = conn.ask(&[b"INFO"]).await?;
    let text = reply.text().unwrap_or_default();
    if info::is_replica(&text) {
        return Err(Error::new(
            ErrorKind::NotReady,
            format!("{address} is a replica now"),
        ));
    }
    let replicas =
        info::replicas(&text).filter_map(|replica| replica.get("offset")?.parse::<u64>().ok());
    let keys = info::databases(&text).filter_map(|(_, of)| of.count("keys"));
    let sample = Sample {
        run_id: info::field(&text, "run_id").unwrap_or_default().to_owned(),
        offset: info::offset(&text).map_or(0, |offset| offset.0),
        replica: replicas.max(),
        keys: keys.fold(0u64, u64::saturating_add),
    };
    Ok((conn, sample))
}
