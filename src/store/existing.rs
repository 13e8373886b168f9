//! The keys that the target held before the first write, and which of them have been overwritten since, in two files of
//! the plan's folder.
//!
//! Invariant: the first file is complete or not there, and it is written before anything is written to the target.

use crate::error::{Context, ErrorKind, Result};
use crate::keyset::KeySet;
use crate::task::{private_file, sync_name};
use crate::types::{DbIndex, db_key, split_db_key};
use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind as Io, Read, Write};
use std::path::{Path, PathBuf};

/// A set of keys, by hashes.
pub struct Existing {
    keys: KeySet,
    count: u64,
}

impl Default for Existing {
    fn default() -> Existing {
        Existing {
            keys: KeySet::unbounded(),
            count: 0,
        }
    }
}

impl Existing {
    pub fn path(dir: &Path) -> PathBuf {
        dir.join("existing")
    }

    /// The keys of the target's own that the source's have replaced since.
    pub fn taken_path(dir: &Path) -> PathBuf {
        dir.join("existing.taken")
    }

    /// What an earlier run has found; `None` when none has looked.
    pub fn load(dir: &Path) -> Result<Option<Existing>> {
        Existing::read(&Existing::path(dir))
    }

    /// What an earlier run has overwritten.
    pub fn load_taken(dir: &Path) -> Result<Existing> {
        Ok(Existing::read(&Existing::taken_path(dir))?.unwrap_or_default())
    }

    fn read(path: &Path) -> Result<Option<Existing>> {
        let failed = || format!("read {}", path.display());
        let mut reader = match File::open(path) {
            Ok(file) => BufReader::new(file),
            Err(e) if e.kind() == Io::NotFound => return Ok(None),
            Err(e) => return Err(e).context(ErrorKind::Disk, failed),
        };
        let mut found = Existing::default();
        let (mut len, mut name) = ([0; 4], Vec::new());
        loop {
            name.clear();
            let read = reader.read_exact(&mut len).and_then(|()| {
                let len = u64::from(u32::from_le_bytes(len));
                match (&mut reader).take(len).read_to_end(&mut name)? as u64 == len {
                    true => Ok(()),
                    // Cut off by a kill: what it names was not yet relied upon.
                    false => Err(Io::UnexpectedEof.into()),
                }
            });
            match read {
                Ok(()) => {
                    let (db, key) = split_db_key(&name);
                    found.insert(db, &key);
                }
                Err(e) if e.kind() == Io::UnexpectedEof => return Ok(Some(found)),
                Err(e) => return Err(e).context(ErrorKind::Disk, failed),
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn insert(&mut self, db: DbIndex, key: &[u8]) {
        self.keys.put(db, key);
        self.count += 1;
    }

    pub fn contains(&self, db: DbIndex, key: &[u8]) -> bool {
        !self.is_empty() && self.keys.has(db, key)
    }
}

/// Writes names to a file that [`Existing`] reads.
pub struct NameFile {
    path: PathBuf,
    out: BufWriter<File>,
}

impl NameFile {
    /// A file that is not there until [`NameFile::finish`].
    pub fn begin(path: &Path) -> Result<NameFile> {
        let unfinished = path.with_extension("new");
        let file = (private_file().create(true).write(true).truncate(true)).open(&unfinished);
        NameFile::over(file, path)
    }

    /// A file that grows; what a kill has left of its last name is cut off.
    pub fn append(path: &Path) -> Result<NameFile> {
        let file = (private_file().create(true).append(true)).open(path);
        let file = NameFile::over(file, path)?;
        let whole = whole_len(path).context(ErrorKind::Disk, || file.failed())?;
        (file.out.get_ref().set_len(whole)).context(ErrorKind::Disk, || file.failed())?;
        sync_name(path)?;
        Ok(file)
    }

    fn over(file: std::io::Result<File>, path: &Path) -> Result<NameFile> {
        let file = file.context(ErrorKind::Disk, || format!("open {}", path.display()))?;
        Ok(NameFile {
            path: path.to_owned(),
            out: BufWriter::new(file),
        })
    }

    fn failed(&self) -> String {
        format!("write {}", self.path.display())
    }

    pub fn put(&mut self, db: DbIndex, key: &[u8]) -> Result<()> {
        let name = db_key(db, key);
        let len = u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes();
        let written = (self.out.write_all(&len)).and_then(|()| self.out.write_all(&name));
        written.context(ErrorKind::Disk, || self.failed())
    }

    /// Hands what was put to the system: it outlives this process.
    pub fn hand_over(&mut self) -> Result<()> {
        self.out.flush().context(ErrorKind::Disk, || self.failed())
    }

    /// Hands what was put to the disk.
    pub fn save(&mut self) -> Result<()> {
        let saved = (self.out.flush()).and_then(|()| self.out.get_ref().sync_data());
        saved.context(ErrorKind::Disk, || self.failed())
    }

    pub fn finish(mut self) -> Result<()> {
        self.save()?;
        std::fs::rename(self.path.with_extension("new"), &self.path)
            .context(ErrorKind::Disk, || self.failed())?;
        sync_name(&self.path)
    }
}

/// How long a file is up to the end of its last whole name.
fn whole_len(path: &Path) -> std::io::Result<u64> {
    let mut reader = BufReader::new(File::open(path)?);
    let (mut whole, mut len) = (0, [0; 4]);
    while reader.read_exact(&mut len).is_ok() {
        let n = u64::from(u32::from_le_bytes(len));
        if std::io::copy(&mut (&mut reader).take(n), &mut std::io::sink())? != n {
            break;
        }
        whole += 4 + n;
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_and_a_torn_one_does_not() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(Existing::load(dir.path()).expect("it is read").is_none());
        let mut file = NameFile::begin(&Existing::path(dir.path())).expect("a file");
        file.put(DbIndex(3), b"a").expect("it is put");
        assert!(Existing::load(dir.path()).expect("it is read").is_none());
        file.finish().expect("it is there");
        let found = (Existing::load(dir.path()).expect("it is read")).expect("it is there");
        assert!(found.contains(DbIndex(3), b"a") && !found.contains(DbIndex(0), b"a"));

        let path = Existing::taken_path(dir.path());
        let mut taken = NameFile::append(&path).expect("a file");
        taken.put(DbIndex(0), b"first").expect("it is put");
        taken.save().expect("it is saved");
        let mut torn = private_file().append(true).open(&path).expect("a file");
        torn.write_all(&[9, 0, 0, 0, 1, 2]).expect("a piece");
        let mut taken = NameFile::append(&path).expect("a file");
        taken.put(DbIndex(0), b"second").expect("it is put");
        taken.save().expect("it is saved");
        let found = Existing::load_taken(dir.path()).expect("it is read");
        assert!(found.contains(DbIndex(0), b"first") && found.contains(DbIndex(0), b"second"));
        assert_eq!(found.count, 2);
    }
}
