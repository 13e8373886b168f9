//! The router by table, for every kind of command and each thing that changes its mind; and its properties.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::migrate::slots::ownership::Ownership;
use crate::migrate::testing::{Quiet, encoded};
use crate::net::server::Master;
use crate::plan::Databases;
use crate::store::{Existing, Own};
use crate::types::{Mark, ShardId};
use proptest::prelude::*;
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

/// A router's surroundings.
struct Bench {
    quiet: Quiet,
    position: StreamPosition,
    healer: Healer,
    forms: Forms,
    one_slot: bool,
    asks: bool,
}

impl Bench {
    fn new(members: serde_json::Value) -> Bench {
        Bench::with(Quiet::new(members, |_| {}))
    }

    fn with(quiet: Quiet) -> Bench {
        Bench {
            quiet,
            position: StreamPosition::new(ReplOffset(1_000), DbIndex(0), ReplOffset(0)),
            healer: Healer::new(),
            forms: Forms::default(),
            one_slot: false,
            asks: true,
        }
    }

    fn view(&mut self) -> View<'_> {
        View {
            ctx: &self.quiet.ctx,
            position: &self.position,
            door: &mut self.quiet.door,
            healer: &self.healer,
            expiry: &self.quiet.expiry,
            forms: &self.forms,
            one_slot: self.one_slot,
            asks: self.asks,
        }
    }

    fn route(&mut self, line: &str) -> Result<Route> {
        let (raw, mut args, mut keys) = (encoded(line), Vec::new(), Vec::new());
        resp::parse_command(&raw, &mut args)?;
        let cmd = Command {
            raw: &raw,
            args: &args,
        };
        let spec = known(&cmd)?;
        if writes_keys(spec) {
            spec.keys(&cmd, &mut keys)?;
        }
        let end = self.position.behind(raw.len());
        route(&cmd, spec, &keys, end, &mut self.view())
    }

    /// In a few words.
    #[track_caller]
    fn says(&mut self, line: &str) -> String {
        let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        match self.route(line) {
            Err(e) => format!("error {:?}", e.kind()),
            Ok(Route::Heal(reads)) => {
                let mut said: Vec<String> = (reads.keys.iter())
                    .map(|(db, key)| format!("{db}:{}", text(key)))
                    .collect();
                said.extend(
                    reads
                        .lost
                        .iter()
                        .map(|(_, to, k)| format!("lost {to}:{}", text(k))),
                );
                said.extend(
                    reads
                        .suspects
                        .iter()
                        .map(|k| format!("suspect {}", text(k))),
                );
                said.extend(reads.counts.map(|c| format!("({c})")));
                format!("heal {}", said.join(" ")).trim_end().to_owned()
            }
            Ok(Route::Forward(leave, _)) => {
                let names = leave
                    .replaces
                    .iter()
                    .map(|(_, k)| format!(" replaces {}", text(k)));
                format!("forward{}", names.collect::<String>())
            }
            Ok(Route::Split(..)) => "split".into(),
            Ok(Route::Restore(_)) => "restore".into(),
            Ok(Route::Select(db)) => format!("select {db}"),
            Ok(Route::Flush { all }) => format!("flush all={all}"),
            Ok(Route::Skip(counter)) => format!("skip {counter}"),
            Ok(other) => format!("{other:?}").to_lowercase(),
        }
    }

    #[track_caller]
    fn check(&mut self, table: &[(&str, &str)]) {
        for (line, wanted) in table {
            assert_eq!(self.says(line), *wanted, "{line}");
        }
    }

    fn wait_for(&mut self, db: u32, key: &str) {
        let mark = Mark::Stream {
            at: ReplOffset(900),
            db: DbIndex(db),
        };
        let key = (DbIndex(db), key.as_bytes().to_vec());
        (self.healer).queue([key], mark, &mut self.quiet.marks, Instant::now());
    }

    /// Has a key's state be that of an offset ahead of the stream.
    fn ahead(&mut self, db: u32, key: &str, offset: u64) {
        let key = (DbIndex(db), key.as_bytes().to_vec());
        (self.healer).delivered(&key, ReplOffset(offset), &mut self.quiet.marks);
    }
}

/// The target's own keys: `own` in database 0.
fn own() -> Existing {
    let mut keys = Existing::default();
    keys.insert(DbIndex(0), b"own");
    keys
}

