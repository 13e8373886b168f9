//! How fast the source answers others before and while it is read: what a migration costs its clients.
//!
//! A PING at every tick, counted from the tick when the one before it was late, so that a stall is seen by all that it
//! would have met.

use crate::error::Result;
use crate::histogram::{self, Times, micros};
use crate::net::{Conn, connect};
use crate::plan::Endpoint;
use crate::task::Shutdown;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, interval};

const EVERY: Duration = Duration::from_millis(10);
/// As long as there is little time for it, before the migration begins.
const EVERY_BEFORE: Duration = Duration::from_millis(2);
/// So late, a tick was held up by the PING before it.
const HELD_UP: Duration = Duration::from_millis(5);
/// A node that does not answer is asked again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// What the migration does while the source is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum While {
    Before,
    Snapshot,
    Stream,
}

const PARTS: [(While, &str); 3] = [
    (While::Before, "before"),
    (While::Snapshot, "snapshot"),
    (While::Stream, "stream"),
];

/// The times of all masters together, for each part of the migration.
pub struct Pulse {
    pub began: Instant,
    now: AtomicUsize,
    parts: Mutex<[Times; PARTS.len()]>,
}

impl Default for Pulse {
    fn default() -> Pulse {
        Pulse {
            began: Instant::now(),
            now: AtomicUsize::new(0),
            parts: Mutex::new([histogram::new(), histogram::new(), histogram::new()]),
        }
    }
}

impl Pulse {
    /// Goes on with what an earlier run has saved; what cannot be read is left out.
    pub fn recall(saved: Option<&Value>) -> Pulse {
        let pulse = Pulse::default();
        pulse.add(saved);
        pulse
    }

    /// Takes in what another has saved.
    pub fn add(&self, saved: Option<&Value>) {
        let read = |name: &str| {
            let packed = saved?[name]["histogram"].as_str()?;
            histogram::unpacked(&STANDARD.decode(packed).ok()?).ok()
        };
        for ((_, name), part) in PARTS.iter().zip(self.lock().iter_mut()) {
            if let Some(before) = read(name) {
                let _ = part.add(before);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, [Times; PARTS.len()]> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn enter(&self, part: While) {
        let at = PARTS.iter().position(|(p, _)| *p == part);
        self.now.store(at.unwrap_or(0), Relaxed);
    }

    fn record(&self, took: Duration) {
        if let Some(part) = self.lock().get_mut(self.now.load(Relaxed)) {
            part.saturating_record(micros(took));
        }
    }

    /// By part of the migration: the distribution, and the histogram itself.
    pub fn document(&self) -> Result<Value> {
        let mut out = Map::new();
        for ((_, name), part) in PARTS.iter().zip(self.lock().iter()) {
            let mut told = histogram::told(part);
            told["histogram"] = json!(STANDARD.encode(histogram::packed(part)?));
            out.insert((*name).to_owned(), told);
        }
        Ok(Value::Object(out))
    }

    /// Asks one node until `stop`.
    pub async fn ask(&self, endpoint: &Endpoint, address: &str, stop: &Shutdown) {
        while !stop.requested() {
            // That a node is away is the concern of those who need it.
            if let Ok(conn) = connect(endpoint, address).await {
                let _ = self.ping(conn, stop).await;
            }
            if !stop.sleep(AGAIN).await {
                return;
            }
        }
    }

    async fn ping(&self, mut conn: Conn, stop: &Shutdown) -> Result<()> {
        // A tick that was missed is made up for at once, which is how an interval behaves by itself.
        let mut ticks = interval(EVERY_BEFORE);
        while !stop.requested() {
            if self.now.load(Relaxed) != 0 && ticks.period() != EVERY {
                ticks = interval(EVERY);
            }
            let planned = ticks.tick().await;
            let sent = Instant::now();
            let from = match sent.duration_since(planned) > HELD_UP {
                true => planned,
                false => sent,
            };
            conn.ask(&[b"PING"]).await?;
            self.record(from.elapsed());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_kept_apart_and_added_to_after_a_restart() {
        let pulse = Pulse::default();
        pulse.record(Duration::from_millis(1));
        pulse.enter(While::Stream);
        pulse.record(Duration::from_millis(3));
        let saved = pulse.document().unwrap();
        let again = Pulse::recall(Some(&saved));
        again.enter(While::Stream);
        again.record(Duration::from_millis(5));
        let told = again.document().unwrap();
        let counts = ["before", "snapshot", "stream"].map(|p| told[p]["count"].as_u64());
        assert_eq!(counts, [Some(1), Some(0), Some(2)]);
        assert_eq!(told["stream"]["max_us"], 5_003);
        assert_eq!(
            Pulse::recall(None).document().unwrap()["before"]["count"],
            0
        );
    }
}
