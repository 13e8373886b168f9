//! The checkpoint: which mark may be saved, and everything of a shard that goes to disk with it, in one transaction.
//!
//! Invariant: a saved mark never passes what is not done: what is in flight, and every [hold](Holds).

use crate::error::Result;
use crate::migrate::checkpoint::holds::{HoldId, Holds, Why};
use crate::migrate::checkpoint::relied::Relied;
use crate::migrate::checkpoint::stable::StableMarks;
use crate::migrate::checkpoint::writer::{self, Checkpoint};
use crate::migrate::context::ShardContext;
use crate::migrate::stream::written_slots::WrittenSlots;
use crate::rdb::opcode::Dialect;
use crate::source::spool::Down;
use crate::store::ShardState;
use crate::types::{DbIndex, Mark, ReplOffset, unix_ms};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::LazyLock;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

/// How often marks go to SQLite; only the benchmark of their cost (`benches/marks.sh`) sets anything else.
static SAVE_EVERY: LazyLock<Duration> = LazyLock::new(|| {
    let asked = std::env::var("KEYFERRY_BENCH_SAVE_MS").ok();
    Duration::from_millis(asked.and_then(|ms| ms.parse().ok()).unwrap_or(1000))
});
/// Fence offsets are reserved this far ahead, so that not every heal writes to SQLite.
const FENCE_RESERVE: u64 = 4 << 20;

/// Where a shard stands when a checkpoint is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    /// Everything before it is routed.
    pub routed: Mark,
    /// The lowest mark that is on its way.
    pub in_flight: Option<Mark>,
    /// Nothing beyond the mark has touched the target, once all that was sent is answered.
    pub clean: bool,
    /// Mode "scan": how old what has been proven is, in ms.
    pub sweep_lag_ms: u64,
}

/// The state of one shard on disk, and what is to come there.
pub(crate) struct Checkpoints {
    ctx: Rc<ShardContext>,
    shard: ShardState,
    /// The same as it is on disk, or on its way there.
    saved: ShardState,
    /// The fence that is on disk for sure.
    durable_fence: Option<ReplOffset>,
    holds: Holds,
    stable: StableMarks,
    /// Which slots were written to since the stream began; none before that.
    written: Option<WrittenSlots>,
    /// The checkpoint that is on its way to disk.
    saving: Option<Receiver<Result<()>>>,
    last_save: Instant,
    last_commands: u64,
}

impl Checkpoints {
    /// `stream_start`, `has_snapshot`: what the spool holds.
    pub fn new(ctx: Rc<ShardContext>, shard: ShardState) -> Checkpoints {
        let has_snapshot = ctx.spool.snapshot().0 > 0;
        let stable = match (shard.stable, shard.applied) {
            (Some(at), _) if at >= ctx.spool.stream_start() => Mark::Stream {
                at,
                db: shard.stable_db,
            },
            (_, Some(at)) if shard.snapshot_loaded && !has_snapshot => Mark::Stream {
                at,
                db: shard.applied_db,
            },
            _ => StableMarks::none(),
        };
        Checkpoints {
            ctx,
            saved: shard.clone(),
            durable_fence: shard.fence_high,
            shard,
            holds: Holds::default(),
            stable: StableMarks::new(stable),
            written: None,
            saving: None,
            last_save: Instant::now(),
            last_commands: 0,
        }
    }

    /// The shard as it is to be saved.
    pub fn shard(&self) -> &ShardState {
        &self.shard
    }

    /// Keeps checkpoints from passing a mark until it is released; after an error it is not.
    pub fn hold(&mut self, mark: Mark, why: Why) -> HoldId {
        self.holds.hold(mark, why)
    }

    /// Moves a hold back to an earlier mark.
    pub fn extend(&mut self, id: HoldId, mark: Mark) {
        self.holds.extend(id, mark);
    }

    pub fn release(&mut self, id: HoldId) {
        self.holds.release(id);
    }

    /// The lowest mark that is not done; `None` when everything routed is.
    pub fn oldest(&self, in_flight: Option<Mark>) -> Option<Mark> {
        earlier(in_flight, self.holds.undone())
    }

    /// The mark that a checkpoint may save now.
    fn saved(&self, standing: Standing) -> Mark {
        let undone = earlier(standing.in_flight, self.holds.lowest());
        match (undone, standing.routed) {
            // What is left of the load is done before its end is noted.
            // After a rewind a hold may lie ahead of what is routed.
            (Some(mark @ Mark::Snapshot { .. }), routed @ Mark::Snapshot { .. }) => {
                mark.earlier(routed)
            }
            (Some(mark @ Mark::Stream { .. }), routed @ Mark::Stream { .. }) => {
                mark.earlier(routed)
            }
            (Some(_), Mark::Stream { .. }) => self.acknowledged().unwrap_or(standing.routed),
            (_, routed) => routed,
        }
    }

