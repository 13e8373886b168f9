//! `keyferry rdb json|summary`: a look into a snapshot file.

use super::output::print;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::rdb::file::{Header, Item, Options, Snapshot};
use crate::rdb::opcode::{self, Dialect};
use crate::rdb::value::stream::{StreamId, StreamMeta};
use crate::rdb::value::{self, ValueKind, ValueSink};
use crate::types::{ExpireAt, shown};
use clap::Subcommand;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum RdbCommand {
    /// Print each key as a line of JSON, in the file's order
    Json {
        /// The snapshot; "-" is standard input
        file: PathBuf,
        /// Read on although the file's checksum is wrong
        #[arg(long)]
        ignore_checksum: bool,
    },
    /// Count keys and bytes by type and database, and name the largest keys
    Summary {
        /// The snapshot; "-" is standard input
        file: PathBuf,
    },
}

pub fn run(command: RdbCommand) -> Result<u8> {
    match command {
        RdbCommand::Json {
            file,
            ignore_checksum,
        } => {
            let mut out = BufWriter::new(std::io::stdout().lock());
            let written = write_json(open(&file)?, &mut out, ignore_checksum);
            // What came before a break is printed whatever broke.
            let flushed = out.flush();
            match (written, flushed) {
                (Err(e), _) if is_broken_pipe(&e) => {}
                (Err(e), _) => return Err(e.context(format!("read {}", file.display()))),
                (Ok(()), Err(e)) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                    return Err(e).context(ErrorKind::Disk, || "write to standard output".into());
                }
                _ => {}
            }
        }
        RdbCommand::Summary { file } => print(
            &summary(open(&file)?).map_err(|e| e.context(format!("read {}", file.display())))?,
        )?,
    }
    Ok(0)
}

fn is_broken_pipe(e: &Error) -> bool {
    let cause = std::error::Error::source(e).and_then(|c| c.downcast_ref::<std::io::Error>());
    cause.is_some_and(|c| c.kind() == std::io::ErrorKind::BrokenPipe)
}

fn open(path: &Path) -> Result<Box<dyn Read>> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(std::io::stdin().lock()));
    }
    let file = std::fs::File::open(path)
        .context(ErrorKind::Disk, || format!("open {}", path.display()))?;
    Ok(Box::new(file))
}

/// Writes every key as one line.
pub fn write_json(input: impl Read, out: &mut impl Write, ignore_checksum: bool) -> Result<()> {
    let options = Options {
        ignore_checksum,
        ..Options::default()
    };
    let mut snapshot = Snapshot::open(input, options)?;
    let (dialect, version) = (snapshot.dialect(), snapshot.version());
    loop {
        let line = match snapshot.next()? {
            Item::End => return Ok(()),
            Item::Function(code) => json!({"function": text(code)}),
            Item::FunctionPreGa { name, engine, code } => {
                let head = [b"#!", engine, b" name=", name, b"\n"].concat();
                json!({"function": text(&[&head, code].concat())})
            }
            Item::Entry(e) if e.header.type_id == opcode::MODULE_PRE_GA => {
                line(&e.header, ValueKind::Module, Value::Null)
            }
            Item::Entry(e) => {
                let kind = value::kind(e.header.type_id, dialect)?;
                let mut tree = Tree::new(kind, e.header.type_id);
                value::decode(
                    e.header.type_id,
                    dialect,
                    version,
                    e.value,
                    e.header.value_at,
                    &mut tree,
                )?;
                line(&e.header, kind, tree.finish())
            }
            Item::Large(large) => {
                let kind = value::kind(large.header().type_id, dialect)?;
                let head = line(&large.header(), kind, Value::Null);
                let mut tree = Tree::new(kind, large.header().type_id);
                large.decode(&mut tree)?;
                let mut head = head;
                head["value"] = tree.finish();
                head
            }
            _ => continue,
        };
        writeln!(out, "{line}").context(ErrorKind::Disk, || "write to standard output".into())?;
    }
}

fn line(h: &Header<'_>, kind: ValueKind, value: Value) -> Value {
    let mut line = json!({"db": h.db.0, "key": text(h.key), "type": kind.name(), "expire_at_ms": h.expire.map(|e| e.0), "value": value});
    if let Some(freq) = h.freq {
        line["freq"] = json!(freq);
    }
    if let Some(idle) = h.idle_s {
        line["idle_s"] = json!(idle);
    }
    line
}

