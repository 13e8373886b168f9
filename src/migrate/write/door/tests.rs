//! The door by table: what is let through, what is replaced, what is kept out and why.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::migrate::context::Shared;
use crate::migrate::slots::ownership::Ownership;
use crate::migrate::testing::Quiet;
use crate::net::server::Master;
use crate::store::{Existing, Own};
use crate::types::ShardId;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// The target's own keys: `own` in its databases 0 and 9, of which it has lost the latter.
fn own() -> Existing {
    let mut keys = Existing::default();
    keys.insert(DbIndex(0), b"own");
    keys.insert(DbIndex(9), b"own");
    keys
}

fn kept(members: Value) -> Quiet {
    Quiet::new(members, |shared| shared.own = Own::kept(own()))
}

fn replaceable(members: Value, dir: &Path) -> Quiet {
    let own = Own::replaceable(own(), dir).unwrap();
    Quiet::new(members, |shared| shared.own = own)
}

/// A source of two shards, of which this one has the lower slots.
fn of_two(shared: &mut Shared) {
    let master = |slots: std::ops::RangeInclusive<u16>| Master {
        address: "source:1".into(),
        slots: slots.map(Slot::numbered).collect(),
        replicas: Vec::new(),
    };
    let (low, high) = (master(0..=8191), master(8192..=16383));
    let both = [(ShardId(0), &low), (ShardId(1), &high)];
    shared.ownership = Some(Arc::new(Ownership::new(&both, &[], None)));
}

/// A key of our slots or of others', with this before its number.
fn named(high: bool, prefix: &str) -> String {
    let name = |n: u32| format!("{prefix}{n}");
    let is = |n: &u32| (Slot::of(name(*n).as_bytes()).number() > 8191) == high;
    name((0..).find(is).unwrap())
}

fn says(door: &mut Door, db: u32, name: &str) -> String {
    match door.admit(DbIndex(db), name.as_bytes()).unwrap() {
        Admission::Yes(pass) => format!("yes {}", pass.db()),
        Admission::Replace(replacement) => format!("replace {}", replacement.db()),
        Admission::No(Barred::NoDatabase(db)) => format!("lacks {db}"),
        Admission::No(barred) => format!("{barred:?}").to_lowercase(),
    }
}

#[track_caller]
fn check(door: &mut Door, table: &[(u32, &str, &str)]) {
    for (db, name, wanted) in table {
        assert_eq!(says(door, *db, name), *wanted, "{name} of {db}");
    }
}

#[test]
fn a_plain_plan_admits_all_that_the_target_can_hold() {
    let mut quiet = Quiet::new(json!({}), |_| {});
    check(
        &mut quiet.door,
        &[
            (0, "k", "yes 0"),
            (3, "k", "yes 3"),
            (4, "k", "lacks 4"),
            (0, "", "yes 0"),
        ],
    );
    assert!(quiet.door.has_database(DbIndex(3)).unwrap());
    assert!(!quiet.door.has_database(DbIndex(4)).unwrap());
    // A cluster has one, and is not asked for others.
    let only_zero = KnownDatabases::new(true);
    let mut door = Door::new(quiet.ctx.clone(), only_zero);
    check(&mut door, &[(0, "k", "yes 0"), (1, "k", "lacks 1")]);
}

#[test]
fn databases_are_left_out_and_led_elsewhere() {
    let databases = json!({"databases": {"include": [0, 2, 5], "map": {"2": 1, "5": 9}}});
    check(
        &mut Quiet::new(databases, |_| {}).door,
        &[
            (0, "k", "yes 0"),
            (1, "k", "database"),
            (2, "k", "yes 1"),
            (3, "k", "database"),
            (5, "k", "lacks 9"),
            // It is not ours to lack.
            (9, "k", "database"),
        ],
    );
}

#[test]
fn the_filter_asks_for_the_name_at_the_source() {
    let filter = json!({"filter": {"include": ["keep:*"], "exclude": ["keep:not*"]}});
    check(
        &mut Quiet::new(filter, |_| {}).door,
        &[
            (0, "keep:a", "yes 0"),
            (0, "other", "filter"),
            (0, "keep:not:a", "filter"),
            (4, "keep:a", "lacks 4"),
            (4, "other", "filter"),
        ],
    );
    let renamed = json!({"filter": {"include": ["old:*"]}, "rename": {"old:": "new:"}});
    check(
        &mut Quiet::new(renamed, |_| {}).door,
        &[
            (0, "new:a", "yes 0"),
            // No key of the source gets this name.
            (0, "old:a", "filter"),
            (0, "a", "filter"),
        ],
    );
    // What a value is, is only known when it is read.
    let types = json!({"filter": {"types": ["hash"]}});
    check(&mut Quiet::new(types, |_| {}).door, &[(0, "a", "yes 0")]);
}

