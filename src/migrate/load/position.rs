//! Where the snapshot stands while it is loaded.

use crate::migrate::checkpoint::checkpoints::Checkpoints;
use crate::types::{DbIndex, Mark};

/// The load of one shard's snapshot.
#[derive(Debug)]
pub(crate) struct LoadPosition {
    /// Everything before this byte is routed, and the database selected there.
    at: u64,
    db: DbIndex,
    /// The snapshot is being loaded: trouble may mean to read it again from its mark.
    active: bool,
    /// That is to be done, wherever it was found out.
    again: bool,
    /// A large value of it is on its way in parts: trouble means to begin it again.
    in_large: bool,
}

impl LoadPosition {
    /// Begins where the last run was.
    pub fn new(marks: &Checkpoints) -> LoadPosition {
        let shard = marks.shard();
        LoadPosition {
            at: shard.snapshot_at,
            db: shard.snapshot_db,
            active: false,
            again: false,
            in_large: false,
        }
    }

    pub fn mark(&self) -> Mark {
        Mark::Snapshot {
            at: self.at,
            db: self.db,
        }
    }

    pub fn at(&self) -> u64 {
        self.at
    }

    pub fn is_active(&self) -> bool {
        self.active
    }

    pub fn set_active(&mut self, active: bool) {
        self.active = active;
    }

    /// Moves on, or back.
    pub fn seek(&mut self, at: u64, db: DbIndex) {
        (self.at, self.db) = (at, db);
    }

    /// The snapshot is to be read again from the saved mark.
    pub fn again(&mut self) {
        self.again = true;
    }

    /// Whether it is; asked once.
    pub fn take_again(&mut self) -> bool {
        std::mem::take(&mut self.again)
    }

    pub fn wants_again(&self) -> bool {
        self.again
    }

    pub fn in_large(&self) -> bool {
        self.in_large
    }

    pub fn set_in_large(&mut self, in_large: bool) {
        self.in_large = in_large;
    }
}
