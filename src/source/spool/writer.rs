//! The end of a spool that is written to.

use super::files::{create, segments, write};
use super::shared::Spool;
use crate::error::{Context, ErrorKind, Result};
use std::fs::File;
use std::path::PathBuf;
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
        {
            let len = &mut self.spool.state().snapshot.len;
            *len = len.saturating_add(bytes.len() as u64);
        }
        self.spool.changed.notify_all();
        Ok(())
    }

    /// The snapshot is whole; what is returned forces it to disk, which takes a while and keeps nobody waiting.
    #[must_use = "a later run relies on it only when it is on disk"]
    pub fn finish_snapshot(&mut self) -> impl FnOnce() -> Result<()> + Send + use<> {
        let file = self.file.take();
        self.spool.state().snapshot.complete = true;
        self.spool.changed.notify_all();
        let spool = self.spool.clone();
        move || {
            if let Some((file, path, _)) = file {
                file.sync_data().context(ErrorKind::Disk, || {
                    format!("force {} to disk", path.display())
                })?;
            }
            spool.state().snapshot.durable = true;
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
            *len = len.saturating_add(bytes.len() as u64);
        }
        let mut state = self.spool.state();
        let stream_end = end.plus(bytes.len() as u64);
        let late = state.link.came(end, stream_end, now_ms);
        state.stream_end = stream_end;
        state.arrivals.add(stream_end, now_ms, late);
        drop(state);
        self.spool.grown.notify_one();
        Ok(())
    }
}
