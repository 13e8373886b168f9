//! Opens connections: to one address, or to whichever server of a side answers.
//!
//! Invariant: of a cluster, a connection to a node's address is one to that node and no other.

use super::conn::Conn;
use super::{credentials, find, slots};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Endpoint, Held};
use crate::types::address;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Where another server may answer instead.
const SHORT_LIMIT: Duration = Duration::from_secs(3);
/// How long a password may be refused that the server has taken before: the next one may take a while to come.
const AUTH_PATIENCE: Duration = Duration::from_secs(45);
const AUTH_AGAIN: Duration = Duration::from_secs(1);
/// How many of a cluster's nodes are asked at a time.
const AT_A_TIME: usize = 8;

/// Opens an authenticated connection to a server of `endpoint`'s side, by its address. Outside of a cluster the plan's
/// own address stands for all that the plan names: see [`enter`].
///
/// Errors: `Connection` (not reachable), `Tls`, `Auth`, `Protocol` (not a Redis server).
pub async fn connect(endpoint: &Endpoint, address: &str) -> Result<Conn> {
    match address == endpoint.address() && !endpoint.is_cluster() {
        true => enter(endpoint).await,
        false => exactly(endpoint, address).await,
    }
}

/// The same to an address that servers have told: no other answers in its place, also where the plan names it.
///
/// Errors: as [`connect`].
pub async fn exactly(endpoint: &Endpoint, address: &str) -> Result<Conn> {
    to(endpoint, address, CONNECT_LIMIT).await
}

/// Opens a connection to the server that stands for a side: the first of the plan's addresses that answers, and then the
/// same one for as long as it does; or the master that Sentinel tells. Of a cluster of which none of these answers soon,
/// a node that it has told of before, if that answers earlier.
///
/// Errors: as [`connect`].
pub async fn enter(endpoint: &Endpoint) -> Result<Conn> {
    let (learnt, mut places) = (&endpoint.learnt, find::places(endpoint).await?);
    let first = places.first().cloned();
    if let Some(at) = places.iter().position(|p| learnt.stays_at(p)) {
        let last = places.remove(at);
        places.insert(0, last);
    }
    let known = learnt.nodes();
    let soon = SHORT_LIMIT.saturating_mul(u32::try_from(places.len()).unwrap_or(u32::MAX));
    let mut planned = std::pin::pin!(first_of(endpoint, &places, first.as_deref()));
    if known.is_empty() {
        return planned.await;
    }
    let instead = async |e: Error| match e.kind() {
        // It has answered; the others take the same password.
        ErrorKind::Auth => Err(e),
        _ => by_known(endpoint, &known).await.ok_or(e),
    };
    match tokio::time::timeout(soon, &mut planned).await {
        Ok(Ok(conn)) => return Ok(conn),
        Ok(Err(e)) => return instead(e).await,
        Err(_) => {}
    }
    tokio::select! {
        biased;
        tried = &mut planned => match tried {
            Ok(conn) => Ok(conn),
            Err(e) => instead(e).await,
        },
        Some(conn) = by_known(endpoint, &known) => Ok(conn),
    }
}

/// The first of some places that answers; `first` is the plan's own first one. The last of them has all the time that a
/// connection may take.
async fn first_of(endpoint: &Endpoint, places: &[String], first: Option<&str>) -> Result<Conn> {
    let mut failed = Vec::new();
    for (i, place) in places.iter().enumerate() {
        let limit = match i + 1 == places.len() {
            true => CONNECT_LIMIT,
            false => SHORT_LIMIT,
        };
        match to(endpoint, place, limit).await {
            Ok(conn) => {
                endpoint.learnt.stay_at(place, first != Some(place));
                return Ok(conn);
            }
            Err(e) if e.kind() == ErrorKind::Auth => return Err(e),
            Err(e) => failed.push(e),
        }
    }
    Err(match failed.len() {
        1 => failed.remove(0),
        _ => none_answers(places, failed),
    })
}

fn none_answers(places: &[String], failed: Vec<Error>) -> Error {
    let waits = |e: &&Error| e.retry() == crate::error::Retry::Later;
    let of = failed.iter().find(waits).or(failed.first());
    let (kind, hint) = match of {
        Some(e) => (e.kind(), e.remedy().to_owned()),
        None => (ErrorKind::Plan, String::new()),
    };
    let each: Vec<String> = failed.iter().map(Error::chain).collect();
    let text = format!("none of {} answers: {}", places.join(", "), each.join("; "));
    Error::new(kind, text).hint(hint)
}

