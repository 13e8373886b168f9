//! A flush that could not be sent as it is, or whose fate on some node is not known: the target's keys are compared
//! with the source instead, before anything else.

use crate::migrate::checkpoint::checkpoints::Checkpoints;
use crate::migrate::checkpoint::holds::{HoldId, Why};
use crate::types::{DbIndex, Mark};

/// What is to be compared.
#[derive(Debug, Default)]
pub(crate) struct PendingFlush {
    /// Keeps checkpoints before the flush, and of which database of the target it is; `None` for all of them.
    pending: Option<(HoldId, Option<DbIndex>)>,
}

impl PendingFlush {
    /// A flush at `mark`.
    pub fn add(&mut self, db: Option<DbIndex>, mark: Mark, marks: &mut Checkpoints) {
        self.pending = Some(match self.pending {
            None => (marks.hold(mark, Why::Undone), db),
            Some((hold, of)) => {
                marks.extend(hold, mark);
                (hold, if of == db { db } else { None })
            }
        });
    }

    pub fn is_none(&self) -> bool {
        self.pending.is_none()
    }

    /// Takes what is to be compared; the hold is to be released when that is done.
    pub fn take(&mut self) -> Option<(HoldId, Option<DbIndex>)> {
        self.pending.take()
    }
}
