//! Source and target of unlike versions, or a target that is not ready: what the one sends and the other refuses.

use crate::support::cluster::Cluster;
use crate::support::far::{Far, Line};
use crate::support::keyferry::{Plan, Running};
use crate::support::server::{Server, Setup};
use crate::support::story::Endpoint;
use crate::support::wire::Command;
use crate::support::{need, wait_until};
use serde_json::json;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

#[track_caller]
fn follow(plan: &Plan) -> Running {
    let mut running = plan.start("migrate --json");
    plan.wait_status(&mut running, "loaded", SOON, |s| s["phase"] == "stream");
    running
}

/// Waits until what the source has written is applied.
#[track_caller]
fn catch_up(plan: &Plan, running: &mut Running, source: &Server) {
    let written = source.info("replication", "master_repl_offset");
    plan.wait_status(running, "caught up", SOON, |s| {
        s["stream"]["applied_offset"].as_i64() >= Some(written)
    });
}

#[track_caller]
fn stop(plan: &Plan, mut running: Running, source: &Server) {
    catch_up(plan, &mut running, source);
    running.interrupt();
    running.wait(SOON).exits(130);
}

fn library(name: &str, function: &str, answer: &str) -> Command {
    let code = format!(
        "#!lua name={name}\nredis.register_function('{function}', function() return '{answer}' end)"
    );
    Command::new("FUNCTION LOAD REPLACE").arg(code)
}

#[track_caller]
fn load(server: &Server, library: &Command) {
    server.client().expect(library).expect("it is loaded");
}

/// The names of a server's libraries, and what calling `f` answers.
fn libraries(server: &Server) -> (Vec<String>, String) {
    let list = server.run("FUNCTION LIST");
    let name = |library: &crate::support::wire::Value| library.items()[1].text();
    let mut names: Vec<String> = list.items().iter().map(name).collect();
    names.sort();
    let called = server.client().run(&Command::new("FCALL f 0"));
    (names, called.expect("it answers").text())
}

#[test]
fn restored_libraries_are_those_of_the_source() {
    for (from, to) in [
        ("redis-7.0", "redis-7.0"),
        ("redis-8.0", "valkey-8.1"),
        ("valkey-9.1", "redis-8.0"),
    ] {
        let Some([from, to]) = need([from, to]) else {
            continue;
        };
        let (source, target) = (Server::start(&from), Endpoint::cluster(Setup::new(&to)));
        let plan = Plan::new(&source.url(), &target.url());
        let running = follow(&plan);
        load(&source, &library("a", "f", "first"));
        let first = source.run("FUNCTION DUMP");
        source.run("FUNCTION FLUSH");
        // Another library, with the same function.
        load(&source, &library("b", "f", "second"));
        let mut running = running;
        catch_up(&plan, &mut running, &source);
        for node in target.nodes() {
            assert_eq!(libraries(node), (vec!["b".into()], "second".into()));
        }
        let restore = Command::new("FUNCTION RESTORE")
            .arg(first.bytes())
            .arg("FLUSH");
        source.client().expect(&restore).expect("it is restored");
        stop(&plan, running, &source);
        for node in target.nodes() {
            assert_eq!(libraries(node), (vec!["a".into()], "first".into()));
        }
        plan.run("verify --json").exits(0);
    }
}

#[test]
fn libraries_that_differ_are_repaired_and_deleted_ones_go() {
    let Some([name]) = need(["redis-7.0"]) else {
        return;
    };
    let source = Setup::new(&name).line("repl-backlog-size 16kb").start();
    let target = Server::start(&name);
    load(&source, &library("a", "f", "first"));
    load(&source, &library("b", "g", "second"));
    let plan = Plan::new(&source.url(), &target.url());
    let running = follow(&plan);
    target.run("FUNCTION DELETE b");
    load(&target, &library("a", "f", "changed"));
    plan.run("verify --json --repair").exits(1);
    wait_until("they are repaired", SOON, || {
        libraries(&target) == (vec!["a".into(), "b".into()], "first".into())
    });
    plan.run("verify --json").exits(0);
    stop(&plan, running, &source);
    // For longer than the backlog nobody listens.
    source.run("FUNCTION DELETE b");
    let long = "x".repeat(1_000);
    for n in 0..3_000 {
        let set = Command::new("SET")
            .key(format!("k{}", n % 50))
            .arg(long.as_str());
        source.client().expect(&set).expect("it is set");
    }
    plan.run("migrate --json --until caught-up").exits(0);
    assert_eq!(libraries(&target).0, ["a"]);
    plan.run("verify --json").exits(0);
}

