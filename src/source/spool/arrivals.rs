//! When the bytes of the stream came: how old what is not applied is, and what a relative TTL counts from.
//!
//! What was written while nothing could come (the link was down, a snapshot was on its way) tells nothing of when: it is
//! late. The times are kept in a file for the next run, which takes what a kill has cut off from it for late.
//! Invariant: a time that is told is right to within [`COARSEST_MS`]; where that is not known, none is told.

use super::files::create;
use crate::types::ReplOffset;
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

const FILE: &str = "arrivals";
/// Times are kept for pieces at least this far apart, and this many of them; beyond, neighbours become one.
const GRAIN_MS: i64 = 5;
const MOST: usize = 1 << 16;
/// Pieces longer than this do not tell when their bytes came.
const COARSEST_MS: i64 = 500;
/// Every so often what has come is written to the file.
const SAVE_EVERY_MS: i64 = 100;
/// The file is written anew when it holds so many pieces.
const MOST_SAVED: u64 = 4 * MOST as u64;
const RECORD: usize = 16;

/// Bytes up to `end` came at `at_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Arrival {
    end: ReplOffset,
    at_ms: i64,
    /// Nobody knows when they were written.
    late: bool,
}

impl Arrival {
    fn record(&self) -> [u8; RECORD] {
        let time = (self.at_ms.unsigned_abs() << 1) | u64::from(self.late);
        let mut record = [0; RECORD];
        let (end, at) = record.split_at_mut(8);
        end.copy_from_slice(&self.end.0.to_le_bytes());
        at.copy_from_slice(&time.to_le_bytes());
        record
    }

    fn parse(record: &[u8]) -> Option<Arrival> {
        let (end, time) = record.split_at_checked(8)?;
        let time = u64::from_le_bytes(time.try_into().ok()?);
        Some(Arrival {
            end: ReplOffset(u64::from_le_bytes(end.try_into().ok()?)),
            at_ms: i64::try_from(time >> 1).ok()?,
            late: time & 1 == 1,
        })
    }
}

#[derive(Debug)]
pub(super) struct Arrivals {
    path: PathBuf,
    pieces: VecDeque<Arrival>,
    /// Where the first piece begins.
    from: ReplOffset,
    grain_ms: i64,
    file: Option<File>,
    unsaved: Vec<u8>,
    saved: u64,
    saved_ms: i64,
    /// The file cannot be written: another run will know nothing.
    failed: bool,
}

impl Arrivals {
    /// Those of a stream that lies in `dir` from `start` to `end`.
    pub(super) fn open(dir: &Path, start: ReplOffset, end: ReplOffset, now_ms: i64) -> Arrivals {
        let mut arrivals = Arrivals {
            path: dir.join(FILE),
            pieces: VecDeque::new(),
            from: start,
            grain_ms: GRAIN_MS,
            file: None,
            unsaved: Vec::new(),
            saved: 0,
            saved_ms: 0,
            failed: false,
        };
        let bytes = std::fs::read(&arrivals.path).unwrap_or_default();
        let known = (bytes.chunks_exact(RECORD).filter_map(Arrival::parse))
            .filter(|a| a.end > start && a.end <= end);
        for piece in known {
            if arrivals
                .pieces
                .back()
                .is_none_or(|last| last.end < piece.end)
            {
                arrivals.push(piece);
            }
        }
        if arrivals.end() < end {
            arrivals.push(Arrival {
                end,
                at_ms: now_ms,
                late: true,
            });
        }
        arrivals.rewrite();
        arrivals
    }

    fn end(&self) -> ReplOffset {
        self.pieces.back().map_or(self.from, |last| last.end)
    }

    /// Forgets all; what comes next begins at `at`.
    pub(super) fn begin(&mut self, at: ReplOffset) {
        self.pieces.clear();
        (self.from, self.grain_ms) = (at, GRAIN_MS);
        self.rewrite();
    }

    /// Bytes up to `end` have come.
    pub(super) fn add(&mut self, end: ReplOffset, now_ms: i64, late: bool) {
        let grain_ms = self.grain_ms;
        match self.pieces.back_mut() {
            Some(last) if last.late == late && now_ms.saturating_sub(last.at_ms) < grain_ms => {
                last.end = end;
            }
            last => {
                // It will not become longer.
                if let Some(last) = last {
                    self.unsaved.extend_from_slice(&last.record());
                }
                self.push(Arrival {
                    end,
                    at_ms: now_ms,
                    late,
                });
                if now_ms.saturating_sub(self.saved_ms) >= SAVE_EVERY_MS {
                    self.saved_ms = now_ms;
                    self.save();
                }
            }
        }
    }

    fn push(&mut self, piece: Arrival) {
        if self.pieces.len() >= MOST {
            self.coarsen();
        }
        self.pieces.push_back(piece);
    }

    /// Has two neighbours become one.
    fn coarsen(&mut self) {
        self.grain_ms = self.grain_ms.saturating_mul(2);
        let mut coarser: VecDeque<Arrival> = VecDeque::with_capacity(MOST);
        let mut first = None;
        for piece in std::mem::take(&mut self.pieces) {
            let Some(before): Option<Arrival> = first.take() else {
                first = Some(piece);
                continue;
            };
            let apart = piece.at_ms.saturating_sub(before.at_ms);
            coarser.push_back(Arrival {
                end: piece.end,
                at_ms: before.at_ms,
                late: before.late || piece.late || apart > COARSEST_MS,
            });
        }
        coarser.extend(first);
        self.pieces = coarser;
    }

