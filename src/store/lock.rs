//! One process per plan: an advisory lock on a file that names its holder.
//!
//! The kernel releases it when the process ends, however it ends; so a stale lock cannot exist.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::task::{private_dir, private_file};
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

/// How often a lock that is held is tried again, and after what time.
const LOOKS: u32 = 10;
const MOMENT: Duration = Duration::from_millis(5);

/// Held as long as a process works on a plan's folder.
#[derive(Debug)]
#[must_use = "the lock is released when it is dropped"]
pub struct Lock {
    /// The lock lives as long as this is open.
    _file: File,
}

impl Lock {
    /// Errors: `Locked` with the other process's id; `Disk` when the file cannot be made.
    pub fn acquire(dir: &Path) -> Result<Lock> {
        private_dir(dir)?;
        let path = dir.join("lock");
        let mut file = private_file()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .context(ErrorKind::Disk, || {
                format!("open the lock file {}", path.display())
            })?;
        let mut looks = 0;
        while let Err(e) = file.try_lock() {
            match e {
                // Whoever only looks whether it is held has it for a moment.
                TryLockError::WouldBlock if looks < LOOKS => looks += 1,
                TryLockError::WouldBlock => return Err(held(&mut file, dir)),
                TryLockError::Error(e) => {
                    return Err(
                        Error::new(ErrorKind::Disk, format!("lock {}", path.display())).cause(e),
                    );
                }
            }
            std::thread::sleep(MOMENT);
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .context(ErrorKind::Disk, || {
                format!("write the lock file {}", path.display())
            })?;
        Ok(Lock { _file: file })
    }

    /// Whether a process holds the lock now.
    pub fn is_held(dir: &Path) -> bool {
        File::open(dir.join("lock")).is_ok_and(|file| is_locked(&file))
    }

    /// The process that holds the lock now, if one does and has said who it is.
    pub fn holder(dir: &Path) -> Option<u32> {
        let mut file = File::open(dir.join("lock")).ok()?;
        is_locked(&file).then(|| pid(&mut file)).flatten()
    }
}

fn is_locked(file: &File) -> bool {
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

fn pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn held(file: &mut File, dir: &Path) -> Error {
    let (who, stop) = match pid(file) {
        Some(pid) => (
            format!("another keyferry (pid {pid})"),
            format!("`kill -INT {pid}`"),
        ),
        None => ("another keyferry".into(), "Ctrl-C".into()),
    };
    Error::new(
        ErrorKind::Locked,
        format!("{who} is working on this plan, in {}", dir.display()),
    )
    .hint(format!(
        "stop it first ({stop} saves its state), or use another --work-dir"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_with_the_pid_of_the_first_until_that_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::acquire(dir.path()).unwrap();
        let refused = Lock::acquire(dir.path()).unwrap_err();
        let me = std::process::id();
        assert_eq!(
            (refused.kind(), refused.exit_code()),
            (ErrorKind::Locked, 3)
        );
        assert!(
            refused
                .to_string()
                .contains(&format!("another keyferry (pid {me}) is working")),
            "{refused}"
        );
        assert_eq!(Lock::holder(dir.path()), Some(me));
        drop(first);
        assert_eq!(Lock::holder(dir.path()), None);
        let _again = Lock::acquire(dir.path()).unwrap();
    }
}
