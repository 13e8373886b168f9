//! The fence: a key's exact state together with the replication offset at which it was true.
//!
//! `MULTI · DUMP · PEXPIRETIME · ROLE · EXEC` runs as one on the source, so nothing can change in between.
//! Whoever writes that state to the target may skip every streamed command on the key up to that offset.
//! Invariant: the offset belongs to the very same EXEC as the state; it is never read before or after.

use crate::error::{Error, ErrorKind, Result};
use crate::net::server::{Server, offset_in_role, time_ms};
use crate::net::{Conn, connect, info_field, is_elsewhere, is_on_its_way, refusal};
use crate::plan::Endpoint;
use crate::resp::Reply;
use crate::types::{DbIndex, ExpireAt, ReplId, ReplOffset};
use std::borrow::Cow;

/// How many keys share one EXEC on a standalone source; in a cluster each key has its own, as slots differ.
const KEYS_PER_EXEC: usize = 32;

/// A key as it was on the source at `offset`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyState {
    /// The DUMP payload; `None` when the key does not exist.
    pub payload: Option<Vec<u8>>,
    pub expire: Option<ExpireAt>,
    pub offset: ReplOffset,
    /// The key's slot is on its way to another master: nothing is known of it here.
    pub elsewhere: bool,
}

impl KeyState {
    pub fn elsewhere() -> KeyState {
        KeyState {
            payload: None,
            expire: None,
            offset: ReplOffset(0),
            elsewhere: true,
        }
    }
}

/// What XINFO GROUPS tells of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupFact {
    pub name: Vec<u8>,
    pub last_id: Vec<u8>,
    pub entries_read: Option<i64>,
}

/// A connection to one source master for fenced reads.
pub struct Fence {
    conn: Conn,
    cluster: bool,
    pexpiretime: bool,
    role: bool,
}

impl Fence {
    /// Connects and finds out how this server tells expiry and offset.
    ///
    /// `history` is the replication id that offsets are compared in: a server of another one (restarted without its
    /// data, not yet a replica again) is `NotReady`.
    pub async fn open(
        endpoint: &Endpoint,
        address: &str,
        history: Option<ReplId>,
    ) -> Result<Fence> {
        let mut conn = connect(endpoint, address).await?;
        let reply = conn.call(&[b"INFO", b"everything"]).await?;
        let info = reply.text().unwrap_or_default();
        let server = Server::parse(&info);
        let own = info_field(&info, "master_replid");
        if let (Some(history), Some(own)) = (history, own)
            && own != history.as_str()
            && info_field(&info, "master_replid2") != Some(history.as_str())
        {
            return Err(Error::new(
                ErrorKind::NotReady,
                format!("{address} has another replication history than the stream"),
            ));
        }
        let role = offset_in_role(&conn.ask(&[b"ROLE"]).await?).is_some();
        Ok(Fence {
            conn,
            cluster: server.cluster,
            pexpiretime: server.has_pexpiretime(),
            role,
        })
    }

