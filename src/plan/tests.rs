//! Tests of the plan file: what it takes, and what it refuses.

use super::*;
use crate::error::ErrorKind;

const FULL: &str = r#"{
      "name": "sessions-brazil",
      "source": {
        "mode": "auto", "url": "rediss://sessions.example:6380", "username": "default",
        "password": { "env": "SOURCE_PASSWORD" },
        "tls": { "ca": "ca.pem", "cert": null, "key": null, "server_name": null, "insecure": false },
        "topology": "auto", "address_map": { "10.0.0.4:13000": "127.0.0.1:13000" }
      },
      "target": { "url": "rediss://target.example:10000", "password": { "command": ["az", "token"], "refresh_s": 1800 } },
      "databases": { "include": [0, 1], "map": { "1": 0 } },
      "filter": { "include": ["session:*"], "exclude": ["tmp:*"], "types": [] },
      "on_existing": "fail",
      "limits": { "keys_per_s": 0, "bytes_per_s": 0, "spool_bytes": 0, "memory_bytes": 0, "connections": 0 },
      "verify": { "ttl_tolerance_ms": 1000, "exclude": [] },
      "cutover": { "max_lag_ms": 500, "max_pause_ms": 10000, "hooks": { "switch": ["./switch-dns.sh"], "switch_back": [] } },
      "latency": { "workloads": ["observed", "session-store", "cache-aside", "entity-lookup", "counter"], "rates": [1.0], "blocks": 12, "block_s": 60, "connections": 50, "allow_writes": false }
    }"#;

fn refusal(text: &str) -> String {
    let error = Plan::parse(text).unwrap_err();
    assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Plan, 2));
    error.to_string()
}

#[test]
fn shards_share_the_memory() {
    let of = |memory: u64| Limits {
        memory_bytes: Some(memory),
        ..Limits::default()
    };
    let default = Limits::default();
    assert_eq!(default.whole_value(1), 8 << 20);
    assert_eq!(default.whole_value(32), 512 << 10);
    // What 100 shards hold of whole values and filters is a quarter of what the plan allows.
    let many = of(1 << 30);
    assert!(100 * (2 * many.whole_value(100) + many.timed() / 100) <= 1 << 28);
    assert_eq!(of(32 << 20).whole_value(64), 256 << 10);
}

#[test]
fn the_plan_of_the_contract_is_read_and_validates() {
    let job = validate(&Plan::parse(FULL).unwrap()).unwrap();
    assert_eq!(job.name, "sessions-brazil");
    assert_eq!(job.warnings.len(), 1, "{:?}", job.warnings);
}

#[test]
fn an_unknown_key_is_named_by_path_with_its_neighbour() {
    let of = |extra: &str| refusal(&FULL.replacen("\"username\": \"default\"", extra, 1));
    assert_eq!(
        of(r#""pasword": "x""#),
        "source.pasword is not a known key; did you mean \"password\"?"
    );
    assert!(
        refusal(r#"{"nam": "a"}"#).starts_with("nam is not a known key; did you mean \"name\"?")
    );
    assert!(
        refusal(&FULL.replace("switch_back", "switchback")).contains("cutover.hooks.switchback")
    );
    assert!(
        refusal(&FULL.replace("refresh_s", "refresh")).contains("target.password.refresh is not")
    );
}

#[test]
fn a_wrong_type_a_missing_key_and_a_negative_number_are_named_by_path() {
    assert_eq!(
        refusal(r#"{"name": "a", "target": {"url": "x"}}"#),
        "source is missing"
    );
    assert_eq!(
        refusal(r#"{"name": "a", "source": {}, "target": {}}"#),
        "target.url is missing"
    );
    assert!(
        refusal(&FULL.replace("[0, 1]", "[0, -1]")).starts_with("databases.include[1] must be")
    );
    assert!(
        refusal(&FULL.replace("\"spool_bytes\": 0", "\"spool_bytes\": \"1gb\""))
            .starts_with("limits.spool_bytes must be")
    );
    assert_eq!(
        refusal(&FULL.replace("\"mode\": \"auto\"", "\"mode\": \"replcia\"")),
        "source.mode cannot be \"replcia\"; did you mean \"replica\"?"
    );
    assert!(
        refusal(&FULL.replace("{ \"env\": \"SOURCE_PASSWORD\" }", "{ \"env\": 3 }"))
            .starts_with("source.password.env must be")
    );
}

#[test]
fn a_json_mistake_has_line_and_column_and_a_doubled_key_is_seen() {
    assert!(refusal("{\n \"name\": oops }").contains("line 2 column"));
    assert!(
        refusal(r#"{"name": "a", "name": "b", "source": {}, "target": {"url": "x"}}"#)
            .contains("duplicate field `name`")
    );
}

#[test]
fn a_redacted_plan_and_debug_hold_no_secret() {
    let text = FULL
        .replace(
            "rediss://target.example",
            "rediss://u:s3cret@target.example",
        )
        .replace("{ \"env\": \"SOURCE_PASSWORD\" }", "\"s3cret\"")
        .replace("\"token\"", "\"s3cret\"");
    let plan = Plan::parse(&text).unwrap();
    let shown = format!("{} {plan:?}", plan.redacted());
    assert!(!shown.contains("s3cret"), "{shown}");
    assert!(shown.contains("rediss://u:***@target.example:10000"));
}

#[test]
fn every_plan_in_plans_validates() {
    let mut seen = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/plans")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "json") {
            let plan = Plan::parse(&std::fs::read_to_string(&path).unwrap())
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            validate(&plan).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            seen += 1;
        }
    }
    assert!(seen >= 2);
}
