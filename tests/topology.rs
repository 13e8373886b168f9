//! Sources and targets that are not where they say: Sentinel, private addresses, and a part of the slots.

use crate::faults::{cli, reshard};
use crate::support::cluster::Cluster;
use crate::support::need;
use crate::support::server::{Server, Setup, free_port, mortal, servers_dir};
use crate::support::side::slot;
use crate::support::story::{Endpoint, Story};
use crate::support::traffic;
use crate::support::wait_until;
use crate::support::wire::{Client, Command, Value};
use serde_json::json;
use std::process::Stdio;
use std::time::Duration;

/// A sentinel that watches "mymaster".
pub struct Sentinel {
    child: std::process::Child,
    pub port: u16,
    /// `user:password@`, where it wants one.
    login: String,
    _dir: tempfile::TempDir,
}

impl Sentinel {
    pub fn start(name: &str, master: &Server) -> Option<Sentinel> {
        Sentinel::with(name, master, &[], "")
    }

    /// With more lines in its configuration; it is asked as `login`.
    pub fn with(name: &str, master: &Server, more: &[String], login: &str) -> Option<Sentinel> {
        let folder = servers_dir().join(name);
        let program = ["redis-sentinel", "redis-server"]
            .map(|p| folder.join(p))
            .into_iter()
            .find(|p| p.is_file())?;
        let dir = tempfile::tempdir().ok()?;
        let port = free_port().ok()?;
        let file = dir.path().join("sentinel.conf");
        let mut lines = vec![
            format!("port {port}"),
            "bind 127.0.0.1".into(),
            format!("dir \"{}\"", dir.path().display()),
            format!("sentinel monitor mymaster 127.0.0.1 {} 1", master.port()),
            "sentinel down-after-milliseconds mymaster 1000".into(),
            "sentinel failover-timeout mymaster 5000".into(),
        ];
        lines.extend_from_slice(more);
        std::fs::write(&file, lines.join("\n") + "\n").ok()?;
        let child = mortal(&program)
            .arg(&file)
            .arg("--sentinel")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let sentinel = Sentinel {
            child,
            port,
            login: login.to_owned(),
            _dir: dir,
        };
        wait_until("the sentinel answers", Duration::from_secs(20), || {
            sentinel.ask().is_some()
        });
        Some(sentinel)
    }

    #[track_caller]
    pub fn run(&self, words: &str) -> Value {
        let client = Client::open(&self.url());
        (client.expect("a connection").words(words)).expect("an answer")
    }

    fn url(&self) -> String {
        format!("redis://{}127.0.0.1:{}", self.login, self.port)
    }

