//! What verifications have found, and the keys that are to be repaired.

use super::column::{big, document, int};
use super::record::{Difference, SlotApart, SlotRow, VerifyProgress, VerifyRun, Written};
use super::state::Store;
use crate::error::Result;
use crate::types::{DbIndex, ShardId};
use rusqlite::{OptionalExtension, Row, params};
use serde_json::Value;
use std::collections::BTreeMap;

impl Store {
    /// Notes a verification that has come to its end, with the answer of `verify --json`.
    pub fn save_verify(
        &mut self,
        answer: &Value,
        started_ms: i64,
        ended_ms: i64,
        equal: bool,
    ) -> Result<()> {
        self.write("save a verification", |t| {
            t.execute(
                "INSERT INTO verify_run (started_ms, ended_ms, equal, answer) VALUES (?1, ?2, ?3, ?4)",
                params![started_ms, ended_ms, equal, answer.to_string()],
            )
            .map(drop)
        })
    }

    pub fn last_verify(&self) -> Result<Option<VerifyRun>> {
        let sql =
            "SELECT started_ms, ended_ms, equal, answer FROM verify_run ORDER BY id DESC LIMIT 1";
        let read = |row: &Row| {
            Ok(VerifyRun {
                started_ms: row.get(0)?,
                ended_ms: row.get(1)?,
                equal: row.get(2)?,
                answer: document(row, 3)?,
            })
        };
        let found = self.db.query_row(sql, [], read).optional();
        found.map_err(self.failed("read the verification"))
    }

    /// Saves the sums of slots; the rows of others are removed unless `keep`.
    pub fn save_slot_sums(&mut self, rows: &[SlotRow], now_ms: i64, keep: bool) -> Result<()> {
        self.write("save the slot sums", |t| {
            if !keep {
                t.execute("DELETE FROM slot_sum", [])?;
            }
            let mut insert = t.prepare_cached(
                "INSERT OR REPLACE INTO slot_sum (slot, source_keys, source_sum, target_keys, target_sum, state, verified_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            for r in rows {
                insert.execute(params![
                    r.slot,
                    int(r.source_keys),
                    int(r.source_sum),
                    int(r.target_keys),
                    int(r.target_sum),
                    r.state,
                    now_ms
                ])?;
            }
            Ok(())
        })
    }

    /// The keys of all slots with a row, at the source and at the target.
    pub fn slot_keys(&self) -> Result<(u64, u64)> {
        let sql =
            "SELECT coalesce(sum(source_keys), 0), coalesce(sum(target_keys), 0) FROM slot_sum";
        let rows = self.rows("count the keys", sql, [], |row| {
            Ok((big(row, 0)?, big(row, 1)?))
        })?;
        Ok(rows.first().copied().unwrap_or_default())
    }

