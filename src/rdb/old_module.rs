//! Values of type 6 (Redis 4.0 release candidates): their bytes do not tell where they end, what follows does.
//!
//! The end is the first place from which well-formed records follow: up to the file's end, or [`ENOUGH`] of them.

use crate::error::Result;
use crate::rdb::cursor::{Bytes, corrupt};
use crate::rdb::encoding::Len;
use crate::rdb::frame::Walk;
use crate::rdb::opcode::{self as op, Dialect};

/// So many records in a row are no accident.
const ENOUGH: usize = 12;
/// The longest value that is looked for, and how far the records after it are read.
const LONGEST: usize = 1 << 20;
const WINDOW: usize = 16 << 20;

/// The number of bytes up to the end of the value that begins `from` bytes after the start of `bytes`.
pub fn end<B: Bytes>(
    bytes: &mut B,
    from: usize,
    at_end: fn(&mut B, usize) -> bool,
) -> Result<usize> {
    let mut walk = Walk::new(bytes, from, WINDOW);
    walk.length("a module's id")?;
    let first = walk.at;
    // Zeros look like empty keys and values, so those are believed only when nothing else is found.
    for empty in [false, true] {
        for candidate in first..first + LONGEST {
            if bytes.ensure(candidate + 1, "a module's value").is_err() {
                break;
            }
            if follows(bytes, candidate, empty, at_end) {
                return Ok(candidate);
            }
        }
    }
    Err(corrupt(
        bytes.base() + from as u64,
        "a module's value",
        "its format (Redis 4.0 rc) does not tell where it ends, and no record was found after it: only that module can read it",
    ))
}

/// Whether well-formed records begin at `at`.
fn follows<B: Bytes>(
    bytes: &mut B,
    at: usize,
    empty: bool,
    at_end: fn(&mut B, usize) -> bool,
) -> bool {
    let mut at = at;
    for _ in 0..ENOUGH {
        match record(bytes, at, empty) {
            Some(Next::At(next)) => at = next,
            Some(Next::Module) => return true,
            Some(Next::End(next)) => return at_end(bytes, next),
            None => return false,
        }
    }
    true
}

enum Next {
    At(usize),
    /// A second value of this kind: its key and id are well formed.
    Module,
    /// The end mark and checksum lie before this place.
    End(usize),
}

/// Steps over one record of version 8; `None` when there is none.
fn record<B: Bytes>(bytes: &mut B, at: usize, empty: bool) -> Option<Next> {
    const WHAT: &str = "a record";
    bytes.ensure(at + 1, WHAT).ok()?;
    let opcode = *bytes.peek().get(at)?;
    let mut walk = Walk::new(bytes, at + 1, WINDOW);
    match opcode {
        op::EXPIRETIME_MS => walk.at += 8,
        op::EXPIRETIME => walk.at += 4,
        op::SELECTDB => {
            if walk.length(WHAT).ok()? > 0xffff {
                return None;
            }
        }
        op::RESIZEDB => {
            walk.length(WHAT).ok()?;
            walk.length(WHAT).ok()?;
        }
        op::AUX => {
            walk.string().ok()?.ok()?;
            walk.string().ok()?.ok()?;
        }
        op::EOF => {
            walk.at += 8;
            walk.there(WHAT).ok()?;
            return Some(Next::End(walk.at));
        }
        op::MODULE_PRE_GA => {
            walk.string().ok()?.ok()?;
            walk.there(WHAT).ok()?;
            let id = walk.at;
            walk.length(WHAT).ok()?;
            // An id fills all 64 bits.
            return (walk.at == id + 9).then_some(Next::Module);
        }
        op::STRING..=op::ZSET_2 | op::HASH_ZIPMAP..=op::LIST_QUICKLIST => {
            let key = walk.length_or_encoding().ok()?;
            walk.at = at + 1;
            walk.string().ok()?.ok()?;
            let value = walk.at;
            let items = walk.length_or_encoding().ok()?;
            walk.at = value;
            walk.value(opcode, Dialect::Redis).ok()?.ok()?;
            // No server writes an empty collection; an empty string may be one.
            let none = Len::Plain(0);
            if (items == none && opcode != op::STRING) || (key == none && !empty) {
                return None;
            }
        }
        _ => return None,
    }
    walk.there(WHAT).ok()?;
    Some(Next::At(walk.at))
}
