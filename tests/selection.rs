//! What is moved and under which name: renamed prefixes, keys by their expiry, and replicas that are read.

use crate::support::compare::{Rules, compare};
use crate::support::keyferry::Plan;
use crate::support::server::{Server, Setup};
use crate::support::story::{Endpoint, Story};
use crate::support::wire::{Client, Command};
use crate::support::{need, wait_until};
use serde_json::json;
use std::time::Duration;

/// Every key of a server.
fn keys(server: &Server) -> Vec<Vec<u8>> {
    let reply = server.run("KEYS *");
    reply.items().iter().map(|k| k.bytes().to_vec()).collect()
}

/// Under traffic to a cluster with another prefix for all keys, and from there back to the old names.
fn there_and_back(mode: &str) {
    let Some([name]) = need(["any"]) else { return };
    let mut story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.plan.set("/source/mode", json!(mode));
    story.plan.set("/rename", json!({ "": "moved:" }));
    story.fill(2_000);
    let (_, verified) = story.carry(Duration::from_secs(2));
    let moved = verified.json["keys_target"].as_u64().unwrap_or(0);
    assert!(moved > 2_000, "{}", verified.stdout);
    for node in story.target.nodes() {
        let other = keys(node).into_iter().find(|k| !k.starts_with(b"moved:"));
        assert_eq!(other, None);
    }
    // What is changed behind its back is told by the source's name.
    let readable = |k: &String| k.bytes().all(|b| b.is_ascii_graphic());
    let names = keys(&story.target.nodes()[0]).into_iter();
    let victim = (names
        .filter_map(|k| String::from_utf8(k).ok())
        .find(readable))
    .expect("a name");
    story.target.nodes()[0].run(&format!("DEL {victim}"));
    let verified = story.plan.run("verify --json").exits(1);
    assert_eq!(
        verified.json["missing"][0]["key"],
        victim.trim_start_matches("moved:")
    );
    story.plan.run("migrate --json --until caught-up").exits(0);
    story.plan.run("verify --repair --json");
    story.plan.run("migrate --json --until caught-up").exits(0);
    story.plan.run("verify --json").exits(0);
    let third = Server::start(&name);
    let mut back = Plan::new(&story.target.url(), &third.url());
    back.set("/rename", json!({ "moved:": "" }));
    back.run("migrate --json --until caught-up").exits(0);
    back.run("verify --json").exits(0);
    let mut a = story.source.side();
    let mut b = crate::support::side::Side::open(&third.url(), false).expect("it answers");
    let found = compare(&mut a, &mut b, &Rules::default()).unwrap_or_else(|e| panic!("{e}"));
    assert!(found.equal(), "{found}");
}

#[test]
fn all_keys_get_a_prefix_and_lose_it_again() {
    there_and_back("replica");
}

#[test]
fn all_keys_get_a_prefix_by_scan() {
    there_and_back("scan");
}

/// `old:` becomes `new:`, some keys of which are there already.
#[test]
fn names_that_are_taken_are_told_before_the_start() {
    let Some([name]) = need(["any"]) else { return };
    let (source, target) = (Server::start(&name), Server::start(&name));
    for key in ["old:1", "old:2", "new:1", "other"] {
        source.run(&format!("SET {key} {key}"));
    }
    let mut plan = Plan::new(&source.url(), &target.url());
    plan.set("/rename", json!({ "old:": "new:" }));
    let checked = plan.run("check").exits(1);
    assert!(checked.stdout.contains("new:1"), "{}", checked.stdout);
    plan.run("migrate --json --until caught-up")
        .exits(1)
        .says(&["new:1"]);
    assert_eq!(target.run("DBSIZE").int(), Some(0));
    // Listed as lost, or left out.
    plan.set("/on_loss", json!("list"));
    let outcome = plan
        .run("migrate --json --until caught-up --ignore rename_conflict")
        .exits(0);
    assert_eq!(outcome.json["skipped"]["name"], 1, "{}", outcome.stdout);
    assert_eq!(target.run("GET new:1").text(), "old:1");
    plan.run("verify --json").exits(0);
    plan.set("/on_loss", json!("fail"));
    plan.set("/filter", json!({ "exclude": ["new:*"] }));
    target.run("FLUSHALL");
    let mut running = plan.start("migrate --json --fresh");
    plan.wait_status(&mut running, "loaded", Duration::from_secs(60), |s| {
        s["snapshot"]["done"] == true
    });
    for line in [
        "RENAME old:2 old:3",
        "SET new:4 x",
        "MSET old:5 a new:5 b other 5",
        "LPUSH old:list 3 1 2",
        "SORT old:list STORE old:sorted",
        "RENAME new:4 old:4",
        "RENAME old:1 new:7",
        "SUNIONSTORE old:u old:none new:none",
        "BITOP NOT old:6 other",
    ] {
        assert!(!source.run(line).is_error(), "{line}");
    }
    // Compared while it runs: the comparison waits for what the source had written by then.
    plan.run("verify --json").exits(0);
    running.interrupt();
    running.wait(Duration::from_secs(30)).exits(130);
    plan.run("verify --json").exits(0);
    let mut found: Vec<String> = (keys(&target).iter())
        .map(|k| String::from_utf8_lossy(k).into_owned())
        .collect();
    found.sort();
    assert_eq!(
        found,
        [
            "new:3",
            "new:4",
            "new:5",
            "new:6",
            "new:list",
            "new:sorted",
            "other"
        ]
    );
    assert_eq!(target.run("LRANGE new:sorted 0 -1").items().len(), 3);
    assert_eq!(target.run("GET new:5").text(), "a");
}

