//! The workers: each takes a page of keys, reads them on both sides at the same time, and says what did not agree.

use super::check::{Check, Origin};
use super::progress::{Done, Pass};
use super::reading::accepted;
use super::{confirm, file_keys};
use crate::digest::SlotSum;
use crate::error::{Error, ErrorKind, Result};
use crate::net::Tries;
use crate::source::keys::depth;
use crate::source::keys::fact::Found;
use crate::source::keys::list::{Listing, Page};
use crate::source::keys::reader::{Reader, pairs};
use crate::source::keys::short::ShortStrings;
use crate::types::{DbIndex, Slot, SlotSet};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::{Mutex, mpsc};

/// Pages that wait for a worker, however few work.
const NEAR: usize = 4;
/// Keys that did not agree are confirmed before the end when there are more than this.
const CANDIDATES: usize = 100_000;

/// Walks one listing to its end.
pub async fn pass(check: &Arc<Check>, pass: Pass, slots: Option<SlotSet>) -> Result<()> {
    let many = check.workers();
    let (send, pages) = mpsc::channel(many.max(NEAR));
    let pages = Arc::new(Mutex::new(pages));
    check.progress().begin();
    let (from, beside_slots) = (check.progress().at.position.clone(), slots.clone());
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..many {
        let worker = Worker {
            check: check.clone(),
            pass,
            source: (check.origin.server()).map(|s| Reader::new(s.clone(), check.width)),
            target: Reader::new(check.target.clone(), check.width),
            strings: ShortStrings::default(),
        };
        workers.spawn(worker.run(pages.clone()));
    }
    // When the workers fail, nobody is left to listen.
    drop(pages);
    let listing = async {
        let side = match (&check.origin, pass) {
            (Origin::File(file), Pass::Source) => return file_keys::list(file, check, send).await,
            (Origin::Server(side), Pass::Source) => side,
            _ => &check.target,
        };
        let listing = Listing {
            side: side.clone(),
            from: from.clone(),
            slots,
            dbs: check.dbs(side.role),
            stop: check.stop.clone(),
            patience: check.patience,
            // The tally knows what it has seen.
            distinct: None,
            depth: depth::listed(side.round_trip(), &check.job.limits),
        };
        listing.run(send).await
    };
    let working = async {
        while let Some(ended) = workers.join_next().await {
            ended.map_err(|e| {
                Error::new(ErrorKind::Bug, "a worker of the comparison panicked").cause(e)
            })??;
        }
        Ok(())
    };
    let mut beside = tokio::task::JoinSet::new();
    if pass == Pass::Source && from.is_none() && check.lists_beside() {
        check.met.begin(check.job.limits.key_set() / 3);
        beside.spawn(list_beside(check.clone(), beside_slots));
    }
    let beside = async {
        while let Some(ended) = beside.join_next().await {
            match ended.map_err(|e| Error::new(ErrorKind::Bug, "a listing panicked").cause(e))? {
                Ok(()) => {}
                // The second pass lists them.
                Err(e) => tracing::debug!("the target's keys were not listed beside: {e}"),
            }
        }
        Ok(())
    };
    tokio::try_join!(listing, working, beside).map(drop)
}

/// Lists the target's keys while the first pass reads the source's.
async fn list_beside(check: Arc<Check>, slots: Option<SlotSet>) -> Result<()> {
    let (send, mut pages) = mpsc::channel::<Page>(NEAR);
    let side = &check.target;
    let listing = Listing {
        side: side.clone(),
        from: None,
        slots,
        dbs: check.dbs(side.role),
        stop: check.stop.clone(),
        patience: check.patience,
        distinct: None,
        depth: depth::listed(side.round_trip(), &check.job.limits),
    };
    let taking = async {
        while let Some(page) = pages.recv().await {
            let keys: Vec<&[u8]> = (page.keys.iter().map(Vec::as_slice))
                .filter(|k| check.compared(page.db, k))
                .collect();
            if !check.met.list(page.db, &keys) {
                // Nobody listens any more: that ends the listing.
                pages.close();
                return Ok(false);
            }
            check.gauge.done.fetch_add(page.keys.len() as u64, Relaxed);
            check.pace(keys.len()).await?;
        }
        Ok(true)
    };
    let ((), whole) = tokio::try_join!(listing.run(send), taking)?;
    if whole {
        check.met.listed();
    }
    Ok(())
}

struct Worker {
    check: Arc<Check>,
    pass: Pass,
    source: Option<Reader>,
    target: Reader,
    strings: ShortStrings,
}

