//! Stable marks, and going back to one: what the target acknowledged and then lost with a master is written again.
//!
//! In the stream, going back means to read the spool again from the stable mark as a window: its keys are healed.

use crate::error::{Error, ErrorKind, Result};
use crate::migrate::MASTERS;
use crate::migrate::long::Long;
use crate::migrate::pump::Pump;
use crate::migrate::queue::HealQueue;
use crate::types::{DbIndex, Mark, ReplOffset};
use std::time::Instant;

impl Pump {
    /// Moves the stable mark on to what the watcher says has survived.
    pub(super) fn note_stable(&mut self, acknowledged: Option<Mark>) -> Result<()> {
        if let Some(mark) = acknowledged {
            self.unstable.push_back((Instant::now(), mark));
        }
        let Some(health) = &self.shared.health else {
            // A dry run: nothing can be lost.
            if let Some((_, mark)) = self.unstable.pop_back() {
                self.stable = mark;
                self.unstable.clear();
            }
            return self.stable_reached();
        };
        let view = health.view();
        if view.losses == self.losses_seen
            && let Some(until) = view.stable_until
        {
            while self.unstable.front().is_some_and(|(at, _)| *at <= until) {
                if let Some((_, mark)) = self.unstable.pop_front() {
                    self.stable = mark;
                }
            }
        }
        self.stable_reached()
    }

    fn stable_reached(&mut self) -> Result<()> {
        if let Mark::Stream { at, db } = self.stable {
            self.shard.stable = Some(at);
            self.shard.stable_db = db;
            if self.released_at.is_some_and(|released| released < at) {
                self.flush_again = None;
                self.released_at = None;
                self.held.settled()?;
            }
            if self.shard.snapshot_loaded && self.source.is_some() {
                self.spool.drop_snapshot()?;
            }
        }
        Ok(())
    }

    /// Whether the target has lost a master since we looked last.
    pub(super) fn has_lost(&self) -> bool {
        self.shared
            .health
            .as_ref()
            .is_some_and(|h| h.view().losses != self.losses_seen)
    }

    /// Mode "scan": what was lost is found by the next sweep.
    pub(super) fn note_loss(&mut self) -> bool {
        let lost = self.has_lost();
        if let (true, Some(health)) = (lost, &self.shared.health) {
            self.losses_seen = health.view().losses;
            self.count("faults.target_lost");
        }
        lost
    }

    /// Goes back to the stable mark; the snapshot is to be loaded again when it was not stable yet.
    pub(super) fn rewind(&mut self) -> Result<()> {
        let Some(health) = self.shared.health.clone() else {
            return Ok(());
        };
        let view = health.view();
        if let Some(emptied) = view.emptied {
            return Err(Error::new(ErrorKind::State, emptied).hint(
                "it came back without its data: set on_existing to \"reconcile\" and run again with --fresh to write everything anew",
            ));
        }
        self.shared
            .store(|s| s.put_json(MASTERS, &health.masters()))?;
        self.settle_all()?;
        self.losses_seen = view.losses;
        // What was drained is not any more.
        self.shared.control.lost();
        self.drain = None;
        self.heal_queue = HealQueue::default();
        self.floor = None;
        self.released_at = None;
        self.held.again();
        self.holding = self.source.is_some();
        self.unstable.clear();
        let end = self.routed().max(self.fenced_to).max(self.window_end);
        self.long = Long::default();
        self.fenced.clear();
        self.fenced_to = ReplOffset(0);
        self.count("faults.target_lost");
        let back = match self.stable {
            Mark::Stream { at, db } if self.shard.snapshot_loaded => {
                self.at = at;
                self.db = db;
                self.shard.applied = Some(at);
                self.shard.applied_db = db;
                self.window_end = end;
                format!("offset {at} of its stream")
            }
            Mark::Snapshot { at, db } if !self.shard.snapshot_loaded => {
                self.shard.snapshot_at = at;
                self.shard.snapshot_db = db;
                format!("byte {at} of its snapshot")
            }
            _ => {
                // The load was done, but not yet stable: it is done again, and the stream after it is read as a window.
                self.shard.snapshot_at = 0;
                self.shard.snapshot_db = DbIndex::ZERO;
                self.shard.snapshot_loaded = false;
                // What a promoted replica has kept beside the snapshot may be older than that.
                self.shard.reconcile = self.source.is_some();
                self.loaded.done();
                self.at = self.shard.snapshot_offset.unwrap_or(self.at);
                self.db = DbIndex::ZERO;
                self.shard.applied = Some(self.at);
                self.window_end = end;
                "the beginning of its snapshot".into()
            }
        };
        self.shared.event(
            "warning",
            "target_lost",
            &format!(
                "the target lost a master: what {} wrote since {back} is written again",
                self.shard.address
            ),
        );
        Ok(())
    }
}
