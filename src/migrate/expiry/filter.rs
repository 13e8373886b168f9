//! Which keys may have an expiry, and which are known to be gone: commands on a key that expired early must not run.
//!
//! Clocks and lag let a key expire on the target although the source has renewed it. While lagging, commands on such
//! keys are not replayed but healed; else each is sent behind a guard, an EXISTS (or HEXISTS) whose 0 says that it ran
//! on nothing.

use crate::error::{Context, ErrorKind, Result};
use crate::task::{Unsynced, private_file};
use crate::types::DbIndex;
use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Another name means other places of the bits: an older file is not taken for this one.
const FILE: &str = "timed-2";
/// At most 8 MiB: one key in a hundred is wrongly suspected with 3.5 million timed keys.
const BLOCKS: usize = 128;
/// At least 256 KiB, where many shards share the memory.
const FEWEST: usize = 4;
/// Memory is taken by the block, when the first of its bits is set.
const BLOCK_LINES: usize = 1024;
/// What is written when one of its bits is new: 4 KiB.
const PAGE_LINES: usize = 64;
/// Bits of a cache line.
const LINE: usize = 512;
const LINE_BYTES: usize = LINE / 8;
/// Keys that set their bits together.
const SOON: usize = 32;
/// Bytes of the filter for each name of a key known to be gone; more names are forgotten, which only costs a reading
/// each. A place of the set takes 9 bytes, and up to half of them are free.
const FOR_ABSENT: usize = 18;

/// A line of the processor's cache. The loop sets bits while the saver reads others of them.
#[repr(align(64))]
#[derive(Default)]
struct Line([AtomicU64; LINE / 64]);

impl Line {
    /// One bit's word and the bit itself.
    fn bit(&self, within: usize) -> Option<(&AtomicU64, u64)> {
        Some((self.0.get(within / 64)?, 1 << (within % 64)))
    }
}

type Block = Arc<[Line]>;

fn empty_block() -> Block {
    (0..BLOCK_LINES).map(|_| Line::default()).collect()
}

/// Keys that may have an expiry on the target (or fields that have one), and such fields: a Bloom filter, so some have
/// none.
///
/// It is kept in a file, because keys outlive the process that wrote them.
pub struct MaybeTimed {
    /// A power of two of blocks.
    bits: Vec<Option<Block>>,
    /// False when an earlier run has left no file: then any key may.
    complete: bool,
    path: PathBuf,
    file: Option<Arc<File>>,
    /// Whether the page has bits that the file does not have.
    fresh: Vec<bool>,
    /// Hashes that have been added, but have not set their bits yet.
    soon: Vec<u64>,
    /// Hashes of timed keys that the source has deleted, so that a command on them makes them anew.
    absent: HashSet<u64>,
}

/// Parts of the file that are to be written, as they are by then: a bit that is set early does no harm.
pub struct Pages {
    path: PathBuf,
    file: Arc<File>,
    /// It has just been made.
    is_new: bool,
    /// Which block, and which of its lines.
    runs: Vec<(usize, Block, Range<usize>)>,
}

impl Pages {
    /// Returns when the disk has them.
    pub fn write(&self) -> Result<()> {
        let mut bytes = Vec::new();
        for (block, lines, run) in &self.runs {
            bytes.clear();
            let lines = lines.get(run.clone()).unwrap_or_default();
            for word in lines.iter().flat_map(|line| &line.0) {
                bytes.extend_from_slice(&word.load(Relaxed).to_le_bytes());
            }
            let at = (block * BLOCK_LINES + run.start) * LINE_BYTES;
            self.file
                .write_all_at(&bytes, at as u64)
                .context(ErrorKind::Disk, || format!("write {}", self.path.display()))?;
        }
        Unsynced::new(&self.file, &self.path, self.is_new).sync()
    }
}

