//! One line of JSON for each key, written while the value is decoded.
//!
//! Memory is bounded: members are sorted in [`Members`], long strings and streams wait in a temporary file.

use super::members::Members;
use super::shared::{library, temporary, to_stdout, warn_of};
use crate::cli::output::escaped;
use crate::error::{Context, ErrorKind, Result};
use crate::rdb::commands::score_text;
use crate::rdb::file::{Header, Item, Options, Snapshot, newer};
use crate::rdb::value::stream::{StreamId, StreamMeta};
use crate::rdb::value::{self, ValueKind, ValueSink, module_holds};
use crate::types::ExpireAt;
use base64::engine::general_purpose::STANDARD;
use base64::write::EncoderWriter;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use tempfile::SpooledTempFile;

/// What waits for its place in the line is kept in memory up to this size.
const HELD: usize = 8 << 20;

/// Writes every key as one line.
pub fn write_json(input: impl Read, out: &mut impl Write, options: Options) -> Result<()> {
    let mut snapshot = Snapshot::open(input, options)?;
    warn_of(snapshot.head().newer());
    let (mut dialect, mut version) = (snapshot.dialect(), snapshot.version());
    let mut members = Members::default();
    // The line of a small value: only a value that is whole is written.
    let mut whole = Vec::new();
    loop {
        match snapshot.next()? {
            Item::End => return Ok(()),
            Item::Joined(next, number) => {
                (dialect, version) = (next, number);
                warn_of(newer(dialect, version));
            }
            Item::Function(code) => function(out, code)?,
            Item::FunctionPreGa { name, engine, code } => {
                function(out, &library(name, engine, code))?;
            }
            Item::Entry(e) => {
                let h = &e.header;
                let kind = value::kind(h.type_id, dialect)?;
                let mut line = Line::begin(&mut whole, h, kind, &mut members)?;
                value::decode(h.type_id, dialect, version, e.value, h.value_at, &mut line)?;
                line.end()?;
                put(out, &whole)?;
                whole.clear();
            }
            Item::Large(large) => {
                let h = large.header();
                let kind = value::kind(h.type_id, dialect)?;
                let mut line = Line::begin(out, &h, kind, &mut members)?;
                large.decode(&mut line)?;
                line.end()?;
            }
            _ => {}
        }
    }
}

fn function(out: &mut impl Write, code: &[u8]) -> Result<()> {
    put(out, b"{\"function\":")?;
    text(out, code)?;
    put(out, b"}\n")
}

fn put(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).context(ErrorKind::Disk, to_stdout)
}

/// A byte string: as it is when it is UTF-8, else base64.
fn text(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    match std::str::from_utf8(bytes) {
        // What JSON escapes by itself is enough here.
        Ok(s) if s.is_ascii() && !bytes.contains(&0x7f) => serde_json::to_writer(out, s)
            .map_err(std::io::Error::from)
            .context(ErrorKind::Disk, to_stdout),
        Ok(s) => serde_json::to_string(s)
            .map_err(std::io::Error::from)
            .and_then(|quoted| out.write_all(escaped(&quoted).as_bytes()))
            .context(ErrorKind::Disk, to_stdout),
        Err(_) => encoded(out, bytes),
    }
}

fn encoded(out: &mut impl Write, mut bytes: impl Read) -> Result<()> {
    let mut write = |out: &mut dyn Write| -> std::io::Result<()> {
        out.write_all(b"{\"base64\":\"")?;
        let mut encoder = EncoderWriter::new(&mut *out, &STANDARD);
        std::io::copy(&mut bytes, &mut encoder)?;
        encoder.finish()?;
        drop(encoder);
        out.write_all(b"\"}")
    };
    write(out).context(ErrorKind::Disk, to_stdout)
}

/// The line of one key, with the value on its way.
struct Line<'a, W: Write> {
    out: &'a mut W,
    kind: ValueKind,
    members: &'a mut Members,
    /// No element of an array has been written yet.
    first: bool,
    /// A long string, or a stream's entries.
    waiting: SpooledTempFile,
    /// Of a string in parts: bytes that may be the start of a character, and whether all was UTF-8.
    rest: Vec<u8>,
    utf8: bool,
    tail: Vec<u8>,
}

