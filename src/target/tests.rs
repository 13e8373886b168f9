//! Batches, what becomes of them in trouble, and strings that go together.

use super::trouble::{Failure, NOTHING_THERE, Trouble};
use super::*;
use crate::resp;
use crate::types::DbIndex;

#[test]
fn a_guard_that_fails_is_the_fate_of_what_it_guards() {
    let mut batch = Batch::new(Vec::new(), Database::ZERO);
    let mut guards = 0;
    batch.guard(&mut guards, b"a", None);
    batch.guard(&mut guards, b"b", None);
    resp::command(&mut batch.bytes, &[b"SINTERSTORE", b"d", b"a", b"b"]);
    resp::command(&mut batch.bytes, &[b"DEL", b"x"]);
    batch.commands = guards + 2;
    assert_eq!(batch.expect, [0, 1]);
    // What reads the wrong value afterwards is collected too, and what reads that.
    resp::command(&mut batch.bytes, &[b"SUNIONSTORE", b"e", b"d"]);
    resp::command(&mut batch.bytes, &[b"RENAME", b"e", b"f"]);
    batch.commands += 2;
    let failures = vec![Failure {
        index: 1,
        text: NOTHING_THERE.into(),
    }];
    let trouble = Trouble {
        failed: vec![(Arc::new(batch), failures)],
        ..Trouble::default()
    };
    let mut units = Vec::new();
    units_of(trouble, &mut units, &mut None);
    assert_eq!(units.len(), 3);
    assert!(units[0].bytes.starts_with(b"*4\r\n$11\r\nSINTERSTORE"));
    assert_eq!(units[0].fate, Fate::Refused(NOTHING_THERE.into()));
}

/// A pipe of so many bytes to a server that is not there.
fn nowhere(budget: usize, fixed_db: bool) -> Pipe {
    let plan = r#"{"name": "a", "source": {"url": "redis://s:1"}, "target": {"url": "redis://127.0.0.1:1"}}"#;
    let job = crate::plan::validate(&crate::plan::Plan::parse(plan).unwrap()).unwrap();
    let events = crate::task::event_loop::EventLoop::start().unwrap();
    let layout = crate::net::server::Layout {
        cluster: false,
        masters: vec![crate::net::server::Master {
            address: "127.0.0.1:1".into(),
            slots: crate::types::SlotSet::all(),
            replicas: Vec::new(),
        }],
    };
    let options = PipeOptions {
        budget,
        fixed_db,
        dry_run: false,
    };
    let topology = Topology::of(&layout, false).unwrap();
    Pipe::new(job.target, topology, events, options)
}

/// The budget is full, the target is gone, and the source changes its database: each command keeps its own.
#[test]
fn commands_keep_their_database_in_trouble() {
    let mut pipe = nowhere(1, false);
    let mark = Mark::Stream {
        at: crate::types::ReplOffset(1),
        db: DbIndex::ZERO,
    };
    let mut databases = KnownDatabases::default();
    for n in 0..6u32 {
        let db = DbIndex(n % 2);
        databases.learn(db, true);
        let there = databases.get(db).flatten().unwrap();
        let batch = pipe.batch(0, there, mark).unwrap();
        resp::command(&mut batch.bytes, &[b"SET", b"k", db.to_string().as_bytes()]);
        pipe.added(0, 1);
    }
    let (units, error) = pipe.settle();
    assert!(error.is_some());
    assert_eq!(units.len(), 6);
    for unit in units {
        let text = String::from_utf8_lossy(&unit.bytes).into_owned();
        assert!(
            text.ends_with(&format!("\r\n{}\r\n", unit.db.index())),
            "{text} in {}",
            unit.db.index()
        );
    }
}

/// What a server makes of the frames: name and number of arguments.
fn frames(bytes: &[u8]) -> Vec<(String, usize)> {
    let (mut at, mut args, mut out) = (0, Vec::new(), Vec::new());
    while let Some(len) = resp::parse_command(&bytes[at..], &mut args).unwrap() {
        let name = &bytes[at..][args[0].clone()];
        out.push((String::from_utf8_lossy(name).into_owned(), args.len()));
        at += len;
    }
    assert_eq!(at, bytes.len());
    out
}

#[test]
fn strings_are_set_together() {
    for (pairs, wanted) in [
        (1, vec![3]),
        (4, vec![9]),
        (5, vec![11]),
        (32, vec![65]),
        (33, vec![65, 3]),
    ] {
        let mut batch = Batch::new(Vec::new(), Database::ZERO);
        let commands: u32 = (0..pairs)
            .map(|n| batch.pair(format!("key:{n}").as_bytes(), b"some value"))
            .sum();
        let commands = commands + batch.close() + batch.close();
        resp::command(&mut batch.bytes, &[b"DEL", b"x"]);
        let commands = commands as usize;
        assert_eq!(commands, wanted.len());
        let mut found = frames(&batch.bytes);
        assert_eq!(found.pop(), Some(("DEL".into(), 2)));
        let wanted: Vec<_> = wanted.into_iter().map(|n| ("MSET".to_owned(), n)).collect();
        assert_eq!(found, wanted);
    }
}

