//! on_existing "skip": finds the target's own keys at the first start, so that ours are never taken for them later.

use crate::error::Result;
use crate::net;
use crate::net::scan::{self, Scan};
use crate::plan::Endpoint;
use crate::store::Existing;
use crate::target::topology::Topology;
use std::path::Path;

/// The target's own keys; scanned at the first start, read from the file later.
pub async fn find(target: &Endpoint, topology: &Topology, dir: &Path) -> Result<Existing> {
    if let Some(known) = Existing::load(dir) {
        return Ok(known);
    }
    let mut found = Existing::default();
    for address in &topology.nodes {
        let mut conn = net::connect(target, address).await?;
        for (db, _) in scan::databases(&mut conn).await? {
            conn.select(db).await?;
            let mut scan = Scan::new();
            while let Some(page) = scan.next(&mut conn, 1000).await? {
                page.iter().for_each(|key| found.insert(db, key));
            }
        }
    }
    found.save(dir)?;
    Ok(found)
}
