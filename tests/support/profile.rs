//! Providers as real servers: what they refuse denied by ACL, their TLS, their passwords, and a proxy where they have one.
//!
//! The user "ferry" has the provider's rights, on the TLS port or through the proxy; the tests' own tools use the plain
//! port, where the user "default" may do everything. What is refused and why: docs/providers.md.

use super::cluster::Cluster;
use super::need;
use super::proxy::{Proxy, Rules};
use super::server::{Server, Setup};
use super::story::Endpoint;
use super::tls::Tls;
use super::versions::all_rights;
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Alone,
    /// Three shards, each with an address of its own.
    Cluster,
    /// Three shards behind one address.
    Proxy,
}

/// What a provider is, for those who move data.
pub struct Profile {
    pub name: &'static str,
    server: &'static str,
    shape: Shape,
    /// Commands that its users may not run.
    refused: &'static [&'static str],
    lines: &'static [&'static str],
}

/// Refused by all that are no self-hosted servers.
macro_rules! managed {
    ($($more:literal),*) => {
        &["DEBUG", "SAVE", "BGSAVE", "BGREWRITEAOF", "MONITOR", "SHUTDOWN", "REPLICAOF", "SLAVEOF", "MIGRATE", $($more),*]
    };
}

/// Refused by Azure Managed Redis under the OSS cluster policy.
macro_rules! managed_oss {
    ($($more:literal),*) => {
        managed![
            "PSYNC",
            "SYNC",
            "REPLCONF",
            "SELECT",
            "MOVE",
            "CONFIG|SET",
            "ACL",
            "MODULE",
            "READONLY",
            "CLUSTER|GETKEYSINSLOT",
            "CLUSTER|COUNTKEYSINSLOT",
            "CLIENT|PAUSE",
            "ROLE",
            "WAIT"
            $(, $more)*
        ]
    };
}

/// Azure Cache for Redis: no replication, no CONFIG.
pub const AZURE_CACHE: Profile = Profile {
    name: "azure-cache",
    server: "redis-6.0",
    shape: Shape::Alone,
    refused: managed![
        "PSYNC", "SYNC", "REPLCONF", "CONFIG", "ACL", "CLUSTER", "MODULE"
    ],
    lines: &["notify-keyspace-events AKE"],
};

/// Azure Managed Redis, OSS cluster policy.
pub const AZURE_MANAGED_OSS: Profile = Profile {
    name: "azure-managed-oss",
    server: "redis-8.0",
    shape: Shape::Cluster,
    refused: managed_oss![],
    lines: &[],
};

/// Azure Managed Redis, Enterprise policy: one endpoint in front of the shards.
pub const AZURE_MANAGED_ENTERPRISE: Profile = Profile {
    name: "azure-managed-enterprise",
    server: "redis-8.0",
    shape: Shape::Proxy,
    refused: managed![
        "PSYNC",
        "SYNC",
        "REPLCONF",
        "SELECT",
        "MOVE",
        "CONFIG SET",
        "ACL",
        "MODULE",
        "READONLY",
        "CLUSTER",
        "CLIENT PAUSE",
        "ROLE",
        "WAIT"
    ],
    lines: &[],
};

/// Azure Managed Redis, not clustered.
pub const AZURE_MANAGED_NONCLUSTERED: Profile = Profile {
    name: "azure-managed-nonclustered",
    server: "redis-8.0",
    shape: Shape::Alone,
    refused: managed![
        "PSYNC",
        "SYNC",
        "REPLCONF",
        "SELECT",
        "MOVE",
        "CONFIG|SET",
        "ACL",
        "MODULE",
        "READONLY",
        "CLUSTER",
        "CLIENT|PAUSE",
        "ROLE",
        "WAIT"
    ],
    lines: &[],
};

/// Azure Managed Redis with active geo-replication, OSS cluster policy: no RESTORE, and nobody flushes.
pub const AZURE_MANAGED_ACTIVE_GEO: Profile = Profile {
    name: "azure-managed-active-geo",
    server: "redis-8.0",
    shape: Shape::Cluster,
    refused: managed_oss!["RESTORE", "FLUSHALL", "FLUSHDB"],
    lines: &[],
};

/// Azure Managed Redis with JSON, search, Bloom and time series, not clustered: what it has of them is not told by
/// MODULE LIST.
pub const AZURE_MANAGED_MODULES: Profile = Profile {
    name: "azure-managed-modules",
    server: "modules-7.4",
    shape: Shape::Alone,
    refused: AZURE_MANAGED_NONCLUSTERED.refused,
    lines: &[],
};

/// A self-hosted Redis Stack.
pub const REDIS_STACK: Profile = Profile {
    name: "redis-stack",
    server: "modules-7.4",
    shape: Shape::Alone,
    refused: &[],
    lines: &["rdbcompression no"],
};

