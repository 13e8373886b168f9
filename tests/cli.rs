//! The command line and the plan file: what is wrong is said at once, and nothing is touched.

use crate::support::keyferry::{Plan, run};
use crate::support::need;
use crate::support::server::Server;
use serde_json::json;

#[test]
fn wrong_usage_ends_with_2() {
    run(&["no-such-command"]).exits(2);
    run(&["migrate"]).exits(2);
    run(&["migrate", "/no/such/plan.json"]).exits(2);
    run(&["migrate", "--no-such-flag", "plan.json"]).exits(2);
}

#[test]
fn help_and_version_end_with_0() {
    for arguments in [
        ["--help"].as_slice(),
        &["--version"],
        &["migrate", "--help"],
        &["plan", "--help"],
    ] {
        let outcome = run(arguments).exits(0);
        assert!(outcome.stdout.contains("keyferry"), "{}", outcome.stdout);
    }
}

#[test]
fn a_wrong_plan_ends_with_2_and_touches_nothing() {
    let Some([name]) = need(["any"]) else { return };
    let (source, target) = (Server::start(&name), Server::start(&name));
    source.run("SET a 1");
    let right = json!({ "name": "test", "source": { "url": source.url() }, "target": { "url": target.url() } });
    let wrong = [
        (json!({ "on_exsting": "fail" }), "on_existing"),
        (json!({ "on_existing": "overwrite" }), "replace"),
        (json!({ "target": { "url": "http://127.0.0.1" } }), "url"),
        (json!({ "target": {} }), "url"),
        (json!({ "name": "" }), "name"),
        (json!({ "limits": { "keys_per_s": -1 } }), "keys_per_s"),
    ];
    for (change, word) in wrong {
        let mut json = right.clone();
        for (key, value) in change.as_object().into_iter().flatten() {
            json[key] = value.clone();
        }
        let plan = Plan::of(json);
        for command in ["migrate --json", "verify --json"] {
            plan.run(command).exits(2).says(&[word]);
        }
    }
    assert_eq!(target.run("DBSIZE").int(), Some(0));
}

#[test]
fn a_plan_that_is_not_json_ends_with_2() {
    let plan = Plan::new("redis://127.0.0.1:1", "redis://127.0.0.1:2");
    std::fs::write(plan.path(), "{ \"name\": ").expect("the plan is written");
    plan.run("migrate").exits(2);
    let path = plan.path();
    run(&["plan", "validate", path.to_str().unwrap_or_default()]).exits(2);
}

#[test]
fn plan_validate_and_schema() {
    let plan = Plan::new("redis://127.0.0.1:1", "redis://127.0.0.1:2");
    run(&["plan", "validate", plan.path().to_str().unwrap_or_default()]).exits(0);
    let schema = run(&["plan", "schema"]).exits(0).json;
    assert!(schema["properties"]["source"].is_object(), "{schema}");
}

#[test]
fn a_new_plan_is_valid() {
    let fresh = run(&["plan", "new"]).exits(0);
    let plan = Plan::of(fresh.json);
    run(&["plan", "validate", plan.path().to_str().unwrap_or_default()]).exits(0);
}

#[test]
fn status_of_a_plan_that_was_never_run_is_new() {
    let plan = Plan::new("redis://127.0.0.1:1", "redis://127.0.0.1:2");
    let status = plan.run("status --json").exits(0).json;
    assert_eq!(status["phase"], "new", "{status}");
}