/// A byte string: as it is when it is UTF-8, else base64.
fn text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(s) => json!(s),
        Err(_) => json!({"base64": base64(bytes)}),
    }
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let sextet = (n >> (18 - 6 * i)) as usize & 63;
            out.push(if i <= chunk.len() {
                char::from(ALPHABET[sextet])
            } else {
                '='
            });
        }
    }
    out
}

/// Collects a value as JSON.
struct Tree {
    kind: ValueKind,
    type_id: u8,
    string: Vec<u8>,
    list: Vec<Value>,
    members: Vec<(Vec<u8>, Value)>,
    other: Value,
    cursor: Option<u64>,
}

impl Tree {
    fn new(kind: ValueKind, type_id: u8) -> Tree {
        Tree {
            kind,
            type_id,
            string: Vec::new(),
            list: Vec::new(),
            members: Vec::new(),
            other: Value::Null,
            cursor: None,
        }
    }

    fn finish(mut self) -> Value {
        self.members.sort_by(|a, b| a.0.cmp(&b.0));
        let sorted = |members: Vec<(Vec<u8>, Value)>| {
            Value::Array(members.into_iter().map(|(_, v)| v).collect())
        };
        match self.kind {
            ValueKind::String => text(&self.string),
            ValueKind::List => Value::Array(self.list),
            ValueKind::Set | ValueKind::Zset | ValueKind::Hash => sorted(self.members),
            ValueKind::Array => {
                json!({"next_insert_index": self.cursor.map_or(0, |c| c.wrapping_add(1)), "elements": self.list})
            }
            ValueKind::Stream => {
                self.other["entries"] = Value::Array(self.list);
                self.other
            }
            ValueKind::Gcra | ValueKind::Module => self.other,
        }
    }
}

impl ValueSink for Tree {
    fn string(&mut self, value: &[u8]) -> Result<()> {
        self.string = value.to_vec();
        Ok(())
    }

    fn string_part(&mut self, part: &[u8], _: bool) -> Result<()> {
        self.string.extend_from_slice(part);
        Ok(())
    }

    fn list_item(&mut self, item: &[u8]) -> Result<()> {
        self.list.push(text(item));
        Ok(())
    }

    fn set_member(&mut self, member: &[u8]) -> Result<()> {
        self.members.push((member.to_vec(), text(member)));
        Ok(())
    }

    fn zset_member(&mut self, member: &[u8], score: f64) -> Result<()> {
        self.members.push((
            member.to_vec(),
            json!([text(member), crate::migrate::rebuild::score_text(score)]),
        ));
        Ok(())
    }

    fn hash_field(&mut self, field: &[u8], value: &[u8], expire: Option<ExpireAt>) -> Result<()> {
        self.members.push((
            field.to_vec(),
            json!([text(field), text(value), expire.map(|e| e.0)]),
        ));
        Ok(())
    }

    fn stream_entry(&mut self, id: StreamId, fields: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        let pairs: Vec<Value> = fields
            .iter()
            .map(|(f, v)| json!([text(f), text(v)]))
            .collect();
        self.list.push(json!([id.to_string(), pairs]));
        Ok(())
    }

    fn stream_meta(&mut self, m: &StreamMeta) -> Result<()> {
        let mut groups: Vec<_> = m.groups.iter().collect();
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        let groups: Vec<Value> = (groups.into_iter())
            .map(|g| {
                let owners = g.owners();
                let mut pending: Vec<_> = g.pending.iter().collect();
                pending.sort_by_key(|p| p.id);
                let pel: Vec<Value> = (pending.iter())
                    .map(|p| json!([p.id.to_string(), owners.get(&p.id).map_or(json!(""), |n| text(n)), p.delivery_ms, p.deliveries]))
                    .collect();
                let mut consumers: Vec<_> = g.consumers.iter().collect();
                consumers.sort_by(|a, b| a.name.cmp(&b.name));
                let consumers: Vec<Value> = (consumers.into_iter())
                    .map(|c| {
                        let mut ids = c.pending.clone();
                        ids.sort();
                        let ids: Vec<String> = ids.iter().map(StreamId::to_string).collect();
                        json!({"name": text(&c.name), "seen_ms": c.seen_ms, "active_ms": c.active_ms, "pel": ids})
                    })
                    .collect();
                let read = g.entries_read.filter(|n| *n != u64::MAX);
                json!({"name": text(&g.name), "last_id": g.last_id.to_string(), "entries_read": read, "pel": pel, "consumers": consumers})
            })
            .collect();
        self.other = json!({
            "length": m.length, "last_id": m.last_id.to_string(), "max_deleted_id": m.max_deleted_id.map(|i| i.to_string()),
            "entries_added": m.entries_added, "entries": [], "groups": groups,
        });
        Ok(())
    }

