//! What the plan and the target do not admit stays out, by whichever way it comes: databases, own keys, filters.

use crate::support::keyferry::{Outcome, Plan, Running};
use crate::support::server::{Server, Setup};
use crate::support::story::Endpoint;
use crate::support::wire::{Command, Value};
use crate::support::{need, wait_until};
use serde_json::json;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// A migration under way between two servers.
struct Followed {
    source: Server,
    target: Endpoint,
    plan: Plan,
    running: Option<Running>,
}

impl Followed {
    fn new(source: Setup, target: Endpoint) -> Followed {
        let source = source.start();
        let plan = Plan::new(&source.url(), &target.url());
        Followed {
            source,
            target,
            plan,
            running: None,
        }
    }

    fn set(mut self, pointer: &str, value: serde_json::Value) -> Followed {
        self.plan.set(pointer, value);
        self
    }

    /// Starts it and waits until the stream is followed.
    #[track_caller]
    fn follow(&mut self) {
        let mut running = self.plan.start("migrate --json");
        self.plan
            .wait_status(&mut running, "loaded", SOON, |s| s["phase"] == "stream");
        self.plan.wait_caught_up(&mut running, SOON);
        self.running = Some(running);
    }

    /// Runs lines in a database of the source.
    #[track_caller]
    fn source(&self, db: u32, lines: &[&str]) {
        run(&self.source, db, lines);
    }

    #[track_caller]
    fn target(&self, db: u32, line: &str) -> Value {
        let nodes = self.target.nodes();
        let mut answers = nodes.iter().map(|node| run(node, db, &[line]));
        let answer = answers.find(|a| !a.text().starts_with("MOVED"));
        answer.expect("a node has the slot")
    }

    #[track_caller]
    fn keys(&self, db: u32) -> Vec<String> {
        let listed = |node: &Server| run(node, db, &["KEYS *"]).items().to_vec();
        let all = self.target.nodes().iter().flat_map(listed);
        let mut keys: Vec<String> = all.map(|k| k.text()).collect();
        keys.sort();
        keys
    }

    #[track_caller]
    fn caught_up(&mut self) {
        let written = self.source.info("replication", "master_repl_offset");
        let running = self.running.as_mut().expect("it runs");
        let scans = self.plan.json["source"]["mode"] == "scan";
        self.plan.wait_status(running, "caught up", SOON, |status| {
            scans || status["stream"]["applied_offset"].as_i64() >= Some(written)
        });
    }

    /// Waits until all is applied, and ends it.
    #[track_caller]
    fn stop(&mut self) {
        self.caught_up();
        let running = self.running.take().expect("it runs");
        running.interrupt();
        running.wait(SOON).exits(130);
    }

    #[track_caller]
    fn equal(&self) -> Outcome {
        self.plan.run("verify --json").exits(0)
    }
}

/// Runs lines in a database; the answer of the last one.
#[track_caller]
fn run(server: &Server, db: u32, lines: &[&str]) -> Value {
    let mut client = server.client();
    if db > 0 {
        client.words(&format!("SELECT {db}")).expect("a database");
    }
    let mut last = Value::Nil;
    for line in lines {
        last = client.run(&Command::new(line)).expect("it answers");
        let elsewhere = last.text().starts_with("MOVED");
        assert!(!last.is_error() || elsewhere, "{line}: {}", last.text());
    }
    last
}

fn few_databases(name: &str) -> Endpoint {
    Endpoint::alone(Setup::new(name).line("databases 4"))
}

/// Targets that lack the source's database 9: a cluster, and a server of four databases.
fn without_nine(name: &str) -> [Endpoint; 2] {
    [Endpoint::cluster(Setup::new(name)), few_databases(name)]
}

#[test]
fn a_flush_of_a_database_that_the_target_lacks_changes_nothing() {
    let Some([name]) = need(["any"]) else { return };
    for target in without_nine(&name) {
        let mut it = Followed::new(Setup::new(&name), target);
        for n in 0..50 {
            it.source(0, &[&format!("SET k{n} {n}")]);
        }
        it.follow();
        it.source(9, &["FLUSHDB"]);
        it.source(0, &["SET after 1"]);
        it.stop();
        assert_eq!(it.keys(0).len(), 51);
        it.equal();
    }
}