impl Worker {
    async fn run(mut self, pages: Arc<Mutex<mpsc::Receiver<Page>>>) -> Result<()> {
        loop {
            let page = pages.lock().await.recv().await;
            let Some(page) = page else { return Ok(()) };
            let mut tries = Tries::new(self.check.patience);
            let done = loop {
                self.check.go_on()?;
                let work: BoxFuture<'_, Result<Done>> = match self.pass {
                    Pass::Source => self.compare(&page).boxed(),
                    _ => self.search(&page).boxed(),
                };
                match work.await {
                    Ok(done) => break done,
                    Err(e) => {
                        tries.again(e, "reading keys", &self.check.stop).await?;
                        self.reset().await;
                    }
                }
            };
            self.check.commit(page.seq, done)?;
            if self.check.progress().candidates.len() > CANDIDATES {
                let _one = self.check.confirming.lock().await;
                confirm::some(&self.check, CANDIDATES / 2).boxed().await?;
            }
        }
    }

    async fn reset(&mut self) {
        self.target.reset();
        if let Some(source) = &mut self.source {
            source.reset();
        }
        self.check.look_again().await;
    }

    /// The source's keys: read on both sides.
    async fn compare(&mut self, page: &Page) -> Result<Done> {
        let mut done = Done {
            position: page.next.clone(),
            ..Done::default()
        };
        let check = self.check.clone();
        let Some(name_db) = check.job.databases.map(page.db) else {
            return Ok(done);
        };
        let mut tally = Tally {
            check: &check,
            db: name_db,
            moved: false,
            done: &mut done,
        };
        let mut read: Vec<(&[u8], Found, Found)> = Vec::with_capacity(page.keys.len());
        if let Some(facts) = &page.facts {
            // Of a file: only the target is read.
            let (mut keys, mut ours) = (Vec::new(), Vec::new());
            for (key, fact) in page.keys.iter().zip(facts) {
                if check.compared(name_db, key) {
                    keys.push(key.as_slice());
                    ours.push(fact);
                }
            }
            let theirs = self.target.facts(name_db, &keys).await?;
            for ((key, a), b) in keys.iter().zip(ours).zip(theirs) {
                read.push((key, Found::Here(a.clone()), b));
            }
            if let Origin::File(file) = &check.origin {
                file.count(keys.len() as u64);
            }
            self.check.pace(keys.len()).await?;
        } else if let Some(source) = &mut self.source {
            let mut keys: Vec<&[u8]> = (page.keys.iter().map(Vec::as_slice))
                .filter(|k| check.compared(name_db, k))
                .collect();
            let strings = (self.strings)
                .pairs(source, page.db, &mut self.target, name_db, &keys)
                .await?;
            let mut strings = strings.into_iter();
            let before = keys.len();
            keys.retain(|key| match strings.next().flatten() {
                Some((a, b)) => {
                    read.push((key, a, b));
                    false
                }
                None => true,
            });
            check.pace(before - keys.len()).await?;
            for window in source.windows(page.db, &keys).await? {
                let facts = pairs(source, page.db, &mut self.target, name_db, &window).await?;
                let facts = window.keys.iter().zip(facts);
                read.extend(facts.map(|(key, (a, b))| (*key, a, b)));
                self.check.pace(window.keys.len()).await?;
            }
        }
        self.check
            .gauge
            .done
            .fetch_add(page.keys.len() as u64, Relaxed);
        // From here on nothing fails: a page counts once.
        tally.page(page.db, read);
        if tally.moved {
            check.look_again().await;
        }
        Ok(done)
    }

    /// The target's keys: those that the source lacks.
    async fn search(&mut self, page: &Page) -> Result<Done> {
        let mut done = Done {
            position: page.next.clone(),
            ..Done::default()
        };
        let check = self.check.clone();
        let keys: Vec<&[u8]> = (page.keys.iter().map(Vec::as_slice))
            .filter(|k| check.compared(page.db, k))
            .collect();
        let read = keys.len();
        let gone = match (&check.origin, &mut self.source) {
            (Origin::File(file), _) => file.lacks(page.db, keys),
            (_, Some(source)) => {
                let sources = check.job.databases.sources_of(page.db);
                let keys = sources.fold(keys, |keys, from| check.met.unmet(from, keys));
                source.lacks(&check.job, page.db, keys).await?
            }
            _ => Vec::new(),
        };
        let extra = gone.iter().filter(|k| !check.is_own(page.db, k));
        done.candidates = extra.map(|k| (page.db, k.to_vec())).collect();
        check.gauge.done.fetch_add(page.keys.len() as u64, Relaxed);
        check.pace(read).await?;
        Ok(done)
    }
}

/// Takes what was found of a page's keys.
struct Tally<'a> {
    check: &'a Check,
    /// The target's.
    db: DbIndex,
    /// A slot was seen on its way to another master.
    moved: bool,
    done: &'a mut Done,
}

impl Tally<'_> {
    /// Takes a page, without what SCAN has told before.
    fn page(&mut self, from: DbIndex, read: Vec<(&[u8], Found, Found)>) {
        let check = self.check;
        let known = match check.origin.server() {
            None => vec![false; read.len()],
            Some(_) => {
                let met = read.iter().map(|(key, a, b)| match (a, b) {
                    (Found::Here(a), Found::Here(_)) => accepted(check, a).then_some(*key),
                    _ => None,
                });
                check.met.meet(from, met)
            }
        };
        for ((key, a, b), _) in read.into_iter().zip(known).filter(|(_, known)| !known) {
            self.take(key, a, b);
        }
    }

    fn take(&mut self, key: &[u8], a: Found, b: Found) {
        let (check, db) = (self.check, self.db);
        self.moved |= a == Found::Elsewhere || b == Found::Elsewhere;
        match (&a, &b) {
            (Found::Here(a), _) if !accepted(check, a) => {}
            (Found::Here(a), Found::Here(b))
                if check.agree(a, b)
                    && matches!(&check.origin, Origin::File(file) if file.overrules((db, key.to_vec()), a)) =>
                {}
            (Found::Here(a), Found::Here(b)) if check.agree(a, b) => {
                // Within the tolerance an expiry counts as the source's.
                let mut sum = SlotSum::default();
                sum.add(db, key, &a.digest, a.expire);
                self.done.sums.push((Slot::of(key).number(), sum, sum));
                self.done.compared = self.done.compared.saturating_add(1);
            }
            (Found::Gone, Found::Gone) => {}
            _ => {
                if let (Origin::File(file), Found::Here(a)) = (&check.origin, &a) {
                    file.keep((db, key.to_vec()), a.clone());
                }
                self.done.candidates.push((db, key.to_vec()));
            }
        }
    }
}
