//! Stable marks: what was acknowledged so long ago that a failover of the target cannot take it away any more.

use crate::target::health::View;
use crate::types::{DbIndex, Mark, ReplOffset};
use std::collections::VecDeque;
use std::time::Instant;

/// Acknowledged marks on their way to being stable.
#[derive(Debug)]
pub(crate) struct StableMarks {
    stable: Mark,
    /// Acknowledged at that time, not yet known to survive a failover.
    unstable: VecDeque<(Instant, Mark)>,
    losses_seen: u64,
}

impl StableMarks {
    /// Begins with what an earlier run has left.
    pub fn new(stable: Mark) -> StableMarks {
        StableMarks {
            stable,
            unstable: VecDeque::new(),
            losses_seen: 0,
        }
    }

    /// Nothing of an earlier run is known to be stable.
    pub fn none() -> Mark {
        Mark::Snapshot {
            at: 0,
            db: DbIndex::ZERO,
        }
    }

    pub fn stable(&self) -> Mark {
        self.stable
    }

    /// The stable offset of the stream, with the database selected there.
    pub fn in_stream(&self) -> Option<(ReplOffset, DbIndex)> {
        match self.stable {
            Mark::Stream { at, db } => Some((at, db)),
            Mark::Snapshot { .. } => None,
        }
    }

    /// Notes what is acknowledged at `now`, and moves on to what the watcher says has survived; without a watcher
    /// (a dry run) nothing can be lost.
    pub fn advance(&mut self, acknowledged: Option<Mark>, now: Instant, watcher: Option<&View>) {
        if let Some(mark) = acknowledged {
            self.unstable.push_back((now, mark));
        }
        let Some(view) = watcher else {
            if let Some((_, mark)) = self.unstable.pop_back() {
                self.stable = mark;
                self.unstable.clear();
            }
            return;
        };
        if view.losses != self.losses_seen {
            return;
        }
        let Some(until) = view.stable_until else {
            return;
        };
        while self.unstable.front().is_some_and(|(at, _)| *at <= until) {
            if let Some((_, mark)) = self.unstable.pop_front() {
                self.stable = mark;
            }
        }
    }

    /// Whether the target has lost a master since [`StableMarks::target_lost`].
    pub fn has_lost(&self, losses: u64) -> bool {
        losses != self.losses_seen
    }

    /// Takes in that it has: what was acknowledged behind the stable mark may be gone.
    pub fn target_lost(&mut self, losses: u64) {
        self.losses_seen = losses;
        self.unstable.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn mark(at: u64) -> Mark {
        Mark::Stream {
            at: ReplOffset(at),
            db: DbIndex(1),
        }
    }

    fn view(losses: u64, stable_until: Option<Instant>) -> View {
        View {
            losses,
            stable_until,
            ..View::default()
        }
    }

    #[test]
    fn a_mark_is_stable_once_the_watcher_has_seen_it_survive() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut marks = StableMarks::new(StableMarks::none());
        marks.advance(Some(mark(10)), start, Some(&view(0, None)));
        marks.advance(Some(mark(20)), start + ms(10), Some(&view(0, None)));
        assert_eq!(marks.in_stream(), None);
        marks.advance(None, start + ms(20), Some(&view(0, Some(start + ms(5)))));
        assert_eq!(marks.in_stream(), Some((ReplOffset(10), DbIndex(1))));
        // After a loss nothing that was acknowledged before it becomes stable.
        let lost = view(1, Some(start + ms(500)));
        marks.advance(None, start + ms(30), Some(&lost));
        assert!(marks.has_lost(1) && marks.stable() == mark(10));
        marks.target_lost(1);
        marks.advance(None, start + ms(40), Some(&lost));
        assert!(!marks.has_lost(1) && marks.stable() == mark(10));
        marks.advance(Some(mark(15)), start + ms(50), Some(&lost));
        assert_eq!(marks.stable(), mark(15));
    }

    #[test]
    fn without_a_watcher_everything_acknowledged_is_stable() {
        let mut marks = StableMarks::new(StableMarks::none());
        marks.advance(Some(mark(10)), Instant::now(), None);
        marks.advance(None, Instant::now(), None);
        assert_eq!(marks.stable(), mark(10));
    }
}
