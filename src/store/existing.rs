//! The keys that the target held before the first write (on_existing "skip"), kept in a file of the plan's folder.
//!
//! Invariant: the file is complete or not there; it is written before anything is written to the target.

use crate::error::{Context, ErrorKind, Result};
use crate::types::{DbIndex, db_key};
use std::collections::HashSet;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Keys of the target, by its own database.
#[derive(Debug, Default)]
pub struct Existing(HashSet<Vec<u8>>);

impl Existing {
    pub fn path(dir: &Path) -> PathBuf {
        dir.join("existing")
    }

    /// What an earlier run has found; `None` when none has looked.
    pub fn load(dir: &Path) -> Option<Existing> {
        let bytes = std::fs::read(Existing::path(dir)).ok()?;
        let (mut keys, mut rest) = (HashSet::new(), bytes.as_slice());
        while let Some((len, after)) = rest.split_first_chunk::<4>() {
            let Some((key, after)) = after.split_at_checked(u32::from_le_bytes(*len) as usize)
            else {
                break;
            };
            keys.insert(key.to_vec());
            rest = after;
        }
        Some(Existing(keys))
    }

    pub fn save(&self, dir: &Path) -> Result<()> {
        let path = Existing::path(dir);
        let mut bytes = Vec::new();
        for key in &self.0 {
            bytes.extend_from_slice(&u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend_from_slice(key);
        }
        let failed = || format!("write {}", path.display());
        let unfinished = path.with_extension("new");
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)
            .context(ErrorKind::Disk, failed)?;
        file.write_all(&bytes)
            .and_then(|()| file.sync_data())
            .context(ErrorKind::Disk, failed)?;
        std::fs::rename(&unfinished, &path).context(ErrorKind::Disk, failed)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn extend(&mut self, more: Existing) {
        self.0.extend(more.0);
    }

    pub fn insert(&mut self, db: DbIndex, key: &[u8]) {
        self.0.insert(db_key(db, key));
    }

    pub fn contains(&self, db: DbIndex, key: &[u8]) -> bool {
        !self.0.is_empty() && self.0.contains(&db_key(db, key))
    }
}
