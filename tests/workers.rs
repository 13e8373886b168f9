//! One migration spread over workers that share nothing: started apart, killed, resumed, taken together, kept apart.

use crate::faults::{cli, fail_over, reshard, role, stubborn};
use crate::support::keyferry::Running;
use crate::support::server::Setup;
use crate::support::side::slot;
use crate::support::story::{Endpoint, Story};
use crate::support::wire::Command;
use crate::support::{need, skip, wait_until};
use serde_json::{Value, json};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(120);

fn clusters(name: &str) -> Story {
    let setup = Setup::new(name).line("repl-backlog-size 256mb");
    Story::new(
        Endpoint::cluster(setup),
        Endpoint::cluster(Setup::new(name)),
    )
}

fn worker(story: &Story, share: &str) -> Running {
    story.plan.start(&format!("migrate --json {share}"))
}

fn sum(status: &Value, pointer: &str) -> u64 {
    let shards = status["shards"].as_array().into_iter().flatten();
    shards.filter_map(|s| s.pointer(pointer)?.as_u64()).sum()
}

/// Waits until a worker (by its place in the merged status) has loaded its snapshots.
#[track_caller]
fn wait_worker_loaded(story: &Story, running: &mut Running, share: &str) -> Value {
    story.plan.wait_status(running, "loaded", SOON, |s| {
        let workers = s["workers"].as_array().into_iter().flatten();
        let mut mine = workers.filter(|w| w["share"] == share);
        mine.any(|w| w["phase"] == "stream")
    })
}

fn stop(running: Running) {
    running.interrupt();
    running.wait(Duration::from_secs(60)).exits(130);
}

/// A key of one of these slots.
fn key_in(slots: std::ops::RangeInclusive<u16>) -> String {
    let mut keys = (0..).map(|n| format!("stray:{n}"));
    (keys.find(|k| slots.contains(&slot(k.as_bytes())))).unwrap_or_default()
}