    /// The port of the master that it tells.
    pub fn ask(&self) -> Option<String> {
        let mut client = Client::open(&self.url()).ok()?;
        let reply = client
            .words("SENTINEL GET-MASTER-ADDR-BY-NAME mymaster")
            .ok()?;
        reply.items().get(1).map(|p| p.text())
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn sentinel_tells_the_master_also_after_a_failover() {
    let Some([name]) = need(["any"]) else { return };
    let master = Setup::new(&name).line("repl-backlog-size 256mb").start();
    let replica = Setup::new(&name).replica_of(&master).start();
    let Some(sentinel) = Sentinel::start(&name, &master) else {
        return crate::support::skip("needs a sentinel");
    };
    let address = replica.address();
    let mut story = Story::new(
        Endpoint::Alone(Box::new(master)),
        Endpoint::cluster(Setup::new(&name)),
    );
    let url = format!(
        "redis+sentinel://127.0.0.1:1,127.0.0.1:{}/mymaster",
        sentinel.port
    );
    story.plan.set("/source/url", json!(url));
    story.fill(2_000);
    wait_until("the replica has it all", Duration::from_secs(30), || {
        replica.run("DBSIZE").int() == story.source.nodes()[0].run("DBSIZE").int()
    });
    let options = traffic::Options {
        rate: 1_000,
        seconds: 300,
        stubborn: true,
        others: vec![format!("redis://{address}")],
        ..story.traffic_options()
    };
    let traffic = traffic::start(&options).expect("the traffic starts");
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    let Endpoint::Alone(master) = &mut story.source else {
        unreachable!()
    };
    master.kill();
    let promoted = replica.port().to_string();
    wait_until(
        "the sentinel has made the replica the master",
        Duration::from_secs(60),
        || sentinel.ask().as_deref() == Some(promoted.as_str()),
    );
    std::thread::sleep(Duration::from_secs(3));
    assert!(running.ended().is_none(), "{}", running.stderr_now());
    traffic.stop();
    story.source = Endpoint::Alone(Box::new(replica));
    story.catch_up_and_stop(running);
    story.verify();
    story.judge();
}

/// A cluster that announces addresses nobody outside can reach, at the ports of the plan's host.
#[test]
fn private_addresses_are_reached_at_the_plans_host() {
    // Valkey 8 keeps its answer to CLUSTER SLOTS when the announced address changes.
    let Some([name]) = need(["redis-7.0"]) else {
        return;
    };
    // One master: several would lose each other.
    let target = Cluster::start(&name, 1);
    let story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::Cluster(target),
    );
    let announce = |host: &str| {
        let node = &story.target.nodes()[0];
        node.run(&format!("CONFIG SET cluster-announce-ip {host}"));
        wait_until("the address is announced", Duration::from_secs(30), || {
            let told = node.run("CLUSTER SLOTS");
            told.items()[0].items()[2].items()[0].text() == host
        });
    };
    announce("127.0.0.1");
    story.fill(2_000);
    let mut open = story.target.side();
    announce("fd00::1");
    story.plan.run("migrate --json --until caught-up").exits(0);
    let verified = story.plan.run("verify --json").exits(0);
    assert_eq!(verified.json["equal"], true, "{}", verified.stdout);
    let mut source = story.source.side();
    let rules = crate::support::compare::Rules::default();
    let found = crate::support::compare::compare(&mut source, &mut open, &rules);
    assert!(found.as_ref().is_ok_and(|f| f.equal()), "{found:?}");
}

#[test]
fn a_part_of_the_slots() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.fill(2_000);
    story.plan.set("/filter", json!({ "slots": "0-8191" }));
    let (_, verified) = story.carry(Duration::from_secs(2));
    let moved = verified.json["keys_target"].as_u64().unwrap_or(0);
    assert!(moved > 500, "{}", verified.stdout);
    for node in &story.target.nodes()[2..] {
        assert_eq!(node.run("KEYS *").items(), [], "{verified:?}");
    }
    story.plan.set("/filter", json!({ "slots": "0-16384" }));
    story.plan.run("migrate").exits(2).says(&["filter.slots"]);
}

/// A server whose SADD goes by the name of TRIMSLOTS, so that what it replicates looks like what Redis 8.4 replicates
/// after it has handed slots to another master: `TRIMSLOTS RANGES 1 0 100` adds to a set called RANGES.
fn trimming(name: &str) -> Setup {
    Setup::new(name).line("rename-command SADD TRIMSLOTS")
}

#[test]
fn trimmed_slots_of_a_cluster_keep_their_keys_at_the_target() {
    let Some([name]) = need(["redis-7.0"]) else {
        return;
    };
    if cli(&name).is_none() {
        return crate::support::skip("needs redis-cli");
    }
    let story = Story::new(
        Endpoint::Cluster(Cluster::with(&trimming(&name), 2, 0)),
        Endpoint::cluster(Setup::new(&name)),
    );
    let Endpoint::Cluster(cluster) = &story.source else {
        unreachable!()
    };
    let mut side = story.source.side();
    let mut set = |key: &str| {
        let answer = side.run(&Command::new("SET").key(key).arg("1"));
        assert!(answer.is_ok_and(|a| !a.is_error()), "{key}");
    };
    (0..2_000).for_each(|n| set(&format!("key:{n}")));
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    // The master that has the set of that name.
    let from = usize::from(slot(b"RANGES") >= 8192);
    let first = from * 8192;
    reshard(&name, cluster, from, 1 - from, 40);
    let trim = |first: usize, last: usize| {
        let node = &cluster.nodes()[from];
        node.run(&format!("TRIMSLOTS RANGES 1 {first} {last}"));
        node.run("DEL RANGES");
    };
    // The first is gone from here, the second is still ours: nothing is taken from the target on its word.
    trim(first, first + 39);
    let ours = (0..)
        .map(|n| format!("stray:{n}"))
        .find(|k| {
            let slot = usize::from(slot(k.as_bytes()));
            (first + 100..first + 8_000).contains(&slot)
        })
        .expect("a name");
    let slot = usize::from(slot(ours.as_bytes()));
    let mut target = story.target.side();
    let stray = Command::new("SET").key(&ours).arg("not the source's");
    assert!(target.run(&stray).is_ok_and(|a| !a.is_error()));
    trim(slot, slot);
    let exists = Command::new("EXISTS").key(&ours);
    wait_until("the slot is read again", Duration::from_secs(60), || {
        target.run(&exists).is_ok_and(|a| a.int() == Some(0))
    });
    story.catch_up_and_stop(running);
    let verified = story.verify();
    assert!(verified.json["keys_target"].as_u64() >= Some(2_000));
    story.judge();
}