#[test]
fn every_kind_has_its_way() {
    Bench::new(json!({})).check(&[
        ("PING", "nothing"),
        ("REPLCONF GETACK *", "nothing"),
        ("MULTI", "nothing"),
        ("EXEC", "nothing"),
        ("SELECT 3", "select 3"),
        ("SELECT x", "error Protocol"),
        ("PUBLISH channel text", "skip skipped.publish"),
        ("FUNCTION LOAD code", "function"),
        ("SCRIPT LOAD code", "broadcast"),
        ("SCRIPT FLUSH", "nothing"),
        ("FLUSHDB", "flush all=false"),
        ("FLUSHALL ASYNC", "flush all=true"),
        ("SWAPDB 0 1", "error Unsupported"),
        ("TRIMSLOTS RANGES 1 0 5", "trim"),
        ("SET k v", "forward"),
        ("RENAME a b", "forward"),
        ("DEL a b c", "forward"),
        ("MSET a 1 b 2", "forward"),
        ("EVAL script 1 k", "forward"),
        ("XREADGROUP GROUP g c STREAMS s >", "forward"),
        ("RESTORE k 0 payload", "restore"),
        ("RESTORE-ASKING k 0 payload", "restore"),
        ("COPY a b", "forward"),
        ("COPY a b DB 2", "heal 2:b (cross_database)"),
        ("COPY a b REPLACE DB 2", "heal 2:b (cross_database)"),
        ("MOVE a 3", "heal 0:a 3:a (cross_database)"),
        ("UNHEARDOF k", "error Unsupported"),
        ("PFMERGE k", "forward"),
    ]);
}

#[test]
fn a_target_of_slots_gets_what_keeps_to_one() {
    let mut bench = Bench::new(json!({}));
    bench.one_slot = true;
    bench.check(&[
        ("SET k v", "forward"),
        ("MSET a 1 b 2", "split"),
        ("MSET {t}a 1 {t}b 2", "forward"),
        ("DEL a b", "split"),
        ("RENAME a b", "heal 0:a 0:b (cross_slot)"),
        ("RENAME {t}a {t}b", "forward"),
        ("SINTERSTORE d a b", "heal 0:d (cross_slot)"),
        ("SMOVE a b m", "heal 0:a 0:b (cross_slot)"),
        ("COPY a b", "heal 0:b (cross_slot)"),
    ]);
}

#[test]
fn what_the_target_lacks_changes_the_way() {
    let quiet = Quiet::new(json!({}), |shared| shared.facts.loses_field_expiry = true);
    Bench::with(quiet).check(&[
        ("RENAME a b", "heal 0:a 0:b"),
        ("COPY a b", "heal 0:b"),
        ("HSET h f v", "forward"),
    ]);
    let mut bench = Bench::new(json!({}));
    let (raw, mut args) = (encoded("HGETEX h PERSIST FIELDS 1 f"), Vec::new());
    resp::parse_command(&raw, &mut args).unwrap();
    let cmd = Command {
        raw: &raw,
        args: &args,
    };
    assert!(bench.forms.learn(&cmd, "ERR unknown command"));
    bench.check(&[("HGETEX other EX 5 FIELDS 1 f", "heal 0:other")]);
}

