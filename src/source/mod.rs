//! The source: its masters, the replication link to each, and the spool between link and decoder.

pub mod aof;
pub mod gzip;
pub mod handshake;
pub mod keys;
pub mod lead;
pub mod mix;
pub mod place;
pub mod psync;
pub mod pulse;
mod receiver;
pub mod spool;

use crate::error::{Context, ErrorKind, Result};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Creates a folder that only its owner may read: it will hold user data.
pub fn private_dir(dir: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .context(ErrorKind::Disk, || {
            format!("create the folder {}", dir.display())
        })
}
