//! Files that a saved mark relies on: forced to the disk, with their names, before the mark is.

use crate::error::{Context, ErrorKind, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file with writes that the disk may not have yet.
#[derive(Debug, Clone)]
pub struct Unsynced {
    file: Arc<File>,
    path: PathBuf,
    /// The folder may not have its name yet.
    is_new: bool,
}

impl Unsynced {
    pub fn new(file: &Arc<File>, path: &Path, is_new: bool) -> Unsynced {
        Unsynced {
            file: file.clone(),
            path: path.to_owned(),
            is_new,
        }
    }

    /// Returns when the disk has it.
    pub fn sync(&self) -> Result<()> {
        sync_file(&self.file, &self.path)?;
        match self.is_new {
            true => sync_name(&self.path),
            false => Ok(()),
        }
    }
}

/// Forces what was written to a file to the disk.
pub fn sync_file(file: &File, path: &Path) -> Result<()> {
    let done = file.sync_data().context(ErrorKind::Disk, || {
        format!("force {} to disk", path.display())
    });
    #[cfg(test)]
    on_sync::tell(path);
    done
}

/// Forces the name of a file, new or changed, to the disk.
pub fn sync_name(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let done = File::open(folder).and_then(|folder| folder.sync_all());
    done.context(ErrorKind::Disk, || {
        format!("force {} to disk", folder.display())
    })
}

/// What a test looks at whenever this thread has forced a file to the disk.
#[cfg(test)]
pub mod on_sync {
    use std::cell::RefCell;
    use std::path::Path;

    type Look = Box<dyn FnMut(&Path)>;

    thread_local! {
        static LOOK: RefCell<Option<Look>> = const { RefCell::new(None) };
    }

    pub fn with(look: impl FnMut(&Path) + 'static) {
        LOOK.with(|l| *l.borrow_mut() = Some(Box::new(look)));
    }

    pub(super) fn tell(path: &Path) {
        LOOK.with(|l| {
            if let Some(look) = l.borrow_mut().as_mut() {
                look(path);
            }
        });
    }
}
