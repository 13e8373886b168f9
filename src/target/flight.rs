//! What is on its way on one connection: sent, not answered. Its two halves and the loop share it.
//!
//! A small batch that nothing is in front of is written by the shard's loop itself, without waking the connection's task.
//! Invariant: the loop writes only while the task has no order; the task writes nothing of its own meanwhile.

use crate::error::{Error, ErrorKind, Result};
use crate::net::{self, Stream};
use crate::resp::{Outcome, Skimmer};
use crate::target::batch::{Batch, Database};
use crate::target::shared::{Order, Shared};
use crate::target::trouble::{Failure, NOTHING_THERE};
use std::collections::VecDeque;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, ReadHalf};
use tokio::sync::Notify;

/// A larger batch is written by the connection's task, while the loop goes on.
const SMALL: usize = 16 << 10;

/// Commands of our own that go before a batch: first AUTH, then SELECT.
#[derive(Debug, Clone, Copy, Default)]
pub struct Before {
    pub auth: bool,
    pub select: bool,
}

impl Before {
    pub fn replies(self) -> u32 {
        u32::from(self.auth).saturating_add(u32::from(self.select))
    }

    /// Whether the reply that comes after `answered` others is that of the SELECT.
    fn is_select(self, answered: u32) -> bool {
        self.select && answered == u32::from(self.auth)
    }
}

/// What a connection's writing and reading half share, and the loop with them.
pub struct Flight {
    waiting: Mutex<Waiting>,
    gate: Mutex<Gate>,
    /// Told when something was answered or the connection was lost.
    pub moved: Notify,
    acked: Arc<AtomicU64>,
    pub shared: Arc<Shared>,
    /// The new password is not taken.
    pub outdated: AtomicBool,
    /// No command but the plan's own database is possible.
    fixed_db: bool,
}

/// Who may write.
pub struct Gate {
    /// Orders that the task has not carried out.
    orders: usize,
    /// The task writes without an order.
    pub busy: bool,
    /// The task keeps something back that goes first.
    shut: bool,
    /// The connection, where others than the task can write to it.
    pub out: Option<TcpStream>,
    /// The database that is selected.
    pub db: Database,
    /// Of the batch that was sent last.
    pub last_seq: u64,
}

#[derive(Default)]
pub struct Waiting {
    /// Sent, not fully answered; replies to what is ours stand before each batch's own.
    pub queue: VecDeque<(Arc<Batch>, Before)>,
    pub bytes: usize,
    pub answered: u32,
    pub failures: Vec<Failure>,
    /// Bytes of the failures' texts since trouble was resolved last.
    pub texts: usize,
    pub failed: Vec<(Arc<Batch>, Vec<Failure>)>,
    pub lost: Option<Error>,
}

impl Waiting {
    /// Nothing may follow before what went wrong is resolved.
    pub fn troubled(&self) -> bool {
        self.lost.is_some() || !self.failed.is_empty() || !self.failures.is_empty()
    }

    /// From now on a batch waits for its replies, which may come before its last byte is written.
    pub fn push(&mut self, batch: Arc<Batch>, before: Before) {
        self.bytes += batch.bytes.len();
        self.queue.push_back((batch, before));
    }
}

impl Flight {
    pub fn new(shared: Arc<Shared>, acked: Arc<AtomicU64>, fixed_db: bool) -> Flight {
        Flight {
            waiting: Mutex::default(),
            gate: Mutex::new(Gate {
                orders: 0,
                busy: false,
                shut: false,
                out: None,
                db: Database::ZERO,
                last_seq: 0,
            }),
            moved: Notify::new(),
            acked,
            shared,
            outdated: AtomicBool::new(false),
            fixed_db,
        }
    }

    pub fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The task is about to get an order.
    pub fn ordered(&self) {
        self.gate().orders += 1;
    }