#[test]
fn own_keys_are_those_of_the_targets_database() {
    check(
        &mut kept(json!({"on_existing": "skip"})).door,
        &[
            (0, "own", "own"),
            (1, "own", "yes 1"),
            (0, "k", "yes 0"),
            (9, "own", "own"),
            (9, "k", "lacks 9"),
        ],
    );
    let mapped = json!({"on_existing": "skip", "databases": {"map": {"1": 0, "0": 2}}});
    check(
        &mut kept(mapped).door,
        &[(0, "own", "yes 2"), (1, "own", "own")],
    );
    let filtered = json!({"on_existing": "skip", "filter": {"exclude": ["own"]}});
    check(&mut kept(filtered).door, &[(0, "own", "filter")]);
    let dir = tempfile::tempdir().unwrap();
    let replace = json!({"on_existing": "replace", "databases": {"map": {"1": 0, "0": 2}}});
    check(
        &mut replaceable(replace, dir.path()).door,
        &[
            (0, "own", "yes 2"),
            (1, "own", "replace 0"),
            (9, "own", "lacks 9"),
        ],
    );
}

#[test]
fn a_slot_of_others_is_left_to_them() {
    let filter = json!({"filter": {"exclude": ["not:*"]}, "databases": {"include": [0, 5]}});
    let mut quiet = Quiet::new(filter, of_two);
    let (ours, theirs, not) = (named(false, "k"), named(true, "k"), named(true, "not:"));
    // Before the first meeting nobody else writes to them either.
    check(&mut quiet.door, &[(0, &theirs, "yes 0")]);
    let ctx = quiet.ctx.clone();
    quiet.door.slots_mut().refresh(&ctx);
    let table = [
        (0, ours.as_str(), "yes 0"),
        (0, &theirs, "slot"),
        (0, &not, "slot"),
        (1, &theirs, "database"),
        (5, &theirs, "slot"),
        (5, &ours, "lacks 5"),
    ];
    check(&mut quiet.door, &table);
    // While slots that have come to us are copied, all but the slot is asked for.
    quiet.door.slots_mut().adopt(true);
    let table = [
        (0, theirs.as_str(), "yes 0"),
        (0, &not, "filter"),
        (1, &theirs, "database"),
        (5, &theirs, "lacks 5"),
    ];
    check(&mut quiet.door, &table);
    quiet.door.slots_mut().adopt(false);
    check(&mut quiet.door, &[(0, &theirs, "slot")]);
    // A slot on which somebody else has written is ours no more, from the next meeting on.
    quiet.door.suspect(ours.as_bytes());
    assert!(quiet.door.slots().is_stale(&ctx));
    quiet.door.slots_mut().refresh(&ctx);
    check(&mut quiet.door, &[(0, &ours, "slot")]);
    let counts = ctx.take_tally().0;
    assert_eq!(counts.get("left_to_adoption"), Some(&1));
}

#[test]
fn every_reason_has_its_counter() {
    let counters = [
        (Barred::Database, "skipped.database"),
        (Barred::Slot, "left_to_adoption"),
        (Barred::Filter, "skipped.filter"),
        (Barred::Own, "skipped.existing"),
        (Barred::NoDatabase(DbIndex(9)), losses::DATABASE),
    ];
    for (barred, counter) in counters {
        assert_eq!(barred.counter(), counter);
    }
}

