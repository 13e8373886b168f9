//! Reading one side: SCAN each master, DUMP and expiry pipelined, digests by slot or by key.

use super::{Place, databases, digest_of, expiry_of, grouped};
use crate::digest::{KeyDigest, SlotSum};
use crate::error::{Error, ErrorKind, Result};
use crate::net::scan::Scan;
use crate::net::{Conn, refusal};
use crate::plan::Job;
use crate::resp::Reply;
use crate::store::Existing;
use crate::task::{Shutdown, Throttle};
use crate::types::unix_ms;
use crate::types::{DbIndex, ExpireAt, SLOTS, Slot, SlotSet};
use std::collections::{BTreeSet, HashMap};

/// Keys asked for in one SCAN and read in one round trip.
const PAGE: u32 = 500;

/// Which side is read: it decides how databases and filters apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Source,
    Target,
}

/// What is compared of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFact {
    pub digest: KeyDigest,
    pub expire: Option<ExpireAt>,
}

/// What is compared, and how fast it may be read.
pub struct Rules<'a> {
    pub job: &'a Job,
    pub stop: &'a Shutdown,
    pub throttle: Throttle,
    /// Keys that are not compared: the target's own, which on_existing "skip" has kept, and listed losses.
    pub apart: Existing,
    /// Only these slots, if some were chosen.
    pub slots: Option<SlotSet>,
}

impl Rules<'_> {
    /// Whether a key is compared; `db` is the target's.
    fn compared(&self, db: DbIndex, key: &[u8]) -> bool {
        self.job.filter.accepts(key)
            && self.job.verify.exclude.accepts(key)
            && (self.slots.as_ref()).is_none_or(|s| s.has(Slot::of(key)))
            && !self.apart.contains(db, key)
    }
}

/// A key's name on both sides: the target's database.
type Name = (DbIndex, Vec<u8>);

/// The sums of all slots of a side.
pub async fn sums(place: &Place, side: Side, rules: &Rules<'_>) -> Result<Vec<SlotSum>> {
    let mut all = vec![SlotSum::default(); SLOTS];
    let walks = place.layout.masters.iter().map(|m| async move {
        let mut mine = vec![SlotSum::default(); SLOTS];
        walk(
            place,
            &m.address,
            side,
            rules,
            None,
            &mut |(db, key), fact| {
                if let Some(sum) = mine.get_mut(Slot::of(&key).index()) {
                    sum.add(db, &key, &fact.digest, fact.expire);
                }
            },
        )
        .await?;
        Ok::<_, Error>(mine)
    });
    for mine in futures::future::try_join_all(walks).await? {
        all.iter_mut()
            .zip(mine)
            .for_each(|(all, mine)| all.merge(mine));
    }
    Ok(all)
}

/// The keys of some slots with their facts.
pub async fn facts(
    place: &Place,
    side: Side,
    rules: &Rules<'_>,
    slots: &BTreeSet<u16>,
) -> Result<HashMap<Name, KeyFact>> {
    let mut all = HashMap::new();
    for m in &place.layout.masters {
        walk(
            place,
            &m.address,
            side,
            rules,
            Some(slots),
            &mut |name, fact| {
                all.insert(name, fact);
            },
        )
        .await?;
    }
    Ok(all)
}

/// The database of the target under which a key of `side` is compared; `None` when the plan leaves it out.
fn compared_db(side: Side, job: &Job, db: DbIndex) -> Option<DbIndex> {
    match side {
        Side::Source => job.databases.map(db),
        // Databases of the target that nothing is moved to are not ours.
        Side::Target => (0..1024)
            .map(DbIndex)
            .any(|from| job.databases.map(from) == Some(db))
            .then_some(db),
    }
}

