//! The side that the clients have left stays closed, is watched, and is opened again; and a rehearsal that freezes.

use crate::cutover::{Move, answer};
use crate::support::need;
use crate::support::server::Setup;
use crate::support::story::Endpoint;
use crate::support::wait_until;
use crate::support::wire::Value;
use serde_json::json;
use std::time::Duration;

/// Users with all their rules, as one server tells: in any order, as Redis 6.0 has none.
pub fn users(side: &Endpoint) -> Vec<Vec<String>> {
    let told = side.nodes()[0].run("ACL LIST");
    let sorted = |line: &Value| {
        let mut words: Vec<String> = line.text().split(' ').map(str::to_owned).collect();
        words.sort();
        words
    };
    told.items().iter().map(sorted).collect()
}

/// After the switch nobody writes to the old side, until it is opened; rights are then what they were.
#[test]
fn the_old_side_is_closed_until_it_is_opened() {
    let Some(it) = Move::usual(json!({"watch_s": 1})) else {
        return;
    };
    let source = &it.story.source.nodes()[0];
    source.run("ACL SETUSER app on nopass ~* +@all -@dangerous +info");
    source.run("ACL SETUSER reader on nopass ~* +@read");
    let before = users(&it.story.source);
    it.story.fill(500);
    it.plan().run("migrate --until caught-up --json").exits(0);
    let clients = it.clients(300);
    let outcome = it.plan().run("cutover --json").exits(0);
    let told = answer(&outcome);
    assert_eq!(told["old_side"]["closed"], "by-rights", "{told}");
    let mut open = source.client();
    let refused = open.words("SET late 1");
    assert!(refused.is_err(), "{refused:?}");
    assert!(!source.run("GET late").is_error(), "readers may read on");
    let status = it.plan().status();
    assert_eq!(status["cutover"]["stage"], "committed");
    assert_eq!(status["cutover"]["old_side"]["closed"], "by-rights");
    let text = it.plan().run("status").exits(0).stdout;
    assert!(
        text.contains("it is committed") && text.contains("stays closed"),
        "{text}"
    );
    it.plan().run("cutover --reopen --json").exits(0);
    open.words("SET late 1").expect("it is taken");
    assert_eq!(users(&it.story.source), before);
    // What is written there now would be overwritten.
    let outcome = it.plan().run("rollback --json").exits(1);
    assert!(
        answer(&outcome)["refused"]["why"]
            .as_str()
            .is_some_and(|w| w.contains("--reopen")),
        "{}",
        outcome.json
    );
    it.plan().run("rollback --accept-late --json").exits(0);
    let report = clients.stop();
    it.exact(&it.story.source, &report);
    assert_eq!(users(&it.story.source), before);
}

/// The plan may want it open.
#[test]
fn the_old_side_may_stay_open() {
    let Some(it) = Move::usual(json!({"watch_s": 1, "old_side": "open"})) else {
        return;
    };
    it.story.fill(300);
    it.plan().run("migrate --until caught-up --json").exits(0);
    let outcome = it.plan().run("cutover --json").exits(0);
    assert_eq!(answer(&outcome)["old_side"]["closed"], "open");
    let taken = it.story.source.nodes()[0].run("SET late 1");
    assert!(!taken.is_error(), "{taken:?}");
}

