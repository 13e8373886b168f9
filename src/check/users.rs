//! The ACL users of a server: who may log in, and whether two servers give a user the same rights.
//!
//! Invariant: no password and no hash of one leaves this file, except as a checksum that is compared in memory.

use crate::resp::Reply;
use crate::types::{DbIndex, key_hash};
use std::collections::{BTreeMap, BTreeSet};

/// What one user may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    on: bool,
    nopass: bool,
    /// Checksums of the hashes of its passwords.
    passwords: BTreeSet<u64>,
    /// `+…` and `-…`, in their order.
    commands: Vec<String>,
    /// Patterns of keys.
    keys: BTreeSet<String>,
    /// Patterns of channels; `None` where the server knows no rights on channels.
    channels: Option<BTreeSet<String>>,
    /// Further sets of rights, each in its brackets.
    selectors: BTreeSet<String>,
}

pub type Users = BTreeMap<String, User>;

/// What a target's users lack of those of a source; names only.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lacking {
    pub absent: Vec<String>,
    pub other_rules: Vec<String>,
    pub other_passwords: Vec<String>,
}

/// The users of a server, from the answer of ACL LIST; `None` where it does not let us ask.
pub fn told(list: &Reply) -> Option<Users> {
    let lines = list.array()?.iter().filter_map(|line| line.text());
    Some(lines.filter_map(|line| User::parse(&line)).collect())
}

/// Compares the users that may log in at the source; `own` are those that keyferry itself logs in as.
pub fn compare(source: &Users, target: &Users, own: &[&str]) -> Lacking {
    let mut lacking = Lacking::default();
    let asked = source
        .iter()
        .filter(|(name, user)| user.on && !own.contains(&name.as_str()));
    for (name, ours) in asked {
        match target.get(name) {
            None => lacking.absent.push(name.clone()),
            Some(theirs) => {
                if !ours.same_rules(theirs) {
                    lacking.other_rules.push(name.clone());
                } else if ours.passwords != theirs.passwords {
                    lacking.other_passwords.push(name.clone());
                }
            }
        }
    }
    lacking
}

impl User {
    /// A line of ACL LIST: `user NAME on #hash ~keys &channels +commands (selector)`.
    fn parse(line: &str) -> Option<(String, User)> {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("user") {
            return None;
        }
        let name = words.next()?.to_owned();
        let mut user = User::default();
        let mut selector: Option<Vec<&str>> = None;
        for word in words {
            if let Some(open) = &mut selector {
                open.push(word);
            } else if word.starts_with('(') {
                selector = Some(vec![word]);
            } else {
                user.take(word);
            }
            if word.ends_with(')')
                && let Some(whole) = selector.take()
            {
                user.selectors.insert(whole.join(" "));
            }
        }
        Some((name, user))
    }

    fn take(&mut self, word: &str) {
        match word {
            "on" => self.on = true,
            "nopass" => self.nopass = true,
            // What every user begins with.
            "-@all" if self.commands.is_empty() => {}
            "resetchannels" => drop(self.channels.get_or_insert_default()),
            _ => match word.chars().next() {
                Some('#') => drop(
                    self.passwords
                        .insert(key_hash(DbIndex::ZERO, word.as_bytes())),
                ),
                Some('+' | '-') => self.commands.push(word.to_ascii_lowercase()),
                Some('~' | '%') => drop(self.keys.insert(word.to_owned())),
                Some('&') => drop(
                    self.channels
                        .get_or_insert_default()
                        .insert(word.to_owned()),
                ),
                _ => {}
            },
        }
    }

    /// Whether both may do the same, as far as both servers know such rights.
    fn same_rules(&self, other: &User) -> bool {
        let channels = match (&self.channels, &other.channels) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => true,
        };
        channels
            && (self.on, self.nopass) == (other.on, other.nopass)
            && self.commands == other.commands
            && self.keys == other.keys
            && self.selectors == other.selectors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(lines: &[&str]) -> Users {
        lines.iter().filter_map(|l| User::parse(l)).collect()
    }

    #[test]
    fn users_are_compared_over_versions() {
        let old = users(&[
            "user default on nopass ~* +@all",
            "user app on #aa ~app:* -@all +@read +set",
            "user gone off #bb ~* +@all",
            "user ferry on #cc ~* +@all",
            "user twice on #dd (~b:* +get) ~a:* -@all",
        ]);
        let new = users(&[
            "user default on nopass sanitize-payload ~* &* +@all",
            "user app on sanitize-payload #aa ~app:* resetchannels -@all +@read +set",
            "user twice on #dd ~a:* -@all (~b:* +get)",
        ]);
        assert_eq!(compare(&old, &new, &["ferry"]), Lacking::default());
        let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let other = users(&[
            "user default on #ee ~* &* +@all",
            "user app on #ff ~app:* resetchannels -@all +@read +set",
            "user twice on #dd ~a:* -@all (~b:* +set)",
        ]);
        assert_eq!(
            compare(&old, &other, &[]),
            Lacking {
                absent: names(&["ferry"]),
                other_rules: names(&["default", "twice"]),
                other_passwords: names(&["app"]),
            }
        );
        // The order of commands counts, and what stands in the hash is nowhere.
        let (a, b) = (
            users(&["user a on +@all -get"]),
            users(&["user a on -get +@all"]),
        );
        assert_eq!(compare(&a, &b, &[]).other_rules, ["a"]);
        assert!(!format!("{old:?}").contains("aa"));
    }
}
