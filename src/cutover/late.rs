//! What came too late: written to the side that was frozen or left, and not at the other one.

use crate::cutover::side::Closed;
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::control::orders::{Answer, LATE_KEYS};
use crate::store::{LATE, Store};
use crate::types::{DbIndex, byte_string, shown};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

/// Keys that a message names.
const NAMED: usize = 10;

/// What somebody has written to the old side although it was frozen is not at the new one.
pub fn late_writes(late: u64, keys: &[(DbIndex, Vec<u8>)]) -> Error {
    let named: Vec<String> = (keys.iter().take(NAMED))
        .map(|(db, key)| match db {
            &DbIndex::ZERO => shown(key),
            db => format!("{} in database {db}", shown(key)),
        })
        .collect();
    let named = match named.is_empty() {
        true => String::new(),
        false => format!(": {}", named.join(", ")),
    };
    Error::new(
        ErrorKind::Refused,
        format!("somebody has written {late} times although the writers were frozen{named}"),
    )
    .hint("find who it is, or freeze another way (cutover.freeze)")
}

/// What was written to the old side after its clients had left it, and is not at the new one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Late {
    /// Commands that wrote.
    pub writes: u64,
    /// The first keys that they wrote, each with its database of the source.
    pub keys: Vec<Value>,
    /// What may have been written without anybody knowing the keys.
    pub unknown: Vec<String>,
    /// Calls of commands that write, as the old side counted them when it was looked at last.
    pub calls: Option<u64>,
}

impl Late {
    pub fn load(home: &Path) -> Result<Late> {
        let saved = Store::open(home)?.json(LATE)?;
        Ok(saved
            .and_then(|v| serde_json::from_value(v).ok())
            .unwrap_or_default())
    }

    pub fn save(&self, home: &Path) -> Result<()> {
        let value = serde_json::to_value(self)
            .map_err(|e| Error::new(ErrorKind::Bug, "write down late writes").cause(e))?;
        Store::open(home)?.put_json(LATE, &value)
    }

    pub fn is_empty(&self) -> bool {
        self.writes == 0 && self.unknown.is_empty()
    }

    /// From what the migration that holds still has seen.
    pub fn take(&mut self, now: &Answer) {
        if now.late() <= self.writes {
            return;
        }
        self.writes = now.late();
        let key = |(db, name): &(DbIndex, Vec<u8>)| json!({"db": db.0, "key": byte_string(name)});
        self.keys = now.late_names().iter().map(key).take(LATE_KEYS).collect();
    }

    pub fn may_be(&mut self, why: String) {
        if !self.unknown.contains(&why) {
            self.unknown.push(why);
        }
    }

    /// Why nobody may call the cutover done; `None` when nothing came late.
    pub fn refusal(&self) -> Option<Error> {
        let what_to_do = "copy what matters of it to the new side (`keyferry status PLAN --json` lists the keys), then run the same command with --accept-late";
        let name = |key: &Value| {
            let db = key["db"].as_u64().and_then(|db| u32::try_from(db).ok());
            let name = key["key"].as_str().unwrap_or("(not text)");
            (DbIndex(db.unwrap_or(0)), name.as_bytes().to_vec())
        };
        let keys: Vec<_> = self.keys.iter().map(name).collect();
        let e = match (self.writes, self.unknown.first()) {
            (0, None) => return None,
            (0, Some(why)) => Error::new(
                ErrorKind::Refused,
                format!("something may have been written to the old side: {why}"),
            ),
            (n, _) => late_writes(n, &keys),
        };
        Some(e.hint(what_to_do))
    }

    pub fn json(&self, closed: Option<Closed>) -> Value {
        json!({
            "closed": closed, "late_writes": self.writes, "late_keys": self.keys,
            "may_have_been_written": self.unknown,
        })
    }
}
