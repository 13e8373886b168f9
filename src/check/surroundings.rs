//! What a side has beside its keys and applications notice: scripts, users, listeners, settings, replicas, Sentinels.

use super::users::{self, Users};
use crate::error::Result;
use crate::net::server::{Product, Server};
use crate::net::{Control, told};
use crate::plan::Endpoint;
use crate::resp::{Reply, info};
use crate::types::address;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Settings that applications notice. None of them is a secret.
const SETTINGS: [&str; 10] = [
    "client-output-buffer-limit",
    "client-query-buffer-limit",
    "databases",
    "lua-time-limit",
    "min-replicas-max-lag",
    "min-replicas-to-write",
    "notify-keyspace-events",
    "proto-max-bulk-len",
    "tcp-keepalive",
    "timeout",
];
/// How long a replica's master may take to answer.
const MASTER_LIMIT: Duration = Duration::from_secs(5);

/// Sums over the masters of a side where that makes sense.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Surroundings {
    pub calls: Calls,
    /// Scripts that the server remembers by their digest.
    pub cached_scripts: Option<u64>,
    pub listeners: Listeners,
    /// As CONFIG GET tells them on the first master.
    pub settings: BTreeMap<&'static str, String>,
    #[serde(skip)]
    pub users: Option<Users>,
    pub replicas: Replicas,
    /// The master of a source that is a replica.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master: Option<ReplicaOf>,
    /// Sentinels that watch the server.
    pub sentinels: u64,
    /// Search indexes; `None` where the server has no such module, or does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub indexes: Option<u64>,
    pub tracking_clients: u64,
    /// What we may keep its clients from writing with.
    pub closes: Closes,
}

/// Calls since the server's statistics began.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Calls {
    /// EVALSHA and SCRIPT LOAD.
    pub evalsha: u64,
    /// WAIT and WAITAOF.
    pub wait: u64,
}

/// Who may listen for keyspace notifications.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Listeners {
    /// Channels of notifications that somebody has subscribed to.
    pub channels: u64,
    /// Patterns of channels, whatever they are for.
    pub patterns: u64,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Replicas {
    /// Those that follow, without keyferry's own links.
    pub online: u64,
    /// Writes are refused with fewer than so many; `None` where they never are.
    pub wanted: Option<u64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ReplicaOf {
    pub address: String,
    /// It is a master, and answers us with the same credentials.
    pub reached: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Closes {
    /// CLIENT PAUSE … WRITE.
    pub pause: bool,
    /// ACL SETUSER.
    pub users: bool,
}

impl Surroundings {
    /// Adds what one master has told: its whole INFO, channels of notifications that are listened to, and sentinels.
    pub fn add(&mut self, info: &str, channels: u64, sentinels: u64) {
        for (name, of) in info::commands(info) {
            let calls = of.count("calls").unwrap_or(0);
            let sum = match name.as_str() {
                "evalsha" | "evalsha_ro" | "script|load" => &mut self.calls.evalsha,
                "wait" | "waitaof" => &mut self.calls.wait,
                _ => continue,
            };
            *sum = sum.saturating_add(calls);
        }
        let more = |sum: &mut u64, name: &str| {
            *sum = sum.saturating_add(info::number(info, name).unwrap_or(0));
        };
        more(&mut self.tracking_clients, "tracking_clients");
        more(&mut self.listeners.patterns, "pubsub_patterns");
        self.cached_scripts =
            (self.cached_scripts).max(info::number(info, "number_of_cached_scripts"));
        // Nobody but keyferry follows without a port of its own.
        let real = info::replicas(info)
            .filter(|r| r.get("port") != Some("0"))
            .count();
        self.replicas.online = self.replicas.online.saturating_add(real as u64);
        if info::number(info, "min_slaves_good_slaves").is_some() {
            self.replicas.wanted.get_or_insert(1);
        }
        self.listeners.channels = self.listeners.channels.saturating_add(channels);
        self.sentinels = self.sentinels.max(sentinels);
    }

    /// Takes what the first master has answered to [`ask_for_settings`] and, where we have a name there, to ACL LIST.
    pub async fn take(
        &mut self,
        conn: &mut Control,
        settings: Reply,
        users: Option<Reply>,
    ) -> Result<()> {
        self.settings = self::settings(conn, settings).await?;
        let wanted = self.number("min-replicas-to-write").filter(|n| *n > 0);
        self.replicas.wanted = wanted.or(self.replicas.wanted);
        self.users = users.and_then(|list| users::told(&list));
        Ok(())
    }

    /// What a replica may be behind before it is cut off, in the server's own numbers.
    pub fn replica_buffer(&self) -> Option<String> {
        let text = self.settings.get("client-output-buffer-limit")?;
        let words: Vec<&str> = text.split(' ').collect();
        let at = words
            .iter()
            .position(|w| *w == "slave" || *w == "replica")?;
        Some(words.get(at + 1..at + 4)?.join(" "))
    }

    pub async fn count_indexes(&mut self, conn: &mut Control, modules: &[String]) -> Result<()> {
        if modules.iter().any(|m| m.starts_with("search")) {
            let reply = conn.ask(&[b"FT._LIST"]).await?;
            self.indexes = reply.array().map(|list| list.len() as u64);
        }
        Ok(())
    }

    /// A setting that is a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.settings.get(name)?.parse().ok()
    }
}

/// The question for all settings.
pub fn ask_for_settings() -> Vec<&'static [u8]> {
    let mut ask: Vec<&[u8]> = vec![b"CONFIG", b"GET"];
    ask.extend(SETTINGS.iter().map(|name| name.as_bytes()));
    ask
}

