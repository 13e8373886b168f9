//! Commands that recreate the data of a snapshot, as RESP for `redis-cli --pipe`.

use super::shared::{library, to_stdout, warn_of};
use crate::error::{Context, ErrorKind, Result};
use crate::rdb::commands::Rebuild;
use crate::rdb::file::{Item, LargeEntry, Options, Snapshot, newer};
use crate::rdb::large::Restore;
use crate::rdb::modules::commands;
use crate::rdb::opcode::{Dialect, MODULE_2};
use crate::rdb::payload::Target;
use crate::rdb::tombstones::Tombstones;
use crate::rdb::value;
use crate::resp;
use crate::types::ExpireAt;
use std::io::{Read, Seek, Write};

/// Plain commands of Redis 7 and Valkey; HPEXPIREAT only where a field has an expiry.
const DIALECT: Target = Target {
    valkey: false,
    version: (7, 4, 0),
};

/// Writes commands for every key; an array, a rate limiter, and a value of a module that its commands do not make exactly
/// come as RESTORE.
///
/// `selected` is the database that the commands before have selected.
pub fn write_resp(
    input: impl Read,
    out: &mut impl Write,
    options: Options,
    selected: &mut u32,
) -> Result<()> {
    let mut snapshot = Snapshot::open(input, options)?;
    warn_of(snapshot.head().newer());
    let (mut dialect, mut version) = (snapshot.dialect(), snapshot.version());
    let mut buf = Vec::new();
    loop {
        let db = snapshot.db().0;
        buf.clear();
        match snapshot.next()? {
            Item::End => return Ok(()),
            Item::Joined(next, number) => {
                (dialect, version) = (next, number);
                warn_of(newer(dialect, version));
            }
            Item::Function(code) => {
                resp::command(&mut buf, &[b"FUNCTION", b"LOAD", b"REPLACE", code]);
            }
            Item::FunctionPreGa { name, engine, code } => {
                let library = library(name, engine, code);
                resp::command(&mut buf, &[b"FUNCTION", b"LOAD", b"REPLACE", &library]);
            }
            Item::Entry(e) => {
                let h = &e.header;
                select(&mut buf, selected, db);
                match value::kind(h.type_id, dialect)?.has_commands() {
                    false if h.type_id == MODULE_2 && commands::exact(e.value)? => {
                        let mut bytes = Vec::new();
                        commands::write(h.key, e.value, h.expire, &mut bytes, |part, _| {
                            buf.append(part);
                            Ok(())
                        })?;
                    }
                    false => {
                        let (body, len) = (e.value, e.value.len() as u64);
                        let footer = footer(dialect, version);
                        let mut restore =
                            Restore::new(h.key, h.expire, h.type_id, body, len, footer);
                        while restore.piece(&mut buf)? {}
                    }
                    true => {
                        let mut bytes = Vec::new();
                        let mut rebuild =
                            Rebuild::new(h.key, &DIALECT, &mut bytes, |part: &mut Vec<u8>, _| {
                                buf.append(part);
                                Ok(())
                            })
                            .with_tombstones(Tombstones::of(h.type_id, dialect, version, e.value)?);
                        value::decode(
                            h.type_id,
                            dialect,
                            version,
                            e.value,
                            h.value_at,
                            &mut rebuild,
                        )?;
                        rebuild.finish(h.expire)?;
                    }
                }
            }
            Item::Large(large) => {
                select(&mut buf, selected, db);
                let h = large.header();
                let (key, expire) = (h.key.to_vec(), h.expire);
                if !value::kind(h.type_id, dialect)?.has_commands() {
                    out.write_all(&buf).context(ErrorKind::Disk, to_stdout)?;
                    restore(
                        out,
                        h.type_id,
                        footer(dialect, version),
                        &key,
                        expire,
                        large,
                    )?;
                    continue;
                }
                let mut bytes = Vec::new();
                out.write_all(&buf).context(ErrorKind::Disk, to_stdout)?;
                buf.clear();
                let mut rebuild =
                    Rebuild::new(&key, &DIALECT, &mut bytes, |part: &mut Vec<u8>, _| {
                        let written = out.write_all(part).context(ErrorKind::Disk, to_stdout);
                        part.clear();
                        written
                    });
                large.decode(&mut rebuild)?;
                rebuild.finish(expire)?;
            }
            _ => {}
        }
        out.write_all(&buf).context(ErrorKind::Disk, to_stdout)?;
    }
}

/// The version of a payload: that of the file, and none that nobody knows.
fn footer(dialect: Dialect, version: u32) -> u16 {
    u16::try_from(version.min(dialect.newest())).unwrap_or(u16::MAX)
}

/// Writes RESTORE of a value too large to be held, which stays in a file until its length is known.
fn restore<R: Read>(
    out: &mut impl Write,
    type_id: u8,
    footer: u16,
    key: &[u8],
    expire: Option<ExpireAt>,
    large: LargeEntry<'_, R>,
) -> Result<()> {
    let to_file = || "keep a large value in a temporary file".to_owned();
    let mut file = tempfile::tempfile().context(ErrorKind::Disk, to_file)?;
    let len = large.copy(&mut file).map_err(|e| e.context(to_file()))?;
    file.rewind().context(ErrorKind::Disk, to_file)?;
    let mut restore = Restore::new(key, expire, type_id, file, len, footer);
    let mut buf = Vec::new();
    while restore.piece(&mut buf)? {
        out.write_all(&buf).context(ErrorKind::Disk, to_stdout)?;
        buf.clear();
    }
    Ok(())
}

fn select(out: &mut Vec<u8>, selected: &mut u32, db: u32) {
    if *selected != db {
        *selected = db;
        resp::command(out, &[b"SELECT", db.to_string().as_bytes()]);
    }
}
