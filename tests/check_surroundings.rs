//! `check`: what a copy of the data does not bring is named, each by its id, and plain servers are left in peace.

use crate::control::refuse_greetings;
use crate::journeys::story;
use crate::support::cluster::Cluster;
use crate::support::compiled::compiled;
use crate::support::keyferry::Plan;
use crate::support::profile;
use crate::support::server::{SERVERS, Server, Setup, find};
use crate::support::wire::Client;
use crate::support::{need, skip, wait_until};
use crate::topology::Sentinel;
use serde_json::{Value, json};
use std::process::Command as Process;
use std::time::Duration;

/// What every plain pair is told.
const USUAL: [&str; 1] = ["replica_buffer"];

fn findings(report: &Value) -> &[Value] {
    report["findings"].as_array().expect("a list")
}

/// The finding of that id, which must have this weight and say these words; what else is found must not be heavier.
#[track_caller]
fn found(plan: &Plan, id: &str, severity: &str, words: &[&str]) -> Value {
    let report = plan.run("check --json").exits(0).json;
    let all = findings(&report);
    let one = all.iter().find(|f| f["id"] == id);
    let one = one.unwrap_or_else(|| panic!("no {id}: {all:?}")).clone();
    assert_eq!(one["severity"], severity, "{one}");
    let said = one["message"].as_str().unwrap_or_default();
    assert!(words.iter().all(|w| said.contains(w)), "{words:?}: {one}");
    assert!(one["fix"].as_str().is_some_and(|f| !f.is_empty()), "{one}");
    one
}

#[track_caller]
fn silent(plan: &Plan, id: &str) {
    let report = plan.run("check --json").exits(0).json;
    let all = findings(&report);
    assert!(all.iter().all(|f| f["id"] != id), "{id}: {all:?}");
}

fn pair(source: Setup, target: Setup) -> (Server, Server, Plan) {
    let (source, target) = (source.start(), target.start());
    source.run("SET a 1");
    let plan = Plan::new(&source.url(), &target.url());
    (source, target, plan)
}

fn plain(name: &str) -> (Server, Server, Plan) {
    pair(Setup::new(name), Setup::new(name))
}

/// Logs in at the source as the user "ferry".
fn log_in_as_ferry(plan: &mut Plan) {
    plan.set("/source/username", json!("ferry"));
    plan.set("/source/password", json!({ "env": "SOURCE_SECRET" }));
    plan.environment = vec![("SOURCE_SECRET".into(), "it".into())];
}

#[track_caller]
fn quiet(plan: &Plan) {
    // Twice: the first must leave nothing that the second would take for a client's.
    for _ in 0..2 {
        let report = plan.run("check --json").exits(0).json;
        let ids = findings(&report).iter().map(|f| f["id"].as_str());
        let more: Vec<_> = ids.flatten().filter(|id| !USUAL.contains(id)).collect();
        assert!(more.is_empty(), "{more:?}: {report}");
    }
}

#[test]
fn plain_servers_of_each_version_are_left_in_peace() {
    for name in SERVERS.iter().filter(|name| find(name).is_some()) {
        let (_source, _target, plan) = plain(name);
        println!("{name}");
        quiet(&plan);
    }
    let Some([name, new]) = need(["any", "valkey-9.1"]) else {
        return;
    };
    let (source, target) = (Cluster::start(&name, 3), Cluster::start(&name, 3));
    quiet(&Plan::new(&source.url(), &target.url()));
    // The language of scripts is a module there.
    let (_source, _target, plan) = pair(Setup::new(&new), Setup::new(&name));
    silent(&plan, "modules");
}

