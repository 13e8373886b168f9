//! A server's answer, put together as its bytes come.

use super::frame::{MAX_ARGS, MAX_BULK, MAX_DEPTH, corrupt, line, number};
use crate::error::{Error, ErrorKind, Result};
use std::borrow::Cow;

/// A server's answer (RESP 2; keyferry never asks for RESP 3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Status(Cow<'static, str>),
    Error(String),
    Int(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Reply>),
}

impl Reply {
    /// The text of a status or bulk reply.
    pub fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Reply::Status(s) => Some(s.as_ref().into()),
            Reply::Bulk(b) => Some(String::from_utf8_lossy(b)),
            _ => None,
        }
    }

    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Reply::Bulk(b) => Some(b),
            Reply::Status(s) => Some(s.as_bytes()),
            _ => None,
        }
    }

    /// An integer, also when it came as text.
    pub fn int(&self) -> Option<i64> {
        match self {
            Reply::Int(n) => Some(*n),
            Reply::Bulk(b) => std::str::from_utf8(b).ok()?.parse().ok(),
            Reply::Status(s) => s.parse().ok(),
            _ => None,
        }
    }

    pub fn array(&self) -> Option<&[Reply]> {
        match self {
            Reply::Array(items) => Some(items),
            _ => None,
        }
    }
}

/// What an element takes beside its bytes: itself, and what the allocator adds to a string.
const ELEMENT: usize = size_of::<Reply>() + 16;
/// A string that is announced gets room for so many bytes before they have come.
const AHEAD: usize = 64 * 1024;

/// Parses one reply, of which it keeps what has come: nothing is read twice.
#[derive(Debug, Default)]
pub struct Parser {
    /// Arrays that are open, the outermost first: what they hold, and how many elements are still to come.
    open: Vec<(Vec<Reply>, usize)>,
    /// A string that has begun, and its length.
    string: Option<(Vec<u8>, usize)>,
    /// What the reply takes in memory, with the elements and strings that it has announced.
    held: usize,
}

impl Parser {
    /// Nothing of a reply has been taken yet.
    pub fn is_idle(&self) -> bool {
        self.open.is_empty() && self.string.is_none()
    }

    /// Takes the bytes at the start of `buf`; returns the reply, once it is whole, and how many bytes were used.
    ///
    /// Bytes that are not used have to come again, with more behind them.
    /// Errors: `Oversized` as soon as the reply is known to take more than `most` bytes; `Protocol`.
    pub fn take(&mut self, buf: &[u8], most: usize) -> Result<(Option<Reply>, usize)> {
        let mut at = 0usize;
        loop {
            let rest = buf.get(at..).unwrap_or_default();
            let (item, used) = match &self.string {
                Some(_) => self.rest_of_string(rest)?,
                None => self.next(rest, most)?,
            };
            at = at.saturating_add(used);
            match item {
                Some(item) => {
                    if let Some(whole) = self.put(item) {
                        self.held = 0;
                        return Ok((Some(whole), at));
                    }
                }
                // The head of an array or of a string is no item, but more than nothing.
                None if used > 0 => {}
                None => return Ok((None, at)),
            }
        }
    }

    /// Counts what has been announced.
    fn hold(&mut self, bytes: usize, most: usize) -> Result<()> {
        self.held = self.held.saturating_add(bytes);
        match self.held > most {
            true => Err(oversized(most)),
            false => Ok(()),
        }
    }

