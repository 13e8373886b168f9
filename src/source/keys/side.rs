//! One side of a comparison: where its keys are, and what they hold.

use super::typed;
use crate::digest::{self, KeyDigest, Width};
use crate::error::{Error, ErrorKind, Result};
use crate::net::server::{self, Layout};
use crate::net::{self, Conn, info_field, refusal, scan};
use crate::plan::Endpoint;
use crate::rdb::value::ValueSink;
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

/// What is compared of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFact {
    pub digest: KeyDigest,
    pub expire: Option<ExpireAt>,
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
        let mut last = None;
        let layout = self.layout();
        let mut nodes = vec![self.endpoint.address()];
        for master in &layout.masters {
            nodes.extend(master.replicas.iter().cloned());
            nodes.push(master.address.clone());
        }
        for address in nodes {
            let ask = async {
                let mut conn = net::connect(&self.endpoint, &address).await?;
                server::masters(&mut conn, &self.endpoint).await
            };
            match ask.await {
                Ok(masters) if !masters.is_empty() => {
                    let layout = Layout {
                        cluster: true,
                        masters,
                    };
                    *self.layout.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(layout);
                    return Ok(());
                }
                Ok(_) => {}
                Err(e) => last = Some(e),
            }
        }
        Err(last.unwrap_or_else(|| Error::new(ErrorKind::NotReady, "no node serves a slot")))
    }

    /// The master that serves a key.
    pub fn address_of(&self, key: &[u8]) -> String {
        let layout = self.layout();
        let slot = Slot::of(key);
        let master = (layout.masters.iter()).find(|m| m.slots.has(slot));
        let master = master.or(layout.masters.first());
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
    conns: HashMap<String, Open>,
}

struct Open {
    conn: Conn,
    db: DbIndex,
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

