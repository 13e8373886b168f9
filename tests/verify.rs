//! Verification in parts, its repair, and what it says of functions.

use crate::support::keyferry::Plan;
use crate::support::need;
use crate::support::server::{Server, Setup};
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
    let near = |s: &serde_json::Value| s["stream"]["lag_ms"].as_u64() < Some(500);
    story
        .plan
        .wait_status(&mut running, "near", Duration::from_secs(60), near);
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

/// One command at the target that plants a difference, and the reason it is to be found with.
const PLANTED: &[(&str, &str, &str)] = &[
    ("p:gone", "DEL p:gone", "missing"),
    ("p:more", "SET p:more x", "extra"),
    ("p:type", "SET p:type now-a-string", "type"),
    ("p:byte", "SETRANGE p:byte 3 X", "value"),
    ("p:list", "LSET p:list 0 b", "value"),
    ("p:order", "RPOPLPUSH p:order p:order", "value"),
    ("p:set", "SREM p:set two", "value"),
    ("p:score", "ZADD p:score 1.0000000000000002 m", "value"),
    ("p:soon", "PEXPIRE p:soon 100000", "expiry"),
    ("p:kept", "PERSIST p:kept", "expiry"),
    (
        "p:stream",
        "XCLAIM p:stream g alice 0 1-1 RETRYCOUNT 9 JUSTID",
        "group state",
    ),
    ("p:group", "XGROUP SETID p:group g 1-1", "group state"),
    (
        "p:consumer",
        "XREADGROUP GROUP g nobody STREAMS p:consumer 0",
        "group state",
    ),
];

#[test]
fn each_planted_difference_is_found_and_named_and_mended() {
    let Some([name]) = need(["any"]) else { return };
    let story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    let full = std::env::var_os("KEYFERRY_FULL").is_some();
    story.fill(if full { 1_000_000 } else { 2_000 });
    for words in [
        "SET p:gone 1",
        "RPUSH p:type a",
        "SET p:byte abcdef",
        "SET p:swap1 first",
        "SET p:{same}:1 first",
        "SET p:{same}:2 second",
        "SET p:swap2 second",
        "RPUSH p:list a b",
        "RPUSH p:order a b c",
        "SADD p:from one two three",
        "SADD p:into four",
        "SET p:db x",
        "SADD p:set one two",
        "ZADD p:score 1 m",
        "SET p:soon 1 PX 900000",
        "SET p:kept 1 PX 900000",
        "XADD p:stream 1-1 f v",
        "XGROUP CREATE p:stream g 0",
        "XREADGROUP GROUP g alice STREAMS p:stream >",
        "XADD p:group 1-1 f v",
        "XGROUP CREATE p:group g 0",
        "XADD p:consumer 1-1 f v",
        "XGROUP CREATE p:consumer g 0",
    ] {
        story.source.nodes()[0].run(words);
    }
    story.plan.run("migrate --until caught-up --json").exits(0);
    story.verify();
    let find = |expected: &[(&str, &str)]| {
        let found = story.plan.run("verify --json").exits(1).json;
        let mut named: Vec<(String, String)> = Vec::new();
        for list in ["missing", "extra", "different"] {
            for d in found[list].as_array().expect("a list") {
                let word = |k: &str| d[k].as_str().expect("a word").to_owned();
                named.push((word("key"), word("reason")));
            }
        }
        named.sort();
        let mut wanted: Vec<(String, String)> = expected
            .iter()
            .map(|(k, r)| ((*k).to_owned(), (*r).to_owned()))
            .collect();
        wanted.sort();
        assert_eq!(named, wanted);
        story.plan.run("verify --repair --json").exits(0);
    };
    let target = &story.target.nodes()[0];
    // Each by itself, then all at once.
    for (key, plant, reason) in PLANTED {
        target.run(plant);
        find(&[(*key, *reason)]);
    }
    target.run("SET p:swap1 second");
    target.run("SET p:swap2 first");
    find(&[("p:swap1", "value"), ("p:swap2", "value")]);
    target.run("SET p:{same}:1 second");
    target.run("SET p:{same}:2 first");
    find(&[("p:{same}:1", "value"), ("p:{same}:2", "value")]);
    target.run("SMOVE p:from p:into two");
    find(&[("p:from", "value"), ("p:into", "value")]);
    target.run("MOVE p:db 1");
    find(&[("p:db", "missing"), ("p:db", "extra")]);
    PLANTED
        .iter()
        .for_each(|(_, plant, _)| drop(target.run(plant)));
    let all: Vec<(&str, &str)> = PLANTED.iter().map(|(k, _, r)| (*k, *r)).collect();
    find(&all);
    story.judge();
}

