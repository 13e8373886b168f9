//! The envelope of DUMP and RESTORE: value, version, CRC; and how a value gets to a target of another version.
//!
//! The version is only a gate; what decides is the type number (measured over 380 pairs of versions: docs/rdb.md).
//! Sources: cluster.c createDumpPayload, verifyDumpPayload.

use crate::error::{Error, ErrorKind, Result};
use crate::rdb::cursor::Slice;
use crate::rdb::cursor::{Reader, corrupt};
use crate::rdb::encoding::listpack::Listpack;
use crate::rdb::encoding::{Len, length, length_or_encoding, put_length, put_string, string};
use crate::rdb::frame::Walk;
use crate::rdb::opcode::{self as op, Dialect};
use crate::rdb::value::stream::{self, StreamMeta};
use crate::rdb::value::template::{self, Templates};
use crate::rdb::value::{self, ValueKind, ValueSink};
use crate::types::ExpireAt;
use std::borrow::Cow;

/// CRC-64 as Redis computes it ("123456789" gives e9c6d914c4b8d9ca).
pub fn crc(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Redis, bytes)
}

/// What a target server is, as far as payloads go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub valkey: bool,
    pub version: (u32, u32, u32),
}

impl Target {
    fn at_least(&self, major: u32, minor: u32) -> bool {
        (self.version.0, self.version.1) >= (major, minor)
    }

    /// Whether fields of its hashes can have an expiry.
    pub fn field_expiry(&self) -> bool {
        if self.valkey {
            self.at_least(9, 0)
        } else {
            self.at_least(7, 4)
        }
    }

    /// Whether RESTORE takes this type number.
    fn knows(&self, type_id: u8, dialect: Dialect) -> bool {
        match type_id {
            op::STRING..=op::HASH | op::HASH_ZIPMAP..=op::HASH_ZIPLIST => true,
            op::ZSET_2 => self.valkey || self.at_least(4, 0),
            op::LIST_QUICKLIST => self.valkey || self.at_least(3, 2),
            op::STREAM => self.valkey || self.at_least(5, 0),
            op::HASH_LISTPACK..=op::STREAM_2 => self.valkey || self.at_least(7, 0),
            op::SET_LISTPACK | op::STREAM_3 => self.valkey || self.at_least(7, 2),
            op::PATH_HASH if dialect == Dialect::Valkey => self.valkey && self.at_least(9, 2),
            op::HASH_22 => self.valkey == (dialect == Dialect::Valkey) && self.field_expiry(),
            op::HASH_LISTPACK_EX_PRE_GA..=op::HASH_LISTPACK_EX => {
                !self.valkey && self.at_least(7, 4)
            }
            op::STREAM_4 => !self.valkey && self.at_least(8, 6),
            op::STREAM_5..=op::GCRA_8_8 => !self.valkey && self.at_least(8, 8),
            op::GCRA => !self.valkey && self.at_least(8, 10),
            _ => false,
        }
    }
}

/// The versions that a summary looks at.
pub const KNOWN: [(&str, Target); 17] = [
    ("redis 2.8", redis(2, 8)),
    ("redis 3.2", redis(3, 2)),
    ("redis 4.0", redis(4, 0)),
    ("redis 5.0", redis(5, 0)),
    ("redis 6.2", redis(6, 2)),
    ("redis 7.0", redis(7, 0)),
    ("redis 7.2", redis(7, 2)),
    ("redis 7.4", redis(7, 4)),
    ("redis 8.0", redis(8, 0)),
    ("redis 8.6", redis(8, 6)),
    ("redis 8.8", redis(8, 8)),
    ("redis 8.10", redis(8, 10)),
    ("valkey 7.2", valkey(7, 2)),
    ("valkey 8.0", valkey(8, 0)),
    ("valkey 8.1", valkey(8, 1)),
    ("valkey 9.0", valkey(9, 0)),
    ("valkey 9.2", valkey(9, 2)),
];

const fn redis(major: u32, minor: u32) -> Target {
    Target {
        valkey: false,
        version: (major, minor, 0),
    }
}

const fn valkey(major: u32, minor: u32) -> Target {
    Target {
        valkey: true,
        version: (major, minor, 0),
    }
}

