//! The wish to stop, how a task's panic becomes an error, and what a process knows about itself.
//!
//! Only the first stage of a flow hears [`Shutdown`]; later stages end when their channel closes.

use crate::error::{Error, ErrorKind, Result};
use std::future::Future;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};
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
    pub async fn sleep(&self, time: Duration) -> bool {
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

/// A pace that several threads keep together: so many keys and bytes a second; `None` is no limit.
pub struct Throttle {
    per_key: f64,
    per_byte: f64,
    /// When what was taken so far will be paid for.
    paid_at: Mutex<Instant>,
}

impl Throttle {
    /// What may be taken at once after a pause.
    const BURST: Duration = Duration::from_millis(100);

    pub fn new(keys_per_s: Option<u64>, bytes_per_s: Option<u64>) -> Throttle {
        let price = |limit: Option<u64>| limit.map_or(0.0, |n| 1.0 / n.max(1) as f64);
        Throttle {
            per_key: price(keys_per_s),
            per_byte: price(bytes_per_s),
            paid_at: Mutex::new(Instant::now()),
        }
    }

    /// Takes so many keys and bytes; returns how long to wait before more is taken.
    pub fn take(&self, keys: u64, bytes: u64) -> Duration {
        let seconds = (keys as f64 * self.per_key).max(bytes as f64 * self.per_byte);
        if seconds <= 0.0 {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let from = (*paid_at).max(now.checked_sub(Throttle::BURST).unwrap_or(now));
        *paid_at = from + Duration::from_secs_f64(seconds);
        paid_at.saturating_duration_since(now)
    }
}

/// The places at which the fault driver can have the process die; see `tests/faults.rs`.
pub const FAILPOINTS: [&str; 10] = [
    "snapshot-arriving",
    "snapshot-complete",
    "load-begun",
    "load-done",
    "before-save",
    "after-save",
    "heal-read",
    "heal-reserved",
    "heal-written",
    "stream-command",
];

/// Dies at once, as by SIGKILL, when `KEYFERRY_FAILPOINT` names this place: `NAME` or `NAME:n` for the n-th time.
pub fn failpoint(name: &str) {
    static ARMED: LazyLock<Option<(String, AtomicU64)>> = LazyLock::new(|| {
        let text = std::env::var("KEYFERRY_FAILPOINT").ok()?;
        let (name, times) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), AtomicU64::new(times.parse().unwrap_or(1))))
    });
    if let Some((armed, left)) = &*ARMED
        && armed == name
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        std::process::abort();
    }
}

/// The most memory this process has had, from the kernel.
pub fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .unwrap_or_default();
    line.trim()
        .trim_end_matches("kB")
        .trim()
        .parse::<u64>()
        .unwrap_or(0)
        * 1024
}
