//! The state file itself: opened, copied and wiped, with the run, its phases, shards, counts and events.

use super::column::{big, document, int, offset, unreadable};
use super::record::{
    Event, LIMITS, Loss, Phase, PhaseSpan, REFUSED, Run, SavedRun, ShardState, Written,
};
use super::schema;
use crate::error::{Context, Error, ErrorKind, Result, printable};
use crate::plan::{Job, Limits};
use crate::task::{private_dir, private_file};
use crate::types::{DbIndex, ReplId, ReplOffset, ShardId};
use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, params,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) const FILE: &str = "state.sqlite";
/// How long a statement waits for another process's transaction: a busy disk may take half a minute to force it.
const BUSY: Duration = Duration::from_secs(90);
const EVENTS_KEPT: u32 = 10_000;

/// An open state file.
pub struct Store {
    pub(super) db: Connection,
    pub(super) path: PathBuf,
}

/// Makes an empty state file that nobody else may ever read; SQLite gives its side files the same mode.
///
/// One that is there is not opened: to close it again would drop the locks that this process's other connections to it
/// hold (fcntl(2)), and the next process that ends would take the log away from under them.
fn make(path: &Path) -> Result<()> {
    let made = private_file().create_new(true).append(true).open(path);
    match made {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(e)
            .context(ErrorKind::Disk, || {
                format!("open the state file {}", path.display())
            }),
        _ => Ok(()),
    }
}

impl Store {
    /// Opens or creates the state in a plan's folder.
    pub fn open(dir: &Path) -> Result<Store> {
        private_dir(dir)?;
        let path = dir.join(FILE);
        make(&path)?;
        let failed = |e| failure(&path, "open", e);
        let mut db = Connection::open(&path).map_err(failed)?;
        // FULL: a mark that was saved must not be older after a power cut than what it allowed to happen.
        db.busy_timeout(BUSY)
            .and_then(|()| db.pragma_update(None, "journal_mode", "WAL"))
            .and_then(|()| db.pragma_update(None, "synchronous", "FULL"))
            .and_then(|()| db.pragma_update(None, "secure_delete", "ON"))
            .map_err(failed)?;
        refuse_newer(&db, &path)?;
        schema::migrate(&mut db).map_err(|e| failure(&path, "prepare", e))?;
        Ok(Store { db, path })
    }

