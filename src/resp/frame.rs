//! What frames are made of: numbers and lines, and what no peer sends.

use crate::error::{Error, ErrorKind, Result};

/// No server sends a longer bulk string: `proto-max-bulk-len` may be raised, but a frame must stay addressable.
pub const MAX_BULK: i64 = 1 << 40;
/// No server sends more arguments (`networking.c` processMultibulkBuffer allows 1024 * 1024 from clients, more from a master).
pub const MAX_ARGS: i64 = 1 << 31;
/// An inline command or a status line is short; without an end it is not RESP.
pub const MAX_LINE: usize = 64 * 1024;

/// Nesting a server's reply never reaches (COMMAND DOCS, the deepest, has 7).
pub const MAX_DEPTH: usize = 32;

/// The number that stands at `at` and ends with CR LF, and where the bytes after it begin.
pub fn number(buf: &[u8], at: usize) -> Result<Option<(i64, usize)>> {
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
                let digit = i64::from(d.saturating_sub(b'0'));
                value = value.saturating_mul(10);
                value = match negative {
                    true => value.saturating_sub(digit),
                    false => value.saturating_add(digit),
                };
                i += 1;
            }
            Some(b'\r') if i > first => match buf.get(i + 1) {
                None => return Ok(None),
                Some(b'\n') => return Ok(Some((value, i + 2))),
                Some(_) => return Err(corrupt("a length that does not end with CR LF")),
            },
            Some(other) => return Err(corrupt(&format!("byte 0x{other:02x} in a length"))),
        }
    }
}

#[cold]
pub fn corrupt(what: &str) -> Error {
    Error::new(
        ErrorKind::Protocol,
        format!("the peer sent {what}, which is not RESP"),
    )
}

pub fn line(buf: &[u8], at: usize) -> Result<Option<(&[u8], usize)>> {
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
