//! One source shard's pump: it reads the spool, routes to the target and follows the acknowledgements.
//!
//! A thread of its own, because decoding is work and the spool is files; the target's sockets are tasks.
//! Read first: [`Pump::run`], then `load` (snapshot, in `migrate/load.rs`) and `follow` (stream).

use crate::command::{self, Command};
use crate::error::{Error, ErrorKind, Result};
use crate::fence::Fence;
use crate::keyset::KeySet;
use crate::migrate::control::Order;
use crate::migrate::debts::Debts;
use crate::migrate::expiry::Held;
use crate::migrate::forms::Forms;
use crate::migrate::heal::Key;
use crate::migrate::loaded::Loaded;
use crate::migrate::long::Long;
use crate::migrate::obey::{self, Drain};
use crate::migrate::ownership::Mine;
use crate::migrate::progress::ShardProgress;
use crate::migrate::queue::HealQueue;
use crate::migrate::reconcile::Older;
use crate::migrate::shared::Shared;
use crate::migrate::timed::MaybeTimed;
use crate::migrate::touched::Touched;
use crate::rdb::payload;
use crate::resp;
use crate::source::place::Place;
use crate::source::spool::{End, Spool, StreamTail};
use crate::store::{Loss, ShardState};
use crate::target::Pipe;
use crate::task::failpoint;
use crate::types::{DbIndex, Mark, ReplOffset, unix_ms};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

pub(super) const READ_BYTES: usize = 1 << 20;
/// How often marks go to SQLite; only the benchmark of their cost (`benches/marks.sh`) sets anything else.
pub(super) static SAVE_EVERY: LazyLock<Duration> = LazyLock::new(|| {
    let asked = std::env::var("KEYFERRY_BENCH_SAVE_MS").ok();
    Duration::from_millis(asked.and_then(|ms| ms.parse().ok()).unwrap_or(1000))
});
pub(super) const TICK: Duration = Duration::from_millis(100);
/// While the run is to end as soon as the stream is caught up.
const TICK_BEHIND: Duration = Duration::from_millis(10);

/// What the names of counted losses may take: beyond it, one may count twice.
const LOST_BYTES: u64 = 1 << 20;

/// Why a pump ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// A stop was asked for; state is saved.
    Stopped,
    /// The snapshot file was all there was (mode rdb).
    Finished,
    /// The source began a new full sync.
    Superseded,
}

