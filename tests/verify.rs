//! Verification in parts, its repair, and what it says of functions.

use crate::support::need;
use crate::support::server::Setup;
use crate::support::side::slot;
use crate::support::story::{Endpoint, Story};
use crate::support::wire::Command;
use std::time::Duration;

fn moved(name: &str) -> Story {
    let story = Story::new(
        Endpoint::alone(Setup::new(name)),
        Endpoint::cluster(Setup::new(name)),
    );
    story.fill(3_000);
    story.plan.run("migrate --until caught-up --json").exits(0);
    story
}

/// Deletes, adds and changes keys at the target; returns how many differ.
fn damage(story: &Story) -> u64 {
    let mut side = story.target.side();
    let mut keys: Vec<Vec<u8>> = Vec::new();
    for node in 0..side.nodes().len() {
        let page = side.nodes()[node]
            .expect(&Command::new("SCAN 0 COUNT 200"))
            .expect("keys");
        keys.extend(page.items()[1].items().iter().map(|k| k.bytes().to_vec()));
    }
    // Keys that expire meanwhile would be no difference.
    keys.retain(|k| {
        side.run(&Command::new("PTTL").key(k))
            .is_ok_and(|t| t.int() == Some(-1))
    });
    let victims: Vec<Vec<u8>> = keys.into_iter().take(60).collect();
    assert_eq!(victims.len(), 60);
    for (i, key) in victims.iter().enumerate() {
        let command = match i % 3 {
            0 => Command::new("DEL").key(key),
            1 => Command::new("PEXPIRE").key(key).arg(5_000_000),
            _ => Command::new("SET").key(key).arg("something else entirely"),
        };
        side.run(&command).expect("an answer");
    }
    for i in 0..5 {
        let key = format!("extra:{i}");
        side.run(&Command::new("SET").key(&key).arg("x"))
            .expect("an answer");
    }
    65
}

fn differences(answer: &serde_json::Value) -> u64 {
    ["missing", "extra", "different"]
        .iter()
        .map(|k| answer[format!("{k}_count")].as_u64().unwrap_or(0))
        .sum()
}

#[test]
fn repair_makes_equal_what_differs() {
    let Some([name]) = need(["any"]) else { return };
    let story = moved(&name);
    let damaged = damage(&story);
    let found = story.plan.run("verify --json").exits(1).json;
    assert_eq!(differences(&found), damaged, "{found}");
    let repaired = story.plan.run("verify --repair --json").exits(0).json;
    assert_eq!(repaired["equal"], true, "{repaired}");
    assert_eq!(repaired["repaired_count"], damaged, "{repaired}");
    story.verify();
    story.judge();
}

/// The same while the migration runs and the source is written to: what is repaired is not applied twice.
#[test]
fn repair_goes_on_beside_a_running_migration() {
    let Some([name]) = need(["any"]) else { return };
    let story = moved(&name);
    let traffic = story.traffic();
    let mut running = story.migrate();
    story
        .plan
        .wait_caught_up(&mut running, Duration::from_secs(60));
    damage(&story);
    let outcome = story.plan.run("verify --repair --json");
    assert!(
        outcome.json["repaired_count"].as_u64().unwrap_or(0) > 30,
        "{}",
        outcome.stdout
    );
    let report = traffic.stop();
    story.catch_up_and_stop(running);
    // What the traffic kept writing to may have been unprovable then.
    story.plan.run("verify --repair --json").exits(0);
    story.judge();
    story.check_counters(&report);
}

#[test]
fn some_slots_or_a_share_of_them() {
    let Some([name]) = need(["any"]) else { return };
    let story = moved(&name);
    let mut side = story.target.side();
    let key = "part:one";
    side.run(&Command::new("SET").key(key).arg("x"))
        .expect("an answer");
    let place = slot(key.as_bytes());
    let with = format!("verify --json --slots {place}");
    let without = format!("verify --json --slots 0-{},{}-16383", place - 1, place + 1);
    let found = story.plan.run(&with).exits(1).json;
    assert_eq!(
        (
            found["extra_count"].as_u64(),
            found["slots_compared"].as_u64()
        ),
        (Some(1), Some(1))
    );
    story.plan.run(&without).exits(0);
    side.run(&Command::new("DEL").key(key)).expect("an answer");
    let sample = story.plan.run("verify --json --sample 10%").exits(0).json;
    assert_eq!(sample["slots_compared"], 1639);
    let keys = sample["keys_source"].as_u64().unwrap_or(0);
    assert!(
        keys > 100 && keys < 1_000,
        "{keys} keys in a tenth of the slots"
    );
    story
        .plan
        .run("verify --sample 0%")
        .exits(2)
        .says(&["--sample"]);
    story
        .plan
        .run("verify --slots 5-99999")
        .exits(2)
        .says(&["--slots"]);
}

#[test]
fn functions_are_compared() {
    let Some([name]) = need(["any"]) else { return };
    let story = moved(&name);
    if !story.source.side().knows("function") {
        return;
    }
    story.verify();
    let mut side = story.target.side();
    side.nodes()[1].words("FUNCTION FLUSH").expect("an answer");
    let found = story.plan.run("verify --json").exits(1).json;
    assert_eq!(found["equal"], false);
    let text = found["functions_different"][0].as_str().unwrap_or_default();
    assert!(text.contains("missing on"), "{found}");
}
