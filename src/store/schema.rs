//! The shape of the state file: migrations by index, counted in `user_version`.
//!
//! Invariant: a migration that was released is never changed; a new shape is a new entry at the end.

use rusqlite::{Connection, Result, TransactionBehavior};

const MIGRATIONS: [&str; 8] = [
    "
    CREATE TABLE run (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        run_id TEXT NOT NULL, plan TEXT NOT NULL, fingerprint TEXT NOT NULL, redacted TEXT NOT NULL,
        mode TEXT NOT NULL, source TEXT NOT NULL, target TEXT NOT NULL, version TEXT NOT NULL,
        started_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE phase (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL, entered_ms INTEGER NOT NULL, left_ms INTEGER
    ) STRICT;
    CREATE TABLE shard (
        shard INTEGER PRIMARY KEY, address TEXT NOT NULL, slots TEXT NOT NULL, replid TEXT,
        snapshot_offset INTEGER, snapshot_at INTEGER NOT NULL, snapshot_db INTEGER NOT NULL,
        snapshot_valkey INTEGER NOT NULL, snapshot_version INTEGER NOT NULL, snapshot_len INTEGER NOT NULL,
        snapshot_complete INTEGER NOT NULL, snapshot_loaded INTEGER NOT NULL, reconcile INTEGER NOT NULL,
        applied INTEGER, applied_db INTEGER NOT NULL, stable INTEGER, source_offset INTEGER,
        fence_high INTEGER, clean INTEGER NOT NULL, keys_read INTEGER NOT NULL, keys_written INTEGER NOT NULL,
        bytes_read INTEGER NOT NULL, bytes_total INTEGER NOT NULL, commands_applied INTEGER NOT NULL,
        healed_keys INTEGER NOT NULL, lag_ms INTEGER NOT NULL, updated_at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE count (name TEXT PRIMARY KEY, n INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE event (
        id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, level TEXT NOT NULL, code TEXT NOT NULL,
        message TEXT NOT NULL
    ) STRICT;
    CREATE TABLE slot_sum (
        slot INTEGER PRIMARY KEY, source_keys INTEGER NOT NULL, source_sum INTEGER NOT NULL,
        target_keys INTEGER NOT NULL, target_sum INTEGER NOT NULL, state TEXT NOT NULL,
        verified_at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE verify_run (
        id INTEGER PRIMARY KEY, started_ms INTEGER NOT NULL, ended_ms INTEGER NOT NULL, equal INTEGER NOT NULL,
        answer TEXT NOT NULL
    ) STRICT;
    CREATE TABLE difference (
        id INTEGER PRIMARY KEY, db INTEGER NOT NULL, key BLOB NOT NULL,
        slot INTEGER NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL
    ) STRICT;
    CREATE TABLE document (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE loss (
        db INTEGER NOT NULL, key BLOB NOT NULL, what TEXT NOT NULL, PRIMARY KEY (db, key, what)
    ) STRICT, WITHOUT ROWID;
",
    "
    ALTER TABLE shard ADD COLUMN stable_db INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE shard ADD COLUMN note TEXT NOT NULL DEFAULT '';
",
    "
    CREATE TABLE repair (db INTEGER NOT NULL, key BLOB NOT NULL, PRIMARY KEY (db, key)) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE verify_progress (
        only INTEGER PRIMARY KEY CHECK (only = 1), about TEXT NOT NULL, at TEXT NOT NULL, sums BLOB NOT NULL,
        candidates BLOB NOT NULL
    ) STRICT;
    CREATE TABLE written (shard INTEGER PRIMARY KEY, since_ms INTEGER NOT NULL, last BLOB NOT NULL) STRICT;
",
    "
    CREATE TABLE cutover_step (
        id INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, direction TEXT NOT NULL, step TEXT NOT NULL,
        state TEXT NOT NULL, who TEXT NOT NULL, started_ms INTEGER NOT NULL, ended_ms INTEGER,
        took_us INTEGER, detail TEXT NOT NULL
    ) STRICT;
",
    "
    CREATE TABLE latency_block (
        about TEXT NOT NULL, workload TEXT NOT NULL, rate REAL NOT NULL, block INTEGER NOT NULL, side TEXT NOT NULL,
        started_ms INTEGER NOT NULL, errors INTEGER NOT NULL, shed INTEGER NOT NULL, planned INTEGER NOT NULL,
        response BLOB NOT NULL, service BLOB NOT NULL, detail TEXT NOT NULL,
        PRIMARY KEY (workload, rate, block, side)
    ) STRICT;
",
    "
    CREATE TABLE unknown_command (
        name TEXT NOT NULL, source TEXT NOT NULL, first_offset INTEGER NOT NULL, left_out INTEGER NOT NULL,
        read_again INTEGER NOT NULL, PRIMARY KEY (name, source)
    ) STRICT, WITHOUT ROWID;
",
];

/// All tables that hold something of a migration; what `--fresh` empties.
pub(super) const TABLES: [&str; 16] = [
    "unknown_command",
    "latency_block",
    "cutover_step",
    "verify_progress",
    "written",
    "repair",
    "loss",
    "run",
    "phase",
    "shard",
    "count",
    "event",
    "slot_sum",
    "verify_run",
    "difference",
    "document",
];

/// The version that this program reads and writes.
pub(super) const VERSION: usize = MIGRATIONS.len();

pub(super) fn version(db: &Connection) -> Result<usize> {
    db.query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0))
        .map(|v| v as usize)
}

/// Brings a state file of any earlier version to [`VERSION`], whole or not at all: who looks at a new file meanwhile
/// finds nothing in it, and not an old one.
pub(super) fn migrate(db: &mut Connection) -> Result<()> {
    if version(db)? == VERSION {
        return Ok(());
    }
    let steps = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for statements in MIGRATIONS.iter().skip(version(&steps)?) {
        steps.execute_batch(statements)?;
    }
    steps.pragma_update(None, "user_version", VERSION as u32)?;
    steps.commit()
}
