//! A stream whose replies another library parses: it refuses what no server sends, before that takes memory.
//!
//! Invariant: no more bytes and elements of one reply are handed on than its limits allow, nor of all replies to what was
//! asked at once; of long ones one at a time is read in the whole program; only RESP 2 is.

use super::conn::Conn;
use super::stream::Stream;
use crate::error::{Error, ErrorKind, Result};
use crate::resp;
use futures::task::AtomicWaker;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Elements of one reply. CLUSTER SLOTS has the most: 393,216 where 16384 slots alternate between masters of two replicas
/// and each node's hostname is told.
const MAX_ELEMENTS: u64 = 13 << 15;
/// COMMAND DOCS, the deepest reply, has 7.
const MAX_DEPTH: usize = 16;
/// A status, an error or a number.
const MAX_LINE: usize = 64 * 1024;
/// The digits of a length or a count, with their sigil.
const MAX_HEAD: usize = 32;

/// Answers that are longer than this are read one after the other, however many servers are asked at once: made of small
/// elements they take many times their bytes.
const LONG: u64 = 64 << 10;
static LONG_TURN: Semaphore = Semaphore::const_new(1);

/// Held while long answers are read.
type Turn = SemaphorePermit<'static>;

/// What whoever asks and the stream know of each other.
pub struct Watched {
    /// How many bytes one reply may have.
    max_bytes: AtomicU64,
    /// How the stream has ended.
    ended: Mutex<Option<Ended>>,
    /// How many bytes may be read ahead of whoever takes the replies.
    room: u64,
    /// Bytes that were read, of which one whole reply is there at least, since all replies were taken.
    ahead: AtomicU64,
    reader: AtomicWaker,
    /// Whoever asks says when something is asked: until then all that comes is one answer.
    asks: AtomicBool,
    /// Something was asked since the stream has read last.
    asked: AtomicBool,
    turn: Mutex<Option<Turn>>,
}

/// Something is asked; when this goes, its answers have been taken.
pub struct Asking<'a>(&'a Watched);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.turn().take();
    }
}

/// How a stream has ended.
#[derive(Debug)]
pub enum Ended {
    Closed,
    Cut(io::Error),
    /// It brought what no server sends.
    Refused(String),
}

impl Watched {
    /// Allows replies of so many bytes from now on, unless longer ones are allowed already.
    pub fn allow(&self, bytes: u64) {
        self.max_bytes.fetch_max(bytes, Relaxed);
    }

    /// Something is asked now: its answers together may have as many bytes and elements as one.
    pub fn ask(&self) -> Asking<'_> {
        self.asks.store(true, Relaxed);
        self.asked.store(true, Relaxed);
        Asking(self)
    }

    fn turn(&self) -> MutexGuard<'_, Option<Turn>> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever takes the replies has taken all that are there.
    pub fn all_taken(&self) {
        if self.ahead.swap(0, Relaxed) >= self.room {
            self.reader.wake();
        }
    }

    /// Whether nothing is read until that.
    fn is_full(&self, cx: &Context<'_>) -> bool {
        let full = || self.ahead.load(Relaxed) >= self.room;
        full() && {
            self.reader.register(cx.waker());
            full()
        }
    }

    /// How it has ended, once.
    pub fn take_end(&self) -> Option<Ended> {
        self.ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn end(&self, ended: Ended) {
        let mut known = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        known.get_or_insert(ended);
    }
}

/// A stream whose replies are measured.
pub struct Metered {
    stream: Stream,
    frames: Frames,
    answer: Answer,
    /// For the turn to read a long answer.
    waits: Option<Pin<Box<dyn Future<Output = Option<Turn>> + Send + Sync>>>,
    watched: Arc<Watched>,
}

/// What has come of the replies to what was asked at once.
#[derive(Default)]
struct Answer {
    bytes: u64,
    /// All elements that had come before.
    elements_before: u64,
}

