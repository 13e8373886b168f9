//! One side of a measurement: its connections, and the keys that are read there.

use crate::error::Result;
use crate::latency::lines::Lines;
use crate::latency::sample;
use crate::latency::workload::RealKeys;
use crate::plan::Endpoint;

/// One side while it is measured.
pub struct Side {
    /// `source`, `target`, or as the plan calls a further one.
    pub name: String,
    pub lines: Lines,
    pub real: RealKeys,
    /// The share of the keys to read that it holds; `None` when there are none to read.
    pub there: Option<f64>,
}

impl Side {
    /// In sentences.
    pub fn called(&self) -> String {
        match self.name.as_str() {
            name @ ("source" | "target") => format!("the {name}"),
            name => format!("{name:?}"),
        }
    }

    pub async fn open(
        name: &str,
        endpoint: &Endpoint,
        real: RealKeys,
        connections: u32,
    ) -> Result<Side> {
        let mut lines = Lines::open(endpoint, connections).await?;
        let there = sample::there(&mut lines, &real).await?;
        Ok(Side {
            name: name.to_owned(),
            lines,
            real,
            there,
        })
    }
}
