//! What the integration tests share: real servers, clusters, data sets, traffic, a judge, and the program under test.
//!
//! `wire`, `side`, `rng`, `dataset`, `compare` and `traffic` also make up the `traffic` example (`tests/tools`).

pub mod between;
pub mod borders;
pub mod campaign;
pub mod clients;
pub mod clock;
pub mod cluster;
pub mod compare;
pub mod compiled;
pub mod cutter;
pub mod dataset;
pub mod far;
pub mod fork;
#[allow(dead_code)] // what only the `traffic` example uses
pub mod form;
pub mod fuzz;
pub mod hostile;
pub mod hostile_peer;
pub mod keyferry;
pub mod late_reply;
pub mod link;
pub mod profile;
pub mod proxy;
pub mod rng;
pub mod sceptic;
pub mod server;
pub mod side;
pub mod snapshot;
pub mod story;
pub mod tell;
pub mod tls;
#[allow(dead_code)] // what only the `traffic` example uses
pub mod traffic;
pub mod versions;
pub mod wire;

use std::io::Write;
use std::time::{Duration, Instant};

/// The servers a test needs, by name: "redis-7.0", "any", or "any:functions+cli" for any that has these features.
///
/// `None` means that one is missing: it is printed and recorded, and the test returns.
pub fn need<const N: usize>(names: [&str; N]) -> Option<[String; N]> {
    let found = names.map(|name| server::find(name).ok_or(name));
    let missing: Vec<&str> = found
        .iter()
        .filter_map(|f| f.as_ref().err().copied())
        .collect();
    if missing.is_empty() {
        return Some(found.map(|f| f.unwrap_or_default()));
    }
    skip(&format!("needs {}", missing.join(" and ")));
    None
}

/// Says that the running test is skipped, on standard output and in the file that `test.sh` prints at its end.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let line = format!("SKIPPED: {}: {why}", thread.name().unwrap_or("a test"));
    println!("{line}");
    if let Ok(path) = std::env::var("KEYFERRY_SKIPPED")
        && let Ok(mut file) = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
    {
        let _ = writeln!(file, "{line}");
    }
}

/// Asks again until the answer is yes; fails the test with `what` when that takes too long.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
