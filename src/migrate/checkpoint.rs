//! The checkpoint: marks and counters to SQLite in one transaction, at least every second.

use crate::error::Result;
use crate::migrate::expiry::LAG_MS;
use crate::migrate::heal::FENCE_RESERVE;
use crate::migrate::pump::{Pump, SAVE_EVERY, TICK};
use crate::migrate::saver::{self, Checkpoint};
use crate::source::spool::Down;
use crate::types::unix_ms;
use crate::types::{Mark, ReplOffset};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

/// From this lag on, keys that may have an expiry are read instead of replayed.
const SHORT_LAG_MS: u64 = LAG_MS / 2;

impl Pump {
    /// Now and then: marks to SQLite, numbers to the display, held expiries released.
    pub(super) fn tick(&mut self) -> Result<()> {
        if self.last_tick.elapsed() < self.tick_every() {
            return Ok(());
        }
        self.last_tick = Instant::now();
        let loaded = self.shard.snapshot_loaded;
        let (len, total, complete) = self.spool.snapshot();
        if !loaded {
            let total = if complete { Some(len) } else { total };
            self.progress.bytes_total.store(total.unwrap_or(0), Relaxed);
        }
        let applied = if loaded {
            self.applied()
        } else {
            self.shard.applied.unwrap_or(self.spool.stream_start())
        };
        let now = unix_ms();
        let down_ms = self.spool.down_ms(now);
        let lag_ms = (self.spool.lag_ms(applied, now)).max(down_ms.unwrap_or(0));
        let lag = self.spool.known_end().since(applied);
        self.progress.lag_bytes.store(lag, Relaxed);
        let age_ms = self.spool.age_ms(applied, now);
        self.progress.lag_ms.store(age_ms, Relaxed);
        if loaded {
            self.narrow_window();
            if let Some(ms) = down_ms {
                // What the source has written since is not known.
                self.progress.caught_up.store(false, Relaxed);
                self.lagging |= ms > 2 * LAG_MS;
            } else if applied < self.spool.expected() {
                // This was written while the link was down, however lately it has arrived.
                self.lagging |= !self.holding;
                self.progress.caught_up.store(false, Relaxed);
            } else if lag_ms < LAG_MS && self.window_end <= self.at {
                if self.holding || self.held.count > 0 {
                    self.release_held()?;
                }
                self.holding = self.held.count > 0;
                let settled = self.unsettled_ms().is_none() && !self.repairs_pending;
                self.progress
                    .caught_up
                    .store(!self.holding && settled, Relaxed);
                self.lagging &= applied < self.lag_until;
            }
            if lag_ms > SHORT_LAG_MS && down_ms.is_none() {
                // During the first catching-up every near expiry is held already.
                if self.source.is_some() && (self.lagging || !self.holding) {
                    self.lagging = true;
                    self.lag_until = self.spool.stream_end();
                }
                self.holding |= self.source.is_some() && lag_ms > 2 * LAG_MS;
            }
        }
        if self.last_save.elapsed() >= *SAVE_EVERY && self.is_saved()? {
            if loaded && down_ms.is_none() && self.wants_paying(lag_ms) {
                self.pay_debts()?;
            }
            self.save_beside()?;
            self.repair()?;
        }
        Ok(())
    }

    /// How old what has been proven is, in mode "scan".
    fn sweep_lag_ms(&self) -> u64 {
        let lag = self
            .sweep_lag
            .map_or(0, |since| since.elapsed().as_millis());
        u64::try_from(lag).unwrap_or(u64::MAX)
    }

    /// The same in mode "scan": there is no stream to look at.
    pub(super) fn tick_scan(&mut self) -> Result<()> {
        if self.last_tick.elapsed() >= TICK {
            self.last_tick = Instant::now();
            self.progress.lag_ms.store(self.sweep_lag_ms(), Relaxed);
            if self.last_save.elapsed() >= *SAVE_EVERY {
                self.save(false)?;
            }
        }
        Ok(())
    }

    /// For how long slots have been on their way inside the source.
    fn unsettled_ms(&self) -> Option<u64> {
        self.shared.ownership.as_ref()?.unsettled_ms()
    }

    /// Everything before this offset is acknowledged.
    fn applied(&mut self) -> ReplOffset {
        match self.oldest() {
            Some(Mark::Stream { at, .. }) => at,
            _ if self.heal_queue.is_empty() => self.at,
            _ => self.shard.applied.unwrap_or(self.at),
        }
    }

    /// The lowest mark that is not yet done; `None` when everything routed is.
    pub(super) fn oldest(&mut self) -> Option<Mark> {
        let unfinished = self.unfinished.iter().map(|(mark, _)| *mark);
        (self.pipe.oldest().into_iter().chain(self.floor))
            .chain(unfinished)
            .chain(self.heal_queue.mark())
            .chain(self.flush_again.map(|(mark, _)| mark))
            .reduce(Mark::earlier)
    }

    /// Keeps checkpoints from passing a mark; returns what kept them before, for [`Pump::floor`] to be set to when the
    /// work on it is on its way again.
    pub(super) fn hold(&mut self, mark: Mark) -> Option<Mark> {
        let before = self.floor;
        self.floor = Some(before.map_or(mark, |b| b.earlier(mark)));
        before
    }

    /// Saves a checkpoint and waits until it is on disk.
    pub(super) fn save(&mut self, clean: bool) -> Result<()> {
        if let Some(saving) = self.saving.take() {
            saving.recv().map_err(|_| saver::gone())??;
        }
        let checkpoint = self.checkpoint(clean)?;
        self.shared.store(|store| checkpoint.write(store))
    }

