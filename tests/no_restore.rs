//! Targets that refuse RESTORE, as active-active databases do: every core type arrives by commands.
//!
//! `KEYFERRY_FULL=1`: 200,000 keys, with what it costs in time and memory.

use crate::cutover::Move;
use crate::support::cluster::Cluster;
use crate::support::keyferry::Plan;
use crate::support::proxy::{Proxy, Rules};
use crate::support::server::{Server, Setup};
use crate::support::story::{Endpoint, Story};
use crate::support::traffic;
use crate::support::versions::all_rights;
use crate::support::wire::Command;
use crate::support::{need, wait_until};
use serde_json::json;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

fn full() -> bool {
    std::env::var_os("KEYFERRY_FULL").is_some()
}

/// A server whose users may do everything else.
fn refusing(name: &str, denied: &str) -> Setup {
    let line = format!("user default on nopass {} {denied}", all_rights(name));
    Setup::new(name).line(&line)
}

/// No RESTORE has run anywhere at the target.
#[track_caller]
fn no_restore_ran(target: &Endpoint) {
    for node in target.nodes() {
        let stats = node.run("INFO commandstats").text().to_owned();
        let ran = stats.lines().find(|l| l.starts_with("cmdstat_restore:"));
        assert!(ran.is_none_or(|l| l.contains("calls=0")), "{ran:?}");
    }
}

/// From one server to another that refuses RESTORE.
fn without_restore(source: &str, target: &str) -> Story {
    Story::new(
        Endpoint::alone(Setup::new(source)),
        Endpoint::alone(refusing(target, "-restore")),
    )
}

/// Migrates until all has come, and proves it twice.
#[track_caller]
fn arrives(story: &Story) {
    story.plan.run("migrate --json --until caught-up").exits(0);
    story.verify();
    story.judge();
    no_restore_ran(&story.target);
}

#[test]
fn every_core_type_arrives_by_commands() {
    for (from, to) in [
        ("redis-7.0", "redis-6.0"),
        ("redis-6.0", "redis-7.0"),
        ("redis-8.2", "redis-8.2"),
        ("valkey-9.1", "valkey-9.1"),
        ("redis-8.2", "valkey-9.1"),
    ] {
        let Some([source, target]) = need([from, to]) else {
            return;
        };
        let story = without_restore(&source, &target);
        story.fill(1_500);
        let report = story.plan.run("check --json").exits(0).json;
        let found = report["findings"].as_array().into_iter().flatten();
        let found: Vec<_> = found.filter(|f| f["id"] == "restore_refused").collect();
        assert_eq!(found.len(), 1, "{report}");
        assert_eq!(found[0]["severity"], "warning");
        // Nothing is left behind by asking.
        for node in story.target.nodes() {
            assert_eq!(node.run("DBSIZE").int(), Some(0));
        }
        arrives(&story);
    }
}

#[test]
fn a_cluster_gets_it_by_scan_and_by_replication() {
    let Some([source, target]) = need(["redis-8.2", "valkey-9.1"]) else {
        return;
    };
    for mode in ["replica", "scan"] {
        let mut story = Story::new(
            Endpoint::alone(Setup::new(&source).line("notify-keyspace-events AKE")),
            Endpoint::cluster(refusing(&target, "-restore")),
        );
        story.fill(1_500);
        story.plan.set("/source/mode", json!(mode));
        story.plan.set("/databases", json!({ "include": [0] }));
        arrives(&story);
    }
}

/// Lists are pushed to once, however often the migration is killed while it loads and follows.
#[test]
fn nothing_is_applied_twice_when_it_is_killed() {
    let Some([source, target]) = need(["redis-8.2", "redis-8.2"]) else {
        return;
    };
    let story = without_restore(&source, &target);
    story.fill(1_500);
    let options = traffic::Options {
        rate: 400,
        ..story.traffic_options()
    };
    let traffic = traffic::start(&options).expect("the traffic starts");
    for point in [
        "load-begun:700",
        "load-begun:300",
        "stream-command:200",
        "heal-written:1",
        "before-save:2",
    ] {
        let armed = [("KEYFERRY_FAILPOINT", point)];
        let mut running = story.plan.start_with("migrate --json", &armed);
        let began = Instant::now();
        while running.ended().is_none() && began.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(50));
        }
        running.signal("KILL");
        running.wait(LIMIT);
    }
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    let report = traffic.stop();
    story.catch_up_and_stop(running);
    story.verify();
    story.judge();
    story.check_counters(&report);
    no_restore_ran(&story.target);
}

