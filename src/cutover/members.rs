//! The processes that a migration is asked of: workers beside us by their sockets, workers elsewhere by their ports.

use crate::cutover::place::Remote;
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::control::asker::Asker;
use crate::migrate::control::orders::{Answer, Ask, Said};
use crate::migrate::control::port;
use crate::store::{Lock, Store, workers};
use futures::future::join_all;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long one may take to answer one question.
const ANSWER: Duration = Duration::from_secs(30);
/// How long one may take to end.
const END: Duration = Duration::from_secs(60);
/// Where a migration that a cutover has started writes its log.
pub const LOG: &str = "cutover-migrate.log";

/// One process that is asked.
pub struct Member {
    /// For messages.
    pub name: String,
    /// What to do when it does not run.
    pub start: String,
    /// Its state, where that is here.
    pub dir: Option<PathBuf>,
    /// The number of its process, where that is elsewhere.
    pub instance: Option<u64>,
    pub asker: Asker,
}

impl Member {
    pub async fn ask(&mut self, ask: Ask) -> Result<Answer> {
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

    pub fn away(&self) -> Error {
        Error::new(
            ErrorKind::NotReady,
            format!("{} does not run yet", self.name),
        )
        .hint(&self.start)
    }

    pub fn odd(&self) -> Error {
        Error::new(
            ErrorKind::Protocol,
            format!("{} answers in another way", self.name),
        )
        .hint("use the same version of keyferry for the cutover and its workers")
    }
}

/// Workers of this machine, which must all run.
pub async fn beside(home: &Path, dirs: &[PathBuf]) -> Result<Vec<Member>> {
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
        let start =
            format!("start it with {start}, leave it running, then run the same command again");
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
            instance: None,
            asker,
        });
    }
    Ok(members)
}

/// Workers elsewhere: all that the addresses lead to. `home`: the plan's folder, which has its name.
pub async fn afar(home: &Path, remote: &Remote) -> Result<Vec<Member>> {
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
                    instance: None,
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
                Some(Said::Whose { plan, .. }) if Some(OsStr::new(&plan)) != home.file_name() => {
                    return Err(Error::new(
                        ErrorKind::Usage,
                        format!(
                            "{} moves the plan {plan:?}, which is another one",
                            member.name
                        ),
                    )
                    .hint("name the workers of this plan with --worker-at"));
                }
                Some(Said::Whose { instance, .. }) => {
                    member.instance = Some(instance);
                    members.push(member);
                }
                _ => return Err(member.odd()),
            }
        }
        if let (Some(e), true) = (why, members.len() == before) {
            return Err(e.context(format!("ask the worker at {named}")));
        }
    }
    Ok(members)
}

/// Tells workers elsewhere where the clients are, ends them, and waits for that.
pub async fn end(members: Vec<Member>, stage: Ask) {
    let one = |mut member: Member| async move {
        let told = match member.ask(stage).await {
            Ok(_) => member.ask(Ask::Stop).await,
            Err(e) => Err(e),
        };
        match told {
            Ok(_) => {
                let _ = tokio::time::timeout(END, member.asker.gone()).await;
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

/// Its state says why it has ended.
pub fn why(dir: &Path) -> String {
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
