//! The loop over a snapshot file: magic, opcodes, keys, checksum (rdb.c rdbLoadRioWithLoadingCtx).
//!
//! Values come framed, their bytes untouched; one that is larger than the limit comes as [`LargeEntry`] in pieces.
//! Invariant: [`Snapshot::position`] is always the start of a record, so reading can begin there again.

mod ending;
mod head;
mod pieces;
mod templates;

pub use head::{Head, newer};

use crate::error::{Context, ErrorKind, Result};
use crate::rdb::cursor::{Bytes, Input, Reader, corrupt};
use crate::rdb::encoding::{self, Len};
use crate::rdb::frame::Walk;
use crate::rdb::old_module;
use crate::rdb::opcode::{self as op, Dialect};
use crate::rdb::payload;
use crate::rdb::value::{AuxTexts, ValueSink, aux_texts, is_of_search, module_name, template};
use crate::types::{DbIndex, ExpireAt};
use std::io::{BufWriter, Read, Write};

/// How a snapshot is read.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// A value whose bytes are more than this comes in pieces.
    pub whole_value_limit: usize,
    /// So does a compressed string that is longer than this when it is unpacked.
    pub unpacked_limit: u64,
    pub ignore_checksum: bool,
    /// What follows a snapshot's end is looked at: another one is read on, anything else is an error.
    pub joined: bool,
    /// With `joined`: commands that follow, as the snapshot says, are the caller's matter; else they are an error.
    pub commands: bool,
    /// A version that is newer than all that are known is refused.
    pub strict: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            whole_value_limit: 8 << 20,
            unpacked_limit: u64::MAX,
            ignore_checksum: false,
            joined: false,
            commands: false,
            strict: false,
        }
    }
}

/// A record of the file.
pub enum Item<'a, R: Read> {
    Aux {
        name: &'a [u8],
        value: &'a [u8],
    },
    Database(DbIndex),
    Resize,
    SlotInfo,
    SlotImport,
    /// A library's source.
    Function(&'a [u8]),
    FunctionPreGa {
        name: &'a [u8],
        engine: &'a [u8],
        code: &'a [u8],
    },
    ModuleAux {
        module: String,
        /// Short strings of a search module's data; none of others'.
        texts: AuxTexts,
    },
    Entry(Entry<'a>),
    Large(LargeEntry<'a, R>),
    /// Another snapshot begins right behind the one before, in the same file.
    Joined(Dialect, u32),
    End,
}

/// What stands before a value.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a> {
    pub db: DbIndex,
    pub key: &'a [u8],
    pub expire: Option<ExpireAt>,
    pub idle_s: Option<u64>,
    pub freq: Option<u8>,
    /// Key metadata (Redis 8.6), opcode included; empty where there is none.
    pub meta: &'a [u8],
    pub type_id: u8,
    /// Where the record begins in the file.
    pub at: u64,
    /// Where the value begins in the file.
    pub value_at: u64,
}

/// A key with its framed value.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    pub header: Header<'a>,
    pub value: &'a [u8],
}

/// A key whose value is read piece by piece; left unread, the next record skips it.
pub struct LargeEntry<'a, R: Read> {
    snapshot: &'a mut Snapshot<R>,
    type_id: u8,
    /// The number in the file; another one where the value is read as a plain hash.
    stored: u8,
    attributes: Attributes,
    value_at: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Attributes {
    expire: Option<ExpireAt>,
    idle_s: Option<u64>,
    freq: Option<u8>,
}

/// A snapshot being read.
pub struct Snapshot<R> {
    input: Input<R>,
    options: Options,
    head: Head,
    db: DbIndex,
    key: Vec<u8>,
    text: Vec<u8>,
    meta: Vec<u8>,
    /// The last value whose field names stand in a template, as a plain hash.
    plain: Vec<u8>,
    record_at: u64,
    /// Bytes lent by the last item, to be consumed before the next.
    lent: usize,
    /// A large value that may not have been read.
    unread: Option<u8>,
    checksum: bool,
}

impl<R: Read> Snapshot<R> {
    /// Reads the magic and version.
    pub fn open(reader: R, options: Options) -> Result<Self> {
        Snapshot::open_at(reader, 0, options)
    }

    /// The same for a snapshot that begins at byte `at` of its file.
    pub fn open_at(reader: R, at: u64, options: Options) -> Result<Self> {
        let mut input = Input::new(reader, at, !options.ignore_checksum);
        let head = Head::read(&mut input, options.strict)?;
        Ok(Snapshot::from_input(input, DbIndex::ZERO, head, options))
    }