/// The bits of a file.
fn blocks_of(bytes: &[u8]) -> Option<Vec<Option<Block>>> {
    let line = |bytes: &[u8]| {
        let line = Line::default();
        for (word, bytes) in line.0.iter().zip(bytes.chunks_exact(8)) {
            word.store(
                u64::from_le_bytes(bytes.try_into().unwrap_or_default()),
                Relaxed,
            );
        }
        line
    };
    let block = |bytes: &[u8]| {
        let empty = bytes.iter().all(|b| *b == 0);
        (!empty).then(|| bytes.chunks_exact(LINE_BYTES).map(line).collect())
    };
    let blocks = bytes.chunks_exact(BLOCK_LINES * LINE_BYTES);
    let whole = blocks.remainder().is_empty() && blocks.len().is_power_of_two();
    whole.then(|| blocks.map(block).collect())
}

impl MaybeTimed {
    /// `begun`: an earlier run has written keys; its filter keeps the size that it had. A new one takes at most `room`
    /// bytes, if that is not too little.
    pub fn open(dir: &Path, begun: bool, room: usize) -> MaybeTimed {
        let path = dir.join(FILE);
        let most = (room / (BLOCK_LINES * LINE_BYTES)).clamp(FEWEST, BLOCKS);
        let empty = || vec![None; 1 << most.ilog2()];
        let kept = match begun {
            true => (std::fs::read(&path).ok()).and_then(|bytes| blocks_of(&bytes)),
            false => Some(empty()),
        };
        if !begun {
            // What an earlier migration has left is about other keys.
            let _ = std::fs::remove_file(&path);
        }
        let complete = kept.is_some();
        let bits = kept.unwrap_or_else(empty);
        MaybeTimed {
            complete,
            fresh: vec![false; bits.len() * BLOCK_LINES / PAGE_LINES],
            bits,
            path,
            file: None,
            soon: Vec::with_capacity(SOON),
            absent: HashSet::new(),
        }
    }

    /// The bits that the file does not have yet; to be written before the marks that pass the commands which set them.
    pub fn take_fresh(&mut self) -> Result<Option<Pages>> {
        self.add_all();
        if !self.complete || (!self.fresh.contains(&true) && self.file.is_some()) {
            return Ok(None);
        }
        let failed = || format!("write {}", self.path.display());
        let is_new = self.file.is_none();
        let file = match &self.file {
            Some(file) => file,
            None => {
                let file = private_file()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(&self.path)
                    .context(ErrorKind::Disk, failed)?;
                file.set_len((self.lines() * LINE_BYTES) as u64)
                    .context(ErrorKind::Disk, failed)?;
                self.file.insert(Arc::new(file))
            }
        };
        let mut runs: Vec<(usize, Block, Range<usize>)> = Vec::new();
        for (page, fresh) in self.fresh.iter_mut().enumerate() {
            if !std::mem::take(fresh) {
                continue;
            }
            let (block, from) = (
                page * PAGE_LINES / BLOCK_LINES,
                page * PAGE_LINES % BLOCK_LINES,
            );
            match runs.last_mut() {
                Some((last, _, run)) if *last == block && run.end == from => run.end += PAGE_LINES,
                _ => {
                    let lines = self.bits.get(block).and_then(Option::as_ref);
                    runs.extend(lines.map(|l| (block, l.clone(), from..from + PAGE_LINES)));
                }
            }
        }
        Ok(Some(Pages {
            path: self.path.clone(),
            file: file.clone(),
            is_new,
            runs,
        }))
    }