    /// What was acknowledged when the last checkpoint was made.
    fn acknowledged(&self) -> Option<Mark> {
        match (self.shard.snapshot_loaded, self.shard.applied) {
            (true, at) => at.map(|at| Mark::Stream {
                at,
                db: self.shard.applied_db,
            }),
            (false, _) => Some(Mark::Snapshot {
                at: self.shard.snapshot_at,
                db: self.shard.snapshot_db,
            }),
        }
    }

    /// One more key of the snapshot has been read.
    pub fn count_read(&mut self, keys: u64) {
        self.shard.keys_read += keys;
        self.ctx
            .progress
            .keys_read
            .store(self.shard.keys_read, Relaxed);
    }

    /// One more key of the first copy has been written.
    pub fn count_written(&mut self) {
        self.shard.keys_written += 1;
        let written = self.shard.keys_written;
        self.ctx.progress.keys_written.store(written, Relaxed);
    }

    pub fn count_healed(&mut self, keys: u64) {
        self.shard.healed_keys += keys;
        let healed = self.shard.healed_keys;
        self.ctx.progress.healed.store(healed, Relaxed);
    }

    /// The snapshot is loaded from here on, whether for the first time or again.
    pub fn load_from(&mut self, at: u64, db: DbIndex) {
        self.shard.snapshot_at = at;
        self.shard.snapshot_db = db;
    }

    /// Whose numbering the snapshot follows, and of which RDB version it is.
    pub fn snapshot_is(&mut self, dialect: Dialect, version: u32) {
        self.shard.snapshot_valkey = dialect == Dialect::Valkey;
        self.shard.snapshot_version = version;
    }

    pub fn snapshot_read(&mut self, bytes: u64) {
        self.shard.bytes_read = bytes;
        self.ctx.progress.bytes_done.store(bytes, Relaxed);
    }

    /// The snapshot is whole on the target, and the stream begins at `at`.
    pub fn loaded(&mut self, at: ReplOffset, db: DbIndex) {
        self.shard.snapshot_loaded = true;
        self.shard.applied = Some(at);
        self.shard.applied_db = db;
    }

    /// Keys of an earlier attempt have been compared with the source, or are not there.
    pub fn reconciled(&mut self) {
        self.shard.reconcile = false;
    }

    /// The slots of this shard, as text.
    pub fn set_slots(&mut self, slots: String) {
        self.shard.slots = slots;
    }

    /// Begins to note which slots are written to; `resume` goes on with what an earlier run has saved.
    pub fn note_writes(&mut self, resume: bool) -> Result<()> {
        if resume && self.written.is_some() {
            return Ok(());
        }
        let saved = match resume {
            true => self.ctx.shared.store(|s| s.written())?,
            false => Vec::new(),
        };
        let mine = saved.iter().find(|w| w.shard == self.shard.shard);
        self.written = Some(mine.map_or_else(WrittenSlots::new, WrittenSlots::resume));
        Ok(())
    }

    /// Notes that a key is written, by its name at the target: for verifications of what has changed.
    pub fn touch(&mut self, db: DbIndex, name: &[u8]) {
        let job = self.ctx.job();
        let key = self.ctx.source_name(name);
        if self.ctx.shared.control.attended()
            && let Some(to) = job.databases.map(db)
            && job.filter.accepts(&key)
        {
            self.ctx.shared.control.note(to, &key);
        }
        if let Some(written) = &mut self.written {
            written.note(&key);
        }
    }

    /// Any key may have been written.
    pub fn touch_all(&mut self) {
        self.ctx.shared.control.note_all();
        if let Some(written) = &mut self.written {
            written.note_all();
        }
    }

    /// Makes durable how far ahead of the stream the target's keys may be, before they are.
    pub fn reserve(&mut self, offset: ReplOffset) -> Result<()> {
        let durable = |me: &Self| me.durable_fence.is_some_and(|high| offset <= high);
        if durable(self) {
            return Ok(());
        }
        // A checkpoint that is on its way may bring it.
        self.wait_saved()?;
        if durable(self) {
            return Ok(());
        }
        let high = self.shard.fence_high.unwrap_or(offset).max(offset);
        // Marks and counters stay those of the last checkpoint: nothing is passed by this.
        self.saved.fence_high = Some(high.plus(FENCE_RESERVE));
        let shard = std::slice::from_ref(&self.saved);
        (self.ctx.shared).store(|s| s.save_shards(shard, &BTreeMap::new(), None))?;
        self.shard.fence_high = self.saved.fence_high;
        self.durable_fence = self.saved.fence_high;
        Ok(())
    }

