//! The cutover in mode "scan": a pause that does not grow with the number of keys, and proof where nobody is told.

use crate::cutover::{Move, answer};
use crate::support::cutter::Cutter;
use crate::support::keyferry::Running;
use crate::support::need;
use crate::support::server::Setup;
use crate::support::story::Endpoint;
use crate::support::wait_until;
use crate::support::wire::{Client, Command};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

const TOLD: &str = "notify-keyspace-events AKE";
const SOON: Duration = Duration::from_secs(30);

/// A migration by scan whose first sweep is over, with clients that count.
fn scanned(source: Endpoint, target: Endpoint, cutover: Value) -> (Move, Running) {
    let mut it = Move::new(source, target, cutover);
    it.story.plan.set("/source/mode", json!("scan"));
    // A flush is no loss here.
    it.story.plan.set("/max_loss_percent", json!(100));
    it.story.fill(2_000);
    let running = begin(&it);
    (it, running)
}

fn begin(it: &Move) -> Running {
    let mut running = it.story.migrate();
    it.story.wait_loaded(&mut running);
    it.plan()
        .wait_status(&mut running, "swept", Duration::from_secs(600), |s| {
            s["stream"]["scan"]["sweeps"].as_u64() > Some(0)
        });
    running
}

fn one(name: &str) -> Endpoint {
    Endpoint::alone(Setup::new(name).line(TOLD))
}

fn sweeps(it: &Move) -> Value {
    it.plan().status()["stream"]["scan"].clone()
}

/// A hook of `cutover.hooks` that runs commands at the source before the writers are frozen by it.
fn freezing(words: &[&str]) -> Value {
    let commands: Vec<String> = words
        .iter()
        .map(|words| format!("printf '{words}\\r\\n' >&3; head -n 1 <&3"))
        .collect();
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/$PORT; {}", commands.join("; "));
    json!(["bash", "-c", script])
}

/// What is done at the moment of the freeze, by its hook, with the port of the source's first node.
fn with_freeze(it: &mut Move, words: &[&str]) {
    let port = it.story.source.nodes()[0].port().to_string();
    let mut hook = freezing(words);
    let script = hook[2].as_str().unwrap_or_default().replace("$PORT", &port);
    hook[2] = json!(script);
    it.story.plan.set("/cutover/freeze", json!("hook"));
    it.story.plan.set("/cutover/hooks/freeze", hook);
    it.story.plan.set("/cutover/hooks/thaw", json!(["true"]));
}

/// The last drain, in the pause, has looked at changes only.
#[track_caller]
fn by_changes(scan: &Value) {
    let drain = &scan["last_drain"];
    assert_eq!(
        (&drain["by"], &drain["sweeps"]),
        (&json!("changes"), &json!(0)),
        "{scan}"
    );
}

/// The last drain, in the pause, has needed a sweep.
#[track_caller]
fn by_sweep(scan: &Value) {
    assert!(scan["last_drain"]["sweeps"].as_u64() > Some(0), "{scan}");
}

/// The cutover succeeds, both sides are alike, and this was how it drained.
#[track_caller]
fn cut_over(it: &Move, running: &mut Running) -> (Value, Value) {
    let outcome = it.plan().run("cutover --json").exits(0);
    let told = answer(&outcome).clone();
    let after = sweeps(it);
    println!("{after}");
    wait_until("the migration has ended", SOON, || {
        running.ended().is_some()
    });
    it.story.judge();
    (told, after)
}

fn pause_of(name: &str, keys: u64) -> f64 {
    let source = Setup::new(name).line(TOLD);
    let (source, target) = (Endpoint::alone(source), Endpoint::alone(Setup::new(name)));
    let ms = Duration::from_millis(1);
    let far = [&source, &target].map(|end| Cutter::far(&end.nodes()[0].address(), ms));
    let mut it = Move::new(source, target, json!({ "max_pause_ms": 60_000 }));
    it.story.plan.set("/source/url", json!(far[0].url()));
    it.story.plan.set("/target/url", json!(far[1].url()));
    it.story.plan.set("/source/mode", json!("scan"));
    let mut open = it.story.source.side();
    for first in (0..keys).step_by(10_000) {
        let sets: Vec<Command> = (first..keys.min(first + 10_000))
            .map(|n| {
                Command::new("SET")
                    .key(format!("key:{n}"))
                    .arg(format!("value {n}"))
            })
            .collect();
        open.all(&sets).expect("keys are written");
    }
    let mut running = begin(&it);
    let clients = it.clients(500);
    std::thread::sleep(Duration::from_secs(2));
    let began = Instant::now();
    let outcome = it.plan().run("cutover --json").exits(0);
    let took = began.elapsed();
    let told = answer(&outcome).clone();
    let after = sweeps(&it);
    let report = clients.stop();
    it.exact(&it.story.target, &report);
    wait_until("the migration has ended", SOON, || {
        running.ended().is_some()
    });
    let pause = told["pause_ms"].as_f64().expect("a pause");
    println!(
        "{keys} keys: paused for {pause} ms (clients saw {:?}, the last sweep took {} ms, the cutover {took:?})",
        report.pause, after["took_ms"]
    );
    for step in told["steps"].as_array().into_iter().flatten() {
        println!("  {step}");
    }
    by_changes(&after);
    pause
}

