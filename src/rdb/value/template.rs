//! Hashes that share their field names (Redis 8.10): the names in a template, only the values in the key.
//!
//! They are read as plain hashes of type 4, so that nothing behind the reader knows of them and any target takes them.
//! Sources: the type tests of Redis 8.10 and librdb's decoder (docs/rdb.md); not tried on a server.

use crate::error::Result;
use crate::rdb::cursor::{Bytes, Reader, corrupt};
use crate::rdb::encoding::listpack::Listpack;
use crate::rdb::encoding::{length, put_length, put_string, string};
use crate::rdb::frame::{Step, Walk};
use crate::rdb::opcode as op;
use crate::rdb::value::sink::ValueSink;
use crate::types::ExpireAt;
use std::borrow::Cow;

const WHAT: &str = "a hash with a template";
/// Redis holds no more templates than this.
const MOST_TEMPLATES: usize = 1 << 21;
/// What the names of all templates of a file, or of one payload, may take of memory.
const MOST_BYTES: usize = 64 << 20;
/// What a name takes beside its bytes.
const BESIDE: usize = 48;

/// Whether the value's names are in the file's table, and not in the value.
pub fn is_reference(type_id: u8) -> bool {
    type_id == op::HASH_TEMPLATE_LISTPACK_REF || type_id == op::HASH_TEMPLATE_ARRAY_REF
}

/// Whether the values are one listpack, and not a string each.
pub fn is_packed(type_id: u8) -> bool {
    type_id == op::HASH_TEMPLATE_LISTPACK || type_id == op::HASH_TEMPLATE_LISTPACK_REF
}

/// Field names, in the order of a hash's values.
#[derive(Debug, Default, Clone)]
pub struct Names {
    names: Vec<Vec<u8>>,
    bytes: usize,
}

impl Names {
    /// Takes the next name; `held` is what is held beside these.
    fn push(&mut self, name: &[u8], held: usize, at: u64) -> Result<()> {
        if let Some(last) = self.names.last()
            && (last.len(), last.as_slice()) >= (name.len(), name)
        {
            return Err(corrupt(
                at,
                WHAT,
                "its names are not in order of length and bytes",
            ));
        }
        self.bytes = self.bytes.saturating_add(name.len()).saturating_add(BESIDE);
        if self.bytes.saturating_add(held) > MOST_BYTES {
            return Err(corrupt(
                at,
                WHAT,
                format_args!("the names of templates take more than {MOST_BYTES} bytes"),
            ));
        }
        self.names.push(name.to_vec());
        Ok(())
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.names.iter().map(Vec::as_slice)
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// FIELDS of a value: 0 and a listpack of names, or 1, their number, and names.
    fn read(r: &mut Reader<'_>) -> Result<Names> {
        let mut names = Names::default();
        let at = r.position();
        match length(r, WHAT)? {
            0 => {
                let bytes = string(r, WHAT)?;
                let mut listpack = Listpack::new(&bytes, at)?;
                let mut digits = [0; 20];
                while let Some(name) = listpack.next()? {
                    names.push(name.text(&mut digits), 0, at)?;
                }
            }
            1 => {
                for _ in 0..length(r, WHAT)? {
                    names.push(&string(r, WHAT)?, 0, at)?;
                }
            }
            other => {
                return Err(corrupt(
                    at,
                    WHAT,
                    format_args!("{other} is no form of field names"),
                ));
            }
        }
        if names.names.is_empty() {
            return Err(corrupt(at, WHAT, "it names no field"));
        }
        Ok(names)
    }
}

/// The templates of a snapshot, by their ids.
#[derive(Debug, Default, Clone)]
pub struct Templates {
    all: Vec<Names>,
    bytes: usize,
    /// What is being read.
    next: Names,
}

impl Templates {
    /// A template begins; ids count from 0 without gaps.
    pub fn begin(&mut self, id: u64, names: u64, at: u64) -> Result<()> {
        self.next = Names::default();
        let expected = self.all.len();
        if id != expected as u64 || expected >= MOST_TEMPLATES {
            return Err(corrupt(
                at,
                "a hash template",
                format_args!(
                    "it has the id {id} where {expected} of at most {MOST_TEMPLATES} is the next"
                ),
            ));
        }
        if names == 0 {
            return Err(corrupt(at, "a hash template", "it names no field"));
        }
        Ok(())
    }

    pub fn name(&mut self, name: &[u8], at: u64) -> Result<()> {
        self.next.push(name, self.bytes, at)
    }

    /// The template is whole.
    pub fn end(&mut self) {
        let names = std::mem::take(&mut self.next);
        self.bytes = (self.bytes.saturating_add(names.bytes)).saturating_add(BESIDE);
        self.all.push(names);
    }

