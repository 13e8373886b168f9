//! What a snapshot begins with, and what that says of all that follows: magic, version, fields and templates.

use crate::error::{Error, ErrorKind, Result};
use crate::rdb::cursor::{Bytes, Input, corrupt};
use crate::rdb::opcode::Dialect;
use crate::rdb::value;
use crate::rdb::value::template::Templates;
use std::io::Read;

pub(super) const MAGIC_LEN: usize = 9;
pub(super) const WHAT_MAGIC: &str = "the magic";
/// What the beginning of a snapshot says of all that follows.
#[derive(Debug, Clone)]
pub struct Head {
    start: u64,
    dialect: Dialect,
    version: u32,
    templates: Templates,
    /// The snapshot says of itself that it is the beginning of an append-only file.
    commands_follow: bool,
}

/// The dialect and version that a magic names.
pub(super) fn magic(bytes: &[u8]) -> Option<(Dialect, Option<u32>)> {
    let number = |text: &[u8]| match text.iter().all(u8::is_ascii_digit) {
        true => std::str::from_utf8(text).ok()?.parse().ok(),
        false => None,
    };
    if let Some(digits) = bytes.strip_prefix(b"VALKEY") {
        return Some((Dialect::Valkey, number(digits)));
    }
    let digits = bytes.strip_prefix(b"REDIS")?;
    Some((Dialect::Redis, number(digits)))
}

impl Head {
    /// Of bytes whose version is known from elsewhere.
    pub fn of(dialect: Dialect, version: u32) -> Head {
        Head {
            start: 0,
            dialect,
            version,
            templates: Templates::default(),
            commands_follow: false,
        }
    }

    pub(super) fn read<R: Read>(input: &mut Input<R>, strict: bool) -> Result<Head> {
        let start = input.position();
        input.ensure(MAGIC_LEN, WHAT_MAGIC)?;
        let bytes = input.peek().get(..MAGIC_LEN).unwrap_or_default();
        let (dialect, version) =
            magic(bytes).ok_or_else(|| corrupt(start, WHAT_MAGIC, "this is not an RDB file"))?;
        let version = version.ok_or_else(|| {
            corrupt(
                start.saturating_add(5),
                WHAT_MAGIC,
                "the version is not a number",
            )
        })?;
        let head = Head {
            start,
            ..Head::of(dialect, version)
        };
        let is_version = match dialect {
            Dialect::Redis => version > 0,
            Dialect::Valkey => version >= 80,
        };
        if !is_version {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the snapshot has the RDB version {version} ({dialect:?}), which does not exist"
                ),
            ));
        }
        if strict && let Some(newer) = head.newer() {
            return Err(Error::new(ErrorKind::Unsupported, newer)
                .hint("leave --strict out to read it as far as its types are known, or use a newer keyferry"));
        }
        input.consume(MAGIC_LEN);
        Ok(head)
    }

    /// Where the magic stands in the file; several snapshots may be joined.
    pub fn start(&self) -> u64 {
        self.start
    }

    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    pub fn version(&self) -> u32 {
        self.version
    }

    /// Takes what a field of the snapshot's beginning says.
    pub(super) fn aux(&mut self, name: &[u8], value: &[u8]) {
        self.commands_follow |= matches!(name, b"aof-preamble" | b"aof-base") && value == b"1";
    }

    pub(super) fn commands_follow(&self) -> bool {
        self.commands_follow
    }

    pub(super) fn templates(&self) -> &Templates {
        &self.templates
    }

    pub(super) fn templates_mut(&mut self) -> &mut Templates {
        &mut self.templates
    }

    /// A version that is newer than all that are known, in words.
    pub fn newer(&self) -> Option<String> {
        newer(self.dialect, self.version)
    }

    pub(super) fn has_checksum(&self) -> bool {
        self.version >= 5
    }

    pub(super) fn is_templated(&self, type_id: u8) -> bool {
        value::is_templated(type_id, self.dialect, self.version)
    }

    /// Valkey 9.2 may write what ran meanwhile between the keys.
    pub(super) fn has_updates(&self) -> bool {
        self.dialect == Dialect::Valkey && self.version >= 81
    }

    pub(super) fn known(&self, type_id: u8) -> Result<()> {
        value::known(type_id, self.dialect, self.version).map_err(|e| match self.newer() {
            Some(newer) => e.context(newer),
            None => e,
        }
        .hint("what stands before this byte has been read; read the rest with a newer keyferry, or take it from the live server (source.mode \"replica\" or \"scan\")"))
    }
}

/// Says that a version is newer than all that are known.
pub fn newer(dialect: Dialect, version: u32) -> Option<String> {
    (version > dialect.newest()).then(|| {
        format!(
            "the snapshot has the RDB version {version} ({dialect:?}), and the newest that is known is {}: it is read as far as its types are known",
            dialect.newest()
        )
    })
}
