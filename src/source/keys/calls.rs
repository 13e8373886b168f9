//! What a master says of the commands that it has run, looked at twice: whether anything may have changed untold.

use super::unnotified::{Effect, Version, effect};
use crate::resp::info;
use std::collections::{BTreeMap, BTreeSet};

/// What a master says at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    run_id: Option<String>,
    version: Version,
    replica: bool,
    /// The epoch of its cluster, which rises with every slot that moves and every failover.
    epoch: Option<String>,
    /// Calls by command; empty where the statistics are refused.
    calls: BTreeMap<String, u64>,
    evicted: Option<u64>,
    /// Changes since its last save, and when that was.
    changes: Option<(u64, u64)>,
}

/// What has been called between two looks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Called {
    /// The groups of streams may have changed.
    pub groups: bool,
    /// Libraries of functions may have changed.
    pub functions: bool,
    /// Classes of notifications that must be on, each with a command that needs it.
    pub classes: BTreeMap<char, String>,
    /// Calls of commands that may write.
    pub writes: u64,
}

impl Called {
    pub fn add(&mut self, other: Called) {
        self.groups |= other.groups;
        self.functions |= other.functions;
        self.writes = self.writes.saturating_add(other.writes);
        self.classes.extend(other.classes);
    }

    /// A command whose changes are told by a class that is not among these.
    pub fn beyond(&self, known: &BTreeSet<char>) -> Option<&str> {
        let unheard = |(class, _): &(&char, &String)| !known.contains(class);
        (self.classes.iter().find(unheard)).map(|(_, name)| name.as_str())
    }
}

impl Look {
    /// Out of the sections "server", "replication", "commandstats", "stats" and "persistence" of INFO, and CLUSTER INFO.
    pub fn parse(text: &str) -> Look {
        let number = |name: &str| info::number(text, name);
        let old = info::field(text, "redis_version").is_some_and(|v| v.starts_with("6.0"));
        Look {
            run_id: info::field(text, "run_id").map(str::to_owned),
            version: Version {
                before_6_2: old,
                valkey: info::field(text, "valkey_version").is_some(),
            },
            replica: info::is_replica(text),
            epoch: info::field(text, "cluster_current_epoch").map(str::to_owned),
            calls: info::commands(text)
                .filter_map(|(name, of)| Some((name, of.count("calls")?)))
                .collect(),
            evicted: number("evicted_keys"),
            changes: number("rdb_changes_since_last_save").zip(number("rdb_last_save_time")),
        }
    }

    /// What the server calls itself since it was started.
    pub fn run_id(&self) -> Option<&str> {
        self.run_id.as_deref()
    }

    /// Why nothing can be concluded of this server's statistics.
    pub fn is_blind(&self) -> Option<&'static str> {
        if self.replica {
            return Some("the source is a replica, whose master may be ahead of it");
        }
        let dumb = self.calls.is_empty();
        dumb.then_some("the source does not tell its command statistics (INFO commandstats)")
    }

    /// Counts one call of CONFIG before `later` that is our own, where subcommands are not counted by themselves.
    pub fn expect_config(&mut self, later: &Look) {
        if later.calls.contains_key("config") {
            let calls = self.calls.entry("config".into()).or_default();
            *calls = calls.saturating_add(1);
        }
    }

    /// What was called between this look and a later one; an error says why nobody can tell, or what has changed keys
    /// without a word.
    pub fn until(&self, later: &Look) -> Result<Called, String> {
        if let Some(why) = later.is_blind() {
            return Err(why.into());
        }
        if (&self.run_id, self.replica, &self.epoch) != (&later.run_id, later.replica, &later.epoch)
        {
            return Err("a master of the source, or its slots, have changed".into());
        }
        let mut called = Called::default();
        for name in self.calls.keys() {
            if !later.calls.contains_key(name) {
                return Err("the source's command statistics were reset".into());
            }
        }
        for (name, now) in &later.calls {
            let before = self.calls.get(name).copied().unwrap_or(0);
            let Some(more) = now.checked_sub(before) else {
                return Err("the source's command statistics were reset".into());
            };
            if more == 0 {
                continue;
            }
            match effect(name, self.version) {
                Some(Effect::None) => continue,
                Some(Effect::Told(classes)) => {
                    let new = classes.chars().map(|class| (class, name.clone()));
                    called.classes.extend(new);
                }
                Some(Effect::Groups) => {
                    called.groups = true;
                    if name == "xgroup" {
                        // Redis 6 does not say which of its subcommands: one makes a group, which class t tells.
                        called.classes.insert('t', name.clone());
                    }
                }
                Some(Effect::Functions) => called.functions = true,
                Some(Effect::Untold) => {
                    return Err(format!(
                        "the source has run {}, which no notification tells of",
                        shown(name)
                    ));
                }
                None => {
                    return Err(format!(
                        "the source has run {}, of which keyferry does not know what it tells",
                        shown(name)
                    ));
                }
            }
            called.writes = called.writes.saturating_add(more);
        }
        if later.evicted > self.evicted {
            called.classes.insert('e', "eviction".into());
        }
        Ok(called)
    }

    /// How many commands may have written until a later look; `None` where that is not told.
    pub fn writes_until(&self, later: &Look) -> Option<u64> {
        if self.run_id != later.run_id {
            return None;
        }
        let still = self.changes.is_some() && self.changes == later.changes;
        if later.calls.is_empty() {
            let ((before, since), (now, saved)) = self.changes.zip(later.changes)?;
            let more = if since == saved {
                now.saturating_sub(before)
            } else {
                now.max(1)
            };
            return Some(more);
        }
        let mut writes = 0u64;
        for (name, now) in &later.calls {
            let more = now.checked_sub(self.calls.get(name).copied().unwrap_or(0))?;
            let counts = match effect(name, self.version) {
                Some(Effect::None) => false,
                // How it is configured is no write.
                _ if name.starts_with("config") => false,
                // The server counts every change of these, and has counted none.
                Some(Effect::Told(_)) => !still,
                _ => true,
            };
            writes = writes.saturating_add(if counts { more } else { 0 });
        }
        Some(writes)
    }
}

