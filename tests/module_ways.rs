//! Which way values of modules go: by RESTORE, by their modules' commands, under other names, or not at all and named.

use crate::support::keyferry::{Plan, program};
use crate::support::need;
use crate::support::server::{Server, Setup};
use crate::support::story::Endpoint;
use crate::support::wire::{Client, Command};
use serde_json::json;
use std::io::{BufRead, Write};

/// A value of each type, each twice as large as one piece of it where there are pieces.
fn fill(client: &mut Client) {
    let mut send = |command: &Command| {
        let answer = client.expect(command).expect("an answer");
        assert!(!answer.is_error(), "{}", answer.text());
    };
    let json = r#"{"a":1,"list":[1.5,"x",null,true,{"deep":[]}],"big":12345678901234567890,"e":1e300,"u":"é\u0001\""}"#;
    send(&Command::new("JSON.SET m:json $").arg(json));
    send(&Command::new("PEXPIRE m:json 90000000"));
    send(&Command::new("BF.RESERVE m:bloom 0.001 1000 EXPANSION 4"));
    send(&Command::new("BF.RESERVE m:fixed 0.01 200000 NONSCALING"));
    send(&Command::new(
        "CF.RESERVE m:cuckoo 1000 BUCKETSIZE 4 MAXITERATIONS 10 EXPANSION 2",
    ));
    send(&Command::new("CF.RESERVE m:wide 600000"));
    let items: Vec<String> = (0..3000).map(|n| format!("item:{n}")).collect();
    send(&Command::new("BF.MADD m:bloom").args(&items));
    send(&Command::new("BF.MADD m:fixed").args(&items));
    send(&Command::new("CF.INSERT m:cuckoo ITEMS").args(&items));
    send(&Command::new("CF.INSERT m:wide ITEMS").args(&items));
    send(&Command::new("CF.DEL m:cuckoo item:7"));
    send(&Command::new("FT.SUGADD m:sug hello 1 PAYLOAD greeting"));
    send(&Command::new("FT.SUGADD m:sug help 0.1"));
    send(&Command::new("FT.SUGADD m:sug Hélène 2.5"));
    send(&Command::new("FT.SUGADD m:none gone 1"));
    send(&Command::new("FT.SUGDEL m:none gone"));
    send(&Command::new(
        "TS.CREATE m:ts RETENTION 900000000 CHUNK_SIZE 128 DUPLICATE_POLICY MAX IGNORE 10 2.5 LABELS area 51 kind x",
    ));
    send(&Command::new(
        "TS.CREATE m:plain ENCODING UNCOMPRESSED CHUNK_SIZE 256",
    ));
    send(&Command::new("TS.CREATE m:empty"));
    // Distances and values of every width.
    let (mut at, mut value) = (1_000_000u64, 1.0f64);
    for n in 0..1500u64 {
        at += [100, 100, 101, 90, 400, 1, 5000, 70_000, 3_000_000][(n % 9) as usize] + n % 3;
        value = match n % 7 {
            0 => value,
            1 => value + 1.0,
            2 => -value,
            3 => value * 1.1,
            4 => (n as f64).sqrt() * 1e100,
            5 => n as f64,
            _ => 0.1 * n as f64,
        };
        for key in ["m:ts", "m:plain"] {
            send(&Command::new("TS.ADD").arg(key).arg(at).arg(value));
        }
    }
}

const KEYS: [&str; 10] = [
    "m:json", "m:bloom", "m:fixed", "m:cuckoo", "m:wide", "m:sug", "m:none", "m:ts", "m:plain",
    "m:empty",
];

/// What the commands of the modules tell of every key.
fn told(client: &mut Client) -> Vec<String> {
    let mut lines = Vec::new();
    let mut ask = |command: &Command| {
        lines.push(format!("{:?}", client.expect(command).expect("an answer")));
    };
    ask(&Command::new("JSON.GET m:json $"));
    let items: Vec<String> = (0..6000).map(|n| format!("item:{n}")).collect();
    for (verb, key) in [
        ("BF", "m:bloom"),
        ("BF", "m:fixed"),
        ("CF", "m:cuckoo"),
        ("CF", "m:wide"),
    ] {
        ask(&Command::new(&format!("{verb}.INFO {key}")));
        ask(&Command::new(&format!("{verb}.MEXISTS {key}")).args(&items));
        // As SCANDUMP tells it, every byte.
        ask(&Command::new(&format!("{verb}.SCANDUMP {key} 0")));
        ask(&Command::new(&format!("{verb}.SCANDUMP {key} 1")));
    }
    ask(&Command::new(
        "FT.SUGGET m:sug h FUZZY WITHSCORES WITHPAYLOADS MAX 10",
    ));
    ask(&Command::new("FT.SUGLEN m:none"));
    for key in ["m:ts", "m:plain", "m:empty"] {
        ask(&Command::new(&format!("TS.RANGE {key} - +")));
        ask(&Command::new(&format!("TS.INFO {key}")));
    }
    lines
}

