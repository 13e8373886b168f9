//! Stopped and started again, a migration goes on where it was: nothing lost, nothing twice, no full resync.

use crate::support::cutter::Cutter;
use crate::support::server::Setup;
use crate::support::story::{Endpoint, Story};
use crate::support::traffic::{self, Mix, Options};
use crate::support::{need, wait_until};
use serde_json::json;
use std::time::Duration;

fn story(name: &str) -> Story {
    Story::new(
        Endpoint::alone(Setup::new(name)),
        Endpoint::cluster(Setup::new(name)),
    )
}

#[test]
fn after_ctrl_c_it_continues_without_a_full_resync() {
    let Some([name]) = need(["any"]) else { return };
    let story = story(&name);
    story.fill(5_000);
    let traffic = story.traffic();
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    for _ in 0..2 {
        std::thread::sleep(Duration::from_secs(2));
        running.interrupt();
        running.wait(Duration::from_secs(30)).exits(130);
        // What is written now has to come out of the source's backlog.
        std::thread::sleep(Duration::from_secs(1));
        running = story.migrate();
    }
    std::thread::sleep(Duration::from_secs(2));
    let report = traffic.stop();
    story.catch_up_and_stop(running);
    assert_eq!(story.source.info("stats", "sync_full"), 1);
    assert!(story.source.info("stats", "sync_partial_ok") >= 2);
    story.verify();
    story.judge();
    story.check_counters(&report);
}

/// What was stopped in order, and is then killed before it has saved anything, does not run a second time.
#[test]
fn a_kill_right_after_an_orderly_stop_applies_nothing_twice() {
    let Some([name]) = need(["any"]) else { return };
    let story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    let (source, target) = (&story.source.nodes()[0], &story.target.nodes()[0]);
    source.run("SET counter 1");
    story.catch_up_and_stop(story.migrate());
    let unsaved = [("KEYFERRY_BENCH_SAVE_MS", "600000")];
    let running = story.plan.start_with("migrate --json", &unsaved);
    (0..100).for_each(|_| drop(source.run("INCR counter")));
    wait_until("it is applied", Duration::from_secs(30), || {
        target.run("GET counter").text() == "101"
    });
    running.signal("KILL");
    running.wait(Duration::from_secs(10));
    story.catch_up_and_stop(story.migrate());
    assert_eq!(target.run("GET counter").text(), "101");
    story.judge();
}

/// Stopped before it has caught up, it does not say that it has.
#[test]
fn ctrl_c_before_the_end_is_no_end() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = story(&name);
    story.fill(5_000);
    story.plan.set("/limits", json!({ "keys_per_s": 1_000 }));
    for wait in [0.3, 2.0] {
        let running = story.plan.start("migrate --until caught-up --json");
        std::thread::sleep(Duration::from_secs_f64(wait));
        running.interrupt();
        let outcome = running.wait(Duration::from_secs(30)).exits(130);
        assert_eq!(outcome.json["caught_up"], false, "{}", outcome.stdout);
    }
    story.plan.set("/limits", json!({}));
    let outcome = story.plan.run("migrate --until caught-up --json").exits(0);
    assert_eq!(outcome.json["caught_up"], true, "{}", outcome.stdout);
    story.judge();
}

#[test]
fn ctrl_c_is_heard_before_the_snapshot_begins() {
    let Some([name]) = need(["any"]) else { return };
    let patient = Setup::new(&name)
        .line("repl-diskless-sync yes")
        .line("repl-diskless-sync-delay 60");
    let story = Story::new(Endpoint::alone(patient), Endpoint::alone(Setup::new(&name)));
    story.fill(100);
    let running = story.migrate();
    std::thread::sleep(Duration::from_secs(1));
    running.interrupt();
    running.wait(Duration::from_secs(20)).exits(130);
    assert_eq!(story.source.info("stats", "sync_full"), 1);
}

#[test]
fn after_a_kill_counters_are_exact() {
    let Some([name]) = need(["any"]) else { return };
    let story = story(&name);
    story.fill(2_000);
    let (mixed, counters) = (story.traffic_options(), story.traffic_options());
    let mixed = traffic::start(&Options {
        rate: 1_000,
        ..mixed
    })
    .expect("the traffic starts");
    let counters = Options {
        mix: Mix::Counters,
        rate: 2_000,
        seed: 2,
        ..counters
    };
    let counters = traffic::start(&counters).expect("the traffic starts");
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(1_700));
        running.signal("KILL");
        running.wait(Duration::from_secs(10)).exits(-1);
        running = story.migrate();
    }
    std::thread::sleep(Duration::from_secs(1));
    let (mut report, more) = (mixed.stop(), counters.stop());
    for (key, sum) in more.counters {
        *report.counters.entry(key).or_default() += sum;
    }
    report.broken.extend(more.broken);
    story.catch_up_and_stop(running);
    story.verify();
    story.judge();
    story.check_counters(&report);
}

