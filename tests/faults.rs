//! The fault driver: real kills at random moments, under traffic that is not idempotent; at the end both sides are equal.
//!
//! Seeded: each test prints its seed, and KEYFERRY_SEED=n runs it with that one. KEYFERRY_FULL=1 runs the long campaigns.

use crate::support::cluster::Cluster;
use crate::support::compare::Rules;
use crate::support::cutter::Cutter;
use crate::support::rng::Rng;
use crate::support::server::{Server, Setup, servers_dir};
use crate::support::story::{Endpoint, Story};
use crate::support::traffic::{self, Options, Report, Traffic};
use crate::support::versions::seeded;
use crate::support::wire::Command;
use crate::support::{need, skip, wait_until};
use serde_json::json;
use std::time::Duration;

fn full() -> bool {
    std::env::var_os("KEYFERRY_FULL").is_some()
}

pub fn pick(few: u64, many: u64) -> u64 {
    if full() { many } else { few }
}

fn busy(story: &Story) -> Traffic {
    let options = Options {
        rate: 5_000,
        seconds: 900,
        ..story.traffic_options()
    };
    traffic::start(&options).expect("the traffic starts")
}

pub fn stubborn(story: &Story, rate: u64) -> Traffic {
    let options = Options {
        rate,
        seconds: 900,
        stubborn: true,
        others: story.source.nodes().iter().map(Server::url).collect(),
        ..story.traffic_options()
    };
    traffic::start(&options).expect("the traffic starts")
}

/// The end of every campaign: caught up, stopped, equal by keyferry's word and by the judge's.
fn prove(story: &Story, traffic: Traffic, counters: bool) -> Report {
    let running = story.migrate();
    let report = traffic.stop();
    assert!(report.total() > 1_000, "too little traffic: {report:?}");
    story.catch_up_and_stop(running);
    story.verify();
    story.judge();
    if counters {
        story.check_counters(&report);
    }
    report
}

fn nap(rng: &mut Rng, from: u64, to: u64) {
    std::thread::sleep(Duration::from_millis(rng.range(from, to)));
}

