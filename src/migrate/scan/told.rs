//! What a scan keeps in mind of what was told: keys that have changed, streams with groups, and since when.

use crate::rdb::value::ValueKind;
use crate::source::keys::events::{Name, PLACE};
use crate::source::keys::fact::Found;
use crate::source::keys::hearing::{Ground, Looks};
use crate::types::DbIndex;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::Instant;

/// How a round of changes has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caught {
    /// All that was written before it began is at the target.
    All,
    /// Something has to be read again.
    Some,
    /// Something may have changed untold.
    Unknown,
}

/// What was written since a moment from which on every change was told.
pub(super) struct Changes {
    pub(super) ground: Option<Ground>,
    /// Why there is none.
    pub(super) why: String,
    /// Keys that were written since they were compared last.
    pub(super) recent: Names,
    /// Streams that may have groups, whose state changes untold.
    pub(super) groups: Names,
    /// The groups may have changed since they were read.
    pub(super) groups_due: bool,
    /// What stood when all was drained.
    pub(super) drained: Option<Drained>,
    /// The last fence that was answered; 0 is none.
    pub(super) fenced: u64,
    /// How the last drain was done.
    pub(super) drain: Value,
    /// What was written down last of all this.
    pub(super) told: Option<Instant>,
    pub(super) last: Value,
}

/// What stood when all was drained.
pub(super) struct Drained {
    pub ground: Option<Ground>,
    pub looks: Option<Looks>,
}

/// A sweep that has begun.
pub(super) struct Begun {
    pub(super) ground: Option<Ground>,
    pub(super) looks: Option<Looks>,
    pub(super) why: String,
    pub(super) recent: Names,
}

/// Names of keys, as many as there is room for.
#[derive(Default)]
pub(super) struct Names {
    pub(super) set: HashSet<Name>,
    bytes: usize,
    most: usize,
    /// There were more.
    pub(super) over: bool,
}

impl Names {
    fn within(most: usize) -> Names {
        Names {
            most,
            ..Names::default()
        }
    }

    pub(super) fn put(&mut self, name: Name) {
        let bytes = name.1.len() + PLACE;
        if self.over || self.set.contains(&name) {
            return;
        }
        if self.bytes + bytes > self.most {
            *self = Names {
                over: true,
                ..Names::within(self.most)
            };
            return;
        }
        self.bytes += bytes;
        self.set.insert(name);
    }

    pub(super) fn drop_name(&mut self, name: &Name) {
        if self.set.remove(name) {
            self.bytes -= name.1.len() + PLACE;
        }
    }

    pub(super) fn take(&mut self) -> Names {
        let most = self.most;
        std::mem::replace(self, Names::within(most))
    }
}

impl Changes {
    /// `most`: bytes that names of keys may take, of each kind.
    pub fn within(most: usize) -> Changes {
        Changes {
            ground: None,
            why: "no sweep has ended yet".into(),
            recent: Names::within(most),
            groups: Names::within(most),
            groups_due: false,
            drained: None,
            fenced: 0,
            drain: Value::Null,
            told: None,
            last: json!({}),
        }
    }

    /// Whether every change was told since the last sweep, as far as is known.
    pub fn stand(&self) -> bool {
        self.ground.is_some()
    }

    /// Keys that are written because their change was told.
    pub fn note(&mut self, names: &[Name]) {
        names.iter().for_each(|name| self.recent.put(name.clone()));
    }

    /// A key as a sweep has found it at the source.
    pub fn meet(&mut self, db: DbIndex, key: &[u8], found: &Found) {
        if has_groups(found) {
            self.groups.put((db, key.to_vec()));
        }
    }

    /// A sweep has not come to its end: what it was to compare is still to be compared.
    pub fn abandon(&mut self, begun: Begun) {
        let mut recent = begun.recent;
        std::mem::swap(&mut recent, &mut self.recent);
        self.recent.over |= recent.over;
        recent
            .set
            .into_iter()
            .for_each(|name| self.recent.put(name));
    }
}

pub(super) fn has_groups(found: &Found) -> bool {
    let fact = found.fact().map(|fact| &fact.digest);
    fact.is_some_and(|d| d.kind == ValueKind::Stream && d.beside != 0)
}
