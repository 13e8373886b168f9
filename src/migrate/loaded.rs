//! Which keys a snapshot has brought, where an earlier attempt has left keys: what the target holds beside them is older
//! than the snapshot, whatever the source holds under those names by now.
//!
//! Hashes of 64 bits in a file, eight bytes a key; they are read back in parts that fit into memory.

use crate::error::{Context, ErrorKind, Result};
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Hashes held at once: 64 MB.
const PART: u64 = 4_000_000;

pub struct Loaded {
    path: PathBuf,
    out: Option<BufWriter<File>>,
    /// An attempt goes on that has written some already.
    resumed: bool,
}

impl Loaded {
    pub fn open(dir: &Path, resumed: bool) -> Loaded {
        let mut loaded = Loaded {
            path: dir.join("loaded"),
            out: None,
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
                let file = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .mode(0o600)
                    .open(&self.path)
                    .context(ErrorKind::Disk, &failed)?;
                let whole = match self.resumed {
                    // The last one may have been cut off by a kill.
                    true => file.metadata().map_or(0, |m| m.len() / 8 * 8),
                    false => 0,
                };
                file.set_len(whole).context(ErrorKind::Disk, &failed)?;
                self.out.insert(BufWriter::with_capacity(1 << 16, file))
            }
        };
        out.write_all(&hash.to_le_bytes())
            .context(ErrorKind::Disk, failed)
    }

    /// To be called before a mark is saved that passes what was added.
    pub fn save(&mut self) -> Result<()> {
        let failed = self.failed();
        match &mut self.out {
            Some(out) => out.flush().context(ErrorKind::Disk, failed),
            None => Ok(()),
        }
    }

    /// In how many parts the hashes are to be read.
    pub fn parts(&mut self) -> Result<u64> {
        self.save()?;
        let bytes = std::fs::metadata(&self.path).map_or(0, |m| m.len());
        Ok((bytes / 8).div_ceil(PART).max(1))
    }

    /// The hashes of one part: those that leave `part` when divided by `parts`.
    pub fn part(&mut self, part: u64, parts: u64) -> Result<HashSet<u64>> {
        let mut hashes = HashSet::new();
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
                hashes.insert(hash);
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
        let mut loaded = Loaded::open(dir.path(), false);
        for n in 0..100 {
            loaded.add(n).expect("it is noted");
        }
        assert_eq!(loaded.parts().expect("parts"), 1);
        // A kill in the middle of a hash.
        let file = OpenOptions::new()
            .append(true)
            .open(dir.path().join("loaded"));
        file.expect("the file").write_all(b"abc").expect("a piece");
        let mut loaded = Loaded::open(dir.path(), true);
        loaded.add(100).expect("it is noted");
        loaded.save().expect("it is written");
        let odd = loaded.part(1, 2).expect("a part");
        assert!(odd.len() == 50 && odd.contains(&99) && !odd.contains(&100));
        assert_eq!(loaded.part(0, 1).expect("all").len(), 101);
        let mut loaded = Loaded::open(dir.path(), false);
        loaded.add(7).expect("it is noted");
        loaded.save().expect("it is written");
        assert_eq!(loaded.part(0, 1).expect("all"), HashSet::from([7]));
        loaded.done();
        assert!(loaded.part(0, 1).expect("none").is_empty());
    }
}
