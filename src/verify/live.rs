//! Some keys compared again and again over connections that stay open: what a cutover does while writers wait.

use super::answer::KeyReport;
use super::check::Check;
use super::options::Options;
use super::progress::Name;
use super::{confirm, reading};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Job;
use crate::source::keys::fact::{Found, NOT_REPLICATED};
use crate::source::keys::reader::Reader;
use crate::store::Store;
use crate::task::Shutdown;
use crate::types::{DbIndex, Slot};
use std::sync::Arc;
use tokio::task::JoinSet;

/// Keys compared at a time by one worker.
const CHUNK: usize = 2_000;

/// Both sides, open.
pub struct Live {
    check: Arc<Check>,
    /// Connections that wait for work.
    readers: Vec<(Reader, Reader)>,
}

impl Live {
    pub async fn open(job: Job, options: &Options, stop: Shutdown) -> Result<Live> {
        let store = Store::open(&options.work_dir)?;
        let check = Arc::new(Check::open(job, options, store, stop).await?);
        let Some(source) = check.origin.server() else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a file cannot be compared again and again",
            ));
        };
        let reader = || {
            let source = Reader::new(source.clone(), check.width);
            (source, Reader::new(check.target.clone(), check.width))
        };
        let readers = (0..check.workers()).map(|_| reader()).collect();
        Ok(Live { check, readers })
    }

    /// Opens every connection that will be used, so that nobody waits for that later.
    pub async fn warm(&mut self) -> Result<()> {
        let opened =
            (self.readers.iter_mut()).flat_map(|(source, target)| [warm(source), warm(target)]);
        futures::future::try_join_all(opened).await.map(drop)
    }

    /// Compares keys, each with the target's database and the name that it has at the source; returns what differs.
    ///
    /// What is not equal is read again until it is, or is proven different, or cannot be proven.
    pub async fn differing(&mut self, names: Vec<Name>) -> Result<Vec<KeyReport>> {
        let names: Vec<Name> = (names.into_iter())
            .filter(|(db, key)| self.check.compared(*db, key))
            .collect();
        let mut chunks = names.chunks(CHUNK).map(<[Name]>::to_vec);
        let mut workers: JoinSet<Result<Compared>> = JoinSet::new();
        let mut unequal = Vec::new();
        loop {
            while let Some((mut source, mut target)) = self.readers.pop() {
                let Some(chunk) = chunks.next() else {
                    self.readers.push((source, target));
                    break;
                };
                let check = self.check.clone();
                workers.spawn(async move {
                    let both =
                        reading::both(&check, Some(&mut source), &mut target, &chunk).await?;
                    let apart = chunk.into_iter().zip(both);
                    let apart = apart.filter(|(_, (a, b))| !same(&check, a, b));
                    Ok((apart.map(|(name, _)| name).collect(), source, target))
                });
            }
            let Some(done) = workers.join_next().await else {
                break;
            };
            let (apart, source, target) =
                done.map_err(|e| Error::new(ErrorKind::Bug, "a comparison panicked").cause(e))??;
            unequal.extend(apart);
            self.readers.push((source, target));
        }
        if unequal.is_empty() {
            return Ok(Vec::new());
        }
        let Some((mut source, mut target)) = self.readers.pop() else {
            return Err(Error::new(
                ErrorKind::Bug,
                "a comparison without connections",
            ));
        };
        let found = confirm::reasons(&self.check, &mut source, &mut target, &unequal).await;
        self.readers.push((source, target));
        let report = |((db, key), reason): (&Name, Option<&'static str>)| {
            Some(KeyReport {
                db: db.0,
                key: String::from_utf8_lossy(key).into_owned(),
                name: key.clone(),
                slot: Slot::of(key).number(),
                reason: reason?.to_owned(),
            })
        };
        let found = found?;
        let reasons = (found.into_iter()).map(|r| r.filter(|r| *r != NOT_REPLICATED));
        Ok(unequal.iter().zip(reasons).filter_map(report).collect())
    }
}

/// What was not equal, and the connections that found it.
type Compared = (Vec<Name>, Reader, Reader);

fn same(check: &Check, a: &Found, b: &Found) -> bool {
    match (a, b) {
        (Found::Here(a), Found::Here(b)) => check.agree(a, b),
        (Found::Gone, Found::Gone) => true,
        _ => false,
    }
}

/// Reads one key of each master; any name will do.
async fn warm(reader: &mut Reader) -> Result<()> {
    for master in &reader.side.layout().masters {
        let mut names = (0u32..100_000).map(|n| n.to_string().into_bytes());
        if let Some(name) = names.find(|name| master.slots.has(Slot::of(name))) {
            reader.facts(DbIndex::ZERO, &[&name]).await?;
        }
    }
    Ok(())
}
