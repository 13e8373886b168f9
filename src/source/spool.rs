//! The spool: what the source sends is appended here as it comes, and decoded from here at the target's pace.
//!
//! A source that is written to never waits for the target, so its replica output buffer does not overflow.
//! A shard's folder holds `snapshot.rdb` and the stream as segments named by the offset of their first byte.
//! Invariant: bytes are in the file before they are announced, so whatever was sent to the target can be read again.

mod tail;
#[cfg(test)]
mod tests;
mod writer;

pub use tail::{SnapshotTail, StreamTail};
pub use writer::SpoolWriter;

use crate::error::{Context, ErrorKind, Result};
use crate::types::{ReplId, ReplOffset};
use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;

const SEGMENT_BYTES: u64 = 64 << 20;
/// Free space that the spool leaves to others.
const DISK_RESERVE: u64 = 128 << 20;
/// At least this much of a snapshot is left to the disk at once.
const UNREAD_BYTES: u64 = 8 << 20;
const SNAPSHOT: &str = "snapshot.rdb";
/// Arrival times are kept for pieces at least this far apart, and this many of them.
const ARRIVAL_GRAIN_MS: i64 = 5;
const ARRIVALS: usize = 1 << 16;
/// A source pings its replicas every 10 s (`repl-ping-replica-period`; where it does less often, the link asks it after
/// 11 s): after a longer silence nobody knows what it has written.
const QUIET_MS: i64 = 15_000;

/// Why no more bytes will come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The run is stopping; what is spooled may be read on or left for the next run.
    Stopped,
    /// The file is read: nothing comes after what is spooled.
    Finished,
    /// The source has started a new full sync: the snapshot and stream spooled here do not go on.
    Superseded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkState {
    /// It has not been up in this run.
    NotYet,
    Up,
    /// Nothing can arrive since then (unix ms).
    Down(i64),
}

/// Why nothing comes of what the source may have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Down {
    /// There is no link.
    Link,
    /// There is one, but nothing has come over it for longer than a source is silent.
    Quiet,
    /// The source is a replica without a link to its master.
    Upstream,
}

#[derive(Debug)]
struct State {
    snapshot_len: u64,
    /// How far the pump has read it.
    snapshot_read: u64,
    /// Before the first, the snapshot has been left to the disk; before the second it is on its way there.
    on_disk: (u64, u64),
    snapshot_total: Option<u64>,
    snapshot_complete: bool,
    /// Also after a power cut.
    snapshot_durable: bool,
    stream_start: ReplOffset,
    stream_end: ReplOffset,
    released: ReplOffset,
    end: Option<End>,
    arrivals: VecDeque<(ReplOffset, i64)>,
    /// The history that the spooled bytes belong to.
    replid: Option<ReplId>,
    /// Where the source went on under another replication id, the first time that nobody has dealt with.
    history_from: Option<ReplOffset>,
    /// A snapshot file of the user's, read where it lies.
    file: Option<PathBuf>,
    link: LinkState,
    /// When the source was last known to have sent all that it had written (unix ms).
    heard_ms: i64,
    /// The source is a replica that does not hear its own master since then.
    upstream_down_ms: Option<i64>,
    /// Since when the source may have written what `expected` says, as long as that is not applied.
    behind_since_ms: Option<i64>,
    /// The disk is nearly full, whatever the limit says.
    disk_low: bool,
    /// How far the source was when the link was joined.
    expected: ReplOffset,
}

impl State {
    /// With a snapshot of this length and a stream from `start` to `end` on disk.
    fn new(snapshot_len: u64, start: ReplOffset, end: ReplOffset) -> State {
        State {
            snapshot_len,
            snapshot_read: 0,
            on_disk: (0, 0),
            snapshot_total: None,
            snapshot_complete: false,
            snapshot_durable: false,
            stream_start: start,
            stream_end: end,
            released: start,
            end: None,
            arrivals: VecDeque::new(),
            replid: None,
            history_from: None,
            file: None,
            link: LinkState::NotYet,
            heard_ms: 0,
            upstream_down_ms: None,
            behind_since_ms: None,
            disk_low: false,
            expected: ReplOffset(0),
        }
    }

    /// Since when what the source has written may not have come, and why; `None` while all comes.
    fn down(&self, now_ms: i64) -> Option<(i64, Down)> {
        let link = match self.link {
            LinkState::Down(since) => Some((since, Down::Link)),
            LinkState::Up if now_ms.saturating_sub(self.heard_ms) > QUIET_MS => {
                Some((self.heard_ms, Down::Quiet))
            }
            _ => None,
        };
        let upstream = self.upstream_down_ms.map(|since| (since, Down::Upstream));
        link.into_iter()
            .chain(upstream)
            .min_by_key(|(since, _)| *since)
    }