    /// The next item, or the head of an array or a string.
    fn next(&mut self, buf: &[u8], most: usize) -> Result<(Option<Reply>, usize)> {
        let nothing = Ok((None, 0));
        match buf.first() {
            None => nothing,
            Some(sign @ (b'+' | b'-')) => {
                let Some((line, next)) = line(buf, 1)? else {
                    return nothing;
                };
                self.hold(ELEMENT.saturating_add(line.len()), most)?;
                let reply = match sign {
                    b'+' => Reply::Status(status(line)),
                    _ => Reply::Error(String::from_utf8_lossy(line).into_owned()),
                };
                Ok((Some(reply), next))
            }
            Some(b':') => Ok(match number(buf, 1)? {
                Some((n, next)) => (Some(Reply::Int(n)), next),
                None => (None, 0),
            }),
            Some(b'$') => {
                let Some((len, next)) = number(buf, 1)? else {
                    return nothing;
                };
                if len == -1 {
                    return Ok((Some(Reply::Nil), next));
                }
                if !(0..=MAX_BULK).contains(&len) {
                    return Err(corrupt(&format!("a bulk reply of {len} bytes")));
                }
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                self.hold(len.saturating_add(ELEMENT), most)?;
                self.string = Some((Vec::with_capacity(len.min(AHEAD)), len));
                Ok((None, next))
            }
            Some(b'*') => {
                let Some((count, next)) = number(buf, 1)? else {
                    return nothing;
                };
                if count == -1 {
                    return Ok((Some(Reply::Nil), next));
                }
                if !(0..=MAX_ARGS).contains(&count) {
                    return Err(corrupt(&format!("an array reply of {count} elements")));
                }
                if self.open.len() > MAX_DEPTH {
                    return Err(corrupt("a reply nested too deep"));
                }
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                self.hold(count.saturating_mul(size_of::<Reply>()), most)?;
                match count {
                    0 => Ok((Some(Reply::Array(Vec::new())), next)),
                    _ => {
                        self.open.push((Vec::with_capacity(count.min(1024)), count));
                        Ok((None, next))
                    }
                }
            }
            Some(other) => Err(corrupt(&format!("byte 0x{other:02x} where a reply begins"))),
        }
    }

    fn rest_of_string(&mut self, buf: &[u8]) -> Result<(Option<Reply>, usize)> {
        let Some((bytes, len)) = &mut self.string else {
            return Ok((None, 0));
        };
        let missing = len.saturating_sub(bytes.len());
        let piece = buf.get(..missing.min(buf.len())).unwrap_or_default();
        if bytes.capacity().saturating_sub(bytes.len()) < piece.len() {
            // Twofold, but not beyond what it will be.
            bytes.reserve_exact(missing.min(bytes.len().max(AHEAD)).max(piece.len()));
        }
        bytes.extend_from_slice(piece);
        let used = piece.len();
        if used < missing {
            return Ok((None, used));
        }
        match buf.get(used..used.saturating_add(2)) {
            None => Ok((None, used)),
            Some(b"\r\n") => {
                let bytes = std::mem::take(bytes);
                self.string = None;
                Ok((Some(Reply::Bulk(bytes)), used.saturating_add(2)))
            }
            Some(_) => Err(corrupt("a bulk reply that does not end with CR LF")),
        }
    }

    /// Puts an item where it belongs; the whole reply when it was the last one.
    fn put(&mut self, mut item: Reply) -> Option<Reply> {
        while let Some((mut items, left)) = self.open.pop() {
            items.push(item);
            if left > 1 {
                self.open.push((items, left.saturating_sub(1)));
                return None;
            }
            item = Reply::Array(items);
        }
        Some(item)
    }
}

fn oversized(most: usize) -> Error {
    Error::new(
        ErrorKind::Oversized,
        format!("the peer's reply takes more than the {most} bytes that may be held of one"),
    )
}

/// Parses one reply at the start of `buf`; `None` means that more bytes are needed.
pub fn parse_reply(buf: &[u8]) -> Result<Option<(Reply, usize)>> {
    let (reply, used) = Parser::default().take(buf, usize::MAX)?;
    Ok(reply.map(|reply| (reply, used)))
}

/// A status; the usual ones come by the thousand and are not copied.
fn status(line: &[u8]) -> Cow<'static, str> {
    const USUAL: [&str; 9] = [
        "OK", "QUEUED", "none", "string", "hash", "list", "set", "zset", "stream",
    ];
    match USUAL.iter().find(|word| word.as_bytes() == line) {
        Some(word) => Cow::Borrowed(word),
        None => Cow::Owned(String::from_utf8_lossy(line).into_owned()),
    }
}