/// The footer version that opens the gate of `target`.
pub fn footer_version(target: &Target) -> u16 {
    if target.valkey {
        return match target.version {
            (9, 2.., _) | (10.., _, _) => 81,
            (9, ..) => 80,
            _ => 11,
        };
    }
    match target.version {
        (8, 10.., _) | (9.., _, _) => 15,
        (8, 8.., _) => 14,
        (8, 6.., _) => 13,
        (8.., _, _) | (7, 4.., _) => 12,
        (7, 2.., _) => 11,
        (7, ..) => 10,
        (5 | 6, ..) => 9,
        (4, ..) => 8,
        (3, 2.., _) => 7,
        _ => 6,
    }
}

/// Appends a payload: metadata, type, body, version, CRC.
pub fn seal(out: &mut Vec<u8>, meta: &[u8], type_id: u8, body: &[u8], rdb_version: u16) {
    let start = out.len();
    out.extend_from_slice(meta);
    out.push(type_id);
    out.extend_from_slice(body);
    out.extend_from_slice(&rdb_version.to_le_bytes());
    let crc = crc(out.get(start..).unwrap_or_default());
    out.extend_from_slice(&crc.to_le_bytes());
}

/// A payload taken apart.
#[derive(Debug, Clone)]
pub struct Payload<'a> {
    pub meta: &'a [u8],
    pub type_id: u8,
    pub dialect: Dialect,
    pub version: u16,
    /// As it is; that of a hash with a template as the body of a plain one.
    pub body: Cow<'a, [u8]>,
}

/// The first version in whose payloads the types from [`LATER_TYPES`] on are those of Redis: Dragonfly has types of its
/// own there, under version 9.
const LATER_VERSION: u16 = 13;
const LATER_TYPES: u8 = 26;

/// Whether a DUMP answer is of a kind that no server of ours writes; one that is damaged is not.
pub fn is_foreign(bytes: &[u8]) -> bool {
    let Some((_, [low, high, ..])) = bytes.split_last_chunk::<10>() else {
        return true;
    };
    let version = u16::from_le_bytes([*low, *high]);
    let type_id = match bytes.first() {
        Some(id) if *id != op::KEY_META => *id,
        // What stands before a value came with a later version.
        Some(_) => return version < LATER_VERSION,
        None => return true,
    };
    let later = type_id >= LATER_TYPES && version < LATER_VERSION;
    later || value::kind(type_id, Dialect::of_version(u32::from(version))).is_err()
}

/// Opens a DUMP answer; its CRC must be right (or zero: not computed).
pub fn open(bytes: &[u8]) -> Result<Payload<'_>> {
    const WHAT: &str = "a DUMP payload";
    let Some((rest, footer)) = bytes.split_last_chunk::<10>() else {
        return Err(corrupt(0, WHAT, "it is too short"));
    };
    let mut r = Reader::new(footer, rest.len() as u64);
    let version = r.u16(WHAT)?;
    let stored = u64::from_le_bytes(r.array(WHAT)?);
    let covered = bytes.get(..bytes.len() - 8).unwrap_or_default();
    if stored != 0 && stored != crc(covered) {
        return Err(corrupt(
            rest.len() as u64 + 2,
            WHAT,
            "its checksum is wrong",
        ));
    }
    let dialect = Dialect::of_version(u32::from(version));
    let mut meta: &[u8] = &[];
    let mut value = rest;
    if rest.first() == Some(&op::KEY_META) && dialect == Dialect::Redis {
        let mut slice = Slice(rest, 0);
        let mut walk = Walk::new(&mut slice, 1, usize::MAX);
        for _ in 0..walk.length(WHAT)? {
            walk.at = walk.at.saturating_add(4);
            let _ = walk.module_opcodes()?;
        }
        let at = walk.at;
        (meta, value) = rest
            .split_at_checked(at)
            .ok_or_else(|| corrupt(0, WHAT, "its metadata is cut off"))?;
    }
    let (type_id, body) = value
        .split_first()
        .ok_or_else(|| corrupt(0, WHAT, "it has no value"))?;
    let type_id = *type_id;
    value::known(type_id, dialect, u32::from(version))?;
    let mut payload = Payload {
        meta,
        type_id,
        dialect,
        version,
        body: Cow::Borrowed(body),
    };
    if value::is_templated(type_id, dialect, u32::from(version)) {
        refuse_reference(type_id)?;
        let at = rest.len().saturating_sub(body.len()) as u64;
        let mut plain = Vec::with_capacity(body.len());
        template::plain(
            type_id,
            &mut Reader::new(body, at),
            &Templates::default(),
            &mut plain,
        )?;
        payload.type_id = op::HASH;
        payload.body = Cow::Owned(plain);
    }
    Ok(payload)
}

