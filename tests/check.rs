//! `check`: every blocker planted is named, nothing is left behind, and a good plan passes.

use crate::support::clock::skewed;
use crate::support::cluster::Cluster;
use crate::support::keyferry::Plan;
use crate::support::server::{Server, Setup};
use crate::support::tls::Tls;
use crate::support::{need, skip};
use serde_json::{Value, json};
use std::time::Duration;

/// The ids of the findings of one severity.
fn ids(report: &Value, severity: &str) -> Vec<String> {
    let list = report["findings"].as_array().expect("findings").iter();
    list.filter(|f| f["severity"] == severity)
        .map(|f| f["id"].as_str().expect("an id").to_owned())
        .collect()
}

#[track_caller]
fn blocks(plan: &Plan, id: &str) {
    let report = plan.run("check --json").exits(1).json;
    assert_eq!(report["ok"], false, "{report}");
    assert_eq!(ids(&report, "blocker"), [id], "{report}");
    let found = &report["findings"][0];
    let (message, fix) = (found["message"].as_str(), found["fix"].as_str());
    assert!(message.is_some_and(|m| m.len() > 10) && fix.is_some_and(|f| f.len() > 5));
    // The same for people.
    plan.run("check").exits(1).says(&[]);
}

fn pair(name: &str, source: &[&str], target: &[&str]) -> (Server, Server, Plan) {
    let source = Setup::new(name).lines(source).start();
    let target = Setup::new(name).lines(target).start();
    for n in 0..200 {
        source.run(&format!("SET key:{n} {}", "x".repeat(20_000)));
    }
    let plan = Plan::new(&source.url(), &target.url());
    (source, target, plan)
}

#[test]
fn a_good_plan_passes_and_leaves_nothing_behind() {
    let Some([name]) = need(["any"]) else { return };
    let (source, target, mut plan) = pair(&name, &[], &[]);
    let report = plan.run("check --json").exits(0).json;
    assert_eq!(
        (&report["ok"], &report["mode"]),
        (&json!(true), &json!("replica")),
        "{report}"
    );
    assert_eq!(report["source"]["keys"], 200);
    assert!(
        report["target"]["restore_version"].as_u64() >= Some(9),
        "{report}"
    );
    for server in [&source, &target] {
        let size = server.run("DBSIZE").int();
        assert!(size == Some(200) || size == Some(0), "{size:?}");
    }
    let before = target.info("stats", "expired_keys");
    plan.run("check --no-write --json").exits(0);
    assert_eq!(target.info("stats", "expired_keys"), before);
    plan.set("/source/mode", json!("auto"));
    assert_eq!(plan.run("check --json").exits(0).json["mode"], "replica");
}

#[test]
fn scripts_that_come_as_they_were_called_block() {
    let Some([name]) = need(["redis-6.2"]) else {
        return;
    };
    let (source, _target, mut plan) = pair(&name, &["lua-replicate-commands no"], &[]);
    blocks(&plan, "scripts_verbatim");
    plan.run("migrate --until caught-up")
        .exits(1)
        .says(&["CONFIG SET lua-replicate-commands yes"]);
    // A scan reads keys, whatever wrote them.
    plan.set("/source/mode", json!("scan"));
    let report = plan.run("check --json").exits(0).json;
    assert_eq!(ids(&report, "blocker"), [""; 0], "{report}");
    plan.set("/source/mode", json!("replica"));
    source.run("CONFIG SET lua-replicate-commands yes");
    plan.run("check").exits(0);
}

#[test]
fn each_blocker_is_named() {
    let Some([name]) = need(["any"]) else { return };
    let (source, _target, plan) = pair(&name, &[], &["maxmemory 3mb"]);
    blocks(&plan, "target_memory");
    drop(source);
    let (_source, _target, plan) = pair(&name, &[], &["maxmemory-policy allkeys-lru"]);
    blocks(&plan, "eviction");
    let (_source, _target, mut plan) = pair(&name, &["rename-command PSYNC \"\""], &[]);
    blocks(&plan, "psync_refused");
    plan.set("/source/mode", json!("auto"));
    let report = plan.run("check --json").exits(0).json;
    assert_eq!(report["mode"], "scan");
    assert!(
        ids(&report, "warning").contains(&"notifications".to_owned()),
        "{report}"
    );
    let (_source, _target, plan) = pair(&name, &[], &["maxclients 20"]);
    blocks(&plan, "target_clients");
    let acl = "user default on nopass ~* +@all -del";
    let (_source, _target, plan) = pair(&name, &[], &[acl]);
    blocks(&plan, "target_commands");
    let (source, target, plan) = pair(&name, &[], &[]);
    drop(target);
    blocks(&plan, "target_unreachable");
    drop(source);
}

