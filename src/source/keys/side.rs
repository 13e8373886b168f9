//! One side of a comparison: where its keys are, and what they hold.

use super::typed;
use crate::digest::{self, KeyDigest, Width};
use crate::error::{Error, ErrorKind, Result};
use crate::net::server::{self, Layout, Server};
use crate::net::{self, Conn, info_field, is_elsewhere, refusal, scan};
use crate::plan::{Databases, Endpoint, Job};
use crate::rdb::value::{ValueKind, ValueSink};
use crate::resp::Reply;
use crate::types::{DbIndex, ExpireAt, Slot, shown, unix_ms};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes behind a DUMP payload's body: version and checksum.
const FOOTER: usize = 10;
/// Bytes of values asked for at a time, by the memory that they take at the server.
const WINDOW_BYTES: u64 = 2 << 20;
const WINDOW_KEYS: usize = 500;
/// A value that takes more memory than this is read in parts.
const LARGE: u64 = 8 << 20;

/// Which side: it decides how databases and filters apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Source,
    Target,
}

impl Role {
    /// The databases of this side that the plan moves; empty is all.
    pub fn databases(self, databases: &Databases) -> Vec<DbIndex> {
        match self {
            _ if databases.is_identity() => Vec::new(),
            Role::Source => databases.moved().map(|(from, _)| from).collect(),
            Role::Target => databases.moved().map(|(_, to)| to).collect(),
        }
    }
}

/// What is compared of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFact {
    pub digest: KeyDigest,
    pub expire: Option<ExpireAt>,
}

impl KeyFact {
    /// Why two keys differ; `None` when they do not.
    ///
    /// An expiry may be `tolerance_ms` off. `silent`: the source does not replicate what groups have read, so while a
    /// migration runs that may lag.
    pub fn difference(
        &self,
        other: &KeyFact,
        tolerance_ms: i64,
        silent: bool,
    ) -> Option<&'static str> {
        let (a, b) = (&self.digest, &other.digest);
        if a.kind != b.kind {
            return Some("type");
        }
        if a.value != b.value {
            return Some("value");
        }
        let beside = a.beside == b.beside && a.agrees_later(b, silent);
        if beside && a.wide != b.wide {
            return Some("value");
        }
        if !beside {
            return Some(match a.kind {
                ValueKind::Hash => "field expiry",
                ValueKind::Stream => "group state",
                _ => "value",
            });
        }
        match (self.expire, other.expire) {
            (None, None) => None,
            (Some(x), Some(y)) if (x.0 - y.0).abs() <= tolerance_ms => None,
            _ => Some("expiry"),
        }
    }
}

/// What was found under a key's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Gone,
    Here(KeyFact),
    /// Its slot is on its way to another master.
    Elsewhere,
}

impl Found {
    pub fn fact(&self) -> Option<&KeyFact> {
        match self {
            Found::Here(fact) => Some(fact),
            _ => None,
        }
    }
}

/// A side, shared by everything that reads it.
pub struct Side {
    pub role: Role,
    pub endpoint: Endpoint,
    pub cluster: bool,
    pub pexpiretime: bool,
    pub field_expiry: bool,
    pub silent_entries_read: bool,
    layout: Mutex<Arc<Layout>>,
    /// What was received so far.
    pub bytes: AtomicU64,
    /// False where DUMP is refused: then values are read by the commands of their types.
    pub dump: AtomicBool,
    /// False where MEMORY USAGE is refused: then every value is taken for small.
    memory: AtomicBool,
}

impl Side {
    pub async fn open(endpoint: &Endpoint, role: Role) -> Result<Side> {
        let name = match role {
            Role::Source => "source",
            Role::Target => "target",
        };
        let (layout, server) = server::layout(endpoint)
            .await
            .map_err(|e| e.context(format!("look at the {name}")))?;
        Ok(Side {
            role,
            endpoint: endpoint.clone(),
            cluster: layout.cluster,
            pexpiretime: server.has_pexpiretime(),
            field_expiry: server.has_field_expiry(),
            silent_entries_read: server.silent_entries_read(),
            layout: Mutex::new(Arc::new(layout)),
            bytes: AtomicU64::new(0),
            dump: AtomicBool::new(true),
            memory: AtomicBool::new(true),
        })
    }

