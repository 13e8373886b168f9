//! The latency guard: while we read and write, it looks how fast both sides answer others, and slows us down.

use crate::error::Result;
use crate::net::{Control, control};
use crate::plan::Endpoint;
use crate::task::{Shutdown, Throttle};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(1);
const PINGS: usize = 3;
/// Without a limit of the plan: so many times what it was at best, and never less than this.
const TIMES: u32 = 10;
const LEAST: Duration = Duration::from_millis(20);
/// The longest rest, in times of the work.
const REST: f64 = 10.0;

/// A node that is asked, with the best answer so far.
struct Node {
    endpoint: Endpoint,
    address: String,
    conn: Option<Control>,
    best: Duration,
}

impl Node {
    /// The middle of some round trips.
    async fn ask(&mut self) -> Result<Duration> {
        let mut conn = match self.conn.take() {
            Some(conn) => conn,
            None => control(&self.endpoint, &self.address).await?,
        };
        let mut times = Vec::with_capacity(PINGS);
        for _ in 0..PINGS {
            let began = Instant::now();
            conn.ask(&[b"PING"]).await?;
            times.push(began.elapsed());
        }
        self.conn = Some(conn);
        times.sort_unstable();
        let middle = times.get(PINGS / 2).copied().unwrap_or_default();
        self.best = self.best.min(middle);
        Ok(middle)
    }
}

/// Watches until `stop`. `limit` is the longest round trip that is allowed; without one it follows from the best one.
pub async fn watch(
    nodes: Vec<(Endpoint, String)>,
    limit: Option<Duration>,
    throttle: Throttle,
    stop: Shutdown,
) {
    let mut nodes: Vec<Node> = (nodes.into_iter())
        .map(|(endpoint, address)| Node {
            endpoint,
            address,
            conn: None,
            best: Duration::from_secs(3600),
        })
        .collect();
    let mut rest = 0.0;
    while stop.sleep(EVERY).await {
        let mut slow = false;
        for node in &mut nodes {
            // A node that does not answer at all is the concern of those who need it.
            let Ok(took) = node.ask().await else { continue };
            let allowed = limit.unwrap_or((node.best * TIMES).max(LEAST));
            if took > allowed {
                if rest == 0.0 {
                    tracing::warn!(
                        "{} answers in {} ms (at best {:.1} ms): slowing down",
                        node.address,
                        took.as_millis(),
                        node.best.as_secs_f64() * 1000.0
                    );
                }
                slow = true;
            }
        }
        rest = next(rest, slow);
        throttle.slow_down(rest);
    }
}

/// Slower at once, faster bit by bit.
fn next(rest: f64, slow: bool) -> f64 {
    match slow {
        true => (rest * 2.0).clamp(0.5, REST),
        false if rest < 0.1 => 0.0,
        false => rest * 0.7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_slows_down_at_once_and_recovers_bit_by_bit() {
        let mut rest = 0.0;
        for expected in [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0] {
            rest = next(rest, true);
            assert_eq!(rest, expected);
        }
        let mut steps = 0;
        while rest > 0.0 {
            rest = next(rest, false);
            steps += 1;
        }
        assert!((10..20).contains(&steps), "{steps}");
    }
}
