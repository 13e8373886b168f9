//! The independent judge: compares two sides through plain typed commands only.
//!
//! No DUMP, no digest, no code of keyferry: SCAN, TYPE, GET, LRANGE, SMEMBERS, ZRANGE, HGETALL, XINFO, expiry times.
//! What differs at first is looked at again: keys expire while the comparison runs.

use super::side::Side;
use super::wire::{Command, Shown, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

const BATCH: usize = 1_000;
const ENTRIES_READ: &str = "entries-read";
/// How XINFO STREAM FULL calls the pending list.
const PENDING: &str = "pending";
const KEPT: usize = 100;
const ROUNDS: usize = 4;
const PAUSE: Duration = Duration::from_millis(700);

/// How strict to be.
#[derive(Clone)]
pub struct Rules {
    pub expiry_tolerance_ms: i64,
    /// Pairs of databases; empty means the same number on both sides, or 0 where a side is a cluster.
    pub databases: Vec<(u32, u32)>,
    /// Which of the source's keys are to be at the target, by name and type; absent means all.
    pub chosen: Option<Choice>,
    /// Prefixes that keys change on their way, the source's and the target's; the first that fits counts.
    pub renamed: Vec<(&'static str, &'static str)>,
    /// Keys of the target, by database, that are not looked at: its own.
    pub own: BTreeSet<(u32, Vec<u8>)>,
    /// How often what differs is looked at again.
    pub rounds: usize,
}

pub type Choice = Arc<dyn Fn(&[u8], &str) -> bool>;

impl Rules {
    fn at_target(&self, key: &[u8]) -> Vec<u8> {
        exchanged(key, self.renamed.iter().map(|(a, b)| (*a, *b)))
    }

    fn at_source(&self, key: &[u8]) -> Vec<u8> {
        exchanged(key, self.renamed.iter().map(|(a, b)| (*b, *a)))
    }

    fn is_own(&self, db: u32, key: &[u8]) -> bool {
        !self.own.is_empty() && self.own.contains(&(db, self.at_target(key)))
    }
}

fn exchanged<'p>(key: &[u8], pairs: impl Iterator<Item = (&'p str, &'p str)>) -> Vec<u8> {
    let found =
        (pairs.into_iter()).find_map(|(old, new)| Some((key.strip_prefix(old.as_bytes())?, new)));
    found.map_or(key.to_vec(), |(rest, new)| [new.as_bytes(), rest].concat())
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            expiry_tolerance_ms: 5,
            databases: Vec::new(),
            chosen: None,
            renamed: Vec::new(),
            own: BTreeSet::new(),
            rounds: ROUNDS,
        }
    }
}

/// What was found: `a` is the source, `b` the target.
#[derive(Default, Debug)]
pub struct Comparison {
    pub keys_a: u64,
    pub keys_b: u64,
    pub missing: Findings,
    pub extra: Findings,
    pub different: Findings,
}

/// Keys with reasons, at most `KEPT` of them, and the true count.
#[derive(Default, Debug)]
pub struct Findings {
    pub count: u64,
    pub kept: Vec<(Vec<u8>, String)>,
}

impl Findings {
    fn add(&mut self, key: Vec<u8>, reason: String) {
        self.count += 1;
        if self.kept.len() < KEPT {
            self.kept.push((key, reason));
        }
    }
}

impl Comparison {
    pub fn equal(&self) -> bool {
        self.missing.count + self.extra.count + self.different.count == 0
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (missing, extra, different) =
            (self.missing.count, self.extra.count, self.different.count);
        let word = if self.equal() { "equal" } else { "NOT EQUAL" };
        writeln!(
            f,
            "{word}: {} and {} keys, {missing} missing, {extra} extra, {different} different",
            self.keys_a, self.keys_b
        )?;
        for (name, findings) in [
            ("missing", &self.missing),
            ("extra", &self.extra),
            ("different", &self.different),
        ] {
            for (key, reason) in findings.kept.iter().take(20) {
                writeln!(f, "  {name} {} {reason}", Shown(key))?;
            }
        }
        Ok(())
    }
}

