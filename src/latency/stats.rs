//! From histograms of blocks to differences with intervals, and to a verdict.
//!
//! Blocks, not requests, are drawn again and again (a block bootstrap): requests of one moment are alike, so drawing
//! them one by one would make the interval too narrow. Both sides' blocks of one turn are drawn together.

use crate::histogram::{self, PERCENTILES, Times, is_known, merged};
use crate::latency::rng::Rng;
use serde::Serialize;

/// How often blocks are drawn.
const DRAWS: usize = 400;
/// Of these, so many lie within the interval.
const CONFIDENCE: f64 = 0.95;
/// Differences up to this are of no importance to an application: µs, and a share of the source's value.
pub const TOLERANCE_US: f64 = 20.0;
pub const TOLERANCE_SHARE: f64 = 0.05;
/// Fewer blocks allow no verdict.
const FEWEST_BLOCKS: usize = 4;

/// A value, and between what it lies with 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// How the target's percentile differs from the source's.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    pub name: &'static str,
    /// Target less source, in µs.
    pub difference_us: Interval,
    /// Target divided by source.
    pub ratio: Interval,
    pub tolerance_us: f64,
}

/// The differences of all percentiles that both sides have requests enough for.
pub fn differences(source: &[Times], target: &[Times], seed: u64) -> Vec<Difference> {
    let turns = source.len().min(target.len());
    let (a, b) = (merged(source), merged(target));
    let known: Vec<(&'static str, f64)> = (PERCENTILES.iter())
        .filter(|(_, q)| is_known(*q, a.len()) && is_known(*q, b.len()))
        .copied()
        .collect();
    let mut rng = Rng::new(seed);
    let mut drawn: Vec<Vec<(f64, f64)>> = vec![Vec::with_capacity(DRAWS); known.len()];
    for _ in 0..DRAWS {
        let (mut x, mut y) = (histogram::new(), histogram::new());
        for _ in 0..turns {
            let at = rng.below(turns);
            if let (Some(s), Some(t)) = (source.get(at), target.get(at)) {
                let _ = x.add(s).and_then(|()| y.add(t));
            }
        }
        for ((_, q), values) in known.iter().zip(&mut drawn) {
            let (s, t) = (at_quantile(&x, *q), at_quantile(&y, *q));
            values.push((t - s, t / s.max(1.0)));
        }
    }
    (known.iter().zip(drawn))
        .map(|((name, q), values)| {
            let (s, t) = (at_quantile(&a, *q), at_quantile(&b, *q));
            let of = |pick: fn(&(f64, f64)) -> f64, value: f64| {
                let mut sorted: Vec<f64> = values.iter().map(pick).collect();
                sorted.sort_by(f64::total_cmp);
                let at = |share: f64| {
                    let place = (share * (sorted.len().max(1) - 1) as f64).round() as usize;
                    sorted.get(place).copied().unwrap_or(value)
                };
                let tail = (1.0 - CONFIDENCE) / 2.0;
                Interval {
                    value,
                    low: at(tail),
                    high: at(1.0 - tail),
                }
            };
            Difference {
                name,
                difference_us: of(|v| v.0, t - s),
                ratio: of(|v| v.1, t / s.max(1.0)),
                tolerance_us: TOLERANCE_US.max(s * TOLERANCE_SHARE),
            }
        })
        .collect()
}

fn at_quantile(h: &Times, q: f64) -> f64 {
    h.value_at_quantile(q) as f64
}

/// The middle and the tail are what the verdict goes by.
pub fn is_judged(difference: &Difference) -> bool {
    matches!(difference.name, "p50_us" | "p99_us")
}

/// What a reader may say of two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    #[serde(rename = "faster")]
    Faster,
    #[serde(rename = "slower")]
    Slower,
    /// The middle and the tail say different things.
    #[serde(rename = "mixed")]
    Mixed,
    #[serde(rename = "no detectable difference")]
    None,
    #[serde(rename = "no verdict")]
    Refused,
}

