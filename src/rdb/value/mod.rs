//! THE dispatch: every type number to its decoder, every element to a sink (rdb.c rdbLoadObject).
//!
//! A value is a head and items ([`head`], [`item`]), a packed string, a stream, or a module's opcodes.
//! A new consumer is a new [`ValueSink`], never a second parser.

mod aux_texts;
pub mod entries;
pub mod layout;
mod module;
mod module_pieces;
mod sink;
pub mod stream;
pub mod template;
pub mod vectorset;

pub use aux_texts::{AuxTexts, aux_texts, is_of_search};
pub use layout::{Layout, ValueKind, is_templated, kind, known, layout};
pub use module::{ModuleItem, ModuleValue, module_holds, module_name, module_version};
pub use module_pieces::{ModulePieces, ModuleSink};
pub use sink::ValueSink;

use crate::error::Result;
use crate::rdb::cursor::{Reader, Slice};
use crate::rdb::encoding::listpack::{Listpack, Packed};
use crate::rdb::encoding::ziplist::Ziplist;
use crate::rdb::encoding::{self, length, string};
use crate::rdb::frame::Walk;
use crate::rdb::opcode::{self as op, Dialect};
use crate::types::ExpireAt;

/// What stands before a value's items.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    pub items: u64,
    /// Type 24 counts its fields' expiries from here.
    pub min_expire: i64,
}

pub fn head(type_id: u8, r: &mut Reader<'_>) -> Result<Head> {
    let min_expire = if type_id == op::HASH_METADATA {
        r.i64("the hash's minimum expiry")?
    } else {
        0
    };
    Ok(Head {
        items: length(r, "the number of items")?,
        min_expire,
    })
}

/// One item of a value with layout [`Layout::Items`].
pub fn item(
    type_id: u8,
    dialect: Dialect,
    head: &Head,
    r: &mut Reader<'_>,
    sink: &mut impl ValueSink,
) -> Result<()> {
    match type_id {
        op::LIST => sink.list_item(&string(r, "a list item")?),
        op::SET => sink.set_member(&string(r, "a set member")?),
        op::ZSET => {
            let member = string(r, "a sorted set member")?;
            let score = text_score(r)?;
            sink.zset_member(&member, a_number(score, r)?)
        }
        op::ZSET_2 => {
            let member = string(r, "a sorted set member")?;
            let score = f64::from_le_bytes(r.array("a score")?);
            sink.zset_member(&member, a_number(score, r)?)
        }
        op::HASH => {
            let field = string(r, "a hash field")?;
            sink.hash_field(&field, &string(r, "a hash value")?, None)
        }
        op::LIST_QUICKLIST => {
            let at = r.position();
            let node = string(r, "a list node")?;
            let mut zl = Ziplist::new(&node, at)?;
            let mut digits = [0; 20];
            while let Some(e) = zl.next()? {
                sink.list_item(e.text(&mut digits))?;
            }
            Ok(())
        }
        op::LIST_QUICKLIST_2 => {
            let container = length(r, "a list node's container")?;
            let at = r.position();
            let node = string(r, "a list node")?;
            match container {
                1 => sink.list_item(&node),
                2 => {
                    let mut lp = Listpack::new(&node, at)?;
                    let mut digits = [0; 20];
                    while let Some(e) = lp.next()? {
                        sink.list_item(e.text(&mut digits))?;
                    }
                    Ok(())
                }
                other => Err(r.fail(
                    "a list node",
                    format_args!("the container {other} is unknown"),
                )),
            }
        }
        op::HASH_22 if dialect == Dialect::Valkey => {
            let field = string(r, "a hash field")?;
            let value = string(r, "a hash value")?;
            let expire = r.i64("a field's expiry")?;
            sink.hash_field(&field, &value, (expire >= 0).then_some(ExpireAt(expire)))
        }
        op::HASH_22 | op::HASH_METADATA => {
            let ttl = length(r, "a field's expiry")?;
            let field = string(r, "a hash field")?;
            let value = string(r, "a hash value")?;
            let base = if type_id == op::HASH_METADATA {
                head.min_expire.wrapping_sub(1)
            } else {
                0
            };
            sink.hash_field(
                &field,
                &value,
                (ttl != 0).then(|| ExpireAt(base.wrapping_add(ttl as i64))),
            )
        }
        other => Err(r.fail("a value", format_args!("the type {other} has no items"))),
    }
}

/// No server writes or loads a score that is not a number.
fn a_number(score: f64, r: &Reader<'_>) -> Result<f64> {
    if score.is_nan() {
        return Err(r.fail("a score", "it is not a number"));
    }
    Ok(score)
}

/// Old sorted sets hold scores as text (rdb.c rdbLoadDoubleValue).
fn text_score(r: &mut Reader<'_>) -> Result<f64> {
    match r.u8("a score")? {
        253 => Ok(f64::NAN),
        254 => Ok(f64::INFINITY),
        255 => Ok(f64::NEG_INFINITY),
        n => {
            let text = r.take(usize::from(n), "a score")?;
            score(text).ok_or_else(|| r.fail("a score", "it is not a number"))
        }
    }
}

fn score(text: &[u8]) -> Option<f64> {
    let score: f64 = std::str::from_utf8(text).ok()?.trim().parse().ok()?;
    (!score.is_nan()).then_some(score)
}