fn by_expiry(mode: &str, wanted: &str) {
    let Some([name]) = need(["any"]) else { return };
    let mut story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.plan.set("/source/mode", json!(mode));
    story.plan.set("/filter", json!({ "expiry": wanted }));
    story.fill(2_000);
    let (_, verified) = story.carry(Duration::from_secs(2));
    assert!(verified.json["keys_target"].as_u64() > Some(100));
    let mut source = Client::open(&story.source.url()).expect("it answers");
    let has_expiry = |client: &mut Client, key: &[u8]| {
        let reply = client.run(&Command::new("PTTL").key(key));
        reply.expect("PTTL").int()
    };
    let mut there = 0;
    for node in story.target.nodes() {
        for key in keys(node) {
            there += 1;
            let ttl = has_expiry(&mut source, &key);
            let right = match wanted {
                "with" => ttl != Some(-1),
                // The last field of a hash may have expired since the look at the names.
                _ => ttl == Some(-1) || ttl == Some(-2),
            };
            assert!(right, "{} has {ttl:?}", key.escape_ascii());
        }
    }
    assert!(there > 100, "{there}");
    // A hash whose last field expires is gone from one side before it is from the other.
    wait_until(
        "all that is wanted is there",
        Duration::from_secs(20),
        || {
            let at_target: usize = story.target.nodes().iter().map(|n| keys(n).len()).sum();
            let at_source = keys(&story.source.nodes()[0]);
            let wanted_there = at_source.iter().filter(|key| {
                let ttl = has_expiry(&mut source, key);
                match wanted {
                    "with" => ttl.is_some_and(|t| t > 1_000),
                    _ => ttl == Some(-1),
                }
            });
            at_target >= wanted_there.count()
        },
    );
}

#[test]
fn only_keys_with_an_expiry() {
    by_expiry("replica", "with");
}

#[test]
fn only_keys_without_an_expiry_by_scan() {
    by_expiry("scan", "without");
}

/// A source's replicas bear the reading: of a scan and of a verification.
#[test]
fn replicas_are_read() {
    let Some([name]) = need(["any"]) else { return };
    let master = Setup::new(&name).line("notify-keyspace-events KEA").start();
    let replica = Setup::new(&name)
        .line("notify-keyspace-events KEA")
        .replica_of(&master)
        .start();
    let mut story = Story::new(
        Endpoint::Alone(Box::new(master)),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.plan.set("/source/mode", json!("scan"));
    story.plan.set("/source/read_from", json!("replica"));
    story.fill(2_000);
    let calls = |server: &Server, command: &str| {
        let text = server.run("INFO commandstats").text();
        let line = text.lines().find_map(|l| {
            let rest = l.strip_prefix(&format!("cmdstat_{command}:calls="))?;
            rest.split(',').next()?.parse::<u64>().ok()
        });
        line.unwrap_or(0)
    };
    story.carry(Duration::from_secs(2));
    story.judge();
    let master = &story.source.nodes()[0];
    // One is the probe's own key.
    assert!(calls(master, "dump") <= 1);
    assert!(calls(&replica, "dump") > 2_000);
    // Without a replica the master is read.
    drop(replica);
    crate::support::wait_until("the replica is gone", Duration::from_secs(30), || {
        master.info("replication", "connected_slaves") == 0
    });
    story.plan.run("verify --json --fresh").exits(0);
}
