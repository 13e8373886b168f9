//! Mode "scan", for sources that refuse to be replicated: a copy by SCAN and DUMP, then sweeps until nothing differs.
//!
//! Keyspace notifications, where the source sends them, say which keys have changed; what they may have missed, and
//! everything where there are none, is found by comparing digests of both sides, again and again.
//! Invariant: one thread writes, each time what it has just read, so an older state never follows a newer one.

use crate::digest::Unreplicated;
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::apply::apply_loop::{ApplyLoop, Ended};
use crate::migrate::context::ShardContext;
use crate::migrate::control::drain::ATTENDED_POLL;
use crate::migrate::control::orders::Order;
use crate::migrate::load::loss_guard::{self, FEW};
use crate::migrate::scan::told::{Caught, Changes};
use crate::net::Tries;
use crate::plan::{Indexes, OnExisting};
use crate::source::keys::depth;
use crate::source::keys::fact::Found;
use crate::source::keys::hearing::Hearing;
use crate::source::keys::list::{Listing, Page, Position};
use crate::source::keys::reader::{Reader, pairs};
use crate::source::keys::side::Side;
use crate::store::SWEEPS;
use crate::task::Shutdown;
use crate::types::{DbIndex, Mark, ReplOffset};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Keys read again at a time: changed ones, and those that a verification has asked for.
pub(super) const CHUNK: usize = 500;
/// The pause after a sweep that found nothing.
const REST: Duration = Duration::from_millis(500);
/// With notifications, a sweep now and then finds what none tells.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Without a notification for this long, the source is taken for silent.
const SILENCE: Duration = Duration::from_secs(1);
/// How often the source is asked whether every change was told, also while a cutover, which compares, is at work.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const ATTENDED_LOOK: Duration = Duration::from_millis(100);
/// How often the source's search indexes are looked at, which no notification tells of.
const INDEXES_EVERY: Duration = Duration::from_secs(5);
/// How often a verification's wishes are looked for.
const REPAIR_EVERY: Duration = Duration::from_millis(500);

/// Keys of one database that only the target holds.
type Extra = (DbIndex, Vec<Vec<u8>>);

/// The driver of a scan, with what it reads from.
pub(super) struct Sweeper<'p> {
    pub(super) ctx: Rc<ShardContext>,
    pub(super) core: &'p mut ApplyLoop,
    pub(super) source: Reader,
    pub(super) target: Reader,
    pub(super) hearing: Hearing,
    /// What was written since a moment from which on every change was told.
    pub(super) changes: Changes,
    pub(super) sweeps: u64,
    /// Bytes that the throttle has taken.
    paced: u64,
    /// When repairs were looked for.
    repaired: Instant,
    /// Connections were lost since the target was last compared with the source as a whole: who answers now may have
    /// lost its data, so nothing is removed before that is counted.
    pub(super) unproven: bool,
    /// `--accept-loss` holds for the first sweep of a run.
    accept_loss: bool,
    /// What the target holds is what we have brought: with on_existing "reconcile" not before the first sweep.
    guarded: bool,
    /// What a cutover wants drained.
    pub(super) drain: Option<Drain>,
}

impl<'p> Sweeper<'p> {
    /// Looks at both sides and begins to listen.
    fn begin(core: &'p mut ApplyLoop, stop: &Shutdown) -> Result<Sweeper<'p>> {
        let ctx = core.context();
        let (runtime, job) = (ctx.shared.runtime.clone(), ctx.job());
        let Some(endpoint) = job.source.endpoint() else {
            return Err(Error::new(ErrorKind::Bug, "a scan without a server"));
        };
        let (source, target) = runtime.block_on(async {
            let source = Side::source(endpoint).await?;
            Ok::<_, Error>((source, Side::target(job).await?))
        })?;
        let (source, target) = (Arc::new(source), Arc::new(target));
        let told = job.limits.told();
        let hearing = Hearing::begin(source.clone(), told / 2, runtime, stop.clone())?;
        ctx.shared.event(
            "info",
            "scan",
            match hearing.is_on() {
                Some(false) => "the source sends no keyspace notifications: changes are found by comparing both sides again and again",
                None => "the source does not tell whether it sends keyspace notifications: what they tell is used, and both sides are compared again and again",
                Some(true) => "changes are told by the source's keyspace notifications; sweeps find what those may miss",
            },
        );
        let swept = ctx.shared.store(|s| s.json(SWEEPS))?.is_some();
        let guarded = job.on_existing != OnExisting::Reconcile || swept;
        Ok(Sweeper {
            source: Reader::new(source, Default::default()),
            target: Reader::new(target, Default::default()),
            core,
            hearing,
            changes: Changes::within(told / 4),
            sweeps: 0,
            paced: 0,
            repaired: Instant::now(),
            unproven: true,
            accept_loss: ctx.shared.run.accept_loss,
            guarded,
            drain: None,
            ctx,
        })
    }
}

/// What a cutover wants: all over there that was written until then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drain {
    pub number: u64,
    pub since: Instant,
    /// How many sweeps had ended then.
    pub sweeps: u64,
    pub done: bool,
}

