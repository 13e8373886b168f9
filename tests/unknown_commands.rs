//! Commands of the stream that keyferry does not know: what stops a run, and how it goes on.
//!
//! SETRANGE stands in the real server's stream under a name that nobody knows (`support::fork`).

use crate::support::fork::{Fork, Rules, begins};
use crate::support::keyferry::{Outcome, Plan, Running};
use crate::support::need;
use crate::support::server::{Server, Setup};
use crate::support::wire::Command;
use serde_json::{Value, json};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// A server whose SETRANGE is FOOBARED in its stream; `tells`: it says where the keys of that stand.
fn fork(source: &Server, tells: bool) -> Fork {
    let rules = Rules::default().in_stream("SETRANGE", "FOOBARED");
    Fork::start(
        &source.address(),
        match tells {
            false => rules,
            true => rules.change(told),
        },
    )
}

/// COMMAND INFO of FOOBARED is answered with that of SETRANGE.
fn told(args: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    let named = |word: &Vec<u8>| match word.eq_ignore_ascii_case(b"FOOBARED") {
        true => b"SETRANGE".to_vec(),
        false => word.clone(),
    };
    begins(args, "COMMAND INFO").then(|| args.iter().map(named).collect())
}

fn follow(plan: &Plan) -> Running {
    let mut running = plan.start("migrate --json");
    plan.wait_status(&mut running, "loaded", SOON, |s| s["phase"] == "stream");
    running
}

fn catch_up(plan: &Plan, running: &mut Running, source: &Server) -> Value {
    let written = source.info("replication", "master_repl_offset");
    plan.wait_status(running, "caught up", SOON, |s| {
        s["stream"]["applied_offset"].as_i64() >= Some(written)
    })
}

fn caught_up(plan: &Plan) -> Outcome {
    plan.run("migrate --json --until caught-up").exits(0)
}

fn values(server: &Server, keys: &str) -> Vec<String> {
    let values = server.run(&format!("MGET {keys}"));
    values.items().iter().map(|v| v.text()).collect()
}

#[test]
fn an_unknown_command_stops_the_run_and_the_plan_lets_the_next_one_go_on() {
    let Some([from, to]) = need(["any", "any"]) else {
        return;
    };
    // A new full sync would bring what was left out.
    let source = Setup::new(&from).line("repl-backlog-size 64mb").start();
    let target = Server::start(&to);
    let fork = fork(&source, false);
    source.run("SET before 1");
    let mut plan = Plan::new(&fork.url(), &target.url());
    let running = follow(&plan);
    source.run("SET a 1");
    let mut client = source.client();
    for line in ["MULTI", "SET in:first 1", "SETRANGE lost 0 v", "EXEC"] {
        client.expect(&Command::new(line)).expect("it is taken");
    }
    source.run("SET b 2");
    let stopped = running.wait(SOON);
    let remedy = ["FOOBARED", "at offset", "unknown_commands"];
    let code = stopped.says(&remedy).code;
    assert!(code != 0 && code != 130, "{code}");
    // Nothing of its transaction either.
    assert_eq!(values(&target, "before in:first"), ["1", ""]);
    // Without another plan it stops there again.
    let again = plan.run("migrate --json --until caught-up");
    again.exits(code).says(&remedy);
    plan.set("/unknown_commands", json!("skip"));
    let done = caught_up(&plan);
    let listed = &done.json["unknown_commands"][0];
    assert_eq!(
        (&listed["name"], &listed["left_out"]),
        (&json!("FOOBARED"), &json!(1))
    );
    assert!(listed["first_offset"].as_u64() > Some(0), "{listed}");
    assert_eq!(values(&target, "before a in:first b"), ["1", "1", "1", "2"]);
    assert_eq!(plan.status()["unknown_commands"][0], *listed);
    assert!(fork.struck().1 > 0);

    // In transactions, one of them too long to be held; in another database; read again after a kill.
    let mut running = follow(&plan);
    let long = "x".repeat(700_000);
    let mut client = source.client();
    for lines in [
        vec!["SET c 1", "SETRANGE in:one 0 v", "SET d 2"],
        vec!["SET e #", "SETRANGE in:long 0 v", "SET f #", "SET g #"],
    ] {
        client.expect(&Command::new("MULTI")).expect("it begins");
        for line in lines {
            let (words, value) = line.rsplit_once(' ').expect("words");
            let value = if value == "#" { long.as_str() } else { value };
            let command = Command::new(words).arg(value);
            client.expect(&command).expect("it is queued");
        }
        client.expect(&Command::new("EXEC")).expect("it is done");
    }
    client
        .expect(&Command::new("SELECT 3"))
        .expect("it is there");
    client
        .expect(&Command::new("SETRANGE elsewhere 0 v"))
        .expect("it is set");
    client.expect(&Command::new("SET h 3")).expect("it is set");
    catch_up(&plan, &mut running, &source);
    running.signal("KILL");
    let _ = running.wait(SOON);
    let mut running = follow(&plan);
    source.run("SET i 4");
    catch_up(&plan, &mut running, &source);
    assert_eq!(values(&target, "c d i"), ["1", "2", "4"]);
    let verified = plan.run("verify --json").exits(1).json;
    assert_eq!(verified["missing_count"], 4, "{verified}");
    let repaired = plan.run("verify --json --repair").exits(0).json;
    assert_eq!(repaired["repaired_count"], 4, "{repaired}");
    assert_eq!(values(&target, "lost in:one in:long"), ["v", "v", "v"]);
    plan.run("verify --json").exits(0);
    running.interrupt();
    running.wait(SOON).exits(130);
    let pages = plan.run("report").exits(0).stdout;
    let page = pages.lines().find(|p| p.ends_with("report.md"));
    let page = std::fs::read_to_string(page.expect("a page")).expect("it is there");
    for words in [
        "Commands that keyferry does not know",
        "FOOBARED",
        "were left out",
    ] {
        assert!(page.contains(words), "{words}: {page}");
    }
}

