//! Proof of a difference: what was not equal is read again until it is equal, or stands still and differs.
//!
//! The source is read, then the migration is waited for until it has applied what the source had written by then, then
//! the target is read, then the source once more. Only a key that the source did not change in between can be called
//! different, and only when two such rounds say the same.

use super::check::Check;
use super::migration::{self, Migration};
use super::progress::{Name, UNPROVABLE};
use super::reading::{self, Readers};
use crate::digest::{SlotSum, Unreplicated};
use crate::error::{Error, Result};
use crate::net::Tries;
use crate::source::keys::fact::{Found, NOT_REPLICATED};
use crate::store::Difference;
use crate::types::Slot;
use std::collections::HashMap;
use std::time::Duration;

/// Keys confirmed at a time.
const CHUNK: usize = 20_000;
/// Readings without waiting for the migration, as long as each settles something.
const QUICK: u32 = 12;
/// Readings before a key is called unprovable.
const TRIES: u32 = 22;
/// Where servers tell an expiry only as the time that is left, two readings of one may be so much off.
const TOLD_LATE_MS: u64 = 200;
/// What was found out about one key.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Equal,
    Different(&'static str),
}

/// Confirms all candidates; differences go to SQLite, their sums to the slots.
pub async fn run(check: &Check) -> Result<()> {
    some(check, 0).await
}

/// Confirms candidates until no more than `left` are left.
pub async fn some(check: &Check, left: usize) -> Result<()> {
    let mut readers = Readers::new(check);
    loop {
        check.go_on()?;
        let names: Vec<Name> = {
            let progress = check.progress();
            let many = progress.candidates.len() > left;
            let some = progress.candidates.iter().take(CHUNK).cloned();
            if many { some.collect() } else { Vec::new() }
        };
        if names.is_empty() {
            return Ok(());
        }
        let read = confirm(check, &mut readers, &names).await?;
        if read
            .iter()
            .any(|(_, _, verdict)| *verdict != Some(Verdict::Equal))
        {
            // The migration may have listed some as losses meanwhile.
            check.learn_losses()?;
        }
        let (mut progress, mut store) = (check.progress(), check.store());
        let (mut differences, mut repairs) = (Vec::new(), Vec::new());
        for (name, (a, b, verdict)) in names.iter().zip(&read) {
            let (db, key) = name;
            let slot = Slot::of(key).number();
            let (mut ours, mut theirs) = (SlotSum::default(), SlotSum::default());
            let apart = Some(Verdict::Different(NOT_REPLICATED));
            let equal = *verdict == Some(Verdict::Equal);
            if !equal && check.is_lost(*db, key) {
                progress.candidates.remove(name);
                continue;
            }
            let alike = equal || *verdict == apart;
            if let Some(a) = a.fact() {
                ours.add(*db, key, &a.digest, a.expire);
            }
            if let Some(b) = b.fact() {
                // Within the tolerance an expiry counts as the source's, and so does what it does not replicate.
                let counted = a.fact().filter(|_| alike).unwrap_or(b);
                theirs.add(*db, key, &counted.digest, counted.expire);
            }
            progress.add(slot, ours, theirs);
            progress.candidates.remove(name);
            let reason = match verdict {
                Some(Verdict::Equal) => {
                    progress.at.compared = progress.at.compared.saturating_add(1);
                    continue;
                }
                Some(Verdict::Different(reason)) => reason,
                None => UNPROVABLE,
            };
            if apart.as_ref() == verdict.as_ref() {
                progress.at.compared = progress.at.compared.saturating_add(1);
            } else if reason != UNPROVABLE {
                repairs.push(name.clone());
            }
            if !progress.differs(slot, reason) {
                continue;
            }
            differences.push(Difference {
                db: *db,
                key: key.clone(),
                slot,
                reason: reason.to_owned(),
                detail: String::new(),
            });
        }
        if check.repair {
            (check.migrations.iter()).try_for_each(|m| m.ask_repairs(&repairs))?;
        }
        store.add_differences(&differences)?;
        drop(store);
        check.save(&mut progress)?;
    }
}

/// Why each of some keys differs; `None` for one that does not.
pub async fn reasons(
    check: &Check,
    readers: &mut Readers,
    names: &[Name],
) -> Result<Vec<Option<&'static str>>> {
    let read = confirm(check, readers, names).await?;
    check.learn_losses()?;
    let reason = |((db, key), (_, _, verdict)): (&Name, &Read)| match verdict {
        Some(Verdict::Equal) => None,
        _ if check.is_lost(*db, key) => None,
        Some(Verdict::Different(reason)) => Some(*reason),
        None => Some(UNPROVABLE),
    };
    Ok(names.iter().zip(&read).map(reason).collect())
}

