//! What is in a snapshot: numbers by type, encoding, database and prefix, and what each server version would take.

use super::shared::warn_of;
use crate::error::Result;
use crate::rdb::file::{Header, Item, Options, Snapshot, newer};
use crate::rdb::opcode::{self as op, Dialect};
use crate::rdb::payload::{self, Fit, Traits};
use crate::rdb::value::stream::{StreamId, StreamMeta};
use crate::rdb::value::{self, ValueKind, ValueSink, module_holds};
use crate::types::unix_ms;
use crate::types::{ExpireAt, shown};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read;

/// How many of the largest keys are named, and how many prefixes.
const NAMED: usize = 20;
/// Prefixes counted at once; what comes later is counted as "(other)".
const PREFIXES: usize = 10_000;

#[derive(Default, Clone, Copy)]
struct Tally {
    keys: u64,
    bytes: u64,
    memory: u64,
}

impl Tally {
    fn add(&mut self, bytes: u64, memory: u64) {
        self.keys += 1;
        self.bytes += bytes;
        self.memory += memory;
    }

    fn json(&self) -> Value {
        json!({"keys": self.keys, "bytes": self.bytes, "memory": self.memory})
    }
}

/// Upper bounds of the expiry histogram, in ms from now.
const LEFT: [(&str, i64); 7] = [
    ("past", 0),
    ("within a minute", 60_000),
    ("within an hour", 3_600_000),
    ("within a day", 86_400_000),
    ("within a week", 604_800_000),
    ("within 30 days", 2_592_000_000),
    ("later", i64::MAX),
];

#[derive(Default, Clone, Copy)]
struct Ways {
    as_is: u64,
    converted: u64,
    module: u64,
    refused: u64,
}

