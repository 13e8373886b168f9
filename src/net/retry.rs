//! Trying again: how long to wait in between, and when to give up.

use crate::error::{Error, Result, Retry};
use crate::task::Shutdown;
use std::time::{Duration, Instant};

/// An attempt a second costs nobody anything, and a replica waits no longer either.
const LONGEST_MS: u64 = 1_000;
/// Where each attempt costs the other side something.
const DEAR_MS: u64 = 5_000;
/// How often the log hears of what goes on failing.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// Waiting times between attempts: they double from 50 ms to a second, with jitter so that links do not knock in step.
pub struct Backoff {
    next_ms: u64,
    longest_ms: u64,
    seed: u64,
}

impl Backoff {
    pub fn new() -> Backoff {
        Backoff::up_to(LONGEST_MS)
    }

    /// Up to 5 s: each attempt costs the other side something.
    pub fn dear() -> Backoff {
        Backoff::up_to(DEAR_MS)
    }

    fn up_to(longest_ms: u64) -> Backoff {
        use std::hash::{BuildHasher, Hasher};
        Backoff {
            next_ms: 50,
            longest_ms,
            seed: std::collections::hash_map::RandomState::new()
                .build_hasher()
                .finish()
                | 1,
        }
    }

    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Duration {
        let base = self.next_ms;
        self.next_ms = base.saturating_mul(2).min(self.longest_ms);
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        Duration::from_millis((base / 2).saturating_add(self.seed.checked_rem(base).unwrap_or(0)))
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff::new()
    }
}

/// When the log is told of a failure that comes again and again: at first, and then now and then.
#[derive(Default)]
pub struct Telling {
    told: Option<Instant>,
}

impl Telling {
    pub fn is_due(&mut self) -> bool {
        let due = self.told.is_none_or(|at| at.elapsed() >= TELL_EVERY);
        if due {
            self.told = Some(Instant::now());
        }
        due
    }
}

/// Attempts at one piece of work, until it succeeds, can never succeed, or patience has run out.
pub struct Tries {
    patience: Duration,
    began: Instant,
    backoff: Backoff,
    telling: Telling,
}

impl Tries {
    pub fn new(patience: Duration) -> Tries {
        Tries {
            patience,
            began: Instant::now(),
            backoff: Backoff::new(),
            telling: Telling::default(),
        }
    }

    /// Waits after a failure that may pass; the failure itself when it will not, or at a stop.
    ///
    /// `what` is what has failed, for the log.
    pub async fn again(&mut self, e: Error, what: &str, stop: &Shutdown) -> Result<()> {
        if e.retry() == Retry::Never || self.began.elapsed() > self.patience {
            return Err(e);
        }
        match self.telling.is_due() {
            true => tracing::warn!("{what} failed, trying again: {e}"),
            false => tracing::debug!("{what} failed, trying again: {e}"),
        }
        match stop.sleep(self.backoff.next()).await {
            true => Ok(()),
            false => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_times_grow_to_their_longest() {
        for (mut backoff, longest) in [(Backoff::new(), 1_000), (Backoff::dear(), 5_000)] {
            let times: Vec<Duration> = (0..20).map(|_| backoff.next()).collect();
            assert!(times[0] < Duration::from_millis(100), "{times:?}");
            let last = Duration::from_millis(longest);
            let near = |t: &Duration| *t >= last / 2 && *t < last * 3 / 2;
            assert!(times[10..].iter().all(near), "{times:?}");
        }
    }

    #[test]
    fn what_fails_each_second_is_told_now_and_then() {
        let mut telling = Telling::default();
        assert!(telling.is_due());
        assert!(!telling.is_due());
        telling.told = Instant::now().checked_sub(TELL_EVERY);
        assert!(telling.is_due());
    }
}