/// The classes of notifications that a configuration turns on; none where it names no channel.
pub fn classes_of(flags: &str) -> BTreeSet<char> {
    if !flags.contains('K') && !flags.contains('E') {
        return BTreeSet::new();
    }
    let all = flags.contains('A').then_some("g$lshzxet");
    flags
        .chars()
        .chain(all.unwrap_or_default().chars())
        .collect()
}

/// A command as it is typed.
fn shown(name: &str) -> String {
    name.replace('|', " ").to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(calls: &[(&str, u64)], changes: u64) -> Look {
        let mut text = format!(
            "redis_version:7.2.4\r\nrun_id:one\r\nrole:master\r\nevicted_keys:0\r\n\
             rdb_changes_since_last_save:{changes}\r\nrdb_last_save_time:7\r\n"
        );
        for (name, n) in calls {
            text += &format!("cmdstat_{name}:calls={n},usec=1\r\n");
        }
        Look::parse(&text)
    }

    const BEFORE: &[(&str, u64)] = &[("set", 5), ("info", 9), ("config|resetstat", 1)];

    fn until(later: &[(&str, u64)]) -> Result<Called, String> {
        look(BEFORE, 0).until(&look(later, 0))
    }

    #[test]
    fn what_is_told_needs_its_class() {
        let later = [
            ("set", 7),
            ("info", 20),
            ("config|resetstat", 1),
            ("hset", 1),
            ("xack", 2),
        ];
        let called = until(&later).expect("nothing untold");
        assert!(called.groups && !called.functions && called.writes == 5);
        let classes: String = called.classes.keys().collect();
        assert_eq!(classes, "$h");
        assert_eq!(called.beyond(&classes_of("KA")), None);
        assert_eq!(called.beyond(&classes_of("K$")), Some("hset"));
        assert_eq!(called.beyond(&classes_of("A")), Some("set"));
    }

    #[test]
    fn what_is_not_told_is_named() {
        for (name, said) in [
            ("flushall", "FLUSHALL"),
            ("config|set", "CONFIG SET"),
            ("json.set", "JSON.SET, of which"),
        ] {
            let mut later = BEFORE.to_vec();
            later.push((name, 1));
            let why = until(&later).expect_err("it changes keys");
            assert!(why.contains(said), "{why}");
        }
    }

    #[test]
    fn statistics_that_begin_anew_prove_nothing() {
        let reset = [("set", 5), ("info", 3), ("config|resetstat", 1)];
        assert!(until(&reset).expect_err("one is lower").contains("reset"));
        assert!(
            until(&[("set", 50), ("info", 30)])
                .expect_err("one is gone")
                .contains("reset")
        );
        assert!(
            until(&[])
                .expect_err("none are told")
                .contains("commandstats")
        );
        let other = Look::parse("run_id:two\r\nrole:master\r\ncmdstat_set:calls=9\r\n");
        assert!(
            look(BEFORE, 0)
                .until(&other)
                .expect_err("another")
                .contains("master")
        );
    }

    #[test]
    fn our_own_question_is_no_change_of_the_configuration() {
        let mut before = look(&[("config", 1), ("set", 1)], 0);
        let later = look(&[("config", 2), ("set", 1)], 0);
        assert!(before.until(&later).is_err());
        before.expect_config(&later);
        assert!(before.until(&later).is_ok());
    }

    #[test]
    fn writes_are_counted_where_nothing_is_told() {
        let before = look(BEFORE, 4);
        let mut calls = BEFORE.to_vec();
        calls.push(("del", 3));
        // They found nothing to delete.
        assert_eq!(before.writes_until(&look(&calls, 4)), Some(0));
        assert_eq!(before.writes_until(&look(&calls, 5)), Some(3));
        assert_eq!(before.writes_until(&look(&[], 5)), Some(1));
        calls.push(("json.set", 1));
        assert_eq!(before.writes_until(&look(&calls, 4)), Some(1));
        assert_eq!(before.writes_until(&Look::parse("run_id:one\r\n")), None);
    }
}
