//! A value read in parts by the commands of its type, for what is too large for one DUMP or where DUMP is refused.
//!
//! The digest is the same as that of the DUMP payload. The parts are not read at one moment: what is written meanwhile
//! makes two readings differ, and the key is read again.

use super::dumped;
use super::fact::KeyFact;
use super::side::Side;
use crate::digest::{Digester, Width};
use crate::error::{Error, ErrorKind, Result};
use crate::net::server::Server;
use crate::net::{Conn, refusal};
use crate::rdb::value::stream::{Consumer, Group, Pending, StreamId, StreamMeta};
use crate::rdb::value::{ValueKind, ValueSink};
use crate::resp::Reply;
use crate::types::{ExpireAt, unix_ms};

/// Elements asked for at a time: as many as are about so many bytes, but no more than that.
const MOST: u64 = 1000;
const PART_BYTES: i64 = 1 << 20;

/// The digest and expiry of a key of the selected database; `None` when it is not there.
///
/// Errors: as of any command.
pub async fn fact(
    conn: &mut Conn,
    side: &Side,
    key: &[u8],
    width: Width,
) -> Result<Option<KeyFact>> {
    let digest = match kind(conn, key).await? {
        None => return Ok(None),
        Some(kind) => {
            let mut digester = Digester::new(kind, unix_ms(), width);
            let there = match kind.has_commands() {
                true => (read_parts(conn, side, key, kind, &mut digester).await).map(|()| true)?,
                false => dumped::read(conn, key, &mut digester).await?,
            };
            there.then(|| digester.finish()).flatten()
        }
    };
    let Some(digest) = digest else {
        return Ok(None);
    };
    let expire = expire(conn, side, key).await?;
    Ok(expire.map(|expire| KeyFact { digest, expire }))
}

/// The type of a key; `None` when it is not there.
pub async fn kind(conn: &mut Conn, key: &[u8]) -> Result<Option<ValueKind>> {
    let name = conn.call(&[b"TYPE", key]).await?;
    let name = name.text().unwrap_or_default().into_owned();
    Ok(Some(match name.as_str() {
        "none" => return Ok(None),
        "string" => ValueKind::String,
        "list" => ValueKind::List,
        "set" => ValueKind::Set,
        "zset" => ValueKind::Zset,
        "hash" => ValueKind::Hash,
        "stream" => ValueKind::Stream,
        "array" => ValueKind::Array,
        // What a module calls its type.
        _ => ValueKind::Module,
    }))
}

/// Reads a value into `sink` and returns its expiry; the outer `None` when the key has gone meanwhile.
pub async fn read<S: ValueSink>(
    conn: &mut Conn,
    side: &Side,
    key: &[u8],
    kind: ValueKind,
    sink: &mut S,
) -> Result<Option<Option<ExpireAt>>> {
    read_parts(conn, side, key, kind, sink).await?;
    expire(conn, side, key).await
}

/// The same without the expiry.
async fn read_parts<S: ValueSink>(
    conn: &mut Conn,
    side: &Side,
    key: &[u8],
    kind: ValueKind,
    sink: &mut S,
) -> Result<()> {
    let count = count(conn, key, kind).await?;
    let mut parts = Parts {
        conn,
        key,
        sink,
        count,
    };
    match kind {
        ValueKind::String => parts.string().await,
        ValueKind::List => parts.list().await,
        ValueKind::Set => parts.scan(b"SSCAN", false).await,
        ValueKind::Zset => parts.scan(b"ZSCAN", false).await,
        ValueKind::Hash => parts.scan(b"HSCAN", side.field_expiry).await,
        _ => parts.stream().await,
    }
}

/// How many elements to ask for at a time.
async fn count(conn: &mut Conn, key: &[u8], kind: ValueKind) -> Result<u64> {
    let len: &[u8] = match kind {
        ValueKind::List => b"LLEN",
        ValueKind::Set => b"SCARD",
        ValueKind::Zset => b"ZCARD",
        ValueKind::Hash => b"HLEN",
        ValueKind::Stream => b"XLEN",
        _ => return Ok(MOST),
    };
    let number = |reply: &Reply| reply.int().and_then(|n| u64::try_from(n).ok());
    let elements = number(&conn.call(&[len, key]).await?).unwrap_or(0);
    let memory = conn
        .ask(&[b"MEMORY", b"USAGE", key, b"SAMPLES", b"20"])
        .await?;
    let each = number(&memory).unwrap_or(0) / elements.max(1);
    Ok((PART_BYTES as u64 / each.max(1)).clamp(1, MOST))
}

