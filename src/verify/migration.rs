//! The migration that a verification waits for and asks for repairs: one process, or the workers it is spread over.

use super::options::Options;
use crate::error::Result;
use crate::net::server;
use crate::plan::Job;
use crate::source::keys::side::Side;
use crate::store::{Lock, MODE, Phase, REPAIR_FUNCTIONS, SWEEPS, Store, coverage, workers_and};
use crate::task::Shutdown;
use crate::types::{DbIndex, ReplOffset, Slot, SlotSet, unix_ms};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long the migration may take to apply what the source has written.
const LAG_PATIENCE: Duration = Duration::from_secs(45);

/// One process's state.
pub struct Migration {
    pub dir: PathBuf,
    /// A worker's slots; all of them where there are no workers.
    pub slots: SlotSet,
}

/// The states of a plan's migration; says what cannot be waited for.
pub fn find(job: &Job, options: &Options) -> Result<Vec<Migration>> {
    let workers = workers_and(&options.work_dir, &job.name, &options.also)?;
    if workers.is_empty() {
        return Ok(vec![Migration {
            dir: options.work_dir.clone(),
            slots: SlotSet::all(),
        }]);
    }
    let (missing, _) = coverage(workers.iter().map(|w| &w.claim));
    if missing.count() > 0 {
        tracing::warn!(
            "no worker's state is here that has the slots {missing}: what is on its way in them counts as a difference, so let the source rest, or name the state with --also"
        );
    }
    for worker in workers.iter().filter(|w| w.pid.is_none()) {
        tracing::warn!(
            "the worker {} does not run on this machine: what the source has written since it was saved counts as a difference",
            worker.claim.share
        );
    }
    Ok((workers.into_iter())
        .map(|w| Migration {
            slots: w.claim.slot_set(),
            dir: w.dir,
        })
        .collect())
}

impl Migration {
    /// Whether its process is at work, on this machine.
    pub fn runs(&self) -> bool {
        Lock::is_held(&self.dir)
    }

    /// What its target could not hold.
    pub fn losses(&self) -> Result<Vec<(DbIndex, Vec<u8>, String)>> {
        match Store::open_readonly(&self.dir)? {
            Some(store) => store.losses(i64::MAX as u64),
            None => Ok(Vec::new()),
        }
    }

    /// Asks for those of the keys that are its own.
    pub fn ask_repairs(&self, keys: &[(DbIndex, Vec<u8>)]) -> Result<()> {
        let mine: Vec<(DbIndex, Vec<u8>)> = (keys.iter())
            .filter(|(_, key)| self.slots.has(Slot::of(key)))
            .cloned()
            .collect();
        match mine.is_empty() {
            true => Ok(()),
            false => Store::open(&self.dir)?.ask_repairs(&mine),
        }
    }

    /// Asks it to make the target's function libraries the source's.
    pub fn ask_functions(&self) -> Result<()> {
        Store::open(&self.dir)?.put_json(REPAIR_FUNCTIONS, &true.into())
    }

    /// Notes that everything is equal; a later difference takes the word back.
    pub fn note_verdict(&self, equal: bool, whole: bool) -> Result<()> {
        let Some(seen) = Store::open_readonly(&self.dir)? else {
            return Ok(());
        };
        let next = match seen.phase()? {
            Phase::Stream if equal && whole => Phase::Verified,
            Phase::Verified if !equal => Phase::Stream,
            _ => return Ok(()),
        };
        drop(seen);
        Store::open(&self.dir)?.enter_phase(next, unix_ms())
    }

    /// Whether it has still to apply something that the source had written at these offsets, by master.
    fn is_behind(&self, wanted: &BTreeMap<String, ReplOffset>, asked_ms: i64) -> Result<bool> {
        let Some(store) = Store::open_readonly(&self.dir)? else {
            return Ok(false);
        };
        let scans = store.json(MODE)?.is_some_and(|m| m == "scan");
        Ok(store.shards()?.iter().any(|s| {
            if scans {
                // Without a stream, a whole sweep since then is what brings everything over.
                let sweep = store.json(SWEEPS).ok().flatten().unwrap_or_default();
                return s.snapshot_loaded && sweep["began_at"].as_i64() < Some(asked_ms);
            }
            let wanted = wanted.get(&s.address);
            // While its snapshot is being loaded, what is missing is missing.
            s.snapshot_loaded && wanted.is_some_and(|at| s.applied.is_none_or(|done| done < *at))
        }))
    }
}

/// Waits until the migration has applied what the source has written until now; false when it does not get there.
///
/// With `running`, a process that is not at work is not waited for: what it has not applied stays so.
pub async fn wait_for_stream(
    source: &Side,
    migrations: &[Migration],
    stop: &Shutdown,
    running: bool,
) -> Result<bool> {
    let mut wanted: BTreeMap<String, ReplOffset> = BTreeMap::new();
    for master in &source.layout().masters {
        let mut conn = source.control(&master.address).await?;
        let offset = server::replication_offset(&mut conn).await?;
        wanted.insert(master.address.clone(), offset);
    }
    let (began, asked_ms) = (Instant::now(), unix_ms());
    loop {
        let mut behind = false;
        for migration in migrations.iter().filter(|m| !running || m.runs()) {
            behind |= migration.is_behind(&wanted, asked_ms)?;
        }
        if !behind {
            return Ok(true);
        }
        if !running || began.elapsed() > LAG_PATIENCE {
            return Ok(false);
        }
        if !stop.sleep(Duration::from_millis(100)).await {
            return Ok(false);
        }
    }
}