#[test]
fn transactions_moves_and_copies_into_a_missing_database_are_losses() {
    let Some([name, copies]) = need(["any", "redis-7.0"]) else {
        return;
    };
    for (name, target) in (without_nine(&name).into_iter().map(|t| (&name, t)))
        .chain(without_nine(&copies).into_iter().map(|t| (&copies, t)))
    {
        let mut it = Followed::new(Setup::new(name), target).set("/on_loss", json!("list"));
        it.source(0, &["SET k1 zero", "SET k2 zero", "SET m zero"]);
        it.follow();
        it.source(9, &["MULTI", "SET k1 nine", "SET k2 nine", "EXEC"]);
        it.source(
            9,
            &["SET k1 nine", "DEL k2", "MSET k1 9 k2 9", "EXPIRE k1 1000"],
        );
        it.source(0, &["MOVE m 9"]);
        if *name == copies {
            it.source(0, &["COPY k1 k2 DB 9 REPLACE", "COPY k1 c DB 9"]);
        }
        it.source(0, &["SET last 1"]);
        it.stop();
        assert_eq!(it.keys(0), ["k1", "k2", "last"]);
        assert_eq!(it.target(0, "GET k1").text(), "zero");
        assert_eq!(it.target(0, "GET k2").text(), "zero");
        it.equal();
    }
}

#[test]
fn a_transaction_in_a_missing_database_stops_a_plan_that_loses_nothing() {
    let Some([name]) = need(["any"]) else { return };
    let mut it = Followed::new(Setup::new(&name), few_databases(&name));
    it.source(0, &["SET k1 zero"]);
    it.follow();
    it.source(9, &["MULTI", "SET k1 nine", "SET k2 nine", "EXEC"]);
    let ended = it.running.take().expect("it runs").wait(SOON).exits(3);
    ended.says(&["database 9", "databases.map"]);
    assert_eq!(it.keys(0), ["k1"]);
    assert_eq!(it.target(0, "GET k1").text(), "zero");
}

#[test]
fn scans_keep_to_the_databases_of_the_target() {
    let Some([name]) = need(["any"]) else { return };
    for target in without_nine(&name) {
        let mut it = Followed::new(Setup::new(&name), target)
            .set("/source/mode", json!("scan"))
            .set("/on_loss", json!("list"));
        it.source(0, &["SET k1 zero"]);
        it.source(9, &["SET k3 nine"]);
        it.plan.run("migrate --json --until caught-up").exits(0);
        it.follow();
        it.source(9, &["SET k1 nine"]);
        it.source(0, &["SET k2 zero"]);
        wait_until("k2 is there", SOON, || {
            it.keys(0).contains(&"k2".to_owned())
        });
        it.stop();
        assert_eq!(it.keys(0), ["k1", "k2"]);
        assert_eq!(it.target(0, "GET k1").text(), "zero");
        it.equal();
    }
}

#[test]
fn databases_of_a_cluster_are_used_where_it_has_them() {
    let Some([name]) = need(["valkey-9.1"]) else {
        return;
    };
    let cluster = Endpoint::cluster(Setup::new(&name).line("cluster-databases 16"));
    let mut it = Followed::new(Setup::new(&name), cluster);
    it.source(1, &["SET k1 one", "HSET h f v", "SADD s a b"]);
    it.source(0, &["SET k1 zero"]);
    it.plan.run("check --json").exits(0);
    it.follow();
    it.source(
        3,
        &[
            "SET k1 three",
            "INCR n",
            "MULTI",
            "SET a 1",
            "SET b 2",
            "EXEC",
        ],
    );
    it.source(1, &["RENAME s t", "SINTERSTORE u t t"]);
    it.source(0, &["SET k2 zero", "COPY k2 k1 DB 1 REPLACE"]);
    it.stop();
    assert_eq!(it.target(1, "GET k1").text(), "zero");
    assert_eq!(it.target(3, "GET k1").text(), "three");
    assert_eq!(it.target(0, "GET k1").text(), "zero");
    let verified = it.equal();
    assert_eq!(verified.json["keys_source"], 10, "{}", verified.stdout);
    // A difference in another database is seen.
    let node = (it.target.nodes().iter())
        .find(|n| !run(n, 3, &["SET k1 other"]).text().starts_with("MOVED"));
    assert!(node.is_some());
    it.plan.run("verify --json").exits(1);
}