/// Aiven for Valkey: replication is not on the list of what is refused.
pub const AIVEN_VALKEY: Profile = Profile {
    name: "aiven-valkey",
    server: "valkey-8.1",
    shape: Shape::Alone,
    refused: &[
        "CONFIG", "COMMAND", "CLUSTER", "MONITOR", "ACL", "DEBUG", "LASTSAVE", "SHUTDOWN",
    ],
    lines: &[],
};

pub const ELASTICACHE: Profile = Profile {
    name: "elasticache",
    server: "valkey-8.0",
    shape: Shape::Cluster,
    refused: managed![
        "PSYNC",
        "SYNC",
        "REPLCONF",
        "CONFIG",
        "ACL|SETUSER",
        "CLIENT|PAUSE",
        "MODULE"
    ],
    lines: &[],
};

pub const REDIS_CLOUD: Profile = Profile {
    name: "redis-cloud",
    server: "redis-7.0",
    shape: Shape::Alone,
    refused: managed![
        "PSYNC",
        "SYNC",
        "REPLCONF",
        "SELECT",
        "CLIENT|PAUSE",
        "ACL",
        "CONFIG|SET"
    ],
    lines: &["notify-keyspace-events \"\""],
};

/// A self-hosted cluster: everything is allowed.
pub const SELF_HOSTED_CLUSTER: Profile = Profile {
    name: "self-hosted-cluster",
    // Redis 7.0 tells the ports of TLS only with "tls-cluster yes".
    server: "valkey-8.1",
    shape: Shape::Cluster,
    refused: &[],
    lines: &["repl-backlog-size 256mb"],
};

pub const VALKEY_CLUSTER: Profile = Profile {
    name: "valkey-cluster",
    server: "valkey-9.1",
    shape: Shape::Cluster,
    refused: &[],
    lines: &[],
};

/// A provider's service that runs.
pub struct Provided {
    pub tls: Tls,
    secret: String,
    proxy: Option<Proxy>,
}

impl Profile {
    /// Starts it; `None` (and said) where the server or openssl is not to be had.
    pub fn start(&'static self) -> Option<(Endpoint, Provided)> {
        let [server] = need([self.server])?;
        let Some(tls) = Tls::make() else {
            super::skip("needs the openssl program");
            return None;
        };
        let secret = format!("{}-{:x}", self.name, std::process::id());
        let denied: Vec<String> = match self.shape {
            // There the proxy refuses.
            Shape::Proxy => Vec::new(),
            _ => (self.refused.iter())
                .map(|c| format!("-{}", c.to_ascii_lowercase()))
                .collect(),
        };
        let (rights, denied) = (all_rights(&server), denied.join(" "));
        let user = format!("user ferry on >{secret} {rights} {denied}");
        let setup = Setup::new(&server).lines(self.lines).line(&user).tls(&tls);
        let end = match self.shape {
            Shape::Alone => Endpoint::alone(setup),
            _ => Endpoint::Cluster(Cluster::with(&setup, 3, 0)),
        };
        let proxy = (self.shape == Shape::Proxy).then(|| {
            let rules = Rules {
                password: secret.clone(),
                refused: self.refused,
            };
            let nodes: Vec<String> = end.nodes().iter().map(Server::address).collect();
            // The shares of `form`.
            let owner = |slot: usize| (1..=3).position(|n| slot < 16384 * n / 3).unwrap_or(2);
            let owners = (0..16384).map(owner).collect();
            Proxy::start(&nodes, owners, Some(&tls), rules)
        });
        let provided = Provided { tls, secret, proxy };
        Some((end, provided))
    }
}

impl Provided {
    /// Puts its address, user and CA into one side of a plan; the password comes by `variable`.
    pub fn put_into(&self, end: &Endpoint, side: &mut Value, variable: &str) -> (String, String) {
        let port = match &self.proxy {
            Some(proxy) => proxy.port(),
            None => end.nodes()[0].tls_port(),
        };
        side["url"] = json!(format!("rediss://127.0.0.1:{port}"));
        side["username"] = json!("ferry");
        side["password"] = json!({ "env": variable });
        side["tls"] = json!({ "ca": self.tls.ca() });
        (variable.to_owned(), self.secret.clone())
    }

    /// The commands that were refused since this was asked last, and how often.
    pub fn refused(&self, end: &Endpoint) -> BTreeMap<String, i64> {
        let mut found = BTreeMap::new();
        if let Some(proxy) = &self.proxy {
            for name in proxy.take_rejected() {
                *found.entry(name).or_default() += 1;
            }
        }
        for node in end.nodes() {
            for entry in node.run("ACL LOG 100").items() {
                let parts = entry.items();
                let field = |name: &str| {
                    let pair = parts.chunks(2).find(|p| p[0].text() == name);
                    pair.map(|p| p[1].clone())
                };
                let count = field("count").and_then(|c| c.int()).unwrap_or(1);
                let object = field("object").map(|o| o.text().to_owned());
                *found.entry(object.unwrap_or_default()).or_default() += count;
            }
            node.run("ACL LOG RESET");
        }
        found
    }
}
