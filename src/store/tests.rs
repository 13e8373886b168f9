//! What is written comes back, what does not fit is refused.

use super::state::FILE;
use super::*;
use crate::error::ErrorKind;
use crate::types::{DbIndex, ReplId, ReplOffset, ShardId};
use serde_json::json;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

fn run() -> Run {
    Run {
        plan: "a".into(),
        fingerprint: "source=1 target=2 databases=3 filter=4".into(),
        redacted: json!({"name": "a"}),
        mode: "replica".into(),
        source: "redis://s".into(),
        target: "redis://t".into(),
        started_ms: 1000,
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("a/b")).unwrap();
    (dir, store)
}

#[test]
fn the_folder_and_its_files_are_private() {
    let (dir, mut store) = store();
    store.event(1, "info", "x", "y").unwrap();
    let mode = |p: PathBuf| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dir.path().join("a/b")), 0o700);
    for file in ["state.sqlite", "state.sqlite-wal", "state.sqlite-shm"] {
        assert_eq!(mode(dir.path().join("a/b").join(file)), 0o600, "{file}");
    }
}

#[test]
fn a_run_keeps_its_beginning_and_a_changed_plan_is_refused_by_part() {
    let (_dir, mut store) = store();
    assert!(store.run().unwrap().is_none());
    store.begin_run(&run()).unwrap();
    let first = store.run().unwrap().unwrap();
    assert_eq!(first.run, run());
    let again = Run {
        started_ms: 2000,
        mode: "x".into(),
        ..run()
    };
    store.begin_run(&again).unwrap();
    assert_eq!(store.run().unwrap().unwrap(), first);

    let refused = store
        .begin_run(&Run {
            fingerprint: "source=1 target=9 databases=3 filter=9".into(),
            ..run()
        })
        .unwrap_err();
    assert_eq!((refused.kind(), refused.exit_code()), (ErrorKind::State, 3));
    assert!(
        refused
            .to_string()
            .contains("its target and filter are not"),
        "{refused}"
    );
    store.wipe().unwrap();
    assert!(store.run().unwrap().is_none());
}

#[test]
fn on_existing_may_change_until_something_was_carried_over() {
    let (_dir, mut store) = store();
    let with = |on_existing: &str| Run {
        fingerprint: format!("{} on_existing={on_existing}", run().fingerprint),
        ..run()
    };
    store.begin_run(&with("no")).unwrap();
    store.begin_run(&with("skip")).unwrap();
    assert_eq!(store.run().unwrap().unwrap().run, with("skip"));
    store.enter_phase(Phase::Snapshot, 1).unwrap();
    store.begin_run(&with("skip")).unwrap();
    let refused = store.begin_run(&with("no")).unwrap_err();
    assert!(
        refused.to_string().contains("its on_existing is not"),
        "{refused}"
    );
}

#[test]
fn phases_follow_each_other_and_the_same_phase_is_entered_once() {
    let (_dir, mut store) = store();
    assert_eq!(store.phase().unwrap(), Phase::New);
    for (phase, at) in [
        (Phase::Snapshot, 1),
        (Phase::Snapshot, 2),
        (Phase::Stream, 3),
        (Phase::RolledBack, 5),
    ] {
        store.enter_phase(phase, at).unwrap();
    }
    assert_eq!(
        store.phases().unwrap(),
        [
            PhaseSpan {
                phase: Phase::Snapshot,
                entered_ms: 1,
                left_ms: Some(3)
            },
            PhaseSpan {
                phase: Phase::Stream,
                entered_ms: 3,
                left_ms: Some(5)
            },
            PhaseSpan {
                phase: Phase::RolledBack,
                entered_ms: 5,
                left_ms: None
            },
        ]
    );
}

