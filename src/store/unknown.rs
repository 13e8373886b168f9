//! The commands of the stream that were not known, by name and source: how many, and where the first one stood.

use super::column::{big, int};
use super::state::Store;
use crate::error::Result;
use rusqlite::params;
use serde::Serialize;

/// A command of the stream that is in no table of keyferry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnknownCommand {
    pub name: String,
    /// The source master, or the file.
    pub source: String,
    /// Where the first one stood in the stream; of one in a transaction, where that began.
    pub first_offset: u64,
    /// How many were left out; those that a resume has met again count again.
    pub left_out: u64,
    /// How many had their keys read from the source instead.
    pub read_again: u64,
}

impl Store {
    pub fn add_unknown_commands(&mut self, seen: &[UnknownCommand]) -> Result<()> {
        if seen.is_empty() {
            return Ok(());
        }
        self.write("save the list of unknown commands", |t| {
            let mut insert = t.prepare_cached(
                "INSERT INTO unknown_command (name, source, first_offset, left_out, read_again) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (name, source) DO UPDATE SET left_out = left_out + excluded.left_out,
                 read_again = read_again + excluded.read_again, first_offset = min(first_offset, excluded.first_offset)",
            )?;
            for s in seen {
                insert.execute(params![
                    s.name,
                    s.source,
                    int(s.first_offset),
                    int(s.left_out),
                    int(s.read_again)
                ])?;
            }
            Ok(())
        })
    }

    pub fn unknown_commands(&self) -> Result<Vec<UnknownCommand>> {
        let sql = "SELECT name, source, first_offset, left_out, read_again FROM unknown_command ORDER BY name, source";
        self.rows("read the list of unknown commands", sql, [], |row| {
            Ok(UnknownCommand {
                name: row.get(0)?,
                source: row.get(1)?,
                first_offset: big(row, 2)?,
                left_out: big(row, 3)?,
                read_again: big(row, 4)?,
            })
        })
    }
}