    fn hash(key: &[u8]) -> u64 {
        crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, key)
    }

    fn lines(&self) -> usize {
        self.bits.len() * BLOCK_LINES
    }

    /// A line, and two bits in it.
    fn places(&self, hash: u64) -> (usize, [usize; 2]) {
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let within = |shift: u32| (mixed >> shift) as usize % LINE;
        let line = (mixed >> 32) as usize & (self.lines() - 1);
        (line, [within(14), within(23)])
    }

    fn line(&self, line: usize) -> Option<&Line> {
        let block = self.bits.get(line / BLOCK_LINES)?.as_ref()?;
        block.get(line % BLOCK_LINES)
    }

    pub fn add(&mut self, key: &[u8]) {
        self.add_hash(MaybeTimed::hash(key));
    }

    /// The same for many: each one's place is far from the others' in memory, and the processor fetches several at once.
    pub fn add_soon(&mut self, key: &[u8]) {
        self.soon.push(MaybeTimed::hash(key));
        if self.soon.len() == SOON {
            self.add_all();
        }
    }

    fn add_all(&mut self) {
        let mut soon = std::mem::take(&mut self.soon);
        let seen = soon.iter().fold(0, |seen, hash| {
            let (line, [first, _]) = self.places(*hash);
            let bit = self.line(line).and_then(|line| line.bit(first));
            seen ^ bit.map_or(0, |(word, _)| word.load(Relaxed))
        });
        std::hint::black_box(seen);
        for hash in soon.drain(..) {
            self.add_hash(hash);
        }
        self.soon = soon;
    }

    /// A field that has an expiry of its own; without one, any field of the key may.
    pub fn add_field(&mut self, key: &[u8], field: Option<&[u8]>) {
        self.add_hash(of_field(key, field));
    }

    fn add_hash(&mut self, hash: u64) {
        let (line, bits) = self.places(hash);
        let Some(block) = self.bits.get_mut(line / BLOCK_LINES) else {
            return;
        };
        let block = block.get_or_insert_with(empty_block);
        let Some(lines) = block.get(line % BLOCK_LINES) else {
            return;
        };
        for (word, bit) in bits.into_iter().filter_map(|within| lines.bit(within)) {
            let before = word.load(Relaxed);
            if before & bit == 0 {
                // Nobody else sets any.
                word.store(before | bit, Relaxed);
                if let Some(fresh) = self.fresh.get_mut(line / PAGE_LINES) {
                    *fresh = true;
                }
            }
        }
    }

    /// Whether a key may have an expiry.
    pub fn may(&self, key: &[u8]) -> bool {
        self.known(MaybeTimed::hash(key))
    }

    fn known(&self, hash: u64) -> bool {
        let (line, bits) = self.places(hash);
        let has = |within: usize| {
            let bit = self.line(line).and_then(|line| line.bit(within));
            bit.is_some_and(|(word, bit)| word.load(Relaxed) & bit != 0)
        };
        !self.complete || bits.into_iter().all(has) || self.soon.contains(&hash)
    }

    /// Whether a key has got an expiry and should be there: a command on it needs a guard.
    pub fn expected(&self, db: DbIndex, key: &[u8]) -> bool {
        let hash = MaybeTimed::hash(key);
        self.known(hash) && !self.absent.contains(&in_db(hash, db))
    }

    /// The same of a field.
    pub fn expects_field(&self, db: DbIndex, key: &[u8], field: &[u8]) -> bool {
        let hash = of_field(key, Some(field));
        self.knows_field(key, hash) && !self.absent.contains(&in_db(hash, db))
    }

    fn knows_field(&self, key: &[u8], hash: u64) -> bool {
        self.known(hash) || self.known(of_field(key, None))
    }

    /// Notes that the source holds a key, or has deleted it.
    pub fn note(&mut self, db: DbIndex, key: &[u8], there: bool) {
        if there && self.absent.is_empty() {
            return;
        }
        let hash = MaybeTimed::hash(key);
        let known = there || self.known(hash);
        self.note_hash(db, hash, there, known);
    }

    /// The same of a field.
    pub fn note_field(&mut self, db: DbIndex, key: &[u8], field: &[u8], there: bool) {
        if there && self.absent.is_empty() {
            return;
        }
        let hash = of_field(key, Some(field));
        let known = there || self.knows_field(key, hash);
        self.note_hash(db, hash, there, known);
    }

    fn note_hash(&mut self, db: DbIndex, hash: u64, there: bool, known: bool) {
        if there {
            self.absent.remove(&in_db(hash, db));
        } else if known {
            if self.absent.len() >= self.lines() * LINE_BYTES / FOR_ABSENT {
                self.absent.clear();
            }
            self.absent.insert(in_db(hash, db));
        }
    }

    /// A flush: what is there is not known, and a guard that fails costs a reading.
    pub fn forget_absent(&mut self) {
        self.absent.clear();
    }
}

