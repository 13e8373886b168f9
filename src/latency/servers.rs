//! What the servers of a side say of themselves, before and after they were measured.

use crate::error::Result;
use crate::net::{self, server};
use crate::plan::Endpoint;
use crate::resp::info;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What the servers of a side say of themselves; sums over its masters, since they were started.
pub async fn figures(endpoint: &Endpoint) -> Result<Value> {
    let (layout, server) = server::layout(endpoint).await?;
    let mut sums: Map<String, Value> = Map::new();
    let mut commands: BTreeMap<String, Calls> = BTreeMap::new();
    for master in &layout.masters {
        let mut conn = net::control(endpoint, &master.address).await?;
        let reply = conn.ask(&[b"INFO", b"everything"]).await?;
        let text = reply.text().unwrap_or_default().into_owned();
        count_commands(&text, &mut commands);
        for field in [
            "used_memory",
            "used_memory_rss",
            "evicted_keys",
            "expired_keys",
            "keyspace_hits",
            "keyspace_misses",
            "connected_clients",
            "used_cpu_sys",
            "used_cpu_user",
        ] {
            let Some(n) = info::field(&text, field).and_then(|v| v.parse::<f64>().ok()) else {
                continue;
            };
            let before = sums.get(field).and_then(Value::as_f64).unwrap_or(0.0);
            sums.insert(field.into(), json!(before + n));
        }
    }
    let read = sums.clone();
    let n = |field: &str| read.get(field).and_then(Value::as_f64);
    if let (Some(hits), Some(misses)) = (n("keyspace_hits"), n("keyspace_misses")) {
        sums.insert("hit_ratio".into(), json!(hits / (hits + misses).max(1.0)));
    }
    if let (Some(rss), Some(used)) = (n("used_memory_rss"), n("used_memory")) {
        sums.insert("fragmentation".into(), json!(rss / used.max(1.0)));
    }
    let told = commands.into_iter().map(|(name, of)| {
        let told = json!({ "calls": of.calls, "usec": of.usec, "p99_us": of.p99_us });
        (name, told)
    });
    sums.insert("commands".into(), Value::Object(told.collect()));
    sums.insert("server".into(), json!(server.to_string()));
    sums.insert("masters".into(), json!(layout.masters.len()));
    Ok(Value::Object(sums))
}

/// How often a command was run, and how long it took without the way there and back.
#[derive(Default)]
struct Calls {
    calls: u64,
    usec: u64,
    /// Of the slowest master, where the server keeps it (latencystats).
    p99_us: Option<f64>,
}

fn count_commands(text: &str, commands: &mut BTreeMap<String, Calls>) {
    for (name, told) in info::commands(text) {
        let of = commands.entry(name).or_default();
        of.calls = (of.calls).saturating_add(told.count("calls").unwrap_or(0));
        of.usec = (of.usec).saturating_add(told.count("usec").unwrap_or(0));
    }
    for (name, told) in info::lines(text, "latency_percentiles_usec_") {
        let of = commands.entry(name.to_ascii_lowercase()).or_default();
        let p99 = told.get("p99").and_then(|us| us.parse::<f64>().ok());
        of.p99_us = match (of.p99_us, p99) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masters_are_added_up() {
        let mut commands = BTreeMap::new();
        let info = "# Commandstats\r\ncmdstat_get:calls=10,usec=25,usec_per_call=2.50,rejected_calls=0\r\n\
            latency_percentiles_usec_get:p50=1.003,p99=7.007,p99.9=9.023\r\n";
        count_commands(info, &mut commands);
        count_commands("cmdstat_get:calls=5,usec=5\r\n", &mut commands);
        let get = &commands["get"];
        assert_eq!((get.calls, get.usec, get.p99_us), (15, 30, Some(7.007)));
    }
}
