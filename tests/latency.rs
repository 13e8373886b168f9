//! The latency measurement judged by what is known: a stall, the same server twice, a delay, and too high a rate.

use crate::support::cutter::Cutter;
use crate::support::keyferry::{Outcome, Plan};
use crate::support::server::{Server, Setup};
use crate::support::wire::Client;
use crate::support::{need, wait_until};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Strings and hashes that may be read.
fn fill(server: &Server) {
    let mut client = Client::open(&server.url()).expect("it answers");
    for n in 0..500 {
        client
            .words(&format!("SET s:{n} value-{n}"))
            .expect("a string");
        client
            .words(&format!("HSET h:{n} a 1 b 2"))
            .expect("a hash");
    }
}

fn pair() -> Option<(Server, Server, Plan)> {
    let [name] = need(["any"])?;
    let (source, target) = (Server::start(&name), Server::start(&name));
    fill(&source);
    fill(&target);
    let plan = Plan::new(&source.url(), &target.url());
    Some((source, target, plan))
}

fn measure(plan: &mut Plan, latency: Value, words: &str) -> Outcome {
    plan.set("/latency", latency);
    let outcome = plan.run(&format!("latency --json {words}")).exits(0);
    println!("{}", outcome.stderr);
    outcome
}

fn us(result: &Value, side: &str, kind: &str, name: &str) -> f64 {
    let value = &result["endpoints"][side][kind][name];
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{side} {kind} {name}: {value}"))
}

fn full() -> bool {
    std::env::var_os("KEYFERRY_FULL").is_some()
}

/// The command and its columns of `valkey-benchmark --csv` in ms: average, min, p50, p95, p99, max; `None` where it is not there.
fn valkey_benchmark(port: u16, words: &str) -> Option<Vec<f64>> {
    // It came with the packages that the servers are from; others have no --rps.
    let root = crate::support::server::servers_dir().join("valkey-9.1/root/usr");
    let tool = root.join("bin/valkey-benchmark");
    let libraries: Vec<_> = (std::fs::read_dir(root.join("lib")).into_iter().flatten())
        .flatten()
        .map(|f| f.path())
        .filter(|p| p.to_string_lossy().ends_with("-linux-gnu"))
        .collect();
    let loader = (libraries.iter().map(|p| p.join("ld-linux-x86-64.so.2"))).find(|p| p.is_file());
    let loader = loader.unwrap_or_else(|| root.join("../lib64/ld-linux-x86-64.so.2"));
    if !tool.is_file() || !loader.exists() {
        crate::support::skip("needs valkey-benchmark of Valkey 9.1");
        return None;
    }
    let run = std::process::Command::new(&loader)
        .arg("--library-path")
        .arg(std::env::join_paths(libraries).expect("paths"))
        .arg(&tool)
        .args(["-p", &port.to_string(), "--csv"])
        .args(words.split(' '))
        .output()
        .expect("valkey-benchmark runs");
    let text = String::from_utf8_lossy(&run.stdout).replace('"', "");
    let row = text.lines().rfind(|l| l.starts_with("GET"));
    let row = row.unwrap_or_else(|| panic!("{text} {run:?}"));
    // test, requests per second, then these
    Some(
        row.split(',')
            .skip(2)
            .filter_map(|v| v.parse().ok())
            .collect(),
    )
}