    /// Goes on at a position that [`Snapshot::position`] told; the checksum cannot be verified then.
    pub fn resume(
        reader: R,
        at: u64,
        db: DbIndex,
        dialect: Dialect,
        version: u32,
        options: Options,
    ) -> Self {
        let head = Head::of(dialect, version);
        Snapshot::resume_with(reader, at, db, head, options)
    }

    /// The same with what the snapshot's beginning says.
    pub fn resume_with(reader: R, at: u64, db: DbIndex, head: Head, options: Options) -> Self {
        let input = Input::new(reader, at, false);
        let mut snapshot = Snapshot::from_input(input, db, head, options);
        snapshot.checksum = false;
        snapshot
    }

    fn from_input(input: Input<R>, db: DbIndex, head: Head, options: Options) -> Self {
        let record_at = input.position();
        Snapshot {
            checksum: head.has_checksum() && !options.ignore_checksum,
            input,
            options,
            head,
            db,
            key: Vec::new(),
            text: Vec::new(),
            meta: Vec::new(),
            plain: Vec::new(),
            record_at,
            lent: 0,
            unread: None,
        }
    }

    /// Where the next record begins (for a large value not yet read: where its own does).
    pub fn position(&self) -> u64 {
        if self.unread.is_some() {
            self.record_at
        } else {
            self.input.position() + self.lent as u64
        }
    }

    pub fn db(&self) -> DbIndex {
        self.db
    }

    pub fn dialect(&self) -> Dialect {
        self.head.dialect()
    }

    pub fn version(&self) -> u32 {
        self.head.version()
    }

