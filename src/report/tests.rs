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
    let report = Report::read(dir.path(), &[], &job(), 0).unwrap();
    assert_eq!(report.unproven, ["Nothing was moved: this plan never ran."]);
    assert!(markdown::render(&report).contains("**This plan never ran.**"));
    assert_eq!(json::render(&report)["status"]["phase"], "new");
}

#[test]
fn a_move_that_was_never_compared_is_not_called_equal() {
    let dir = tempfile::tempdir().unwrap();
    let _store = moved(dir.path());
    let report = Report::read(dir.path(), &[], &job(), 80_000).unwrap();
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
    let report = Report::read(dir.path(), &[], &job(), 80_000).unwrap();
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
    let report = Report::read(dir.path(), &[], &job(), 80_000).unwrap();
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
    let page = markdown::render(&Report::read(dir.path(), &[], &job(), 0).unwrap());
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

/// A measurement whose target takes `ratio` times as long.
fn measured(verdict: &str, ratio: f64) -> Value {
    let around = |v: f64| json!({"value": v, "low": v * 0.9, "high": v * 1.1});
    let of = |f: f64| json!({"response": {"p50_us": 100.0 * f, "p99_us": 1000.0 * f, "count": 5000}, "service": {}});
    json!({"results": [{
        "workload": "session-store", "rate": 1.0, "rate_per_s": 500.0, "conclusive": true, "verdict": verdict,
        "why": "", "endpoints": {"source": of(1.0), "target": of(ratio)},
        "ratio": {"p50_us": around(ratio), "p99_us": around(ratio)},
        "difference_us": {"p50_us": around(100.0 * (ratio - 1.0)), "p99_us": around(1000.0 * (ratio - 1.0))},
        "requests": [{"kind": "GET", "weight": 3.0}, {"kind": "MGET", "weight": 1.0}],
        "left_out": [{"what": "set: writes are not allowed", "share": 0.25}],
    }], "sweep": [
        {"workload": "session-store", "side": "source", "rate_per_s": 750.0, "answered_per_s": 749.0, "kept_up": true, "shed_by_client": 0, "response": {"p50_us": 200, "p99_us": 900}},
    ], "client": {"held_per_s": 750.0, "was_the_limit": false}})
}

#[test]
fn a_measurement_is_told_alike_on_all_pages() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = moved(dir.path());
    store.put_json(LATENCY, &measured("faster", 0.25)).unwrap();
    let pulse = json!({"before": {"count": 50, "p50_us": 81, "histogram": "packed-away"}, "snapshot": {"count": 900, "p50_us": 123}});
    store.put_json(PULSE, &pulse).unwrap();
    let mut job = job();
    job.price = Some(crate::plan::PricePlan {
        source: 400.0,
        target: 300.0,
        currency: "EUR".into(),
    });
    let report = Report::read(dir.path(), &[], &job, 80_000).unwrap();
    let as_json = json::render(&report);
    assert_eq!(as_json["source_latency"]["snapshot"]["p50_us"], 123);
    for page in [html::render(&report).unwrap(), markdown::render(&report)] {
        for told in [
            "session-store at 500 requests/s",
            "-75 (-",
            "0.25",
            "123",
            "75.0 %",
            "not sent: set",
            "749",
        ] {
            assert!(page.contains(told), "{told} is not on {page}");
        }
        assert!(!page.contains("packed-away"));
    }
    let page = html::render(&report).unwrap();
    assert!(page.contains("400 → 300 EUR (-25 %)"));
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    // Percentiles, load (two), blocks are not there, phases.
    assert_eq!(page.matches("<figure").count(), 4);
}

#[test]
fn a_fleet_shows_what_got_worse_first() {
    let mut reports = Vec::new();
    for (name, verdict, ratio) in [
        ("better", Some("faster"), 0.3),
        ("unmeasured", None, 1.0),
        ("worst", Some("slower"), 3.0),
        ("worse", Some("slower"), 1.5),
        ("same", Some("no detectable difference"), 1.01),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut store = moved(dir.path());
        if let Some(verdict) = verdict {
            store.put_json(LATENCY, &measured(verdict, ratio)).unwrap();
        }
        let mut job = job();
        job.name = name.into();
        reports.push(Report::read(dir.path(), &[], &job, 0).unwrap());
    }
    let services = fleet::services(&reports);
    let names: Vec<&str> = services.iter().map(|s| s.plan.as_str()).collect();
    assert_eq!(names, ["worst", "worse", "same", "better", "unmeasured"]);
    let answer = fleet::as_json(&services, 0);
    assert_eq!(answer["services"], 5);
    assert_eq!(answer["keys"], 5 * 1_234_567);
    assert_eq!(answer["verdicts"]["slower"], 2);
    assert_eq!(answer["p99_ratio"], json!([0.3, 1.01, 1.5, 1.5, 3.0]));
    for page in [
        fleet::render(&services, 0).unwrap(),
        fleet::markdown(&services, 0),
    ] {
        assert!(page.find("worst") < page.find("unmeasured"));
        assert!(page.contains("1000 → 3000 µs (+200 %)") && page.contains("1 faster, 2 slower"));
    }
}