#[test]
fn own_keys_are_kept_from_transactions() {
    let Some([name]) = need(["redis-7.0"]) else {
        return;
    };
    let source = Setup::new(&name).line("enable-debug-command yes");
    let mut it = Followed::new(source, Endpoint::alone(Setup::new(&name)))
        .set("/on_existing", json!("skip"));
    for key in ["own", "gone", "timed"] {
        run(&it.target.nodes()[0], 0, &[&format!("SET {key} target")]);
    }
    it.follow();
    it.source(0, &["MULTI", "SET own theirs", "SET other 1", "EXEC"]);
    it.source(0, &["MULTI", "SET gone 1", "DEL gone", "EXEC"]);
    // An expiry that a write finds out is replicated in a transaction with that write.
    it.source(0, &["DEBUG SET-ACTIVE-EXPIRE 0", "SET timed s PX 50"]);
    std::thread::sleep(Duration::from_millis(300));
    it.source(0, &["APPEND timed X", "APPEND own X", "SET after 1"]);
    it.source(0, &["DEBUG SET-ACTIVE-EXPIRE 1"]);
    it.stop();
    assert_eq!(it.keys(0), ["after", "gone", "other", "own", "timed"]);
    for key in ["own", "gone", "timed"] {
        assert_eq!(
            it.target(0, &format!("GET {key}")).text(),
            "target",
            "{key}"
        );
    }
    it.equal();
}

#[test]
fn groups_of_own_streams_stay_where_they_are() {
    let Some([seven, six]) = need(["redis-7.0", "redis-6.2"]) else {
        return;
    };
    for (from, to) in [(&seven, &seven), (&six, &seven)] {
        let mut it = Followed::new(Setup::new(from), Endpoint::alone(Setup::new(to)))
            .set("/on_existing", json!("skip"));
        let stream = ["XADD own 1-1 f v", "XADD own 2-1 f v", "XADD own 3-1 f v"];
        let node = &it.target.nodes()[0];
        for server in [&it.source, node] {
            run(server, 0, &stream);
            run(server, 0, &["XGROUP CREATE own g 0"]);
        }
        run(node, 0, &["XREADGROUP GROUP g c COUNT 1 STREAMS own >"]);
        it.follow();
        for _ in 0..2 {
            it.source(0, &["XREADGROUP GROUP g c COUNT 1 STREAMS own >"]);
        }
        it.source(0, &["SET after 1"]);
        std::thread::sleep(Duration::from_millis(1_500));
        it.stop();
        let read = it.target(0, "XREADGROUP GROUP g c COUNT 1 STREAMS own >");
        let next = read.items()[0].items()[1].items()[0].items()[0].text();
        assert_eq!(next, "2-1", "consumers skip messages");
    }
}

#[test]
fn a_flush_leaves_the_targets_own_keys() {
    let Some([name]) = need(["any"]) else { return };
    let mut it = Followed::new(Setup::new(&name), Endpoint::alone(Setup::new(&name)))
        .set("/on_existing", json!("replace"));
    let node = &it.target.nodes()[0];
    run(
        node,
        0,
        &[
            "SET only-here target",
            "SET both target",
            "SET later target",
        ],
    );
    run(node, 3, &["SET three target"]);
    it.source(0, &["SET both source", "SET moved source"]);
    it.source(3, &["SET theirs source"]);
    it.follow();
    it.source(9, &["FLUSHDB"]);
    it.source(0, &["SET after 1"]);
    it.caught_up();
    assert_eq!(it.keys(0), ["after", "both", "later", "moved", "only-here"]);
    it.source(0, &["SET later source"]);
    it.stop();
    it.equal();
    // What was the target's own and has been replaced since is gone with the source's, also after a restart.
    it.follow();
    it.source(0, &["FLUSHDB"]);
    it.caught_up();
    assert_eq!(it.keys(0), ["only-here"]);
    assert_eq!(it.keys(3), ["theirs", "three"]);
    it.source(3, &["FLUSHALL"]);
    it.stop();
    assert_eq!(it.keys(0), ["only-here"]);
    assert_eq!(it.keys(3), ["three"]);
    it.equal();
}

