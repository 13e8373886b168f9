//! One task per target node: batches out, replies counted in, trouble kept until it is asked for.
//!
//! Writing and reading go on at the same time, bounded by bytes in flight.
//! Invariant: a batch is acknowledged only when every one of its commands was answered without an error,
//! and nothing that follows a failed batch is acknowledged before the trouble has been resolved.

use crate::error::{Error, ErrorKind, Result};
use crate::net::{self, LoggedIn, Stream};
use crate::plan::Endpoint;
use crate::resp::{self, Outcome};
use crate::target::batch::Batch;
use crate::types::DbIndex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc, oneshot};

/// Bytes that may wait for replies on one connection.
const IN_FLIGHT_BYTES: usize = 4 << 20;
/// With more than this on its way, replies are gathered before they are read.
const BUSY_BYTES: usize = 1 << 20;
const GATHER: Duration = Duration::from_millis(1);

/// A reply that was an error (or a 0 where none was expected).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Index of the command in its batch.
    pub index: u32,
    pub text: String,
}

/// What a node could not do, in the order in which it was sent.
#[derive(Debug, Default)]
pub struct Trouble {
    /// Batches that were answered, from the first with errors on, with the errors among the answers.
    pub failed: Vec<(Arc<Batch>, Vec<Failure>)>,
    /// Batches cut off with the connection: how many commands were answered, and the errors among those.
    pub uncertain: Vec<(Arc<Batch>, u32, Vec<Failure>)>,
    /// Batches that were not sent because of the above.
    pub unsent: Vec<Arc<Batch>>,
    /// Why the connection was lost or could not be opened.
    pub error: Option<Error>,
}

impl Trouble {
    pub fn is_empty(&self) -> bool {
        self.failed.is_empty()
            && self.uncertain.is_empty()
            && self.unsent.is_empty()
            && self.error.is_none()
    }
}

pub enum Order {
    Send(Batch),
    /// Settle everything sent so far and say what went wrong.
    Settle(oneshot::Sender<Trouble>),
}

/// Counts and signals that all writers of one pump share with it.
#[derive(Default)]
pub struct Shared {
    /// Something waits to be resolved.
    pub trouble: AtomicBool,
    used: Mutex<usize>,
    freed: Condvar,
    spare: Mutex<Vec<Vec<u8>>>,
}

/// Buffers kept for reuse.
const SPARE_BUFFERS: usize = 64;

