//! Held expiries: while the target catches up, a key must not expire there before its renewal arrives.
//!
//! Such a key gets a far expiry on the target and a line in a file; when the stream has caught up, each line's key
//! gets the expiry that the source tells then, or is removed if the source has it no more.
//! Invariant: the lines are on disk before the checkpoint passes the commands that hold the keys back;
//! a crash before that makes the same commands come again.
//! What was released stays in a file of its own until it is known to survive a failover of the target.

use crate::error::{Context, ErrorKind, Result};
use crate::task::{Unsynced, private_file, sync_file};
use crate::types::DbIndex;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How far ahead a held expiry is put; if keyferry never comes back, the keys still end.
pub(crate) const HOLD_MS: i64 = 24 * 3600 * 1000;
/// Lag above which expiries are held in the stream as well.
pub(crate) const LAG_MS: u64 = 500;

/// Set in a line's database number: the key is released by reading it whole.
const HEAL_WHOLE: u32 = 1 << 31;

/// The file of held keys.
pub(crate) struct Held {
    path: PathBuf,
    file: Option<Arc<File>>,
    pending: Vec<u8>,
    /// Lines in the file, as far as this process knows; 1 stands for "some" after a restart.
    pub count: u64,
}

impl Held {
    pub fn open(dir: &Path) -> Held {
        let path = dir.join("held");
        let there = |name: &str| std::fs::metadata(dir.join(name)).is_ok_and(|m| m.len() > 0);
        let count = ["held", "held.releasing", "held.released"]
            .iter()
            .filter(|name| there(name))
            .count() as u64;
        Held {
            path,
            file: None,
            pending: Vec::new(),
            count,
        }
    }

    /// What was released has survived.
    pub fn settled(&self) -> Result<()> {
        let path = self.path.with_extension("released");
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).context(ErrorKind::Disk, || format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// What was released may have gone with a master of the target: it is to be released again.
    pub fn again(&mut self) {
        self.count = self
            .count
            .saturating_add(u64::from(self.path.with_extension("released").exists()));
    }

    /// Notes a key; [`Held::save`] writes it down.
    pub fn note(&mut self, db: DbIndex, key: &[u8]) {
        self.pending.extend_from_slice(&db.0.to_le_bytes());
        self.pending
            .extend_from_slice(&u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.pending.extend_from_slice(key);
        self.count = self.count.saturating_add(1);
    }

    /// Notes a key that is released by reading it whole: its fields have expiries.
    pub fn note_whole(&mut self, db: DbIndex, key: &[u8]) {
        self.note(DbIndex(db.0 | HEAL_WHOLE), key);
    }

    /// Appends what was noted to the file; returns it when the disk may not have all of it.
    pub fn save(&mut self) -> Result<Option<Unsynced>> {
        if self.pending.is_empty() {
            return Ok(None);
        }
        let is_new = self.file.is_none();
        let failed = || format!("write the held expiries to {}", self.path.display());
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = private_file().create(true).append(true).open(&self.path);
                let file = file.context(ErrorKind::Disk, failed)?;
                self.file.insert(Arc::new(file))
            }
        };
        (&**file)
            .write_all(&self.pending)
            .context(ErrorKind::Disk, failed)?;
        self.pending.clear();
        Ok(Some(Unsynced::new(file, &self.path, is_new)))
    }

    /// Takes all lines away for releasing; new ones go to a new file.
    pub fn take(&mut self) -> Result<Releasing> {
        if let Some(file) = self.save()? {
            // The next checkpoint does not know of it.
            file.sync()?;
        }
        self.file = None;
        self.count = 0;
        let taken = self.path.with_extension("releasing");
        let failed = || format!("release the held expiries in {}", taken.display());
        // Released by a run that has ended, or before the target lost a master.
        let before = self.path.with_extension("released");
        if before.exists() {
            append(&before, &taken)?;
        }
        if taken.exists() {
            // An earlier release was interrupted: what has come since is added to it.
            if self.path.exists() {
                append(&self.path, &taken)?;
            }
        } else if self.path.exists() {
            std::fs::rename(&self.path, &taken).context(ErrorKind::Disk, failed)?;
        } else {
            return Ok(Releasing {
                path: taken,
                reader: None,
            });
        }
        let reader = BufReader::new(File::open(&taken).context(ErrorKind::Disk, failed)?);
        Ok(Releasing {
            path: taken,
            reader: Some(reader),
        })
    }
}

