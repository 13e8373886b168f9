//! Names that several keys would get at the target, of which only one could arrive: merged databases, new prefixes.

use crate::error::Result;
use crate::net::scan::{self, Scan};
use crate::net::{connect, enter, server};
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

/// Looks for keys whose names at the target belong to keys that are renamed.
pub async fn taken_names(job: &Job, endpoint: &Endpoint) -> Result<Conflicts> {
    let mut found = Conflicts::default();
    let (layout, _) = server::layout(endpoint).await?;
    for master in &layout.masters {
        let mut conn = connect(endpoint, &master.address).await?;
        let dbs = match layout.cluster {
            true => vec![(DbIndex::ZERO, 0)],
            false => scan::databases(&mut conn).await?,
        };
        for (db, _) in dbs
            .iter()
            .filter(|(db, _)| job.databases.map(*db).is_some())
        {
            conn.select(*db).await?;
            for prefix in job.renames.given() {
                let (mut scan, mut seen) = (Scan::of_prefix(prefix), HashSet::new());
                while let Some(page) = scan.next(endpoint, &mut conn, 1000).await? {
                    let taken = (page.iter())
                        .filter(|k| job.filter.accepts(k) && job.renames.to_target(k).is_none());
                    for key in taken {
                        // SCAN may tell a key twice.
                        if seen.insert(key_hash(*db, key)) {
                            found.add(key);
                        }
                    }
                }
            }
        }
    }
    Ok(found)
}

impl Conflicts {
    fn add(&mut self, key: &[u8]) {
        self.count = self.count.saturating_add(1);
        if self.names.len() < TOLD {
            self.names.push(shown(key).to_string());
        }
    }
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
        let sizes = sources.iter().filter_map(|db| sizes.get(&db.0));
        let keys = sizes.fold(0u64, |sum, n| sum.saturating_add(*n));
        if keys > MOST {
            found.unknown = true;
            continue;
        }
        let mut names: HashSet<u64> = HashSet::new();
        for db in sources {
            let mut conn = enter(endpoint).await?;
            conn.select(*db).await?;
            let (mut scan, mut own) = (Scan::new(), HashSet::new());
            while let Some(page) = scan.next(endpoint, &mut conn, 1000).await? {
                for key in page.iter().filter(|k| job.filter.accepts(k)) {
                    let hash = key_hash(DbIndex::ZERO, key);
                    // SCAN may tell a key twice.
                    if own.insert(hash) && names.contains(&hash) {
                        found.add(key);
                    }
                }
            }
            names.extend(own);
        }
    }
    Ok(found)
}
