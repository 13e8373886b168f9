//! Trying again: how long to wait in between, and when to give up.

use crate::error::{Error, Result, Retry};
use crate::task::Shutdown;
use std::time::{Duration, Instant};

/// Waiting times between attempts: they double from 50 ms to 5 s, with jitter so that links do not knock in step.
pub struct Backoff {
    next_ms: u64,
    seed: u64,
}

impl Backoff {
    pub fn new() -> Backoff {
        use std::hash::{BuildHasher, Hasher};
        Backoff {
            next_ms: 50,
            seed: std::collections::hash_map::RandomState::new()
                .build_hasher()
                .finish()
                | 1,
        }
    }

    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Duration {
        let base = self.next_ms;
        self.next_ms = base.saturating_mul(2).min(5_000);
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

/// Attempts at one piece of work, until it succeeds, can never succeed, or patience has run out.
pub struct Tries {
    patience: Duration,
    began: Instant,
    backoff: Backoff,
}

impl Tries {
    pub fn new(patience: Duration) -> Tries {
        Tries {
            patience,
            began: Instant::now(),
            backoff: Backoff::new(),
        }
    }

    /// Waits after a failure that may pass; the failure itself when it will not, or at a stop.
    ///
    /// `what` is what has failed, for the log.
    pub async fn again(&mut self, e: Error, what: &str, stop: &Shutdown) -> Result<()> {
        if e.retry() == Retry::Never || self.began.elapsed() > self.patience {
            return Err(e);
        }
        tracing::warn!("{what} failed, trying again: {e}");
        match stop.sleep(self.backoff.next()).await {
            true => Ok(()),
            false => Err(e),
        }
    }
}
