//! What has become of each search index, as it is saved: which of the target's are ours, and what each was made by.

use crate::digest::{Width, of_bytes};
use crate::error::Result;
use crate::migrate::context::Shared;
use crate::net::search::Found;
use crate::resp;
use crate::store::INDEXES;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What has become of the indexes, by their names: the document that a report shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub indexes: BTreeMap<String, Entry>,
    /// Names that the snapshot has told.
    #[serde(default)]
    pub aliases: BTreeSet<String>,
    #[serde(default)]
    pub dictionaries: BTreeSet<String>,
    /// The source does not tell its indexes, which was said.
    #[serde(default)]
    pub untold: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub state: State,
    /// What of it is not as at the source, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// As the target counted them last.
    #[serde(default)]
    pub documents: u64,
    #[serde(default)]
    pub built: bool,
    /// We have made it, whatever has become of it since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    ours: bool,
    /// The [`stamp`] of the command that it was made by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// By us.
    Created,
    /// The target had one that is made alike.
    Present,
    /// The target had another one of that name.
    Different,
    Refused,
    Skipped,
}

impl Entry {
    pub fn new(state: State, notes: Vec<String>) -> Entry {
        Entry {
            state,
            notes,
            documents: 0,
            built: false,
            ours: false,
            made: None,
        }
    }

    /// One that we make.
    pub fn created(made: Option<String>) -> Entry {
        Entry {
            ours: true,
            made,
            ..Entry::new(State::Created, Vec::new())
        }
    }

    /// The same, whose index is still ours where it was before.
    pub fn behind(self, known: Option<&Entry>) -> Entry {
        Entry {
            ours: known.is_some_and(Entry::is_ours),
            made: known.and_then(|e| e.made.clone()),
            ..self
        }
    }

    pub fn is_ours(&self) -> bool {
        self.ours || self.state == State::Created
    }

    pub fn is_made_by(&self, stamp: &str) -> bool {
        self.made.as_deref() == Some(stamp)
    }
}

/// What stands for the words of a command: not the words, which name what the user's data is made of.
pub(crate) fn stamp(words: &[Vec<u8>]) -> Result<String> {
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    let mut bytes = Vec::new();
    resp::command(&mut bytes, &words);
    Ok(format!("{:016x}", of_bytes(&bytes, Width::Bits64)?.value))
}

/// What a command of the stream does to the index that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Does {
    Create,
    Change,
    Drop,
    Other,
}

impl Does {
    pub fn of(command: &[u8]) -> Does {
        match command {
            b"FT.CREATE" | b"FT._CREATEIFNX" => Does::Create,
            b"FT.DROP" | b"FT.DROPINDEX" | b"FT._DROPIFX" | b"FT._DROPINDEXIFX" => Does::Drop,
            b"FT.ALTER" | b"FT._ALTERIFNX" | b"FT.SYNUPDATE" | b"FT.SYNADD"
            | b"FT.SYNFORCEUPDATE" => Does::Change,
            _ => Does::Other,
        }
    }
}

impl Record {
    pub fn of(&self, found: &Found) -> Option<&Entry> {
        self.indexes.get(&found.definition.shown())
    }

    /// Names of which the source has none, and whether the target's index is ours.
    pub fn gone(&self, is_there: impl Fn(&[u8]) -> bool) -> Vec<(String, bool)> {
        (self.indexes.iter())
            .filter(|(name, _)| !is_there(name.as_bytes()))
            .map(|(name, entry)| (name.clone(), entry.is_ours()))
            .collect()
    }

    /// Takes what was made of `before`, and leaves what has changed meanwhile.
    pub fn merge(&mut self, before: &Record, made: Record) {
        let gone =
            |name: &String| before.indexes.contains_key(name) && !made.indexes.contains_key(name);
        self.indexes.retain(|name, _| !gone(name));
        for (name, mut entry) in made.indexes {
            match self.indexes.get(&name) {
                // The stream has dropped it.
                None if before.indexes.contains_key(&name) => continue,
                Some(now) if now.is_ours() && entry.state == State::Present => {
                    entry.state = State::Created;
                    entry = entry.behind(Some(now));
                }
                _ => {}
            }
            self.indexes.insert(name, entry);
        }
    }

    /// What does not change with every write.
    pub fn without_counts(&self) -> Record {
        let mut record = self.clone();
        for entry in record.indexes.values_mut() {
            (entry.documents, entry.built) = (0, false);
        }
        record
    }

    pub fn is_built(&self) -> bool {
        (self.indexes.values())
            .all(|e| e.built || !matches!(e.state, State::Created | State::Present))
    }
}

pub(crate) fn read(shared: &Shared) -> Result<Record> {
    let saved = shared.store(|s| s.json(INDEXES))?;
    // One that an earlier version has saved, and we cannot read, is made anew.
    Ok(saved
        .and_then(|v| serde_json::from_value(v).ok())
        .unwrap_or_default())
}

/// Changes the record as it is now: every shard, and the watch over the phases, keep it.
pub(crate) fn change(shared: &Shared, change: impl FnOnce(&mut Record)) -> Result<()> {
    shared.store(|store| {
        let saved = store.json(INDEXES)?;
        let before: Record = saved
            .and_then(|v| serde_json::from_value(v).ok())
            .unwrap_or_default();
        let mut record = before.clone();
        change(&mut record);
        match record == before {
            true => Ok(()),
            false => store.put_json(INDEXES, &serde_json::to_value(&record).unwrap_or_default()),
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn record(entries: &[(&str, Entry)]) -> Record {
        let entries = entries.iter().map(|(n, e)| ((*n).to_owned(), e.clone()));
        Record {
            indexes: entries.collect(),
            ..Record::default()
        }
    }

    #[test]
    fn what_is_ours_stays_ours_and_what_is_dropped_stays_dropped() {
        let (ours, present) = (
            Entry::created(Some("1".into())),
            Entry::new(State::Present, Vec::new()),
        );
        let before = record(&[("dropped", ours.clone()), ("gone", ours.clone())]);
        let mut now = record(&[("made", ours.clone()), ("gone", ours.clone())]);
        let found = [
            ("dropped", ours.clone()),
            ("made", present.clone()),
            ("new", present.clone()),
        ];
        now.merge(&before, record(&found));
        assert_eq!(now, record(&[("made", ours.clone()), ("new", present)]));
        // Left out by the plan, and brought again: it is not the target's own.
        let skipped = Entry::new(State::Skipped, Vec::new()).behind(Some(&ours));
        assert!(skipped.is_ours() && skipped.is_made_by("1") && !skipped.is_made_by("2"));
        let saved = serde_json::to_value(&skipped).unwrap();
        assert_eq!(serde_json::from_value::<Entry>(saved).unwrap(), skipped);
    }

    #[test]
    fn a_stamp_tells_commands_apart() {
        let words = |line: &str| -> Vec<Vec<u8>> {
            line.split(' ').map(|w| w.as_bytes().to_vec()).collect()
        };
        let of = |line: &str| stamp(&words(line)).unwrap();
        assert_eq!(of("a b"), of("a b"));
        assert_ne!(of("a b"), of("ab"));
        assert_ne!(of("a b"), of("a c"));
    }
}