/// The numbers of one snapshot.
pub struct Summary {
    /// Magic and version of each format that was read, and of how many snapshots.
    formats: BTreeMap<(&'static str, u32), u64>,
    written_by: BTreeMap<String, String>,
    total: Tally,
    types: BTreeMap<&'static str, Tally>,
    encodings: BTreeMap<&'static str, Tally>,
    dbs: BTreeMap<u32, Tally>,
    prefixes: BTreeMap<String, Tally>,
    expiries: [u64; LEFT.len()],
    no_expiry: u64,
    field_expiries: u64,
    functions: u64,
    largest: Vec<(u64, String, &'static str, u64, u64)>,
    targets: Vec<Ways>,
}

/// A record that is read but whose end is not known yet.
struct Open {
    at: u64,
    db: u32,
    key: String,
    prefix: String,
    kind: &'static str,
    encoding: &'static str,
    items: u64,
    memory: u64,
}

/// Reads a whole file, and adds it to what was read of others.
pub fn read(s: &mut Summary, input: impl Read, options: Options) -> Result<()> {
    let mut snapshot = Snapshot::open(input, options)?;
    warn_of(snapshot.head().newer());
    let (mut dialect, mut version) = (snapshot.dialect(), snapshot.version());
    s.format(dialect, version);
    let now = unix_ms();
    let mut open: Option<Open> = None;
    loop {
        // A record reaches to where the next one begins.
        let at = snapshot.position();
        if let Some(open) = open.take() {
            s.close(open, at);
        }
        match snapshot.next()? {
            Item::End => return Ok(()),
            Item::Joined(next, number) => {
                (dialect, version) = (next, number);
                warn_of(newer(dialect, version));
                s.format(dialect, version);
            }
            Item::Aux { name, value } => {
                let name = String::from_utf8_lossy(name).into_owned();
                if matches!(
                    name.as_str(),
                    "redis-ver" | "valkey-ver" | "redis-bits" | "ctime" | "used-mem"
                ) {
                    let value = String::from_utf8_lossy(value).into_owned();
                    s.written_by.insert(name, value);
                }
            }
            Item::Function(_) | Item::FunctionPreGa { .. } => s.functions += 1,
            Item::Entry(e) => {
                let h = &e.header;
                let mut measure = Measure::default();
                value::decode(
                    h.type_id,
                    dialect,
                    version,
                    e.value,
                    h.value_at,
                    &mut measure,
                )?;
                let traits = Traits::of(h.type_id, dialect, version, e.value);
                s.fits(h.type_id, dialect, traits);
                open = Some(s.open(h, at, now, dialect, e.value.len() as u64, measure)?);
            }
            Item::Large(large) => {
                let h = large.header();
                let mut measure = Measure::default();
                let (type_id, expire) = (h.type_id, h.expire);
                let key = h.key.to_vec();
                let header = Header {
                    key: &key,
                    meta: &[],
                    expire,
                    ..h
                };
                large.decode(&mut measure)?;
                let traits = Traits {
                    disputed: false,
                    field_expiry: measure.expiries > 0,
                };
                s.fits(type_id, dialect, traits);
                let bytes = measure.bytes;
                open = Some(s.open(&header, at, now, dialect, bytes, measure)?);
            }
            _ => {}
        }
    }
}

impl Default for Summary {
    fn default() -> Summary {
        Summary {
            formats: BTreeMap::new(),
            written_by: BTreeMap::new(),
            total: Tally::default(),
            types: BTreeMap::new(),
            encodings: BTreeMap::new(),
            dbs: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            expiries: [0; LEFT.len()],
            no_expiry: 0,
            field_expiries: 0,
            functions: 0,
            largest: Vec::new(),
            targets: vec![Ways::default(); payload::KNOWN.len()],
        }
    }
}

impl Summary {
    /// A snapshot of this format begins.
    fn format(&mut self, dialect: Dialect, version: u32) {
        let magic = match dialect {
            Dialect::Valkey => "VALKEY",
            Dialect::Redis => "REDIS",
        };
        *self.formats.entry((magic, version)).or_default() += 1;
    }

    /// The formats as text, `between` magic and version.
    fn formats(&self, between: &str) -> String {
        let all = self.formats.keys();
        let all: Vec<String> = all
            .map(|(magic, v)| format!("{magic}{between}{v}"))
            .collect();
        all.join(", ")
    }

    fn snapshots(&self) -> u64 {
        self.formats.values().sum()
    }

    fn fits(&mut self, type_id: u8, dialect: Dialect, traits: Traits) {
        for (ways, (_, target)) in self.targets.iter_mut().zip(payload::KNOWN) {
            match payload::fit_of(
                type_id,
                dialect,
                traits.disputed,
                &|| traits.field_expiry,
                &target,
            ) {
                Fit::AsIs => ways.as_is += 1,
                Fit::Transcode | Fit::Rebuild => ways.converted += 1,
                Fit::Module => ways.module += 1,
                Fit::Impossible(_) => ways.refused += 1,
            }
        }
    }

    fn open(
        &mut self,
        h: &Header<'_>,
        at: u64,
        now: i64,
        dialect: Dialect,
        body: u64,
        measure: Measure,
    ) -> Result<Open> {
        let kind = value::kind(h.type_id, dialect)?;
        match h.expire {
            None => self.no_expiry += 1,
            Some(e) => {
                let left = e.0.saturating_sub(now);
                let bucket = LEFT.iter().position(|(_, to)| left <= *to);
                if let Some(n) = bucket.and_then(|b| self.expiries.get_mut(b)) {
                    *n += 1;
                }
            }
        }
        self.field_expiries += measure.expiries;
        Ok(Open {
            at,
            db: h.db.0,
            key: shown(h.key),
            prefix: prefix(h.key),
            kind: kind.name(),
            encoding: (measure.module).unwrap_or_else(|| encoding(h.type_id, dialect)),
            items: measure.items,
            memory: measure.memory(h, kind, body),
        })
    }

    fn close(&mut self, open: Open, end: u64) {
        let bytes = end - open.at;
        self.total.add(bytes, open.memory);
        self.types
            .entry(open.kind)
            .or_default()
            .add(bytes, open.memory);
        self.encodings
            .entry(open.encoding)
            .or_default()
            .add(bytes, open.memory);
        self.dbs.entry(open.db).or_default().add(bytes, open.memory);
        let known = self.prefixes.len() < PREFIXES || self.prefixes.contains_key(&open.prefix);
        let prefix = if known { open.prefix } else { "(other)".into() };
        self.prefixes
            .entry(prefix)
            .or_default()
            .add(bytes, open.memory);
        if self.largest.len() < NAMED || self.largest.last().is_some_and(|l| l.0 < bytes) {
            let place = self.largest.partition_point(|l| l.0 >= bytes);
            self.largest
                .insert(place, (bytes, open.key, open.kind, open.items, open.memory));
            self.largest.truncate(NAMED);
        }
    }

    /// The prefixes with the most bytes.
    fn top_prefixes(&self) -> Vec<(&String, &Tally)> {
        let mut all: Vec<_> = self.prefixes.iter().collect();
        all.sort_by_key(|(name, t)| (std::cmp::Reverse(t.bytes), *name));
        all.truncate(NAMED);
        all
    }

    pub fn json(&self) -> Value {
        let tallies = |of: &BTreeMap<&'static str, Tally>| -> Value {
            of.iter()
                .map(|(k, t)| ((*k).to_owned(), t.json()))
                .collect()
        };
        let ttl: Value = LEFT
            .iter()
            .zip(self.expiries)
            .map(|((name, _), n)| ((*name).to_owned(), json!(n)))
            .chain([("none".to_owned(), json!(self.no_expiry))])
            .collect();
        let targets: Value = payload::KNOWN
            .iter()
            .zip(&self.targets)
            .map(|((name, _), w)| {
                let ways = json!({"as_is": w.as_is, "rebuilt": w.converted, "module": w.module, "refused": w.refused});
                ((*name).to_owned(), ways)
            })
            .collect();
        let largest: Vec<Value> = (self.largest.iter())
            .map(|(bytes, key, kind, items, memory)| {
                json!({"key": key, "type": kind, "bytes": bytes, "memory": memory, "items": items})
            })
            .collect();
        json!({
            "format": self.formats(" "), "snapshots": self.snapshots(), "written_by": self.written_by,
            "total": self.total.json(), "functions": self.functions,
            "types": tallies(&self.types), "encodings": tallies(&self.encodings),
            "databases": self.dbs.iter().map(|(db, t)| (db.to_string(), t.json())).collect::<Value>(),
            "prefixes": self.top_prefixes().iter().map(|(p, t)| ((*p).clone(), t.json())).collect::<Value>(),
            "expiry": ttl, "fields_with_expiry": self.field_expiries, "largest": largest, "targets": targets,
        })
    }

    pub fn text(&self) -> String {
        let mut out = vec![format!(
            "{}{}{}",
            self.formats(" RDB version "),
            match self.snapshots() {
                0 | 1 => String::new(),
                n => format!(", {n} snapshots"),
            },
            self.written_by
                .iter()
                .map(|(k, v)| format!(", {k} {v}"))
                .collect::<String>()
        )];
        out.push("bytes are those of the file; memory is an estimate for a 64-bit server".into());
        let row = |name: &str, t: &Tally| {
            format!(
                "  {name:<28} {:>12} keys {:>16} bytes {:>16} memory",
                t.keys, t.bytes, t.memory
            )
        };
        out.push(row("all", &self.total));
        let mut table = |title: &str, rows: Vec<(String, Tally)>| {
            out.push(format!("by {title}:"));
            out.extend(rows.iter().map(|(name, t)| row(name, t)));
        };
        let named = |of: &BTreeMap<&'static str, Tally>| -> Vec<(String, Tally)> {
            of.iter().map(|(k, t)| ((*k).to_owned(), *t)).collect()
        };
        table("type", named(&self.types));
        table("encoding", named(&self.encodings));
        table(
            "database",
            self.dbs.iter().map(|(k, t)| (k.to_string(), *t)).collect(),
        );
        table(
            "prefix (the largest)",
            self.top_prefixes()
                .iter()
                .map(|(k, t)| ((*k).clone(), **t))
                .collect(),
        );
        out.push("expiry:".into());
        for ((name, _), n) in LEFT.iter().zip(self.expiries) {
            out.push(format!("  {name:<28} {n:>12} keys"));
        }
        out.push(format!("  {:<28} {:>12} keys", "none", self.no_expiry));
        if self.field_expiries > 0 {
            out.push(format!(
                "  {:<28} {:>12} fields",
                "of hash fields", self.field_expiries
            ));
        }
        if self.functions > 0 {
            out.push(format!("function libraries: {}", self.functions));
        }
        out.push("the largest keys:".into());
        for (bytes, key, kind, items, memory) in &self.largest {
            out.push(format!(
                "  {bytes:>16} bytes {memory:>16} memory {items:>12} items  {kind} {key}"
            ));
        }
        out.push("what a target would do with the keys:".into());
        for ((name, _), w) in payload::KNOWN.iter().zip(&self.targets) {
            let mut line = format!(
                "  {name:<28} {:>12} taken as they are, {} rebuilt",
                w.as_is, w.converted
            );
            if w.module > 0 {
                line.push_str(&format!(", {} need their module", w.module));
            }
            if w.refused > 0 {
                line.push_str(&format!(", {} REFUSED", w.refused));
            }
            out.push(line);
        }
        out.join("\n")
    }
}

