//! A cutover far from both sides: where the pause goes when every round trip takes 40 ms, and what a warm-up costs there.

use crate::cutover::{Move, full};
use crate::support::far::{Far, Line};
use crate::support::keyferry::Running;
use crate::support::need;
use crate::support::server::Setup;
use crate::support::story::{Endpoint, Story};
use crate::support::wire::Command;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// With KEYFERRY_FULL=1, where a full comparison alone takes more than half a minute.
const ONE_WAY: Duration = Duration::from_millis(20);
/// Else.
const NEARER: Duration = Duration::from_millis(2);

const STEPS: [&str; 11] = [
    "preflight",
    "warm-up",
    "freeze",
    "drain",
    "verify",
    "fence",
    "release",
    "switch",
    "arm-rollback",
    "watch",
    "commit",
];

/// How far a cutover has come, and the round trips to source and target by then.
type Mark = (String, Duration, [u64; 2]);

/// Looks at what a cutover says until it ends: the least round trips of each step, of all connections together.
fn follow(running: &mut Running, lines: &[Line; 2]) -> Vec<Mark> {
    let began = Instant::now();
    let mut marks: Vec<Mark> = Vec::new();
    while running.ended().is_none() && began.elapsed() < Duration::from_secs(240) {
        let trips = [lines[0].round_trips(), lines[1].round_trips()];
        let said = running.stderr_now();
        let ended = said.lines().filter(|l| !l.ends_with('…'));
        let steps = ended.filter_map(|l| l.split(':').next());
        for step in steps.filter(|s| STEPS.contains(s)).skip(marks.len()) {
            marks.push((step.to_owned(), began.elapsed(), trips));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    marks
}

fn took_ms(answer: &Value, step: &str) -> f64 {
    let steps = answer["steps"].as_array().into_iter().flatten();
    let mut of_step = steps.filter(|s| s["step"] == step);
    let us = of_step.find_map(|s| s["took_us"].as_f64());
    us.unwrap_or_default() / 1_000.0
}

/// The clients are near their servers, keyferry is far from both. The times are printed; with KEYFERRY_FULL=1 they are
/// bounded: the pause without the hook's own time is under a second, the warm-up takes no longer than a full verification.
#[test]
fn replica_mode_at_forty_milliseconds() {
    let Some([name]) = need(["any"]) else { return };
    let setup = Setup::new(&name).line("repl-backlog-size 64mb");
    let source = Endpoint::alone(setup.clone());
    let target = Endpoint::cluster(setup);
    let mut story = Story::new(source, target);
    let one_way = if full() { ONE_WAY } else { NEARER };
    let lines = [Line::default(), Line::default()];
    for line in &lines {
        line.delay(one_way);
    }
    let near = Far::with(&story.source.nodes()[0].address(), lines[0].clone());
    story.plan.set("/source/url", json!(near.url()));
    let Endpoint::Cluster(cluster) = &story.target else {
        return;
    };
    let (_fars, map) = Far::before(cluster.addresses(), &lines[1]);
    story.plan.set("/target/address_map", map);
    let it = Move::with(story, json!({"watch_s": 1}));
    if full() {
        it.story.fill(50_000);
    } else {
        // Without the large values, each of which takes many round trips one after the other.
        let keys = (0..2_000).map(|n| format!("string:{n}"));
        let sets: Vec<Command> = keys
            .map(|key| Command::new("SET").key(key).arg("a value"))
            .collect();
        it.story.source.side().all(&sets).expect("they are set");
    }
    let mut running = it.story.migrate();
    it.story.wait_loaded(&mut running);
    let timed_verify = || {
        let began = Instant::now();
        it.plan().run("verify --json").exits(0);
        began.elapsed().as_secs_f64() * 1_000.0
    };
    it.plan()
        .wait_caught_up(&mut running, Duration::from_secs(120));
    let at_rest = timed_verify();
    let clients = it.clients(500);
    it.plan()
        .wait_caught_up(&mut running, Duration::from_secs(120));
    let verify = timed_verify();

    let mut cutover = it.plan().start("cutover --json");
    let marks = follow(&mut cutover, &lines);
    let outcome = cutover.wait(Duration::from_secs(10)).exits(0);
    let report = clients.stop();
    it.exact(&it.story.target, &report);
    let answer = &outcome.json;
    let mut before = (Duration::ZERO, [0, 0]);
    for (step, at, trips) in &marks {
        println!(
            "{step:<14} {:>9.1} ms by its own clock; round trips to the source {:>4}, to the target {:>4}",
            took_ms(answer, step),
            trips[0] - before.1[0].min(trips[0]),
            trips[1] - before.1[1].min(trips[1]),
        );
        before = (*at, *trips);
    }
    let pause = answer["pause_ms"].as_f64().unwrap_or_default();
    let hook = answer["steps"].as_array().into_iter().flatten();
    let hook: f64 = hook.filter_map(|s| s["detail"]["ms"].as_f64()).sum();
    let warm_up = took_ms(answer, "warm-up");
    println!(
        "at a round trip of {:?}: pause {pause:.0} ms ({}), of which the hook {hook:.0} ms; the clients saw {:?}; warm-up {warm_up:.0} ms, a verify {verify:.0} ms, before anybody wrote {at_rest:.0} ms",
        2 * one_way,
        answer["parts_ms"],
        report.pause
    );
    assert!(warm_up > 0.0 && pause > 0.0, "{answer}");
    if full() {
        assert!(pause - hook < 1_000.0, "{answer}");
        // It is one, and a round or two over what was written meanwhile.
        assert!(warm_up < verify * 1.03, "{warm_up} ms, {verify} ms");
    }
}
