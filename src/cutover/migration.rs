//! The migration that a cutover asks: one that runs already, or one that it starts and ends.

use crate::check::STOPS;
use crate::cutover::options::stopped;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::migrate::control::orders::{Answer, Ask, Asker};
use crate::plan::Plan;
use crate::store::{Lock, Store};
use crate::task::{Shutdown, private_dir, private_file};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

/// How long a migration may take until it answers.
const START: Duration = Duration::from_secs(60);

/// How long it may take to answer one question.
const ANSWER: Duration = Duration::from_secs(30);

/// A migration in a process of its own.
pub struct Migration {
    /// Its state.
    dir: PathBuf,
    asker: Asker,
    /// Present when it was started here.
    child: Option<Child>,
}

impl Migration {
    /// The one that runs on the plan's state in `work_dir`, or a new one.
    pub async fn meet(plan: &Plan, work_dir: &Path, stop: &Shutdown) -> Result<Migration> {
        let dir = work_dir.join(&plan.name);
        let mut child = None;
        let began = Instant::now();
        loop {
            if let Ok(asker) = Asker::connect(&dir).await {
                return Ok(Migration { dir, asker, child });
            }
            // One that holds the lock has not come to answering yet, or comes to its end.
            if child.is_none() && !Lock::is_held(&dir) {
                child = Some(start(plan, work_dir, &dir).await?);
            }
            if let Some(child) = &mut child
                && let Ok(Some(_)) = child.try_wait()
            {
                return Err(ended(&dir));
            }
            if began.elapsed() > START {
                return Err(silent(&dir));
            }
            if !stop.sleep(Duration::from_millis(20)).await {
                return Err(stopped());
            }
        }
    }

    /// The one that runs already.
    pub async fn connect(dir: &Path) -> Result<Migration> {
        Ok(Migration {
            dir: dir.to_owned(),
            asker: Asker::connect(dir).await?,
            child: None,
        })
    }

    /// Has all looked at that the source has written until now, and waits for that; asked every `poll`.
    pub async fn fence_again(&mut self, poll: Duration) -> Result<Answer> {
        let mut now = self.ask(Ask::Fence).await?;
        // What is lost will not be fenced.
        while !now.lost && (now.shards.is_empty() || now.shards.iter().any(|s| !s.fenced)) {
            tokio::time::sleep(poll).await;
            now = self.ask(Ask::State).await?;
        }
        Ok(now)
    }

    pub async fn ask(&mut self, ask: Ask) -> Result<Answer> {
        match tokio::time::timeout(ANSWER, self.asker.ask(ask)).await {
            Ok(asked) => asked.map_err(|e| ended(&self.dir).cause(e)),
            Err(_) => Err(silent(&self.dir)),
        }
    }

    /// Whether it goes on when the cutover has ended.
    pub fn stays(&self) -> bool {
        self.child.is_none()
    }

    /// Leaves it as it was found: one that was started here is ended.
    pub async fn leave(mut self) -> Result<()> {
        match self.child {
            Some(_) => self.end().await,
            None => self.ask(Ask::Follow).await.map(drop),
        }
    }

    /// Ends it, whoever has started it; its state is saved.
    pub async fn end(mut self) -> Result<()> {
        end(&self.dir).await?;
        if let Some(child) = &mut self.child {
            let _ = child.wait().await;
        }
        Ok(())
    }
}

/// Ends whatever migration works on a state, whoever has started it.
pub async fn end(dir: &Path) -> Result<()> {
    let began = Instant::now();
    // Kept until it has ended: it lets nothing through while somebody is there.
    let mut asked = None;
    while Lock::is_held(dir) {
        if began.elapsed() > START {
            return Err(Error::new(
                ErrorKind::NotReady,
                format!("the migration in {} does not end", dir.display()),
            )
            .hint("stop `keyferry migrate`, then run the same command again"));
        }
        // One that has not come to answering yet, or comes to its end, cannot be asked.
        if asked.is_none()
            && let Ok(mut asker) = Asker::connect(dir).await
        {
            let _ = tokio::time::timeout(ANSWER, asker.ask(Ask::Stop)).await;
            asked = Some(asker);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn silent(dir: &Path) -> Error {
    Error::new(
        ErrorKind::NotReady,
        format!("the migration in {} does not answer", dir.display()),
    )
    .hint("stop `keyferry migrate`, then run the same command again: the cutover starts it itself")
}

/// Its state says why.
fn ended(dir: &Path) -> Error {
    let told = Store::open_readonly(dir).ok().flatten().and_then(|store| {
        let events = store.events(50).ok()?;
        let last = events.into_iter().rev().find(|e| e.level == "error")?;
        Some(last.message)
    });
    let said = || {
        let text = std::fs::read_to_string(dir.join(LOG)).ok()?;
        let line = text.lines().rev().find(|l| l.starts_with("error"))?;
        Some(line.to_owned())
    };
    let why = said()
        .or(told)
        .map(|w| format!(": {w}"))
        .unwrap_or_default();
    Error::new(ErrorKind::NotReady, format!("the migration has ended{why}"))
        .hint("run `keyferry migrate` to see what it lacks, then the cutover again")
}

/// Where a migration that was started here writes its log.
const LOG: &str = "cutover-migrate.log";

async fn start(plan: &Plan, work_dir: &Path, dir: &Path) -> Result<Child> {
    private_dir(dir)?;
    let failed = |e: std::io::Error| Error::new(ErrorKind::Bug, "start the migration").cause(e);
    let path = dir.join(LOG);
    let log = private_file()
        .create(true)
        .write(true)
        .truncate(true)
        .open(&path)
        .context(ErrorKind::Disk, || format!("open {}", path.display()))?;
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    command
        .args(["migrate", "-", "--no-progress", "--work-dir"])
        .arg(work_dir)
        // What stands in the way was found, or ignored, when the migration was begun.
        .args(STOPS.iter().flat_map(|id| ["--ignore", id]))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log)
        // Ctrl-C is for the cutover, which ends it.
        .process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    // The plan goes over a pipe, as it may hold secrets.
    let text = serde_json::to_vec(plan)
        .map_err(|e| Error::new(ErrorKind::Bug, "write the plan as JSON").cause(e))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&text).await.map_err(failed)?;
    }
    Ok(child)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// It answers no more, but holds the lock for a moment still.
    #[tokio::test]
    async fn one_that_comes_to_its_end_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::acquire(dir.path()).unwrap();
        let began = Instant::now();
        let ends = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(lock);
            Ok(())
        };
        tokio::try_join!(end(dir.path()), ends).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(100));
    }
}
