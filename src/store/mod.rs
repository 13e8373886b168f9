//! SQLite: everything that a restart, a report or an auditor needs; every SQL statement of the program.
//!
//! Write-ahead log, so that `status` and `report` read while `migrate` writes.
//! Invariant: marks and counters of a checkpoint are written in one transaction.

mod lock;
mod schema;
mod shard;

pub use lock::Lock;
pub use shard::ShardState;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::types::{DbIndex, ReplId, ReplOffset, ShardId};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What was asked for when the state was begun.
#[derive(Debug, Clone)]
pub struct Run {
    pub plan: String,
    pub fingerprint: String,
    pub redacted: Value,
    pub mode: String,
    pub source: String,
    pub target: String,
    pub started_ms: i64,
}

/// Where a migration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    New,
    Snapshot,
    Stream,
    Verified,
    Frozen,
    Switched,
    RolledBack,
    Failed,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::New => "new",
            Phase::Snapshot => "snapshot",
            Phase::Stream => "stream",
            Phase::Verified => "verified",
            Phase::Frozen => "frozen",
            Phase::Switched => "switched",
            Phase::RolledBack => "rolled-back",
            Phase::Failed => "failed",
        }
    }
}

/// A slot's sums on both sides.
#[derive(Debug, Clone)]
pub struct SlotRow {
    pub slot: u16,
    pub source_keys: u64,
    pub source_sum: u64,
    pub target_keys: u64,
    pub target_sum: u64,
    pub state: &'static str,
}

/// A key that differs.
#[derive(Debug, Clone)]
pub struct Difference {
    pub db: DbIndex,
    pub key: Vec<u8>,
    pub slot: u16,
    pub reason: String,
    pub detail: String,
}

pub struct Event {
    pub at_ms: i64,
    pub level: String,
    pub code: String,
    pub message: String,
}

/// A plan's state.
pub struct Store {
    db: Connection,
    path: PathBuf,
}

fn signed(n: u64) -> i64 {
    n as i64
}