    /// Has a checkpoint saved while the pump goes on; only when [`Pump::is_saved`].
    fn save_beside(&mut self) -> Result<()> {
        let checkpoint = self.checkpoint(false)?;
        self.saving = Some(self.shared.saver.save(checkpoint));
        Ok(())
    }

    /// Whether the last checkpoint is on disk.
    fn is_saved(&mut self) -> Result<bool> {
        match self.saving.as_ref().map(Receiver::try_recv) {
            Some(Err(TryRecvError::Empty)) => return Ok(false),
            Some(Err(TryRecvError::Disconnected)) => return Err(saver::gone()),
            Some(Ok(result)) => result?,
            None => {}
        }
        self.saving = None;
        Ok(true)
    }

    /// The checkpoint: the lowest mark over all target nodes, with the counters, to be written in one transaction.
    fn checkpoint(&mut self, clean: bool) -> Result<Checkpoint> {
        self.last_save = Instant::now();
        self.shared.meet_limits()?;
        self.held.save()?;
        self.loaded.save()?;
        self.shared.own.save()?;
        let timed = self.timed.take_fresh()?;
        let mark = match (self.oldest(), self.debts.from.map(|(mark, _)| mark)) {
            (Some(a), Some(b)) => Some(a.earlier(b)),
            (a, b) => a.or(b),
        };
        if self.shard.snapshot_loaded {
            match mark {
                Some(Mark::Stream { at, db }) => {
                    self.shard.applied = Some(at);
                    self.shard.applied_db = db;
                }
                // Keys that wait for healing are not done.
                _ if self.heal_queue.is_empty() => {
                    self.shard.applied = Some(self.at);
                    self.shard.applied_db = self.db;
                }
                _ => {}
            }
        } else {
            let (at, db) = match mark {
                Some(Mark::Snapshot { at, db }) => (at, db),
                _ => self.loading,
            };
            self.shard.snapshot_at = at;
            self.shard.snapshot_db = db;
        }
        self.shard.clean = clean;
        if let Some(replid) = self.spool.replid() {
            self.shard.replid = Some(replid);
        }
        let acknowledged = match (self.shard.snapshot_loaded, self.shard.applied) {
            (true, Some(at)) => Some(Mark::Stream {
                at,
                db: self.shard.applied_db,
            }),
            (true, None) => None,
            (false, _) => Some(Mark::Snapshot {
                at: self.shard.snapshot_at,
                db: self.shard.snapshot_db,
            }),
        };
        self.note_stable(acknowledged)?;
        let down = self.spool.down(unix_ms());
        let down_ms = down.map(|(ms, _)| ms);
        self.spool.look_at_disk();
        self.shard.note = match self.progress.view().note {
            note if note.is_empty() && self.spool.is_full() => format!(
                "the spool is full ({} bytes are allowed) or its disk nearly is: nothing is read from the source until the target has caught up",
                self.spool.limit()
            ),
            note if note.is_empty() => match (down, self.unsettled_ms()) {
                (Some((ms, Down::Link)), _) => {
                    format!("the link to the source has been down for {} s", ms / 1000)
                }
                (Some((ms, Down::Quiet)), _) => {
                    format!("nothing has come from the source for {} s", ms / 1000)
                }
                (Some((ms, Down::Upstream)), _) => format!(
                    "the source is a replica, and has not heard its own master for {} s",
                    ms / 1000
                ),
                (None, Some(_)) => "slots are moving inside the source".into(),
                (None, None) => note,
            },
            note => note,
        };
        let end = self.spool.known_end();
        if let Some(high) = &mut self.shard.fence_high {
            // Ahead of time, so that a heal seldom has to wait for the disk.
            *high = (*high).max(end.plus(FENCE_RESERVE));
        }
        self.shard.source_offset = Some(self.shard.source_offset.map_or(end, |o| o.max(end)));
        self.shard.lag_ms = (self.shard.applied)
            .map_or(0, |a| self.spool.age_ms(a, unix_ms()))
            .max(down_ms.unwrap_or(0))
            // Whatever has moved may be older than the move.
            .max(self.unsettled_ms().map_or(0, |ms| ms + 1_000))
            .max(self.sweep_lag_ms());
        let (len, total, complete) = self.spool.snapshot();
        if !self.shard.snapshot_loaded {
            self.shard.snapshot_complete = complete && self.spool.is_snapshot_durable();
            self.shard.snapshot_len = len;
            self.shard.bytes_total = total.unwrap_or(if complete { len } else { 0 });
            self.shard.bytes_read = self.progress.bytes_done.load(Relaxed);
        } else {
            self.shard.bytes_total = self.shard.bytes_total.max(self.shard.bytes_read);
        }
        self.shard.updated_at = unix_ms();
        self.shard.commands_applied += self.progress.commands.load(Relaxed) - self.last_commands;
        self.last_commands = self.progress.commands.load(Relaxed);
        let written = (self.touched.as_mut()).and_then(|t| t.take(self.shard.shard));
        let release = match self.shard.snapshot_loaded {
            true => Some(self.stable),
            false => acknowledged,
        };
        Ok(Checkpoint {
            shard: self.shard.clone(),
            counts: std::mem::take(&mut self.counts),
            losses: std::mem::take(&mut self.losses),
            written,
            timed,
            release: release.map(|mark| (self.spool.clone(), mark)),
        })
    }

    pub(super) fn finish_counts(&mut self) -> Result<()> {
        self.sizes.save(&self.shared)
    }

    pub(super) fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    /// An event that is worth a line once, and a number each time.
    pub(super) fn note(&mut self, code: &'static str, message: &str) {
        let first = !self.counts.contains_key(code);
        self.count(code);
        if first {
            self.shared.event("warning", code, message);
        }
    }
}
