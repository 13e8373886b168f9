//! Reading keys of one side: their values and expiries, many at a time, of all masters at once.

use super::dumped;
use super::expiry::Expiry;
use super::fact::{Found, KeyFact};
use super::side::Side;
use super::typed;
use super::unforeseen;
use super::window::{Window, first};
use crate::digest::{self, Width};
use crate::error::{Error, ErrorKind, Result};
use crate::net::server::Server;
use crate::net::{Conn, is_elsewhere, refusal};
use crate::plan::Job;
use crate::rdb::payload;
use crate::rdb::value::{ValueKind, ValueSink};
use crate::resp::Reply;
use crate::types::{DbIndex, ExpireAt, Slot, shown, unix_ms};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes behind a DUMP payload's body: version and checksum.
const FOOTER: usize = 10;
/// Bytes of values asked for at a time, by the memory that they take at the server.
const WINDOW_BYTES: u64 = 2 << 20;
const WINDOW_KEYS: usize = 500;
/// Bytes of buffers that a reader's connections keep, all together.
const KEPT_BYTES: usize = 1 << 20;
/// A value that takes more memory than this is read in parts.
const LARGE: u64 = 8 << 20;
/// What short answers may take, of so many keys as a page has.
pub(super) const SHORT_ROOM: usize = 4 << 20;
/// After so many more single values that did not fit than windows that did, all are read in parts: where sizes are not
/// told, or not true.
const MISJUDGED: u32 = 20;

/// Connections of one worker to one side.
pub struct Reader {
    pub side: Arc<Side>,
    pub(super) width: Width,
    conns: HashMap<String, Conn>,
    /// Keys of a window: fewer where sizes are not told and values have proved to be large.
    most_keys: usize,
    /// Single values that did not fit where they should have, less the windows that did since.
    misjudged: u32,
}

/// What a key is called on a side.
type Name<'k> = Cow<'k, [u8]>;

/// The answer of DUMP.
pub enum Dumped {
    Gone,
    Here(Vec<u8>, Option<ExpireAt>),
    /// It is there, in a form of the server's own: the commands of its type read it.
    Foreign,
    Elsewhere,
}

impl Reader {
    pub fn new(side: Arc<Side>, width: Width) -> Reader {
        Reader {
            side,
            width,
            conns: HashMap::new(),
            most_keys: WINDOW_KEYS,
            misjudged: 0,
        }
    }

    /// After an error: what is on its way on these connections belongs to nobody.
    pub fn reset(&mut self) {
        self.conns.clear();
    }

    /// A connection with the database selected; `None` when the server has fewer databases, so none of these keys.
    async fn take(&mut self, address: &str, db: DbIndex) -> Result<Option<Conn>> {
        let conn = self.conns.remove(address);
        let (conn, has) = opened(&self.side, conn, address, db).await?;
        if has {
            return Ok(Some(conn));
        }
        self.keep(address, conn);
        Ok(None)
    }

    fn keep(&mut self, address: &str, mut conn: Conn) {
        conn.trim(KEPT_BYTES / self.conns.len().saturating_add(1));
        self.conns.insert(address.to_owned(), conn);
    }

