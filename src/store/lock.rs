//! One process at a time may change a plan's state.

use crate::error::{Context, Error, ErrorKind, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The right to change a plan's state: one process at a time, given back when it ends in whatever way.
pub struct Lock {
    _file: File,
}

impl Lock {
    pub fn acquire(dir: &Path) -> Result<Lock> {
        let path = dir.join("lock");
        let failed = || format!("lock {}", path.display());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .context(ErrorKind::Disk, failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                return Err(Error::new(
                    ErrorKind::Locked,
                    format!(
                        "another keyferry (pid {}) is working on this plan",
                        pid.trim()
                    ),
                ));
            }
            Err(TryLockError::Error(e)) => return Err(e).context(ErrorKind::Disk, failed),
        }
        file.set_len(0).context(ErrorKind::Disk, failed)?;
        file.rewind().context(ErrorKind::Disk, failed)?;
        writeln!(file, "{}", std::process::id()).context(ErrorKind::Disk, failed)?;
        Ok(Lock { _file: file })
    }
}
