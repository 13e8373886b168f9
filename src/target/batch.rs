//! Commands for one node while they are gathered: guards in front of them, strings that go several in an MSET.

use crate::resp;
use crate::types::DbIndex;
use std::collections::BTreeMap;
use std::ops::Range;

/// A database that the target is known to have.
///
/// Only [`KnownDatabases::get`] makes one, so nothing can be written to a database that nobody has
/// asked for: on a server that refuses the SELECT, it would run in whichever database the connection was in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Database(DbIndex);

impl Database {
    /// Every server has it, and every connection begins in it.
    pub const ZERO: Database = Database(DbIndex::ZERO);

    pub fn index(self) -> DbIndex {
        self.0
    }
}

/// The databases of the target beside 0, as far as it was asked for them.
#[derive(Debug, Default)]
pub struct KnownDatabases {
    /// There is none, and SELECT is never sent.
    only_zero: bool,
    known: BTreeMap<DbIndex, bool>,
}

impl KnownDatabases {
    /// `only_zero`: the target is known to have no other.
    pub fn new(only_zero: bool) -> KnownDatabases {
        KnownDatabases {
            only_zero,
            known: BTreeMap::new(),
        }
    }

    /// A database, once the target is known to have it; the outer `None` when it has not been asked.
    pub fn get(&self, db: DbIndex) -> Option<Option<Database>> {
        let there = match db == DbIndex::ZERO {
            true => true,
            false if self.only_zero => false,
            false => *self.known.get(&db)?,
        };
        Some(there.then_some(Database(db)))
    }

    /// Takes in what the target has answered to a SELECT.
    pub fn learn(&mut self, db: DbIndex, there: bool) {
        self.known.insert(db, there);
    }
}

/// Commands for one node, all in one database.
#[derive(Debug)]
pub struct Batch {
    pub bytes: Vec<u8>,
    pub commands: u32,
    pub db: Database,
    /// Rises by one with each batch to the same node.
    pub seq: u64,
    /// Commands (by index) for which the answer 0 or -2 means that the key or field they expected was not there.
    pub expect: Vec<u32>,
    /// Commands (by index) that write a key's whole state: there is no other way to write it.
    states: Vec<Range<u32>>,
    /// Arguments of an MSET that is not there yet, and how many pairs they are.
    pairs: (Vec<u8>, usize),
}

/// A server runs one command at a time: more pairs in one would save nothing more, and keep others waiting.
pub const PAIRS: usize = 32;
const PAIRS_BYTES: usize = 16 << 10;

/// The commands of a guard: they are sent for nothing else.
pub const GUARDS: [&[u8]; 2] = [b"EXISTS", b"HEXISTS"];

impl Batch {
    pub fn new(bytes: Vec<u8>, db: Database) -> Batch {
        Batch {
            bytes,
            commands: 0,
            db,
            seq: 0,
            expect: Vec::new(),
            states: Vec::new(),
            pairs: (Vec::new(), 0),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.commands == 0 && self.pairs.1 == 0
    }

    /// How long it is, all told.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.pairs.0.len()
    }

    /// Says that the next `commands` to be added write a key's whole state.
    pub fn state(&mut self, commands: u32) {
        let end = self.commands.saturating_add(commands);
        match self.states.last_mut() {
            Some(last) if last.end == self.commands => last.end = end,
            _ => self.states.push(self.commands..end),
        }
    }

    /// Whether a command (by index) is part of a key's whole state.
    pub fn is_state(&self, index: u32) -> bool {
        let after = self.states.partition_point(|range| range.start <= index);
        let range = after.checked_sub(1).and_then(|i| self.states.get(i));
        range.is_some_and(|range| range.contains(&index))
    }

    /// Empties it for what comes next.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.expect.clear();
        self.states.clear();
        self.commands = 0;
    }

    /// Sets a string together with others, whatever lies between them: for keys that nothing else in the batch touches.
    ///
    /// Returns how many commands have come into the batch by it.
    pub fn pair(&mut self, key: &[u8], value: &[u8]) -> u32 {
        let (bytes, count) = &mut self.pairs;
        resp::bulk(bytes, key);
        resp::bulk(bytes, value);
        *count += 1;
        match *count == PAIRS || bytes.len() >= PAIRS_BYTES {
            true => self.close(),
            false => 0,
        }
    }

    /// Makes a command of the pairs that wait; returns how many there are now more.
    pub fn close(&mut self) -> u32 {
        let (pairs, count) = &mut self.pairs;
        if *count == 0 {
            return 0;
        }
        resp::array(&mut self.bytes, 1 + 2 * *count);
        resp::bulk(&mut self.bytes, b"MSET");
        self.bytes.append(pairs);
        *count = 0;
        1
    }

    /// Asks whether a key (or a field of it) is there, in front of a command that must not run without it; `guards`
    /// counts them.
    pub fn guard(&mut self, guards: &mut u32, key: &[u8], field: Option<&[u8]>) {
        let [of_key, of_field] = GUARDS;
        match field {
            None => resp::command(&mut self.bytes, &[of_key, key]),
            Some(field) => resp::command(&mut self.bytes, &[of_field, key, field]),
        }
        self.expect.push(self.commands.saturating_add(*guards));
        *guards = guards.saturating_add(1);
    }
}