impl Store {
    /// Opens the state in `dir` for writing, creating it if need be.
    pub fn open(dir: &Path) -> Result<Store> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .context(ErrorKind::Disk, || {
                format!("create the folder {}", dir.display())
            })?;
        let path = dir.join("state.sqlite");
        // SQLite would create it readable for all.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .context(ErrorKind::Disk, || format!("open {}", path.display()))?;
        let db = Connection::open(&path).map_err(|e| failed(&path, "open", e))?;
        let mut store = Store { db, path };
        store.run_sql(|db| {
            db.busy_timeout(Duration::from_secs(10))?;
            db.pragma_update(None, "journal_mode", "WAL")?;
            db.pragma_update(None, "synchronous", "NORMAL")
        })?;
        match schema::migrate(&mut store.db)
            .map_err(|e| failed(&store.path, "bring up to date", e))?
        {
            Ok(()) => Ok(store),
            Err(version) => Err(Error::new(
                ErrorKind::State,
                format!(
                    "{} is of version {version}, from a newer keyferry",
                    store.path.display()
                ),
            )
            .hint("use that keyferry, or another --work-dir")),
        }
    }

    /// Opens the state for reading; `None` when the plan has never run.
    pub fn open_existing(dir: &Path) -> Result<Option<Store>> {
        let path = dir.join("state.sqlite");
        if !path.exists() {
            return Ok(None);
        }
        let db = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)
            .map_err(|e| failed(&path, "open", e))?;
        db.busy_timeout(Duration::from_secs(10))
            .map_err(|e| failed(&path, "open", e))?;
        Ok(Some(Store { db, path }))
    }

    fn run_sql<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        work(&self.db).map_err(|e| failed(&self.path, "use", e))
    }

    /// Runs `work` in one transaction.
    pub fn transaction<T>(&mut self, work: impl FnOnce(&mut Store) -> Result<T>) -> Result<T> {
        self.run_sql(|db| db.execute_batch("BEGIN IMMEDIATE"))?;
        let result = work(self);
        self.run_sql(|db| db.execute_batch(if result.is_ok() { "COMMIT" } else { "ROLLBACK" }))?;
        result
    }

    /// Notes what is run; a state of another source, target or selection is refused.
    pub fn begin_run(&mut self, run: &Run) -> Result<()> {
        if let Some(old) = self.run()? {
            if old.fingerprint == run.fingerprint {
                return Ok(());
            }
            let what = if old.source != run.source {
                format!("its source was {}", old.source)
            } else if old.target != run.target {
                format!("its target was {}", old.target)
            } else {
                "its databases or filter were others".to_owned()
            };
            return Err(Error::new(
                ErrorKind::State,
                format!("the saved state belongs to another form of this plan: {what}"),
            ));
        }
        self.run_sql(|db| {
            db.execute(
                "INSERT INTO run VALUES (1, ?, ?, ?, ?, ?, ?, ?)",
                params![
                    run.plan,
                    run.fingerprint,
                    run.redacted.to_string(),
                    run.mode,
                    run.source,
                    run.target,
                    run.started_ms
                ],
            )
        })?;
        Ok(())
    }

    pub fn run(&self) -> Result<Option<Run>> {
        self.run_sql(|db| {
            db.query_row(
                "SELECT plan, fingerprint, redacted, mode, source, target, started_ms FROM run",
                [],
                |r| {
                    Ok(Run {
                        plan: r.get(0)?,
                        fingerprint: r.get(1)?,
                        redacted: serde_json::from_str(&r.get::<_, String>(2)?)
                            .unwrap_or(Value::Null),
                        mode: r.get(3)?,
                        source: r.get(4)?,
                        target: r.get(5)?,
                        started_ms: r.get(6)?,
                    })
                },
            )
            .optional()
        })
    }

    /// Forgets everything.
    pub fn wipe(&mut self) -> Result<()> {
        let tables = [
            "run",
            "phase",
            "shard",
            "counter",
            "event",
            "document",
            "slot",
            "difference",
            "verify",
        ];
        let sql: String = tables.iter().map(|t| format!("DELETE FROM {t};")).collect();
        self.run_sql(|db| db.execute_batch(&format!("BEGIN; {sql} COMMIT;")))
    }

    /// Notes a phase's beginning and the end of the one before; nothing if it is the present one.
    pub fn enter_phase(&mut self, phase: Phase, now_ms: i64) -> Result<()> {
        if self.phase()? == phase.as_str() {
            return Ok(());
        }
        self.transaction(|store| {
            store.run_sql(|db| {
                db.execute(
                    "UPDATE phase SET ended_ms = ? WHERE ended_ms IS NULL",
                    [now_ms],
                )?;
                db.execute(
                    "INSERT INTO phase (name, started_ms) VALUES (?, ?)",
                    params![phase.as_str(), now_ms],
                )
            })
        })?;
        Ok(())
    }

    /// The present phase's name; "new" before the first.
    pub fn phase(&self) -> Result<String> {
        let name = self.run_sql(|db| {
            db.query_row("SELECT name FROM phase ORDER BY id DESC LIMIT 1", [], |r| {
                r.get(0)
            })
            .optional()
        })?;
        Ok(name.unwrap_or_else(|| Phase::New.as_str().to_owned()))
    }

    /// Name, start and end of each phase.
    pub fn phase_history(&self) -> Result<Vec<(String, i64, Option<i64>)>> {
        self.list(
            "SELECT name, started_ms, ended_ms FROM phase ORDER BY id",
            |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
        )
    }

    fn list<T>(
        &self,
        sql: &str,
        row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        self.run_sql(|db| db.prepare(sql)?.query_map([], row)?.collect())
    }

    pub fn shards(&self) -> Result<Vec<ShardState>> {
        let offset = |r: &Row<'_>, i: usize| -> rusqlite::Result<Option<ReplOffset>> {
            Ok(r.get::<_, Option<i64>>(i)?.map(|n| ReplOffset(n as u64)))
        };
        let number =
            |r: &Row<'_>, i: usize| -> rusqlite::Result<u64> { Ok(r.get::<_, i64>(i)? as u64) };
        self.list("SELECT * FROM shard ORDER BY shard", |r| {
            Ok(ShardState {
                shard: ShardId(r.get(0)?),
                address: r.get(1)?,
                slots: r.get(2)?,
                replid: r
                    .get::<_, Option<String>>(3)?
                    .and_then(|id| ReplId::parse(id.as_bytes()).ok()),
                snapshot_offset: offset(r, 4)?,
                snapshot_complete: r.get(5)?,
                snapshot_len: number(r, 6)?,
                snapshot_loaded: r.get(7)?,
                snapshot_at: number(r, 8)?,
                snapshot_db: DbIndex(r.get(9)?),
                snapshot_version: r.get(10)?,
                snapshot_valkey: r.get(11)?,
                applied: offset(r, 12)?,
                applied_db: DbIndex(r.get(13)?),
                stable: offset(r, 14)?,
                source_offset: offset(r, 15)?,
                fence_high: offset(r, 16)?,
                clean: r.get(17)?,
                reconcile: r.get(18)?,
                keys_read: number(r, 19)?,
                keys_written: number(r, 20)?,
                bytes_read: number(r, 21)?,
                bytes_total: number(r, 22)?,
                commands_applied: number(r, 23)?,
                healed_keys: number(r, 24)?,
                lag_ms: number(r, 25)?,
                updated_at: r.get(26)?,
            })
        })
    }

    /// Saves the shards' marks and adds to the counters, in one transaction.
    pub fn save_shards(
        &mut self,
        shards: &[ShardState],
        counts: &BTreeMap<&'static str, u64>,
    ) -> Result<()> {
        self.transaction(|store| {
            for s in shards {
                store.run_sql(|db| {
                    let mut statement = db.prepare_cached(
                        "INSERT OR REPLACE INTO shard VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20,?21,?22,?23,?24,?25,?26,?27)",
                    )?;
                    let offset = |o: Option<ReplOffset>| o.map(|o| signed(o.0));
                    statement.execute(params![
                        s.shard.0,
                        s.address,
                        s.slots,
                        s.replid.map(|id| id.to_string()),
                        offset(s.snapshot_offset),
                        s.snapshot_complete,
                        signed(s.snapshot_len),
                        s.snapshot_loaded,
                        signed(s.snapshot_at),
                        s.snapshot_db.0,
                        s.snapshot_version,
                        s.snapshot_valkey,
                        offset(s.applied),
                        s.applied_db.0,
                        offset(s.stable),
                        offset(s.source_offset),
                        offset(s.fence_high),
                        s.clean,
                        s.reconcile,
                        signed(s.keys_read),
                        signed(s.keys_written),
                        signed(s.bytes_read),
                        signed(s.bytes_total),
                        signed(s.commands_applied),
                        signed(s.healed_keys),
                        signed(s.lag_ms),
                        s.updated_at,
                    ])
                })?;
            }
            counts.iter().try_for_each(|(name, n)| store.add_count(name, *n))
        })
    }

    pub fn add_count(&mut self, name: &str, n: u64) -> Result<()> {
        self.run_sql(|db| {
            db.prepare_cached(
                "INSERT INTO counter VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET n = n + ?2",
            )?
            .execute(params![name, signed(n)])
        })?;
        Ok(())
    }

    pub fn counts(&self) -> Result<BTreeMap<String, u64>> {
        let rows = self.list("SELECT name, n FROM counter", |r| {
            Ok((r.get(0)?, r.get::<_, i64>(1)? as u64))
        })?;
        Ok(rows.into_iter().collect())
    }

    pub fn event(&mut self, at_ms: i64, level: &str, code: &str, message: &str) -> Result<()> {
        self.run_sql(|db| {
            db.execute(
                "INSERT INTO event (at_ms, level, code, message) VALUES (?, ?, ?, ?)",
                params![at_ms, level, code, message],
            )
        })?;
        Ok(())
    }

    /// The newest events, oldest first.
    pub fn events(&self, most: u32) -> Result<Vec<Event>> {
        let sql = format!(
            "SELECT at_ms, level, code, message FROM (SELECT * FROM event ORDER BY id DESC LIMIT {most}) ORDER BY id"
        );
        self.list(&sql, |r| {
            Ok(Event {
                at_ms: r.get(0)?,
                level: r.get(1)?,
                code: r.get(2)?,
                message: r.get(3)?,
            })
        })
    }

    pub fn put_json(&mut self, name: &str, value: &Value) -> Result<()> {
        self.run_sql(|db| {
            db.execute(
                "INSERT OR REPLACE INTO document VALUES (?, ?)",
                params![name, value.to_string()],
            )
        })?;
        Ok(())
    }

    pub fn json(&self, name: &str) -> Result<Option<Value>> {
        let text: Option<String> = self.run_sql(|db| {
            db.query_row("SELECT json FROM document WHERE name = ?", [name], |r| {
                r.get(0)
            })
            .optional()
        })?;
        Ok(text.and_then(|t| serde_json::from_str(&t).ok()))
    }

    /// Replaces all slots' sums.
    pub fn save_slot_sums(&mut self, rows: &[SlotRow], now_ms: i64) -> Result<()> {
        self.transaction(|store| {
            store.run_sql(|db| {
                let mut statement =
                    db.prepare_cached("INSERT OR REPLACE INTO slot VALUES (?, ?, ?, ?, ?, ?, ?)")?;
                for r in rows {
                    statement.execute(params![
                        r.slot,
                        signed(r.source_keys),
                        signed(r.source_sum),
                        signed(r.target_keys),
                        signed(r.target_sum),
                        r.state,
                        now_ms
                    ])?;
                }
                Ok(())
            })
        })
    }

    /// How many slots are in each state.
    pub fn slot_states(&self) -> Result<BTreeMap<String, u64>> {
        let rows = self.list("SELECT state, count(*) FROM slot GROUP BY state", |r| {
            Ok((r.get(0)?, r.get::<_, i64>(1)? as u64))
        })?;
        Ok(rows.into_iter().collect())
    }

    pub fn replace_differences(&mut self, found: &[Difference]) -> Result<()> {
        self.transaction(|store| {
            store.run_sql(|db| {
                db.execute("DELETE FROM difference", [])?;
                let mut statement = db.prepare_cached(
                    "INSERT INTO difference (db, key, slot, reason, detail) VALUES (?, ?, ?, ?, ?)",
                )?;
                for d in found {
                    statement.execute(params![d.db.0, d.key, d.slot, d.reason, d.detail])?;
                }
                Ok(())
            })
        })
    }

    pub fn differences(&self, most: u32) -> Result<Vec<Difference>> {
        self.list(
            &format!(
                "SELECT db, key, slot, reason, detail FROM difference ORDER BY id LIMIT {most}"
            ),
            |r| {
                Ok(Difference {
                    db: DbIndex(r.get(0)?),
                    key: r.get(1)?,
                    slot: r.get(2)?,
                    reason: r.get(3)?,
                    detail: r.get(4)?,
                })
            },
        )
    }

    pub fn save_verify(
        &mut self,
        summary: &Value,
        started_ms: i64,
        ended_ms: i64,
        equal: bool,
    ) -> Result<()> {
        self.run_sql(|db| {
            db.execute(
                "INSERT INTO verify (started_ms, ended_ms, equal, summary) VALUES (?, ?, ?, ?)",
                params![started_ms, ended_ms, equal, summary.to_string()],
            )
        })?;
        Ok(())
    }

    /// When the last verification ended, its answer and its summary.
    pub fn last_verify(&self) -> Result<Option<(i64, bool, Value)>> {
        self.run_sql(|db| {
            db.query_row(
                "SELECT ended_ms, equal, summary FROM verify ORDER BY id DESC LIMIT 1",
                [],
                |r| {
                    Ok((
                        r.get(0)?,
                        r.get(1)?,
                        serde_json::from_str(&r.get::<_, String>(2)?).unwrap_or(Value::Null),
                    ))
                },
            )
            .optional()
        })
    }
}

