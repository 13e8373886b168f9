//! Moves a slot of a cluster from its master to another, as redis-cli does, while clients go on.

use crate::support::wire::{Client, Command, Value, node_at};
use std::io;

/// Moves a slot to the next master; a move that a server refuses on the way is ended at the old one.
pub fn move_slot(urls: &[String], slot: u16) {
    if let Err(error) = try_move(urls, slot) {
        panic!("slot {slot} does not move: {error}");
    }
}

struct Node {
    client: Client,
    url: String,
    id: String,
    owns: bool,
}

fn try_move(urls: &[String], slot: u16) -> io::Result<()> {
    let mut masters = Vec::new();
    for url in urls {
        let mut client = Client::open(url)?;
        if client.info("replication", "role")? == "master" {
            let id = client.words("CLUSTER MYID")?.text();
            let nodes = client.words("CLUSTER NODES")?.text();
            let own = nodes
                .lines()
                .find(|l| l.contains("myself"))
                .unwrap_or_default();
            let owns = own.split(' ').skip(8).any(|range| {
                let (from, to) = range.split_once('-').unwrap_or((range, range));
                let number = |n: &str| n.parse::<u16>().ok();
                number(from) <= Some(slot) && Some(slot) <= number(to) && number(from).is_some()
            });
            let url = url.clone();
            masters.push(Node {
                client,
                url,
                id,
                owns,
            });
        }
    }
    let Some(from) = masters.iter().position(|n| n.owns) else {
        return Ok(());
    };
    let to = (from + 1) % masters.len();
    let (from_id, to_id) = (masters[from].id.clone(), masters[to].id.clone());
    let to_at = node_at(&masters[to].url)?;
    let setslot = |node: &mut Node, rest: &str| {
        let words = format!("CLUSTER SETSLOT {slot} {rest}");
        node.client.words(&words)
    };
    setslot(&mut masters[to], &format!("IMPORTING {from_id}"))?;
    setslot(&mut masters[from], &format!("MIGRATING {to_id}"))?;
    loop {
        let list = format!("CLUSTER GETKEYSINSLOT {slot} 3");
        let keys = masters[from].client.words(&list)?;
        if keys.items().is_empty() {
            break;
        }
        let migrate = Command::new("MIGRATE").arg(to_at.host()).arg(to_at.port());
        let migrate = migrate.args(["", "0", "5000", "REPLACE", "KEYS"]);
        let names = keys.items().iter().map(Value::bytes);
        let moved = masters[from].client.run(&migrate.args(names))?;
        // A key may have gone, or may be too new for the other: nothing that a test of ours writes is.
        if let Value::Error(text) = moved
            && !text.starts_with("NOKEY")
        {
            return Err(io::Error::other(text));
        }
    }
    setslot(&mut masters[to], &format!("NODE {to_id}"))?;
    setslot(&mut masters[from], &format!("NODE {to_id}"))?;
    for node in &mut masters {
        let _ = setslot(node, &format!("NODE {to_id}"));
    }
    Ok(())
}
