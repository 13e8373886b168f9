//! Where one source shard is now: its master's address changes with a failover, its slots with a reshard.

use crate::error::Result;
use crate::net::server::{self, Master};
use crate::plan::Endpoint;
use crate::types::SlotSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One source shard's place; shared by its link, its loop and the watch over the cluster.
pub struct Place {
    endpoint: Endpoint,
    cluster: bool,
    state: Mutex<State>,
}

struct State {
    address: String,
    /// Nodes to ask when the master is away.
    known: Vec<String>,
    slots: SlotSet,
}

impl Place {
    pub fn new(endpoint: &Endpoint, cluster: bool, master: &Master) -> Place {
        let mut known = master.replicas.clone();
        known.push(master.address.clone());
        Place {
            endpoint: endpoint.clone(),
            cluster,
            state: Mutex::new(State {
                address: master.address.clone(),
                known,
                slots: master.slots.clone(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub fn address(&self) -> String {
        self.state().address.clone()
    }

    /// How many of the shard's slots a master serves.
    fn overlap(&self, master: &Master) -> usize {
        let state = self.state();
        state.slots.iter().filter(|s| master.slots.has(*s)).count()
    }

    /// Takes what a picture of the cluster says of this shard: the master at its address, else the one that has taken
    /// most of its slots over and is nobody else's; false when there is none.
    pub fn follow(&self, masters: &[Master], taken: &[String]) -> bool {
        let own = self.address();
        let found = masters.iter().find(|m| m.address == own).or_else(|| {
            masters
                .iter()
                .filter(|m| !taken.contains(&m.address))
                .map(|m| (self.overlap(m), m))
                .filter(|(n, _)| *n > 0)
                .max_by_key(|(n, _)| *n)
                .map(|(_, m)| m)
        });
        let Some(master) = found else { return false };
        let mut state = self.state();
        if state.address != master.address {
            tracing::warn!(
                "the source's master {} is now {}",
                state.address,
                master.address
            );
        }
        state.address = master.address.clone();
        state.slots = master.slots.clone();
        for node in master.replicas.iter().chain([&master.address]) {
            if !state.known.contains(node) {
                state.known.push(node.clone());
            }
        }
        true
    }

    /// Asks the cluster where the shard's master is; nothing to do outside of a cluster.
    pub async fn locate(&self) -> Result<()> {
        if !self.cluster {
            return Ok(());
        }
        let masters = self.ask().await?;
        self.follow(&masters, &[]);
        Ok(())
    }

    /// The cluster's masters, as the first node that answers tells.
    pub async fn ask(&self) -> Result<Vec<Master>> {
        let mut nodes = self.endpoint.addresses();
        nodes.extend(self.state().known.iter().rev().cloned());
        server::masters_of(&self.endpoint, nodes, Ok).await
    }
}