/// Messages that groups wait for and that are deleted or trimmed: XCLAIM takes only what is in the stream.
#[test]
fn deleted_messages_stay_pending() {
    for (from, to) in [
        ("redis-7.0", "redis-7.0"),
        ("redis-7.0", "redis-6.0"),
        ("redis-8.2", "valkey-9.1"),
        ("redis-6.0", "redis-8.2"),
    ] {
        let Some([source, target]) = need([from, to]) else {
            return;
        };
        let story = without_restore(&source, &target);
        let Endpoint::Alone(server) = &story.source else {
            unreachable!("it is one server");
        };
        for key in ["trimmed", "deleted", "both", "emptied", "last", "whole"] {
            for n in 1..=9 {
                server.run(&format!("XADD {key} {n}-1 n {n}"));
            }
            server.run(&format!("XGROUP CREATE {key} g 0"));
            server.run(&format!("XREADGROUP GROUP g alice COUNT 6 STREAMS {key} >"));
            server.run(&format!("XREADGROUP GROUP g bob STREAMS {key} >"));
            server.run(&format!("XGROUP CREATE {key} idle 4-1"));
        }
        server.run("XTRIM trimmed MAXLEN 5");
        server.run("XDEL deleted 3-1 5-1");
        server.run("XTRIM both MAXLEN 7");
        server.run("XDEL both 4-1 8-1");
        server.run("XTRIM emptied MAXLEN 0");
        server.run("XDEL last 9-1");
        arrives(&story);
        let Endpoint::Alone(theirs) = &story.target else {
            unreachable!("it is one server");
        };
        for key in ["trimmed", "deleted", "both", "emptied", "last", "whole"] {
            let pending = |s: &Server| s.run(&format!("XPENDING {key} g - + 100")).items().len();
            assert_eq!((pending(server), pending(theirs)), (9, 9), "{key}");
            let length = |s: &Server| s.run(&format!("XLEN {key}")).int();
            assert_eq!(length(server), length(theirs), "{key}");
        }
    }
}

#[test]
fn what_differs_is_repaired_and_read_by_type() {
    let Some([source, target]) = need(["redis-8.2", "redis-8.2"]) else {
        return;
    };
    let story = Story::new(
        Endpoint::alone(Setup::new(&source)),
        Endpoint::alone(refusing(&target, "-restore -dump")),
    );
    story.fill(800);
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    story
        .plan
        .wait_caught_up(&mut running, Duration::from_secs(60));
    let (Endpoint::Alone(ours), Endpoint::Alone(theirs)) = (&story.source, &story.target) else {
        unreachable!("they are servers");
    };
    ours.run("RPUSH here:list a b c");
    ours.run("HSET here:hash a 1 b 2");
    ours.run("XADD here:stream 1-1 a 1");
    wait_until("it is there", LIMIT, || {
        theirs.run("EXISTS here:list here:hash here:stream").int() == Some(3)
    });
    story.plan.run("verify --json").exits(0);
    theirs.run("RPUSH here:list more");
    theirs.run("HSET here:hash a other");
    theirs.run("DEL here:stream");
    let found = story.plan.run("verify --json").exits(1).json;
    assert_eq!(found["equal"], false, "{found}");
    let repaired = story.plan.run("verify --json --repair").json;
    assert_eq!(repaired["equal"], true, "{repaired}");
    assert_eq!(theirs.run("LLEN here:list").int(), Some(3));
    story.catch_up_and_stop(running);
    story.judge();
    no_restore_ran(&story.target);
}

/// A RESTORE of the source's clients becomes the value's commands.
#[test]
fn a_restore_in_the_stream_becomes_commands() {
    let Some([source, target]) = need(["redis-8.2", "valkey-9.1"]) else {
        return;
    };
    for cluster in [false, true] {
        let setup = refusing(&target, "-restore");
        let story = Story::new(
            Endpoint::alone(Setup::new(&source)),
            match cluster {
                true => Endpoint::cluster(setup),
                false => Endpoint::alone(setup),
            },
        );
        let Endpoint::Alone(server) = &story.source else {
            unreachable!("it is one server");
        };
        let mut client = server.client();
        let fills = [
            "RPUSH list a b 3",
            "SET text some",
            "ZADD zset -0 a inf b 1.1 c",
            "SADD set a 1",
            "HSET hash a 1",
            "XADD stream 1-1 a 1",
            "PFADD hll a b c",
        ];
        for words in fills {
            server.run(words);
        }
        let mut running = story.migrate();
        story.wait_loaded(&mut running);
        for words in fills {
            let key = words.split(' ').nth(1).expect("a key");
            let dump = client.run(&Command::new("DUMP").key(key)).expect("a dump");
            for (ttl, copy) in [("0", "copied"), ("600000", "timed")] {
                let restore = Command::new("RESTORE")
                    .key(format!("{copy}:{key}"))
                    .arg(ttl)
                    .arg(dump.bytes());
                client.expect(&restore).expect("it is restored");
                let again = restore.arg("REPLACE");
                client.expect(&again).expect("it is restored");
            }
        }
        story.catch_up_and_stop(running);
        story.verify();
        assert_eq!(story.judge().keys_b, 21);
        no_restore_ran(&story.target);
    }
}