#[test]
fn shards_come_back_as_they_were_saved_also_in_another_process() {
    let (dir, mut store) = store();
    let mut one = ShardState::new(ShardId(0), "h:1".into(), "0-5460".into());
    one.replid = Some(ReplId::parse(&[b'a'; 40]).unwrap());
    one.applied = Some(ReplOffset(u64::MAX));
    one.fence_high = Some(ReplOffset(7));
    (
        one.snapshot_at,
        one.snapshot_db,
        one.snapshot_version,
        one.clean,
    ) = (u64::MAX - 1, DbIndex(3), 80, true);
    let two = ShardState {
        updated_at: 9,
        lag_ms: 5,
        ..ShardState::new(ShardId(1), "h:2".into(), String::new())
    };
    store
        .save_shards(&[two.clone(), one.clone()], &BTreeMap::new(), None)
        .unwrap();
    let reader = Store::open_readonly(&dir.path().join("a/b"))
        .unwrap()
        .unwrap();
    assert_eq!(reader.shards().unwrap(), [one.clone(), two.clone()]);
    let two = ShardState {
        keys_written: 4,
        ..two
    };
    let counts = BTreeMap::from([("skipped.filter", 3)]);
    store
        .save_shards(std::slice::from_ref(&two), &counts, None)
        .unwrap();
    store
        .save_shards(std::slice::from_ref(&two), &counts, None)
        .unwrap();
    assert_eq!(
        reader.shards().unwrap(),
        [one, two],
        "a reader sees what a writer commits"
    );
    assert_eq!(reader.counts().unwrap()["skipped.filter"], 6);
}

#[test]
fn a_reader_cannot_write_and_finds_nothing_where_nothing_is() {
    let (dir, mut store) = store();
    store.begin_run(&run()).unwrap();
    assert!(
        Store::open_readonly(&dir.path().join("none"))
            .unwrap()
            .is_none()
    );
    let mut reader = Store::open_readonly(&dir.path().join("a/b"))
        .unwrap()
        .unwrap();
    assert!(reader.event(1, "info", "x", "").is_err());
}

#[test]
fn counters_add_up_and_documents_are_replaced() {
    let (_dir, mut store) = store();
    for n in [2, 3] {
        let counts = BTreeMap::from([("skipped.filter", n)]);
        store.save_shards(&[], &counts, None).unwrap();
    }
    assert_eq!(
        store.counts().unwrap(),
        BTreeMap::from([("skipped.filter".to_string(), 5)])
    );
    assert_eq!(store.json("census").unwrap(), None);
    store.put_json("census", &json!({"a": 1})).unwrap();
    store.put_json("census", &json!({"a": 2})).unwrap();
    assert_eq!(store.json("census").unwrap(), Some(json!({"a": 2})));
}

#[test]
fn the_last_events_come_oldest_first() {
    let (_dir, mut store) = store();
    for i in 0..5 {
        store
            .event(i, "info", "code", &format!("message {i}"))
            .unwrap();
    }
    let messages: Vec<String> = store
        .events(2)
        .unwrap()
        .into_iter()
        .map(|e| e.message)
        .collect();
    assert_eq!(messages, ["message 3", "message 4"]);
}

