//! The workers of a migration: each has a state of its own in `workers/` of the plan's folder, or on another machine.
//!
//! A claim says which slots are a worker's business; it is made at its first start and holds until `--fresh`.

use super::cutover::Stage;
use super::lock::Lock;
use super::state::{FILE, Store};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::types::SlotSet;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The document that holds the claim.
const CLAIM: &str = "worker";
const FOLDER: &str = "workers";
/// Copies of the states of workers on other machines, which a cutover has taken.
const REMOTE: &str = "remote";

/// What one worker has taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// As it was typed: `--shards 0-2`.
    pub share: String,
    /// The numbers of its masters when it began, in the order of their lowest slots.
    pub shards: Vec<usize>,
    /// How many masters there were then.
    pub of: usize,
    /// The slots of its masters then, as in "0-5460".
    pub slots: String,
}

impl Claim {
    pub fn slot_set(&self) -> SlotSet {
        SlotSet::parse(&self.slots).unwrap_or_else(SlotSet::none)
    }

    /// Its masters' numbers, as numbers of shards.
    pub fn numbers(&self) -> Vec<u16> {
        let short = |n: &usize| u16::try_from(*n).ok();
        self.shards.iter().filter_map(short).collect()
    }

    /// From this on, numbers of shards are nobody's yet.
    pub fn used(&self) -> u16 {
        u16::try_from(self.of).unwrap_or(u16::MAX / 2)
    }
}

impl Store {
    /// `None` where one process moves everything.
    pub fn claim(&self) -> Result<Option<Claim>> {
        let saved = self.json(CLAIM)?.filter(|v| !v.is_null());
        saved
            .map(|v| {
                serde_json::from_value(v).map_err(|e| {
                    Error::new(
                        ErrorKind::State,
                        format!("read which slots a worker has in {}", self.path.display()),
                    )
                    .cause(e)
                })
            })
            .transpose()
    }

    /// Takes a claim back with `None`.
    pub fn put_claim(&mut self, claim: Option<&Claim>) -> Result<()> {
        let value = serde_json::to_value(claim)
            .map_err(|e| Error::new(ErrorKind::Bug, "write a worker's slots as JSON").cause(e))?;
        self.put_json(CLAIM, &value)
    }
}

/// The folder of a worker's state.
pub fn worker_dir(plan_dir: &Path, name: &str) -> PathBuf {
    plan_dir.join(FOLDER).join(name)
}

/// Where copies of the states of workers on other machines lie.
pub fn remote_dir(plan_dir: &Path) -> PathBuf {
    plan_dir.join(REMOTE)
}

/// On which side the clients are, for the migration with its state in `dir`: a cutover beside it says so in the plan's
/// own state, one on another machine has told it.
pub fn stage_of(dir: &Path, plan_dir: &Path) -> Result<Stage> {
    let said = |dir: &Path| Store::open_readonly(dir)?.map(|s| s.stage()).transpose();
    match said(plan_dir)? {
        Some(stage) if stage.is_fenced() => return Ok(stage),
        _ => {}
    }
    said(dir)?.ok_or_else(|| {
        Error::new(
            ErrorKind::State,
            format!("the state in {} is gone", dir.display()),
        )
    })
}

/// Whether the target could not hold something of this migration, whoever has moved it.
pub fn has_losses(plan_dir: &Path) -> Result<bool> {
    if let Some(own) = Store::open_readonly(plan_dir)?
        && !own.losses(1)?.is_empty()
    {
        return Ok(true);
    }
    for worker in workers(plan_dir)? {
        if !worker.store.losses(1)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A worker's state that was found.
pub struct Worker {
    /// Its folder's name.
    pub name: String,
    pub dir: PathBuf,
    pub store: Store,
    pub claim: Claim,
    /// The process that works on it now, on this machine.
    pub pid: Option<u32>,
    /// It is a copy: the worker is on another machine.
    pub remote: bool,
}

/// The workers' states below a plan's folder, by name.
pub fn workers(plan_dir: &Path) -> Result<Vec<Worker>> {
    let mut found = below(&plan_dir.join(FOLDER))?;
    found.extend((below(&remote_dir(plan_dir))?.into_iter()).map(|w| Worker { remote: true, ..w }));
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn below(folder: &Path) -> Result<Vec<Worker>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => {
            return Err(e).context(ErrorKind::Disk, || {
                format!("list the folder {}", folder.display())
            });
        }
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.context(ErrorKind::Disk, || {
            format!("list the folder {}", folder.display())
        })?;
        found.extend(open(&entry.path())?);
    }
    Ok(found)
}

/// The same, with those in `also`: folders of a worker, of a plan, or of many plans.
pub fn workers_and(plan_dir: &Path, plan: &str, also: &[PathBuf]) -> Result<Vec<Worker>> {
    let mut found = workers(plan_dir)?;
    for dir in also {
        let mut here: Vec<Worker> = open(dir)?.into_iter().collect();
        here.extend(workers(dir)?);
        here.extend(workers(&dir.join(plan))?);
        if here.is_empty() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{} holds no worker's state of the plan {plan}", dir.display()),
            )
            .hint("--also names the folder of a worker, which holds its state.sqlite, or another machine's --work-dir"));
        }
        for worker in here {
            let of = worker.store.run()?.map(|r| r.run.plan);
            if let Some(other) = of.filter(|name| name != plan) {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!(
                        "{} belongs to the plan {other}, not to {plan}",
                        worker.dir.display()
                    ),
                )
                .hint("name the folders of this plan's workers only"));
            }
            let real = |dir: &Path| dir.canonicalize().ok();
            if !found.iter().any(|f| real(&f.dir) == real(&worker.dir)) {
                found.push(worker);
            }
        }
    }
    Ok(found)
}