    /// The states of `keys` in database `db`, in their order, each with the offset at which it was true.
    ///
    /// Errors: `Connection`; `NotReady` when the server answers MOVED or is failing over; `Refused`.
    pub async fn read(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<KeyState>> {
        self.conn.select(db).await?;
        let chunks: Vec<&[&[u8]]> = keys
            .chunks(if self.cluster { 1 } else { KEYS_PER_EXEC })
            .collect();
        for chunk in &chunks {
            self.push(chunk);
        }
        self.conn.flush().await?;
        let mut states = Vec::with_capacity(keys.len());
        let mut failure = None;
        for chunk in chunks {
            match self.collect(chunk.len()).await {
                Ok(found) => states.extend(found),
                // The replies of the other chunks must still be read, or the next call would get them.
                Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
                Err(e) => failure = Some(e),
            }
        }
        match failure {
            Some(e) => Err(e.context(format!(
                "read keys with their replication offset from {}",
                self.conn.address()
            ))),
            None => Ok(states),
        }
    }

    fn push(&mut self, keys: &[&[u8]]) {
        self.conn.push(&[b"MULTI"]);
        for key in keys {
            self.conn.push(&[b"DUMP", key]);
            self.conn
                .push(&[Server::expiry_command(self.pexpiretime), key]);
        }
        if !self.pexpiretime {
            self.conn.push(&[b"TIME"]);
        }
        match self.role {
            true => self.conn.push(&[b"ROLE"]),
            false => self.conn.push(&[b"INFO", b"replication"]),
        }
        self.conn.push(&[b"EXEC"]);
    }

    async fn collect(&mut self, keys: usize) -> Result<Vec<KeyState>> {
        let queued = 1 + 2 * keys + usize::from(!self.pexpiretime) + 1;
        let mut refused = None;
        for _ in 0..queued {
            if let (Reply::Error(text), None) = (self.conn.reply().await?, &refused) {
                refused = Some(text);
            }
        }
        let exec = self.conn.reply().await?;
        if let Some(text) = &refused
            && self.cluster
            && is_on_its_way(text)
        {
            return Ok(vec![KeyState::elsewhere(); keys]);
        }
        if let Some(text) = refused {
            return Err(refusal("DUMP in MULTI", &text));
        }
        let items = match &exec {
            Reply::Array(items) => items,
            Reply::Error(text) => return Err(refusal("EXEC", text)),
            _ => return Err(unforeseen()),
        };
        let offset = self.offset(items.last().ok_or_else(unforeseen)?)?;
        let now = if self.pexpiretime {
            0
        } else {
            items
                .get(2 * keys)
                .and_then(time_ms)
                .ok_or_else(unforeseen)?
        };
        let mut states = Vec::with_capacity(keys);
        for pair in items
            .get(..2 * keys)
            .ok_or_else(unforeseen)?
            .chunks_exact(2)
        {
            let [dump, expire] = pair else {
                return Err(unforeseen());
            };
            let payload = match dump {
                Reply::Bulk(bytes) => Some(bytes.clone()),
                Reply::Nil => None,
                Reply::Error(text) => return Err(refusal("DUMP", text)),
                _ => return Err(unforeseen()),
            };
            let expire = match expire.int().ok_or_else(unforeseen)? {
                n if n < 0 => None,
                n => Some(ExpireAt(now + n)),
            };
            states.push(KeyState {
                payload,
                expire,
                offset,
                elsewhere: false,
            });
        }
        Ok(states)
    }

    fn offset(&self, reply: &Reply) -> Result<ReplOffset> {
        if self.role {
            return offset_in_role(reply).ok_or_else(unforeseen);
        }
        let info = reply.text().ok_or_else(unforeseen)?;
        let field = if info_field(&info, "role") == Some("slave") {
            "slave_repl_offset"
        } else {
            "master_repl_offset"
        };
        info_field(&info, field)
            .and_then(|n| n.parse().ok())
            .map(ReplOffset)
            .ok_or_else(unforeseen)
    }

    /// For keys whose expiry alone is asked: Unix ms, `None` without expiry; the outer `None` when the key is gone.
    pub async fn expiries(
        &mut self,
        db: DbIndex,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Option<ExpireAt>>>> {
        self.conn.select(db).await?;
        for key in keys {
            self.conn
                .push(&[Server::expiry_command(self.pexpiretime), key]);
        }
        self.conn.push(&[b"TIME"]);
        self.conn.flush().await?;
        let mut found = Vec::with_capacity(keys.len());
        for _ in keys {
            match self.conn.reply().await? {
                Reply::Int(n) => found.push(n),
                // Whoever copies the slot writes the right one.
                Reply::Error(text) if is_elsewhere(&text) => found.push(-1),
                Reply::Error(text) => return Err(refusal("PEXPIRETIME", &text)),
                _ => return Err(unforeseen()),
            }
        }
        let now = time_ms(&self.conn.reply().await?).ok_or_else(unforeseen)?;
        Ok(found
            .into_iter()
            .map(|n| match n {
                -2 => None,
                n if n < 0 => Some(None),
                n => Some(Some(ExpireAt(if self.pexpiretime { n } else { now + n }))),
            })
            .collect())
    }

    /// The groups of a stream; none when the key is gone or no stream.
    pub async fn groups(&mut self, db: DbIndex, key: &[u8]) -> Result<Vec<GroupFact>> {
        self.conn.select(db).await?;
        let reply = self.conn.ask(&[b"XINFO", b"GROUPS", key]).await?;
        let Reply::Array(items) = reply else {
            return Ok(Vec::new());
        };
        let mut groups = Vec::with_capacity(items.len());
        for item in &items {
            let parts = item.array().ok_or_else(unforeseen)?;
            let field = |name: &[u8]| {
                parts
                    .chunks_exact(2)
                    .find(|p| p.first().and_then(Reply::bytes) == Some(name))
                    .and_then(|p| p.get(1))
            };
            groups.push(GroupFact {
                name: field(b"name")
                    .and_then(Reply::bytes)
                    .ok_or_else(unforeseen)?
                    .to_vec(),
                last_id: field(b"last-delivered-id")
                    .and_then(Reply::bytes)
                    .ok_or_else(unforeseen)?
                    .to_vec(),
                entries_read: field(b"entries-read").and_then(Reply::int),
            });
        }
        Ok(groups)
    }

    /// When fields of hashes expire, in Unix ms; `None` of one that does not or is not there.
    pub async fn field_expiries(
        &mut self,
        db: DbIndex,
        fields: &[(Cow<'_, [u8]>, &[u8])],
    ) -> Result<Vec<Option<i64>>> {
        self.conn.select(db).await?;
        let mut found = Vec::with_capacity(fields.len());
        // Told when all answers are read, so that none is taken for another's.
        let mut refused = None;
        for chunk in fields.chunks(512) {
            for (key, field) in chunk {
                self.conn
                    .push(&[b"HPEXPIRETIME", key, b"FIELDS", b"1", field]);
            }
            self.conn.flush().await?;
            for _ in chunk {
                let at = match self.conn.reply().await? {
                    Reply::Array(items) => items.first().and_then(Reply::int),
                    Reply::Error(text) if is_elsewhere(&text) || text.starts_with("WRONGTYPE") => {
                        None
                    }
                    Reply::Error(text) => {
                        refused.get_or_insert(refusal("HPEXPIRETIME", &text));
                        None
                    }
                    _ => None,
                };
                found.push(at.filter(|at| *at >= 0));
            }
        }
        refused.map_or(Ok(found), Err)
    }

    /// Which of `keys` exist.
    pub async fn exist(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<bool>> {
        self.conn.select(db).await?;
        for key in keys {
            self.conn.push(&[b"EXISTS", key]);
        }
        self.conn.flush().await?;
        let mut found = Vec::with_capacity(keys.len());
        for _ in keys {
            match self.conn.reply().await? {
                Reply::Int(n) => found.push(n > 0),
                Reply::Error(text) if is_elsewhere(&text) => found.push(true),
                Reply::Error(text) => return Err(refusal("EXISTS", &text)),
                _ => return Err(unforeseen()),
            }
        }
        Ok(found)
    }
}

fn unforeseen() -> Error {
    Error::new(
        ErrorKind::Protocol,
        "the source answered MULTI · DUMP · ROLE · EXEC in a form that is not understood",
    )
}