/// A payload holds the names of its fields itself; only files have a table of them.
pub fn refuse_reference(type_id: u8) -> Result<()> {
    match template::is_reference(type_id) {
        true => Err(corrupt(
            0,
            "a DUMP payload",
            format_args!("the type {type_id} references a template of a file"),
        )),
        false => Ok(()),
    }
}

/// How a value gets to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// RESTORE of the same bytes with the target's footer.
    AsIs,
    /// RESTORE of [`transcode`]d bytes.
    Transcode,
    /// Commands.
    Rebuild,
    /// Only if the target has the module.
    Module,
    /// Not at all, and why.
    Impossible(&'static str),
}

/// Why a hash cannot be as it is.
pub const NO_FIELD_EXPIRY: &str =
    "fields of this hash have an expiry, which the target's version does not have";

/// Listpacks at least this long may hold an element of a disputed size.
const DISPUTED: u64 = 16383;

/// What of a value's content decides how it can travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// A listpack in it has an element at whose size versions write different bytes.
    pub disputed: bool,
    /// A field of the hash has an expiry.
    pub field_expiry: bool,
}

impl Traits {
    pub fn of(type_id: u8, dialect: Dialect, version: u32, body: &[u8]) -> Traits {
        let timed = may_have_field_expiry(type_id);
        Traits {
            disputed: is_disputed(type_id, body),
            field_expiry: timed && has_field_expiry(type_id, dialect, version, body),
        }
    }
}

/// More bytes than this hold an element.
const MAY_BE_EMPTY: usize = 64;

/// Whether a collection has no elements: a key that does not exist, which servers refuse in RESTORE and leave out of a
/// snapshot that they load. Valkey 9.1 makes such hashes, by a COPY of one whose fields have all expired.
pub fn is_empty(type_id: u8, dialect: Dialect, version: u32, body: &[u8]) -> bool {
    #[derive(Default)]
    struct Any(bool);
    impl ValueSink for Any {
        fn list_item(&mut self, _: &[u8]) -> Result<()> {
            self.0 = true;
            Ok(())
        }
        fn set_member(&mut self, _: &[u8]) -> Result<()> {
            self.0 = true;
            Ok(())
        }
        fn zset_member(&mut self, _: &[u8], _: f64) -> Result<()> {
            self.0 = true;
            Ok(())
        }
        fn hash_field(&mut self, _: &[u8], _: &[u8], _: Option<ExpireAt>) -> Result<()> {
            self.0 = true;
            Ok(())
        }
    }
    if body.len() > MAY_BE_EMPTY
        || !value::kind(type_id, dialect).is_ok_and(ValueKind::is_collection)
    {
        return false;
    }
    let mut any = Any::default();
    value::decode(type_id, dialect, version, body, 0, &mut any).is_ok() && !any.0
}

/// Whether hashes of this type can have fields with an expiry.
pub fn may_have_field_expiry(type_id: u8) -> bool {
    matches!(
        type_id,
        op::HASH_22 | op::HASH_LISTPACK_EX_PRE_GA | op::HASH_METADATA | op::HASH_LISTPACK_EX
    )
}

/// Decides how a value of this type gets to `target`.
pub fn fit(type_id: u8, dialect: Dialect, version: u32, body: &[u8], target: &Target) -> Fit {
    fit_of(
        type_id,
        dialect,
        is_disputed(type_id, body),
        &|| has_field_expiry(type_id, dialect, version, body),
        target,
    )
}

