//! The reference model of both servers: strings, what the source has sent, what is on its way to the target.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use crate::command::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::fence::{Dump, GroupFact, KeyState};
use crate::migrate::heal::fenced_reader::ReadStates;
use crate::migrate::write::large_value::Delivery;
use crate::migrate::write::wire::Wire;
use crate::rdb::payload;
use crate::resp;
use crate::target::{Batch, Database, Fate, Unit};
use crate::types::{DbIndex, ExpireAt, Mark, ReplOffset, Slot};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use tokio::runtime::Handle;

/// Databases that the target has; the source has two more.
pub(crate) const DATABASES: u32 = 4;
pub(crate) const KEYS: [&str; 7] = ["a", "b", "c", "own", "keep:a", "keep:b", "keep:n"];

/// Numbers that follow from a seed.
pub(crate) struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn key(&mut self) -> &'static str {
        KEYS[self.below(KEYS.len() as u64) as usize]
    }
}

/// A server that holds strings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Strings(pub BTreeMap<(u32, String), String>);

impl Strings {
    /// Runs a command in a database; an error says what a server would.
    pub fn run(&mut self, db: &mut u32, words: &[String]) -> std::result::Result<(), String> {
        let at = |db: u32, key: &str| (db, key.to_owned());
        let w: Vec<&str> = words.iter().map(String::as_str).collect();
        match w.as_slice() {
            ["MULTI" | "EXEC" | "PING"] => {}
            ["SELECT", n] => *db = n.parse().unwrap(),
            ["SET", k, v] => drop(self.0.insert(at(*db, k), (*v).to_owned())),
            ["MSET", pairs @ ..] => {
                for pair in pairs.chunks_exact(2) {
                    self.0.insert(at(*db, pair[0]), pair[1].to_owned());
                }
            }
            ["APPEND", k, v] => self.0.entry(at(*db, k)).or_default().push_str(v),
            ["INCR", k] => {
                let value = self.0.entry(at(*db, k)).or_insert_with(|| "0".into());
                let n: i64 = value.parse().map_err(|_| "ERR value is not an integer")?;
                *value = (n + 1).to_string();
            }
            ["DEL", keys @ ..] => {
                for k in keys {
                    self.0.remove(&at(*db, k));
                }
            }
            ["RENAME", a, b] => {
                let value = self.0.remove(&at(*db, a)).ok_or("ERR no such key")?;
                self.0.insert(at(*db, b), value);
            }
            ["COPY", a, b, "DB", n, "REPLACE"] => {
                let value = self.0.get(&at(*db, a)).ok_or("nothing")?.clone();
                self.0.insert(at(n.parse().unwrap(), b), value);
            }
            ["MOVE", k, n] => {
                let to = at(n.parse().unwrap(), k);
                if to.0 == *db || self.0.contains_key(&to) {
                    return Err("nothing".into());
                }
                let value = self.0.remove(&at(*db, k)).ok_or("nothing")?;
                self.0.insert(to, value);
            }
            ["FLUSHDB"] => self.0.retain(|(of, _), _| of != db),
            ["FLUSHALL"] => self.0.clear(),
            other => panic!("the model does not know {other:?}"),
        }
        Ok(())
    }
}

pub(crate) fn words_of(raw: &[u8]) -> Vec<Vec<String>> {
    let (mut all, mut at, mut args) = (Vec::new(), 0, Vec::new());
    while let Some(len) = resp::parse_command(&raw[at..], &mut args).unwrap() {
        let cmd = Command {
            raw: &raw[at..],
            args: &args,
        };
        let word = |i| String::from_utf8(cmd.arg(i).unwrap().to_vec()).unwrap();
        all.push((0..cmd.len()).map(word).collect());
        at += len;
    }
    all
}

/// The source: what it holds now, and everything that it has sent.
#[derive(Default)]
pub(crate) struct Source {
    pub strings: Strings,
    pub stream: Vec<u8>,
    /// The database that the stream has selected.
    pub selected: u32,
}

impl Source {
    /// Runs a command, or several as a transaction, in a database; what does nothing is not replicated.
    pub fn run(&mut self, db: u32, commands: &[Vec<String>]) {
        let mut done: Vec<&Vec<String>> = Vec::new();
        for words in commands {
            if self.strings.run(&mut { db }, words).is_ok() {
                done.push(words);
            }
        }
        let mut send = |words: &[&str]| {
            let words: Vec<&[u8]> = words.iter().map(|w| w.as_bytes()).collect();
            resp::command(&mut self.stream, &words);
        };
        if done.is_empty() {
            return;
        }
        if self.selected != db {
            send(&["SELECT", &db.to_string()]);
            self.selected = db;
        }
        let whole = commands.len() > 1;
        if whole {
            send(&["MULTI"]);
        }
        for words in done {
            send(&words.iter().map(String::as_str).collect::<Vec<_>>());
        }
        if whole {
            send(&["EXEC"]);
        }
    }
}

/// One command or transaction on its way.
pub(crate) struct Sent {
    pub mark: Mark,
    pub db: Database,
    pub bytes: Vec<u8>,
    pub state: bool,
}