/// The right is taken away in the middle: the run says so, and the next one goes on by commands.
#[test]
fn a_right_that_goes_in_the_middle_stops_the_run_once() {
    let Some([source, target]) = need(["redis-8.2", "redis-8.2"]) else {
        return;
    };
    let story = Story::new(
        Endpoint::alone(Setup::new(&source)),
        Endpoint::alone(Setup::new(&target)),
    );
    story.fill(500);
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    story
        .plan
        .wait_caught_up(&mut running, Duration::from_secs(60));
    let (Endpoint::Alone(ours), Endpoint::Alone(theirs)) = (&story.source, &story.target) else {
        unreachable!("they are servers");
    };
    theirs.run("ACL SETUSER default -restore");
    let mut client = ours.client();
    ours.run("RPUSH list a b c");
    let dump = client
        .run(&Command::new("DUMP").key("list"))
        .expect("a dump");
    let restore = Command::new("RESTORE")
        .key("again")
        .arg("0")
        .arg(dump.bytes());
    client.expect(&restore).expect("it is restored");
    let ended = running.wait(LIMIT);
    assert_ne!(ended.code, 0);
    ended.says(&["RESTORE", "run the same command again"]);
    story.plan.run("migrate --json --until caught-up").exits(0);
    assert_eq!(theirs.run("LLEN again").int(), Some(3));
    story.verify();
    story.judge();
}

/// What only RESTORE brings is a loss with a name.
#[test]
fn values_that_no_command_writes_are_named() {
    let Some([name]) = need(["modules-8.2"]) else {
        return;
    };
    let source = Server::start(&name);
    let target = refusing(&name, "-restore").start();
    source.run("VADD vectors VALUES 3 0.1 0.2 0.3 a");
    source.run("RPUSH list a b");
    let mut plan = Plan::new(&source.url(), &target.url());
    let ended = plan.run("migrate --json --until caught-up");
    assert_ne!(ended.code, 0);
    ended.says(&["vectors", "refuses RESTORE"]);
    plan.set("/on_loss", json!("list"));
    let done = plan.run("migrate --json --until caught-up --fresh");
    let done = match done.code {
        0 => done,
        // What was loaded before is there already.
        _ => {
            target.run("FLUSHALL");
            plan.run("migrate --json --until caught-up --fresh")
                .exits(0)
        }
    };
    assert_eq!(done.json["skipped"]["module"], 1, "{}", done.stdout);
    assert_eq!(target.run("LRANGE list 0 -1").items().len(), 2);
}

/// A dry run says which way values go; the target's own keys are replaced whole.
#[test]
fn what_stands_there_is_replaced_by_commands() {
    let Some([source, target]) = need(["redis-8.2", "redis-7.0"]) else {
        return;
    };
    let mut story = without_restore(&source, &target);
    story.fill(600);
    let Endpoint::Alone(theirs) = &story.target else {
        unreachable!("it is one server");
    };
    let Endpoint::Alone(ours) = &story.source else {
        unreachable!("it is one server");
    };
    ours.run("RPUSH both a b c");
    theirs.run("SADD both x y");
    theirs.run("SET own 1");
    story.plan.set("/on_existing", json!("replace"));
    let dry = story
        .plan
        .run("migrate --json --dry-run --until caught-up")
        .exits(0)
        .json;
    let ways = &dry["census"]["ways"];
    assert!(ways["rebuilt"].as_u64() > Some(500), "{ways}");
    assert!(ways["as_is"].is_null(), "{ways}");
    story.plan.run("migrate --json --until caught-up").exits(0);
    assert_eq!(theirs.run("LRANGE both 0 -1").items().len(), 3);
    assert_eq!(theirs.run("EXISTS own").int(), Some(1));
    story.verify();
}