#[test]
fn a_verification_keeps_its_slots_and_its_differences() {
    let (_dir, mut store) = store();
    assert_eq!(store.last_verify().unwrap(), None);
    let difference = |n: u64, reason: &str| Difference {
        db: DbIndex(0),
        key: vec![0xff, n as u8],
        slot: 7,
        reason: reason.into(),
        detail: String::new(),
    };
    let found = [
        difference(0, "missing"),
        difference(1, "extra"),
        difference(2, "missing"),
    ];
    store.add_differences(&found[..1]).unwrap();
    store.add_differences(&found[1..]).unwrap();
    assert_eq!(store.differences(2).unwrap(), found[..2]);
    assert_eq!(store.differences_of("extra", 9).unwrap(), found[1..2]);
    store.clear_verify().unwrap();
    assert!(store.differences(1).unwrap().is_empty());

    store
        .save_verify(&json!({"missing_count": 1}), 10, 20, false)
        .unwrap();
    store
        .save_verify(&json!({"missing_count": 0}), 30, 40, true)
        .unwrap();
    let last = VerifyRun {
        started_ms: 30,
        ended_ms: 40,
        equal: true,
        answer: json!({"missing_count": 0}),
    };
    assert_eq!(store.last_verify().unwrap(), Some(last));

    let row = |slot: u16, state: &'static str| SlotRow {
        slot,
        source_keys: 1,
        source_sum: u64::MAX,
        target_keys: 2,
        target_sum: 5,
        state,
    };
    store
        .save_slot_sums(&[row(1, "different")], 1, false)
        .unwrap();
    store
        .save_slot_sums(&[row(0, "equal"), row(16383, "different")], 2, false)
        .unwrap();
    let states = BTreeMap::from([("equal".to_string(), 1), ("different".to_string(), 1)]);
    assert_eq!(store.slot_states().unwrap(), states);
    let apart = SlotApart {
        slot: 16383,
        state: "different".into(),
        keys_source: 1,
        keys_target: 2,
    };
    assert_eq!(store.slots_apart().unwrap(), [apart]);
}

#[test]
fn two_processes_may_write_in_turn() {
    let (dir, mut one) = store();
    let mut two = Store::open(&dir.path().join("a/b")).unwrap();
    for i in 0..20 {
        one.event(i, "info", "one", "x").unwrap();
        two.enter_phase(
            if i % 2 == 0 {
                Phase::Stream
            } else {
                Phase::Snapshot
            },
            i,
        )
        .unwrap();
    }
    assert_eq!(
        (one.events(100).unwrap().len(), one.phases().unwrap().len()),
        (20, 20)
    );
}

#[test]
fn a_state_of_a_newer_program_and_a_damaged_one_are_refused() {
    let (dir, store) = store();
    store.db.pragma_update(None, "user_version", 99).unwrap();
    drop(store);
    for refused in [
        Store::open(&dir.path().join("a/b")).err(),
        Store::open_readonly(&dir.path().join("a/b")).err(),
    ] {
        let e = refused.unwrap();
        assert!(
            e.kind() == ErrorKind::State && e.to_string().contains("newer keyferry"),
            "{e}"
        );
    }
    let damaged = dir.path().join("damaged");
    std::fs::create_dir(&damaged).unwrap();
    std::fs::write(damaged.join(FILE), vec![b'x'; 4096]).unwrap();
    let e = Store::open(&damaged).err().unwrap();
    assert_eq!(e.kind(), ErrorKind::State, "{e}");
    let e = Store::open(Path::new("/proc/nowhere")).err().unwrap();
    assert_eq!(e.kind(), ErrorKind::Disk, "{e}");
}

#[test]
fn who_looks_while_a_state_is_made_finds_none_or_a_whole_one() {
    let dir = tempfile::tempdir().unwrap();
    let name = |n: u32| dir.path().join(n.to_string());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..20 {
                Store::open(&name(n)).unwrap();
            }
        });
        for n in 0..20 {
            while Store::open_readonly(&name(n)).unwrap().is_none() {}
        }
    });
}

/// Locks on a file that this process holds, as the kernel tells.
fn locks_on(path: &std::path::Path) -> usize {
    use std::os::unix::fs::MetadataExt;
    let inode = format!(":{} ", std::fs::metadata(path).unwrap().ino());
    let pid = format!(" {} ", std::process::id());
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    (locks.lines())
        .filter(|l| l.contains("POSIX") && l.contains(&inode) && l.contains(&pid))
        .count()
}

#[test]
fn to_open_a_state_again_does_not_drop_the_locks_of_those_who_have_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Store::open(dir.path()).unwrap();
    first.set_stage(Stage::Source).unwrap();
    let held = locks_on(first.path());
    assert!(held > 0, "SQLite holds a lock as long as a state is open");
    let second = Store::open(dir.path()).unwrap();
    assert_eq!(locks_on(first.path()), held);
    drop(second);
    assert_eq!(locks_on(first.path()), held);
}