/// Compares every key of both sides.
pub fn compare(a: &mut Side, b: &mut Side, rules: &Rules) -> io::Result<Comparison> {
    let mut found = Comparison::default();
    let mut databases = rules.databases.clone();
    if databases.is_empty() {
        databases.push((0, 0));
        if !a.is_cluster() && !b.is_cluster() {
            let mut all = a.databases()?;
            all.extend(b.databases()?);
            all.sort_unstable();
            all.dedup();
            databases.extend(all.into_iter().filter(|db| *db != 0).map(|db| (db, db)));
        }
    }
    for (db_a, db_b) in databases {
        select(a, db_a)?;
        select(b, db_b)?;
        let mut suspects = BTreeMap::new();
        let mut keys = 0;
        walk(a, |a, batch| {
            keys += batch.len() as u64;
            examine(a, b, db_b, batch, rules, &mut suspects)
        })?;
        found.keys_a += keys;
        keys = 0;
        walk(b, |_, batch| {
            keys += batch.len() as u64;
            let batch: Vec<Vec<u8>> = batch.iter().map(|k| rules.at_source(k)).collect();
            let types: Vec<Command> = batch.iter().map(|k| Command::new("TYPE").key(k)).collect();
            for (key, reply) in batch.iter().zip(a.all(&types)?) {
                if !rules.is_own(db_b, key) && !there(rules, key, &reply.text()) {
                    suspects.insert(key.clone(), Finding::Extra);
                }
            }
            Ok(())
        })?;
        found.keys_b += keys;
        for _ in 0..rules.rounds {
            if suspects.is_empty() || suspects.len() > 20_000 {
                break;
            }
            std::thread::sleep(PAUSE);
            let again: Vec<Vec<u8>> = suspects.keys().cloned().collect();
            suspects.clear();
            for batch in again.chunks(BATCH) {
                examine(a, b, db_b, batch, rules, &mut suspects)?;
            }
        }
        for (key, finding) in suspects {
            match finding {
                Finding::Missing => found.missing.add(key, format!("(database {db_a})")),
                Finding::Extra => found.extra.add(key, format!("(database {db_b})")),
                Finding::Different(reason) => {
                    found
                        .different
                        .add(key, format!("(database {db_a}) {reason}"));
                }
            }
        }
    }
    select(a, 0)?;
    select(b, 0)?;
    Ok(found)
}

/// Whether a key of the source that is of type `kind` has its twin at the target.
fn there(rules: &Rules, key: &[u8], kind: &str) -> bool {
    kind != "none" && rules.chosen.as_ref().is_none_or(|c| c(key, kind))
}

enum Finding {
    Missing,
    Extra,
    Different(String),
}

fn select(side: &mut Side, db: u32) -> io::Result<()> {
    if !side.is_cluster() {
        side.everywhere(&format!("SELECT {db}"))?;
    }
    Ok(())
}

/// SCANs every node and hands the keys over in batches; SCAN may repeat a key, which does no harm.
fn walk(
    side: &mut Side,
    mut each: impl FnMut(&mut Side, &[Vec<u8>]) -> io::Result<()>,
) -> io::Result<()> {
    for node in 0..side.nodes().len() {
        let mut cursor = "0".to_owned();
        loop {
            let scan = Command::new("SCAN").arg(&cursor).arg("COUNT").arg(BATCH);
            let reply = side.nodes()[node].expect(&scan)?;
            let [next, keys] = reply.items() else {
                return Err(io::Error::other("a bad answer to SCAN"));
            };
            let batch: Vec<Vec<u8>> = keys.items().iter().map(|k| k.bytes().to_vec()).collect();
            if !batch.is_empty() {
                each(side, &batch)?;
            }
            cursor = next.text();
            if cursor == "0" {
                break;
            }
        }
    }
    Ok(())
}

