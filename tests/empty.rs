//! Collections without elements: a COPY of a hash whose fields have all expired makes one at Valkey 9.1.

use crate::support::keyferry::Plan;
use crate::support::server::{Server, Setup};
use crate::support::story::{Endpoint, Story};
use crate::support::wire::Value;
use crate::support::{need, wait_until};
use serde_json::json;
use std::time::Duration;

/// A server that lets expired fields lie.
fn source(name: &str) -> Server {
    // A child that fails ends at once, without testing the memory first.
    let lines = ["enable-debug-command yes", "crash-memcheck-enabled no"];
    let server = Setup::new(name).lines(&lines).start();
    server.run("DEBUG SET-ACTIVE-EXPIRE 0");
    server.run("SET a 1");
    server
}

/// Makes the hash `copy` without fields in a database.
fn copy(server: &Server, db: u32) {
    server.run("HSET hash field value");
    server.run("HPEXPIRE hash 1 FIELDS 1 field");
    wait_until("the field has expired", Duration::from_secs(5), || {
        matches!(server.run("HGET hash field"), Value::Nil)
    });
    server.run(&format!("COPY hash copy DB {db}"));
}

#[test]
fn a_hash_without_fields_is_a_key_that_is_not_there() {
    let Some([name]) = need(["valkey-9.1"]) else {
        return;
    };
    let story = Story::new(
        Endpoint::Alone(Box::new(source(&name))),
        Endpoint::alone(Setup::new(&name)),
    );
    let (ours, theirs) = (&story.source.nodes()[0], &story.target.nodes()[0]);
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    // A key of another database is read from the source.
    copy(ours, 3);
    ours.run("SET a 2");
    wait_until("what follows is applied", Duration::from_secs(20), || {
        theirs.run("GET a").text() == "2"
    });
    story.catch_up_and_stop(running);
    assert_eq!(story.plan.status()["skipped"]["empty"], 1);
    let mut there = theirs.client();
    there.words("SELECT 3").expect("a database");
    assert_eq!(there.words("DBSIZE").expect("a number").int(), Some(0));
    story.verify();
    // A snapshot that a server has saved with it.
    ours.run("SAVE");
    let path = ours.dir().join("dump.rdb");
    let target = Server::start(&name);
    let plan = Plan::of(
        json!({"name": "file", "source": {"mode": "rdb", "path": path}, "target": {"url": target.url()}}),
    );
    let outcome = plan.run("migrate --json").exits(0);
    assert_eq!(outcome.json["skipped"]["empty"], 1, "{}", outcome.stdout);
    assert_eq!(target.run("GET a").text(), "2");
    plan.run("verify --json").exits(0);
}

/// A replica of Valkey 9.1 is sent nothing then: the child that writes its snapshot fails.
#[test]
fn a_source_that_cannot_write_its_snapshot_is_told_what_to_do() {
    let Some([name]) = need(["valkey-9.1"]) else {
        return;
    };
    let story = Story::new(
        Endpoint::Alone(Box::new(source(&name))),
        Endpoint::alone(Setup::new(&name)),
    );
    let ours = &story.source.nodes()[0];
    copy(ours, 0);
    let mut running = story.migrate();
    let told = |s: &serde_json::Value| {
        let note = s["shards"][0]["note"].as_str().unwrap_or_default();
        note.contains("cut the link") && note.contains("HLEN 0")
    };
    let limit = Duration::from_secs(60);
    story.plan.wait_status(&mut running, "told", limit, told);
    let said = story.plan.run("status").exits(0).stdout;
    assert!(said.contains("HLEN 0"), "{said}");
    ours.run("DEL copy hash");
    story.wait_loaded(&mut running);
    story.catch_up_and_stop(running);
    story.verify();
    assert!(!told(&story.plan.status()), "the note stays");
}
