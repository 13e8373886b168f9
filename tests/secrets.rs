//! What users' values may reach: servers repeat them in their errors, and neither log, state, reports nor the terminal do.

use crate::cutover::Move;
use crate::support::keyferry::{Outcome, Plan};
use crate::support::server::{Server, Setup};
use crate::support::story::{Endpoint, Story};
use crate::support::versions::all_rights;
use crate::support::wire::Command;
use crate::support::{need, wait_until};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A value that servers repeat when they refuse a command.
const SECRET: &str = "TOPSECRET";

pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path)),
            path => found.push(path),
        }
    }
    found
}

/// The state, the log and the reports of a plan, which are there, hold none of these words; but for the state, nothing in
/// them acts on a terminal.
#[track_caller]
pub fn keeps_to_itself(plan: &Plan, log: &str, secrets: &[&str]) {
    plan.run("report").exits(0);
    let kept = files(&plan.work_dir());
    for name in ["state.sqlite", "report.html", "report.md", "report.json"] {
        assert!(
            kept.iter().any(|f| f.ends_with(name)),
            "no {name}: {kept:?}"
        );
    }
    let status = plan.run("status").exits(0).stdout + &plan.run("status --json").stdout;
    let mut all: Vec<(String, Vec<u8>)> = kept
        .iter()
        // What the source has sent lies in the spool, as it is.
        .filter(|f| !f.components().any(|c| c.as_os_str() == "spool"))
        .map(|f| {
            (
                f.display().to_string(),
                std::fs::read(f).unwrap_or_default(),
            )
        })
        .collect();
    all.push(("the log".into(), log.as_bytes().to_vec()));
    all.push(("status".into(), status.into_bytes()));
    for (place, text) in &all {
        for secret in secrets {
            let found = text
                .windows(secret.len())
                .position(|w| w == secret.as_bytes());
            if let Some(at) = found {
                let near = &text[at.saturating_sub(200)..(at + secret.len()).min(text.len())];
                panic!("{place} holds {secret:?}: …{}", near.escape_ascii());
            }
        }
        let text = String::from_utf8_lossy(text);
        if !place.contains("sqlite") {
            does_nothing(place, &text);
        }
    }
}

/// Whoever prints this to a terminal sees it, and no more than that.
#[track_caller]
fn does_nothing(place: &str, text: &str) {
    let acts = |c: &char| {
        (c.is_control() && !"\n\t".contains(*c)) || ('\u{202a}'..='\u{202e}').contains(c)
    };
    if let Some(c) = text.chars().find(acts) {
        panic!("{place} holds {c:?}: {text:?}");
    }
}

fn said(outcome: &Outcome) -> String {
    format!("{}{}", outcome.stdout, outcome.stderr)
}

/// An unknown command's answer repeats its arguments, and a library's what its code says.
#[test]
fn a_refused_command_leaves_no_value() {
    let Some([new, old]) = need(["redis-8.0", "redis-7.0"]) else {
        return;
    };
    let old = Setup::new(&old).line("rename-command SETRANGE \"\"");
    let story = Story::new(Endpoint::alone(Setup::new(&new)), Endpoint::alone(old));
    let source = &story.source.nodes()[0];
    source.run("SET k v");
    let mut running = story.plan.start("migrate --json --log trace");
    story.wait_loaded(&mut running);
    let code = format!(
        "#!lua name=mine\nif redis.REDIS_VERSION_NUM < 0x080000 then redis['{SECRET} \\27[2J']() end\n\
         redis.register_function('f', function() return 1 end)"
    );
    let load = Command::new("FUNCTION LOAD").arg(code);
    source.run(&format!("SETRANGE k 0 {SECRET}"));
    let target = &story.target.nodes()[0];
    let arrived = || target.run("GET k").text() == SECRET;
    wait_until("the value arrives", Duration::from_secs(30), arrived);
    source.client().expect(&load).expect("it is loaded");
    let limit = Duration::from_secs(30);
    (story.plan).wait_status(&mut running, "the library is refused", limit, |s| {
        s["skipped"]["function"].as_u64() >= Some(1)
    });
    let outcome = story.catch_up_and_stop(running);
    story.plan.run("report").exits(0);
    let report = files(&story.plan.work_dir());
    let report = report
        .iter()
        .find(|f| f.ends_with("report.md"))
        .expect("a report");
    let report = std::fs::read_to_string(report).expect("it is text");
    // What went wrong is told all the same.
    for words in ["unknown command 'SETRANGE'", "function library mine"] {
        assert!(report.contains(words), "no {words:?} in {report}");
    }
    keeps_to_itself(&story.plan, &said(&outcome), &[SECRET]);
}