#[test]
fn killed_at_random_moments() {
    let Some([name]) = need(["any"]) else { return };
    let mut rng = seeded();
    let mut story = Story::new(
        Endpoint::alone(Setup::new(&name).line("repl-backlog-size 256mb")),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.fill(pick(20_000, 100_000));
    let traffic = busy(&story);
    let kills = pick(8, 50);
    story.plan.set("/limits", json!({ "keys_per_s": 30_000 }));
    let mut loads = 0;
    for n in 0..kills {
        let mut running = story.migrate();
        // The first third falls into the load, the others mostly into the stream and into heals after a kill.
        if n < kills / 3 {
            nap(&mut rng, 20, 500);
        } else {
            nap(&mut rng, 50, 1_500);
        }
        assert!(running.ended().is_none(), "{}", running.stderr_now());
        let loaded = story.plan.status()["snapshot"]["done"] == true;
        loads += u64::from(!loaded);
        running.signal("KILL");
        running.wait(Duration::from_secs(10));
    }
    println!("{kills} kills, {loads} of them before the load was done");
    prove(&story, traffic, true);
    let syncs = story.source.info("stats", "sync_full") as u64;
    assert!(
        syncs <= loads + 1,
        "{syncs} full syncs, though only {loads} runs ended before the load was done"
    );
}

/// Dies at each named place, twice in a row, and goes on.
#[test]
fn dies_at_every_failpoint() {
    let Some([name]) = need(["any"]) else { return };
    let mut rng = seeded();
    let story = Story::new(
        Endpoint::alone(Setup::new(&name).line("repl-backlog-size 256mb")),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.fill(5_000);
    let traffic = busy(&story);
    for round in 0..pick(1, 4) {
        for point in keyferry::FAILPOINTS {
            let times = match point {
                "load-begun" => rng.range(1, 4_000),
                "stream-command" => rng.range(1, 8_000),
                "load-done" | "snapshot-complete" => 1,
                _ => rng.range(1, 4),
            };
            println!("round {round}: {point}:{times}");
            let armed = format!("{point}:{times}");
            let mut running = story
                .plan
                .start_with("migrate --json", &[("KEYFERRY_FAILPOINT", &armed)]);
            // Places of the load are passed once only; the run is killed when it does not come by in time.
            let ended = std::time::Instant::now();
            while running.ended().is_none() && ended.elapsed() < Duration::from_secs(4) {
                std::thread::sleep(Duration::from_millis(50));
            }
            running.signal("KILL");
            running.wait(Duration::from_secs(10));
        }
    }
    prove(&story, traffic, true);
}

/// Where offsets are reserved ahead, keys that wait for healing are not taken for done.
#[test]
fn dies_between_reserving_and_healing() {
    let Some([name]) = need(["any"]) else { return };
    let story = Story::new(
        Endpoint::alone(Setup::new(&name).line("repl-backlog-size 256mb")),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.fill(2_000);
    let traffic = busy(&story);
    let dies = |point: &str| {
        let armed = [("KEYFERRY_FAILPOINT", point)];
        let died = story.plan.start_with("migrate --json", &armed);
        let code = died.wait(Duration::from_secs(60)).code;
        assert!(code != 0 && code != 3, "it dies at {point}: {code}");
    };
    // Right after a checkpoint: nothing behind it has been sent.
    dies("after-save:6");
    std::thread::sleep(Duration::from_secs(1));
    let report = traffic.stop();
    // More than is reserved at a time, so that the first heal reserves.
    crate::support::dataset::fill_volume(&mut story.source.nodes()[0].client(), 3_000, 2_000)
        .expect("the volume is written");
    dies("heal-reserved:1");
    story.catch_up_and_stop(story.migrate());
    story.verify();
    story.judge();
    story.check_counters(&report);
}

/// What a first attempt has loaded, and the source has deleted and made anew before the second was loaded, is new.
#[test]
fn keys_of_a_first_attempt_are_not_written_to() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::cluster(Setup::new(&name)),
    );
    let source = |words: &str| {
        let mut client = story.source.nodes()[0].client();
        for n in 0..2_000 {
            let words = words.replace('#', &n.to_string());
            client.push(&Command::new(&words));
        }
        client.flush().expect("the commands are sent");
        client.replies().expect("the answers");
    };
    source("SET k:{#} old");
    source("SET other:{#} same");
    story.plan.set("/limits", json!({ "keys_per_s": 1_000 }));
    let mut running = story.plan.start("migrate --json");
    let half = |s: &serde_json::Value| s["snapshot"]["keys_written"].as_u64() > Some(1_800);
    let limit = Duration::from_secs(30);
    story
        .plan
        .wait_status(&mut running, "half way", limit, half);
    running.signal("KILL");
    running.wait(Duration::from_secs(10));
    // The snapshot is thrown away, so that another has to come.
    std::fs::remove_dir_all(story.plan.work_dir().join("test/spool")).expect("the spool goes");
    source("DEL k:{#}");
    let mut running = story.migrate();
    let some = |s: &serde_json::Value| s["snapshot"]["keys_written"].as_u64() > Some(200);
    story.plan.wait_status(&mut running, "loading", limit, some);
    assert_ne!(story.plan.status()["snapshot"]["done"], true);
    source("APPEND k:{#} new");
    story.wait_loaded(&mut running);
    story.catch_up_and_stop(running);
    assert_eq!(story.source.info("stats", "sync_full"), 2);
    story.verify();
    story.judge();
}

/// A snapshot that is complete in the spool is not asked for again.
#[test]
fn killed_while_a_complete_snapshot_is_loaded() {
    let Some([name]) = need(["any"]) else { return };
    killed_in_the_load(&name, &name);
}

/// Such a source sends expiries that count from when the command ran.
#[test]
fn killed_in_the_load_from_redis_6() {
    let Some([name, target]) = need(["redis-6.2", "any"]) else {
        return;
    };
    killed_in_the_load(&name, &target);
}

fn killed_in_the_load(source: &str, target: &str) {
    let mut story = Story::new(
        Endpoint::alone(Setup::new(source).line("repl-backlog-size 256mb")),
        Endpoint::cluster(Setup::new(target)),
    );
    story.fill(30_000);
    story.plan.set("/limits", json!({ "keys_per_s": 2500 }));
    let traffic = busy(&story);
    for n in 0..3 {
        let running = story.migrate();
        // The source has sent it all; the next checkpoint, one each second, notes that all is on disk.
        wait_until("the snapshot is sent", Duration::from_secs(20), || {
            let replica = story.source.nodes()[0]
                .client()
                .info("replication", "slave0");
            replica.is_ok_and(|replica| replica.contains("state=online"))
        });
        wait_until("a checkpoint knows of all", Duration::from_secs(20), || {
            story.plan.status()["snapshot"]["bytes_total"].as_u64() > Some(0)
        });
        std::thread::sleep(Duration::from_millis(1_600));
        let status = story.plan.status();
        assert_eq!(status["snapshot"]["done"], false, "run {n}: {status}");
        running.signal("KILL");
        running.wait(Duration::from_secs(10));
    }
    story.plan.set("/limits", json!({}));
    prove(&story, traffic, true);
    assert_eq!(story.source.info("stats", "sync_full"), 1);
}

#[test]
fn a_target_shard_fails_over() {
    let Some([name]) = need(["any"]) else { return };
    let mut rng = seeded();
    let mut story = Story::new(
        Endpoint::alone(Setup::new(&name).line("repl-backlog-size 256mb")),
        Endpoint::replicated(Setup::new(&name)),
    );
    story.fill(5_000);
    let traffic = busy(&story);
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    for _ in 0..pick(1, 10) {
        nap(&mut rng, 500, 2_500);
        let Endpoint::Cluster(cluster) = &mut story.target else {
            unreachable!()
        };
        let masters: Vec<usize> = (0..6)
            .filter(|n| role(&cluster.nodes()[*n]) == "master")
            .collect();
        let victim = masters[rng.below(masters.len() as u64) as usize];
        println!("node {victim} of {masters:?} is killed");
        fail_over(cluster, victim, Duration::ZERO);
    }
    let report = traffic.stop();
    story.catch_up_and_stop(running);
    story.verify();
    story.judge();
    story.check_counters(&report);
    assert_eq!(story.source.info("stats", "sync_full"), 1);
}

/// Kills a master, waits for its replica to be promoted, and starts it again as a replica after `pause`.
pub fn fail_over(cluster: &mut Cluster, victim: usize, pause: Duration) {
    let nodes = cluster.nodes().len();
    let masters = cluster.masters().len();
    cluster.node_mut(victim).kill();
    wait_until("the replica is promoted", Duration::from_secs(60), || {
        let others = (0..nodes).filter(|n| *n != victim);
        others
            .filter(|n| role(&cluster.nodes()[*n]) == "master")
            .count()
            == masters
    });
    std::thread::sleep(pause);
    cluster.node_mut(victim).restart();
    let node = &cluster.nodes()[victim];
    let linked = || {
        let link = node.client().info("replication", "master_link_status");
        role(node) == "slave" && link.is_ok_and(|s| s == "up")
    };
    wait_until(
        "the dead master is a replica",
        Duration::from_secs(60),
        linked,
    );
}

pub fn role(node: &Server) -> String {
    crate::support::wire::Client::connect(&node.address())
        .and_then(|mut c| c.info("replication", "role"))
        .unwrap_or_default()
}

/// `redis-cli` of a server, where it is there.
pub fn cli(name: &str) -> Option<std::path::PathBuf> {
    let path = servers_dir().join(name).join("redis-cli");
    path.is_file().then_some(path)
}

/// Moves some slots from one master to another.
pub fn reshard(name: &str, cluster: &Cluster, from: usize, to: usize, slots: u64) {
    let id = |n: usize| cluster.nodes()[n].run("CLUSTER MYID").text();
    let out = std::process::Command::new(cli(name).expect("redis-cli"))
        .args(["--cluster", "reshard", &cluster.nodes()[0].address()])
        .args(["--cluster-from", &id(from), "--cluster-to", &id(to)])
        .args(["--cluster-slots", &slots.to_string(), "--cluster-yes"])
        .output()
        .expect("redis-cli runs");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
}

#[test]
fn target_slots_move_while_loading_and_streaming() {
    let Some([name]) = need(["valkey-8.1"]) else {
        return;
    };
    if cli(&name).is_none() {
        return skip("needs redis-cli");
    }
    let mut story = Story::new(
        Endpoint::alone(Setup::new(&name).line("repl-backlog-size 256mb")),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.fill(15_000);
    story.plan.set("/limits", json!({ "keys_per_s": 5000 }));
    let traffic = busy(&story);
    let mut running = story.migrate();
    let Endpoint::Cluster(cluster) = &story.target else {
        unreachable!()
    };
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        reshard(&name, cluster, from, to, pick(100, 1000));
    }
    story.wait_loaded(&mut running);
    for (from, to) in [(1, 0), (2, 1), (0, 2)] {
        reshard(&name, cluster, from, to, pick(100, 1000));
    }
    let report = traffic.stop();
    story.catch_up_and_stop(running);
    story.verify();
    // MIGRATE carries what is left of an expiry, so a move inside the target shifts it by the time the move took.
    story.judge_by(&Rules {
        expiry_tolerance_ms: 1_000,
        ..Rules::default()
    });
    story.check_counters(&report);
}

#[test]
fn a_source_master_fails_over() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = Story::new(
        Endpoint::replicated(Setup::new(&name).line("repl-backlog-size 256mb")),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.fill(5_000);
    let traffic = stubborn(&story, 2_000);
    let mut running = story.plan.start("migrate --json --log debug");
    story.wait_loaded(&mut running);
    for round in 0..pick(1, 5) as usize {
        std::thread::sleep(Duration::from_secs(2));
        let Endpoint::Cluster(cluster) = &mut story.source else {
            unreachable!()
        };
        let masters: Vec<usize> = (1..6)
            .filter(|n| role(&cluster.nodes()[*n]) == "master")
            .collect();
        let victim = masters[round % masters.len()];
        println!("source node {victim} of {masters:?} is killed");
        fail_over(cluster, victim, Duration::from_secs(2));
        assert!(running.ended().is_none(), "{}", running.stderr_now());
    }
    let report = traffic.stop();
    assert!(report.total() > 1_000, "{report:?}");
    println!("{}", story.catch_up_and_stop(running).stderr);
    story.verify();
    story.judge();
}

#[test]
fn source_slots_move() {
    let Some([name]) = need(["valkey-8.1"]) else {
        return;
    };
    if cli(&name).is_none() {
        return skip("needs redis-cli");
    }
    let story = Story::new(
        Endpoint::cluster(Setup::new(&name).line("repl-backlog-size 256mb")),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.fill(10_000);
    let traffic = stubborn(&story, 2_000);
    let mut running = story.plan.start("migrate --json --log debug");
    let Endpoint::Cluster(cluster) = &story.source else {
        unreachable!()
    };
    reshard(&name, cluster, 0, 1, pick(50, 500));
    story.wait_loaded(&mut running);
    for (from, to) in [(1, 2), (2, 0), (0, 1)] {
        reshard(&name, cluster, from, to, pick(100, 1000));
        assert!(running.ended().is_none(), "{}", running.stderr_now());
    }
    let report = traffic.stop();
    assert!(report.total() > 1_000, "{report:?}");
    // A move is looked for every second, and believed when it is seen twice.
    std::thread::sleep(Duration::from_secs(3));
    println!("{}", story.catch_up_and_stop(running).stderr);
    story.verify();
    story.judge();
}

#[test]
fn connections_are_cut_delayed_and_halved() {
    let Some([name]) = need(["any"]) else { return };
    let mut rng = seeded();
    let source = Endpoint::alone(Setup::new(&name).line("repl-backlog-size 256mb"));
    let target = Endpoint::alone(Setup::new(&name));
    let mean = pick(300 << 10, 1 << 20);
    let to_source = Cutter::start(&source.nodes()[0].address(), rng.next(), 4 * mean);
    let to_target = Cutter::start(&target.nodes()[0].address(), rng.next(), mean);
    let mut story = Story::new(source, target);
    story.plan.set("/source/url", json!(to_source.url()));
    story.plan.set("/target/url", json!(to_target.url()));
    story.fill(5_000);
    let traffic = busy(&story);
    let mut running = story.migrate();
    // A line that is cut while nothing has begun ends the run, which says that the same command is to be run again.
    wait_until("it has begun", Duration::from_secs(60), || {
        if running.ended().is_some() {
            let ended = std::mem::replace(&mut running, story.migrate());
            let outcome = ended.wait(Duration::from_secs(5)).exits(3);
            outcome.says(&["run the same command again"]);
        }
        story.plan.status()["shards"][0].is_object()
    });
    story.wait_loaded(&mut running);
    std::thread::sleep(Duration::from_secs(pick(6, 120)));
    assert!(running.ended().is_none(), "{}", running.stderr_now());
    let report = traffic.stop();
    to_source.calm();
    to_target.calm();
    println!("{} and {} cuts", to_source.cuts(), to_target.cuts());
    assert!(to_source.cuts() + to_target.cuts() > 3);
    story.catch_up_and_stop(running);
    story.verify();
    story.judge();
    story.check_counters(&report);
}

/// What was deleted while we were away for longer than the backlog reaches is gone afterwards.
#[test]
fn deletions_beyond_the_backlog_arrive() {
    let Some([name]) = need(["any"]) else { return };
    let story = Story::new(
        Endpoint::alone(Setup::new(&name).lines(&["repl-backlog-size 16kb", "repl-backlog-ttl 1"])),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.fill(3_000);
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    story.catch_up_and_stop(running);
    let mut side = story.source.side();
    let all = side
        .run(&crate::support::wire::Command::new("SCAN 0 COUNT 100000"))
        .expect("keys");
    let gone: Vec<Vec<u8>> = all.items()[1]
        .items()
        .iter()
        .step_by(5)
        .map(|k| k.bytes().to_vec())
        .collect();
    for key in &gone {
        side.run(&crate::support::wire::Command::new("DEL").key(key))
            .expect("a deletion");
    }
    crate::support::dataset::fill_volume(&mut story.source.nodes()[0].client(), 3_000, 100)
        .expect("more writes");
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    story.catch_up_and_stop(running);
    assert_eq!(story.source.info("stats", "sync_full"), 2);
    story.verify();
    story.judge();
}

/// Without its state folder it cannot know what it did: it says so, and makes the target equal all the same when told to.
#[test]
fn the_state_folder_is_deleted() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.fill(2_000);
    let traffic = busy(&story);
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    running.signal("KILL");
    running.wait(Duration::from_secs(10));
    std::fs::remove_dir_all(story.plan.work_dir()).expect("the state is removed");
    let mut side = story.source.side();
    side.run(&crate::support::wire::Command::new("FLUSHDB"))
        .expect("the source is emptied");
    story.fill(1_000);
    story
        .plan
        .run("migrate --json")
        .exits(3)
        .says(&["holds keys already", "on_existing"]);
    story.plan.set("/on_existing", json!("reconcile"));
    let running = story.migrate();
    let report = traffic.stop();
    assert!(report.total() > 100);
    story.catch_up_and_stop(running);
    story.verify();
    story.judge();
}

/// A full spool stops the reading, says so, and loses nothing.
#[test]
fn the_spool_is_full() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = Story::new(
        Endpoint::alone(Setup::new(&name).lines(&[
            "repl-backlog-size 256mb",
            "client-output-buffer-limit replica 0 0 0",
        ])),
        Endpoint::alone(Setup::new(&name)),
    );
    story.fill(5_000);
    story.plan.set(
        "/limits",
        json!({ "spool_bytes": 16 << 20, "keys_per_s": 2_000 }),
    );
    let mut running = story.migrate();
    // Far more than the spool takes, while the load is slow; none of it in the snapshot.
    story
        .plan
        .wait_status(&mut running, "loading", Duration::from_secs(30), |s| {
            s["snapshot"]["keys_read"].as_u64() > Some(0)
        });
    for _ in 0..4 {
        crate::support::dataset::fill_volume(&mut story.source.nodes()[0].client(), 12_000, 1_000)
            .expect("the volume is written");
    }
    story
        .plan
        .wait_status(&mut running, "full", Duration::from_secs(30), |s| {
            s["shards"][0]["note"]
                .as_str()
                .is_some_and(|n| n.contains("spool is full"))
        });
    assert!(running.ended().is_none(), "{}", running.stderr_now());
    story.wait_loaded(&mut running);
    story.catch_up_and_stop(running);
    assert_eq!(story.source.info("stats", "sync_full"), 1);
    story.verify();
    story.judge();
}
