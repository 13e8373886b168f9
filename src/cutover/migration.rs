//! The migration that a cutover asks: one that runs already, one that it starts and ends, or workers that run.
//!
//! Invariant: of several workers, what is asked is asked of all, and what one has not done is not done.

use crate::check::STOPS;
use crate::cutover::copies::{self, Following};
use crate::cutover::members::{self, LOG, Member};
use crate::cutover::options::stopped;
use crate::cutover::place::{Remote, Where};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::migrate::control::asker::Asker;
use crate::migrate::control::orders::{Answer, Ask, Said};
use crate::migrate::control::token;
use crate::plan::Plan;
use crate::store::{Lock, Store, coverage, remote_dir, workers};
use crate::task::{Shutdown, private_dir, private_file};
use futures::future::join_all;
use std::collections::HashSet;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

/// How long a migration may take until it answers.
const START: Duration = Duration::from_secs(60);
/// How long workers elsewhere may take until all of them answer.
const AFAR: Duration = Duration::from_secs(15);

/// The document with the number of a work folder, by which workers elsewhere know it again.
const NUMBER: &str = "cutover_number";

/// A migration in processes of its own.
pub struct Migration {
    place: Where,
    members: Vec<Member>,
    /// Present when it was started here.
    child: Option<Child>,
    /// Copies of states that are elsewhere.
    following: Vec<Following>,
}

impl Migration {
    /// The one that runs at a place, or a new one where that is a folder.
    ///
    /// Errors: `NotReady` when a worker does not run, `Refused` when nobody has some of the slots.
    pub async fn meet(plan: &Plan, place: &Where, stop: &Shutdown) -> Result<Migration> {
        match place {
            Where::Folder(dir) => Migration::meet_one(plan, dir, stop).await,
            Where::Workers { home, dirs } => {
                covered(home)?;
                let began = Instant::now();
                loop {
                    match Migration::connect(place).await {
                        Ok(met) => return Ok(met),
                        // One that holds its lock has not come to answering yet.
                        Err(e) if dirs.iter().all(|d| Lock::is_held(d)) => {
                            if began.elapsed() > START {
                                return Err(e);
                            }
                        }
                        Err(e) => return Err(e),
                    }
                    pause(stop).await?;
                }
            }
            Where::Tcp { home, remote } => {
                let began = Instant::now();
                loop {
                    match Migration::meet_afar(plan, home, remote).await {
                        Err(e) if e.kind() == ErrorKind::NotReady && began.elapsed() < AFAR => {}
                        met => return met,
                    }
                    pause(stop).await?;
                }
            }
        }
    }

    async fn meet_one(plan: &Plan, dir: &Path, stop: &Shutdown) -> Result<Migration> {
        let place = Where::Folder(dir.to_owned());
        let mut child = None;
        let began = Instant::now();
        loop {
            if let Ok(met) = Migration::connect(&place).await {
                return Ok(Migration { child, ..met });
            }
            // One that holds the lock has not come to answering yet, or comes to its end.
            if child.is_none() && !Lock::is_held(dir) {
                let work_dir = dir.parent().unwrap_or(Path::new("."));
                child = Some(start(plan, work_dir, dir).await?);
            }
            if let Some(child) = &mut child
                && let Ok(Some(_)) = child.try_wait()
            {
                return Err(ended(dir));
            }
            if began.elapsed() > START {
                return Err(silent(dir));
            }
            if !stop.sleep(Duration::from_millis(20)).await {
                return Err(stopped());
            }
        }
    }

