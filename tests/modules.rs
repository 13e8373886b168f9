//! Values of modules on real servers: migrated under writes of every module's commands, verified without a false
//! difference, and judged by the modules' own commands.

use crate::support::keyferry::run;
use crate::support::need;
use crate::support::rng::Rng;
use crate::support::server::{Server, Setup};
use crate::support::side::Side;
use crate::support::story::{Endpoint, Story};
use crate::support::versions::seeded;
use crate::support::wire::{Client, Command, Value};
use keyferry::formats::command::{Kind, lookup};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What each key is asked by, on both sides.
fn questions() -> Vec<Command> {
    let items: Vec<String> = (0..400).map(|n| format!("i{n}")).collect();
    let mut out = Vec::new();
    for n in 0..4 {
        let key = |kind: &str| format!("{kind}:{n}");
        let ask = |words: &str, kind: &str| Command::new(words).key(key(kind));
        out.push(ask("JSON.GET", "json"));
        out.push(ask("BF.INFO", "bf"));
        out.push(ask("BF.MEXISTS", "bf").args(&items));
        out.push(ask("CF.INFO", "cf"));
        out.push(ask("CF.MEXISTS", "cf").args(&items));
        out.push(ask("CMS.INFO", "cms"));
        out.push(ask("CMS.QUERY", "cms").args(&items));
        out.push(ask("TOPK.LIST", "topk").arg("WITHCOUNT"));
        out.push(ask("TDIGEST.QUANTILE", "td").args(["0", "0.1", "0.5", "0.9", "1"]));
        out.push(ask("TS.RANGE", "ts").args(["-", "+"]));
        out.push(ask("TS.RANGE", "plain").args(["-", "+"]));
        out.push(ask("TS.RANGE", "inc").args(["-", "+"]));
        out.push(ask("FT.SUGLEN", "sug"));
        out.push(ask("FT.SUGGET", "sug").args(["i", "MAX", "500", "WITHSCORES", "WITHPAYLOADS"]));
    }
    out
}

/// A write of some module; `n` counts up.
fn write(rng: &mut Rng, n: u64) -> Command {
    let key = rng.below(4);
    let item = format!("i{}", rng.below(400));
    let to = |words: &str, kind: &str| Command::new(words).key(format!("{kind}:{key}"));
    let number = rng.below(1_000_000) as f64 / 997.0;
    match rng.below(22) {
        0 => to("JSON.SET", "json").args([
            "$",
            &format!("{{\"{item}\":[1.0,{number}],\"t\":\"\u{e9}\"}}"),
        ]),
        1 | 2 => {
            to("JSON.MERGE", "json").args(["$", &format!("{{\"{item}\":{{\"x\":{number}}}}}")])
        }
        3 => to("JSON.DEL", "json").arg(format!("$.{item}")),
        4 => to("JSON.SET", "json").args([&format!("$.{item}"), "[1,2,3]"]),
        5 => to("BF.ADD", "bf").arg(item),
        6 => to("CF.ADD", "cf").arg(item),
        7 => to("CF.DEL", "cf").arg(item),
        8 => to("CMS.INCRBY", "cms").args([&item, "3"]),
        9 | 10 => to("TOPK.ADD", "topk").args([&item, &format!("i{}", rng.below(20))]),
        11 => to("TOPK.INCRBY", "topk").args([&item, "5"]),
        12 | 13 => to("TDIGEST.ADD", "td").arg(number.to_string()),
        14 => to("TDIGEST.QUANTILE", "td").arg("0.5"),
        15 => to("TS.ADD", "ts").args([&(1_000 + n * 7).to_string(), &number.to_string()]),
        16 => to("TS.ADD", "plain")
            .args([&(1_000 + rng.below(9_000)).to_string(), &number.to_string()]),
        17 => to("TS.DEL", "plain").args([&(1_000 + n).to_string(), &(1_030 + n).to_string()]),
        18 => to("TS.INCRBY", "inc").arg(number.to_string()),
        19 => to("TS.ADD", "inc").args(["*", &number.to_string()]),
        20 => to("FT.SUGADD", "sug").args([&item, "1.5", "INCR", "PAYLOAD", "p"]),
        _ => to("FT.SUGDEL", "sug").arg(item),
    }
}