/// The server stands still for a fifth or a tenth of the time: who waits for its answers sees it in few requests only.
#[test]
fn a_stall_is_seen_by_planned_requests() {
    let (period, stall) = if full() { (10.0, 1.0) } else { (2.5, 0.5) };
    let Some((_source, target, mut plan)) = pair() else {
        return;
    };
    let over = Arc::new(AtomicBool::new(false));
    let pid = target.pid();
    let stop = over.clone();
    let signal = move |name: &str| {
        let _ = std::process::Command::new("kill")
            .args(["-s", name, &pid.to_string()])
            .status();
    };
    let stalls = std::thread::spawn(move || {
        while !stop.load(Relaxed) {
            std::thread::sleep(Duration::from_secs_f64(period - stall));
            signal("STOP");
            std::thread::sleep(Duration::from_secs_f64(stall));
            signal("CONT");
        }
    });
    let latency = json!({
        "workloads": ["session-store"], "rates": [0.5], "blocks": if full() { 4 } else { 2 },
        "block_s": (2.0 * period) as u32, "connections": 5,
    });
    let outcome = measure(&mut plan, latency, "--fresh");
    // A tool that waits for each answer before it sends the next request, at the same rate on the same endpoint.
    let closed = valkey_benchmark(
        target.port(),
        &format!("-c 5 --rps 500 -n {} GET s:7", (1000.0 * period) as u32),
    );
    over.store(true, Relaxed);
    stalls.join().expect("the stalls end");
    let result = &outcome.json["results"][0];
    // Of the requests planned in a stall of S seconds, those wait X and more that come in its first S - X; those that
    // are 1 % of all come in the first hundredth of a period.
    let p99 = us(result, "target", "response", "p99_us") / 1e6;
    let expected = stall - period / 100.0;
    println!("response p99 {p99} s, by arithmetic {expected} s");
    assert!((p99 - expected).abs() < 0.13 * expected, "{p99} {expected}");
    let max = us(result, "target", "response", "max_us") / 1e6;
    assert!(max > 0.94 * stall && max < stall + 0.15, "{max}");
    assert!(us(result, "target", "service", "p50_us") < 2_000.0);
    // By its own account (service) only what was under way at that moment has waited: five requests of thousands.
    assert!(us(result, "target", "service", "p99_us") < 100_000.0);
    assert!(us(result, "source", "response", "p99_us") < 500_000.0);
    if let Some(ms) = closed {
        println!(
            "valkey-benchmark, which waits for answers: p99 {} ms, max {} ms",
            ms[4], ms[5]
        );
        assert!(ms[4] < 100.0, "it has seen the stall: {ms:?}");
        assert!(ms[5] > 300.0 * stall, "there was no stall: {ms:?}");
    }
    if full() {
        assert_eq!(result["verdict"], "slower", "{}", result["why"]);
    }
}

/// One server by two ways of the same length.
#[test]
fn the_same_server_twice_is_no_difference() {
    let Some([name]) = need(["any"]) else { return };
    let server = Server::start(&name);
    fill(&server);
    let (a, b) = (
        Cutter::far(&server.address(), Duration::ZERO),
        Cutter::far(&server.address(), Duration::ZERO),
    );
    let mut found = Vec::new();
    let (seeds, blocks) = if full() { (10, 8) } else { (1, 4) };
    for seed in 0..seeds {
        let mut plan = Plan::new(&a.url(), &b.url());
        let latency = json!({
            "workloads": ["session-store"], "rates": [0.5], "blocks": blocks, "block_s": 1, "connections": 4,
        });
        let outcome = measure(&mut plan, latency, &format!("--seed {seed}"));
        let result = &outcome.json["results"][0];
        println!("{}: {}", result["verdict"], result["why"]);
        found.push(result["verdict"].as_str().unwrap_or("").to_owned());
    }
    let alike = found
        .iter()
        .filter(|f| *f == "no detectable difference")
        .count();
    let wrong = found
        .iter()
        .filter(|f| ["faster", "slower", "mixed"].contains(&f.as_str()))
        .count();
    // Beside other tests it may find that it is late itself, and says so.
    assert!(!full() || wrong * 2 <= found.len(), "{found:?}");
    assert!(!full() || alike * 10 >= found.len() * 9, "{found:?}");
}

