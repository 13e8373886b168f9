//! Sockets in a folder of ours, whatever the length of its path.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};

/// What a socket's name may take: `sockaddr_un` has 108 bytes.
const LONGEST: usize = 100;

/// Listens at `dir/name`, in place of whoever has ended without removing it; the caller holds the folder's lock.
pub fn listen(dir: &Path, name: &str) -> io::Result<UnixListener> {
    let _ = std::fs::remove_file(dir.join(name));
    let (path, _held) = short(dir, name)?;
    UnixListener::bind(path)
}

/// Connects to whoever listens there.
pub async fn connect(dir: &Path, name: &str) -> io::Result<UnixStream> {
    let (path, _held) = short(dir, name)?;
    UnixStream::connect(path).await
}

/// The same place by a name that fits; the folder must be kept open as long as it is used.
fn short(dir: &Path, name: &str) -> io::Result<(PathBuf, Option<File>)> {
    let path = dir.join(name);
    if path.as_os_str().len() < LONGEST {
        return Ok((path, None));
    }
    let folder = File::open(dir)?;
    let path = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
    Ok((path.into(), Some(folder)))
}