#[test]
fn where_the_source_tells_the_keys_they_are_read_instead() {
    let Some([from, to]) = need(["any", "any"]) else {
        return;
    };
    let (source, target) = (Server::start(&from), Server::start(&to));
    let fork = fork(&source, true);
    let mut plan = Plan::new(&fork.url(), &target.url());
    plan.set("/unknown_commands", json!("skip"));
    plan.set("/rename", json!({"old:": "new:"}));
    plan.set("/filter", json!({"exclude": ["left:*"]}));
    let mut running = follow(&plan);
    source.run("SET old:k 1");
    source.run("SETRANGE old:k 3 v");
    source.run("SETRANGE left:k 0 v");
    let mut client = source.client();
    for line in ["SELECT 2", "MULTI", "SETRANGE k 0 two", "SET l 1", "EXEC"] {
        client.expect(&Command::new(line)).expect("it is taken");
    }
    // Longer than what is held: what may be a key stays of it.
    let long = Command::new("SETRANGE")
        .arg(format!("old:{}", "k".repeat(300)))
        .arg("0")
        .arg("x".repeat(40 << 20));
    source.client().expect(&long).expect("it is set");
    let status = catch_up(&plan, &mut running, &source);
    assert_eq!(status["skipped"]["unknown_command"], Value::Null);
    let listed = &plan.wait_status(&mut running, "listed", SOON, |s| {
        s["unknown_commands"][0]["read_again"].as_u64() >= Some(4)
    })["unknown_commands"][0];
    assert_eq!(listed["left_out"], 0, "{listed}");
    assert_eq!(values(&target, "left:k old:k"), ["", ""]);
    plan.run("verify --json").exits(0);
    running.interrupt();
    running.wait(SOON).exits(130);
    // The keys are read, not left out: the same again after a kill needs no other plan.
    source.run("SETRANGE new 0 v");
    caught_up(&plan);
    plan.run("verify --json").exits(0);
}

#[test]
fn check_names_what_the_stream_will_hold() {
    let Some([from, to]) = need(["any", "any"]) else {
        return;
    };
    let (source, target) = (Server::start(&from), Server::start(&to));
    let rules = Rules::default()
        .change(told)
        .info("# Commandstats\r\ncmdstat_foobared:calls=3,usec=9,usec_per_call=3.00\r\n");
    let fork = Fork::start(&source.address(), rules);
    let mut plan = Plan::new(&fork.url(), &target.url());
    let found = |outcome: &Outcome| {
        let findings = outcome.json["findings"].as_array().cloned();
        let mut found = findings.into_iter().flatten();
        found.find(|f| f["id"] == "unknown_stream_commands")
    };
    let finding = found(&plan.run("check --json")).expect("the command is named");
    assert_eq!(finding["severity"], "blocker", "{finding}");
    assert!(finding.to_string().contains("FOOBARED"), "{finding}");
    plan.set("/unknown_commands", json!("skip"));
    let finding = found(&plan.run("check --json")).expect("the command is named");
    assert_eq!(finding["severity"], "warning", "{finding}");
    // Where nobody has called such a command there is nothing to say.
    plan.set("/source/url", json!(source.url()));
    assert!(found(&plan.run("check --json")).is_none());
}

#[test]
fn in_an_append_only_file_the_answer_is_the_same() {
    let Some([to]) = need(["any"]) else { return };
    let target = Setup::new(&to).start();
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a.aof");
    let mut file = Vec::new();
    for line in ["SELECT 0", "SET a 1", "FOOBARED k 0 v", "SET b 2"] {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        keyferry::formats::resp::command(&mut file, &words);
    }
    std::fs::write(&path, file).expect("it is written");
    let mut plan = Plan::of(json!({
        "name": "aof",
        "source": {"mode": "rdb", "path": path},
        "target": {"url": target.url()},
    }));
    let stopped = plan.run("migrate --json").says(&["FOOBARED"]);
    assert_ne!(stopped.code, 0);
    plan.set("/unknown_commands", json!("skip"));
    let done = plan.run("migrate --json").exits(0);
    assert_eq!(done.json["unknown_commands"][0]["name"], "FOOBARED");
    assert_eq!(values(&target, "a k b"), ["1", "", "2"]);
}