#[test]
fn what_was_claimed_once_is_ours_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let plan = || json!({"on_existing": "replace"});
    let mut quiet = replaceable(plan(), dir.path());
    let Admission::Replace(replacement) = quiet.door.admit(DbIndex(0), b"own").unwrap() else {
        unreachable!("it is the target's own")
    };
    // Nothing is noted by asking.
    check(&mut quiet.door, &[(0, "own", "replace 0")]);
    let pass = quiet.door.claim(replacement, b"own").unwrap();
    assert_eq!(pass.database(), Database::ZERO);
    check(&mut quiet.door, &[(0, "own", "yes 0")]);
    // Once more is no more.
    quiet.door.claim(replacement, b"own").unwrap();
    check(&mut quiet.door, &[(0, "own", "yes 0")]);
    assert!(quiet.ctx.shared.own.has(DbIndex(9), b"own"));
    // A run that was killed right then has left it to the next.
    let mut next = replaceable(plan(), dir.path());
    check(&mut next.door, &[(0, "own", "yes 0")]);
    assert!(next.ctx.shared.own.has(DbIndex(9), b"own"));
}

#[test]
fn only_what_a_write_of_ours_has_brought_is_removed() {
    let removed = |door: &mut Door, to: u32, name: &str| {
        let pass = door.admit_removal(DbIndex(to), name.as_bytes()).unwrap();
        pass.map(|pass| pass.db().0)
    };
    let strict = json!({
        "on_existing": "skip",
        "filter": {"include": ["keep:*"]},
        "databases": {"include": [0, 1], "map": {"1": 3}},
    });
    let mut quiet = kept(strict);
    // It is listed from the target: neither the filter nor the databases of the source are asked.
    for (to, name, wanted) in [
        (0, "own", None),
        (1, "own", Some(1)),
        (0, "other", Some(0)),
        (3, "keep:a", Some(3)),
        (9, "keep:a", None),
    ] {
        assert_eq!(removed(&mut quiet.door, to, name), wanted, "{name} of {to}");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut quiet = replaceable(json!({"on_existing": "replace"}), dir.path());
    assert_eq!(removed(&mut quiet.door, 0, "own"), None);
    let Admission::Replace(replacement) = quiet.door.admit(DbIndex(0), b"own").unwrap() else {
        unreachable!("it is the target's own")
    };
    quiet.door.claim(replacement, b"own").unwrap();
    assert_eq!(removed(&mut quiet.door, 0, "own"), Some(0));
}

#[test]
fn flushes_by_table() {
    let all = (true, 0);
    let of = |db| (false, db);
    let maps = json!({"databases": {"map": {"1": 3, "2": 3, "3": 9}}});
    let some = json!({"databases": {"include": [0, 2]}});
    let same = json!({"databases": {"map": {"1": 1}}});
    let filter = json!({"filter": {"include": ["keep:*"]}});
    let table = [
        (json!({}), all, "send all"),
        (json!({}), of(0), "send 0"),
        (json!({}), of(2), "send 2"),
        (json!({}), of(4), "skip"),
        (same.clone(), all, "send all"),
        (same, of(1), "send 1"),
        (maps.clone(), all, "compare all"),
        (maps.clone(), of(0), "compare 0"),
        (maps.clone(), of(1), "compare 3"),
        (maps.clone(), of(2), "compare 3"),
        (maps, of(3), "skip"),
        (some.clone(), all, "compare all"),
        (some.clone(), of(2), "compare 2"),
        (some, of(1), "skip"),
        (filter.clone(), all, "compare all"),
        (filter.clone(), of(1), "compare 1"),
        (filter, of(4), "skip"),
        (json!({"on_existing": "skip"}), all, "compare all"),
        (json!({"on_existing": "skip"}), of(1), "compare 1"),
        (json!({"on_existing": "replace"}), of(1), "compare 1"),
        (json!({"on_existing": "replace"}), of(4), "skip"),
    ];
    let said = |door: &mut Door, (all, db): (bool, u32)| {
        let name = |db: Option<DbIndex>| db.map_or("all".to_owned(), |db| db.to_string());
        match door.admit_flush(all, DbIndex(db)).unwrap() {
            Flush::Send(pass) => format!("send {}", name(pass.database().map(Database::index))),
            Flush::Compare(db) => format!("compare {}", name(db)),
            Flush::Skip => "skip".to_owned(),
        }
    };
    for (members, flush, wanted) in table {
        let mut quiet = Quiet::new(members.clone(), |_| {});
        assert_eq!(said(&mut quiet.door, flush), wanted, "{members} {flush:?}");
        // One master of a cluster flushes its own slots only.
        let mut shard = Quiet::new(members.clone(), of_two);
        let wanted = wanted.replace("send", "compare");
        assert_eq!(said(&mut shard.door, flush), wanted, "{members} {flush:?}");
    }
}
