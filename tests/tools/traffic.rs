//! Traffic, data sets and comparisons from the command line, for scripts and the demo.
//!
//!     traffic run --url redis://127.0.0.1:7000 --rate 3000 --seconds 10
//!     traffic fill --url redis://127.0.0.1:7000 --keys 200000
//!     traffic compare --a redis://127.0.0.1:7000 --b redis://127.0.0.1:7001 --b-cluster
//!     traffic far --one-way-us 20000 127.0.0.1:7000
//!     traffic cluster redis://127.0.0.1:7001 redis://127.0.0.1:7002 redis://127.0.0.1:7003

#![allow(dead_code)] // the modules are shared with the integration tests

#[path = "../support/clients.rs"]
mod clients;
#[path = "../support/compare.rs"]
mod compare;
#[path = "../support/dataset.rs"]
mod dataset;
#[path = "../support/far.rs"]
mod far;
#[path = "../support/form.rs"]
mod form;
#[path = "../support/rng.rs"]
mod rng;
#[path = "../support/side.rs"]
mod side;
#[path = "../support/traffic/mod.rs"]
mod traffic;
#[path = "../support/wire.rs"]
mod wire;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::json;
use side::Side;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Parser)]
#[command(about = "Live traffic, data sets and comparisons for keyferry's tests")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Task>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Subcommand)]
enum Task {
    /// Write at a steady rate for a while (also without naming this command).
    Run(RunArguments),
    /// Fill in keys of every type and encoding.
    Fill {
        #[arg(long)]
        url: String,
        #[arg(long)]
        cluster: bool,
        #[arg(long, default_value_t = 10_000)]
        keys: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long)]
        no_field_expiry: bool,
    },
    /// Compare two sides through plain commands; exit code 1 when they differ.
    Compare {
        #[arg(long)]
        a: String,
        #[arg(long)]
        a_cluster: bool,
        #[arg(long)]
        b: String,
        #[arg(long)]
        b_cluster: bool,
        #[arg(long, default_value_t = 5)]
        expiry_tolerance_ms: i64,
    },
    /// Clients that count their INCRs and move to the other side when a file says so, until Ctrl-C; exit code 1 when an
    /// acknowledged write is missing, or there twice, where they are then.
    Clients {
        /// Holds "source" or "target".
        #[arg(long)]
        file: std::path::PathBuf,
        #[arg(long)]
        source: String,
        #[arg(long)]
        source_cluster: bool,
        #[arg(long)]
        target: String,
        #[arg(long)]
        target_cluster: bool,
        #[arg(long, default_value_t = 20)]
        clients: u64,
        #[arg(long, default_value_t = 5_000)]
        rate: u64,
    },
    /// How long a write at the source takes to be seen at each of the others, asked in turns: microseconds.
    Lag {
        #[arg(long)]
        source: String,
        /// Servers that follow it, by a native link or by keyferry.
        #[arg(long, required = true)]
        to: Vec<String>,
        #[arg(long, default_value_t = 1_000)]
        probes: u64,
    },
    /// Make servers far away until Ctrl-C: prints the address of each and that of the proxy before it, in the end how
    /// many round trips went through them all. A line "down" on its input cuts them off, until "up".
    Far {
        /// How much later every byte arrives, in each direction.
        #[arg(long)]
        one_way_us: u64,
        /// Addresses, each host:port.
        #[arg(required = true)]
        servers: Vec<String>,
    },
    /// Form a cluster of empty nodes: every node a master with its share of the slots.
    Cluster { urls: Vec<String> },
}

#[derive(Args)]
struct RunArguments {
    #[arg(long)]
    url: Option<String>,
    #[arg(long)]
    cluster: bool,
    /// Writes in a second.
    #[arg(long, default_value_t = 3_000)]
    rate: u64,
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Stop after so many writes; 0 is no limit.
    #[arg(long, default_value_t = 0)]
    count: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 5_000)]
    keys: u64,
    #[arg(long, value_enum, default_value_t = MixName::Mixed)]
    mix: MixName,
    #[arg(long, default_value_t = 4)]
    connections: u64,
    #[arg(long)]
    no_field_expiry: bool,
    #[arg(long)]
    report_json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum MixName {
    Mixed,
    Counters,
    Ttl,
    Plain,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        None => run(arguments.run),
        Some(Task::Run(options)) => run(options),
        Some(Task::Fill {
            url,
            cluster,
            keys,
            seed,
            no_field_expiry,
        }) => fill(&url, cluster, keys, seed, !no_field_expiry),
        Some(Task::Compare {
            a,
            a_cluster,
            b,
            b_cluster,
            expiry_tolerance_ms,
        }) => compare(&a, a_cluster, &b, b_cluster, expiry_tolerance_ms),
        Some(Task::Clients {
            file,
            source,
            source_cluster,
            target,
            target_cluster,
            clients,
            rate,
        }) => move_clients(&clients::Options {
            file,
            sides: [(source, source_cluster), (target, target_cluster)],
            clients,
            rate,
        }),
        Some(Task::Lag { source, to, probes }) => lag(&source, &to, probes),
        Some(Task::Far {
            one_way_us,
            servers,
        }) => make_far(one_way_us, servers),
        Some(Task::Cluster { urls }) => form::form(&urls).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("traffic: {error}");
        ExitCode::from(3)
    })
}