    /// When the byte at `offset` was written, as far as that is known.
    pub(super) fn written_ms(&self, offset: ReplOffset) -> Option<i64> {
        if offset < self.from {
            return None;
        }
        let i = self.pieces.partition_point(|piece| piece.end <= offset);
        self.pieces.get(i).filter(|p| !p.late).map(|p| p.at_ms)
    }

    /// When the first byte after `applied` came; what is before it is forgotten.
    pub(super) fn oldest(&mut self, applied: ReplOffset) -> Option<i64> {
        while let Some(piece) = self.pieces.front().filter(|p| p.end <= applied) {
            self.from = piece.end;
            self.pieces.pop_front();
        }
        self.pieces.front().map(|piece| piece.at_ms)
    }

    fn save(&mut self) {
        if self.failed || self.unsaved.is_empty() {
            return;
        }
        if self.saved > MOST_SAVED {
            // Its last piece may still become longer: what would be wrong then is the file's end, which is late.
            return self.rewrite();
        }
        let written = match &mut self.file {
            Some(file) => file.write_all(&self.unsaved),
            None => match create(&self.path, false) {
                Ok(file) => self.file.insert(file).write_all(&self.unsaved),
                Err(e) => Err(std::io::Error::other(e.to_string())),
            },
        };
        self.saved = self
            .saved
            .saturating_add((self.unsaved.len() / RECORD) as u64);
        self.unsaved.clear();
        self.note(written);
    }

    /// Writes the file anew, with all but the last piece.
    fn rewrite(&mut self) {
        self.file = None;
        self.unsaved.clear();
        let whole = self.pieces.len().saturating_sub(1);
        let bytes: Vec<u8> = (self.pieces.iter().take(whole))
            .flat_map(Arrival::record)
            .collect();
        self.saved = whole as u64;
        let written = match bytes.is_empty() {
            true => match std::fs::remove_file(&self.path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            },
            false => create(&self.path, true)
                .map_err(|e| std::io::Error::other(e.to_string()))
                .and_then(|mut file| file.write_all(&bytes)),
        };
        self.note(written);
    }

    fn note(&mut self, written: std::io::Result<()>) {
        if let Err(e) = written {
            tracing::warn!("{} cannot be written: {e}", self.path.display());
            self.failed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u64) -> ReplOffset {
        ReplOffset(n)
    }

    #[test]
    fn times_survive_a_kill_but_for_the_last() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut arrivals = Arrivals::open(dir.path(), at(100), at(100), 0);
        arrivals.add(at(110), 1_000, false);
        arrivals.add(at(120), 1_003, false);
        arrivals.add(at(130), 2_000, true);
        arrivals.add(at(140), 3_000, false);
        arrivals.add(at(150), 3_050, false);
        assert_eq!(arrivals.written_ms(at(99)), None, "before the first");
        assert_eq!(arrivals.written_ms(at(119)), Some(1_000));
        assert_eq!(arrivals.written_ms(at(120)), None, "late");
        assert_eq!(arrivals.written_ms(at(130)), Some(3_000));
        assert_eq!(arrivals.written_ms(at(150)), None, "not there yet");
        assert_eq!(arrivals.oldest(at(120)), Some(2_000));
        assert_eq!(arrivals.written_ms(at(100)), None, "forgotten");
        // Killed, with a piece of a record behind the last one.
        let file = dir.path().join(FILE);
        let mut bytes = std::fs::read(&file).expect("the file");
        bytes.extend_from_slice(b"abc");
        std::fs::write(&file, bytes).expect("written");
        let mut again = Arrivals::open(dir.path(), at(100), at(160), 9_000);
        assert_eq!(again.written_ms(at(100)), Some(1_000));
        assert_eq!(again.written_ms(at(125)), None, "late");
        assert_eq!(again.written_ms(at(155)), None, "never saved");
        assert_eq!(again.oldest(at(130)), Some(9_000));
        again.add(at(170), 10_000, false);
        assert_eq!(again.written_ms(at(165)), Some(10_000));
        let none = Arrivals::open(
            tempfile::tempdir().expect("a folder").path(),
            at(1),
            at(9),
            5,
        );
        assert_eq!(none.written_ms(at(3)), None);
    }

    #[test]
    fn more_than_there_is_room_for_becomes_coarser_and_then_late() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut arrivals = Arrivals::open(dir.path(), at(0), at(0), 0);
        let n = 5 * MOST as u64;
        for i in 1..=n {
            arrivals.add(at(i), i as i64 * 10, false);
        }
        assert!(arrivals.pieces.len() <= MOST);
        let told = arrivals.written_ms(at(7)).expect("known");
        assert!((told - 80).abs() <= COARSEST_MS, "{told}");
        let len = std::fs::metadata(dir.path().join(FILE)).map_or(0, |m| m.len());
        assert!(len <= (MOST_SAVED + 100) * RECORD as u64, "{len}");
        arrivals.begin(at(0));
        for i in 1..=n {
            arrivals.add(at(i), i as i64 * 1_000, false);
        }
        assert_eq!(arrivals.written_ms(at(7)), None);
        assert!(arrivals.written_ms(at(n - 1)).is_some());
    }
}