/// Decodes a whole value; leftovers are an error.
///
/// `base` is the position of `body` in its file, for error messages.
pub fn decode(
    type_id: u8,
    dialect: Dialect,
    version: u32,
    body: &[u8],
    base: u64,
    sink: &mut impl ValueSink,
) -> Result<()> {
    let _ = version;
    let mut r = Reader::new(body, base);
    match layout(type_id, dialect)? {
        Layout::String => sink.string(&string(&mut r, "a string")?)?,
        Layout::Items => {
            let head = head(type_id, &mut r)?;
            for _ in 0..head.items {
                item(type_id, dialect, &head, &mut r, sink)?;
            }
        }
        Layout::Packed => {
            if type_id == op::HASH_LISTPACK_EX {
                r.i64("the hash's minimum expiry")?;
            }
            let at = r.position();
            packed(type_id, &string(&mut r, "a packed value")?, at, sink)?;
        }
        Layout::Stream => entries::decode(type_id, &mut r, sink)?,
        Layout::Array => array(&mut r, sink)?,
        Layout::Paths => {
            for _ in 0..length(&mut r, "a path hash")? {
                path(&mut r, sink)?;
            }
        }
        Layout::Number => {
            let n = length(&mut r, "a number")?;
            sink.number(n)?;
        }
        Layout::Module => {
            let id = length(&mut r, "a module's id")?;
            let mut ahead = Slice(body, base);
            let known = vectorset::is_one(&mut Walk::new(&mut ahead, 0, usize::MAX));
            if !known.unwrap_or(false) {
                return sink.module(&module_name(id), module_version(id), body);
            }
            vectorset::decode(&mut r, sink)?;
        }
    }
    r.finish("a value")
}

/// A value that is one packed string.
pub fn packed(type_id: u8, bytes: &[u8], at: u64, sink: &mut impl ValueSink) -> Result<()> {
    let (mut d, mut e) = ([0u8; 20], [0u8; 20]);
    let number = |p: Packed<'_>| match p {
        Packed::Int(n) => Ok(n as f64),
        Packed::Bytes(b) => {
            score(b).ok_or_else(|| Reader::new(b, at).fail("a score", "it is not a number"))
        }
    };
    match type_id {
        op::SET_INTSET => encoding::intset(bytes, at, |n| {
            sink.set_member(crate::resp::decimal(n, &mut d))
        }),
        op::HASH_ZIPMAP => encoding::zipmap(bytes, at, |f, v| sink.hash_field(f, v, None)),
        op::LIST_ZIPLIST | op::ZSET_ZIPLIST | op::HASH_ZIPLIST => {
            let mut zl = Ziplist::new(bytes, at)?;
            while let Some(first) = zl.next()? {
                match type_id {
                    op::LIST_ZIPLIST => sink.list_item(first.text(&mut d))?,
                    op::ZSET_ZIPLIST => {
                        sink.zset_member(first.text(&mut d), number(zl.need()?)?)?
                    }
                    _ => sink.hash_field(first.text(&mut d), zl.need()?.text(&mut e), None)?,
                }
            }
            Ok(())
        }
        op::HASH_LISTPACK
        | op::ZSET_LISTPACK
        | op::SET_LISTPACK
        | op::HASH_LISTPACK_EX
        | op::HASH_LISTPACK_EX_PRE_GA => {
            let mut lp = Listpack::new(bytes, at)?;
            while let Some(first) = lp.next()? {
                match type_id {
                    op::SET_LISTPACK => sink.set_member(first.text(&mut d))?,
                    op::ZSET_LISTPACK => {
                        sink.zset_member(first.text(&mut d), number(lp.need()?)?)?
                    }
                    op::HASH_LISTPACK => {
                        sink.hash_field(first.text(&mut d), lp.need()?.text(&mut e), None)?
                    }
                    _ => {
                        let value = lp.need()?;
                        let ttl = lp.need()?.int().unwrap_or(0);
                        sink.hash_field(
                            first.text(&mut d),
                            value.text(&mut e),
                            (ttl > 0).then_some(ExpireAt(ttl)),
                        )?;
                    }
                }
            }
            Ok(())
        }
        other => {
            Err(Reader::new(bytes, at)
                .fail("a value", format_args!("the type {other} is not packed")))
        }
    }
}

/// One path of a path hash, with its fields.
pub fn path(r: &mut Reader<'_>, sink: &mut impl ValueSink) -> Result<()> {
    const WHAT: &str = "a path hash";
    let path = string(r, WHAT)?;
    let fields = length(r, WHAT)?;
    if fields == 0 {
        return Err(r.fail(WHAT, "a path without fields"));
    }
    for _ in 0..fields {
        let field = string(r, WHAT)?;
        sink.path_field(&path, &field, &string(r, WHAT)?)?;
    }
    Ok(())
}

/// Redis 8.8 arrays (rdb.c rdbSaveArrayElement).
fn array(r: &mut Reader<'_>, sink: &mut impl ValueSink) -> Result<()> {
    for _ in 0..array_head(r, sink)? {
        array_element(r, sink)?;
    }
    Ok(())
}

/// What stands before an array's elements; returns how many they are.
pub fn array_head(r: &mut Reader<'_>, sink: &mut impl ValueSink) -> Result<u64> {
    const WHAT: &str = "an array";
    let count = length(r, WHAT)?;
    let cursor = if length(r, WHAT)? == 1 {
        Some(length(r, WHAT)?)
    } else {
        None
    };
    sink.array_cursor(cursor)?;
    Ok(count)
}

pub fn array_element(r: &mut Reader<'_>, sink: &mut impl ValueSink) -> Result<()> {
    const WHAT: &str = "an array";
    let index = length(r, WHAT)?;
    match length(r, WHAT)? {
        0 | 3 => sink.array_element(index, &string(r, WHAT)?),
        1 => sink.array_element(index, r.i64(WHAT)?.to_string().as_bytes()),
        2 => sink.array_element(
            index,
            f64::from_le_bytes(r.array(WHAT)?).to_string().as_bytes(),
        ),
        other => Err(r.fail(WHAT, format_args!("the element tag {other} is unknown"))),
    }
}