/// What was added on the way to the same server is seen, as long as it is.
#[test]
fn a_longer_way_is_as_much_slower() {
    let Some([name]) = need(["any"]) else { return };
    let server = Server::start(&name);
    fill(&server);
    // Both wait for an exact time, as that keeps the processor awake, which makes what follows faster by 10 µs.
    if full() {
        let after = |us| Cutter::slow(&server.address(), Duration::from_micros(us));
        let (quick, slow) = (after(100), after(400));
        let mut plan = Plan::new(&quick.url(), &slow.url());
        let latency = json!({
            "workloads": ["session-store"], "rates": [0.3], "blocks": 12, "block_s": 2, "connections": 8,
        });
        let outcome = measure(&mut plan, latency, "--even");
        let result = &outcome.json["results"][0];
        println!("+0.3 ms: {}: {}", result["verdict"], result["why"]);
        let middle = &result["difference_us"]["p50_us"];
        assert_eq!(result["verdict"], "slower", "{}", result["why"]);
        let (low, high) = (middle["low"].as_f64(), middle["high"].as_f64());
        assert!(low <= Some(300.0) && high >= Some(300.0), "{middle}");
    }
    let (a, far) = (
        Cutter::far(&server.address(), Duration::ZERO),
        Cutter::far(&server.address(), Duration::from_millis(3)),
    );
    let blocks = if full() { 8 } else { 4 };
    let mut plan = Plan::new(&a.url(), &far.url());
    let latency = json!({
        "workloads": ["session-store"], "rates": [0.2], "blocks": blocks, "block_s": 1, "connections": 20,
    });
    let outcome = measure(&mut plan, latency, "");
    let result = &outcome.json["results"][0];
    assert!(
        result["verdict"] == "slower" || !full(),
        "{}",
        result["why"]
    );
    let middle = &result["difference_us"]["p50_us"];
    let (low, high) = (middle["low"].as_f64(), middle["high"].as_f64());
    // Each way: three milliseconds, and what a sleep oversleeps.
    assert!(low > Some(5_000.0) && high < Some(12_000.0), "{middle}");
}

/// A further server is measured in the same turns, and the target is compared with it as well.
#[test]
fn old_legacy_and_new_are_measured_together() {
    let Some((_source, target, mut plan)) = pair() else {
        return;
    };
    let [name] = need(["any"]).expect("it was there before");
    let empty = Server::start(&name);
    let slow = Cutter::far(&target.address(), Duration::from_millis(3));
    let latency = json!({
        "workloads": ["session-store"], "rates": [0.2], "blocks": if full() { 4 } else { 2 }, "block_s": 1,
        "connections": 10,
        "also": {
            "legacy": { "url": format!("redis://:hunter2@{}", slow.address()) },
            "empty": { "url": empty.url() },
        },
    });
    plan.set("/latency", latency);
    let outcome = plan.run("latency --json");
    // The password is refused by a server without one, and is not told.
    assert!(!format!("{}{}", outcome.stdout, outcome.stderr).contains("hunter2"));
    plan.set("/latency/also/legacy/url", json!(slow.url()));
    let outcome = plan.run("latency --json").exits(0);
    let result = &outcome.json["results"][0];
    assert!(
        us(result, "legacy", "response", "p50_us") > 5_000.0,
        "{result}"
    );
    let against = &result["against"];
    let middle = &against["legacy"]["difference_us"]["p50_us"];
    assert!(middle["high"].as_f64() < Some(-4_000.0), "{against}");
    if full() {
        assert_eq!(against["legacy"]["verdict"], "faster", "{against}");
    }
    // What answers nothing to the same questions is no equal.
    assert_eq!(against["empty"]["verdict"], "no verdict", "{against}");
    assert!(
        against["empty"]["why"]
            .as_str()
            .is_some_and(|w| w.contains("0 %")),
        "{against}"
    );
    assert_eq!(
        outcome.json["design"]["order"]
            .as_str()
            .map(|o| o.matches("legacy").count()),
        Some(2)
    );
    plan.run("report").exits(0);
    let page =
        std::fs::read_to_string(plan.work_dir().join("test/report/report.html")).expect("the page");
    assert!(page.contains("The target next to legacy"), "{}", page.len());
    plan.set(
        "/latency",
        json!({ "also": { "source": { "url": "redis://127.0.0.1:1" } } }),
    );
    plan.run("latency --json")
        .exits(2)
        .says(&["latency.also", "source"]);
}