/// The expiry of a key; the outer `None` when it is not there.
pub(super) async fn expire(
    conn: &mut Conn,
    side: &Side,
    key: &[u8],
) -> Result<Option<Option<ExpireAt>>> {
    let command = Server::expiry_command(side.pexpiretime);
    let now = if side.pexpiretime { 0 } else { unix_ms() };
    Ok(match conn.call(&[command, key]).await?.int() {
        Some(-2) => None,
        Some(n) if n >= 0 => Some(Some(ExpireAt(n.saturating_add(now)))),
        _ => Some(None),
    })
}

struct Parts<'a, S> {
    conn: &'a mut Conn,
    key: &'a [u8],
    sink: &'a mut S,
    /// Elements asked for at a time.
    count: u64,
}

impl<S: ValueSink> Parts<'_, S> {
    fn bad(&self, command: &str) -> Error {
        Error::new(
            ErrorKind::Protocol,
            format!(
                "{} answered {command} in a form that is not understood",
                self.conn.address()
            ),
        )
    }

    async fn string(&mut self) -> Result<()> {
        let mut at = 0i64;
        loop {
            let end = at + PART_BYTES - 1;
            let reply = (self.conn)
                .call(&[
                    b"GETRANGE",
                    self.key,
                    at.to_string().as_bytes(),
                    end.to_string().as_bytes(),
                ])
                .await?;
            let part = reply.bytes().ok_or_else(|| self.bad("GETRANGE"))?;
            self.sink.string_part(part, false)?;
            if (part.len() as i64) < PART_BYTES {
                return self.sink.string_part(b"", true);
            }
            at += PART_BYTES;
        }
    }

    async fn list(&mut self) -> Result<()> {
        let mut at = 0;
        loop {
            let (from, to) = (at.to_string(), (at + self.count - 1).to_string());
            let reply = (self.conn)
                .call(&[b"LRANGE", self.key, from.as_bytes(), to.as_bytes()])
                .await?;
            let items = reply.array().ok_or_else(|| self.bad("LRANGE"))?;
            for item in items {
                self.sink.list_item(item.bytes().unwrap_or_default())?;
            }
            let n = items.len() as u64;
            if n < self.count {
                return Ok(());
            }
            at += n;
        }
    }

    async fn scan(&mut self, command: &[u8], field_expiry: bool) -> Result<()> {
        let (mut cursor, count) = (b"0".to_vec(), self.count.to_string());
        loop {
            let reply = (self.conn)
                .call(&[command, self.key, &cursor, b"COUNT", count.as_bytes()])
                .await?;
            let bad = self.bad(&String::from_utf8_lossy(command));
            let (Some(next), Some(items)) = (
                reply.array().and_then(|p| p.first()?.bytes()),
                reply.array().and_then(|p| p.get(1)?.array()),
            ) else {
                return Err(bad);
            };
            cursor = next.to_vec();
            let bytes = |r: Option<&Reply>| r.and_then(Reply::bytes).unwrap_or_default().to_vec();
            match command {
                b"SSCAN" => {
                    for member in items {
                        self.sink.set_member(member.bytes().unwrap_or_default())?;
                    }
                }
                b"ZSCAN" => {
                    for pair in items.chunks_exact(2) {
                        let score = pair.get(1).and_then(Reply::text).unwrap_or_default();
                        let Ok(score) = score.parse() else {
                            return Err(bad);
                        };
                        self.sink.zset_member(&bytes(pair.first()), score)?;
                    }
                }
                _ => {
                    let fields: Vec<(Vec<u8>, Vec<u8>)> = (items.chunks_exact(2))
                        .map(|pair| (bytes(pair.first()), bytes(pair.get(1))))
                        .collect();
                    self.fields(&fields, field_expiry).await?;
                }
            }
            if cursor == b"0" {
                return Ok(());
            }
        }
    }

    async fn fields(&mut self, fields: &[(Vec<u8>, Vec<u8>)], expiry: bool) -> Result<()> {
        let mut expiries = Vec::new();
        if expiry && !fields.is_empty() {
            let count = fields.len().to_string();
            let mut args: Vec<&[u8]> = vec![b"HPEXPIRETIME", self.key, b"FIELDS", count.as_bytes()];
            args.extend(fields.iter().map(|(name, _)| name.as_slice()));
            match self.conn.ask(&args).await? {
                Reply::Array(list) => expiries = list,
                Reply::Error(text) => return Err(refusal("HPEXPIRETIME", &text)),
                // The key has gone meanwhile.
                _ => {}
            }
        }
        for (i, (name, value)) in fields.iter().enumerate() {
            let expire = expiries.get(i).and_then(Reply::int).filter(|n| *n >= 0);
            self.sink.hash_field(name, value, expire.map(ExpireAt))?;
        }
        Ok(())
    }

    async fn stream(&mut self) -> Result<()> {
        let count = self.count.to_string();
        let mut from = StreamId { ms: 0, seq: 0 };
        loop {
            let reply = (self.conn)
                .call(&[
                    b"XRANGE",
                    self.key,
                    from.to_string().as_bytes(),
                    b"+",
                    b"COUNT",
                    count.as_bytes(),
                ])
                .await?;
            let entries = reply.array().ok_or_else(|| self.bad("XRANGE"))?;
            let mut last = None;
            for entry in entries {
                let parts = entry.array().ok_or_else(|| self.bad("XRANGE"))?;
                let id = id(parts.first()).ok_or_else(|| self.bad("XRANGE"))?;
                let list = parts.get(1).and_then(Reply::array).unwrap_or_default();
                let bytes =
                    |r: Option<&Reply>| r.and_then(Reply::bytes).unwrap_or_default().to_vec();
                let pairs: Vec<(Vec<u8>, Vec<u8>)> = (list.chunks_exact(2))
                    .map(|pair| (bytes(pair.first()), bytes(pair.get(1))))
                    .collect();
                self.sink.stream_entry(id, &pairs)?;
                last = Some(id);
            }
            match last {
                Some(id) if entries.len() as u64 == self.count => from = after(id),
                _ => break,
            }
        }
        let reply = (self.conn)
            .call(&[b"XINFO", b"STREAM", self.key, b"FULL", b"COUNT", b"1"])
            .await?;
        let mut meta = stream_meta(&reply).ok_or_else(|| self.bad("XINFO STREAM FULL"))?;
        // FULL lists COUNT pending entries; 0 is all of them, where there are any.
        if meta.groups.iter().any(|g| !g.pending.is_empty()) {
            let all = (self.conn)
                .call(&[b"XINFO", b"STREAM", self.key, b"FULL", b"COUNT", b"0"])
                .await?;
            meta = stream_meta(&all).ok_or_else(|| self.bad("XINFO STREAM FULL"))?;
        }
        self.sink.stream_meta(&meta)
    }
}

