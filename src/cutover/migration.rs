//! The migration that a cutover asks: one that runs already, one that it starts and ends, or workers that run.
//!
//! Invariant: of several workers, what is asked is asked of all, and what one has not done is not done.

use crate::check::STOPS;
use crate::cutover::copies::{self, Following};
use crate::cutover::options::stopped;
use crate::cutover::place::{Remote, Where};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::migrate::control::asker::Asker;
use crate::migrate::control::orders::{Answer, Ask, Said};
use crate::migrate::control::{port, token};
use crate::plan::Plan;
use crate::store::{Lock, Store, coverage, remote_dir, workers};
use crate::task::{Shutdown, private_dir, private_file};
use futures::future::join_all;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

/// How long a migration may take until it answers.
const START: Duration = Duration::from_secs(60);

/// How long it may take to answer one question.
const ANSWER: Duration = Duration::from_secs(30);
/// How long workers elsewhere may take until all of them answer.
const AFAR: Duration = Duration::from_secs(15);

/// The document with the number of a work folder, by which workers elsewhere know it again.
const NUMBER: &str = "cutover_number";

/// One process that is asked.
struct Member {
    /// For messages.
    name: String,
    /// What to do when it does not run.
    start: String,
    /// Its state, where that is here.
    dir: Option<PathBuf>,
    asker: Asker,
}

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
        let mut met = Migration::connect(&place).await?;
        // What an earlier cutover has left is of no use.
        let _ = std::fs::remove_dir_all(remote_dir(home));
        let mut names = HashSet::new();
        for member in &mut met.members {
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
        covered(home)?;
        met.tell_stage().await?;
        for member in &mut met.members {
            // One that was held until now begins, and comes back.
            if let Some(Said::Whose { held: true, .. }) = member.ask(Ask::Whose).await?.said {
                return Err(member.away());
            }
        }
        let more = Migration::connect(&place).await?;
        for (member, again) in met.members.iter().zip(more.members) {
            if let Some(dir) = &member.dir {
                met.following
                    .push(copies::follow(again.asker, dir.clone())?);
            }
        }
        Ok(met)
    }

    /// What runs at a place already; nothing is started, copied or told.
    pub async fn connect(place: &Where) -> Result<Migration> {
        let members = match place {
            Where::Folder(dir) => vec![Member {
                name: format!("the migration in {}", dir.display()),
                start: "run `keyferry migrate`".into(),
                asker: Asker::connect(dir).await?,
                dir: Some(dir.clone()),
            }],
            Where::Workers { home, dirs } => {
                let known = workers(home)?;
                let share = |dir: &Path| {
                    let worker = known.iter().find(|w| w.dir == dir);
                    worker.map_or(String::new(), |w| w.claim.share.clone())
                };
                let starts: Vec<String> = (dirs.iter())
                    .map(|dir| format!("`keyferry migrate PLAN {}`", share(dir)))
                    .collect();
                drop(known);
                let mut members = Vec::new();
                for (dir, start) in dirs.iter().zip(starts) {
                    let name = format!("the worker in {}", dir.display());
                    let start = format!(
                        "start it with {start}, leave it running, then run the same command again"
                    );
                    let asker = Asker::connect(dir).await.map_err(|e| {
                        let why = match Lock::is_held(dir) {
                            true => "does not answer yet",
                            false => "does not run",
                        };
                        Error::new(ErrorKind::NotReady, format!("{name} {why}"))
                            .cause(e)
                            .hint(&start)
                    })?;
                    members.push(Member {
                        name,
                        start,
                        dir: Some(dir.clone()),
                        asker,
                    });
                }
                members
            }
            Where::Tcp { remote, .. } => connect_afar(remote).await?,
        };
        Ok(Migration {
            place: place.clone(),
            members,
            child: None,
            following: Vec::new(),
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
                end_afar(members, stage_here(home)?).await;
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

impl Member {
    async fn ask(&mut self, ask: Ask) -> Result<Answer> {
        match tokio::time::timeout(ANSWER, self.asker.ask(ask)).await {
            Ok(Err(e)) if e.kind() == ErrorKind::NotReady => Err(self.ended().cause(e)),
            Ok(asked) => asked.map_err(|e| {
                let hint = e.remedy().to_owned();
                Error::new(e.kind(), format!("{}: {}", self.name, e.chain())).hint(hint)
            }),
            Err(_) => Err(Error::new(
                ErrorKind::NotReady,
                format!("{} does not answer", self.name),
            )
            .hint("stop it, and run the same command again")),
        }
    }

    fn ended(&self) -> Error {
        let why = self.dir.as_deref().map(why).unwrap_or_default();
        Error::new(ErrorKind::NotReady, format!("{} has ended{why}", self.name))
            .hint(format!("see what it lacks; {}", self.start))
    }

    fn away(&self) -> Error {
        Error::new(
            ErrorKind::NotReady,
            format!("{} does not run yet", self.name),
        )
        .hint(&self.start)
    }

    fn odd(&self) -> Error {
        Error::new(
            ErrorKind::Protocol,
            format!("{} answers in another way", self.name),
        )
        .hint("use the same version of keyferry for the cutover and its workers")
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

async fn connect_afar(remote: &Remote) -> Result<Vec<Member>> {
    let (mut members, mut known) = (Vec::new(), HashSet::new());
    for named in &remote.addresses {
        let found: Vec<SocketAddr> = match tokio::net::lookup_host(named.as_str()).await {
            Ok(found) => found.collect(),
            Err(e) => {
                return Err(Error::new(
                    ErrorKind::NotReady,
                    format!("the name of the worker at {named} leads nowhere"),
                )
                .cause(e)
                .hint("--worker-at is HOST:PORT, as the worker's --control-listen; does its Service have ready pods?"));
            }
        };
        let mut why = None;
        let before = members.len();
        for address in found {
            let mut member = match port::connect(address, &remote.token).await {
                Ok(asker) => Member {
                    name: format!("the worker at {address}"),
                    start: "start it again, and run the same command again".into(),
                    dir: None,
                    asker,
                },
                // Of several, whether one is missed is seen by the slots.
                Err(e) if e.kind() == ErrorKind::NotReady => {
                    why = Some(e);
                    continue;
                }
                Err(e) => return Err(e),
            };
            match member.ask(Ask::Whose).await?.said {
                // The same one by another of its addresses.
                Some(Said::Whose { instance, .. }) if !known.insert(instance) => {}
                Some(Said::Whose { .. }) => members.push(member),
                _ => return Err(member.odd()),
            }
        }
        if let (Some(e), true) = (why, members.len() == before) {
            return Err(e.context(format!("ask the worker at {named}")));
        }
    }
    Ok(members)
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
                match connect_afar(&one).await {
                    Ok(found) => members.extend(found),
                    Err(e) if e.kind() == ErrorKind::Auth => return Err(e),
                    // As a rule it was told, and has ended.
                    Err(e) => tracing::info!(
                        "the worker at {named} was not told again where the clients are: {e}"
                    ),
                }
            }
            end_afar(members, stage_here(home)?).await;
            Ok(())
        }
    }
}

/// Tells workers elsewhere where the clients are, ends them, and waits for that.
async fn end_afar(members: Vec<Member>, stage: Ask) {
    let one = |mut member: Member| async move {
        let told = match member.ask(stage).await {
            Ok(_) => member.ask(Ask::Stop).await,
            Err(e) => Err(e),
        };
        match told {
            Ok(_) => {
                let _ = tokio::time::timeout(START, member.asker.gone()).await;
            }
            Err(e) => untold(&member.name, &e),
        }
    };
    join_all(members.into_iter().map(one)).await;
}

/// It was told before the clients were moved, so it lets nothing through until it hears what has become of them.
fn untold(name: &str, why: &Error) {
    tracing::warn!(
        "{name} could not be told where the clients are, and holds still until it is: {}; run the same command again when it answers",
        why.chain()
    );
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

fn ended(dir: &Path) -> Error {
    let why = why(dir);
    Error::new(ErrorKind::NotReady, format!("the migration has ended{why}"))
        .hint("run `keyferry migrate` to see what it lacks, then the cutover again")
}

/// Its state says why it has ended.
fn why(dir: &Path) -> String {
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
    said()
        .or(told)
        .map(|w| format!(": {w}"))
        .unwrap_or_default()
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
        tokio::try_join!(end_one(dir.path()), ends).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(100));
    }
}
