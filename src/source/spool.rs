//! The spool: what the source sends is appended here as it comes, and decoded from here at the target's pace.
//!
//! A source that is written to never waits for the target, so its replica output buffer does not overflow.
//! A shard's folder holds `snapshot.rdb` and the stream as segments named by the offset of their first byte.
//! Invariant: bytes are in the file before they are announced, so whatever was sent to the target can be read again.

mod arrivals;
mod link;
mod tail;

pub use link::Down;
pub use tail::{SnapshotTail, StreamTail};

use crate::error::{Context, ErrorKind, Result};
use crate::types::{ReplId, ReplOffset, unix_ms};
use arrivals::Arrivals;
use link::{LATE_MS, LinkState, QUIET_MS};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;

const SEGMENT_BYTES: u64 = 64 << 20;
/// Free space that the spool leaves to others.
const DISK_RESERVE: u64 = 128 << 20;
/// At least this much of a snapshot is left to the disk at once.
const UNREAD_BYTES: u64 = 8 << 20;
const SNAPSHOT: &str = "snapshot.rdb";

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
    arrivals: Arrivals,
    /// What comes up to there, or up to then, was written while nothing could come: nobody knows when.
    late_to: ReplOffset,
    late_until_ms: i64,
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
    fn new(snapshot_len: u64, start: ReplOffset, end: ReplOffset, arrivals: Arrivals) -> State {
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
            arrivals,
            late_to: ReplOffset(0),
            late_until_ms: 0,
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
        let arrivals = Arrivals::open(dir, start, end, unix_ms());
        Ok(Arc::new(Spool {
            dir: dir.to_owned(),
            limit,
            state: Mutex::new(State::new(snapshot_len, start, end, arrivals)),
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
        let none = ReplOffset(0);
        let mut arrivals = Arrivals::open(&self.dir, none, none, unix_ms());
        arrivals.begin(none);
        *self.state() = State::new(0, none, none, arrivals);
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
        state.arrivals.begin(at);
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
        (state.arrivals.oldest(applied)).map_or(0, |at| u64::try_from(now_ms - at).unwrap_or(0))
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

fn create(path: &Path, truncate: bool) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(truncate)
        .append(!truncate)
        .mode(0o600)
        .open(path)
        .context(ErrorKind::Disk, || format!("open {}", path.display()))
}

fn write(file: &mut File, bytes: &[u8], path: &Path) -> Result<()> {
    file.write_all(bytes).context(ErrorKind::Disk, || {
        format!("write to the spool {}", path.display())
    })
}

/// Appends to a spool; there is one, in the source link.
pub struct SpoolWriter {
    spool: Arc<Spool>,
    file: Option<(File, PathBuf, u64)>,
}

impl SpoolWriter {
    pub fn new(spool: Arc<Spool>) -> SpoolWriter {
        SpoolWriter { spool, file: None }
    }

    pub fn append_snapshot(&mut self, bytes: &[u8]) -> Result<()> {
        if self.file.is_none() {
            let path = self.spool.snapshot_path();
            self.file = Some((create(&path, true)?, path, 0));
        }
        if let Some((file, path, _)) = &mut self.file {
            write(file, bytes, path)?;
        }
        self.spool.state().snapshot_len += bytes.len() as u64;
        self.spool.changed.notify_all();
        Ok(())
    }

    /// The snapshot is whole; what is returned forces it to disk, which takes a while and keeps nobody waiting.
    #[must_use = "a later run relies on it only when it is on disk"]
    pub fn finish_snapshot(&mut self) -> impl FnOnce() -> Result<()> + Send + use<> {
        let file = self.file.take();
        self.spool.state().snapshot_complete = true;
        self.spool.changed.notify_all();
        let spool = self.spool.clone();
        move || {
            if let Some((file, path, _)) = file {
                file.sync_data().context(ErrorKind::Disk, || {
                    format!("force {} to disk", path.display())
                })?;
            }
            spool.state().snapshot_durable = true;
            Ok(())
        }
    }

    pub fn append_stream(&mut self, bytes: &[u8], now_ms: i64) -> Result<()> {
        let end = self.spool.stream_end();
        if self
            .file
            .as_ref()
            .is_none_or(|(_, _, len)| *len >= self.spool.segment_bytes())
        {
            // A segment is only ever started at the exact end of the one before.
            let last = segments(&self.spool.dir)?
                .last()
                .copied()
                .filter(|(at, len)| at.plus(*len) == end && *len < self.spool.segment_bytes());
            let (start, len) = last.unwrap_or((end, 0));
            let path = self.spool.segment(start);
            self.file = Some((create(&path, false)?, path, len));
        }
        if let Some((file, path, len)) = &mut self.file {
            write(file, bytes, path)?;
            *len += bytes.len() as u64;
        }
        let mut state = self.spool.state();
        let heard = std::mem::replace(&mut state.heard_ms, now_ms);
        if state.link == LinkState::Up && now_ms.saturating_sub(heard) > QUIET_MS {
            state.note_behind(heard, end.plus(bytes.len() as u64));
            state.late_until_ms = now_ms.saturating_add(LATE_MS);
        }
        state.stream_end = end.plus(bytes.len() as u64);
        let late =
            end < state.late_to || now_ms < state.late_until_ms || state.upstream_down_ms.is_some();
        let stream_end = state.stream_end;
        state.arrivals.add(stream_end, now_ms, late);
        drop(state);
        self.spool.grown.notify_one();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
