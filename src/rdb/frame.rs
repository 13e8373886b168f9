//! Where a value ends: the one framer, for snapshot files and for what is inside them; nothing is decoded.

use crate::error::Result;
use crate::rdb::cursor::{Bytes, Reader, corrupt};
use crate::rdb::encoding::{Len, len_size, length_or_encoding};
use crate::rdb::opcode::{self as op, Dialect};
use crate::rdb::value::layout::{Layout, layout};

/// A walk over bytes that are not consumed; `at` counts from their start.
pub struct Walk<'b, B> {
    bytes: &'b mut B,
    pub at: usize,
    /// Beyond this the walk stops: the value is too large to be held.
    limit: usize,
}

/// The walk went past its limit.
pub struct TooLarge;

/// What follows an opcode of a module's value.
pub enum ModuleOpcode {
    End,
    /// So many bytes.
    Fixed(u64),
    /// A string.
    Text,
}

pub type Step = Result<std::result::Result<(), TooLarge>>;

/// `?` for a step that may be too large.
macro_rules! step {
    ($e:expr) => {
        if let Err(large) = $e? {
            return Ok(Err(large));
        }
    };
}

impl<'b, B: Bytes> Walk<'b, B> {
    pub fn new(bytes: &'b mut B, at: usize, limit: usize) -> Walk<'b, B> {
        Walk { bytes, at, limit }
    }

    /// Reads the length at the walk's place.
    #[inline]
    pub fn length_or_encoding(&mut self) -> Result<Len> {
        self.bytes.ensure(self.at + 1, "a length")?;
        let first = self.bytes.peek().get(self.at).copied().unwrap_or_default();
        match first {
            0..0x40 => {
                self.at += 1;
                Ok(Len::Plain(u64::from(first)))
            }
            0x40..0x80 => {
                self.bytes.ensure(self.at + 2, "a length")?;
                let second = self.bytes.peek().get(self.at + 1).copied();
                self.at += 2;
                let low = u64::from(second.unwrap_or_default());
                Ok(Len::Plain(u64::from(first & 0x3f) << 8 | low))
            }
            0xc0.. => {
                self.at += 1;
                Ok(Len::Encoded(first & 0x3f))
            }
            _ => self.long_length(first),
        }
    }

    fn long_length(&mut self, first: u8) -> Result<Len> {
        let position = self.bytes.base() + self.at as u64;
        let Some(size) = len_size(first) else {
            return Err(corrupt(
                position,
                "a length",
                format_args!("0x{first:02x} begins no length"),
            ));
        };
        self.bytes.ensure(self.at + size, "a length")?;
        let bytes = self
            .bytes
            .peek()
            .get(self.at..self.at + size)
            .unwrap_or_default();
        let len = length_or_encoding(&mut Reader::new(bytes, position))?;
        self.at += size;
        Ok(len)
    }

    /// How long the string at the walk's place is when it is unpacked; the walk stays where it is.
    pub fn plain_length(&mut self) -> Result<u64> {
        let at = self.at;
        let plain = match self.length_or_encoding()? {
            Len::Plain(n) => n,
            Len::Encoded(3) => {
                self.length("a compressed string")?;
                self.length("a compressed string")?
            }
            Len::Encoded(_) => 0,
        };
        self.at = at;
        Ok(plain)
    }

    pub fn length(&mut self, what: &'static str) -> Result<u64> {
        match self.length_or_encoding()? {
            Len::Plain(n) => Ok(n),
            Len::Encoded(e) => Err(corrupt(
                self.bytes.base() + self.at as u64,
                what,
                format_args!("a string encoding ({e}) where a length must be"),
            )),
        }
    }

    #[inline]
    fn skip(&mut self, n: u64) -> std::result::Result<(), TooLarge> {
        match usize::try_from(n).ok().and_then(|n| self.at.checked_add(n)) {
            Some(to) if to <= self.limit => {
                self.at = to;
                Ok(())
            }
            _ => Err(TooLarge),
        }
    }

    #[inline]
    pub fn string(&mut self) -> Step {
        let n = self.string_head()?;
        Ok(self.skip(n))
    }

    /// One item of a value with layout [`Layout::Items`] (or a stream's node).
    #[inline]
    pub fn item(&mut self, type_id: u8, dialect: Dialect) -> Step {
        match type_id {
            op::LIST | op::SET | op::LIST_QUICKLIST => return self.string(),
            op::ZSET_2 => {
                step!(self.string());
                return Ok(self.skip(8));
            }
            op::ZSET => {
                step!(self.string());
                self.bytes.ensure(self.at + 1, "a score")?;
                let n = self.bytes.peek().get(self.at).copied().unwrap_or_default();
                return Ok(self.skip(1 + if n >= 253 { 0 } else { u64::from(n) }));
            }
            op::LIST_QUICKLIST_2 => {
                self.length("a list node's container")?;
                return self.string();
            }
            op::HASH_METADATA => {
                self.length("a field's expiry")?;
            }
            op::HASH_22 if dialect == Dialect::Redis => {
                self.length("a field's expiry")?;
            }
            _ => {}
        }
        step!(self.string());
        step!(self.string());
        if type_id == op::HASH_22 && dialect == Dialect::Valkey {
            return Ok(self.skip(8));
        }
        Ok(Ok(()))
    }

    /// A whole value.
    pub fn value(&mut self, type_id: u8, dialect: Dialect) -> Step {
        match layout(type_id, dialect)? {
            Layout::String => step!(self.string()),
            Layout::Packed => {
                if type_id == op::HASH_LISTPACK_EX && self.skip(8).is_err() {
                    return Ok(Err(TooLarge));
                }
                step!(self.string());
            }
            Layout::Items => {
                if type_id == op::HASH_METADATA && self.skip(8).is_err() {
                    return Ok(Err(TooLarge));
                }
                let items = self.length("the number of items")?;
                for _ in 0..items {
                    step!(self.item(type_id, dialect));
                }
            }
            Layout::Stream => {
                for _ in 0..self.length("the number of stream nodes")? {
                    step!(self.string());
                    step!(self.string());
                }
                step!(self.stream_meta(type_id));
            }
            Layout::Array => {
                for _ in 0..self.array_head()? {
                    step!(self.array_element());
                }
            }
            Layout::Paths => {
                for _ in 0..self.length("a path hash")? {
                    step!(self.path());
                }
            }
            Layout::Number => {
                self.length("a number")?;
            }
            Layout::Module if type_id == op::MODULE_PRE_GA => {
                return Err(corrupt(
                    self.bytes.base() + self.at as u64,
                    "a module's value",
                    "its format (Redis 4.0 rc) does not tell where it ends: only that module can read it",
                ));
            }
            Layout::Module => {
                self.length("a module's id")?;
                step!(self.module_opcodes());
            }
        }
        Ok(Ok(()))
    }

    /// Everything of a stream after its nodes.
    pub fn stream_meta(&mut self, type_id: u8) -> Step {
        const WHAT: &str = "a stream";
        let v2 = type_id != op::STREAM;
        let v3 = v2 && type_id != op::STREAM_2;
        for _ in 0..if v2 { 8 } else { 3 } {
            self.length(WHAT)?;
        }
        for _ in 0..self.length(WHAT)? {
            step!(self.string());
            for _ in 0..if v2 { 3 } else { 2 } {
                self.length(WHAT)?;
            }
            for _ in 0..self.length(WHAT)? {
                if self.skip(24).is_err() {
                    return Ok(Err(TooLarge));
                }
                self.length(WHAT)?;
            }
            for _ in 0..self.length(WHAT)? {
                step!(self.string());
                if self.skip(if v3 { 16 } else { 8 }).is_err() {
                    return Ok(Err(TooLarge));
                }
                let n = self.length(WHAT)?;
                if self.skip(n.saturating_mul(16)).is_err() {
                    return Ok(Err(TooLarge));
                }
            }
            if type_id == op::STREAM_5 {
                let n = self.length(WHAT)?;
                if self.skip(n.saturating_mul(16)).is_err() {
                    return Ok(Err(TooLarge));
                }
            }
        }
        if type_id == op::STREAM_4 || type_id == op::STREAM_5 {
            self.length(WHAT)?;
            self.length(WHAT)?;
            for _ in 0..self.length(WHAT)? {
                step!(self.string());
                for _ in 0..self.length(WHAT)? {
                    step!(self.string());
                    self.length(WHAT)?;
                    self.length(WHAT)?;
                }
            }
            self.length(WHAT)?;
            self.length(WHAT)?;
        }
        Ok(Ok(()))
    }

    /// What stands before an array's elements (rdb.c rdbSaveObject, Redis 8.8); returns how many they are.
    pub fn array_head(&mut self) -> Result<u64> {
        let count = self.length("an array")?;
        if self.length("an array")? == 1 {
            self.length("an array")?;
        }
        Ok(count)
    }

    pub fn array_element(&mut self) -> Step {
        self.length("an array")?;
        match self.length("an array")? {
            1 | 2 => Ok(self.skip(8)),
            _ => self.string(),
        }
    }

    /// A module's values up to and including the end opcode (rdb.c rdbLoadCheckModuleValue).
    pub fn module_opcodes(&mut self) -> Step {
        loop {
            match self.module_opcode()? {
                ModuleOpcode::End => return Ok(Ok(())),
                ModuleOpcode::Fixed(n) if self.skip(n).is_err() => return Ok(Err(TooLarge)),
                ModuleOpcode::Fixed(_) => {}
                ModuleOpcode::Text => step!(self.string()),
            }
        }
    }

    /// One opcode of a module's value, without what the answer says to follow.
    pub fn module_opcode(&mut self) -> Result<ModuleOpcode> {
        Ok(match self.length("a module's opcode")? {
            0 => ModuleOpcode::End,
            1 | 2 => {
                self.length("a module's number")?;
                ModuleOpcode::Fixed(0)
            }
            3 => ModuleOpcode::Fixed(4),
            4 => ModuleOpcode::Fixed(8),
            5 => ModuleOpcode::Text,
            other => {
                let at = self.bytes.base() + self.at as u64;
                return Err(corrupt(
                    at,
                    "a module's value",
                    format_args!("the opcode {other} is unknown"),
                ));
            }
        })
    }

    /// The head of a string; returns how many bytes follow.
    #[inline]
    pub fn string_head(&mut self) -> Result<u64> {
        Ok(match self.length_or_encoding()? {
            Len::Plain(n) => n,
            Len::Encoded(0) => 1,
            Len::Encoded(1) => 2,
            Len::Encoded(2) => 4,
            Len::Encoded(3) => {
                let compressed = self.length("a compressed string")?;
                self.length("a compressed string")?;
                compressed
            }
            Len::Encoded(e) => {
                return Err(corrupt(
                    self.bytes.base() + self.at as u64,
                    "a string",
                    format_args!("the string encoding {e} is unknown"),
                ));
            }
        })
    }

    /// Where the walk is in the file.
    pub fn position(&self) -> u64 {
        self.bytes.base().saturating_add(self.at as u64)
    }

    /// Whether the limit leaves room for so many bytes more, which do not lie there.
    pub fn room(&self, beside: usize) -> std::result::Result<(), TooLarge> {
        match self.at.saturating_add(beside) <= self.limit {
            true => Ok(()),
            false => Err(TooLarge),
        }
    }

    /// Reads again what lies between `from` and the walk's place, which must be available.
    pub fn since<T>(
        &mut self,
        from: usize,
        read: impl FnOnce(&mut Reader<'_>) -> Result<T>,
    ) -> Result<T> {
        let at = self.bytes.base().saturating_add(from as u64);
        let bytes = self.bytes.peek().get(from..self.at).unwrap_or_default();
        read(&mut Reader::new(bytes, at))
    }

    /// One path of a path hash (Valkey 9.2): its name, then fields and values.
    pub fn path(&mut self) -> Step {
        step!(self.string());
        for _ in 0..self.length("a path hash")? {
            step!(self.string());
            step!(self.string());
        }
        Ok(Ok(()))
    }

    /// Makes the bytes walked over available.
    pub fn there(&mut self, what: &'static str) -> Result<()> {
        self.bytes.ensure(self.at, what)
    }
}
