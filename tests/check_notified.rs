//! What check says of keyspace notifications where the setting cannot be read, and of a source that refuses replication.

use crate::support::cluster::Cluster;
use crate::support::keyferry::Plan;
use crate::support::need;
use crate::support::server::{Server, Setup};
use serde_json::{Value, json};

fn warnings(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().expect("findings");
    let ids = findings.iter().filter_map(|f| f["id"].as_str());
    ids.filter(|id| id.starts_with("notifications"))
        .map(str::to_owned)
        .collect()
}

/// The right to all channels, which Redis 6.0 does not know.
fn channels(name: &str) -> &'static str {
    match name.ends_with("-6.0") {
        true => "",
        false => "&*",
    }
}

/// A plan that scans as a user of these rights.
fn plan(source: &str, target: &Server) -> Plan {
    let mut plan = Plan::new(source, &target.url());
    plan.set("/source/mode", json!("scan"));
    plan.set("/source/username", json!("mover"));
    plan.set("/source/password", json!("secret"));
    plan
}

#[test]
fn notifications_are_listened_for_where_config_is_refused() {
    let Some([name]) = need(["any"]) else { return };
    let target = Server::start(&name);
    for (on, rights, words, wanted, notified) in [
        ("AKE", "+@all -config", "check --json", &[][..], json!(true)),
        ("KA", "+@all -config", "check --json", &[], json!(true)),
        ("EA", "+@all -config", "check --json", &[], json!(true)),
        (
            "\"\"",
            "+@all -config",
            "check --json",
            &["notifications"],
            json!(false),
        ),
        (
            "AKE",
            "+@all -config",
            "check --json --no-write",
            &["notifications_unknown"],
            Value::Null,
        ),
        (
            "AKE",
            "+@all -config -@write",
            "check --json",
            &["notifications_unknown"],
            Value::Null,
        ),
        ("AKE", "+@all", "check --json", &[], Value::Null),
    ] {
        let source = Setup::new(&name).lines(&[
            &format!("notify-keyspace-events {on}"),
            &format!("user mover on >secret ~* {} {rights}", channels(&name)),
        ]);
        let source = source.start();
        source.run("SET mine 1");
        let report = plan(&source.url(), &target).run(words).exits(0).json;
        assert_eq!(warnings(&report), wanted, "{on} {rights} {words}: {report}");
        assert_eq!(report["source"]["notified"], notified, "{on} {rights}");
        assert_eq!(source.run("DBSIZE").int(), Some(1));
    }
}

/// The key is written where its slot is.
#[test]
fn notifications_of_a_cluster_are_listened_for() {
    let Some([name]) = need(["any"]) else { return };
    let (source, target) = (Cluster::start(&name, 3), Server::start(&name));
    for (on, notified) in [("AKE", true), ("Ex", false)] {
        for node in source.nodes() {
            node.run(&format!("CONFIG SET notify-keyspace-events {on}"));
            node.run(&format!(
                "ACL SETUSER mover on >secret ~* {} +@all -config",
                channels(&name)
            ));
        }
        let report = plan(&source.url(), &target).run("check --json").json;
        assert_eq!(warnings(&report).is_empty(), notified, "{report}");
        assert_eq!(report["source"]["notified"], notified);
    }
}

/// A blocker that check names with exit 1 is one in migrate: the same code, before anything is begun.
#[test]
fn a_source_that_refuses_replication_blocks_check_and_migrate_alike() {
    let Some([name]) = need(["any"]) else { return };
    let source = Setup::new(&name).line("rename-command PSYNC \"\"").start();
    let target = Server::start(&name);
    source.run("SET k v");
    let plan = Plan::new(&source.url(), &target.url());
    plan.run("check").exits(1);
    plan.run("migrate --until caught-up")
        .exits(1)
        .says(&["psync_refused", "source.mode"]);
    // Whoever ignores that meets it as a failure of the run.
    plan.run("migrate --until caught-up --ignore psync_refused")
        .exits(3)
        .says(&["PSYNC"]);
    assert_eq!(target.run("DBSIZE").int(), Some(0));
}