/// The snapshot of a server.
fn snapshot(server: &Server) -> std::path::PathBuf {
    server.run("SAVE");
    server.dir().join("dump.rdb")
}

#[track_caller]
fn alike(source: &Server, target: &Server) {
    let (theirs, ours) = (told(&mut source.client()), told(&mut target.client()));
    for (theirs, ours) in theirs.iter().zip(&ours) {
        assert_eq!(theirs, ours);
    }
    for key in KEYS {
        assert_eq!(target.run(&format!("EXISTS {key}")).int(), Some(1), "{key}");
        let timed = target.run(&format!("PTTL {key}")).int() > Some(0);
        assert_eq!(timed, key == "m:json", "{key}");
    }
}

/// What `rdb resp` makes of a snapshot, sent to a server whose user may not RESTORE.
#[test]
fn the_commands_of_a_snapshot_make_every_value_exactly() {
    let Some([one, two]) = need(["modules-7.4", "modules-8.2"]) else {
        return;
    };
    let setup = Setup::new(&one).line("rdbcompression no");
    for (source, target) in [
        (setup.start(), Server::start(&two)),
        (Server::start(&two), Server::start(&one)),
    ] {
        fill(&mut source.client());
        let file = snapshot(&source);
        let made = program()
            .args(["rdb", "resp"])
            .arg(&file)
            .output()
            .expect("keyferry runs");
        assert!(made.status.success());
        target.run("ACL SETUSER default -restore");
        let mut stream = std::net::TcpStream::connect(target.address()).expect("a connection");
        let mut answers = Vec::new();
        let reader = stream.try_clone().expect("a connection");
        let reading = std::thread::spawn(move || {
            let mut lines = std::io::BufReader::new(reader);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) && line != b"all\r\n" {
                answers.push(String::from_utf8_lossy(&std::mem::take(&mut line)).into_owned());
            }
            answers
        });
        stream.write_all(&made.stdout).expect("written");
        stream.write_all(b"PING all\r\n").expect("written");
        let errors: Vec<String> = (reading.join().expect("answers").into_iter())
            .filter(|line| line.starts_with('-'))
            .collect();
        assert_eq!(errors, [""; 0]);
        alike(&source, &target);
    }
}

/// The same by a migration whose target refuses RESTORE, from a server and from a file.
#[test]
fn a_target_that_refuses_restore_gets_its_values_by_commands() {
    let Some([one, two]) = need(["modules-7.4", "modules-8.2"]) else {
        return;
    };
    let source = Server::start(&one);
    fill(&mut source.client());
    let file = snapshot(&source);
    for from_file in [false, true] {
        let target = Server::start(&two);
        target.run("ACL SETUSER default -restore");
        let mut plan = Plan::new(&source.url(), &target.url());
        if from_file {
            plan.set("/source", json!({ "mode": "rdb", "path": file }));
        }
        let run = "migrate --json --until caught-up --ignore target_commands";
        plan.run(run).exits(0);
        alike(&source, &target);
    }
    // A document that is larger than what is held of a value in passing.
    let item = "abcdefghij ".repeat(1000);
    let items: Vec<String> = (0..900).map(|n| format!("{n} {item}")).collect();
    source.run("DEL m:cms");
    let set = Command::new("JSON.SET large $").arg(json!(items).to_string());
    assert!(!source.client().expect(&set).expect("an answer").is_error());
    let target = Server::start(&two);
    target.run("ACL SETUSER default -restore");
    let run = "migrate --json --until caught-up --ignore target_commands";
    let mut plan = Plan::new(&source.url(), &target.url());
    plan.set("/limits", json!({ "memory_bytes": 256 << 20 }));
    plan.run(run).exits(0);
    let length = |server: &Server| server.run("JSON.STRLEN large $[899]").items()[0].int();
    assert_eq!(length(&target), length(&source));
    assert!(length(&target) > Some(11_000));
    source.run("DEL large");
    // What no command can make is a loss that says why.
    source.run("CMS.INITBYDIM m:cms 10 3");
    source.run("CMS.INCRBY m:cms a 4");
    source.run("TS.CREATE m:filled");
    source.run("TS.CREATERULE m:ts m:filled AGGREGATION avg 1000");
    let target = Server::start(&two);
    target.run("ACL SETUSER default -restore");
    let ended = Plan::new(&source.url(), &target.url()).run(run);
    ended.exits(3).says(&["m:"]);
    let mut plan = Plan::new(&source.url(), &target.url());
    target.run("FLUSHALL");
    plan.set("/on_loss", json!("list"));
    plan.run(run)
        .says(&["m:cms", "refuses restore", "ts.createrule"]);
    assert_eq!(target.run("EXISTS m:cms").int(), Some(0));
    source.run("TS.DELETERULE m:ts m:filled");
    alike(&source, &target);
}

