//! What is kept of cutovers: each step of each attempt, and on which side the clients are.

use super::column::{document, unreadable};
use super::state::Store;
use crate::error::{Error, ErrorKind, Result};
use rusqlite::{Row, params};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The document that holds the [`Stage`].
const STAGE: &str = "cutover_stage";

/// The document that says how the writers of a side are frozen, and what they had before.
pub fn frozen(side: &str) -> String {
    format!("cutover_frozen_{side}")
}

/// The document with what was written to the old side after its clients had left it.
pub const LATE: &str = "cutover_late";

/// On which side the clients are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// At the source.
    #[default]
    Source,
    /// The switch hook runs; where it was cut off, nobody knows.
    Switching,
    /// At the target; the way back is kept open.
    Switched,
    /// At the target.
    Committed,
    /// At the source again, which has what was written to the target.
    RolledBack,
}

impl Stage {
    /// Nothing of the source may be applied to the target any more.
    pub fn is_fenced(self) -> bool {
        self != Stage::Source
    }
}

/// A step of a cutover or of a rollback.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CutoverStep {
    pub attempt: u32,
    /// `cutover`, `rehearsal` or `rollback`.
    pub direction: String,
    pub step: String,
    /// `running`, `done`, `refused` or `undone`.
    pub state: String,
    /// user@host.
    pub who: String,
    pub started_ms: i64,
    pub ended_ms: Option<i64>,
    /// Measured by a clock that does not jump.
    pub took_us: Option<i64>,
    pub detail: Value,
}

impl Store {
    pub fn stage(&self) -> Result<Stage> {
        let Some(saved) = self.json(STAGE)? else {
            return Ok(Stage::default());
        };
        // Taken for the first one, it would let the source overwrite what the clients have written.
        serde_json::from_value(saved.clone()).map_err(|e| {
            Error::new(
                ErrorKind::State,
                format!(
                    "{} says {saved} of where the clients are, which is not understood",
                    self.path().display()
                ),
            )
            .cause(e)
            .hint("use the keyferry that has written it, or a newer one")
        })
    }

    /// Something is frozen by means that do not end by themselves.
    pub fn is_frozen(&self) -> Result<bool> {
        let there = |side| Ok(self.json(&frozen(side))?.is_some_and(|v| !v.is_null()));
        Ok(there("source")? || there("target")?)
    }

    pub fn set_stage(&mut self, stage: Stage) -> Result<()> {
        self.put_json(STAGE, &serde_json::to_value(stage).unwrap_or_default())
    }

    /// Notes that a step begins; the number is for [`Store::end_step`].
    pub fn begin_step(&mut self, step: &CutoverStep) -> Result<i64> {
        self.write("save a step of the cutover", |t| {
            t.execute(
                "INSERT INTO cutover_step (attempt, direction, step, state, who, started_ms, ended_ms, took_us, detail)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                params![
                    step.attempt,
                    step.direction,
                    step.step,
                    step.state,
                    step.who,
                    step.started_ms,
                    step.ended_ms,
                    step.took_us,
                    step.detail.to_string()
                ],
            )?;
            Ok(t.last_insert_rowid())
        })
    }

    pub fn end_step(&mut self, id: i64, step: &CutoverStep) -> Result<()> {
        self.write("save a step of the cutover", |t| {
            t.execute(
                "UPDATE cutover_step SET state = ?2, ended_ms = ?3, took_us = ?4, detail = ?5 WHERE id = ?1",
                params![id, step.state, step.ended_ms, step.took_us, step.detail.to_string()],
            )
            .map(drop)
        })
    }

    /// All steps of all attempts, in order.
    pub fn cutover_steps(&self) -> Result<Vec<CutoverStep>> {
        let sql =
            "SELECT attempt, direction, step, state, who, started_ms, ended_ms, took_us, detail
            FROM cutover_step ORDER BY id";
        self.rows("read the steps of the cutover", sql, [], |row: &Row| {
            let attempt: i64 = row.get(0)?;
            Ok(CutoverStep {
                attempt: u32::try_from(attempt).map_err(|_| unreadable(0, "attempt"))?,
                direction: row.get(1)?,
                step: row.get(2)?,
                state: row.get(3)?,
                who: row.get(4)?,
                started_ms: row.get(5)?,
                ended_ms: row.get(6)?,
                took_us: row.get(7)?,
                detail: document(row, 8)?,
            })
        })
    }
}
