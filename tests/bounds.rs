//! What a peer says is bounded: memory under replies that no server sends, and numbers at their ends.

use crate::support::fuzz::move_slot;
use crate::support::hostile_peer::{self as hostile, Answer, HostilePeer};
use crate::support::keyferry::Plan;
use crate::support::need;
use crate::support::rng::Rng;
use crate::support::server::{Server, Setup};
use crate::support::side::slot;
use crate::support::story::{Endpoint, Story};
use crate::support::wire::Command;
use serde_json::json;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 64 * MIB;

/// Runs a command between two servers, one of which is hostile to a command, and returns exit code, peak, and the text;
/// a run that has not ended after `limit` is ended (code 130).
fn run(
    (source, target): (&str, &str),
    words: &str,
    mode: &str,
    limit: Duration,
) -> (i32, u64, String) {
    let mut plan = Plan::new(source, target);
    plan.set("/limits", json!({ "memory_bytes": MEMORY, "outage_s": 3 }));
    plan.set("/source/mode", json!(mode));
    plan.set("/on_existing", json!("replace"));
    if mode == "scan" {
        plan.set("/on_existing", json!("skip"));
    }
    let mut running = plan.start(words);
    let (began, mut peak) = (Instant::now(), 0);
    while running.ended().is_none() {
        peak = peak.max(running.peak_memory());
        if began.elapsed() > limit {
            running.interrupt();
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let outcome = running.wait(Duration::from_secs(20));
    (outcome.code, peak, outcome.stderr)
}

/// Commands, what is hostile to them, and how the run ends.
struct Case {
    side: &'static str,
    words: &'static str,
    mode: &'static str,
    command: &'static str,
    spared: u64,
    answer: Answer,
}

const fn case(
    side: &'static str,
    words: &'static str,
    mode: &'static str,
    command: &'static str,
    answer: Answer,
) -> Case {
    Case {
        side,
        words,
        mode,
        command,
        spared: 0,
        answer,
    }
}

const COPY: &str = "migrate --until caught-up --json";

/// One reply of a hostile or broken peer once took 2.1 GB and an abort.
#[test]
fn no_reply_takes_more_memory_than_the_plan_allows() {
    let Some([name]) = need(["any:functions"]) else {
        return;
    };
    let cases = [
        case(
            "source",
            "verify --json",
            "scan",
            "SCAN",
            hostile::HUGE_STRING,
        ),
        case(
            "source",
            "verify --json",
            "scan",
            "SCAN",
            hostile::MANY_STRINGS,
        ),
        case(
            "source",
            "verify --json",
            "scan",
            "TYPE",
            hostile::ENDLESS_STATUS,
        ),
        case(
            "target",
            "verify --json",
            "scan",
            "GETRANGE",
            hostile::HUGE_STRING,
        ),
        case(
            "target",
            "verify --json",
            "scan",
            "DUMP",
            hostile::HUGE_STRING,
        ),
        case(
            "source",
            "verify --json",
            "scan",
            "DUMP",
            hostile::HUGE_ARRAY,
        ),
        case(
            "source",
            "verify --json",
            "scan",
            "MEMORY USAGE",
            hostile::DEEP_ARRAY,
        ),
        case(
            "source",
            "verify --json",
            "scan",
            "PEXPIRETIME",
            hostile::ENDLESS_ERROR,
        ),
        case("source", COPY, "scan", "DUMP", hostile::HUGE_STRING),
        case("source", COPY, "scan", "HSCAN", hostile::MANY_STRINGS),
        case("source", COPY, "replica", "PSYNC", hostile::ENDLESS_STATUS),
        case("source", COPY, "replica", "PSYNC", hostile::HUGE_STRING),
        case("source", COPY, "replica", "REPLCONF", hostile::HUGE_ARRAY),
        case("target", COPY, "replica", "RESTORE", hostile::HUGE_STRING),
        case("target", COPY, "replica", "MSET", hostile::ENDLESS_ERROR),
        case("target", COPY, "replica", "MSET", hostile::DEEP_ARRAY),
        case("source", COPY, "replica", "DUMP", hostile::HUGE_STRING),
    ];
    let (source, target) = (Server::start(&name), Server::start(&name));
    for server in [&source, &target] {
        fill(server);
    }
    let (full, empty) = (target, Server::start(&name));
    let mut wrong = Vec::new();
    for case in &cases {
        let target = if case.words == COPY { &empty } else { &full };
        empty.run("FLUSHALL");
        let real = if case.side == "source" {
            &source
        } else {
            target
        };
        let peer = HostilePeer::start(&real.address(), case.command, case.spared, case.answer);
        let urls = match case.side {
            "source" => (peer.url(), target.url()),
            _ => (source.url(), peer.url()),
        };
        let began = Instant::now();
        let limit = Duration::from_secs(20);
        let (code, peak, said) = run((&urls.0, &urls.1), case.words, case.mode, limit);
        let line = format!(
            "{} {} to {} of {} ({}): exit {code} after {:.1} s, peak {} MiB, {} MiB taken",
            case.words.split(' ').next().unwrap_or_default(),
            case.mode,
            case.command,
            case.side,
            case.answer.head.trim_end(),
            began.elapsed().as_secs_f64(),
            peak / MIB,
            peer.sent() / MIB,
        );
        println!("{line}\n    {}", said.lines().last().unwrap_or_default());
        if peak == 0 || peak >= MEMORY || peer.sent() == 0 || !matches!(code, 0 | 1 | 3 | 130) {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A stream with many entries: XINFO STREAM FULL has no pages, and told all of them once.
#[test]
fn a_stream_of_many_entries_is_read_in_little_memory() {
    let Some([name]) = need(["any:functions"]) else {
        return;
    };
    let mut story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    let source = &story.source.nodes()[0];
    for part in 0..30 {
        let script = format!(
            "for n = {part}0001, {part}9999 do redis.call('XADD', 'x', n .. '-1', 'field', string.rep('v', 50)) end"
        );
        eval(source, &script);
    }
    for words in [
        "XGROUP CREATE x first 0",
        "XGROUP CREATE x last $",
        "XGROUP CREATECONSUMER x first idle",
        "XGROUP CREATECONSUMER x last idle",
    ] {
        source.run(words);
    }
    source.run("XREADGROUP GROUP first one COUNT 1500 STREAMS x >");
    source.run("XREADGROUP GROUP first two COUNT 500 STREAMS x >");
    source.run("XREADGROUP GROUP first two COUNT 10 STREAMS x 0");
    story.plan.set("/limits", json!({ "memory_bytes": MEMORY }));
    for mode in ["replica", "scan"] {
        story.plan.set("/source/mode", json!(mode));
        story.target.nodes()[0].run("FLUSHALL");
        let moved = story.plan.run("migrate --fresh --until caught-up --json");
        let peak = moved.exits(0).json["peak_rss_bytes"].as_u64();
        assert!(peak < Some(MEMORY), "migrate {mode}: {peak:?}");
        let verified = story.verify().json;
        let peak = verified["peak_rss_bytes"].as_u64();
        println!("{mode}: verify takes {peak:?} bytes");
        assert!(peak < Some(MEMORY), "verify after {mode}: {peak:?}");
        story.judge();
    }
    // Who has what is compared.
    story.target.nodes()[0].run("XACK x first 1-1");
    let found = story.plan.run("verify --json").exits(1).json;
    assert_eq!(found["different_count"], 1, "{found}");
}

/// Where sizes are not told (MEMORY is refused), or a sample misleads: values that prove large are read in parts.
#[test]
fn values_of_unknown_size_are_read_in_little_memory() {
    let Some([name]) = need(["any:functions"]) else {
        return;
    };
    let mut story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    let source = &story.source.nodes()[0];
    let (mut client, mut rng) = (source.client(), Rng::new(7));
    let mut send = |command: Command| {
        let answer = client.expect(&command).expect("an answer");
        assert!(!answer.is_error(), "{}", answer.text());
    };
    for n in 0..300 {
        send(
            Command::new("SET")
                .arg(format!("s{n}"))
                .arg(rng.bytes(100_000)),
        );
    }
    send(Command::new("RPUSH misleading").args((0..500).map(|n| n.to_string().into_bytes())));
    for n in 0..24 {
        let value = rng.bytes(1 << 20);
        send(
            Command::new("HSET large")
                .arg(format!("f{n}"))
                .arg(value.clone()),
        );
        send(Command::new("RPUSH misleading").arg(value));
    }
    story.plan.set("/limits", json!({ "memory_bytes": MEMORY }));
    story.plan.set("/source/mode", json!("scan"));
    for (side, end) in [("source", &story.source), ("target", &story.target)] {
        end.nodes()[0].run("ACL SETUSER reader on >secret ~* &* +@all -memory");
        for (key, value) in [("username", "reader"), ("password", "secret")] {
            story.plan.set(&format!("/{side}/{key}"), json!(value));
        }
    }
    for words in ["migrate --until caught-up --json", "verify --json"] {
        let done = story.plan.run(words).exits(0).json;
        let peak = done["peak_rss_bytes"].as_u64().expect("a peak");
        println!("{words}: peak {} MiB", peak / MIB);
        assert!(peak < MEMORY, "{words}: {} MiB", peak / MIB);
    }
    story.judge();
}

/// What a client may set: expiries, ids and numbers at the ends of what they can be.
#[test]
fn numbers_at_their_ends_arrive_and_are_compared() {
    let pairs = [
        ["redis-6.0", "redis-6.0"],
        ["redis-6.2", "redis-8.2"],
        ["valkey-9.1", "valkey-9.1"],
        ["redis-7.0", "valkey-8.0"],
        ["redis-8.2", "redis-8.2"],
    ];
    let full = std::env::var_os("KEYFERRY_FULL").is_some();
    let some = if full { pairs.len() } else { 3 };
    for pair in pairs.into_iter().take(some) {
        let Some([from, to]) = need(pair) else {
            continue;
        };
        let mut story = Story::new(
            Endpoint::alone(Setup::new(&from)),
            Endpoint::alone(Setup::new(&to)),
        );
        extremes(&story.source, "a:");
        let mut running = story.migrate();
        story.wait_loaded(&mut running);
        extremes(&story.source, "b:");
        story.catch_up_and_stop(running);
        println!(
            "{pair:?}: {} keys",
            story.source.info("stats", "expired_keys")
        );
        story.verify();
        let mut typed = Plan::new(&story.source.url(), &story.target.url());
        for (side, end) in [("source", &story.source), ("target", &story.target)] {
            end.nodes()[0].run("ACL SETUSER reader on >secret ~* +@all -dump");
            typed.set(&format!("/{side}/username"), json!("reader"));
            typed.set(&format!("/{side}/password"), json!("secret"));
        }
        let found = typed.run("verify --json").exits(0).json;
        assert_eq!(found["equal"], true, "{pair:?}: {found}");
        story.plan.set("/source/mode", json!("scan"));
        story.target.nodes()[0].run("FLUSHALL");
        (story.plan.run("migrate --fresh --until caught-up --json")).exits(0);
        story.verify();
        let keys = |end: &Endpoint| end.nodes()[0].run("DBSIZE").int();
        assert_eq!(keys(&story.source), keys(&story.target), "{pair:?}");
        assert!(keys(&story.source) >= Some(12), "{pair:?}");
    }
}

/// A page of names that are long beyond all custom is too large: the listing goes on by smaller ones.
#[test]
fn keys_with_long_names_are_listed_in_smaller_pages() {
    let Some([name]) = need(["any"]) else {
        return;
    };
    let (source, target) = (Server::start(&name), Server::start(&name));
    let long = "for n = 1, 1500 do redis.call('SET', n .. string.rep('n', 15000), n) end";
    eval(&source, long);
    let mut plan = Plan::new(&source.url(), &target.url());
    plan.set("/source/mode", json!("scan"));
    plan.run("migrate --until caught-up --json").exits(0);
    let verified = plan.run("verify --json").exits(0);
    assert_eq!(verified.json["keys_source"], 1500, "{}", verified.json);
}

/// What a slot's names take is more than one answer of a node may: they are found by SCAN where the slot arrives.
#[test]
fn a_slot_of_very_long_names_moves_to_another_source() {
    let Some([name]) = need(["any"]) else {
        return;
    };
    let source = Setup::new(&name).line("repl-backlog-size 256mb");
    let story = Story::new(
        Endpoint::cluster(source),
        Endpoint::alone(Setup::new(&name)),
    );
    let script =
        "for n = 1, 3600 do redis.call('SET', '{t}' .. n .. string.rep('n', 15000), n) end";
    let script = Command::new("EVAL").arg(script).arg("1").arg("{t}");
    let filled = story.source.nodes().iter().filter(|node| {
        let answer = node.client().run(&script).expect("an answer");
        !answer.is_error()
    });
    assert_eq!(filled.count(), 1);
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    let urls: Vec<String> = story.source.nodes().iter().map(Server::url).collect();
    move_slot(&urls, slot(b"{t}"));
    // A move is looked for every second, and believed when it is seen twice.
    std::thread::sleep(Duration::from_secs(4));
    let ended = story.catch_up_and_stop(running);
    assert!(!ended.stderr.contains("Oversized"), "{}", ended.stderr);
    let verified = story.verify().json;
    assert_eq!(verified["keys_source"], 3600, "{verified}");
}

/// A server whose INFO tells the largest numbers that there are: nothing panics, and what is the same is found the same.
#[test]
fn no_number_in_info_is_too_large() {
    let Some([name]) = need(["any:functions"]) else {
        return;
    };
    let (source, target) = (Server::start(&name), Server::start(&name));
    eval(
        &source,
        "for n = 1, 500 do redis.call('SET', 's' .. n, n, 'PX', 5000000) end",
    );
    let (ours, theirs) = (
        HostilePeer::boasting(&source.address()),
        HostilePeer::boasting(&target.address()),
    );
    let mut plan = Plan::new(&ours.url(), &theirs.url());
    plan.set("/limits", json!({ "outage_s": 3 }));
    for (mode, words, fine) in [
        ("replica", "check --json", &[0, 1][..]),
        (
            "replica",
            "migrate --fresh --until caught-up --json",
            &[0, 1, 3],
        ),
        ("scan", "check --json", &[0, 1]),
        ("scan", "verify --json", &[0, 1, 3]),
    ] {
        plan.set("/source/mode", json!(mode));
        let existing = if mode == "scan" { "skip" } else { "replace" };
        plan.set("/on_existing", json!(existing));
        let mut running = plan.start(words);
        let began = Instant::now();
        while running.ended().is_none() && began.elapsed() < Duration::from_secs(15) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if running.ended().is_none() {
            running.interrupt();
        }
        let ended = running.wait(Duration::from_secs(20));
        println!("{words} ({mode}): exit {}\n{}", ended.code, ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        assert!(
            fine.contains(&ended.code) || ended.code == 130,
            "{words}: {}",
            ended.code
        );
    }
    assert!(ours.sent() > 0 && theirs.sent() > 0);
}

/// A server whose replication offset is near the end of what it can count to: it was loaded from a file that says so.
#[test]
fn an_offset_near_its_end_is_followed() {
    let Some([name]) = need(["redis-8.0"]) else {
        return;
    };
    let mut source = Setup::new(&name).start();
    source.kill();
    let mut file = b"REDIS0009".to_vec();
    let offset = (i64::MAX - (1 << 30)).to_string();
    for (name, value) in [
        ("repl-stream-db", "0"),
        ("repl-id", "0123456789abcdef0123456789abcdef01234567"),
        ("repl-offset", &offset),
    ] {
        for text in [name, value] {
            let head: &[u8] = if text == name { &[0xfa] } else { &[] };
            file.extend_from_slice(head);
            file.push(text.len() as u8);
            file.extend_from_slice(text.as_bytes());
        }
    }
    // A key, the end, and a checksum that was not computed.
    file.extend_from_slice(b"\xfe\x00\x00\x01k\x01v\xff\0\0\0\0\0\0\0\0");
    std::fs::write(source.dir().join("dump.rdb"), file).expect("the file is written");
    source.restart();
    let stands = source.info("replication", "master_repl_offset");
    assert!(stands > i64::MAX - (2 << 30), "{stands}");
    let story = Story::new(
        Endpoint::Alone(Box::new(source)),
        Endpoint::alone(Setup::new(&name)),
    );
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    eval(
        &story.source.nodes()[0],
        "for n = 1, 500 do redis.call('SET', 's' .. n, n) end",
    );
    story.catch_up_and_stop(running);
    eval(
        &story.source.nodes()[0],
        "for n = 1, 50 do redis.call('SET', 't' .. n, n) end",
    );
    story.catch_up_and_stop(story.migrate());
    assert_eq!(story.target.nodes()[0].run("DBSIZE").int(), Some(551));
    story.verify();
}

/// Some of these commands are refused by some versions.
fn extremes(end: &Endpoint, prefix: &str) {
    let mut client = end.nodes()[0].client();
    let most = "9223372036854775807";
    let id = "18446744073709551615-18446744073709551615";
    for words in [
        format!("SET {prefix}1 v"),
        format!("PEXPIREAT {prefix}1 {most}"),
        format!("SET {prefix}2 v"),
        format!("EXPIREAT {prefix}2 9223372036854775"),
        format!("SET {prefix}3 v"),
        format!("EXPIREAT {prefix}3 {most}"),
        format!("SET {prefix}4 v PX 9223370000000000000"),
        format!("SET {prefix}5 v"),
        format!("PEXPIREAT {prefix}5 -9223372036854775808"),
        format!("SET {prefix}6 {most}"),
        format!("HSET {prefix}7 f v g w"),
        format!("HPEXPIREAT {prefix}7 {most} FIELDS 1 f"),
        format!("HPEXPIREAT {prefix}7 70368744177663 FIELDS 1 f"),
        format!("RPUSH {prefix}8 {most} -9223372036854775808"),
        format!("XADD {prefix}9 5-18446744073709551615 f v"),
        format!("XADD {prefix}9 {id} f v"),
        format!("XGROUP CREATE {prefix}9 g 0"),
        format!("XREADGROUP GROUP g c STREAMS {prefix}9 >"),
        format!("XGROUP CREATE {prefix}9 h {id}"),
        format!("XCLAIM {prefix}9 g d 0 {id} TIME {most} RETRYCOUNT {most} JUSTID"),
        format!("ZADD {prefix}10 1.7976931348623157e308 a -inf b"),
        format!("XADD {prefix}11 1-1 f v"),
        format!("XSETID {prefix}11 {id}"),
    ] {
        let answer = client.run(&Command::new(&words)).expect("an answer");
        if answer.is_error() {
            println!("{words}: {}", answer.text());
        }
    }
    for ttl in [most, "-9223372036854775808"] {
        let payload = client
            .run(&Command::new(&format!("DUMP {prefix}6")))
            .expect("a payload");
        let payload = payload.bytes().to_vec();
        for option in ["ABSTTL", ""] {
            let command = Command::new("RESTORE").arg(format!("{prefix}r{ttl}{option}"));
            let mut command = command.arg(ttl).arg(payload.clone());
            if !option.is_empty() {
                command = command.arg(option);
            }
            let answer = client.run(&command).expect("an answer");
            println!("RESTORE {ttl} {option}: {}", answer.text());
        }
    }
}

fn eval(server: &Server, script: &str) {
    let script = Command::new("EVAL").arg(script).arg("0");
    let answer = server.client().expect(&script).expect("an answer");
    assert!(!answer.is_error(), "{}", answer.text());
}

/// Values of all types, a large one among them, the same on each server.
fn fill(server: &Server) {
    let script = "for n = 1, 1000 do redis.call('SET', 's' .. n, 'v' .. n) \
         redis.call('HSET', 'h' .. n, 'f', 'v', 'g', n) redis.call('RPUSH', 'l' .. n, 1, 2, 3) end \
         for n = 1, 12 do for m = 1, 1000 do \
         redis.call('HSET', 'large', n .. ':' .. m, string.rep('x', 1000)) end end \
         for n = 1, 2000 do redis.call('XADD', 'x', n .. '-1', 'f', n) end";
    eval(server, script);
}
