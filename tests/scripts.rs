//! Scripts that a source replicates as they were called: what they write beyond the keys that the call names.

use crate::support::keyferry::Plan;
use crate::support::need;
use crate::support::server::{Server, Setup};
use crate::support::story::{Endpoint, Story};
use crate::support::wire::Command;
use serde_json::json;
use std::time::Duration;

/// Sets a key that the call names, one that it does not, and adds to a set that it does not name either.
const SCRIPT: &str = "redis.call('SET', KEYS[1], ARGV[1]) \
    redis.call('SET', 'index:' .. ARGV[1], KEYS[1]) \
    return redis.call('SADD', 'all', KEYS[1])";

/// Runs it by its hash, as clients do.
fn run(source: &Server, n: u32) {
    let mut client = source.client();
    let load = Command::new("SCRIPT LOAD").arg(SCRIPT);
    let sha = client.run(&load).expect("it is loaded").text();
    let call = Command::new("EVALSHA").arg(sha).arg("1");
    let call = call.arg(format!("user:{n}")).arg(format!("{n}"));
    let answer = client.run(&call).expect("it runs");
    assert!(!answer.is_error(), "{}", answer.text());
}

#[test]
fn a_script_as_it_was_called_ends_the_run_before_anything_of_it_is_applied() {
    let Some([name]) = need(["redis-6.2"]) else {
        return;
    };
    let targets = [
        Endpoint::alone(Setup::new(&name)),
        Endpoint::cluster(Setup::new(&name)),
    ];
    for target in targets {
        let source = Setup::new(&name).line("lua-replicate-commands no");
        let mut story = Story::new(Endpoint::alone(source), target);
        let source = |story: &Story, command: &str| story.source.nodes()[0].run(command);
        run(&story.source.nodes()[0], 1);
        let mut running = story.plan.start("migrate --json --ignore scripts_verbatim");
        story
            .plan
            .wait_caught_up(&mut running, Duration::from_secs(60));
        run(&story.source.nodes()[0], 2);
        let says = ["offset", "EVAL", "lua-replicate-commands yes", "--fresh"];
        running.wait(Duration::from_secs(30)).exits(3).says(&says);
        let exists = Command::new("EXISTS").key("user:2");
        let there = story.target.side().run(&exists).expect("an answer").int();
        assert_eq!(there, Some(0), "a part of the script is at the target");
        // The remedy, as it is told.
        source(&story, "CONFIG SET lua-replicate-commands yes");
        story.plan.set("/on_existing", json!("reconcile"));
        let mut running = story.plan.start("migrate --json --fresh");
        story.wait_loaded(&mut running);
        run(&story.source.nodes()[0], 3);
        story.catch_up_and_stop(running);
        story.verify();
        story.judge();
    }
}

/// The commands of an append-only file are such a stream without a source that could be asked.
#[test]
fn a_script_of_an_append_only_file_runs_where_that_is_exact() {
    let Some([name]) = need(["redis-6.2"]) else {
        return;
    };
    let lines = [
        "appendonly yes",
        "appendfsync always",
        "lua-replicate-commands no",
    ];
    let source = Setup::new(&name).lines(&lines).start();
    (0..3).for_each(|n| run(&source, n));
    let path = source.dir().join("appendonly.aof");
    let plan = |target: &str| {
        Plan::of(
            json!({"name": "aof", "source": {"mode": "rdb", "path": path}, "target": {"url": target}}),
        )
    };
    let target = Server::start(&name);
    plan(&target.url()).run("migrate --json").exits(0);
    assert_eq!(target.run("GET index:2").text(), "user:2");
    assert_eq!(target.run("SCARD all").int(), Some(3));
    let target = Endpoint::cluster(Setup::new(&name));
    let outcome = plan(&target.url()).run("migrate --json").exits(3);
    outcome.says(&["EVAL", "parts its keys by slot"]);
    assert_eq!(target.side().size().ok(), Some(0));
}