/// Copies, then keeps both sides alike until a stop.
pub(crate) fn run(core: &mut ApplyLoop) -> Result<Ended> {
    let stop = Shutdown::default();
    let ended = Sweeper::begin(core, &stop)?.run();
    stop.request();
    ended
}

impl Sweeper<'_> {
    fn run(&mut self) -> Result<Ended> {
        let ended = self.copy_and_follow();
        match ended {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
            Ok(()) => {}
        }
        if !matches!(self.ctx.shared.control.order(), Order::Fence(_)) {
            self.write_told(CHUNK)?;
        }
        self.settle()?;
        self.core.save(true)?;
        Ok(Ended::Stopped)
    }

    fn copy_and_follow(&mut self) -> Result<()> {
        self.wait_for_listeners();
        if !self.core.marks().shard().snapshot_loaded {
            self.ctx.progress.set_phase("snapshot");
            if self.ctx.job().indexes == Indexes::CreateBeforeLoad {
                self.core.bring_indexes(true)?;
            }
            self.copy()?;
            self.core.marks().loaded(ReplOffset(0), DbIndex::ZERO);
            self.core.save(false)?;
        }
        if self.ctx.dry_run() {
            self.core.finish_stats()?;
            self.ctx.progress.caught_up.store(true, Relaxed);
            return Ok(());
        }
        self.core.bring_indexes(true)?;
        let mut indexes = Instant::now();
        self.ctx.progress.set_phase("stream");
        // What was written before anybody listened, or while nobody did.
        let (mut due, mut quiet_since, mut looked) =
            (Instant::now(), Instant::now(), Instant::now());
        let (mut told, mut compared, mut gaps) = (0, u64::MAX, self.hearing.events.gaps());
        let (mut alike, mut last, mut rested) = (false, Instant::now(), Instant::now());
        loop {
            self.go_on()?;
            if self.obey()? {
                std::thread::sleep(ATTENDED_POLL);
                continue;
            }
            if indexes.elapsed() > INDEXES_EVERY {
                self.core.bring_indexes(true)?;
                indexes = Instant::now();
            }
            let lost = self.core.marks().note_loss()?;
            if lost {
                self.doubt("the target has lost a master");
            }
            let missed = std::mem::replace(&mut gaps, self.hearing.events.gaps()) != gaps;
            if missed || lost || self.unproven {
                due = Instant::now();
            }
            if self.hearing.events.told() != told {
                (told, quiet_since, alike) = (self.hearing.events.told(), Instant::now(), false);
            }
            let draining = self.drain.is_some_and(|d| !d.done);
            // Some changes are told to nobody: when the source falls silent, they are looked for.
            let silent = self.hears_all()
                && !alike
                && quiet_since.elapsed() > SILENCE
                && Instant::now() >= rested;
            let look_every = match self.ctx.shared.control.attended() {
                true => ATTENDED_LOOK,
                false => LOOK_EVERY,
            };
            if draining || silent || looked.elapsed() > look_every {
                looked = Instant::now();
                let (before, compare) = (self.hearing.events.told(), draining || silent);
                let caught = self.catch_up(compare)?;
                // Consumers that only ask are no reason to read their streams all the time.
                if compare && std::mem::replace(&mut compared, before) == before {
                    rested = Instant::now() + looked.elapsed() * 10;
                }
                match caught {
                    Caught::All => {
                        last = looked;
                        alike |= compare && self.hearing.events.told() == before;
                        self.drained_by_changes(looked);
                        self.tell_of_changes(looked, alike)?;
                    }
                    // A sweep is what can tell.
                    Caught::Unknown => {
                        self.tell_of_doubt()?;
                        if compare {
                            due = Instant::now();
                        }
                    }
                    Caught::Some => alike = false,
                }
            }
            // While a cutover is at work, nothing is swept that is known to be told.
            let postponed = self.ctx.shared.control.attended() && self.changes.stand();
            if Instant::now() >= due && !postponed {
                let began = Instant::now();
                let before = self.hearing.events.told();
                if let Some(found) = self.sweep()? {
                    self.sweeps += 1;
                    alike = found == 0 && !self.unproven && self.hearing.events.told() == before;
                    self.drained_by_sweep(alike, began);
                    self.tell(found, alike, began)?;
                    due = Instant::now()
                        + match (self.hears_all(), found) {
                            _ if self.drain.is_some_and(|d| !d.done) => Duration::ZERO,
                            (true, _) => SWEEP_EVERY.max(began.elapsed() * 4),
                            (false, 0) => REST,
                            (false, _) => Duration::ZERO,
                        };
                    last = began;
                }
            }
            let written = self.write_told(CHUNK)? + self.repair()?;
            // Everything up to the beginning of the last sweep is over there; what came later is known to be nothing only
            // where it would have been told.
            let lag = (!(alike && self.hears_all())).then_some(last);
            self.core.set_sweep_lag(lag);
            self.ctx.progress.caught_up.store(alike, Relaxed);
            self.core.tick_scan()?;
            if written == 0 {
                self.settle()?;
                std::thread::sleep(match self.ctx.shared.control.attended() {
                    true => ATTENDED_POLL,
                    false => Duration::from_millis(20),
                });
            }
        }
    }

    /// Without a listener, what is written during the copy would only be found by the sweep after it.
    fn wait_for_listeners(&self) {
        let began = Instant::now();
        while !self.hearing.listens()
            && self.hearing.listeners() > 0
            && began.elapsed() < Duration::from_secs(5)
        {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether every change is told.
    pub(super) fn hears_all(&self) -> bool {
        let trusted = self.hearing.is_on() == Some(true) || self.changes.stand();
        trusted && self.hearing.listens()
    }

    pub(super) fn go_on(&self) -> Result<()> {
        match self.ctx.shared.stop.requested() {
            false => Ok(()),
            true => Err(Error::stopped("the scan was stopped")),
        }
    }

    /// The pages of one side, from a position on.
    pub(super) fn pages(
        &self,
        side: &Arc<Side>,
        from: Option<Position>,
    ) -> (mpsc::Receiver<Page>, tokio::task::JoinHandle<Result<()>>) {
        let (send, pages) = mpsc::channel(2);
        let listing = Listing {
            side: side.clone(),
            from,
            slots: None,
            dbs: side.role.databases(&self.ctx.shared.job.databases),
            stop: self.ctx.shared.stop.clone(),
            patience: self.ctx.shared.run.patience,
            distinct: Some(self.ctx.shared.job.limits.key_set()),
            depth: depth::listed(side.round_trip(), &self.ctx.shared.job.limits),
        };
        let task = self.ctx.shared.runtime.spawn(listing.run(send));
        (pages, task)
    }

    pub(super) fn end(&self, task: tokio::task::JoinHandle<Result<()>>) -> Result<()> {
        let ended = self.ctx.shared.runtime.block_on(task);
        ended.map_err(|e| Error::new(ErrorKind::Bug, "the listing panicked").cause(e))?
    }

    /// Writes keys that a verification has asked for; returns how many.
    fn repair(&mut self) -> Result<usize> {
        if self.repaired.elapsed() < REPAIR_EVERY {
            return Ok(0);
        }
        self.repaired = Instant::now();
        let asked = self.ctx.shared.store(|s| s.repairs(CHUNK as u32))?;
        for (db, key) in &asked {
            self.again(|me| {
                let job = me.ctx.shared.job.clone();
                let runtime = me.ctx.shared.runtime.clone();
                let from = runtime.block_on(me.source.source_of(&job, *db, key))?;
                me.write(from, &[key])
            })?;
        }
        if !asked.is_empty() {
            self.settle()?;
            self.ctx.shared.store(|s| s.repaired(&asked))?;
        }
        Ok(asked.len())
    }

    /// Compares both sides once and writes what differs; returns how many keys, or `None` when a cutover is served sooner
    /// without it.
    fn sweep(&mut self) -> Result<Option<u64>> {
        let begun = self.begin_sweep();
        let Some(found) = self.compare_all()? else {
            self.changes.abandon(begun);
            return Ok(None);
        };
        self.end_sweep(begun);
        Ok(Some(found))
    }

    fn compare_all(&mut self) -> Result<Option<u64>> {
        self.settle()?;
        self.again(|me| {
            let runtime = me.ctx.shared.runtime.clone();
            runtime.block_on(me.source.side.meet_replicas())
        })?;
        let mut found = self.core.sync_functions()?;
        if std::mem::take(&mut self.unproven) && self.guarded {
            // Before anything is added: later a share of the whole would say less.
            self.find_extra()?;
        }
        let (mut pages, task) = self.pages(&self.source.side.clone(), None);
        while let Some(page) = pages.blocking_recv() {
            self.go_on()?;
            if self.is_needless() {
                return Ok(None);
            }
            found += self.again(|me| me.sweep_page(&page))?;
            self.write_told(CHUNK)?;
            self.core.tick_scan()?;
        }
        self.end(task)?;
        self.settle()?;
        let Some(extra) = self.sweep_extra()? else {
            return Ok(None);
        };
        found += extra;
        self.settle()?;
        (self.accept_loss, self.guarded) = (false, true);
        Ok(Some(found))
    }

    /// Removes what only the target holds; returns how many keys, or `None` when a cutover is served sooner without it.
    fn sweep_extra(&mut self) -> Result<Option<u64>> {
        let mut found = 0;
        let Some((many, extra)) = self.find_extra()? else {
            return Ok(None);
        };
        if !many {
            for (db, keys) in extra {
                found += self.again(|me| me.remove_extra(db, &keys))?;
            }
            return Ok(Some(found));
        }
        let (mut pages, task) = self.pages(&self.target.side.clone(), None);
        while let Some(page) = pages.blocking_recv() {
            self.go_on()?;
            found += self.again(|me| me.remove_extra(page.db, &page.keys))?;
            self.write_told(CHUNK)?;
            self.core.tick_scan()?;
        }
        self.end(task)?;
        Ok(Some(found))
    }

    /// Counts what only the target holds, and names it unless it is many; stops the run when it is too much to be true.
    /// `None` when a cutover is served sooner without it.
    fn find_extra(&mut self) -> Result<Option<(bool, Vec<Extra>)>> {
        let (mut extra, mut lost, mut of) = (Vec::new(), 0, 0);
        let (mut pages, task) = self.pages(&self.target.side.clone(), None);
        while let Some(page) = pages.blocking_recv() {
            self.go_on()?;
            if self.is_needless() {
                return Ok(None);
            }
            let (ours, gone) = self.again(|me| me.extra(page.db, &page.keys))?;
            lost += gone.len() as u64;
            of += ours;
            if lost < FEW && !gone.is_empty() {
                extra.push((page.db, gone));
            }
            self.core.tick_scan()?;
        }
        self.end(task)?;
        let percent = self.ctx.shared.job.max_loss_percent;
        let guarded = self.guarded && !self.accept_loss;
        if guarded && loss_guard::is_loss(lost, of, percent) {
            return Err(loss_guard::refused(&format!(
                "the source {} has lost data or is another one: of {of} keys that the target got from it, it does not hold {lost} any more",
                self.source.side.endpoint.redacted_url(),
            )));
        }
        Ok(Some((lost >= FEW, extra)))
    }

    fn sweep_page(&mut self, page: &Page) -> Result<u64> {
        let Some(to) = self.ctx.shared.job.databases.map(page.db) else {
            return Ok(0);
        };
        let runtime = self.ctx.shared.runtime.clone();
        let keys = self.wanted(page.db, &page.keys)?;
        let mut apart: Vec<&[u8]> = Vec::new();
        for window in runtime.block_on(self.source.windows(page.db, &keys))? {
            self.pace(window.keys.len())?;
            let read = pairs(&mut self.source, page.db, &mut self.target, to, &window);
            for (key, (a, b)) in window.keys.iter().zip(runtime.block_on(read)?) {
                self.changes.meet(page.db, key, &a);
                if !self.agree(&a, &b) {
                    apart.push(key);
                }
            }
        }
        self.write(page.db, &apart)?;
        self.core.marks().count_healed(apart.len() as u64);
        (self.ctx.progress.writes).fetch_add(apart.len() as u64, Relaxed);
        Ok(apart.len() as u64)
    }

    pub(super) fn agree(&self, a: &Found, b: &Found) -> bool {
        let job = &self.ctx.shared.job;
        // PTTL and a clock tell an expiry some milliseconds off.
        let exact = self.source.side.pexpiretime && self.target.side.pexpiretime;
        let tolerance = if exact { 0 } else { 100 };
        match (a, b) {
            (Found::Here(a), _)
                if !job
                    .filter
                    .accepts_value(a.digest.kind.name(), a.expire.is_some()) =>
            {
                true
            }
            (Found::Here(a), Found::Here(b)) => a
                .difference(b, tolerance, Unreplicated::default())
                .is_none(),
            (Found::Gone, Found::Gone) => true,
            _ => false,
        }
    }

    /// Of some keys of the target, how many are ours, and which of those the source does not have (any more).
    fn extra(&mut self, db: DbIndex, keys: &[Vec<u8>]) -> Result<(u64, Vec<Vec<u8>>)> {
        let runtime = self.ctx.shared.runtime.clone();
        let job = self.ctx.shared.job.clone();
        let keys: Vec<&[u8]> = (keys.iter().map(Vec::as_slice))
            .filter(|k| job.filter.accepts(k) && !self.is_own(db, k))
            .collect();
        self.pace(keys.len())?;
        let ours = keys.len() as u64;
        let gone = runtime.block_on(self.source.lacks(&job, db, keys))?;
        Ok((ours, gone.into_iter().map(<[u8]>::to_vec).collect()))
    }

    /// Removes those of some keys that the source does not have.
    fn remove_extra(&mut self, db: DbIndex, keys: &[Vec<u8>]) -> Result<u64> {
        let (_, gone) = self.extra(db, keys)?;
        if self.unproven {
            // Another may have answered than the one that was counted: the next sweep counts again.
            return Ok(0);
        }
        let ctx = self.ctx.clone();
        for name in gone
            .iter()
            .filter_map(|key| ctx.job().renames.to_target(key))
        {
            if let Some(pass) = self.core.door().admit_removal(db, &name)? {
                self.core.writer().remove(pass, &name, MARK)?;
            }
        }
        self.resolve()?;
        Ok(gone.len() as u64)
    }

    pub(super) fn pace(&mut self, keys: usize) -> Result<()> {
        let bytes = self.source.side.bytes.load(Relaxed) + self.target.side.bytes.load(Relaxed);
        let more = bytes.saturating_sub(std::mem::replace(&mut self.paced, bytes));
        let mut wait = self.ctx.shared.pace.throttle.take(keys as u64, more);
        while !wait.is_zero() {
            self.go_on()?;
            std::thread::sleep(wait.min(Duration::from_millis(100)));
            self.core.tick_scan()?;
            wait = self.ctx.shared.pace.throttle.due();
        }
        Ok(())
    }

    /// Tries again what fails for a reason that may pass.
    pub(super) fn again<T>(&mut self, mut work: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        let mut tries = Tries::new(self.ctx.shared.run.patience);
        loop {
            let e = match work(self) {
                Ok(done) => return Ok(done),
                Err(e) => e,
            };
            let runtime = self.ctx.shared.runtime.clone();
            runtime.block_on(tries.again(e, "reading keys", &self.ctx.shared.stop))?;
            self.unproven = true;
            self.source.reset();
            self.target.reset();
            let _ = runtime.block_on(self.source.side.refresh());
            let _ = runtime.block_on(self.target.side.refresh());
        }
    }

    /// What the target could not take is read and written again.
    pub(super) fn resolve(&mut self) -> Result<()> {
        while self.core.writer().troubled() {
            self.core.resolve()?;
            self.put_back();
        }
        Ok(())
    }

    /// Waits until everything sent is answered.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.core.settle()?;
        self.put_back();
        Ok(())
    }

    /// Has keys read again that could not be written.
    fn put_back(&mut self) {
        let keys = self.core.hand_out();
        let named = (keys.into_iter()).map(|(db, k)| (db, self.ctx.source_name(&k).into_owned()));
        self.hearing.events.put(named);
    }
}

/// There is no stream: all marks are one.
pub(super) const MARK: Mark = Mark::Stream {
    at: ReplOffset(0),
    db: DbIndex::ZERO,
};
