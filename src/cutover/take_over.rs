//! How a rollback takes over from a cutover that still watches: it asks over a socket in the plan's folder.
//!
//! A signal would need the other's process number, which means nothing in another container that shares the volume.

use crate::error::{Context, ErrorKind, Result};
use crate::store::Lock;
use crate::task::{Shutdown, socket};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long another cutover of the same plan may take to end when it is asked to.
const TAKE_OVER: Duration = Duration::from_secs(60);
/// The name of the socket in the folder of the cutover's lock.
const NAME: &str = "control";
/// What asks for the end.
const END: &[u8] = b"end\n";

/// Ends when it is dropped.
pub struct Listening(tokio::task::JoinHandle<()>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whoever asks has this cutover stop, as by Ctrl-C. To be called by the one that holds the lock.
pub fn listen(home: &Path, stop: &Shutdown) -> Result<Listening> {
    let dir = home.join("cutover");
    let listener = socket::listen(&dir, NAME).context(ErrorKind::Disk, || {
        format!("open a socket in {}", dir.display())
    })?;
    let stop = stop.clone();
    Ok(Listening(tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else {
                continue;
            };
            let mut asked = [0; END.len()];
            let heard = tokio::time::timeout(Duration::from_secs(1), stream.read_exact(&mut asked));
            if matches!(heard.await, Ok(Ok(_))) && asked == *END && !stop.requested() {
                stop.request();
            }
        }
    })))
}

/// The lock of the plan's cutover; one that watches the new side is asked to end.
pub async fn lock(home: &Path) -> Result<Lock> {
    let place = home.join("cutover");
    let (began, mut asked) = (Instant::now(), false);
    loop {
        match Lock::acquire(&place) {
            Err(e) if e.kind() == ErrorKind::Locked && began.elapsed() < TAKE_OVER => {
                if !asked && let Ok(mut stream) = socket::connect(&place, NAME).await {
                    asked = stream.write_all(END).await.is_ok();
                }
            }
            other => return other,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
