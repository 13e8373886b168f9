//! Bounded live traffic: writes of every kind at a steady rate, and an account of what was acknowledged.
//!
//! Pacing is open: what is due is sent whether or not the server was slow before.
//! Invariant: it ends by itself, by time or by count.

mod mix;
mod several;

use super::side::Side;
use super::wire::{Command, Value};
use mix::Generator;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Which writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// Everything.
    Mixed,
    /// Only counters, whose sums prove that nothing was lost or applied twice.
    Counters,
    /// Only keys that expire soon, are renewed and made persistent.
    Ttl,
    /// SET, INCR and LPUSH, as a benchmark writes them.
    Plain,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub url: String,
    pub cluster: bool,
    /// Writes in a second, over all connections.
    pub rate: u64,
    pub seconds: u64,
    /// Stop after so many writes; 0 is no limit.
    pub count: u64,
    pub seed: u64,
    /// How many different numbers appear in key names.
    pub keys: u64,
    pub mix: Mix,
    pub connections: u64,
    /// Expiries of hash fields, where the server has them.
    pub field_expiry: bool,
    /// Go on when a connection breaks or slots move: what was under way is not counted.
    pub stubborn: bool,
    /// Where else a stubborn writer may ask.
    pub others: Vec<String>,
}

impl Options {
    pub fn new(url: &str, cluster: bool) -> Options {
        let url = url.to_owned();
        Options {
            url,
            cluster,
            rate: 3_000,
            seconds: 60,
            count: 0,
            seed: 1,
            keys: 5_000,
            mix: Mix::Mixed,
            connections: 4,
            field_expiry: true,
            stubborn: false,
            others: Vec::new(),
        }
    }
}

/// What was acknowledged, by kind.
#[derive(Debug, Default, Clone)]
pub struct Report {
    pub acknowledged: BTreeMap<String, u64>,
    /// Error replies by kind: how many, and the first one's text.
    pub refused: BTreeMap<String, (u64, String)>,
    /// The sum of all acknowledged increments of every counter.
    pub counters: BTreeMap<String, i64>,
    /// Connections that broke: what was under way on them may or may not have been done.
    pub broken: Vec<String>,
    pub elapsed_ms: u64,
}

impl Report {
    pub fn total(&self) -> u64 {
        self.acknowledged.values().sum()
    }

    fn add(&mut self, other: Report) {
        for (kind, n) in other.acknowledged {
            *self.acknowledged.entry(kind).or_default() += n;
        }
        for (kind, (n, text)) in other.refused {
            self.refused.entry(kind).or_insert((0, text)).0 += n;
        }
        for (key, sum) in other.counters {
            *self.counters.entry(key).or_default() += sum;
        }
        self.broken.extend(other.broken);
    }

    fn count(&mut self, kind: &str, reply: &Value) -> bool {
        let error = match reply {
            Value::Error(text) => Some(text.clone()),
            // EXEC answers with a list; an error inside it is an error of this write.
            Value::Array(items) => items.iter().find(|v| v.is_error()).map(Value::text),
            _ => None,
        };
        match error {
            Some(text) => self.refused.entry(kind.to_owned()).or_insert((0, text)).0 += 1,
            None => *self.acknowledged.entry(kind.to_owned()).or_default() += 1,
        }
        matches!(reply, Value::Error(_))
    }
}

/// Compares the counters of a side with the acknowledged sums; returns every counter that is wrong.
pub fn wrong_counters(side: &mut Side, sums: &BTreeMap<String, i64>) -> io::Result<Vec<String>> {
    let reads: Vec<Command> = sums
        .keys()
        .map(|key| Command::new("GET").key(key))
        .collect();
    let values = side.all(&reads)?;
    let pairs = sums
        .iter()
        .zip(values)
        .filter(|((_, sum), value)| value.int().unwrap_or(0) != **sum);
    Ok(pairs
        .map(|((key, sum), value)| format!("{key} is {value:?}, acknowledged {sum}"))
        .collect())
}

/// Traffic under way.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    started: Instant,
    threads: Vec<JoinHandle<Report>>,
}

