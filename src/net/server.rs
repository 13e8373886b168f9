//! What a server is: product, version, role, and the masters behind its address.

use crate::error::{Error, ErrorKind, Result};
use crate::net::dial::by_known;
use crate::net::fork::Fork;
use crate::net::{Control, control, passes, question, refusal, slots};
use crate::plan::{Endpoint, Topology};
use crate::rdb::modules::ways::{BY_COMMAND, Loaded};
use crate::resp::{Reply, info};
use crate::types::{DbIndex, ReplOffset, Slot, SlotSet, address, unix_ms};

/// The products that differ in what they accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    Redis,
    Valkey,
    /// A fork of Redis 7.2 with numbers of its own above that.
    Redict,
}

/// A server's product and version as INFO tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub product: Product,
    pub version: (u32, u32, u32),
    pub cluster: bool,
    pub replica: bool,
    pub modules: bool,
    /// What it calls itself since it was started.
    pub run_id: Option<String>,
    /// It only speaks like the product and version above.
    pub fork: Option<Fork>,
}

const INFO: &[&[u8]] = &[b"INFO", b"everything"];
const CLUSTER_SLOTS: &[&[u8]] = &[b"CLUSTER", b"SLOTS"];

impl Server {
    pub async fn ask(conn: &mut Control) -> Result<Server> {
        let reply = conn.call(INFO).await?;
        Ok(Server::parse(&reply.text().unwrap_or_default()))
    }

    /// From the answer of INFO.
    pub fn parse(text: &str) -> Server {
        let (product, version) = match (
            info::field(text, "server_name"),
            info::field(text, "valkey_version"),
        ) {
            (Some("valkey"), Some(v)) | (None, Some(v)) => (Product::Valkey, v),
            (name, _) => {
                let redict =
                    name == Some("redict") || info::field(text, "redict_version").is_some();
                let v = info::field(text, "redis_version").unwrap_or("0.0.0");
                (
                    if redict {
                        Product::Redict
                    } else {
                        Product::Redis
                    },
                    v,
                )
            }
        };
        let mut numbers = version.split(['.', '-']).map(|n| n.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Server {
            product,
            version: (next(), next(), next()),
            cluster: info::field(text, "cluster_enabled") == Some("1")
                || info::field(text, "redis_mode") == Some("cluster"),
            replica: info::is_replica(text),
            modules: text.contains("\nmodule:"),
            run_id: info::field(text, "run_id").map(str::to_owned),
            fork: Fork::parse(text),
        }
    }

    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        (self.version.0, self.version.1) >= (major, minor)
    }

    /// PEXPIRETIME exists (Redis 7.0; every Valkey and Redict). What a fork has of the version that it tells is not known.
    pub fn has_pexpiretime(&self) -> bool {
        self.fork.is_none() && self.has_functions()
    }

    /// SET takes PXAT (Redis 6.2).
    pub fn has_set_pxat(&self) -> bool {
        self.product != Product::Redis || self.at_least(6, 2)
    }

    /// The command that tells a key's expiry: as Unix ms, or as the ms that are left.
    pub fn expiry_command(pexpiretime: bool) -> &'static [u8] {
        match pexpiretime {
            true => b"PEXPIRETIME",
            false => b"PTTL",
        }
    }

    /// Libraries of functions (Redis 7.0).
    pub fn has_functions(&self) -> bool {
        self.product != Product::Redis || self.at_least(7, 0)
    }

    /// What groups have read of a stream is not replicated (Redis before 7.4, Valkey before 8.0).
    pub fn silent_entries_read(&self) -> bool {
        match self.product {
            Product::Redis => !self.at_least(7, 4),
            Product::Valkey => !self.at_least(8, 0),
            Product::Redict => true,
        }
    }

    /// Its clusters may have several databases (Valkey 9.0, `cluster-databases`).
    pub fn may_have_cluster_databases(&self) -> bool {
        self.product == Product::Valkey && self.at_least(9, 0)
    }

    /// Hash fields may expire (Redis 7.4, Valkey 9.0).
    pub fn has_field_expiry(&self) -> bool {
        match self.product {
            _ if self.fork.is_some() => false,
            Product::Redis => self.at_least(7, 4),
            Product::Valkey => self.at_least(9, 0),
            Product::Redict => false,
        }
    }

    /// HINCRBYFLOAT is replicated as an HSET also where the field has an expiry (Redis 7.4 to 8.2.1, the last of its
    /// fixes; Valkey 9.0).
    pub fn silent_field_expiry(&self) -> bool {
        match self.product {
            Product::Redis => self.at_least(7, 4) && !self.at_least(8, 3),
            Product::Valkey => self.at_least(9, 0) && !self.at_least(9, 1),
            Product::Redict => false,
        }
    }

    /// What decides which payloads it takes.
    pub fn payload_target(&self) -> crate::rdb::payload::Target {
        match self.product {
            Product::Redict => crate::rdb::payload::Target {
                valkey: false,
                version: (7, 2, 4),
            },
            p => crate::rdb::payload::Target {
                valkey: p == Product::Valkey,
                version: self.version,
            },
        }
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.product {
            Product::Redis => "redis",
            Product::Valkey => "valkey",
            Product::Redict => "redict",
        };
        if let Some(fork) = self.fork {
            write!(f, "{} (as ", fork.name())?;
        }
        write!(
            f,
            "{name} {}.{}.{}",
            self.version.0, self.version.1, self.version.2
        )?;
        match self.fork {
            Some(_) => f.write_str(")"),
            None => Ok(()),
        }
    }
}