#[test]
fn a_transaction_is_one_unit() {
    let mut bytes = Vec::new();
    for command in [
        &[b"SET".as_slice(), b"a", b"1"][..],
        &[b"MULTI"],
        &[b"INCR", b"a"],
        &[b"EXEC"],
        &[b"DEL", b"b"],
    ] {
        resp::command(&mut bytes, command);
    }
    let mut batch = Batch::new(bytes, Database::ZERO);
    batch.commands = 5;
    let mut units = Vec::new();
    let failures = [Failure {
        index: 2,
        text: "MOVED 1 h:1".into(),
    }];
    units_of(
        Trouble {
            failed: vec![(Arc::new(batch), failures.to_vec())],
            ..Trouble::default()
        },
        &mut units,
        &mut None,
    );
    assert_eq!(units.len(), 1);
    assert_eq!(
        (units[0].commands, &units[0].fate),
        (3, &Fate::Refused("MOVED 1 h:1".into()))
    );
}

#[test]
fn strings_of_one_slot_are_set_together() {
    let mark = |at| Mark::Snapshot {
        at,
        db: DbIndex::ZERO,
    };
    let mut groups = Groups::default();
    let mut wanted = std::collections::BTreeMap::new();
    let mut names = Vec::new();
    let mut put = |groups: &mut Groups, wanted: &mut std::collections::BTreeMap<_, _>, slot| {
        let (mut out, mut args) = (Vec::new(), Vec::new());
        if !groups.put(slot, &mut out) {
            return;
        }
        let whole = resp::parse_command(&out, &mut args).unwrap();
        assert_eq!(whole, Some(out.len()));
        let text = |n: usize| String::from_utf8_lossy(&out[args[n].clone()]).into_owned();
        names.push((text(0), args.len()));
        for n in (1..args.len()).step_by(2) {
            assert_eq!(wanted.remove(&text(n)), Some(slot));
            assert_eq!(text(n + 1), "v");
        }
    };
    groups.from = Some((Database::ZERO, mark(9)));
    // 50 of each of ten slots, and one alone.
    for n in 0..500 {
        let key = format!("{{{}}}:{n}", n % 10);
        let slot = Slot::of(key.as_bytes());
        wanted.insert(key.clone(), slot);
        groups.add(slot, key.as_bytes(), b"v");
        let mut full = Vec::new();
        groups.sort(&mut full);
        for slot in full {
            put(&mut groups, &mut wanted, slot);
        }
    }
    wanted.insert("alone".into(), Slot::of(b"alone"));
    groups.add(Slot::of(b"alone"), b"alone", b"v");
    groups.sort(&mut Vec::new());
    let waiting = groups.len();
    for n in 0..SLOTS as u64 {
        let slot = groups.turn(mark(100 + n));
        put(&mut groups, &mut wanted, slot);
    }
    assert!(waiting > 0 && groups.len() == 0 && wanted.is_empty());
    // Whatever comes now came after this round began.
    groups.turn(mark(70_000));
    assert_eq!(groups.from, Some((Database::ZERO, mark(100))));
    names.sort();
    let mut all = vec![("MSET".to_owned(), 37); 10];
    all.extend(vec![("MSET".to_owned(), 65); 10]);
    all.push(("SET".to_owned(), 3));
    assert_eq!(names, all);
}

/// A heal carries the mark of the command that it stands for: the lowest mark is not always the first.
#[test]
fn the_lowest_mark_counts_wherever_it_stands() {
    let mut pipe = nowhere(1 << 20, true);
    let mark = |at| Mark::Stream {
        at: crate::types::ReplOffset(at),
        db: DbIndex::ZERO,
    };
    for (at, lowest) in [(150, 150), (100, 100), (170, 100)] {
        let batch = pipe.batch(0, Database::ZERO, mark(at)).unwrap();
        resp::command(&mut batch.bytes, &[b"SET", b"k", b"v"]);
        pipe.added(0, 1);
        assert_eq!(pipe.oldest(), Some(mark(lowest)));
    }
    // Behind batches that are on their way, too.
    pipe.flush();
    let batch = pipe.batch(0, Database::ZERO, mark(90)).unwrap();
    resp::command(&mut batch.bytes, &[b"SET", b"k", b"v"]);
    pipe.added(0, 1);
    assert_eq!(pipe.oldest(), Some(mark(90)));
    pipe.flush();
    assert_eq!(pipe.oldest(), Some(mark(90)));
}
