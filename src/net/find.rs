//! Where a node is really reached: by way of Sentinel, or at the plan's host where a cluster announces private addresses.

use crate::error::{Error, ErrorKind, Result};
use crate::net::conn::{Conn, open_over, open_unix};
use crate::net::credentials;
use crate::plan::{Endpoint, Held, Location, Topology, is_for_good};
use crate::resp::Reply;
use crate::types::address::{join, split};
use std::net::IpAddr;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};

/// A sentinel, or a private address, that does not answer for this long is passed over.
const LIMIT: Duration = Duration::from_secs(3);

/// The addresses of which any stands for the side, in the order in which they are tried.
pub async fn places(endpoint: &Endpoint) -> Result<Vec<String>> {
    match &endpoint.location {
        Location::Addresses(at) => Ok(at.clone()),
        Location::Sentinels { name, .. } => match &endpoint.sentinels {
            Some(sentinels) => Ok(vec![master(endpoint, name, sentinels).await?]),
            None => Err(Error::new(ErrorKind::Bug, "sentinels that nobody can ask")),
        },
        Location::Socket(path) => Ok(vec![path.clone()]),
    }
}

/// The master's address, from the first sentinel that knows it.
async fn master(endpoint: &Endpoint, called: &str, sentinels: &Endpoint) -> Result<String> {
    // A password has no time limit of the connection's.
    let who = match sentinels.password {
        Some(_) => sentinels,
        None => endpoint,
    };
    let held = credentials::of(who, None).await?;
    let mut last = None;
    for node in &sentinels.addresses() {
        let ask = async {
            let mut conn = sentinel_conn(who, sentinels, node, held.clone()).await?;
            let name = called.as_bytes();
            let reply = conn
                .ask(&[b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name])
                .await?;
            let parts = reply.array().unwrap_or_default();
            let text = |i: usize| parts.get(i)?.text().map(|t| t.into_owned());
            match (text(0), text(1)) {
                (Some(host), Some(port)) => Ok(join(&host, port)),
                _ => Err(Error::new(
                    ErrorKind::NotReady,
                    format!("the sentinel {node} knows no master {called:?}"),
                )
                .hint("the url is redis+sentinel://host:26379/NAME with the name of `sentinel monitor`")),
            }
        };
        match tokio::time::timeout(LIMIT, ask).await {
            Ok(Ok(address)) => return Ok(address),
            Ok(Err(e)) => last = Some(e.context(format!("ask the sentinel {node}"))),
            Err(_) => {
                let text = format!("the sentinel {node} did not answer");
                last = Some(Error::new(ErrorKind::Connection, text));
            }
        }
    }
    Err(last.unwrap_or_else(|| Error::new(ErrorKind::Plan, "the url names no sentinel")))
}

/// A connection to a sentinel, by the login of `who`: the sentinels' own, or that of their servers, which most know
/// nothing of and some want.
async fn sentinel_conn(
    who: &Endpoint,
    sentinels: &Endpoint,
    node: &str,
    held: Option<Held>,
) -> Result<Conn> {
    let at = Endpoint {
        location: Location::Addresses(vec![node.to_owned()]),
        username: who.username.clone(),
        password: who.password.clone(),
        // What a sentinel does not know says nothing of the others, nor of the master.
        learnt: who.learnt.of_another(),
        ..sentinels.clone()
    };
    let refused =
        |opened: &Result<Conn>| (opened.as_ref()).is_err_and(|e| e.kind() == ErrorKind::Auth);
    if sentinels.password.is_none() {
        let opened = open(&at, node, None).await;
        return match held.is_some() && refused(&opened) {
            true => open(&at, node, held).await,
            false => opened,
        };
    }
    let version = held.as_ref().map(|h| h.version);
    let opened = open(&at, node, held).await;
    let changes = sentinels
        .password
        .as_ref()
        .is_some_and(credentials::can_change);
    let opened = match changes && refused(&opened) {
        true => open(&at, node, credentials::of(sentinels, version).await?).await,
        false => opened,
    };
    // One that has no password takes none.
    match refused(&opened) {
        true => open(&at, node, None).await.or(opened),
        false => opened,
    }
}

