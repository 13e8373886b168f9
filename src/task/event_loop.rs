//! One shard's event loop: its link to the source and its connections to the target are tasks on it.
//!
//! A thread that waits for one of these tasks drives the loop meanwhile, so a write that arrives while all else is
//! done is read, routed and sent by one thread that was woken once.
//! While that thread is at work, another one, the keeper, drives: not at every packet, but every few milliseconds, as
//! there is enough to do then and the servers may share the processors.
//! Invariant: the loop is never left alone for longer than [`AWAY`].

use crate::error::{Context, ErrorKind, Result};
use std::cell::Cell;
use std::future::Future;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// So long may the thread that else drives be at work before the keeper takes its place.
const AWAY: Duration = Duration::from_millis(25);
/// The keeper lets so much time pass before it looks for more to do: what comes meanwhile is in the sockets' buffers.
const GATHER: Duration = Duration::from_millis(3);

thread_local! {
    static KEEPER: Cell<bool> = const { Cell::new(false) };
}

/// The tasks are gone with the last of these.
#[derive(Clone)]
pub struct EventLoop(Arc<Owner>);

struct Owner(Arc<Inner>);

struct Inner {
    /// Taken when all is over.
    runtime: Option<Runtime>,
    turns: Mutex<Turns>,
    changed: Condvar,
    /// The keeper has to look whether it is still needed.
    wanted: Notify,
}

#[derive(Default)]
struct Turns {
    /// A thread that waits drives.
    driven: bool,
    /// How often one has begun to.
    times: u64,
    /// One waits without driving.
    pressed: bool,
    over: bool,
}

impl EventLoop {
    pub fn start() -> Result<EventLoop> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .on_thread_park(|| {
                if KEEPER.get() {
                    std::thread::sleep(GATHER);
                }
            })
            .build()
            .context(ErrorKind::Bug, || "start an event loop".into())?;
        let inner = Arc::new(Inner {
            runtime: Some(runtime),
            turns: Mutex::default(),
            changed: Condvar::new(),
            wanted: Notify::new(),
        });
        let keeper = inner.clone();
        std::thread::Builder::new()
            .name("keeper".into())
            .spawn(move || keeper.keep())
            .context(ErrorKind::Bug, || "start a thread".into())?;
        Ok(EventLoop(Arc::new(Owner(inner))))
    }

    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.0.0.runtime().spawn(task)
    }

    /// Waits for `what`, and drives the loop meanwhile.
    pub fn drive<T>(&self, what: impl Future<Output = T>) -> T {
        let inner = &self.0.0;
        {
            let mut turns = inner.turns();
            turns.driven = true;
            turns.times += 1;
            turns.pressed = false;
        }
        inner.wanted.notify_one();
        let result = inner.runtime().block_on(what);
        inner.turns().driven = false;
        result
    }

    /// As [`EventLoop::drive`], but no longer than `patience`.
    pub fn drive_for(&self, what: impl Future<Output = ()>, patience: Duration) {
        self.drive(async {
            let _ = tokio::time::timeout(patience, what).await;
        });
    }

    /// The caller is about to wait for one of the tasks in another way.
    pub fn press(&self) {
        let mut turns = self.0.0.turns();
        if !turns.pressed {
            turns.pressed = true;
            self.0.0.changed.notify_one();
        }
    }
}

impl Inner {
    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn runtime(&self) -> &Runtime {
        // Nobody is left to ask when it has been taken.
        self.runtime.as_ref().expect("taken only when dropped")
    }

    fn keep(&self) {
        KEEPER.set(true);
        let mut seen = 0;
        loop {
            let turns = self.turns();
            if turns.over {
                return;
            }
            if turns.driven || (turns.times != seen && !turns.pressed) {
                seen = turns.times;
                let waited = self.changed.wait_timeout(turns, AWAY);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            drop(turns);
            self.runtime().block_on(async {
                loop {
                    self.wanted.notified().await;
                    let turns = self.turns();
                    if turns.driven || turns.over {
                        return;
                    }
                }
            });
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.turns().over = true;
        self.0.changed.notify_one();
        self.0.wanted.notify_one();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Also where the last owner is a task, which must not wait.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use tokio::sync::oneshot;

    /// A task that answers after a few timers of its own.
    fn answer(events: &EventLoop) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        drop(events.spawn(async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let _ = tell.send(());
        }));
        told
    }

    #[test]
    fn tasks_go_on_whatever_the_thread_that_drives_does() {
        let events = EventLoop::start().unwrap();
        for round in 0..20 {
            let waits = answer(&events);
            assert!(events.drive(waits).is_ok(), "round {round}");
            // At work, not waiting: the keeper comes by itself.
            let mut works = answer(&events);
            let began = Instant::now();
            while works.try_recv().is_err() {
                assert!(began.elapsed().as_secs() < 10, "round {round}: left alone");
                std::thread::yield_now();
            }
            // Waiting in another way: it is called.
            let blocks = answer(&events);
            events.press();
            assert!(blocks.blocking_recv().is_ok(), "round {round}");
        }
    }

    #[test]
    fn patience_ends() {
        let events = EventLoop::start().unwrap();
        events.drive_for(std::future::pending(), Duration::from_millis(5));
    }

    #[test]
    fn the_last_one_may_go_in_a_task() {
        let events = EventLoop::start().unwrap();
        let (ended, gone) = oneshot::channel::<()>();
        drop(events.spawn(async move {
            let _kept = ended;
            std::future::pending::<()>().await;
        }));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async move { drop(events) });
        // Its tasks end with it.
        assert!(gone.blocking_recv().is_err());
    }
}
