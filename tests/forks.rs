//! Forks of Redis as sources. None of them can be had here: each is played by a real server behind a proxy that answers
//! as the fork's sources say (`support::fork`), so this shows what keyferry makes of such answers, not how forks behave.

use crate::support::fork::{Fork, Rules, begins, script};
use crate::support::keyferry::{Plan, Running};
use crate::support::need;
use crate::support::server::Server;
use serde_json::json;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// A key of each type that every fork has, under a prefix.
fn fill(server: &Server, prefix: &str) {
    for line in [
        "SET #string value PX 900000",
        "RPUSH #list a b c",
        "SADD #set a b",
        "ZADD #zset 1.5 a -inf b",
        "HSET #hash f v g w",
        "XADD #stream 5-1 f v",
        "XGROUP CREATE #stream group 5-1",
    ] {
        let done = server.run(&line.replace('#', prefix));
        assert!(!done.is_error(), "{line}: {}", done.text());
    }
}

/// A product that has no PSYNC of ours, is found out to be scanned, and all of whose keys arrive.
fn is_scanned(source: &Server, target: &Server, rules: Rules) -> Fork {
    let fork = Fork::start(&source.address(), rules);
    let mut plan = Plan::new(&fork.url(), &target.url());
    plan.set("/source/mode", json!("auto"));
    let checked = plan.run("check --json").json;
    assert_eq!(checked["mode"], "scan", "{checked}");
    plan.run("migrate --json --until caught-up").exits(0);
    assert_eq!(plan.status()["mode"], "scan");
    // By the judge's own eyes, as the fork's DUMP says what it likes.
    let keys = |server: &Server| {
        let mut keys: Vec<String> = (server.run("KEYS *").items().iter())
            .map(|k| k.text())
            .map(|k| format!("{k} {}", server.run(&format!("TYPE {k}")).text()))
            .collect();
        keys.sort();
        keys
    };
    assert_eq!(keys(source), keys(target));
    plan.run("verify --json").exits(0);
    // A change afterwards is seen as well.
    source.run("RPUSH own:list d");
    plan.run("verify --json").exits(1);
    plan.run("migrate --json --until caught-up").exits(0);
    assert_eq!(target.run("LLEN own:list").int(), Some(4));
    plan.run("verify --json").exits(0);
    fork
}

#[test]
fn kvrocks_that_knows_the_word_psync_is_scanned() {
    let Some([from, to]) = need(["any", "any"]) else {
        return;
    };
    let (source, target) = (Server::start(&from), Server::start(&to));
    fill(&source, "own:");
    let rules = Rules::default()
        .info("# Server\r\nversion:2.12.0\r\nkvrocks_version:2.12.0\r\n")
        .answer(
            "PSYNC ? -1",
            "-ERR sequence out of range, please use fullsync",
        );
    let fork = is_scanned(&source, &target, rules);
    assert!(fork.struck().0 > 0);
    // Where the plan insists, the refusal says what to do.
    let mut plan = Plan::new(&fork.url(), &target.url());
    plan.set("/on_existing", json!("reconcile"));
    let refused = plan.run("migrate --json --until caught-up");
    assert_ne!(refused.code, 0);
    refused.says(&["psync", "scan"]);
}

#[test]
fn values_of_dragonfly_in_forms_of_its_own_are_read_by_type() {
    let Some([from, to]) = need(["any", "any"]) else {
        return;
    };
    let (source, target) = (Server::start(&from), Server::start(&to));
    fill(&source, "own:");
    fill(&source, "plain:");
    // Type 30, version 9, no checksum.
    let payload = [b"\x1eits own bytes".as_slice(), b"\x09\0", &[0; 8]].concat();
    let rules = Rules::default()
        .info("# Server\r\nredis_version:7.4.0\r\ndragonfly_version:df-v1.40.1\r\n")
        .answer("PSYNC", "-ERR unknown command 'PSYNC'")
        .change(move |args| {
            let own = begins(args, "DUMP") && args[1].starts_with(b"own:");
            own.then(|| script("return ARGV[1]", &payload))
        });
    is_scanned(&source, &target, rules);
}

#[test]
fn what_garnet_does_not_dump_is_not_taken_for_gone() {
    let Some([from, to]) = need(["any", "any"]) else {
        return;
    };
    let (source, target) = (Server::start(&from), Server::start(&to));
    fill(&source, "own:");
    let rules = Rules::default()
        .info("# Server\r\ngarnet_version:1.0.65\r\nredis_version:7.2.5\r\n")
        .answer("PSYNC", "-ERR unknown command")
        .change(|args| {
            let own = begins(args, "DUMP") && args[1] != b"own:string";
            own.then(|| script("return false", b""))
        });
    is_scanned(&source, &target, rules);
}