    /// The next record; after [`Item::End`] there is none.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Item<'_, R>> {
        self.input.consume(std::mem::take(&mut self.lent));
        if let Some(type_id) = self.unread.take() {
            self.pieces(type_id, &mut Nothing)?;
        }
        self.record_at = self.input.position();
        self.meta.clear();
        let mut attributes = Attributes::default();
        loop {
            self.input.ensure(1, "a type or opcode")?;
            let opcode = self.input.peek().first().copied().unwrap_or_default();
            match opcode {
                op::EXPIRETIME_MS => {
                    attributes.expire =
                        Some(ExpireAt(i64::from_le_bytes(self.fixed("an expiry")?)));
                }
                op::EXPIRETIME => {
                    attributes.expire = Some(ExpireAt(
                        i64::from(i32::from_le_bytes(self.fixed("an expiry")?)) * 1000,
                    ));
                }
                op::FREQ => {
                    let [freq] = self.fixed("an access frequency")?;
                    attributes.freq = Some(freq);
                }
                op::IDLE => {
                    self.input.consume(1);
                    attributes.idle_s = Some(self.length("an idle time")?);
                }
                op::KEY_META
                    if self.head.dialect() == Dialect::Redis && self.head.version() >= 13 =>
                {
                    self.key_meta()?
                }
                op::AUX => {
                    self.input.consume(1);
                    self.string_into_key("an AUX name")?;
                    self.string_into_text("an AUX value")?;
                    self.head.aux(&self.key, &self.text);
                    return Ok(Item::Aux {
                        name: &self.key,
                        value: &self.text,
                    });
                }
                op::SELECTDB => {
                    self.input.consume(1);
                    let db = self.length("a database number")?;
                    let db = u32::try_from(db)
                        .map_err(|_| corrupt(self.input.position(), "a database number", db))?;
                    self.db = DbIndex(db);
                    return Ok(Item::Database(self.db));
                }
                op::RESIZEDB => {
                    self.input.consume(1);
                    for _hint in ["keys", "expires"] {
                        self.length("a size hint")?;
                    }
                    return Ok(Item::Resize);
                }
                op::SLOT_INFO => {
                    self.input.consume(1);
                    for _hint in ["slot", "keys", "expires"] {
                        self.length("slot info")?;
                    }
                    return Ok(Item::SlotInfo);
                }
                op::KEY_META if self.head.dialect() == Dialect::Valkey => {
                    self.input.consume(1);
                    self.string_into_key("a slot import")?;
                    for _ in 0..self.length("a slot import")? {
                        self.length("a slot import")?;
                        self.length("a slot import")?;
                    }
                    return Ok(Item::SlotImport);
                }
                op::FUNCTION2 => {
                    self.input.consume(1);
                    self.string_into_text("a function library")?;
                    return Ok(Item::Function(&self.text));
                }
                op::FUNCTION_PRE_GA => {
                    self.input.consume(1);
                    self.string_into_key("a function's name")?;
                    self.string_into_text("a function's engine")?;
                    self.meta = std::mem::take(&mut self.text);
                    if self.length("a function's description")? == 1 {
                        self.string_into_text("a function's description")?;
                    }
                    self.string_into_text("a function's code")?;
                    return Ok(Item::FunctionPreGa {
                        name: &self.key,
                        engine: &self.meta,
                        code: &self.text,
                    });
                }
                op::MODULE_AUX => {
                    self.input.consume(1);
                    let id = self.length("a module's id")?;
                    let mut walk = Walk::new(&mut self.input, 0, usize::MAX);
                    let _ = walk.module_opcodes()?;
                    walk.there("a module's data")?;
                    let n = walk.at;
                    let module = module_name(id);
                    let body = self.input.peek().get(..n).unwrap_or_default();
                    let texts = match is_of_search(&module) {
                        true => aux_texts(id, body),
                        false => AuxTexts::default(),
                    };
                    self.input.consume(n);
                    return Ok(Item::ModuleAux { module, texts });
                }
                op::SLOT_NUM | op::RAM_LRU if self.head.dialect() == Dialect::Redis => {
                    self.input.consume(1);
                    self.length("a hint of Redis Enterprise")?;
                }
                op::OPCODE_242 if self.has_templates() => self.template()?,
                op::OPCODE_242 if self.head.has_updates() => {
                    return Err(self.refuse_update());
                }
                op::EOF => {
                    self.input.consume(1);
                    self.end()?;
                    if self.options.joined && self.joined()? {
                        return Ok(Item::Joined(self.head.dialect(), self.head.version()));
                    }
                    return Ok(Item::End);
                }
                type_id => return self.entry(type_id, attributes),
            }
        }
    }

    fn entry(&mut self, type_id: u8, attributes: Attributes) -> Result<Item<'_, R>> {
        let at = self.input.position();
        // Names an unknown type before anything else is read.
        (self.head.known(type_id)).map_err(|e| e.context(format!("byte {at}, reading a type")))?;
        let stored = type_id;
        let templated = self.head.is_templated(stored);
        let type_id = if templated { op::HASH } else { stored };
        let mut walk = Walk::new(&mut self.input, 1, usize::MAX);
        let head = walk.length_or_encoding()?;
        let text_at = walk.at;
        match head {
            Len::Plain(n) => {
                walk.at = text_at.saturating_add(usize::try_from(n).unwrap_or(usize::MAX))
            }
            Len::Encoded(_) => {
                walk.at = 1;
                let _ = walk.string()?;
            }
        }
        walk.there("a key")?;
        let key_end = walk.at;
        // A plain key is lent as it lies; an integer or compressed one is decoded.
        let plain = matches!(head, Len::Plain(_));
        if !plain {
            let bytes = self.input.peek().get(1..key_end).unwrap_or_default();
            let key = encoding::string(&mut Reader::new(bytes, at + 1), "a key")?.into_owned();
            self.key = key;
        }
        let limit = key_end.saturating_add(self.options.whole_value_limit);
        let end = if type_id == op::MODULE_PRE_GA {
            Some(old_module::end(&mut self.input, key_end, Input::ends_at)?)
        } else {
            let mut walk = Walk::new(&mut self.input, key_end, limit);
            // What is small here may be large when it is unpacked.
            let unpacked = match type_id {
                op::STRING if self.options.unpacked_limit < u64::MAX => walk.plain_length()?,
                _ => 0,
            };
            let walked = match templated {
                true => template::walk(&mut walk, stored, self.head.templates())?,
                false => walk.value(type_id, self.head.dialect())?,
            };
            let fits = walked.is_ok() && unpacked <= self.options.unpacked_limit;
            fits.then_some(walk.at)
        };
        let Some(end) = end else {
            if plain {
                let key = self.input.peek().get(text_at..key_end).unwrap_or_default();
                self.key.clear();
                self.key.extend_from_slice(key);
            }
            self.input.consume(key_end);
            self.unread = Some(stored);
            let value_at = self.input.position();
            return Ok(Item::Large(LargeEntry {
                type_id,
                stored,
                attributes,
                value_at,
                snapshot: self,
            }));
        };
        self.input.ensure(end, "a value")?;
        self.lent = end;
        let bytes = self.input.peek();
        let mut value = bytes.get(key_end..end).unwrap_or_default();
        if templated {
            let mut r = Reader::new(value, at.saturating_add(key_end as u64));
            self.plain.clear();
            template::plain(stored, &mut r, self.head.templates(), &mut self.plain)?;
            value = &self.plain;
        }
        let key = if plain {
            bytes.get(text_at..key_end).unwrap_or_default()
        } else {
            &self.key
        };
        let header = Header {
            db: self.db,
            key,
            expire: attributes.expire,
            idle_s: attributes.idle_s,
            freq: attributes.freq,
            meta: &self.meta,
            type_id,
            at: self.record_at,
            value_at: at + key_end as u64,
        };
        Ok(Item::Entry(Entry { header, value }))
    }

    /// The value of a DUMP payload, which begins at [`Snapshot::resume`]'s first byte: without a key, in pieces.
    pub fn dumped(&mut self) -> Result<LargeEntry<'_, R>> {
        const WHAT: &str = "a DUMP payload";
        self.input.ensure(1, WHAT)?;
        if self.input.peek().first() == Some(&op::KEY_META) && self.head.dialect() == Dialect::Redis
        {
            self.key_meta()?;
            self.input.ensure(1, WHAT)?;
        }
        let type_id = self.input.peek().first().copied().unwrap_or_default();
        self.head.known(type_id)?;
        let stored = type_id;
        let templated = self.head.is_templated(stored);
        if templated {
            payload::refuse_reference(stored)?;
        }
        self.input.consume(1);
        self.unread = Some(stored);
        Ok(LargeEntry {
            type_id: if templated { op::HASH } else { stored },
            stored,
            attributes: Attributes::default(),
            value_at: self.input.position(),
            snapshot: self,
        })
    }

    /// An opcode byte and `N` bytes behind it.
    fn fixed<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        self.input.ensure(1 + N, what)?;
        let bytes = self.input.peek().get(1..=N).and_then(|b| b.try_into().ok());
        self.input.consume(1 + N);
        bytes.ok_or_else(|| corrupt(self.input.position(), what, "too short"))
    }

    fn length(&mut self, what: &'static str) -> Result<u64> {
        let mut walk = Walk::new(&mut self.input, 0, usize::MAX);
        let n = walk.length(what)?;
        let used = walk.at;
        self.input.consume(used);
        Ok(n)
    }

    fn string(&mut self, what: &'static str, into: fn(&mut Self) -> &mut Vec<u8>) -> Result<()> {
        let mut walk = Walk::new(&mut self.input, 0, usize::MAX);
        let _ = walk.string()?;
        walk.there(what)?;
        let used = walk.at;
        let at = self.input.position();
        let bytes = self.input.peek().get(..used).unwrap_or_default();
        let text = encoding::string(&mut Reader::new(bytes, at), what)?.into_owned();
        *into(self) = text;
        self.input.consume(used);
        Ok(())
    }

    fn string_into_key(&mut self, what: &'static str) -> Result<()> {
        self.string(what, |s| &mut s.key)
    }

    fn string_into_text(&mut self, what: &'static str) -> Result<()> {
        self.string(what, |s| &mut s.text)
    }

    fn key_meta(&mut self) -> Result<()> {
        let mut walk = Walk::new(&mut self.input, 1, usize::MAX);
        for _ in 0..walk.length("key metadata")? {
            walk.at = walk.at.saturating_add(4);
            let _ = walk.module_opcodes()?;
        }
        walk.there("key metadata")?;
        let n = walk.at;
        self.meta
            .extend_from_slice(self.input.peek().get(..n).unwrap_or_default());
        self.input.consume(n);
        Ok(())
    }
}