    /// Whether it is time for a checkpoint, and the last one is on disk.
    pub fn is_due(&mut self) -> Result<bool> {
        if self.last_save.elapsed() < *SAVE_EVERY {
            return Ok(false);
        }
        match self.saving.as_ref().map(Receiver::try_recv) {
            Some(Err(TryRecvError::Empty)) => return Ok(false),
            Some(Err(TryRecvError::Disconnected)) => return Err(writer::gone()),
            Some(Ok(result)) => {
                result?;
                self.durable_fence = self.saved.fence_high;
            }
            None => {}
        }
        self.saving = None;
        Ok(true)
    }

    /// Waits until the checkpoint that is on its way is on disk.
    pub fn wait_saved(&mut self) -> Result<()> {
        if let Some(saving) = self.saving.take() {
            saving.recv().map_err(|_| writer::gone())??;
            self.durable_fence = self.saved.fence_high;
        }
        Ok(())
    }

    /// Saves a checkpoint and waits until it is on disk; returns what is stable in the stream.
    pub fn save(
        &mut self,
        standing: Standing,
        relied: Relied,
    ) -> Result<Option<(ReplOffset, DbIndex)>> {
        self.wait_saved()?;
        let checkpoint = self.checkpoint(standing, relied)?;
        self.ctx.shared.store(|store| checkpoint.write(store))?;
        self.durable_fence = self.saved.fence_high;
        Ok(self.stable.in_stream())
    }

    /// Has a checkpoint saved while the shard goes on; only when it [is due](Checkpoints::is_due).
    pub fn save_beside(
        &mut self,
        standing: Standing,
        relied: Relied,
    ) -> Result<Option<(ReplOffset, DbIndex)>> {
        let checkpoint = self.checkpoint(standing, relied)?;
        self.saving = Some(self.ctx.shared.saver.save(checkpoint));
        Ok(self.stable.in_stream())
    }

    /// The checkpoint: the lowest mark over all target nodes, with the counters, to be written in one transaction.
    fn checkpoint(&mut self, standing: Standing, relied: Relied) -> Result<Checkpoint> {
        self.last_save = Instant::now();
        let saved = self.saved(standing);
        match saved {
            Mark::Stream { at, db } => {
                self.shard.applied = Some(at);
                self.shard.applied_db = db;
            }
            Mark::Snapshot { at, db } => self.load_from(at, db),
        }
        // What lies behind the mark may have run.
        self.shard.clean = standing.clean && saved == standing.routed;
        if let Some(replid) = self.ctx.spool.replid() {
            self.shard.replid = Some(replid);
        }
        let acknowledged = self.acknowledged();
        let view = self.ctx.shared.health.as_ref().map(|h| h.view());
        (self.stable).advance(acknowledged, Instant::now(), view.as_ref());
        if let Some((at, db)) = self.stable.in_stream() {
            self.shard.stable = Some(at);
            self.shard.stable_db = db;
        }
        self.note_spool(standing);
        self.shard.updated_at = unix_ms();
        let commands = self.ctx.progress.commands.load(Relaxed);
        self.shard.commands_applied += commands - self.last_commands;
        self.last_commands = commands;
        self.saved = self.shard.clone();
        let (counts, losses) = self.ctx.take_tally();
        let release = match self.shard.snapshot_loaded {
            true => Some(self.stable.stable()),
            false => acknowledged,
        };
        Ok(Checkpoint {
            written: (self.written.as_mut()).and_then(|w| w.take(self.shard.shard)),
            shard: self.saved.clone(),
            counts,
            losses,
            unknown: self.ctx.take_unknown(),
            relied,
            release: release.map(|mark| (self.ctx.spool.clone(), mark)),
        })
    }