#[test]
fn where_dump_is_refused_a_scan_reads_by_type() {
    let Some([from, to]) = need(["any", "any"]) else {
        return;
    };
    let (source, target) = (Server::start(&from), Server::start(&to));
    fill(&source, "own:");
    let rules = Rules::default()
        .answer("PSYNC", "-ERR unknown command")
        .change(|args| {
            let own = begins(args, "DUMP") && args[1].starts_with(b"own:");
            own.then(|| script("return {err='WRONGTYPE Operation against a key'}", b""))
        });
    is_scanned(&source, &target, rules);
}

#[test]
fn an_active_replica_of_keydb_is_scanned_or_refused_with_what_to_do() {
    let Some([from, to]) = need(["any", "any"]) else {
        return;
    };
    let (source, target) = (Server::start(&from), Server::start(&to));
    fill(&source, "own:");
    let rules = || Rules::default().answer("REPLCONF capa", "+OK active-replica");
    let fork = is_scanned(&source, &target, rules());
    let mut plan = Plan::new(&fork.url(), &target.url());
    plan.set("/on_existing", json!("reconcile"));
    let refused = plan.run("migrate --json --until caught-up --ignore psync_refused");
    assert_ne!(refused.code, 0);
    refused.says(&["active replica", "scan"]);
}

fn follow(plan: &Plan) -> Running {
    let mut running = plan.start("migrate --json");
    plan.wait_status(&mut running, "loaded", SOON, |s| s["phase"] == "stream");
    running
}

#[test]
fn expiries_of_members_in_keydbs_stream_are_named_losses() {
    let Some([from, to]) = need(["any", "any"]) else {
        return;
    };
    let (source, target) = (Server::start(&from), Server::start(&to));
    // Of the same length: the removal of the lowest member stands in the stream as an expiry of one.
    let rules = Rules::default()
        .in_stream("ZREMRANGEBYRANK", "PEXPIREMEMBERAT")
        .in_stream("HINCRBY", "RREPLAY");
    let fork = Fork::start(&source.address(), rules);
    let mut plan = Plan::new(&fork.url(), &target.url());
    plan.set("/filter", json!({"exclude": ["left:*"]}));
    let running = follow(&plan);
    source.run("ZADD left:z 1 a 2 b");
    source.run("ZREMRANGEBYRANK left:z 0 0");
    source.run("ZADD z 1 a 2 b");
    source.run("ZREMRANGEBYRANK z 0 0");
    let stopped = running.wait(SOON);
    assert_ne!(stopped.code, 0);
    stopped.says(&["cannot hold the key \"z\"", "members expire", "on_loss"]);
    plan.set("/on_loss", json!("list"));
    let done = plan.run("migrate --json --until caught-up").exits(0);
    assert_eq!(done.json["skipped"]["member_expiry"], 1, "{}", done.stdout);
    let verified = plan.run("verify --json").exits(0).json;
    assert_eq!(verified["known_losses"], 1, "{verified}");
    let running = follow(&plan);
    source.run("HINCRBY h f 1");
    let stopped = running.wait(SOON);
    assert_ne!(stopped.code, 0);
    stopped.says(&["active replica", "scan"]);
}

#[test]
fn expiries_of_members_in_keydbs_snapshot_are_named_losses() {
    let Some([to]) = need(["any"]) else { return };
    let target = Server::start(&to);
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("keydb.rdb");
    let string = |s: &str| [&[s.len() as u8], s.as_bytes()].concat();
    let aux = |name: &str, value: &str| [vec![0xfa], string(name), string(value)].concat();
    let set = |key: &str| [vec![2], string(key), vec![1], string("m")].concat();
    let file = [
        b"REDIS0009".to_vec(),
        aux("redis-ver", "6.3.4"),
        vec![0xfe, 0],
        set("before"),
        set("timed"),
        // KeyDB tells of a key's members behind the key.
        aux("keydb-subexpire-key", "m"),
        aux("keydb-subexpire-when", "1893456000000"),
        set("after"),
        vec![0xff],
        vec![0; 8],
    ];
    std::fs::write(&path, file.concat()).expect("it is written");
    let mut plan = Plan::of(json!({
        "name": "keydb",
        "source": {"mode": "rdb", "path": path},
        "target": {"url": target.url()},
    }));
    let stopped = plan.run("migrate --json");
    assert_ne!(stopped.code, 0);
    stopped.says(&["cannot hold the key \"timed\"", "members expire"]);
    plan.set("/on_loss", json!("list"));
    let done = plan.run("migrate --json").exits(0);
    assert_eq!(done.json["skipped"], json!({"member_expiry": 1}));
    assert_eq!(target.run("DBSIZE").int(), Some(3));
}
