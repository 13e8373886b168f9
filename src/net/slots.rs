//! The answer of CLUSTER SLOTS: which nodes serve which slots.

use crate::error::{Error, ErrorKind, Result};
use crate::resp::Reply;
use crate::types::{Slot, address};
use std::collections::BTreeMap;

/// Slots from the first to the last, and who serves them.
pub struct Range {
    pub first: Slot,
    pub last: Slot,
    pub master: Node,
    pub replicas: Vec<Node>,
}

/// A node as its cluster announces it.
pub struct Node {
    pub address: String,
    /// What the cluster calls it, for as long as it belongs to it; absent in emulations of a cluster.
    pub id: Option<String>,
}

/// The ranges in the order of their slots; a node without a host of its own is at `host`, which was asked.
pub fn parse(reply: &Reply, host: &str) -> Result<Vec<Range>> {
    let bad = || {
        Error::new(
            ErrorKind::Protocol,
            "CLUSTER SLOTS was answered in a form that is not understood",
        )
    };
    let range = |range: &Reply| -> Option<Range> {
        let parts = range.array()?;
        let slot = |i: usize| {
            let n = parts.get(i).and_then(Reply::int)?;
            u16::try_from(n).ok().and_then(Slot::new)
        };
        Some(Range {
            first: slot(0)?,
            last: slot(1)?,
            master: node(parts.get(2)?, host)?,
            replicas: parts.iter().skip(3).filter_map(|n| node(n, host)).collect(),
        })
    };
    let ranges: Option<Vec<Range>> = reply.array().ok_or_else(bad)?.iter().map(range).collect();
    let mut ranges = ranges.ok_or_else(bad)?;
    ranges.sort_by_key(|r| r.first);
    Ok(ranges)
}

fn node(item: &Reply, host: &str) -> Option<Node> {
    let parts = item.array()?;
    let port = parts.get(1)?.int()?;
    let host = match parts.first()?.text() {
        Some(host) if !host.is_empty() && host != "?" => host.into_owned(),
        _ => host.to_owned(),
    };
    let id = parts.get(2).and_then(|id| Some(id.text()?.into_owned()));
    Some(Node {
        address: address::join(&host, port),
        id: id.filter(|id| !id.is_empty()),
    })
}

/// All nodes, by what the cluster calls them.
pub fn nodes(ranges: &[Range]) -> BTreeMap<String, String> {
    let all = (ranges.iter()).flat_map(|r| std::iter::once(&r.master).chain(&r.replicas));
    all.filter_map(|node| Some((node.id.clone()?, node.address.clone())))
        .collect()
}