#[test]
fn scripts_that_are_called_by_their_digest() {
    let Some([name]) = need(["any"]) else { return };
    let (source, target, plan) = plain(&name);
    let digest = source.run("SCRIPT LOAD return(1)").text();
    silent(&plan, "functions");
    for _ in 0..7 {
        source.run(&format!("EVALSHA {digest} 0"));
    }
    let one = found(
        &plan,
        "script_cache",
        "warning",
        &["of the source: 1", "of the target: 0"],
    );
    // Since Redis 7.0 loading is counted by itself.
    let said = one["message"].to_string();
    assert!(
        said.contains(" 7 calls") || said.contains(" 8 calls"),
        "{said}"
    );
    assert!(one["fix"].to_string().contains("NOSCRIPT"));
    target.run("SCRIPT LOAD return(1)");
    found(&plan, "script_cache", "info", &["of the target: 1"]);
    // A cluster: calls are summed over the masters.
    let cluster = Cluster::start(&name, 2);
    for node in cluster.masters() {
        node.run("SCRIPT LOAD return(1)");
        node.run(&format!("EVALSHA {digest} 0"));
    }
    let plan = Plan::new(&cluster.url(), &target.url());
    let said = found(&plan, "script_cache", "info", &["of the target: 1"])["message"].to_string();
    assert!(
        said.contains(" 2 calls") || said.contains(" 4 calls"),
        "{said}"
    );
}

#[test]
fn users_that_the_target_lacks() {
    let Some([old, name]) = need(["redis-6.0", "any:acl-channels"]) else {
        return;
    };
    let (source, target, mut plan) = pair(Setup::new(&old), Setup::new(&name));
    for user in [
        "app on >secret-one ~app:* +@all",
        "idle off",
        "ferry on >it ~* +@all",
    ] {
        source.run(&format!("ACL SETUSER {user}"));
    }
    log_in_as_ferry(&mut plan);
    let one = found(&plan, "acl_users", "warning", &["app"]);
    let said = one["message"].to_string();
    assert!(!said.contains("idle") && !said.contains("ferry"), "{said}");
    target.run("ACL SETUSER app on >secret-one ~app:* +@read");
    silent(&plan, "acl_users");
    found(&plan, "acl_rules", "warning", &["app"]);
    target.run("ACL SETUSER app reset on >secret-two ~app:* +@all");
    silent(&plan, "acl_rules");
    let one = found(&plan, "acl_passwords", "info", &["app"]);
    // Neither passwords nor their hashes are told.
    let whole = plan.run("check --json").exits(0).stdout;
    let hash = "user app on #";
    let line = source
        .run("ACL LIST")
        .items()
        .iter()
        .map(|l| l.text())
        .find(|l| l.starts_with(hash));
    let secret = line.expect("a hash")[hash.len()..hash.len() + 64].to_owned();
    assert!(
        !whole.contains(&secret[..16]) && !whole.contains("secret-"),
        "{one}"
    );
    target.run("ACL SETUSER app reset on >secret-one ~app:* +@all");
    quiet(&plan);
    // The target does not tell its users.
    target.run("ACL SETUSER default -acl");
    found(&plan, "acl_users", "info", &["app", "does not tell"]);
    source.run("ACL SETUSER ferry -acl");
    silent(&plan, "acl_users");
}

#[test]
fn keyspace_notifications_that_somebody_hears() {
    let Some([name]) = need(["any"]) else { return };
    let (source, target, mut plan) = plain(&name);
    source.run("CONFIG SET notify-keyspace-events KEA");
    found(&plan, "keyspace_events", "info", &["nobody"]);
    let mut listener = source.client();
    listener
        .words("SUBSCRIBE __keyspace@0__:a")
        .expect("a subscription");
    found(&plan, "keyspace_events", "warning", &["1 channel "]);
    drop(listener);
    let mut listener = source.client();
    listener
        .words("PSUBSCRIBE __keyevent*")
        .expect("a subscription");
    found(&plan, "keyspace_events", "warning", &["1 pattern"]);
    // In mode "scan" that one may be keyferry.
    plan.set("/source/mode", json!("scan"));
    found(&plan, "keyspace_events", "info", &[]);
    target.run("CONFIG SET notify-keyspace-events Kg$lshzxetE");
    silent(&plan, "keyspace_events");
}