impl Sent {
    pub fn unit(self, fate: Fate) -> Unit {
        Unit {
            commands: words_of(&self.bytes).len() as u32,
            bytes: self.bytes,
            db: self.db,
            state: self.state,
            fate,
        }
    }
}

/// What the plan admits, told without the door.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rules {
    pub only_keep: bool,
    pub skips_own: bool,
    pub leaves_out_1: bool,
}

impl Rules {
    pub fn admit(self, db: u32, key: &str) -> bool {
        db < DATABASES
            && (!self.only_keep || key.starts_with("keep:"))
            && !(self.skips_own && db == 0 && key == "own")
            && !(self.leaves_out_1 && db == 1)
    }

    pub fn plan(self) -> Value {
        let mut plan = json!({"on_loss": "list"});
        if self.only_keep {
            plan["filter"] = json!({"include": ["keep:*"]});
        }
        if self.skips_own {
            plan["on_existing"] = json!("skip");
        }
        if self.leaves_out_1 {
            plan["databases"] = json!({"include": [0, 2, 3, 4, 5]});
        }
        plan
    }
}

/// The target and what is on its way there; it outlives a crash.
pub(crate) struct Model {
    pub strings: Strings,
    pub rules: Rules,
    /// By node.
    pub flight: Vec<VecDeque<Sent>>,
    /// Refused, and not settled yet.
    pub refused: Vec<Sent>,
    pub texts: Vec<String>,
    /// The next settlement finds its connections cut.
    pub cut: bool,
    /// How often they may be cut while the source is read: each costs a pause.
    pub cuts: u32,
    /// States since the last that a failover cannot take away, which is the first.
    pub survives: Vec<Strings>,
    pub random: Random,
}

impl Model {
    /// The target runs the first unit of a node.
    pub fn run_one(&mut self, node: usize) {
        let Some(sent) = self.flight[node].pop_front() else {
            return;
        };
        if let Err(text) = self.execute(&sent, node) {
            self.refused.push(sent);
            self.texts.push(text);
        }
    }

    /// What happens at the target while something is awaited elsewhere.
    fn meanwhile(&mut self) {
        if self.cuts > 0 && self.random.one_in(8) {
            self.cuts -= 1;
            self.cut = true;
        }
        if self.random.one_in(4) {
            let node = self.random.below(self.flight.len() as u64) as usize;
            self.run_one(node);
        }
    }

    pub fn execute(&mut self, sent: &Sent, node: usize) -> std::result::Result<(), String> {
        let mut refused = Ok(());
        let nodes = self.flight.len();
        for words in words_of(&sent.bytes) {
            let mut db = sent.db.index().0;
            let flush = words[0].starts_with("FLUSH");
            let keys: Vec<&String> = match words[0].as_str() {
                "MULTI" | "EXEC" => Vec::new(),
                "MSET" => words[1..].iter().step_by(2).collect(),
                "DEL" | "RENAME" => words[1..].iter().collect(),
                _ if flush => Vec::new(),
                _ => vec![&words[1]],
            };
            for key in keys {
                assert!(
                    self.rules.admit(db, key),
                    "the target is sent {words:?} in {db}"
                );
            }
            let plain = !self.rules.only_keep && !self.rules.skips_own && !self.rules.leaves_out_1;
            assert!(!flush || plain, "{words:?} takes what is not ours");
            if flush {
                // A node flushes what it holds.
                let all = words[0] == "FLUSHALL";
                (self.strings.0).retain(|(of, key), _| {
                    node_of(Slot::of(key.as_bytes()), nodes) != node || (!all && *of != db)
                });
            } else if let Err(text) = self.strings.run(&mut db, &words) {
                refused = Err(text);
            }
        }
        self.survives.push(self.strings.clone());
        refused
    }
}

pub(crate) fn node_of(slot: Slot, nodes: usize) -> usize {
    usize::from(slot.number()) % nodes
}

/// The pipe: commands go to the model.
pub(crate) struct FakeWire {
    pub model: Rc<RefCell<Model>>,
    pub open: Batch,
    pub open_mark: Option<Mark>,
    pub nodes: usize,
}

impl Wire for FakeWire {
    fn nodes(&self) -> usize {
        self.nodes
    }

    fn node_of(&self, slot: Slot) -> usize {
        node_of(slot, self.nodes)
    }

    fn slot_of(&self, key: &[u8]) -> Slot {
        Slot::of(key)
    }

    fn address(&self, node: usize) -> String {
        format!("node:{node}")
    }

    fn is_cluster(&self) -> bool {
        self.nodes > 1
    }

    fn one_slot(&self) -> bool {
        self.nodes > 1
    }

    fn batch(&mut self, _: usize, db: Database, mark: Mark) -> Result<&mut Batch> {
        self.open = Batch::new(Vec::new(), db);
        self.open_mark = Some(mark);
        Ok(&mut self.open)
    }