    /// Workers elsewhere: all of them have to be there, their states are copied, and they are told where the clients are.
    async fn meet_afar(plan: &Plan, home: &Path, remote: &Remote) -> Result<Migration> {
        let place = Where::Tcp {
            home: home.to_owned(),
            remote: remote.clone(),
        };
        let mut met = Migration::of(&place, members::afar(home, remote).await?);
        met.copy_states(plan, home).await?;
        covered(home)?;
        met.tell_stage().await?;
        for member in &mut met.members {
            // One that was held until now begins, and comes back.
            if let Some(Said::Whose { held: true, .. }) = member.ask(Ask::Whose).await?.said {
                return Err(member.away());
            }
        }
        let more = Migration::connect(&place).await?;
        for again in more.members {
            // A name may lead to them in another order each time.
            let same = met.members.iter().find(|m| m.instance == again.instance);
            let Some(dir) = same.and_then(|m| m.dir.clone()) else {
                return Err(again.away());
            };
            met.following.push(copies::follow(again.asker, dir)?);
        }
        Ok(met)
    }

    /// Takes copies of the states of workers elsewhere, in place of those that are there.
    async fn copy_states(&mut self, plan: &Plan, home: &Path) -> Result<()> {
        // What an earlier cutover has left is of no use.
        let _ = std::fs::remove_dir_all(remote_dir(home));
        let mut names = HashSet::new();
        for member in &mut self.members {
            let name = match member.ask(Ask::Whose).await?.said {
                Some(Said::Whose { name, .. }) => name,
                _ => return Err(member.odd()),
            };
            if !names.insert(name.clone()) {
                return Err(Error::new(
                    ErrorKind::Refused,
                    format!(
                        "two workers call themselves {name}, one of them at {}",
                        member.name
                    ),
                )
                .hint("each worker moves a share of its own: compare their --worker or --shards"));
            }
            let dir = copies::take(&mut member.asker, home, &name, plan)
                .await
                .map_err(|e| e.context(format!("look at the worker at {}", member.name)))?;
            member.dir = Some(dir);
        }
        Ok(())
    }

    /// What runs at a place already; nothing is started, copied or told.
    pub async fn connect(place: &Where) -> Result<Migration> {
        let members = match place {
            Where::Folder(dir) => vec![Member {
                name: format!("the migration in {}", dir.display()),
                start: "run `keyferry migrate`".into(),
                asker: Asker::connect(dir).await?,
                dir: Some(dir.clone()),
                instance: None,
            }],
            Where::Workers { home, dirs } => members::beside(home, dirs).await?,
            Where::Tcp { home, remote } => {
                let members = members::afar(home, remote).await?;
                let known = workers(home)?.iter().filter(|w| w.remote).count();
                if members.len() < known {
                    return Err(Error::new(
                        ErrorKind::NotReady,
                        format!("of {known} workers elsewhere only {} answer", members.len()),
                    )
                    .hint("see that all of them run and can be reached, then run the same command again"));
                }
                members
            }
        };
        Ok(Migration::of(place, members))
    }