    pub fn layout(&self) -> Arc<Layout> {
        self.layout
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Asks anew who serves which slot; any master that answers will do.
    pub async fn refresh(&self) -> Result<()> {
        if !self.cluster {
            return Ok(());
        }
        let nodes = self.layout().nodes(self.endpoint.address());
        let masters = server::masters_of(&self.endpoint, nodes, Ok).await?;
        let layout = Layout {
            cluster: true,
            masters,
        };
        *self.layout.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(layout);
        Ok(())
    }

    /// The master that serves a key.
    pub fn address_of(&self, key: &[u8]) -> String {
        let layout = self.layout();
        let master = layout.master_of(Slot::of(key));
        master.map(|m| m.address.clone()).unwrap_or_default()
    }

    pub async fn connect(&self, address: &str) -> Result<Conn> {
        net::connect(&self.endpoint, address).await
    }

    /// The keys of each database, as the masters count them.
    pub async fn sizes(&self) -> Result<BTreeMap<DbIndex, u64>> {
        let mut sizes = BTreeMap::new();
        for master in &self.layout().masters {
            let mut conn = self.connect(&master.address).await?;
            for (db, keys) in scan::databases(&mut conn).await? {
                *sizes.entry(db).or_default() += keys;
            }
        }
        Ok(sizes)
    }

    /// Seconds of CPU that all masters have used; `None` where they do not tell.
    pub async fn cpu_s(&self) -> Option<f64> {
        let mut sum = 0.0;
        for master in &self.layout().masters {
            let mut conn = self.connect(&master.address).await.ok()?;
            let reply = conn.ask(&[b"INFO", b"cpu"]).await.ok()?;
            let info = reply.text()?;
            for field in ["used_cpu_sys", "used_cpu_user"] {
                sum += info_field(&info, field)?.parse::<f64>().ok()?;
            }
        }
        Some(sum)
    }
}

/// Connections of one worker to one side.
pub struct Reader {
    pub side: Arc<Side>,
    width: Width,
    conns: HashMap<String, Conn>,
}

/// Keys that are read at a time: some, or one too large for one DUMP.
pub struct Window<'k> {
    pub keys: Vec<&'k [u8]>,
    pub large: bool,
}

/// The answer of DUMP.
pub enum Dumped {
    Gone,
    Here(Vec<u8>, Option<ExpireAt>),
    Elsewhere,
}

impl Reader {
    pub fn new(side: Arc<Side>, width: Width) -> Reader {
        Reader {
            side,
            width,
            conns: HashMap::new(),
        }
    }

    /// After an error: what is on its way on these connections belongs to nobody.
    pub fn reset(&mut self) {
        self.conns.clear();
    }

