//! The wish to stop, how a task's panic becomes an error, and what a process knows about itself.
//!
//! Only the first stage of a flow hears [`Shutdown`]; later stages end when their channel closes.

mod durable;
pub mod event_loop;
mod private;
pub mod socket;

#[cfg(test)]
pub use durable::on_sync;
pub use durable::{Unsynced, sync_file, sync_name};
pub use private::{private_dir, private_file};

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

/// How fast keys may be read and written, over all who share it; it can be changed while they work.
#[derive(Clone)]
pub struct Throttle(Arc<Rates>);

struct Rates {
    /// 0 is no limit.
    keys_per_s: AtomicU64,
    bytes_per_s: AtomicU64,
    /// Rest after work, in thousandths of the time worked.
    rest: AtomicU64,
    paid: Mutex<Paid>,
}

struct Paid {
    /// When what was taken so far will be paid for.
    at: Instant,
    /// When something was taken last.
    last: Instant,
}

impl Throttle {
    /// What may be taken at once after a pause.
    const BURST: Duration = Duration::from_millis(100);

    pub fn new(keys_per_s: Option<u64>, bytes_per_s: Option<u64>) -> Throttle {
        let now = Instant::now();
        Throttle(Arc::new(Rates {
            keys_per_s: AtomicU64::new(keys_per_s.unwrap_or(0)),
            bytes_per_s: AtomicU64::new(bytes_per_s.unwrap_or(0)),
            rest: AtomicU64::new(0),
            paid: Mutex::new(Paid { at: now, last: now }),
        }))
    }

    /// Other limits from now on.
    pub fn set(&self, keys_per_s: Option<u64>, bytes_per_s: Option<u64>) {
        let set = |rate: &AtomicU64, n: Option<u64>| {
            let n = n.unwrap_or(0);
            rate.swap(n, Ordering::Relaxed) != n
        };
        if set(&self.0.keys_per_s, keys_per_s) | set(&self.0.bytes_per_s, bytes_per_s) {
            // What was taken at the old price is forgiven.
            let mut paid = self.0.paid.lock().unwrap_or_else(PoisonError::into_inner);
            paid.at = paid.at.min(Instant::now());
        }
    }

    /// Has everybody rest for so many times the time they work.
    pub fn slow_down(&self, times: f64) {
        let rest = (times * 1000.0).max(0.0) as u64;
        self.0.rest.store(rest, Ordering::Relaxed);
    }

    /// How long there is still to wait for what was taken.
    pub fn due(&self) -> Duration {
        let paid = self.0.paid.lock().unwrap_or_else(PoisonError::into_inner);
        paid.at.saturating_duration_since(Instant::now())
    }

    /// Takes so many keys and bytes; returns how long to wait before more is taken.
    pub fn take(&self, keys: u64, bytes: u64) -> Duration {
        let seconds = |n: u64, rate: &AtomicU64| match rate.load(Ordering::Relaxed) {
            0 => 0.0,
            rate => n as f64 / rate as f64,
        };
        let mut price = seconds(keys, &self.0.keys_per_s).max(seconds(bytes, &self.0.bytes_per_s));
        let rest = self.0.rest.load(Ordering::Relaxed);
        if price <= 0.0 && rest == 0 {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let mut paid = self.0.paid.lock().unwrap_or_else(PoisonError::into_inner);
        // What was slept is no work.
        let worked = now.saturating_duration_since(paid.last.max(paid.at));
        // The time worked is paid for as well: it passes anyway.
        if rest > 0 {
            price += worked.min(Throttle::BURST).as_secs_f64() * (1.0 + rest as f64 / 1000.0);
        }
        let from = (paid.at).max(now.checked_sub(Throttle::BURST).unwrap_or(now));
        paid.at = from + Duration::from_secs_f64(price);
        paid.last = now;
        paid.at.saturating_duration_since(now)
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
