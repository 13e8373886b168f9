//! RESP, the protocol's frames: encode commands, parse commands and replies; knows no command.
//!
//! Invariant: a peer-given length never causes an allocation before the bytes are there.

mod frame;
pub mod info;
mod reply;
mod skim;

pub use reply::{Parser, Reply, parse_reply};
pub use skim::{Outcome, Skimmer, skim_reply};

use crate::error::Result;
use frame::{MAX_ARGS, MAX_BULK, MAX_LINE, corrupt, number};
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
        *digit = b'0' | (left % 10) as u8;
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

/// The number behind the sigil at the start of `buf` (a count, a length), and where the bytes after it begin.
///
/// `None` means that more bytes are needed.
pub fn parse_head(buf: &[u8]) -> Result<Option<(i64, usize)>> {
    number(buf, 1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
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
        assert_eq!(
            (outcome, n),
            (Outcome::ErrorInside(1, "WRONGTYPE no".into()), 24)
        );
        assert_eq!(skim_reply(b":0\r\n").unwrap().unwrap().0, Outcome::Zero);
    }

    #[test]
    fn a_field_that_is_not_there_is_seen() {
        for (reply, outcome) in [
            ("*1\r\n:-2\r\n", Outcome::Absent),
            ("*2\r\n:1\r\n*2\r\n:1\r\n:-2\r\n", Outcome::Absent),
            ("*2\r\n:0\r\n:-1\r\n", Outcome::Fine),
            (
                "*2\r\n:-2\r\n-ERR x\r\n",
                Outcome::ErrorInside(1, "ERR x".into()),
            ),
            (":0\r\n", Outcome::Zero),
        ] {
            let bytes = reply.as_bytes();
            assert_eq!(skim_reply(bytes).unwrap(), Some((outcome, bytes.len())));
        }
    }

    /// Whatever the pieces are that a reply comes in, and nothing is read twice.
    #[test]
    fn a_reply_may_come_in_any_pieces() {
        let wire =
            b"*4\r\n:-9223372036854775808\r\n*3\r\n+OK\r\n$3\r\nabc\r\n$0\r\n\r\n*0\r\n-ERR no\r\n";
        let whole = parse_reply(wire).unwrap().unwrap();
        assert_eq!(whole.1, wire.len());
        assert_eq!(whole.0.array().unwrap()[0].int(), Some(i64::MIN));
        for size in 1..wire.len() {
            let (mut parser, mut skimmer) = (Parser::default(), Skimmer::default());
            let (mut buf, mut skim, mut parsed, mut seen) = (Vec::new(), Vec::new(), None, None);
            for piece in wire.chunks(size) {
                buf.extend_from_slice(piece);
                let (reply, used) = parser.take(&buf, 1 << 20).unwrap();
                buf.drain(..used);
                parsed = parsed.or(reply);
                skim.extend_from_slice(piece);
                let (outcome, used) = skimmer.take(&skim).unwrap();
                skim.drain(..used);
                seen = seen.or(outcome);
            }
            assert_eq!(parsed.as_ref(), Some(&whole.0), "{size}");
            assert_eq!(
                seen,
                Some(Outcome::ErrorInside(3, "ERR no".into())),
                "{size}"
            );
            assert!(buf.is_empty() && skim.is_empty() && parser.is_idle());
        }
    }

    #[test]
    fn what_may_not_be_held_is_refused_at_once() {
        let kind = |wire: &[u8], most| Parser::default().take(wire, most).unwrap_err().kind();
        for wire in [
            "$1099511627776\r\n",
            "*1000000000\r\n",
            "*1\r\n*1\r\n$2000\r\n",
        ] {
            assert_eq!(kind(wire.as_bytes(), 1000), ErrorKind::Oversized, "{wire}");
        }
        let many = [
            b"*20\r\n".as_slice(),
            &b"$30\r\n012345678901234567890123456789\r\n".repeat(20),
        ]
        .concat();
        assert_eq!(kind(&many, 1000), ErrorKind::Oversized);
        assert!(Parser::default().take(&many, 3000).unwrap().0.is_some());
        // Nested without an end, and an endless line.
        assert_eq!(kind(&b"*1\r\n".repeat(50), 1 << 20), ErrorKind::Protocol);
        assert_eq!(
            kind(&[b"-".as_slice(), &[b'x'; 70_000]].concat(), 1 << 20),
            ErrorKind::Protocol
        );
        // What is only looked at takes no memory, however long it is.
        let mut skimmer = Skimmer::default();
        assert_eq!(skimmer.take(b"$1099511627776\r\nxxx").unwrap(), (None, 19));
        assert!(skim_reply(&b"*1\r\n".repeat(50)).is_err());
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