/// One master and the slots it serves (all of them when there is no cluster).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Master {
    /// host:port as the cluster announces it; [`control`] maps it by the plan's `address_map`.
    pub address: String,
    pub slots: SlotSet,
    pub replicas: Vec<String>,
}

/// What stands behind an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// True for the cluster API: slots, MOVED.
    pub cluster: bool,
    /// In the order of their first slot.
    pub masters: Vec<Master>,
}

impl Layout {
    /// The master that serves a slot; without one, any, which will say so.
    pub fn master_of(&self, slot: Slot) -> Option<&Master> {
        let master = self.masters.iter().find(|m| m.slots.has(slot));
        master.or(self.masters.first())
    }

    /// Every node, after those of the plan.
    pub fn nodes(&self, mut nodes: Vec<String>) -> Vec<String> {
        for master in &self.masters {
            nodes.extend(master.replicas.iter().cloned());
            nodes.push(master.address.clone());
        }
        nodes
    }
}

/// What `make` makes of the cluster's masters, from the first of some nodes that it can be made of.
pub async fn masters_of<T>(
    endpoint: &Endpoint,
    nodes: impl IntoIterator<Item = String>,
    make: impl Fn(Vec<Master>) -> Result<T>,
) -> Result<T> {
    let mut last = None;
    for address in nodes {
        let ask = async {
            let mut conn = control(endpoint, &address).await?;
            match masters(&mut conn, endpoint).await? {
                none if none.is_empty() => Err(Error::new(
                    ErrorKind::NotReady,
                    format!("{address} knows of no node that serves a slot"),
                )),
                masters => make(masters),
            }
        };
        match ask.await {
            Ok(made) => return Ok(made),
            Err(e) => last = Some(e),
        }
    }
    Err(last.unwrap_or_else(|| Error::new(ErrorKind::NotReady, "the cluster has no nodes")))
}

/// Finds the masters of `endpoint`; asks nothing about clusters where the plan says there is none.
pub async fn layout(endpoint: &Endpoint) -> Result<(Layout, Server)> {
    let address = endpoint.address();
    let mut conn = question(endpoint).await?;
    // Where it is known to be a cluster, both are asked at once.
    let (mut server, mut slots) = match endpoint.topology {
        Topology::Standalone | Topology::Proxy => (Server::ask(&mut conn).await?, None),
        Topology::Auto if !endpoint.learnt.is_cluster() => (Server::ask(&mut conn).await?, None),
        Topology::Auto | Topology::Cluster => {
            let mut told = conn.ask_all(&[INFO, CLUSTER_SLOTS]).await?.into_iter();
            let info = conn.accepted(INFO, told.next().unwrap_or(Reply::Nil))?;
            let server = Server::parse(&info.text().unwrap_or_default());
            (server, told.next())
        }
    };
    // Its master may have been away when this one was taken in its place.
    if server.replica && !server.cluster && endpoint.learnt.look_around() {
        conn = question(endpoint).await?;
        (server, slots) = (Server::ask(&mut conn).await?, None);
    }
    let cluster = match endpoint.topology {
        Topology::Cluster => true,
        Topology::Standalone | Topology::Proxy => false,
        Topology::Auto => server.cluster,
    };
    if !cluster {
        let everything = Master {
            address,
            slots: SlotSet::all(),
            replicas: Vec::new(),
        };
        return Ok((
            Layout {
                cluster: false,
                masters: vec![everything],
            },
            server,
        ));
    }
    let known = endpoint.learnt.nodes();
    let mut masters = match slots {
        Some(told) => masters_told(&conn, endpoint, told)?,
        None => self::masters(&mut conn, endpoint).await?,
    };
    // One that was taken out of its cluster knows of nobody.
    if masters.is_empty()
        && let Some(conn) = by_known(endpoint, &known).await
    {
        let mut conn = Control::over(conn).await?;
        masters = self::masters(&mut conn, endpoint).await?;
    }
    Ok((
        Layout {
            cluster: true,
            masters,
        },
        server,
    ))
}