    /// Has `ask` queue one or two commands for each key and `answer` read their replies, on all masters at once.
    ///
    /// Errors: `Oversized` when the replies take more than `room` bytes.
    pub(super) async fn each<T, const N: usize>(
        &mut self,
        db: DbIndex,
        keys: &[&[u8]],
        room: usize,
        absent: impl Fn() -> T,
        ask: impl Fn(&mut Conn, &[u8]),
        answer: impl Fn([Reply; N]) -> Result<T>,
    ) -> Result<Vec<T>> {
        let layout = self.side.layout();
        let mut groups: BTreeMap<&str, Vec<(usize, Name)>> = BTreeMap::new();
        for (i, key) in keys.iter().enumerate() {
            // What cannot have a name there is not there.
            if let Some(name) = self.side.renames.to_target(key) {
                let master = layout.master_of(Slot::of(&name));
                let address = master.map_or("", |m| m.address.as_str());
                groups.entry(address).or_default().push((i, name));
            }
        }
        let mut found: Vec<T> = keys.iter().map(|_| absent()).collect();
        let side = self.side.clone();
        let (side, ask, answer, left) = (&side, &ask, &answer, &AtomicUsize::new(room));
        let mut answers = Vec::with_capacity(groups.len());
        for (address, places) in groups {
            let conn = self.conns.remove(address);
            answers.push(async move {
                let (mut conn, has) = opened(side, conn, address, db).await?;
                if !has {
                    return Ok((address, places, Vec::new(), conn));
                }
                for (_, name) in &places {
                    ask(&mut conn, name);
                }
                conn.flush().await?;
                let mut replies = Vec::with_capacity(places.len());
                for _ in &places {
                    let mut each = [const { Reply::Nil }; N];
                    for reply in &mut each {
                        *reply = conn.reply_within(left.load(Relaxed)).await?;
                        let taken = reply.bytes().map_or(0, <[u8]>::len);
                        left.fetch_sub(taken.min(left.load(Relaxed)), Relaxed);
                    }
                    replies.push(answer(each)?);
                }
                Ok::<_, Error>((address, places, replies, conn))
            });
        }
        for (address, places, replies, mut conn) in futures::future::try_join_all(answers).await? {
            self.side.bytes.fetch_add(conn.take_received(), Relaxed);
            self.keep(address, conn);
            for ((i, _), reply) in places.into_iter().zip(replies) {
                if let Some(place) = found.get_mut(i) {
                    *place = reply;
                }
            }
        }
        Ok(found)
    }

    /// DUMP and expiry of keys.
    ///
    /// Errors: `Oversized` when they take more than was expected: then [`Window::smaller`] ones have to be read.
    pub async fn dumps(&mut self, db: DbIndex, window: &Window<'_>) -> Result<Vec<Dumped>> {
        let pexpiretime = self.side.pexpiretime;
        let ask = |conn: &mut Conn, key: &[u8]| {
            conn.push(&[b"DUMP", key]);
            conn.push(&[Server::expiry_command(pexpiretime), key]);
        };
        let answer = |[dump, expire]: [Reply; 2]| {
            Ok(match dump {
                Reply::Nil => Dumped::Gone,
                Reply::Bulk(payload) if payload::is_foreign(&payload) => Dumped::Foreign,
                Reply::Bulk(payload) => match Expiry::of(expire, pexpiretime)? {
                    Expiry::Is(expire) => Dumped::Here(payload, expire),
                    Expiry::Gone => Dumped::Gone,
                    Expiry::Elsewhere => Dumped::Elsewhere,
                },
                Reply::Error(text) if is_elsewhere(&text) => Dumped::Elsewhere,
                Reply::Error(text) => return Err(refusal("DUMP", &text)),
                _ => return Err(unforeseen("DUMP")),
            })
        };
        let (keys, room) = (&window.keys, window.room());
        let read = self
            .each(db, keys, room, || Dumped::Gone, ask, answer)
            .await;
        match &read {
            Err(e) if e.kind() == ErrorKind::Oversized => {
                self.most_keys = (keys.len() / 2).max(1);
                self.misjudged = (self.misjudged).saturating_add(u32::from(keys.len() == 1));
                self.reset();
            }
            Ok(_) => {
                self.misjudged = self.misjudged.saturating_sub(1);
                if keys.len() == self.most_keys && keys.len() < WINDOW_KEYS {
                    self.most_keys = self.most_keys.saturating_add(1);
                }
            }
            _ => {}
        }
        read
    }

    /// The type's name of each key; `None` for one that is not there.
    pub(super) async fn types(
        &mut self,
        db: DbIndex,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Cow<'static, str>>>> {
        let ask = |conn: &mut Conn, key: &[u8]| conn.push(&[b"TYPE", key]);
        let answer = |[reply]: [Reply; 1]| match reply {
            Reply::Status(name) => Ok(Some(name).filter(|n| n != "none")),
            // Wherever it is, it is somewhere.
            Reply::Error(text) if is_elsewhere(&text) => Ok(Some("".into())),
            Reply::Error(text) => Err(refusal("TYPE", &text)),
            _ => Err(unforeseen("TYPE")),
        };
        self.each(db, keys, SHORT_ROOM, || None, ask, answer).await
    }

