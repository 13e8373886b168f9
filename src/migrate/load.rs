//! The snapshot out of the spool, record by record, from the saved mark on.

use crate::error::{Error, Result};
use crate::migrate::pump::{Ended, Pump, TICK};
use crate::rdb::file::{Item, Options, Snapshot};
use crate::rdb::opcode::Dialect;
use crate::source::spool::{End, SnapshotTail};
use crate::task::failpoint;
use crate::types::{DbIndex, Mark};
use std::sync::atomic::Ordering::Relaxed;

impl Pump {
    pub(super) fn loading_mark(&self) -> Mark {
        Mark::Snapshot {
            at: self.loading.0,
            db: self.loading.1,
        }
    }

    /// Loads the snapshot from the saved mark on; `Some` when the run ends before it is loaded.
    pub(super) fn load(&mut self) -> Result<Option<Ended>> {
        'again: loop {
            self.load_again = false;
            let options = Options {
                whole_value_limit: self.whole_value(),
                ..Options::default()
            };
            let tail = SnapshotTail::new(self.spool.clone(), self.shard.snapshot_at);
            let mut snapshot = if self.shard.snapshot_at == 0 {
                match Snapshot::open(tail, options) {
                    Ok(snapshot) => snapshot,
                    Err(e) => return self.load_error(e),
                }
            } else {
                let dialect = if self.shard.snapshot_valkey {
                    Dialect::Valkey
                } else {
                    Dialect::Redis
                };
                Snapshot::resume(
                    tail,
                    self.shard.snapshot_at,
                    self.shard.snapshot_db,
                    dialect,
                    self.shard.snapshot_version,
                    options,
                )
            };
            self.shard.snapshot_valkey = snapshot.dialect() == Dialect::Valkey;
            self.shard.snapshot_version = snapshot.version();
            let (dialect, version) = (snapshot.dialect(), snapshot.version());
            self.loading = (self.shard.snapshot_at, self.shard.snapshot_db);
            let mut records: u32 = 0;
            loop {
                if self.pipe.troubled() {
                    self.resolve()?;
                }
                if self.load_again {
                    continue 'again;
                }
                records = records.wrapping_add(1);
                failpoint("load-begun");
                if records.is_multiple_of(256) {
                    if self.shared.stop.requested() {
                        return self.stop_loading().map(Some);
                    }
                    self.progress.bytes_done.store(snapshot.position(), Relaxed);
                    self.tick()?;
                    self.pipe.put_old()?;
                    if self.meet_ownership()? {
                        continue 'again;
                    }
                    if self.has_lost() {
                        self.rewind()?;
                        continue 'again;
                    }
                }
                self.keep_pace(snapshot.position().saturating_sub(self.loading.0))?;
                self.loading = (snapshot.position(), snapshot.db());
                let mark = self.loading_mark();
                let item = match snapshot.next() {
                    Ok(item) => item,
                    Err(e) => return self.load_error(e),
                };
                match item {
                    Item::Entry(entry) => self.entry(&entry, dialect, version, mark)?,
                    Item::Large(large) => {
                        if self.large(large, mark)? {
                            if self.shared.stop.requested() {
                                return self.stop_loading().map(Some);
                            }
                            continue 'again;
                        }
                    }
                    Item::Function(code) => self.function(code, mark)?,
                    Item::FunctionPreGa { name, .. } => self.lost_function(name)?,
                    Item::Aux { name, value } => self.aux(name, value),
                    Item::ModuleAux { module } => self.note("module_aux", &format!("the snapshot holds data of the module {module} outside of keys; it is left out")),
                    Item::Database(_) | Item::Resize { .. } | Item::SlotInfo { .. } | Item::SlotImport => {}
                    Item::End => break,
                }
            }
            self.shard.bytes_read = snapshot.position();
            drop(snapshot);
            self.progress
                .bytes_done
                .store(self.shard.bytes_read, Relaxed);
            if self.settle_all()? {
                continue 'again;
            }
            return Ok(None);
        }
    }

    /// Waits as long as the plan's limits want after one more key.
    fn keep_pace(&mut self, bytes: u64) -> Result<()> {
        let mut wait = self.shared.throttle.take(1, bytes);
        if wait < TICK {
            // Short waits add up in the throttle until one is worth a sleep.
            return Ok(());
        }
        self.pipe.flush();
        while !wait.is_zero() && !self.shared.stop.requested() {
            std::thread::sleep(wait.min(TICK));
            self.tick()?;
            // The limits may be others by now.
            wait = self.shared.throttle.due();
        }
        Ok(())
    }

    fn aux(&mut self, name: &[u8], value: &[u8]) {
        // The database that the stream goes on in; without it a SELECT comes first.
        if name == b"repl-stream-db"
            && let Some(db) = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok())
        {
            self.db = DbIndex(db);
        }
    }

    fn load_error(&mut self, e: Error) -> Result<Option<Ended>> {
        match self.spool.ended() {
            Some(End::Superseded) => Ok(Some(Ended::Superseded)),
            Some(End::Stopped) => self.stop_loading().map(Some),
            Some(End::Finished) | None => {
                Err(e.context(format!("read the snapshot of {}", self.shard.address)))
            }
        }
    }

    fn stop_loading(&mut self) -> Result<Ended> {
        let _ = self.settle_all()?;
        self.save(false)?;
        self.finish_counts()?;
        Ok(Ended::Stopped)
    }
}