#[test]
fn two_workers_under_traffic_one_killed_and_resumed() {
    let Some([name]) = need(["any"]) else { return };
    let story = clusters(&name);
    story.fill(6_000);
    let beyond = story.plan.run("migrate --shards 1-3").exits(2);
    beyond.says(&["the master 3", "3 masters: numbers 0 to 2"]);
    let none = story.plan.run("migrate --workers 2").exits(2);
    none.says(&["JOB_COMPLETION_INDEX", "not set"]);

    let traffic = story.traffic();
    let mut first = worker(&story, "--worker 0/2");
    let alone = wait_worker_loaded(&story, &mut first, "--worker 0/2");
    // The masters 0 and 2 are there; the slots of 1 are missed.
    assert_eq!(alone["shards"].as_array().map(Vec::len), Some(2), "{alone}");
    assert_eq!(alone["slots_missing"], "5461-10921", "{alone}");
    assert_eq!(
        (&alone["phase"], &alone["snapshot"]["done"]),
        (&json!("new"), &json!(false))
    );
    assert!(story.target.side().size().unwrap_or(0) > 0);

    // It begins although the target holds the other's keys, and on_existing is "fail".
    let index = [("JOB_COMPLETION_INDEX", "1")];
    let mut second = story.plan.start_with("migrate --json --workers 2", &index);
    wait_worker_loaded(&story, &mut second, "--worker 1/2");
    for (words, says) in [
        ("migrate", "spread over workers"),
        ("migrate --shards 1", "business of the worker --worker 1/2"),
    ] {
        story.plan.run(words).exits(2).says(&[says]);
    }
    story
        .plan
        .run("migrate --worker 1/2")
        .exits(3)
        .says(&["is working on this plan"]);

    std::thread::sleep(Duration::from_secs(2));
    first.signal("KILL");
    first.wait(Duration::from_secs(10));
    std::thread::sleep(Duration::from_secs(2));
    // Nobody knows what it lacks: that is lag.
    let lame = story.plan.status();
    assert!(lame["stream"]["lag_ms"].as_u64() > Some(1_500), "{lame}");
    let mut first = worker(&story, "--worker 0/2");
    wait_worker_loaded(&story, &mut first, "--worker 0/2");
    std::thread::sleep(Duration::from_secs(1));
    // Compared while everybody writes: what is on its way is waited for.
    story.verify();
    let report = traffic.stop();
    assert!(report.total() > 1_000, "{report:?}");

    story.plan.wait_caught_up(&mut first, SOON);
    let status = story.plan.wait_caught_up(&mut second, SOON);
    assert_eq!(
        status["workers"].as_array().map(Vec::len),
        Some(2),
        "{status}"
    );
    assert_eq!(
        status["shards"].as_array().map(Vec::len),
        Some(3),
        "{status}"
    );
    assert!(
        status["slots_missing"].is_null() && status["slots_twice"].is_null(),
        "{status}"
    );
    for pointer in ["/snapshot/keys_written", "/stream/commands_applied"] {
        let total = status.pointer(pointer).and_then(Value::as_u64);
        assert_eq!(total, Some(sum(&status, pointer)), "{status}");
        assert!(total > Some(1_000), "{status}");
    }
    let text = story.plan.run("status --copy copies").exits(0).stdout;
    assert!(
        text.contains("2 of 2 workers") && !text.contains("MISSING"),
        "{text}"
    );
    stop(first);
    stop(second);
    story.verify();
    assert_eq!(story.plan.status()["phase"], "verified");
    story.judge();
    story.check_counters(&report);
    // The killed one went on where it was.
    assert_eq!(story.source.info("stats", "sync_full"), 3);

    story.plan.run("report --out pages").exits(0);
    let page = std::fs::read(story.plan.dir().join("pages/report.json")).unwrap_or_default();
    let page: Value = serde_json::from_slice(&page).unwrap_or_default();
    assert_eq!(
        page["status"]["shards"].as_array().map(Vec::len),
        Some(3),
        "{page}"
    );
    assert_eq!(page["verify"]["equal"], true);
    assert!(
        page["source_latency"]["stream"]["count"].as_u64() > Some(0),
        "{page}"
    );

    // A machine that has copies only, taken while the workers ran.
    let path = |name: &str| story.plan.dir().join(name).display().to_string();
    let (plan, copies, none) = (path("plan.json"), path("copies"), path("nothing"));
    let copied = [
        "status",
        &plan,
        "--json",
        "--also",
        &copies,
        "--work-dir",
        &none,
    ];
    let copied = crate::support::keyferry::run(&copied).exits(0).json;
    assert_eq!(copied["snapshot"], status["snapshot"]);
    assert!(copied["slots_missing"].is_null(), "{copied}");

    // One whose state lies elsewhere is missed until it is named.
    let below = story.plan.work_dir().join("test/workers/worker-1-of-2");
    let elsewhere = story.plan.dir().join("volume");
    std::fs::rename(below, &elsewhere).expect("the state is moved");
    let without = story.plan.status();
    assert_eq!(without["slots_missing"], "5461-10921", "{without}");
    let with = story.plan.run("status --json --also volume").exits(0).json;
    assert_eq!(with["phase"], "verified", "{with}");
    assert_eq!(with["snapshot"], status["snapshot"]);
    story
        .plan
        .run("verify")
        .exits(0)
        .says(&["5461-10921", "--also"]);
    story.plan.run("status --also pages").exits(2);
}

#[test]
fn a_worker_touches_its_own_slots_only() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = clusters(&name);
    story.fill(3_000);
    let (mut first, mut second) = (worker(&story, "--shards 0"), worker(&story, "--shards 1-2"));
    wait_worker_loaded(&story, &mut first, "--shards 0");
    wait_worker_loaded(&story, &mut second, "--shards 1-2");
    let size = |story: &Story| story.target.side().size().unwrap_or(0);
    let before = size(&story);
    // A flush of one master is about its slots.
    story.source.nodes()[0].run("FLUSHALL");
    let mut source = story.source.side();
    let ours = key_in(0..=5460);
    source
        .run(&Command::new("SET").key(&ours).arg("1"))
        .expect("it is set");
    wait_until("the flush has arrived", SOON, || {
        size(&story) == source.size().unwrap_or(-1)
    });
    assert!(size(&story) < before && size(&story) > before / 3);
    story.plan.wait_caught_up(&mut first, SOON);
    story.verify();
    stop(first);

    // Begun anew: the target's keys of its slots are in the way, and a second snapshot removes what is not of it,
    // in its own slots.
    let refused = story.plan.run("migrate --shards 0 --fresh").exits(3);
    refused.says(&["keys of this worker's slots"]);
    let mut target = story.target.side();
    let (stray, foreign) = (
        format!("{{{ours}}}:stray"),
        format!("{{{}}}:stray", key_in(5461..=10921)),
    );
    for key in [&stray, &foreign] {
        target
            .run(&Command::new("SET").key(key).arg("1"))
            .expect("it is set");
    }
    story.plan.set("/on_existing", json!("reconcile"));
    story
        .plan
        .run("migrate --shards 0 --fresh --until caught-up")
        .exits(0);
    let mut there = |key: &str| {
        target
            .run(&Command::new("EXISTS").key(key))
            .ok()
            .and_then(|v| v.int())
    };
    assert_eq!((there(&stray), there(&foreign)), (Some(0), Some(1)));
    // The other one still runs, and mends what it is asked for.
    let extra = story.plan.run("verify --json").exits(1).json;
    assert_eq!(
        (&extra["extra_count"], &extra["extra"][0]["slot"]),
        (&json!(1), &json!(slot(foreign.as_bytes())))
    );
    story.plan.run("verify --repair").exits(0);
    assert_eq!(there(&foreign), Some(0));
    stop(second);
    story.judge();
}

