//! Connections to one side: to each of its masters some, and which of them a key is asked on.

use crate::error::{Error, ErrorKind, Result};
use crate::histogram::{self, Times, micros};
use crate::latency::request::Exchange;
use crate::net::{self, Conn, server};
use crate::plan::Endpoint;
use crate::resp::Reply;
use crate::types::Slot;
use std::time::Instant;

/// Connections to one side, kept between blocks.
pub struct Lines {
    pub endpoint: Endpoint,
    pub nodes: Vec<Node>,
    owner: Vec<usize>,
}

/// Those to one master.
pub struct Node {
    pub address: String,
    /// Those that nothing is sent on.
    pub idle: Vec<Conn>,
}

impl Lines {
    /// Opens `connections` in all, shared out among the masters, at least one to each.
    pub async fn open(endpoint: &Endpoint, connections: u32) -> Result<Lines> {
        let (layout, _) = server::layout(endpoint).await?;
        let each = (connections as usize / layout.masters.len().max(1)).max(1);
        let mut nodes = Vec::new();
        for master in &layout.masters {
            let mut idle = Vec::with_capacity(each);
            for _ in 0..each {
                idle.push(net::connect(endpoint, &master.address).await?);
            }
            nodes.push(Node {
                address: master.address.clone(),
                idle,
            });
        }
        let owner = Slot::all().map(|slot| {
            layout
                .masters
                .iter()
                .position(|m| m.slots.has(slot))
                .unwrap_or(0)
        });
        Ok(Lines {
            endpoint: endpoint.clone(),
            nodes,
            owner: owner.collect(),
        })
    }

    /// How many masters there are.
    pub fn masters(&self) -> usize {
        self.nodes.len()
    }

    pub fn node_of(&self, key: &[u8]) -> usize {
        self.owner.get(Slot::of(key).index()).copied().unwrap_or(0)
    }

    /// Whether a key is there.
    pub async fn holds(&mut self, key: &[u8]) -> Result<bool> {
        let conn = self.spare(key).await?;
        Ok(conn.call(&[b"EXISTS", key]).await? == Reply::Int(1))
    }

    /// Sends one exchange to the node of its key, outside of any measuring.
    pub async fn exchange(&mut self, key: &[u8], exchange: &Exchange) -> Result<()> {
        exchange.run(self.spare(key).await?).await
    }

    /// A connection to the node of a key, while nothing is measured.
    async fn spare(&mut self, key: &[u8]) -> Result<&mut Conn> {
        let at = self.node_of(key);
        let Some(node) = self.nodes.get_mut(at) else {
            return Err(Error::new(ErrorKind::Bug, "a slot leads to no node"));
        };
        if node.idle.is_empty() {
            // They were lost with a block that has failed.
            node.idle
                .push(net::connect(&self.endpoint, &node.address).await?);
        }
        (node.idle.first_mut())
            .ok_or_else(|| Error::new(ErrorKind::Bug, "a node has no connection"))
    }

    /// Round trips of PING to each master, one after the other, in µs.
    pub async fn floor(&mut self, times: u32) -> Result<Times> {
        let mut floor = histogram::new();
        for node in &mut self.nodes {
            let Some(conn) = node.idle.first_mut() else {
                continue;
            };
            for _ in 0..times {
                let began = Instant::now();
                conn.call(&[b"PING"]).await?;
                floor.saturating_record(micros(began.elapsed()));
            }
        }
        Ok(floor)
    }
}