/// What stands before the first colon; digits say nothing.
fn prefix(key: &[u8]) -> String {
    match key.iter().position(|b| *b == b':') {
        Some(at) => shown(key.get(..=at).unwrap_or_default()),
        None => "(no prefix)".into(),
    }
}

fn encoding(type_id: u8, dialect: Dialect) -> &'static str {
    match type_id {
        op::STRING => "string",
        op::LIST => "linked list",
        op::SET => "set table",
        op::ZSET | op::ZSET_2 => "skiplist",
        op::HASH => "hash table",
        op::HASH_ZIPMAP => "zipmap",
        op::LIST_ZIPLIST => "list ziplist",
        op::SET_INTSET => "intset",
        op::ZSET_ZIPLIST => "zset ziplist",
        op::HASH_ZIPLIST => "hash ziplist",
        op::LIST_QUICKLIST => "quicklist of ziplists",
        op::LIST_QUICKLIST_2 => "quicklist of listpacks",
        op::HASH_LISTPACK => "hash listpack",
        op::ZSET_LISTPACK => "zset listpack",
        op::SET_LISTPACK => "set listpack",
        op::HASH_22 if dialect == Dialect::Valkey => "hash table with field expiry",
        op::HASH_22 | op::HASH_METADATA => "hash table with field expiry",
        op::PATH_HASH if dialect == Dialect::Valkey => "path hash",
        op::HASH_LISTPACK_EX_PRE_GA | op::HASH_LISTPACK_EX => "hash listpack with field expiry",
        op::STREAM | op::STREAM_2 | op::STREAM_3 | op::STREAM_4 | op::STREAM_5 => "stream",
        op::ARRAY => "array",
        op::GCRA_8_8 | op::GCRA => "rate limiter",
        _ => "module",
    }
}