fn run(arguments: RunArguments) -> io::Result<ExitCode> {
    let url = arguments
        .url
        .ok_or_else(|| io::Error::other("--url is needed"))?;
    let options = traffic::Options {
        url,
        cluster: arguments.cluster,
        rate: arguments.rate,
        seconds: arguments.seconds,
        count: arguments.count,
        seed: arguments.seed,
        keys: arguments.keys,
        mix: match arguments.mix {
            MixName::Mixed => traffic::Mix::Mixed,
            MixName::Counters => traffic::Mix::Counters,
            MixName::Ttl => traffic::Mix::Ttl,
            MixName::Plain => traffic::Mix::Plain,
        },
        connections: arguments.connections,
        field_expiry: !arguments.no_field_expiry,
        ..traffic::Options::new("", false)
    };
    let under_way = traffic::start(&options)?;
    stop_on_signal(under_way.stopper());
    let report = under_way.wait();
    if arguments.report_json {
        println!(
            "{}",
            json!({
                "total": report.total(),
                "acknowledged": report.acknowledged,
                "refused": report.refused,
                "counters": report.counters,
                "broken": report.broken,
                "elapsed_ms": report.elapsed_ms,
            })
        );
    } else {
        for (kind, n) in &report.acknowledged {
            println!("{n:8} {kind}");
        }
        for (kind, (n, text)) in &report.refused {
            println!("{n:8} {kind} refused: {text}");
        }
        for text in &report.broken {
            println!("a connection broke: {text}");
        }
        println!(
            "{:8} writes acknowledged in {:.1} s",
            report.total(),
            report.elapsed_ms as f64 / 1000.0
        );
    }
    Ok(if report.broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}

fn make_far(one_way_us: u64, servers: Vec<String>) -> io::Result<ExitCode> {
    let line = far::Line::default();
    line.delay(std::time::Duration::from_micros(one_way_us));
    let mut fars = Vec::new();
    for server in servers {
        let far = far::Far::with(&server, line.clone());
        println!("{server} {}", far.address());
        fars.push(far);
    }
    let words = line.clone();
    std::thread::spawn(move || {
        for word in io::stdin().lines().map_while(Result::ok) {
            words.down(word == "down");
        }
    });
    wait_for_signal();
    println!("{} round trips", line.round_trips());
    Ok(ExitCode::SUCCESS)
}

fn move_clients(options: &clients::Options) -> io::Result<ExitCode> {
    let running = clients::start(options)?;
    wait_for_signal();
    let report = running.stop();
    let at = std::fs::read_to_string(&options.file)?;
    let side = clients::SIDES.iter().position(|s| *s == at.trim());
    let (url, cluster) = &options.sides[side.unwrap_or(0)];
    let wrong = clients::wrong(&mut Side::open(url, *cluster)?, &report)?;
    let (lost, doubled) = wrong
        .iter()
        .fold((0, 0), |(lost, doubled), (_, there, wanted)| {
            (
                lost + (wanted - there).max(0),
                doubled + (there - wanted).max(0),
            )
        });
    println!(
        "{} writes acknowledged, {lost} lost, {doubled} doubled at the {}; tried again: {}; the longest pause of a client: {:.1} ms",
        report.writes,
        at.trim(),
        report.refused,
        report.pause.as_secs_f64() * 1000.0
    );
    Ok(ExitCode::from(u8::from(!wrong.is_empty())))
}

fn lag(source: &str, to: &[String], probes: u64) -> io::Result<ExitCode> {
    let mut writer = wire::Client::open(source)?;
    let mut readers = Vec::new();
    for url in to {
        readers.push((url, wire::Client::open(url)?, Vec::new()));
    }
    let limit = std::time::Duration::from_secs(10);
    for probe in 0..probes {
        for (url, reader, times) in &mut readers {
            let key = format!("keyferry:lag:{}", probe % 16);
            let value = format!("{url} {probe}");
            let sent = std::time::Instant::now();
            writer.run(&wire::Command::new("SET").key(&key).arg(&value))?;
            while reader.run(&wire::Command::new("GET").key(&key))?.bytes() != value.as_bytes() {
                if sent.elapsed() > limit {
                    return Err(io::Error::other(format!("{url} is more than 10 s behind")));
                }
            }
            times.push(sent.elapsed().as_micros() as u64);
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
    for (url, _, times) in &mut readers {
        times.sort_unstable();
        let at = |share: f64| {
            times
                .get((share * times.len() as f64) as usize)
                .or(times.last())
        };
        let [p50, p90, p99, max] =
            [0.5, 0.9, 0.99, 1.0].map(|share| at(share).copied().unwrap_or(0));
        println!(
            "{url}: p50 {p50} p90 {p90} p99 {p99} max {max} us, {} probes",
            times.len()
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn wait_for_signal() {
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signal(stop.clone());
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// SIGINT and SIGTERM end the traffic in order, so that the account is complete.
fn stop_on_signal(stop: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let Ok(mut terminate) = signal(SignalKind::terminate()) else {
                return;
            };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        });
        stop.store(true, Ordering::Relaxed);
    });
}

fn fill(
    url: &str,
    cluster: bool,
    keys: u64,
    seed: u64,
    field_expiry: bool,
) -> io::Result<ExitCode> {
    let mut side = Side::open(url, cluster)?;
    let what = dataset::Fill {
        seed,
        field_expiry,
        ..dataset::Fill::new(keys)
    };
    let started = std::time::Instant::now();
    let written = dataset::fill(&mut side, &what)?;
    println!(
        "{written} keys written in {:.1} s",
        started.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}

fn compare(
    a: &str,
    a_cluster: bool,
    b: &str,
    b_cluster: bool,
    expiry_tolerance_ms: i64,
) -> io::Result<ExitCode> {
    let (mut a, mut b) = (Side::open(a, a_cluster)?, Side::open(b, b_cluster)?);
    let rules = compare::Rules {
        expiry_tolerance_ms,
        ..compare::Rules::default()
    };
    let started = std::time::Instant::now();
    let found = compare::compare(&mut a, &mut b, &rules)?;
    print!("{found}");
    println!("compared in {:.1} s", started.elapsed().as_secs_f64());
    Ok(if found.equal() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
