//! Clients of an application: each counts its acknowledged INCRs, and moves to the other side when a file says so.

use super::side::Side;
use super::wire::{Command, Value};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The words in the file, in the order of the sides.
pub const SIDES: [&str; 2] = ["source", "target"];
/// The word that has them wait.
pub const HOLD: &str = "hold";
/// Counters of each client.
const COUNTERS: u64 = 50;

#[derive(Debug, Clone)]
pub struct Options {
    /// Holds `source` or `target`.
    pub file: PathBuf,
    /// Url, and whether it is a cluster.
    pub sides: [(String, bool); 2],
    pub clients: u64,
    /// Writes per second of all together.
    pub rate: u64,
}

/// What the clients have seen.
#[derive(Debug, Default, Clone)]
pub struct Report {
    /// Acknowledged increments.
    pub acknowledged: BTreeMap<String, i64>,
    /// The longest time that any client had to wait for its next acknowledgement.
    pub pause: Duration,
    /// Writes that were refused or cut off, and were tried again.
    pub refused: u64,
    pub writes: u64,
}

pub struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Report>>,
}

/// Says in the file where the clients are to be, as a whole.
pub fn point(file: &Path, side: &str) -> io::Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, side)?;
    std::fs::rename(new, file)
}

pub fn start(options: &Options) -> io::Result<Clients> {
    let stop = Arc::new(AtomicBool::new(false));
    let at = Arc::new(AtomicUsize::new(0));
    let held = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for client in 0..options.clients {
        let mut open = Vec::new();
        for (url, cluster) in &options.sides {
            open.push(Some(Side::open(url, *cluster)?));
        }
        let (stop, at, options) = (stop.clone(), (at.clone(), held.clone()), options.clone());
        threads.push(std::thread::spawn(move || {
            run(client, open, &options, &at, &stop)
        }));
    }
    let (file, stopped) = (options.file.clone(), stop.clone());
    std::thread::spawn(move || {
        while !stopped.load(Relaxed) {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if let Some(side) = SIDES.iter().position(|s| text.trim() == *s) {
                at.store(side, Relaxed);
            }
            held.store(text.trim() == HOLD, Relaxed);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    Ok(Clients { stop, threads })
}

impl Clients {
    pub fn stop(self) -> Report {
        self.stop.store(true, Relaxed);
        let mut all = Report::default();
        for thread in self.threads {
            let one = thread.join().unwrap_or_default();
            all.acknowledged.extend(one.acknowledged);
            all.pause = all.pause.max(one.pause);
            all.refused += one.refused;
            all.writes += one.writes;
        }
        all
    }
}

fn run(
    client: u64,
    mut open: Vec<Option<Side>>,
    options: &Options,
    (at, held): &(Arc<AtomicUsize>, Arc<AtomicBool>),
    stop: &AtomicBool,
) -> Report {
    let mut report = Report::default();
    let every = Duration::from_nanos(1_000_000_000 * options.clients / options.rate.max(1));
    let (mut next, mut last, mut n) = (Instant::now(), Instant::now(), 0u64);
    while !stop.load(Relaxed) {
        let now = at.load(Relaxed);
        if held.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let (url, cluster) = &options.sides[now];
        let Some(side) = &mut open[now] else {
            open[now] = Side::open(url, *cluster).ok();
            if open[now].is_none() {
                std::thread::sleep(Duration::from_millis(5));
            }
            continue;
        };
        let key = format!("client:{client}:{}", n % COUNTERS);
        match side.run(&Command::new("INCR").key(&key)) {
            Ok(Value::Int(_)) => {
                report.pause = report.pause.max(last.elapsed());
                last = Instant::now();
                *report.acknowledged.entry(key).or_default() += 1;
                report.writes += 1;
                n += 1;
            }
            Ok(_) => {
                report.refused += 1;
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            Err(_) => {
                report.refused += 1;
                open[now] = None;
                continue;
            }
        }
        next += every;
        match next.checked_duration_since(Instant::now()) {
            Some(wait) => std::thread::sleep(wait),
            // No burst after a pause.
            None => next = Instant::now(),
        }
    }
    report
}

/// Counters of a side that are not what was acknowledged: the key, what is there, what should be.
pub fn wrong(side: &mut Side, report: &Report) -> io::Result<Vec<(String, i64, i64)>> {
    let mut wrong = Vec::new();
    for (key, acknowledged) in &report.acknowledged {
        let reply = side.run(&Command::new("GET").key(key))?;
        let there = reply.text().parse().unwrap_or(0);
        if there != *acknowledged {
            wrong.push((key.clone(), there, *acknowledged));
        }
    }
    Ok(wrong)
}