impl<'a, W: Write> Line<'a, W> {
    fn begin(
        out: &'a mut W,
        h: &Header<'_>,
        kind: ValueKind,
        members: &'a mut Members,
    ) -> Result<Self> {
        let mut head = Vec::with_capacity(128);
        head.extend_from_slice(format!("{{\"db\":{},\"key\":", h.db.0).as_bytes());
        text(&mut head, h.key)?;
        let expire = h.expire.map_or("null".into(), |e| e.0.to_string());
        head.extend_from_slice(
            format!(
                ",\"type\":\"{}\",\"expire_at_ms\":{expire},\"value\":",
                kind.name()
            )
            .as_bytes(),
        );
        let mut tail = Vec::new();
        if let Some(freq) = h.freq {
            tail.extend_from_slice(format!(",\"freq\":{freq}").as_bytes());
        }
        if let Some(idle) = h.idle_s {
            tail.extend_from_slice(format!(",\"idle_s\":{idle}").as_bytes());
        }
        tail.extend_from_slice(b"}\n");
        put(out, &head)?;
        Ok(Line {
            out,
            kind,
            members,
            first: true,
            waiting: SpooledTempFile::new(HELD),
            rest: Vec::new(),
            utf8: true,
            tail,
        })
    }

    /// Before each element of an array: the bracket or the comma.
    fn next(&mut self) -> Result<()> {
        let mark: &[u8] = if self.first { b"[" } else { b"," };
        self.first = false;
        put(self.out, mark)
    }

    fn end(mut self) -> Result<()> {
        match self.kind {
            ValueKind::Set | ValueKind::Zset | ValueKind::Hash | ValueKind::PathHash => {
                self.put_members()?
            }
            ValueKind::List if self.first => put(self.out, b"[]")?,
            ValueKind::List => put(self.out, b"]")?,
            ValueKind::Array if self.first => put(self.out, b"[]}")?,
            ValueKind::Array => put(self.out, b"]}")?,
            _ => {}
        }
        let tail = std::mem::take(&mut self.tail);
        put(self.out, &tail)
    }

    fn put_members(&mut self) -> Result<()> {
        let (out, kind) = (&mut *self.out, self.kind);
        let mut first = true;
        put(out, b"[")?;
        self.members.sorted(|member, rest| {
            if !std::mem::take(&mut first) {
                put(out, b",")?;
            }
            match kind {
                ValueKind::Set => text(out, member),
                ValueKind::Zset => {
                    let score = f64::from_le_bytes(rest.first_chunk().copied().unwrap_or_default());
                    put(out, b"[")?;
                    text(out, member)?;
                    put(out, format!(",\"{}\"]", score_text(score)).as_bytes())
                }
                ValueKind::PathHash => {
                    let (path, field) = unjoined(member);
                    for (mark, part) in [("[", path.as_slice()), (",", field), (",", rest)] {
                        put(out, mark.as_bytes())?;
                        text(out, part)?;
                    }
                    put(out, b"]")
                }
                _ => {
                    let (expire, value) = rest.split_first_chunk().unwrap_or((&[0; 8], &[]));
                    put(out, b"[")?;
                    text(out, member)?;
                    put(out, b",")?;
                    text(out, value)?;
                    match i64::from_le_bytes(*expire) {
                        NO_EXPIRY => put(out, b",null]"),
                        at => put(out, format!(",{at}]").as_bytes()),
                    }
                }
            }
        })?;
        put(out, b"]")
    }

    /// Begins the `i`th object of an array with its name.
    fn name(&mut self, i: usize, name: &[u8]) -> Result<()> {
        put(self.out, if i == 0 { b"{" } else { b",{" })?;
        put(self.out, b"\"name\":")?;
        text(self.out, name)
    }

    fn wait(&mut self, bytes: &[u8]) -> Result<()> {
        self.waiting
            .write_all(bytes)
            .context(ErrorKind::Disk, temporary)
    }

