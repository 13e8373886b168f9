//! A value read in parts by the commands of its type, for what is too large for one DUMP or where DUMP is refused.
//!
//! The digest is the same as that of the DUMP payload. The parts are not read at one moment: what is written meanwhile
//! makes two readings differ, and the key is read again.

use super::dumped;
use super::expiry::Expiry;
use super::fact::KeyFact;
use super::side::Side;
use super::stream::Groups;
use crate::digest::{Digester, Width};
use crate::error::{Error, ErrorKind, Result};
use crate::net::server::Server;
use crate::net::{Conn, refusal};
use crate::rdb::value::stream::StreamId;
use crate::rdb::value::{ValueKind, ValueSink};
use crate::resp::Reply;
use crate::types::{ExpireAt, unix_ms};

/// Elements asked for at a time: as many as are about so many bytes, but no more than that.
const MOST: u64 = 1000;
const PART_BYTES: u64 = 1 << 20;

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
        "path-hash" => ValueKind::PathHash,
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
    let most = side.endpoint.element_bytes;
    let mut parts = Parts {
        most,
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
    let each = (number(&memory).unwrap_or(0))
        .checked_div(elements)
        .unwrap_or(0);
    Ok(PART_BYTES.checked_div(each).unwrap_or(MOST).clamp(1, MOST))
}

/// The expiry of a key; the outer `None` when it is not there.
pub(super) async fn expire(
    conn: &mut Conn,
    side: &Side,
    key: &[u8],
) -> Result<Option<Option<ExpireAt>>> {
    let command = Server::expiry_command(side.pexpiretime);
    let reply = conn.call(&[command, key]).await?;
    Ok(match Expiry::of(reply, side.pexpiretime)? {
        Expiry::Is(expire) => Some(expire),
        Expiry::Gone | Expiry::Elsewhere => None,
    })
}

struct Parts<'a, S> {
    conn: &'a mut Conn,
    key: &'a [u8],
    sink: &'a mut S,
    /// Elements asked for at a time.
    count: u64,
    /// What a single one may take.
    most: usize,
}

/// An element, or a page of them, is larger than may be held.
fn too_large(e: Error) -> Error {
    match e.kind() {
        ErrorKind::Oversized => e.hint(
            "an element of the value is larger than an eighth of limits.memory_bytes: raise that, or leave the key out with filter.exclude",
        ),
        _ => e,
    }
}