    /// How the spool stands: what is known of the source, the lag, the note for people.
    fn note_spool(&mut self, standing: Standing) {
        let spool = &self.ctx.spool;
        let down = spool.down(unix_ms());
        spool.look_at_disk();
        let unsettled_ms = (self.ctx.shared.ownership.as_ref()).and_then(|o| o.unsettled_ms());
        self.shard.note = match self.ctx.progress.view().note {
            note if !note.is_empty() => note,
            _ if spool.is_full() => format!(
                "the spool is full ({} bytes are allowed) or its disk nearly is: nothing is read from the source until the target has caught up",
                spool.limit()
            ),
            note => down_text(down).unwrap_or(match unsettled_ms {
                Some(_) => "slots are moving inside the source".into(),
                None => note,
            }),
        };
        let end = spool.known_end();
        if let Some(high) = &mut self.shard.fence_high {
            // Ahead of time, so that a heal seldom has to wait for the disk.
            *high = (*high).max(end.plus(FENCE_RESERVE));
        }
        self.shard.source_offset = Some(self.shard.source_offset.map_or(end, |o| o.max(end)));
        self.shard.lag_ms = (self.shard.applied)
            .map_or(0, |a| spool.age_ms(a, unix_ms()))
            .max(down.map_or(0, |(ms, _)| ms))
            // Whatever has moved may be older than the move.
            .max(unsettled_ms.map_or(0, |ms| ms + 1_000))
            .max(standing.sweep_lag_ms);
        let (len, total, complete) = spool.snapshot();
        if !self.shard.snapshot_loaded {
            self.shard.snapshot_complete = complete && spool.is_snapshot_durable();
            self.shard.snapshot_len = len;
            self.shard.bytes_total = total.unwrap_or(if complete { len } else { 0 });
            self.shard.bytes_read = self.ctx.progress.bytes_done.load(Relaxed);
        } else {
            self.shard.bytes_total = self.shard.bytes_total.max(self.shard.bytes_read);
        }
    }

    /// Whether the target has lost a master since [`Checkpoints::rewind`].
    pub fn has_lost(&self) -> bool {
        (self.ctx.shared.health.as_ref()).is_some_and(|h| self.stable.has_lost(h.view().losses))
    }

    /// Mode "scan": takes in that the target has lost a master; what was lost is found by the next sweep.
    pub fn note_loss(&mut self) -> Result<bool> {
        let lost = self.has_lost();
        if let (true, Some(health)) = (lost, &self.ctx.shared.health) {
            let losses = health.view().losses;
            self.stable.target_lost(losses);
            self.ctx.count("faults.target_lost");
            // Each run begins with a sweep.
            self.ctx.shared.loss_taken_in(self.ctx.id, losses)?;
        }
        Ok(lost)
    }

    /// Goes back to the stable mark, as the target has lost a master; returns where the stream is to be read from, and
    /// whether the snapshot is loaded still.
    pub fn rewind(&mut self, losses: u64, routed: ReplOffset, asks: bool) -> Rewound {
        self.stable.target_lost(losses);
        self.holds.rewind();
        self.ctx.count("faults.target_lost");
        match self.stable.stable() {
            Mark::Stream { at, db } if self.shard.snapshot_loaded => {
                self.shard.applied = Some(at);
                self.shard.applied_db = db;
                Rewound::Stream(at, db)
            }
            Mark::Snapshot { at, db } if !self.shard.snapshot_loaded => {
                self.load_from(at, db);
                Rewound::Snapshot(at)
            }
            _ => {
                // The load was done, but not yet stable: it is done again, and the stream after it is read as a window.
                self.load_from(0, DbIndex::ZERO);
                self.shard.snapshot_loaded = false;
                // What a promoted replica has kept beside the snapshot may be older than that.
                self.shard.reconcile = asks;
                let at = self.shard.snapshot_offset.unwrap_or(routed);
                self.shard.applied = Some(at);
                Rewound::Load(at)
            }
        }
    }
}

/// Where a shard goes back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rewound {
    Stream(ReplOffset, DbIndex),
    /// A byte of the snapshot that is being loaded.
    Snapshot(u64),
    /// The beginning of the snapshot; the stream begins there.
    Load(ReplOffset),
}

fn earlier(a: Option<Mark>, b: Option<Mark>) -> Option<Mark> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.earlier(b)),
        (a, b) => a.or(b),
    }
}

/// What people are told of a source that is not heard.
fn down_text(down: Option<(u64, Down)>) -> Option<String> {
    let (ms, why) = down?;
    let s = ms / 1000;
    Some(match why {
        Down::Link => format!("the link to the source has been down for {s} s"),
        Down::Quiet => format!("nothing has come from the source for {s} s"),
        Down::Upstream => {
            format!("the source is a replica, and has not heard its own master for {s} s")
        }
    })
}

#[cfg(test)]
mod tests;
