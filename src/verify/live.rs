//! Some keys compared again and again over connections that stay open: what a cutover does while writers wait.

use super::answer::KeyReport;
use super::check::Check;
use super::confirm;
use super::options::Options;
use super::progress::Name;
use super::reading::{self, Readers};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Job;
use crate::source::keys::fact::{Found, NOT_REPLICATED};
use crate::source::keys::reader::Reader;
use crate::store::Store;
use crate::task::Shutdown;
use crate::types::{DbIndex, Slot};
use std::sync::Arc;
use tokio::task::JoinSet;

/// Keys compared at a time by one worker: so few where there are enough workers, and no more than so many.
const CHUNK: (usize, usize) = (100, 500);

/// Both sides, open.
pub struct Live {
    check: Arc<Check>,
    /// Connections that wait for work.
    readers: Readers,
    /// How many there are of each side.
    many: usize,
}

impl Live {
    pub async fn open(job: Job, options: &Options, stop: Shutdown) -> Result<Live> {
        let store = Store::open(&options.work_dir)?;
        let check = Arc::new(Check::open(job, options, store, stop).await?);
        if check.origin.server().is_none() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a file cannot be compared again and again",
            ));
        }
        let readers = Readers::new(&check);
        let many = readers.target.len();
        Ok(Live {
            check,
            readers,
            many,
        })
    }

    /// Opens every connection that will be used, so that nobody waits for that later.
    pub async fn warm(&mut self) -> Result<()> {
        let all = self
            .readers
            .source
            .iter_mut()
            .chain(&mut self.readers.target);
        futures::future::try_join_all(all.map(warm)).await.map(drop)
    }

    /// Compares keys, each with the target's database and the name that it has at the source; returns what differs.
    ///
    /// What is not equal is read again until it is, or is proven different, or cannot be proven.
    pub async fn differing(&mut self, names: Vec<Name>) -> Result<Vec<KeyReport>> {
        let names: Vec<Name> = (names.into_iter())
            .filter(|(db, key)| self.check.compared(*db, key))
            .collect();
        if self.readers.source.len() != self.many || self.readers.target.len() != self.many {
            // They went with a comparison that was ended.
            self.readers = Readers::new(&self.check);
            self.many = self.readers.target.len();
        }
        let (least, most) = CHUNK;
        let chunk = names.len().div_ceil(self.many.max(1)).clamp(least, most);
        let mut chunks = names.chunks(chunk).map(<[Name]>::to_vec);
        let mut workers: JoinSet<Compared> = JoinSet::new();
        let mut idle: Vec<(Reader, Reader)> = (self.readers.source.drain(..))
            .zip(self.readers.target.drain(..))
            .collect();
        let (mut unequal, mut failed) = (Vec::new(), None);
        loop {
            while failed.is_none()
                && let Some((source, target)) = idle.pop()
            {
                let Some(chunk) = chunks.next() else {
                    idle.push((source, target));
                    break;
                };
                workers.spawn(compare(self.check.clone(), chunk, source, target));
            }
            let Some(done) = workers.join_next().await else {
                break;
            };
            let (apart, source, target) =
                done.map_err(|e| Error::new(ErrorKind::Bug, "a comparison panicked").cause(e))?;
            match apart {
                Ok(apart) => unequal.extend(apart),
                Err(e) => failed = Some(e),
            }
            idle.push((source, target));
        }
        (self.readers.source, self.readers.target) = idle.into_iter().unzip();
        if let Some(e) = failed {
            return Err(e);
        }
        if let Some(chunk) = chunks.next() {
            let text = format!("{} keys or more were not compared", chunk.len());
            return Err(Error::new(ErrorKind::Bug, text));
        }
        if unequal.is_empty() {
            return Ok(Vec::new());
        }
        let found = confirm::reasons(&self.check, &mut self.readers, &unequal).await;
        if found.is_err() {
            self.readers.reset();
        }
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
type Compared = (Result<Vec<Name>>, Reader, Reader);

async fn compare(
    check: Arc<Check>,
    chunk: Vec<Name>,
    mut source: Reader,
    mut target: Reader,
) -> Compared {
    let read = async {
        let (ours, theirs) = tokio::try_join!(
            reading::of_names(&check, std::slice::from_mut(&mut source), &chunk),
            reading::of_names(&check, std::slice::from_mut(&mut target), &chunk)
        )?;
        let both = chunk.iter().zip(ours.iter().zip(&theirs));
        let apart = both.filter(|(_, (a, b))| !same(&check, a, b));
        Ok(apart.map(|(name, _)| name.clone()).collect())
    };
    let apart = read.await;
    if apart.is_err() {
        // What is on its way on these connections belongs to nobody.
        source.reset();
        target.reset();
    }
    (apart, source, target)
}

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