/// `None` where there is no worker's state.
fn open(dir: &Path) -> Result<Option<Worker>> {
    if !dir.join(FILE).is_file() {
        return Ok(None);
    }
    let Some(store) = Store::open_readonly(dir)? else {
        return Ok(None);
    };
    let Some(claim) = store.claim()? else {
        return Ok(None);
    };
    let name = dir.file_name().unwrap_or_default();
    Ok(Some(Worker {
        name: name.to_string_lossy().into_owned(),
        dir: dir.to_owned(),
        store,
        claim,
        pid: Lock::holder(dir),
        remote: false,
    }))
}

/// The slots that none of these workers has, and those that more than one has.
pub fn coverage<'w>(claims: impl IntoIterator<Item = &'w Claim>) -> (SlotSet, SlotSet) {
    let (mut missing, mut twice) = (SlotSet::all(), SlotSet::none());
    for claim in claims {
        for slot in claim.slot_set().iter() {
            match missing.has(slot) {
                true => missing.remove(slot),
                false => twice.insert(slot),
            }
        }
    }
    (missing, twice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(slots: &str) -> Claim {
        Claim {
            share: "--shards 0".into(),
            shards: vec![0],
            of: 3,
            slots: slots.into(),
        }
    }

    #[test]
    fn what_nobody_has_and_what_two_have_is_told() {
        let (missing, twice) = coverage([&claim("0-99"), &claim("90-16000")]);
        assert_eq!(
            (missing.to_string(), twice.to_string()),
            ("16001-16383".into(), "90-99".into())
        );
        let (missing, twice) = coverage([&claim("0-8191"), &claim("8192-16383")]);
        assert_eq!((missing.count(), twice.count()), (0, 0));
    }

    #[test]
    fn workers_are_found_below_the_plan_and_where_one_says() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (at, name, slots) in [
            (dir.path(), "worker-0-of-2", "0-8191"),
            (&other.path().join("plan"), "worker-1-of-2", "8192-16383"),
        ] {
            let mut store = Store::open(&worker_dir(at, name)).unwrap();
            store.put_claim(Some(&claim(slots))).unwrap();
        }
        // Begun, but refused: it has nothing.
        let mut store = Store::open(&worker_dir(dir.path(), "shards-1")).unwrap();
        store.put_claim(Some(&claim("1"))).unwrap();
        store.put_claim(None).unwrap();
        let names = |also: &[PathBuf]| -> Vec<String> {
            let found = workers_and(dir.path(), "plan", also).unwrap();
            found.into_iter().map(|w| w.name).collect()
        };
        assert_eq!(names(&[]), ["worker-0-of-2"]);
        let both = ["worker-0-of-2", "worker-1-of-2"];
        assert_eq!(names(&[other.path().to_owned()]), both);
        assert_eq!(names(&[other.path().join("plan")]), both);
        let itself = worker_dir(&other.path().join("plan"), "worker-1-of-2");
        assert_eq!(
            names(&[itself.clone(), itself, dir.path().to_owned()]),
            both
        );
        // A copy of what is being written counts as well, also over an older one.
        let copies = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            for worker in workers(&other.path().join("plan")).unwrap() {
                let to = worker_dir(copies.path(), &worker.name);
                worker.store.copy_to(&to).unwrap();
            }
        }
        assert_eq!(names(&[copies.path().to_owned()]), both);
        let none = tempfile::tempdir().unwrap();
        let e = workers_and(dir.path(), "plan", &[none.path().to_owned()]).err();
        assert_eq!(e.map(|e| e.exit_code()), Some(2));
    }
}
