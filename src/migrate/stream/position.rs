//! Where the stream stands: the offset before which everything is routed, the selected database, the window after a
//! crash, and how what is being taken differs from what the buffer holds.

use crate::types::{DbIndex, Mark, ReplOffset};

/// The position of one shard in its source's stream.
#[derive(Debug)]
pub(crate) struct StreamPosition {
    at: ReplOffset,
    db: DbIndex,
    /// Up to here the stream is read, not replayed: it may have run before a crash.
    window_end: ReplOffset,
    /// In a transaction that is taken command by command: where it began, and how many of its bytes have been taken.
    /// `at` stays before it, as the stream cannot be continued inside.
    inside: Option<(Mark, u64)>,
    /// Bytes that were left out of the command at the beginning of the buffer.
    cut: u64,
    /// Of these, what is still to come.
    owed: usize,
}

impl StreamPosition {
    /// `window_end`: commands before it may have reached the target before a crash, so their keys are read instead.
    pub fn new(at: ReplOffset, db: DbIndex, window_end: ReplOffset) -> StreamPosition {
        StreamPosition {
            at,
            db,
            window_end,
            inside: None,
            cut: 0,
            owed: 0,
        }
    }

    /// Everything before this is routed; a transaction counts as a whole.
    pub fn at(&self) -> ReplOffset {
        self.at
    }

    /// The source's database that is selected.
    pub fn db(&self) -> DbIndex {
        self.db
    }

    pub fn select(&mut self, db: DbIndex) {
        self.db = db;
    }

    /// Where the stream can be continued; in a long transaction, before it.
    pub fn mark(&self) -> Mark {
        match self.inside {
            Some((mark, _)) => mark,
            None => self.here(),
        }
    }

    fn here(&self) -> Mark {
        Mark::Stream {
            at: self.at,
            db: self.db,
        }
    }

    /// Up to where the stream is routed; in a long transaction that is more than [`StreamPosition::at`].
    pub fn routed(&self) -> ReplOffset {
        self.at.plus(self.inside.map_or(0, |(_, taken)| taken))
    }

    /// The offset behind a command that takes `len` bytes of the buffer.
    pub fn behind(&self, len: usize) -> ReplOffset {
        self.routed().plus(len as u64 + self.cut)
    }

    /// A command has been routed that takes `len` bytes of the buffer.
    pub fn advance(&mut self, len: usize) {
        let end = self.behind(len);
        match &mut self.inside {
            Some((_, taken)) => *taken = end.since(self.at),
            None => self.at = end,
        }
        self.cut = 0;
    }

    /// Takes the transaction that begins with a MULTI of `len` bytes command by command; nothing may be saved that
    /// passes the mark, until [`StreamPosition::end_long`].
    pub fn begin_long(&mut self, len: usize) -> Mark {
        let mark = self.mark();
        self.inside = Some((mark, 0));
        self.advance(len);
        mark
    }

    /// Such a transaction ends with a command of `len` bytes.
    pub fn end_long(&mut self, len: usize) {
        self.at = self.behind(len);
        self.inside = None;
        self.cut = 0;
    }

    pub fn is_inside(&self) -> bool {
        self.inside.is_some()
    }

    /// Whether the command at the beginning of the buffer is not what the source has sent.
    pub fn is_cut(&self) -> bool {
        self.cut > 0
    }

    /// Of `n` bytes that have arrived, how many are left out of the command at the beginning of the buffer.
    pub fn leave_out(&mut self, n: usize) -> usize {
        let dropped = self.owed.min(n);
        self.owed -= dropped;
        dropped
    }

    /// Whether more is to come of what is left out.
    pub fn owes(&self) -> bool {
        self.owed > 0
    }

    /// So many bytes were left out of the command at the beginning of the buffer, of which `owed` are still to come.
    pub fn abridged(&mut self, cut: u64, owed: usize) {
        self.cut += cut;
        self.owed = owed;
    }