/// The verdict by the middle (p50) and the tail (p99) of the response times.
///
/// `trouble`: why the measurement itself is not to be trusted.
pub fn verdict(
    differences: &[Difference],
    blocks: usize,
    trouble: Option<String>,
) -> (Verdict, String) {
    if let Some(why) = trouble {
        return (Verdict::Refused, why);
    }
    if blocks < FEWEST_BLOCKS {
        let why = format!("{blocks} blocks of each side are too few; {FEWEST_BLOCKS} are needed");
        return (Verdict::Refused, why);
    }
    let judged: Vec<&Difference> = (differences.iter()).filter(|d| is_judged(d)).collect();
    if judged.is_empty() {
        return (Verdict::Refused, "there are too few requests".into());
    }
    let slower = |d: &&&Difference| d.difference_us.low > d.tolerance_us;
    let faster = |d: &&&Difference| d.difference_us.high < -d.tolerance_us;
    let told = |list: Vec<&&Difference>| {
        let one = |d: &&&Difference| {
            let i = d.difference_us;
            format!(
                "{} {:+.0} µs (95 %: {:+.0} to {:+.0})",
                d.name.trim_end_matches("_us"),
                i.value,
                i.low,
                i.high
            )
        };
        list.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let (up, down): (Vec<_>, Vec<_>) = (
        judged.iter().filter(slower).collect(),
        judged.iter().filter(faster).collect(),
    );
    match (up.is_empty(), down.is_empty()) {
        (false, true) => (Verdict::Slower, told(up)),
        (true, false) => (Verdict::Faster, told(down)),
        (false, false) => (
            Verdict::Mixed,
            format!("slower: {}; faster: {}", told(up), told(down)),
        ),
        (true, true) => {
            let within = |d: &&&Difference| {
                d.difference_us.low.abs().max(d.difference_us.high.abs()) <= d.tolerance_us
            };
            let why = match judged.iter().filter(within).count() == judged.len() {
                true => "the whole intervals lie within the tolerance",
                false => {
                    "the intervals hold differences within the tolerance; more blocks would narrow them"
                }
            };
            (
                Verdict::None,
                format!("{}: {why}", told(judged.iter().collect())),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of latencies around `middle`, which wanders from block to block.
    fn blocks(middle: f64, seed: u64) -> Vec<Times> {
        let (mut rng, mut wander) = (Rng::new(seed), Rng::new(99));
        (0..12)
            .map(|_| {
                let mut h = histogram::new();
                let base = middle + wander.unit() * 60.0;
                for _ in 0..3_000 {
                    let tail = if rng.unit() < 0.02 {
                        400.0 * rng.unit()
                    } else {
                        0.0
                    };
                    h.saturating_record((base + 40.0 * rng.unit() + tail) as u64);
                }
                h
            })
            .collect()
    }

    fn judged(a: &[Times], b: &[Times]) -> (Verdict, Vec<Difference>) {
        let found = differences(a, b, 5);
        (verdict(&found, a.len(), None).0, found)
    }

    #[test]
    fn the_same_is_the_same_and_a_shift_is_found() {
        let full = std::env::var_os("KEYFERRY_FULL").is_some();
        for seed in 1..if full { 20 } else { 4 } {
            let (verdict, _) = judged(&blocks(200.0, seed), &blocks(200.0, seed + 100));
            assert_eq!(verdict, Verdict::None, "seed {seed}");
        }
        let (verdict, found) = judged(&blocks(200.0, 3), &blocks(500.0, 4));
        assert_eq!(verdict, Verdict::Slower);
        let middle = found
            .iter()
            .find(|d| d.name == "p50_us")
            .unwrap()
            .difference_us;
        assert!(middle.low <= 300.0 && 300.0 <= middle.high, "{middle:?}");
        assert_eq!(
            judged(&blocks(500.0, 3), &blocks(200.0, 4)).0,
            Verdict::Faster
        );
    }

    #[test]
    fn percentiles_need_requests_beyond_them() {
        let names: Vec<&str> = differences(&blocks(200.0, 1), &blocks(200.0, 2), 1)
            .iter()
            .map(|d| d.name)
            .collect();
        // 36,000 requests tell 99.9 %, not 99.99 %.
        assert_eq!(names, ["p50_us", "p90_us", "p95_us", "p99_us", "p99_9_us"]);
    }

    #[test]
    fn trouble_and_few_blocks_allow_no_verdict() {
        let some = blocks(200.0, 1);
        let found = differences(&some[..2], &some[..2], 1);
        assert_eq!(verdict(&found, 2, None).0, Verdict::Refused);
        assert_eq!(verdict(&found, 12, Some("slip".into())).0, Verdict::Refused);
    }
}
