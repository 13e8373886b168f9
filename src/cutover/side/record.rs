//! What has been done to a side that does not end by itself: written down before it is done.

use crate::error::{Error, ErrorKind, Result};
use crate::plan::FreezeWay;
use crate::store::{Store, frozen};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// A user and the rules that give back what it had.
pub type User = (String, Vec<String>);
/// By server: its users.
pub type Rules = Vec<(String, Vec<User>)>;

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

/// What is to be undone in the end, and what was found when it was done.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// `hook`: the thaw hook has to run.
    pub way: Option<FreezeWay>,
    /// By server: the users with the rules that they had.
    pub rules: Rules,
    /// Servers where writes are paused without an end.
    pub paused: Vec<String>,
    /// Since the clients have left.
    pub closed: Option<Closed>,
    /// The masters of then, each with what it calls itself since it was started.
    pub masters: BTreeMap<String, Option<String>>,
    /// By server and user: the rules that a user has since its right was taken.
    pub taken: Taken,
}

/// By server and user: all rules of a user, as one text.
pub type Taken = BTreeMap<String, BTreeMap<String, String>>;

impl Record {
    /// Adds users with the rules that they have now. What somebody had before it was taken first stays what it had.
    pub fn remember(&mut self, rules: impl Iterator<Item = (String, Vec<User>)>) {
        for (address, users) in rules {
            let known = match self.rules.iter_mut().find(|(known, _)| *known == address) {
                Some((_, known)) => known,
                None => {
                    self.rules.push((address, users));
                    continue;
                }
            };
            for user in users {
                if known.iter().all(|(name, _)| *name != user.0) {
                    known.push(user);
                }
            }
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_had_first_is_kept() {
        let users = |users: &[(&str, &str)]| {
            let user = |(name, rule): &(&str, &str)| (name.to_string(), vec![rule.to_string()]);
            users.iter().map(user).collect::<Vec<_>>()
        };
        let mut record = Record::default();
        record.remember([("a".into(), users(&[("app", "+@all")]))].into_iter());
        let again = users(&[("app", "-@write"), ("new", "+set")]);
        record.remember([("a".into(), again), ("b".into(), users(&[("x", "+get")]))].into_iter());
        assert_eq!(
            record.rules,
            [
                ("a".into(), users(&[("app", "+@all"), ("new", "+set")])),
                ("b".into(), users(&[("x", "+get")])),
            ]
        );
    }

    #[test]
    fn the_record_of_an_older_version_is_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let old = serde_json::json!({"way": "acl", "rules": [["h:1", [["app", ["+@all"]]]]]});
        let mut store = Store::open(dir.path()).expect("it opens");
        store
            .put_json(&frozen("source"), &old)
            .expect("it is written");
        let record = Record::load(dir.path(), "source").expect("it is read");
        assert_eq!(record.rules[0].1[0].0, "app");
        assert_eq!(record.closed, None);
    }
}
