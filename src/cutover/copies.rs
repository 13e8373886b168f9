//! Copies of the states of workers on other machines, kept up to date: what a verification here needs to know of them.
//!
//! A copy is held like the state of a process that runs, so that what is on its way to the target is waited for.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::migrate::control::asker::Asker;
use crate::migrate::control::orders::{Ask, Mark, Part, Said};
use crate::plan::Plan;
use crate::store::{Existing, Lock, SWEEPS, Store, remote_dir};
use crate::task::{private_dir, private_file};
use crate::types::ReplOffset;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinHandle;

/// How often a worker is asked how far it is.
const EVERY: Duration = Duration::from_millis(100);
/// The largest file that is taken.
const MOST: u64 = 4 << 30;
/// How long a worker may take to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// The copy of one worker's state, while it is kept up to date.
pub struct Following {
    task: JoinHandle<()>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A worker's folder name, when it is a plain one.
pub fn plain(name: &str) -> Option<&str> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'+');
    let good = !name.is_empty() && name.len() <= 255 && name.bytes().all(fits);
    good.then_some(name)
}

/// Takes a copy of a worker's state into the plan's folder.
///
/// Errors: `Refused` when it is no worker's, or another plan's.
pub async fn take(asker: &mut Asker, home: &Path, name: &str, plan: &Plan) -> Result<PathBuf> {
    let strange = |what: String| {
        Error::new(ErrorKind::Refused, what)
            .hint("name the addresses of this plan's workers only, and give them the same plan")
    };
    let name =
        plain(name).ok_or_else(|| strange("what answers as a worker has no plain name".into()))?;
    let dir = remote_dir(home).join(name);
    private_dir(&dir)?;
    // The one that held the copy before has ended: the cutover's own lock is ours.
    let fresh = dir.join("state.new");
    for (part, path) in [
        (Part::Existing, Existing::path(&dir)),
        (Part::Taken, Existing::taken_path(&dir)),
        (Part::State, fresh.clone()),
    ] {
        fetch(asker, part, &path).await?;
    }
    for name in ["state.sqlite-wal", "state.sqlite-shm"] {
        let _ = std::fs::remove_file(dir.join(name));
    }
    std::fs::rename(&fresh, dir.join("state.sqlite")).context(ErrorKind::Disk, || {
        format!("keep a copy of a worker's state in {}", dir.display())
    })?;
    // It brings an older form to the one of today.
    let store = Store::open(&dir)?;
    if store.claim()?.is_none() {
        return Err(strange(format!(
            "what answers as {name} is no worker: it moves the whole source"
        )));
    }
    match store.run()?.map(|r| r.run.plan) {
        Some(of) if of == plan.name => Ok(dir),
        of => Err(strange(format!(
            "the worker {name} belongs to the plan {}, not to {}",
            of.unwrap_or_default(),
            plan.name
        ))),
    }
}

async fn fetch(asker: &mut Asker, part: Part, path: &Path) -> Result<()> {
    let failed = || format!("write {}", path.display());
    let odd = |why: &str| Error::new(ErrorKind::Protocol, format!("a worker's file: {why}"));
    let mut file = None;
    let mut from = 0;
    loop {
        let asked = tokio::time::timeout(ANSWER, asker.ask(Ask::Part { part, from })).await;
        let answer = asked.unwrap_or_else(|_| {
            let text = format!("it does not answer within {} s", ANSWER.as_secs());
            Err(Error::new(ErrorKind::NotReady, text))
        })?;
        let Some(Said::Part { bytes, is_there }) = answer.said else {
            return Err(odd("another answer has come"));
        };
        if !is_there {
            let _ = std::fs::remove_file(path);
            return Ok(());
        }
        let bytes = BASE64
            .decode(bytes)
            .map_err(|e| odd("not in base64").cause(e))?;
        let file = match &mut file {
            Some(file) => file,
            None => {
                let new = private_file()
                    .create(true)
                    .write(true)
                    .truncate(true)
                    .open(path);
                file.insert(new.context(ErrorKind::Disk, failed)?)
            }
        };
        if bytes.is_empty() {
            return Ok(());
        }
        file.write_all(&bytes).context(ErrorKind::Disk, failed)?;
        from += bytes.len() as u64;
        if from > MOST {
            return Err(odd("it is larger than 4 GiB"));
        }
    }
}

/// Keeps a copy up to date over a connection of its own, until this is dropped or the worker is gone.
pub fn follow(mut asker: Asker, dir: PathBuf) -> Result<Following> {
    // A verification takes whoever holds it for a migration that runs.
    let lock = Lock::acquire(&dir)?;
    let mut store = Store::open(&dir)?;
    let task = tokio::spawn(async move {
        let _lock = lock;
        while let Ok(Ok(answer)) = tokio::time::timeout(ANSWER, asker.ask(Ask::Marks)).await {
            if let Some(Said::Marks { shards, sweeps }) = answer.said
                && let Err(e) = note(&mut store, &shards, &sweeps)
            {
                tracing::warn!("how far a worker is cannot be noted: {e}");
            }
            tokio::time::sleep(EVERY).await;
        }
    });
    Ok(Following { task })
}

fn note(store: &mut Store, marks: &[Mark], sweeps: &Value) -> Result<()> {
    let mut shards = store.shards()?;
    let before = shards.clone();
    for shard in &mut shards {
        let Some(mark) = marks.iter().find(|m| m.shard == shard.shard.0) else {
            continue;
        };
        shard.snapshot_loaded = mark.loaded;
        shard.applied = mark.applied.map(ReplOffset);
        shard.source_offset = mark.source_offset.map(ReplOffset);
        (shard.lag_ms, shard.updated_at) = (mark.lag_ms, mark.updated_at);
    }
    if shards != before {
        store.save_shards(&shards, &BTreeMap::new(), None)?;
    }
    if !sweeps.is_null() && store.json(SWEEPS)?.as_ref() != Some(sweeps) {
        store.put_json(SWEEPS, sweeps)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leads_out_of_the_folder() {
        for name in ["", ".", "..", "a/b", "/etc", "a.b", "a\0", "ä"] {
            assert_eq!(plain(name), None, "{name:?}");
        }
        for name in ["worker-0-of-3", "shards-0-2+5"] {
            assert_eq!(plain(name), Some(name));
        }
    }
}