impl<R: Read> LargeEntry<'_, R> {
    pub fn header(&self) -> Header<'_> {
        Header {
            db: self.snapshot.db,
            key: &self.snapshot.key,
            expire: self.attributes.expire,
            idle_s: self.attributes.idle_s,
            freq: self.attributes.freq,
            meta: &self.snapshot.meta,
            type_id: self.type_id,
            at: self.snapshot.record_at,
            value_at: self.value_at,
        }
    }

    pub fn dialect(&self) -> Dialect {
        self.snapshot.head.dialect()
    }

    /// Reads the value into `sink` in bounded memory.
    ///
    /// After an error the snapshot is in the middle of the value: open it again at its position.
    pub fn decode(self, sink: &mut impl ValueSink) -> Result<()> {
        self.snapshot.pieces(self.stored, sink)?;
        self.snapshot.unread = None;
        Ok(())
    }

    /// Writes the value's bytes as they are, behind the type, in bounded memory, and returns how many they are: for what
    /// no command puts together.
    pub fn copy(self, out: impl Write) -> Result<u64> {
        let (mut out, mut len) = (BufWriter::new(out), 0);
        let failed = || "copy a large value".to_owned();
        self.snapshot.raw(self.stored, |part| {
            len += part.len() as u64;
            out.write_all(part).context(ErrorKind::Disk, failed)
        })?;
        self.snapshot.unread = None;
        out.flush().context(ErrorKind::Disk, failed)?;
        Ok(len)
    }
}

struct Nothing;
impl ValueSink for Nothing {}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests;