#[test]
fn a_fields_expiry_is_a_difference_of_its_own() {
    let Some([name]) = need(["redis-8.0"]) else {
        return;
    };
    let story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    story.source.nodes()[0].run("HSET h a 1 b 2");
    story.source.nodes()[0].run("HPEXPIRE h 900000 FIELDS 1 a");
    story.plan.run("migrate --until caught-up --json").exits(0);
    story.verify();
    story.target.nodes()[0].run("HPERSIST h FIELDS 1 a");
    let found = story.plan.run("verify --json").exits(1).json;
    assert_eq!(found["different"][0]["reason"], "field expiry", "{found}");
    story.plan.run("verify --repair --json").exits(0);
    story.judge();
}

/// One side keeps the registers packed, the other plain (`hll-sparse-max-bytes`): the same HyperLogLog in other bytes.
#[test]
fn a_hyperloglog_is_its_registers() {
    let Some([name]) = need(["any"]) else { return };
    let story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name).line("hll-sparse-max-bytes 100")),
    );
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    let (source, target) = (&story.source.nodes()[0], &story.target.nodes()[0]);
    for n in 0..300 {
        source.run(&format!("PFADD visitors:{} a{n} b{n}", n % 3));
    }
    // The count that is kept beside the registers is none of them.
    source.run("PFCOUNT visitors:1");
    story.catch_up_and_stop(running);
    let len = |server: &Server| server.run("STRLEN visitors:0").int();
    assert!(len(source) < Some(4_000) && len(target) > Some(12_000));
    let answer = story.plan.run("verify --json").exits(0).json;
    assert_eq!(answer["equal"], true, "{answer}");
    // DUMP refused: the string is read in parts.
    let mut refused = story.plan.json.clone();
    let url = target.url().replace("redis://", "redis://reader:pw@");
    target.run("ACL SETUSER reader on >pw ~* +@all -dump");
    refused["target"]["url"] = url.into();
    Plan::of(refused).run("verify --json").exits(0);
    target.run("PFADD visitors:2 somebody-else");
    let answer = story.plan.run("verify --json").exits(1).json;
    assert_eq!(answer["different_count"], 1, "{answer}");
    assert_eq!(answer["different"][0]["key"], "visitors:2", "{answer}");
}

/// An expiry that a side does not tell is not taken for none, which would make unlike keys equal.
#[test]
fn refused_expiries_are_an_error() {
    let Some([name]) = need(["any"]) else { return };
    let ends = [Server::start(&name), Server::start(&name)];
    for (server, expiry) in ends.iter().zip(["90000", "70000"]) {
        server.run(&format!("SET short a EX {expiry}"));
        server.run("RPUSH list a");
        server.run(&format!("EXPIRE list {expiry}"));
    }
    let plan = |ends: &[Server; 2]| Plan::new(&ends[0].url(), &ends[1].url());
    plan(&ends).run("verify --json").exits(1);
    let command = match ends[0].client().words("PEXPIRETIME short") {
        Ok(_) => "pexpiretime",
        Err(_) => "pttl",
    };
    for server in &ends {
        server.run(&format!(
            "ACL SETUSER reader on >secret ~* +@all -{command}"
        ));
    }
    let mut plan = plan(&ends);
    for side in ["source", "target"] {
        plan.set(&format!("/{side}/username"), "reader".into());
        plan.set(&format!("/{side}/password"), "secret".into());
    }
    let refused = plan.run("verify --json");
    assert!(!(0..=1).contains(&refused.code), "{refused:?}");
    refused.says(&[&command.to_uppercase()]);
}
