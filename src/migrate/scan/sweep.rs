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
use crate::migrate::scan::pool::Pool;
use crate::migrate::scan::told::{Caught, Changes};
use crate::net::Tries;
use crate::plan::{Indexes, OnExisting};
use crate::source::keys::depth;
use crate::source::keys::events::Name;
use crate::source::keys::fact::Found;
use crate::source::keys::hearing::Hearing;
use crate::source::keys::list::{Listing, Page, Position};
use crate::source::keys::reader::Reader;
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

/// The driver of a scan, with what it reads from.
pub(super) struct Sweeper<'p> {
    pub(super) ctx: Rc<ShardContext>,
    pub(super) core: &'p mut ApplyLoop,
    pub(super) source: Reader,
    pub(super) target: Reader,
    pub(super) ahead: Pool,
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
    pub(super) accept_loss: bool,
    /// What the target holds is what we have brought: with on_existing "reconcile" not before the first sweep.
    pub(super) guarded: bool,
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
            let (source, target) = tokio::try_join!(Side::source(endpoint), Side::target(job))?;
            tokio::try_join!(source.measure(), target.measure())?;
            Ok::<_, Error>((Arc::new(source), Arc::new(target)))
        })?;
        let ahead = Pool::new(&source, &target, &job.limits);
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
            ahead,
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
            self.write_told(self.at_once())?;
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
            let written = self.write_told(self.at_once())? + self.repair()?;
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
        let (send, pages) = mpsc::channel(self.ahead.depth());
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
        let mut names: Vec<Name> = Vec::with_capacity(asked.len());
        for (db, key) in &asked {
            let from = self.again(|me| {
                let job = me.ctx.shared.job.clone();
                let runtime = me.ctx.shared.runtime.clone();
                runtime.block_on(me.source.source_of(&job, *db, key))
            })?;
            names.push((from, key.clone()));
        }
        self.write_names(&names)?;
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
        let mut apart: Vec<Name> = Vec::new();
        let whole = self.walk(
            &self.source.side.clone(),
            None,
            |me, page| me.read_compared(page.db, &page.keys),
            |me, page, read| {
                if me.is_needless() {
                    return Ok(false);
                }
                let compared = match read {
                    Ok(compared) => compared,
                    Err(e) => {
                        me.failed_ahead(e)?;
                        me.again(|me| me.compare(page.db, &page.keys))?
                    }
                };
                for (key, a, b) in compared {
                    me.changes.meet(page.db, &key, &a);
                    if !me.agree(&a, &b) {
                        apart.push((page.db, key));
                    }
                }
                if apart.len() >= me.at_once() {
                    found += me.write_apart(std::mem::take(&mut apart))?;
                }
                me.write_told(me.at_once())?;
                Ok(true)
            },
        )?;
        if !whole {
            return Ok(None);
        }
        found += self.write_apart(apart)?;
        self.settle()?;
        let Some(extra) = self.sweep_extra()? else {
            return Ok(None);
        };
        found += extra;
        self.settle()?;
        (self.accept_loss, self.guarded) = (false, true);
        Ok(Some(found))
    }

    /// Reads keys again that differ, and writes them; returns how many.
    fn write_apart(&mut self, apart: Vec<Name>) -> Result<u64> {
        let found = apart.len() as u64;
        self.write_names(&apart)?;
        self.core.marks().count_healed(found);
        (self.ctx.progress.writes).fetch_add(found, Relaxed);
        Ok(found)
    }

    /// How many keys are read again at a time.
    pub(super) fn at_once(&self) -> usize {
        CHUNK.saturating_mul(self.ahead.depth())
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
            self.ahead.reset();
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