    /// Checks a part of a string for UTF-8; a character may lie across two parts.
    fn check(&mut self, part: &[u8]) {
        let mut bytes = std::mem::take(&mut self.rest);
        bytes.extend_from_slice(part);
        match std::str::from_utf8(&bytes) {
            Ok(_) => {}
            Err(e) if e.error_len().is_none() => {
                self.rest = bytes.get(e.valid_up_to()..).unwrap_or_default().to_vec();
            }
            Err(_) => self.utf8 = false,
        }
    }

    fn put_long_string(&mut self) -> Result<()> {
        self.waiting
            .seek(SeekFrom::Start(0))
            .context(ErrorKind::Disk, temporary)?;
        let mut input = BufReader::with_capacity(256 << 10, &mut self.waiting);
        if !(self.utf8 && self.rest.is_empty()) {
            return encoded(self.out, input);
        }
        put(self.out, b"\"")?;
        let mut carried = Vec::new();
        loop {
            let piece = input.fill_buf().context(ErrorKind::Disk, temporary)?;
            if piece.is_empty() {
                break;
            }
            let n = piece.len();
            carried.extend_from_slice(piece);
            input.consume(n);
            let valid = match std::str::from_utf8(&carried) {
                Ok(_) => carried.len(),
                Err(e) => e.valid_up_to(),
            };
            let rest = carried.split_off(valid);
            let mut quoted = Vec::with_capacity(valid + 16);
            text(&mut quoted, &carried)?;
            put(
                self.out,
                quoted.get(1..quoted.len() - 1).unwrap_or_default(),
            )?;
            carried = rest;
        }
        put(self.out, b"\"")
    }
}

/// A path and a field as one string, in whose order they come by path, then by field: a zero of the path is marked.
fn joined(path: &[u8], field: &[u8]) -> Vec<u8> {
    let mut both = Vec::with_capacity(path.len() + field.len() + 2);
    for byte in path {
        both.push(*byte);
        if *byte == 0 {
            both.push(1);
        }
    }
    both.extend_from_slice(&[0, 0]);
    both.extend_from_slice(field);
    both
}

/// The path and the field again.
fn unjoined(both: &[u8]) -> (Vec<u8>, &[u8]) {
    let (mut path, mut rest) = (Vec::new(), both);
    while let Some((byte, more)) = rest.split_first() {
        rest = more;
        if *byte == 0 {
            let mark = rest.first().copied();
            rest = rest.get(1..).unwrap_or_default();
            if mark != Some(1) {
                break;
            }
        }
        path.push(*byte);
    }
    (path, rest)
}

/// How a field without an expiry is kept.
const NO_EXPIRY: i64 = i64::MIN;

