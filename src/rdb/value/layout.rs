//! What a type number holds, and how its bytes are laid out.

use crate::error::{Error, ErrorKind, Result};
use crate::rdb::opcode::{self as op, Dialect};

/// What a key holds, whatever its encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ValueKind {
    String,
    List,
    Set,
    Zset,
    Hash,
    Stream,
    Array,
    Gcra,
    /// Valkey 9.2: fields below paths.
    PathHash,
    Module,
}

impl ValueKind {
    /// The name that TYPE answers.
    pub fn name(self) -> &'static str {
        match self {
            ValueKind::String => "string",
            ValueKind::List => "list",
            ValueKind::Set => "set",
            ValueKind::Zset => "zset",
            ValueKind::Hash => "hash",
            ValueKind::Stream => "stream",
            ValueKind::Array => "array",
            ValueKind::Gcra => "gcra",
            ValueKind::PathHash => "path-hash",
            ValueKind::Module => "module",
        }
    }

    /// Whether a key of it is gone with its last element.
    pub fn is_collection(self) -> bool {
        matches!(
            self,
            ValueKind::List | ValueKind::Set | ValueKind::Zset | ValueKind::Hash
        )
    }

    /// Whether commands put such a value together; without them it only goes by RESTORE.
    pub fn has_commands(self) -> bool {
        !matches!(
            self,
            ValueKind::Array | ValueKind::Gcra | ValueKind::PathHash | ValueKind::Module
        )
    }
}

/// The kind behind a type number; an unknown number is an error that names it.
pub fn kind(type_id: u8, dialect: Dialect) -> Result<ValueKind> {
    Ok(match type_id {
        op::STRING => ValueKind::String,
        op::LIST | op::LIST_ZIPLIST | op::LIST_QUICKLIST | op::LIST_QUICKLIST_2 => ValueKind::List,
        op::SET | op::SET_INTSET | op::SET_LISTPACK => ValueKind::Set,
        op::ZSET | op::ZSET_2 | op::ZSET_ZIPLIST | op::ZSET_LISTPACK => ValueKind::Zset,
        op::HASH | op::HASH_ZIPMAP | op::HASH_ZIPLIST | op::HASH_LISTPACK | op::HASH_22 => {
            ValueKind::Hash
        }
        op::STREAM | op::STREAM_2 | op::STREAM_3 => ValueKind::Stream,
        op::MODULE_PRE_GA | op::MODULE_2 => ValueKind::Module,
        op::HASH_LISTPACK_EX_PRE_GA | op::HASH_METADATA | op::HASH_LISTPACK_EX
            if dialect == Dialect::Redis =>
        {
            ValueKind::Hash
        }
        op::STREAM_4 | op::STREAM_5 if dialect == Dialect::Redis => ValueKind::Stream,
        op::ARRAY if dialect == Dialect::Redis => ValueKind::Array,
        op::GCRA_8_8 | op::GCRA if dialect == Dialect::Redis => ValueKind::Gcra,
        op::PATH_HASH if dialect == Dialect::Valkey => ValueKind::PathHash,
        other => {
            return Err(unknown(other, dialect));
        }
    })
}

/// Whether the type is a hash whose field names stand in a template; below version 15 the numbers mean other things.
pub fn is_templated(type_id: u8, dialect: Dialect, version: u32) -> bool {
    dialect == Dialect::Redis
        && version >= 15
        && (op::HASH_TEMPLATE_LISTPACK..=op::HASH_TEMPLATE_ARRAY_REF).contains(&type_id)
}

/// Refuses a type number that means nothing, or something else, in bytes of this version.
pub fn known(type_id: u8, dialect: Dialect, version: u32) -> Result<()> {
    let since = match (dialect, type_id) {
        (Dialect::Redis, op::GCRA_8_8) => 14,
        (Dialect::Redis, op::HASH_TEMPLATE_LISTPACK_REF..=op::GCRA) => 15,
        (Dialect::Valkey, op::PATH_HASH) => 81,
        _ => 0,
    };
    if version < since {
        return Err(unknown(type_id, dialect));
    }
    if is_templated(type_id, dialect, version) {
        return Ok(());
    }
    kind(type_id, dialect).map(|_| ())
}

fn unknown(type_id: u8, dialect: Dialect) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("the value type {type_id} ({dialect:?}) is not known"),
    )
}

/// How a type's bytes are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One string that is the value.
    String,
    /// One string that is a packed encoding (after an 8-byte minimum expiry for type 25).
    Packed,
    /// A count, then items.
    Items,
    Stream,
    Array,
    /// A number of paths, each with fields.
    Paths,
    Number,
    Module,
}

pub fn layout(type_id: u8, dialect: Dialect) -> Result<Layout> {
    Ok(match type_id {
        op::STRING => Layout::String,
        op::LIST
        | op::SET
        | op::ZSET
        | op::HASH
        | op::ZSET_2
        | op::LIST_QUICKLIST
        | op::LIST_QUICKLIST_2
        | op::HASH_22 => Layout::Items,
        op::HASH_METADATA => Layout::Items,
        _ => match kind(type_id, dialect)? {
            ValueKind::Stream => Layout::Stream,
            ValueKind::Array => Layout::Array,
            ValueKind::Gcra => Layout::Number,
            ValueKind::PathHash => Layout::Paths,
            ValueKind::Module => Layout::Module,
            _ => Layout::Packed,
        },
    })
}
