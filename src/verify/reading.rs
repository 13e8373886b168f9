//! What the sides hold of given keys, by their names.

use super::check::Check;
use super::progress::Name;
use crate::error::Result;
use crate::source::keys::fact::{Found, KeyFact};
use crate::source::keys::list::PAGE;
use crate::source::keys::reader::Reader;
use crate::source::keys::side::Role;
use crate::types::DbIndex;
use std::collections::HashMap;

/// What both sides hold of given keys (of the target's databases), read at the same time.
pub async fn both(
    check: &Check,
    source: Option<&mut Reader>,
    target: &mut Reader,
    names: &[Name],
) -> Result<Vec<(Found, Found)>> {
    let theirs = of_names(check, target, names);
    match source {
        Some(source) => {
            let ours = of_names(check, source, names);
            let (a, b) = tokio::try_join!(ours, theirs)?;
            Ok(a.into_iter().zip(b).collect())
        }
        None => {
            let ours = (names.iter()).map(|name| check.origin.file_fact(name));
            Ok(ours.zip(theirs.await?).collect())
        }
    }
}

/// What one side holds of given keys (of the target's databases).
pub async fn of_names(check: &Check, reader: &mut Reader, names: &[Name]) -> Result<Vec<Found>> {
    let mut found = vec![Found::Gone; names.len()];
    let mut by_db: HashMap<DbIndex, Vec<usize>> = HashMap::new();
    for (i, (db, _)) in names.iter().enumerate() {
        by_db.entry(*db).or_default().push(i);
    }
    for (db, places) in by_db {
        let dbs = match reader.side.role {
            Role::Source => check.job.databases.sources_of(db).collect(),
            Role::Target => vec![db],
        };
        for from in dbs {
            for places in places.chunks(PAGE) {
                let keys: Vec<&[u8]> = (places.iter())
                    .filter_map(|i| names.get(*i))
                    .map(|(_, k)| k.as_slice())
                    .collect();
                let facts = reader.facts(from, &keys).await?;
                for (i, fact) in places.iter().zip(facts) {
                    if let Some(place) = found.get_mut(*i)
                        && fact != Found::Gone
                    {
                        *place = fact;
                    }
                }
            }
        }
    }
    Ok(found)
}

/// Whether a key of this content is one that the plan moves.
pub fn accepted(check: &Check, fact: &KeyFact) -> bool {
    (check.job.filter).accepts_value(fact.digest.kind.name(), fact.expire.is_some())
}