/// One attempt at a connection to an address that is not mapped any more.
pub async fn open(endpoint: &Endpoint, address: &str, held: Option<Held>) -> Result<Conn> {
    if let Location::Socket(path) = &endpoint.location
        && path == address
    {
        let socket = UnixStream::connect(path).await.map_err(|e| {
            Error::new(ErrorKind::Connection, "no connection to the socket")
                .cause(e)
                .hint("is the server on this machine, with this path as its `unixsocket`, and may this user open it?")
        })?;
        return open_unix(socket, endpoint, address, held).await;
    }
    let tcp = tcp(endpoint, address).await?;
    open_over(tcp, endpoint, address, held).await
}

/// A TCP connection to a node; where its announced address is private and does not answer, the plan's host is asked at the
/// same port, and taken when the node there is the one that was meant.
async fn tcp(endpoint: &Endpoint, address: &str) -> Result<TcpStream> {
    if let Some(at) = endpoint.learnt.reached_at(address) {
        return connected(&at).await;
    }
    let others = alternatives(endpoint, address);
    if others.is_empty() {
        return connected(address).await;
    }
    let direct = match tokio::time::timeout(LIMIT, connected(address)).await {
        Ok(Ok(tcp)) => return Ok(tcp),
        Ok(Err(e)) => e,
        Err(_) => Error::new(ErrorKind::Connection, "no TCP connection"),
    };
    let hint = "map the announced addresses to reachable ones with address_map in the plan";
    for instead in others {
        let same = is_the_same(endpoint, &instead, address);
        if let Ok(Ok(true)) = tokio::time::timeout(LIMIT, same).await {
            tracing::info!("{address} is not reachable: its node is reached at {instead}");
            endpoint.learnt.reach(address, &instead);
            return connected(&instead).await;
        }
    }
    Err(direct.hint(hint))
}

/// How long the search for a node may take before its connection begins.
pub fn takes(endpoint: &Endpoint, address: &str) -> Duration {
    let others = match endpoint.learnt.reached_at(address) {
        Some(_) => 0,
        None => alternatives(endpoint, address).len(),
    };
    match u32::try_from(others).unwrap_or(u32::MAX) {
        0 => Duration::ZERO,
        others => LIMIT.saturating_mul(others.saturating_add(1)),
    }
}

async fn connected(address: &str) -> Result<TcpStream> {
    TcpStream::connect(address)
        .await
        .map_err(|e| Error::new(ErrorKind::Connection, "no TCP connection").cause(e))
}

/// The plan's hosts with a private address's port; only a cluster announces such addresses.
fn alternatives(endpoint: &Endpoint, address: &str) -> Vec<String> {
    let (host, port) = split(address);
    let private = match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip.is_private() || ip.is_link_local(),
        Ok(IpAddr::V6(ip)) => ip.is_unique_local() || ip.is_unicast_link_local(),
        Err(_) => false,
    };
    let mut hosts = endpoint.hosts();
    let told = matches!(endpoint.location, Location::Sentinels { .. })
        || endpoint.topology == Topology::Standalone;
    match port {
        Some(port) if private && !told && !hosts.iter().any(|h| h == host) => {
            hosts.dedup();
            hosts.iter().map(|host| join(host, port)).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether the node at `place` says that it is the one announced as `announced`.
async fn is_the_same(endpoint: &Endpoint, place: &str, announced: &str) -> Result<bool> {
    let held = credentials::of(endpoint, None).await?;
    let mut conn = open_over(connected(place).await?, endpoint, place, held).await?;
    let nodes = conn.ask(&[b"CLUSTER", b"NODES"]).await?;
    match nodes {
        // Where it may not be asked, the announced ports of a cluster at another port are believed.
        Reply::Error(text) => Ok(endpoint.topology == Topology::Cluster
            && is_for_good(&text)
            && !(endpoint.addresses().iter()).any(|at| split(at).1 == split(place).1)),
        // ID HOST:PORT@BUS[,NAME] FLAGS …; the port of TLS is not told everywhere.
        nodes => Ok(nodes.text().unwrap_or_default().lines().any(|line| {
            let mut words = line.split(' ').skip(1);
            let (at, flags) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let (host, _) = split(announced);
            flags.contains("myself") && at.starts_with(&format!("{host}:"))
        })),
    }
}
