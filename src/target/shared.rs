//! What a shard's loop and its connections share: the orders to them, and the bytes that may be on their way.

use crate::target::batch::Batch;
use crate::target::trouble::Trouble;
use crate::task::event_loop::EventLoop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

/// What a connection's task is told to do.
pub enum Order {
    Send(Arc<Batch>),
    /// Write the rest of a batch that is on its way, from this byte on.
    Finish(Arc<Batch>, usize),
    /// Settle everything sent so far and say what went wrong.
    Settle(oneshot::Sender<Trouble>),
}

/// Bytes on their way, and whether the loop waits for fewer.
#[derive(Default)]
struct Used {
    bytes: usize,
    awaited: bool,
}

/// Counts and signals that all writers of one shard share with it.
#[derive(Default)]
pub struct Shared {
    /// Something waits to be resolved.
    pub trouble: AtomicBool,
    /// Bytes that may wait for replies on one connection.
    pub in_flight: usize,
    /// Bytes that may be on their way in all, or wait to be.
    pub budget: usize,
    used: Mutex<Used>,
    freed: Condvar,
    spare: Mutex<Vec<Vec<u8>>>,
}

/// Buffers kept for reuse.
const SPARE_BUFFERS: usize = 64;

impl Shared {
    pub fn new(budget: usize, nodes: usize) -> Shared {
        let in_flight = (budget / 4).max(1);
        Shared {
            in_flight,
            // What one connection does not take would only wait, and the target would work on it alone in the end.
            budget: match nodes {
                1 => in_flight + in_flight / 2,
                _ => budget,
            },
            ..Shared::default()
        }
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes `n` bytes of the budget, waiting while others hold it; false when trouble must be resolved first.
    pub fn acquire(&self, n: usize, events: &EventLoop) -> bool {
        let mut used = self.used();
        while used.bytes > 0 && used.bytes + n > self.budget {
            if self.trouble.load(Ordering::Acquire) {
                return false;
            }
            used.awaited = true;
            events.press();
            used = self
                .freed
                .wait(used)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        used.awaited = false;
        used.bytes += n;
        true
    }

    /// Takes `n` bytes over the budget.
    pub fn exceed(&self, n: usize) {
        self.used().bytes += n;
    }

    pub fn release(&self, n: usize) {
        let mut used = self.used();
        used.bytes -= n;
        // A word to nobody costs a system call as well.
        if used.awaited {
            self.freed.notify_all();
        }
    }

    pub fn signal(&self) {
        let _guard = self.used();
        self.trouble.store(true, Ordering::Release);
        self.freed.notify_all();
    }

    pub fn buffer(&self) -> Vec<u8> {
        self.spare
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .pop()
            .unwrap_or_default()
    }

    pub fn recycle(&self, mut buffer: Vec<u8>) {
        let mut spare = self
            .spare
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if spare.len() < SPARE_BUFFERS && buffer.capacity() <= 512 * 1024 {
            buffer.clear();
            spare.push(buffer);
        }
    }
}
