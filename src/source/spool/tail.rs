//! Reading the spool while it grows: the snapshot to its end, the stream from an offset on.

use super::files::segments;
use super::shared::Spool;
use super::state::Part;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::types::ReplOffset;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;

/// Reads the snapshot while it is still arriving; blocks for more, ends at its end.
pub struct SnapshotTail {
    spool: Arc<Spool>,
    file: Option<File>,
    at: u64,
    /// Of several files it reads one.
    part: Option<Part>,
}

impl SnapshotTail {
    /// Reads from byte `at` on, to the end of the file that it lies in.
    pub fn new(spool: Arc<Spool>, at: u64) -> SnapshotTail {
        SnapshotTail {
            part: spool.part(at),
            spool,
            file: None,
            at,
        }
    }
}

impl Read for SnapshotTail {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let mut state = self.spool.state();
        state.snapshot.read = self.at;
        while state.snapshot.len <= self.at {
            if state.snapshot.complete {
                return Ok(0);
            }
            if state.ended_early() {
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
            state = self
                .spool
                .changed
                .wait(state)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        if state.ended_early() {
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        let end = self.part.as_ref().map_or(state.snapshot.len, Part::end);
        let there = end.saturating_sub(self.at);
        drop(state);
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let (path, from) = match &self.part {
                    Some(part) => (part.path.clone(), part.from),
                    None => (self.spool.snapshot_path(), 0),
                };
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(self.at.saturating_sub(from)))?;
                self.file.insert(file)
            }
        };
        let want = buf.len().min(usize::try_from(there).unwrap_or(usize::MAX));
        let n = file.read(buf.get_mut(..want).unwrap_or_default())?;
        self.at = self.at.saturating_add(n as u64);
        Ok(n)
    }
}

/// Reads the stream from an offset on.
pub struct StreamTail {
    spool: Arc<Spool>,
    file: Option<(File, ReplOffset)>,
    at: ReplOffset,
}

impl StreamTail {
    pub fn new(spool: Arc<Spool>, at: ReplOffset) -> StreamTail {
        StreamTail {
            spool,
            file: None,
            at,
        }
    }

    /// The offset of the byte that is read next.
    pub fn at(&self) -> ReplOffset {
        self.at
    }

    /// Appends what is there to `buf`, at most `most` bytes; returns how many.
    pub fn read(&mut self, buf: &mut Vec<u8>, most: usize) -> Result<usize> {
        let there = self.spool.stream_end().since(self.at);
        if there == 0 {
            return Ok(0);
        }
        self.enter_segment()?;
        let Some((file, _)) = &mut self.file else {
            return Ok(0);
        };
        let want = most.min(usize::try_from(there).unwrap_or(usize::MAX));
        let n = file
            .take(want as u64)
            .read_to_end(buf)
            .context(ErrorKind::Disk, || {
                format!("read the spool in {}", self.spool.dir.display())
            })?;
        self.at = self.at.plus(n as u64);
        if n == 0 {
            // The end of this segment: the next call opens the next one.
            self.file = None;
            return self.read(buf, most);
        }
        Ok(n)
    }

    fn enter_segment(&mut self) -> Result<()> {
        if self.file.is_some() {
            return Ok(());
        }
        let found = segments(&self.spool.dir)?
            .into_iter()
            .rev()
            .find(|(start, _)| *start <= self.at);
        let Some((start, len)) = found.filter(|(start, len)| start.plus(*len) > self.at) else {
            return Err(Error::new(
                ErrorKind::State,
                format!(
                    "the spool in {} does not hold offset {}",
                    self.spool.dir.display(),
                    self.at
                ),
            ));
        };
        let _ = len;
        let path = self.spool.segment(start);
        let mut file =
            File::open(&path).context(ErrorKind::Disk, || format!("open {}", path.display()))?;
        file.seek(SeekFrom::Start(self.at.since(start)))
            .context(ErrorKind::Disk, || format!("read {}", path.display()))?;
        self.file = Some((file, start));
        Ok(())
    }
}