    /// The task has carried an order out; `shut` when it keeps something back.
    pub fn carried_out(&self, shut: bool) {
        let mut gate = self.gate();
        gate.orders = gate.orders.saturating_sub(1);
        gate.shut = shut;
    }

    /// Whether a SELECT has to stand before a batch that is sent now.
    pub fn selects(&self, batch: &Batch) -> bool {
        let mut gate = self.gate();
        gate.last_seq = batch.seq;
        let selects = gate.db != batch.db && !self.fixed_db;
        if selects {
            gate.db = batch.db;
        }
        selects
    }

    /// Writes a batch, for the loop, if that can be done at once; else returns what the task has to be told.
    pub fn write_now(&self, batch: Batch, address: &str) -> Option<Order> {
        let batch = Arc::new(batch);
        let mut gate = self.gate();
        let Gate {
            orders,
            busy,
            shut,
            out,
            db,
            last_seq,
        } = &mut *gate;
        let free = *orders == 0
            && !*busy
            && !*shut
            && batch.bytes.len() <= SMALL
            && (self.fixed_db || *db == batch.db)
            && !self.outdated.load(Ordering::Relaxed);
        let Some(mut out) = out.as_ref().filter(|_| free) else {
            *orders += 1;
            return Some(Order::Send(batch));
        };
        {
            let mut waiting = self.waiting();
            if waiting.troubled() || waiting.bytes >= self.shared.in_flight {
                *orders += 1;
                return Some(Order::Send(batch));
            }
            waiting.push(batch.clone(), Before::default());
        }
        *last_seq = batch.seq;
        let mut written = 0;
        loop {
            let rest = batch.bytes.get(written..).unwrap_or_default();
            if rest.is_empty() {
                return None;
            }
            match out.write(rest) {
                Ok(n) if n > 0 => written += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    *orders += 1;
                    return Some(Order::Finish(batch, written));
                }
                failed => {
                    let e = failed.err();
                    self.lose(cut(
                        address,
                        e.unwrap_or_else(|| std::io::ErrorKind::WriteZero.into()),
                    ));
                    return None;
                }
            }
        }
    }

    /// Waits until all that was sent is answered; false when something went wrong.
    pub async fn answered(&self) -> bool {
        loop {
            {
                let waiting = self.waiting();
                if waiting.troubled() || waiting.queue.is_empty() {
                    return !waiting.troubled();
                }
            }
            self.moved.notified().await;
        }
    }

    pub fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn lose(&self, e: Error) {
        self.waiting().lost.get_or_insert(e);
        self.shared.signal();
        self.moved.notify_one();
    }

    /// Takes as many replies from the front of `buf` as are there; returns the bytes used, and how many replies.
    ///
    /// `skimmer` knows what has come of the one that is not whole.
    pub fn take_replies(&self, skimmer: &mut Skimmer, buf: &[u8]) -> Result<(usize, usize)> {
        let (mut at, mut replies) = (0usize, 0usize);
        let mut waiting = self.waiting();
        let mut moved = false;
        loop {
            let (outcome, len) = skimmer.take(buf.get(at..).unwrap_or_default())?;
            at = at.saturating_add(len);
            let Some(outcome) = outcome else { break };
            replies = replies.saturating_add(1);
            let Waiting {
                queue,
                answered,
                failures,
                texts,
                ..
            } = &mut *waiting;
            let Some((batch, before)) = queue.front() else {
                return Err(Error::new(
                    ErrorKind::Protocol,
                    "the target sent a reply that nothing asked for",
                ));
            };
            let own = answered.checked_sub(before.replies());
            if let (Outcome::Error(text), true) = (&outcome, before.is_select(*answered)) {
                return Err(not_selected(batch, text));
            }
            match outcome {
                // Who we were still holds.
                Outcome::Error(_) if before.auth && *answered == 0 => {
                    self.outdated.store(true, Ordering::Relaxed);
                }
                Outcome::Fine | Outcome::Nil => {}
                Outcome::Zero | Outcome::Absent => {
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
                    let text = shortened(text, texts);
                    failures.push(Failure {
                        index: own.unwrap_or(0),
                        text,
                    });
                }
            }
            *answered = answered.saturating_add(1);
            if *answered == batch.commands.saturating_add(before.replies()) {
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
        Ok((at, replies))
    }
}

/// A connection whose SELECT was refused is lost: whatever follows on it would run in another database.
///
/// The first SELECT of a database is answered before anything is sent behind it; so commands of `batch` are there only
/// where the target refuses a database that it has let us have before.
fn not_selected(batch: &Batch, text: &str) -> Error {
    let db = batch.db.index();
    let e = net::refusal("SELECT", text).context(format!("select database {db} of the target"));
    match batch.commands {
        0 => e,
        n => Error::new(
            ErrorKind::Refused,
            format!(
                "the target refuses database {db}, which it allowed before: {n} commands for it have run in the database that was selected then"
            ),
        )
        .cause(e)
        .hint("give the user back the right to run SELECT, run the same command again, then `keyferry verify --repair`, which finds and mends the keys concerned"),
    }
}

/// How long the text of a failure may be once the texts of all take so many bytes: a target that refuses all that is
/// on its way must not fill our memory with its reasons.
const TEXTS: [(usize, usize); 2] = [(4 << 20, 24), (256 << 10, 160)];

fn shortened(text: String, kept: &mut usize) -> String {
    let most = TEXTS.iter().find(|(from, _)| *kept >= *from);
    let text = match most {
        Some((_, most)) if text.len() > *most => text.chars().take(*most).collect(),
        _ => text,
    };
    *kept = kept.saturating_add(text.len());
    text
}

/// The connection was lost while something was written.
pub fn cut(address: &str, e: std::io::Error) -> Error {
    Error::new(
        ErrorKind::Connection,
        format!("the connection to {address} was cut"),
    )
    .cause(e)
}

/// How often it is looked whether anything waits: what is sent late into a silence does not wait for the next limit.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Takes replies until the connection is lost.
pub async fn read_replies(
    mut read: ReadHalf<Stream>,
    unread: Vec<u8>,
    flight: &Flight,
    address: &str,
) -> Result<()> {
    let mut buf = unread;
    buf.reserve(64 * 1024);
    let mut skimmer = Skimmer::default();
    // Since when something has waited for an answer without any coming, and what has come of one since.
    let (mut since, mut bytes) = (Instant::now(), 0usize);
    loop {
        let (used, replies) = flight.take_replies(&mut skimmer, &buf)?;
        buf.drain(..used);
        if buf.capacity() - buf.len() < 16 * 1024 {
            buf.reserve(64 * 1024);
        }
        let waiting = !flight.waiting().queue.is_empty();
        if replies > 0 || bytes >= net::PROGRESS_BYTES || !waiting {
            (since, bytes) = (Instant::now(), 0);
        }
        if since.elapsed() >= net::REPLY_LIMIT {
            return Err(cut(address, std::io::ErrorKind::TimedOut.into()));
        }
        let read = tokio::time::timeout(LOOK_EVERY, read.read_buf(&mut buf)).await;
        let Ok(read) = read else { continue };
        match read {
            Ok(0) => {
                return Err(Error::new(
                    ErrorKind::Connection,
                    format!("{address} closed the connection"),
                ));
            }
            Ok(n) => bytes = bytes.saturating_add(n),
            Err(e) => {
                return Err(cut(address, e));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A target that refuses all that is on its way, each with a long reason.
    #[test]
    fn the_reasons_of_many_failures_take_little() {
        let mut kept = 0;
        let of = |kept: &mut usize| shortened("OOM ".to_owned() + &"é".repeat(500), kept);
        let texts: Vec<String> = (0..200_000).map(|_| of(&mut kept)).collect();
        assert!(kept < 16 << 20, "{kept}");
        assert!(texts[0].len() > 500 && texts.iter().all(|t| t.starts_with("OOM ")));
    }
}
