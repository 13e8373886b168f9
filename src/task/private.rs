//! Folders and files that only their owner may read: they hold user data.

use crate::error::{Context, ErrorKind, Result};
use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Creates a folder, and those above it that are not there, for its owner alone.
pub fn private_dir(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .context(ErrorKind::Disk, || {
            format!("create the folder {}", dir.display())
        })
}

/// Options that create a file for its owner alone; one that is there keeps its mode.
pub fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}