    /// A connection with the database selected; `None` when the server has fewer databases, so none of these keys.
    async fn take(&mut self, address: &str, db: DbIndex) -> Result<Option<Conn>> {
        let mut conn = match self.conns.remove(address) {
            Some(conn) => conn,
            None => self.side.connect(address).await?,
        };
        match conn.select(db).await {
            Ok(()) => Ok(Some(conn)),
            Err(e) if e.kind() == ErrorKind::Refused => {
                self.conns.insert(address.to_owned(), conn);
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Has `ask` queue one or two commands for each key and `answer` read their replies, on all masters at once.
    async fn each<T, const N: usize>(
        &mut self,
        db: DbIndex,
        keys: &[&[u8]],
        absent: impl Fn() -> T,
        ask: impl Fn(&mut Conn, &[u8]),
        answer: impl Fn([Reply; N]) -> Result<T>,
    ) -> Result<Vec<T>> {
        let layout = self.side.layout();
        let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, key) in keys.iter().enumerate() {
            let master = layout.master_of(Slot::of(key));
            let address = master.map_or("", |m| m.address.as_str());
            groups.entry(address).or_default().push(i);
        }
        let mut found: Vec<T> = keys.iter().map(|_| absent()).collect();
        let mut asked = Vec::with_capacity(groups.len());
        for (address, places) in groups {
            if let Some(mut conn) = self.take(address, db).await? {
                for key in places.iter().filter_map(|i| keys.get(*i)) {
                    ask(&mut conn, key);
                }
                asked.push((address, places, conn));
            }
        }
        let answer = &answer;
        let answers = asked
            .into_iter()
            .map(|(address, places, mut conn)| async move {
                conn.flush().await?;
                let mut replies = Vec::with_capacity(places.len());
                for _ in &places {
                    let mut each = [const { Reply::Nil }; N];
                    for reply in &mut each {
                        *reply = conn.reply().await?;
                    }
                    replies.push(answer(each)?);
                }
                Ok::<_, Error>((address, places, replies, conn))
            });
        for (address, places, replies, mut conn) in futures::future::try_join_all(answers).await? {
            self.side.bytes.fetch_add(conn.take_received(), Relaxed);
            self.conns.insert(address.to_owned(), conn);
            for (i, reply) in places.into_iter().zip(replies) {
                if let Some(place) = found.get_mut(i) {
                    *place = reply;
                }
            }
        }
        Ok(found)
    }

    /// DUMP and expiry of keys.
    pub async fn dumps(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<Dumped>> {
        let pexpiretime = self.side.pexpiretime;
        let ask = |conn: &mut Conn, key: &[u8]| {
            conn.push(&[b"DUMP", key]);
            conn.push(&[Server::expiry_command(pexpiretime), key]);
        };
        let answer = |[dump, expire]: [Reply; 2]| {
            let now = if pexpiretime { 0 } else { unix_ms() };
            let expire = expire.int().filter(|n| *n >= 0);
            Ok(match dump {
                Reply::Nil => Dumped::Gone,
                Reply::Bulk(payload) => Dumped::Here(payload, expire.map(|n| ExpireAt(n + now))),
                Reply::Error(text) if is_elsewhere(&text) => Dumped::Elsewhere,
                Reply::Error(text) => return Err(refusal("DUMP", &text)),
                _ => return Err(unforeseen("DUMP")),
            })
        };
        self.each(db, keys, || Dumped::Gone, ask, answer).await
    }

    /// The type's name of each key; `None` for one that is not there.
    async fn types(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<Option<String>>> {
        let ask = |conn: &mut Conn, key: &[u8]| conn.push(&[b"TYPE", key]);
        let answer = |[reply]: [Reply; 1]| match reply {
            Reply::Status(name) => Ok(Some(name).filter(|n| n != "none")),
            // Wherever it is, it is somewhere.
            Reply::Error(text) if is_elsewhere(&text) => Ok(Some(String::new())),
            Reply::Error(text) => Err(refusal("TYPE", &text)),
            _ => Err(unforeseen("TYPE")),
        };
        self.each(db, keys, || None, ask, answer).await
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
            if types.iter().flatten().any(String::is_empty) {
                return Err(Error::new(
                    ErrorKind::Moved,
                    "a slot of the source is on its way to another master",
                ));
            }
            keys = (keys.iter().zip(types))
                .filter(|(_, name)| {
                    (name.as_ref()).is_none_or(|n| !job.filter.accepts_type(type_name(n)))
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
        let refused = side.endpoint.learnt.refuses(&[b"MEMORY", b"USAGE"]);
        if refused || !side.memory.load(Relaxed) {
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
        self.each(db, keys, || 0, ask, answer).await
    }

    /// Parts some keys into what is read at a time.
    pub async fn windows<'k>(&mut self, db: DbIndex, keys: &[&'k [u8]]) -> Result<Vec<Window<'k>>> {
        let memory = self.memory(db, keys).await?;
        let mut windows: Vec<Window> = Vec::new();
        let mut bytes = 0;
        for (key, n) in keys.iter().zip(memory) {
            let large = n > LARGE;
            bytes += n;
            match windows.last_mut() {
                Some(last)
                    if !(last.large || large)
                        && bytes <= WINDOW_BYTES
                        && last.keys.len() < WINDOW_KEYS =>
                {
                    last.keys.push(*key);
                }
                _ => {
                    let keys = vec![*key];
                    windows.push(Window { keys, large });
                    bytes = n;
                }
            }
        }
        Ok(windows)
    }

    /// What keys hold, in their order.
    pub async fn facts(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<Found>> {
        let mut found = Vec::with_capacity(keys.len());
        for window in self.windows(db, keys).await? {
            found.extend(self.window(db, &window).await?);
        }
        Ok(found)
    }

    /// What the keys of a window hold.
    async fn window(&mut self, db: DbIndex, window: &Window<'_>) -> Result<Vec<Found>> {
        if self.dumps_of(window) {
            match self.dumps(db, &window.keys).await {
                Ok(dumps) => {
                    let read = dumps.iter().zip(&window.keys);
                    return read.map(|(dump, key)| self.digest(dump, key)).collect();
                }
                Err(e) if e.kind() == ErrorKind::Refused => {
                    tracing::warn!("values are read by the commands of their types: {e}");
                    self.side.dump.store(false, Relaxed);
                    self.reset();
                }
                Err(e) => return Err(e),
            }
        }
        let mut found = Vec::with_capacity(window.keys.len());
        for key in &window.keys {
            found.push(self.typed(db, key).await?);
        }
        Ok(found)
    }

    /// Whether a window is read by DUMP.
    fn dumps_of(&self, window: &Window) -> bool {
        !window.large && self.side.dump.load(Relaxed)
    }

    fn digest(&self, dump: &Dumped, key: &[u8]) -> Result<Found> {
        Ok(match dump {
            Dumped::Gone => Found::Gone,
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

    /// Reads a value in parts into `sink` and returns its expiry; the outer `None` when the key is gone or elsewhere.
    pub async fn parts(
        &mut self,
        db: DbIndex,
        key: &[u8],
        sink: &mut impl ValueSink,
    ) -> Result<Option<Option<ExpireAt>>> {
        let address = self.side.address_of(key);
        let Some(mut conn) = self.take(&address, db).await? else {
            return Ok(None);
        };
        let Some(kind) = typed::kind(&mut conn, key).await? else {
            return Ok(None);
        };
        let expire = typed::read(&mut conn, &self.side, key, kind, sink).await?;
        self.side.bytes.fetch_add(conn.take_received(), Relaxed);
        self.conns.insert(address, conn);
        Ok(expire)
    }

    /// A value read in parts, by the commands of its type.
    async fn typed(&mut self, db: DbIndex, key: &[u8]) -> Result<Found> {
        let address = self.side.address_of(key);
        let Some(mut conn) = self.take(&address, db).await? else {
            return Ok(Found::Gone);
        };
        let fact = typed::fact(&mut conn, &self.side, key, self.width).await;
        self.side.bytes.fetch_add(conn.take_received(), Relaxed);
        let found = match fact {
            Ok(fact) => fact.map_or(Found::Gone, Found::Here),
            Err(e) if e.kind() == ErrorKind::Moved => Found::Elsewhere,
            Err(e) => return Err(e.context(format!("read the key {}", shown(key)))),
        };
        self.conns.insert(address, conn);
        Ok(found)
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
    let keys = &window.keys;
    let read = match source.dumps_of(window) && target.dumps_of(window) {
        true => {
            let dumps =
                tokio::try_join!(source.dumps(source_db, keys), target.dumps(target_db, keys));
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
        let first = source.digest(a, key)?;
        let second = match (a, b, &first) {
            (Dumped::Here(p, _), Dumped::Here(q, expire), Found::Here(fact)) if same_body(p, q) => {
                Found::Here(KeyFact {
                    digest: fact.digest,
                    expire: *expire,
                })
            }
            _ => target.digest(b, key)?,
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

fn unforeseen(command: &str) -> Error {
    Error::new(
        ErrorKind::Protocol,
        format!("{command} was answered in a form that is not understood"),
    )
}