/// A script that the target runs may answer with anything.
#[test]
fn what_a_script_says_stays_with_the_server() {
    let Some([old, new]) = need(["redis-6.2", "redis-7.0"]) else {
        return;
    };
    let lines = [
        "appendonly yes",
        "appendfsync always",
        "lua-replicate-commands no",
    ];
    let source = Setup::new(&old).lines(&lines).start();
    let script = format!(
        "if redis.REDIS_VERSION then return redis.error_reply('{SECRET} \\27]0;{SECRET}\\7 \\226\\128\\174') end \
         return redis.call('SET', KEYS[1], ARGV[1])"
    );
    let call = Command::new("EVAL").arg(script).arg("1").arg("k").arg("v");
    source.client().expect(&call).expect("it runs");
    let target = Server::start(&new);
    let path = source.dir().join("appendonly.aof");
    let plan = Plan::of(
        json!({"name": "test", "source": {"mode": "rdb", "path": path}, "target": {"url": target.url()}}),
    );
    let outcome = plan.run("migrate --json --log trace").exits(3);
    assert!(outcome.stderr.contains("EVAL"), "{}", outcome.stderr);
    keeps_to_itself(&plan, &said(&outcome), &[SECRET]);
}

/// A peer that answers everything with an error of its own making.
fn stub(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten().take(200) {
            std::thread::spawn(move || {
                let mut client = client;
                let mut asked = [0; 4096];
                // Several commands may come at once; a pattern has an asterisk too.
                let is_command = |text: &&[u8]| text.first().is_some_and(u8::is_ascii_digit);
                while let Ok(n @ 1..) = client.read(&mut asked) {
                    let commands = asked[..n].split(|b| *b == b'*').filter(is_command);
                    let answers = answer.repeat(commands.count());
                    if client.write_all(&answers).is_err() {
                        return;
                    }
                }
            });
        }
    });
    format!("redis://127.0.0.1:{port}")
}

/// Only a server that is none sends these to a PING.
#[test]
fn a_terminal_is_not_written_to_by_a_peer() {
    let Some([name]) = need(["any"]) else { return };
    let target = Server::start(&name);
    for answer in [
        &b"-ERR \x1b]0;gotcha\x07 \x1b[2J\xe2\x80\xae\xc2\x9b2J TOPSECRET\r\n"[..],
        b"+FULLRESYNC \x1b[2J\xe2\x80\xae TOPSECRET\r\n",
    ] {
        let plan = Plan::new(&stub(answer), &target.url());
        for words in ["check", "migrate", "check --json"] {
            let outcome = plan.run(words);
            let said = said(&outcome);
            assert_ne!(outcome.code, 2, "{said}");
            does_nothing(words, &said);
            for secret in [SECRET, "gotcha"] {
                assert!(!said.contains(secret), "{words}: {secret:?} in {said:?}");
            }
        }
    }
}