    fn of(place: &Where, members: Vec<Member>) -> Migration {
        Migration {
            place: place.clone(),
            members,
            child: None,
            following: Vec::new(),
        }
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

    /// Asks all; the answers of several are put together.
    pub async fn ask(&mut self, ask: Ask) -> Result<Answer> {
        if ask == Ask::Follow {
            let told = self.tell_stage().await;
            return told.and(self.ask_all(ask).await);
        }
        self.ask_all(ask).await
    }

    async fn ask_all(&mut self, ask: Ask) -> Result<Answer> {
        // Each gets the question, whatever becomes of the others.
        let asked = join_all(self.members.iter_mut().map(|m| m.ask(ask))).await;
        if let ([_], Where::Folder(_)) = (&asked[..], &self.place) {
            return asked
                .into_iter()
                .next()
                .unwrap_or_else(|| Ok(Answer::default()));
        }
        let mut all = Answer::default();
        for (answer, member) in asked.into_iter().zip(&self.members) {
            all.add(answer?, &member.name);
        }
        Ok(all)
    }

    /// Has workers elsewhere keep on which side the clients are, as the plan's state here has it. Those of this machine
    /// look there themselves.
    pub async fn tell_stage(&mut self) -> Result<()> {
        let Where::Tcp { home, .. } = &self.place else {
            return Ok(());
        };
        let ask = stage_here(home)?;
        self.ask_all(ask).await.map(drop)
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
    pub async fn end(self) -> Result<()> {
        let Migration {
            place,
            members,
            child,
            following,
        } = self;
        drop(following);
        let ended = match &place {
            Where::Tcp { home, .. } => {
                members::end(members, stage_here(home)?).await;
                Ok(())
            }
            // Kept until then: it lets nothing through while somebody is there.
            place => end(place).await.inspect(|()| drop(members)),
        };
        if let Some(mut child) = child {
            let _ = child.wait().await;
        }
        ended
    }
}

async fn pause(stop: &Shutdown) -> Result<()> {
    match stop.sleep(Duration::from_millis(200)).await {
        true => Ok(()),
        false => Err(stopped()),
    }
}

/// An error when some of the slots have no worker, or more than one.
fn covered(home: &Path) -> Result<()> {
    let known = workers(home)?;
    let shares: Vec<&str> = known.iter().map(|w| w.claim.share.as_str()).collect();
    let (missing, twice) = coverage(known.iter().map(|w| &w.claim));
    let of = known.first().map_or(0, |w| w.claim.of);
    if missing.count() > 0 {
        return Err(Error::new(
            ErrorKind::Refused,
            format!(
                "the slots {missing} have no worker: those of the source's {of} masters that were found are {}",
                shares.join(", ")
            ),
        )
        .hint("start a worker for the masters that are missing, wait until it has caught up, then run the same command again"));
    }
    if twice.count() > 0 {
        return Err(Error::new(
            ErrorKind::Refused,
            format!("more than one worker moves the slots {twice}: {}", shares.join(", ")),
        )
        .hint("stop them all, and start over with on_existing \"reconcile\", each slot with one worker"));
    }
    Ok(())
}

/// Looks at workers elsewhere: takes copies of their states, unless a cutover keeps them up to date now.
pub async fn look(plan: &Plan, home: &Path, remote: &Remote) -> Result<()> {
    private_dir(home)?;
    let Ok(_lock) = Lock::acquire(&home.join("cutover")) else {
        return Ok(());
    };
    let place = Where::find(home, Some(remote))?;
    let mut met = Migration::of(&place, members::afar(home, remote).await?);
    met.copy_states(plan, home).await
}

/// What workers elsewhere are told.
fn stage_here(home: &Path) -> Result<Ask> {
    let mut store = Store::open(home)?;
    let by = match store.json(NUMBER)?.and_then(|n| n.as_u64()) {
        Some(number) => number,
        None => {
            let number = token::number()?;
            store.put_json(NUMBER, &number.into())?;
            number
        }
    };
    let stage = store.stage()?;
    Ok(Ask::Stage { stage, by })
}

/// Ends whatever migration is at a place, whoever has started it.
pub async fn end(place: &Where) -> Result<()> {
    match place {
        Where::Folder(dir) => end_one(dir).await,
        Where::Workers { dirs, .. } => {
            let ended = join_all(dirs.iter().map(|dir| end_one(dir))).await;
            ended.into_iter().collect()
        }
        Where::Tcp { home, remote } => {
            let mut members = Vec::new();
            for named in &remote.addresses {
                let one = Remote {
                    addresses: vec![named.clone()],
                    token: remote.token.clone(),
                };
                match members::afar(home, &one).await {
                    Ok(found) => members.extend(found),
                    Err(e) if e.kind() == ErrorKind::Auth => return Err(e),
                    // As a rule it was told, and has ended.
                    Err(e) => tracing::info!(
                        "the worker at {named} was not told again where the clients are: {e}"
                    ),
                }
            }
            members::end(members, stage_here(home)?).await;
            Ok(())
        }
    }
}

async fn end_one(dir: &Path) -> Result<()> {
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
            let _ = tokio::time::timeout(START, asker.ask(Ask::Stop)).await;
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

fn ended(dir: &Path) -> Error {
    let why = members::why(dir);
    Error::new(ErrorKind::NotReady, format!("the migration has ended{why}"))
        .hint("run `keyferry migrate` to see what it lacks, then the cutover again")
}

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
        tokio::try_join!(end_one(dir.path()), ends).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(100));
    }
}
