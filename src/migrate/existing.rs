//! on_existing "skip": the keys that the target held before the first write, found once and kept in a file.
//!
//! Invariant: the file is complete before anything is written to the target; a resumed run reads it back,
//! so that keys of our own are never taken for the target's.

use crate::error::{Context, ErrorKind, Result};
use crate::migrate::fence_key;
use crate::net;
use crate::plan::Endpoint;
use crate::resp::Reply;
use crate::target::topology::Topology;
use crate::types::DbIndex;
use std::collections::HashSet;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The target's own keys; scanned at the first start, read from the file later.
pub async fn find(target: &Endpoint, topology: &Topology, dir: &Path) -> Result<HashSet<Vec<u8>>> {
    let path = dir.join("existing");
    if let Ok(bytes) = std::fs::read(&path) {
        return Ok(read(&bytes));
    }
    let mut found = HashSet::new();
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
                found.extend(
                    keys.iter()
                        .filter_map(Reply::bytes)
                        .map(|k| fence_key(DbIndex(db), k)),
                );
                if cursor == b"0" {
                    break;
                }
            }
        }
    }
    let mut bytes = Vec::new();
    for key in &found {
        bytes.extend_from_slice(&u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(key);
    }
    let failed = || format!("write {}", path.display());
    let unfinished = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)
        .context(ErrorKind::Disk, failed)?;
    file.write_all(&bytes)
        .and_then(|()| file.sync_data())
        .context(ErrorKind::Disk, failed)?;
    std::fs::rename(&unfinished, &path).context(ErrorKind::Disk, failed)?;
    Ok(found)
}

fn read(mut bytes: &[u8]) -> HashSet<Vec<u8>> {
    let mut keys = HashSet::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<4>() {
        let Some((key, rest)) = rest.split_at_checked(u32::from_le_bytes(*len) as usize) else {
            break;
        };
        keys.insert(key.to_vec());
        bytes = rest;
    }
    keys
}
