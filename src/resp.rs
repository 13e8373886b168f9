//! RESP, the protocol's frames: encode commands, parse commands and replies; knows no command.
//!
//! Invariant: a peer-given length never causes an allocation before the bytes are there.

pub mod info;

use crate::error::{Error, ErrorKind, Result};
use std::borrow::Cow;
use std::ops::Range;

/// Appends the head of a command of `args` arguments.
pub fn array(out: &mut Vec<u8>, args: usize) {
    head(out, b'*', args as u64);
}

/// Appends one argument.
pub fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    head(out, b'$', bytes.len() as u64);
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Appends a whole command.
pub fn command(out: &mut Vec<u8>, args: &[&[u8]]) {
    array(out, args.len());
    for arg in args {
        bulk(out, arg);
    }
}

/// Appends one argument: a decimal number.
pub fn bulk_int(out: &mut Vec<u8>, n: i64) {
    let mut digits = [0u8; 20];
    bulk(out, decimal(n, &mut digits));
}

fn head(out: &mut Vec<u8>, sigil: u8, n: u64) {
    let mut digits = [0u8; 20];
    out.push(sigil);
    out.extend_from_slice(decimal(i64::try_from(n).unwrap_or(i64::MAX), &mut digits));
    out.extend_from_slice(b"\r\n");
}

/// The decimal text of `n`, written at the end of `digits`.
pub fn decimal(n: i64, digits: &mut [u8; 20]) -> &[u8] {
    let mut left = n.unsigned_abs();
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (left % 10) as u8;
        used += 1;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if n < 0 {
        used += 1;
        if let Some(sign) = digits.get_mut(20 - used) {
            *sign = b'-';
        }
    }
    digits.get(20 - used..).unwrap_or_default()
}

/// No server sends a longer bulk string: `proto-max-bulk-len` may be raised, but a frame must stay addressable.
const MAX_BULK: i64 = 1 << 40;
/// No server sends more arguments (`networking.c` processMultibulkBuffer allows 1024 * 1024 from clients, more from a master).
const MAX_ARGS: i64 = 1 << 31;
/// An inline command or a status line is short; without an end it is not RESP.
const MAX_LINE: usize = 64 * 1024;

/// Parses one command at the start of `buf`: its arguments' places go into `args`, its length is returned.
///
/// `None` means that more bytes are needed.
/// A lone newline is a command without arguments (a keep-alive); an inline command is split at spaces.
pub fn parse_command(buf: &[u8], args: &mut Vec<Range<usize>>) -> Result<Option<usize>> {
    args.clear();
    match buf.first() {
        None => Ok(None),
        Some(b'*') => {
            let Some((count, mut at)) = number(buf, 1)? else {
                return Ok(None);
            };
            if !(0..=MAX_ARGS).contains(&count) {
                return Err(corrupt(&format!("a command of {count} arguments")));
            }
            for _ in 0..count {
                match buf.get(at) {
                    None => return Ok(None),
                    Some(b'$') => {}
                    Some(other) => {
                        return Err(corrupt(&format!(
                            "byte 0x{other:02x} where an argument begins"
                        )));
                    }
                }
                let Some((len, start)) = number(buf, at + 1)? else {
                    return Ok(None);
                };
                if !(0..=MAX_BULK).contains(&len) {
                    return Err(corrupt(&format!("an argument of {len} bytes")));
                }
                let end = start.saturating_add(len as usize);
                match buf.get(end..end.saturating_add(2)) {
                    None => return Ok(None),
                    Some(b"\r\n") => {}
                    Some(_) => return Err(corrupt("an argument that does not end with CR LF")),
                }
                args.push(start..end);
                at = end + 2;
            }
            Ok(Some(at))
        }
        Some(_) => {
            let Some(newline) = memchr::memchr(b'\n', buf) else {
                return if buf.len() > MAX_LINE {
                    Err(corrupt("an inline command without an end"))
                } else {
                    Ok(None)
                };
            };
            let mut start = None;
            for (i, b) in buf.iter().enumerate().take(newline + 1) {
                match (b, start) {
                    (b' ' | b'\t' | b'\r' | b'\n', Some(s)) => {
                        args.push(s..i);
                        start = None;
                    }
                    (b' ' | b'\t' | b'\r' | b'\n', None) => {}
                    (_, None) => start = Some(i),
                    (_, Some(_)) => {}
                }
            }
            Ok(Some(newline + 1))
        }
    }
}

/// The number that stands at `at` and ends with CR LF, and where the bytes after it begin.
fn number(buf: &[u8], at: usize) -> Result<Option<(i64, usize)>> {
    let mut i = at;
    let mut value: i64 = 0;
    let negative = buf.get(i) == Some(&b'-');
    if negative {
        i += 1;
    }
    let first = i;
    loop {
        match buf.get(i) {
            None => return Ok(None),
            Some(d @ b'0'..=b'9') if i - first < 19 => {
                value = value.saturating_mul(10).saturating_add(i64::from(d - b'0'));
                i += 1;
            }
            Some(b'\r') if i > first => match buf.get(i + 1) {
                None => return Ok(None),
                Some(b'\n') => return Ok(Some((if negative { -value } else { value }, i + 2))),
                Some(_) => return Err(corrupt("a length that does not end with CR LF")),
            },
            Some(other) => return Err(corrupt(&format!("byte 0x{other:02x} in a length"))),
        }
    }
}