    fn added(&mut self, node: usize, _: u32) {
        let db = self.open.db;
        let batch = std::mem::replace(&mut self.open, Batch::new(Vec::new(), db));
        let mark = self.open_mark.take().unwrap();
        let (mut args, mut at, mut index, mut whole) = (Vec::new(), 0, 0, 0);
        let mut model = self.model.borrow_mut();
        while let Some(len) = resp::parse_command(&batch.bytes[at..], &mut args).unwrap() {
            let name = &batch.bytes[at..][args[0].clone()];
            at += len;
            let inside = name == b"MULTI" || (whole < at - len && name != b"EXEC");
            if !inside {
                model.flight[node].push_back(Sent {
                    mark,
                    db,
                    bytes: batch.bytes[whole..at].to_vec(),
                    state: batch.is_state(index),
                });
                whole = at;
            }
            index += 1;
        }
    }

    fn takes_pairs(&self) -> Option<usize> {
        None
    }

    fn no_pairs(&mut self) {}

    fn pair(&mut self, _: Slot, _: Database, _: Mark, _: &[u8], _: &[u8]) -> Result<()> {
        Err(Error::new(ErrorKind::Bug, "no pairs here"))
    }

    fn put_old(&mut self) -> Result<()> {
        Ok(())
    }

    fn flush(&mut self) {}

    fn troubled(&self) -> bool {
        let model = self.model.borrow();
        model.cut || !model.refused.is_empty()
    }

    fn oldest(&mut self) -> Option<Mark> {
        let model = self.model.borrow();
        let marks = model.flight.iter().flatten().chain(&model.refused);
        marks.map(|sent| sent.mark).reduce(Mark::earlier)
    }

    fn settle(&mut self) -> (Vec<Unit>, Option<Error>) {
        let mut model = self.model.borrow_mut();
        let cut = std::mem::take(&mut model.cut);
        let mut units = Vec::new();
        for node in 0..self.nodes {
            let many = model.flight[node].len() as u64;
            let runs = match cut {
                true => model.random.below(many + 1),
                false => many,
            };
            for _ in 0..runs {
                model.run_one(node);
            }
            let mut fate = Fate::Uncertain;
            while let Some(sent) = model.flight[node].pop_front() {
                if fate == Fate::Uncertain && model.random.one_in(2) {
                    // It ran, and its answer was lost.
                    let _ = model.execute(&sent, node);
                }
                units.push(sent.unit(fate));
                fate = Fate::Unsent;
            }
        }
        let refused = std::mem::take(&mut model.refused);
        let texts = std::mem::take(&mut model.texts);
        let refused = refused.into_iter().zip(texts);
        let refused = refused.map(|(sent, text)| sent.unit(Fate::Refused(text)));
        (refused.chain(units).collect(), None)
    }

    fn refresh(&mut self) -> Result<()> {
        Ok(())
    }

    fn redirect(&mut self, _: &Handle, _: &Unit, _: &str) -> bool {
        false
    }

    fn deliver(&self, _: &Handle, _: &mut Delivery, _: u16) -> Result<()> {
        Err(Error::new(ErrorKind::Bug, "nothing is large here"))
    }
}

/// The source's own answers: what it holds now, at the offset where it stands.
///
/// While it answers, the target goes on: it may run what is on its way, or lose its connections.
pub(crate) struct FakeReader(pub Rc<RefCell<Source>>, pub Rc<RefCell<Model>>);

impl ReadStates for FakeReader {
    fn asks(&self) -> bool {
        true
    }

    fn sizes(&mut self, _: DbIndex, keys: &[&[u8]]) -> Result<Vec<Option<u64>>> {
        Ok(vec![Some(10); keys.len()])
    }

    fn read(
        &mut self,
        db: DbIndex,
        keys: &[&[u8]],
        _: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Vec<KeyState>> {
        self.1.borrow_mut().meanwhile();
        let source = self.0.borrow();
        let offset = ReplOffset(source.stream.len() as u64);
        let state = |key: &&[u8]| {
            let name = (db.0, String::from_utf8(key.to_vec()).unwrap());
            let payload = source.strings.0.get(&name).map(|value| {
                let (mut out, mut body) = (Vec::new(), vec![0x80]);
                body.extend((value.len() as u32).to_be_bytes());
                body.extend(value.as_bytes());
                payload::seal(&mut out, &[], 0, &body, 9);
                Dump::Whole(out)
            });
            KeyState {
                payload,
                expire: None,
                offset,
                elsewhere: false,
            }
        };
        Ok(keys.iter().map(state).collect())
    }

    fn exist(&mut self, _: DbIndex, keys: &[&[u8]]) -> Result<Vec<bool>> {
        Ok(vec![true; keys.len()])
    }

    fn expiries(&mut self, _: DbIndex, keys: &[&[u8]]) -> Result<Vec<Option<Option<ExpireAt>>>> {
        Ok(vec![Some(None); keys.len()])
    }

    fn groups(&mut self, _: DbIndex, _: &[u8]) -> Result<Vec<GroupFact>> {
        Ok(Vec::new())
    }

    fn field_expiries(
        &mut self,
        _: DbIndex,
        fields: &[(&[u8], &[u8])],
    ) -> Result<Vec<Option<ExpireAt>>> {
        Ok(vec![None; fields.len()])
    }

    fn meet_history(&mut self) {}
}