    fn get(&self, id: u64, at: u64) -> Result<&Names> {
        (usize::try_from(id).ok().and_then(|id| self.all.get(id))).ok_or_else(|| {
            corrupt(
                at,
                WHAT,
                format_args!(
                    "it references the template {id} of {} in the file",
                    self.all.len()
                ),
            )
        })
    }
}

/// Walks over a value; its names count as well, wherever they stand.
pub fn walk<B: Bytes>(walk: &mut Walk<'_, B>, type_id: u8, templates: &Templates) -> Step {
    let start = walk.at;
    let (mut strings, mut beside) = match type_id {
        op::HASH_TEMPLATE_LISTPACK_REF => (0, 0),
        op::HASH_TEMPLATE_ARRAY_REF => {
            let id = walk.length(WHAT)?;
            let names = templates.get(id, walk.position())?;
            (names.len(), names.bytes)
        }
        _ => {
            let from = walk.at;
            if let Err(large) = walk_names(walk)? {
                return Ok(Err(large));
            }
            walk.there(WHAT)?;
            let names = walk.since(from, Names::read)?;
            (names.len(), names.bytes)
        }
    };
    if is_packed(type_id) {
        strings = 1;
    }
    for _ in 0..strings {
        if let Err(large) = walk.string()? {
            return Ok(Err(large));
        }
    }
    if type_id == op::HASH_TEMPLATE_LISTPACK_REF {
        walk.there(WHAT)?;
        beside = walk.since(start, |r| {
            let at = r.position();
            let id = id(&mut Listpack::new(&string(r, WHAT)?, at)?, at)?;
            Ok(templates.get(id, at)?.bytes)
        })?;
    }
    Ok(walk.room(beside))
}

/// The template's id, which a listpack of values begins with.
fn id(listpack: &mut Listpack<'_>, at: u64) -> Result<u64> {
    (listpack.need()?.int())
        .and_then(|id| u64::try_from(id).ok())
        .ok_or_else(|| corrupt(at, WHAT, "its first element is no template's id"))
}

/// Walks over the names of a value that holds them.
pub fn walk_names<B: Bytes>(walk: &mut Walk<'_, B>) -> Step {
    let names = match walk.length(WHAT)? {
        0 => 1,
        _ => walk.length(WHAT)?,
    };
    for _ in 0..names {
        if let Err(large) = walk.string()? {
            return Ok(Err(large));
        }
    }
    Ok(Ok(()))
}

/// The names of a value, behind which its values stand in `r`.
pub fn names<'t>(
    type_id: u8,
    r: &mut Reader<'_>,
    templates: &'t Templates,
) -> Result<Option<Cow<'t, Names>>> {
    Ok(match type_id {
        // Its id is inside the listpack.
        op::HASH_TEMPLATE_LISTPACK_REF => None,
        op::HASH_TEMPLATE_ARRAY_REF => {
            let at = r.position();
            Some(Cow::Borrowed(templates.get(length(r, WHAT)?, at)?))
        }
        _ => Some(Cow::Owned(Names::read(r)?)),
    })
}

/// Decodes a whole value; leftovers are an error.
pub fn decode(
    type_id: u8,
    r: &mut Reader<'_>,
    templates: &Templates,
    sink: &mut impl ValueSink,
) -> Result<()> {
    let names = names(type_id, r, templates)?;
    if is_packed(type_id) {
        let at = r.position();
        packed(&string(r, WHAT)?, at, names, templates, sink)?;
    } else if let Some(names) = names {
        for name in names.iter() {
            sink.hash_field(name, &string(r, WHAT)?, None)?;
        }
    }
    r.finish(WHAT)
}

/// A listpack of the template's id, which only references count by, and a value for each name.
fn packed(
    bytes: &[u8],
    at: u64,
    names: Option<Cow<'_, Names>>,
    templates: &Templates,
    sink: &mut impl ValueSink,
) -> Result<()> {
    let mut listpack = Listpack::new(bytes, at)?;
    let id = id(&mut listpack, at)?;
    let names = match names {
        Some(names) => names,
        None => Cow::Borrowed(templates.get(id, at)?),
    };
    let mut digits = [0; 20];
    for name in names.iter() {
        let Some(value) = listpack.next()? else {
            return Err(corrupt(at, WHAT, "it has fewer values than names"));
        };
        sink.hash_field(name, value.text(&mut digits), None)?;
    }
    match listpack.next()? {
        None => Ok(()),
        Some(_) => Err(corrupt(at, WHAT, "it has more values than names")),
    }
}

/// Appends the same hash as the body of a type 4.
pub fn plain(
    type_id: u8,
    r: &mut Reader<'_>,
    templates: &Templates,
    out: &mut Vec<u8>,
) -> Result<()> {
    struct Pairs(Vec<u8>, u64);
    impl ValueSink for Pairs {
        fn hash_field(&mut self, name: &[u8], value: &[u8], _: Option<ExpireAt>) -> Result<()> {
            put_string(&mut self.0, name);
            put_string(&mut self.0, value);
            self.1 = self.1.saturating_add(1);
            Ok(())
        }
    }
    let mut pairs = Pairs(Vec::new(), 0);
    decode(type_id, r, templates, &mut pairs)?;
    put_length(out, pairs.1);
    out.append(&mut pairs.0);
    Ok(())
}
