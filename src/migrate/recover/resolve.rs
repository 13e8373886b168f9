//! What the target could not do: for each unit, whether it is sent again, asked of another node, or healed.
//!
//! Pure: [`judge`] looks at units and says what is to be done; the loop does it, and only queues keys for healing. In the
//! snapshot phase, what is uncertain means to read the snapshot again from its mark, as whole values may be written twice.

use crate::command::{self, Access, Command, Kind};
use crate::error::{Error, ErrorKind};
use crate::migrate::heal::queue::Key;
use crate::net;
use crate::plan::Databases;
use crate::resp;
use crate::target::restoring;
use crate::target::trouble::NOTHING_THERE;
use crate::target::{Fate, Unit};
use crate::types::{DbIndex, db_key, shown};
use std::collections::HashSet;
use std::ops::Range;

/// What is known where trouble is judged.
pub(crate) struct Circumstances<'a> {
    /// The snapshot is being loaded.
    pub loading: bool,
    /// Mode "scan": keys are read and written again, as they are then.
    pub scan: bool,
    /// The source can be asked for the state of keys.
    pub asks: bool,
    pub databases: &'a Databases,
    /// Whether a key may have an expiry.
    pub may_expire: &'a dyn Fn(&[u8]) -> bool,
    /// Whether a key waits for healing already.
    pub waits: &'a dyn Fn(DbIndex, &[u8]) -> bool,
}

/// What is to be done about a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// It is sent again, to the node of this key now, or without a key to every node.
    Resend(Box<Unit>, Option<Vec<u8>>),
    /// Its slot is on its way: the node that the answer names takes it.
    Redirect(Box<Unit>, String),
    /// What it writes is read from the source; databases are the first ones that lead to the unit's.
    Heal(Vec<Key>),
    /// A flush may have run on some nodes and not on others: the target's database, or all.
    CompareFlushed(Option<DbIndex>),
    /// The libraries of functions are to be compared.
    CompareFunctions,
    /// The target may not know such a command at all; it has answered this.
    Learn(Box<Unit>, String),
    /// The whole state of keys was refused for good; there is no other way to write them.
    StateRefused(Vec<Key>, String, String),
    /// The answer to a command without keys, which nothing can be done about.
    Note(String),
    /// A script that cannot be made good by reading its keys: the name and why.
    Script(String, String),
}

/// What is to be done about all of them, in order.
pub(crate) fn judge(units: Vec<Unit>, of: &Circumstances<'_>) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut healing: HashSet<Vec<u8>> = HashSet::new();
    let units: Vec<Unit> = match of.loading {
        true => units.into_iter().flat_map(apart).collect(),
        // A command of the source's stays one.
        false => units,
    };
    for unit in units {
        let touched = keys_of(&unit, of.databases);
        if of.scan {
            actions.push(Action::Heal(touched.into_iter().map(|(k, _)| k).collect()));
            continue;
        }
        let name = name_of(&unit);
        let passing = matches!(&unit.fate, Fate::Refused(text) if passes(text));
        let again = match &unit.fate {
            Fate::Unsent => true,
            Fate::Uncertain => touched.is_empty(),
            Fate::Refused(_) => passing,
        };
        if touched.is_empty() {
            actions.extend(without_keys(unit, &name, again, of));
            continue;
        }
        let asked = match &unit.fate {
            Fate::Refused(text) if text.starts_with("ASK ") => Some(text.clone()),
            _ => None,
        };
        let touches = (touched.iter())
            .any(|((db, k), _)| healing.contains(&db_key(*db, k)) || (of.waits)(*db, k));
        // What has expired over there meanwhile would be missing: such a key is read, not written to.
        let expired = !of.loading
            && of.asks
            && name != "RESTORE"
            && asked.is_none()
            && touched.iter().any(|((_, k), _)| (of.may_expire)(k));
        if again && !touches && !expired {
            let key = touched.into_iter().next().map(|((_, key), _)| key);
            actions.push(match asked {
                Some(text) => Action::Redirect(Box::new(unit), text),
                None => Action::Resend(Box::new(unit), key),
            });
            continue;
        }
        if command::lookup(name.as_bytes()).is_some_and(|spec| spec.kind == Kind::Eval) {
            let why = match &unit.fate {
                Fate::Refused(text) if text != NOTHING_THERE => net::said(text),
                _ => "keys that it needs may be missing at the target, or it may have run already"
                    .into(),
            };
            actions.push(Action::Script(name, why));
            return actions;
        }
        if let Fate::Refused(text) = &unit.fate
            && text != NOTHING_THERE
            && !passing
        {
            // A command may be one that the target does not know; a key's state can be written in no other way.
            actions.push(match unit.state {
                true => {
                    let keys = touched.iter().map(|(key, _)| key.clone()).collect();
                    Action::StateRefused(keys, name, text.clone())
                }
                false => Action::Learn(Box::new(unit.clone()), text.clone()),
            });
        }
        let written: Vec<Key> = (touched.into_iter())
            .filter(|(_, access)| *access == Access::Write)
            .map(|(key, _)| key)
            .collect();
        healing.extend(written.iter().map(|(db, key)| db_key(*db, key)));
        actions.push(Action::Heal(written));
    }
    actions
}