pub struct Pump {
    pub(super) shared: Arc<Shared>,
    pub(super) shard: ShardState,
    pub(super) spool: Arc<Spool>,
    pub(super) pipe: Pipe,
    pub(super) progress: Arc<ShardProgress>,
    /// The source master, for fenced reads; `None` for a snapshot file.
    pub(super) source: Option<Arc<Place>>,
    pub(super) fence: Option<Fence>,
    /// What the target takes.
    pub(super) format: payload::Target,
    /// Keys whose state on the target is already that of a later offset, by [`db_key`](crate::types::db_key).
    pub(super) fenced: HashMap<Vec<u8>, ReplOffset>,
    pub(super) fenced_to: ReplOffset,
    /// How often the target has refused the state of such keys, for good.
    pub(super) refusals: HashMap<Vec<u8>, u32>,
    /// Commands that the target does not know.
    pub(super) forms: Forms,
    /// Up to here the stream is read, not replayed: it may have run before a crash.
    pub(super) window_end: ReplOffset,
    /// Keys whose commands are not sent: written inside that window, or in a form that the target does not know.
    pub(super) heal_queue: HealQueue,
    pub(super) held: Held,
    /// Expiries are being held back.
    pub(super) holding: bool,
    /// Keys may have expired on the target that the source has renewed: see [`MaybeTimed`].
    pub(super) lagging: bool,
    /// Up to here, at least.
    pub(super) lag_until: ReplOffset,
    pub(super) timed: MaybeTimed,
    pub(super) loaded: Loaded,
    /// Mode "scan": since when nothing has proven both sides alike.
    pub(super) sweep_lag: Option<Instant>,
    /// Which slots were written to since the stream began; none before that.
    pub(super) touched: Option<Touched>,
    pub(super) debts: Debts,
    pub(super) keys: Vec<command::KeyArg>,
    pub(super) scratch: Vec<u8>,
    pub(super) counts: BTreeMap<&'static str, u64>,
    pub(super) mine: Mine,
    /// Slots are being copied: heals concern keys that are not ours yet.
    pub(super) adopting: bool,
    /// Acknowledged at that time, not yet known to survive a failover.
    pub(super) unstable: VecDeque<(Instant, Mark)>,
    pub(super) stable: Mark,
    /// What is before this is not done, whatever the pipe says: it is being healed, or is to be sent again.
    pub(super) floor: Option<Mark>,
    /// Keys whose heal trouble has cut off, and where the source stood before them: healed again with that trouble.
    pub(super) unfinished: Vec<(Mark, Key)>,
    /// A flush whose fate on some node is not known: where the source stood before it, and of which database of the
    /// target it is. What followed it may have run on other nodes, so it is not sent again, but compared.
    pub(super) flush_again: Option<(Mark, Option<DbIndex>)>,
    /// Where the stream stood when expiries were released that are not yet known to survive a failover.
    pub(super) released_at: Option<ReplOffset>,
    pub(super) losses_seen: u64,
    /// A verification has asked for keys to be written again.
    pub(super) repairs_pending: bool,
    /// What the target cannot hold, not yet saved.
    pub(super) losses: Vec<Loss>,
    /// Keys of that list that were counted.
    pub(super) lost: KeySet,
    pub(super) sizes: crate::migrate::census::Census,
    /// The snapshot is being loaded: trouble may mean to read it again from its mark.
    pub(super) in_load: bool,
    /// That is to be done, wherever it was found out.
    pub(super) load_again: bool,
    /// A large value of it is on its way in parts: trouble means to begin it again.
    pub(super) in_large: bool,
    pub(super) started: Instant,
    /// Where the stream stands: everything before is routed.
    pub(super) at: ReplOffset,
    pub(super) db: DbIndex,
    pub(super) long: Long,
    /// Where the snapshot stands: everything before is routed.
    pub(super) loading: (u64, DbIndex),
    pub(super) last_save: Instant,
    /// The checkpoint that is on its way to disk.
    pub(super) saving: Option<Receiver<Result<()>>>,
    pub(super) last_tick: Instant,
    pub(super) last_commands: u64,
    /// A cutover wants everything applied.
    pub(super) drain: Option<Drain>,
}