#[test]
fn own_keys_are_kept_or_replaced_as_a_whole() {
    let skip = || Quiet::new(json!({"on_existing": "skip"}), |s| s.own = Own::kept(own()));
    Bench::with(skip()).check(&[
        ("SET own v", "heal (skipped.existing)"),
        ("DEL own", "heal (skipped.existing)"),
        ("MSET own 1 other 2", "heal 0:other (skipped.existing)"),
        ("RENAME own new", "heal 0:new (skipped.existing)"),
        ("COPY own new DB 2", "heal 2:new"),
        ("COPY new own", "heal (skipped.existing)"),
        ("MOVE own 2", "heal 2:own (skipped.existing)"),
        ("SET other v", "forward"),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let replace = || {
        let own = Own::replaceable(own(), dir.path()).unwrap();
        Quiet::new(json!({"on_existing": "replace"}), |s| s.own = own)
    };
    Bench::with(replace()).check(&[
        ("APPEND own X", "heal 0:own"),
        ("MSET own 1 other 2", "heal 0:own 0:other"),
    ]);
    // A file cannot be asked: its first command on a key makes it anew.
    let mut file = Bench::with(replace());
    file.asks = false;
    file.check(&[
        ("APPEND own X", "forward replaces own"),
        ("SINTERSTORE new own", "heal 0:new"),
    ]);
}

#[test]
fn what_the_plan_leaves_out_stays_out() {
    Bench::new(json!({"filter": {"include": ["keep:*"]}})).check(&[
        ("SET keep:a v", "forward"),
        ("SET other v", "heal (skipped.filter)"),
        ("RENAME other keep:b", "heal 0:keep:b"),
        ("MSET keep:a 1 other 2", "heal 0:keep:a"),
    ]);
    Bench::new(json!({"filter": {"types": ["string"]}})).check(&[
        ("SET a v", "heal 0:a"),
        ("COPY a b DB 3", "heal 3:b"),
        ("MOVE a 3", "heal 0:a 3:a"),
    ]);
    let mut bench = Bench::new(json!({"databases": {"include": [1], "map": {"1": 2}}}));
    bench.check(&[
        ("SET a v", "heal (skipped.database)"),
        ("MOVE a 1", "heal 1:a"),
    ]);
    bench.position.select(DbIndex(1));
    // The door bars what is left out of it when it is written.
    bench.check(&[
        ("SET a v", "forward"),
        ("MOVE a 0", "heal 1:a 0:a (cross_database)"),
    ]);
}

#[test]
fn a_database_that_the_target_lacks_takes_nothing() {
    let mut bench = Bench::new(json!({}));
    bench.check(&[("MOVE a 9", "heal 0:a 9:a (cross_database)")]);
    bench.position.select(DbIndex(9));
    bench.check(&[
        ("SET a v", "heal lost 9:a"),
        ("DEL a", "heal"),
        ("MOVE a 0", "heal 0:a lost 9:a"),
        ("COPY a b DB 0", "heal 0:b"),
    ]);
}

#[test]
fn a_slot_of_others_is_left_to_them() {
    let quiet = Quiet::new(json!({}), |shared| {
        let mine = Master {
            address: "source:1".into(),
            slots: (0..=8191).map(Slot::numbered).collect(),
            replicas: Vec::new(),
        };
        shared.ownership = Some(Arc::new(Ownership::new(&[(ShardId(0), &mine)], &[], None)));
    });
    let mut bench = Bench::with(quiet);
    let ctx = bench.quiet.ctx.clone();
    bench.quiet.door.slots_mut().refresh(&ctx);
    let key = |high: bool| {
        let name = |n: u32| format!("key:{n}");
        let is = |n: &u32| (Slot::of(name(*n).as_bytes()).number() > 8191) == high;
        name((0..).find(is).unwrap())
    };
    let (ours, theirs) = (key(false), key(true));
    assert_eq!(bench.says(&format!("SET {ours} v")), "forward");
    let wanted = format!("heal suspect {theirs}");
    assert_eq!(bench.says(&format!("SET {theirs} v")), wanted);
    // While slots that have come to us are copied, their keys are written.
    bench.quiet.door.slots_mut().adopt(true);
    assert_eq!(bench.says(&format!("SET {theirs} v")), "forward");
}

#[test]
fn what_may_have_run_or_is_ahead_is_read() {
    let mut bench = Bench::new(json!({}));
    bench.position = StreamPosition::new(ReplOffset(1_000), DbIndex(0), ReplOffset(1_030));
    // The first ends inside the window, the second behind it.
    bench.check(&[("INCR n", "heal 0:n"), ("INCRBY counter 1000", "forward")]);
    let mut bench = Bench::new(json!({}));
    bench.position.abridged(5_000, 0);
    bench.check(&[("SET a x", "heal 0:a")]);
    let mut bench = Bench::new(json!({}));
    bench.wait_for(0, "a");
    bench.check(&[
        ("INCR a", "heal 0:a"),
        ("SINTERSTORE d a", "heal 0:d"),
        ("INCR b", "forward"),
    ]);
    bench.position.select(DbIndex(1));
    bench.check(&[("INCR a", "forward")]);
    let mut bench = Bench::new(json!({}));
    bench.ahead(0, "a", 2_000);
    bench.check(&[
        ("INCR a", "heal"),
        ("RENAME a b", "heal 0:b"),
        ("INCR b", "forward"),
    ]);
    bench.ahead(0, "a", 1_010);
    bench.check(&[("INCR a", "forward")]);
}

#[test]
fn expiries_that_nobody_can_place_are_read() {
    let quiet = Quiet::new(json!({}), |shared| shared.facts.relative_ttls = true);
    // When the command was written is not known: the spool is empty.
    Bench::with(quiet).check(&[("EXPIRE k 10", "heal 0:k"), ("SET k v", "forward")]);
    let mut bench = Bench::new(json!({}));
    bench.quiet.expiry.on_trouble(ReplOffset(5_000));
    bench.check(&[("SET k v PXAT 99", "heal 0:k"), ("SET k v", "forward")]);
}

fn as_one(bench: &mut Bench, lines: &[&str]) -> bool {
    let (mut whole, mut ends) = (encoded("MULTI"), Vec::new());
    ends.push(whole.len());
    for line in lines {
        whole.extend(encoded(line));
        ends.push(whole.len());
    }
    whole.extend(encoded("EXEC"));
    let end = bench.position.behind(whole.len());
    transaction(&whole, &ends, end, &mut bench.view())
        .unwrap()
        .is_some()
}

#[test]
fn a_transaction_stays_one_where_nothing_is_special() {
    let plain = ["SET a 1", "INCR b"];
    let mut bench = Bench::new(json!({}));
    assert!(as_one(&mut bench, &plain));
    for other in [
        "COPY a b DB 1",
        "MOVE a 1",
        "RESTORE a 0 p",
        "FLUSHDB",
        "SELECT 1",
        "EVAL s 1 a",
    ] {
        assert!(!as_one(&mut bench, &["SET a 1", other]), "{other}");
    }
    bench.position.select(DbIndex(9));
    assert!(!as_one(&mut bench, &plain), "the target lacks the database");
    let mut bench = Bench::new(json!({}));
    bench.one_slot = true;
    assert!(!as_one(&mut bench, &plain) && as_one(&mut bench, &["SET {t}a 1", "INCR {t}b"]));
    let mut bench = Bench::new(json!({}));
    bench.wait_for(3, "elsewhere");
    assert!(!as_one(&mut bench, &plain));
    let mut bench = Bench::new(json!({}));
    bench.ahead(0, "z", 9_000);
    assert!(!as_one(&mut bench, &plain));
    let own = Quiet::new(json!({"on_existing": "skip"}), |s| s.own = Own::kept(own()));
    assert!(!as_one(
        &mut Bench::with(own),
        &["SET own 1", "SET other 1"]
    ));
    let mut filtered = Bench::new(json!({"filter": {"include": ["a", "b"]}}));
    assert!(!as_one(&mut filtered, &plain));
}

#[test]
fn every_command_that_writes_gets_a_decision() {
    let mut bench = Bench::new(json!({}));
    let arguments = [
        "1",
        "1 1",
        "1 1 1",
        "1 1 1 1",
        "1 1 1 1 1",
        "GROUP g c STREAMS k >",
        "a b c STREAMS k 1",
        "h 1 k 0 9 COPY",
        "h 1 | 0 9 KEYS k",
        "k 1 1 1 m STORE d",
        "k BY nosort STORE d",
    ];
    for name in command::names() {
        let tried = arguments.map(|rest| bench.says(&format!("{name} {rest}")));
        let decided = |said: &&String| !said.starts_with("error Protocol");
        assert!(tried.iter().any(|said| decided(&said)), "{name}: {tried:?}");
    }
}

/// Whether the plan of [`any_plan`] lets a key be written, told without the door.
fn oracle(job: &crate::plan::Job, own: bool, db: u32, key: &str) -> bool {
    let databases: &Databases = &job.databases;
    let to = match databases.map(DbIndex(db)) {
        Some(to) if to.0 < 4 => to,
        _ => return false,
    };
    let kept = own && to == DbIndex(0) && key == "own";
    job.filter.accepts(key.as_bytes()) && !kept
}

fn any_plan() -> impl Strategy<Value = serde_json::Value> {
    let filter = prop_oneof![
        Just(json!({})),
        Just(json!({"include": ["k*", "own"]})),
        Just(json!({"exclude": ["k1"]})),
    ];
    let databases = prop_oneof![
        Just(json!({})),
        Just(json!({"map": {"1": 0, "2": 3}})),
        Just(json!({"include": [0, 2]})),
        Just(json!({"map": {"1": 9}})),
    ];
    let existing = prop_oneof![Just("fail"), Just("skip")];
    (filter, databases, existing).prop_map(|(filter, databases, existing)| {
        json!({"filter": filter, "databases": databases, "on_existing": existing})
    })
}

fn any_line() -> impl Strategy<Value = String> {
    let key = prop_oneof![Just("k1"), Just("k2"), Just("own"), Just("x"), Just("{k}1")];
    let keys = prop::collection::vec(key, 3);
    (0usize..14, keys, 0u32..12).prop_map(|(kind, keys, db)| {
        let [a, b, c] = [keys[0], keys[1], keys[2]];
        match kind {
            0 => format!("SET {a} v"),
            1 => format!("MSET {a} 1 {b} 2 {c} 3"),
            2 => format!("DEL {a} {b}"),
            3 => format!("RENAME {a} {b}"),
            4 => format!("COPY {a} {b} DB {db}"),
            5 => format!("MOVE {a} {db}"),
            6 => format!("SINTERSTORE {a} {b} {c}"),
            7 => format!("RESTORE {a} 0 p"),
            8 => format!("INCR {a}"),
            9 => format!("EXPIRE {a} 10"),
            10 => format!("BITOP AND {a} {b} {c}"),
            11 => format!("EVAL s 2 {a} {b}"),
            12 => format!("XREADGROUP GROUP g c STREAMS {a} {b} > >"),
            _ => format!("SELECT {db}"),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever the order of commands and databases: what is sent writes no key that the plan keeps out, and what is
    /// read is only what the command writes.
    #[test]
    fn no_decision_writes_what_is_kept_out(
        plan in any_plan(),
        lines in prop::collection::vec(any_line(), 1..40),
        one_slot: bool,
    ) {
        let skips = plan["on_existing"] == "skip";
        let mut bench = Bench::with(Quiet::new(plan, |shared| {
            if skips {
                shared.own = Own::kept(own());
            }
        }));
        bench.one_slot = one_slot;
        for line in lines {
            let db = bench.position.db();
            let routed = bench.route(&line).unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            let names: Vec<&str> = words[1..].iter().copied().filter(|w| ["k1", "k2", "own", "x", "{k}1"].contains(w)).collect();
            match routed {
                Route::Select(db) => bench.position.select(db),
                Route::Forward(..) | Route::Split(..) | Route::Restore(_) => {
                    for name in names {
                        prop_assert!(oracle(bench.quiet.ctx.job(), skips, db.0, name), "{line} in {db} sends {name}");
                    }
                    prop_assert!(!matches!(words[0], "MOVE") && !words.contains(&"DB"), "{line}");
                }
                Route::Heal(reads) => {
                    for (_, key) in &reads.keys {
                        prop_assert!(names.iter().any(|n| n.as_bytes() == key.as_slice()), "{line}");
                    }
                }
                _ => {}
            }
        }
    }

    /// The parts of a split command are the command.
    #[test]
    fn a_command_split_by_slot_is_the_same_command(
        pairs in prop::collection::vec(("[a-z{}]{1,6}", "[a-z]{0,4}"), 1..12),
    ) {
        let mut words: Vec<Vec<u8>> = vec![b"MSET".to_vec()];
        for (key, value) in &pairs {
            words.extend([key.clone().into_bytes(), value.clone().into_bytes()]);
        }
        let refs: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        let (mut raw, mut args) = (Vec::new(), Vec::new());
        resp::command(&mut raw, &refs);
        resp::parse_command(&raw, &mut args).unwrap();
        let cmd = Command { raw: &raw, args: &args };
        let mut parts: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        command::split::by_slot(&cmd, SplitKind::Pairs, Slot::of, |slot, part, n| {
            let mut args = Vec::new();
            resp::parse_command(part, &mut args).unwrap();
            let part = Command { raw: part, args: &args };
            assert_eq!(part.len(), 1 + 2 * n);
            for i in (1..part.len()).step_by(2) {
                let (key, value) = (part.arg(i).unwrap(), part.arg(i + 1).unwrap());
                assert_eq!(Slot::of(key), slot);
                parts.push((key.to_vec(), value.to_vec()));
            }
        }).unwrap();
        // In each slot in the order of the command, so the last of equal keys is the last.
        let mut all: Vec<(Vec<u8>, Vec<u8>)> = pairs.iter().map(|(k, v)| (k.clone().into_bytes(), v.clone().into_bytes())).collect();
        let sort = |pairs: &mut Vec<(Vec<u8>, Vec<u8>)>| pairs.sort_by(|a, b| a.0.cmp(&b.0));
        sort(&mut all);
        sort(&mut parts);
        prop_assert_eq!(all, parts);
    }
}