    /// Whether each key has an expiry.
    async fn expire(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<bool>> {
        let ask = |conn: &mut Conn, key: &[u8]| conn.push(&[b"PTTL", key]);
        let answer = |[reply]: [Reply; 1]| match reply {
            Reply::Int(n) => Ok(n >= 0),
            Reply::Error(text) if is_elsewhere(&text) => Ok(false),
            Reply::Error(text) => Err(refusal("PTTL", &text)),
            _ => Err(unforeseen("PTTL")),
        };
        self.each(db, keys, SHORT_ROOM, || false, ask, answer).await
    }

    /// Those of some keys of the target that no database of the source that goes there holds, or not as a wanted type.
    pub async fn lacks<'k>(
        &mut self,
        job: &Job,
        db: DbIndex,
        mut keys: Vec<&'k [u8]>,
    ) -> Result<Vec<&'k [u8]>> {
        for from in job.databases.sources_of(db) {
            if keys.is_empty() {
                break;
            }
            let types = self.types(from, &keys).await?;
            let expire = match job.filter.looks_at_expiry() {
                true => self.expire(from, &keys).await?,
                false => vec![false; keys.len()],
            };
            if types.iter().flatten().any(|name| name.is_empty()) {
                return Err(Error::new(
                    ErrorKind::Moved,
                    "a slot of the source is on its way to another master",
                ));
            }
            keys = (keys.iter().zip(types.iter().zip(expire)))
                .filter(|(_, (name, expires))| {
                    let wanted = |n: &Cow<str>| job.filter.accepts_value(type_name(n), *expires);
                    !name.as_ref().is_some_and(wanted)
                })
                .map(|(k, _)| *k)
                .collect();
        }
        Ok(keys)
    }

    /// The source's database that a key of the target's `db` comes from: where several go there, the one that holds it.
    pub async fn source_of(&mut self, job: &Job, db: DbIndex, key: &[u8]) -> Result<DbIndex> {
        if job.databases.is_identity() {
            return Ok(db);
        }
        let sources: Vec<DbIndex> = job.databases.sources_of(db).collect();
        if let [_, _, ..] = sources.as_slice() {
            for from in &sources {
                if self.types(*from, &[key]).await? != [None] {
                    return Ok(*from);
                }
            }
        }
        Ok(sources.first().copied().unwrap_or(db))
    }

    /// About how much memory each value takes; 0 where that is not told.
    async fn memory(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<u64>> {
        let side = self.side.clone();
        if !side.tells_sizes() {
            return Ok(vec![0; keys.len()]);
        }
        let ask = |conn: &mut Conn, key: &[u8]| {
            conn.push(&[b"MEMORY", b"USAGE", key, b"SAMPLES", b"1"]);
        };
        let answer = |[reply]: [Reply; 1]| match reply {
            Reply::Int(n) => Ok(u64::try_from(n).unwrap_or(0)),
            Reply::Error(text) => {
                if !is_elsewhere(&text) {
                    side.memory.store(false, Relaxed);
                }
                Ok(0)
            }
            _ => Ok(0),
        };
        self.each(db, keys, SHORT_ROOM, || 0, ask, answer).await
    }

    /// Parts some keys into what is read at a time.
    pub async fn windows<'k>(&mut self, db: DbIndex, keys: &[&'k [u8]]) -> Result<Vec<Window<'k>>> {
        let memory = self.memory(db, keys).await?;
        let mut windows: Vec<Window> = Vec::new();
        let mut bytes = 0;
        for (key, n) in keys.iter().zip(memory) {
            let large = n > LARGE;
            bytes = u64::saturating_add(bytes, n);
            match windows.last_mut() {
                Some(last)
                    if !(last.large || large)
                        && bytes <= WINDOW_BYTES
                        && last.keys.len() < self.most_keys =>
                {
                    last.keys.push(*key);
                }
                _ => {
                    let keys = vec![*key];
                    let wide = n > WINDOW_BYTES && !large;
                    windows.push(Window { keys, large, wide });
                    bytes = n;
                }
            }
        }
        Ok(windows)
    }

    /// What keys hold, in their order.
    pub async fn facts(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<Found>> {
        let mut found = Vec::with_capacity(keys.len());
        let side = self.side.clone();
        let mut windows = VecDeque::from(self.windows(db, keys).await?);
        while let Some(window) = windows.pop_front() {
            let _turn = window.turn(&side).await;
            match self.window(db, &window).await {
                Err(e) if window.shrinks(&e) => first(&mut windows, window.smaller()),
                read => found.extend(read?),
            }
        }
        Ok(found)
    }

    /// What the keys of a window hold.
    async fn window(&mut self, db: DbIndex, window: &Window<'_>) -> Result<Vec<Found>> {
        if self.reads_whole(window) {
            match self.dumps(db, window).await {
                Ok(dumps) => {
                    let mut found = Vec::with_capacity(dumps.len());
                    for (dump, key) in dumps.iter().zip(&window.keys) {
                        found.push(self.digest(db, dump, key).await?);
                    }
                    return Ok(found);
                }
                Err(e) if e.kind() == ErrorKind::Refused => self.refuse_dumps(&e),
                Err(e) => return Err(e),
            }
        }
        let mut found = Vec::with_capacity(window.keys.len());
        for key in &window.keys {
            found.push(self.typed(db, key).await?);
        }
        Ok(found)
    }

    /// DUMP is refused: from now on values are read by the commands of their types.
    pub fn refuse_dumps(&mut self, why: &Error) {
        tracing::warn!("values are read by the commands of their types: {why}");
        self.side.dump.store(false, Relaxed);
        self.reset();
    }

    /// Whether a window's values are read whole, by DUMP; else each in parts, by the commands of its type.
    pub fn reads_whole(&self, window: &Window) -> bool {
        !window.large && self.misjudged < MISJUDGED && self.side.dump.load(Relaxed)
    }

    async fn digest(&mut self, db: DbIndex, dump: &Dumped, key: &[u8]) -> Result<Found> {
        Ok(match dump {
            Dumped::Gone => Found::Gone,
            Dumped::Foreign => self.typed(db, key).await?,
            Dumped::Elsewhere => Found::Elsewhere,
            Dumped::Here(payload, expire) => {
                let digest = digest::of_payload(payload, unix_ms(), self.width)
                    .map_err(|e| e.context(format!("read the key {}", shown(key))))?;
                digest.map_or(Found::Gone, |digest| {
                    Found::Here(KeyFact {
                        digest,
                        expire: *expire,
                    })
                })
            }
        })
    }

    /// What a key is called here, where it is, and a connection to there with the database selected; `None` when there
    /// is no such name or no such database.
    async fn place(&mut self, db: DbIndex, key: &[u8]) -> Result<Option<(Vec<u8>, String, Conn)>> {
        let Some(name) = self.side.renames.to_target(key) else {
            return Ok(None);
        };
        let name = name.into_owned();
        let address = self.side.address_of(&name);
        let conn = self.take(&address, db).await?;
        Ok(conn.map(|conn| (name, address, conn)))
    }

    /// Reads a value in parts into `sink` and returns its expiry; the outer `None` when the key is gone or elsewhere.
    pub async fn parts(
        &mut self,
        db: DbIndex,
        key: &[u8],
        sink: &mut impl ValueSink,
    ) -> Result<Option<Option<ExpireAt>>> {
        let Some((name, address, mut conn)) = self.place(db, key).await? else {
            return Ok(None);
        };
        let Some(kind) = typed::kind(&mut conn, &name).await? else {
            return Ok(None);
        };
        let expire = typed::read(&mut conn, &self.side, &name, kind, sink).await?;
        self.side.bytes.fetch_add(conn.take_received(), Relaxed);
        self.keep(&address, conn);
        Ok(expire)
    }

    /// What kind of value a key has; `None` when it is gone or elsewhere.
    ///
    /// Whether it expires is asked only when `timed` says so.
    pub async fn kind(
        &mut self,
        db: DbIndex,
        key: &[u8],
        timed: bool,
    ) -> Result<Option<(ValueKind, bool)>> {
        let Some((name, address, mut conn)) = self.place(db, key).await? else {
            return Ok(None);
        };
        let kind = typed::kind(&mut conn, &name).await?;
        let expires = timed && typed::expire(&mut conn, &self.side, &name).await?.is_some();
        self.keep(&address, conn);
        Ok(kind.map(|kind| (kind, expires)))
    }

    /// Takes a value's payload to a file and returns its length and expiry; `None` when the key is gone.
    pub async fn dump_to(
        &mut self,
        db: DbIndex,
        key: &[u8],
        file: &mut File,
    ) -> Result<Option<(u64, Option<ExpireAt>)>> {
        let Some((name, address, mut conn)) = self.place(db, key).await? else {
            return Ok(None);
        };
        let len = dumped::to_file(&mut conn, &name, file).await?;
        let expire = typed::expire(&mut conn, &self.side, &name).await?;
        self.side.bytes.fetch_add(conn.take_received(), Relaxed);
        self.keep(&address, conn);
        Ok(len.zip(expire))
    }

    /// A value read in parts, by the commands of its type.
    async fn typed(&mut self, db: DbIndex, key: &[u8]) -> Result<Found> {
        let Some((name, address, mut conn)) = self.place(db, key).await? else {
            return Ok(Found::Gone);
        };
        let fact = typed::fact(&mut conn, &self.side, &name, self.width).await;
        self.side.bytes.fetch_add(conn.take_received(), Relaxed);
        let found = match fact {
            Ok(fact) => fact.map_or(Found::Gone, Found::Here),
            Err(e) if e.kind() == ErrorKind::Moved => Found::Elsewhere,
            Err(e) => return Err(e.context(format!("read the key {}", shown(key)))),
        };
        self.keep(&address, conn);
        Ok(found)
    }
}