#[test]
fn functions_that_the_target_cannot_take() {
    let Some([new, old]) = need(["redis-7.0", "redis-6.2"]) else {
        return;
    };
    let (source, other, plan) = plain(&new);
    let code = "#!lua name=lib\nredis.register_function('f', function() return 1 end)";
    let load = crate::support::wire::Command::new("FUNCTION LOAD").arg(code);
    source.client().expect(&load).expect("it is loaded");
    found(&plan, "functions", "info", &["1 library"]);
    drop(other);
    let target = Server::start(&old);
    let plan = Plan::new(&source.url(), &target.url());
    found(&plan, "functions", "warning", &["1 library", "redis 6.2"]);
}

#[test]
fn databases_beyond_those_of_the_target() {
    let Some([name]) = need(["any"]) else { return };
    let (source, _target, mut plan) = pair(
        Setup::new(&name).line("databases 40"),
        Setup::new(&name).line("databases 20"),
    );
    found(&plan, "databases_number", "info", &["20", "40"]);
    let mut client = source.client();
    client.words("SELECT 33").expect("a database");
    client.words("SET b 1").expect("a key");
    found(
        &plan,
        "databases_number",
        "warning",
        &["database 33", "has 20"],
    );
    plan.set("/databases", json!({ "map": { "33": 7 } }));
    found(&plan, "databases_number", "info", &[]);
    plan.set("/databases", json!({ "map": { "33": 20 } }));
    found(&plan, "databases_number", "warning", &["database 20"]);
}

#[test]
fn settings_that_applications_notice() {
    let Some([name]) = need(["any"]) else { return };
    let (source, target, plan) = plain(&name);
    source.run("CONFIG SET maxmemory-policy allkeys-lru");
    found(
        &plan,
        "eviction_policy",
        "info",
        &["allkeys-lru", "no maxmemory"],
    );
    source.run("CONFIG SET maxmemory 1gb");
    let one = found(
        &plan,
        "eviction_policy",
        "warning",
        &["allkeys-lru", "noeviction"],
    );
    assert!(
        one["fix"].to_string().contains("after the cutover"),
        "{one}"
    );
    source.run("CONFIG SET maxmemory-policy noeviction");
    silent(&plan, "eviction_policy");
    target.run("CONFIG SET timeout 120");
    found(&plan, "idle_timeout", "warning", &["120 s", "never"]);
    source.run("CONFIG SET timeout 60");
    silent(&plan, "idle_timeout");
    source.run("CONFIG SET timeout 300");
    found(&plan, "idle_timeout", "warning", &["after 300 s"]);
    target.run("CONFIG SET tcp-keepalive 60");
    target.run("CONFIG SET proto-max-bulk-len 1048576");
    let words = [
        "tcp-keepalive is 300 at the source and 60",
        "proto-max-bulk-len",
    ];
    found(&plan, "settings", "info", &words);
    target.run("CONFIG SET maxclients 60");
    let clients: Vec<Client> = (0..80).map(|_| source.client()).collect();
    found(&plan, "maxclients", "warning", &["takes at most 60"]);
    drop(clients);
}

/// What really happens: keyferry's link counts for WAIT and for min-replicas-to-write, and both end with it.
#[test]
fn keyferry_counts_as_a_replica() {
    let Some([name]) = need(["any"]) else { return };
    let (source, _target, mut plan) = plain(&name);
    let mut running = plan.start("migrate --json");
    plan.wait_caught_up(&mut running, Duration::from_secs(30));
    let mut client = source.client();
    client.words("SET a 2").expect("a write");
    let counted = client.words("WAIT 1 3000").expect("an answer").int();
    assert_eq!(counted, Some(1), "without any other replica");
    found(&plan, "wait", "warning", &["1 time ", "has 0 replicas"]);
    silent(&plan, "min_replicas");
    source.run("CONFIG SET min-replicas-to-write 1");
    wait_until("writes are taken", Duration::from_secs(5), || {
        client.words("SET a 3").is_ok()
    });
    found(
        &plan,
        "min_replicas",
        "warning",
        &["fewer than 1", "has 0", "NOREPLICAS"],
    );
    running.interrupt();
    running.wait(Duration::from_secs(20)).exits(130);
    let refused = client.words("SET a 4").expect_err("no replica is left");
    assert!(refused.to_string().starts_with("NOREPLICAS"), "{refused}");
    assert_eq!(
        client.words("WAIT 1 100").expect("an answer").int(),
        Some(0)
    );
    // With a replica of its own the source goes on, and by a scan nothing is counted.
    let _replica = Setup::new(&name).replica_of(&source).start();
    wait_until("a replica follows", Duration::from_secs(20), || {
        client.words("SET a 5").is_ok()
    });
    found(&plan, "min_replicas", "info", &["has 1", "one more"]);
    plan.set("/source/mode", json!("scan"));
    found(&plan, "min_replicas", "info", &["has 1"]);
    found(
        &plan,
        "wait",
        "warning",
        &["2 times", "has 1 replica; the target has 0"],
    );
}

