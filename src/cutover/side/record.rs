//! What has been done to a side that does not end by itself: written down before it is done.

use crate::cutover::side::rights::Rules;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::FreezeWay;
use crate::store::{Store, frozen};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// How a side is kept closed when its clients have left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Closed {
    /// The users have lost the right to write.
    ByRights,
    /// Writes wait until somebody ends the pause, or the server ends.
    ByPause,
    /// Neither is allowed: what is written there is watched.
    Watched,
    /// The plan wants it open.
    Open,
}

/// What is to be undone in the end.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// `hook`: the thaw hook has to run.
    pub way: Option<FreezeWay>,
    /// By server: the users with the rules that they had.
    pub rules: Rules,
    /// Writes are paused without an end.
    pub paused: bool,
    /// Since the clients have left.
    pub closed: Option<Closed>,
}

impl Record {
    pub fn load(home: &Path, side: &str) -> Result<Record> {
        match Store::open(home)?.json(&frozen(side))? {
            None | Some(Value::Null) => Ok(Record::default()),
            Some(saved) => serde_json::from_value(saved).map_err(|e| {
                Error::new(
                    ErrorKind::State,
                    format!(
                        "how the {side} was frozen cannot be read in {}",
                        home.display()
                    ),
                )
                .cause(e)
                .hint("look at the users' rights there (ACL LIST), and give back what they lack")
            }),
        }
    }

    pub fn save(&self, home: &Path, side: &str) -> Result<()> {
        let value = match *self == Record::default() {
            true => Value::Null,
            false => serde_json::to_value(self)
                .map_err(|e| Error::new(ErrorKind::Bug, "write down a freeze").cause(e))?,
        };
        Store::open(home)?.put_json(&frozen(side), &value)
    }
}
