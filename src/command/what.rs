//! A command as it came, and what can be said of one.

use std::ops::Range;

/// A command as it came: the RESP frame and its arguments' ranges in it; the first is the name.
#[derive(Clone, Copy)]
pub struct Command<'a> {
    pub raw: &'a [u8],
    pub args: &'a [Range<usize>],
}

impl<'a> Command<'a> {
    pub fn arg(&self, i: usize) -> Option<&'a [u8]> {
        self.raw.get(self.args.get(i)?.clone())
    }

    pub fn len(&self) -> usize {
        self.args.len()
    }

    pub fn is_empty(&self) -> bool {
        self.args.is_empty()
    }

    pub fn name(&self) -> &'a [u8] {
        self.arg(0).unwrap_or_default()
    }

    /// An argument as a number.
    pub fn number(&self, i: usize) -> Option<i64> {
        std::str::from_utf8(self.arg(i)?).ok()?.parse().ok()
    }

    /// A place; a negative one counts from the end.
    pub fn place(&self, at: i64) -> Option<usize> {
        match usize::try_from(at) {
            Ok(at) => Some(at),
            Err(_) => self.len().checked_sub(at.unsigned_abs() as usize),
        }
    }

    /// The places of a run of arguments; a negative `last` counts from the end. `None` where the command is shorter.
    pub fn places(
        &self,
        first: usize,
        last: i64,
        step: usize,
    ) -> Option<impl Iterator<Item = usize> + use<>> {
        let last = self.place(last)?;
        let there = first < self.len() && last < self.len() && step > 0;
        there.then(|| (first..=last).step_by(step))
    }

    /// Where the word stands (any case), from argument `from` on.
    pub fn find(&self, from: usize, word: &[u8]) -> Option<usize> {
        (from..self.len()).find(|i| self.arg(*i).is_some_and(|a| a.eq_ignore_ascii_case(word)))
    }
}

/// What a command does to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    /// Writes it, or reads and writes it.
    Write,
}

/// A key among the arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyArg {
    pub index: usize,
    pub access: Access,
}

/// Commands that act on each of their keys by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitKind {
    /// DEL, UNLINK, TOUCH.
    Keys,
    /// MSET, and MSETNX, which in a stream took effect.
    Pairs,
    MsetEx,
}

/// How the stream treats a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Write,
    Split(SplitKind),
    Multi,
    Exec,
    Discard,
    Select,
    Ping,
    Replconf,
    FlushDb,
    FlushAll,
    SwapDb,
    /// Redis 8.4: the keys of slots that have been moved to another master are removed here.
    TrimSlots,
    Move,
    Script,
    Function,
    Publish,
    /// An index of a search module, its aliases, synonyms, or a dictionary: no keys.
    Search,
    /// A script as it was called (Redis 4 and older replicate it so).
    Eval,
    Read,
    Ignore,
    /// What it gives its keys, no other product holds: a loss of each.
    Unheld,
    /// A write of an active replica of KeyDB, wrapped.
    Replay,
}

impl Kind {
    /// It changes nothing of what a server holds, whatever its arguments.
    pub fn changes_nothing(self) -> bool {
        matches!(
            self,
            Kind::Ping
                | Kind::Replconf
                | Kind::Select
                | Kind::Read
                | Kind::Ignore
                | Kind::Multi
                | Kind::Exec
                | Kind::Discard
                | Kind::Publish
        )
    }
}