/// The decision of [`fit`], from the value's traits.
pub fn fit_of(
    type_id: u8,
    dialect: Dialect,
    disputed: bool,
    field_expiry: &dyn Fn() -> bool,
    target: &Target,
) -> Fit {
    let known = target.knows(type_id, dialect);
    match type_id {
        op::MODULE_PRE_GA | op::MODULE_2 => Fit::Module,
        op::PATH_HASH if dialect == Dialect::Valkey => match known {
            true => Fit::AsIs,
            false => Fit::Impossible(
                "it is a path hash (Valkey 9.2), which the target's version does not have",
            ),
        },
        _ if disputed => match type_id {
            op::STREAM | op::STREAM_2 | op::STREAM_3 | op::STREAM_4 | op::STREAM_5 => Fit::Rebuild,
            _ => Fit::Transcode,
        },
        _ if known => Fit::AsIs,
        op::STREAM_2 | op::STREAM_3 | op::STREAM_4 | op::STREAM_5
            if target.knows(op::STREAM, Dialect::Redis) =>
        {
            Fit::Transcode
        }
        op::STREAM..=op::STREAM if !known => {
            Fit::Impossible("it is a stream, which the target's version does not have")
        }
        op::ARRAY => Fit::Impossible("it is an array (Redis 8.8), which the target does not have"),
        op::GCRA_8_8 | op::GCRA => {
            Fit::Impossible("it is a rate limiter (Redis 8.8), which the target does not have")
        }
        op::HASH_22 | op::HASH_LISTPACK_EX_PRE_GA | op::HASH_METADATA | op::HASH_LISTPACK_EX => {
            if target.field_expiry() || !field_expiry() {
                Fit::Transcode
            } else {
                Fit::Impossible(NO_FIELD_EXPIRY)
            }
        }
        _ if value::kind(type_id, dialect).is_ok_and(|k| k != value::ValueKind::Stream) => {
            Fit::Transcode
        }
        _ => Fit::Impossible("its type is not known to the target"),
    }
}

fn has_field_expiry(type_id: u8, dialect: Dialect, version: u32, body: &[u8]) -> bool {
    struct Any(bool);
    impl ValueSink for Any {
        fn hash_field(&mut self, _: &[u8], _: &[u8], expire: Option<ExpireAt>) -> Result<()> {
            self.0 |= expire.is_some();
            Ok(())
        }
    }
    let mut any = Any(false);
    value::decode(type_id, dialect, version, body, 0, &mut any).is_err() || any.0
}