/// A connection to a node of the cluster that an endpoint was seen to lead to; `None` where none of them answers, or
/// belongs to that cluster still.
pub async fn by_known(endpoint: &Endpoint, known: &BTreeMap<String, String>) -> Option<Conn> {
    let addresses: Vec<&String> = known.values().collect();
    for some in addresses.chunks(AT_A_TIME) {
        let asked = some
            .iter()
            .map(|address| Box::pin(member(endpoint, address, known)));
        if let Ok((conn, _)) = futures::future::select_ok(asked).await {
            tracing::warn!(
                "{} does not answer: its cluster is reached at {}",
                endpoint.addresses().join(","),
                conn.address()
            );
            return Some(conn);
        }
    }
    None
}

/// A node that was seen in a cluster before, unless it has another cluster now. It may be anybody's by now: what it says
/// of the password leads to no other one.
async fn member(
    endpoint: &Endpoint,
    address: &str,
    known: &BTreeMap<String, String>,
) -> Result<Conn> {
    let mapped = mapped(endpoint, address);
    let held = credentials::of(endpoint, None).await?;
    let opened = open(endpoint, mapped, SHORT_LIMIT, held).await;
    let mut conn = opened.map_err(|e| e.context(format!("connect to {mapped}")))?;
    let told = tokio::time::timeout(SHORT_LIMIT, conn.call(&[b"CLUSTER", b"SLOTS"]));
    let told = told.await.unwrap_or_else(|_| Err(late(SHORT_LIMIT)))?;
    let (host, _) = address::split(address);
    let told = slots::nodes(&slots::parse(&told, host)?);
    match is_same_cluster(known, &told) {
        true => Ok(conn),
        false => {
            let text = format!("{address} belongs to another cluster than before");
            tracing::warn!("{text}");
            Err(Error::new(ErrorKind::NotReady, text))
        }
    }
}

/// Nodes may come and go one after the other, and many may go at once; two clusters have none in common.
fn is_same_cluster(known: &BTreeMap<String, String>, told: &BTreeMap<String, String>) -> bool {
    let still = known.keys().filter(|id| told.contains_key(*id)).count();
    still > 0 && (still * 2 >= known.len() || still == told.len())
}

fn mapped<'a>(endpoint: &'a Endpoint, address: &'a str) -> &'a str {
    let mapped = endpoint.address_map.get(address);
    mapped.map_or(address, String::as_str)
}

/// One attempt, within so long and the time that other ways to the same node may take.
async fn open(
    endpoint: &Endpoint,
    mapped: &str,
    limit: Duration,
    held: Option<Held>,
) -> Result<Conn> {
    let limit = limit.saturating_add(find::takes(endpoint, mapped));
    let opened = tokio::time::timeout(limit, find::open(endpoint, mapped, held)).await;
    opened.unwrap_or_else(|_| Err(no_answer(endpoint, limit)))
}

/// One address, within so long, with the password of now.
async fn to(endpoint: &Endpoint, address: &str, limit: Duration) -> Result<Conn> {
    let mapped = mapped(endpoint, address);
    let (learnt, began) = (&endpoint.learnt, Instant::now());
    let mut refused = None;
    loop {
        // Outside of the connection's time limit: a password command has its own.
        if let Some(secret) = &endpoint.password {
            credentials::keep_fresh(secret, learnt);
        }
        let held = credentials::of(endpoint, refused).await?;
        let version = held.as_ref().map(|h| h.version);
        match open(endpoint, mapped, limit, held).await {
            // Between the end of one password and the next, which may take a moment to get about.
            Err(e)
                if e.kind() == ErrorKind::Auth
                    && (endpoint.password.as_ref()).is_some_and(credentials::can_change)
                    && (refused.is_none()
                        || (learnt.has_worked() && began.elapsed() < AUTH_PATIENCE)) =>
            {
                tracing::warn!("{mapped} has refused the password, which is read anew");
                if refused.is_some() {
                    tokio::time::sleep(AUTH_AGAIN).await;
                }
                refused = version;
            }
            opened => return opened.map_err(|e| e.context(format!("connect to {mapped}"))),
        }
    }
}

fn late(limit: Duration) -> Error {
    let text = format!("no answer within {} s", limit.as_secs());
    Error::new(ErrorKind::Connection, text)
}

