//! Commands and transactions of the stream that are too long to be held.
//!
//! A long transaction is taken command by command while it comes. Of a long command, what is neither a key nor short
//! is left out as it comes, so that it cannot run any more: its keys are healed.

use crate::command::{self, Kind, Spec};
use crate::error::Result;
use crate::migrate::stream::position::StreamPosition;
use crate::resp;
use crate::source::spool::StreamTail;

/// Bytes of the stream that are read at a time.
pub(crate) const READ_BYTES: usize = 1 << 20;
/// Longest argument that is kept though it is no key: options and numbers.
const KEPT: usize = 24;
/// The same of a command that is not known: any of its arguments may be a key.
const KEPT_UNKNOWN: usize = 4096;

/// Appends what has come of the stream to a buffer that begins with an incomplete command; returns how many bytes were
/// read. A command longer than `longest` bytes is abridged; without that it is held, however long.
pub(crate) fn read(
    position: &mut StreamPosition,
    tail: &mut StreamTail,
    buf: &mut Vec<u8>,
    longest: Option<usize>,
) -> Result<usize> {
    let before = buf.len();
    let n = tail.read(buf, READ_BYTES)?;
    let dropped = position.leave_out(n);
    buf.drain(before..before + dropped);
    if longest.is_some_and(|longest| before > longest) && !position.owes() {
        let mut short = Vec::with_capacity(READ_BYTES);
        if let Some(owed) = abridge(buf, &mut short)? {
            position.abridged((buf.len() + owed - short.len()) as u64, owed);
            *buf = short;
        }
    }
    Ok(n)
}

/// Writes what is kept of the command at the start of `buf`, and all behind it, to `out`; returns how many bytes of its
/// last argument are still to come, and to be left out.
///
/// `None` when the command is to be held as it is.
fn abridge(buf: &[u8], out: &mut Vec<u8>) -> Result<Option<usize>> {
    let (Some(b'*'), Some((count, mut at))) = (buf.first(), resp::parse_head(buf)?) else {
        return Ok(None);
    };
    let count = usize::try_from(count).unwrap_or(0);
    out.extend_from_slice(buf.get(..at).unwrap_or_default());
    let mut spec: Option<&'static Spec> = None;
    for i in 0..count {
        let rest = buf.get(at..).unwrap_or_default();
        let Some((len, head)) = (!rest.is_empty())
            .then(|| resp::parse_head(rest))
            .transpose()?
            .flatten()
        else {
            break;
        };
        let len = usize::try_from(len).unwrap_or(0);
        let end = head.saturating_add(len).saturating_add(2);
        if i == 0 {
            let Some(name) = rest.get(head..end.saturating_sub(2)) else {
                return Ok(None);
            };
            spec = command::lookup(name);
            if spec.is_some_and(|s| !can_be_healed(s.kind)) {
                return Ok(None);
            }
        }
        let kept = match spec {
            _ if i == 0 => true,
            Some(spec) => len <= KEPT || spec.may_be_key(i, count),
            None => len <= KEPT_UNKNOWN,
        };
        if !kept {
            out.extend_from_slice(b"$0\r\n\r\n");
        } else if let Some(whole) = rest.get(..end) {
            out.extend_from_slice(whole);
        } else {
            break;
        }
        at = at.saturating_add(end);
        if at > buf.len() {
            return Ok(Some(at - buf.len()));
        }
    }
    out.extend_from_slice(buf.get(at..).unwrap_or_default());
    Ok(Some(0))
}