fn failed(path: &Path, what: &str, e: rusqlite::Error) -> Error {
    Error::new(
        ErrorKind::Disk,
        format!("{what} the state {}", path.display()),
    )
    .cause(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_reads_back_and_another_plan_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let mut shard = ShardState::new(ShardId(2), "h:1".into(), "0-9".into());
        shard.applied = Some(ReplOffset(u64::MAX / 2));
        shard.replid = Some(ReplId::parse(&[b'a'; 40]).unwrap());
        store
            .save_shards(&[shard.clone()], &BTreeMap::from([("skipped.filter", 3)]))
            .unwrap();
        store
            .save_shards(&[shard.clone()], &BTreeMap::from([("skipped.filter", 4)]))
            .unwrap();
        let reader = Store::open_existing(dir.path()).unwrap().unwrap();
        assert_eq!(
            format!("{:?}", reader.shards().unwrap()),
            format!("{:?}", [shard])
        );
        assert_eq!(reader.counts().unwrap()["skipped.filter"], 7);
        let run = |source: &str| Run {
            plan: "p".into(),
            fingerprint: source.into(),
            redacted: Value::Null,
            mode: "replica".into(),
            source: source.into(),
            target: "t".into(),
            started_ms: 1,
        };
        store.begin_run(&run("a")).unwrap();
        store.begin_run(&run("a")).unwrap();
        let e = store.begin_run(&run("b")).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::State);
        assert!(e.to_string().contains("its source was a"), "{e}");
    }

    #[test]
    fn the_second_lock_names_the_first_process() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::acquire(dir.path()).unwrap();
        let e = Lock::acquire(dir.path()).err().unwrap();
        assert!(
            e.to_string()
                .contains(&format!("pid {}", std::process::id())),
            "{e}"
        );
        drop(first);
        Lock::acquire(dir.path()).unwrap();
    }
}
