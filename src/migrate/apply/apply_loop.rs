//! The loop of one source shard: load the snapshot, follow the stream, and what has to be done now and then beside.
//!
//! A thread of its own, because decoding is work and the spool is files; the target's sockets are tasks. Read first:
//! [`ApplyLoop::run`], then `load` and `follow`. It alone calls across the parts; no part calls back.

use crate::error::{ErrorKind, Result};
use crate::fence::KeyState;
use crate::migrate::apply::applier::{Applier, Parts};
use crate::migrate::checkpoint::checkpoints::Checkpoints;
use crate::migrate::context::ShardContext;
use crate::migrate::control::drain::{ATTENDED_POLL, Drain, Standing};
use crate::migrate::control::orders::Order;
use crate::migrate::expiry::guard::{ExpiryGuard, Lag, Pressure};
use crate::migrate::heal::fenced_reader::{FencedReader, ReadStates};
use crate::migrate::heal::queue::Key;
use crate::migrate::heal::state::Written;
use crate::migrate::load::dry_run_stats::DryRunStats;
use crate::migrate::load::loaded_keys::LoadedKeys;
use crate::migrate::load::reconcile::Older;
use crate::migrate::load::{aof_restart, loss_guard};
use crate::migrate::stream::long_command::{self, READ_BYTES};
use crate::migrate::stream::position::StreamPosition;
use crate::migrate::write::door::Door;
use crate::migrate::write::target_writer::TargetWriter;
use crate::plan::Indexes;
use crate::rdb::payload;
use crate::source::place::Place;
use crate::source::spool::{End, StreamTail};
use crate::store::ShardState;
use crate::target::{KnownDatabases, Pipe};
use crate::task::event_loop::EventLoop;
use crate::task::failpoint;
use crate::types::{DbIndex, Mark, ReplOffset, unix_ms};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// How often it looks at more than the stream.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// The same while the run is to end as soon as the stream is caught up.
const TICK_BEHIND: Duration = Duration::from_millis(10);

/// Why a shard's loop ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// A stop was asked for; state is saved.
    Stopped,
    /// The snapshot file was all there was (mode rdb).
    Finished,
    /// The source began a new full sync.
    Superseded,
}

/// What a loop begins with, beside its context.
pub(crate) struct Beginning {
    pub shard: ShardState,
    pub events: EventLoop,
    pub pipe: Pipe,
    pub databases: KnownDatabases,
    pub format: payload::Target,
    /// The source master; `None` for a snapshot file.
    pub place: Option<Arc<Place>>,
    /// Up to here, commands may have reached the target before a crash.
    pub window_end: ReplOffset,
    pub loaded: LoadedKeys,
}

/// One source shard on its way to the target.
pub(crate) struct ApplyLoop {
    pub(super) ctx: Rc<ShardContext>,
    pub(super) applier: Applier<Pipe, FencedReader>,
    pub(super) loaded: LoadedKeys,
    events: EventLoop,
    pub(super) stats: DryRunStats,
    /// A cutover wants everything applied.
    pub(super) drain: Option<Drain>,
    pub(super) standing: Standing,
    /// A verification has asked for keys to be written again.
    pub(super) repairs_pending: bool,
    /// Mode "scan": since when nothing has proven both sides alike.
    sweep_lag: Option<Instant>,
    last_tick: Instant,
}

impl ApplyLoop {
    pub fn new(ctx: Rc<ShardContext>, begin: Beginning, expiry: ExpiryGuard) -> ApplyLoop {
        let shard = begin.shard;
        let at = shard.applied.unwrap_or(ReplOffset(0));
        let parts = Parts {
            position: StreamPosition::new(at, shard.applied_db, begin.window_end),
            marks: Checkpoints::new(ctx.clone(), shard),
            expiry,
            door: Door::new(ctx.clone(), begin.databases),
            writer: TargetWriter::new(ctx.clone(), begin.pipe, begin.format),
            reader: FencedReader::new(ctx.clone(), begin.place),
        };
        ApplyLoop {
            applier: Applier::new(ctx.clone(), parts),
            ctx,
            loaded: begin.loaded,
            events: begin.events,
            stats: DryRunStats::default(),
            drain: None,
            standing: Standing::default(),
            repairs_pending: true,
            sweep_lag: None,
            last_tick: Instant::now(),
        }
    }

