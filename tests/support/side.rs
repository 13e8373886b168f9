//! One side of a migration: a standalone server or a whole cluster, behind one way to send commands.
//!
//! The shards are read once: the clusters of the tests do not move slots, except where a test says so.
//! A `ClusterConnection` does not do: it hides its nodes, sends CLIENT SETINFO, and keeps EVALSHA or MULTI out of
//! pipelines.

use super::wire::{Client, Command, Value};
use redis::cluster::NodeAddress;
use redis::cluster_read_routing::{ClusterTopology, Shard};
use redis::cluster_routing::Slot;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::LazyLock;

/// How many slots a cluster has.
const SLOTS: u16 = 16384;

/// A key's hash slot; the crate says which, but keeps its number to itself.
pub fn slot(key: &[u8]) -> u16 {
    static NUMBERS: LazyLock<HashMap<Slot, u16>> = LazyLock::new(|| {
        (0..SLOTS)
            .filter_map(|n| Some((Slot::new(n)?, n)))
            .collect()
    });
    NUMBERS[&Slot::for_key(key)]
}

/// The shards of a cluster, as one of its nodes knows them.
pub fn shards(client: &mut Client) -> io::Result<ClusterTopology> {
    let number = |value: &Value| value.int().and_then(|n| u16::try_from(n).ok());
    let node = |value: &Value| match value.items() {
        [host, port, ..] => Some(NodeAddress::new(host.text(), number(port)?)),
        _ => None,
    };
    let shard = |range: &Value| match range.items() {
        [from, to, master, replicas @ ..] => {
            let slots = vec![(number(from)?, number(to)?)];
            let replicas = replicas.iter().map(node).collect::<Option<Vec<_>>>()?;
            Some(Shard::new(slots, node(master)?, replicas))
        }
        _ => None,
    };
    let told = client.words("CLUSTER SLOTS")?;
    let shards = told.items().iter().map(shard).collect::<Option<_>>();
    let shards = shards.ok_or_else(|| io::Error::other("a bad answer to CLUSTER SLOTS"))?;
    Ok(ClusterTopology::from_shards(shards))
}

/// The master of a key's slot.
pub fn owner<'t>(topology: &'t ClusterTopology, key: &[u8]) -> Option<&'t NodeAddress> {
    topology.shard_for_slot(slot(key)).map(Shard::primary)
}

/// A standalone server or the masters of a cluster.
pub struct Side {
    nodes: Vec<Client>,
    /// The masters, in the order of `nodes`, and which slots are theirs.
    cluster: Option<(Vec<NodeAddress>, ClusterTopology)>,
    commands: HashSet<String>,
}

impl Side {
    pub fn open(url: &str, cluster: bool) -> io::Result<Side> {
        Side::with(url, cluster, |shard| Some(shard.primary()))
    }

    /// A cluster as its replicas show it: the first of each master.
    pub fn of_replicas(url: &str) -> io::Result<Side> {
        let mut side = Side::with(url, true, |shard| shard.replicas().first())?;
        side.everywhere("READONLY")?;
        Ok(side)
    }

    fn with(
        url: &str,
        cluster: bool,
        which: fn(&Shard) -> Option<&NodeAddress>,
    ) -> io::Result<Side> {
        let mut first = Client::open(url)?;
        let commands = known_commands(&mut first)?;
        if !cluster {
            return Ok(Side {
                nodes: vec![first],
                cluster: None,
                commands,
            });
        }
        let topology = shards(&mut first)?;
        let incomplete =
            || io::Error::other(format!("the cluster at {url} does not serve every slot"));
        if (0..SLOTS).any(|slot| topology.shard_for_slot(slot).is_none()) {
            return Err(incomplete());
        }
        let (mut masters, mut nodes) = (Vec::new(), Vec::new());
        for shard in topology.shards() {
            if !masters.contains(shard.primary()) {
                let node = which(shard).ok_or_else(incomplete)?;
                nodes.push(Client::open_node(url, node)?);
                masters.push(shard.primary().clone());
            }
        }
        Ok(Side {
            nodes,
            cluster: Some((masters, topology)),
            commands,
        })
    }

    pub fn is_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    /// Whether the servers know a command.
    pub fn knows(&self, command: &str) -> bool {
        self.commands.contains(&command.to_ascii_lowercase())
    }

    pub fn commands(&self) -> impl Iterator<Item = &String> {
        self.commands.iter()
    }

    pub fn nodes(&mut self) -> &mut [Client] {
        &mut self.nodes
    }

    /// The node that holds a key.
    pub fn node_of(&self, key: &[u8]) -> usize {
        let found = self.cluster.as_ref().and_then(|(masters, topology)| {
            let owner = owner(topology, key)?;
            masters.iter().position(|m| m == owner)
        });
        found.unwrap_or(0)
    }

    fn node_for(&self, command: &Command) -> usize {
        command.routing_key().map_or(0, |key| self.node_of(key))
    }

    pub fn run(&mut self, command: &Command) -> io::Result<Value> {
        let node = self.node_for(command);
        self.nodes[node].run(command)
    }

    /// Sends all commands, each to its node, and returns the replies in the order of the commands.
    pub fn all(&mut self, commands: &[Command]) -> io::Result<Vec<Value>> {
        let nodes: Vec<usize> = commands.iter().map(|c| self.node_for(c)).collect();
        for (command, node) in commands.iter().zip(&nodes) {
            self.nodes[*node].push(command);
        }
        for node in &mut self.nodes {
            node.flush()?;
        }
        nodes.iter().map(|node| self.nodes[*node].read()).collect()
    }

    /// The same command on every node.
    pub fn everywhere(&mut self, words: &str) -> io::Result<Vec<Value>> {
        self.nodes.iter_mut().map(|n| n.words(words)).collect()
    }

    /// How many keys the current database holds.
    pub fn size(&mut self) -> io::Result<i64> {
        Ok(self
            .everywhere("DBSIZE")?
            .iter()
            .filter_map(Value::int)
            .sum())
    }

    /// The databases that hold keys.
    pub fn databases(&mut self) -> io::Result<Vec<u32>> {
        let info = self.nodes[0].words("INFO keyspace")?.text();
        Ok(info
            .lines()
            .filter_map(|l| l.strip_prefix("db")?.split_once(':')?.0.parse().ok())
            .collect())
    }
}

/// The names of every command that a server has.
fn known_commands(client: &mut Client) -> io::Result<HashSet<String>> {
    let all = client.words("COMMAND")?;
    Ok(all
        .items()
        .iter()
        .filter_map(|c| Some(c.items().first()?.text().to_ascii_lowercase()))
        .collect())
}
