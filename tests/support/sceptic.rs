//! Clients that try to catch a cutover losing a write: they reconnect to the side they believe in for ever, and remember
//! every acknowledgement with its side and time.
//!
//! Writers with an even number obey the file that the hooks write; those with an odd one ("strays") are never told, and
//! write to the source for ever. Every attempt has a value of its own, so a write that is applied twice is seen as well.
//! [`Report::judge`] holds what they were told against what is there, and against what the cutover has said.

use super::clients::{HOLD, SIDES};
use super::keyferry::Outcome;
use super::link::{Link, Place};
use super::wire::{Command, Value};
use base64::Engine as _;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const SOURCE: usize = 0;
pub const TARGET: usize = 1;
/// The word that sends only the first half of the obedient writers to the target.
pub const HALF: &str = "half";
/// How many write.
const WRITERS: u64 = 20;
/// Writes a second of all together.
const RATE: u64 = 500;
/// A writer that waits longer for an answer connects anew.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two attempts that were refused.
const BREATH: Duration = Duration::from_millis(10);
/// They write no longer than this, whatever happens to the test.
const END: Duration = Duration::from_secs(180);
/// As many late keys as an answer names at most.
const NAMED: usize = 1_000;

/// What a write is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A key of its own.
    Set,
    /// An element of its own in the writer's list.
    Push,
    /// The writer's counter.
    Count,
}

/// One attempt to write.
#[derive(Debug, Clone)]
pub struct Write {
    kind: Kind,
    pub key: String,
    value: String,
    pub side: usize,
    pub sent: Instant,
    /// When it was acknowledged; `None` when it was refused or cut off, and may have been applied all the same.
    pub acknowledged: Option<Instant>,
}

impl Write {
    fn new(writer: u64, n: u64, side: usize) -> Write {
        let (kind, key) = match n % 6 {
            4 => (Kind::Push, format!("sceptic:{writer:02}:list")),
            5 => (Kind::Count, format!("sceptic:{writer:02}:count")),
            // Of one length, so that no name is the beginning of another.
            _ => (Kind::Set, format!("sceptic:{writer:02}:{n:06}")),
        };
        Write {
            kind,
            key,
            value: format!("{writer}-{n}"),
            side,
            sent: Instant::now(),
            acknowledged: None,
        }
    }

    fn command(&self) -> Command {
        match self.kind {
            Kind::Set => Command::new("SET").key(&self.key).arg(&self.value),
            Kind::Push => Command::new("RPUSH").key(&self.key).arg(&self.value),
            Kind::Count => Command::new("INCR").key(&self.key),
        }
    }
}

/// What all writers share.
struct Shared {
    places: [Place; 2],
    stop: AtomicBool,
    held: AtomicBool,
    word: Mutex<String>,
    log: Mutex<Vec<Write>>,
}

/// The writers, under way; they end when it is dropped.
pub struct Sceptic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Sceptic {
    /// `file` holds where the obedient ones are to be: `source`, `target`, [`HALF`] or `hold`.
    pub fn start(file: &Path, places: &[Place; 2]) -> Sceptic {
        let shared = Arc::new(Shared {
            places: places.clone(),
            stop: AtomicBool::new(false),
            held: AtomicBool::new(false),
            word: Mutex::new(SIDES[SOURCE].to_owned()),
            log: Mutex::new(Vec::new()),
        });
        let mut threads = Vec::new();
        for writer in 0..WRITERS {
            let shared = shared.clone();
            threads.push(std::thread::spawn(move || shared.write_on(writer)));
        }
        let (shared_too, file) = (shared.clone(), file.to_owned());
        threads.push(std::thread::spawn(move || shared_too.read_on(&file)));
        Sceptic { shared, threads }
    }

    /// Everybody stays connected and writes nothing, until this is taken back.
    pub fn hold(&self, yes: bool) {
        self.shared.held.store(yes, SeqCst);
    }

    /// Has everybody write nothing any more, and tells what has been seen by then; [`Sceptic::hold`] ends the rest.
    pub fn rest(&self) -> Report {
        self.hold(true);
        std::thread::sleep(PATIENCE + Duration::from_millis(200));
        self.so_far()
    }