    /// Runs `drive` (the loop's own phases, or another driver's) to its end, and saves what is acknowledged, whatever
    /// went wrong.
    pub fn run(&mut self, drive: impl FnOnce(&mut Self) -> Result<Ended>) -> Result<Ended> {
        // What is saved has taken in all losses before this run.
        let begun = self.ctx.shared.loss_taken_in(self.ctx.id, 0);
        let mut result = begun.and_then(|()| drive(self));
        if matches!(&result, Err(e) if e.kind() == ErrorKind::Interrupted)
            && self.ctx.spool.ended() == Some(End::Superseded)
        {
            // What was waited for will not come: the new full sync has it.
            result = Ok(Ended::Superseded);
        }
        if matches!(&result, Err(e) if e.kind() != ErrorKind::Interrupted) {
            self.applier.abandon();
            let _ = self.save(false);
        }
        result
    }

    /// Loads what is not loaded and follows the stream, as often as the target makes it go back.
    pub fn run_phases(&mut self) -> Result<Ended> {
        if self.applier.marks.shard().reconcile && !self.applier.reader.asks() {
            let Applier {
                door,
                writer,
                loading,
                ..
            } = &mut self.applier;
            aof_restart::forget_streamed(&self.ctx, door, writer, loading.mark())?;
            self.applier.settle_all()?;
            self.applier.marks.reconciled();
        }
        loop {
            if let Some(ended) = self.run_once()? {
                return Ok(ended);
            }
        }
    }

    /// Loads what is not loaded and follows the stream; `None` after a rewind, to begin again.
    fn run_once(&mut self) -> Result<Option<Ended>> {
        self.sync_ownership()?;
        let asks = self.applier.reader.asks();
        let loads = !self.applier.marks.shard().snapshot_loaded;
        if loads {
            self.ctx.progress.set_phase("snapshot");
            self.count_before_load()?;
            if self.ctx.job().indexes == Indexes::CreateBeforeLoad {
                self.bring_indexes(false)?;
            }
            self.applier.loading.set_active(true);
            let ended = self.load();
            self.applier.loading.set_active(false);
            if let Some(ended) = ended? {
                return Ok(Some(ended));
            }
            if self.applier.marks.shard().reconcile {
                self.ctx.progress.set_phase("reconcile");
                self.reconcile(Older::NotLoaded)?;
                // Those that the source has deleted meanwhile are in no snapshot.
                self.applier.unreplicated.owe_functions(None);
                self.applier.marks.reconciled();
            }
            if self.applier.unreplicated.owes_functions() && asks {
                self.sync_functions()?;
            }
            loss_guard::settled(&self.ctx)?;
            failpoint("load-done");
            self.applier.marks.note_writes(false)?;
            let position = &self.applier.position;
            (self.applier.marks).loaded(position.at(), position.db());
            self.save(false)?;
            // Whether a verification has asked for keys: without it nothing is caught up.
            self.repair()?;
            self.loaded.done();
        }
        if !asks && self.ctx.spool.ended().is_none() {
            self.ctx.spool.drop_snapshot()?;
            self.finish_stats()?;
            return Ok(Some(Ended::Finished));
        }
        if !loads {
            self.look_for_repairs()?;
        }
        self.bring_indexes(loads)?;
        self.applier.marks.note_writes(true)?;
        // Before anybody can take the first lag that is seen for none.
        let age_ms = (self.ctx.spool).age_ms(self.applier.position.at(), unix_ms());
        self.ctx.progress.lag_ms.store(age_ms, Relaxed);
        self.ctx.progress.set_phase("stream");
        self.follow()
    }

