//! The cutover of a migration that is spread over workers: in one work folder, and over their control ports.

use crate::cutover::{Move, answer, full};
use crate::support::keyferry::{Outcome, Plan, Running};
use crate::support::server::{Setup, free_port};
use crate::support::story::{Endpoint, Story};
use crate::support::{need, wait_until};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(120);
const TOKEN: (&str, &str) = ("KF_TOKEN", "a token of the tests, which is long enough");

fn rate() -> u64 {
    if full() { 5_000 } else { 1_000 }
}

/// Three masters, and three workers.
struct Spread {
    it: Move,
    /// Over TCP each has a work folder of its own, and a port.
    elsewhere: Vec<(Plan, u16)>,
    workers: Vec<Option<Running>>,
}

impl Spread {
    fn new(afar: bool, cutover: Value) -> Option<Spread> {
        let [name] = need(["any"])?;
        let setup = Setup::new(&name).line("repl-backlog-size 64mb");
        let story = Story::new(
            Endpoint::cluster(setup),
            Endpoint::cluster(Setup::new(&name)),
        );
        let it = Move::with(story, cutover);
        let plan = || {
            let port = free_port().expect("a port");
            (Plan::of(it.plan().json.clone()), port)
        };
        let elsewhere = (0..if afar { 3 } else { 0 }).map(|_| plan()).collect();
        let workers = (0..3).map(|_| None).collect();
        Some(Spread {
            it,
            elsewhere,
            workers,
        })
    }

    fn plan_of(&self, n: usize) -> &Plan {
        self.elsewhere
            .get(n)
            .map_or(self.it.plan(), |(plan, _)| plan)
    }

    fn launch(&self, n: usize, environment: &[(&str, &str)]) -> Running {
        let mut words = format!("migrate --json --worker {n}/3");
        let mut all = vec![TOKEN];
        all.extend(environment);
        if let Some((_, port)) = self.elsewhere.get(n) {
            words += &format!(" --control-listen 127.0.0.1:{port} --control-token-env KF_TOKEN");
        }
        self.plan_of(n).start_with(&words, &all)
    }

    fn start(&mut self, n: usize, environment: &[(&str, &str)]) {
        self.workers[n] = Some(self.launch(n, environment));
    }

    #[track_caller]
    fn wait_loaded(&mut self, n: usize) {
        let mut running = self.workers[n].take().expect("it was started");
        let share = format!("--worker {n}/3");
        self.plan_of(n)
            .wait_status(&mut running, "loaded", SOON, |s| {
                let mut workers = s["workers"].as_array().into_iter().flatten();
                let streams = |w: &Value| w["phase"] == "stream" && !w["pid"].is_null();
                workers.any(|w| w["share"] == share.as_str() && streams(w))
            });
        self.workers[n] = Some(running);
    }

    #[track_caller]
    fn start_all(&mut self, killed: Option<(usize, &str)>) {
        for n in 0..3 {
            let point = killed.filter(|(who, _)| *who == n).map(|(_, p)| p);
            let environment: Vec<_> = point
                .map(|p| ("KEYFERRY_FAILPOINT", p))
                .into_iter()
                .collect();
            self.start(n, &environment);
        }
        (0..3).for_each(|n| self.wait_loaded(n));
    }

    fn at(&self) -> String {
        let at = |(_, port): &(Plan, u16)| format!(" --worker-at 127.0.0.1:{port}");
        let named: String = self.elsewhere.iter().map(at).collect();
        match named.is_empty() {
            true => named,
            false => named + " --control-token-env KF_TOKEN",
        }
    }

    fn run(&self, words: &str) -> Outcome {
        self.run_with(words, &[])
    }

    fn run_with(&self, words: &str, environment: &[(&str, &str)]) -> Outcome {
        let mut all = vec![TOKEN];
        all.extend(environment);
        let running = self
            .it
            .plan()
            .start_with(&format!("{words} --json{}", self.at()), &all);
        running.wait(Duration::from_secs(200))
    }