impl Shared {
    fn used(&self) -> MutexGuard<'_, usize> {
        self.used
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes `n` bytes of the budget, waiting while others hold it; false when trouble must be resolved first.
    pub fn acquire(&self, n: usize, budget: usize) -> bool {
        let mut used = self.used();
        while *used > 0 && *used + n > budget {
            if self.trouble.load(Ordering::Acquire) {
                return false;
            }
            used = self
                .freed
                .wait(used)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        *used += n;
        true
    }

    /// Takes `n` bytes over the budget.
    pub fn exceed(&self, n: usize) {
        *self.used() += n;
    }

    pub fn release(&self, n: usize) {
        *self.used() -= n;
        self.freed.notify_all();
    }

    fn signal(&self) {
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

/// Commands of our own that go before a batch: first AUTH, then SELECT.
#[derive(Debug, Clone, Copy, Default)]
struct Before {
    auth: bool,
    select: bool,
}

impl Before {
    fn replies(self) -> u32 {
        u32::from(self.auth) + u32::from(self.select)
    }
}

/// What a connection's writing and reading half share.
struct Flight {
    waiting: Mutex<Waiting>,
    /// Told when something was answered or the connection was lost.
    moved: Notify,
    acked: Arc<AtomicU64>,
    shared: Arc<Shared>,
    /// The new password is not taken.
    outdated: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    /// Sent, not fully answered; replies to what is ours stand before each batch's own.
    queue: VecDeque<(Arc<Batch>, Before)>,
    bytes: usize,
    answered: u32,
    failures: Vec<Failure>,
    failed: Vec<(Arc<Batch>, Vec<Failure>)>,
    lost: Option<Error>,
}

impl Flight {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn lose(&self, e: Error) {
        self.waiting().lost.get_or_insert(e);
        self.shared.signal();
        self.moved.notify_one();
    }

    /// Takes as many replies from the front of `buf` as are there; returns the bytes used.
    fn take_replies(&self, buf: &[u8]) -> Result<usize> {
        let mut at = 0;
        let mut waiting = self.waiting();
        let mut moved = false;
        while let Some((outcome, len)) = resp::skim_reply(buf.get(at..).unwrap_or_default())? {
            at += len;
            let Waiting {
                queue,
                answered,
                failures,
                ..
            } = &mut *waiting;
            let Some((batch, before)) = queue.front() else {
                return Err(Error::new(
                    ErrorKind::Protocol,
                    "the target sent a reply that nothing asked for",
                ));
            };
            let own = answered.checked_sub(before.replies());
            match outcome {
                // Who we were still holds.
                Outcome::Error(_) if before.auth && *answered == 0 => {
                    self.outdated.store(true, Ordering::Relaxed);
                }
                Outcome::Fine => {}
                Outcome::Zero => {
                    if let Some(index) = own
                        && batch.expect.binary_search(&index).is_ok()
                    {
                        failures.push(Failure {
                            index,
                            text: NOTHING_THERE.into(),
                        });
                    }
                }
                Outcome::Error(text) | Outcome::ErrorInside(_, text) => {
                    let text = String::from_utf8_lossy(text).into_owned();
                    failures.push(Failure {
                        index: own.unwrap_or(0),
                        text,
                    });
                }
            }
            *answered += 1;
            if *answered == batch.commands + before.replies() {
                *answered = 0;
                let Some((batch, _)) = queue.pop_front() else {
                    continue;
                };
                waiting.bytes -= batch.bytes.len();
                moved = true;
                let failures = std::mem::take(&mut waiting.failures);
                // What follows a failure may have read what that left behind: it is looked at as well.
                if failures.is_empty() && waiting.failed.is_empty() {
                    self.acked.store(batch.seq, Ordering::Release);
                    self.shared.release(batch.bytes.len());
                    // The writing half may still hold it for a moment; then the buffer is simply not reused.
                    if let Ok(batch) = Arc::try_unwrap(batch) {
                        self.shared.recycle(batch.bytes);
                    }
                } else {
                    waiting.failed.push((batch, failures));
                    self.shared.signal();
                }
            }
        }
        drop(waiting);
        if moved {
            self.moved.notify_one();
        }
        Ok(at)
    }
}

/// The text of a [`Failure`] that is not an error: a command found no key where the source had one.
pub const NOTHING_THERE: &str = "(nothing there)";

/// A node's writer; owned by one pump.
pub struct Writer {
    endpoint: Endpoint,
    address: String,
    flight: Arc<Flight>,
    live: Option<Live>,
    uncertain: Vec<(Arc<Batch>, u32, Vec<Failure>)>,
    unsent: Vec<Arc<Batch>>,
    error: Option<Error>,
    /// No command but the plan's own database is possible.
    fixed_db: bool,
    /// Of the batch that was sent last.
    last_seq: u64,
}

struct Live {
    write: WriteHalf<Stream>,
    db: DbIndex,
    login: LoggedIn,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Writer {
    pub fn new(
        endpoint: Endpoint,
        address: String,
        shared: Arc<Shared>,
        acked: Arc<AtomicU64>,
        fixed_db: bool,
    ) -> Writer {
        let flight = Arc::new(Flight {
            waiting: Mutex::default(),
            moved: Notify::new(),
            acked,
            shared,
            outdated: AtomicBool::new(false),
        });
        Writer {
            endpoint,
            address,
            flight,
            live: None,
            uncertain: Vec::new(),
            unsent: Vec::new(),
            error: None,
            fixed_db,
            last_seq: 0,
        }
    }

    /// Serves orders until the channel closes.
    pub async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut passwords = self.endpoint.learnt.versions();
        loop {
            let order = tokio::select! {
                biased;
                order = orders.recv() => order,
                Ok(()) = passwords.changed() => {
                    self.stay_logged_in().await;
                    continue;
                }
            };
            match order {
                Some(Order::Send(batch)) => self.send(Arc::new(batch)).await,
                Some(Order::Settle(tell)) => {
                    let trouble = self.settle().await;
                    let _ = tell.send(trouble);
                }
                None => return,
            }
        }
    }

    /// A connection with nothing to send has to tell the new password as well.
    async fn stay_logged_in(&mut self) {
        if self.live.is_none() || self.troubled() {
            return;
        }
        let db = self.live.as_ref().map_or(DbIndex::ZERO, |l| l.db);
        let mut nothing = Batch::new(Vec::new(), db);
        nothing.seq = self.last_seq;
        if let Err(e) = self.write(Arc::new(nothing)).await {
            self.flight.lose(e);
        }
    }

    fn troubled(&self) -> bool {
        if !self.unsent.is_empty() || self.error.is_some() {
            return true;
        }
        let waiting = self.flight.waiting();
        waiting.lost.is_some() || !waiting.failed.is_empty() || !waiting.failures.is_empty()
    }

    async fn send(&mut self, batch: Arc<Batch>) {
        loop {
            if self.troubled() {
                self.unsent.push(batch);
                self.flight.shared.signal();
                return;
            }
            if self.flight.waiting().bytes < IN_FLIGHT_BYTES {
                break;
            }
            self.flight.moved.notified().await;
        }
        if let Err(e) = self.write(batch).await {
            self.flight.lose(e);
        }
    }

    async fn write(&mut self, batch: Arc<Batch>) -> Result<()> {
        if self.live.is_none() {
            match self.open().await {
                Ok(live) => self.live = Some(live),
                Err(e) => {
                    self.unsent.push(batch);
                    self.error = Some(e);
                    self.flight.shared.signal();
                    return Ok(());
                }
            }
        }
        let Some(live) = &mut self.live else {
            return Ok(());
        };
        let (mut ours, mut before) = (Vec::new(), Before::default());
        if self.flight.outdated.swap(false, Ordering::Relaxed) {
            live.login.refused();
        }
        before.auth = live.login.renew(&mut ours).await;
        if live.db != batch.db && !self.fixed_db {
            resp::command(&mut ours, &[b"SELECT", batch.db.to_string().as_bytes()]);
            live.db = batch.db;
            before.select = true;
        }
        self.last_seq = batch.seq;
        if batch.commands + before.replies() == 0 {
            // The password was told with another batch already.
            return Ok(());
        }
        {
            // Replies may come before the last byte is written, so the batch waits for them from now on.
            let mut waiting = self.flight.waiting();
            waiting.bytes += batch.bytes.len();
            waiting.queue.push_back((batch.clone(), before));
        }
        let result = async {
            if !ours.is_empty() {
                live.write.write_all(&ours).await?;
            }
            live.write.write_all(&batch.bytes).await?;
            live.write.flush().await
        };
        let result = tokio::time::timeout(net::REPLY_LIMIT, result)
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        result.map_err(|e| {
            Error::new(
                ErrorKind::Connection,
                format!("the connection to {} was cut", self.address),
            )
            .cause(e)
        })
    }

    async fn open(&self) -> Result<Live> {
        let conn = net::connect(&self.endpoint, &self.address).await?;
        let login = conn.login();
        let (stream, unread) = conn.into_parts();
        let (read, write) = tokio::io::split(stream);
        let flight = self.flight.clone();
        let address = self.address.clone();
        let reader = tokio::spawn(async move {
            if let Err(e) = read_replies(read, unread, &flight, &address).await {
                flight.lose(e);
            }
        });
        Ok(Live {
            write,
            db: DbIndex::ZERO,
            login,
            reader,
        })
    }

    /// Waits until all that was sent is answered or lost; hands over the trouble and begins anew.
    async fn settle(&mut self) -> Trouble {
        loop {
            {
                let waiting = self.flight.waiting();
                if waiting.queue.is_empty() || waiting.lost.is_some() {
                    break;
                }
            }
            self.flight.moved.notified().await;
        }
        let mut waiting = self.flight.waiting();
        let lost = waiting.lost.take();
        if lost.is_some() {
            self.live = None;
            let mut answered = std::mem::take(&mut waiting.answered);
            let mut failures = std::mem::take(&mut waiting.failures);
            waiting.bytes = 0;
            for (batch, before) in std::mem::take(&mut waiting.queue) {
                let own = answered.saturating_sub(before.replies());
                self.uncertain
                    .push((batch, own, std::mem::take(&mut failures)));
                answered = 0;
            }
        }
        Trouble {
            failed: std::mem::take(&mut waiting.failed),
            uncertain: std::mem::take(&mut self.uncertain),
            unsent: std::mem::take(&mut self.unsent),
            error: lost.or(self.error.take()),
        }
    }
}

async fn read_replies(
    mut read: ReadHalf<Stream>,
    unread: Vec<u8>,
    flight: &Flight,
    address: &str,
) -> Result<()> {
    let mut buf = unread;
    buf.reserve(64 * 1024);
    loop {
        let used = flight.take_replies(&buf)?;
        buf.drain(..used);
        if buf.capacity() - buf.len() < 16 * 1024 {
            buf.reserve(64 * 1024);
        }
        let waiting = !flight.waiting().queue.is_empty();
        let bytes = match tokio::time::timeout(net::REPLY_LIMIT, read.read_buf(&mut buf)).await {
            Ok(bytes) => bytes,
            Err(_) if waiting => Err(std::io::ErrorKind::TimedOut.into()),
            Err(_) => continue,
        };
        if flight.waiting().bytes > BUSY_BYTES {
            // The target answers in small pieces, and each would wake us; while so much waits, nobody waits for them.
            tokio::time::sleep(GATHER).await;
        }
        match bytes {
            Ok(0) => {
                return Err(Error::new(
                    ErrorKind::Connection,
                    format!("{address} closed the connection"),
                ));
            }
            Ok(_) => {}
            Err(e) => {
                return Err(Error::new(
                    ErrorKind::Connection,
                    format!("the connection to {address} was cut"),
                )
                .cause(e));
            }
        }
    }
}
