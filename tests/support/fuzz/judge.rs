//! What the fuzz calls a difference: between source and target, not between the source and its own replicas.

use super::maker::names;
use super::world::{World, own_value};
use super::{Difference, form};
use crate::support::compare::{Comparison, Rules, compare};
use crate::support::side::Side;
use crate::support::wire::{Command, Shown};
use std::collections::BTreeSet;

impl World {
    /// Keys that differ from the source at the target and not at its own replicas, with what differs.
    pub(super) fn differences(
        &mut self,
        rounds: usize,
    ) -> Result<Vec<(Vec<u8>, String)>, Difference> {
        let broken = |e: std::io::Error| going_wrong(format!("the comparison broke: {e}"));
        let mut rules = Rules {
            rounds,
            ..self.rules.clone()
        };
        let mut source = self.source.side();
        let mut target = self.target.side();
        if rules.own.is_empty() && form::has_own(&self.asked.plan) {
            rules.own = self.left_alone(&mut source).map_err(broken)?;
        }
        let found = compare(&mut source, &mut target, &rules).map_err(broken)?;
        let mut all = listed(&found);
        if form::has_own(&self.asked.plan) {
            // With "skip" none of them may be touched.
            let still = self.own_still();
            let lost = self.rules.own.difference(&still).cloned();
            let text = |db: u32| format!("the target's own key was touched (database {db})");
            all.extend(lost.map(|(db, key)| (key, text(db))).collect::<Vec<_>>());
        }
        if all.is_empty() {
            return Ok(all);
        }
        let mut native = match &self.native {
            Some(native) => Side::open(&native.url(), false).map_err(broken)?,
            None => Side::of_replicas(&self.source.url()).map_err(broken)?,
        };
        let rules = Rules {
            databases: self.able.databases.iter().map(|db| (*db, *db)).collect(),
            rounds: 2,
            ..Rules::default()
        };
        let theirs = compare(&mut source, &mut native, &rules).map_err(broken)?;
        let theirs: BTreeSet<Vec<u8>> = listed(&theirs).into_iter().map(|(key, _)| key).collect();
        for (key, text) in &mut all {
            // What is there in each database says whose it is.
            for (_, db) in &self.rules.databases {
                if !target.is_cluster() {
                    target.everywhere(&format!("SELECT {db}")).map_err(broken)?;
                }
                let value = target
                    .run(&Command::new("GET").key(&*key))
                    .map_err(broken)?;
                let value = value.text().chars().take(20).collect::<String>();
                text.push_str(&format!(", at the target in {db}: {value:?}"));
            }
        }
        let before = all.len();
        all.retain(|(key, _)| !theirs.contains(key));
        self.excused += (before - all.len()) as u64;
        Ok(all)
    }

    /// The target's own keys that are what they were before the migration, by database.
    fn own_still(&self) -> BTreeSet<(u32, Vec<u8>)> {
        let mut side = self.target.side();
        let mut still = BTreeSet::new();
        for (_, db) in &self.rules.databases {
            if !side.is_cluster() {
                side.everywhere(&format!("SELECT {db}"))
                    .expect("a database");
            }
            for name in form::own() {
                let value = side
                    .run(&Command::new("GET").key(&name))
                    .expect("an answer");
                if value.text() == own_value(&name) {
                    still.insert((*db, name.into_bytes()));
                }
            }
        }
        still
    }

    /// The target's own keys that the source does not hold, and that are what they were: nothing to compare.
    fn left_alone(&self, source: &mut Side) -> std::io::Result<BTreeSet<(u32, Vec<u8>)>> {
        let mut own = self.own_still();
        for (db, target_db) in &self.rules.databases {
            if !source.is_cluster() {
                source.everywhere(&format!("SELECT {db}"))?;
            }
            for name in names() {
                if source.run(&Command::new("EXISTS").key(&name))?.int() == Some(1) {
                    own.remove(&(*target_db, name.into_bytes()));
                }
            }
        }
        Ok(own)
    }
}

/// What went wrong, with the names in quotation marks as the keys.
pub(super) fn going_wrong(text: String) -> Difference {
    let quoted = text
        .split('"')
        .filter(|t| t.starts_with('{') && t.len() == 5);
    Difference {
        keys: quoted.map(|t| t.as_bytes().to_vec()).collect(),
        text,
    }
}

fn listed(found: &Comparison) -> Vec<(Vec<u8>, String)> {
    let kinds = [
        ("missing", &found.missing),
        ("extra", &found.extra),
        ("different", &found.different),
    ];
    let of_kind = |(kind, findings): (&'static str, &'_ crate::support::compare::Findings)| {
        let found = findings.kept.iter();
        found
            .map(|(key, text)| (key.clone(), format!("{kind} {text}")))
            .collect::<Vec<_>>()
    };
    kinds.into_iter().flat_map(of_kind).collect()
}

pub(super) fn difference(found: &[(Vec<u8>, String)]) -> Difference {
    let lines: Vec<String> = (found.iter().take(10))
        .map(|(key, text)| format!("{} {text}", Shown(key)))
        .collect();
    Difference {
        keys: found.iter().map(|(key, _)| key.clone()).collect(),
        text: format!("{} keys differ: {}", found.len(), lines.join("; ")),
    }
}
