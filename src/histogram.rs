//! Times in a histogram, from 1 µs to 60 s with three digits: kept, merged, and told by percentiles.

use crate::error::{Error, ErrorKind, Result};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// What is told of a distribution, with its name in the answer.
pub const PERCENTILES: [(&str, f64); 6] = [
    ("p50_us", 0.50),
    ("p90_us", 0.90),
    ("p95_us", 0.95),
    ("p99_us", 0.99),
    ("p99_9_us", 0.999),
    ("p99_99_us", 0.9999),
];
/// Beyond a percentile, so many times must lie.
const BEYOND: f64 = 10.0;

/// A histogram of microseconds.
pub type Times = Histogram<u64>;

pub fn new() -> Times {
    let new = Histogram::new_with_bounds(1, 60_000_000, 3);
    // The bounds are right; were they not, one that grows does as well.
    new.unwrap_or_else(|_| Histogram::new(3).unwrap_or_else(|_| std::process::abort()))
}

/// Whole microseconds, at least one.
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1000))
        .unwrap_or(u64::MAX)
        .max(1)
}

pub fn merged(parts: &[Times]) -> Times {
    let mut all = new();
    for part in parts {
        // All have the same bounds.
        let _ = all.add(part);
    }
    all
}

/// Whether a percentile can be told from so many times.
pub fn is_known(quantile: f64, count: u64) -> bool {
    count as f64 * (1.0 - quantile) >= BEYOND
}

/// A distribution as answers have it; percentiles only where there are times enough.
pub fn told(h: &Times) -> Value {
    let mut out = Map::new();
    out.insert("count".into(), json!(h.len()));
    out.insert("mean_us".into(), json!((h.mean() * 10.0).round() / 10.0));
    for (name, q) in PERCENTILES {
        let value = is_known(q, h.len()).then(|| h.value_at_quantile(q));
        out.insert(name.into(), json!(value));
    }
    out.insert("max_us".into(), json!(h.max()));
    Value::Object(out)
}

/// In HdrHistogram's own form (V2, compressed).
pub fn packed(h: &Times) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match V2DeflateSerializer::new().serialize(h, &mut bytes) {
        Ok(_) => Ok(bytes),
        Err(e) => Err(Error::new(
            ErrorKind::Bug,
            format!("pack a histogram: {e:?}"),
        )),
    }
}

pub fn unpacked(bytes: &[u8]) -> Result<Times> {
    let read = Deserializer::new().deserialize(&mut std::io::Cursor::new(bytes));
    read.map_err(|e| {
        Error::new(
            ErrorKind::State,
            format!("a saved histogram is damaged: {e:?}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_need_times_beyond_them_and_survive_being_packed() {
        assert!(is_known(0.99, 1_000) && !is_known(0.99, 999));
        let mut h = new();
        for n in 1..=500 {
            h.saturating_record(n);
        }
        let back = unpacked(&packed(&h).unwrap()).unwrap();
        assert_eq!(back, h);
        let answer = told(&merged(&[h, back]));
        assert_eq!(answer["count"], 1000);
        assert_eq!(answer["p99_us"], 495);
        assert_eq!(answer["p99_9_us"], Value::Null);
        assert!(unpacked(b"x").is_err());
    }
}
