//! The target's own keys: those that it held before the migration began.
//!
//! on_existing "skip" keeps each of them for good. "replace" keeps it until the source has a key of that name: that one
//! replaces it as a whole, never as a change on top of it, and from then on the key is the migration's.

use super::existing::{Existing, NameFile};
use crate::error::Result;
use crate::types::DbIndex;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Keys of the target, by its own databases and names.
#[derive(Default)]
pub struct Own {
    keys: Existing,
    replaced: Option<Mutex<Replaced>>,
}

/// Which of them the source's keys have replaced.
struct Replaced {
    keys: Existing,
    path: PathBuf,
    file: Option<NameFile>,
    /// Something has been put that is not on disk.
    unsaved: bool,
}

impl Own {
    /// on_existing "skip".
    pub fn kept(keys: Existing) -> Own {
        Own {
            keys,
            replaced: None,
        }
    }

    /// on_existing "replace"; `dir` is where it is noted what has been replaced.
    pub fn replaceable(keys: Existing, dir: &Path) -> Result<Own> {
        Ok(Own {
            keys,
            replaced: Some(Mutex::new(Replaced {
                keys: Existing::load_taken(dir)?,
                path: Existing::taken_path(dir),
                file: None,
                unsaved: false,
            })),
        })
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether the key is the target's own.
    pub fn has(&self, db: DbIndex, name: &[u8]) -> bool {
        self.keys.contains(db, name)
            && !(self.replaced()).is_some_and(|replaced| replaced.keys.contains(db, name))
    }

    /// Whether a key of the source may replace it.
    pub fn may_be_replaced(&self) -> bool {
        self.replaced.is_some()
    }

    fn replaced(&self) -> Option<MutexGuard<'_, Replaced>> {
        let replaced = self.replaced.as_ref()?;
        Some(replaced.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes that a key of the source takes the place of one that [`Own::has`]; to be called before it is written.
    pub fn replace(&self, db: DbIndex, name: &[u8]) -> Result<()> {
        let Some(mut replaced) = self.replaced() else {
            return Ok(());
        };
        if replaced.file.is_none() {
            replaced.file = Some(NameFile::append(&replaced.path)?);
        }
        if let Some(file) = &mut replaced.file {
            // A kill must not forget it: the key is on its way to the target in a moment.
            file.put(db, name)?;
            file.hand_over()?;
        }
        replaced.keys.insert(db, name);
        replaced.unsaved = true;
        Ok(())
    }

    /// To be called before a mark is saved that passes what was replaced: a key that is forgotten would outlive a flush
    /// of the source as the target's own.
    pub fn save(&self) -> Result<()> {
        let Some(mut replaced) = self.replaced() else {
            return Ok(());
        };
        if std::mem::take(&mut replaced.unsaved)
            && let Some(file) = &mut replaced.file
        {
            file.save()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Existing {
        let mut keys = Existing::default();
        keys.insert(DbIndex(0), b"own");
        keys
    }

    #[test]
    fn what_is_kept_stays_the_targets() {
        let own = Own::kept(own());
        assert!(own.has(DbIndex(0), b"own") && !own.has(DbIndex(1), b"own"));
        own.replace(DbIndex(0), b"own").expect("nothing happens");
        assert!(own.has(DbIndex(0), b"own") && !own.may_be_replaced());
    }

    #[test]
    fn what_was_replaced_is_known_after_a_restart() {
        let dir = tempfile::tempdir().expect("a folder");
        let first = Own::replaceable(own(), dir.path()).expect("it is read");
        assert!(first.has(DbIndex(0), b"own"));
        first.replace(DbIndex(0), b"own").expect("it is noted");
        assert!(!first.has(DbIndex(0), b"own"));
        // A kill saves nothing.
        let second = Own::replaceable(own(), dir.path()).expect("it is read");
        assert!(!second.has(DbIndex(0), b"own"));
    }
}
