//! What the servers of a side say of themselves, before and after they were measured.

use crate::error::Result;
use crate::net::{self, info_field, server};
use crate::plan::Endpoint;
use serde_json::{Map, Value, json};

/// What the servers of a side say of themselves.
pub async fn figures(endpoint: &Endpoint) -> Result<Value> {
    let (layout, server) = server::layout(endpoint).await?;
    let mut sums: Map<String, Value> = Map::new();
    for master in &layout.masters {
        let mut conn = net::connect(endpoint, &master.address).await?;
        let reply = conn.ask(&[b"INFO", b"everything"]).await?;
        let info = reply.text().unwrap_or_default().into_owned();
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
            let Some(n) = info_field(&info, field).and_then(|v| v.parse::<f64>().ok()) else {
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
    sums.insert("server".into(), json!(server.to_string()));
    sums.insert("masters".into(), json!(layout.masters.len()));
    Ok(Value::Object(sums))
}