/// A Sentinel keeps an entry for our link until it is told to forget it.
#[test]
fn a_sentinel_keeps_an_entry_for_us() {
    let Some([name]) = need(["any"]) else { return };
    let (source, _target, mut plan) = plain(&name);
    silent(&plan, "sentinel");
    let Some(sentinel) = Sentinel::start(&name, &source) else {
        return skip("needs a sentinel");
    };
    wait_until("it watches", Duration::from_secs(20), || {
        source.run("PUBSUB NUMSUB __sentinel__:hello").items()[1].int() == Some(1)
    });
    let one = found(&plan, "sentinel", "warning", &["1 Sentinel", "s_down"]);
    assert!(one["fix"].to_string().contains("SENTINEL RESET"), "{one}");
    let mut running = plan.start("migrate --json");
    plan.wait_caught_up(&mut running, Duration::from_secs(30));
    let entries = || {
        let reply = sentinel.run("SENTINEL REPLICAS mymaster");
        let names = reply.items().iter().map(|r| r.items()[1].text());
        names.collect::<Vec<_>>()
    };
    wait_until("it has found us", Duration::from_secs(25), || {
        !entries().is_empty()
    });
    assert_eq!(entries(), ["127.0.0.1:0"]);
    running.interrupt();
    running.wait(Duration::from_secs(20)).exits(130);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(entries(), ["127.0.0.1:0"], "it forgets nobody");
    sentinel.run("SENTINEL RESET mymaster");
    // It asks its master every ten seconds.
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(entries(), [""; 0]);
    // A scan has no link.
    plan.set("/source/mode", json!("scan"));
    silent(&plan, "sentinel");
}

#[test]
fn a_source_that_is_a_replica_names_its_master() {
    let Some([name]) = need(["any"]) else { return };
    let (master, target, _) = plain(&name);
    let replica = Setup::new(&name).replica_of(&master).start();
    wait_until("it follows", Duration::from_secs(20), || {
        replica
            .run("INFO replication")
            .text()
            .contains("master_link_status:up")
    });
    let mut plan = Plan::new(&replica.url(), &target.url());
    let address = master.address();
    let one = found(&plan, "source_is_replica", "info", &[&address]);
    assert!(one["fix"].to_string().contains("same credentials"), "{one}");
    // The master wants a password that the plan does not have for it.
    master.run("CONFIG SET requirepass else");
    let one = found(
        &plan,
        "source_is_replica",
        "warning",
        &[&address, "cannot be asked"],
    );
    assert!(one["fix"].to_string().contains("address_map"), "{one}");
    // The plan may say where the master is reached.
    let way = Server::start(&name);
    plan.set(
        "/source/address_map",
        json!({ address.clone(): way.address() }),
    );
    found(&plan, "source_is_replica", "info", &[&address]);
    way.run(&format!("REPLICAOF 127.0.0.1 {}", target.port()));
    let words = [address.as_str(), "it is a replica itself"];
    found(&plan, "source_is_replica", "warning", &words);
    // A master that hangs is not waited for.
    plan.set("/source/address_map", json!({}));
    let stop = format!("kill -STOP {}", master.pid());
    let stopped = Process::new("sh").args(["-c", &stop]).status();
    assert!(stopped.is_ok_and(|s| s.success()));
    let words = [address.as_str(), "no answer within 5 s"];
    found(&plan, "source_is_replica", "warning", &words);
    drop(master);
    found(&plan, "source_is_replica", "warning", &["cannot be asked"]);
}