async fn walk(
    place: &Place,
    address: &str,
    side: Side,
    rules: &Rules<'_>,
    slots: Option<&BTreeSet<u16>>,
    each: &mut (dyn FnMut(Name, KeyFact) + Send),
) -> Result<()> {
    let job = rules.job;
    let mut conn = place.connect(address).await?;
    for db in databases(&mut conn, place.layout.cluster).await? {
        let Some(name_db) = compared_db(side, job, db) else {
            continue;
        };
        if db != DbIndex::ZERO {
            conn.call(&[b"SELECT", db.to_string().as_bytes()]).await?;
        }
        let mut scan = Scan::new();
        while let Some(page) = scan.next(&mut conn, PAGE).await? {
            let keys: Vec<&[u8]> = (page.iter().map(Vec::as_slice))
                .filter(|k| {
                    rules.compared(name_db, k)
                        && slots.is_none_or(|s| s.contains(&Slot::of(k).number()))
                })
                .collect();
            for (key, fact) in keys
                .iter()
                .zip(fetch(&mut conn, place.pexpiretime, &keys).await?)
            {
                if let Some(fact) = fact.filter(|f| job.filter.accepts_type(f.digest.kind.name())) {
                    each((name_db, key.to_vec()), fact);
                }
            }
            let bytes = conn.take_received();
            let wait = rules.throttle.take(keys.len() as u64, bytes);
            if !rules.stop.sleep(wait).await || rules.stop.requested() {
                return Err(Error::new(
                    ErrorKind::Interrupted,
                    "the verification was stopped",
                ));
            }
        }
    }
    Ok(())
}

/// The facts of keys of the selected database; `None` for one that is gone.
async fn fetch(conn: &mut Conn, pexpiretime: bool, keys: &[&[u8]]) -> Result<Vec<Option<KeyFact>>> {
    for key in keys {
        conn.push(&[b"DUMP", key]);
        conn.push(&[if pexpiretime { b"PEXPIRETIME" } else { b"PTTL" }, key]);
    }
    conn.flush().await?;
    let mut facts = Vec::with_capacity(keys.len());
    for key in keys {
        let dump = conn.reply().await?;
        let now = if pexpiretime { 0 } else { unix_ms() };
        let expire = expiry_of(&conn.reply().await?, now).map(ExpireAt);
        facts.push(match dump {
            Reply::Nil => None,
            Reply::Bulk(bytes) => {
                let digest = digest_of(&bytes).map_err(|e| {
                    e.context(format!(
                        "read the key {} of {}",
                        crate::types::shown(key),
                        conn.address()
                    ))
                })?;
                digest.map(|digest| KeyFact { digest, expire })
            }
            Reply::Error(text) => return Err(refusal("DUMP", &text)),
            _ => {
                return Err(Error::new(
                    ErrorKind::Protocol,
                    format!(
                        "{} answered DUMP in a form that is not understood",
                        conn.address()
                    ),
                ));
            }
        });
    }
    Ok(facts)
}

/// Reads given keys (named by the target's database) again.
pub async fn read(
    place: &Place,
    side: Side,
    job: &Job,
    keys: &[(DbIndex, &[u8])],
) -> Result<Vec<Option<KeyFact>>> {
    let mut facts = vec![None; keys.len()];
    let groups = grouped(keys, |db, key| {
        let dbs: Vec<DbIndex> = match side {
            Side::Target => vec![db],
            Side::Source => (0..1024)
                .map(DbIndex)
                .filter(|from| job.databases.map(*from) == Some(db))
                .collect(),
        };
        Some((place.address_of(key).to_owned(), dbs))
    });
    for ((address, dbs), members) in groups {
        let mut conn = place.connect(&address).await?;
        let names: Vec<&[u8]> = members.iter().map(|(_, k)| *k).collect();
        for db in dbs {
            if db != DbIndex::ZERO
                && let Reply::Error(_) = conn.ask(&[b"SELECT", db.to_string().as_bytes()]).await?
            {
                // The server has fewer databases.
                break;
            }
            for ((i, _), fact) in members
                .iter()
                .zip(fetch(&mut conn, place.pexpiretime, &names).await?)
            {
                if let (Some(place), Some(fact)) = (facts.get_mut(*i), fact) {
                    *place = Some(fact);
                }
            }
        }
    }
    Ok(facts)
}