    /// Opens the state to look at it, also while another process writes; `None` when there is none yet.
    pub fn open_readonly(dir: &Path) -> Result<Option<Store>> {
        let path = dir.join(FILE);
        match std::fs::metadata(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => {
                return Err(Error::new(
                    ErrorKind::Disk,
                    format!("open the state file {}", path.display()),
                )
                .cause(e));
            }
            Ok(_) => {}
        }
        let failed = |e| failure(&path, "open", e);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&path, flags).map_err(failed)?;
        db.busy_timeout(BUSY).map_err(failed)?;
        refuse_newer(&db, &path)?;
        match schema::version(&db).map_err(failed)? {
            0 => Ok(None),
            v if v < schema::VERSION => Err(Error::new(
                ErrorKind::State,
                format!("{} was written by an older keyferry", path.display()),
            )
            .hint("run migrate or verify once: it brings the state up to date")),
            _ => Ok(Some(Store { db, path })),
        }
    }

    /// Copies the state as it is at this moment into another folder, also while a process writes it.
    pub fn copy_to(&self, dir: &Path) -> Result<()> {
        private_dir(dir)?;
        let (path, new) = (dir.join(FILE), dir.join("state.new"));
        let failed = || format!("copy the state to {}", path.display());
        for old in [
            &new,
            &dir.join("state.sqlite-wal"),
            &dir.join("state.sqlite-shm"),
        ] {
            match std::fs::remove_file(old) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).context(ErrorKind::Disk, failed);
                }
                _ => {}
            }
        }
        (self.db)
            .execute("VACUUM INTO ?1", [new.to_string_lossy()])
            .map_err(self.failed("copy everything"))?;
        std::fs::rename(&new, &path).context(ErrorKind::Disk, failed)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn failed(&self, doing: &'static str) -> impl Fn(rusqlite::Error) -> Error + '_ {
        move |e| failure(&self.path, doing, e)
    }

    /// Runs one transaction.
    pub(super) fn write<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&Transaction) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let result = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .and_then(|transaction| {
                let value = work(&transaction)?;
                transaction.commit()?;
                Ok(value)
            });
        result.map_err(|e| failure(&self.path, doing, e))
    }

    pub(super) fn rows<T>(
        &self,
        doing: &'static str,
        sql: &str,
        params: impl rusqlite::Params,
        read: impl FnMut(&Row) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let all = || -> rusqlite::Result<Vec<T>> {
            self.db
                .prepare_cached(sql)?
                .query_map(params, read)?
                .collect()
        };
        all().map_err(self.failed(doing))
    }

    // The run.

    /// Notes that a process works on this plan; refuses a plan that moves something else than the saved one.
    pub fn begin_run(&mut self, run: &Run) -> Result<()> {
        let saved = self.run()?;
        if let Some(saved) = saved {
            let changed = changed_parts(&saved.run.fingerprint, &run.fingerprint);
            // A target that was not empty is refused with the advice to change this, and then nothing was written.
            let harmless = changed == ["on_existing"]
                && self.phase()? == Phase::New
                && self.shards()?.is_empty();
            if !changed.is_empty() && !harmless {
                return Err(Error::new(
                    ErrorKind::State,
                    format!(
                        "the plan has changed since this migration began: {} not what the saved state in {} is about",
                        if let [one] = &changed[..] { format!("its {one} is") } else { format!("its {} are", changed.join(" and ")) },
                        self.path.display()
                    ),
                )
                .hint("go back to the plan it began with, or start over with --fresh, or give the plan another name"));
            }
        }
        let run_id = new_run_id(run);
        self.write("save the run", |t| {
            t.execute(
                "INSERT INTO run (only, run_id, plan, fingerprint, redacted, mode, source, target, version, started_ms)
                 VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                 ON CONFLICT (only) DO UPDATE SET fingerprint = excluded.fingerprint, redacted = excluded.redacted,
                 version = excluded.version",
                params![
                    run_id,
                    run.plan,
                    run.fingerprint,
                    run.redacted.to_string(),
                    run.mode,
                    run.source,
                    run.target,
                    env!("CARGO_PKG_VERSION"),
                    run.started_ms
                ],
            )
            .map(drop)
        })
    }

    pub fn run(&self) -> Result<Option<SavedRun>> {
        let sql = "SELECT run_id, version, plan, fingerprint, redacted, mode, source, target, started_ms FROM run";
        let read = |row: &Row| {
            Ok(SavedRun {
                run_id: row.get(0)?,
                version: row.get(1)?,
                run: Run {
                    plan: row.get(2)?,
                    fingerprint: row.get(3)?,
                    redacted: document(row, 4)?,
                    mode: row.get(5)?,
                    source: row.get(6)?,
                    target: row.get(7)?,
                    started_ms: row.get(8)?,
                },
            })
        };
        self.db
            .query_row(sql, [], read)
            .optional()
            .map_err(self.failed("read the run"))
    }

    /// Forgets everything: what `--fresh` does.
    pub fn wipe(&mut self) -> Result<()> {
        self.write("empty", |t| {
            schema::TABLES
                .iter()
                .try_for_each(|table| t.execute(&format!("DELETE FROM {table}"), []).map(drop))
        })
    }

    // Phases.

    /// Ends the current phase and begins another; does nothing when it is the same one.
    pub fn enter_phase(&mut self, phase: Phase, now_ms: i64) -> Result<()> {
        if self.phases()?.last().is_some_and(|p| p.phase == phase) {
            return Ok(());
        }
        self.write("save the phase", |t| {
            t.execute(
                "UPDATE phase SET left_ms = ?1 WHERE left_ms IS NULL",
                [now_ms],
            )?;
            t.execute(
                "INSERT INTO phase (name, entered_ms) VALUES (?1, ?2)",
                params![phase.as_str(), now_ms],
            )
            .map(drop)
        })
    }

    pub fn phase(&self) -> Result<Phase> {
        Ok(self.phases()?.last().map_or(Phase::New, |p| p.phase))
    }

    /// All phases in order; the last one is the current one.
    pub fn phases(&self) -> Result<Vec<PhaseSpan>> {
        self.rows(
            "read the phases",
            "SELECT name, entered_ms, left_ms FROM phase ORDER BY id",
            [],
            |row| {
                let name: String = row.get(0)?;
                let phase = Phase::parse(&name).ok_or_else(|| unreadable(0, "phase"))?;
                Ok(PhaseSpan {
                    phase,
                    entered_ms: row.get(1)?,
                    left_ms: row.get(2)?,
                })
            },
        )
    }

    // Source shards.

    pub fn shards(&self) -> Result<Vec<ShardState>> {
        let sql = "SELECT shard, address, slots, replid, snapshot_offset, snapshot_at, snapshot_db, snapshot_valkey,
            snapshot_version, snapshot_len, snapshot_complete, snapshot_loaded, reconcile, applied, applied_db, stable,
            source_offset, fence_high, clean, keys_read, keys_written, bytes_read, bytes_total, commands_applied,
            healed_keys, lag_ms, updated_at, stable_db, note FROM shard ORDER BY shard";
        self.rows("read the shards", sql, [], |row| {
            let replid: Option<String> = row.get(3)?;
            let replid = replid
                .map(|r| ReplId::parse(r.as_bytes()).map_err(|_| unreadable(3, "replication id")))
                .transpose()?;
            Ok(ShardState {
                shard: ShardId(row.get(0)?),
                address: row.get(1)?,
                slots: row.get(2)?,
                replid,
                snapshot_offset: offset(row, 4)?,
                snapshot_at: big(row, 5)?,
                snapshot_db: DbIndex(row.get(6)?),
                snapshot_valkey: row.get(7)?,
                snapshot_version: row.get(8)?,
                snapshot_len: big(row, 9)?,
                snapshot_complete: row.get(10)?,
                snapshot_loaded: row.get(11)?,
                reconcile: row.get(12)?,
                applied: offset(row, 13)?,
                applied_db: DbIndex(row.get(14)?),
                stable: offset(row, 15)?,
                source_offset: offset(row, 16)?,
                fence_high: offset(row, 17)?,
                clean: row.get(18)?,
                keys_read: big(row, 19)?,
                keys_written: big(row, 20)?,
                bytes_read: big(row, 21)?,
                bytes_total: big(row, 22)?,
                commands_applied: big(row, 23)?,
                healed_keys: big(row, 24)?,
                lag_ms: big(row, 25)?,
                updated_at: row.get(26)?,
                stable_db: DbIndex(row.get(27)?),
                note: row.get(28)?,
            })
        })
    }

    /// Saves marks of shards and adds to counters, in one transaction.
    pub fn save_shards(
        &mut self,
        shards: &[ShardState],
        counts: &BTreeMap<&'static str, u64>,
        written: Option<&Written>,
    ) -> Result<()> {
        self.write("save the marks", |t| {
            if let Some(w) = written {
                let last: Vec<u8> = w.last.iter().flat_map(|n| n.to_le_bytes()).collect();
                t.execute(
                    "INSERT OR REPLACE INTO written (shard, since_ms, last) VALUES (?1, ?2, ?3)",
                    params![w.shard.0, w.since_ms, last],
                )?;
            }
            let mut insert = t.prepare_cached(
                "INSERT OR REPLACE INTO shard (shard, address, slots, replid, snapshot_offset, snapshot_at, snapshot_db, snapshot_valkey,
                 snapshot_version, snapshot_len, snapshot_complete, snapshot_loaded, reconcile, applied, applied_db, stable,
                 source_offset, fence_high, clean, keys_read, keys_written, bytes_read, bytes_total, commands_applied,
                 healed_keys, lag_ms, updated_at, stable_db, note)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23,
                 ?24, ?25, ?26, ?27, ?28, ?29)",
            )?;
            let at = |o: Option<ReplOffset>| o.map(|o| int(o.0));
            for s in shards {
                insert.execute(params![
                    s.shard.0, s.address, s.slots, s.replid.as_ref().map(ReplId::as_str), at(s.snapshot_offset),
                    int(s.snapshot_at), s.snapshot_db.0, s.snapshot_valkey, s.snapshot_version, int(s.snapshot_len),
                    s.snapshot_complete, s.snapshot_loaded, s.reconcile, at(s.applied), s.applied_db.0, at(s.stable),
                    at(s.source_offset), at(s.fence_high), s.clean, int(s.keys_read), int(s.keys_written),
                    int(s.bytes_read), int(s.bytes_total), int(s.commands_applied), int(s.healed_keys), int(s.lag_ms),
                    s.updated_at, s.stable_db.0, s.note
                ])?;
            }
            counts.iter().try_for_each(|(name, n)| add_count(t, name, *n))
        })
    }

    // Counters, events, documents.

    pub fn counts(&self) -> Result<BTreeMap<String, u64>> {
        let rows = self.rows(
            "read the counters",
            "SELECT name, n FROM count",
            [],
            |row| Ok((row.get(0)?, big(row, 1)?)),
        )?;
        Ok(rows.into_iter().collect())
    }

    pub fn add_losses(&mut self, losses: &[Loss]) -> Result<()> {
        if losses.is_empty() {
            return Ok(());
        }
        self.write("save the list of losses", |t| {
            let mut insert =
                t.prepare_cached("INSERT OR IGNORE INTO loss (db, key, what) VALUES (?1, ?2, ?3)")?;
            for loss in losses {
                insert.execute(params![loss.db.0, loss.key, loss.what])?;
            }
            Ok(())
        })
    }

    /// What the target could not hold: its database, the key, and what is lost.
    pub fn losses(&self, limit: u64) -> Result<Vec<(DbIndex, Vec<u8>, String)>> {
        let sql = "SELECT db, key, what FROM loss ORDER BY db, key LIMIT ?1";
        self.rows("read the list of losses", sql, [int(limit)], |row| {
            Ok((DbIndex(row.get(0)?), row.get(1)?, row.get(2)?))
        })
    }

    /// Levels are `info`, `warning` and `error`; the oldest events go when there are very many.
    pub fn event(&mut self, at_ms: i64, level: &str, code: &str, message: &str) -> Result<()> {
        let message = printable(message, "");
        self.write("save an event", |t| {
            t.execute(
                "INSERT INTO event (at_ms, level, code, message) VALUES (?1, ?2, ?3, ?4)",
                params![at_ms, level, code, message],
            )?;
            t.execute(
                "DELETE FROM event WHERE id <= ?1",
                [t.last_insert_rowid() - i64::from(EVENTS_KEPT)],
            )
            .map(drop)
        })
    }

    /// The last events, oldest first.
    pub fn events(&self, limit: u32) -> Result<Vec<Event>> {
        let sql = "SELECT at_ms, level, code, message FROM (SELECT * FROM event ORDER BY id DESC LIMIT ?1) ORDER BY id";
        self.rows("read the events", sql, [limit], |row| {
            Ok(Event {
                at_ms: row.get(0)?,
                level: row.get(1)?,
                code: row.get(2)?,
                message: row.get(3)?,
            })
        })
    }

    /// The plan's limits, with what `keyferry limit` has set in place of them.
    pub fn limits(&self, plan: &Limits) -> Result<Limits> {
        let mut limits = plan.clone();
        let Some(set) = self.json(LIMITS)? else {
            return Ok(limits);
        };
        let number = |key: &str| set[key].as_u64();
        for (key, limit) in [
            ("keys_per_s", &mut limits.keys_per_s),
            ("bytes_per_s", &mut limits.bytes_per_s),
        ] {
            if let Some(n) = number(key) {
                *limit = Some(n).filter(|n| *n > 0);
            }
        }
        Ok(limits)
    }

    /// Tells the plan's sides what an earlier run has found to be refused.
    pub fn recall(&self, job: &Job) -> Result<()> {
        let saved = self.json(REFUSED)?.unwrap_or_default();
        let names = |side: &str| -> Vec<String> {
            serde_json::from_value(saved[side].clone()).unwrap_or_default()
        };
        job.target.learnt.add(names("target"));
        if let Some(source) = job.source.endpoint() {
            source.learnt.add(names("source"));
        }
        Ok(())
    }

    /// Keeps what the sides have refused for [`Store::recall`].
    pub fn remember(&mut self, job: &Job) -> Result<()> {
        let source = job.source.endpoint().map(|s| s.learnt.list());
        let document = serde_json::json!({
            "source": source.unwrap_or_default(),
            "target": job.target.learnt.list(),
        });
        self.put_json(REFUSED, &document)
    }

    pub fn put_json(&mut self, name: &str, value: &Value) -> Result<()> {
        self.write("save a document", |t| {
            t.execute(
                "INSERT OR REPLACE INTO document (name, value) VALUES (?1, ?2)",
                params![name, value.to_string()],
            )
            .map(drop)
        })
    }

    pub fn json(&self, name: &str) -> Result<Option<Value>> {
        self.db
            .query_row(
                "SELECT value FROM document WHERE name = ?1",
                [name],
                |row| document(row, 0),
            )
            .optional()
            .map_err(self.failed("read a document"))
    }
}