/// Compares the keys of one batch and notes those that differ.
fn examine(
    a: &mut Side,
    b: &mut Side,
    db: u32,
    batch: &[Vec<u8>],
    rules: &Rules,
    suspects: &mut BTreeMap<Vec<u8>, Finding>,
) -> io::Result<()> {
    let modern = a.knows("pexpiretime") && b.knows("pexpiretime");
    // Without PEXPIRETIME an expiry is the batch's own time plus PTTL.
    let tolerance = if modern {
        rules.expiry_tolerance_ms
    } else {
        rules.expiry_tolerance_ms.max(500)
    };
    let (heads_a, heads_b) = (
        heads(a, batch, <[u8]>::to_vec)?,
        heads(b, batch, |k| rules.at_target(k))?,
    );
    let mut same = Vec::new();
    for ((key, head_a), head_b) in batch.iter().zip(&heads_a).zip(&heads_b) {
        if rules.is_own(db, key) {
            continue;
        }
        let kind_a = match there(rules, key, &head_a.kind) {
            true => head_a.kind.as_str(),
            false => "none",
        };
        let finding = match (kind_a, head_b.kind.as_str()) {
            ("none", "none") => continue,
            ("hash", "none") if nothing_lives(a, key)? => continue,
            (_, "none") => Finding::Missing,
            ("none", _) => Finding::Extra,
            (x, y) if x != y => Finding::Different(format!("is a {x} there, a {y} here")),
            _ if (head_a.expires - head_b.expires).abs() > tolerance => {
                Finding::Different(format!(
                    "expires at {} there, {} here",
                    head_a.expires, head_b.expires
                ))
            }
            (kind, _) => {
                same.push((key, kind.to_owned()));
                continue;
            }
        };
        suspects.insert(key.clone(), finding);
    }
    let (mut reads_a, mut reads_b) = (Vec::new(), Vec::new());
    for (key, kind) in &same {
        reads_a.push(read(key, kind));
        reads_b.push(read(&rules.at_target(key), kind));
    }
    let (values_a, values_b) = (a.all(&reads_a)?, b.all(&reads_b)?);
    let (mut hashes, mut fields_a, mut fields_b) = (Vec::new(), Vec::new(), Vec::new());
    let both = a.knows("hpexpiretime") && b.knows("hpexpiretime");
    for (((key, kind), value_a), value_b) in same.iter().zip(values_a).zip(values_b) {
        let (plain_a, plain_b) = (
            canonical(kind, value_a, modern),
            canonical(kind, value_b, modern),
        );
        if !alike(&plain_a, &plain_b) {
            let reason = format!("{kind}: {}", first_difference(&plain_a, &plain_b));
            suspects.insert((*key).clone(), Finding::Different(reason));
        } else if kind == "hash" && both {
            let names: Vec<&[u8]> = plain_a
                .items()
                .iter()
                .map(|pair| pair.items()[0].bytes())
                .collect();
            let times = |key: &[u8]| {
                let command = Command::new("HPEXPIRETIME").key(key).arg("FIELDS");
                command.arg(names.len()).args(names.iter().copied())
            };
            fields_a.push(times(key));
            fields_b.push(times(&rules.at_target(key)));
            hashes.push(*key);
        }
    }
    let (times_a, times_b) = (a.all(&fields_a)?, b.all(&fields_b)?);
    for ((key, times_a), times_b) in hashes.iter().zip(times_a).zip(times_b) {
        let close = |x: &Value, y: &Value| match (x, y) {
            (Value::Int(x), Value::Int(y)) => (x - y).abs() <= rules.expiry_tolerance_ms,
            _ => x == y,
        };
        let (x, y) = (times_a.items(), times_b.items());
        if x.len() != y.len() || !x.iter().zip(y).all(|(x, y)| close(x, y)) {
            let reason = "hash: a field's expiry differs".to_owned();
            suspects.insert((*key).clone(), Finding::Different(reason));
        }
    }
    Ok(())
}

/// A hash whose fields have all expired: Valkey 9 keeps it for a while, Redis removes it at once.
fn nothing_lives(side: &mut Side, key: &[u8]) -> io::Result<bool> {
    let fields = side.run(&Command::new("HGETALL").key(key))?;
    Ok(matches!(fields, Value::Array(items) if items.is_empty()))
}

struct Head {
    kind: String,
    /// Milliseconds since 1970, -1 without expiry.
    expires: i64,
}

fn heads(
    side: &mut Side,
    batch: &[Vec<u8>],
    name: impl Fn(&[u8]) -> Vec<u8>,
) -> io::Result<Vec<Head>> {
    let absolute = side.knows("pexpiretime");
    let expiry = if absolute { "PEXPIRETIME" } else { "PTTL" };
    let time = side.nodes()[0].words("TIME")?;
    let now = match time.items() {
        [s, us] => s.int().unwrap_or(0) * 1000 + us.int().unwrap_or(0) / 1000,
        _ => 0,
    };
    let commands: Vec<Command> = batch
        .iter()
        .map(|key| name(key))
        .flat_map(|key| {
            [
                Command::new("TYPE").key(&key),
                Command::new(expiry).key(&key),
            ]
        })
        .collect();
    let replies = side.all(&commands)?;
    Ok(replies
        .chunks(2)
        .map(|pair| {
            let time = pair[1].int().unwrap_or(-2);
            let expires = if absolute || time < 0 {
                time
            } else {
                now + time
            };
            Head {
                kind: pair[0].text(),
                expires,
            }
        })
        .collect())
}