fn without_keys(unit: Unit, name: &str, again: bool, of: &Circumstances<'_>) -> Option<Action> {
    Some(match name {
        // Every node has got it, and some have gone on: it cannot just be sent again.
        "FLUSHALL" => Action::CompareFlushed(None),
        "FLUSHDB" => Action::CompareFlushed(Some(unit.db.index())),
        "FUNCTION" if of.asks => Action::CompareFunctions,
        _ if again => Action::Resend(Box::new(unit), None),
        _ => match unit.fate {
            Fate::Refused(text) => Action::Note(text),
            _ => return None,
        },
    })
}

/// The keys of a unit, in the source's databases: where several go to the unit's, the first of them.
pub(crate) fn keys_of(unit: &Unit, databases: &Databases) -> Vec<(Key, Access)> {
    let to = unit.db.index();
    let db = match databases.is_identity() {
        true => to,
        false => databases.sources_of(to).next().unwrap_or(to),
    };
    (command::keys_in(&unit.bytes).into_iter())
        .map(|(key, access)| ((db, key), access))
        .collect()
}

/// Whether it is worth waiting before trying again: not when the target has only named another node.
pub(crate) fn wants_wait(units: &[Unit]) -> bool {
    units.iter().any(|u| match &u.fate {
        Fate::Refused(text) => {
            !text.starts_with("MOVED") && !text.starts_with("ASK") && text != NOTHING_THERE
        }
        Fate::Uncertain | Fate::Unsent => true,
    })
}

/// Only keys that have expired at the target before their commands came, and what waited behind those.
pub(crate) fn only_expired(units: &[Unit]) -> bool {
    units.iter().any(has_expired)
        && (units.iter()).all(|u| has_expired(u) || u.fate == Fate::Unsent)
}

/// Whether a unit met a key that was not there, as a guard in front of it has found out.
pub(crate) fn has_expired(unit: &Unit) -> bool {
    matches!(&unit.fate, Fate::Refused(text) if text == NOTHING_THERE)
}

/// The first answer that refuses something.
pub(crate) fn first_refusal(units: &[Unit]) -> Option<&str> {
    units.iter().find_map(|u| match &u.fate {
        Fate::Refused(text) => Some(text.as_str()),
        _ => None,
    })
}