    /// The slots that were equal, with the time at which their comparison began.
    pub fn compared_slots(&self) -> Result<BTreeMap<u16, i64>> {
        let sql = "SELECT slot, verified_at FROM slot_sum WHERE state = 'equal'";
        let rows = self.rows("read the slot sums", sql, [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
        Ok(rows.into_iter().collect())
    }

    /// How many slots are in each state.
    pub fn slot_states(&self) -> Result<BTreeMap<String, u64>> {
        let sql = "SELECT state, count(*) FROM slot_sum GROUP BY state";
        let rows = self.rows("count the slots", sql, [], |row| {
            Ok((row.get(0)?, big(row, 1)?))
        })?;
        Ok(rows.into_iter().collect())
    }

    /// The slots that are in any other state than `equal`.
    pub fn slots_apart(&self) -> Result<Vec<SlotApart>> {
        let sql = "SELECT slot, state, source_keys, target_keys FROM slot_sum WHERE state <> 'equal' ORDER BY slot";
        self.rows("read the slot sums", sql, [], |row| {
            Ok(SlotApart {
                slot: row.get(0)?,
                state: row.get(1)?,
                keys_source: big(row, 2)?,
                keys_target: big(row, 3)?,
            })
        })
    }

    /// Forgets the differences and the progress of the last verification: another one begins.
    pub fn clear_verify(&mut self) -> Result<()> {
        self.write("begin a verification", |t| {
            t.execute("DELETE FROM difference", [])?;
            t.execute("DELETE FROM verify_progress", []).map(drop)
        })
    }

    pub fn add_differences(&mut self, found: &[Difference]) -> Result<()> {
        self.write("save the differences", |t| {
            let mut insert = t.prepare_cached(
                "INSERT INTO difference (db, key, slot, reason, detail) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            for d in found {
                insert.execute(params![d.db.0, d.key, d.slot, d.reason, d.detail])?;
            }
            Ok(())
        })
    }

    /// How far an unfinished verification has come.
    pub fn verify_progress(&self) -> Result<Option<VerifyProgress>> {
        let sql = "SELECT about, at, sums, candidates FROM verify_progress";
        let rows = self.rows("read a verification's progress", sql, [], |row| {
            Ok(VerifyProgress {
                about: row.get(0)?,
                at: row.get(1)?,
                sums: row.get(2)?,
                candidates: row.get(3)?,
            })
        })?;
        Ok(rows.into_iter().next())
    }

    pub fn save_verify_progress(&mut self, p: &VerifyProgress) -> Result<()> {
        self.write("save a verification's progress", |t| {
            t.execute(
                "INSERT OR REPLACE INTO verify_progress (only, about, at, sums, candidates) VALUES (1, ?1, ?2, ?3, ?4)",
                params![p.about, p.at, p.sums, p.candidates],
            )
            .map(drop)
        })
    }

    /// A verification has come to its end.
    pub fn end_verify_progress(&mut self) -> Result<()> {
        self.write("end a verification", |t| {
            t.execute("DELETE FROM verify_progress", []).map(drop)
        })
    }

    /// When slots were written to, by source shard.
    pub fn written(&self) -> Result<Vec<Written>> {
        let sql = "SELECT shard, since_ms, last FROM written";
        self.rows("read what was written", sql, [], |row| {
            let last: Vec<u8> = row.get(2)?;
            Ok(Written {
                shard: ShardId(row.get(0)?),
                since_ms: row.get(1)?,
                last: (last.chunks_exact(4))
                    .map(|n| u32::from_le_bytes(n.try_into().unwrap_or_default()))
                    .collect(),
            })
        })
    }

    /// Asks the migration to write these keys (of the target's databases) again.
    pub fn ask_repairs(&mut self, keys: &[(DbIndex, Vec<u8>)]) -> Result<()> {
        self.write("ask for repairs", |t| {
            let mut insert =
                t.prepare_cached("INSERT OR IGNORE INTO repair (db, key) VALUES (?1, ?2)")?;
            (keys.iter()).try_for_each(|(db, key)| insert.execute(params![db.0, key]).map(drop))
        })
    }

    pub fn repairs(&self, most: u32) -> Result<Vec<(DbIndex, Vec<u8>)>> {
        let sql = "SELECT db, key FROM repair ORDER BY db, key LIMIT ?1";
        self.rows("read the repairs", sql, [most], |row| {
            Ok((DbIndex(row.get(0)?), row.get(1)?))
        })
    }

    pub fn repaired(&mut self, keys: &[(DbIndex, Vec<u8>)]) -> Result<()> {
        self.write("note the repairs", |t| {
            let mut delete = t.prepare_cached("DELETE FROM repair WHERE db = ?1 AND key = ?2")?;
            (keys.iter()).try_for_each(|(db, key)| delete.execute(params![db.0, key]).map(drop))
        })
    }

    /// The first differences of the last verification.
    pub fn differences(&self, most: u32) -> Result<Vec<Difference>> {
        let sql = "SELECT db, key, slot, reason, detail FROM difference ORDER BY id LIMIT ?1";
        self.rows("read the differences", sql, [most], difference)
    }

    /// The first differences of one reason.
    pub fn differences_of(&self, reason: &str, most: u32) -> Result<Vec<Difference>> {
        let sql = "SELECT db, key, slot, reason, detail FROM difference WHERE reason = ?1 ORDER BY id LIMIT ?2";
        self.rows(
            "read the differences",
            sql,
            params![reason, most],
            difference,
        )
    }
}

fn difference(row: &Row) -> rusqlite::Result<Difference> {
    Ok(Difference {
        db: DbIndex(row.get(0)?),
        key: row.get(1)?,
        slot: row.get(2)?,
        reason: row.get(3)?,
        detail: row.get(4)?,
    })
}
