//! Forms real clusters of servers of any version, without redis-cli.

use super::form::form_with_replicas;
use super::server::{Server, Setup};
use super::side::Side;

/// A running cluster: the masters first, then their replicas in the same order.
pub struct Cluster {
    nodes: Vec<Server>,
    masters: usize,
}

impl Cluster {
    /// `masters` masters of one version, without replicas.
    pub fn start(name: &str, masters: usize) -> Cluster {
        Cluster::with(&Setup::new(name), masters, 0)
    }

    /// A cluster whose nodes are all set up alike; each master gets `replicas` replicas.
    pub fn with(setup: &Setup, masters: usize, replicas: usize) -> Cluster {
        let setups = vec![setup.clone(); masters * (1 + replicas)];
        Cluster::of(setups, masters)
    }

    /// A cluster of differing nodes: the first `masters` are masters, the others replicas of them in turn.
    pub fn of(setups: Vec<Setup>, masters: usize) -> Cluster {
        let nodes: Vec<Server> = setups
            .into_iter()
            .map(|setup| setup.cluster().start())
            .collect();
        let cluster = Cluster { nodes, masters };
        let urls: Vec<String> = cluster.nodes.iter().map(Server::url).collect();
        if let Err(error) = form_with_replicas(&urls, masters) {
            panic!("{error}\n{}", cluster.nodes[0].log_tail());
        }
        cluster
    }

    pub fn nodes(&self) -> &[Server] {
        &self.nodes
    }

    pub fn addresses(&self) -> impl Iterator<Item = String> + '_ {
        self.nodes.iter().map(Server::address)
    }

    pub fn masters(&self) -> &[Server] {
        &self.nodes[..self.masters]
    }

    pub fn replicas(&self) -> &[Server] {
        &self.nodes[self.masters..]
    }

    pub fn nodes_mut(&mut self) -> &mut [Server] {
        &mut self.nodes
    }

    pub fn node_mut(&mut self, n: usize) -> &mut Server {
        &mut self.nodes[n]
    }

    /// The url of its first node.
    pub fn url(&self) -> String {
        self.nodes[0].url()
    }

    pub fn side(&self) -> Side {
        Side::open(&self.url(), true).expect("the cluster answers")
    }
}