/// A series' payload holds its own name and those of the series that its rules fill and that it is filled from: the
/// target drops rules whose names are wrong.
#[test]
fn time_series_keep_their_rules_under_other_names() {
    let Some([one, two]) = need(["modules-7.4", "modules-8.2"]) else {
        return;
    };
    for from_file in [false, true] {
        let (source, target) = (Server::start(&one), Server::start(&two));
        for n in 0..20 {
            for words in [
                format!("TS.CREATE old:raw:{n} LABELS n {n}"),
                format!("TS.CREATE old:avg:{n} DUPLICATE_POLICY LAST"),
                format!("TS.CREATE kept:twa:{n}"),
                format!("TS.CREATERULE old:raw:{n} old:avg:{n} AGGREGATION avg 1000"),
                format!("TS.CREATERULE old:raw:{n} kept:twa:{n} AGGREGATION twa 5000 20"),
            ] {
                assert!(!source.run(&words).is_error(), "{words}");
            }
            for at in 0..40 {
                source.run(&format!(
                    "TS.ADD old:raw:{n} {} {}",
                    10_000 + 370 * at,
                    f64::from(at) * 1.5
                ));
            }
        }
        let mut plan = Plan::new(&source.url(), &target.url());
        if from_file {
            let file = snapshot(&source);
            plan.set("/source", json!({ "mode": "rdb", "path": file }));
        }
        plan.set("/rename", json!({ "old:": "new:longer:" }));
        plan.run("migrate --json --until caught-up").exits(0);
        // The open buckets go on with what they had gathered.
        let both = |words: &str| {
            source.run(words);
            if from_file {
                target.run(&words.replace("old:", "new:longer:"));
            }
        };
        for n in 0..20 {
            both(&format!("TS.ADD old:raw:{n} 24990 7.5"));
            both(&format!("TS.ADD old:raw:{n} 41000 1"));
        }
        if !from_file {
            plan.run("migrate --json --until caught-up").exits(0);
        }
        for n in 0..20 {
            for key in [
                format!("old:raw:{n}"),
                format!("old:avg:{n}"),
                format!("kept:twa:{n}"),
            ] {
                let name = key.replace("old:", "new:longer:");
                for ask in ["TS.RANGE KEY - +", "TS.INFO KEY"] {
                    let theirs = format!("{:?}", source.run(&ask.replace("KEY", &key)));
                    let ours = format!("{:?}", target.run(&ask.replace("KEY", &name)));
                    let names = |text: String| text.replace(&bytes("old:"), &bytes("new:longer:"));
                    assert_eq!(names(theirs), ours, "{key}");
                }
            }
            let rules = target.run(&format!("TS.INFO new:longer:raw:{n}"));
            let rules = format!("{rules:?}");
            assert!(rules.contains(&bytes("new:longer:avg")), "{rules}");
        }
    }
}

/// Bytes as a reply shows them, without the brackets.
fn bytes(text: &str) -> String {
    format!("{:?}", text.as_bytes())
        .trim_matches(['[', ']'])
        .to_owned()
}

/// DUMP does not tell rules: a scan says so beforehand and in the run.
#[test]
fn a_scan_says_that_it_brings_no_rules() {
    let Some([one, two]) = need(["modules-7.4", "modules-8.2"]) else {
        return;
    };
    let (source, target) = (Server::start(&one), Server::start(&two));
    for words in [
        "TS.CREATE raw",
        "TS.CREATE avg",
        "TS.CREATERULE raw avg AGGREGATION avg 1000",
        "TS.ADD raw 1500 1",
    ] {
        assert!(!source.run(words).is_error(), "{words}");
    }
    let mut plan = Plan::new(&source.url(), &target.url());
    let report = plan.run("check --json").json;
    let ids = |report: &serde_json::Value| {
        let list = report["findings"].as_array().expect("findings").iter();
        list.filter(|f| f["id"] == "series_rules").count()
    };
    assert_eq!(ids(&report), 0, "{report}");
    plan.set("/source/mode", json!("scan"));
    let report = plan.run("check --json").json;
    assert_eq!(ids(&report), 1, "{report}");
    plan.run("migrate --json --until caught-up")
        .says(&["TS.CREATERULE"]);
    assert_eq!(target.run("TS.INFO raw").items()[1].int(), Some(1));
}

