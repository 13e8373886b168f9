//! A snapshot file as the source of a comparison.
//!
//! Its keys are read once with their values. What the target has too much is found by the hashes of the file's keys,
//! for a range of slots at a time, so that memory does not grow with the file.

use super::progress::Name;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::keyset::KeySet;
use crate::plan::{Limits, RdbPath};
use crate::rdb::file::{Options, Snapshot};
use crate::source::keys::fact::{Found, KeyFact};
use crate::source::{files, unpack};
use crate::types::{DbIndex, SLOTS, Slot, SlotSet, unix_ms};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The file, and what the comparison has to remember of it.
pub struct Snap {
    pub paths: Vec<PathBuf>,
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
        if *path == RdbPath::Stdin {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "standard input can only be read once",
            )
            .hint("save it to a file, and give its path in the plan"));
        }
        let parts = files::parts(&files::named(path)?)?;
        if parts
            .iter()
            .any(|p| p.snapshot.is_none() || !p.commands.is_empty())
        {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{path} holds commands, which only a server can run"),
            )
            .hint("load it into a server, and verify against that"));
        }
        Ok(Snap {
            paths: parts.into_iter().filter_map(|p| p.snapshot).collect(),
            keys: AtomicU64::new(0),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the file says of a key that agrees; true when an earlier snapshot said something else, which counts
    /// no longer: it is left to be confirmed.
    pub fn overrules(&self, name: Name, fact: &KeyFact) -> bool {
        match self.state().apart.entry(name) {
            Entry::Occupied(mut before) => {
                before.insert(fact.clone());
                true
            }
            Entry::Vacant(_) => false,
        }
    }

    /// Remembers what the file says of a key that did not agree; what it says last counts.
    pub fn keep(&self, name: Name, fact: KeyFact) {
        self.state().apart.insert(name, fact);
    }

    pub fn fact(&self, name: &Name) -> Found {
        match self.state().apart.get(name) {
            Some(fact) if fact.expire.is_none_or(|e| e.0 > unix_ms()) => Found::Here(fact.clone()),
            _ => Found::Gone,
        }
    }

    /// Takes its libraries of functions.
    pub fn keep_functions(&self, functions: BTreeMap<String, Vec<u8>>) {
        self.state().functions = functions;
    }

    /// From now on these are its keys, as far as they are searched.
    pub fn keep_there(&self, keys: KeySet) {
        self.state().there = Some(keys);
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

    pub fn count(&self, keys: u64) {
        self.keys.fetch_add(keys, Relaxed);
    }

    /// Those of some keys of the target that the file does not hold.
    pub fn lacks<'k>(&self, db: DbIndex, mut keys: Vec<&'k [u8]>) -> Vec<&'k [u8]> {
        let state = self.state();
        keys.retain(|key| !(state.there.as_ref()).is_some_and(|t| t.has(db, key)));
        keys
    }
}

/// Begins to read a file.
pub fn open(path: &Path) -> Result<Snapshot<Box<dyn Read>>> {
    let failed = || format!("read {}", path.display());
    let file = std::fs::File::open(path).context(ErrorKind::Disk, failed)?;
    let input = unpack::unpacked(Box::new(file)).map_err(|e| e.context(failed()))?;
    let options = Options {
        joined: true,
        ..Options::default()
    };
    Snapshot::open(input, options).map_err(|e| e.context(failed()))
}
