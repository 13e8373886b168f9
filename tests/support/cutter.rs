//! A TCP proxy that spoils connections: cuts them, delays them, silences them, and lets only half of a piece through
//! before a cut.
//!
//! Invariant: bytes that pass are never changed or reordered; it fails as networks fail.

use super::rng::Rng;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A proxy on a port of its own; it ends when it is dropped.
pub struct Cutter {
    port: u16,
    state: Arc<State>,
}

struct State {
    target: String,
    calm: AtomicBool,
    /// Connections with a lower number pass nothing any more, and are not closed.
    silent_before: AtomicU64,
    connections: AtomicU64,
    ended: AtomicBool,
    seed: AtomicU64,
    cuts: AtomicU64,
    /// Bytes between two cuts, on the average.
    mean: u64,
    /// How long every piece waits.
    delay: Duration,
}

impl Cutter {
    pub fn start(target: &str, seed: u64, mean: u64) -> Cutter {
        Cutter::with(target, seed, mean, Duration::ZERO)
    }

    /// Cuts nothing: a line that is this long.
    pub fn far(target: &str, delay: Duration) -> Cutter {
        let cutter = Cutter::with(target, 1, u64::MAX / 4, delay);
        cutter.calm();
        cutter
    }

    /// Cuts nothing; every answer comes that much later, to the microsecond or so.
    pub fn slow(target: &str, delay: Duration) -> Cutter {
        let cutter = Cutter::new(target, 1, u64::MAX / 4, Duration::ZERO, delay);
        cutter.calm();
        cutter
    }

    fn with(target: &str, seed: u64, mean: u64, delay: Duration) -> Cutter {
        Cutter::new(target, seed, mean, delay, Duration::ZERO)
    }

    fn new(target: &str, seed: u64, mean: u64, delay: Duration, answers: Duration) -> Cutter {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let state = Arc::new(State {
            target: target.to_owned(),
            calm: AtomicBool::new(false),
            silent_before: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            seed: AtomicU64::new(seed),
            cuts: AtomicU64::new(0),
            mean,
            delay,
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.ended.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(server) = TcpStream::connect(&shared.target) else {
                    continue;
                };
                let number = shared.connections.fetch_add(1, Ordering::Relaxed);
                for (from, to, exact) in [
                    (&client, &server, Duration::ZERO),
                    (&server, &client, answers),
                ] {
                    // Small answers must not wait for each other.
                    let _ = to.set_nodelay(true);
                    if let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) {
                        let shared = shared.clone();
                        std::thread::spawn(move || pass(from, to, &shared, number, exact));
                    }
                }
            }
        });
        Cutter { port, state }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// From now on everything passes.
    pub fn calm(&self) {
        self.state.calm.store(true, Ordering::Relaxed);
    }

    /// Swallows all that comes over the connections of now, and closes none of them: as where a firewall has forgotten
    /// them. New ones pass.
    pub fn silence(&self) {
        let now = self.state.connections.load(Ordering::Relaxed);
        self.state.silent_before.store(now, Ordering::Relaxed);
    }

    /// The same with new ones.
    pub fn silence_all(&self) {
        self.state.silent_before.store(u64::MAX, Ordering::Relaxed);
    }

    pub fn cuts(&self) -> u64 {
        self.state.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, state: &State, number: u64, exact: Duration) {
    let mut rng = Rng::new(state.seed.fetch_add(1, Ordering::Relaxed));
    let mut left = 1 + rng.below(2 * state.mean);
    let mut buf = vec![0; 16 << 10];
    while !state.ended.load(Ordering::Relaxed) {
        let n = match from.read(&mut buf) {
            Ok(0) | Err(_) => break,
            Ok(n) => n,
        };
        if number < state.silent_before.load(Ordering::Relaxed) {
            continue;
        }
        let calm = state.calm.load(Ordering::Relaxed);
        if !calm && n as u64 >= left {
            // Half of it arrives, then nothing more.
            let _ = to.write_all(&buf[..(left as usize).min(n / 2)]);
            state.cuts.fetch_add(1, Ordering::Relaxed);
            break;
        }
        left -= (n as u64).min(left - 1);
        let due = Instant::now() + exact;
        std::thread::sleep(state.delay);
        // A sleep oversleeps.
        std::thread::sleep(exact.saturating_sub(Duration::from_micros(150)));
        while Instant::now() < due {
            std::hint::spin_loop();
        }
        if !calm && rng.chance(1) {
            std::thread::sleep(Duration::from_millis(rng.below(40)));
        }
        if to.write_all(&buf[..n]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