/// The hash of a field, or of all the fields of a key.
fn of_field(key: &[u8], field: Option<&[u8]>) -> u64 {
    let of_key = MaybeTimed::hash(key).rotate_left(23) ^ 0x5bf0_3635_dcb9_8a3d;
    of_key ^ field.map_or(0, |f| MaybeTimed::hash(f) | 1)
}

fn in_db(hash: u64, db: DbIndex) -> u64 {
    hash ^ u64::from(db.0).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_timed_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut timed = MaybeTimed::open(dir.path(), false, 8 << 20);
        timed.add(b"a");
        timed.take_fresh().unwrap().unwrap().write().unwrap();
        timed.add_soon(b"b");
        assert!(timed.may(b"b"));
        timed.take_fresh().unwrap().unwrap().write().unwrap();
        let again = MaybeTimed::open(dir.path(), true, 8 << 20);
        assert!(again.may(b"a") && again.may(b"b") && !again.may(b"c"));
        // A new migration knows nothing, and one without the file suspects everything.
        assert!(!MaybeTimed::open(dir.path(), false, 8 << 20).may(b"a"));
        assert!(MaybeTimed::open(dir.path(), true, 8 << 20).may(b"c"));
    }

    #[test]
    fn it_keeps_to_its_room_and_an_earlier_one_to_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = || std::fs::metadata(dir.path().join(FILE)).unwrap().len();
        for (room, size) in [(0, 256 << 10), (1_118_481, 1 << 20), (1 << 40, 8 << 20)] {
            let mut timed = MaybeTimed::open(dir.path(), false, room);
            timed.add(b"a");
            timed.take_fresh().unwrap().unwrap().write().unwrap();
            assert_eq!(bytes(), size);
        }
        let mut timed = MaybeTimed::open(dir.path(), true, 0);
        assert!(timed.may(b"a") && !timed.may(b"b"));
        timed.add(b"b");
        timed.take_fresh().unwrap().unwrap().write().unwrap();
        assert_eq!(bytes(), 8 << 20);
        let again = MaybeTimed::open(dir.path(), true, 1 << 20);
        assert!(again.may(b"a") && again.may(b"b") && !again.may(b"c"));
    }

    #[test]
    fn few_are_suspected_wrongly() {
        let dir = tempfile::tempdir().unwrap();
        let mut timed = MaybeTimed::open(dir.path(), false, 8 << 20);
        for n in 0..1_000_000 {
            timed.add(format!("key:{n}").as_bytes());
        }
        let wrong = (0..100_000).filter(|n| timed.may(format!("other:{n}").as_bytes()));
        assert!(wrong.count() < 200);
    }

    #[test]
    fn fields_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let mut timed = MaybeTimed::open(dir.path(), false, 8 << 20);
        let db = DbIndex::ZERO;
        timed.add_field(b"h", Some(b"f"));
        assert!(timed.expects_field(db, b"h", b"f") && !timed.expected(db, b"h"));
        assert!(!timed.expects_field(db, b"h", b"g") && !timed.expects_field(db, b"f", b"h"));
        timed.note_field(db, b"h", b"f", false);
        assert!(!timed.expects_field(db, b"h", b"f"));
        timed.note_field(db, b"h", b"f", true);
        assert!(timed.expects_field(db, b"h", b"f"));
        // Of a hash that was renamed, any field may have one.
        timed.add_field(b"new", None);
        assert!(timed.expects_field(db, b"new", b"g"));
        timed.note_field(db, b"new", b"g", false);
        assert!(!timed.expects_field(db, b"new", b"g") && timed.expects_field(db, b"new", b"f"));
    }

    #[test]
    fn a_deleted_key_is_not_expected_until_it_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut timed = MaybeTimed::open(dir.path(), false, 8 << 20);
        let db = DbIndex::ZERO;
        assert!(!timed.expected(db, b"k"), "it has no expiry");
        timed.add(b"k");
        assert!(timed.expected(db, b"k"));
        timed.note(db, b"k", false);
        assert!(!timed.expected(db, b"k") && timed.expected(DbIndex(1), b"k"));
        timed.note(db, b"k", true);
        assert!(timed.expected(db, b"k"));
    }
}