impl<S: ValueSink> Parts<'_, S> {
    /// The next item of a reply, or a reply.
    async fn item(&mut self) -> Result<Reply> {
        self.conn.item(self.most).await.map_err(too_large)
    }

    /// The next item, which has to be a string.
    async fn bytes(&mut self, command: &str) -> Result<Vec<u8>> {
        match self.item().await? {
            Reply::Bulk(bytes) => Ok(bytes),
            _ => Err(self.conn.strange(command)),
        }
    }

    async fn string(&mut self) -> Result<()> {
        let (mut at, step) = (0u64, PART_BYTES);
        loop {
            let (from, to) = (at, at.saturating_add(step).saturating_sub(1));
            let (from, to) = (from.to_string(), to.to_string());
            let args = [
                b"GETRANGE".as_slice(),
                self.key,
                from.as_bytes(),
                to.as_bytes(),
            ];
            let reply = self.conn.call(&args).await?;
            let part = reply.bytes().filter(|part| part.len() as u64 <= step);
            let part = part.ok_or_else(|| self.conn.strange("GETRANGE"))?;
            self.sink.string_part(part, false)?;
            if (part.len() as u64) < step {
                return self.sink.string_part(b"", true);
            }
            at = at.saturating_add(step);
        }
    }

    async fn list(&mut self) -> Result<()> {
        let mut at = 0u64;
        loop {
            let to = at.saturating_add(self.count).saturating_sub(1);
            let (from, to) = (at.to_string(), to.to_string());
            let args = [
                b"LRANGE".as_slice(),
                self.key,
                from.as_bytes(),
                to.as_bytes(),
            ];
            let n = self.conn.list(&args).await? as u64;
            if n > self.count {
                return Err(self.conn.strange("LRANGE"));
            }
            for _ in 0..n {
                let item = self.bytes("LRANGE").await?;
                self.sink.list_item(&item)?;
            }
            if n < self.count {
                return Ok(());
            }
            at = at.saturating_add(n);
        }
    }

    async fn scan(&mut self, command: &[u8], field_expiry: bool) -> Result<()> {
        let (mut cursor, count) = (b"0".to_vec(), self.count.to_string());
        let name = String::from_utf8_lossy(command);
        loop {
            let args = [command, self.key, &cursor, b"COUNT", count.as_bytes()];
            if self.conn.list(&args).await? != 2 {
                return Err(self.conn.strange(&name));
            }
            cursor = self.bytes(&name).await?;
            let Some(items) = self.conn.inner().await? else {
                return Err(self.conn.strange(&name));
            };
            match command {
                b"SSCAN" => {
                    for _ in 0..items {
                        let member = self.bytes(&name).await?;
                        self.sink.set_member(&member)?;
                    }
                }
                b"ZSCAN" => {
                    for _ in 0..items / 2 {
                        let member = self.bytes(&name).await?;
                        let score = self.item().await?;
                        let score = score.text().and_then(|score| score.parse().ok());
                        let score = score.ok_or_else(|| self.conn.strange(&name))?;
                        self.sink.zset_member(&member, score)?;
                    }
                }
                _ => self.fields(items / 2, field_expiry).await?,
            }
            if cursor == b"0" {
                return Ok(());
            }
        }
    }

    /// A page of a hash, which is held where its fields' expiries have to be asked for.
    async fn fields(&mut self, count: usize, expiry: bool) -> Result<()> {
        let (mut page, mut held) = (Vec::new(), 0usize);
        let (mut left, mut rest) = (Vec::new(), 0usize);
        for _ in 0..count {
            let (name, value) = (self.bytes("HSCAN").await?, self.bytes("HSCAN").await?);
            if !expiry {
                self.sink.hash_field(&name, &value, None)?;
                continue;
            }
            held =
                held.saturating_add(FIELD.saturating_add(name.len()).saturating_add(value.len()));
            if held > self.most {
                // Its value is asked for again, by itself.
                rest = rest.saturating_add(FIELD.saturating_add(name.len()));
                if rest > self.most {
                    let text = format!("the names of some fields take more than {rest} bytes");
                    return Err(too_large(Error::new(ErrorKind::Oversized, text)));
                }
                left.push(name);
                continue;
            }
            page.push((name, value));
        }
        self.expiring(page).await?;
        for name in left {
            self.conn.push(&[b"HGET", self.key, &name]);
            self.conn.flush().await?;
            match self.item().await? {
                Reply::Bulk(value) => self.expiring(vec![(name, value)]).await?,
                Reply::Error(text) => return Err(refusal("HGET", &text)),
                // It has gone meanwhile.
                _ => {}
            }
        }
        Ok(())
    }

    /// Fields, with the expiries that they have.
    async fn expiring(&mut self, page: Vec<(Vec<u8>, Vec<u8>)>) -> Result<()> {
        let mut expiries = Vec::new();
        if !page.is_empty() {
            let count = page.len().to_string();
            let mut args: Vec<&[u8]> = vec![b"HPEXPIRETIME", self.key, b"FIELDS", count.as_bytes()];
            args.extend(page.iter().map(|(name, _)| name.as_slice()));
            match self.conn.ask(&args).await? {
                Reply::Array(list) => expiries = list,
                Reply::Error(text) => return Err(refusal("HPEXPIRETIME", &text)),
                // The key has gone meanwhile.
                _ => {}
            }
        }
        for (i, (name, value)) in page.iter().enumerate() {
            let expire = expiries.get(i).and_then(Reply::int).filter(|n| *n >= 0);
            self.sink.hash_field(name, value, expire.map(ExpireAt))?;
        }
        Ok(())
    }

    async fn stream(&mut self) -> Result<()> {
        let count = self.count.to_string();
        let mut from = StreamId { ms: 0, seq: 0 };
        loop {
            let start = from.to_string();
            let args = [
                b"XRANGE".as_slice(),
                self.key,
                start.as_bytes(),
                b"+",
                b"COUNT",
                count.as_bytes(),
            ];
            let n = self.conn.list(&args).await? as u64;
            if n > self.count {
                return Err(self.conn.strange("XRANGE"));
            }
            let mut last = None;
            for _ in 0..n {
                let entry = self.item().await?;
                let (id, pairs) = entry_of(entry).ok_or_else(|| self.conn.strange("XRANGE"))?;
                self.sink.stream_entry(id, &pairs)?;
                last = Some(id);
            }
            match last.filter(|_| n == self.count).and_then(after) {
                Some(next) => from = next,
                None => break,
            }
        }
        Groups::new(self.conn, self.key, self.most, self.sink)
            .read()
            .await
    }
}

/// What a field of a hash takes beside its bytes.
const FIELD: usize = 64;

/// The id that comes next; `None` behind the last that there can be.
fn after(id: StreamId) -> Option<StreamId> {
    let next = id.seq.checked_add(1);
    match next {
        Some(seq) => Some(StreamId { ms: id.ms, seq }),
        None => Some(StreamId {
            ms: id.ms.checked_add(1)?,
            seq: 0,
        }),
    }
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// An entry of a stream as XRANGE answers it.
fn entry_of(reply: Reply) -> Option<(StreamId, Pairs)> {
    let Reply::Array(parts) = reply else {
        return None;
    };
    let mut parts = parts.into_iter();
    let id = StreamId::parse(parts.next()?.bytes()?)?;
    let mut words = match parts.next()? {
        Reply::Array(words) => words.into_iter(),
        _ => return None,
    };
    let mut pairs = Vec::with_capacity(words.len() / 2);
    while let (Some(Reply::Bulk(field)), Some(Reply::Bulk(value))) = (words.next(), words.next()) {
        pairs.push((field, value));
    }
    Some((id, pairs))
}