/// How far a server's clock is ahead of ours, in ms; `None` where TIME is refused.
pub async fn clock_ahead_ms(endpoint: &Endpoint) -> Result<Option<i64>> {
    clock_of(&mut question(endpoint).await?).await
}

/// The same over a connection.
pub async fn clock_of(conn: &mut Control) -> Result<Option<i64>> {
    let before = unix_ms();
    let reply = conn.ask(&[b"TIME"]).await?;
    let after = unix_ms();
    Ok(time_ms(&reply).map(|theirs| theirs.saturating_sub((before / 2).saturating_add(after / 2))))
}

/// The answer of TIME, as Unix time in ms.
pub fn time_ms(reply: &Reply) -> Option<i64> {
    let parts = reply.array()?;
    let ms = parts.first()?.int()?.saturating_mul(1000);
    Some(ms.saturating_add(parts.get(1)?.int()? / 1000))
}

/// The modules that a server has loaded; where MODULE LIST is refused, those whose commands it knows, and `None` where
/// it tells neither.
pub async fn modules(endpoint: &Endpoint) -> Result<Option<Vec<Loaded>>> {
    let mut conn = question(endpoint).await?;
    match conn.ask(&[b"MODULE", b"LIST"]).await? {
        Reply::Array(list) => return Ok(Some(list.iter().filter_map(loaded).collect())),
        Reply::Error(text) if passes(&text) => return Err(refusal("MODULE LIST", &text)),
        _ => {}
    }
    let mut ask: Vec<&[u8]> = vec![b"COMMAND", b"INFO"];
    let commands = BY_COMMAND.map(|(_, command)| endpoint.commands.of(command.as_bytes()));
    ask.extend(commands);
    let reply = conn.ask(&ask).await?;
    let told = reply.array().filter(|told| told.len() == commands.len());
    Ok(told.map(|told| {
        let known = BY_COMMAND
            .iter()
            .zip(told)
            .filter(|(_, t)| t.array().is_some());
        let module = |((name, _), _): (&(&str, &str), _)| Loaded {
            name: (*name).to_owned(),
            version: None,
        };
        known.map(module).collect()
    }))
}

/// One module of MODULE LIST.
fn loaded(module: &Reply) -> Option<Loaded> {
    let parts = module.array()?;
    let of = |name: &[u8]| {
        let at = parts.iter().position(|p| p.bytes() == Some(name))?;
        parts.get(at.checked_add(1)?)
    };
    Some(Loaded {
        name: of(b"name")?.text()?.into_owned(),
        version: of(b"ver").and_then(|v| u64::try_from(v.int()?).ok()),
    })
}

/// The cluster's masters as `conn`'s node sees them.
pub async fn masters(conn: &mut Control, endpoint: &Endpoint) -> Result<Vec<Master>> {
    let reply = conn.ask(CLUSTER_SLOTS).await?;
    masters_told(conn, endpoint, reply)
}

