//! A snapshot file as the source of a comparison.
//!
//! Its keys are read once with their values. What the target has too much is found by the hashes of the file's keys,
//! for a range of slots at a time, so that memory does not grow with the file.

use super::Check;
use super::progress::Name;
use crate::digest::Digester;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::keyset::KeySet;
use crate::plan::{Expired, Limits, RdbPath};
use crate::rdb::file::{Header, Item, Options, Snapshot};
use crate::rdb::value;
use crate::source::keys::fact::{Found, KeyFact};
use crate::source::keys::list::{Out, PAGE, Page, Position};
use crate::source::{aof, gzip};
use crate::types::{DbIndex, SLOTS, Slot, SlotSet, unix_ms};
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// The file, and what the comparison has to remember of it.
pub struct Snap {
    path: PathBuf,
    keys: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The facts of keys that did not agree.
    apart: HashMap<Name, KeyFact>,
    /// The keys of the slots that are searched now.
    there: Option<KeySet>,
    functions: BTreeMap<String, Vec<u8>>,
}

impl Snap {
    /// Errors: `Unsupported` for standard input, and for an append-only file with commands behind its snapshot.
    pub fn open(path: &RdbPath) -> Result<Snap> {
        let RdbPath::File(path) = path else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "standard input can only be read once",
            )
            .hint("save it to a file, and give its path in the plan"));
        };
        let parts = aof::parts(path)?;
        match parts.snapshot {
            Some(snapshot) if parts.commands.is_empty() => Ok(Snap {
                path: snapshot,
                keys: AtomicU64::new(0),
                state: Mutex::default(),
            }),
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{} holds commands, which only a server can run",
                    path.display()
                ),
            )
            .hint("load it into a server, and verify against that")),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what the file says of a key that did not agree.
    pub fn keep(&self, name: Name, fact: KeyFact) {
        self.state().apart.insert(name, fact);
    }

    pub fn fact(&self, name: &Name) -> Found {
        match self.state().apart.get(name) {
            Some(fact) if fact.expire.is_none_or(|e| e.0 > unix_ms()) => Found::Here(fact.clone()),
            _ => Found::Gone,
        }
    }

    pub fn functions(&self) -> BTreeMap<String, Vec<u8>> {
        self.state().functions.clone()
    }

    /// The ranges of slots that are searched one after the other.
    pub fn ranges(&self, limits: &Limits) -> Vec<SlotSet> {
        // The slots are not quite alike.
        let room = KeySet::room(limits.key_set()) / 10 * 9;
        let parts = self.keys.load(Relaxed).div_ceil(room as u64).max(1) as usize;
        let size = SLOTS.div_ceil(parts);
        let slots: Vec<Slot> = Slot::all().collect();
        slots
            .chunks(size)
            .map(|c| c.iter().copied().collect())
            .collect()
    }

    /// Sends the file's keys with what they hold.
    pub async fn list(&self, check: &Arc<Check>, pages: mpsc::Sender<Page>) -> Result<()> {
        let (check, path) = (check.clone(), self.path.clone());
        let read = tokio::task::spawn_blocking(move || {
            let mut batch = Batch {
                out: Out::new(pages),
                db: DbIndex::ZERO,
                keys: Vec::new(),
                facts: Vec::new(),
            };
            let functions = read(&path, &check, |h, fact| batch.add(h, fact))?;
            batch.send();
            Ok::<_, Error>(functions)
        });
        let read = read
            .await
            .map_err(|e| Error::new(ErrorKind::Bug, "read the file").cause(e))?;
        self.state().functions = read?;
        Ok(())
    }

    pub fn count(&self, keys: u64) {
        self.keys.fetch_add(keys, Relaxed);
    }

    /// Takes the keys of some slots.
    pub async fn search(&self, check: &Arc<Check>, slots: SlotSet) -> Result<()> {
        let (check, path) = (check.clone(), self.path.clone());
        let work = tokio::task::spawn_blocking(move || {
            let mut there = KeySet::unbounded();
            let mut snapshot = open(&path)?;
            loop {
                check.go_on()?;
                let mut note = |h: &Header<'_>| {
                    if slots.has(Slot::of(h.key))
                        && let Some(db) = check.job.databases.map(h.db)
                    {
                        there.put(db, h.key);
                    }
                };
                match snapshot.next()? {
                    Item::End => return Ok::<_, Error>(there),
                    Item::Entry(entry) => note(&entry.header),
                    Item::Large(large) => note(&large.header()),
                    _ => {}
                }
            }
        });
        let there = work
            .await
            .map_err(|e| Error::new(ErrorKind::Bug, "read the file").cause(e))?;
        self.state().there = Some(there?);
        Ok(())
    }

    /// Those of some keys of the target that the file does not hold.
    pub fn lacks<'k>(&self, db: DbIndex, mut keys: Vec<&'k [u8]>) -> Vec<&'k [u8]> {
        let state = self.state();
        keys.retain(|key| !(state.there.as_ref()).is_some_and(|t| t.has(db, key)));
        keys
    }
}

