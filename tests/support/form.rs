//! Makes a cluster of empty nodes over plain connections, without redis-cli.

use super::wire::{Client, Command, Value, node_at};
use std::io;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// Makes every node a master with its share of the slots.
pub fn form(urls: &[String]) -> io::Result<()> {
    form_with_replicas(urls, urls.len())
}

/// The first `masters` nodes become masters, the others replicas of them in turn.
pub fn form_with_replicas(urls: &[String], masters: usize) -> io::Result<()> {
    let mut clients = urls
        .iter()
        .map(|url| Client::open(url))
        .collect::<io::Result<Vec<_>>>()?;
    let addresses = urls
        .iter()
        .map(|url| node_at(url))
        .collect::<io::Result<Vec<_>>>()?;
    // An epoch can be set only while a node knows no other, so all of them before the first meeting.
    for (n, client) in clients.iter_mut().enumerate() {
        client.words(&format!("CLUSTER SET-CONFIG-EPOCH {}", n + 1))?;
    }
    for (n, client) in clients.iter_mut().enumerate() {
        if n < masters {
            let (from, to) = (16384 * n / masters, 16384 * (n + 1) / masters);
            client.expect(&Command::new("CLUSTER ADDSLOTS").args(from..to))?;
        }
        for (_, address) in addresses
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != n)
        {
            client.words(&format!(
                "CLUSTER MEET {} {}",
                address.host(),
                address.port()
            ))?;
        }
    }
    let all = urls.len();
    until("the nodes know each other", || {
        clients.iter_mut().all(|c| {
            c.words("CLUSTER NODES")
                .is_ok_and(|v| settled(&v.text()) == all)
        })
    })?;
    let ids = clients
        .iter_mut()
        .map(|c| Ok(c.words("CLUSTER MYID")?.text()))
        .collect::<io::Result<Vec<_>>>()?;
    for (n, client) in clients.iter_mut().enumerate().skip(masters) {
        let replicate = format!("CLUSTER REPLICATE {}", ids[(n - masters) % masters]);
        until("a replica follows its master", || {
            client.words(&replicate).is_ok()
        })?;
    }
    until("every node says that the cluster is ok", || {
        clients.iter_mut().all(|c| {
            let ok = c
                .info_of("CLUSTER INFO", "cluster_state")
                .is_some_and(|state| state == "ok");
            ok && c.words("CLUSTER SLOTS").is_ok_and(|v| covered(&v) == 16384)
        })
    })?;
    for client in clients.iter_mut().skip(masters) {
        until("a replica is in step", || {
            client
                .info("replication", "master_link_status")
                .is_ok_and(|s| s == "up")
        })?;
    }
    Ok(())
}

fn until(what: &str, mut done: impl FnMut() -> bool) -> io::Result<()> {
    let started = Instant::now();
    while !done() {
        if started.elapsed() > LIMIT {
            return Err(io::Error::other(format!(
                "the cluster does not form: {what}: not within {LIMIT:?}"
            )));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// How many nodes are known and past their handshake.
fn settled(nodes: &str) -> usize {
    nodes
        .lines()
        .filter(|line| !line.contains("handshake"))
        .count()
}

fn covered(slots: &Value) -> i64 {
    let range = |r: &Value| match r.items() {
        [from, to, ..] => to.int().unwrap_or(-1) - from.int().unwrap_or(0) + 1,
        _ => 0,
    };
    slots.items().iter().map(range).sum()
}