/// Whether a listpack in the value has an element at whose size versions write different bytes; some crash on the other's.
fn is_disputed(type_id: u8, body: &[u8]) -> bool {
    const WHAT: &str = "a value";
    let mut r = Reader::new(body, 0);
    let result: Result<bool> = (|| match type_id {
        op::HASH_LISTPACK
        | op::ZSET_LISTPACK
        | op::SET_LISTPACK
        | op::HASH_LISTPACK_EX
        | op::HASH_LISTPACK_EX_PRE_GA => {
            if type_id == op::HASH_LISTPACK_EX {
                r.i64(WHAT)?;
            }
            disputed_listpack(&mut r)
        }
        op::LIST_QUICKLIST_2 => {
            for _ in 0..length(&mut r, WHAT)? {
                // A plain node is an element, not a listpack.
                let plain = length(&mut r, WHAT)? == 1;
                if disputed_listpack(&mut r)? && !plain {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        op::STREAM | op::STREAM_2 | op::STREAM_3 | op::STREAM_4 | op::STREAM_5 => {
            for _ in 0..length(&mut r, WHAT)? {
                string(&mut r, WHAT)?;
                if disputed_listpack(&mut r)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        _ => Ok(false),
    })();
    result.unwrap_or(false)
}

/// Steps over a string; one that is long enough, also when it is compressed, is looked into.
fn disputed_listpack(r: &mut Reader<'_>) -> Result<bool> {
    const WHAT: &str = "a value";
    let mut ahead = r.clone();
    let (stored, plain) = match length_or_encoding(&mut ahead)? {
        Len::Plain(n) => (n, n),
        Len::Encoded(3) => (length(&mut ahead, WHAT)?, length(&mut ahead, WHAT)?),
        // An integer is no listpack.
        Len::Encoded(_) => {
            string(r, WHAT)?;
            return Ok(false);
        }
    };
    if plain <= DISPUTED {
        ahead.take(usize::try_from(stored).unwrap_or(usize::MAX), WHAT)?;
        *r = ahead;
        return Ok(false);
    }
    let bytes = string(r, WHAT)?;
    let Ok(mut listpack) = Listpack::new(&bytes, 0) else {
        return Ok(false);
    };
    while let Ok(Some(_)) = listpack.next() {}
    Ok(listpack.disputed)
}

/// Appends the value in a form that `target` takes; returns its type number.
pub fn transcode(
    type_id: u8,
    dialect: Dialect,
    version: u32,
    body: &[u8],
    target: &Target,
    out: &mut Vec<u8>,
) -> Result<u8> {
    if matches!(
        type_id,
        op::STREAM_2 | op::STREAM_3 | op::STREAM_4 | op::STREAM_5
    ) {
        return older_stream(type_id, body, target, out);
    }
    let mut plain = Plain {
        out: Vec::new(),
        count: 0,
        target: *target,
        with_expiry: false,
    };
    if value::kind(type_id, dialect)? == value::ValueKind::Hash {
        plain.with_expiry =
            target.field_expiry() && has_field_expiry(type_id, dialect, version, body);
    }
    value::decode(type_id, dialect, version, body, 0, &mut plain)?;
    let new = match value::kind(type_id, dialect)? {
        value::ValueKind::List => op::LIST,
        value::ValueKind::Set => op::SET,
        value::ValueKind::Zset => {
            if target.knows(op::ZSET_2, Dialect::Redis) {
                op::ZSET_2
            } else {
                op::ZSET
            }
        }
        value::ValueKind::Hash if plain.with_expiry && target.valkey => op::HASH_22,
        value::ValueKind::Hash if plain.with_expiry => op::HASH_METADATA,
        value::ValueKind::Hash => op::HASH,
        other => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("a {} cannot be converted", other.name()),
            ));
        }
    };
    if new == op::HASH_METADATA {
        // Expiries count from 1, so that the stored number is the absolute one.
        out.extend_from_slice(&1i64.to_le_bytes());
    }
    put_length(out, plain.count);
    out.extend_from_slice(&plain.out);
    Ok(new)
}

/// A stream's messages, and what stands behind them.
pub fn stream_parts(body: &[u8]) -> Result<(&[u8], &[u8])> {
    let mut slice = Slice(body, 0);
    let mut walk = Walk::new(&mut slice, 0, usize::MAX);
    for _ in 0..walk.length("a stream")? {
        let _ = walk.string()?;
        let _ = walk.string()?;
    }
    body.split_at_checked(walk.at)
        .ok_or_else(|| corrupt(0, "a stream", "it ends inside its nodes"))
}

fn older_stream(type_id: u8, body: &[u8], target: &Target, out: &mut Vec<u8>) -> Result<u8> {
    let (nodes, tail) = stream_parts(body)?;
    let meta: StreamMeta = stream::meta(type_id, &mut Reader::new(tail, nodes.len() as u64))?;
    let new = [op::STREAM_3, op::STREAM_2, op::STREAM]
        .into_iter()
        .find(|t| target.knows(*t, Dialect::Redis))
        .unwrap_or(op::STREAM);
    out.extend_from_slice(nodes);
    stream::put_meta(out, &meta, new);
    Ok(new)
}

/// Collects elements as plain strings.
struct Plain {
    out: Vec<u8>,
    count: u64,
    target: Target,
    with_expiry: bool,
}

impl ValueSink for Plain {
    fn list_item(&mut self, item: &[u8]) -> Result<()> {
        self.count += 1;
        put_string(&mut self.out, item);
        Ok(())
    }

    fn set_member(&mut self, member: &[u8]) -> Result<()> {
        self.list_item(member)
    }

    fn zset_member(&mut self, member: &[u8], score: f64) -> Result<()> {
        self.list_item(member)?;
        if self.target.knows(op::ZSET_2, Dialect::Redis) {
            self.out.extend_from_slice(&score.to_le_bytes());
        } else if score.is_infinite() {
            self.out.push(if score > 0.0 { 254 } else { 255 });
        } else {
            // Written in full, a large one would not fit its length byte.
            let text = format!("{score:e}");
            self.out.push(text.len() as u8);
            self.out.extend_from_slice(text.as_bytes());
        }
        Ok(())
    }

    fn hash_field(&mut self, field: &[u8], value: &[u8], expire: Option<ExpireAt>) -> Result<()> {
        if self.with_expiry && !self.target.valkey {
            put_length(&mut self.out, expire.map_or(0, |e| e.0.max(1) as u64));
        }
        self.list_item(field)?;
        put_string(&mut self.out, value);
        if self.with_expiry && self.target.valkey {
            self.out
                .extend_from_slice(&expire.map_or(-1, |e| e.0).to_le_bytes());
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
