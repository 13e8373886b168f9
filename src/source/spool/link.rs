//! Whether all that the source writes comes, and since when it may not: a link that is down or silent, a replica as the
//! source that does not hear its master.

use super::{Spool, State};
use crate::types::ReplOffset;

/// A source pings its replicas every 10 s (`repl-ping-replica-period`; where it does less often, the link asks it after
/// 11 s): after a longer silence nobody knows what it has written.
pub(super) const QUIET_MS: i64 = 15_000;

/// Where nobody tells how far the source is: what comes within this time has waited for the link.
pub(super) const LATE_MS: i64 = 5_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkState {
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

impl State {
    /// Since when what the source has written may not have come, and why; `None` while all comes.
    pub(super) fn down(&self, now_ms: i64) -> Option<(i64, Down)> {
        let link = match self.link {
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
    pub(super) fn note_behind(&mut self, since_ms: i64, at: ReplOffset) {
        let since = self.behind_since_ms.map_or(since_ms, |s| s.min(since_ms));
        self.behind_since_ms = Some(since);
        self.expected = self.expected.max(at);
        self.late_to = self.late_to.max(at);
    }
}

impl Spool {
    /// Says whether the link to the source is up.
    pub fn set_link(&self, up: bool, now_ms: i64) {
        let mut state = self.state();
        // What it has written since it fell silent has not come either.
        let since = state.down(now_ms).map_or(now_ms, |(since, _)| since);
        state.link = match (up, state.link) {
            (true, _) => LinkState::Up,
            (false, down @ LinkState::Down(_)) => down,
            (false, _) => LinkState::Down(since),
        };
        if up {
            state.heard_ms = now_ms;
        } else {
            state.upstream_down_ms = None;
            state.behind_since_ms.get_or_insert(since);
        }
    }

    /// All that the source had written at that time is here, although it has sent nothing.
    pub fn hear(&self, at_ms: i64) {
        let mut state = self.state();
        state.heard_ms = state.heard_ms.max(at_ms);
    }

    /// The source has got to `at`, but sends nothing.
    pub fn miss(&self, at: ReplOffset) {
        let mut state = self.state();
        let since = state.heard_ms;
        state.note_behind(since, at);
    }

    /// The source is a replica that has not heard its master since then, or hears it (again) and has got to `at`.
    pub fn set_upstream(&self, down_since_ms: Option<i64>, at: ReplOffset) {
        let mut state = self.state();
        match (down_since_ms, state.upstream_down_ms) {
            (Some(since), before) => {
                state.upstream_down_ms = Some(before.map_or(since, |b| b.min(since)));
            }
            (None, Some(since)) => {
                state.upstream_down_ms = None;
                state.note_behind(since, at);
            }
            (None, None) => {}
        }
    }

    /// Says that an earlier run has seen the source last at that time.
    pub fn set_behind(&self, since_ms: i64) {
        self.state().behind_since_ms = Some(since_ms);
    }

    /// How old what was written before the link was joined may be, in ms; 0 once that is applied.
    pub(super) fn behind_ms(&self, applied: ReplOffset, now_ms: i64) -> u64 {
        let mut state = self.state();
        let down = state.down(now_ms).map(|(since, _)| since);
        if state.link == LinkState::Up && down.is_none() && applied >= state.expected {
            state.behind_since_ms = None;
        }
        (state.behind_since_ms.into_iter().chain(down).min())
            .map_or(0, |since| u64::try_from(now_ms - since).unwrap_or(0))
    }

    /// For how long nothing has come of what the source may have written, in ms; `None` while all comes.
    pub fn down_ms(&self, now_ms: i64) -> Option<u64> {
        self.down(now_ms).map(|(ms, _)| ms)
    }

    /// The same, and why.
    pub fn down(&self, now_ms: i64) -> Option<(u64, Down)> {
        let (since, why) = self.state().down(now_ms)?;
        Some((u64::try_from(now_ms - since).unwrap_or(0), why))
    }

    /// The source has got to `at`: until that has arrived, there is a lag although nothing waits here.
    pub fn await_offset(&self, at: ReplOffset) {
        let mut state = self.state();
        state.expected = at;
        state.late_to = state.late_to.max(at);
    }

    /// What the source has written up to `at` (`None`: nobody knows how far) has waited to be read.
    pub fn note_late(&self, at: Option<ReplOffset>, now_ms: i64) {
        let mut state = self.state();
        match at {
            Some(at) => state.late_to = state.late_to.max(at),
            None => state.late_until_ms = now_ms.saturating_add(LATE_MS),
        }
    }

    /// What was written before this has been under way since before the link was joined.
    pub fn expected(&self) -> ReplOffset {
        self.state().expected
    }

    /// The end of what is known to exist, arrived or not.
    pub fn known_end(&self) -> ReplOffset {
        let state = self.state();
        state.stream_end.max(state.expected)
    }
}