/// A connection to a master with the database selected, and whether the server has that one.
async fn opened(
    side: &Side,
    conn: Option<Conn>,
    address: &str,
    db: DbIndex,
) -> Result<(Conn, bool)> {
    let mut conn = match conn {
        Some(conn) => conn,
        None => side.connect(address).await?,
    };
    match conn.select(db).await {
        Ok(()) => Ok((conn, true)),
        Err(e) if e.kind() == ErrorKind::Refused => Ok((conn, false)),
        Err(e) => Err(e),
    }
}

/// A type as plans name it; TYPE tells the name of a module's type.
fn type_name(name: &str) -> &str {
    match name {
        "string" | "list" | "set" | "zset" | "hash" | "stream" | "array" => name,
        _ => "module",
    }
}

/// What both sides hold of a window's keys; values of the same bytes are decoded once.
pub async fn pairs(
    source: &mut Reader,
    source_db: DbIndex,
    target: &mut Reader,
    target_db: DbIndex,
    window: &Window<'_>,
) -> Result<Vec<(Found, Found)>> {
    let mut found = Vec::with_capacity(window.keys.len());
    let mut windows = VecDeque::from([window.clone()]);
    while let Some(window) = windows.pop_front() {
        match pairs_of(source, source_db, target, target_db, &window).await {
            Err(e) if window.shrinks(&e) => {
                source.reset();
                target.reset();
                first(&mut windows, window.smaller());
            }
            read => found.extend(read?),
        }
    }
    Ok(found)
}