/// Far beyond what the server can do it ends in time, sheds, says so, and gives no verdict.
#[test]
fn an_overload_ends_and_is_told() {
    let Some((_source, _target, mut plan)) = pair() else {
        return;
    };
    let latency = json!({
        "workloads": ["session-store"], "rates": [300.0], "blocks": 2, "block_s": 1, "connections": 4,
    });
    let began = Instant::now();
    let outcome = measure(&mut plan, latency, "");
    assert!(
        began.elapsed() < Duration::from_secs(90),
        "{:?}",
        began.elapsed()
    );
    let result = &outcome.json["results"][0];
    assert_eq!(result["verdict"], "no verdict");
    let stages = outcome.json["overload"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    assert_eq!(stages.len(), 4);
    assert!(
        stages.iter().any(|s| s["shed"].as_u64() > Some(0)),
        "{stages:?}"
    );
}

/// The rate is raised until each side is saturated; a name that cannot be run is told with its place.
#[test]
fn a_sweep_finds_the_peak() {
    let Some((_source, _target, mut plan)) = pair() else {
        return;
    };
    let latency = json!({
        "workloads": ["session-store"], "rates": [4.0], "blocks": 1, "block_s": 1, "connections": 8, "sweep": true,
    });
    let outcome = measure(&mut plan, latency, "--fresh");
    let answer = &outcome.json;
    for side in ["source", "target"] {
        let stages = answer["sweep"].as_array().into_iter().flatten();
        let mut stages: Vec<&Value> = stages.filter(|s| s["side"] == side).collect();
        let last = stages.pop().expect("a stage");
        assert_eq!(last["kept_up"], false, "{last}");
        assert!(stages.iter().all(|s| s["kept_up"] == true), "{stages:?}");
        let peak = answer["peak_per_s"][side].as_f64();
        assert!(peak >= Some(2_000.0), "{peak:?}");
    }
    assert!(
        answer["client"]["held_per_s"].as_f64() > Some(2_000.0),
        "{}",
        answer["client"]
    );
    println!("{} {}", answer["peak_per_s"], answer["client"]);
    plan.set("/latency", json!({ "workloads": ["file:none.json"] }));
    plan.run("latency --json").exits(2).says(&["none.json"]);
}

/// What is written lies under our prefix, and nothing of it is left; stopped, it goes on with the next block.
#[test]
fn what_it_writes_it_removes() {
    let Some((source, target, mut plan)) = pair() else {
        return;
    };
    let before = (source.run("DBSIZE").int(), target.run("DBSIZE").int());
    let own = plan.dir().join("own.json");
    let requests = json!({ "requests": [
        { "command": "HGETALL {key:hash}", "weight": 5 },
        { "command": ["HSET", "{own:cart}", "item {number:9}", "{value:50}"], "weight": 2 },
        { "command": "SUNIONSTORE {own:both} {own:a} {own:b}" },
        { "command": "RPUSH {own:log} {value:20}" },
    ]});
    std::fs::write(&own, requests.to_string()).expect("the file is written");
    let latency = json!({
        "workloads": [
            "observed", "session-store", "cache-aside", "entity-lookup", "counter", "pipeline",
            format!("file:{}", own.display()),
        ],
        "rates": [0.3], "blocks": 1, "block_s": 1, "connections": 4, "allow_writes": true,
    });
    plan.set("/latency", latency.clone());
    let mut running = plan.start("latency --json");
    wait_until("the third workload", Duration::from_secs(60), || {
        assert!(running.ended().is_none(), "{}", running.stderr_now());
        running.stderr_now().contains("entity-lookup at")
    });
    running.interrupt();
    running.wait(Duration::from_secs(30)).exits(130);
    let outcome = measure(&mut plan, latency, "");
    assert!(
        outcome.stderr.contains("going on with"),
        "{}",
        outcome.stderr
    );
    let results = outcome.json["results"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    assert!(results.len() >= 6, "{}", outcome.stdout);
    for result in &results {
        for side in ["source", "target"] {
            let of = &result["endpoints"][side];
            assert_eq!(of["errors"], 0, "{} {side}: {of}", result["workload"]);
        }
    }
    let kinds = results
        .last()
        .map(|r| r["endpoints"]["target"]["kinds"].clone());
    for kind in ["HGETALL", "HSET", "SUNIONSTORE", "RPUSH"] {
        assert!(
            kinds
                .as_ref()
                .is_some_and(|k| k[kind]["count"].as_u64() > Some(0)),
            "{kinds:?}"
        );
    }
    assert_eq!(
        (source.run("DBSIZE").int(), target.run("DBSIZE").int()),
        before
    );
    let folder = plan.work_dir().join("test/latency");
    let files: Vec<_> = std::fs::read_dir(folder).expect("the histograms").collect();
    assert!(files.len() >= 16, "{files:?}");
}

/// At the same low rate on one connection, in turns: what it and valkey-benchmark tell is of one size.
///
/// At 240 requests per second: the other's clock is of 1 ms, and at 1,000 it sleeps 2 ms and then sends two or three at
/// once, of which the latter find the server awake. Nor at 250: of requests exactly 4 ms apart, one in a hundred always
/// comes while the server does what it does ten times a second, as that too waits whole ms from the last request on.
#[test]
fn it_and_valkey_benchmark_tell_the_same_size() {
    let Some([name]) = need(["any"]) else { return };
    let (source, target) = (Setup::new(&name).start(), Setup::new(&name).start());
    fill(&source);
    fill(&target);
    let mut plan = Plan::new(&source.url(), &target.url());
    let file = plan.work_dir().join("get.json");
    std::fs::create_dir_all(plan.work_dir()).expect("a folder");
    std::fs::write(&file, r#"{ "requests": [{ "command": "GET s:7" }] }"#).expect("it is written");
    let same = format!("file:{}", file.display());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let (rounds, seconds) = if full() { (9, 8) } else { (1, 4) };
    // Few requests have no p99.
    let names: &[&str] = if full() { &["p50", "p99"] } else { &["p50"] };
    for _ in 0..rounds {
        // The source is idle, which counts as 1,000 requests per second. The same requests: others cost the server more.
        let latency = json!({
            "workloads": [&same], "rates": [0.24], "blocks": 1, "block_s": seconds, "connections": 1,
        });
        let outcome = measure(&mut plan, latency, "--even --fresh");
        let result = &outcome.json["results"][0];
        for (side, port) in [("source", source.port()), ("target", target.port())] {
            let of = |p: &&str| us(result, side, "service", &format!("{p}_us"));
            ours.push(names.iter().map(of).collect::<Vec<_>>());
            let words = format!("-c 1 -n {} --rps 240 GET s:7", 240 * seconds);
            let Some(ms) = valkey_benchmark(port, &words) else {
                return;
            };
            theirs.push(vec![ms[2] * 1000.0, ms[4] * 1000.0]);
        }
    }
    for (at, what) in names.iter().enumerate() {
        let median = |rounds: &[Vec<f64>]| {
            let mut values: Vec<f64> = rounds.iter().map(|r| r[at]).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let (a, b) = (median(&ours), median(&theirs));
        println!("{what}: {a} µs, valkey-benchmark {b} µs; {ours:?} {theirs:?}");
        // Beside other tests both wander.
        let most = if full() { 20f64.max(b / 10.0) } else { 5_000.0 };
        assert!((a - b).abs() <= most, "{what}: {a} and {b}");
    }
}
