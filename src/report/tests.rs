//! A report says what the state holds, and what it does not prove.

use super::*;
use crate::plan::{Plan, validate};
use crate::store::{Run, ShardState, SlotRow};
use crate::types::{DbIndex, ReplOffset, ShardId};
use serde_json::json;

fn job() -> Job {
    let plan = r#"{"name": "a", "source": {"url": "redis://:s3cret@s:1"}, "target": {"url": "redis://t:2"}}"#;
    validate(&Plan::parse(plan).unwrap()).unwrap()
}

fn moved(dir: &Path) -> Store {
    let job = job();
    let mut store = Store::open(dir).unwrap();
    store
        .begin_run(&Run {
            plan: job.name.clone(),
            fingerprint: job.fingerprint.clone(),
            redacted: job.redacted.clone(),
            mode: "replica".into(),
            source: job.source.to_string(),
            target: job.target.to_string(),
            started_ms: 1_000,
        })
        .unwrap();
    store
        .event(
            1_000,
            "info",
            "start",
            "from redis://s:1 (Redis 7.0.15) to redis://t:2 (Valkey 8.1.0)",
        )
        .unwrap();
    store.enter_phase(Phase::Snapshot, 1_000).unwrap();
    store.enter_phase(Phase::Stream, 61_000).unwrap();
    let shard = ShardState {
        keys_written: 1_234_567,
        snapshot_loaded: true,
        applied: Some(ReplOffset(10)),
        updated_at: 70_000,
        ..ShardState::new(ShardId(0), "s:1".into(), String::new())
    };
    store.save_shards(&[shard], &BTreeMap::new(), None).unwrap();
    store
}

#[test]
fn a_plan_that_never_ran_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let report = Report::read(dir.path(), &job(), 0).unwrap();
    assert_eq!(report.unproven, ["Nothing was moved: this plan never ran."]);
    assert!(markdown::render(&report).contains("**This plan never ran.**"));
    assert_eq!(json::render(&report)["status"]["phase"], "new");
}

#[test]
fn a_move_that_was_never_compared_is_not_called_equal() {
    let dir = tempfile::tempdir().unwrap();
    let _store = moved(dir.path());
    let report = Report::read(dir.path(), &job(), 80_000).unwrap();
    let page = markdown::render(&report);
    assert!(
        page.contains("**Not verified") && page.contains("never compared: nothing here proves"),
        "{page}"
    );
    assert!(
        page.contains("1 234 567") && page.contains("Valkey 8.1.0") && page.contains("1 min 00 s"),
        "{page}"
    );
    let whole = format!("{page}{}", json::render(&report));
    assert!(!whole.contains("s3cret"));
}

#[test]
fn a_comparison_before_the_last_writes_is_said_to_be_that() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = moved(dir.path());
    let answer = json!({"slots": 16384, "unprovable_count": 2});
    store.save_verify(&answer, 62_000, 65_000, true).unwrap();
    let report = Report::read(dir.path(), &job(), 80_000).unwrap();
    assert!(
        report
            .unproven
            .iter()
            .any(|u| u.contains("the migration went on after that")),
        "{:?}",
        report.unproven
    );
    assert!(
        report
            .unproven
            .iter()
            .any(|u| u.starts_with("2 keys changed faster")),
        "{:?}",
        report.unproven
    );
    assert!(
        markdown::render(&report)
            .contains("**Equal: the comparison that ended 1970-01-01 00:01:05 UTC")
    );
}

#[test]
fn differences_are_listed_and_their_names_cannot_break_the_page() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = moved(dir.path());
    let difference = Difference {
        db: DbIndex(3),
        slot: 5,
        key: b"a|b`c\xff\n".to_vec(),
        reason: "missing".into(),
        detail: "<b>|x".into(),
    };
    store.add_differences(&[difference]).unwrap();
    let row = SlotRow {
        slot: 5,
        source_keys: 1,
        source_sum: 5,
        target_keys: 0,
        target_sum: 0,
        state: "different",
    };
    store.save_slot_sums(&[row], 1, false).unwrap();
    let answer = json!({"missing_count": 1, "missing": [1, 2]});
    store.save_verify(&answer, 71_000, 72_000, false).unwrap();
    let report = Report::read(dir.path(), &job(), 80_000).unwrap();
    let page = markdown::render(&report);
    assert!(
        page.contains(r"| 3 | `` a\|b`c\xff\n `` |") && page.contains(r"&lt;b&gt;\|x"),
        "{page}"
    );
    let json = json::render(&report);
    assert_eq!(
        json["verify"]["differences"][0]["key"],
        json!({"base64": "YXxiYGP/Cg=="})
    );
    assert_eq!(json["verify"]["slots_apart"][0]["state"], "different");
    assert_eq!(
        (&json["verify"]["missing_count"], &json["verify"]["missing"]),
        (&json!(1), &Value::Null)
    );
}

#[test]
fn a_dry_run_is_reported_beside() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = moved(&dir.path().join("dry-run"));
    store.put_json("census", &json!({"types": {"hash": {"keys": 2, "bytes": 2048}}, "ways": {"restore": 2}, "largest": []})).unwrap();
    let page = markdown::render(&Report::read(dir.path(), &job(), 0).unwrap());
    assert!(
        page.contains("This plan never ran") && page.contains("| hash | 2 | 2.0 KiB |"),
        "{page}"
    );
}

#[test]
fn numbers_and_times_read_well() {
    assert_eq!(instant(0), "1970-01-01 00:00:00 UTC");
    assert_eq!(instant(951_827_696_000), "2000-02-29 12:34:56 UTC");
    assert_eq!(instant(1_795_219_199_999), "2026-11-20 23:59:59 UTC");
    assert_eq!(
        [0, 999, 1500, 61_000, 7_380_000].map(duration),
        ["0 ms", "999 ms", "1.5 s", "1 min 01 s", "2 h 03 min"]
    );
    assert_eq!(
        [0, 1023, 1536, 5 << 30].map(bytes),
        ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
    );
    assert_eq!(
        [0, 999, 1000, 1_234_567].map(grouped),
        ["0", "999", "1 000", "1 234 567"]
    );
}
