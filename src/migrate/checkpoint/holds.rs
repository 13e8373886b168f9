//! Holds: marks that no checkpoint may pass, because what lies behind them is not done yet.

use crate::types::Mark;
use std::collections::BTreeMap;

/// What is to be released once the work behind its mark is done or on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HoldId(u64);

/// Why a mark is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// Commands behind it are not done: the target is behind by them.
    Undone,
    /// They are done, but leave something to be asked of the source: that is no lag.
    ToAsk,
}

/// The marks that are held.
///
/// After an error its holds stay, so that what is saved at the end of a run passes none of them.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    held: BTreeMap<u64, (Mark, Why)>,
    next: u64,
}

impl Holds {
    pub fn hold(&mut self, mark: Mark, why: Why) -> HoldId {
        self.next += 1;
        self.held.insert(self.next, (mark, why));
        HoldId(self.next)
    }

    /// Moves a hold back to `mark`, if that is earlier.
    pub fn extend(&mut self, id: HoldId, mark: Mark) {
        if let Some((held, _)) = self.held.get_mut(&id.0) {
            *held = held.earlier(mark);
        }
    }

    pub fn release(&mut self, id: HoldId) {
        self.held.remove(&id.0);
    }

    /// Lets go of everything undone: the stream is read again from before it.
    pub fn rewind(&mut self) {
        self.held.retain(|_, (_, why)| *why == Why::ToAsk);
    }

    /// The lowest mark held for being undone, if any.
    pub fn undone(&self) -> Option<Mark> {
        let undone = self.held.values().filter(|(_, why)| *why == Why::Undone);
        undone.map(|(mark, _)| *mark).reduce(Mark::earlier)
    }

    /// The lowest mark held for any reason.
    pub fn lowest(&self) -> Option<Mark> {
        (self.held.values().map(|(mark, _)| *mark)).reduce(Mark::earlier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DbIndex, ReplOffset};

    fn mark(at: u64) -> Mark {
        Mark::Stream {
            at: ReplOffset(at),
            db: DbIndex::ZERO,
        }
    }

    #[test]
    fn the_lowest_hold_counts_until_it_is_released() {
        let mut holds = Holds::default();
        assert_eq!((holds.undone(), holds.lowest()), (None, None));
        let first = holds.hold(mark(30), Why::Undone);
        let second = holds.hold(mark(10), Why::Undone);
        holds.hold(mark(5), Why::ToAsk);
        assert_eq!(
            (holds.undone(), holds.lowest()),
            (Some(mark(10)), Some(mark(5)))
        );
        holds.release(second);
        assert_eq!(holds.undone(), Some(mark(30)));
        holds.extend(first, mark(20));
        holds.extend(first, mark(40));
        assert_eq!(holds.undone(), Some(mark(20)));
        // What has been released twice holds nothing.
        holds.release(second);
        holds.rewind();
        assert_eq!((holds.undone(), holds.lowest()), (None, Some(mark(5))));
    }
}