    /// Bytes that a command or a transaction may have to be held; behind a fence, what is kept unrouted.
    pub(super) fn longest(&self) -> usize {
        self.ctx.whole_value().max(READ_BYTES)
    }

    fn read_stream(&mut self, tail: &mut StreamTail, buf: &mut Vec<u8>) -> Result<usize> {
        // Without a source to ask, a command can only be sent.
        let longest = self.applier.reader.asks().then(|| self.longest());
        long_command::read(&mut self.applier.position, tail, buf, longest)
    }

    /// Follows the stream until a stop; `None` after a rewind.
    fn follow(&mut self) -> Result<Option<Ended>> {
        let ctx = self.ctx.clone();
        let mut tail = StreamTail::new(ctx.spool.clone(), self.applier.position.at());
        let mut buf: Vec<u8> = Vec::with_capacity(READ_BYTES);
        let (mut args, mut used) = (Vec::new(), 0);
        self.applier.position.reread();
        loop {
            if self.applier.writer.troubled() {
                self.applier.resolve()?;
            }
            self.finish_flush()?;
            // Before anything of it is routed; behind a fence nothing is, and the clients may be at the target already.
            if !matches!(ctx.shared.control.order(), Order::Fence(_)) {
                self.meet_history()?;
            }
            if self.obey(&buf, tail.at())? {
                // Told to hold still: what comes is only counted, what was routed before is brought to its end.
                self.applier.heal_all()?;
                self.applier.writer.flush();
                if ctx.shared.stop.requested() || ctx.spool.ended().is_some() {
                    break;
                }
                if buf.len() < self.longest() {
                    self.await_stream(tail.at(), ATTENDED_POLL);
                    self.read_stream(&mut tail, &mut buf)?;
                } else {
                    std::thread::sleep(ATTENDED_POLL);
                }
                continue;
            }
            let longest = self.longest();
            while let Some(taken) = {
                let rest = buf.get(used..).unwrap_or_default();
                self.applier.take(rest, &mut args, longest)?
            } {
                used += taken;
                if self.applier.writer.troubled() {
                    self.applier.resolve()?;
                }
                self.finish_flush()?;
                self.tick()?;
                if ctx.shared.stop.requested() {
                    break;
                }
            }
            buf.drain(..used);
            used = 0;
            let ended = ctx.spool.ended();
            let finished = ended == Some(End::Finished);
            if ctx.shared.stop.requested() || (ended.is_some() && !finished) {
                break;
            }
            // What has been routed must not wait for more to come.
            if self.read_stream(&mut tail, &mut buf)? == 0 {
                if finished {
                    break;
                }
                self.applier.heal_all()?;
                self.applier.writer.flush();
                let patience = match ctx.shared.control.attended() {
                    true => ATTENDED_POLL,
                    false => self.tick_every(),
                };
                self.await_stream(tail.at(), patience);
                self.read_stream(&mut tail, &mut buf)?;
            }
            self.tick()?;
            self.sync_ownership()?;
            self.adopt_slots()?;
            if self.applier.marks.has_lost() {
                self.rewind()?;
                return Ok(None);
            }
        }
        self.end_stream().map(Some)
    }

    /// The stream ends: what is left to do is done, and everything is saved.
    fn end_stream(&mut self) -> Result<Ended> {
        let ctx = self.ctx.clone();
        if let Order::Fence(_) = ctx.shared.control.order() {
            // Nothing more of the source: what is there is what was proven.
            self.save(true)?;
            self.finish_stats()?;
            return Ok(Ended::Stopped);
        }
        self.applier.heal_all()?;
        self.narrow_window();
        let asks = self.applier.reader.asks();
        let superseded = |ctx: &ShardContext| ctx.spool.ended() == Some(End::Superseded);
        let finished = ctx.spool.ended() == Some(End::Finished) && !ctx.shared.stop.requested();
        // All that has arrived is applied: what was held back for it need not wait for the next run.
        if asks
            && self.applier.expiry.held() > 0
            && self.applier.position.at() == ctx.spool.stream_end()
            && !self.applier.position.window_open()
            && !superseded(&ctx)
            && let Err(e) = self.release_held()
        {
            tracing::warn!("held expiries wait for the next run: {e}");
        }
        if asks && !superseded(&ctx) {
            self.fetch_unreplicated()?;
        }
        let _ = self.applier.settle_all()?;
        if finished {
            self.finish_flush()?;
        }
        let superseded = superseded(&ctx);
        self.save(!superseded)?;
        self.finish_stats()?;
        Ok(if finished {
            Ended::Finished
        } else if superseded {
            Ended::Superseded
        } else {
            Ended::Stopped
        })
    }

