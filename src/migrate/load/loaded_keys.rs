//! Which keys a snapshot has brought, where an earlier attempt has left keys: what the target holds beside them is older
//! than the snapshot, whatever the source holds under those names by now.
//!
//! Hashes of 64 bits in a file, eight bytes a key; they are read back in parts that fit into memory.

use crate::error::{Context, ErrorKind, Result};
use crate::keyset::KeySet;
use crate::task::{Unsynced, private_file};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) struct LoadedKeys {
    path: PathBuf,
    out: Option<BufWriter<Arc<File>>>,
    /// Something was added since the last [`LoadedKeys::save`].
    added: bool,
    /// An attempt goes on that has written some already.
    resumed: bool,
}

impl LoadedKeys {
    pub fn open(dir: &Path, resumed: bool) -> LoadedKeys {
        let mut loaded = LoadedKeys {
            path: dir.join("loaded"),
            out: None,
            added: false,
            resumed,
        };
        if !resumed {
            loaded.done();
        }
        loaded
    }

    fn failed(&self) -> impl Fn() -> String + use<> {
        let path = self.path.clone();
        move || format!("write {}", path.display())
    }

    /// Notes a key, by its [`key_hash`](crate::types::key_hash) under the target's database.
    pub fn add(&mut self, hash: u64) -> Result<()> {
        let failed = self.failed();
        let out = match &mut self.out {
            Some(out) => out,
            None => {
                let file = private_file()
                    .create(true)
                    .append(true)
                    .open(&self.path)
                    .context(ErrorKind::Disk, &failed)?;
                let whole = match self.resumed {
                    // The last one may have been cut off by a kill.
                    true => file.metadata().map_or(0, |m| m.len() / 8 * 8),
                    false => 0,
                };
                file.set_len(whole).context(ErrorKind::Disk, &failed)?;
                (self.out).insert(BufWriter::with_capacity(1 << 16, Arc::new(file)))
            }
        };
        self.added = true;
        out.write_all(&hash.to_le_bytes())
            .context(ErrorKind::Disk, failed)
    }

    /// Writes down what was added; returns the file, which the disk must have before a mark is saved that passes it.
    pub fn save(&mut self) -> Result<Option<Unsynced>> {
        let failed = self.failed();
        match &mut self.out {
            Some(out) if std::mem::take(&mut self.added) => {
                out.flush().context(ErrorKind::Disk, failed)?;
                // The first time in a run its name is new; it is not worth a field to say so.
                Ok(Some(Unsynced::new(out.get_ref(), &self.path, true)))
            }
            _ => Ok(None),
        }
    }

    /// In how many parts the hashes are to be read to take no more than so many bytes, and what one of them takes.
    pub fn parts(&mut self, room: usize) -> Result<(u64, usize)> {
        self.save()?;
        let bytes = std::fs::metadata(&self.path).map_or(0, |m| m.len());
        let most = KeySet::room(room as u64).max(1) as u64;
        let parts = (bytes / 8).div_ceil(most).max(1);
        Ok((parts, KeySet::bytes((bytes / 8 / parts) as usize).min(room)))
    }

    /// The hashes of one part, those that leave `part` when divided by `parts`; rehashed, as anybody can make names with
    /// hashes that crowd the same places of a table.
    pub fn part(&mut self, part: u64, parts: u64) -> Result<KeySet> {
        let mut hashes = KeySet::unbounded();
        let file = match File::open(&self.path) {
            Ok(file) => file,
            // Nothing was loaded.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(hashes),
            Err(e) => return Err(e).context(ErrorKind::Disk, self.failed()),
        };
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let mut bytes = [0; 8];
        loop {
            match reader.read_exact(&mut bytes) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(hashes),
                Err(e) => return Err(e).context(ErrorKind::Disk, self.failed()),
            }
            let hash = u64::from_le_bytes(bytes);
            if hash % parts == part {
                hashes.put_hash(hashes.rehash(hash));
            }
        }
    }

    /// The file has done its work, or another load begins.
    pub fn done(&mut self) {
        self.out = None;
        self.resumed = false;
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_goes_on_and_a_new_one_begins_empty() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut loaded = LoadedKeys::open(dir.path(), false);
        for n in 0..100 {
            loaded.add(n).expect("it is noted");
        }
        let (parts, bytes) = loaded.parts(1 << 20).expect("parts");
        assert!(parts == 1 && bytes < 10_000, "{bytes}");
        assert!(loaded.parts(64 * 9).expect("parts").0 > 1);
        // A kill in the middle of a hash.
        let file = std::fs::OpenOptions::new()
            .append(true)
            .open(dir.path().join("loaded"));
        file.expect("the file").write_all(b"abc").expect("a piece");
        let mut loaded = LoadedKeys::open(dir.path(), true);
        loaded.add(100).expect("it is noted");
        loaded.save().expect("it is written");
        let odd = loaded.part(1, 2).expect("a part");
        assert!((0..101).all(|n| odd.has_hash(odd.rehash(n)) == (n % 2 == 1)));
        let all = loaded.part(0, 1).expect("all");
        assert!((0..101).all(|n| all.has_hash(all.rehash(n))));
        let mut loaded = LoadedKeys::open(dir.path(), false);
        loaded.add(7).expect("it is noted");
        loaded.save().expect("it is written");
        let has = |loaded: &mut LoadedKeys, n| {
            let all = loaded.part(0, 1).expect("all");
            all.has_hash(all.rehash(n))
        };
        assert!(has(&mut loaded, 7) && !has(&mut loaded, 1));
        loaded.done();
        assert!(!has(&mut loaded, 7));
    }
}
