//! One source shard's spool, as the link and the loop have it.

use super::arrivals::Arrivals;
use super::files::segments;
use super::link::Down;
use super::state::{End, State};
use crate::error::{Context, ErrorKind, Result};
use crate::task::private_dir;
use crate::types::{ReplId, ReplOffset, unix_ms};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;

pub(super) const SEGMENT_BYTES: u64 = 64 << 20;
/// Free space that the spool leaves to others.
const DISK_RESERVE: u64 = 128 << 20;
/// At least this much of a snapshot is left to the disk at once.
pub(super) const UNREAD_BYTES: u64 = 8 << 20;
const SNAPSHOT: &str = "snapshot.rdb";

/// One source shard's spool, shared by the link that fills it and the loop that empties it.
pub struct Spool {
    pub(super) dir: PathBuf,
    limit: u64,
    state: Mutex<State>,
    pub(super) changed: Condvar,
    /// The same for [`Spool::grown`].
    pub(super) grown: Notify,
}

impl Spool {
    /// Opens the folder and whatever an earlier run left in it.
    pub fn open(dir: &Path, limit: u64) -> Result<Arc<Spool>> {
        private_dir(dir)?;
        let snapshot_len = std::fs::metadata(dir.join(SNAPSHOT)).map_or(0, |m| m.len());
        let segments = segments(dir)?;
        let start = segments.first().map_or(ReplOffset(0), |s| s.0);
        let end = segments
            .last()
            .map_or(ReplOffset(0), |(at, len)| at.plus(*len));
        let arrivals = Arrivals::open(dir, start, end, unix_ms());
        Ok(Arc::new(Spool {
            dir: dir.to_owned(),
            limit,
            state: Mutex::new(State::new(snapshot_len, start, end, arrivals)),
            changed: Condvar::new(),
            grown: Notify::new(),
        }))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Forgets everything: a new full sync begins.
    pub fn wipe(&self) -> Result<()> {
        for name in std::iter::once(self.dir.join(SNAPSHOT))
            .chain(segments(&self.dir)?.iter().map(|s| self.segment(s.0)))
        {
            match std::fs::remove_file(&name) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e)
                        .context(ErrorKind::Disk, || format!("remove {}", name.display()));
                }
                _ => {}
            }
        }
        self.remove_parts()?;
        let none = ReplOffset(0);
        let mut arrivals = Arrivals::open(&self.dir, none, none, unix_ms());
        arrivals.begin(none);
        *self.state() = State::new(0, none, none, arrivals);
        Ok(())
    }

    pub(super) fn segment(&self, start: ReplOffset) -> PathBuf {
        self.dir.join(format!("stream-{:020}", start.0))
    }

    /// Its folder, also for what else must not be held in memory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn snapshot_path(&self) -> PathBuf {
        self.dir.join(SNAPSHOT)
    }

    pub fn replid(&self) -> Option<ReplId> {
        self.state().replid
    }

    /// The source goes on here under another replication id: another server is its master now.
    ///
    /// To be called before anything of the new history is appended.
    pub fn continue_as(&self, replid: ReplId) {
        let end = self.stream_end();
        let mut state = self.state();
        state.replid = Some(replid);
        state.history_from.get_or_insert(end);
    }

    /// Where the stream stood when [`Spool::continue_as`] was called first since this was asked last.
    pub fn take_history(&self) -> Option<ReplOffset> {
        self.state().history_from.take()
    }

    pub fn set_replid(&self, replid: ReplId) {
        self.state().replid = Some(replid);
    }

    /// Says that the snapshot on disk, left by an earlier run, is whole.
    pub fn adopt_snapshot(&self) {
        let mut state = self.state();
        state.snapshot.complete = true;
        state.snapshot.durable = true;
    }

    /// Whether the whole snapshot is there for a later run, come what may.
    pub fn is_snapshot_durable(&self) -> bool {
        self.state().snapshot.durable
    }

    /// The stream begins (or goes on) at `at`; everything spooled before it is kept.
    pub fn start_stream(&self, at: ReplOffset) {
        let mut state = self.state();
        state.stream_start = at;
        state.stream_end = at;
        state.released = at;
        state.arrivals.begin(at);
    }

    pub fn set_snapshot_total(&self, total: Option<u64>) {
        self.state().snapshot.total = total;
    }

    /// Bytes of the snapshot that are here, and how many of them the loop has read.
    pub fn load(&self) -> (u64, u64) {
        let state = self.state();
        (state.snapshot.len, state.snapshot.read)
    }

    /// Bytes of the snapshot spooled so far, its length if known, and whether it is whole.
    pub fn snapshot(&self) -> (u64, Option<u64>, bool) {
        let state = self.state();
        (
            state.snapshot.len,
            state.snapshot.total,
            state.snapshot.complete,
        )
    }

    pub fn stream_end(&self) -> ReplOffset {
        self.state().stream_end
    }

    pub fn stream_start(&self) -> ReplOffset {
        self.state().stream_start
    }

    /// Bytes on disk now.
    pub fn bytes(&self) -> u64 {
        let state = self.state();
        (state.snapshot.len).saturating_add(state.stream_end.since(state.released))
    }

    /// A segment is freed as a whole, so a small spool has small ones.
    pub(super) fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES.min(self.limit / 8)
    }

    /// Nothing more is read from the source while the limit is reached or the disk is nearly full.
    pub fn is_full(&self) -> bool {
        self.bytes() >= self.limit || self.state().disk_low
    }

    /// Looks how much the disk still has: the state file must be able to grow.
    pub fn look_at_disk(&self) {
        let Ok(stat) = rustix::fs::statvfs(&self.dir) else {
            return;
        };
        let (free, all) = (
            stat.f_bavail.saturating_mul(stat.f_frsize),
            stat.f_blocks.saturating_mul(stat.f_frsize),
        );
        self.state().disk_low = free < DISK_RESERVE.min(all / 5);
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    pub fn end(&self, why: End) {
        self.state().end = Some(why);
        self.changed.notify_all();
        self.grown.notify_one();
    }

    /// Returns when the stream goes on beyond `at`, or nothing more will come. For one at a time.
    pub async fn grown(&self, at: ReplOffset) {
        loop {
            {
                let state = self.state();
                if state.stream_end > at || state.end.is_some() {
                    return;
                }
            }
            self.grown.notified().await;
        }
    }

    /// The end that was announced, if any.
    pub fn ended(&self) -> Option<End> {
        self.state().end.clone()
    }

    /// How long ago the oldest byte after `applied` arrived, in ms; 0 when there is none.
    pub fn lag_ms(&self, applied: ReplOffset, now_ms: i64) -> u64 {
        let mut state = self.state();
        if applied >= state.stream_end {
            return 0;
        }
        (state.arrivals.oldest(applied)).map_or(0, |at| {
            u64::try_from(now_ms.saturating_sub(at)).unwrap_or(0)
        })
    }

    /// How old the oldest that is not applied may be, in ms: by its arrival, or, when it was written while the link was
    /// down (as it may be still), by when that began.
    pub fn age_ms(&self, applied: ReplOffset, now_ms: i64) -> u64 {
        (self.lag_ms(applied, now_ms)).max(self.behind_ms(applied, now_ms))
    }

    /// When the byte at `offset` was written, as far as that is known.
    pub fn written_ms(&self, offset: ReplOffset) -> Option<i64> {
        self.state().arrivals.written_ms(offset)
    }

    /// Removes what the target has: the snapshot once loaded, segments that lie wholly before `applied`.
    pub fn release(&self, applied: ReplOffset) -> Result<()> {
        for (start, len) in segments(&self.dir)? {
            let end = start.plus(len);
            if end > applied || len < self.segment_bytes() {
                break;
            }
            let path = self.segment(start);
            std::fs::remove_file(&path)
                .context(ErrorKind::Disk, || format!("remove {}", path.display()))?;
            self.state().released = end;
        }
        Ok(())
    }

    /// What lies before `at` is in the target and is only read again after a loss there: the disk is enough for it.
    ///
    /// Else it would fill the kernel's memory, which has better uses where servers share it, and new pages are dear.
    pub fn leave_to_disk(&self, at: u64) {
        let mut state = self.state();
        let (free_from, sent_to) = state.snapshot.on_disk;
        if !state.snapshot.parts.is_empty() || at < sent_to.saturating_add(UNREAD_BYTES) {
            return;
        }
        state.snapshot.on_disk = (sent_to, at);
        drop(state);
        // Pages that are not on the disk yet are sent there; they are free the next time.
        if let Ok(file) = File::open(self.dir.join(SNAPSHOT)) {
            let len = std::num::NonZeroU64::new(at.saturating_sub(free_from));
            let _ = rustix::fs::fadvise(file, free_from, len, rustix::fs::Advice::DontNeed);
        }
    }

    pub fn drop_snapshot(&self) -> Result<()> {
        let path = self.dir.join(SNAPSHOT);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).context(ErrorKind::Disk, || format!("remove {}", path.display()));
            }
            _ => {}
        }
        self.remove_parts()?;
        self.state().snapshot.len = 0;
        Ok(())
    }

    /// Says whether the link to the source is up.
    pub fn set_link(&self, up: bool, now_ms: i64) {
        self.state().link.set(up, now_ms);
    }

    /// All that the source had written at that time is here, although it has sent nothing.
    pub fn hear(&self, at_ms: i64) {
        self.state().link.hear(at_ms);
    }

    /// The source has got to `at`, but sends nothing.
    pub fn miss(&self, at: ReplOffset) {
        self.state().link.miss(at);
    }

    /// The source is a replica that has not heard its master since then, or hears it (again) and has got to `at`.
    pub fn set_upstream(&self, down_since_ms: Option<i64>, at: ReplOffset) {
        self.state().link.set_upstream(down_since_ms, at);
    }

    /// Says that an earlier run has seen the source last at that time.
    pub fn set_behind(&self, since_ms: i64) {
        self.state().link.set_behind(since_ms);
    }

    /// How old what was written before the link was joined may be, in ms; 0 once that is applied.
    pub(super) fn behind_ms(&self, applied: ReplOffset, now_ms: i64) -> u64 {
        self.state().link.behind_ms(applied, now_ms)
    }

    /// For how long nothing has come of what the source may have written, in ms; `None` while all comes.
    pub fn down_ms(&self, now_ms: i64) -> Option<u64> {
        self.down(now_ms).map(|(ms, _)| ms)
    }

    /// The same, and why.
    pub fn down(&self, now_ms: i64) -> Option<(u64, Down)> {
        let (since, why) = self.state().link.down(now_ms)?;
        Some((
            u64::try_from(now_ms.saturating_sub(since)).unwrap_or(0),
            why,
        ))
    }

    /// The source has got to `at`: until that has arrived, there is a lag although nothing waits here.
    pub fn await_offset(&self, at: ReplOffset) {
        self.state().link.await_offset(at);
    }

    /// What the source has written up to `at` (`None`: nobody knows how far) has waited to be read.
    pub fn note_late(&self, at: Option<ReplOffset>, now_ms: i64) {
        self.state().link.note_late(at, now_ms);
    }

    /// What was written before this has been under way since before the link was joined.
    pub fn expected(&self) -> ReplOffset {
        self.state().link.expected()
    }

    /// The end of what is known to exist, arrived or not.
    pub fn known_end(&self) -> ReplOffset {
        let state = self.state();
        state.stream_end.max(state.link.expected())
    }
}