#[test]
fn a_switch_that_cannot_be_taken_back() {
    let Some([name]) = need(["any:client-pause-write+acl-selectors"]) else {
        return;
    };
    let (source, _target, mut plan) = plain(&name);
    plan.set("/cutover", json!({ "hooks": { "switch": ["true"] } }));
    found(&plan, "no_switch_back", "warning", &["switch_back"]);
    plan.set("/cutover/hooks/switch_back", json!(["true"]));
    silent(&plan, "no_switch_back");
    found(&plan, "old_side", "info", &["ACL SETUSER"]);
    let ferry = |rights: &str| {
        source.run(&format!("ACL SETUSER ferry reset on >it ~* +@all {rights}"));
    };
    ferry("-acl|setuser");
    log_in_as_ferry(&mut plan);
    found(&plan, "old_side", "info", &["CLIENT PAUSE"]);
    ferry("-acl|setuser -client|pause");
    let one = found(&plan, "old_side", "warning", &["can only be listed"]);
    assert!(one["fix"].to_string().contains("+acl|setuser"), "{one}");
    // Where ACL is refused altogether, trying tells.
    ferry("-acl -client");
    found(&plan, "old_side", "warning", &[]);
    ferry("-acl");
    found(&plan, "old_side", "info", &["CLIENT PAUSE"]);
    ferry("-acl|dryrun");
    found(&plan, "old_side", "info", &["ACL SETUSER"]);
    let users = source.run("ACL USERS");
    assert_eq!(users.items().len(), 2, "{users:?}");
    ferry("-acl|dryrun -acl|setuser");
    found(&plan, "old_side", "info", &["CLIENT PAUSE"]);
    // Who plans no cutover is not bothered.
    plan.set("/cutover", json!({}));
    silent(&plan, "old_side");
}

/// Redis 6.0 pauses everything or nothing; neither it nor 6.2 has ACL DRYRUN.
#[test]
fn an_old_server_is_closed_by_its_users() {
    let Some(olds) = need(["redis-6.0", "redis-6.2"]) else {
        return;
    };
    for (old, pauses) in olds.iter().zip([false, true]) {
        let (source, _target, mut plan) = plain(old);
        let hooks = json!({ "hooks": { "switch": ["true"], "switch_back": ["true"] } });
        plan.set("/cutover", hooks);
        log_in_as_ferry(&mut plan);
        let ferry = |rights: &str| {
            source.run(&format!("ACL SETUSER ferry reset on >it ~* +@all {rights}"));
        };
        ferry("");
        found(&plan, "old_side", "info", &["ACL SETUSER"]);
        assert_eq!(source.run("ACL USERS").items().len(), 2);
        ferry("-acl");
        match pauses {
            true => found(&plan, "old_side", "info", &["CLIENT PAUSE"]),
            false => found(&plan, "old_side", "warning", &["CLIENT PAUSE"]),
        };
        ferry("-acl -client");
        found(&plan, "old_side", "warning", &["CLIENT PAUSE"]);
    }
}

#[test]
fn search_indexes_are_not_data() {
    let Some([name]) = need(["any:acl-channels"]) else {
        return;
    };
    let Some(module) = compiled("search") else {
        return skip("needs a C compiler");
    };
    let load = format!("loadmodule {}", module.display());
    let (_source, _target, plan) = pair(Setup::new(&name).line(&load), Setup::new(&name));
    found(&plan, "search_indexes", "warning", &["2 search indexes"]);
    found(&plan, "modules", "warning", &["search"]);
}

#[test]
fn clients_with_caches_behind_a_proxy() {
    let Some([name]) = need(["any"]) else { return };
    let (source, _target, mut plan) = plain(&name);
    let mut client = source.client();
    // RESP3 is not what this client speaks: the invalidations go to another connection.
    let mut other = source.client();
    let id = other.words("CLIENT ID").expect("an id").text();
    let on = format!("CLIENT TRACKING on REDIRECT {id}");
    client.words(&on).expect("it is on");
    silent(&plan, "client_tracking");
    plan.set("/target/topology", json!("proxy"));
    found(&plan, "client_tracking", "info", &["1 client "]);
}

