//! Cutovers that are killed in every step, and fleets of them: consistent each time, and nobody stays frozen.

use crate::cutover::{Move, answer, full};
use crate::support::clients::Clients;
use crate::support::need;
use crate::support::server::Setup;
use crate::support::story::Endpoint;
use serde_json::{Value, json};
use std::time::Duration;

/// What the clients have seen after a cutover was cut off and something else came after it.
#[track_caller]
fn consistent(it: &Move, clients: Clients, what: &str) {
    std::thread::sleep(Duration::from_millis(300));
    let report = clients.stop();
    let at = it.at();
    println!(
        "{what}: the clients are at the {at}, the longest pause was {:?}",
        report.pause
    );
    let side = match at.as_str() {
        "source" => &it.story.source,
        _ => &it.story.target,
    };
    it.exact(side, &report);
    // The pause ends by itself, at the latest when its time is over.
    assert!(
        report.pause < Duration::from_secs(7),
        "{what}: {:?}",
        report.pause
    );
}

/// Cut off after a step, then the same command again, or the way back.
fn dies_after(step: &str, then: &str) {
    let Some(it) = Move::usual(json!({"watch_s": 1, "max_pause_ms": 5_000})) else {
        return;
    };
    it.story.fill(500);
    it.plan().run("migrate --until caught-up --json").exits(0);
    let clients = it.clients(500);
    std::thread::sleep(Duration::from_millis(500));
    let point = match step {
        "guard" => "guard-switching".to_owned(),
        step => format!("cutover-{step}"),
    };
    let first = it
        .plan()
        .start_with("cutover --json", &[("KEYFERRY_FAILPOINT", &point)]);
    let first = first.wait(Duration::from_secs(60));
    let what = format!("{step}, then {then}");
    if step != "guard" {
        assert_eq!(first.code, -1, "{what}: {}", first.stderr);
    }
    let outcome = it.plan().run(&format!("{then} --json"));
    if step == "guard" && outcome.code == 3 {
        // Nobody knows where the clients are, but for whoever looks.
        let at = it.at();
        let outcome = it
            .plan()
            .run(&format!("{then} --json --clients-at {at}"))
            .exits(0);
        answer(&outcome);
    } else {
        answer(&outcome.exits(0));
    }
    let wanted = if then == "cutover" {
        "target"
    } else {
        "source"
    };
    assert_eq!(it.at(), wanted, "{what}");
    it.thawed(if wanted == "target" {
        &it.story.target
    } else {
        &it.story.source
    });
    consistent(&it, clients, &what);
    if then == "rollback" {
        // Whatever goes on is ended by its own means.
        it.plan().run("cutover --json");
    }
}

/// After which it can be cut off; "guard" is the process that switches.
const EVERY_STEP: [&str; 10] = [
    "preflight",
    "warm-up",
    "freeze",
    "drain",
    "verify",
    "fence",
    "switch",
    "arm-rollback",
    "watch",
    "guard",
];

#[test]
fn cut_off_after_a_step_the_same_command_goes_on() {
    let few = ["freeze", "switch"];
    let steps: &[&str] = if full() { &EVERY_STEP } else { &few };
    for step in steps {
        dies_after(step, "cutover");
    }
}

#[test]
fn cut_off_after_a_step_the_way_back_is_open() {
    let few = ["drain", "watch"];
    let steps: &[&str] = if full() { &EVERY_STEP } else { &few };
    for step in steps {
        dies_after(step, "rollback");
    }
}

/// Killed at any moment, until it is done.
#[test]
fn killed_at_random_moments() {
    let mut rng = crate::support::versions::seeded();
    for n in 0..if full() { 12 } else { 1 } {
        let Some(it) = Move::usual(json!({"watch_s": 1, "max_pause_ms": 5_000})) else {
            return;
        };
        it.story.fill(500);
        it.plan().run("migrate --until caught-up --json").exits(0);
        let clients = it.clients(500);
        for _ in 0..3 {
            let cutover = it.plan().start("cutover --json");
            std::thread::sleep(Duration::from_millis(150 + rng.below(700)));
            cutover.signal("KILL");
            cutover.wait(Duration::from_secs(10));
        }
        it.plan().run("cutover --json").exits(0);
        assert_eq!(it.at(), "target");
        consistent(&it, clients, &format!("killed three times, run {n}"));
    }
}

/// Several plans in waves; after the first that is refused no other is begun.
#[test]
fn a_fleet_stops_at_the_first_failure() {
    let mut moves = Vec::new();
    for n in 0..3 {
        let hook = if n == 1 {
            json!({"hooks": {"switch": ["false"]}})
        } else {
            json!({"watch_s": 1})
        };
        let Some([name]) = need(["any"]) else { return };
        let it = Move::new(
            Endpoint::alone(Setup::new(&name)),
            Endpoint::alone(Setup::new(&name)),
            hook,
        );
        it.story.fill(200);
        moves.push(it);
    }
    // Each plan of the tests has a folder of its own; the fleet has one for all.
    let work = tempfile::tempdir().expect("a folder");
    let mut paths = Vec::new();
    for (n, it) in moves.iter().enumerate() {
        let text = std::fs::read_to_string(it.plan().path()).expect("the plan");
        let mut plan: Value = serde_json::from_str(&text).expect("it is JSON");
        plan["name"] = json!(format!("fleet-{n}"));
        let path = work.path().join(format!("{n}.json"));
        std::fs::write(&path, plan.to_string()).expect("it is written");
        paths.push(path.display().to_string());
    }
    let dir = work.path().join("state").display().to_string();
    let run = |words: &[&str]| {
        let mut all: Vec<&str> = vec!["fleet"];
        all.extend(words);
        all.extend(paths.iter().map(String::as_str));
        all.extend(["--work-dir", dir.as_str(), "--json"]);
        if words[0] == "migrate" {
            all.extend(["--", "--until", "caught-up"]);
        }
        crate::support::keyferry::run(&all)
    };
    let migrated = run(&["migrate", "--at-once", "3"]).exits(0);
    assert_eq!(migrated.json["done"], 3, "{}", migrated.stdout);
    let moved = run(&["cutover"]).exits(1);
    let told = answer(&moved);
    let states: Vec<&str> = (0..3)
        .map(|n| told["plans"][n]["state"].as_str().unwrap_or(""))
        .collect();
    assert_eq!(states, ["done", "refused", "not begun"]);
    assert_eq!(
        moves.iter().map(Move::at).collect::<Vec<_>>(),
        ["target", "source", "source"]
    );
    let status = run(&["status", "--at-once", "2"]).exits(0);
    assert_eq!(status.json["plans"][0]["answer"]["phase"], "switched");
}