#[test]
fn slots_that_cross_from_worker_to_worker_stop_both() {
    let Some([name]) = need(["valkey-8.1"]) else {
        return;
    };
    if cli(&name).is_none() {
        return skip("needs redis-cli");
    }
    let story = clusters(&name);
    story.fill(3_000);
    let traffic = stubborn(&story, 1_000);
    let (mut first, mut second) = (
        worker(&story, "--worker 0/2"),
        worker(&story, "--worker 1/2"),
    );
    wait_worker_loaded(&story, &mut first, "--worker 0/2");
    wait_worker_loaded(&story, &mut second, "--worker 1/2");
    let Endpoint::Cluster(cluster) = &story.source else {
        unreachable!()
    };
    // Between masters of one worker they are followed.
    reshard(&name, cluster, 0, 2, 40);
    std::thread::sleep(Duration::from_secs(4));
    assert!(
        first.ended().is_none() && second.ended().is_none(),
        "{}",
        first.stderr_now()
    );
    reshard(&name, cluster, 0, 1, 40);
    for running in [first, second] {
        let ended = running.wait(Duration::from_secs(60)).exits(3);
        ended.says(&[
            "from one worker's master to another's (40",
            "move the slots back",
        ]);
    }
    let refused = story.plan.run("migrate --worker 0/2").exits(3);
    refused.says(&["(40-79, now at"]);
    assert_eq!(story.plan.status()["phase"], "failed");
    // The remedy.
    reshard(&name, cluster, 1, 0, 40);
    let (mut first, mut second) = (
        worker(&story, "--worker 0/2"),
        worker(&story, "--worker 1/2"),
    );
    let report = traffic.stop();
    assert!(report.total() > 1_000, "{report:?}");
    std::thread::sleep(Duration::from_secs(3));
    story.plan.wait_caught_up(&mut first, SOON);
    story.plan.wait_caught_up(&mut second, SOON);
    stop(first);
    stop(second);
    story.verify();
    story.judge();
}

#[test]
fn a_failover_is_followed_by_the_worker_whose_it_is() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = Story::new(
        Endpoint::replicated(Setup::new(&name).line("repl-backlog-size 256mb")),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.fill(2_000);
    let traffic = stubborn(&story, 1_000);
    let (mut first, mut second) = (
        worker(&story, "--worker 0/2"),
        worker(&story, "--worker 1/2"),
    );
    wait_worker_loaded(&story, &mut first, "--worker 0/2");
    wait_worker_loaded(&story, &mut second, "--worker 1/2");
    let Endpoint::Cluster(cluster) = &mut story.source else {
        unreachable!()
    };
    assert_eq!(role(&cluster.nodes()[1]), "master");
    fail_over(cluster, 1, Duration::from_secs(2));
    assert!(
        first.ended().is_none() && second.ended().is_none(),
        "{}",
        second.stderr_now()
    );
    // One that starts again finds its slots at another address.
    stop(second);
    let mut second = worker(&story, "--worker 1/2");
    let report = traffic.stop();
    assert!(report.total() > 1_000, "{report:?}");
    story.plan.wait_caught_up(&mut first, SOON);
    let status = story.plan.wait_caught_up(&mut second, SOON);
    assert_eq!(
        status["shards"].as_array().map(Vec::len),
        Some(3),
        "{status}"
    );
    stop(first);
    stop(second);
    story.verify();
    story.judge();
}
