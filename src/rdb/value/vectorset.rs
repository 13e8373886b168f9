//! Vector sets (Redis 8): a module's values that servers write in another order after each load.
//!
//! Format: modules/vector-sets/vset.c VectorSetRdbSave, hnsw.c hnsw_serialize_node. The graph that links the vectors is
//! each server's own and is left out: what a set holds is names, attributes and vectors.

use super::module::{module_name, module_version};
use super::sink::ValueSink;
use crate::error::Result;
use crate::rdb::cursor::{Bytes, Reader};
use crate::rdb::encoding::{length, string};
use crate::rdb::frame::{Step, Walk};
use std::borrow::Cow;

const WHAT: &str = "a vector set";
/// Opcodes of a module's value.
const NUMBER: u64 = 2;
const TEXT: u64 = 5;
/// The quantization in the lowest byte of the configuration.
const Q8: u64 = 1;
/// Flags.
const PROJECTED: u64 = 1;
const ATTRIBUTES: u64 = 2;

/// Whether the module's value that begins at the walk's place, with the module's id, is a vector set as it is known here.
pub fn is_one<B: Bytes>(walk: &mut Walk<'_, B>) -> Result<bool> {
    let id = walk.length(WHAT)?;
    if module_name(id) != "vectorset" || module_version(id) != 0 {
        return Ok(false);
    }
    let mut flags = 0;
    for _ in 0..4 {
        if walk.length(WHAT)? != NUMBER {
            return Ok(false);
        }
        flags = walk.length(WHAT)?;
    }
    Ok(flags & !(PROJECTED | ATTRIBUTES) == 0)
}

/// What stands before the vectors.
pub struct Head {
    pub vectors: u64,
    flags: u64,
    /// Vectors were made smaller by a range that each has (Q8).
    ranged: bool,
}

impl Head {
    fn attributes(&self) -> bool {
        self.flags & ATTRIBUTES != 0
    }
}

fn number(r: &mut Reader<'_>) -> Result<u64> {
    expect(r, NUMBER)?;
    length(r, WHAT)
}

fn text<'a>(r: &mut Reader<'a>) -> Result<Cow<'a, [u8]>> {
    expect(r, TEXT)?;
    string(r, WHAT)
}

fn expect(r: &mut Reader<'_>, opcode: u64) -> Result<()> {
    match length(r, WHAT)? {
        found if found == opcode => Ok(()),
        found => Err(r.fail(WHAT, format_args!("the opcode {found} instead of {opcode}"))),
    }
}

/// All of a value's bytes behind the module's id.
pub fn decode(r: &mut Reader<'_>, sink: &mut impl ValueSink) -> Result<()> {
    let head = head(r, sink)?;
    for _ in 0..head.vectors {
        node(&head, r, sink)?;
    }
    expect(r, 0)
}

pub fn head(r: &mut Reader<'_>, sink: &mut impl ValueSink) -> Result<Head> {
    let (dimensions, vectors, config, flags) = (number(r)?, number(r)?, number(r)?, number(r)?);
    let mut projection = Cow::Borrowed(&[] as &[u8]);
    if flags & PROJECTED != 0 {
        number(r)?;
        projection = text(r)?;
    }
    sink.vector_set(dimensions, config, &projection)?;
    let ranged = config & 0xff == Q8;
    Ok(Head {
        vectors,
        flags,
        ranged,
    })
}

pub fn node(head: &Head, r: &mut Reader<'_>, sink: &mut impl ValueSink) -> Result<()> {
    let name = text(r)?;
    let attributes = match head.attributes() {
        true => text(r)?,
        false => Cow::Borrowed(&[] as &[u8]),
    };
    let vector = text(r)?;
    // Its place in the graph; behind that, its length and its range, which is chance where it was not made smaller.
    let mut scale = 0;
    for _ in 0..number(r)? {
        scale = number(r)?;
    }
    if !head.ranged {
        scale &= u64::from(u32::MAX);
    }
    sink.vector(&name, &attributes, &vector, scale)
}

impl<B: Bytes> Walk<'_, B> {
    /// What [`head`] reads.
    pub fn vector_set_head(&mut self) -> Step {
        let mut flags = 0;
        for _ in 0..4 {
            self.length(WHAT)?;
            flags = self.length(WHAT)?;
        }
        if flags & PROJECTED != 0 {
            self.length(WHAT)?;
            self.length(WHAT)?;
            self.length(WHAT)?;
            return self.string();
        }
        Ok(Ok(()))
    }

    /// What [`node`] reads.
    pub fn vector(&mut self, head: &Head) -> Step {
        for _ in 0..2 + u64::from(head.attributes()) {
            self.length(WHAT)?;
            if let Err(large) = self.string()? {
                return Ok(Err(large));
            }
        }
        self.length(WHAT)?;
        for _ in 0..self.length(WHAT)? {
            self.length(WHAT)?;
            self.length(WHAT)?;
        }
        Ok(Ok(()))
    }
}