/// Where rights cannot be taken, a pause without an end keeps writers out; the way back ends it.
#[test]
fn a_pause_keeps_it_closed_where_rights_cannot_be_taken() {
    let Some([name]) = need(["any:client-pause-write"]) else {
        return;
    };
    let mut it = Move::new(
        Endpoint::alone(Setup::new(&name).line("repl-backlog-size 64mb")),
        Endpoint::cluster(Setup::new(&name)),
        json!({"watch_s": 1}),
    );
    let source = it.story.source.nodes()[0].address();
    let mut admin = it.story.source.nodes()[0].client();
    let made = admin.words("ACL SETUSER mover on >secret ~* &* +@all -acl|setuser -acl|deluser");
    if made.is_err() {
        // Before Redis 7.0 a subcommand cannot be taken away alone.
        let made = admin.words("ACL SETUSER mover on >secret ~* &* +@all -acl");
        made.expect("the user is made");
    }
    it.story
        .plan
        .set("/source/url", json!(format!("redis://{source}")));
    it.story.plan.set("/source/username", json!("mover"));
    it.story.plan.set("/source/password", json!("secret"));
    it.story.fill(500);
    it.plan().run("migrate --until caught-up --json").exits(0);
    let clients = it.clients(300);
    let outcome = it.plan().run("cutover --json").exits(0);
    let told = answer(&outcome);
    assert_eq!(told["old_side"]["closed"], "by-pause", "{told}");
    assert!(told["way_back"]["none"].is_string(), "{told}");
    std::thread::sleep(Duration::from_secs(4));
    let mut late = it.story.source.nodes()[0].client();
    let waits = std::thread::spawn(move || late.words("SET late 1").is_ok());
    std::thread::sleep(Duration::from_millis(500));
    assert!(!waits.is_finished(), "it waits");
    it.plan().run("rollback --json").exits(0);
    it.thawed(&it.story.source);
    it.exact(&it.story.source, &clients.stop());
}

/// What clients would feel, without moving them.
#[test]
fn a_rehearsal_may_freeze() {
    let Some(it) = Move::usual(json!({})) else {
        return;
    };
    it.story.fill(1_000);
    let mut running = it.story.migrate();
    it.story.wait_loaded(&mut running);
    let clients = it.clients(500);
    it.plan()
        .wait_caught_up(&mut running, Duration::from_secs(60));
    it.plan().run("cutover --freeze-for 2s").exits(2);
    let outcome = it
        .plan()
        .run("cutover --dry-run --freeze-for 2s --json")
        .exits(0);
    let told = answer(&outcome);
    assert!(told["pause_ms"].as_f64() > Some(0.0), "{told}");
    assert!(told["parts_ms"]["drain"].is_number(), "{told}");
    assert_eq!(told["clients_at"], "source");
    assert_eq!(it.at(), "source");
    it.thawed(&it.story.source);
    assert_eq!(it.plan().status()["cutover"]["stage"], "source");
    it.plan()
        .wait_caught_up(&mut running, Duration::from_secs(60));
    let report = clients.stop();
    assert!(report.pause < Duration::from_secs(2), "{:?}", report.pause);
    it.story.catch_up_and_stop(running);
    it.exact(&it.story.target, &report);
}

/// A hook that fails where nobody can lead the clients back leaves it to a person to say where they are.
#[test]
fn a_failed_hook_without_a_way_back_is_asked_about() {
    for (said, wanted) in [("source", 0), ("target", 0)] {
        let hooks = json!({"watch_s": 1, "hooks": {"switch_back": []}});
        let Some(mut it) = Move::usual(hooks) else {
            return;
        };
        let file = it.file.display().to_string();
        let moves = format!("echo {said} > {file}.x && mv {file}.x {file}; exit 4");
        it.story
            .plan
            .set("/cutover/hooks/switch", json!(["sh", "-c", moves]));
        it.story.fill(500);
        it.plan().run("migrate --until caught-up --json").exits(0);
        let clients = it.clients(300);
        std::thread::sleep(Duration::from_millis(300));
        it.plan()
            .run("cutover --json")
            .exits(3)
            .says(&["--clients-at", "ended with 4"]);
        let status = it.plan().status();
        assert_eq!(status["cutover"]["stage"], "switching");
        let mut open = it.story.source.nodes()[0].client();
        let refused = open.words("SET late 1");
        assert!(refused.is_err(), "it is closed until somebody says more");
        it.plan()
            .run("cutover --json")
            .exits(3)
            .says(&["--clients-at"]);
        // The hook works now.
        it.story.plan.set(
            "/cutover/hooks/switch",
            json!([
                "sh",
                "-c",
                format!("echo target > {file}.x && mv {file}.x {file}")
            ]),
        );
        let outcome = it
            .plan()
            .run(&format!("cutover --json --clients-at {said}"));
        assert_eq!(
            outcome.code, wanted,
            "{} {}",
            outcome.stdout, outcome.stderr
        );
        assert_eq!(it.at(), "target");
        std::thread::sleep(Duration::from_millis(300));
        it.exact(&it.story.target, &clients.stop());
    }
}

