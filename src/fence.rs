//! The fence: a key's exact state together with the replication offset at which it was true.
//!
//! `MULTI · DUMP · PEXPIRETIME · ROLE · EXEC` runs as one on the source, so nothing can change in between.
//! Whoever writes that state to the target may skip every streamed command on the key up to that offset.
//! Redis 6.0 to 7.0 refuses any command inside MULTI while it is over its maxmemory, but not the same ones by themselves:
//! there `WATCH · ROLE · DUMP · PTTL · MULTI · EXEC` proves that the key was not written in between.
//! Invariant: between the reading of the offset and that of the state, the key was not changed. (What WATCH does not
//! notice, a stream's acknowledgements, may be in the state already and then comes again, which changes nothing.)

use crate::error::{Context, Error, ErrorKind, Result};
use crate::net::server::{Server, offset_in_role, time_ms};
use crate::net::{Answer, Conn, REPLY_BYTES, connect, is_elsewhere, is_on_its_way, refusal};
use crate::plan::Endpoint;
use crate::resp::{Reply, info};
use crate::types::{DbIndex, ExpireAt, ReplId, ReplOffset};
use std::borrow::Cow;
use std::fs::File;
use std::io::Seek;
use std::path::PathBuf;

/// How often a key is read again that is written to while it is read.
const AGAIN: u32 = 30;

/// How many keys share one EXEC on a standalone source; in a cluster each key has its own, as slots differ.
const KEYS_PER_EXEC: usize = 32;

/// What a connection keeps of its buffer.
const KEPT_BYTES: usize = 1 << 20;

/// The answer of DUMP.
#[derive(Debug)]
pub enum Dump {
    Whole(Vec<u8>),
    /// So many bytes in a file without a name, which stands at its beginning.
    File(File, u64),
}

/// What may be held of one read's values; the others go to files.
#[derive(Debug, Clone)]
pub struct Room {
    pub bytes: usize,
    /// Where the files are.
    pub dir: PathBuf,
}

