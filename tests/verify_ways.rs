//! The ways a verification reads: in parts, after a stop, only what has changed, against a file, while it is written to.

use crate::support::borders;
use crate::support::cutter::Cutter;
use crate::support::keyferry::{Plan, Running};
use crate::support::server::{Server, Setup};
use crate::support::side::Side;
use crate::support::story::{Endpoint, Story};
use crate::support::traffic::{self, Options};
use crate::support::wire::Command;
use crate::support::{need, wait_until};
use serde_json::{Value, json};
use std::time::Duration;

fn moved(source: Endpoint, target: Endpoint, keys: u64) -> Story {
    let story = Story::new(source, target);
    story.fill(keys);
    story.plan.run("migrate --until caught-up --json").exits(0);
    story
}

/// How often a server has run a command.
fn calls(server: &Server, command: &str) -> u64 {
    let stats = server
        .client()
        .info("commandstats", &format!("cmdstat_{command}"));
    let stats = stats.unwrap_or_default();
    let calls = stats.split(',').find_map(|f| f.strip_prefix("calls="));
    calls.and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The user of the source or of both sides may not run DUMP: values are read by their types, and are the same.
fn without_dump(name: &str, other: &str) {
    let story = Story::new(
        Endpoint::alone(Setup::new(name)),
        Endpoint::alone(Setup::new(other)),
    );
    borders::fill(&mut story.source.side(), 3_000).expect("the values are made");
    story.fill(2_000);
    story.plan.run("migrate --until caught-up --json").exits(0);
    for end in [&story.source, &story.target] {
        end.nodes()[0].run("ACL SETUSER reader on >secret ~* +@all -dump");
    }
    // Plans of a running migration are not changed: a plan of its own, for the comparison alone.
    let plan = |read: &[&str]| {
        let mut plan = Plan::new(&story.source.url(), &story.target.url());
        for side in read {
            plan.set(&format!("/{side}/username"), json!("reader"));
            plan.set(&format!("/{side}/password"), json!("secret"));
        }
        plan
    };
    for read in [&["target"][..], &["source", "target"]] {
        let plan = plan(read);
        let dumps = calls(&story.target.nodes()[0], "dump");
        let found = plan.run("verify --json").exits(0).json;
        assert_eq!(found["equal"], true, "{found}");
        assert!(found["keys_source"].as_u64() > Some(2_000), "{found}");
        assert_eq!(calls(&story.target.nodes()[0], "dump"), dumps);
    }
    story.target.nodes()[0].run("SET one:more x");
    let found = plan(&["target"]).run("verify --json").exits(1).json;
    assert_eq!(found["extra_count"], 1, "{found}");
}

#[test]
fn without_dump_values_are_read_by_their_types() {
    let Some([name]) = need(["any"]) else { return };
    without_dump(&name, &name);
}

#[test]
fn without_dump_between_vendors() {
    let Some([redis, valkey]) = need(["redis-8.0", "valkey-9.1"]) else {
        return;
    };
    without_dump(&redis, &redis);
    without_dump(&valkey, &valkey);
    // Counted streams against streams that cannot count.
    let Some([old]) = need(["redis-6.2"]) else {
        return;
    };
    without_dump(&old, &valkey);
}

/// A stream of Redis 6 has no counters; the target's go on counting, and that is no difference.
#[test]
fn streams_of_redis_6_equal_those_that_count() {
    let Some([old, new]) = need(["redis-6.2", "valkey-9.1"]) else {
        return;
    };
    let story = Story::new(
        Endpoint::alone(Setup::new(&old)),
        Endpoint::alone(Setup::new(&new)),
    );
    let source = &story.source.nodes()[0];
    for words in [
        "XADD s 1-1 f v",
        "XADD s 2-1 f v",
        "XADD s 3-1 f v",
        "XGROUP CREATE s g 0",
        "XREADGROUP GROUP g c COUNT 1 STREAMS s >",
    ] {
        source.run(words);
    }
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    for words in [
        "XDEL s 2-1",
        "XADD s 4-1 f v",
        "XREADGROUP GROUP g c COUNT 2 STREAMS s >",
        "XACK s g 1-1",
    ] {
        source.run(words);
    }
    story.catch_up_and_stop(running);
    story.verify();
    story.plan.run("verify --strong --json").exits(0);
    story.target.nodes()[0].run("XACK s g 3-1");
    let found = story.plan.run("verify --json").exits(1).json;
    assert_eq!(found["different"][0]["reason"], "group state", "{found}");
}

/// A value over the limit is read in parts on both sides; its last element still counts.
#[test]
fn a_large_value_is_read_in_parts() {
    let Some([name]) = need(["any"]) else { return };
    let story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    let mut side = story.source.side();
    for n in 0..200u32 {
        let members = (0..1000u32).map(|i| format!("member:{:08}", n * 1000 + i));
        side.run(&Command::new("SADD").key("big:set").args(members.clone()))
            .expect("an answer");
        side.run(&Command::new("RPUSH").key("big:list").args(members.clone()))
            .expect("an answer");
        let fields = members.flat_map(|m| [m.clone(), m]);
        side.run(&Command::new("HSET").key("big:hash").args(fields))
            .expect("an answer");
    }
    side.run(
        &Command::new("SETRANGE")
            .key("big:string")
            .arg(9_000_000)
            .arg("end"),
    )
    .expect("an answer");
    story.plan.run("migrate --until caught-up --json").exits(0);
    let before = calls(&story.source.nodes()[0], "dump");
    story.verify();
    assert!(calls(&story.source.nodes()[0], "sscan") > 0);
    assert!(calls(&story.source.nodes()[0], "getrange") > 0);
    // The list is small enough in memory.
    assert_eq!(calls(&story.source.nodes()[0], "dump"), before + 1);
    let mut target = story.target.side();
    for (key, plant) in [
        ("big:set", "SADD big:set member:x"),
        ("big:list", "LSET big:list -1 member:x"),
        ("big:hash", "HSET big:hash member:00199999 x"),
        ("big:string", "SETRANGE big:string 9000001 N"),
    ] {
        target.run(&Command::new(plant)).expect("an answer");
        let found = story.plan.run("verify --json").exits(1).json;
        assert_eq!(found["different"][0]["key"], key, "{found}");
        assert_eq!(found["different_count"], 1, "{found}");
        story.plan.run("verify --repair --json").exits(0);
    }
}

/// How many keys the saved progress of a verification that has not ended counts.
fn compared(story: &Story) -> Option<u64> {
    let state = story.plan.work_dir().join("test/state.sqlite");
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let db = rusqlite::Connection::open_with_flags(state, flags).ok()?;
    let at = db.query_row("SELECT at FROM verify_progress", [], |row| {
        row.get::<_, String>(0)
    });
    let at: serde_json::Value = serde_json::from_str(&at.ok()?).expect("JSON");
    at["compared"].as_u64()
}

/// Waits until a running verification has saved that it has compared so many keys.
fn saved_progress(story: &Story, running: &mut Running, keys: u64) {
    wait_until("progress is saved", Duration::from_secs(60), || {
        assert!(running.ended().is_none(), "it ended before it was stopped");
        compared(story).is_some_and(|n| n >= keys)
    });
}

/// Killed and started again, it does not read again what it had read.
fn goes_on(source: Endpoint, target: Endpoint) {
    let mut story = moved(source, target, 20_000);
    let reads = |story: &Story| -> u64 {
        let of = |n| calls(n, "dump") + calls(n, "getrange");
        story.source.nodes().iter().map(of).sum()
    };
    let whole = {
        let before = reads(&story);
        story.verify();
        reads(&story) - before
    };
    assert!(whole >= 19_000, "{whole} values read");
    story.plan.set("/limits", json!({ "keys_per_s": 3_000 }));
    let mut running = story.plan.start("verify --json");
    saved_progress(&story, &mut running, 4_000);
    running.signal("KILL");
    running.wait(Duration::from_secs(10)).exits(-1);
    let saved = compared(&story).expect("the progress");
    story.plan.set("/limits", json!({}));
    let before = reads(&story);
    let found = story.plan.run("verify --json").exits(0).json;
    assert_eq!(found["resumed"], true, "{found}");
    let rest = reads(&story) - before;
    // Some pages before the position count only with those in front of them.
    assert!(
        rest + saved <= whole + 3_000,
        "{saved} were saved and {rest} read after it, of {whole}"
    );
    let size: i64 = story.source.side().size().expect("a size");
    // Some expire meanwhile.
    for keys in ["keys_source", "keys_target"] {
        let keys = found[keys].as_i64().expect("a number");
        assert!((size..size + 500).contains(&keys), "{size} keys: {found}");
    }
    let again = story.plan.run("verify --json").exits(0).json;
    assert_eq!(
        again["resumed"], false,
        "a finished one is not gone on with"
    );
}

#[test]
fn a_killed_verification_goes_on_by_cursor() {
    let Some([name]) = need(["any"]) else { return };
    goes_on(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::cluster(Setup::new(&name)),
    );
}

#[test]
fn a_killed_verification_goes_on_by_slot() {
    let Some([name]) = need(["any"]) else { return };
    goes_on(
        Endpoint::cluster(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
}

/// A page of SCAN is asked for while the one before is compared: when the line is cut just then, none is left out.
#[test]
fn lines_that_are_cut_leave_no_key_out() {
    let Some([name]) = need(["any"]) else { return };
    let (source, target) = (Server::start(&name), Server::start(&name));
    for server in [&source, &target] {
        let fill = "for i=1,80000 do redis.call('SET','k:'..i,i) end";
        let command = Command::new("EVAL").arg(fill).arg("0");
        server.client().expect(&command).expect("it is filled");
    }
    target.run("SET of-its-own 1");
    let lines = [&source, &target].map(|s| Cutter::start(&s.address(), 7, 300 << 10));
    let plan = Plan::new(&lines[0].url(), &lines[1].url());
    let found = plan.run("verify --json").exits(1).json;
    assert_eq!(found["keys_source"], 80_000, "{found}");
    assert_eq!(found["extra"][0]["key"], "of-its-own", "{found}");
    for line in lines {
        assert!(line.cuts() >= 3, "{}", line.cuts());
    }
}

#[test]
fn ctrl_c_saves_what_was_compared() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = moved(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
        20_000,
    );
    story.plan.set("/limits", json!({ "keys_per_s": 3_000 }));
    let mut running = story.plan.start("verify --json");
    saved_progress(&story, &mut running, 1_000);
    running.interrupt();
    running.wait(Duration::from_secs(10)).exits(130);
    story.plan.set("/limits", json!({}));
    let found = story.plan.run("verify --json").exits(0).json;
    assert_eq!(found["resumed"], true, "{found}");
}

/// After a full one, only slots that were written to are read; without the stream's word, all of them.
#[test]
fn an_incremental_verification_reads_what_was_written_to() {
    let Some([name]) = need(["any"]) else { return };
    let story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.fill(10_000);
    let mut running = story.migrate();
    story
        .plan
        .wait_caught_up(&mut running, Duration::from_secs(60));
    // The load's own writes lie in the margin.
    std::thread::sleep(Duration::from_secs(4));
    let full = story.plan.run("verify --json").exits(0).json;
    assert_eq!(full["slots_compared"], 16384);
    std::thread::sleep(Duration::from_secs(3));
    for key in ["one", "two", "three"] {
        story.source.nodes()[0].run(&format!("SET inc:{key} x"));
    }
    let some = story.plan.run("verify --incremental --json").exits(0).json;
    let compared = some["slots_compared"].as_u64().expect("a number");
    // Keys that expire are writes as well.
    assert!((3..1_000).contains(&compared), "{some}");
    assert_eq!(some["incremental"], true);
    assert!(
        some["keys_source"].as_u64() > Some(9_000),
        "all slots count: {some}"
    );
    // A difference in a slot that the source has written to is found.
    let mut target = story.target.side();
    std::thread::sleep(Duration::from_secs(3));
    story.source.nodes()[0].run("SET inc:four x");
    story
        .plan
        .wait_caught_up(&mut running, Duration::from_secs(30));
    target
        .run(&Command::new("SET").key("inc:four").arg("y"))
        .expect("an answer");
    let found = story.plan.run("verify --incremental --json").exits(1).json;
    assert_eq!(found["different"][0]["key"], "inc:four", "{found}");
    // What was different is read again, though nobody has written since.
    target
        .run(&Command::new("SET").key("inc:four").arg("x"))
        .expect("an answer");
    let mended = story.plan.run("verify --incremental --json").exits(0).json;
    assert!(mended["slots_compared"].as_u64() >= Some(1), "{mended}");
    story.catch_up_and_stop(running);
    // Nobody follows the source any more.
    story.source.nodes()[0].run("SET inc:unseen x");
    let all = story.plan.run("verify --incremental --json").exits(1).json;
    assert_eq!(all["slots_compared"], 16384, "{all}");
    assert_eq!(all["missing"][0]["key"], "inc:unseen", "{all}");
}

/// A snapshot file against a live target.
#[test]
fn a_file_is_compared_with_a_target() {
    let Some([name]) = need(["any"]) else { return };
    let story = Story::new(
        Endpoint::alone(Setup::new(&name).line("dbfilename file.rdb")),
        Endpoint::cluster(Setup::new(&name)),
    );
    let source = &story.source.nodes()[0];
    borders::fill(&mut story.source.side(), 5_000).expect("the values are made");
    story.fill(5_000);
    source.run("SAVE");
    let file = source.dir().join("file.rdb");
    let plan = Plan::of(json!({
        "name": "file",
        "source": { "mode": "rdb", "path": file },
        "target": { "url": story.target.url() },
        "databases": { "include": [0] },
        "on_loss": "list",
    }));
    plan.run("migrate --json").exits(0);
    let found = plan.run("verify --json").exits(0).json;
    assert_eq!(found["equal"], true, "{found}");
    assert!(found["keys_source"].as_u64() > Some(4_000), "{found}");
    let mut target = story.target.side();
    let lasting = lasting_key(&mut target);
    target
        .run(&Command::new("DEL").key(&lasting))
        .expect("an answer");
    target
        .run(&Command::new("SET").key("file:extra").arg("x"))
        .expect("an answer");
    let found = plan.run("verify --json").exits(1).json;
    let missing = found["missing"][0]["key"].as_str().expect("a key");
    assert_eq!(missing.as_bytes(), lasting, "{found}");
    assert_eq!(found["extra"][0]["key"], "file:extra", "{found}");
    assert_eq!(
        (
            &found["missing_count"],
            &found["extra_count"],
            &found["different_count"]
        ),
        (&json!(1), &json!(1), &json!(0)),
        "{found}"
    );
}

/// A key in plain letters that does not expire.
fn lasting_key(side: &mut Side) -> Vec<u8> {
    for node in 0..side.nodes().len() {
        let page = side.nodes()[node].words("SCAN 0 COUNT 500").expect("keys");
        for key in page.items()[1].items() {
            let key = key.bytes().to_vec();
            let ttl = side
                .run(&Command::new("PTTL").key(&key))
                .expect("an answer");
            if key.is_ascii() && !key.contains(&b'"') && ttl.int() == Some(-1) {
                return key;
            }
        }
    }
    panic!("no such key");
}

/// Under writes, a tenth of them to hot keys: no false difference, and only hot keys may be unprovable.
#[test]
fn while_it_is_written_to_nothing_false_is_said() {
    let Some([source, target]) = need(["redis-7.0", "valkey-9.1"]) else {
        return;
    };
    let full = std::env::var_os("KEYFERRY_FULL").is_some();
    let story = Story::new(
        Endpoint::alone(Setup::new(&source).line("repl-backlog-size 256mb")),
        Endpoint::cluster(Setup::new(&target)),
    );
    story.fill(if full { 1_000_000 } else { 50_000 });
    let options = Options {
        rate: if full { 4_500 } else { 2_000 },
        seconds: 600,
        ..story.traffic_options()
    };
    let mixed = traffic::start(&options).expect("the traffic starts");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let hot = {
        let (stop, address) = (stop.clone(), story.source.nodes()[0].address());
        std::thread::spawn(move || {
            let mut client = crate::support::wire::Client::connect(&address).expect("a connection");
            let mut n = 0u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for _ in 0..5 {
                    client
                        .words(&format!("INCR hot:{}", n % 100))
                        .expect("an answer");
                    n += 1;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        })
    };
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    story
        .plan
        .wait_status(&mut running, "following", Duration::from_secs(120), |s| {
            s["stream"]["lag_ms"].as_u64() < Some(500)
        });
    for _ in 0..2 {
        let outcome = story.plan.run("verify --json");
        let found = &outcome.json;
        for kind in ["missing_count", "extra_count", "different_count"] {
            assert_eq!(found[kind], 0, "{}", outcome.stdout);
        }
        let cold = (found["unprovable"].as_array().expect("a list").iter()).filter(|key| {
            let name = key["key"].as_str().unwrap_or_default();
            // The traffic's own counters are hot as well.
            !(name.starts_with("hot:") || name.starts_with("counter:"))
        });
        // A busy machine may leave one or another that was written to in each of the rounds.
        assert!(cold.count() <= 3, "{}", outcome.stdout);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    hot.join().expect("the hot writer ends");
    mixed.stop();
    story.catch_up_and_stop(running);
    let end = story.verify().json;
    println!("{}", short(&end));
    story.judge();
}

fn short(answer: &Value) -> Value {
    let mut answer = answer.clone();
    if let Some(map) = answer.as_object_mut() {
        map.retain(|_, v| !v.is_array());
    }
    answer
}

/// Other encodings of the same data, made by other limits of the server.
#[test]
fn encodings_do_not_matter() {
    let Some([name]) = need(["any"]) else { return };
    let plain = Setup::new(&name).lines(&[
        "hash-max-ziplist-entries 1",
        "zset-max-ziplist-entries 1",
        "set-max-intset-entries 1",
        "list-max-ziplist-size 2",
        "list-compress-depth 0",
        "rdbcompression no",
    ]);
    let packed = Setup::new(&name).lines(&["list-compress-depth 1", "list-max-ziplist-size -1"]);
    for (from, to) in [(plain.clone(), packed.clone()), (packed, plain)] {
        let source = from.start();
        let target = to.start();
        for server in [&source, &target] {
            for n in 0..40 {
                server.run(&format!("RPUSH list element-number-{n}"));
                server.run(&format!("HSET hash field{n} value{n}"));
                server.run(&format!("ZADD zset {n}.5 member{n}"));
                server.run(&format!("SADD ints {n}"));
                server.run(&format!("SADD words word{n}"));
            }
            server.run(&format!(
                "SET long {}",
                "compressible ".repeat(20).replace(' ', "-")
            ));
        }
        let plan = Plan::new(&source.url(), &target.url());
        let found = plan.run("verify --json").exits(0).json;
        assert_eq!(found["keys_source"], 6, "{found}");
        target.run("HSET hash field7 other");
        plan.run("verify --json").exits(1);
    }
}

/// The latest expiry there is; older servers tell it as the time that is left, which has to be added up again.
#[test]
fn the_latest_expiry_is_one_like_others() {
    let Some([any]) = need(["any"]) else { return };
    for name in ["redis-6.0", "redis-7.0"] {
        let Some([name]) = need([name]) else { continue };
        let (source, target) = (Server::start(&name), Server::start(&any));
        // The clock that the rest is added to goes on while the answer is on its way.
        let far = Cutter::slow(&source.address(), Duration::from_millis(4));
        let latest = |key: &str| source.run(&format!("PEXPIREAT {key} {}", i64::MAX));
        source.run("SET before x");
        source.run("RPUSH list 1 2 3");
        source.run(&format!("HSET large f {}", "v".repeat(100_000)));
        for key in ["before", "list", "large"] {
            latest(key);
        }
        let plan = Plan::new(&far.url(), &target.url());
        let mut running = plan.start("migrate --json");
        plan.wait_caught_up(&mut running, Duration::from_secs(60));
        source.run("SET after x");
        latest("after");
        source.run("EXPIRE list 1000");
        latest("list");
        plan.wait_caught_up(&mut running, Duration::from_secs(60));
        for _ in 0..2 {
            let verified = plan.run("verify --json").exits(0);
            assert_eq!(verified.json["keys_target"], 4, "{}", verified.stdout);
        }
        // Once more what is read, not streamed.
        running.signal("KILL");
        running.wait(Duration::from_secs(10));
        source.run("SETRANGE before 3 y");
        plan.run("migrate --until caught-up").exits(0);
        plan.run("verify").exits(0);
        assert!(target.run("PTTL before").int() > Some(i64::MAX / 2));
    }
}