    fn runs(&mut self, n: usize) -> bool {
        (self.workers[n].as_mut()).is_some_and(|w| w.ended().is_none())
    }

    #[track_caller]
    fn all_ended(&mut self) {
        wait_until("all workers have ended", Duration::from_secs(30), || {
            (0..3).all(|n| !self.runs(n))
        });
    }
}

/// The whole story: rehearse, there under load, and back.
fn there_and_back(afar: bool) {
    let Some(mut spread) = Spread::new(afar, json!({ "watch_s": 2 })) else {
        return;
    };
    spread.it.story.fill(3_000);
    spread.start_all(None);
    let clients = spread.it.clients(rate());
    let rehearsed = spread.run("cutover --dry-run").exits(0);
    assert!(
        answer(&rehearsed)["predicted_pause_ms"].as_u64() < Some(2_000),
        "{}",
        rehearsed.stdout
    );
    assert!((0..3).all(|n| spread.runs(n)), "all go on");
    let outcome = spread.run("cutover").exits(0);
    let told = answer(&outcome);
    assert_eq!(told["clients_at"], "target");
    spread.all_ended();
    std::thread::sleep(Duration::from_millis(300));
    let report = clients.stop();
    println!(
        "three workers, {}, {} writes/s: the pause was {} ms (as the clients saw it, {:?}), {} writes",
        if afar { "over TCP" } else { "in one folder" },
        rate(),
        told["pause_ms"],
        report.pause,
        report.writes
    );
    spread.it.exact(&spread.it.story.target, &report);
    assert!(report.pause < Duration::from_secs(3), "{:?}", report.pause);
    let status = spread.it.plan().status();
    assert_eq!(status["phase"], "switched", "{status}");
    assert_eq!(status["cutover"]["stage"], "committed", "{status}");
    assert_eq!(status["workers"].as_array().map(Vec::len), Some(3));
    // Nothing of the old side is applied any more, by no worker.
    for n in 0..3 {
        let refused = spread.launch(n, &[]).wait(Duration::from_secs(30));
        refused.exits(3).says(&["moved to the target", "rollback"]);
    }
    spread.run("cutover").exits(0);
    let back = spread.run("rollback").exits(0);
    assert_eq!(answer(&back)["clients_at"], "source");
    assert_eq!(spread.it.at(), "source");
    spread.it.exact(&spread.it.story.source, &report);
    spread.it.thawed(&spread.it.story.source);
    if !afar {
        anew(spread);
    }
}

/// After a rollback everything begins anew, and no worker goes on where it was.
fn anew(mut spread: Spread) {
    spread.run("rollback").exits(0);
    spread.run("cutover").exits(3).says(&["rolled back"]);
    (spread.it.story.plan).set("/on_existing", json!("reconcile"));
    spread.launch(1, &[]).wait(SOON).exits(3);
    let first = (spread.it.plan()).start("migrate --json --worker 0/3 --fresh");
    spread.workers[0] = Some(first);
    spread.wait_loaded(0);
    let old = spread.launch(1, &[]).wait(SOON).exits(3);
    old.says(&["rolled back", "--fresh"]);
    for n in [1, 2] {
        let words = format!("migrate --json --worker {n}/3 --fresh");
        spread.workers[n] = Some(spread.it.plan().start(&words));
        spread.wait_loaded(n);
    }
    assert!((0..3).all(|n| spread.runs(n)));
    answer(&spread.run("cutover").exits(0));
    spread.all_ended();
    spread.it.story.judge();
}

#[test]
fn workers_of_one_folder_move_the_clients_together() {
    there_and_back(false);
}

#[test]
fn workers_of_other_machines_move_the_clients_together() {
    there_and_back(true);
}