/// A cutover that still watches is asked to end, not signalled; and a second one is not begun beside it.
#[test]
fn a_rollback_takes_over_from_a_cutover_that_watches() {
    let Some(it) = Move::usual(json!({"watch_s": 60})) else {
        return;
    };
    it.story.fill(500);
    it.plan().run("migrate --until caught-up --json").exits(0);
    let clients = it.clients(300);
    let watching = it.plan().start("cutover --json");
    wait_until(
        "the clients are at the target",
        Duration::from_secs(60),
        || it.at() == "target",
    );
    std::thread::sleep(Duration::from_secs(1));
    it.plan()
        .run("cutover")
        .exits(3)
        .says(&["another keyferry"]);
    it.plan().run("rollback --json").exits(0);
    watching.wait(Duration::from_secs(10)).exits(130);
    assert_eq!(it.at(), "source");
    it.thawed(&it.story.source);
    it.exact(&it.story.source, &clients.stop());
}

/// A plan may name a replica: the writers are frozen at its master, and led back to it.
#[test]
fn a_source_that_is_a_replica_is_frozen_at_its_master() {
    let Some([name]) = need(["any"]) else { return };
    let setup = Setup::new(&name).line("repl-backlog-size 64mb");
    let mut it = Move::new(
        Endpoint::alone(setup),
        Endpoint::cluster(Setup::new(&name)),
        json!({"watch_s": 2}),
    );
    let replica = Setup::new(&name)
        .replica_of(&it.story.source.nodes()[0])
        .start();
    let below = Setup::new(&name).replica_of(&replica).start();
    replica.wait_in_step();
    below.wait_in_step();
    it.story.plan.set("/source/url", json!(below.url()));
    it.story.fill(1_000);
    it.plan().run("migrate --until caught-up --json").exits(0);
    let clients = it.clients(500);
    let outcome = it.plan().run("cutover --json").exits(0);
    let told = answer(&outcome);
    assert!(told["way_back"]["ready"] == true, "{told}");
    let mut open = it.story.source.nodes()[0].client();
    assert!(open.words("SET late 1").is_err(), "the master is closed");
    std::thread::sleep(Duration::from_millis(500));
    it.plan().run("rollback --json").exits(0);
    std::thread::sleep(Duration::from_millis(300));
    it.thawed(&it.story.source);
    it.exact(&it.story.source, &clients.stop());
}

/// What a user may do by a selector is taken and given back as well.
#[test]
fn selectors_of_users_are_closed_too() {
    for name in ["redis-7.0", "redis-8.2", "valkey-9.1"] {
        if need([name]).is_none() {
            continue;
        }
        let it = Move::new(
            Endpoint::alone(Setup::new(name)),
            Endpoint::alone(Setup::new(name)),
            json!({"watch_s": 1}),
        );
        let source = &it.story.source.nodes()[0];
        let mut admin = source.client();
        if admin
            .words("ACL SETUSER picky on nopass +@read ~* (+set ~a:* &x) (+@hash ~h:*)")
            .is_err()
        {
            continue;
        }
        let before = users(&it.story.source);
        it.story.fill(200);
        it.plan().run("migrate --until caught-up --json").exits(0);
        it.plan().run("cutover --json").exits(0);
        let mut picky = source.client();
        picky.words("AUTH picky x").expect("it gets in");
        for write in ["SET a:1 x", "HSET h:1 f v"] {
            assert!(picky.words(write).is_err(), "{name}: {write}");
        }
        picky.words("HGET h:1 f").expect("it reads");
        it.plan().run("cutover --reopen").exits(0);
        assert_eq!(users(&it.story.source), before, "{name}");
        for write in ["SET a:1 x", "HSET h:1 f v"] {
            picky.words(write).expect("it writes again");
        }
    }
}
