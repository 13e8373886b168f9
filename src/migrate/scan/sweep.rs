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
use crate::net::Tries;
use crate::plan::OnExisting;
use crate::source::keys::events::{self, Events};
use crate::source::keys::fact::Found;
use crate::source::keys::list::{Listing, Page, Position};
use crate::source::keys::reader::{Reader, pairs};
use crate::source::keys::side::Side;
use crate::store::SWEEPS;
use crate::task::Shutdown;
use crate::types::{DbIndex, Mark, ReplOffset, unix_ms};
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
/// How often a verification's wishes are looked for.
const REPAIR_EVERY: Duration = Duration::from_millis(500);

/// Keys of one database that only the target holds.
type Extra = (DbIndex, Vec<Vec<u8>>);

/// The driver of a scan, with what it reads from.
pub(super) struct Sweeper<'p> {
    pub(super) ctx: Rc<ShardContext>,
    pub(super) core: &'p mut ApplyLoop,
    pub(super) source: Reader,
    target: Reader,
    pub(super) events: Arc<Events>,
    /// How many changes had been told when all was drained.
    pub(super) told_then: u64,
    /// How many masters are to be listened to; 0 without notifications.
    listeners: usize,
    /// The source is known to send every change.
    trusted: bool,
    sweeps: u64,
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
    /// A cutover wants a sweep that began after this and finds nothing: its number, since when, whether it was done.
    pub(super) drain: Option<(u64, Instant, bool)>,
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
        let events = Arc::new(Events::within(job.limits.told()));
        let on = runtime.block_on(events::are_on(&source))?;
        let mut listeners = 0;
        // Where the server does not tell, listening costs nothing; but only what is known to be told is relied upon.
        if on != Some(false) {
            for master in &source.layout().masters {
                listeners += 1;
                runtime.spawn(events::listen(
                    source.clone(),
                    master.address.clone(),
                    events.clone(),
                    stop.clone(),
                ));
            }
        }
        ctx.shared.event(
            "info",
            "scan",
            match on {
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
            events,
            told_then: 0,
            listeners,
            trusted: on == Some(true),
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
            self.write_changed()?;
        }
        self.settle()?;
        self.core.save(true)?;
        Ok(Ended::Stopped)
    }

    fn copy_and_follow(&mut self) -> Result<()> {
        self.wait_for_listeners();
        if !self.core.marks().shard().snapshot_loaded {
            self.ctx.progress.set_phase("snapshot");
            self.copy()?;
            self.core.marks().loaded(ReplOffset(0), DbIndex::ZERO);
            self.core.save(false)?;
        }
        if self.ctx.dry_run() {
            self.core.finish_stats()?;
            self.ctx.progress.caught_up.store(true, Relaxed);
            return Ok(());
        }
        self.ctx.progress.set_phase("stream");
        // What was written before anybody listened, or while nobody did.
        let (mut due, mut quiet_since, mut told) = (Instant::now(), Instant::now(), 0);
        let (mut alike, mut last) = (false, Instant::now());
        loop {
            self.go_on()?;
            if self.obey(&mut due) {
                std::thread::sleep(ATTENDED_POLL);
                continue;
            }
            let lost = self.core.marks().note_loss()?;
            if self.events.take_gap() || lost || self.unproven {
                due = Instant::now();
            }
            if self.events.told() != told {
                (told, quiet_since, alike) = (self.events.told(), Instant::now(), false);
            }
            // Some changes are told to nobody: when the source falls silent, they are looked for.
            let silent = self.hears_all() && !alike && quiet_since.elapsed() > SILENCE;
            if Instant::now() >= due || silent {
                let began = Instant::now();
                let before = self.events.told();
                let found = self.sweep()?;
                self.sweeps += 1;
                alike = found == 0 && !self.unproven && self.events.told() == before;
                self.tell(found, alike, began)?;
                self.finish_drain(alike, began);
                due = Instant::now()
                    + match (self.hears_all(), found) {
                        _ if self.drain.is_some_and(|(_, _, done)| !done) => Duration::ZERO,
                        (true, _) => SWEEP_EVERY.max(began.elapsed() * 4),
                        (false, 0) => REST,
                        (false, _) => Duration::ZERO,
                    };
                last = began;
            }
            let written = self.write_changed()? + self.repair()?;
            // Everything up to the beginning of the last sweep is over there; what came later is known to be nothing only
            // where it would have been told.
            let lag = (!(alike && self.hears_all())).then_some(last);
            self.core.set_sweep_lag(lag);
            self.ctx.progress.caught_up.store(alike, Relaxed);
            self.core.tick_scan()?;
            if written == 0 {
                self.settle()?;
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Without a listener, what is written during the copy would only be found by the sweep after it.
    fn wait_for_listeners(&self) {
        let began = Instant::now();
        while self.events.listening() < self.listeners && began.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.events.take_gap();
    }

    /// Whether every change is told.
    fn hears_all(&self) -> bool {
        self.trusted && self.events.listening() == self.listeners
    }

    pub(super) fn go_on(&self) -> Result<()> {
        match self.ctx.shared.stop.requested() {
            false => Ok(()),
            true => Err(Error::stopped("the scan was stopped")),
        }
    }

    fn tell(&mut self, found: u64, alike: bool, began: Instant) -> Result<()> {
        let took = began.elapsed().as_millis() as i64;
        let guarantee = match (alike, self.hears_all()) {
            (true, _) => "both sides were alike at the beginning of the last sweep",
            (false, true) => {
                "what was written before the last sweep is at the target; what came after is told, but for the state of stream groups"
            }
            (false, false) => "what was written before the last sweep is at the target",
        };
        let text = serde_json::json!({
            "sweeps": self.sweeps, "found": found, "took_ms": took, "began_at": unix_ms() - took,
            "notifications": self.hears_all(), "guarantee": guarantee,
        });
        tracing::info!("a sweep found {found} keys to write, in {took} ms");
        self.ctx.shared.store(|s| s.put_json(SWEEPS, &text))
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

    /// Compares both sides once and writes what differs; returns how many keys.
    fn sweep(&mut self) -> Result<u64> {
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
            found += self.again(|me| me.sweep_page(&page))?;
            self.write_changed()?;
            self.core.tick_scan()?;
        }
        self.end(task)?;
        self.settle()?;
        found += self.sweep_extra()?;
        self.settle()?;
        (self.accept_loss, self.guarded) = (false, true);
        Ok(found)
    }

    /// Removes what only the target holds; returns how many keys.
    fn sweep_extra(&mut self) -> Result<u64> {
        let mut found = 0;
        let (many, extra) = self.find_extra()?;
        if !many {
            for (db, keys) in extra {
                found += self.again(|me| me.remove_extra(db, &keys))?;
            }
            return Ok(found);
        }
        let (mut pages, task) = self.pages(&self.target.side.clone(), None);
        while let Some(page) = pages.blocking_recv() {
            self.go_on()?;
            found += self.again(|me| me.remove_extra(page.db, &page.keys))?;
            self.write_changed()?;
            self.core.tick_scan()?;
        }
        self.end(task)?;
        Ok(found)
    }

    /// Counts what only the target holds, and names it unless it is many; stops the run when it is too much to be true.
    fn find_extra(&mut self) -> Result<(bool, Vec<Extra>)> {
        let (mut extra, mut lost, mut of) = (Vec::new(), 0, 0);
        let (mut pages, task) = self.pages(&self.target.side.clone(), None);
        while let Some(page) = pages.blocking_recv() {
            self.go_on()?;
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
        Ok((lost >= FEW, extra))
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
                if !self.agree(&a, &b) {
                    apart.push(key);
                }
            }
        }
        self.write(page.db, &apart)?;
        self.core.marks().count_healed(apart.len() as u64);
        Ok(apart.len() as u64)
    }

    fn agree(&self, a: &Found, b: &Found) -> bool {
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
        self.events.put(named);
    }
}

/// What a cutover asks for.
impl Sweeper<'_> {
    /// Does what a cutover asks for; true while nothing may be written.
    fn obey(&mut self, due: &mut Instant) -> bool {
        let control = &self.ctx.shared.control;
        match control.order() {
            Order::Follow => self.drain = None,
            Order::Drain(number) if self.drain.is_none_or(|(n, _, _)| n != number) => {
                self.drain = Some((number, Instant::now(), false));
                self.told_then = self.events.told();
                *due = Instant::now();
            }
            Order::Drain(_) => {}
            Order::Fence(number) => {
                let late = self.events.told() - self.told_then;
                control.fenced(self.ctx.id.0, number, late, &[]);
                return true;
            }
        }
        false
    }

    /// A sweep has ended: whether it is the one that a cutover waits for.
    fn finish_drain(&mut self, alike: bool, began: Instant) {
        if let Some((_, since, done @ false)) = &mut self.drain
            && alike
            && began >= *since
        {
            *done = true;
            self.told_then = self.events.told();
            self.ctx.shared.control.drained(self.ctx.id.0);
        }
    }
}

/// There is no stream: all marks are one.
pub(super) const MARK: Mark = Mark::Stream {
    at: ReplOffset(0),
    db: DbIndex::ZERO,
};
