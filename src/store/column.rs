//! Between SQLite's columns and the nouns.

use crate::types::ReplOffset;
use rusqlite::Row;
use serde_json::Value;

/// SQLite knows signed numbers only: the same 64 bits.
pub(super) fn int(n: u64) -> i64 {
    n.cast_signed()
}

pub(super) fn big(row: &Row, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(i64::cast_unsigned)
}

pub(super) fn offset(row: &Row, column: usize) -> rusqlite::Result<Option<ReplOffset>> {
    Ok(row
        .get::<_, Option<i64>>(column)?
        .map(|n| ReplOffset(n.cast_unsigned())))
}

pub(super) fn document(row: &Row, column: usize) -> rusqlite::Result<Value> {
    serde_json::from_str(&row.get::<_, String>(column)?).map_err(|_| unreadable(column, "document"))
}

pub(super) fn unreadable(column: usize, what: &str) -> rusqlite::Error {
    rusqlite::Error::InvalidColumnType(column, what.to_string(), rusqlite::types::Type::Text)
}
