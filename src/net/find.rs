//! Where a node is really reached: by way of Sentinel, or at the plan's host where a cluster announces private addresses.

use crate::error::{Error, ErrorKind, Result};
use crate::net::conn::{Conn, open_over};
use crate::net::credentials;
use crate::plan::{Endpoint, Held, Learnt, Sentinel, Topology, is_for_good};
use crate::resp::Reply;
use crate::types::address::{join, split};
use std::net::IpAddr;
use std::time::Duration;
use tokio::net::TcpStream;

/// A sentinel, or a private address, that does not answer for this long is passed over.
const LIMIT: Duration = Duration::from_secs(3);

/// The address to connect to instead of `address`; `None` when it is the right one.
pub async fn resolve(endpoint: &Endpoint, address: &str) -> Result<Option<String>> {
    match &endpoint.sentinel {
        // Any other address was told by the master itself.
        Some(sentinel) if address == endpoint.address() => {
            let master = master(endpoint, sentinel).await?;
            Ok(Some(
                endpoint.address_map.get(&master).cloned().unwrap_or(master),
            ))
        }
        _ => Ok(None),
    }
}

/// The master's address, from the first sentinel that knows it.
async fn master(endpoint: &Endpoint, sentinel: &Sentinel) -> Result<String> {
    // What a sentinel does not know says nothing of the master; and its password has no time limit of the connection's.
    let own = Endpoint {
        learnt: Learnt::default(),
        sentinel: None,
        ..endpoint.clone()
    };
    let held = credentials::of(endpoint, None).await?;
    let mut last = None;
    for node in &sentinel.nodes {
        let ask = async {
            let mut conn = sentinel_conn(&own, node, held.clone()).await?;
            let name = sentinel.name.as_bytes();
            let reply = conn
                .ask(&[b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name])
                .await?;
            let parts = reply.array().unwrap_or_default();
            let text = |i: usize| parts.get(i)?.text().map(|t| t.into_owned());
            match (text(0), text(1)) {
                (Some(host), Some(port)) => Ok(join(&host, port)),
                _ => Err(Error::new(
                    ErrorKind::NotReady,
                    format!("the sentinel {node} knows no master {:?}", sentinel.name),
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

/// Sentinels have passwords of their own: none, or the one of the plan.
async fn sentinel_conn(endpoint: &Endpoint, node: &str, held: Option<Held>) -> Result<Conn> {
    match open(endpoint, node, None).await {
        Err(e) if e.kind() == ErrorKind::Auth && held.is_some() => open(endpoint, node, held).await,
        opened => opened,
    }
}

/// One attempt at a connection to an address that is not mapped any more.
pub async fn open(endpoint: &Endpoint, address: &str, held: Option<Held>) -> Result<Conn> {
    let tcp = tcp(endpoint, address).await?;
    open_over(tcp, endpoint, address, held).await
}

/// A TCP connection to a node; where its announced address is private and does not answer, the plan's host is asked at the
/// same port, and taken when the node there is the one that was meant.
async fn tcp(endpoint: &Endpoint, address: &str) -> Result<TcpStream> {
    if let Some(at) = endpoint.learnt.reached_at(address) {
        return connected(&at).await;
    }
    let Some(instead) = alternative(endpoint, address) else {
        return connected(address).await;
    };
    let direct = match tokio::time::timeout(LIMIT, connected(address)).await {
        Ok(Ok(tcp)) => return Ok(tcp),
        Ok(Err(e)) => e,
        Err(_) => Error::new(ErrorKind::Connection, "no TCP connection"),
    };
    let hint = "map the announced addresses to reachable ones with address_map in the plan";
    match tokio::time::timeout(LIMIT, is_the_same(endpoint, &instead, address)).await {
        Ok(Ok(true)) => {
            tracing::info!("{address} is not reachable: its node is reached at {instead}");
            endpoint.learnt.reach(address, &instead);
            connected(&instead).await
        }
        _ => Err(direct.hint(hint)),
    }
}

async fn connected(address: &str) -> Result<TcpStream> {
    TcpStream::connect(address)
        .await
        .map_err(|e| Error::new(ErrorKind::Connection, "no TCP connection").cause(e))
}

/// The plan's host with a private address's port; only a cluster announces such addresses.
fn alternative(endpoint: &Endpoint, address: &str) -> Option<String> {
    if endpoint.sentinel.is_some() || endpoint.topology == Topology::Standalone {
        return None;
    }
    let (host, port) = split(address);
    let private = match host.parse::<IpAddr>().ok()? {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local(),
    };
    (private && endpoint.host != host).then_some(join(&endpoint.host, port?))
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
            && !place.ends_with(&format!(":{}", endpoint.port))),
        // ID HOST:PORT@BUS[,NAME] FLAGS …; the port of TLS is not told everywhere.
        nodes => Ok(nodes.text().unwrap_or_default().lines().any(|line| {
            let mut words = line.split(' ').skip(1);
            let (at, flags) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let (host, _) = split(announced);
            flags.contains("myself") && at.starts_with(&format!("{host}:"))
        })),
    }
}
