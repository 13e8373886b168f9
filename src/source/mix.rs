//! Which commands a server runs, and how often: INFO commandstats, looked at twice.

use crate::error::Result;
use crate::net::{self, Control, server};
use crate::plan::Endpoint;
use crate::resp::info;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Calls per second below which a server counts as idle.
pub const IDLE: f64 = 5.0;

/// The traffic of all masters together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Mix {
    /// Calls per second by command, in small letters; ours are among them.
    pub per_s: BTreeMap<String, f64>,
    /// Over how long it was looked at.
    pub seconds: f64,
    pub seen_ms: i64,
}

impl Mix {
    pub fn total(&self) -> f64 {
        self.per_s.values().sum()
    }
}

/// Looks for `window`; empty where the server does not tell.
pub async fn observe(endpoint: &Endpoint, window: Duration) -> Result<Mix> {
    let (layout, _) = server::layout(endpoint).await?;
    let mut conns = Vec::new();
    for master in &layout.masters {
        conns.push(net::control(endpoint, &master.address).await?);
    }
    let before = calls(&mut conns).await?;
    let began = Instant::now();
    tokio::time::sleep(window).await;
    let after = calls(&mut conns).await?;
    let seconds = began.elapsed().as_secs_f64();
    let rate = |(name, n): (&String, &u64)| {
        let n = n.saturating_sub(before.get(name).copied().unwrap_or(0));
        (n > 0).then(|| (name.clone(), n as f64 / seconds))
    };
    Ok(Mix {
        per_s: after.iter().filter_map(rate).collect(),
        seconds,
        seen_ms: crate::types::unix_ms(),
    })
}

/// Calls so far, as all masters count them.
async fn calls(conns: &mut [Control]) -> Result<BTreeMap<String, u64>> {
    let mut sum: BTreeMap<String, u64> = BTreeMap::new();
    for conn in conns {
        let reply = conn.ask(&[b"INFO", b"commandstats"]).await?;
        let text = reply.text().unwrap_or_default();
        for (name, of) in info::commands(&text) {
            if let Some(n) = of.count("calls") {
                let sum = sum.entry(name).or_default();
                *sum = sum.saturating_add(n);
            }
        }
    }
    Ok(sum)
}