type Read = (Found, Found, Option<Verdict>);

async fn confirm(check: &Check, readers: &mut Readers, names: &[Name]) -> Result<Vec<Read>> {
    let mut read: Vec<Read> = vec![(Found::Gone, Found::Gone, None); names.len()];
    // What a round has proven; a second one must say the same.
    let mut proven: HashMap<usize, (Found, Found)> = HashMap::new();
    let (mut tries, mut attempt) = (Tries::new(check.patience), 0);
    // Beyond the tolerance nothing is called different that was only told late.
    let off = u64::try_from(check.job.verify.ttl_tolerance_ms).unwrap_or(0);
    let off = |exact: bool| if exact { 0 } else { off.min(TOLD_LATE_MS) };
    let ours_off = off((check.origin.server()).is_none_or(|s| s.pexpiretime));
    let theirs_off = off(check.target.pexpiretime);
    while attempt < TRIES {
        check.go_on()?;
        let open: Vec<usize> = (0..names.len())
            .filter(|i| read.get(*i).is_some_and(|r| r.2.is_none()))
            .collect();
        if open.is_empty() {
            break;
        }
        let list: Vec<Name> = open.iter().filter_map(|i| names.get(*i)).cloned().collect();
        let round = async {
            if attempt < QUICK {
                let both = readers.both(check, &list).await?;
                return Ok::<_, Error>((both, None));
            }
            match check.origin.server() {
                None => Ok((readers.both(check, &list).await?, Some(Vec::new()))),
                Some(source) => {
                    source.meet_replicas().await?;
                    let before = reading::of_names(check, &mut readers.source, &list).await?;
                    let caught_up = match check.migrations.iter().any(Migration::runs) {
                        true => {
                            migration::wait_for_stream(source, &check.migrations, &check.stop, true)
                                .await?
                        }
                        false => true,
                    };
                    let theirs = reading::of_names(check, &mut readers.target, &list).await?;
                    let after = reading::of_names(check, &mut readers.source, &list).await?;
                    let both = before.into_iter().zip(theirs).collect();
                    Ok((both, caught_up.then_some(after)))
                }
            }
        };
        let (both, after) = match round.await {
            Ok(found) => found,
            Err(e) => {
                tries.again(e, "reading keys again", &check.stop).await?;
                readers.reset();
                check.look_again().await;
                continue;
            }
        };
        let (mut settled, mut moved, may) = (0u32, false, check.unreplicated());
        for (n, (i, (a, b))) in open.iter().zip(both).enumerate() {
            let name = list.get(n);
            let why = difference(check, &a, &b, may).filter(|why| {
                *why != "extra" || !name.is_some_and(|(db, key)| check.is_own(*db, key))
            });
            moved |= a == Found::Elsewhere || b == Found::Elsewhere;
            let stood_still = match &after {
                // A file stands still.
                Some(after) => after.get(n).is_none_or(|now| a.stands(now, ours_off)),
                None => false,
            };
            let verdict = match why {
                None if a != Found::Elsewhere && b != Found::Elsewhere => Some(Verdict::Equal),
                // All else is the same: that is no difference to be proven.
                Some(NOT_REPLICATED) => Some(Verdict::Different(NOT_REPLICATED)),
                Some(reason) if stood_still => {
                    let again = proven.insert(*i, (a.clone(), b.clone()));
                    let same = again.is_some_and(|(was_a, was_b)| {
                        was_a.stands(&a, ours_off) && was_b.stands(&b, theirs_off)
                    });
                    same.then_some(Verdict::Different(reason))
                }
                _ => None,
            };
            settled = settled.saturating_add(u32::from(verdict.is_some()));
            if let Some(place) = read.get_mut(*i) {
                *place = (a, b, verdict);
            }
        }
        if moved {
            check.look_again().await;
        }
        if attempt < QUICK || after.is_none() {
            let nap = Duration::from_millis(10 << attempt.min(4));
            check.stop.sleep(nap).await;
        }
        attempt = match attempt {
            2..QUICK if settled == 0 => QUICK,
            _ => u32::saturating_add(attempt, 1),
        };
    }
    Ok(read)
}

/// Why two findings differ; `None` when they do not.
fn difference(check: &Check, a: &Found, b: &Found, may: Unreplicated) -> Option<&'static str> {
    let wanted = |f: &Found| f.fact().is_some_and(|f| reading::accepted(check, f));
    match (a, b) {
        (Found::Elsewhere, _) | (_, Found::Elsewhere) => None,
        (Found::Here(x), Found::Here(y)) if wanted(a) => {
            x.difference(y, check.job.verify.ttl_tolerance_ms, may)
        }
        _ if wanted(a) => Some("missing"),
        _ if wanted(b) => Some("extra"),
        _ => None,
    }
}