impl Metered {
    /// The stream of a connection of which nothing is unread.
    pub fn over(conn: Conn, max_bytes: u64, room: u64) -> Result<(Metered, Arc<Watched>)> {
        let address = conn.address().to_owned();
        let (stream, unread) = conn.into_parts();
        if !unread.is_empty() {
            let text = format!("{address} sent more than it was asked for");
            return Err(Error::new(ErrorKind::Protocol, text));
        }
        let watched = Arc::new(Watched {
            max_bytes: AtomicU64::new(max_bytes),
            ended: Mutex::default(),
            room,
            ahead: AtomicU64::new(0),
            reader: AtomicWaker::new(),
            asks: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            turn: Mutex::default(),
        });
        let metered = Metered {
            stream,
            frames: Frames::default(),
            answer: Answer::default(),
            waits: None,
            watched: watched.clone(),
        };
        Ok((metered, watched))
    }
}

impl Answer {
    fn within(&self, max_bytes: u64, all_elements: u64) -> Followed {
        if self.bytes > max_bytes {
            return Err(format!("replies of more than {max_bytes} bytes together"));
        }
        match all_elements.saturating_sub(self.elements_before) > MAX_ELEMENTS {
            true => Err(format!(
                "replies of more than {MAX_ELEMENTS} elements together"
            )),
            false => Ok(()),
        }
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.watched.is_full(cx) {
            return Poll::Pending;
        }
        if this.watched.asked.swap(false, Relaxed) {
            this.answer = Answer {
                bytes: 0,
                elements_before: this.frames.all_elements,
            };
        }
        let asks = this.watched.asks.load(Relaxed);
        if asks && this.answer.bytes > LONG && this.watched.turn().is_none() {
            let wait = || Box::pin(async { LONG_TURN.acquire().await.ok() }) as Pin<Box<_>>;
            let turn = std::task::ready!(this.waits.get_or_insert_with(wait).as_mut().poll(cx));
            this.waits = None;
            *this.watched.turn() = turn;
        }
        let before = buf.filled().len();
        let read = std::task::ready!(Pin::new(&mut this.stream).poll_read(cx, buf));
        if let Err(e) = read {
            let again = io::Error::from(e.kind());
            this.watched.end(Ended::Cut(e));
            return Poll::Ready(Err(again));
        }
        let new = buf.filled().get(before..).unwrap_or_default();
        if new.is_empty() {
            this.watched.end(Ended::Closed);
        } else {
            let most = this.watched.max_bytes.load(Relaxed);
            let followed = (this.frames).follow(new, most).and_then(|()| {
                let came = u64::try_from(new.len()).unwrap_or(u64::MAX);
                this.answer.bytes = this.answer.bytes.saturating_add(came);
                match asks {
                    true => (this.answer).within(most, this.frames.all_elements),
                    false => Ok(()),
                }
            });
            if let Err(why) = followed {
                this.watched.end(Ended::Refused(why));
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
        }
        if std::mem::take(&mut this.frames.whole) || this.watched.ahead.load(Relaxed) > 0 {
            let n = u64::try_from(new.len()).unwrap_or(u64::MAX);
            this.watched.ahead.fetch_add(n, Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = std::task::ready!(Pin::new(&mut this.stream).poll_write(cx, buf));
        if let Err(e) = &written {
            this.watched.end(Ended::Cut(e.kind().into()));
        }
        Poll::Ready(written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Where in a reply the bytes are, without keeping them.
#[derive(Default)]
struct Frames {
    at: At,
    /// How many elements each open array still lacks.
    open: Vec<u64>,
    /// Bytes and elements of the reply so far.
    bytes: u64,
    elements: u64,
    /// Of all replies.
    all_elements: u64,
    /// A reply has come to its end.
    whole: bool,
}

#[derive(Default)]
enum At {
    /// Before a sigil.
    #[default]
    Start,
    /// In a status or an error: so many bytes of it have come, and whether the last was CR.
    Line(usize, bool),
    /// In a number, a length or a count.
    Head(Vec<u8>),
    /// In a bulk string that lacks so many bytes.
    Bulk(u64),
}

/// An error says what no server sends.
type Followed = std::result::Result<(), String>;

impl Frames {
    /// Follows the bytes that come next; an error says what is wrong with them.
    fn follow(&mut self, mut new: &[u8], max_bytes: u64) -> Followed {
        while let Some(first) = new.first().copied() {
            let taken = match &self.at {
                At::Start | At::Head(_) => 1,
                At::Line(..) => memchr::memchr(b'\n', new).map_or(new.len(), |n| n + 1),
                At::Bulk(left) => new.len().min(usize::try_from(*left).unwrap_or(usize::MAX)),
            };
            let (piece, rest) = new.split_at_checked(taken).unwrap_or((new, &[]));
            new = rest;
            self.bytes = self.bytes.saturating_add(taken as u64);
            if self.bytes > max_bytes {
                return Err(format!("a reply of more than {max_bytes} bytes"));
            }
            match &mut self.at {
                At::Start => {
                    self.at = match first {
                        b'+' | b'-' => At::Line(0, false),
                        b':' | b'$' | b'*' => At::Head(vec![first]),
                        other => return Err(format!("byte 0x{other:02x} where a reply begins")),
                    }
                }
                At::Line(len, cr) => {
                    *len += taken;
                    if *len > MAX_LINE {
                        return Err(format!("a line of more than {MAX_LINE} bytes"));
                    }
                    match piece {
                        [b'\n'] if *cr => self.complete()?,
                        [.., b'\r', b'\n'] => self.complete()?,
                        [.., b'\n'] => return Err("a line that does not end with CR LF".into()),
                        _ => *cr = piece.ends_with(b"\r"),
                    }
                }
                At::Head(head) => {
                    head.push(first);
                    if head.len() > MAX_HEAD {
                        return Err("a number without an end".into());
                    }
                    if first == b'\n' {
                        let head = std::mem::take(head);
                        self.head(&head, max_bytes)?;
                    }
                }
                At::Bulk(left) => {
                    *left = left.saturating_sub(taken as u64);
                    if *left == 0 {
                        self.complete()?;
                    }
                }
            }
        }
        Ok(())
    }

    fn head(&mut self, head: &[u8], max_bytes: u64) -> Followed {
        let n = match resp::parse_head(head) {
            Ok(Some((n, _))) => n,
            _ => return Err("a number that is none".into()),
        };
        match (head.first(), u64::try_from(n)) {
            (Some(b'$'), Ok(n)) if n > max_bytes => {
                Err(format!("a string of {n} bytes (at most {max_bytes})"))
            }
            (Some(b'$'), Ok(n)) => {
                self.at = At::Bulk(n.saturating_add(2));
                Ok(())
            }
            (Some(b'*'), Ok(n)) if n > MAX_ELEMENTS => {
                Err(format!("an array of {n} elements (at most {MAX_ELEMENTS})"))
            }
            (Some(b'*'), Ok(_)) if self.open.len() >= MAX_DEPTH => {
                Err(format!("more than {MAX_DEPTH} arrays inside each other"))
            }
            (Some(b'*'), Ok(n @ 1..)) => {
                self.open.push(n);
                self.at = At::Start;
                self.count()
            }
            (Some(b'$' | b'*'), Err(_)) if n != -1 => Err(format!("a length of {n}")),
            _ => self.complete(),
        }
    }

    /// An element is whole, and with it perhaps the arrays around it, or the reply.
    fn complete(&mut self) -> Followed {
        self.at = At::Start;
        self.count()?;
        while let Some(left) = self.open.last_mut() {
            *left = left.saturating_sub(1);
            if *left > 0 {
                return Ok(());
            }
            self.open.pop();
        }
        (self.bytes, self.elements, self.whole) = (0, 0, true);
        Ok(())
    }

    fn count(&mut self) -> Followed {
        self.elements = self.elements.saturating_add(1);
        self.all_elements = self.all_elements.saturating_add(1);
        match self.elements > MAX_ELEMENTS {
            true => Err(format!("a reply of more than {MAX_ELEMENTS} elements")),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 1 << 20;

    /// The same, whole and byte by byte.
    fn follow(bytes: &[u8]) -> std::result::Result<Frames, String> {
        let mut whole = Frames::default();
        let at_once = whole.follow(bytes, MOST);
        let mut frames = Frames::default();
        let single = (bytes.chunks(1)).try_for_each(|byte| frames.follow(byte, MOST));
        assert_eq!(at_once, single);
        single.map(|()| frames)
    }

    #[test]
    fn replies_end_where_they_end() {
        for reply in [
            "+OK\r\n",
            "-ERR no\r\n",
            ":-2\r\n",
            "$-1\r\n",
            "*-1\r\n",
            "*0\r\n",
            "$0\r\n\r\n",
            "*3\r\n*2\r\n:1\r\n$3\r\na\r\n\r\n*0\r\n$-1\r\n",
        ] {
            for times in 1..3 {
                let frames = follow(reply.repeat(times).as_bytes()).unwrap();
                let rest = (frames.open.len(), frames.bytes, frames.elements);
                assert_eq!(rest, (0, 0, 0), "{reply:?}");
                assert!(matches!(frames.at, At::Start));
            }
        }
        // A reply of many elements that is allowed.
        let slots = "*3\r\n:1\r\n:2\r\n$4\r\nnode\r\n".repeat(1000);
        assert!(follow(format!("*1000\r\n{slots}").as_bytes()).is_ok());
    }

    #[test]
    fn answers_to_what_was_asked_at_once_count_together() {
        let mut frames = Frames::default();
        let reply = "*2\r\n:1\r\n:2\r\n".repeat(1000);
        frames.follow(reply.as_bytes(), MOST).unwrap();
        let within = |bytes, elements_before| {
            let answer = Answer {
                bytes,
                elements_before,
            };
            answer.within(MOST, frames.all_elements + MAX_ELEMENTS - 3000)
        };
        assert_eq!(within(MOST, 0), Ok(()));
        assert!(within(MOST + 1, 0).unwrap_err().contains("bytes together"));
        frames.follow(b":1\r\n", MOST).unwrap();
        let all = frames.all_elements + MAX_ELEMENTS - 3000;
        let answer = |elements_before| Answer {
            bytes: 0,
            elements_before,
        };
        let refused = answer(0).within(MOST, all).unwrap_err();
        assert!(refused.contains("elements together"), "{refused}");
        assert_eq!(answer(1).within(MOST, all), Ok(()), "the next question");
    }

    #[test]
    fn what_no_server_sends_is_refused_before_it_has_come() {
        let lines = "+a\n".repeat(4);
        let deep = "*1\r\n".repeat(MAX_DEPTH + 1);
        let endless = format!("+{}", "x".repeat(MAX_LINE + 1));
        let digits = format!(":{}", "1".repeat(MAX_HEAD));
        let long = format!(
            "*2\r\n$600000\r\n{0}\r\n$600000\r\n{0}",
            "x".repeat(600_000)
        );
        let many = format!("*300000\r\n{}", "*1\r\n:1\r\n".repeat(300_000));
        for (bytes, why) in [
            ("$1099511627776\r\n", "a string of 1099511627776 bytes"),
            ("*1000000000\r\n", "an array of 1000000000 elements"),
            ("$-2\r\n", "a length of -2"),
            ("*x\r\n", "a number that is none"),
            ("%1\r\n+a\r\n+b\r\n", "byte 0x25"),
            ("HTTP/1.1 400", "byte 0x48"),
            (lines.as_str(), "CR LF"),
            (deep.as_str(), "inside each other"),
            (endless.as_str(), "a line of more"),
            (digits.as_str(), "without an end"),
            (long.as_str(), "a reply of more than 1048576 bytes"),
            (many.as_str(), "bytes"),
        ] {
            let refused = follow(bytes.as_bytes()).err().unwrap_or_default();
            assert!(refused.contains(why), "{refused:?} for {why:?}");
        }
        let mut frames = Frames::default();
        let refused = frames.follow(many.as_bytes(), u64::MAX).unwrap_err();
        assert!(refused.contains("elements"), "{refused}");
    }
}