    async fn take(&mut self, address: &str, db: DbIndex) -> Result<Option<Open>> {
        let mut open = match self.conns.remove(address) {
            Some(open) => open,
            None => Open {
                conn: self.side.connect(address).await?,
                db: DbIndex::ZERO,
            },
        };
        if open.db != db {
            if let Reply::Error(_) = (open.conn)
                .ask(&[b"SELECT", db.to_string().as_bytes()])
                .await?
            {
                // The server has fewer databases: it holds none of these keys.
                self.conns.insert(address.to_owned(), open);
                return Ok(None);
            }
            open.db = db;
        }
        Ok(Some(open))
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
            let slot = Slot::of(key);
            let master = (layout.masters.iter()).find(|m| m.slots.has(slot));
            let master = master.or(layout.masters.first());
            let address = master.map_or("", |m| m.address.as_str());
            groups.entry(address).or_default().push(i);
        }
        let mut found: Vec<T> = keys.iter().map(|_| absent()).collect();
        let mut asked = Vec::with_capacity(groups.len());
        for (address, places) in groups {
            if let Some(mut open) = self.take(address, db).await? {
                for key in places.iter().filter_map(|i| keys.get(*i)) {
                    ask(&mut open.conn, key);
                }
                asked.push((address, places, open));
            }
        }
        let answer = &answer;
        let answers = asked
            .into_iter()
            .map(|(address, places, mut open)| async move {
                open.conn.flush().await?;
                let mut replies = Vec::with_capacity(places.len());
                for _ in &places {
                    let mut each = [const { Reply::Nil }; N];
                    for reply in &mut each {
                        *reply = open.conn.reply().await?;
                    }
                    replies.push(answer(each)?);
                }
                Ok::<_, Error>((address, places, replies, open))
            });
        for (address, places, replies, mut open) in futures::future::try_join_all(answers).await? {
            self.side
                .bytes
                .fetch_add(open.conn.take_received(), Relaxed);
            self.conns.insert(address.to_owned(), open);
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
            conn.push(&[if pexpiretime { b"PEXPIRETIME" } else { b"PTTL" }, key]);
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
    pub async fn types(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<Option<String>>> {
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

    /// About how much memory each value takes; 0 where that is not told.
    async fn memory(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<u64>> {
        let side = self.side.clone();
        if !side.memory.load(Relaxed) {
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

    /// Parts some keys into those that are read together and those that are too large for that.
    pub async fn windows<'k>(
        &mut self,
        db: DbIndex,
        keys: &[&'k [u8]],
    ) -> Result<(Vec<Vec<&'k [u8]>>, Vec<&'k [u8]>)> {
        let memory = self.memory(db, keys).await?;
        let (mut windows, mut large) = (vec![Vec::new()], Vec::new());
        let mut bytes = 0;
        for (key, n) in keys.iter().zip(memory) {
            if n > LARGE {
                large.push(*key);
                continue;
            }
            bytes += n;
            match windows.last_mut() {
                Some(last)
                    if last.is_empty() || (bytes <= WINDOW_BYTES && last.len() < WINDOW_KEYS) =>
                {
                    last.push(*key);
                }
                _ => {
                    windows.push(vec![*key]);
                    bytes = n;
                }
            }
        }
        Ok((windows, large))
    }

    /// What keys hold, in their order.
    pub async fn facts(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<Found>> {
        let (windows, large) = self.windows(db, keys).await?;
        let mut found = HashMap::with_capacity(keys.len());
        for window in windows {
            for (key, fact) in window.iter().zip(self.window(db, &window).await?) {
                found.insert(*key, fact);
            }
        }
        for key in large {
            found.insert(key, self.typed(db, key).await?);
        }
        let taken = keys.iter().map(|key| found.remove(key));
        Ok(taken.map(|f| f.unwrap_or(Found::Gone)).collect())
    }

    /// What the keys of a window hold.
    pub async fn window(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<Found>> {
        if self.side.dump.load(Relaxed) {
            match self.dumps(db, keys).await {
                Ok(dumps) => {
                    let read = dumps.iter().zip(keys);
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
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            found.push(self.typed(db, key).await?);
        }
        Ok(found)
    }

    pub fn digest(&self, dump: &Dumped, key: &[u8]) -> Result<Found> {
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
        let Some(mut open) = self.take(&address, db).await? else {
            return Ok(None);
        };
        let Some(kind) = typed::kind(&mut open.conn, key).await? else {
            return Ok(None);
        };
        let expire = typed::read(&mut open.conn, &self.side, key, kind, sink).await?;
        self.side
            .bytes
            .fetch_add(open.conn.take_received(), Relaxed);
        self.conns.insert(address, open);
        Ok(expire)
    }

    /// A value read in parts, by the commands of its type.
    pub async fn typed(&mut self, db: DbIndex, key: &[u8]) -> Result<Found> {
        let address = self.side.address_of(key);
        let Some(mut open) = self.take(&address, db).await? else {
            return Ok(Found::Gone);
        };
        let fact = typed::fact(&mut open.conn, &self.side, key, self.width).await;
        self.side
            .bytes
            .fetch_add(open.conn.take_received(), Relaxed);
        let found = match fact {
            Ok(fact) => fact.map_or(Found::Gone, Found::Here),
            Err(e) if is_elsewhere(e.message().rsplit("with: ").next().unwrap_or_default()) => {
                Found::Elsewhere
            }
            Err(e) => return Err(e.context(format!("read the key {}", shown(key)))),
        };
        self.conns.insert(address, open);
        Ok(found)
    }
}

/// What both sides hold of some keys; values of the same bytes are decoded once.
pub async fn pairs(
    source: &mut Reader,
    source_db: DbIndex,
    target: &mut Reader,
    target_db: DbIndex,
    keys: &[&[u8]],
) -> Result<Vec<(Found, Found)>> {
    if !(source.side.dump.load(Relaxed) && target.side.dump.load(Relaxed)) {
        let (a, b) = tokio::try_join!(
            source.window(source_db, keys),
            target.window(target_db, keys)
        )?;
        return Ok(a.into_iter().zip(b).collect());
    }
    let read = tokio::try_join!(source.dumps(source_db, keys), target.dumps(target_db, keys));
    let (ours, theirs) = match read {
        Ok(read) => read,
        // One side refuses DUMP: `window` finds out which.
        Err(e) if e.kind() == ErrorKind::Refused => {
            source.reset();
            target.reset();
            let (a, b) = tokio::try_join!(
                source.window(source_db, keys),
                target.window(target_db, keys)
            )?;
            return Ok(a.into_iter().zip(b).collect());
        }
        Err(e) => return Err(e),
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

fn is_elsewhere(text: &str) -> bool {
    ["MOVED ", "ASK ", "TRYAGAIN"]
        .iter()
        .any(|w| text.starts_with(w))
}

fn unforeseen(command: &str) -> Error {
    Error::new(
        ErrorKind::Protocol,
        format!("{command} was answered in a form that is not understood"),
    )
}