/// The first command of a unit, for its form to be learned.
pub(crate) fn first_command<T>(unit: &Unit, look: impl FnOnce(&Command<'_>) -> T) -> Option<T> {
    let mut args = Vec::new();
    let len = resp::parse_command(&unit.bytes, &mut args).ok()??;
    let raw = unit.bytes.get(..len).unwrap_or_default();
    Some(look(&Command { raw, args: &args }))
}

/// Which commands of a unit expect their key to be there; inside a transaction they answer QUEUED.
pub(crate) fn expecting(unit: &Unit) -> Vec<u32> {
    let mut args = Vec::new();
    if unit.commands != 1 || !matches!(resp::parse_command(&unit.bytes, &mut args), Ok(Some(_))) {
        return Vec::new();
    }
    let name = args.first().and_then(|r| unit.bytes.get(r.clone()));
    if name.is_some_and(command::expiry::expects_key) {
        vec![0]
    } else {
        Vec::new()
    }
}

/// Errors that pass: the same command or transaction may be sent again.
fn passes(text: &str) -> bool {
    net::passes(text) || text.starts_with("EXECABORT")
}

/// An MSET of ours that the target will not run at all; when it is full, nothing else would run either.
pub(crate) fn refused_pairs(unit: &Unit) -> bool {
    let Fate::Refused(text) = &unit.fate else {
        return false;
    };
    name_of(unit) == "MSET" && !text.starts_with("OOM") && !passes(text)
}

/// Splits an MSET whose slot is migrating into SETs: its new node takes keys that it lacks one by one only.
fn apart(unit: Unit) -> Vec<Unit> {
    let mut args = Vec::new();
    let on_its_way = matches!(&unit.fate, Fate::Refused(text) if net::is_on_its_way(text));
    if !on_its_way
        || name_of(&unit) != "MSET"
        || resp::parse_command(&unit.bytes, &mut args).is_err()
    {
        return vec![unit];
    }
    let arg = |range: &Range<usize>| unit.bytes.get(range.clone()).unwrap_or_default();
    (args.get(1..).unwrap_or_default().chunks_exact(2))
        .filter_map(|pair| {
            let [key, value] = pair else { return None };
            let mut bytes = Vec::new();
            resp::command(&mut bytes, &[b"SET", arg(key), arg(value)]);
            let commands = 1;
            Some(Unit {
                bytes,
                commands,
                ..unit.clone()
            })
        })
        .collect()
}

/// A run writes values by commands from its first one on, or not at all.
const RESTORE_REFUSED: &str = "the target let RESTORE through when this run began: give the plan's user the right back, or run the same command again, which then finds it refused and writes values by commands";

/// Errors that trying again does not mend.
pub(crate) fn fatal(units: &[Unit], loading: bool) -> Option<Error> {
    for unit in units {
        let Fate::Refused(text) = &unit.fate else {
            continue;
        };
        let command = name_of(unit);
        if text.starts_with("OOM") {
            return Some(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "the target is full: it answered {command} with: {}",
                    net::said(text)
                ),
            ));
        }
        if text.starts_with("NOPERM") || text.starts_with("NOAUTH") {
            let refusal = net::refusal(&command, text).context("write to the target");
            return Some(match command.as_str() {
                "RESTORE" => refusal.hint(RESTORE_REFUSED),
                _ => refusal,
            });
        }
        // A value written whole, or a heal: there is no better way left to write it.
        let last_resort = loading || (unit.state && command == "RESTORE");
        if last_resort && !passes(text) && text != NOTHING_THERE && command != "FUNCTION" {
            let key = key_of(unit);
            let refusal = net::refusal(&command, text)
                .context(format!("write the key {} to the target", shown(&key)));
            return Some(match command == "RESTORE" && restoring::is_refused(text) {
                true => refusal.hint(RESTORE_REFUSED),
                false => refusal,
            });
        }
    }
    None
}

pub(crate) fn name_of(unit: &Unit) -> String {
    let mut args = Vec::new();
    let _ = resp::parse_command(&unit.bytes, &mut args);
    args.first()
        .and_then(|r| unit.bytes.get(r.clone()))
        .map(|n| String::from_utf8_lossy(n).to_uppercase())
        .unwrap_or_default()
}

fn key_of(unit: &Unit) -> Vec<u8> {
    let mut args = Vec::new();
    let _ = resp::parse_command(&unit.bytes, &mut args);
    args.get(1)
        .and_then(|r| unit.bytes.get(r.clone()))
        .unwrap_or_default()
        .to_vec()
}

#[cfg(test)]
mod tests;