/// One endpoint in front of three shards, which does not know the command at all.
#[test]
fn a_proxy_that_knows_no_restore_gets_it_by_commands() {
    let Some([source, target]) = need(["redis-8.2", "redis-8.2"]) else {
        return;
    };
    let mut story = Story::new(
        Endpoint::alone(Setup::new(&source)),
        Endpoint::cluster(Setup::new(&target)),
    );
    story.fill(1_500);
    let nodes: Vec<String> = story.target.nodes().iter().map(Server::address).collect();
    let owner = |slot: usize| (1..=3).position(|n| slot < 16384 * n / 3).unwrap_or(2);
    let rules = Rules {
        password: "behind".to_owned(),
        refused: &[
            "ACL",
            "CLIENT PAUSE",
            "CLUSTER",
            "CONFIG SET",
            "MODULE",
            "MONITOR",
            "MOVE",
            "MULTI",
            "PSYNC",
            "READONLY",
            "REPLCONF",
            "RESTORE",
            "ROLE",
            "SELECT",
            "SYNC",
            "WAIT",
        ],
    };
    let proxy = Proxy::start(&nodes, (0..16384).map(owner).collect(), None, rules);
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    story.plan = Plan::new(&story.source.url(), &url);
    story.plan.set("/target/topology", json!("proxy"));
    story
        .plan
        .set("/target/password", json!({ "env": "BEHIND" }));
    story.plan.set("/databases", json!({ "include": [0] }));
    story.plan.environment = vec![("BEHIND".to_owned(), "behind".to_owned())];
    arrives(&story);
}

/// The old source refuses RESTORE as well: what was written meanwhile comes back by commands.
#[test]
fn the_way_back_goes_by_commands() {
    let Some([source, target]) = need(["redis-8.2", "redis-8.2"]) else {
        return;
    };
    let old = refusing(&source, "-restore").line("repl-backlog-size 64mb");
    let new = refusing(&target, "-restore").line("repl-backlog-size 64mb");
    let it = Move::new(Endpoint::alone(old), Endpoint::alone(new), json!({}));
    it.story.fill(600);
    it.plan().run("migrate --until caught-up --json").exits(0);
    let clients = it.clients(300);
    it.plan().run("cutover --json").exits(0);
    assert_eq!(it.at(), "target");
    let options = traffic::Options {
        rate: 300,
        seconds: 60,
        ..traffic::Options::new(&it.story.target.url(), false)
    };
    let more = traffic::start(&options).expect("traffic on the new side");
    std::thread::sleep(Duration::from_secs(2));
    more.stop();
    it.plan().run("rollback --json").exits(0);
    assert_eq!(it.at(), "source");
    std::thread::sleep(Duration::from_millis(300));
    let report = clients.stop();
    it.exact(&it.story.source, &report);
    no_restore_ran(&it.story.source);
    no_restore_ran(&it.story.target);
}

/// The journey at its full size, and what RESTORE would have cost.
#[test]
fn two_hundred_thousand_keys() {
    if !full() {
        return crate::support::skip("takes minutes: KEYFERRY_FULL=1 runs it");
    }
    let Some([source, target]) = need(["redis-8.2", "redis-8.2"]) else {
        return;
    };
    let source = Endpoint::alone(Setup::new(&source).line("notify-keyspace-events AKE"));
    let mut story = Story::new(source, Endpoint::alone(Setup::new(&target)));
    story.fill(200_000);
    for cluster in [false, true] {
        for mode in ["replica", "scan"] {
            for denied in ["", "-restore"] {
                let setup = refusing(&target, denied);
                story.target = match cluster {
                    true => Endpoint::Cluster(Cluster::with(&setup, 3, 0)),
                    false => Endpoint::alone(setup),
                };
                story.plan = Plan::new(&story.source.url(), &story.target.url());
                story.plan.set("/source/mode", json!(mode));
                if cluster {
                    story.plan.set("/databases", json!({ "include": [0] }));
                }
                let began = Instant::now();
                let done = story.plan.run("migrate --json --until caught-up").exits(0);
                println!(
                    "cluster {cluster}, {mode}, {}: {:?}, {} keys/s, peak {} MiB",
                    if denied.is_empty() {
                        "RESTORE"
                    } else {
                        "commands"
                    },
                    began.elapsed(),
                    done.json["keys_per_s"],
                    done.json["peak_rss_bytes"].as_u64().unwrap_or(0) >> 20,
                );
                story.verify();
                story.judge();
                if !denied.is_empty() {
                    no_restore_ran(&story.target);
                }
            }
        }
    }
}