#[test]
fn what_a_copy_loses_is_listed_as_well() {
    for (from, to) in [("redis-8.0", "redis-7.0"), ("valkey-9.1", "valkey-8.1")] {
        let Some([from, to]) = need([from, to]) else {
            continue;
        };
        let (source, target) = (Server::start(&from), Server::start(&to));
        let mut plan = Plan::new(&source.url(), &target.url());
        plan.set("/on_loss", json!("list"));
        let mut running = follow(&plan);
        source.run("HSET h f v g w");
        source.run("HEXPIRE h 1000 FIELDS 1 f");
        catch_up(&plan, &mut running, &source);
        source.run("COPY h copied");
        source.run("RENAME h renamed");
        source.run("SET moved:to 1");
        stop(&plan, running, &source);
        assert_eq!(target.run("HGETALL copied").items().len(), 4);
        assert_eq!(target.run("HGETALL renamed").items().len(), 4);
        let verified = plan.run("verify --json").exits(0);
        assert!(
            verified.json["known_losses"].as_u64() >= Some(2),
            "{}",
            verified.stdout
        );
    }
}

#[test]
fn a_loss_is_known_as_soon_as_it_is_a_difference() {
    let Some([from, to]) = need(["redis-8.0", "valkey-8.1"]) else {
        return;
    };
    let (source, target) = (Server::start(&from), Server::start(&to));
    let mut plan = Plan::new(&source.url(), &target.url());
    plan.set("/on_loss", json!("list"));
    let running = follow(&plan);
    for n in 0..20 {
        source.run(&format!("VADD vectors:{n} VALUES 3 1 2 3 a"));
        plan.run("verify --json").exits(0);
    }
    stop(&plan, running, &source);
}