fn no_answer(endpoint: &Endpoint, limit: Duration) -> Error {
    let error = late(limit);
    match endpoint.tls {
        Some(_) => error.hint("is this a TLS port? a plain one says nothing to TLS; a cluster of Redis 7.0 and before announces its TLS ports with \"tls-cluster yes\" only"),
        None => error.hint("is this a TLS port (then the url begins with rediss://)? is a firewall in between?"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing;
    use crate::plan::{Location, Redacted};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers everything in the same words, after so many ms; its address.
    async fn says(words: &'static [u8], after_ms: u64) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut buf = [0; 4096];
                    while let Ok(1..) = stream.read(&mut buf).await {
                        tokio::time::sleep(Duration::from_millis(after_ms)).await;
                        let _ = stream.write_all(words).await;
                    }
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn an_only_address_has_its_time_also_where_nodes_are_known() {
        let endpoint = testing::endpoint(says(b"+PONG\r\n", 4_000).await, None);
        let gone = [("id".to_owned(), "127.0.0.1:1".to_owned())];
        endpoint.learnt.recall_nodes(gone.into(), 1);
        let conn = enter(&endpoint).await.unwrap();
        assert_eq!(conn.address(), endpoint.address());
    }

    #[tokio::test]
    async fn an_address_that_was_told_is_one_servers() {
        let pong = b"+PONG\r\n";
        let [a, b] = [says(pong, 0).await, says(pong, 0).await].map(|a| a.to_string());
        let mut endpoint = testing::endpoint(a.parse().unwrap(), None);
        endpoint.location = Location::Addresses(vec![a.clone(), b.clone()]);
        endpoint.learnt.stay_at(&b, true);
        assert_eq!(connect(&endpoint, &a).await.unwrap().address(), b);
        assert_eq!(exactly(&endpoint, &a).await.unwrap().address(), a);
        // Where that is not the one that is wanted, the first is tried again, and once.
        assert!(endpoint.learnt.look_around());
        assert_eq!(enter(&endpoint).await.unwrap().address(), a);
        assert!(!endpoint.learnt.look_around());
    }

    #[tokio::test]
    async fn a_stranger_at_a_known_address_brings_no_other_password_about() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "one").unwrap();
        let stranger = says(b"-WRONGPASS invalid username-password pair\r\n", 0).await;
        let password = serde_json::json!({ "file": file.path() });
        let endpoint = testing::endpoint(stranger, Some(password));
        let held = credentials::of(&endpoint, None).await.unwrap().unwrap();
        std::fs::write(file.path(), "two").unwrap();
        let known = [("id".to_owned(), stranger.to_string())].into();
        assert!(by_known(&endpoint, &known).await.is_none());
        let now = credentials::of(&endpoint, None).await.unwrap().unwrap();
        assert_eq!(now.version, held.version);
        assert!(now.password == Redacted::new("one".into()));
    }

    #[test]
    fn every_way_to_a_private_address_has_its_time() {
        let mut endpoint = testing::endpoint("127.0.0.1:7".parse().unwrap(), None);
        let at = ["a:1", "b:1", "c:1"].map(str::to_owned);
        endpoint.location = Location::Addresses(at.into());
        let takes = |endpoint: &Endpoint, at: &str| find::takes(endpoint, at).as_secs();
        assert_eq!(takes(&endpoint, "10.0.0.1:7"), 12);
        assert_eq!(takes(&endpoint, "a:1"), 0);
        endpoint.learnt.reach("10.0.0.1:7", "c:7");
        assert_eq!(takes(&endpoint, "10.0.0.1:7"), 0);
    }

    #[test]
    fn a_node_that_has_joined_another_cluster_is_told_from_one_that_has_not() {
        let of = |ids: &[&str]| -> BTreeMap<String, String> {
            ids.iter().map(|id| ((*id).into(), "h:1".into())).collect()
        };
        let known = of(&["a", "b", "c"]);
        assert!(is_same_cluster(&known, &of(&["b", "c", "d"])));
        assert!(!is_same_cluster(&known, &of(&["c", "x", "y"])));
        // It has shrunk while nobody looked.
        let many = of(&["a", "b", "c", "d", "e", "f"]);
        assert!(is_same_cluster(&many, &of(&["e", "f"])));
        assert!(!is_same_cluster(&many, &of(&["e", "x"])));
        assert!(!is_same_cluster(&known, &of(&[])));
        assert!(is_same_cluster(&of(&["a", "b"]), &of(&["b"])));
        assert!(!is_same_cluster(&of(&[]), &of(&["b"])));
    }
}