#[test]
fn killed_during_the_load_it_starts_again_by_itself() {
    let Some([name]) = need(["any"]) else { return };
    let story = story(&name);
    story.fill(30_000);
    let running = story.migrate();
    std::thread::sleep(Duration::from_millis(400));
    running.signal("KILL");
    running.wait(Duration::from_secs(10));
    story.plan.run("migrate --until caught-up --json").exits(0);
    story.verify();
    story.judge();
}

/// A heal reserves offsets far ahead of the stream; a source that then falls silent must not be waited for.
#[test]
fn after_a_kill_a_quiet_source_is_caught_up_with() {
    let Some([name]) = need(["any"]) else { return };
    let story = story(&name);
    story.fill(500);
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    let source = &story.source.nodes()[0];
    for key in ["across", "another"] {
        source.run(&format!("SET {key} x"));
        // From one slot to another: the key is read and written, not renamed.
        source.run(&format!("RENAME {key} slots:{key}"));
    }
    let healed = |s: &serde_json::Value| s["healed_keys"].as_u64() > Some(0);
    story
        .plan
        .wait_status(&mut running, "healed", Duration::from_secs(30), healed);
    running.signal("KILL");
    running.wait(Duration::from_secs(10)).exits(-1);
    source.run("SET short-lived x PX 3000");
    story.plan.run("migrate --until caught-up --json").exits(0);
    std::thread::sleep(Duration::from_secs(4));
    story.plan.run("migrate --until caught-up --json").exits(0);
    story.verify();
    story.judge();
}

#[test]
fn a_cut_link_is_joined_again() {
    let Some([name]) = need(["any"]) else { return };
    let story = story(&name);
    story.fill(2_000);
    let traffic = story.traffic();
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(700));
        story.source.nodes()[0].run("CLIENT KILL TYPE replica");
    }
    let report = traffic.stop();
    story.catch_up_and_stop(running);
    assert_eq!(story.source.info("stats", "sync_full"), 1);
    story.verify();
    story.judge();
    story.check_counters(&report);
}

#[test]
fn a_second_process_on_the_same_plan_is_refused_with_the_pid_of_the_first() {
    let Some([name]) = need(["any"]) else { return };
    let story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    story.fill(500);
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    let pid = running.pid().to_string();
    story.plan.run("migrate --json").exits(3).says(&[&pid]);
    assert!(
        running.ended().is_none(),
        "the first one went on: {}",
        running.stderr_now()
    );
    story.catch_up_and_stop(running);
}

/// A limit is changed while it runs, without a restart.
#[test]
fn limits_are_changed_while_it_runs() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    story
        .plan
        .run("limit --keys-per-s 10")
        .exits(2)
        .says(&["has been run"]);
    story.fill(8_000);
    story.plan.set("/limits", json!({ "keys_per_s": 100 }));
    let mut running = story.migrate();
    let read = |s: &serde_json::Value| s["snapshot"]["keys_written"].as_u64().unwrap_or(0);
    story
        .plan
        .wait_status(&mut running, "begun", Duration::from_secs(20), |s| {
            read(s) > 50
        });
    assert_ne!(story.plan.status()["snapshot"]["done"], true);
    let said = story.plan.run("limit --keys-per-s 0").exits(0).stdout;
    assert!(said.contains("keys per second: no limit"), "{said}");
    // At the plan's pace it would take 80 s.
    story
        .plan
        .wait_status(&mut running, "loaded", Duration::from_secs(30), |s| {
            s["snapshot"]["done"] == true
        });
    story.catch_up_and_stop(running);
    let said = story.plan.run("limit --as-planned").exits(0).stdout;
    assert!(said.contains("keys per second: 100,"), "{said}");
}

/// A side that answers slowly is spared, and that is said.
#[test]
fn a_slow_side_is_spared() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    story.fill(6_000);
    let line = Cutter::far(
        &story.target.nodes()[0].address(),
        Duration::from_millis(30),
    );
    story.plan.set("/target/url", json!(line.url()));
    story
        .plan
        .set("/limits", json!({ "latency_ms": 10, "keys_per_s": 2_000 }));
    let mut running = story.plan.start("migrate --json");
    story.wait_loaded(&mut running);
    let said = running.stderr_now();
    assert!(said.contains("slowing down"), "{said}");
    story.catch_up_and_stop(running);
    story.judge();
}