    /// What has been seen up to now.
    pub fn so_far(&self) -> Report {
        let log = self.shared.log.lock().unwrap_or_else(|e| e.into_inner());
        Report {
            writes: log.clone(),
            marks: Vec::new(),
        }
    }

    /// Whether the strays get an OK from the source within this time.
    pub fn strays_are_heard(&self, within: Duration) -> bool {
        let from = Instant::now();
        while from.elapsed() < within {
            if self.so_far().acknowledged_since(SOURCE, from) > 0 {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    pub fn stop(mut self) -> Report {
        self.end();
        self.so_far()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Sceptic {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn read_on(&self, file: &PathBuf) {
        while !self.stop.load(SeqCst) {
            if let Ok(text) = std::fs::read_to_string(file) {
                let mut word = self.word.lock().unwrap_or_else(|e| e.into_inner());
                text.trim().clone_into(&mut word);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Where a writer believes that it has to write; `None` while it is told to wait.
    fn side_of(&self, writer: u64) -> Option<usize> {
        if self.held.load(SeqCst) {
            return None;
        }
        let word = self.word.lock().unwrap_or_else(|e| e.into_inner());
        match (writer % 2, word.as_str()) {
            (1, _) => Some(SOURCE),
            (_, HOLD) => None,
            (_, HALF) if writer < WRITERS / 2 => Some(TARGET),
            (_, word) if word == SIDES[TARGET] => Some(TARGET),
            _ => Some(SOURCE),
        }
    }

    fn write_on(&self, writer: u64) {
        let mut links = [SOURCE, TARGET].map(|side| Link::new(&self.places[side], PATIENCE));
        let every = Duration::from_nanos(1_000_000_000 * WRITERS / RATE);
        let began = Instant::now();
        let (mut next, mut n) = (began + every.mul_f64(writer as f64 / 20.0), 0);
        while !self.stop.load(SeqCst) && began.elapsed() < END {
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            let Some(side) = self.side_of(writer) else {
                next = Instant::now() + Duration::from_millis(1);
                continue;
            };
            let mut write = Write::new(writer, n, side);
            n += 1;
            let reply = links[side].run(&write.key, &write.command());
            let done = reply.is_ok_and(|reply| !reply.is_error());
            if done {
                write.acknowledged = Some(Instant::now());
            } else {
                // Whatever it was: to the same side again, over a new connection.
                links[side].forget();
            }
            let mut log = self.log.lock().unwrap_or_else(|e| e.into_inner());
            log.push(write);
            drop(log);
            // No burst after a pause.
            let wait = if done { every } else { BREATH };
            next = (next + wait).max(Instant::now());
        }
    }
}

/// What the writers have seen.
pub struct Report {
    writes: Vec<Write>,
    /// What happened when, in order: lost writes are counted by it.
    marks: Vec<(&'static str, Instant)>,
}

impl Report {
    pub fn mark(&mut self, what: &'static str, when: Instant) {
        self.marks.push((what, when));
    }

    /// As if one side had acknowledged nothing: where a failover without a copy may lose it, whoever moves data.
    pub fn without(mut self, side: usize) -> Report {
        for write in self.writes.iter_mut().filter(|w| w.side == side) {
            write.acknowledged = None;
        }
        self
    }

    pub fn acknowledged(&self, side: usize) -> impl Iterator<Item = &Write> {
        let done = move |w: &&Write| w.side == side && w.acknowledged.is_some();
        self.writes.iter().filter(done)
    }

    /// Acknowledged writes that were sent after a moment.
    pub fn acknowledged_since(&self, side: usize, from: Instant) -> usize {
        self.acknowledged(side).filter(|w| w.sent >= from).count()
    }

    /// The longest time in which one side has acknowledged nothing to anybody, up to its last acknowledgement.
    pub fn longest_silence(&self, side: usize) -> Duration {
        let mut times: Vec<Instant> = (self.acknowledged(side))
            .filter_map(|w| w.acknowledged)
            .collect();
        times.sort();
        let gaps = times.windows(2).map(|w| w[1] - w[0]);
        gaps.max().unwrap_or_default()
    }

    /// Writes that `side` has acknowledged and that are not among what is there.
    fn missing(&self, side: usize, there: &BTreeMap<&str, Vec<String>>) -> Vec<&Write> {
        let mut counted: BTreeMap<String, i64> = BTreeMap::new();
        let is_missing = |write: &&Write| {
            let found = there.get(write.key.as_str());
            let is_there = match write.kind {
                Kind::Count => {
                    let count = counted.entry(write.key.clone()).or_default();
                    *count += 1;
                    found.is_some_and(|v| v[0].parse::<i64>().is_ok_and(|n| n >= *count))
                }
                _ => found.is_some_and(|v| v.contains(&write.value)),
            };
            !is_there
        };
        self.acknowledged(side).filter(is_missing).collect()
    }

    /// How many of these writes were acknowledged before which mark.
    fn by_time(&self, writes: &[&Write]) -> String {
        let mut left: Vec<Option<Instant>> = writes.iter().map(|w| w.acknowledged).collect();
        let mut parts = Vec::new();
        for (what, when) in &self.marks {
            let all = left.len();
            left.retain(|w| *w >= Some(*when));
            parts.push(format!("{} before {what}", all - left.len()));
        }
        parts.push(format!("{} later", left.len()));
        parts.join(", ")
    }

    /// Keys to which something was done more often than anybody has tried.
    fn doubled(&self, there: &BTreeMap<&str, Vec<String>>) -> Vec<String> {
        let mut tried: BTreeMap<&str, i64> = BTreeMap::new();
        for write in self.writes.iter().filter(|w| w.kind == Kind::Count) {
            *tried.entry(&write.key).or_default() += 1;
        }
        let mut doubled = Vec::new();
        for (key, values) in there {
            let distinct: BTreeSet<&String> = values.iter().collect();
            let too_often = (tried.get(*key))
                .is_some_and(|n| values[0].parse::<i64>().is_ok_and(|value| value > *n));
            if too_often || distinct.len() < values.len() {
                doubled.push((*key).to_owned());
            }
        }
        doubled
    }

    /// What a place holds of all that anybody has tried to write; a string is a list of one.
    #[track_caller]
    fn look(&self, place: &Place) -> BTreeMap<&str, Vec<String>> {
        // The judge may read what a writer may not.
        let mut link = Link::new(&place.clone().user(""), Duration::from_secs(20));
        let mut kinds: BTreeMap<&str, Kind> = BTreeMap::new();
        kinds.extend(self.writes.iter().map(|w| (w.key.as_str(), w.kind)));
        let kinds: Vec<(&str, Kind)> = kinds.into_iter().collect();
        let mut there = BTreeMap::new();
        for some in kinds.chunks(500) {
            let read = |(key, kind): &(&str, Kind)| match kind {
                Kind::Push => Command::new("LRANGE").key(key).arg(0).arg(-1),
                _ => Command::new("GET").key(key),
            };
            let commands: Vec<Command> = some.iter().map(read).collect();
            let replies = link.all(&commands).unwrap_or_else(|e| panic!("{e}"));
            for ((key, _), reply) in some.iter().zip(&replies) {
                let values = match reply {
                    Value::Nil => continue,
                    Value::Array(items) if items.is_empty() => continue,
                    Value::Array(items) => items.iter().map(Value::text).collect(),
                    Value::Error(e) => panic!("{key}: {e}"),
                    one => vec![one.text()],
                };
                there.insert(*key, values);
            }
        }
        there
    }

    /// Holds what was acknowledged against what is there, and against what the cutover (or rollback) and what came
    /// before it have answered; the last answer counts.
    ///
    /// No write that the side of the clients has acknowledged may be missing there. One of the other side may be missing
    /// only when an answer names it, and then none may say that all is done.
    #[track_caller]
    pub fn judge(&self, what: &str, places: &[Place; 2], answers: &[&Outcome]) -> Verdict {
        let last = answers.last().expect("an answer");
        let done = last.json["done"] == true && last.code == 0;
        let told = last.json["clients_at"].as_str().unwrap_or("nobody knows");
        // Where nobody knows, the source is what they have left.
        let home = usize::from(told == SIDES[TARGET]);
        let mut verdict = Verdict {
            done,
            clients_at: told.to_owned(),
            acknowledged: [SOURCE, TARGET].map(|side| self.acknowledged(side).count()),
            silence: self.longest_silence(SOURCE),
            ..Verdict::default()
        };
        let there = self.look(&places[home]);
        for side in [SOURCE, TARGET] {
            let missing = self.missing(side, &there);
            verdict.when[side] = self.by_time(&missing);
            verdict.missing[side] = missing.iter().map(|w| w.key.clone()).collect();
        }
        verdict.doubled = self.doubled(&there);
        let text: String = answers.iter().map(|a| a.stdout.as_str()).collect();
        verdict.unnamed = (verdict.missing[1 - home].iter())
            .filter(|key| !is_named(&text, key))
            .cloned()
            .collect();
        println!("{what}: {}", verdict.summary());
        let complain = |how: &str, keys: &BTreeSet<String>| {
            let some: Vec<&String> = keys.iter().take(5).collect();
            let said = answers
                .iter()
                .map(|a| format!("{}\n{}", a.stdout, a.stderr));
            let said: Vec<String> = said.collect();
            panic!(
                "{what}: {how}: {} keys, as {some:?}; {}\n{}",
                keys.len(),
                verdict.summary(),
                said.join("\n")
            );
        };
        let lost = &verdict.missing[home];
        if !lost.is_empty() {
            complain("the clients' own side lacks what it has acknowledged", lost);
        }
        let doubled: BTreeSet<String> = verdict.doubled.iter().cloned().collect();
        if !doubled.is_empty() {
            complain("applied more often than it was tried", &doubled);
        }
        let left = &verdict.missing[1 - home];
        // Clients that have never moved for good: what the target has taken meanwhile is the hook's matter.
        let undone = home == SOURCE && !done;
        if left.is_empty() || undone {
            return verdict;
        }
        let named = left.len() - verdict.unnamed.len();
        if !verdict.unnamed.is_empty() && named < NAMED {
            complain(
                "acknowledged by the other side, missing here, and not named",
                &verdict.unnamed,
            );
        }
        if done {
            complain("the answer names lost writes, and still says done", left);
        }
        verdict
    }
}

/// Whether a text has a key's name, plain or in base64.
fn is_named(text: &str, key: &str) -> bool {
    let encoded = base64::engine::general_purpose::STANDARD.encode(key);
    text.contains(key) || text.contains(encoded.trim_end_matches('='))
}

/// What was found.
#[derive(Debug, Default)]
pub struct Verdict {
    pub done: bool,
    pub clients_at: String,
    /// By side: acknowledged writes.
    pub acknowledged: [usize; 2],
    /// By the side that has acknowledged them: keys that are missing where the clients are.
    pub missing: [BTreeSet<String>; 2],
    /// By side: when the missing writes were acknowledged.
    pub when: [String; 2],
    /// Of those of the side that the clients have left: what no answer names.
    pub unnamed: BTreeSet<String>,
    pub doubled: Vec<String>,
    /// The longest time in which the source has acknowledged nothing.
    pub silence: Duration,
}

impl Verdict {
    pub fn summary(&self) -> String {
        format!(
            "{}, the clients are at: {}; the source has acknowledged {} writes ({} keys missing here: {}), the target {} ({} keys missing here: {}), {} not named; the source was silent for {:?} at most",
            if self.done { "done" } else { "not done" },
            self.clients_at,
            self.acknowledged[SOURCE],
            self.missing[SOURCE].len(),
            self.when[SOURCE],
            self.acknowledged[TARGET],
            self.missing[TARGET].len(),
            self.when[TARGET],
            self.unnamed.len(),
            self.silence,
        )
    }
}