/// Moves the lines of one file to the end of another; at no moment the disk has none of them.
fn append(from: &Path, to: &Path) -> Result<()> {
    let failed = || {
        format!(
            "move the held expiries in {} to {}",
            from.display(),
            to.display()
        )
    };
    if !to.exists() {
        return std::fs::rename(from, to).context(ErrorKind::Disk, failed);
    }
    let mut more = File::open(from).context(ErrorKind::Disk, failed)?;
    let old = OpenOptions::new().append(true).open(to);
    let mut old = old.context(ErrorKind::Disk, failed)?;
    std::io::copy(&mut more, &mut old).context(ErrorKind::Disk, failed)?;
    sync_file(&old, to)?;
    std::fs::remove_file(from).context(ErrorKind::Disk, failed)
}

/// A key whose expiry is held back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeldKey {
    pub db: DbIndex,
    pub key: Vec<u8>,
    /// It is read whole.
    pub whole: bool,
}

/// Lines being released; the file goes when all of them are done.
pub(crate) struct Releasing {
    path: PathBuf,
    reader: Option<BufReader<File>>,
}

impl Releasing {
    /// The next keys, at most `most`; empty at the end.
    pub fn next(&mut self, most: usize) -> Result<Vec<HeldKey>> {
        let mut keys = Vec::new();
        let Some(reader) = &mut self.reader else {
            return Ok(keys);
        };
        while keys.len() < most {
            let mut head = [0u8; 8];
            match reader.read_exact(&mut head) {
                Ok(()) => {}
                // A torn last line was never sent.
                Err(_) => break,
            }
            let [a, b, c, d, e, f, g, h] = head;
            let mut key = vec![0u8; u32::from_le_bytes([e, f, g, h]) as usize];
            if reader.read_exact(&mut key).is_err() {
                break;
            }
            let db = u32::from_le_bytes([a, b, c, d]);
            keys.push(HeldKey {
                db: DbIndex(db & !HEAL_WHOLE),
                key,
                whole: db & HEAL_WHOLE != 0,
            });
        }
        Ok(keys)
    }

    /// All are on their way; they are kept until [`Held::settled`].
    pub fn done(self) -> Result<()> {
        if self.reader.is_some() {
            let kept = self.path.with_extension("released");
            append(&self.path, &kept)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::on_sync;

    /// Were the disk without the lines when their first file goes, a power cut would lose them.
    #[test]
    fn lines_are_on_disk_before_the_file_that_they_come_from_goes() {
        let dir = tempfile::tempdir().unwrap();
        let both = [
            ("held", "held.releasing"),
            ("held.releasing", "held.released"),
        ];
        for (from, to) in both.map(|(from, to)| (dir.path().join(from), dir.path().join(to))) {
            std::fs::write(&from, "more").unwrap();
            std::fs::write(&to, "some").unwrap();
            let synced = Arc::new(std::sync::Mutex::new(Vec::new()));
            let (seen, left) = (synced.clone(), from.clone());
            on_sync::with(move |path| {
                let text = std::fs::read_to_string(path).unwrap();
                seen.lock().unwrap().push((text, left.exists()));
            });
            append(&from, &to).unwrap();
            assert_eq!(*synced.lock().unwrap(), [("somemore".to_owned(), true)]);
            assert!(!from.exists());
        }
    }

    #[test]
    fn held_keys_survive_a_restart_and_an_interrupted_release() {
        let dir = tempfile::tempdir().unwrap();
        let mut held = Held::open(dir.path());
        assert_eq!(held.count, 0);
        held.note(DbIndex(3), b"a");
        held.save().unwrap();
        drop(held.take().unwrap()); // interrupted: not done()
        let mut held = Held::open(dir.path());
        assert_eq!(held.count, 1);
        held.note_whole(DbIndex(0), b"b");
        let mut all = held.take().unwrap();
        let held_key = |db, key: &[u8], whole| HeldKey {
            db: DbIndex(db),
            key: key.to_vec(),
            whole,
        };
        assert_eq!(
            all.next(10).unwrap(),
            [held_key(3, b"a", false), held_key(0, b"b", true)]
        );
        assert!(all.next(10).unwrap().is_empty());
        all.done().unwrap();
        // Until it is known to have survived, another run releases it again.
        let mut held = Held::open(dir.path());
        assert_eq!(held.count, 1);
        let mut again = held.take().unwrap();
        assert_eq!(again.next(10).unwrap().len(), 2);
        again.done().unwrap();
        held.note(DbIndex(0), b"c");
        held.again();
        let mut both = held.take().unwrap();
        assert_eq!(both.next(10).unwrap().len(), 3);
        both.done().unwrap();
        held.settled().unwrap();
        assert_eq!(Held::open(dir.path()).count, 0);
    }
}