/// Starts the writers; they end after `seconds`, `count` writes or `stop`.
pub fn start(options: &Options) -> io::Result<Traffic> {
    let mut side = Side::open(&options.url, options.cluster)?;
    mix::prepare(&mut side)?;
    let stop = Arc::new(AtomicBool::new(false));
    let started = Instant::now();
    let mut threads = Vec::new();
    for number in 0..options.connections.max(1) {
        let side = Side::open(&options.url, options.cluster)?;
        let (options, stop) = (options.clone(), stop.clone());
        threads.push(std::thread::spawn(move || {
            write(side, &options, number, &stop)
        }));
    }
    if options.mix == Mix::Mixed && !options.stubborn {
        let side = Side::open(&options.url, options.cluster)?;
        let (seconds, stop) = (options.seconds, stop.clone());
        threads.push(std::thread::spawn(move || {
            wait_in_line(side, seconds, &stop)
        }));
    }
    Ok(Traffic {
        stop,
        started,
        threads,
    })
}

impl Traffic {
    pub fn stopper(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    /// Stops the writers and returns the account.
    pub fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        self.wait()
    }

    /// Waits until the writers have ended by themselves.
    pub fn wait(mut self) -> Report {
        let mut report = Report::default();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(part) => report.add(part),
                Err(_) => report.broken.push("a writer panicked".to_owned()),
            }
        }
        report.elapsed_ms = self.started.elapsed().as_millis() as u64;
        report
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// One connection's writes.
fn write(mut side: Side, options: &Options, number: u64, stop: &AtomicBool) -> Report {
    let mut report = Report::default();
    let started = Instant::now();
    let end = Duration::from_secs(options.seconds);
    let connections = options.connections.max(1);
    let share = |all: u64| all / connections + u64::from(number < all % connections);
    let mut generator = Generator::new(options, &side, number);
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) && started.elapsed() < end {
        if options.count > 0 && sent >= share(options.count) {
            break;
        }
        let due = started.elapsed().as_micros() as u64 * options.rate / connections / 1_000_000;
        let mut batch = due.saturating_sub(sent).min(500);
        if options.count > 0 {
            batch = batch.min(share(options.count) - sent);
        }
        let moved = |report: &Report| report.refused.values().map(|r| r.0).sum::<u64>();
        let before = moved(&report);
        if let Err(error) = send(&mut side, &mut generator, batch, &mut report) {
            if !options.stubborn {
                report.broken.push(error.to_string());
                break;
            }
            side = again(options, stop).unwrap_or(side);
        } else if options.stubborn && moved(&report) > before + 20 {
            side = again(options, stop).unwrap_or(side);
        }
        sent += batch;
        std::thread::sleep(Duration::from_millis(5));
    }
    report
}

/// A new look at the servers, as soon as they answer.
fn again(options: &Options, stop: &AtomicBool) -> Option<Side> {
    // The first node may be the one that is away: any node of the cluster tells the others.
    let urls: Vec<String> = std::iter::once(options.url.clone())
        .chain(options.others.iter().cloned())
        .collect();
    for _ in 0..200 {
        for url in &urls {
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            if let Ok(side) = Side::open(url, options.cluster) {
                return Some(side);
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    None
}

fn send(
    side: &mut Side,
    generator: &mut Generator,
    batch: u64,
    report: &mut Report,
) -> io::Result<()> {
    let mut under_way = Vec::new();
    for _ in 0..batch {
        let write = generator.next();
        let node = side.node_of(
            write
                .commands
                .first()
                .and_then(Command::routing_key)
                .unwrap_or_default(),
        );
        for command in &write.commands {
            side.nodes()[node].push(command);
        }
        under_way.push((node, write));
    }
    for node in side.nodes() {
        node.flush()?;
    }
    for (node, write) in under_way {
        let mut last = Value::Nil;
        for _ in &write.commands {
            last = side.nodes()[node].read()?;
        }
        let refused = report.count(write.kind, &last);
        if let (Some((key, by)), false) = (write.counter, refused) {
            *report.counters.entry(key).or_default() += by;
        }
    }
    Ok(())
}

/// A consumer that waits for the others to push, so that a blocked pop is served by somebody else's write.
fn wait_in_line(mut side: Side, seconds: u64, stop: &AtomicBool) -> Report {
    let mut report = Report::default();
    let started = Instant::now();
    let pop = Command::new("BLPOP").key(mix::QUEUE).arg("0.2");
    while !stop.load(Ordering::Relaxed) && started.elapsed() < Duration::from_secs(seconds) {
        match side.run(&pop) {
            Ok(Value::Nil) => {}
            Ok(reply) => {
                report.count("BLPOP served", &reply);
            }
            Err(error) => {
                report.broken.push(error.to_string());
                break;
            }
        }
    }
    report
}