/// One worker dies at a moment of a cutover: it is refused and nobody is frozen, or done; the next one succeeds.
fn dies_at(afar: bool, point: &str) {
    let Some(mut spread) = Spread::new(afar, json!({ "watch_s": 1, "max_pause_ms": 5_000 })) else {
        return;
    };
    spread.it.story.fill(500);
    spread.start_all(Some((1, point)));
    let usual = spread.it.plan().json["cutover"]["hooks"]["switch"].clone();
    if point.starts_with("hook") {
        let pid = spread.workers[1].as_ref().map_or(0, Running::pid);
        let mut hook = usual.clone();
        let moves = hook[2].as_str().unwrap_or_default();
        let then = if point == "hook" { "exit 1" } else { moves };
        let script = format!("kill -9 {pid}; {then}");
        hook[2] = json!(script);
        spread.it.story.plan.set("/cutover/hooks/switch", hook);
    }
    let clients = spread.it.clients(300);
    std::thread::sleep(Duration::from_millis(300));
    let outcome = spread.run("cutover");
    let what = format!("{point}, {}", if afar { "over TCP" } else { "one folder" });
    println!("{what}: exit {}", outcome.code);
    let told = answer(&outcome).clone();
    wait_until("the worker has died", Duration::from_secs(5), || {
        !spread.runs(1)
    });
    match outcome.code {
        0 => assert_eq!(spread.it.at(), "target", "{what}"),
        code => {
            assert_eq!(code, 1, "{what}: {}", outcome.stderr);
            assert_eq!(spread.it.at(), "source", "{what}");
            let said = told["refused"].to_string();
            let dead = ["has ended", "does not run", "no worker answers"];
            assert!(
                point == "hook" || dead.iter().any(|d| said.contains(d)),
                "{what}: {said}"
            );
            assert!(spread.runs(0) && spread.runs(2), "{what}: the others go on");
            spread.it.thawed(&spread.it.story.source);
            let again = spread.run("cutover");
            let said = answer(&again)["refused"].to_string();
            assert!(
                again.code == 1 && said.contains("\"hint\":\"start "),
                "{said}"
            );
            spread.it.story.plan.set("/cutover/hooks/switch", usual);
            spread.start(1, &[]);
            // One that was told that the clients are being moved begins when it is told that they are not.
            let told = point == "control-switching" || point.starts_with("hook");
            if !(afar && told) {
                spread.wait_loaded(1);
            }
            answer(&spread.run("cutover").exits(0));
        }
    }
    assert_eq!(spread.it.at(), "target", "{what}");
    spread.all_ended();
    std::thread::sleep(Duration::from_millis(300));
    let report = clients.stop();
    println!("{what}: the longest pause was {:?}", report.pause);
    spread.it.exact(&spread.it.story.target, &report);
    let refused = spread.launch(1, &[]);
    if afar && outcome.code == 0 {
        // It was told that the clients are being moved, and holds still until it hears more.
        std::thread::sleep(Duration::from_secs(2));
        spread.run("cutover").exits(0);
    }
    refused.wait(Duration::from_secs(30)).exits(3);
}

#[test]
fn a_worker_that_dies_in_a_step_harms_nobody() {
    let few = ["control-drain", "hook"];
    let all = [
        "control-record",
        "control-take",
        "control-drain",
        "control-take:3",
        "control-fence",
        "hook",
    ];
    let points: &[&str] = if full() { &all } else { &few };
    points.iter().for_each(|point| dies_at(false, point));
}

/// The clients have moved when the proof after the hook finds the worker dead, and are led back: what they would have
/// written to the new side in the meantime waits, and is written to the old one.
#[test]
fn a_worker_that_dies_while_the_clients_move_harms_nobody() {
    dies_at(false, "hook-moves");
    dies_at(true, "hook-moves");
}

#[test]
fn a_worker_elsewhere_that_dies_in_a_step_harms_nobody() {
    let few = ["control-switching", "hook"];
    let all = [
        "control-record",
        "control-drain",
        "control-fence",
        "control-switching",
        "hook",
    ];
    let points: &[&str] = if full() { &all } else { &few };
    points.iter().for_each(|point| dies_at(true, point));
}

