//! Which keys may have an expiry, and which are known to be gone: commands on a key that expired early must not run.
//!
//! Clocks and lag let a key expire on the target although the source has renewed it. While lagging, commands on such
//! keys are not replayed but healed; else each is sent behind a guard, an EXISTS (or HEXISTS) whose 0 says that it ran
//! on nothing.

use crate::error::{Context, ErrorKind, Result};
use crate::types::DbIndex;
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Another name means other places of the bits: an older file is not taken for this one.
const FILE: &str = "timed-2";
/// 8 MiB: one key in a hundred is wrongly suspected with 3.5 million timed keys.
const WORDS: usize = 1 << 20;
const PAGE_WORDS: usize = 512;
/// Pages that lie together are written together, up to this many words.
const RUN_WORDS: usize = 64 * PAGE_WORDS;
/// Bits of a cache line.
const LINE: usize = 512;
/// Keys that set their bits together.
const SOON: usize = 32;
/// Names of keys known to be gone; more are forgotten, which only costs a reading each.
const ABSENT: usize = 500_000;

/// Keys that may have an expiry on the target (or fields that have one), and such fields: a Bloom filter, so some have
/// none.
///
/// It is kept in a file, because keys outlive the process that wrote them.
pub struct MaybeTimed {
    bits: Vec<u64>,
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

/// Parts of the file that are to be written.
pub struct Pages {
    path: PathBuf,
    file: Arc<File>,
    /// Where each one lies, and its words.
    pages: Vec<(u64, Vec<u64>)>,
}

impl Pages {
    pub fn write(&self) -> Result<()> {
        let mut bytes = Vec::new();
        for (at, words) in &self.pages {
            bytes.clear();
            bytes.extend(words.iter().flat_map(|w| w.to_le_bytes()));
            self.file
                .write_all_at(&bytes, *at)
                .context(ErrorKind::Disk, || format!("write {}", self.path.display()))?;
        }
        Ok(())
    }
}

impl MaybeTimed {
    /// `begun`: an earlier run has written keys.
    pub fn open(dir: &Path, begun: bool) -> MaybeTimed {
        let path = dir.join(FILE);
        let words = |bytes: Vec<u8>| -> Option<Vec<u64>> {
            let words = bytes.chunks_exact(8);
            let words = words.map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default()));
            Some(words.collect()).filter(|w: &Vec<u64>| w.len() == WORDS)
        };
        let kept = match begun {
            true => std::fs::read(&path).ok().and_then(words),
            false => Some(vec![0; WORDS]),
        };
        if !begun {
            // What an earlier migration has left is about other keys.
            let _ = std::fs::remove_file(&path);
        }
        MaybeTimed {
            complete: kept.is_some(),
            bits: kept.unwrap_or_else(|| vec![0; WORDS]),
            path,
            file: None,
            fresh: vec![false; WORDS / PAGE_WORDS],
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
        let file = match &self.file {
            Some(file) => file,
            None => {
                let file = OpenOptions::new()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .mode(0o600)
                    .open(&self.path)
                    .context(ErrorKind::Disk, failed)?;
                file.set_len(WORDS as u64 * 8)
                    .context(ErrorKind::Disk, failed)?;
                self.file.insert(Arc::new(file))
            }
        };
        let mut pages = Pages {
            path: self.path.clone(),
            file: file.clone(),
            pages: Vec::new(),
        };
        for (page, fresh) in self.fresh.iter_mut().enumerate() {
            if std::mem::take(fresh) {
                let from = page * PAGE_WORDS;
                let words = self.bits.get(from..from + PAGE_WORDS).unwrap_or_default();
                let at = from as u64 * 8;
                match pages.pages.last_mut() {
                    Some((start, run))
                        if *start + run.len() as u64 * 8 == at && run.len() < RUN_WORDS =>
                    {
                        run.extend_from_slice(words);
                    }
                    _ => pages.pages.push((at, words.to_vec())),
                }
            }
        }
        Ok(Some(pages))
    }

    fn hash(key: &[u8]) -> u64 {
        crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, key)
    }

    /// Two bits in one line of the processor's cache.
    fn places(hash: u64) -> [usize; 2] {
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let line = (mixed >> 32) as usize % (WORDS * 64 / LINE);
        let within = |shift: u32| (mixed >> shift) as usize % LINE;
        [line * LINE + within(14), line * LINE + within(23)]
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
            let [place, _] = MaybeTimed::places(*hash);
            seen ^ self.bits.get(place / 64).copied().unwrap_or_default()
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
        for place in MaybeTimed::places(hash) {
            let (word, bit) = (place / 64, 1u64 << (place % 64));
            if let Some(word) = self.bits.get_mut(word)
                && *word & bit == 0
            {
                *word |= bit;
                if let Some(fresh) = self.fresh.get_mut(place / 64 / PAGE_WORDS) {
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
        let has = |place: &usize| {
            (self.bits.get(place / 64)).is_some_and(|word| word & 1 << (place % 64) != 0)
        };
        !self.complete || MaybeTimed::places(hash).iter().all(has) || self.soon.contains(&hash)
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
            if self.absent.len() >= ABSENT {
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
        let mut timed = MaybeTimed::open(dir.path(), false);
        timed.add(b"a");
        timed.take_fresh().unwrap().unwrap().write().unwrap();
        timed.add_soon(b"b");
        assert!(timed.may(b"b"));
        timed.take_fresh().unwrap().unwrap().write().unwrap();
        let again = MaybeTimed::open(dir.path(), true);
        assert!(again.may(b"a") && again.may(b"b") && !again.may(b"c"));
        // A new migration knows nothing, and one without the file suspects everything.
        assert!(!MaybeTimed::open(dir.path(), false).may(b"a"));
        assert!(MaybeTimed::open(dir.path(), true).may(b"c"));
    }

    #[test]
    fn few_are_suspected_wrongly() {
        let dir = tempfile::tempdir().unwrap();
        let mut timed = MaybeTimed::open(dir.path(), false);
        for n in 0..1_000_000 {
            timed.add(format!("key:{n}").as_bytes());
        }
        let wrong = (0..100_000).filter(|n| timed.may(format!("other:{n}").as_bytes()));
        assert!(wrong.count() < 200);
    }

    #[test]
    fn fields_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let mut timed = MaybeTimed::open(dir.path(), false);
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
        let mut timed = MaybeTimed::open(dir.path(), false);
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