/// Servers that refuse most of what is asked are asked once, and their plans are not filled with warnings.
#[test]
fn providers_are_asked_once_and_told_what_matters() {
    let usual = [
        "notifications",
        "functions",
        "replica_buffer",
        "old_side",
        "restore_refused",
    ];
    for (name, from, to, closed) in [
        // Redis 6.0 cannot pause writers alone.
        (
            "azure-cache-scan",
            &profile::AZURE_CACHE,
            &profile::AZURE_MANAGED_NONCLUSTERED,
            "can only be listed",
        ),
        (
            "aiven-valkey-to-azure-managed",
            &profile::AIVEN_VALKEY,
            &profile::AZURE_MANAGED_OSS,
            "CLIENT PAUSE",
        ),
        (
            "aiven-valkey-to-azure-managed",
            &profile::AIVEN_VALKEY,
            &profile::AZURE_MANAGED_ACTIVE_GEO,
            "CLIENT PAUSE",
        ),
        (
            "self-hosted-cluster-to-elasticache",
            &profile::SELF_HOSTED_CLUSTER,
            &profile::ELASTICACHE,
            "ACL SETUSER",
        ),
        (
            "redis-cloud-to-valkey-cluster",
            &profile::REDIS_CLOUD,
            &profile::VALKEY_CLUSTER,
            "can only be listed",
        ),
    ] {
        let Some((mut story, ours, theirs)) = story(name, None, from, to) else {
            return;
        };
        let hooks = json!({ "switch": ["true"], "switch_back": ["true"] });
        story.plan.set("/cutover", json!({ "hooks": hooks }));
        refuse_greetings(&story.source);
        refuse_greetings(&story.target);
        ours.refused(&story.source);
        theirs.refused(&story.target);
        let report = story.plan.run("check --json").exits(0).json;
        for found in [ours.refused(&story.source), theirs.refused(&story.target)] {
            assert!(found.values().all(|n| *n == 1), "{name}: {found:?}");
            let greeting = |name: &&String| name.contains("hello") || name.contains("setinfo");
            assert_eq!(found.keys().find(greeting), None, "{name}");
        }
        let all = findings(&report);
        let expected = |f: &Value| usual.iter().any(|id| f["id"] == *id);
        assert!(all.iter().all(expected), "{name}: {all:?}");
        let active = to.name == profile::AZURE_MANAGED_ACTIVE_GEO.name;
        let refused = all.iter().any(|f| f["id"] == "restore_refused");
        assert_eq!(refused, active, "{name}: {all:?}");
        let side = all.iter().find(|f| f["id"] == "old_side");
        let said = side.expect("it is said")["message"].to_string();
        assert!(said.contains(closed), "{name}: {said}");
    }
}

/// Every finding stands in the table that people look it up in.
#[test]
fn each_finding_is_described() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect("it is there");
    let docs = read("docs/operations.md");
    let mut ids = std::collections::BTreeSet::new();
    for file in ["differences", "rules"] {
        let text = read(&format!("src/check/{file}.rs"));
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for pair in lines.windows(2) {
            let begins = pair[0] == "findings," || pair[0] == "(" || pair[0].contains("ErrorKind");
            let word = pair[1].rsplit("=> ").next().unwrap_or_default();
            let word = word.trim_end_matches(',');
            let id = word.strip_prefix('"').and_then(|w| w.strip_suffix('"'));
            let is_id = |id: &&str| id.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            ids.extend(id.filter(is_id).filter(|_| begins).map(str::to_owned));
        }
    }
    println!("{ids:?}");
    assert!(ids.len() >= 40, "{ids:?}");
    for id in ids {
        assert!(
            docs.contains(&format!("| `{id}` |")),
            "docs/operations.md: {id}"
        );
    }
}
