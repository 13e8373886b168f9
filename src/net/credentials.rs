//! Where a password comes from: the environment, a file, or a command's standard output.
//!
//! Invariant: a secret lives in the returned string only; it is never logged, never part of an error.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::plan::Secret;
use std::time::Duration;

/// How long a password command may run.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Reads the secret now; a command is run anew each time.
pub async fn resolve(secret: &Secret) -> Result<String> {
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
        Secret::Command { argv, .. } => run(argv).await,
    }
}

async fn run(argv: &[String]) -> Result<String> {
    let failed = |what: String| {
        Error::new(ErrorKind::Auth, format!("the password command `{}` {what}", argv.first().map_or("", String::as_str)))
            .hint("run the command of the plan's password by hand: it must print the password and exit with 0")
    };
    let Some((program, args)) = argv.split_first() else {
        return Err(failed("is empty".into()));
    };
    let mut command = tokio::process::Command::new(program);
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