#[test]
fn databases_into_a_cluster_and_fields_into_an_old_server() {
    let Some([name]) = need(["any"]) else { return };
    let source = Server::start(&name);
    let cluster = Cluster::start(&name, 3);
    source.run("SET a 1");
    source.client().words("SELECT 3").expect("a database");
    let mut client = source.client();
    client.words("SELECT 3").expect("a database");
    client.words("SET b 1").expect("an answer");
    let mut plan = Plan::new(&source.url(), &cluster.url());
    blocks(&plan, "databases");
    plan.set("/databases", json!({ "map": { "3": 0 } }));
    plan.run("check --json").exits(0);
    // Of two keys of one name only one could arrive.
    client.words("SET a 2").expect("an answer");
    blocks(&plan, "databases_conflict");
    let said = plan.run("migrate --json").exits(1).stderr;
    assert!(said.contains("arrive: \"a\""), "{said}");
    client.words("DEL a").expect("an answer");
    // Merged databases: what is asked for again comes from the one that has it.
    let target = Server::start(&name);
    plan.set("/target/url", json!(target.url()));
    let mut running = plan.start("migrate --json");
    plan.wait_caught_up(&mut running, Duration::from_secs(30));
    target.run("DEL b");
    plan.run("verify --repair --json").exits(0);
    running.interrupt();
    running.wait(Duration::from_secs(20)).exits(130);
    assert_eq!(target.run("GET b").text(), "1");
    let Some([new, old]) = need(["redis-8.0", "valkey-8.0"]) else {
        return;
    };
    let (source, target) = (Server::start(&new), Server::start(&old));
    source.run("HSET h a 1");
    source.run("HEXPIRE h 1000 FIELDS 1 a");
    let mut plan = Plan::new(&source.url(), &target.url());
    blocks(&plan, "field_expiry");
    plan.set("/on_loss", json!("list"));
    let report = plan.run("check --json").exits(0).json;
    let warnings = ids(&report, "warning");
    assert!(warnings.contains(&"field_expiry".to_owned()), "{report}");
}

#[test]
fn tls_is_judged() {
    let Some([name]) = need(["redis-7.0"]) else {
        return;
    };
    let (Some(tls), Some(other)) = (Tls::make(), Tls::make()) else {
        return skip("needs the openssl program");
    };
    let source = Server::start(&name);
    let target = Setup::new(&name).tls(&tls).start();
    let url = format!("rediss://127.0.0.1:{}", target.tls_port());
    let mut plan = Plan::new(&source.url(), &url);
    plan.set("/target/tls", json!({ "ca": other.ca() }));
    blocks(&plan, "target_tls");
    plan.set("/target/tls", json!({ "ca": tls.ca() }));
    let report = plan.run("check --json").exits(0).json;
    assert_eq!(report["target"]["tls"], true);
}

/// A certificate that has ended blocks; one that ends soon is told.
#[test]
fn certificates_end() {
    let Some([name]) = need(["redis-7.0"]) else {
        return;
    };
    let (Some(ended), Some(ending)) = (Tls::of_days_ago(40), Tls::of_days_ago(25)) else {
        return skip("needs openssl and a C compiler");
    };
    let source = Server::start(&name);
    for (tls, id) in [(&ended, "blocker"), (&ending, "warning")] {
        let target = Setup::new(&name).tls(tls).start();
        let url = format!("rediss://127.0.0.1:{}", target.tls_port());
        let mut plan = Plan::new(&source.url(), &url);
        plan.set("/target/tls", json!({ "ca": tls.ca() }));
        if id == "blocker" {
            blocks(&plan, "target_tls");
            let said = plan.run("check").exits(1).stdout;
            assert!(said.contains("expired"), "{said}");
        } else {
            let report = plan.run("check --json").exits(0).json;
            assert_eq!(ids(&report, id), ["target_certificate"], "{report}");
        }
    }
}

#[test]
fn a_wrong_clock_blocks() {
    let Some([name]) = need(["any:clock"]) else {
        return;
    };
    let Some(clock) = skewed(90) else {
        return skip("needs a C compiler");
    };
    let source = Server::start(&name);
    let target = Setup::new(&name).environment(&clock).start();
    source.run("SET a 1 EX 1000");
    let plan = Plan::new(&source.url(), &target.url());
    blocks(&plan, "clocks");
    // A migration is not begun, unless it is told to.
    let refused = plan.run("migrate --json").exits(1);
    assert!(
        refused.stderr.contains("--ignore clocks"),
        "{}",
        refused.stderr
    );
    assert_eq!(target.run("DBSIZE").int(), Some(0));
    plan.run("migrate --until caught-up --ignore clocks")
        .exits(0);
    assert_eq!(target.run("DBSIZE").int(), Some(1));
}

/// A Redis 8 without data tells a size of it near 2^64: it has become negative.
#[test]
fn empty_servers_are_no_giants() {
    let Some([name]) = need(["redis-8.0"]) else {
        return;
    };
    let (source, target) = (Server::start(&name), Server::start(&name));
    target.run("CONFIG SET maxmemory 1gb");
    let plan = Plan::new(&source.url(), &target.url());
    let checked = plan.run("check --json").exits(0).json;
    for side in ["source", "target"] {
        let used = checked[side]["used_memory"].as_u64();
        assert!(used.is_some_and(|n| n < 1 << 30), "{checked}");
    }
    plan.run("migrate --until caught-up").exits(0);
}

#[test]
fn what_the_clients_call_and_the_target_does_not_know_is_named() {
    let Some([new, old]) = need(["redis-8.0", "redis-7.0"]) else {
        return;
    };
    let (source, target) = (Server::start(&new), Server::start(&old));
    source.run("HSETEX h FIELDS 1 f v");
    source.run("SET k 1");
    let plan = Plan::new(&source.url(), &target.url());
    let report = plan.run("check --json").exits(0).json;
    let findings = report["findings"].as_array().expect("a list");
    let said = findings.iter().find(|f| f["id"] == "unknown_commands");
    let message = said.expect("it is said")["message"].to_string();
    assert!(
        message.contains("called HSETEX, which redis 7.0"),
        "{message}"
    );
    let other = Server::start(&new);
    let same = Plan::new(&source.url(), &other.url());
    let report = same.run("check --json").exits(0).json;
    assert!(!report.to_string().contains("unknown_commands"), "{report}");
}