/// Whether a command that cannot run is made good by reading its keys.
fn can_be_healed(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Write | Kind::Split(_) | Kind::Move | Kind::Publish
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn encoded(words: &[&[u8]]) -> Vec<u8> {
        let mut raw = Vec::new();
        resp::command(&mut raw, words);
        raw
    }

    /// Feeds a command in pieces as the loop does; what is left of it, and how many bytes were left out.
    fn fed(raw: &[u8], piece: usize) -> (Vec<Vec<u8>>, usize) {
        let (mut buf, mut owed, mut cut) = (Vec::new(), 0usize, 0);
        for some in raw.chunks(piece) {
            let dropped = owed.min(some.len());
            owed -= dropped;
            buf.extend_from_slice(&some[dropped..]);
            let mut args = Vec::new();
            if owed == 0 && resp::parse_command(&buf, &mut args).unwrap().is_none() {
                let mut short = Vec::new();
                if let Some(due) = abridge(&buf, &mut short).unwrap() {
                    cut += buf.len() + due - short.len();
                    (buf, owed) = (short, due);
                }
            }
        }
        let mut args = Vec::new();
        let len = resp::parse_command(&buf, &mut args).unwrap().unwrap();
        assert_eq!((len, owed), (buf.len(), 0));
        (args.iter().map(|a| buf[a.clone()].to_vec()).collect(), cut)
    }

    #[test]
    fn of_a_long_command_the_keys_and_the_options_stay() {
        let (long, key) = (vec![b'v'; 5000], vec![b'k'; 300]);
        let raw = encoded(&[b"SET", &key, &long, b"PXAT", b"1893456000000"]);
        for piece in [1, 7, 100, 4096] {
            let (args, cut) = fed(&raw, piece);
            assert_eq!(args[1], key);
            assert_eq!(args[3..], [b"PXAT".to_vec(), b"1893456000000".to_vec()]);
            let left: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
            assert_eq!(encoded(&left).len() + cut, raw.len());
            // What was all there before the rest came is not looked at any more.
            assert!(cut >= 5000, "{cut} in pieces of {piece}");
        }
        let words: Vec<&[u8]> = vec![b"MSET", &key, &long, b"b", &long, &key, b"1"];
        let (args, _) = fed(&encoded(&words), 50);
        assert_eq!([&args[1], &args[3], &args[5]], [&key, &b"b".to_vec(), &key]);
        assert!(args[2].is_empty() && args[4].is_empty());
    }

    #[test]
    fn of_a_long_command_that_is_not_known_what_may_be_a_key_stays() {
        let (long, key) = (vec![b'v'; 50_000], vec![b'k'; 300]);
        let (args, cut) = fed(&encoded(&[b"UNHEARDOF", &key, &long, b"x"]), 100);
        assert_eq!((&args[1], &args[3]), (&key, &b"x".to_vec()));
        assert!(args[2].is_empty() && cut >= 50_000, "{cut}");
    }

    #[test]
    fn it_may_be_cut_anywhere() {
        for len in 20..130 {
            let value = vec![b'v'; len];
            let raw = encoded(&[b"HSET", b"key", &value, &value, b"f", &value]);
            for at in 1..raw.len() {
                let mut short = Vec::new();
                let owed = abridge(&raw[..at], &mut short).unwrap();
                let Some(owed) = owed else { continue };
                // As the loop counts: nothing is ever below zero.
                let cut = at + owed - short.len();
                short.extend_from_slice(&raw[at + owed..]);
                let mut args = Vec::new();
                let parsed = resp::parse_command(&short, &mut args).unwrap();
                assert_eq!(parsed, Some(short.len()));
                assert_eq!(short.len() + cut, raw.len());
                assert_eq!(
                    (args.len(), &short[args[1].clone()]),
                    (6, b"key".as_slice())
                );
            }
        }
    }

    #[test]
    fn what_no_reading_makes_good_is_held_as_it_is() {
        let long = vec![b'v'; 5000];
        for words in [
            [b"FUNCTION".as_slice(), b"LOAD", &long],
            [b"SCRIPT", b"LOAD", &long],
        ] {
            let raw = encoded(&words);
            assert_eq!(abridge(&raw[..2000], &mut Vec::new()).unwrap(), None);
        }
    }
}