#[test]
fn cutover_by_scan_pause() {
    let Some([name]) = need(["any"]) else { return };
    let sizes: &[u64] = match std::env::var_os("KEYFERRY_FULL") {
        Some(_) => &[20_000, 200_000, 1_000_000],
        None => &[20_000, 60_000],
    };
    let pauses: Vec<f64> = sizes.iter().map(|keys| pause_of(&name, *keys)).collect();
    println!("pauses of {sizes:?} keys: {pauses:?} ms");
}

/// FLUSHDB tells nobody: the statistics do.
#[test]
fn a_flush_at_the_freeze_needs_a_sweep() {
    let Some([name]) = need(["any"]) else { return };
    let (mut it, mut running) =
        scanned(one(&name), Endpoint::cluster(Setup::new(&name)), json!({}));
    with_freeze(&mut it, &["FLUSHDB", "SET left 1"]);
    let (_, after) = cut_over(&it, &mut running);
    by_sweep(&after);
    assert_eq!(it.story.target.side().size().expect("a size"), 1);
}

/// XACK tells nobody either, but touches only streams that are known to have groups.
#[test]
fn what_is_acknowledged_at_the_freeze_arrives() {
    let Some([name]) = need(["any"]) else { return };
    let mut it = Move::new(one(&name), Endpoint::cluster(Setup::new(&name)), json!({}));
    it.story.plan.set("/source/mode", json!("scan"));
    for words in [
        "XADD s 1-1 f v",
        "XADD s 2-1 f v",
        "XGROUP CREATE s g 0",
        "XREADGROUP GROUP g c STREAMS s >",
    ] {
        it.story.source.nodes()[0].run(words);
    }
    let mut running = begin(&it);
    // A group that is younger than the sweep.
    for words in [
        "XADD t 1-1 f v",
        "XGROUP CREATE t g 0",
        "XREADGROUP GROUP g c STREAMS t >",
    ] {
        it.story.source.nodes()[0].run(words);
    }
    wait_until("the younger stream is known", SOON, || {
        it.story
            .target
            .side()
            .run(&Command::new("EXISTS").key("t"))
            .is_ok_and(|r| r.int() == Some(1))
    });
    with_freeze(&mut it, &["XACK s g 1-1", "XACK t g 1-1"]);
    let (_, after) = cut_over(&it, &mut running);
    by_changes(&after);
    let mut target = it.story.target.side();
    let pending = |key: &str| Command::new("XPENDING").key(key).arg("g");
    let count = |reply: crate::support::wire::Value| reply.items()[0].int();
    assert_eq!(
        count(target.run(&pending("s")).expect("an answer")),
        Some(1)
    );
    assert_eq!(
        count(target.run(&pending("t")).expect("an answer")),
        Some(0)
    );
}

/// The target has a key of the source.
#[track_caller]
fn has_arrived(it: &Move, key: &str) {
    let exists = Command::new("EXISTS").key(key);
    let there = it.story.target.side().run(&exists).expect("an answer");
    assert_eq!(there.int(), Some(1));
}

/// Whoever loses the subscription has missed what was written meanwhile.
#[test]
fn a_subscription_killed_at_the_freeze_needs_a_sweep() {
    let Some([name]) = need(["any"]) else { return };
    let (mut it, mut running) =
        scanned(one(&name), Endpoint::cluster(Setup::new(&name)), json!({}));
    with_freeze(&mut it, &["CLIENT KILL TYPE pubsub", "SET missed 1"]);
    let (_, after) = cut_over(&it, &mut running);
    by_sweep(&after);
    has_arrived(&it, "missed");
}

/// Turned off, notifications tell nothing more; turned on again, they have missed something.
#[test]
fn notifications_turned_off_for_a_moment_are_noticed() {
    let Some([name]) = need(["any"]) else { return };
    let (mut it, mut running) =
        scanned(one(&name), Endpoint::cluster(Setup::new(&name)), json!({}));
    with_freeze(
        &mut it,
        &[
            "CONFIG SET notify-keyspace-events K",
            "SET missed 1",
            "CONFIG SET notify-keyspace-events AKE",
        ],
    );
    let (_, after) = cut_over(&it, &mut running);
    by_sweep(&after);
    has_arrived(&it, "missed");
}

/// Statistics that begin anew prove nothing about what was before.
#[test]
fn statistics_reset_after_a_flush_need_a_sweep() {
    let Some([name]) = need(["any"]) else { return };
    let (mut it, mut running) =
        scanned(one(&name), Endpoint::cluster(Setup::new(&name)), json!({}));
    with_freeze(&mut it, &["FLUSHALL", "CONFIG RESETSTAT", "SET left 1"]);
    let (_, after) = cut_over(&it, &mut running);
    by_sweep(&after);
    assert_eq!(it.story.target.side().size().expect("a size"), 1);
}

