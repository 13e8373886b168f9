//! The forms of a plan: what it says, and what then has to be at the target.

use super::maker::names;
use crate::support::compare::Rules;
use crate::support::keyferry::Plan;
use serde_json::json;
use std::sync::Arc;

/// Every form; some want databases on both sides.
pub const FORMS: [&str; 8] = [
    "plain",
    "skip",
    "replace",
    "filter",
    "types",
    "rename",
    "databases",
    "small",
];

const RENAMED: [(&str, &str); 2] = [("{a}", "{else}a"), ("{b}s", "{b}moved:")];

/// Writes the forms into the plan, and returns what is to be compared.
pub fn set(plan: &mut Plan, forms: &str, databases: &[(u32, u32)]) -> Rules {
    let mut rules = Rules {
        databases: databases.to_vec(),
        ..Rules::default()
    };
    let mut keeps_own = false;
    for form in forms.split('+') {
        match form {
            "plain" => {}
            "skip" => {
                plan.set("/on_existing", json!("skip"));
                keeps_own = true;
            }
            "replace" => plan.set("/on_existing", json!("replace")),
            "filter" => {
                let filter =
                    json!({ "include": ["{a}*", "{b}*", "*z?"], "exclude": ["*l1", "{b}s*"] });
                plan.set("/filter", filter);
                rules.chosen = Some(Arc::new(|key, _| {
                    let named = key.starts_with(b"{a}") || key.starts_with(b"{b}");
                    let zset = key.len() > 1 && key[key.len() - 2] == b'z';
                    (named || zset) && !key.ends_with(b"l1") && !key.starts_with(b"{b}s")
                }));
            }
            "types" => {
                plan.set("/filter", json!({ "types": ["string", "hash", "stream"] }));
                rules.chosen = Some(Arc::new(|_, kind| {
                    ["string", "hash", "stream"].contains(&kind)
                }));
            }
            "rename" => {
                let map: serde_json::Map<_, _> = (RENAMED.iter())
                    .map(|(from, to)| ((*from).to_owned(), json!(to)))
                    .collect();
                plan.set("/rename", map.into());
                rules.renamed = RENAMED.to_vec();
            }
            "databases" => {
                plan.set("/databases", json!({ "map": { "0": 3, "1": 0, "2": 5 } }));
                rules.databases = vec![(0, 3), (1, 0), (2, 5)];
            }
            "small" => plan.set("/limits", json!({ "memory_bytes": 32 << 20 })),
            other => panic!("no form of a plan is called {other:?}; they are {FORMS:?}"),
        }
    }
    if keeps_own {
        let of = |db: u32| own().into_iter().map(move |name| (db, name.into_bytes()));
        rules.own = rules.databases.iter().flat_map(|(_, db)| of(*db)).collect();
    }
    rules
}

/// Whether the target holds keys of its own before the migration.
pub fn has_own(forms: &str) -> bool {
    forms.split('+').any(|f| f == "skip" || f == "replace")
}

/// The names that are the target's own: some that the source uses too, one that it does not.
pub fn own() -> Vec<String> {
    let mut all: Vec<String> = names().into_iter().step_by(7).collect();
    all.push("{a}only-here".to_owned());
    all
}