fn read(key: &[u8], kind: &str) -> Command {
    match kind {
        "string" => Command::new("GET").key(key),
        "list" => Command::new("LRANGE").key(key).arg("0").arg("-1"),
        "set" => Command::new("SMEMBERS").key(key),
        "zset" => Command::new("ZRANGE")
            .key(key)
            .args(["0", "-1", "WITHSCORES"]),
        "hash" => Command::new("HGETALL").key(key),
        "stream" => Command::new("XINFO STREAM")
            .key(key)
            .args(["FULL", "COUNT", "0"]),
        _ => Command::new("DUMP").key(key),
    }
}

/// A reply in the one form that equal values share: sorted where order means nothing, numbers as numbers.
fn canonical(kind: &str, value: Value, modern: bool) -> Value {
    let Value::Array(mut items) = value else {
        return value;
    };
    match kind {
        "set" => {
            items.sort_by(|x, y| x.bytes().cmp(y.bytes()));
            Value::Array(items)
        }
        "hash" => {
            let mut pairs: Vec<Value> = items
                .chunks(2)
                .map(|pair| Value::Array(pair.to_vec()))
                .collect();
            pairs.sort_by(|x, y| x.items()[0].bytes().cmp(y.items()[0].bytes()));
            Value::Array(pairs)
        }
        "zset" => {
            for pair in items.chunks_mut(2) {
                let score: f64 = pair[1].text().parse().unwrap_or(f64::NAN);
                // Some encodings lose the sign of zero.
                pair[1] = Value::Status(format!("{:?}", if score == 0.0 { 0.0 } else { score }));
            }
            Value::Array(items)
        }
        "stream" => stream(&items, modern),
        _ => Value::Array(items),
    }
}

/// What XINFO STREAM FULL says, without what a server counts for itself (radix tree, times a consumer was seen)
/// and without what older versions do not know.
fn stream(fields: &[Value], modern: bool) -> Value {
    let of = |map: &[Value], name: &str| {
        map.chunks(2)
            .find(|pair| pair[0].text() == name)
            .map_or(Value::Nil, |pair| pair[1].clone())
    };
    let sorted = |list: Value| {
        let mut list = list.items().to_vec();
        list.sort_by(|x, y| {
            of(x.items(), "name")
                .bytes()
                .cmp(of(y.items(), "name").bytes())
        });
        list
    };
    let mut out = Vec::new();
    for name in ["length", "last-generated-id", "entries"] {
        out.push(of(fields, name));
    }
    if modern {
        out.extend(["max-deleted-entry-id", "entries-added"].map(|n| of(fields, n)));
    }
    for group in sorted(of(fields, "groups")) {
        let group = group.items();
        let mut parts: Vec<Value> = ["name", "last-delivered-id", "pel-count", PENDING]
            .map(|n| of(group, n))
            .to_vec();
        if modern {
            let read = of(group, "entries-read");
            parts.push(Value::Array(vec![Value::Status(ENTRIES_READ.into()), read]));
        }
        for consumer in sorted(of(group, "consumers")) {
            parts.push(Value::Array(
                ["name", PENDING].map(|n| of(consumer.items(), n)).to_vec(),
            ));
        }
        out.push(Value::Array(parts));
    }
    Value::Array(out)
}

/// Equal, except that a group's entries-read may be unknown on one side: the replication stream of
/// XREADGROUP does not carry it (redis 7.0: a native replica forgets it too).
fn alike(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(x), Value::Array(y)) => match (x.as_slice(), y.as_slice()) {
            ([Value::Status(name), x], [_, y]) if name == ENTRIES_READ => {
                x == y || *x == Value::Nil || *y == Value::Nil
            }
            (x, y) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| alike(x, y)),
        },
        _ => a == b,
    }
}

/// Where two replies differ, in a few words.
fn first_difference(a: &Value, b: &Value) -> String {
    match (a, b) {
        (Value::Array(x), Value::Array(y)) => {
            if let Some((n, (x, y))) = x.iter().zip(y).enumerate().find(|(_, (x, y))| !alike(x, y))
            {
                return format!("[{n}]{}", first_difference(x, y));
            }
            format!(" {} items there, {} here", x.len(), y.len())
        }
        _ => format!(" {} there, {} here", brief(a), brief(b)),
    }
}

fn brief(value: &Value) -> String {
    match value {
        Value::Bulk(bytes) => Shown(bytes).to_string(),
        Value::Array(items) => format!("{} items", items.len()),
        Value::Nil => "nil".to_owned(),
        other => other.text(),
    }
}
