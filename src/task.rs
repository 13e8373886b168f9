//! Shutdown and the group that owns every task: nothing is spawned outside of it.
//!
//! Only the first stage of a flow hears [`Shutdown`]; later stages end when their channel closes.

use crate::error::{Error, ErrorKind, Result};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The wish to stop, shared by everything that must hear it.
#[derive(Clone)]
pub struct Shutdown {
    tx: Arc<watch::Sender<bool>>,
    asked: Arc<AtomicU8>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown {
            tx: Arc::new(watch::Sender::new(false)),
            asked: Arc::default(),
        }
    }
}

impl Shutdown {
    /// Asks everyone to stop; returns how often that was asked before.
    pub fn request(&self) -> u8 {
        let before = self.asked.fetch_add(1, Ordering::Relaxed);
        self.tx.send_replace(true);
        before
    }

    pub fn requested(&self) -> bool {
        *self.tx.borrow()
    }

    /// Returns when a stop was asked for. Cancel-safe.
    pub async fn wait(&self) {
        let mut rx = self.tx.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _ = rx.wait_for(|stop| *stop).await;
    }

    /// Sleeps unless a stop is asked for; says whether it slept to the end.
    pub async fn sleep(&self, time: std::time::Duration) -> bool {
        tokio::select! {
            () = self.wait() => false,
            () = tokio::time::sleep(time) => true,
        }
    }

    /// Turns SIGINT and SIGTERM into a request; a second signal ends the process at once.
    pub fn on_signals(&self) -> Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| {
            signal(kind).map_err(|e| Error::new(ErrorKind::Bug, "listen for Ctrl-C").cause(e))
        };
        let (mut interrupt, mut terminate) = (
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
        );
        let stop = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if stop.request() > 0 {
                    std::process::exit(130);
                }
                eprintln!("stopping: saving state (press Ctrl-C again to stop at once)");
            }
        });
        Ok(())
    }
}

/// Tasks that live and end together.
pub struct TaskGroup {
    tasks: JoinSet<Result<()>>,
    pub stop: Shutdown,
}

impl TaskGroup {
    pub fn new() -> TaskGroup {
        TaskGroup {
            tasks: JoinSet::new(),
            stop: Shutdown::default(),
        }
    }

    pub fn spawn(&mut self, task: impl Future<Output = Result<()>> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Runs blocking work on a thread of its own.
    pub fn spawn_blocking(&mut self, work: impl FnOnce() -> Result<()> + Send + 'static) {
        self.tasks.spawn_blocking(work);
    }

    /// Waits for all; the first error asks the others to stop and is returned when they have.
    pub async fn join(&mut self) -> Result<()> {
        let mut first = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            let result = ended
                .unwrap_or_else(|e| Err(Error::new(ErrorKind::Bug, "a task panicked").cause(e)));
            if result.is_err() {
                self.stop.request();
                if first.is_ok() {
                    first = result;
                }
            }
        }
        first
    }
}

impl Default for TaskGroup {
    fn default() -> Self {
        TaskGroup::new()
    }
}