    /// Waits for more of the stream; the link and the connections to the target work meanwhile.
    fn await_stream(&self, at: ReplOffset, patience: Duration) {
        self.events.drive_for(self.ctx.spool.grown(at), patience);
    }

    fn narrow_window(&mut self) {
        if self.ctx.spool.expected() > ReplOffset(0) {
            let end = self.ctx.spool.known_end();
            self.applier.position.narrow_window(end);
        }
    }

    /// How often it looks at more than the stream.
    fn tick_every(&self) -> Duration {
        let loaded = self.applier.marks.shard().snapshot_loaded;
        let awaited = self.ctx.shared.run.until_caught_up && loaded;
        match awaited && !self.ctx.progress.caught_up.load(Relaxed) {
            true => TICK_BEHIND,
            false => TICK,
        }
    }

    /// Now and then: numbers to the display, held expiries released, a checkpoint.
    pub(super) fn tick(&mut self) -> Result<()> {
        if self.last_tick.elapsed() < self.tick_every() {
            return Ok(());
        }
        self.last_tick = Instant::now();
        let (ctx, now) = (self.ctx.clone(), unix_ms());
        let shard = self.applier.marks.shard();
        let loaded = shard.snapshot_loaded;
        let applied = match loaded {
            true => self.applier.applied(),
            false => shard.applied.unwrap_or(ctx.spool.stream_start()),
        };
        if !loaded {
            let (len, total, complete) = ctx.spool.snapshot();
            let total = if complete { Some(len) } else { total };
            (ctx.progress.bytes_total).store(total.unwrap_or(0), Relaxed);
        }
        let down_ms = ctx.spool.down_ms(now);
        let lag_ms = (ctx.spool.lag_ms(applied, now)).max(down_ms.unwrap_or(0));
        let lag_bytes = ctx.spool.known_end().since(applied);
        ctx.progress.lag_bytes.store(lag_bytes, Relaxed);
        (ctx.progress.lag_ms).store(ctx.spool.age_ms(applied, now), Relaxed);
        if loaded {
            self.narrow_window();
            let lag = Lag {
                applied,
                expected: ctx.spool.expected(),
                stream_end: ctx.spool.stream_end(),
                lag_ms,
                down_ms,
                in_window: self.applier.position.window_open(),
            };
            match self.applier.expiry.on_lag(lag) {
                Pressure::Behind => ctx.progress.caught_up.store(false, Relaxed),
                Pressure::Near { release } => {
                    if release {
                        self.release_held()?;
                    }
                    self.applier.expiry.near(lag);
                    let holding = self.applier.expiry.is_holding();
                    let settled = !self.slots_unsettled() && !self.repairs_pending;
                    ctx.progress.caught_up.store(!holding && settled, Relaxed);
                }
                Pressure::Between => {}
            }
        }
        if self.applier.marks.is_due()? {
            if loaded && down_ms.is_none() && self.applier.unreplicated.is_due(lag_ms) {
                self.fetch_unreplicated()?;
            }
            self.save_beside()?;
            self.repair()?;
        }
        Ok(())
    }

    /// Saves a checkpoint and waits until it is on disk; `clean`: the run ends in order.
    pub fn save(&mut self, clean: bool) -> Result<()> {
        self.checkpoint(clean, true)
    }

