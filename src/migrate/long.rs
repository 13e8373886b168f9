//! Commands and transactions of the stream that are too long to be held.
//!
//! A long transaction is taken command by command while it comes. Of a long command, what is neither a key nor short
//! is left out as it comes, so that it cannot run any more: its keys are healed.

use crate::command::{self, Kind, Spec};
use crate::error::Result;
use crate::migrate::pump::{Pump, READ_BYTES};
use crate::resp;
use crate::source::spool::StreamTail;
use crate::types::{Mark, ReplOffset};

/// Longest argument that is kept though it is no key: options and numbers.
const KEPT: usize = 24;

/// How what is being taken of the stream differs from what the buffer holds.
#[derive(Debug, Default)]
pub(super) struct Long {
    /// In a transaction that is taken command by command: where it began, what kept checkpoints back before, and how
    /// many of its bytes have been taken. [`Pump::at`] stays before it, as the stream cannot be continued inside.
    inside: Option<(Mark, Option<Mark>, u64)>,
    /// Bytes that were left out of the command at the beginning of the buffer.
    cut: u64,
    /// Of these, what is still to come.
    owed: usize,
}

impl Long {
    /// Whether the command at the beginning of the buffer is not what the source has sent.
    pub fn is_cut(&self) -> bool {
        self.cut > 0
    }

    pub fn is_inside(&self) -> bool {
        self.inside.is_some()
    }

    /// The mark of all commands of a transaction.
    pub fn mark(&self) -> Option<Mark> {
        self.inside.map(|(mark, ..)| mark)
    }
}

impl Pump {
    /// Up to where the stream is routed; in a long transaction that is more than [`Pump::at`].
    pub(super) fn routed(&self) -> ReplOffset {
        let inside = self.long.inside.map_or(0, |(.., taken)| taken);
        self.at.plus(inside)
    }

    /// The offset behind a command that takes `len` bytes of the buffer.
    pub(super) fn behind(&self, len: usize) -> ReplOffset {
        self.routed().plus(len as u64 + self.long.cut)
    }

    /// A command has been routed that takes `len` bytes of the buffer.
    pub(super) fn pass(&mut self, len: usize) {
        let end = self.behind(len);
        match &mut self.long.inside {
            Some((.., taken)) => *taken = end.since(self.at),
            None => self.at = end,
        }
        self.long.cut = 0;
    }

    /// Takes the transaction that begins with a MULTI of `len` bytes command by command.
    pub(super) fn enter(&mut self, len: usize) {
        self.count("transactions_split");
        let mark = self.now();
        let before = self.hold(mark);
        self.long.inside = Some((mark, before, 0));
        self.pass(len);
    }

    /// Such a transaction ends with a command of `len` bytes.
    pub(super) fn leave(&mut self, len: usize) {
        self.at = self.behind(len);
        if let Some((_, before, _)) = self.long.inside.take() {
            self.floor = before;
        }
    }

    /// Bytes that a command or a transaction may have to be held; behind a fence, what is kept unrouted.
    pub(super) fn longest(&self) -> usize {
        self.whole_value().max(READ_BYTES)
    }

    /// Appends what has come of the stream to a buffer that begins with an incomplete command; returns how many bytes
    /// were read.
    pub(super) fn read_stream(
        &mut self,
        tail: &mut StreamTail,
        buf: &mut Vec<u8>,
    ) -> Result<usize> {
        let before = buf.len();
        let n = tail.read(buf, READ_BYTES)?;
        let dropped = self.long.owed.min(n);
        buf.drain(before..before + dropped);
        self.long.owed -= dropped;
        // Without a source to ask, a command can only be sent.
        if self.source.is_some() && self.long.owed == 0 && before > self.longest() {
            self.abridge(buf)?;
        }
        Ok(n)
    }

    /// Leaves out what may be of an incomplete command at the beginning of the buffer.
    fn abridge(&mut self, buf: &mut Vec<u8>) -> Result<()> {
        let mut short = Vec::with_capacity(READ_BYTES);
        if let Some(owed) = abridge(buf, &mut short)? {
            self.long.cut += (buf.len() + owed - short.len()) as u64;
            self.long.owed = owed;
            *buf = short;
        }
        Ok(())
    }
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
            let name = rest.get(head..end.saturating_sub(2)).unwrap_or_default();
            match command::lookup(name).filter(|s| can_be_healed(s.kind)) {
                Some(known) => spec = Some(known),
                None => return Ok(None),
            }
        }
        let kept = i == 0 || len <= KEPT || spec.is_some_and(|s| s.may_be_key(i, count));
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

    /// Feeds a command in pieces as a pump does; what is left of it, and how many bytes were left out.
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
    fn it_may_be_cut_anywhere() {
        for len in 20..130 {
            let value = vec![b'v'; len];
            let raw = encoded(&[b"HSET", b"key", &value, &value, b"f", &value]);
            for at in 1..raw.len() {
                let mut short = Vec::new();
                let owed = abridge(&raw[..at], &mut short).unwrap();
                let Some(owed) = owed else { continue };
                // As the pump counts: nothing is ever below zero.
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
            [b"UNHEARDOF", b"k", &long],
        ] {
            let raw = encoded(&words);
            assert_eq!(abridge(&raw[..2000], &mut Vec::new()).unwrap(), None);
        }
    }
}