fn after(id: StreamId) -> StreamId {
    match id.seq.checked_add(1) {
        Some(seq) => StreamId { ms: id.ms, seq },
        None => StreamId {
            ms: id.ms.saturating_add(1),
            seq: 0,
        },
    }
}

fn id(reply: Option<&Reply>) -> Option<StreamId> {
    let text = reply?.text()?;
    let (ms, seq) = text.split_once('-')?;
    Some(StreamId {
        ms: ms.parse().ok()?,
        seq: seq.parse().ok()?,
    })
}

fn field<'r>(map: &'r Reply, name: &str) -> Option<&'r Reply> {
    (map.array()?.chunks_exact(2))
        .find(|p| p.first().and_then(Reply::bytes) == Some(name.as_bytes()))?
        .get(1)
}

/// From XINFO STREAM FULL (t_stream.c xinfoReplyWithStreamInfo).
fn stream_meta(info: &Reply) -> Option<StreamMeta> {
    let number = |map: &Reply, name: &str| field(map, name)?.int()?.try_into().ok();
    let mut meta = StreamMeta {
        length: number(info, "length")?,
        last_id: id(field(info, "last-generated-id"))?,
        first_id: None,
        max_deleted_id: id(field(info, "max-deleted-entry-id")),
        entries_added: number(info, "entries-added"),
        groups: Vec::new(),
    };
    let counts = meta.entries_added.is_some();
    for group in field(info, "groups")?.array()? {
        let mut found = Group {
            name: field(group, "name")?.bytes()?.to_vec(),
            last_id: id(field(group, "last-delivered-id"))?,
            // "Unknown" is nil here, and the largest number in a payload.
            entries_read: counts.then(|| number(group, "entries-read").unwrap_or(u64::MAX)),
            pending: Vec::new(),
            consumers: Vec::new(),
            nacked: Vec::new(),
        };
        // [id, consumer, delivered at, deliveries]
        for pending in field(group, "pel").or(field(group, "pending"))?.array()? {
            let parts = pending.array()?;
            found.pending.push(Pending {
                id: id(parts.first())?,
                delivery_ms: parts.get(2)?.int()?,
                deliveries: u64::try_from(parts.get(3)?.int()?).ok()?,
            });
        }
        for consumer in field(group, "consumers")?.array()? {
            // [id, delivered at, deliveries]
            let pending = field(consumer, "pel").or(field(consumer, "pending"))?;
            let ids = pending.array()?.iter().map(|p| id(p.array()?.first()));
            found.consumers.push(Consumer {
                name: field(consumer, "name")?.bytes()?.to_vec(),
                seen_ms: 0,
                active_ms: None,
                pending: ids.collect::<Option<_>>()?,
            });
        }
        meta.groups.push(found);
    }
    Some(meta)
}
