//! The database's shape: migrations by index, counted by `user_version`.

use rusqlite::Connection;

/// Each entry takes the schema from its index to the next; entries are never changed once released.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE run (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        plan TEXT NOT NULL, fingerprint TEXT NOT NULL, redacted TEXT NOT NULL,
        mode TEXT NOT NULL, source TEXT NOT NULL, target TEXT NOT NULL, started_ms INTEGER NOT NULL
    );
    CREATE TABLE phase (id INTEGER PRIMARY KEY, name TEXT NOT NULL, started_ms INTEGER NOT NULL, ended_ms INTEGER);
    CREATE TABLE shard (
        shard INTEGER PRIMARY KEY, address TEXT NOT NULL, slots TEXT NOT NULL, replid TEXT,
        snapshot_offset INTEGER, snapshot_complete INTEGER NOT NULL, snapshot_len INTEGER NOT NULL,
        snapshot_loaded INTEGER NOT NULL, snapshot_at INTEGER NOT NULL, snapshot_db INTEGER NOT NULL,
        snapshot_version INTEGER NOT NULL, snapshot_valkey INTEGER NOT NULL,
        applied INTEGER, applied_db INTEGER NOT NULL, stable INTEGER, source_offset INTEGER, fence_high INTEGER,
        clean INTEGER NOT NULL, reconcile INTEGER NOT NULL,
        keys_read INTEGER NOT NULL, keys_written INTEGER NOT NULL, bytes_read INTEGER NOT NULL, bytes_total INTEGER NOT NULL,
        commands_applied INTEGER NOT NULL, healed_keys INTEGER NOT NULL, lag_ms INTEGER NOT NULL, updated_at INTEGER NOT NULL
    );
    CREATE TABLE counter (name TEXT PRIMARY KEY, n INTEGER NOT NULL);
    CREATE TABLE event (id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, level TEXT NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL);
    CREATE TABLE document (name TEXT PRIMARY KEY, json TEXT NOT NULL);
    CREATE TABLE slot (
        slot INTEGER PRIMARY KEY, source_keys INTEGER NOT NULL, source_sum INTEGER NOT NULL,
        target_keys INTEGER NOT NULL, target_sum INTEGER NOT NULL, state TEXT NOT NULL, at_ms INTEGER NOT NULL
    );
    CREATE TABLE difference (
        id INTEGER PRIMARY KEY, db INTEGER NOT NULL, key BLOB NOT NULL, slot INTEGER NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL
    );
    CREATE TABLE verify (id INTEGER PRIMARY KEY, started_ms INTEGER NOT NULL, ended_ms INTEGER NOT NULL, equal INTEGER NOT NULL, summary TEXT NOT NULL);
"];

/// Brings the schema up to date; refuses one that a newer keyferry has written.
pub fn migrate(db: &mut Connection) -> rusqlite::Result<Result<(), usize>> {
    let version: i64 = db.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    let version = usize::try_from(version).unwrap_or(0);
    if version > MIGRATIONS.len() {
        return Ok(Err(version));
    }
    for (i, sql) in MIGRATIONS.iter().enumerate().skip(version) {
        let tx = db.transaction()?;
        tx.execute_batch(sql)?;
        tx.pragma_update(None, "user_version", (i + 1) as i64)?;
        tx.commit()?;
    }
    Ok(Ok(()))
}