    /// Has a checkpoint saved while the loop goes on.
    fn save_beside(&mut self) -> Result<()> {
        self.checkpoint(false, false)
    }

    fn checkpoint(&mut self, clean: bool, wait: bool) -> Result<()> {
        let ctx = self.ctx.clone();
        ctx.shared.meet_limits()?;
        if wait {
            // What the last checkpoint could not save must not be taken for saved.
            self.applier.marks.wait_saved()?;
        }
        // Before the mark that relies on it.
        let mut relied = self.applier.expiry.save()?;
        relied.files.extend(self.loaded.save()?);
        ctx.shared.own.save()?;
        let mut standing = self.applier.standing(clean);
        standing.sweep_lag_ms = self.sweep_lag_ms();
        let stable = match wait {
            true => self.applier.marks.save(standing, relied)?,
            false => self.applier.marks.save_beside(standing, relied)?,
        };
        if let Some((at, _)) = stable {
            self.applier.expiry.stable(at)?;
            if self.applier.marks.shard().snapshot_loaded && self.applier.reader.asks() {
                ctx.spool.drop_snapshot()?;
            }
        }
        Ok(())
    }

    pub fn finish_stats(&mut self) -> Result<()> {
        self.stats.save(&self.ctx.shared)
    }

    /// How old what has been proven is, in mode "scan".
    fn sweep_lag_ms(&self) -> u64 {
        let lag = (self.sweep_lag).map_or(0, |since| since.elapsed().as_millis());
        u64::try_from(lag).unwrap_or(u64::MAX)
    }
}

/// For the driver of mode "scan", which has no stream.
impl ApplyLoop {
    pub fn context(&self) -> Rc<ShardContext> {
        self.ctx.clone()
    }

    pub fn marks(&mut self) -> &mut Checkpoints {
        &mut self.applier.marks
    }

    pub fn door(&mut self) -> &mut Door {
        &mut self.applier.door
    }

    pub fn writer(&mut self) -> &mut TargetWriter<Pipe> {
        &mut self.applier.writer
    }

    /// Waits until everything sent is answered.
    pub fn settle(&mut self) -> Result<()> {
        self.applier.settle_all().map(drop)
    }

    /// Settles trouble; what it leaves to heal is to be [handed out](ApplyLoop::hand_out).
    pub fn resolve(&mut self) -> Result<()> {
        self.applier.resolve().map(drop)
    }

    /// Since when nothing has proven both sides alike.
    pub fn set_sweep_lag(&mut self, since: Option<Instant>) {
        self.sweep_lag = since;
    }

    /// Where the target's connections are driven while the caller waits.
    pub fn events(&self) -> EventLoop {
        self.events.clone()
    }

    /// Now and then: numbers to the display, a checkpoint.
    pub fn tick_scan(&mut self) -> Result<()> {
        if self.last_tick.elapsed() >= TICK {
            self.last_tick = Instant::now();
            self.ctx.progress.lag_ms.store(self.sweep_lag_ms(), Relaxed);
            if self.applier.marks.is_due()? {
                self.save(false)?;
            }
        }
        Ok(())
    }

    /// Writes a key of the source's database `db` as it was read just now, and waits for a value that goes by itself.
    pub fn write_state(
        &mut self,
        db: DbIndex,
        key: &[u8],
        state: &KeyState,
        mark: Mark,
    ) -> Result<bool> {
        match (self.applier.states()).write(db, key, state, mark)? {
            Written::Value => Ok(true),
            Written::Nothing => Ok(false),
            Written::CutOff => {
                self.applier.queue([(db, key.to_vec())], mark);
                Ok(false)
            }
            Written::Deliver(mut delivery) => {
                self.applier.settle_all()?;
                self.applier.deliver(&mut delivery)?;
                Ok(true)
            }
        }
    }

    /// Hands out the keys that could not be written, for them to be read again.
    pub fn hand_out(&mut self) -> Vec<Key> {
        let Applier { healer, marks, .. } = &mut self.applier;
        healer.hand_out(marks)
    }
}