/// A cluster drops a rule that fills a series of another slot: it is a loss with its name.
#[test]
fn rules_across_the_slots_of_a_cluster_are_named() {
    let Some([one, two]) = need(["modules-7.4", "modules-8.2"]) else {
        return;
    };
    let (source, target) = (Server::start(&one), Endpoint::cluster(Setup::new(&two)));
    for (from, to) in [("{x}raw", "{x}avg"), ("raw", "avg")] {
        for words in [
            format!("TS.CREATE {from}"),
            format!("TS.CREATE {to}"),
            format!("TS.CREATERULE {from} {to} AGGREGATION avg 1000"),
            format!("TS.ADD {from} 1500 1"),
        ] {
            assert!(!source.run(&words).is_error(), "{words}");
        }
    }
    let mut plan = Plan::new(&source.url(), &target.url());
    let run = "migrate --json --until caught-up";
    plan.run(run)
        .exits(3)
        .says(&["\"raw\"", "another slot", "hash tag"]);
    for node in target.nodes() {
        node.run("FLUSHALL");
    }
    plan = Plan::new(&source.url(), &target.url());
    plan.set("/on_loss", json!("list"));
    plan.run(run).says(&["another slot"]);
    let ask = |words: &str| {
        let mut answers = (target.nodes().iter()).map(|node| node.client().words(words));
        let answer = answers.find(|a| a.as_ref().is_ok_and(|a| !a.is_error()));
        answer
            .and_then(Result::ok)
            .expect("a node that has the key")
    };
    ask("TS.ADD {x}raw 2500 3");
    assert_eq!(
        format!("{:?}", ask("TS.RANGE {x}avg - +")),
        "Array([Array([Int(1000), Status(\"1\")])])"
    );
    assert_eq!(ask("TS.INFO raw").items()[1].int(), Some(1));
}

/// Without MODULE LIST the target's commands tell what it has, and without those nothing is sent on a guess.
#[test]
fn modules_are_known_by_their_commands_where_they_are_not_listed() {
    let Some([name]) = need(["modules-7.4"]) else {
        return;
    };
    let (source, target) = (Server::start(&name), Server::start(&name));
    fill(&mut source.client());
    let plan = || {
        let mut plan = Plan::new(&source.url(), &target.url());
        plan.set("/on_loss", json!("list"));
        plan
    };
    let run = "migrate --json --until caught-up";
    target.run("ACL SETUSER default -module");
    plan().run(run).exits(0);
    alike(&source, &target);
    target.run("FLUSHALL");
    target.run("ACL SETUSER default -command");
    plan().run(run).says(&["MODULE LIST", "COMMAND INFO"]);
    assert_eq!(target.run("DBSIZE").int(), Some(0));
}

#[test]
fn a_target_without_the_modules_is_told_of_beforehand_and_loses_by_name() {
    let Some([name, bare]) = need(["modules-7.4", "any"]) else {
        return;
    };
    let (source, target) = (Server::start(&name), Server::start(&bare));
    fill(&mut source.client());
    source.run("SET plain value");
    let mut plan = Plan::new(&source.url(), &target.url());
    let found = |report: &serde_json::Value, severity: &str| -> Vec<String> {
        let list = report["findings"].as_array().expect("findings").iter();
        list.filter(|f| f["id"] == "module_types" && f["severity"] == severity)
            .map(|f| f["message"].as_str().expect("a message").to_owned())
            .collect()
    };
    let report = plan.run("check --json").exits(1).json;
    let blockers = found(&report, "blocker");
    assert_eq!(blockers.len(), 5, "{blockers:?}");
    let says = |words: [&str; 3]| {
        let one = |text: &&String| words.iter().all(|w| text.contains(w));
        assert!(blockers.iter().any(|b| one(&b)), "{words:?}: {blockers:?}");
    };
    says(["3 keys", "TSDB-TYPE", "timeseries 1.12.2"]);
    says(["1 key", "ReJSON-RL", "does not have that module"]);
    assert_eq!(
        report["source"]["module_types"]["MBbloom--"],
        json!({ "keys": 2, "complete": true })
    );
    plan.run("migrate --json --until caught-up")
        .exits(3)
        .says(&["does not have that module"]);
    plan.set("/on_loss", json!("list"));
    let report = plan.run("check --json").json;
    assert_eq!(
        (
            found(&report, "blocker").len(),
            found(&report, "warning").len()
        ),
        (0, 5)
    );
    target.run("FLUSHALL");
    let mut plan = Plan::new(&source.url(), &target.url());
    plan.set("/on_loss", json!("list"));
    let ended = plan.run("migrate --json --until caught-up");
    assert!(ended.code < 2, "{}", ended.stderr);
    assert_eq!(target.run("DBSIZE").int(), Some(1));
    assert!(!target.run("PING").is_error());
    // With the modules there is nothing to do.
    let there = Server::start("modules-7.4");
    let report = Plan::new(&source.url(), &there.url())
        .run("check --json")
        .json;
    assert_eq!(found(&report, "info").len(), 5, "{report}");
}