#[test]
fn what_the_source_creates_later_replaces_the_targets_own_key_whole() {
    let Some([name]) = need(["any"]) else { return };
    let mut it = Followed::new(Setup::new(&name), Endpoint::alone(Setup::new(&name)))
        .set("/on_existing", json!("replace"));
    let node = &it.target.nodes()[0];
    run(
        node,
        0,
        &[
            "SET own target",
            "RPUSH l t",
            "SADD members t",
            "SET read target",
        ],
    );
    it.follow();
    it.source(0, &["APPEND own X", "RPUSH l 1"]);
    it.source(0, &["MULTI", "SADD members s", "SADD other s", "EXEC"]);
    it.source(0, &["SUNIONSTORE union members nothing", "APPEND own Y"]);
    it.stop();
    assert_eq!(it.target(0, "GET own").text(), "XY");
    assert_eq!(it.target(0, "LRANGE l 0 -1").items().len(), 1);
    assert_eq!(it.target(0, "SMEMBERS members").items().len(), 1);
    assert_eq!(it.target(0, "GET read").text(), "target");
    it.equal();
}

/// Killed before a mark was saved: what had been replaced by then is the migration's all the same.
#[test]
fn what_was_replaced_before_a_kill_is_no_more_the_targets() {
    let Some([name]) = need(["any"]) else { return };
    let mut it = Followed::new(Setup::new(&name), Endpoint::alone(Setup::new(&name)))
        .set("/on_existing", json!("replace"));
    let keys = ["SET own target", "SET loaded target", "SET kept target"];
    run(&it.target.nodes()[0], 0, &keys);
    it.source(0, &["SET loaded source"]);
    // The first mark comes with the load, the next one never.
    let seldom = [("KEYFERRY_BENCH_SAVE_MS", "600000")];
    let mut running = it.plan.start_with("migrate --json", &seldom);
    (it.plan).wait_status(&mut running, "loaded", SOON, |s| s["phase"] == "stream");
    it.source(0, &["SET own source"]);
    wait_until("it is there", SOON, || {
        it.target(0, "GET own").text() == "source"
    });
    running.signal("KILL");
    running.wait(SOON);
    it.source(0, &["DEL own", "FLUSHDB"]);
    it.follow();
    it.stop();
    assert_eq!(it.keys(0), ["kept"]);
    it.equal();
}

#[test]
fn what_the_filter_leaves_out_is_not_healed_into_the_target() {
    let Some([six, seven]) = need(["redis-6.2", "redis-7.0"]) else {
        return;
    };
    for from in [&six, &seven] {
        let mut it = Followed::new(Setup::new(from), Endpoint::alone(Setup::new(&seven)))
            .set("/filter", json!({ "include": ["keep:*"] }));
        it.follow();
        let group = [
            "XADD secret 1-1 f v",
            "XGROUP CREATE secret g 0",
            "XREADGROUP GROUP g c STREAMS secret >",
        ];
        it.source(0, &group);
        it.source(0, &["SET keep:1 1"]);
        std::thread::sleep(Duration::from_millis(1_500));
        it.stop();
        assert_eq!(it.keys(0), ["keep:1"]);
        it.equal();
    }
}

#[test]
fn the_other_database_gets_its_key_whatever_the_filter_says_of_the_first() {
    let Some([name]) = need(["redis-7.0"]) else {
        return;
    };
    for filter in [json!({ "types": ["string"] }), json!({ "include": ["b*"] })] {
        let both = filter["types"].is_array();
        let mut it = Followed::new(Setup::new(&name), Endpoint::alone(Setup::new(&name)))
            .set("/filter", filter);
        it.source(0, &["SET a 1"]);
        it.follow();
        it.source(
            0,
            &[
                "COPY a b DB 3",
                "COPY a b2",
                "SET b3 1",
                "MOVE b3 3",
                "MOVE a 3",
            ],
        );
        it.stop();
        let expected: &[&str] = if both {
            &["a", "b", "b3"]
        } else {
            &["b", "b3"]
        };
        assert_eq!(it.keys(3), expected);
        assert_eq!(it.keys(0), ["b2"]);
        it.equal();
    }
    // The first key is one of the target's own.
    let mut it = Followed::new(Setup::new(&name), Endpoint::alone(Setup::new(&name)))
        .set("/on_existing", json!("skip"));
    run(&it.target.nodes()[0], 0, &["SET own target"]);
    it.source(0, &["SET own source"]);
    it.follow();
    it.source(0, &["COPY own b DB 3", "MOVE own 3"]);
    it.stop();
    assert_eq!(it.target(3, "GET b").text(), "source");
    assert_eq!(it.target(3, "GET own").text(), "source");
    assert_eq!(it.target(0, "GET own").text(), "target");
    it.equal();
}