/// Names of keys are shown, and do nothing.
#[test]
fn a_terminal_is_not_written_to_by_a_key() {
    let Some([name]) = need(["any"]) else { return };
    let story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    let evil = "k\u{1b}[2J\u{202e}\u{9b}31m";
    story.source.nodes()[0].run("SET k v");
    story.plan.run("migrate --until caught-up --json").exits(0);
    let set = Command::new("SET").key(evil).arg("v");
    story.source.side().run(&set).expect("it is set");
    let verified = story.plan.run("verify").exits(1);
    let json = story.plan.run("verify --json").exits(1);
    assert_eq!(json.json["missing"][0]["key"], evil, "{}", json.stdout);
    keeps_to_itself(&story.plan, &(said(&verified) + &said(&json)), &[]);
}

/// Arguments of hooks are secrets like those of password commands, and hooks are not told the plan's passwords.
#[test]
fn a_hook_neither_tells_nor_is_told_a_secret() {
    let Some(mut it) = Move::usual(json!({})) else {
        return;
    };
    let seen = it.plan().dir().join("seen");
    let script = format!(
        "env > {seen} && echo target > {new} && mv {new} {at}",
        seen = seen.display(),
        new = it.file.with_extension("hook").display(),
        at = it.file.display(),
    );
    let hook = json!(["sh", "-c", script, "--token=TOPSECRET"]);
    it.story.plan.set("/cutover/hooks/switch", hook);
    let passwords = [("SOURCE_PASSWORD", "pw-one"), ("TARGET_PASSWORD", "pw-two")];
    for ((variable, password), end) in passwords.iter().zip([&it.story.source, &it.story.target]) {
        it.story
            .plan
            .environment
            .push((variable.to_string(), password.to_string()));
        for node in end.nodes() {
            let rights = all_rights(node.name());
            node.run(&format!("ACL SETUSER ferry on >{password} {rights}"));
        }
    }
    for (side, variable) in [("source", "SOURCE_PASSWORD"), ("target", "TARGET_PASSWORD")] {
        it.story
            .plan
            .set(&format!("/{side}/username"), json!("ferry"));
        let from = json!({ "env": variable });
        it.story.plan.set(&format!("/{side}/password"), from);
    }
    it.plan().run("migrate --until caught-up --json").exits(0);
    let rehearsed = it
        .plan()
        .run("cutover --dry-run --json --log trace")
        .exits(0);
    assert_eq!(rehearsed.json["would_run"][0], "sh");
    let human = it.plan().run("cutover --dry-run").exits(0);
    let done = it.plan().run("cutover --json --log trace").exits(0);
    assert_eq!(it.at(), "target");
    let told = std::fs::read_to_string(seen).expect("the hook has run");
    assert!(told.contains("KEYFERRY_STEP=switch"), "{told}");
    for (variable, password) in passwords {
        assert!(
            !told.contains(variable) && !told.contains(password),
            "{told}"
        );
    }
    let log = said(&rehearsed) + &said(&human) + &said(&done);
    keeps_to_itself(it.plan(), &log, &[SECRET, "pw-one", "pw-two"]);
}

/// Nor is the program that tells one side's password told the other's.
#[test]
fn a_password_command_is_not_told_the_other_password() {
    let Some([name]) = need(["any"]) else { return };
    let (source, target) = (Server::start(&name), Server::start(&name));
    let rights = all_rights(&name);
    source.run(&format!("ACL SETUSER ferry on >pw-one {rights}"));
    target.run(&format!("ACL SETUSER ferry on >pw-two {rights}"));
    let mut plan = Plan::new(&source.url(), &target.url());
    let seen = plan.dir().join("seen");
    plan.environment
        .push(("SOURCE_PASSWORD".into(), "pw-one".into()));
    let script = format!("env > {}; echo pw-two", seen.display());
    plan.set("/source/username", json!("ferry"));
    plan.set("/source/password", json!({ "env": "SOURCE_PASSWORD" }));
    plan.set("/target/username", json!("ferry"));
    plan.set(
        "/target/password",
        json!({ "command": ["sh", "-c", script] }),
    );
    plan.run("check --json").exits(0);
    let told = std::fs::read_to_string(seen).expect("the command has run");
    assert!(told.contains("PATH=") && !told.contains("pw-one"), "{told}");
}
