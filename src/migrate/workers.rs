//! One worker of a migration that is spread over several: which masters are its business, and who else is at work.
//!
//! Workers share nothing while they run. Invariant: a worker writes only to the slots that it has claimed at its first
//! start, and no two workers with states below one folder claim the same.

use crate::error::{Error, ErrorKind, Result};
use crate::net::server::Master;
use crate::plan::Share;
use crate::store::{Claim, Lock, Stage, Store, coverage, workers};
use crate::types::SlotSet;
use std::path::Path;

/// Finds a worker's masters among the source's: by its share at the first start, by the slots it has claimed later.
///
/// Errors: `Usage` when the share is not there, or is another one than before; `State` when slots have moved across.
pub(super) fn take(
    share: &Share,
    masters: &mut Vec<Master>,
    store: &mut Store,
    plan_dir: &Path,
    dry_run: bool,
) -> Result<Claim> {
    masters.sort_by_key(|m| m.slots.iter().next());
    let known = store.claim()?;
    let claim = match &known {
        Some(claim) if claim.share == share.flag() => claim.clone(),
        Some(claim) => {
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "the state in {} was begun with {}, not with {}",
                    store.path().display(),
                    claim.share,
                    share.flag()
                ),
            )
            .hint(format!(
                "go on with {}, or start this worker over with --fresh",
                claim.share
            )));
        }
        None => {
            let shards = share.of(masters.len())?;
            let mine = (shards.iter()).filter_map(|n| masters.get(*n));
            let slots: SlotSet = mine.flat_map(|m| m.slots.iter()).collect();
            Claim {
                share: share.flag(),
                shards,
                of: masters.len(),
                slots: slots.to_string(),
            }
        }
    };
    if !dry_run {
        // First said, then looked: of two that begin at once, one at least sees the other.
        store.put_claim(Some(&claim))?;
        if let Err(e) = refuse_others(&claim, store.path(), plan_dir) {
            if known.is_none() {
                store.put_claim(None)?;
            }
            return Err(e);
        }
    }
    let claimed = claim.slot_set();
    if let Some(crossing) = crossing(&claimed, masters) {
        return Err(crossing);
    }
    masters.retain(|m| touches(&claimed, m));
    match masters.is_empty() {
        false => Ok(claim),
        true => Err(Error::new(
            ErrorKind::NotReady,
            format!("no master of the source serves the slots {} of this worker", claim.slots),
        )
        .hint("bring the source cluster in order (CLUSTER INFO says what it lacks), then run the same command again")),
    }
}

/// Others that would write to the same slots.
fn refuse_others(claim: &Claim, own: &Path, plan_dir: &Path) -> Result<()> {
    let begun = match Store::open_readonly(plan_dir)? {
        Some(store) => !store.shards()?.is_empty(),
        None => false,
    };
    if begun || Lock::is_held(plan_dir) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "this migration was begun as a whole, in {}: a worker would write the same keys",
                plan_dir.display()
            ),
        )
        .hint(format!(
            "go on without {}, or use another --work-dir, with on_existing \"reconcile\" for what the target holds by now",
            claim.share
        )));
    }
    for other in workers(plan_dir)? {
        let (_, both) = coverage([claim, &other.claim]);
        if other.store.path() == own || both.count() == 0 {
            continue;
        }
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "{} would move the slots {both}, which are the business of the worker {} already, in {}",
                claim.share,
                other.claim.share,
                other.dir.display()
            ),
        )
        .hint(format!(
            "go on with {}; to share the source out anew, stop all workers, remove {}, and start over with on_existing \"reconcile\"",
            other.claim.share,
            plan_dir.join("workers").display()
        )));
    }
    Ok(())
}

/// After a rollback one worker begins anew. So must all the others, which the plan's own state will not say any more.
pub(super) fn begin_over(plan_dir: &Path) -> Result<()> {
    let whole = Store::open_readonly(plan_dir)?;
    if whole.is_none_or(|s| s.stage().is_ok_and(|stage| stage != Stage::RolledBack)) {
        return Ok(());
    }
    for worker in workers(plan_dir)?.into_iter().filter(|w| !w.remote) {
        Store::open(&worker.dir)?.set_stage(Stage::RolledBack)?;
    }
    // Its verifications and cutovers were of what is forgotten now.
    Store::open(plan_dir)?.wipe()
}

/// A whole migration where workers have begun would write the same keys.
pub(super) fn refuse_workers(plan_dir: &Path) -> Result<()> {
    let Some(worker) = workers(plan_dir)?.into_iter().next() else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::Usage,
        format!(
            "this migration is spread over workers, one of them in {}",
            worker.dir.display()
        ),
    )
    .hint(format!(
        "go on with each worker's own share, as in {}; to move everything by one process instead, stop them, remove {}, and set on_existing to \"reconcile\"",
        worker.claim.share,
        worker.dir.parent().unwrap_or(plan_dir).display()
    )))
}