#[test]
fn commands_that_the_target_does_not_know_end_no_run() {
    let cases: [(&str, &str, &[&str]); 3] = [
        ("redis-6.2", "redis-6.0", &["XADD s# NOMKSTREAM * f v"]),
        (
            "redis-8.0",
            "redis-7.0",
            &["HSETEX h# FIELDS 1 f v", "XADD s# * f v", "INCR n#"],
        ),
        (
            "valkey-9.1",
            "redis-8.0",
            &["HSETEX h# FIELDS 1 f v", "XADD s# * f v", "SET n# 1"],
        ),
    ];
    for (from, to, lines) in cases {
        let Some([from, to]) = need([from, to]) else {
            continue;
        };
        let (source, target) = (Server::start(&from), Server::start(&to));
        let plan = Plan::new(&source.url(), &target.url());
        for n in 0..200 {
            source.run(&format!("XADD s{n} 1-1 f v"));
        }
        let running = follow(&plan);
        let mut client = source.client();
        let (began, mut sent) = (Instant::now(), 0u32);
        // Without a rest, in which what has been refused would be forgotten.
        while began.elapsed() < Duration::from_secs(8) {
            for _ in 0..30 {
                sent += 1;
                // One of them comes again soon.
                let n = if sent % 40 == 0 { 0 } else { sent % 200 };
                for line in lines {
                    client.push(&Command::new(&line.replace('#', &n.to_string())));
                }
            }
            client.flush().expect("it is sent");
            let mut answers = client.replies().expect("answers").into_iter();
            let refused = answers.find(|r| r.is_error());
            assert!(refused.is_none(), "{refused:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        stop(&plan, running, &source);
        plan.run("verify --json").exits(0);
    }
}

/// One node of the target hears of a flush when its link is joined again; the others have gone on meanwhile.
#[test]
fn a_flush_that_one_node_has_missed_takes_nothing_that_came_after_it() {
    let Some([name]) = need(["any"]) else { return };
    let source = Server::start(&name);
    let target = Cluster::with(&Setup::new(&name), 3, 0);
    let lines: Vec<Line> = (0..3).map(|_| Line::default()).collect();
    let proxies: Vec<Far> = (target.nodes().iter().zip(&lines))
        .map(|(node, line)| Far::with(&node.address(), line.clone()))
        .collect();
    let mapped = target.nodes().iter().map(Server::address);
    let map: serde_json::Map<String, serde_json::Value> = mapped
        .zip(proxies.iter().map(|far| json!(far.address())))
        .collect();
    let mut plan = Plan::new(&source.url(), &proxies[0].url());
    plan.set("/target/address_map", json!(map));
    for n in 0..300 {
        source.run(&format!("SET old{n} 1"));
    }
    source.run("SET timed 1 PX 50000");
    let mut running = follow(&plan);
    // The release of held expiries waits for every node: until it is over, none may fall silent.
    let ask = Command::new("PTTL timed");
    // The others answer MOVED.
    let ttl = |node: &Server| {
        node.client()
            .run(&ask)
            .ok()
            .and_then(|ms| ms.int())
            .unwrap_or(-2)
    };
    wait_until("expiries are released", SOON, || {
        (target.nodes().iter().map(ttl)).any(|ms| (1..=50_000).contains(&ms))
    });
    plan.wait_caught_up(&mut running, SOON);
    lines[1].silence(true);
    source.run("FLUSHALL");
    for n in 0..300 {
        source.run(&format!("SET new{n} 1"));
    }
    let has = |node: &Server, what: &str| node.run(&format!("KEYS {what}*")).items().len();
    wait_until("the others have gone on", SOON, || {
        if let Some(code) = running.ended() {
            panic!("it ended ({code}): {}", running.stderr_now());
        }
        [0, 2].iter().all(|n| has(&target.nodes()[*n], "new") > 50)
    });
    lines[1].cut();
    lines[1].silence(false);
    stop(&plan, running, &source);
    plan.run("verify --json").exits(0);
    let all = |what: &str| target.nodes().iter().map(|n| has(n, what)).sum::<usize>();
    assert_eq!((all("old"), all("new")), (0, 300));
}

/// SET … PXAT came with Redis 6.2: an older target gets two commands, not an error for each.
#[test]
fn expiries_reach_a_target_without_pxat() {
    let Some([six, seven]) = need(["redis-6.0", "redis-7.0"]) else {
        return;
    };
    for from in [&six, &seven] {
        let (source, target) = (Server::start(from), Server::start(&six));
        let plan = Plan::new(&source.url(), &target.url());
        let mut running = follow(&plan);
        source.run("SET first 1 EX 1000");
        catch_up(&plan, &mut running, &source);
        source.run("SET k 1 EX 1000");
        source.run("SETEX l 1000 1");
        let mut client = source.client();
        for line in ["MULTI", "SET m 1 PX 1000000", "SET n 1", "EXEC"] {
            client.words(line).expect("it answers");
        }
        stop(&plan, running, &source);
        for key in ["first", "k", "l", "m"] {
            let left = target.run(&format!("PTTL {key}")).int();
            assert!(left > Some(900_000), "{key}: {left:?}");
        }
        assert_eq!(target.run("PTTL n").int(), Some(-1));
        plan.run("verify --json").exits(0);
        // Nothing was refused, so nothing had to be read.
        let healed = plan.status()["healed_keys"].as_u64();
        assert_eq!(healed, Some(0));
    }
}

#[test]
fn a_cluster_that_is_down_for_a_while_is_waited_for() {
    let Some([name]) = need(["redis-7.0"]) else {
        return;
    };
    let source = Server::start(&name);
    let target = Cluster::with(&Setup::new(&name), 3, 0);
    let plan = Plan::new(&source.url(), &target.url());
    let running = follow(&plan);
    // A slot without a master is enough.
    for node in target.nodes() {
        node.run("CLUSTER DELSLOTS 0");
    }
    let began = Instant::now();
    let mut client = source.client();
    while began.elapsed() < Duration::from_secs(7) {
        for line in ["SET k 5 PX 600000", "INCR k", "DEL k", "SET l 1 PX 600000"] {
            client.push(&Command::new(line));
        }
        client.flush().expect("it is sent");
        client.replies().expect("answers");
        std::thread::sleep(Duration::from_millis(1));
    }
    target.nodes()[0].run("CLUSTER ADDSLOTS 0");
    stop(&plan, running, &source);
    plan.run("verify --json").exits(0);
}