    /// What comes now may be as old as `since_ms`, up to where the source is known to be.
    fn note_behind(&mut self, since_ms: i64, at: ReplOffset) {
        let since = self.behind_since_ms.map_or(since_ms, |s| s.min(since_ms));
        self.behind_since_ms = Some(since);
        self.expected = self.expected.max(at);
    }

    /// The snapshot is of no use any more, or not now.
    fn ended_early(&self) -> bool {
        matches!(self.end, Some(End::Stopped | End::Superseded))
    }
}

/// One source shard's spool, shared by the link that fills it and the pump that empties it.
pub struct Spool {
    dir: PathBuf,
    limit: u64,
    state: Mutex<State>,
    changed: Condvar,
    /// The same for [`Spool::grown`].
    grown: Notify,
}

impl Spool {
    /// Opens the folder and whatever an earlier run left in it.
    pub fn open(dir: &Path, limit: u64) -> Result<Arc<Spool>> {
        crate::source::private_dir(dir)?;
        let snapshot_len = std::fs::metadata(dir.join(SNAPSHOT)).map_or(0, |m| m.len());
        let segments = segments(dir)?;
        let start = segments.first().map_or(ReplOffset(0), |s| s.0);
        let end = segments
            .last()
            .map_or(ReplOffset(0), |(at, len)| at.plus(*len));
        Ok(Arc::new(Spool {
            dir: dir.to_owned(),
            limit,
            state: Mutex::new(State::new(snapshot_len, start, end)),
            changed: Condvar::new(),
            grown: Notify::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
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
        *self.state() = State::new(0, ReplOffset(0), ReplOffset(0));
        Ok(())
    }

    fn segment(&self, start: ReplOffset) -> PathBuf {
        self.dir.join(format!("stream-{:020}", start.0))
    }

    /// Its folder, also for what else must not be held in memory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn snapshot_path(&self) -> PathBuf {
        self.state()
            .file
            .clone()
            .unwrap_or_else(|| self.dir.join(SNAPSHOT))
    }

    /// Takes a snapshot file of the user's for the snapshot.
    pub fn use_file(&self, path: &Path) -> Result<()> {
        let meta = std::fs::metadata(path).context(ErrorKind::Disk, || {
            format!("open the snapshot {}", path.display())
        })?;
        let mut state = self.state();
        state.file = Some(path.to_owned());
        state.snapshot_len = meta.len();
        state.snapshot_complete = true;
        state.snapshot_durable = true;
        Ok(())
    }

    /// Says whether the link to the source is up.
    pub fn set_link(&self, up: bool, now_ms: i64) {
        let mut state = self.state();
        // What it has written since it fell silent has not come either.
        let since = state.down(now_ms).map_or(now_ms, |(since, _)| since);
        state.link = match (up, state.link) {
            (true, _) => LinkState::Up,
            (false, down @ LinkState::Down(_)) => down,
            (false, _) => LinkState::Down(since),
        };
        if up {
            state.heard_ms = now_ms;
        } else {
            state.upstream_down_ms = None;
            state.behind_since_ms.get_or_insert(since);
        }
    }

    /// All that the source had written at that time is here, although it has sent nothing.
    pub fn hear(&self, at_ms: i64) {
        let mut state = self.state();
        state.heard_ms = state.heard_ms.max(at_ms);
    }

    /// The source has got to `at`, but sends nothing.
    pub fn miss(&self, at: ReplOffset) {
        let mut state = self.state();
        let since = state.heard_ms;
        state.note_behind(since, at);
    }

    /// The source is a replica that has not heard its master since then, or hears it (again) and has got to `at`.
    pub fn set_upstream(&self, down_since_ms: Option<i64>, at: ReplOffset) {
        let mut state = self.state();
        match (down_since_ms, state.upstream_down_ms) {
            (Some(since), before) => {
                state.upstream_down_ms = Some(before.map_or(since, |b| b.min(since)));
            }
            (None, Some(since)) => {
                state.upstream_down_ms = None;
                state.note_behind(since, at);
            }
            (None, None) => {}
        }
    }

    /// Says that an earlier run has seen the source last at that time.
    pub fn set_behind(&self, since_ms: i64) {
        self.state().behind_since_ms = Some(since_ms);
    }

    /// How old what was written before the link was joined may be, in ms; 0 once that is applied.
    fn behind_ms(&self, applied: ReplOffset, now_ms: i64) -> u64 {
        let mut state = self.state();
        let down = state.down(now_ms).map(|(since, _)| since);
        if state.link == LinkState::Up && down.is_none() && applied >= state.expected {
            state.behind_since_ms = None;
        }
        (state.behind_since_ms.into_iter().chain(down).min())
            .map_or(0, |since| u64::try_from(now_ms - since).unwrap_or(0))
    }

    /// For how long nothing has come of what the source may have written, in ms; `None` while all comes.
    pub fn down_ms(&self, now_ms: i64) -> Option<u64> {
        self.down(now_ms).map(|(ms, _)| ms)
    }

    /// The same, and why.
    pub fn down(&self, now_ms: i64) -> Option<(u64, Down)> {
        let (since, why) = self.state().down(now_ms)?;
        Some((u64::try_from(now_ms - since).unwrap_or(0), why))
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
        state.snapshot_complete = true;
        state.snapshot_durable = true;
    }

    /// Whether the whole snapshot is there for a later run, come what may.
    pub fn is_snapshot_durable(&self) -> bool {
        self.state().snapshot_durable
    }

    /// The stream begins (or goes on) at `at`; everything spooled before it is kept.
    pub fn start_stream(&self, at: ReplOffset) {
        let mut state = self.state();
        state.stream_start = at;
        state.stream_end = at;
        state.released = at;
    }

    pub fn set_snapshot_total(&self, total: Option<u64>) {
        self.state().snapshot_total = total;
    }

    /// Bytes of the snapshot that are here, and how many of them the pump has read.
    pub fn load(&self) -> (u64, u64) {
        let state = self.state();
        (state.snapshot_len, state.snapshot_read)
    }

    /// Bytes of the snapshot spooled so far, its length if known, and whether it is whole.
    pub fn snapshot(&self) -> (u64, Option<u64>, bool) {
        let state = self.state();
        (
            state.snapshot_len,
            state.snapshot_total,
            state.snapshot_complete,
        )
    }

    /// The source has got to `at`: until that has arrived, there is a lag although nothing waits here.
    pub fn await_offset(&self, at: ReplOffset) {
        self.state().expected = at;
    }

    /// What was written before this has been under way since before the link was joined.
    pub fn expected(&self) -> ReplOffset {
        self.state().expected
    }

    /// The end of what is known to exist, arrived or not.
    pub fn known_end(&self) -> ReplOffset {
        let state = self.state();
        state.stream_end.max(state.expected)
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
        state.snapshot_len + state.stream_end.since(state.released)
    }

    /// A segment is freed as a whole, so a small spool has small ones.
    fn segment_bytes(&self) -> u64 {
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
        while state
            .arrivals
            .front()
            .is_some_and(|(end, _)| *end <= applied)
        {
            state.arrivals.pop_front();
        }
        state
            .arrivals
            .front()
            .map_or(0, |(_, at)| u64::try_from(now_ms - at).unwrap_or(0))
    }

    /// How old the oldest that is not applied may be, in ms: by its arrival, or, when it was written while the link was
    /// down (as it may be still), by when that began.
    pub fn age_ms(&self, applied: ReplOffset, now_ms: i64) -> u64 {
        (self.lag_ms(applied, now_ms)).max(self.behind_ms(applied, now_ms))
    }

    /// When the byte at `offset` arrived, as far as it is still known.
    pub fn arrival_ms(&self, offset: ReplOffset) -> Option<i64> {
        let state = self.state();
        let i = state.arrivals.partition_point(|(end, _)| *end <= offset);
        state.arrivals.get(i).map(|(_, at)| *at)
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
        let (free_from, sent_to) = state.on_disk;
        if state.file.is_some() || at < sent_to + UNREAD_BYTES {
            return;
        }
        state.on_disk = (sent_to, at);
        drop(state);
        // Pages that are not on the disk yet are sent there; they are free the next time.
        if let Ok(file) = File::open(self.dir.join(SNAPSHOT)) {
            let len = std::num::NonZeroU64::new(at - free_from);
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
        self.state().snapshot_len = 0;
        Ok(())
    }
}

/// The stream segments in a folder, in order: first offset and length.
fn segments(dir: &Path) -> Result<Vec<(ReplOffset, u64)>> {
    let mut found = Vec::new();
    let entries =
        std::fs::read_dir(dir).context(ErrorKind::Disk, || format!("list {}", dir.display()))?;
    for entry in entries {
        let entry = entry.context(ErrorKind::Disk, || format!("list {}", dir.display()))?;
        let name = entry.file_name();
        if let Some(start) = name
            .to_str()
            .and_then(|n| n.strip_prefix("stream-"))
            .and_then(|n| n.parse().ok())
        {
            found.push((ReplOffset(start), entry.metadata().map_or(0, |m| m.len())));
        }
    }
    found.sort_unstable();
    Ok(found)
}