fn add_count(t: &Transaction, name: &str, n: u64) -> rusqlite::Result<()> {
    t.prepare_cached(
        "INSERT INTO count (name, n) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET n = n + excluded.n",
    )?
    .execute(params![name, int(n)])
    .map(drop)
}

/// The names of the parts that differ between two fingerprints.
fn changed_parts(saved: &str, now: &str) -> Vec<String> {
    let parts = |f: &str| {
        f.split(' ')
            .filter_map(|p| p.split_once('='))
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect::<BTreeMap<_, _>>()
    };
    let (saved_parts, now_parts) = (parts(saved), parts(now));
    let mut changed: Vec<String> = ["source", "target", "databases", "filter", "on_existing"]
        .into_iter()
        .filter(|name| saved_parts.get(*name) != now_parts.get(*name))
        .map(str::to_string)
        .collect();
    if changed.is_empty() && saved != now {
        changed.push("fingerprint".into());
    }
    changed
}

fn new_run_id(run: &Run) -> String {
    let text = format!(
        "{} {} {} {}",
        run.plan,
        run.fingerprint,
        run.started_ms,
        std::process::id()
    );
    format!(
        "{:016x}",
        crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, text.as_bytes())
    )
}

fn refuse_newer(db: &Connection, path: &Path) -> Result<()> {
    let version = schema::version(db).map_err(|e| failure(path, "open", e))?;
    if version <= schema::VERSION {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::State,
        format!("{} was written by a newer keyferry", path.display()),
    )
    .hint("use that version, or another --work-dir"))
}

fn failure(path: &Path, doing: &str, e: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode as C;
    let message = format!("{doing} in the state file {}", path.display());
    match e.sqlite_error_code() {
        Some(C::DatabaseCorrupt | C::NotADatabase | C::SchemaChanged | C::TypeMismatch) => {
            Error::new(ErrorKind::State, message).hint("the state file is damaged: move its folder away and begin again, or use another --work-dir").cause(e)
        }
        Some(C::DatabaseBusy | C::DatabaseLocked) => {
            Error::new(ErrorKind::Locked, message).hint("another program holds the file; close it and run the same command again").cause(e)
        }
        Some(_) => Error::new(ErrorKind::Disk, message).cause(e),
        None => Error::new(ErrorKind::State, message).cause(e),
    }
}