async fn pairs_of(
    source: &mut Reader,
    source_db: DbIndex,
    target: &mut Reader,
    target_db: DbIndex,
    window: &Window<'_>,
) -> Result<Vec<(Found, Found)>> {
    let (keys, side) = (&window.keys, source.side.clone());
    let _turn = window.turn(&side).await;
    let read = match source.reads_whole(window) && target.reads_whole(window) {
        true => {
            let dumps = tokio::try_join!(
                source.dumps(source_db, window),
                target.dumps(target_db, window)
            );
            match dumps {
                // One side refuses DUMP: `window` finds out which.
                Err(e) if e.kind() == ErrorKind::Refused => {
                    source.reset();
                    target.reset();
                    None
                }
                read => Some(read?),
            }
        }
        false => None,
    };
    let Some((ours, theirs)) = read else {
        let (a, b) = tokio::try_join!(
            source.window(source_db, window),
            target.window(target_db, window)
        )?;
        return Ok(a.into_iter().zip(b).collect());
    };
    let mut found = Vec::with_capacity(keys.len());
    for ((a, b), key) in ours.iter().zip(&theirs).zip(keys) {
        let first = source.digest(source_db, a, key).await?;
        let second = match (a, b, &first) {
            (Dumped::Here(p, _), Dumped::Here(q, expire), Found::Here(fact)) if same_body(p, q) => {
                Found::Here(KeyFact {
                    digest: fact.digest,
                    expire: *expire,
                })
            }
            _ => target.digest(target_db, b, key).await?,
        };
        found.push((first, second));
    }
    Ok(found)
}

/// Whether two payloads hold the same bytes, whatever version and checksum stand behind them.
fn same_body(a: &[u8], b: &[u8]) -> bool {
    match (a.len().checked_sub(FOOTER), b.len().checked_sub(FOOTER)) {
        (Some(n), Some(m)) => n == m && a.get(..n) == b.get(..m),
        _ => false,
    }
}