#[cold]
fn corrupt(what: &str) -> Error {
    Error::new(
        ErrorKind::Protocol,
        format!("the peer sent {what}, which is not RESP"),
    )
}

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

/// Nesting a server's reply never reaches (COMMAND DOCS, the deepest, has 7).
const MAX_DEPTH: usize = 32;

/// The number behind the sigil at the start of `buf` (a count, a length), and where the bytes after it begin.
///
/// `None` means that more bytes are needed.
pub fn parse_head(buf: &[u8]) -> Result<Option<(i64, usize)>> {
    number(buf, 1)
}

/// Parses one reply at the start of `buf`; `None` means that more bytes are needed.
pub fn parse_reply(buf: &[u8]) -> Result<Option<(Reply, usize)>> {
    reply_at(buf, 0, 0)
}

fn reply_at(buf: &[u8], at: usize, depth: usize) -> Result<Option<(Reply, usize)>> {
    if depth > MAX_DEPTH {
        return Err(corrupt("a reply nested too deep"));
    }
    match buf.get(at) {
        None => Ok(None),
        Some(b'+' | b'-') => {
            let Some((line, next)) = line(buf, at + 1)? else {
                return Ok(None);
            };
            let reply = if buf.get(at) == Some(&b'+') {
                Reply::Status(status(line))
            } else {
                Reply::Error(String::from_utf8_lossy(line).into_owned())
            };
            Ok(Some((reply, next)))
        }
        Some(b':') => Ok(number(buf, at + 1)?.map(|(n, next)| (Reply::Int(n), next))),
        Some(b'$') => {
            let Some((len, start)) = number(buf, at + 1)? else {
                return Ok(None);
            };
            if len == -1 {
                return Ok(Some((Reply::Nil, start)));
            }
            if !(0..=MAX_BULK).contains(&len) {
                return Err(corrupt(&format!("a bulk reply of {len} bytes")));
            }
            let end = start.saturating_add(len as usize);
            match buf.get(end..end.saturating_add(2)) {
                None => Ok(None),
                Some(b"\r\n") => Ok(Some((
                    Reply::Bulk(buf.get(start..end).unwrap_or_default().to_vec()),
                    end + 2,
                ))),
                Some(_) => Err(corrupt("a bulk reply that does not end with CR LF")),
            }
        }
        Some(b'*') => {
            let Some((count, mut next)) = number(buf, at + 1)? else {
                return Ok(None);
            };
            if count == -1 {
                return Ok(Some((Reply::Nil, next)));
            }
            if !(0..=MAX_ARGS).contains(&count) {
                return Err(corrupt(&format!("an array reply of {count} elements")));
            }
            let mut items = Vec::with_capacity((count as usize).min(1024).min(buf.len()));
            for _ in 0..count {
                match reply_at(buf, next, depth + 1)? {
                    None => return Ok(None),
                    Some((item, after)) => {
                        items.push(item);
                        next = after;
                    }
                }
            }
            Ok(Some((Reply::Array(items), next)))
        }
        Some(other) => Err(corrupt(&format!("byte 0x{other:02x} where a reply begins"))),
    }
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

fn line(buf: &[u8], at: usize) -> Result<Option<(&[u8], usize)>> {
    let rest = buf.get(at..).unwrap_or_default();
    match memchr::memchr(b'\n', rest) {
        None if rest.len() > MAX_LINE => Err(corrupt("a status line without an end")),
        None => Ok(None),
        Some(n) => {
            let text = rest.get(..n).unwrap_or_default();
            Ok(Some((text.strip_suffix(b"\r").unwrap_or(text), at + n + 1)))
        }
    }
}

/// What a reply says of the command it answers, without keeping its value.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    Fine,
    /// An integer reply 0: for some commands it says that nothing was there to act on.
    Zero,
    /// An integer reply -2, by itself or inside an array: a field (or key) was not there.
    Absent,
    /// The error line, or the first error inside an array (EXEC) with its index.
    Error(&'a [u8]),
    ErrorInside(usize, &'a [u8]),
}

/// Looks at one reply at the start of `buf` without copying it; `None` means that more bytes are needed.
pub fn skim_reply(buf: &[u8]) -> Result<Option<(Outcome<'_>, usize)>> {
    if buf.starts_with(b"+OK\r\n") {
        return Ok(Some((Outcome::Fine, 5)));
    }
    skim_at(buf, 0, 0)
}

fn skim_at(buf: &[u8], at: usize, depth: usize) -> Result<Option<(Outcome<'_>, usize)>> {
    if depth > MAX_DEPTH {
        return Err(corrupt("a reply nested too deep"));
    }
    match buf.get(at) {
        None => Ok(None),
        Some(b'+') => Ok(line(buf, at + 1)?.map(|(_, next)| (Outcome::Fine, next))),
        Some(b'-') => Ok(line(buf, at + 1)?.map(|(text, next)| (Outcome::Error(text), next))),
        Some(b':') => Ok(number(buf, at + 1)?.map(|(n, next)| match n {
            0 => (Outcome::Zero, next),
            -2 => (Outcome::Absent, next),
            _ => (Outcome::Fine, next),
        })),
        Some(b'$') => {
            let Some((len, start)) = number(buf, at + 1)? else {
                return Ok(None);
            };
            if len < 0 {
                return Ok(Some((Outcome::Fine, start)));
            }
            let end = start
                .saturating_add(len.min(MAX_BULK) as usize)
                .saturating_add(2);
            Ok((buf.len() >= end).then_some((Outcome::Fine, end)))
        }
        Some(b'*') => {
            let Some((count, mut next)) = number(buf, at + 1)? else {
                return Ok(None);
            };
            let (mut first_error, mut absent) = (None, false);
            for index in 0..count.max(0) as usize {
                let Some((outcome, after)) = skim_at(buf, next, depth + 1)? else {
                    return Ok(None);
                };
                absent |= outcome == Outcome::Absent;
                if let (Outcome::Error(text) | Outcome::ErrorInside(_, text), None) =
                    (outcome, &first_error)
                {
                    first_error = Some((index, text));
                }
                next = after;
            }
            Ok(Some(match first_error {
                Some((index, text)) => (Outcome::ErrorInside(index, text), next),
                None if absent => (Outcome::Absent, next),
                None => (Outcome::Fine, next),
            }))
        }
        Some(other) => Err(corrupt(&format!("byte 0x{other:02x} where a reply begins"))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn args_of<'a>(buf: &'a [u8], ranges: &[Range<usize>]) -> Vec<&'a [u8]> {
        ranges.iter().map(|r| &buf[r.clone()]).collect()
    }

    #[test]
    fn inline_commands_and_newlines_are_commands() {
        let mut args = Vec::new();
        assert_eq!(
            parse_command(b"select 5\r\n*1", &mut args).unwrap(),
            Some(10)
        );
        assert_eq!(args_of(b"select 5", &args), [b"select".as_slice(), b"5"]);
        assert_eq!(parse_command(b"\n", &mut args).unwrap(), Some(1));
        assert!(args.is_empty());
    }

    #[test]
    fn a_lying_length_is_an_error_or_waits_but_never_allocates() {
        let mut args = Vec::new();
        assert_eq!(
            parse_command(b"*1\r\n$99999999999\r\nx", &mut args).unwrap(),
            None
        );
        assert!(parse_command(b"*1\r\n$9999999999999999\r\nx", &mut args).is_err());
        assert!(parse_command(b"*-3\r\n", &mut args).is_err());
        assert!(parse_command(b"*1\r\n$3\r\nabcde", &mut args).is_err());
    }

    #[test]
    fn an_error_inside_exec_is_seen() {
        let (outcome, n) = skim_reply(b"*2\r\n+OK\r\n-WRONGTYPE no\r\n+OK\r\n")
            .unwrap()
            .unwrap();
        assert_eq!((outcome, n), (Outcome::ErrorInside(1, b"WRONGTYPE no"), 24));
        assert_eq!(skim_reply(b":0\r\n").unwrap().unwrap().0, Outcome::Zero);
    }

    #[test]
    fn a_field_that_is_not_there_is_seen() {
        for (reply, outcome) in [
            ("*1\r\n:-2\r\n", Outcome::Absent),
            ("*2\r\n:1\r\n*2\r\n:1\r\n:-2\r\n", Outcome::Absent),
            ("*2\r\n:0\r\n:-1\r\n", Outcome::Fine),
            ("*2\r\n:-2\r\n-ERR x\r\n", Outcome::ErrorInside(1, b"ERR x")),
            (":0\r\n", Outcome::Zero),
        ] {
            let bytes = reply.as_bytes();
            assert_eq!(skim_reply(bytes).unwrap(), Some((outcome, bytes.len())));
        }
    }

    proptest! {
        #[test]
        fn a_command_reads_back(args in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..8)) {
            let mut out = Vec::new();
            command(&mut out, &args.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let mut ranges = Vec::new();
            for cut in 0..out.len() {
                prop_assert_eq!(parse_command(&out[..cut], &mut ranges).unwrap(), None);
            }
            prop_assert_eq!(parse_command(&out, &mut ranges).unwrap(), Some(out.len()));
            prop_assert_eq!(args_of(&out, &ranges), args.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }

        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_command(&bytes, &mut Vec::new());
            let skim = skim_reply(&bytes).map(|o| o.map(|(_, n)| n));
            if let (Ok(Some((_, n))), Ok(Some(m))) = (parse_reply(&bytes), skim) { prop_assert_eq!(n, m); }
        }

        #[test]
        fn decimals_are_those_of_std(n in any::<i64>()) {
            let mut digits = [0u8; 20];
            let text = n.to_string();
            prop_assert_eq!(decimal(n, &mut digits), text.as_bytes());
        }
    }
}