fn open(path: &Path) -> Result<Snapshot<Box<dyn Read>>> {
    let failed = || format!("read {}", path.display());
    let file = std::fs::File::open(path).context(ErrorKind::Disk, failed)?;
    let input = gzip::unpacked(Box::new(file)).context(ErrorKind::Disk, failed)?;
    Snapshot::open(input, Options::default()).map_err(|e| e.context(failed()))
}

/// Reads every key that is compared; returns the libraries of functions.
fn read(
    path: &Path,
    check: &Check,
    mut each: impl FnMut(&Header<'_>, KeyFact) -> bool,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut functions = BTreeMap::new();
    let mut snapshot = open(path)?;
    let (dialect, version) = (snapshot.dialect(), snapshot.version());
    loop {
        check.go_on()?;
        let (now, width) = (unix_ms(), check.width);
        let wanted = |h: &Header<'_>| {
            check
                .job
                .databases
                .map(h.db)
                .is_some_and(|db| check.compared(db, h.key))
        };
        let expiry = |h: &Header<'_>| match h.expire {
            Some(e) if e.0 <= now && check.job.expired == Expired::Persist => None,
            other => other,
        };
        let gone = |h: &Header<'_>| expiry(h).is_some_and(|e| e.0 <= now);
        let failed = |e: Error| e.context(format!("read {}", path.display()));
        match snapshot.next().map_err(failed)? {
            Item::End => return Ok(functions),
            Item::Function(code) => {
                if let Some(name) = library_name(code) {
                    functions.insert(name, code.to_vec());
                }
            }
            Item::Entry(entry) => {
                let h = &entry.header;
                if !wanted(h) || gone(h) {
                    continue;
                }
                let mut digester = Digester::new(value::kind(h.type_id, dialect)?, now, width);
                value::decode(
                    h.type_id,
                    dialect,
                    version,
                    entry.value,
                    h.value_at,
                    &mut digester,
                )
                .map_err(failed)?;
                let expire = expiry(h);
                if let Some(digest) = digester.finish()
                    && !each(h, KeyFact { digest, expire })
                {
                    return Ok(functions);
                }
            }
            Item::Large(large) => {
                let h = large.header();
                if !wanted(&h) || gone(&h) {
                    continue;
                }
                let (db, key, expire) = (h.db, h.key.to_vec(), expiry(&h));
                let header = Header {
                    key: &key,
                    db,
                    meta: &[],
                    ..h
                };
                let mut digester = Digester::new(value::kind(h.type_id, dialect)?, now, width);
                let (type_id, at, value_at) = (h.type_id, h.at, h.value_at);
                let header = Header {
                    type_id,
                    at,
                    value_at,
                    ..header
                };
                large.decode(&mut digester).map_err(failed)?;
                if let Some(digest) = digester.finish()
                    && !each(&header, KeyFact { digest, expire })
                {
                    return Ok(functions);
                }
            }
            _ => {}
        }
    }
}

/// From the first line of a library: `#!lua name=mylib`.
fn library_name(code: &[u8]) -> Option<String> {
    let line = code.split(|b| *b == b'\n').next()?;
    let line = String::from_utf8_lossy(line).into_owned();
    let name = line
        .split_whitespace()
        .find_map(|w| w.strip_prefix("name="))?;
    Some(name.to_owned())
}

/// Keys that wait to be sent together.
struct Batch {
    out: Out,
    db: DbIndex,
    keys: Vec<Vec<u8>>,
    facts: Vec<KeyFact>,
}

impl Batch {
    /// False when nobody listens any more.
    fn add(&mut self, h: &Header<'_>, fact: KeyFact) -> bool {
        if (h.db != self.db || self.keys.len() >= PAGE) && !self.send() {
            return false;
        }
        self.db = h.db;
        self.keys.push(h.key.to_vec());
        self.facts.push(fact);
        true
    }

    fn send(&mut self) -> bool {
        let (keys, facts) = (
            std::mem::take(&mut self.keys),
            std::mem::take(&mut self.facts),
        );
        futures::executor::block_on(
            self.out
                .send(self.db, keys, Some(facts), Some(Position::End)),
        )
    }
}
