//! One side of a migration: a standalone server or a whole cluster, behind one way to send commands.
//!
//! The slot map is read once: the clusters of the tests do not move slots, except where a test says so.

use super::wire::{Address, Client, Command, Value};
use std::collections::HashSet;
use std::io;

/// A hash slot, computed bit by bit from the cluster specification, apart from keyferry's own table.
pub fn slot(key: &[u8]) -> u16 {
    let hashed = match key.iter().position(|b| *b == b'{') {
        Some(open) => match key[open + 1..].iter().position(|b| *b == b'}') {
            Some(len) if len > 0 => &key[open + 1..open + 1 + len],
            _ => key,
        },
        None => key,
    };
    let crc = hashed.iter().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |c, _| {
            if c & 0x8000 != 0 {
                (c << 1) ^ 0x1021
            } else {
                c << 1
            }
        })
    });
    crc & 0x3fff
}

/// A standalone server or the masters of a cluster.
pub struct Side {
    nodes: Vec<Client>,
    /// The node of every slot; empty for a standalone server.
    owner: Vec<u16>,
    commands: HashSet<String>,
}

impl Side {
    pub fn open(url: &str, cluster: bool) -> io::Result<Side> {
        Side::with(url, cluster, 0)
    }

    /// A cluster as its replicas show it: the first of each master.
    pub fn of_replicas(url: &str) -> io::Result<Side> {
        Side::with(url, true, 1)
    }

    fn with(url: &str, cluster: bool, which: usize) -> io::Result<Side> {
        let mut first = Client::open(url)?;
        let commands = known_commands(&mut first)?;
        if !cluster {
            return Ok(Side {
                nodes: vec![first],
                owner: Vec::new(),
                commands,
            });
        }
        let (mut addresses, mut nodes, mut owner) = (Vec::new(), Vec::new(), vec![u16::MAX; 16384]);
        for range in first.words("CLUSTER SLOTS")?.items() {
            let [from, to, nodes_of @ ..] = range.items() else {
                continue;
            };
            let Some(Value::Array(node)) = nodes_of.get(which) else {
                continue;
            };
            let address = format!("{}:{}", node[0].text(), node[1].text());
            let index = match addresses.iter().position(|a| *a == address) {
                Some(index) => index,
                None => {
                    let mut client = Client::connect(&address)?;
                    client.enter(&Address {
                        db: 0,
                        ..Address::parse(url)?
                    })?;
                    if which > 0 {
                        client.words("READONLY")?;
                    }
                    nodes.push(client);
                    addresses.push(address);
                    nodes.len() - 1
                }
            };
            for slot in from.int().unwrap_or(0)..=to.int().unwrap_or(-1) {
                owner[slot as usize] = index as u16;
            }
        }
        if owner.contains(&u16::MAX) {
            return Err(io::Error::other(format!(
                "the cluster at {url} does not serve every slot"
            )));
        }
        Ok(Side {
            nodes,
            owner,
            commands,
        })
    }

    pub fn is_cluster(&self) -> bool {
        !self.owner.is_empty()
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
        if self.owner.is_empty() {
            0
        } else {
            usize::from(self.owner[usize::from(slot(key))])
        }
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