impl Pump {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        shared: Arc<Shared>,
        shard: ShardState,
        spool: Arc<Spool>,
        pipe: Pipe,
        progress: Arc<ShardProgress>,
        source: Option<Arc<Place>>,
        format: payload::Target,
        held: Held,
        timed: MaybeTimed,
        loaded: Loaded,
    ) -> Pump {
        let (at, db) = (shard.applied.unwrap_or(ReplOffset(0)), shard.applied_db);
        let source_asked = source.is_some();
        let lagging = shard.snapshot_loaded && source_asked;
        let snapshot_there = spool.snapshot().0 > 0;
        let stable = match (shard.stable, shard.applied) {
            (Some(at), _) if at >= spool.stream_start() => Mark::Stream {
                at,
                db: shard.stable_db,
            },
            (_, Some(at)) if shard.snapshot_loaded && !snapshot_there => Mark::Stream {
                at,
                db: shard.applied_db,
            },
            _ => Mark::Snapshot {
                at: 0,
                db: DbIndex::ZERO,
            },
        };
        Pump {
            shared,
            spool,
            pipe,
            progress,
            source,
            fence: None,
            format,
            fenced: HashMap::new(),
            fenced_to: ReplOffset(0),
            refusals: HashMap::new(),
            forms: Forms::default(),
            window_end: ReplOffset(0),
            heal_queue: HealQueue::default(),
            held,
            // What is held back is released by asking the source, and a file cannot be asked.
            holding: source_asked,
            lagging,
            lag_until: ReplOffset(0),
            timed,
            loaded,
            sweep_lag: None,
            touched: None,
            debts: Debts::default(),
            keys: Vec::new(),
            scratch: Vec::new(),
            counts: BTreeMap::new(),
            mine: Mine::default(),
            adopting: false,
            unstable: VecDeque::new(),
            stable,
            floor: None,
            unfinished: Vec::new(),
            flush_again: None,
            released_at: None,
            losses_seen: 0,
            repairs_pending: true,
            losses: Vec::new(),
            lost: KeySet::within(LOST_BYTES),
            sizes: crate::migrate::census::Census::default(),
            in_load: false,
            load_again: false,
            in_large: false,
            started: Instant::now(),
            at,
            db,
            long: Long::default(),
            shard,
            loading: (0, DbIndex::ZERO),
            last_save: Instant::now(),
            saving: None,
            last_tick: Instant::now(),
            last_commands: 0,
            drain: None,
        }
    }

    /// Up to `end`, commands may have reached the target before a crash: their keys are healed instead.
    pub fn set_window(&mut self, end: ReplOffset) {
        self.window_end = end;
    }

    /// Offsets are reserved ahead of what is written: no key of an earlier run can be of later than what the source had
    /// when this run asked it.
    pub(super) fn narrow_window(&mut self) {
        if self.spool.expected() > ReplOffset(0) {
            self.window_end = self.window_end.min(self.spool.known_end());
        }
    }

    pub fn run(&mut self) -> Result<Ended> {
        let mut result = match self.shared.scan {
            true => self.run_sweeps(),
            false => self.run_phases(),
        };
        if matches!(&result, Err(e) if e.kind() == ErrorKind::Interrupted)
            && self.spool.ended() == Some(End::Superseded)
        {
            // What was waited for will not come: the new full sync has it.
            result = Ok(Ended::Superseded);
        }
        if let Err(e) = &result
            && !matches!(e.kind(), ErrorKind::Interrupted)
        {
            // What is acknowledged is worth keeping whatever went wrong; what could not be done stays to be done.
            let before = self.floor;
            if let Some(mark) = self.oldest() {
                self.hold(mark);
            }
            let (undone, error) = self.pipe.settle();
            if undone.is_empty() && error.is_none() {
                self.floor = before;
            }
            let _ = self.save(false);
        }
        result
    }

    fn run_phases(&mut self) -> Result<Ended> {
        if self.shard.reconcile && self.source.is_none() {
            self.forget_streamed()?;
            self.shard.reconcile = false;
        }
        loop {
            if let Some(ended) = self.run_once()? {
                return Ok(ended);
            }
        }
    }

    /// Loads what is not loaded and follows the stream; `None` after a rewind, to begin again.
    fn run_once(&mut self) -> Result<Option<Ended>> {
        self.meet_ownership()?;
        if !self.shard.snapshot_loaded {
            self.progress.set_phase("snapshot");
            self.count_before()?;
            self.in_load = true;
            let ended = self.load();
            self.in_load = false;
            if let Some(ended) = ended? {
                return Ok(Some(ended));
            }
            if self.shard.reconcile {
                self.progress.set_phase("reconcile");
                self.reconcile(Older::NotLoaded)?;
                // Those that the source has deleted meanwhile are in no snapshot.
                self.debts.functions = true;
                self.shard.reconcile = false;
            }
            if self.debts.functions && self.source.is_some() {
                self.sync_functions()?;
            }
            self.loss_settled()?;
            failpoint("load-done");
            self.touched = Some(Touched::new());
            self.shard.snapshot_loaded = true;
            self.shard.applied = Some(self.at);
            self.shard.applied_db = self.db;
            self.save(false)?;
            // Whether a verification has asked for keys: without it nothing is caught up.
            self.repair()?;
            self.loaded.done();
        }
        if self.source.is_none() && self.spool.ended().is_none() {
            self.spool.drop_snapshot()?;
            self.finish_counts()?;
            return Ok(Some(Ended::Finished));
        }
        if self.touched.is_none() {
            self.touched = Some(self.touched_before()?);
        }
        // Before anybody can take the first lag that is seen for none.
        let age_ms = self.spool.age_ms(self.at, unix_ms());
        self.progress.lag_ms.store(age_ms, Relaxed);
        self.progress.set_phase("stream");
        self.follow()
    }

    /// What an earlier run has noted of this stream.
    fn touched_before(&self) -> Result<Touched> {
        let saved = self.shared.store(|s| s.written())?;
        let mine = saved.iter().find(|w| w.shard == self.shard.shard);
        Ok(mine.map_or_else(Touched::new, Touched::resume))
    }

    pub(super) fn now(&self) -> Mark {
        self.long.mark().unwrap_or(Mark::Stream {
            at: self.at,
            db: self.db,
        })
    }

    /// Follows the stream until a stop; `None` after a rewind.
    fn follow(&mut self) -> Result<Option<Ended>> {
        let mut tail = StreamTail::new(self.spool.clone(), self.at);
        let mut buf: Vec<u8> = Vec::with_capacity(READ_BYTES);
        let mut args = Vec::new();
        let mut used = 0;
        self.long = Long::default();
        loop {
            if self.pipe.troubled() {
                self.resolve()?;
            }
            self.finish_flush()?;
            // Before anything of it is routed.
            self.meet_history()?;
            if self.obey(&buf, tail.at())? {
                // Fenced: what comes is only counted.
                if self.shared.stop.requested() || self.spool.ended().is_some() {
                    break;
                }
                if buf.len() < self.longest() {
                    self.await_stream(tail.at(), obey::SOON);
                    self.read_stream(&mut tail, &mut buf)?;
                } else {
                    std::thread::sleep(obey::SOON);
                }
                continue;
            }
            while let Some(taken) =
                self.take_command(buf.get(used..).unwrap_or_default(), &mut args)?
            {
                used += taken;
                if self.pipe.troubled() {
                    self.resolve()?;
                }
                self.finish_flush()?;
                self.tick()?;
                if self.shared.stop.requested() {
                    break;
                }
            }
            buf.drain(..used);
            used = 0;
            let ended = self.spool.ended();
            let finished = ended == Some(End::Finished);
            if self.shared.stop.requested() || (ended.is_some() && !finished) {
                break;
            }
            // What has been routed must not wait for more to come.
            if self.read_stream(&mut tail, &mut buf)? == 0 {
                if finished {
                    break;
                }
                self.heal_queued()?;
                self.pipe.flush();
                let patience = match self.shared.control.attended() {
                    true => obey::SOON,
                    false => self.tick_every(),
                };
                self.await_stream(tail.at(), patience);
                self.read_stream(&mut tail, &mut buf)?;
            }
            self.tick()?;
            self.meet_ownership()?;
            self.adopt_slots()?;
            if self.has_lost() {
                self.rewind()?;
                return Ok(None);
            }
        }
        if self.shared.control.order() == Order::Fence {
            // Nothing more of the source: what is there is what was proven.
            self.save(self.is_clean())?;
            self.finish_counts()?;
            return Ok(Some(Ended::Stopped));
        }
        self.heal_queued()?;
        self.narrow_window();
        let finished = self.spool.ended() == Some(End::Finished) && !self.shared.stop.requested();
        // All that has arrived is applied: what was held back for it need not wait for the next run.
        if self.source.is_some()
            && self.held.count > 0
            && self.at == self.spool.stream_end()
            && self.window_end <= self.at
            && self.spool.ended() != Some(End::Superseded)
            && let Err(e) = self.release_held()
        {
            tracing::warn!("held expiries wait for the next run: {e}");
        }
        if self.source.is_some() && self.spool.ended() != Some(End::Superseded) {
            self.pay_debts()?;
        }
        let _ = self.settle_all()?;
        if finished {
            self.finish_flush()?;
        }
        let superseded = self.spool.ended() == Some(End::Superseded);
        self.save(self.is_clean() && !superseded)?;
        self.finish_counts()?;
        Ok(Some(if finished {
            Ended::Finished
        } else if superseded {
            Ended::Superseded
        } else {
            Ended::Stopped
        }))
    }

    /// Nothing beyond `applied` has touched the target, when all that was sent is answered.
    fn is_clean(&self) -> bool {
        self.fenced_to <= self.at
            && self.window_end <= self.at
            && self.heal_queue.is_empty()
            && self.flush_again.is_none()
            && !self.long.is_inside()
    }

    /// How often it looks at more than the stream.
    pub(super) fn tick_every(&self) -> Duration {
        let awaited = self.shared.until_caught_up && self.shard.snapshot_loaded;
        match awaited && !self.progress.caught_up.load(Relaxed) {
            true => TICK_BEHIND,
            false => TICK,
        }
    }

    /// Waits for more of the stream; the link and the connections to the target work meanwhile.
    fn await_stream(&self, at: ReplOffset, patience: Duration) {
        self.pipe.events().drive_for(self.spool.grown(at), patience);
    }

    /// Routes the command (or whole transaction) at the start of `buf`; `None` when it is not all there.
    fn take_command(
        &mut self,
        buf: &[u8],
        args: &mut Vec<std::ops::Range<usize>>,
    ) -> Result<Option<usize>> {
        let Some(len) = resp::parse_command(buf, args).map_err(|e| self.in_stream(e, self.at))?
        else {
            return Ok(None);
        };
        let raw = buf.get(..len).unwrap_or_default();
        let cmd = Command { raw, args };
        if !self.long.is_inside() && cmd.name().eq_ignore_ascii_case(b"MULTI") {
            let taken = self.take_transaction(buf, len)?;
            if taken.is_some() || buf.len() <= self.longest() {
                return Ok(taken);
            }
            self.enter(len);
            return Ok(Some(len));
        }
        if self.long.is_inside() && is_end(cmd.name()) {
            self.leave(len);
            return Ok(Some(len));
        }
        if !cmd.is_empty() {
            failpoint("stream-command");
            self.command(&cmd, self.behind(len), self.now())
                .map_err(|e| self.in_stream(e, self.at))?;
        }
        self.pass(len);
        Ok(Some(len))
    }

    fn take_transaction(&mut self, buf: &[u8], first: usize) -> Result<Option<usize>> {
        let mut args = Vec::new();
        let mut ends = vec![first];
        let mut to = first;
        loop {
            let rest = buf.get(to..).unwrap_or_default();
            let Some(len) =
                resp::parse_command(rest, &mut args).map_err(|e| self.in_stream(e, self.at))?
            else {
                return Ok(None);
            };
            let name = args
                .first()
                .and_then(|r| rest.get(r.clone()))
                .unwrap_or_default();
            to += len;
            if is_end(name) {
                break;
            }
            ends.push(to);
        }
        let end = self.at.plus(to as u64);
        if self.at < self.window_end && self.window_end < end {
            // A run before may have taken it command by command, and a part of it only.
            self.window_end = end;
        }
        let mark = self.now();
        let whole = buf.get(..to).unwrap_or_default();
        if self.transaction(whole, &ends, mark)? {
            self.at = self.at.plus(to as u64);
            return Ok(Some(to));
        }
        // Command by command; all carry the mark of the MULTI, as the stream cannot be continued inside.
        let begin = self.at;
        for pair in ends.windows(2) {
            let [from, to] = pair else { continue };
            let raw = whole.get(*from..*to).unwrap_or_default();
            if resp::parse_command(raw, &mut args)?.is_none() {
                continue;
            }
            let cmd = Command { raw, args: &args };
            if self.pipe.troubled() {
                // What follows may read what is being healed.
                self.resolve()?;
            }
            if !cmd.is_empty() {
                // The transaction took effect as one, so it is before a fence as a whole or not at all.
                self.command(&cmd, begin.plus(whole.len() as u64), mark)
                    .map_err(|e| self.in_stream(e, begin))?;
            }
        }
        self.at = begin.plus(to as u64);
        Ok(Some(to))
    }

    fn in_stream(&self, e: Error, at: ReplOffset) -> Error {
        e.context(format!(
            "replicate from {} at offset {at}",
            self.shard.address
        ))
    }
}

/// Whether a command ends a transaction.
fn is_end(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"EXEC") || name.eq_ignore_ascii_case(b"DISCARD")
}