#[test]
fn several_databases_need_no_sweep() {
    let Some([name]) = need(["any"]) else { return };
    let (mut it, mut running) = scanned(one(&name), one(&name), json!({}));
    with_freeze(
        &mut it,
        &[
            "SELECT 3",
            "SET k three",
            "SELECT 0",
            "DEL k",
            "MOVE key:1 5",
        ],
    );
    let (_, after) = cut_over(&it, &mut running);
    by_changes(&after);
    let mut client = it.story.target.nodes()[0].client();
    client.words("SELECT 3").expect("an answer");
    assert_eq!(client.words("GET k").expect("an answer").text(), "three");
}

#[test]
fn three_masters_need_no_sweep() {
    let Some([name]) = need(["any"]) else { return };
    let source = Endpoint::cluster(Setup::new(&name).line(TOLD));
    let target = Endpoint::cluster(Setup::new(&name));
    let (it, mut running) = scanned(source, target, json!({}));
    let clients = it.clients(500);
    std::thread::sleep(Duration::from_secs(1));
    let outcome = it.plan().run("cutover --json").exits(0);
    answer(&outcome);
    let after = sweeps(&it);
    let report = clients.stop();
    it.exact(&it.story.target, &report);
    by_changes(&after);
    wait_until("the migration has ended", SOON, || {
        running.ended().is_some()
    });
}

/// A freeze that does not hold: what is written behind the fence is named, and nobody moves.
#[test]
fn writes_behind_the_fence_of_a_scan_are_noticed() {
    let Some([name]) = need(["any"]) else { return };
    for line in [TOLD, "notify-keyspace-events \"\""] {
        let source = Endpoint::alone(Setup::new(&name).line(line));
        let target = Endpoint::cluster(Setup::new(&name));
        // Neither the hook nor anything else freezes anybody.
        let open = json!({ "max_pause_ms": 20_000, "old_side": "open" });
        let (mut it, running) = scanned(source, target, open);
        with_freeze(&mut it, &["PING"]);
        let clients = it.clients(4_000);
        std::thread::sleep(Duration::from_millis(500));
        let outcome = it.plan().run("cutover --json");
        let told = answer(&outcome);
        assert_eq!(outcome.code, 1, "{line}: {told}");
        assert_eq!(it.at(), "source");
        let report = clients.stop();
        it.exact(&it.story.source, &report);
        running.interrupt();
        running.wait(SOON);
    }
}

/// Where something unnotified runs all the time, the warm-up gives up in the end, and the pause holds a sweep.
#[test]
fn a_source_that_is_flushed_all_the_time_is_swept_in_the_pause() {
    let Some([name]) = need(["any:client-pause-write"]) else {
        return;
    };
    let (it, mut running) = scanned(one(&name), Endpoint::alone(Setup::new(&name)), json!({}));
    let (address, stop) = (
        it.story.source.nodes()[0].address(),
        Arc::new(AtomicBool::new(false)),
    );
    let stopped = stop.clone();
    let flushing = std::thread::spawn(move || {
        let mut client = Client::connect(&address).expect("a connection");
        let _ = client.words("SELECT 9");
        while !stopped.load(Relaxed) && client.words("FLUSHDB").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let (told, after) = cut_over(&it, &mut running);
    stop.store(true, Relaxed);
    drop(it);
    let _ = flushing.join();
    by_sweep(&after);
    let steps = told["steps"].as_array().expect("steps");
    let warm = steps.iter().find(|s| s["step"] == "warm-up");
    let said = warm.expect("a step")["detail"]["pause"].to_string();
    assert!(said.contains("FLUSHDB"), "{said}");
}

/// Where nothing is told, the pause holds the sweep, and that is said before.
#[test]
fn without_notifications_the_sweep_is_foretold() {
    let Some([name]) = need(["any"]) else { return };
    let source = Endpoint::alone(Setup::new(&name).line("notify-keyspace-events \"\""));
    // By PTTL, a busy machine finds expiries a little off now and then.
    let patient = json!({ "max_pause_ms": 30_000 });
    let (it, mut running) = scanned(source, Endpoint::cluster(Setup::new(&name)), patient);
    let (told, after) = cut_over(&it, &mut running);
    let steps = told["steps"].as_array().expect("steps");
    let preflight = steps
        .iter()
        .find(|s| s["step"] == "preflight")
        .expect("a step");
    let said = preflight["detail"]["pause"].as_str().unwrap_or_default();
    assert!(
        said.contains("whole sweep") && said.contains("notify-keyspace-events"),
        "{preflight}"
    );
    assert_eq!(after["last_drain"]["by"], "sweep", "{after}");
    assert_eq!(after["by_changes"], false);
}
