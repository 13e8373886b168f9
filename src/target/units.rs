//! What trouble leaves, taken apart: each command or transaction that has to be dealt with, and what is known of it.

use super::batch::{Batch, GUARDS};
use super::trouble::{Failure, Fate, NOTHING_THERE, Trouble, Unit};
use crate::command::{self, Access};
use crate::error::Error;
use crate::resp;
use std::collections::HashSet;
use std::ops::Range;

pub(super) fn trouble_bytes(trouble: &Trouble) -> usize {
    trouble
        .failed
        .iter()
        .map(|(b, _)| b.bytes.len())
        .sum::<usize>()
        + trouble
            .uncertain
            .iter()
            .map(|(b, _, _)| b.bytes.len())
            .sum::<usize>()
        + trouble.unsent.iter().map(|b| b.bytes.len()).sum::<usize>()
}

pub(super) fn units_of(trouble: Trouble, units: &mut Vec<Unit>, error: &mut Option<Error>) {
    let refused = |failures: &[Failure], range: &Range<u32>| {
        failures
            .iter()
            .find(|f| range.contains(&f.index))
            .map(|f| Fate::Refused(f.text.clone()))
    };
    let mut tainted = HashSet::new();
    for (batch, failures) in &trouble.failed {
        split_units(
            batch,
            &mut |range| refused(failures, &range),
            &mut tainted,
            units,
        );
    }
    for (batch, answered, failures) in &trouble.uncertain {
        split_units(
            batch,
            &mut |range| {
                refused(failures, &range).or((range.end > *answered).then_some(Fate::Uncertain))
            },
            &mut tainted,
            units,
        );
    }
    for batch in &trouble.unsent {
        split_units(batch, &mut |_| Some(Fate::Unsent), &mut tainted, units);
    }
    if error.is_none() {
        *error = trouble.error;
    }
}

/// Walks a batch by commands, a transaction being one, and collects those that `fate` names.
///
/// A command that ran on nothing has left a wrong value for a moment, and one that was refused may be sent again: what
/// has read its keys since, or written to them, is collected as well (`tainted` are such keys).
pub(super) fn split_units(
    batch: &Batch,
    fate: &mut dyn FnMut(Range<u32>) -> Option<Fate>,
    tainted: &mut HashSet<Vec<u8>>,
    units: &mut Vec<Unit>,
) {
    let mut args = Vec::new();
    let (mut at, mut index) = (0usize, 0u32);
    // A guard that failed in front of the unit.
    let mut unguarded = false;
    while index < batch.commands {
        let (start, first) = (at, index);
        let (mut inside, mut guard) = (false, false);
        loop {
            let rest = batch.bytes.get(at..).unwrap_or_default();
            // We encoded these bytes ourselves, or parsed them before.
            let Ok(Some(len)) = resp::parse_command(rest, &mut args) else {
                return;
            };
            let name = args
                .first()
                .and_then(|r| rest.get(r.clone()))
                .unwrap_or_default();
            let (begins, ends) = (
                name.eq_ignore_ascii_case(b"MULTI"),
                name.eq_ignore_ascii_case(b"EXEC"),
            );
            guard = guard || (!inside && GUARDS.contains(&name));
            at += len;
            index = index.saturating_add(1);
            inside = (inside || begins) && !ends;
            if !inside || index >= batch.commands {
                break;
            }
        }
        let bytes = batch.bytes.get(start..at).unwrap_or_default();
        if guard {
            // By itself it is nothing: what it says is the fate of what stands behind it.
            unguarded |= fate(first..index) == Some(Fate::Refused(NOTHING_THERE.into()));
            continue;
        }
        let nothing = Fate::Refused(NOTHING_THERE.into());
        let failed = std::mem::take(&mut unguarded).then(|| nothing.clone());
        let mut known = failed.or_else(|| fate(first..index));
        let refused = matches!(known, Some(Fate::Refused(_)));
        if refused || !tainted.is_empty() {
            let keys = command::keys_in(bytes);
            let reads = keys.iter().any(|(key, _)| tainted.contains(key));
            if reads && known.is_none() {
                known = Some(nothing.clone());
            }
            if reads || refused {
                let written = keys.into_iter().filter(|(_, a)| *a == Access::Write);
                tainted.extend(written.map(|(key, _)| key));
            }
        }
        if let Some(fate) = known {
            units.push(Unit {
                bytes: bytes.to_vec(),
                commands: index.saturating_sub(first),
                db: batch.db,
                state: batch.is_state(first),
                fate,
            });
        }
    }
}
