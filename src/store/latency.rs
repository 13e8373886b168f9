//! What was measured: one row for each block of one side, with its histograms.

use super::column::{big, document, int};
use super::state::Store;
use crate::error::Result;
use rusqlite::{Row, params};
use serde_json::Value;

/// A block of one side. Histograms are in HdrHistogram's own form (V2, compressed), times in µs.
#[derive(Debug, Clone, PartialEq)]
pub struct LatencyBlock {
    /// What is measured and how; blocks of another measurement are forgotten.
    pub about: String,
    pub workload: String,
    /// Multiple of the observed rate.
    pub rate: f64,
    pub block: u32,
    /// `source` or `target`.
    pub side: String,
    pub started_ms: i64,
    pub errors: u64,
    pub shed: u64,
    pub planned: u64,
    pub response: Vec<u8>,
    pub service: Vec<u8>,
    pub detail: Value,
}

impl Store {
    pub fn save_latency_block(&mut self, b: &LatencyBlock) -> Result<()> {
        self.write("save a block of the latency measurement", |t| {
            t.execute("DELETE FROM latency_block WHERE about <> ?1", [&b.about])?;
            t.execute(
                "INSERT OR REPLACE INTO latency_block (about, workload, rate, block, side, started_ms, errors, shed,
                 planned, response, service, detail) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
                params![
                    b.about,
                    b.workload,
                    b.rate,
                    b.block,
                    b.side,
                    b.started_ms,
                    int(b.errors),
                    int(b.shed),
                    int(b.planned),
                    b.response,
                    b.service,
                    b.detail.to_string()
                ],
            )
            .map(drop)
        })
    }

    /// All blocks, in the order in which they were measured.
    pub fn latency_blocks(&self) -> Result<Vec<LatencyBlock>> {
        let sql = "SELECT about, workload, rate, block, side, started_ms, errors, shed, planned, response, service, detail
            FROM latency_block ORDER BY started_ms";
        self.rows("read the latency measurement", sql, [], |row: &Row| {
            Ok(LatencyBlock {
                about: row.get(0)?,
                workload: row.get(1)?,
                rate: row.get(2)?,
                block: row.get(3)?,
                side: row.get(4)?,
                started_ms: row.get(5)?,
                errors: big(row, 6)?,
                shed: big(row, 7)?,
                planned: big(row, 8)?,
                response: row.get(9)?,
                service: row.get(10)?,
                detail: document(row, 11)?,
            })
        })
    }
}