/// Makes the keys, with something in each.
pub fn begin(client: &mut Client, rng: &mut Rng) {
    for n in 0..4 {
        for words in [
            format!(
                "JSON.SET json:{n} $ {{\"a\":1,\"b\":[true,null,\"{}\"]}}",
                "z".repeat(300)
            ),
            format!("BF.RESERVE bf:{n} 0.01 100"),
            format!("CF.RESERVE cf:{n} 100"),
            format!("CMS.INITBYDIM cms:{n} 200 5"),
            format!("TOPK.RESERVE topk:{n} 10 20 4 0.9"),
            format!("TDIGEST.CREATE td:{n} COMPRESSION 50"),
            format!(
                "TS.CREATE ts:{n} RETENTION 10000000 CHUNK_SIZE 128 LABELS room r{n} kind {}",
                "k".repeat(100)
            ),
            format!("TS.CREATE plain:{n} UNCOMPRESSED CHUNK_SIZE 128 DUPLICATE_POLICY LAST"),
            format!("TS.CREATE inc:{n} DUPLICATE_POLICY LAST"),
            format!("FT.SUGADD sug:{n} ink 2"),
        ] {
            let answer = client.words(&words).expect("an answer");
            assert!(!answer.is_error(), "{words}: {answer:?}");
        }
    }
    for n in 0..3_000 {
        client.push(&write(rng, n));
    }
    client.flush().expect("the writes go out");
    let refused = client.replies().expect("the answers");
    let refused: Vec<_> = refused
        .iter()
        .filter(|r| r.is_error())
        .map(Value::text)
        .collect();
    // A merge into a key that another write has removed, or a time that is there already.
    assert!(
        refused.len() < 600,
        "{} {:?}",
        refused.len(),
        refused.first()
    );
}

/// Writes until it is told to stop.
pub fn traffic(server: &Server, seed: u64, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let (mut client, stop) = (server.client(), stop.clone());
    std::thread::spawn(move || {
        let mut rng = Rng::new(seed);
        let mut n = 3_000;
        while !stop.load(Ordering::Relaxed) && n < 40_000 {
            let _ = client.run(&write(&mut rng, n));
            n += 1;
            std::thread::sleep(Duration::from_micros(800));
        }
        n
    })
}

/// Texts with their scores and payloads, or their number.
fn suggestions(answer: &Value) -> Vec<String> {
    let mut all: Vec<String> = (answer.items().chunks(3))
        .map(|told| format!("{told:?}"))
        .collect();
    all.push(answer.text());
    all.sort();
    all
}

/// The modules' own answers are the same on both sides.
#[track_caller]
pub fn judge(source: &mut Side, target: &mut Side) {
    let questions = questions();
    let ours = source.all(&questions).expect("answers");
    let theirs = target.all(&questions).expect("answers");
    let mut told = 0;
    for ((question, a), b) in questions.iter().zip(&ours).zip(&theirs) {
        let key = question.routing_key().map(String::from_utf8_lossy);
        match key.as_ref().is_some_and(|key| key.starts_with("sug:")) {
            // Suggestions of one score come in whatever order they lie.
            true => assert_eq!(suggestions(a), suggestions(b), "{key:?}"),
            false => assert_eq!(a, b, "{key:?}"),
        }
        told += usize::from(!a.is_error() && *a != Value::Nil);
    }
    assert!(told > 50, "{told} answers prove little");
}

