//! on_existing "skip": finds the target's own keys at the first start, so that ours are never taken for them later.

use crate::error::Result;
use crate::net;
use crate::plan::Endpoint;
use crate::resp::Reply;
use crate::store::Existing;
use crate::target::topology::Topology;
use crate::types::DbIndex;
use std::path::Path;

/// The target's own keys; scanned at the first start, read from the file later.
pub async fn find(target: &Endpoint, topology: &Topology, dir: &Path) -> Result<Existing> {
    if let Some(known) = Existing::load(dir) {
        return Ok(known);
    }
    let mut found = Existing::default();
    for address in &topology.nodes {
        let mut conn = net::connect(target, address).await?;
        let reply = conn.call(&[b"INFO", b"keyspace"]).await?;
        let text = reply.text().unwrap_or_default();
        let dbs: Vec<u32> = text
            .lines()
            .filter_map(|l| l.strip_prefix("db")?.split_once(':')?.0.parse().ok())
            .collect();
        for db in dbs {
            if db != 0 {
                conn.call(&[b"SELECT", db.to_string().as_bytes()]).await?;
            }
            let mut cursor = b"0".to_vec();
            loop {
                let reply = conn.call(&[b"SCAN", &cursor, b"COUNT", b"1000"]).await?;
                let parts = reply.array().unwrap_or_default();
                cursor = parts
                    .first()
                    .and_then(Reply::bytes)
                    .unwrap_or(b"0")
                    .to_vec();
                let keys = parts.get(1).and_then(Reply::array).unwrap_or_default();
                for key in keys.iter().filter_map(Reply::bytes) {
                    found.insert(DbIndex(db), key);
                }
                if cursor == b"0" {
                    break;
                }
            }
        }
    }
    found.save(dir)?;
    Ok(found)
}
