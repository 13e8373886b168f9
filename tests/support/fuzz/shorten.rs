//! Makes a failing list of steps short, by leaving out halves, then smaller parts, as long as it still fails.

use super::Difference;
use super::maker::{Step, Words};
use super::world::World;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The shortest list that was found within the time, written out.
pub fn shorten(world: &mut World, steps: &[Step], found: &Difference, limit: Duration) -> String {
    let began = Instant::now();
    let over = || began.elapsed() > limit;
    let mut runs = 0;
    let mut last = String::new();
    let mut fails = |list: &[Step], warm: bool| {
        runs += 1;
        let found = world.perform_all(list, warm);
        if let Some(difference) = &found {
            last = difference.to_string();
        }
        found.is_some()
    };
    // What does not touch the keys that differ mostly has no part in it.
    let mut candidates: Vec<Vec<Step>> = Vec::new();
    for depth in 0..2 {
        candidates.push(about(steps, &found.keys, depth));
    }
    candidates.push(steps.to_vec());
    let mut warm = false;
    let start = candidates.into_iter().find(|list| {
        [true, false, false].into_iter().any(|way| {
            warm = way;
            !list.is_empty() && !over() && fails(list, way)
        })
    });
    let Some(start) = start else {
        let about = about(steps, &found.keys, 0);
        let from = about.len().saturating_sub(40);
        let lines = written(&about[from..]);
        return format!(
            "It did not happen again in {runs} runs; the last steps on the keys were:\n{lines}"
        );
    };
    let list = reduce(start, |list| !over() && fails(list, warm));
    let list = within(list, |list| !over() && fails(list, warm));
    format!(
        "{} steps are left after {runs} runs ({last}):\n{}",
        list.len(),
        written(&list)
    )
}

fn written(steps: &[Step]) -> String {
    let lines: Vec<String> = steps.iter().take(200).map(|s| format!("  {s}")).collect();
    lines.join("\n")
}

/// The steps that name one of the keys, or, deeper, one of the keys that such steps name; events stay.
fn about(steps: &[Step], keys: &[Vec<u8>], depth: usize) -> Vec<Step> {
    let mut keys: BTreeSet<Vec<u8>> = keys.iter().cloned().collect();
    for _ in 0..depth {
        let named = steps.iter().filter(|s| touches(s, &keys));
        let more: Vec<Vec<u8>> = named.flat_map(names_in).collect();
        keys.extend(more);
    }
    (steps.iter())
        .filter(|step| match step {
            Step::Run { .. } | Step::Wait { .. } => touches(step, &keys),
            Step::Pause(_) => false,
            Step::Event(_) => true,
        })
        .cloned()
        .collect()
}

fn touches(step: &Step, keys: &BTreeSet<Vec<u8>>) -> bool {
    names_in(step).iter().any(|name| keys.contains(name))
}

/// The words of a step that are names of keys, or that mean every key.
fn names_in(step: &Step) -> Vec<Vec<u8>> {
    let commands: Vec<&Vec<Vec<u8>>> = match step {
        Step::Run { commands, .. } => commands.iter().collect(),
        Step::Wait { command, .. } => vec![command],
        _ => Vec::new(),
    };
    let words = commands.into_iter().flatten();
    words
        .filter(|w| w.first() == Some(&b'{') && w.len() == 5)
        .cloned()
        .collect()
}

/// The shortest list that still fails: parts are left out, half of it first, single steps last.
pub fn reduce<T: Clone>(mut list: Vec<T>, mut fails: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut part = list.len().div_ceil(2);
    while part > 0 && list.len() > 1 {
        let (mut at, mut shorter) = (0, false);
        while at < list.len() {
            let mut rest = list[..at].to_vec();
            rest.extend_from_slice(&list[(at + part).min(list.len())..]);
            if !rest.is_empty() && fails(&rest) {
                list = rest;
                shorter = true;
            } else {
                at += part;
            }
        }
        if part == 1 && !shorter {
            break;
        }
        part = if part > 1 { part.div_ceil(2) } else { 1 };
    }
    list
}

/// Leaves out commands within the steps that have several.
fn within(mut list: Vec<Step>, mut fails: impl FnMut(&[Step]) -> bool) -> Vec<Step> {
    for at in 0..list.len() {
        let Step::Run { db, key, commands } = list[at].clone() else {
            continue;
        };
        let with = |commands: &[Words]| {
            let mut shorter = list.clone();
            let (key, commands) = (key.clone(), commands.to_vec());
            shorter[at] = Step::Run { db, key, commands };
            shorter
        };
        let left = reduce(commands, |commands| fails(&with(commands)));
        list = with(&left);
    }
    list
}

#[test]
fn a_list_is_made_short() {
    let mut runs = 0;
    let list = reduce((0..5_000).collect(), |list: &[i32]| {
        runs += 1;
        list.contains(&17) && list.contains(&4_321) && list.iter().any(|n| n % 100 == 99)
    });
    assert_eq!(list.len(), 3, "{list:?}");
    assert!(runs < 300, "{runs} runs");
}