/// Cutover and guard are killed in the switch: workers elsewhere let nothing through, also when they are started again,
/// until a cutover that knows tells them.
#[test]
fn workers_elsewhere_hold_still_until_they_are_told() {
    let Some(mut spread) = Spread::new(true, json!({ "watch_s": 1, "max_pause_ms": 5_000 })) else {
        return;
    };
    spread.it.story.fill(500);
    spread.start_all(None);
    let cut = spread.run_with("cutover", &[("KEYFERRY_FAILPOINT", "guard-switching")]);
    assert_eq!(cut.code, 3, "{}", cut.stderr);
    if let Some(worker) = spread.workers[0].take() {
        worker.signal("KILL");
        worker.wait(Duration::from_secs(10));
    }
    spread.start(0, &[]);
    let mut source = spread.it.story.source.side();
    let mut target = spread.it.story.target.side();
    let count = |n: u64| {
        crate::support::wire::Command::new("SET")
            .key(format!("later:{n}"))
            .arg("1")
    };
    // Redis 6.0 pauses nobody: there the users have lost their rights until somebody gives them back.
    for node in spread.it.story.source.nodes() {
        node.run("ACL SETUSER default +@all");
    }
    wait_until("the pause has lapsed", Duration::from_secs(10), || {
        (0..30).all(|n| source.run(&count(n)).is_ok_and(|r| !r.is_error()))
    });
    std::thread::sleep(Duration::from_secs(2));
    let mut there = || -> i64 {
        let get = |n| crate::support::wire::Command::new("EXISTS").key(format!("later:{n}"));
        (0..30)
            .filter_map(|n| target.run(&get(n)).ok()?.int())
            .sum()
    };
    assert_eq!(there(), 0, "something was let through");
    assert!((0..3).all(|n| spread.runs(n)));
    // Another cutover, which knows nothing, is not believed.
    let stranger = Plan::of(spread.it.plan().json.clone());
    let words = format!("cutover --json{}", spread.at());
    let refused = stranger.start_with(&words, &[TOKEN]).wait(SOON).exits(1);
    assert!(
        answer(&refused)["refused"]
            .to_string()
            .contains("--work-dir"),
        "{}",
        refused.stdout
    );
    let lost = spread.run("cutover").exits(3);
    lost.says(&["--clients-at"]);
    let clients = spread.it.clients(300);
    let done = spread.run("cutover --clients-at source").exits(0);
    answer(&done);
    assert_eq!(there(), 30);
    spread.all_ended();
    std::thread::sleep(Duration::from_millis(500));
    spread.it.exact(&spread.it.story.target, &clients.stop());
}

