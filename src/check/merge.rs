//! Databases that are merged: whether two of them hold a key of the same name, of which only one could arrive.

use crate::error::Result;
use crate::net::connect;
use crate::net::scan::Scan;
use crate::plan::{Endpoint, Job};
use crate::types::{DbIndex, key_hash, shown};
use std::collections::{BTreeMap, HashSet};

/// Keys whose names are compared; 16 bytes each.
const MOST: u64 = 8_000_000;
/// Names that are told.
const TOLD: usize = 10;

/// What was found.
#[derive(Debug, Default)]
pub struct Conflicts {
    pub count: u64,
    pub names: Vec<String>,
    /// There are too many keys to be looked through.
    pub unknown: bool,
}

/// Looks through the databases that go to the same one of the target; `sizes` are the source's.
pub async fn conflicts(
    job: &Job,
    endpoint: &Endpoint,
    sizes: &BTreeMap<u32, u64>,
) -> Result<Conflicts> {
    let mut found = Conflicts::default();
    let mut merged: BTreeMap<DbIndex, Vec<DbIndex>> = BTreeMap::new();
    for (from, to) in job.databases.moved() {
        if sizes.contains_key(&from.0) {
            merged.entry(to).or_default().push(from);
        }
    }
    for sources in merged.values().filter(|s| s.len() > 1) {
        let keys: u64 = sources.iter().filter_map(|db| sizes.get(&db.0)).sum();
        if keys > MOST {
            found.unknown = true;
            continue;
        }
        let mut names: HashSet<u64> = HashSet::new();
        for db in sources {
            let mut conn = connect(endpoint, &endpoint.address()).await?;
            conn.select(*db).await?;
            let (mut scan, mut own) = (Scan::new(), HashSet::new());
            while let Some(page) = scan.next(&mut conn, 1000).await? {
                for key in page.iter().filter(|k| job.filter.accepts(k)) {
                    let hash = key_hash(DbIndex::ZERO, key);
                    // SCAN may tell a key twice.
                    if own.insert(hash) && names.contains(&hash) {
                        found.count += 1;
                        if found.names.len() < TOLD {
                            found.names.push(shown(key).to_string());
                        }
                    }
                }
            }
            names.extend(own);
        }
    }
    Ok(found)
}
