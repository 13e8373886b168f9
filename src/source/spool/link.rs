//! Whether all that the source writes comes, and since when it may not: a link that is down or silent, a replica as the
//! source that does not hear its master.

use crate::types::ReplOffset;

/// A source pings its replicas every 10 s (`repl-ping-replica-period`; where it does less often, the link asks it after
/// 11 s): after a longer silence nobody knows what it has written.
const QUIET_MS: i64 = 15_000;

/// Where nobody tells how far the source is: what comes within this time has waited for the link.
const LATE_MS: i64 = 5_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkState {
    /// It has not been up in this run.
    NotYet,
    Up,
    /// Nothing can arrive since then (unix ms).
    Down(i64),
}

/// Why nothing comes of what the source may have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Down {
    /// There is no link.
    Link,
    /// There is one, but nothing has come over it for longer than a source is silent.
    Quiet,
    /// The source is a replica without a link to its master.
    Upstream,
}

/// The link to the source, and what may be older than its arrival says.
#[derive(Debug)]
pub struct Link {
    state: LinkState,
    /// When the source was last known to have sent all that it had written (unix ms).
    heard_ms: i64,
    /// The source is a replica that does not hear its own master since then.
    upstream_down_ms: Option<i64>,
    /// Since when the source may have written what `expected` says, as long as that is not applied.
    behind_since_ms: Option<i64>,
    /// How far the source was when the link was joined.
    expected: ReplOffset,
    /// What comes up to there, or up to then, was written while nothing could come: nobody knows when.
    late_to: ReplOffset,
    late_until_ms: i64,
}

impl Link {
    pub fn new() -> Link {
        Link {
            state: LinkState::NotYet,
            heard_ms: 0,
            upstream_down_ms: None,
            behind_since_ms: None,
            expected: ReplOffset(0),
            late_to: ReplOffset(0),
            late_until_ms: 0,
        }
    }

    /// Since when what the source has written may not have come, and why; `None` while all comes.
    pub fn down(&self, now_ms: i64) -> Option<(i64, Down)> {
        let link = match self.state {
            LinkState::Down(since) => Some((since, Down::Link)),
            LinkState::Up if now_ms.saturating_sub(self.heard_ms) > QUIET_MS => {
                Some((self.heard_ms, Down::Quiet))
            }
            _ => None,
        };
        let upstream = self.upstream_down_ms.map(|since| (since, Down::Upstream));
        link.into_iter()
            .chain(upstream)
            .min_by_key(|(since, _)| *since)
    }

    /// What comes now may be as old as `since_ms`, up to where the source is known to be.
    fn note_behind(&mut self, since_ms: i64, at: ReplOffset) {
        let since = self.behind_since_ms.map_or(since_ms, |s| s.min(since_ms));
        self.behind_since_ms = Some(since);
        self.expected = self.expected.max(at);
        self.late_to = self.late_to.max(at);
    }

    /// Says whether it is up.
    pub fn set(&mut self, up: bool, now_ms: i64) {
        // What the source has written since it fell silent has not come either.
        let since = self.down(now_ms).map_or(now_ms, |(since, _)| since);
        self.state = match (up, self.state) {
            (true, _) => LinkState::Up,
            (false, down @ LinkState::Down(_)) => down,
            (false, _) => LinkState::Down(since),
        };
        if up {
            self.heard_ms = now_ms;
        } else {
            self.upstream_down_ms = None;
            self.behind_since_ms.get_or_insert(since);
        }
    }

    /// All that the source had written at that time is here, although it has sent nothing.
    pub fn hear(&mut self, at_ms: i64) {
        self.heard_ms = self.heard_ms.max(at_ms);
    }

    /// The source has got to `at`, but sends nothing.
    pub fn miss(&mut self, at: ReplOffset) {
        self.note_behind(self.heard_ms, at);
    }

    /// The source is a replica that has not heard its master since then, or hears it (again) and has got to `at`.
    pub fn set_upstream(&mut self, down_since_ms: Option<i64>, at: ReplOffset) {
        match (down_since_ms, self.upstream_down_ms) {
            (Some(since), before) => {
                self.upstream_down_ms = Some(before.map_or(since, |b| b.min(since)));
            }
            (None, Some(since)) => {
                self.upstream_down_ms = None;
                self.note_behind(since, at);
            }
            (None, None) => {}
        }
    }

    /// Says that an earlier run has seen the source last at that time.
    pub fn set_behind(&mut self, since_ms: i64) {
        self.behind_since_ms = Some(since_ms);
    }

    /// How old what was written before the link was joined may be, in ms; 0 once that is applied.
    pub fn behind_ms(&mut self, applied: ReplOffset, now_ms: i64) -> u64 {
        let down = self.down(now_ms).map(|(since, _)| since);
        if self.state == LinkState::Up && down.is_none() && applied >= self.expected {
            self.behind_since_ms = None;
        }
        (self.behind_since_ms.into_iter().chain(down).min()).map_or(0, |since| {
            u64::try_from(now_ms.saturating_sub(since)).unwrap_or(0)
        })
    }

    /// The source has got to `at`: until that has arrived, there is a lag although nothing waits here.
    pub fn await_offset(&mut self, at: ReplOffset) {
        self.expected = at;
        self.late_to = self.late_to.max(at);
    }

    /// What the source has written up to `at` (`None`: nobody knows how far) has waited to be read.
    pub fn note_late(&mut self, at: Option<ReplOffset>, now_ms: i64) {
        match at {
            Some(at) => self.late_to = self.late_to.max(at),
            None => self.late_until_ms = now_ms.saturating_add(LATE_MS),
        }
    }

    /// What was written before this has been under way since before the link was joined.
    pub fn expected(&self) -> ReplOffset {
        self.expected
    }

    /// Bytes from `start` to `end` have come; whether nobody knows when they were written.
    pub fn came(&mut self, start: ReplOffset, end: ReplOffset, now_ms: i64) -> bool {
        let heard = std::mem::replace(&mut self.heard_ms, now_ms);
        if self.state == LinkState::Up && now_ms.saturating_sub(heard) > QUIET_MS {
            self.note_behind(heard, end);
            self.late_until_ms = now_ms.saturating_add(LATE_MS);
        }
        start < self.late_to || now_ms < self.late_until_ms || self.upstream_down_ms.is_some()
    }
}