/// From `source` with plain strings in its payloads, under writes; killed once on the way.
fn carried(source: &str, target: &str, cluster: bool, mode: &str) {
    let Some([source, target]) = need([source, target]) else {
        return;
    };
    let to = match cluster {
        true => Endpoint::cluster(Setup::new(&target)),
        false => Endpoint::alone(Setup::new(&target)),
    };
    let setup = Setup::new(&source)
        .line("rdbcompression no")
        .line("notify-keyspace-events AKE");
    let mut story = Story::new(Endpoint::alone(setup), to);
    story.plan.set("/source/mode", json!(mode));
    let mut rng = seeded();
    let mut client = story.source.nodes()[0].client();
    begin(&mut client, &mut rng);
    if !cluster {
        client.words("SELECT 3").expect("an answer");
        begin(&mut client, &mut rng);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writer = traffic(&story.source.nodes()[0], rng.next(), &stop);
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    std::thread::sleep(Duration::from_millis(700));
    running.signal("KILL");
    running.wait(Duration::from_secs(10));
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    std::thread::sleep(Duration::from_millis(700));
    stop.store(true, Ordering::Relaxed);
    assert!(writer.join().expect("the writer ends") > 3_300);
    story.catch_up_and_stop(running);
    story.verify();
    let (mut a, mut b) = (story.source.side(), story.target.side());
    judge(&mut a, &mut b);
    if !cluster {
        a.everywhere("SELECT 3").expect("an answer");
        b.everywhere("SELECT 3").expect("an answer");
        judge(&mut a, &mut b);
        a.everywhere("SELECT 0").expect("an answer");
        b.everywhere("SELECT 0").expect("an answer");
    }
    // One of each is changed at the target, and every one of them is found.
    let changes = [
        ("JSON.SET json:0 $.a -31337", "json:0"),
        ("BF.MADD bf:0 new1 new2 new3 new4", "bf:0"),
        ("CF.ADD cf:0 somethingnew", "cf:0"),
        ("CMS.INCRBY cms:0 i1 1", "cms:0"),
        ("TDIGEST.ADD td:0 7", "td:0"),
        ("TS.ADD ts:0 90000000 7", "ts:0"),
        ("TS.ALTER ts:1 LABELS room other", "ts:1"),
        ("TS.ADD plain:0 90000000 7", "plain:0"),
        ("FT.SUGADD sug:0 else 1", "sug:0"),
    ];
    // An item whose buckets others have taken changes nothing: chance decides.
    let asked = |words: &str| Command::new(words).key("topk:0");
    let list = b.run(&asked("TOPK.LIST")).expect("a list");
    let before = b.run(&asked("TOPK.LIST").arg("WITHCOUNT")).expect("a list");
    let raised = list.items().iter().any(|item| {
        let more = asked("TOPK.INCRBY").arg(item.text()).arg("1000");
        assert!(b.run(&more).is_ok_and(|a| !a.is_error()));
        b.run(&asked("TOPK.LIST").arg("WITHCOUNT")).expect("a list") != before
    });
    assert!(raised, "{before:?}");
    for (words, key) in changes {
        let args = words.split(' ').filter(|w| *w != key);
        let mut args = args.map(str::to_owned);
        let name = args.next().unwrap_or_default();
        let answer = b.run(&Command::new(&name).key(key).args(args.collect::<Vec<_>>()));
        assert!(
            answer.as_ref().is_ok_and(|a| !a.is_error()),
            "{words}: {answer:?}"
        );
    }
    let found = story.plan.run("verify --json").exits(1).json;
    let different = found["different"].as_array().cloned().unwrap_or_default();
    for (words, key) in changes.into_iter().chain([("TOPK.INCRBY", "topk:0")]) {
        assert!(
            different.iter().any(|d| d["key"] == key),
            "{words} is not found: {found}"
        );
    }
    assert_eq!(different.len(), changes.len() + 1, "{found}");
}

#[test]
fn module_values_without_compression_to_the_same() {
    carried("modules-7.4", "modules-7.4", false, "replica");
}

#[test]
fn module_values_to_a_cluster_of_a_later_version() {
    carried("modules-7.4", "modules-8.2", true, "replica");
}

#[test]
fn module_values_by_scan() {
    carried("modules-7.4", "modules-8.2", false, "scan");
}

#[test]
fn module_values_by_scan_to_a_cluster_of_the_same() {
    carried("modules-7.4", "modules-7.4", true, "scan");
}

/// Every command that these servers call a write is in the table, and takes its keys where they say.
#[test]
fn every_write_of_the_modules_is_known() {
    for name in crate::support::versions::MODULE_SERVERS {
        let Some([name]) = need([name]) else { return };
        let server = Server::start(&name);
        let all = server.run("COMMAND");
        let mut seen = 0;
        for row in all.items() {
            let row = row.items();
            let command = row[0].text().to_ascii_uppercase();
            let writes = row[2].items().iter().any(|flag| flag.text() == "write");
            let family = command.split_once('.').map_or("", |(family, _)| family);
            // Search's own, but suggestions, have no keys: they are about indexes.
            let ours = ["JSON", "BF", "CF", "CMS", "TOPK", "TDIGEST", "TS"].contains(&family)
                || command.starts_with("FT.SUG");
            if !(writes && ours) {
                continue;
            }
            seen += 1;
            let spec = lookup(command.as_bytes());
            let spec = spec.unwrap_or_else(|| panic!("{name}: {command} is not in the table"));
            // TOPK.COUNT is called a write, and writes nothing.
            assert!(
                spec.kind == Kind::Write || command == "TOPK.COUNT",
                "{command}"
            );
        }
        assert!(seen > 45, "{name} has {seen} writes of modules");
    }
}

/// A file of values of modules against the server that wrote it, and against one that holds them otherwise.
#[test]
fn a_file_of_module_values_is_verified_and_named() {
    let Some([source, target]) = need(["modules-7.4", "modules-8.2"]) else {
        return;
    };
    let source = Setup::new(&source).line("rdbcompression no").start();
    begin(&mut source.client(), &mut seeded());
    source.run("SAVE");
    let file = source.dir().join("dump.rdb");
    let story = Story::new(
        Endpoint::alone(Setup::new(&target)),
        Endpoint::alone(Setup::new(&target)),
    );
    let mut plan = story.plan;
    plan.set("/source", json!({ "path": file, "mode": "rdb" }));
    plan.run("migrate --json").exits(0);
    plan.run("verify --json").exits(0);
    let path = file.to_string_lossy().into_owned();
    let told = run(&["rdb", "summary", &path]);
    for name in [
        "JSON",
        "Bloom filter",
        "cuckoo filter",
        "t-digest",
        "top-k",
        "time series",
    ] {
        assert!(told.stdout.contains(name), "{name}: {}", told.stdout);
    }
    story.target.nodes()[0].run("JSON.SET json:0 $.a 5");
    let found = plan.run("verify --json").exits(1).json;
    assert_eq!(found["different"][0]["key"], "json:0", "{found}");
}

/// A series that is compacted into another goes on being so, with its labels.
#[test]
fn compaction_rules_go_on_at_the_target() {
    let Some([source, target]) = need(["modules-7.4", "modules-8.2"]) else {
        return;
    };
    let story = Story::new(
        Endpoint::alone(Setup::new(&source)),
        Endpoint::alone(Setup::new(&target)),
    );
    let source = &story.source.nodes()[0];
    for words in [
        "TS.CREATE {r}src LABELS room a",
        "TS.CREATE {r}avg LABELS room b",
        "TS.CREATERULE {r}src {r}avg AGGREGATION avg 100",
    ] {
        source.run(words);
    }
    let add = |from: i64| {
        for n in from..from + 200 {
            source.run(&format!("TS.ADD {{r}}src {} {n}", 1_000 + n * 7));
        }
    };
    add(0);
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    add(200);
    story.catch_up_and_stop(running);
    story.verify();
    let (mut a, mut b) = (story.source.side(), story.target.side());
    for key in ["{r}src", "{r}avg"] {
        for question in [
            Command::new("TS.RANGE").key(key).args(["-", "+"]),
            Command::new("TS.INFO").key(key),
        ] {
            let (ours, theirs) = (a.run(&question), b.run(&question));
            let (ours, theirs) = (ours.expect("an answer"), theirs.expect("an answer"));
            // What its memory takes is each version's own.
            let named = |answer: &Value| -> Vec<Value> {
                let pairs = answer.items().chunks(2);
                let told = pairs.filter(|p| p[0].text() != "memoryUsage");
                told.flatten().cloned().collect()
            };
            assert_eq!(named(&ours), named(&theirs), "{key}");
        }
    }
}

/// Values that are not held: packed and in parts on one side, plain on the other.
#[test]
fn large_module_values_are_verified_in_parts() {
    let Some([source, target]) = need(["modules-7.4", "modules-8.2"]) else {
        return;
    };
    let story = Story::new(
        Endpoint::alone(Setup::new(&source).line("rdbcompression no")),
        Endpoint::alone(Setup::new(&target)),
    );
    let members: Vec<String> = (0..60_000)
        .map(|n| format!("\"name{n}\":\"{}\"", "text of a member ".repeat(10)))
        .collect();
    let document = format!("{{{}}}", members.join(","));
    assert!(document.len() > 10 << 20);
    let mut client = story.source.nodes()[0].client();
    let set = Command::new("JSON.SET json $").arg(document);
    assert_eq!(client.run(&set).expect("an answer").text(), "OK");
    let reserve = "BF.RESERVE bloom 0.001 6000000";
    assert_eq!(client.words(reserve).expect("an answer").text(), "OK");
    client.words("BF.ADD bloom one").expect("an answer");
    story.plan.run("migrate --until caught-up --json").exits(0);
    story.verify();
    let target = &story.target.nodes()[0];
    target.run("JSON.SET json $.name40000 7");
    target.run("BF.ADD bloom two");
    let found = story.plan.run("verify --json").exits(1).json;
    assert_eq!(found["different_count"], 2, "{found}");
}
