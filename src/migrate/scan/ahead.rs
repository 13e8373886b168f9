//! Mode "scan": keys are read ahead of the one thread that writes, so that a round trip leaves nobody idle.
//!
//! Invariant: what was read is taken in the order in which it was asked for. What could not be read ahead, for whatever
//! reason, is read again by the one who takes it, in the plain way.

use crate::error::{Error, ErrorKind, Result, Retry};
use crate::migrate::scan::sweep::{CHUNK, Sweeper};
use crate::source::keys::list::{Page, Position};
use crate::source::keys::side::Side;
use crate::task::event_loop::EventLoop;
use crate::types::DbIndex;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How long the writing thread waits for a reading before it looks at everything else.
const LOOK: Duration = Duration::from_millis(50);
/// Readings that are under way, each with what it was asked for.
struct Queue<P, T> {
    under_way: VecDeque<(P, JoinHandle<Result<T>>)>,
}

impl<P, T> Drop for Queue<P, T> {
    fn drop(&mut self) {
        for (_, task) in &self.under_way {
            task.abort();
        }
    }
}

/// What the writing thread has waited for.
enum Came<T> {
    Read(Result<T>),
    Page(Option<Page>),
    Nothing,
}

impl<P, T: Send + 'static> Queue<P, T> {
    fn new() -> Queue<P, T> {
        Queue {
            under_way: VecDeque::new(),
        }
    }

    fn begin(
        &mut self,
        runtime: &Handle,
        asked: P,
        reading: impl Future<Output = Result<T>> + Send + 'static,
    ) {
        self.under_way.push_back((asked, runtime.spawn(reading)));
    }

    /// Waits a little, while what is written goes on, for the first reading, and for a page where more are wanted.
    fn wait(&mut self, events: &EventLoop, more: Option<&mut mpsc::Receiver<Page>>) -> Came<T> {
        events.drive(async {
            let reading = async {
                match self.under_way.front_mut() {
                    Some((_, task)) => task.await.unwrap_or_else(|e| {
                        Err(Error::new(ErrorKind::Bug, "a reading ahead panicked").cause(e))
                    }),
                    None => std::future::pending().await,
                }
            };
            let page = async {
                match more {
                    Some(pages) => pages.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                read = reading => Came::Read(read),
                page = page => Came::Page(page),
                () = tokio::time::sleep(LOOK) => Came::Nothing,
            }
        })
    }
}

/// A reading that is to begin.
pub(super) type Reading<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

impl Sweeper<'_> {
    /// Has the pages of a listing read ahead by `read` and taken, in their order, by `take`; false once that says so.
    pub(super) fn walk<T: Send + 'static>(
        &mut self,
        side: &Arc<Side>,
        from: Option<Position>,
        mut read: impl FnMut(&mut Self, &Page) -> Result<Reading<T>>,
        mut take: impl FnMut(&mut Self, &Page, Result<T>) -> Result<bool>,
    ) -> Result<bool> {
        let (runtime, events) = (self.ctx.shared.runtime.clone(), self.core.events());
        let (mut pages, listing) = self.pages(side, from);
        let (mut queue, mut ended) = (Queue::new(), false);
        while !(ended && queue.under_way.is_empty()) {
            self.go_on()?;
            let more = (!ended && queue.under_way.len() < self.ahead.depth()).then_some(&mut pages);
            match queue.wait(&events, more) {
                Came::Page(Some(page)) => {
                    let reading = read(self, &page)?;
                    queue.begin(&runtime, page, reading);
                    continue;
                }
                Came::Page(None) => ended = true,
                Came::Read(read) => {
                    if let Some((page, _)) = queue.under_way.pop_front()
                        && !take(self, &page, read)?
                    {
                        return Ok(false);
                    }
                }
                Came::Nothing => {}
            }
            self.core.tick_scan()?;
        }
        self.end(listing)?;
        Ok(true)
    }

    /// The same of keys that are known.
    pub(super) fn in_chunks<T: Send + 'static>(
        &mut self,
        names: Vec<(DbIndex, Vec<Vec<u8>>)>,
        mut read: impl FnMut(&mut Self, DbIndex, &[Vec<u8>]) -> Result<Reading<T>>,
        mut take: impl FnMut(&mut Self, DbIndex, &[Vec<u8>], Result<T>) -> Result<()>,
    ) -> Result<()> {
        let (runtime, events) = (self.ctx.shared.runtime.clone(), self.core.events());
        let mut chunks = names.iter().flat_map(|(db, keys)| {
            let chunks = keys.chunks(CHUNK);
            chunks.map(move |keys| (*db, keys))
        });
        let (mut queue, mut ended) = (Queue::new(), false);
        while !(ended && queue.under_way.is_empty()) {
            while !ended && queue.under_way.len() < self.ahead.depth() {
                match chunks.next() {
                    Some((db, keys)) => {
                        let reading = read(self, db, keys)?;
                        queue.begin(&runtime, (db, keys), reading);
                    }
                    None => ended = true,
                }
            }
            if queue.under_way.is_empty() {
                break;
            }
            if let Came::Read(read) = queue.wait(&events, None)
                && let Some(((db, keys), _)) = queue.under_way.pop_front()
            {
                take(self, db, keys, read)?;
            }
            self.core.tick_scan()?;
        }
        Ok(())
    }

    /// A reading ahead has failed: it is done again in the plain way, unless that would fail as well.
    pub(super) fn failed_ahead(&mut self, e: Error) -> Result<()> {
        if e.retry() == Retry::Never {
            return Err(e);
        }
        tracing::debug!("keys that were read ahead are read again: {e}");
        let runtime = self.ctx.shared.runtime.clone();
        self.unproven = true;
        self.ahead.reset();
        self.source.reset();
        self.target.reset();
        let _ = runtime.block_on(self.source.side.refresh());
        let _ = runtime.block_on(self.target.side.refresh());
        Ok(())
    }
}