    /// Whether a command that ends at `end` may have run before a crash.
    pub fn in_window(&self, end: ReplOffset) -> bool {
        end <= self.window_end
    }

    /// Whether anything that is still to be routed may have run before a crash.
    pub fn window_open(&self) -> bool {
        self.at < self.window_end
    }

    pub fn window_end(&self) -> ReplOffset {
        self.window_end
    }

    /// A transaction up to `end` may have run in part: a run before may have taken it command by command.
    pub fn widen_window(&mut self, end: ReplOffset) {
        if self.at < self.window_end && self.window_end < end {
            self.window_end = end;
        }
    }

    /// Offsets are reserved ahead of what is written: no key of an earlier run can be of later than what the source had
    /// when this run asked it.
    pub fn narrow_window(&mut self, known_end: ReplOffset) {
        self.window_end = self.window_end.min(known_end);
    }

    /// Goes back: everything from `at` to `window_end` is read instead of replayed.
    pub fn rewind(&mut self, at: ReplOffset, db: DbIndex, window_end: ReplOffset) {
        *self = StreamPosition::new(at, db, window_end);
    }

    /// Begins to read the stream at its position anew: what was in the buffer is gone.
    pub fn reread(&mut self) {
        self.inside = None;
        self.cut = 0;
        self.owed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(at: u64, db: u32) -> Mark {
        Mark::Stream {
            at: ReplOffset(at),
            db: DbIndex(db),
        }
    }

    #[test]
    fn a_long_transaction_counts_as_a_whole() {
        let mut position = StreamPosition::new(ReplOffset(100), DbIndex(2), ReplOffset(0));
        position.advance(20);
        assert_eq!(position.begin_long(15), stream(120, 2));
        position.advance(30);
        position.select(DbIndex(5));
        position.advance(10);
        // Whatever is selected inside, it is continued before its MULTI.
        assert_eq!(position.mark(), stream(120, 2));
        assert_eq!(
            (position.at(), position.routed()),
            (ReplOffset(120), ReplOffset(175))
        );
        assert_eq!(position.behind(14), ReplOffset(189));
        position.end_long(14);
        assert_eq!(position.mark(), stream(189, 5));
        assert!(!position.is_inside());
    }

    #[test]
    fn what_is_left_out_counts_where_its_command_ends() {
        let mut position = StreamPosition::new(ReplOffset(0), DbIndex::ZERO, ReplOffset(0));
        position.abridged(1_000, 300);
        assert!(position.is_cut() && position.owes());
        assert_eq!(position.leave_out(200), 200);
        assert_eq!(position.leave_out(200), 100);
        assert!(!position.owes());
        position.advance(50);
        assert_eq!(
            (position.at(), position.is_cut()),
            (ReplOffset(1_050), false)
        );
        // The end of a long transaction may be such a command.
        position.begin_long(10);
        position.abridged(40, 0);
        position.end_long(14);
        position.advance(10);
        assert_eq!(position.at(), ReplOffset(1_124));
    }

    #[test]
    fn the_window_only_shrinks_but_for_a_transaction_across_its_end() {
        let mut position = StreamPosition::new(ReplOffset(10), DbIndex::ZERO, ReplOffset(100));
        assert!(position.window_open() && position.in_window(ReplOffset(100)));
        assert!(!position.in_window(ReplOffset(101)));
        position.narrow_window(ReplOffset(90));
        position.narrow_window(ReplOffset(200));
        assert_eq!(position.window_end(), ReplOffset(90));
        position.widen_window(ReplOffset(80));
        assert_eq!(position.window_end(), ReplOffset(90));
        position.widen_window(ReplOffset(120));
        assert_eq!(position.window_end(), ReplOffset(120));
        position.advance(110);
        assert!(!position.window_open());
        // Behind it nothing widens it any more.
        position.widen_window(ReplOffset(500));
        assert_eq!(position.window_end(), ReplOffset(120));
        position.rewind(ReplOffset(50), DbIndex(1), ReplOffset(120));
        assert!(position.window_open() && position.mark() == stream(50, 1));
    }
}