pub(super) fn touches(claimed: &SlotSet, master: &Master) -> bool {
    master.slots.iter().any(|s| claimed.has(s))
}

/// An error when a master has slots of this worker and slots of another one: then some have moved across.
///
/// Slots may go to any master that has none of another worker's: a new one, or one that was promoted.
pub(super) fn crossing(claimed: &SlotSet, masters: &[Master]) -> Option<Error> {
    for master in masters {
        let (ours, theirs): (Vec<_>, Vec<_>) = master.slots.iter().partition(|s| claimed.has(*s));
        if ours.is_empty() || theirs.is_empty() {
            continue;
        }
        // Few move at a time: the fewer are those that have.
        let moved: SlotSet = match ours.len() < theirs.len() {
            true => ours.into_iter().collect(),
            false => theirs.into_iter().collect(),
        };
        return Some(
            Error::new(
                ErrorKind::State,
                format!(
                    "slots of the source have moved from one worker's master to another's ({moved}, now at {}); their keys are not complete at the target",
                    master.address
                ),
            )
            .hint("workers share nothing, so none knows when another has let go of a slot: move the slots back and start this worker again, or stop all workers and start over with --fresh and on_existing \"reconcile\""),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master(address: &str, slots: &str) -> Master {
        Master {
            address: address.into(),
            slots: SlotSet::parse(slots).unwrap(),
            replicas: Vec::new(),
        }
    }

    fn three() -> Vec<Master> {
        vec![
            master("b", "100-199"),
            master("a", "0-99"),
            master("c", "200-16383"),
        ]
    }

    #[test]
    fn a_share_becomes_slots_and_stays_these_slots() {
        let dir = tempfile::tempdir().unwrap();
        let own = crate::store::worker_dir(dir.path(), "worker-0-of-2");
        let mut store = Store::open(&own).unwrap();
        let share = Share::worker("0/2").unwrap();
        let mut masters = three();
        let claim = take(&share, &mut masters, &mut store, dir.path(), false).unwrap();
        let names = |masters: &[Master]| -> Vec<String> {
            masters.iter().map(|m| m.address.clone()).collect()
        };
        assert_eq!((claim.slots.as_str(), claim.of), ("0-99,200-16383", 3));
        assert_eq!(names(&masters), ["a", "c"]);
        // A new master in front, which has taken some of c's, and another promoted for a.
        let mut masters = vec![
            master("b", "100-199"),
            master("n", "200-210"),
            master("c", "211-16383"),
            master("p", "0-99"),
        ];
        take(&share, &mut masters, &mut store, dir.path(), false).unwrap();
        assert_eq!(names(&masters), ["p", "n", "c"]);
        let mut masters = vec![
            master("a", "0-90"),
            master("b", "91-199"),
            master("c", "200-16383"),
        ];
        let e = take(&share, &mut masters, &mut store, dir.path(), false).unwrap_err();
        assert!(e.to_string().contains("(91-99, now at b)"), "{e}");
        let other = Share::listed("0").unwrap();
        let e = take(&other, &mut three(), &mut store, dir.path(), false).unwrap_err();
        assert!(
            e.exit_code() == 2 && e.to_string().contains("begun with --worker 0/2"),
            "{e}"
        );
    }

    #[test]
    fn two_never_claim_the_same_slots() {
        let dir = tempfile::tempdir().unwrap();
        let start = |share: &str| {
            let share = Share::listed(share).unwrap();
            let own = crate::store::worker_dir(dir.path(), &share.folder());
            let mut store = Store::open(&own).unwrap();
            take(&share, &mut three(), &mut store, dir.path(), false)
        };
        start("0-1").unwrap();
        start("2").unwrap();
        let e = start("1-2").unwrap_err();
        assert!(
            e.exit_code() == 2 && e.to_string().contains("slots 100-199"),
            "{e}"
        );
        // The refused one has claimed nothing.
        assert_eq!(workers(dir.path()).unwrap().len(), 2);
        assert_eq!(refuse_workers(dir.path()).unwrap_err().exit_code(), 2);
        let mut whole = Store::open(dir.path()).unwrap();
        let shard =
            crate::store::ShardState::new(crate::types::ShardId(0), "a".into(), String::new());
        whole
            .save_shards(&[shard], &Default::default(), None)
            .unwrap();
        let e = start("2").unwrap_err();
        assert!(e.to_string().contains("begun as a whole"), "{e}");
    }
}
