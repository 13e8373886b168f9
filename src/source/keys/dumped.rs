//! A value read by DUMP without being held, by way of a file: that of a module or an array, which no command reads in
//! parts.

use crate::error::{Context, ErrorKind, Result};
use crate::net::{Conn, refusal};
use crate::rdb::file::{Options, Snapshot};
use crate::rdb::large;
use crate::rdb::opcode::Dialect;
use crate::rdb::value::ValueSink;
use crate::resp::Reply;
use crate::types::DbIndex;
use std::fs::File;
use std::io::Seek;

/// Asks for a key's payload; its length, the bytes being the next to be read, or `None` when there is no such key.
async fn ask(conn: &mut Conn, key: &[u8]) -> Result<Option<u64>> {
    conn.push(&[b"DUMP", key]);
    conn.flush().await?;
    if let Some(len) = conn.bulk_len().await? {
        return Ok(Some(len as u64));
    }
    match conn.reply().await? {
        Reply::Nil => Ok(None),
        Reply::Error(text) => {
            Err(refusal("DUMP", &text).context("read a value that no other command reads"))
        }
        _ => Err(super::unforeseen("DUMP")),
    }
}

/// Writes a key's payload to a file, which then stands at its beginning, and returns its length.
pub async fn to_file(conn: &mut Conn, key: &[u8], file: &mut File) -> Result<Option<u64>> {
    let Some(len) = ask(conn, key).await? else {
        return Ok(None);
    };
    conn.copy_bulk(file).await?;
    file.rewind()
        .context(ErrorKind::Disk, || "read a large value again".to_owned())?;
    Ok(Some(len))
}

/// Reads a key's value into `sink`; false when there is none.
pub async fn read<S: ValueSink>(conn: &mut Conn, key: &[u8], sink: &mut S) -> Result<bool> {
    let opened = tempfile::tempfile();
    let mut file = opened.context(ErrorKind::Disk, || {
        "keep a large value in a temporary file".to_owned()
    })?;
    let Some(len) = to_file(conn, key, &mut file).await? else {
        return Ok(false);
    };
    let version = u32::from(large::check(&mut file, len)?);
    file.rewind()
        .context(ErrorKind::Disk, || "read a large value again".to_owned())?;
    let dialect = Dialect::of_version(version);
    let options = Options::default();
    let mut dump = Snapshot::resume(file, 0, DbIndex::ZERO, dialect, version, options);
    dump.dumped()?.decode(sink)?;
    Ok(true)
}