/// What is not there, not ours or not whole is refused before anything happens.
#[test]
fn strangers_and_gaps_are_refused() {
    let Some(mut spread) = Spread::new(true, json!({})) else {
        return;
    };
    spread.it.story.fill(200);
    let plan = |spread: &Spread| spread.plan_of(0).dir().to_owned();
    let _ = plan(&spread);
    let listen = spread
        .plan_of(0)
        .run("migrate --worker 0/3 --control-listen 127.0.0.1:0");
    listen
        .exits(2)
        .says(&["needs a token", "--control-token-env"]);
    let whole = spread
        .plan_of(0)
        .run("migrate --control-listen 127.0.0.1:0 --control-token-env KF_TOKEN");
    whole.exits(2).says(&["for workers"]);
    let short = spread.plan_of(0).start_with(
        "migrate --worker 0/3 --control-listen 127.0.0.1:0 --control-token-env KF_TOKEN",
        &[("KF_TOKEN", "short")],
    );
    (short.wait(SOON).exits(3)).says(&["shorter than 16 bytes", "openssl"]);
    spread.start_all(None);
    let port = |n: usize| spread.elsewhere[n].1;
    let (first, second) = (port(0), port(1));
    let redis = spread.it.story.source.nodes()[0].address();
    let run = |words: &str, token: &str| {
        let words = format!("cutover --json {words}");
        let running = spread.it.plan().start_with(&words, &[("KF_TOKEN", token)]);
        running.wait(SOON)
    };
    let token = " --control-token-env KF_TOKEN";
    let all = spread.at();
    run(&format!("--worker-at 127.0.0.1:{first}"), TOKEN.1)
        .exits(2)
        .says(&["needs a token"]);
    run(&format!("--worker-at 127.0.0.1:{first}{token}"), "tiny")
        .exits(3)
        .says(&["shorter than 16 bytes"]);
    for (words, with, why, hint) in [
        (
            all.clone(),
            "another token, which is long as well",
            "does not know this control token",
            "the same token",
        ),
        (
            format!("--worker-at {redis}{token}"),
            TOKEN.1,
            "no worker",
            "--control-listen",
        ),
        (
            format!("--worker-at 127.0.0.1:1{token}"),
            TOKEN.1,
            "no worker answers",
            "--control-listen",
        ),
        (
            format!("--worker-at 127.0.0.1:{first} --worker-at 127.0.0.1:{second}{token}"),
            TOKEN.1,
            "have no worker",
            "start a worker",
        ),
    ] {
        let refused = run(&words, with).exits(1);
        let said = answer(&refused)["refused"].clone();
        assert_eq!(said["gate"], "preflight", "{said}");
        assert!(
            said["why"].as_str().is_some_and(|w| w.contains(why)),
            "{said}"
        );
        assert!(
            said["hint"].as_str().is_some_and(|w| w.contains(hint)),
            "{said}"
        );
        assert!(!refused.stdout.contains(TOKEN.1) && !refused.stderr.contains(TOKEN.1));
    }
    let seen = run_status(&spread);
    assert_eq!(seen["workers"].as_array().map(Vec::len), Some(3), "{seen}");
    assert_eq!(seen["phase"], "stream", "{seen}");
    hostile(first);
    assert!((0..3).all(|n| spread.runs(n)));
    // The same worker by two names is one.
    let twice = format!(
        "{} --worker-at localhost:{first} --dry-run",
        spread.at().trim_start()
    );
    let outcome = {
        let words = format!("cutover --json {twice}");
        spread.it.plan().start_with(&words, &[TOKEN]).wait(SOON)
    };
    answer(&outcome.exits(0));
    // What is known to be elsewhere is not taken for nothing.
    spread
        .it
        .plan()
        .run("cutover --json")
        .exits(2)
        .says(&["--worker-at"]);
}

/// What is seen from a machine that has none of the workers.
fn run_status(spread: &Spread) -> Value {
    let words = format!("status --json{}", spread.at());
    let looked = spread.it.plan().start_with(&words, &[TOKEN]).wait(SOON);
    looked.exits(0).json
}

/// Bytes of all kinds, and connections that say nothing: the worker goes on, and the port too.
fn hostile(port: u16) {
    let connect = || TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    let mut rng = crate::support::versions::seeded();
    let mut long = vec![b'a'; 1 << 20];
    long.push(b'\n');
    let mut random: Vec<u8> = (0..4096).map(|_| rng.below(256) as u8).collect();
    random.push(b'\n');
    for bytes in [
        &b"\n"[..],
        b"{}\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"{\"nonce\":\"\",\"proof\":\"\"}\n",
        b"\"stop\"\n",
        b"\xff\xfe\n",
        &long,
        &random,
    ] {
        let mut stream = connect();
        let limit = Some(Duration::from_secs(10));
        stream.set_read_timeout(limit).expect("a time limit");
        // It may be cut off before all of it is sent.
        let _ = stream.write_all(bytes);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        assert!(!said.contains("shards"), "{said}");
        assert!(said.len() < 400, "{said}");
    }
    // Silent ones are sent away after a while, and many of them do not shut the port for longer.
    let silent: Vec<TcpStream> = (0..100).map(|_| connect()).collect();
    let began = Instant::now();
    for mut stream in silent {
        let limit = Some(Duration::from_secs(15));
        stream.set_read_timeout(limit).expect("a time limit");
        let mut said = Vec::new();
        let read = stream.read_to_end(&mut said);
        assert!(
            read.is_ok() || read.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset)
        );
    }
    assert!(began.elapsed() < Duration::from_secs(12));
}
