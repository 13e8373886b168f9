//! Opens connections: to one address, or to whichever server of a side answers.
//!
//! Invariant: of a cluster, a connection to a node's address is one to that node and no other.

use super::conn::Conn;
use super::{credentials, find, slots};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Endpoint;
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
        false => to(endpoint, address, CONNECT_LIMIT).await,
    }
}

/// Opens a connection to the server that stands for a side: the first of the plan's addresses that answers, and then the
/// same one for as long as it does; or the master that Sentinel tells. Of a cluster of which none of these answers, a
/// node that it has told of before.
///
/// Errors: as [`connect`].
pub async fn enter(endpoint: &Endpoint) -> Result<Conn> {
    let (learnt, mut places) = (&endpoint.learnt, find::places(endpoint).await?);
    if let Some(at) = places.iter().position(|p| learnt.stays_at(p)) {
        let last = places.remove(at);
        places.insert(0, last);
    }
    let known = learnt.nodes();
    let limit = match (places.len(), known.is_empty()) {
        (1, true) => CONNECT_LIMIT,
        _ => SHORT_LIMIT,
    };
    let mut failed = Vec::new();
    for place in &places {
        match to(endpoint, place, limit).await {
            Ok(conn) => {
                learnt.stay_at(place);
                return Ok(conn);
            }
            // It has answered; the others take the same password.
            Err(e) if e.kind() == ErrorKind::Auth => return Err(e),
            Err(e) => failed.push(e),
        }
    }
    if let Some(conn) = by_known(endpoint, &known).await {
        return Ok(conn);
    }
    Err(match failed.len() {
        1 => failed.remove(0),
        _ => none_answers(&places, failed),
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
        let asked = some.iter().map(|address| {
            let asked = tokio::time::timeout(SHORT_LIMIT, member(endpoint, address, known));
            Box::pin(async move { asked.await.unwrap_or_else(|_| Err(late(SHORT_LIMIT))) })
        });
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

/// A node that was seen in a cluster before, unless it has another cluster now: it must tell of at least half of the
/// nodes that were seen.
async fn member(
    endpoint: &Endpoint,
    address: &str,
    known: &BTreeMap<String, String>,
) -> Result<Conn> {
    let mut conn = to(endpoint, address, SHORT_LIMIT).await?;
    let told = conn.call(&[b"CLUSTER", b"SLOTS"]).await?;
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

/// Nodes may come and go one after the other; two clusters have none in common.
fn is_same_cluster(known: &BTreeMap<String, String>, told: &BTreeMap<String, String>) -> bool {
    let still = known.keys().filter(|id| told.contains_key(*id)).count();
    still > 0 && still * 2 >= known.len()
}

/// One address, within so long, with the password of now.
async fn to(endpoint: &Endpoint, address: &str, limit: Duration) -> Result<Conn> {
    let mapped = endpoint.address_map.get(address);
    let mapped = mapped.map_or(address, String::as_str);
    let (learnt, began) = (&endpoint.learnt, Instant::now());
    let mut refused = None;
    loop {
        // Outside of the connection's time limit: a password command has its own.
        if let Some(secret) = &endpoint.password {
            credentials::keep_fresh(secret, learnt);
        }
        let held = credentials::of(endpoint, refused).await?;
        let version = held.as_ref().map(|h| h.version);
        let attempt = find::open(endpoint, mapped, held);
        let opened = tokio::time::timeout(limit, attempt)
            .await
            .unwrap_or_else(|_| Err(no_answer(endpoint, limit)));
        match opened {
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

    #[test]
    fn a_node_that_has_joined_another_cluster_is_told_from_one_that_has_not() {
        let of = |ids: &[&str]| -> BTreeMap<String, String> {
            ids.iter().map(|id| ((*id).into(), "h:1".into())).collect()
        };
        let known = of(&["a", "b", "c"]);
        assert!(is_same_cluster(&known, &of(&["b", "c", "d"])));
        assert!(!is_same_cluster(&known, &of(&["c", "x", "y"])));
        assert!(!is_same_cluster(&known, &of(&[])));
        assert!(is_same_cluster(&of(&["a", "b"]), &of(&["b"])));
        assert!(!is_same_cluster(&of(&[]), &of(&["b"])));
    }
}