/// A key as it was on the source at `offset`.
#[derive(Debug)]
pub struct KeyState {
    /// The DUMP payload; `None` when the key does not exist.
    pub payload: Option<Dump>,
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

/// Where a command's keys stand: the first place, the last (a negative one counts from the end), the step.
pub type KeyPlaces = (usize, i64, usize);

/// A connection to one source master for fenced reads.
pub struct Fence {
    conn: Conn,
    cluster: bool,
    pexpiretime: bool,
    role: bool,
    /// The server is, or was, over its maxmemory and refuses MULTI: keys are watched instead.
    watches: bool,
    /// MEMORY USAGE is answered.
    memory: bool,
    room: Room,
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
        room: Room,
    ) -> Result<Fence> {
        let mut conn = connect(endpoint, address).await?;
        let reply = conn.call(&[b"INFO", b"everything"]).await?;
        let text = reply.text().unwrap_or_default();
        let server = Server::parse(&text);
        let own = info::field(&text, "master_replid");
        if let (Some(history), Some(own)) = (history, own)
            && own != history.as_str()
            && info::field(&text, "master_replid2") != Some(history.as_str())
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
            watches: false,
            memory: !endpoint.learnt.refuses(&[b"MEMORY", b"USAGE"]),
            room,
        })
    }

    /// About how much memory each of `keys` takes at the source; `None` where that is not told.
    pub async fn sizes(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<Option<u64>>> {
        if !self.memory {
            return Ok(vec![None; keys.len()]);
        }
        self.conn.select(db).await?;
        for key in keys {
            self.conn
                .push(&[b"MEMORY", b"USAGE", key, b"SAMPLES", b"1"]);
        }
        self.conn.flush().await?;
        let mut sizes = Vec::with_capacity(keys.len());
        for _ in keys {
            sizes.push(match self.conn.reply().await? {
                Reply::Int(n) => u64::try_from(n).ok(),
                Reply::Nil => Some(0),
                Reply::Error(text) if is_elsewhere(&text) => Some(0),
                // A server before 4.0, or a user who may not ask.
                _ => {
                    self.memory = false;
                    None
                }
            });
        }
        Ok(sizes)
    }

    /// Where the keys of a command stand, as the server says; `None` where it does not, or where they have no fixed place.
    pub async fn key_places(&mut self, command: &[u8]) -> Result<Option<KeyPlaces>> {
        let reply = self.conn.ask(&[b"COMMAND", b"INFO", command]).await?;
        Ok(key_places(&reply))
    }

    /// The states of `keys` in database `db`, in their order, each with the offset at which it was true.
    ///
    /// Errors: `Connection`; `NotReady` when the server answers MOVED or is failing over; `Refused`; `Disk`.
    pub async fn read(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<KeyState>> {
        self.conn.select(db).await?;
        let mut states: Vec<Option<KeyState>> = keys.iter().map(|_| None).collect();
        let mut open: Vec<usize> = (0..keys.len()).collect();
        let (mut held, mut attempt) = (0, 0);
        while !open.is_empty() {
            let alone = self.cluster || attempt > 0;
            let chunks: Vec<&[usize]> =
                open.chunks(if alone { 1 } else { KEYS_PER_EXEC }).collect();
            let watches = self.watches;
            for chunk in &chunks {
                self.push(chunk.iter().filter_map(|i| keys.get(*i).copied()));
            }
            self.conn.flush().await?;
            let (mut failure, mut again) = (None, Vec::new());
            for chunk in chunks {
                let collected = match watches {
                    true => self.collect_watched(chunk.len(), &mut held).await?,
                    false => self.collect(chunk.len(), &mut held).await?,
                };
                match collected {
                    Ok(Some(found)) => {
                        for (i, state) in chunk.iter().zip(found) {
                            if let Some(place) = states.get_mut(*i) {
                                *place = Some(state);
                            }
                        }
                    }
                    Ok(None) => again.extend_from_slice(chunk),
                    // The replies of the other chunks must still be read, or the next call would get them.
                    Err(e) if e.kind() == ErrorKind::OutOfMemory && !watches => {
                        self.watches = true;
                        again.extend_from_slice(chunk);
                    }
                    Err(e) => failure = Some(e),
                }
            }
            self.conn.trim(KEPT_BYTES);
            let busy = || {
                Error::new(
                    ErrorKind::NotReady,
                    "keys are written to faster than they can be read; the server is over its maxmemory, where it refuses to read them as one",
                )
            };
            attempt = u32::saturating_add(attempt, 1);
            let failure = failure.or_else(|| (attempt > AGAIN).then(busy));
            if let Some(e) = failure {
                let e = match e.kind() {
                    ErrorKind::OutOfMemory => e.hint(
                        "the source is over its maxmemory: give it more memory, then run the same command again",
                    ),
                    _ => e,
                };
                return Err(e.context(format!(
                    "read keys with their replication offset from {}",
                    self.conn.address()
                )));
            }
            open = again;
        }
        Ok(states.into_iter().flatten().collect())
    }

    fn push<'k>(&mut self, keys: impl Iterator<Item = &'k [u8]>) {
        let keys: Vec<&[u8]> = keys.collect();
        if self.watches {
            let watch: Vec<&[u8]> = ([b"WATCH".as_slice()].into_iter())
                .chain(keys.iter().copied())
                .collect();
            self.conn.push(&watch);
            self.push_offset();
        } else {
            self.conn.push(&[b"MULTI"]);
        }
        for key in keys {
            self.conn.push(&[b"DUMP", key]);
            self.conn
                .push(&[Server::expiry_command(self.pexpiretime), key]);
        }
        if !self.pexpiretime {
            self.conn.push(&[b"TIME"]);
        }
        match self.watches {
            true => self.conn.push(&[b"MULTI"]),
            false => self.push_offset(),
        }
        self.conn.push(&[b"EXEC"]);
    }

    fn push_offset(&mut self) {
        match self.role {
            true => self.conn.push(&[b"ROLE"]),
            false => self.conn.push(&[b"INFO", b"replication"]),
        }
    }

    /// The answers to what [`Fence::push`] has sent; the inner error is one after which the connection is as it was.
    async fn collect(
        &mut self,
        keys: usize,
        held: &mut usize,
    ) -> Result<Result<Option<Vec<KeyState>>>> {
        let queued = 1 + 2 * keys + usize::from(!self.pexpiretime) + 1;
        let mut refused = None;
        for _ in 0..queued {
            if let (Reply::Error(text), None) = (self.conn.reply().await?, &refused) {
                refused = Some(text);
            }
        }
        match (self.conn.answer().await?, refused) {
            (Answer::Other(_), Some(text)) if self.cluster && is_on_its_way(&text) => {
                return Ok(Ok(Some((0..keys).map(|_| KeyState::elsewhere()).collect())));
            }
            (Answer::Other(_), Some(text)) => return Ok(Err(refusal("DUMP in MULTI", &text))),
            (Answer::Other(Reply::Error(text)), None) => return Ok(Err(refusal("EXEC", &text))),
            (Answer::Items(n), None) if n == queued - 1 => {}
            _ => return Err(unforeseen()),
        }
        let (mut read, mut failure) = (Vec::with_capacity(keys), None);
        for _ in 0..keys {
            let dump = match self.dump(held).await? {
                Ok(dump) => dump,
                Err(e) => {
                    failure = Some(e);
                    None
                }
            };
            let expire = self
                .conn
                .item(REPLY_BYTES)
                .await?
                .int()
                .ok_or_else(unforeseen)?;
            read.push((dump, expire));
        }
        let now = match self.pexpiretime {
            true => 0,
            false => time_ms(&self.conn.item(REPLY_BYTES).await?).ok_or_else(unforeseen)?,
        };
        let last = self.conn.item(REPLY_BYTES).await?;
        let offset = self.offset(&last)?;
        Ok(match failure {
            Some(e) => Err(e),
            None => Ok(Some(states(read, now, offset))),
        })
    }

    /// The same where keys are watched; `None` when one of them was written to meanwhile.
    async fn collect_watched(
        &mut self,
        keys: usize,
        held: &mut usize,
    ) -> Result<Result<Option<Vec<KeyState>>>> {
        let (mut failure, mut away) = (None, false);
        if let Reply::Error(text) = self.conn.reply().await? {
            away = self.cluster && is_on_its_way(&text);
            failure = Some(refusal("WATCH", &text));
        }
        let stood = self.conn.reply().await?;
        let mut read = Vec::with_capacity(keys);
        for _ in 0..keys {
            let dump = self.dump(held).await?;
            self.conn.answered();
            let dump = dump.unwrap_or_else(|e| {
                failure.get_or_insert(e);
                None
            });
            let expire = match self.conn.reply().await? {
                Reply::Int(n) => n,
                Reply::Error(text) => {
                    away |= self.cluster && is_on_its_way(&text);
                    failure.get_or_insert(refusal("PTTL", &text));
                    -1
                }
                _ => return Err(unforeseen()),
            };
            read.push((dump, expire));
        }
        let now = match self.pexpiretime {
            true => 0,
            false => time_ms(&self.conn.reply().await?).ok_or_else(unforeseen)?,
        };
        self.conn.reply().await?;
        let done = self.conn.reply().await?;
        if away {
            return Ok(Ok(Some((0..keys).map(|_| KeyState::elsewhere()).collect())));
        }
        if let Some(e) = failure {
            return Ok(Err(e));
        }
        let offset = self.offset(&stood)?;
        Ok(match done {
            Reply::Error(text) => Err(refusal("EXEC", &text)),
            // Nothing was queued: an empty answer says that nothing watched has changed.
            Reply::Array(_) => Ok(Some(states(read, now, offset))),
            _ => Ok(None),
        })
    }

    /// One answer of DUMP, held if there is room for it.
    async fn dump(&mut self, held: &mut usize) -> Result<Result<Option<Dump>>> {
        if let Some(len) = self.conn.bulk_len().await?
            && held.saturating_add(len) > self.room.bytes
        {
            let dir = &self.room.dir;
            let opened = tempfile::tempfile_in(dir).context(ErrorKind::Disk, || {
                format!("keep a large value in {}", dir.display())
            });
            let mut file = opened?;
            self.conn.copy_bulk(&mut file).await?;
            file.rewind()
                .context(ErrorKind::Disk, || "read a large value again".to_owned())?;
            return Ok(Ok(Some(Dump::File(file, len as u64))));
        }
        // A value that is longer went to a file.
        let most = self.room.bytes.saturating_add(KEPT_BYTES);
        Ok(match self.conn.item(most).await? {
            Reply::Bulk(bytes) => {
                *held = held.saturating_add(bytes.len());
                Ok(Some(Dump::Whole(bytes)))
            }
            Reply::Nil => Ok(None),
            Reply::Error(text) => Err(refusal("DUMP", &text)),
            _ => return Err(unforeseen()),
        })
    }

    fn offset(&self, reply: &Reply) -> Result<ReplOffset> {
        if self.role {
            return offset_in_role(reply).ok_or_else(unforeseen);
        }
        let text = reply.text().ok_or_else(unforeseen)?;
        info::offset(&text).ok_or_else(unforeseen)
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
                n => Some(Some(ExpireAt(if self.pexpiretime {
                    n
                } else {
                    now.saturating_add(n)
                }))),
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

/// What was read of some keys, with `now` where only the rest of their lives is told.
fn key_places(reply: &Reply) -> Option<KeyPlaces> {
    let row = reply.array()?.first()?.array()?;
    let flags = row.get(2)?.array()?;
    // Beside those at fixed places there may be others.
    if (flags.iter()).any(|flag| flag.text().is_some_and(|f| f == "movablekeys")) {
        return None;
    }
    let number = |i: usize| row.get(i)?.int();
    let place = |i: usize| usize::try_from(number(i)?).ok().filter(|n| *n > 0);
    Some((place(3)?, number(4)?, place(5)?))
}

fn states(read: Vec<(Option<Dump>, i64)>, now: i64, offset: ReplOffset) -> Vec<KeyState> {
    let state = |(payload, expire): (Option<Dump>, i64)| KeyState {
        payload,
        expire: (expire >= 0).then_some(ExpireAt(now.saturating_add(expire))),
        offset,
        elsewhere: false,
    };
    read.into_iter().map(state).collect()
}

fn unforeseen() -> Error {
    Error::new(
        ErrorKind::Protocol,
        "the source answered MULTI · DUMP · ROLE · EXEC in a form that is not understood",
    )
}