#[test]
fn a_restored_value_takes_the_way_of_every_value() {
    let pairs = [
        ("redis-8.0", "valkey-8.1"),
        ("redis-8.0", "redis-7.0"),
        ("redis-7.0", "redis-6.2"),
        ("valkey-9.1", "redis-8.0"),
    ];
    for (from, to) in pairs {
        let Some([from, to]) = need([from, to]) else {
            continue;
        };
        let mut it = Followed::new(Setup::new(&from), Endpoint::alone(Setup::new(&to)));
        it.source(
            0,
            &[
                "RPUSH l a b c",
                "SADD s a b",
                "XADD x 1-1 f v",
                "ZADD z 1 a",
                "HSET h f v",
            ],
        );
        it.follow();
        let mut client = it.source.client();
        for key in ["l", "s", "x", "z", "h"] {
            let dump = client.words(&format!("DUMP {key}")).expect("it answers");
            for (name, ttl) in [("copy", "0"), ("timed", "500000")] {
                let restore = Command::new("RESTORE")
                    .key(format!("{name}:{key}"))
                    .arg(ttl)
                    .arg(dump.bytes());
                assert!(!client.run(&restore).expect("it answers").is_error());
            }
        }
        it.source(0, &["RPUSH copy:l d"]);
        it.stop();
        assert_eq!(it.target(0, "LRANGE copy:l 0 -1").items().len(), 4);
        assert!(it.target(0, "PTTL timed:s").int() > Some(400_000));
        it.equal();
    }
}

#[test]
fn commands_of_a_file_replace_the_targets_own_key_whole() {
    let Some([name]) = need(["redis-6.2"]) else {
        return;
    };
    let source = Setup::new(&name)
        .lines(&["appendonly yes", "aof-use-rdb-preamble yes"])
        .start();
    let target = Server::start(&name);
    run(
        &target,
        0,
        &["SET own target", "RPUSH l t", "SET only-here target"],
    );
    run(
        &source,
        0,
        &["APPEND own X", "RPUSH l 1", "SET soon 1 PX 40000"],
    );
    run(&source, 9, &["FLUSHDB"]);
    run(&source, 0, &["APPEND own Y", "SET after 1"]);
    run(&source, 3, &["SET a 1", "FLUSHDB", "SET b 1"]);
    run(&target, 3, &["SET three target"]);
    // A flush inside a transaction takes what was before it, not what the transaction has written since.
    run(
        &source,
        2,
        &["SET x 1", "MULTI", "SET w 1", "FLUSHDB", "SET y 1", "EXEC"],
    );
    let plan = Plan::of(json!({
        "name": "file", "on_existing": "replace",
        "source": { "mode": "rdb", "path": source.dir().join("appendonly.aof") },
        "target": { "url": target.url() },
    }));
    plan.run("migrate --json").exits(0);
    assert_eq!(run(&target, 0, &["GET own"]).text(), "XY");
    assert_eq!(run(&target, 0, &["LRANGE l 0 -1"]).items().len(), 1);
    assert_eq!(run(&target, 0, &["GET only-here"]).text(), "target");
    assert!(run(&target, 0, &["PTTL soon"]).int() <= Some(40_000));
    let keys = |db: u32| {
        let all = run(&target, db, &["KEYS *"]);
        let mut keys: Vec<String> = all.items().iter().map(Value::text).collect();
        keys.sort();
        keys
    };
    assert_eq!(keys(3), ["b", "three"]);
    assert_eq!(keys(2), ["y"]);
}