#[test]
fn trimmed_slots_of_a_single_server_end_the_run() {
    let Some([name]) = need(["redis-7.0"]) else {
        return;
    };
    let story = Story::new(
        Endpoint::alone(trimming(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    story.source.nodes()[0].run("SET a 1");
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    story.source.nodes()[0].run("TRIMSLOTS RANGES 1 5 100");
    running
        .wait(Duration::from_secs(30))
        .exits(3)
        .says(&["slots 5-100", "source.topology"]);
    assert_eq!(story.target.nodes()[0].run("GET a").text(), "1");
}

/// A slot of which each of two nodes holds a part is listed whole: what is missing at the target is found, whichever node
/// of the source has it.
#[test]
fn a_slot_on_its_way_is_compared_whole() {
    if let Some([name]) = need(["any"]) {
        compares_whole(&name, &json!({}));
    }
}

/// Under other names slots are not listed, but whole nodes.
#[test]
fn a_slot_on_its_way_is_compared_whole_under_other_names() {
    if let Some([name]) = need(["any"]) {
        compares_whole(&name, &json!({ "b:": "c:" }));
    }
}

fn compares_whole(name: &str, rename: &serde_json::Value) {
    let source = Cluster::with(&Setup::new(name), 2, 0);
    let mut story = Story::new(Endpoint::Cluster(source), Endpoint::alone(Setup::new(name)));
    story.plan.set("/rename", rename.clone());
    let mut side = story.source.side();
    for n in 0..10 {
        let set = Command::new("SET").key(format!("{{a}}:{n}")).arg("1");
        assert!(side.run(&set).is_ok_and(|a| !a.is_error()));
    }
    let running = story.migrate();
    story.catch_up_and_stop(running);
    // Half of the slot's keys go to the other node, and the slot stays on its way.
    let (slot, nodes) = (slot(b"a"), story.source.nodes());
    let from = usize::from(slot >= 8192);
    let (from, to) = (&nodes[from], &nodes[1 - from]);
    let id = |node: &Server| node.run("CLUSTER MYID").text();
    to.run(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", id(from)));
    from.run(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", id(to)));
    let hand_over = |n: u32| {
        let moved = from.run(&format!("MIGRATE 127.0.0.1 {} {{a}}:{n} 0 5000", to.port()));
        assert_eq!(moved.text(), "OK");
    };
    (0..5).for_each(hand_over);
    for lost in ["{a}:1", "{a}:8"] {
        story.target.nodes()[0].run(&format!("DEL {lost}"));
    }
    let running = story.plan.start("verify --json");
    // It lists this slot early, and cannot read it before the move is over.
    std::thread::sleep(Duration::from_secs(3));
    (5..10).for_each(hand_over);
    for node in [to, from] {
        node.run(&format!("CLUSTER SETSLOT {slot} NODE {}", id(to)));
    }
    let found = running.wait(Duration::from_secs(60)).exits(1).json;
    assert_eq!(found["keys_source"], 10, "{found}");
    assert_eq!(found["missing_count"], 2, "{found}");
}
