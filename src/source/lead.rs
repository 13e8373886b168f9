//! How far a snapshot may run ahead of its load.
//!
//! Where the source, the target and this program share processors, a snapshot taken at full speed takes them from the
//! target, which then works on alone when the source has long been done. So the link waits for the load, as long as
//! that costs the source nothing: not while it is written to (its output buffer would grow), not for a load that stands
//! still, and never for long (the child that writes the snapshot has to come to its end).

use crate::source::spool::Spool;
use crate::types::ReplOffset;
use std::time::{Duration, Instant};

/// Bytes of the snapshot that are always taken: enough for the load never to wait for them.
const AHEAD: u64 = 2 << 20;
/// Written to the source since the snapshot began: what it keeps for us meanwhile.
const WRITTEN: u64 = 4 << 20;
/// How often the source is asked for that while the link waits.
const ASK: Duration = Duration::from_secs(1);
/// In all it waits for half of the time at most, and no longer than this.
const MOST: Duration = Duration::from_secs(60);
/// A load that has not moved for this long stands still.
const STILL: Duration = Duration::from_millis(500);
const NAP: Duration = Duration::from_millis(4);

pub struct Lead {
    began: Instant,
    waited: Duration,
    /// From now on it waits for nobody.
    free: bool,
    asked: Instant,
    /// How far the load was, and since when.
    loaded: (u64, Instant),
}

impl Lead {
    pub fn begin() -> Lead {
        let now = Instant::now();
        Lead {
            began: now,
            waited: Duration::ZERO,
            free: false,
            asked: now,
            loaded: (0, now),
        }
    }

    /// How long to wait before more of the snapshot is taken, if at all.
    pub fn nap(&mut self, spool: &Spool) -> Option<Duration> {
        let (there, loaded) = spool.load();
        if loaded != self.loaded.0 {
            self.loaded = (loaded, Instant::now());
        }
        self.free |= self.loaded.1.elapsed() > STILL
            || self.waited > (self.began.elapsed() / 2 + STILL).min(MOST);
        if self.free || there.saturating_sub(loaded) < AHEAD {
            return None;
        }
        self.waited += NAP;
        Some(NAP)
    }

    /// Whether it is time to ask the source how much was written to it.
    pub fn asks(&mut self) -> bool {
        let due = self.asked.elapsed() > ASK;
        if due {
            self.asked = Instant::now();
        }
        due
    }

    /// The source is at this offset, the snapshot at that one; an unknown offset counts as busy.
    pub fn told(&mut self, source: Option<ReplOffset>, snapshot: ReplOffset) {
        self.free |= source.is_none_or(|at| at.since(snapshot) > WRITTEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::spool::{SnapshotTail, SpoolWriter};
    use std::io::Read;

    #[test]
    fn it_waits_for_a_load_that_moves_and_for_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 1 << 40).unwrap();
        let mut writer = SpoolWriter::new(spool.clone());
        let mut tail = SnapshotTail::new(spool.clone(), 0);
        let mut lead = Lead::begin();
        assert_eq!(lead.nap(&spool), None);
        let piece = vec![0; (AHEAD + 100) as usize];
        writer.append_snapshot(&piece).unwrap();
        assert_eq!(lead.nap(&spool), Some(NAP));
        let read = |tail: &mut SnapshotTail, n: u64| {
            tail.take(n).read_to_end(&mut Vec::new()).unwrap();
        };
        read(&mut tail, AHEAD);
        // Where it stands is told with the next reading.
        read(&mut tail, 1);
        assert_eq!(lead.nap(&spool), None, "near enough");
        writer.append_snapshot(&piece).unwrap();
        assert_eq!(lead.nap(&spool), Some(NAP));
        lead.told(Some(ReplOffset(100)), ReplOffset(90));
        assert_eq!(lead.nap(&spool), Some(NAP));
        let mut written_to = Lead::begin();
        written_to.told(Some(ReplOffset(WRITTEN + 100)), ReplOffset(90));
        assert_eq!(written_to.nap(&spool), None);
        std::thread::sleep(STILL + NAP);
        assert_eq!(lead.nap(&spool), None, "it stands still");
        read(&mut tail, 100);
        assert_eq!(lead.nap(&spool), None, "once free, it stays so");
    }
}
