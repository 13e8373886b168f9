//! Where a password comes from: the environment, a file, a command's standard output, or Entra ID; and how a new one gets about.
//!
//! A password that can change is read again before its time is over; [`Learnt`] tells every connection, and each
//! authenticates again between two commands.
//! Invariant: a secret lives in [`Held`] only; it is never logged, never part of an error.

#[cfg(feature = "entra")]
use super::entra::token;
use crate::error::{Context, Error, ErrorKind, Result};
#[cfg(not(feature = "entra"))]
use crate::plan::Identity;
use crate::plan::{Endpoint, Held, Learnt, Reading, Redacted, Secret};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long a password command may run.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How often a password file is looked at.
const FILE_EVERY: Duration = Duration::from_secs(5);
/// After a command has failed, while the password still holds.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The password now; `refused` is the version that the server has just refused, which is not taken again.
async fn current(secret: &Secret, learnt: &Learnt, refused: Option<u64>) -> Result<Held> {
    let mut held = learnt.held.lock().await;
    if let Some(held) = held.as_ref()
        && refused != Some(held.version)
        && held.read_at.elapsed() < held.good_for
    {
        return Ok(held.clone());
    }
    let read = match (read(secret).await, held.as_ref()) {
        (Ok(read), _) => read,
        // The one before may still hold.
        (Err(e), Some(held)) if refused != Some(held.version) => {
            tracing::warn!("the password could not be read anew: {e}");
            return Ok(held.clone());
        }
        (Err(e), _) => return Err(e),
    };
    let version = match held.as_ref() {
        Some(held) if held.password == read.password => held.version,
        Some(held) => held.version.saturating_add(1),
        None => 1,
    };
    let now = Held {
        password: read.password,
        version,
        read_at: Instant::now(),
        good_for: read.good_for,
    };
    learnt.is_user(read.user);
    *held = Some(now.clone());
    learnt.changed(version);
    Ok(now)
}

/// The password of an endpoint now; `None` when its plan has none.
pub async fn of(endpoint: &Endpoint, refused: Option<u64>) -> Result<Option<Held>> {
    let Some(secret) = &endpoint.password else {
        return Ok(None);
    };
    let held = current(secret, &endpoint.learnt, refused).await?;
    match (secret, endpoint.user()) {
        (Secret::Entra(_), None) => Err(Error::new(
            ErrorKind::Auth,
            "the token of Entra ID does not tell the object id of its identity, which is the user's name",
        )
        .hint("write the object id as `username` beside the password in the plan")),
        _ => Ok(Some(held)),
    }
}

/// How long a password is used before it is read again, where it does not tell itself.
fn keeps(secret: &Secret) -> Duration {
    match secret {
        Secret::Plain(_) | Secret::Env(_) => Duration::MAX,
        Secret::File(_) => FILE_EVERY,
        // Before it ends, with time left for a command that takes long.
        Secret::Command { refresh, .. } => refresh.map_or(Duration::MAX, |r| r * 3 / 4),
        Secret::Entra(_) => AGAIN_AFTER,
    }
}

/// Whether reading a password again can bring another.
pub fn can_change(secret: &Secret) -> bool {
    matches!(
        secret,
        Secret::File(_) | Secret::Command { .. } | Secret::Entra(_)
    )
}

/// So that what is to be read again is old enough by then.
const MOMENT: Duration = Duration::from_millis(10);

/// Has a password that can change read again and again, from the first connection on.
pub fn keep_fresh(secret: &Secret, learnt: &Learnt) {
    let every = keeps(secret);
    if every == Duration::MAX || learnt.refreshing.swap(true, Relaxed) {
        return;
    }
    let (secret, learnt) = (secret.clone(), learnt.clone());
    let awake = Awake(learnt.refreshing.clone());
    tokio::spawn(async move {
        // Whoever connects after this runtime has ended begins anew.
        let _awake = awake;
        let mut wait = every;
        loop {
            tokio::time::sleep(wait).await;
            // A reading that fails leaves the old password and says so.
            let left = match current(&secret, &learnt, None).await {
                Ok(held) => held.good_for.saturating_sub(held.read_at.elapsed()),
                Err(_) => Duration::ZERO,
            };
            wait = match left {
                Duration::ZERO => AGAIN_AFTER.min(every),
                left => left + MOMENT,
            };
        }
    });
}

/// Says for as long as it lives that the password is kept fresh.
struct Awake(Arc<AtomicBool>);

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

/// After a refusal on a living connection: reads the password anew beside what goes on.
pub fn read_again(secret: &Secret, learnt: &Learnt, refused: u64) {
    let (secret, learnt) = (secret.clone(), learnt.clone());
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if let Err(e) = current(&secret, &learnt, Some(refused)).await {
            tracing::warn!("the password could not be read anew: {e}");
        }
    });
}

async fn read(secret: &Secret) -> Result<Reading> {
    let text = match secret {
        Secret::Entra(identity) => return token(identity).await,
        Secret::Plain(text) => Ok(text.reveal().to_owned()),
        Secret::Env(name) => std::env::var(name).map_err(|_| {
            Error::new(ErrorKind::Auth, format!("the environment variable {name}, which the plan names for the password, is not set"))
                .hint(format!("set {name} and run the same command again"))
        }),
        Secret::File(path) => {
            let text = std::fs::read_to_string(path)
                .context(ErrorKind::Auth, || format!("read the password file {}", path.display()));
            text.map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
        }
        Secret::Command { argv, without, .. } => run(argv, without).await,
    };
    Ok(Reading {
        password: Redacted::new(text?),
        user: None,
        good_for: keeps(secret),
    })
}

#[cfg(not(feature = "entra"))]
async fn token(_: &Identity) -> Result<Reading> {
    Err(Error::new(
        ErrorKind::Unsupported,
        "this keyferry was built without Entra ID",
    ))
}

async fn run(argv: &[String], without: &[String]) -> Result<String> {
    let failed = |what: String| {
        Error::new(ErrorKind::Auth, format!("the password command `{}` {what}", argv.first().map_or("", String::as_str)))
            .hint("run the command of the plan's password by hand: it must print the password and exit with 0")
    };
    let Some((program, args)) = argv.split_first() else {
        return Err(failed("is empty".into()));
    };
    let mut command = tokio::process::Command::new(program);
    for variable in without {
        command.env_remove(variable);
    }
    command
        .args(args)
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::inherit())
        .kill_on_drop(true);
    let output = tokio::time::timeout(COMMAND_LIMIT, command.output())
        .await
        .map_err(|_| failed(format!("did not end within {} s", COMMAND_LIMIT.as_secs())))?
        .map_err(|e| failed("could not be started".into()).cause(e))?;
    if !output.status.success() {
        return Err(failed(format!("ended with {}", output.status)));
    }
    let text = String::from_utf8(output.stdout)
        .map_err(|_| failed("printed something that is not UTF-8".into()))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(failed("printed nothing".into())),
        password => Ok(password.to_owned()),
    }
}