/// Counts a value's elements and their bytes.
#[derive(Default)]
struct Measure {
    items: u64,
    bytes: u64,
    expiries: u64,
    extra: u64,
    /// What a module's type holds, where that is known.
    module: Option<&'static str>,
}

impl Measure {
    fn add(&mut self, bytes: usize) {
        self.items += 1;
        self.bytes += bytes as u64;
    }

    /// An estimate: entry, object, key and value as jemalloc would round them, on a 64-bit server.
    fn memory(&self, h: &Header<'_>, kind: ValueKind, body: u64) -> u64 {
        const OBJECT: u64 = 16;
        let key = 24 + h.key.len() as u64 + 9;
        let expiry = if h.expire.is_some() { 24 } else { 0 };
        let packed = matches!(
            h.type_id,
            op::HASH_ZIPMAP
                | op::LIST_ZIPLIST..=op::HASH_ZIPLIST
                | op::HASH_LISTPACK..=op::ZSET_LISTPACK
                | op::SET_LISTPACK
                | op::HASH_LISTPACK_EX
        );
        // Small elements take a few bytes of header each when packed, and allocations of their own when not.
        let per_item = match kind {
            _ if packed => 2,
            ValueKind::Set => 32,
            ValueKind::Hash => 56,
            ValueKind::Zset => 88,
            ValueKind::List => 3,
            ValueKind::Stream => 8,
            _ => 0,
        };
        let value = match kind {
            ValueKind::Module | ValueKind::Array => body,
            _ => self.bytes + self.items * per_item + self.extra,
        };
        OBJECT + key + expiry + value
    }
}

impl ValueSink for Measure {
    fn string(&mut self, value: &[u8]) -> Result<()> {
        self.add(value.len());
        Ok(())
    }
    fn string_part(&mut self, part: &[u8], _: bool) -> Result<()> {
        self.items = 1;
        self.bytes += part.len() as u64;
        Ok(())
    }
    fn list_item(&mut self, item: &[u8]) -> Result<()> {
        self.add(item.len());
        Ok(())
    }
    fn set_member(&mut self, member: &[u8]) -> Result<()> {
        self.add(member.len());
        Ok(())
    }
    fn zset_member(&mut self, member: &[u8], _: f64) -> Result<()> {
        self.add(member.len());
        Ok(())
    }
    fn hash_field(&mut self, field: &[u8], value: &[u8], expire: Option<ExpireAt>) -> Result<()> {
        self.expiries += u64::from(expire.is_some());
        self.add(field.len() + value.len());
        Ok(())
    }
    fn stream_entry(&mut self, _: StreamId, fields: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        self.add(fields.iter().map(|(f, v)| f.len() + v.len()).sum());
        Ok(())
    }
    fn stream_meta(&mut self, meta: &StreamMeta) -> Result<()> {
        let pending: usize = meta.groups.iter().map(|g| g.pending.len()).sum();
        self.extra = 100 * meta.groups.len() as u64 + 80 * pending as u64;
        Ok(())
    }
    fn path_field(&mut self, path: &[u8], field: &[u8], value: &[u8]) -> Result<()> {
        self.add(path.len() + field.len() + value.len());
        Ok(())
    }
    fn vector(&mut self, name: &[u8], _: &[u8], vector: &[u8], _: u64) -> Result<()> {
        self.add(name.len() + vector.len());
        Ok(())
    }
    fn module(&mut self, name: &str, _: u16, _: &[u8]) -> Result<()> {
        self.module = module_holds(name);
        Ok(())
    }
    fn module_part(&mut self, name: &str, _: u16, part: &[u8], _: bool) -> Result<()> {
        self.module = module_holds(name);
        self.items = 1;
        self.bytes += part.len() as u64;
        Ok(())
    }
    fn array_element(&mut self, _: u64, text: &[u8]) -> Result<()> {
        self.add(text.len());
        Ok(())
    }
}
