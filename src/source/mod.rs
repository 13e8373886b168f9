//! The source: its masters, the replication link to each, and the spool between link and decoder.

pub mod aof;
pub mod gzip;
pub mod handshake;
pub mod place;
pub mod psync;
pub mod spool;

use crate::error::{Context, ErrorKind, Result};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

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

/// Now, as Unix time in milliseconds.
pub fn unix_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}
