//! Appending to a spool: the snapshot, then the stream in segments.

use super::{ARRIVAL_GRAIN_MS, ARRIVALS, LinkState, QUIET_MS, Spool, segments};
use crate::error::{Context, ErrorKind, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
        }
        state.stream_end = end.plus(bytes.len() as u64);
        let stream_end = state.stream_end;
        match state.arrivals.back_mut() {
            Some((last, at)) if now_ms - *at < ARRIVAL_GRAIN_MS => *last = stream_end,
            _ => {
                if state.arrivals.len() == ARRIVALS {
                    state.arrivals.pop_front();
                }
                state.arrivals.push_back((stream_end, now_ms));
            }
        }
        drop(state);
        self.spool.grown.notify_one();
        Ok(())
    }
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
