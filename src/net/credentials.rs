//! Where a password comes from: the environment, a file, or a command's standard output; and how a new one gets about.
//!
//! A password that can change is read again before its time is over; [`Learnt`] tells every connection, and each
//! authenticates again between two commands.
//! Invariant: a secret lives in [`Held`] only; it is never logged, never part of an error.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::plan::{Endpoint, Held, Learnt, Redacted, Secret};
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
        && held.read_at.elapsed() < keeps(secret)
    {
        return Ok(held.clone());
    }
    let text = match (read(secret).await, held.as_ref()) {
        (Ok(text), _) => text,
        // The one before may still hold.
        (Err(e), Some(held)) if refused != Some(held.version) => {
            tracing::warn!("the password could not be read anew: {e}");
            return Ok(held.clone());
        }
        (Err(e), _) => return Err(e),
    };
    let version = match held.as_ref() {
        Some(held) if held.password.reveal() == text => held.version,
        Some(held) => held.version.saturating_add(1),
        None => 1,
    };
    let now = Held {
        password: Redacted::new(text),
        version,
        read_at: Instant::now(),
    };
    *held = Some(now.clone());
    learnt.changed(version);
    Ok(now)
}

/// The password of an endpoint now; `None` when its plan has none.
pub async fn of(endpoint: &Endpoint, refused: Option<u64>) -> Result<Option<Held>> {
    match &endpoint.password {
        Some(secret) => current(secret, &endpoint.learnt, refused).await.map(Some),
        None => Ok(None),
    }
}

/// How long a password is used before it is read again.
fn keeps(secret: &Secret) -> Duration {
    match secret {
        Secret::Plain(_) | Secret::Env(_) => Duration::MAX,
        Secret::File(_) => FILE_EVERY,
        // Before it ends, with time left for a command that takes long.
        Secret::Command { refresh, .. } => refresh.map_or(Duration::MAX, |r| r * 3 / 4),
    }
}

/// Whether reading a password again can bring another.
pub fn can_change(secret: &Secret) -> bool {
    matches!(secret, Secret::File(_) | Secret::Command { .. })
}

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
            let before = learnt.held.lock().await.as_ref().map(|h| h.read_at);
            // A reading that fails leaves the old password and says so.
            let read = current(&secret, &learnt, None).await;
            wait = match read {
                Ok(held) if Some(held.read_at) != before => every,
                _ => AGAIN_AFTER.min(every),
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

async fn read(secret: &Secret) -> Result<String> {
    match secret {
        Secret::Plain(text) => Ok(text.reveal().to_owned()),
        Secret::Env(name) => std::env::var(name).map_err(|_| {
            Error::new(ErrorKind::Auth, format!("the environment variable {name}, which the plan names for the password, is not set"))
                .hint(format!("set {name} and run the same command again"))
        }),
        Secret::File(path) => {
            let text = std::fs::read_to_string(path)
                .context(ErrorKind::Auth, || format!("read the password file {}", path.display()))?;
            Ok(text.trim_end_matches(['\r', '\n']).to_owned())
        }
        Secret::Command { argv, without, .. } => run(argv, without).await,
    }
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
