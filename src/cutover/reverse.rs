//! The plan of the way back: from the target to the old source.

use crate::error::{Error, ErrorKind, Result};
use crate::plan::{
    CommandNames, DatabasesPlan, ExpiryFilter, FilterPlan, HooksPlan, OnExisting, Plan,
};
use std::collections::BTreeMap;

/// What has to be done to take back what was written to the target; an error where that cannot be told.
pub fn plan(forth: &Plan) -> Result<Plan> {
    let source = &forth.source;
    let Some(url) = source.url.clone() else {
        return Err(no_way("a file cannot be written to"));
    };
    if forth.on_existing == OnExisting::Skip {
        return Err(no_way(
            "on_existing \"skip\" keeps keys of the target's own, which cannot be told from those that were moved",
        ));
    }
    if !forth.filter.types.is_empty() || forth.filter.expiry != ExpiryFilter::default() {
        return Err(no_way(
            "with a filter by type or expiry, keys that the target never had cannot be told from those it has lost",
        ));
    }
    if !forth.rename.is_empty() && forth.filter != FilterPlan::default() {
        return Err(no_way(
            "with `rename`, a filter cannot be said for the new names",
        ));
    }
    if let Some(name) = CommandNames::of_writes(&source.commands).first() {
        return Err(no_way(format!(
            "the source calls {name} by another name, by which keyferry cannot write"
        )));
    }
    let mut back = forth.clone();
    back.source = forth.target.as_source();
    back.target = source.as_target(url);
    back.databases = databases(&forth.databases)?;
    back.rename = (forth.rename.iter())
        .map(|(from, to)| (to.clone(), from.clone()))
        .collect();
    // The old side holds what it held at the switch: it is made equal.
    back.on_existing = OnExisting::Reconcile;
    back.cutover.hooks = HooksPlan {
        switch: forth.cutover.hooks.switch_back.clone(),
        switch_back: forth.cutover.hooks.switch.clone(),
        ..forth.cutover.hooks.clone()
    };
    Ok(back)
}

fn databases(forth: &DatabasesPlan) -> Result<DatabasesPlan> {
    let moved = forth
        .map
        .iter()
        .filter_map(|(from, to)| Some((from.parse().ok()?, *to)));
    let map: BTreeMap<u32, u32> = moved.filter(|(from, to)| from != to).collect();
    if map.is_empty() {
        return Ok(forth.clone());
    }
    let Some(include) = &forth.include else {
        return Err(no_way(
            "databases.map without databases.include merges databases, which cannot be parted again",
        ));
    };
    let mut back: BTreeMap<u32, u32> = BTreeMap::new();
    for from in include {
        let to = map.get(from).copied().unwrap_or(*from);
        if let Some(other) = back.insert(to, *from) {
            return Err(no_way(format!(
                "databases {other} and {from} are merged, and cannot be parted again"
            )));
        }
    }
    Ok(DatabasesPlan {
        include: Some(back.keys().copied().collect()),
        map: back
            .iter()
            .map(|(from, to)| (from.to_string(), *to))
            .collect(),
    })
}

fn no_way(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Plan, format!("there is no way back: {why}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::plan::validate;
    use serde_json::{Value, json};

    fn forth(more: &[(&str, Value)]) -> Plan {
        let mut plan = json!({
            "name": "p",
            "source": {"mode": "scan", "url": "redis://old:1", "password": "a", "username": "u"},
            "target": {"url": "rediss://new:2", "password": {"env": "NEW"}},
            "cutover": {"hooks": {"switch": ["there"], "switch_back": ["back"]}},
        });
        for (key, value) in more {
            plan[*key] = value.clone();
        }
        Plan::parse(&plan.to_string()).unwrap()
    }

    #[test]
    fn the_way_back_exchanges_the_sides() {
        let back = plan(&forth(&[
            ("rename", json!({"a:": "b:"})),
            ("databases", json!({"include": [1, 2], "map": {"1": 3}})),
        ]))
        .unwrap();
        let job = validate(&back).unwrap();
        assert_eq!(job.source.to_string(), "rediss://new:2");
        assert_eq!(job.target.redacted_url(), "redis://u@old:1");
        assert_eq!(back.rename.get("b:").unwrap(), "a:");
        assert_eq!(back.databases.include, Some(vec![2, 3]));
        assert_eq!(back.databases.map.get("3"), Some(&1));
        assert_eq!(
            (
                &back.cutover.hooks.switch[0],
                &back.cutover.hooks.switch_back[0]
            ),
            (&"back".to_string(), &"there".to_string())
        );
    }

    #[test]
    fn what_cannot_be_taken_back_is_said() {
        for (key, value) in [
            ("databases", json!({"map": {"1": 0}})),
            ("databases", json!({"include": [0, 1], "map": {"1": 0}})),
            ("on_existing", json!("skip")),
            ("filter", json!({"expiry": "with"})),
            ("filter", json!({"types": ["hash"]})),
        ] {
            let e = plan(&forth(&[(key, value)])).unwrap_err();
            assert!(e.to_string().starts_with("there is no way back"), "{e}");
        }
    }
}
