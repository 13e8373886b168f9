//! The keys of a snapshot file: with what they hold, for the first pass, and their names alone, for the second.

use super::check::Check;
use super::file::{Snap, open};
use crate::digest::Digester;
use crate::error::{Error, ErrorKind, Result};
use crate::keyset::KeySet;
use crate::plan::Expired;
use crate::rdb::file::{Header, Item};
use crate::rdb::value;
use crate::source::keys::depth::PAGE;
use crate::source::keys::fact::KeyFact;
use crate::source::keys::list::{Out, Page, Position};
use crate::types::{DbIndex, Slot, SlotSet, unix_ms};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const SETTLE_TICK: Duration = Duration::from_millis(2);

/// Sends the file's keys with what they hold.
pub async fn list(file: &Snap, check: &Arc<Check>, pages: mpsc::Sender<Page>) -> Result<()> {
    let (check, paths) = (check.clone(), file.paths.clone());
    let read = tokio::task::spawn_blocking(move || {
        let mut batch = Batch {
            out: Out::new(pages),
            db: DbIndex::ZERO,
            keys: Vec::new(),
            facts: Vec::new(),
        };
        let mut functions = BTreeMap::new();
        for path in &paths {
            if !read(path, &check, &mut functions, &mut batch)? || !batch.settle(&check)? {
                break;
            }
        }
        Ok::<_, Error>(functions)
    });
    let read = read
        .await
        .map_err(|e| Error::new(ErrorKind::Bug, "read the file").cause(e))?;
    file.keep_functions(read?);
    Ok(())
}

/// Takes the keys of some slots.
pub async fn search(file: &Snap, check: &Arc<Check>, slots: SlotSet) -> Result<()> {
    let (check, paths) = (check.clone(), file.paths.clone());
    let work = tokio::task::spawn_blocking(move || {
        let mut there = KeySet::unbounded();
        let mut paths = paths.iter();
        let Some(mut snapshot) = paths.next().map(|path| open(path)).transpose()? else {
            return Ok(there);
        };
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
                Item::End => match paths.next() {
                    Some(path) => snapshot = open(path)?,
                    None => return Ok::<_, Error>(there),
                },
                Item::Entry(entry) => note(&entry.header),
                Item::Large(large) => note(&large.header()),
                _ => {}
            }
        }
    });
    let there = work
        .await
        .map_err(|e| Error::new(ErrorKind::Bug, "read the file").cause(e))?;
    file.keep_there(there?);
    Ok(())
}

/// Reads every key of a file that is compared, and the libraries of functions; false when nobody listens any more.
fn read(
    path: &Path,
    check: &Check,
    functions: &mut BTreeMap<String, Vec<u8>>,
    batch: &mut Batch,
) -> Result<bool> {
    let mut snapshot = open(path)?;
    let (mut dialect, mut version) = (snapshot.dialect(), snapshot.version());
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
            Item::End => return Ok(true),
            Item::Joined(next, number) => {
                (dialect, version) = (next, number);
                if !batch.settle(check)? {
                    return Ok(false);
                }
            }
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
                    && !batch.add(h, KeyFact { digest, expire })
                {
                    return Ok(false);
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
                    && !batch.add(&header, KeyFact { digest, expire })
                {
                    return Ok(false);
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

    /// Waits until all keys so far are compared: what a later snapshot says of the same key counts. False when nobody
    /// listens any more.
    fn settle(&mut self, check: &Check) -> Result<bool> {
        let listening = self.send();
        while check.progress().pages_done() < self.out.sent() {
            check.go_on()?;
            if !listening || self.out.is_closed() {
                return Ok(false);
            }
            std::thread::sleep(SETTLE_TICK);
        }
        Ok(listening)
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
