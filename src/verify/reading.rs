//! What the sides hold of given keys, by their names; far servers are asked about several pages at a time.

use super::check::Check;
use super::progress::Name;
use crate::error::{Error, Result};
use crate::source::keys::fact::{Found, KeyFact};
use crate::source::keys::reader::Reader;
use crate::source::keys::side::{Role, Side};
use crate::types::DbIndex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Keys that one reader is asked for at a time.
const AT_ONCE: usize = 500;

/// Readers of both sides, which share the work.
pub struct Readers {
    /// None where the keys come from a file.
    pub source: Vec<Reader>,
    pub target: Vec<Reader>,
}

impl Readers {
    pub fn new(check: &Check) -> Readers {
        let many = |side: &Arc<Side>| {
            let reader = || Reader::new(side.clone(), check.width);
            (0..check.workers()).map(|_| reader()).collect()
        };
        Readers {
            source: (check.origin.server()).map_or_else(Vec::new, many),
            target: many(&check.target),
        }
    }

    /// After an error: what is on its way on these connections belongs to nobody.
    pub fn reset(&mut self) {
        let all = self.source.iter_mut().chain(&mut self.target);
        all.for_each(Reader::reset);
    }

    /// What both sides hold of given keys (of the target's databases), read at the same time.
    pub async fn both(&mut self, check: &Check, names: &[Name]) -> Result<Vec<(Found, Found)>> {
        let theirs = of_names(check, &mut self.target, names);
        if self.source.is_empty() {
            let ours = (names.iter()).map(|name| check.origin.file_fact(name));
            return Ok(ours.zip(theirs.await?).collect());
        }
        let ours = of_names(check, &mut self.source, names);
        let (a, b) = tokio::try_join!(ours, theirs)?;
        Ok(a.into_iter().zip(b).collect())
    }
}

/// What one side holds of given keys (of the target's databases).
pub async fn of_names(check: &Check, readers: &mut [Reader], names: &[Name]) -> Result<Vec<Found>> {
    let mut by_db: BTreeMap<DbIndex, Vec<usize>> = BTreeMap::new();
    for (i, (db, _)) in names.iter().enumerate() {
        by_db.entry(*db).or_default().push(i);
    }
    let parts: Vec<(DbIndex, &[usize])> = (by_db.iter())
        .flat_map(|(db, places)| places.chunks(AT_ONCE).map(|some| (*db, some)))
        .collect();
    let (parts, next) = (&parts, &AtomicUsize::new(0));
    let reading = readers.iter_mut().map(|reader| async move {
        let mut read = Vec::new();
        while let Some((db, places)) = parts.get(next.fetch_add(1, Relaxed)) {
            let name = |i: &usize| names.get(*i).map_or(b"".as_slice(), |(_, key)| key);
            let keys: Vec<&[u8]> = places.iter().map(name).collect();
            let facts = of_keys(check, reader, *db, &keys).await?;
            read.extend(places.iter().copied().zip(facts));
        }
        Ok::<_, Error>(read)
    });
    let mut found = vec![Found::Gone; names.len()];
    for (i, fact) in futures::future::try_join_all(reading)
        .await?
        .into_iter()
        .flatten()
    {
        if let Some(place) = found.get_mut(i) {
            *place = fact;
        }
    }
    Ok(found)
}

/// What one side holds of keys of a database of the target.
pub async fn of_keys(
    check: &Check,
    reader: &mut Reader,
    db: DbIndex,
    keys: &[&[u8]],
) -> Result<Vec<Found>> {
    let dbs = match reader.side.role {
        Role::Source => check.job.databases.sources_of(db).collect(),
        Role::Target => vec![db],
    };
    let mut found = vec![Found::Gone; keys.len()];
    for from in dbs {
        let facts = reader.facts(from, keys).await?;
        for (place, fact) in found.iter_mut().zip(facts) {
            if fact != Found::Gone {
                *place = fact;
            }
        }
    }
    Ok(found)
}

/// Whether a key of this content is one that the plan moves.
pub fn accepted(check: &Check, fact: &KeyFact) -> bool {
    (check.job.filter).accepts_value(fact.digest.kind.name(), fact.expire.is_some())
}