impl<W: Write> ValueSink for Line<'_, W> {
    fn string(&mut self, value: &[u8]) -> Result<()> {
        text(self.out, value)
    }

    fn string_part(&mut self, part: &[u8], last: bool) -> Result<()> {
        self.wait(part)?;
        if self.utf8 {
            self.check(part);
        }
        if last { self.put_long_string() } else { Ok(()) }
    }

    fn list_item(&mut self, item: &[u8]) -> Result<()> {
        self.next()?;
        text(self.out, item)
    }

    fn set_member(&mut self, member: &[u8]) -> Result<()> {
        self.members.push(member, &[])
    }

    fn zset_member(&mut self, member: &[u8], score: f64) -> Result<()> {
        self.members.push(member, &[&score.to_le_bytes()])
    }

    fn hash_field(&mut self, field: &[u8], value: &[u8], expire: Option<ExpireAt>) -> Result<()> {
        let expire = expire.map_or(NO_EXPIRY, |e| e.0);
        self.members.push(field, &[&expire.to_le_bytes(), value])
    }

    fn stream_entry(&mut self, id: StreamId, fields: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        let mut entry = Vec::with_capacity(64);
        if !std::mem::take(&mut self.first) {
            entry.push(b',');
        }
        entry.extend_from_slice(format!("[\"{id}\",[").as_bytes());
        for (i, (field, value)) in fields.iter().enumerate() {
            entry.extend_from_slice(if i == 0 { b"[" } else { b",[" });
            text(&mut entry, field)?;
            entry.push(b',');
            text(&mut entry, value)?;
            entry.push(b']');
        }
        entry.extend_from_slice(b"]]");
        self.wait(&entry)
    }

    fn stream_meta(&mut self, m: &StreamMeta) -> Result<()> {
        let head = format!(
            "{{\"length\":{},\"last_id\":\"{}\",\"max_deleted_id\":{},\"entries_added\":{},\"entries\":[",
            m.length,
            m.last_id,
            m.max_deleted_id
                .map_or("null".into(), |i| format!("\"{i}\"")),
            m.entries_added.map_or("null".into(), |n| n.to_string()),
        );
        put(self.out, head.as_bytes())?;
        self.waiting
            .seek(SeekFrom::Start(0))
            .context(ErrorKind::Disk, temporary)?;
        std::io::copy(&mut self.waiting, self.out).context(ErrorKind::Disk, to_stdout)?;
        put(self.out, b"],\"groups\":[")?;
        let mut groups: Vec<_> = m.groups.iter().collect();
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        for (i, g) in groups.into_iter().enumerate() {
            self.name(i, &g.name)?;
            let read = g.entries_read.filter(|n| *n != u64::MAX);
            let read = read.map_or("null".into(), |n| n.to_string());
            let head = format!(
                ",\"last_id\":\"{}\",\"entries_read\":{read},\"pel\":[",
                g.last_id
            );
            put(self.out, head.as_bytes())?;
            let owners = g.owners();
            let mut pending: Vec<_> = g.pending.iter().collect();
            pending.sort_by_key(|p| p.id);
            for (i, p) in pending.into_iter().enumerate() {
                put(
                    self.out,
                    format!("{}[\"{}\",", if i == 0 { "" } else { "," }, p.id).as_bytes(),
                )?;
                text(self.out, owners.get(&p.id).copied().unwrap_or_default())?;
                put(
                    self.out,
                    format!(",{},{}]", p.delivery_ms, p.deliveries).as_bytes(),
                )?;
            }
            put(self.out, b"],\"consumers\":[")?;
            let mut consumers: Vec<_> = g.consumers.iter().collect();
            consumers.sort_by(|a, b| a.name.cmp(&b.name));
            for (i, c) in consumers.into_iter().enumerate() {
                self.name(i, &c.name)?;
                let mut ids = c.pending.clone();
                ids.sort();
                let ids: Vec<String> = ids.iter().map(|id| format!("\"{id}\"")).collect();
                let active = c.active_ms.map_or("null".into(), |n| n.to_string());
                let rest = format!(
                    ",\"seen_ms\":{},\"active_ms\":{active},\"pel\":[{}]}}",
                    c.seen_ms,
                    ids.join(",")
                );
                put(self.out, rest.as_bytes())?;
            }
            put(self.out, b"]}")?;
        }
        put(self.out, b"]}")
    }

    fn array_cursor(&mut self, next: Option<u64>) -> Result<()> {
        let next = next.map_or(0, |c| c.wrapping_add(1));
        put(
            self.out,
            format!("{{\"next_insert_index\":{next},\"elements\":").as_bytes(),
        )
    }

    fn array_element(&mut self, index: u64, element: &[u8]) -> Result<()> {
        self.next()?;
        put(self.out, format!("[{index},").as_bytes())?;
        text(self.out, element)?;
        put(self.out, b"]")
    }

    fn path_field(&mut self, path: &[u8], field: &[u8], value: &[u8]) -> Result<()> {
        self.members.push(&joined(path, field), &[value])
    }

    fn number(&mut self, n: u64) -> Result<()> {
        put(self.out, n.to_string().as_bytes())
    }

    fn module(&mut self, name: &str, version: u16, _: &[u8]) -> Result<()> {
        put(self.out, b"{\"module\":")?;
        text(self.out, name.as_bytes())?;
        if let Some(holds) = module_holds(name) {
            put(self.out, b",\"holds\":")?;
            text(self.out, holds.as_bytes())?;
        }
        put(self.out, format!(",\"version\":{version}}}").as_bytes())
    }

    fn vector_set(&mut self, _: u64, _: u64, _: &[u8]) -> Result<()> {
        self.module("vectorset", 0, &[])
    }

    fn module_part(&mut self, name: &str, version: u16, _: &[u8], last: bool) -> Result<()> {
        match last {
            true => self.module(name, version, &[]),
            false => Ok(()),
        }
    }
}