/// The same from the answer of CLUSTER SLOTS.
fn masters_told(conn: &Control, endpoint: &Endpoint, reply: Reply) -> Result<Vec<Master>> {
    let reply = conn.accepted(CLUSTER_SLOTS, reply)?;
    // The one that was asked.
    let host = match conn.address() == endpoint.address() {
        true => endpoint.hosts().into_iter().next().unwrap_or_default(),
        false => address::split(conn.address()).0.to_owned(),
    };
    let ranges = slots::parse(&reply, &host)?;
    endpoint.learnt.meet_nodes(slots::nodes(&ranges));
    let mut masters: Vec<Master> = Vec::new();
    for range in ranges {
        let served = (range.first.number()..=range.last.number()).map(Slot::numbered);
        let address = range.master.address;
        match masters.iter_mut().find(|m| m.address == address) {
            Some(master) => served.for_each(|s| master.slots.insert(s)),
            None => masters.push(Master {
                address,
                slots: served.collect(),
                replicas: range.replicas.into_iter().map(|r| r.address).collect(),
            }),
        }
    }
    Ok(masters)
}

/// The databases that hold keys, and how many, from INFO.
pub async fn databases(conn: &mut Control) -> Result<Vec<(DbIndex, u64)>> {
    let reply = conn.call(&[b"INFO", b"keyspace"]).await?;
    Ok(databases_in(&reply))
}

/// The same from the answer of INFO.
pub fn databases_in(reply: &Reply) -> Vec<(DbIndex, u64)> {
    let text = reply.text().unwrap_or_default();
    let keys = |(db, of): (DbIndex, info::Pairs)| Some((db, of.count("keys")?));
    info::databases(&text).filter_map(keys).collect()
}

/// A master's replication offset, from ROLE or, where that is refused, from INFO.
pub async fn replication_offset(conn: &mut Control) -> Result<ReplOffset> {
    let reply = conn.ask(&[b"ROLE"]).await?;
    if let Some(offset) = offset_in_role(&reply) {
        return Ok(offset);
    }
    let reply = conn.call(&[b"INFO", b"replication"]).await?;
    info::offset(&reply.text().unwrap_or_default()).ok_or_else(|| {
        Error::new(
            ErrorKind::Protocol,
            "neither ROLE nor INFO replication tells the replication offset",
        )
    })
}

/// How a replica stands with its master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upstream {
    pub up: bool,
    /// For how many seconds it has heard nothing of it.
    pub silent_s: Option<i64>,
    pub offset: ReplOffset,
}

/// What INFO replication tells of a replica's master; `None` for a master.
pub fn upstream(text: &str) -> Option<Upstream> {
    if !info::is_replica(text) {
        return None;
    }
    let number = |name: &str| info::field(text, name)?.parse::<i64>().ok();
    let up = info::field(text, "master_link_status") == Some("up");
    let silent_s = match up {
        true => number("master_last_io_seconds_ago"),
        false => number("master_link_down_since_seconds"),
    };
    let offset = number("slave_repl_offset").and_then(|n| u64::try_from(n).ok());
    Some(Upstream {
        up,
        silent_s: silent_s.filter(|s| *s >= 0),
        offset: ReplOffset(offset.unwrap_or(0)),
    })
}

/// Where a server stands that has all of its data's history until now: `NotReady` for a replica without its master.
pub async fn settled_offset(conn: &mut Control) -> Result<ReplOffset> {
    let reply = conn.ask(&[b"INFO", b"replication"]).await?;
    let info = reply.text().unwrap_or_default().into_owned();
    match (upstream(&info), info::offset(&info)) {
        (Some(Upstream { up: false, .. }), _) => Err(Error::new(
            ErrorKind::NotReady,
            format!(
                "{} is a replica without a link to its master",
                conn.address()
            ),
        )),
        (_, Some(offset)) => Ok(offset),
        (_, None) => replication_offset(conn).await,
    }
}

/// The offset in a ROLE reply: a master's second element, a replica's fifth.
pub fn offset_in_role(reply: &Reply) -> Option<ReplOffset> {
    let parts = reply.array()?;
    let at = if parts.first()?.text()? == "master" {
        1
    } else {
        4
    };
    u64::try_from(parts.get(at)?.int()?).ok().map(ReplOffset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_told_apart() {
        let valkey = Server::parse(
            "# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.1\r\nrole:master\r\n",
        );
        assert_eq!(
            (valkey.product, valkey.version),
            (Product::Valkey, (8, 1, 1))
        );
        let redis = Server::parse("redis_version:8.0.2\r\ncluster_enabled:1\r\nrole:slave\r\n");
        assert_eq!(
            (redis.product, redis.version, redis.cluster, redis.replica),
            (Product::Redis, (8, 0, 2), true, true)
        );
        assert!(redis.has_field_expiry() && !valkey.has_field_expiry());
    }
}
