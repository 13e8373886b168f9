//! Mode "scan": sources that refuse to be replicated.

use crate::support::server::Setup;
use crate::support::story::{Endpoint, Story};
use crate::support::traffic::{self, Options};
use crate::support::wire::Command;
use crate::support::{need, wait_until};
use serde_json::json;
use std::time::{Duration, Instant};

/// What Azure Cache for Redis and ElastiCache refuse.
const REFUSED: [&str; 8] = [
    "rename-command PSYNC \"\"",
    "rename-command SYNC \"\"",
    "rename-command REPLCONF \"\"",
    "rename-command DEBUG \"\"",
    "rename-command BGSAVE \"\"",
    "rename-command SAVE \"\"",
    "rename-command REPLICAOF \"\"",
    "rename-command SLAVEOF \"\"",
];

/// Traffic while it is copied; then the writers freeze, and it is equal when it says so.
fn stays_alike(story: &Story, seconds: u64) -> Duration {
    story.fill(5_000);
    let options = Options {
        rate: 2_000,
        seconds: 300,
        ..story.traffic_options()
    };
    let traffic = traffic::start(&options).expect("the traffic starts");
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    std::thread::sleep(Duration::from_secs(seconds));
    assert!(running.ended().is_none(), "{}", running.stderr_now());
    let report = traffic.stop();
    let frozen = Instant::now();
    // The lag is the age of the last sweep's beginning (as of the last save): it has to lie after the freeze.
    let swept = |status: &serde_json::Value| {
        let lag = status["stream"]["lag_ms"].as_u64().unwrap_or(u64::MAX);
        lag.saturating_add(1_500) < frozen.elapsed().as_millis() as u64
    };
    (story.plan).wait_status(&mut running, "swept", Duration::from_secs(60), swept);
    running.interrupt();
    running.wait(Duration::from_secs(30)).exits(130);
    let took = frozen.elapsed();
    println!("proven equal {took:?} after the freeze");
    story.verify();
    story.judge();
    story.check_counters(&report);
    took
}

fn story(name: &str, line: &str, target: &str) -> Story {
    let setup = Setup::new(name).lines(&REFUSED).line(line);
    Story::new(
        Endpoint::alone(setup),
        Endpoint::cluster(Setup::new(target)),
    )
}

#[test]
fn by_sweeps_alone() {
    let Some([name, target]) = need(["redis-6.2", "valkey-9.1"]) else {
        return;
    };
    let mut story = story(&name, "notify-keyspace-events \"\"", &target);
    story.plan.set("/source/mode", json!("scan"));
    stays_alike(&story, 6);
    assert_eq!(story.plan.status()["mode"], "scan");
}

#[test]
fn by_notifications() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = story(&name, "notify-keyspace-events AKE", &name);
    story.plan.set("/source/mode", json!("auto"));
    stays_alike(&story, 6);
    assert_eq!(story.plan.status()["mode"], "scan", "auto has found out");
}

/// The connection that hears of changes is killed again and again: what it could have missed is found.
#[test]
fn lost_notifications_are_swept_up() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = story(&name, "notify-keyspace-events AKE", &name);
    story.plan.set("/source/mode", json!("scan"));
    let source = story.source.nodes()[0].address();
    let killer = std::thread::spawn(move || {
        for _ in 0..5 {
            std::thread::sleep(Duration::from_secs(2));
            if let Ok(mut client) = crate::support::wire::Client::connect(&source) {
                let _ = client.words("CLIENT KILL TYPE pubsub");
            }
        }
    });
    stays_alike(&story, 11);
    killer.join().expect("the killer ends");
}

/// Killed in the copy and in the sweeps, it goes on; nothing is asked of a source that refuses it.
#[test]
fn a_killed_scan_goes_on() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = story(&name, "notify-keyspace-events \"\"", &name);
    story.plan.set("/source/mode", json!("scan"));
    story.plan.set("/limits", json!({ "keys_per_s": 8_000 }));
    story.fill(20_000);
    let running = story.migrate();
    std::thread::sleep(Duration::from_millis(2_000));
    running.signal("KILL");
    running.wait(Duration::from_secs(10));
    story.plan.set("/limits", json!({}));
    story.source.nodes()[0].run("DEL counter:1 hash:1");
    let done = story.plan.run("migrate --until caught-up --json").exits(0);
    // Those of the run before and of this one; what was copied after the last save is copied again.
    let keys = done.json["keys_written"].as_u64().unwrap_or(0);
    assert!(keys >= 19_000, "{}", done.stdout);
    story.verify();
    story.judge();
    let mut side = story.source.side();
    side.everywhere("FLUSHALL").expect("an answer");
    side.everywhere("SET last x").expect("an answer");
    // Nobody has told that; it could be a source that has lost its data.
    let again = "migrate --until caught-up --json";
    story.plan.run(again).exits(3).says(&["--accept-loss"]);
    (story.plan.run(&format!("{again} --accept-loss"))).exits(0);
    story.verify();
    story.judge();
}

/// Killed with its first keys at the target, before anything else was saved: those are its own.
#[test]
fn killed_with_its_first_keys_it_goes_on() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = story(&name, "notify-keyspace-events \"\"", &name);
    story.plan.set("/source/mode", json!("scan"));
    story.plan.set("/limits", json!({ "keys_per_s": 1_000 }));
    story.fill(3_000);
    let running = story.migrate();
    wait_until("keys arrive", Duration::from_secs(30), || {
        story.target.side().size().is_ok_and(|n| n > 0)
    });
    running.signal("KILL");
    running.wait(Duration::from_secs(10));
    story.plan.set("/limits", json!({}));
    story.plan.run("migrate --until caught-up --json").exits(0);
    story.verify();
}

/// A verification beside it says nothing false, and has mended what it finds.
#[test]
fn verified_and_repaired_while_it_sweeps() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = story(&name, "notify-keyspace-events \"\"", &name);
    story.plan.set("/source/mode", json!("scan"));
    story.fill(2_000);
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    let mut target = story.target.side();
    let key = Command::new("SET").key("only:here").arg("x");
    target.run(&key).expect("an answer");
    // The sweeps may have removed it already; either way both are alike in the end.
    story.plan.run("verify --repair --json").exits(0);
    running.interrupt();
    running.wait(Duration::from_secs(30)).exits(130);
    target.run(&key).expect("an answer");
    let found = story.plan.run("verify --json").exits(1).json;
    assert_eq!(found["extra_count"], 1, "{found}");
    story.plan.run("verify --repair --json").exits(0);
    story.judge();
}

#[test]
fn replica_mode_says_what_to_do_where_psync_is_refused() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = story(&name, "notify-keyspace-events \"\"", &name);
    story.plan.set("/source/mode", json!("replica"));
    story.plan.run("migrate --json").exits(1).says(&["scan"]);
}