    fn array_cursor(&mut self, next: Option<u64>) -> Result<()> {
        self.cursor = next;
        Ok(())
    }

    fn array_element(&mut self, index: u64, element: &[u8]) -> Result<()> {
        self.list.push(json!([index, text(element)]));
        Ok(())
    }

    fn number(&mut self, n: u64) -> Result<()> {
        self.other = json!(n);
        Ok(())
    }

    fn module(&mut self, name: &str, version: u16, _: &[u8]) -> Result<()> {
        let _ = self.type_id;
        self.other = json!({"module": name, "version": version});
        Ok(())
    }
}

fn summary(input: Box<dyn Read>) -> Result<String> {
    let mut snapshot = Snapshot::open(input, Options::default())?;
    let (dialect, version) = (snapshot.dialect(), snapshot.version());
    let mut kinds: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new();
    let mut dbs: BTreeMap<u32, u64> = BTreeMap::new();
    let mut largest: Vec<(u64, String)> = Vec::new();
    let mut expiring = 0u64;
    let mut last: Option<(u64, &'static str, String)> = None;
    loop {
        // A value's size is how far its record reaches.
        let at = snapshot.position();
        if let Some((from, kind, key)) = last.take() {
            let bytes = at - from;
            kinds.entry(kind).or_default().1 += bytes;
            if largest.len() < 20 || largest.last().is_some_and(|l| l.0 < bytes) {
                let place = largest.partition_point(|l| l.0 >= bytes);
                largest.insert(place, (bytes, key));
                largest.truncate(20);
            }
        }
        let header = match snapshot.next()? {
            Item::End => break,
            Item::Entry(e) => e.header,
            Item::Large(large) => {
                let h = large.header();
                let (kind, key, db, expires) = (
                    value::kind(h.type_id, dialect)?.name(),
                    shown(h.key),
                    h.db.0,
                    h.expire.is_some(),
                );
                kinds.entry(kind).or_default().0 += 1;
                *dbs.entry(db).or_default() += 1;
                expiring += u64::from(expires);
                last = Some((at, kind, key));
                struct Nothing;
                impl ValueSink for Nothing {}
                large.decode(&mut Nothing)?;
                continue;
            }
            _ => continue,
        };
        let kind = value::kind(header.type_id, dialect)?.name();
        kinds.entry(kind).or_default().0 += 1;
        *dbs.entry(header.db.0).or_default() += 1;
        expiring += u64::from(header.expire.is_some());
        last = Some((at, kind, shown(header.key)));
    }
    let product = if dialect == Dialect::Valkey {
        "VALKEY"
    } else {
        "REDIS"
    };
    let mut lines = vec![format!(
        "{product} RDB version {version}, keys with an expiry: {expiring}"
    )];
    let types: Map<String, Value> = kinds
        .iter()
        .map(|(k, (n, b))| ((*k).to_owned(), json!({"keys": n, "bytes": b})))
        .collect();
    lines.extend(
        types
            .iter()
            .map(|(k, v)| format!("{k}: {} keys, {} bytes", v["keys"], v["bytes"])),
    );
    lines.extend(dbs.iter().map(|(db, n)| format!("database {db}: {n} keys")));
    lines.push("largest:".into());
    lines.extend(
        largest
            .iter()
            .map(|(bytes, key)| format!("  {bytes} {key}")),
    );
    Ok(lines.join("\n"))
}
