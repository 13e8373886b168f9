//! Passwords that end while a migration runs: nothing stops, nothing is lost, and nobody learns them.

use crate::support::cluster::Cluster;
use crate::support::need;
use crate::support::server::{Server, Setup};
use crate::support::story::{Endpoint, Story};
use crate::support::traffic;
use crate::support::versions::all_rights;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How often somebody has logged in at the nodes of one end.
fn logins(end: &Endpoint) -> u64 {
    let calls = |node: &Server| {
        let text = node.run("INFO commandstats").text();
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix("cmdstat_auth:calls="));
        line.and_then(|l| l.split(',').next()?.parse::<u64>().ok())
    };
    end.nodes().iter().filter_map(calls).sum()
}

fn full() -> bool {
    std::env::var_os("KEYFERRY_FULL").is_some()
}

/// Gives the user "ferry" of some servers a new password every so often; a file holds the one of the moment.
struct Rotation {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
    file: PathBuf,
}

impl Rotation {
    /// For `overlap` both the old and the new password are taken.
    fn start(nodes: &[&Server], file: &Path, every: Duration, overlap: Duration) -> Rotation {
        let (stop, rounds) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(1)),
        );
        let mut clients: Vec<_> = nodes.iter().map(|n| n.client()).collect();
        let mut tell = move |rule: String| {
            for client in &mut clients {
                client
                    .words(&format!("ACL SETUSER ferry {rule}"))
                    .expect("the rule is taken");
            }
        };
        let write = {
            let file = file.to_owned();
            move |n: u64| {
                let next = file.with_extension("next");
                std::fs::write(&next, format!("token-{n}\n")).expect("the token is written");
                std::fs::rename(&next, &file).expect("the token is there");
            }
        };
        tell(format!("on >token-1 {}", all_rights(nodes[0].name())));
        write(1);
        let (ended, counted) = (stop.clone(), rounds.clone());
        let thread = std::thread::spawn(move || {
            let mut due = Instant::now() + every;
            while !ended.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
                if Instant::now() < due {
                    continue;
                }
                let n = counted.fetch_add(1, Relaxed);
                tell(format!(">token-{}", n + 1));
                write(n + 1);
                std::thread::sleep(overlap);
                tell(format!("<token-{n}"));
                due += every;
            }
        });
        Rotation {
            stop,
            rounds,
            thread: Some(thread),
            file: file.to_owned(),
        }
    }

    fn end(mut self) -> u64 {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the rotation ends well");
        }
        self.rounds.load(Relaxed)
    }
}

/// Both sides' passwords rotate; new connections are opened all the time by failing links and by verifications.
fn goes_on(mode: &str, every: Duration, overlap: Duration, run: Duration) {
    let Some([name]) = need(["any"]) else { return };
    let setup = Setup::new(&name).line("notify-keyspace-events AKE");
    let mut story = Story::new(
        Endpoint::alone(setup.clone()),
        Endpoint::Cluster(Cluster::with(&Setup::new(&name), 3, 0)),
    );
    story.fill(if full() { 50_000 } else { 3_000 });
    let (mut rotations, mut nodes) = (Vec::new(), Vec::new());
    for (side, end) in [("source", &story.source), ("target", &story.target)] {
        let file = story.plan.dir().join(format!("{side}.token"));
        let list: Vec<&Server> = end.nodes().iter().collect();
        rotations.push(Rotation::start(&list, &file, every, overlap));
        nodes.push(list);
    }
    let refresh = every.as_secs().max(1);
    let files: Vec<PathBuf> = rotations.iter().map(|r| r.file.clone()).collect();
    for (side, file) in ["source", "target"].iter().zip(&files) {
        story.plan.set(&format!("/{side}/username"), json!("ferry"));
        let command = json!({ "command": ["cat", file], "refresh_s": refresh });
        story.plan.set(&format!("/{side}/password"), command);
    }
    story.plan.set("/source/mode", json!(mode));
    let options = traffic::Options {
        rate: 2_000,
        seconds: 600,
        ..story.traffic_options()
    };
    let traffic = traffic::start(&options).expect("the traffic starts");
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    let before = story.target.info("stats", "total_connections_received");
    let logins_before = logins(&story.target);
    let began = Instant::now();
    while began.elapsed() < run {
        std::thread::sleep(Duration::from_millis(500));
        assert!(running.ended().is_none(), "{}", running.stderr_now());
    }
    // The target's connections were kept and logged in anew (each status of ours opens none).
    let opened = story.target.info("stats", "total_connections_received") - before;
    let logged_in = logins(&story.target) - logins_before;
    let report = traffic.stop();
    if mode == "replica" {
        story.catch_up_and_stop(running);
    } else {
        let frozen = Instant::now();
        story
            .plan
            .wait_status(&mut running, "swept", Duration::from_secs(60), |s| {
                let lag = s["stream"]["lag_ms"].as_u64().unwrap_or(u64::MAX);
                lag.saturating_add(1_500) < frozen.elapsed().as_millis() as u64
            });
        running.interrupt();
        running.wait(Duration::from_secs(30)).exits(130);
    }
    let verified = story.plan.run("verify --json").exits(0);
    assert_eq!(verified.json["equal"], true, "{}", verified.stdout);
    let rounds: Vec<u64> = rotations.into_iter().map(Rotation::end).collect();
    assert!(rounds.iter().all(|n| *n >= 3), "{rounds:?}");
    // A sweep opens its own to list the keys.
    assert!(
        mode == "scan" || opened < 30,
        "{opened} new connections to the target"
    );
    // Each password was told by every living connection: a writer and the watchers of three nodes.
    assert!(
        logged_in >= opened as u64 + 3 * (rounds[1] - 2),
        "{logged_in} logins with {opened} new connections"
    );
    println!(
        "{rounds:?} passwords, {opened} new connections to the target and {logged_in} logins meanwhile"
    );
    story.judge();
    story.check_counters(&report);
    // No password lies in what we leave behind.
    for entry in walk(&story.plan.work_dir()) {
        let text = std::fs::read(&entry).unwrap_or_default();
        assert!(
            !text.windows(6).any(|w| w == b"token-"),
            "{} holds a password",
            entry.display()
        );
    }
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(walk(&path)),
            path => found.push(path),
        }
    }
    found
}

/// How long a password lasts, and the whole run.
fn times() -> (Duration, Duration) {
    match full() {
        true => (Duration::from_secs(20), Duration::from_secs(180)),
        false => (Duration::from_secs(4), Duration::from_secs(14)),
    }
}

#[test]
fn a_replica_outlives_its_passwords() {
    let (every, run) = times();
    goes_on("replica", every, Duration::from_secs(2), run);
}

#[test]
fn a_scan_outlives_its_passwords() {
    let (every, run) = times();
    goes_on("scan", every, Duration::from_secs(2), run);
}

/// The old password ends in the very moment in which the new one begins.
#[test]
fn passwords_without_an_overlap() {
    let (every, run) = times();
    goes_on("replica", every, Duration::ZERO, run);
}
