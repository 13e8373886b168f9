//! Connections of a client to a side that fails over, moves slots, closes and opens: made anew whenever they are needed.

use super::side::{owner, shards};
use super::story::Endpoint;
use super::wire::{Client, Command, Value};
use redis::cluster_read_routing::ClusterTopology;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

/// How a side is reached.
#[derive(Debug, Clone)]
pub struct Place {
    /// host:port of any of its nodes, or of what stands before them.
    pub seeds: Vec<String>,
    pub cluster: bool,
    /// Who writes; nobody in particular when it is empty.
    pub user: String,
}

impl Place {
    pub fn of(end: &Endpoint) -> Place {
        Place {
            seeds: end.nodes().iter().map(|n| n.address()).collect(),
            cluster: end.is_cluster(),
            user: String::new(),
        }
    }

    pub fn at(address: &str) -> Place {
        Place {
            seeds: vec![address.to_owned()],
            cluster: false,
            user: String::new(),
        }
    }

    /// The same, whose writers log in as `user` (without a password).
    pub fn user(mut self, user: &str) -> Place {
        self.user = user.to_owned();
        self
    }
}

/// Connections to a side, made when they are needed.
pub struct Link {
    place: Place,
    patience: Duration,
    open: BTreeMap<String, Client>,
    /// Who owns which slots, once that is known.
    shards: Option<ClusterTopology>,
}

impl Link {
    pub fn new(place: &Place, patience: Duration) -> Link {
        Link {
            place: place.clone(),
            patience,
            open: BTreeMap::new(),
            shards: None,
        }
    }

    /// Runs a command at the node of its key. An error reply that sends the client elsewhere is an error as well.
    pub fn run(&mut self, key: &str, command: &Command) -> io::Result<Value> {
        let reply = self.try_run(key, command);
        let astray = |text: &str| {
            let first = text.split(' ').next().unwrap_or("");
            ["MOVED", "ASK", "CLUSTERDOWN", "LOADING"].contains(&first)
        };
        match reply {
            Ok(Value::Error(text)) if astray(&text) => {
                self.forget();
                Err(io::Error::other(text))
            }
            Err(e) => {
                self.forget();
                Err(e)
            }
            ok => ok,
        }
    }

    /// Runs many commands at once, each at the node of its key; the replies are in their order.
    pub fn all(&mut self, commands: &[Command]) -> io::Result<Vec<Value>> {
        let mut nodes = Vec::new();
        for command in commands {
            let key = String::from_utf8_lossy(command.routing_key().unwrap_or_default());
            let address = self.node(&key)?;
            self.open_to(&address)?.push(command);
            nodes.push(address);
        }
        for client in self.open.values_mut() {
            client.flush()?;
        }
        (nodes.iter())
            .map(|address| self.open_to(address)?.read())
            .collect()
    }

    /// Closes all connections; the next command looks for its node anew.
    pub fn forget(&mut self) {
        self.open.clear();
        self.shards = None;
    }

    fn try_run(&mut self, key: &str, command: &Command) -> io::Result<Value> {
        let address = self.node(key)?;
        self.open_to(&address)?.run(command)
    }

    fn open_to(&mut self, address: &str) -> io::Result<&mut Client> {
        if !self.open.contains_key(address) {
            let client = self.connect(address)?;
            self.open.insert(address.to_owned(), client);
        }
        (self.open.get_mut(address)).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn connect(&self, address: &str) -> io::Result<Client> {
        let mut client = Client::connect(address)?;
        client.patience(self.patience)?;
        if !self.place.user.is_empty() {
            client.expect(&Command::new("AUTH").arg(&self.place.user).arg("any"))?;
        }
        Ok(client)
    }

    fn node(&mut self, key: &str) -> io::Result<String> {
        if !self.place.cluster {
            let first = self.place.seeds.first().cloned();
            return first.ok_or_else(|| io::ErrorKind::NotFound.into());
        }
        if self.shards.is_none() {
            let mut last = Err(io::ErrorKind::NotFound.into());
            for seed in &self.place.seeds {
                last = self
                    .connect(seed)
                    .and_then(|mut client| shards(&mut client));
                if last.is_ok() {
                    break;
                }
            }
            self.shards = Some(last?);
        }
        let found = self.shards.as_ref().and_then(|s| owner(s, key.as_bytes()));
        found
            .map(ToString::to_string)
            .ok_or_else(|| io::Error::other("a slot without an owner"))
    }
}