/// The settings of the answer; none where CONFIG is refused.
async fn settings(conn: &mut Control, told: Reply) -> Result<BTreeMap<&'static str, String>> {
    let told = match told {
        Reply::Array(told) => told,
        // Redis 6 takes one name at a time.
        Reply::Error(text) if text.contains("wrong number") => {
            let mut all = Vec::new();
            let asked = SETTINGS.map(|name| -> [&[u8]; 3] { [b"CONFIG", b"GET", name.as_bytes()] });
            for reply in conn
                .ask_new(&asked.each_ref().map(|a| a.as_slice()))
                .await?
            {
                let Reply::Array(pair) = reply else { break };
                all.extend(pair);
            }
            all
        }
        _ => Vec::new(),
    };
    let mut found = BTreeMap::new();
    for pair in told.chunks_exact(2) {
        let [name, value] = pair else { continue };
        let known = SETTINGS
            .iter()
            .find(|s| name.text().as_deref() == Some(**s));
        if let (Some(known), Some(value)) = (known, value.text()) {
            found.insert(*known, value.into_owned());
        }
    }
    Ok(found)
}

/// CLIENT PAUSE takes WRITE (Redis 6.2; every Valkey and Redict).
pub fn pauses_writes(server: &Server) -> bool {
    server.product != Product::Redis || server.at_least(6, 2)
}

/// The master of a replica, and whether we may ask it; `info` is the replica's INFO.
pub async fn master_of(endpoint: &Endpoint, info: &str) -> Option<ReplicaOf> {
    if !info::is_replica(info) {
        return None;
    }
    let host = info::field(info, "master_host")?;
    let address = address::join(host, info::field(info, "master_port")?);
    let look = async {
        let mut conn = told(endpoint, &address).await.map_err(|e| e.chain())?;
        let reply = conn.ask(&[b"INFO", b"replication"]).await;
        let reply = reply.map_err(|e| e.chain())?;
        match reply.text().map(|text| info::is_replica(&text)) {
            Some(false) => Ok(()),
            Some(true) => Err("it is a replica itself".to_owned()),
            None => Err("it does not tell its role".to_owned()),
        }
    };
    let seen = tokio::time::timeout(MASTER_LIMIT, look).await;
    let why = match seen {
        Ok(found) => found.err(),
        Err(_) => Some(format!("no answer within {} s", MASTER_LIMIT.as_secs())),
    };
    Some(ReplicaOf {
        reached: why.is_none(),
        address,
        why,
    })
}
