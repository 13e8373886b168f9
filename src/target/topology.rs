//! Which node of the target serves a slot.

use crate::error::{Error, ErrorKind, Result};
use crate::net;
use crate::net::server::{Layout, Server};
use crate::plan::Endpoint;
use crate::resp::Reply;
use crate::types::{SLOTS, Slot};

/// A picture of the target at one moment; replaced as a whole when the target says MOVED.
#[derive(Debug, Clone)]
pub struct Topology {
    pub cluster: bool,
    /// True where one command must keep to one slot: a cluster, or a proxy in front of one.
    pub one_slot: bool,
    /// There is no database but 0, and SELECT is never sent: a proxy, and a cluster but for one of Valkey 9 that has more.
    pub one_database: bool,
    pub pairs: Pairs,
    pub nodes: Vec<String>,
    node_of: Vec<u16>,
}

/// Which keys one MSET may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// It is not allowed at all.
    None,
    OfOneSlot,
    OfAny,
}

impl Topology {
    pub fn of(layout: &Layout, proxy: bool) -> Result<Topology> {
        let mut node_of = vec![u16::MAX; SLOTS];
        for (i, master) in layout.masters.iter().enumerate() {
            for slot in master.slots.iter() {
                if let Some(node) = node_of.get_mut(slot.index()) {
                    *node = i as u16;
                }
            }
        }
        let missing = node_of.iter().filter(|n| **n == u16::MAX).count();
        if missing > 0 {
            return Err(Error::new(
                ErrorKind::NotReady,
                format!("{missing} of the target's 16384 slots have no master"),
            ));
        }
        let nodes = layout.masters.iter().map(|m| m.address.clone()).collect();
        Ok(Topology {
            cluster: layout.cluster,
            one_slot: layout.cluster || proxy,
            one_database: layout.cluster || proxy,
            pairs: Pairs::None,
            nodes,
            node_of,
        })
    }

    pub fn node(&self, slot: Slot) -> usize {
        self.node_of
            .get(slot.index())
            .copied()
            .map_or(0, usize::from)
    }

    /// Asks the target anew, at the plan's addresses and then at the nodes already known.
    pub async fn refresh(&self, endpoint: &Endpoint) -> Result<Topology> {
        let proxy = self.one_slot && !self.cluster;
        if !self.cluster {
            // One that was a master may be a replica now.
            let _ = endpoint.learnt.look_around();
            return Ok(self.clone());
        }
        let nodes = (endpoint.addresses().into_iter()).chain(self.nodes.iter().cloned());
        net::server::masters_of(endpoint, nodes, |masters| {
            let layout = Layout {
                cluster: true,
                masters,
            };
            let (pairs, one_database) = (self.pairs, self.one_database);
            Ok(Topology {
                pairs,
                one_database,
                ..Topology::of(&layout, proxy)?
            })
        })
        .await
    }
}

/// The target's layout and product at the start of a run; [`pairs`] are still to be asked for.
pub async fn discover(endpoint: &Endpoint) -> Result<(Topology, Server)> {
    let (layout, server) = net::server::layout(endpoint).await?;
    let proxy = endpoint.topology == crate::plan::Topology::Proxy;
    let mut topology = Topology::of(&layout, proxy)?;
    if topology.cluster && server.may_have_cluster_databases() {
        let address = topology.nodes.first().cloned();
        let mut conn = net::control(endpoint, &address.unwrap_or(endpoint.address())).await?;
        let reply = conn.ask(&[b"SELECT", b"1"]).await?;
        topology.one_database = reply.text().is_none_or(|t| t != "OK");
    }
    Ok((topology, server))
}

/// Which keys one MSET may name there: of a target that was just [discovered](discover).
pub async fn pairs(topology: &Topology, endpoint: &Endpoint) -> Pairs {
    match takes_pairs(topology, endpoint).await {
        Ok(true) if topology.one_slot => Pairs::OfOneSlot,
        Ok(true) => Pairs::OfAny,
        _ => Pairs::None,
    }
}

/// Asks without writing: rights and slots are looked at when a command is queued, and the queue is thrown away.
async fn takes_pairs(topology: &Topology, endpoint: &Endpoint) -> Result<bool> {
    let address = match topology.nodes.first() {
        Some(address) if topology.cluster => address.clone(),
        _ => endpoint.address(),
    };
    let mut conn = net::control(endpoint, &address).await?;
    // Keys of the node that is asked.
    let mut tags = (0..SLOTS)
        .map(|n| format!("{{{n}}}:keyferry"))
        .filter(|key| topology.node(Slot::of(key.as_bytes())) == 0);
    let first = tags.next().unwrap_or_default();
    let second = match topology.one_slot {
        true => format!("{first}:2"),
        false => tags.next().unwrap_or_default(),
    };
    let is = |reply: &Reply, word: &str| reply.text().is_some_and(|t| t == word);
    // Without it, what follows would be written.
    if !is(&conn.ask(&[b"MULTI"]).await?, "OK") {
        return Ok(false);
    }
    let pair: [&[u8]; 5] = [b"MSET", first.as_bytes(), b"1", second.as_bytes(), b"1"];
    let told = conn.ask_all(&[&pair, &[b"DISCARD"]]).await?;
    Ok(matches!(told.as_slice(), [queued, ended] if is(queued, "QUEUED") && is(ended, "OK")))
}
