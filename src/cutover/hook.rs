//! The user's programs: what they are told, how long they may take, and what they have said.

use crate::error::{Error, ErrorKind, Result, printable};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use serde_json::Value;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

/// Bytes of a program's output that are kept.
const KEPT: usize = 16 << 10;

/// A program of the plan.
pub struct Hook<'a> {
    pub name: &'a str,
    pub argv: &'a [String],
    /// Variables that it does not inherit.
    pub without: &'a [String],
    pub limit: Duration,
}

/// How a program has ended.
#[derive(Debug, Clone, Serialize)]
pub struct Ran {
    pub program: String,
    pub ms: u64,
    /// `None` when it was ended by a signal.
    pub exit: Option<i32>,
    /// It took longer than it may, and was ended.
    pub hung: bool,
    pub output: String,
}

impl Hook<'_> {
    /// Runs it with `told` on its standard input and in the environment: each field as `KEYFERRY_…`.
    pub async fn run(&self, told: &Value) -> Result<Ran> {
        let failed = |what: &str, e: std::io::Error| {
            Error::new(ErrorKind::Refused, format!("{what} the {} hook", self.name))
                .cause(e)
                .hint(format!("check cutover.hooks.{} in the plan", self.name))
        };
        let Some((program, arguments)) = self.argv.split_first() else {
            return Err(Error::new(
                ErrorKind::Plan,
                format!("cutover.hooks.{} is empty", self.name),
            ));
        };
        let began = Instant::now();
        let mut command = tokio::process::Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: what it starts ends with it, and Ctrl-C does not reach it.
            .process_group(0);
        for variable in self.without {
            command.env_remove(variable);
        }
        for (key, value) in told.as_object().into_iter().flatten() {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Object(_) | Value::Array(_) | Value::Null => continue,
                other => other.to_string(),
            };
            command.env(format!("KEYFERRY_{}", key.to_ascii_uppercase()), text);
        }
        let mut child = command.spawn().map_err(|e| failed("start", e))?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let mut input = told.to_string();
        input.push('\n');
        if let Some(mut stdin) = child.stdin.take() {
            // It need not read it.
            let _ = tokio::time::timeout(self.limit, stdin.write_all(input.as_bytes())).await;
        }
        let output = Kept::default();
        let out = tokio::spawn(keep(child.stdout.take(), output.clone()));
        let err = tokio::spawn(keep(child.stderr.take(), output.clone()));
        let ended = tokio::time::timeout(self.limit.saturating_sub(began.elapsed()), child.wait());
        let (exit, hung) = match ended.await {
            Ok(status) => (status.map_err(|e| failed("wait for", e))?.code(), false),
            Err(_) => {
                if let Some(group) = group {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                let _ = child.wait().await;
                (None, true)
            }
        };
        // What it has started in the background may hold its output open.
        let grace = Duration::from_millis(200);
        for part in [out, err] {
            let _ = tokio::time::timeout(grace, part).await;
        }
        let output = output.lock().unwrap_or_else(PoisonError::into_inner);
        let output = String::from_utf8_lossy(&output);
        let output = printable(&output, "\n\t").into_owned();
        Ok(Ran {
            program: program.clone(),
            ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            exit,
            hung,
            output,
        })
    }
}

/// An error unless a program has ended with 0.
pub fn succeeded(name: &str, ran: &Ran) -> Result<()> {
    let how = match (ran.hung, ran.exit) {
        (false, Some(0)) => return Ok(()),
        (true, _) => format!("took longer than {} ms and was ended", ran.ms),
        (false, Some(code)) => format!("ended with {code}"),
        (false, None) => "was ended by a signal".into(),
    };
    let said = match ran.output.trim() {
        "" => String::new(),
        output => format!("; it said: {}", last_line(output)),
    };
    Err(Error::new(
        ErrorKind::Refused,
        format!("the {name} hook {} {how}{said}", ran.program),
    )
    .hint(
        "mend the program (the report has all that it has said), then run the same command again",
    ))
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

/// What was said so far.
type Kept = Arc<Mutex<Vec<u8>>>;

async fn keep(stream: Option<impl AsyncRead + Unpin>, kept: Kept) {
    let Some(mut stream) = stream else { return };
    let mut chunk = vec![0; 4096];
    while let Ok(n) = stream.read(&mut chunk).await {
        if n == 0 {
            break;
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let room = KEPT.saturating_sub(kept.len()).min(n);
        kept.extend_from_slice(chunk.get(..room).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    async fn run(script: &str, limit_ms: u64) -> Ran {
        let argv = ["sh", "-c", script].map(str::to_owned);
        let limit = Duration::from_millis(limit_ms);
        let hook = Hook {
            name: "switch",
            argv: &argv,
            without: &["PATH".to_owned()],
            limit,
        };
        hook.run(&json!({ "step": "switch", "attempt": 3 }))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_program_is_told_and_what_it_says_is_kept() {
        let ran = run(
            "cat; echo $KEYFERRY_STEP $KEYFERRY_ATTEMPT >&2; exit 7",
            5_000,
        )
        .await;
        assert_eq!((ran.exit, ran.hung), (Some(7), false));
        assert_eq!(
            ran.output,
            "{\"step\":\"switch\",\"attempt\":3}\nswitch 3\n"
        );
        let said = succeeded("switch", &ran).unwrap_err().to_string();
        assert!(said.contains("ended with 7; it said: switch 3"), "{said}");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended_with_all_that_it_has_started() {
        let began = Instant::now();
        let ran = run("sleep 60 & sleep 60", 300).await;
        assert!(ran.hung && began.elapsed() < Duration::from_secs(5));
        assert!(
            succeeded("switch", &ran)
                .unwrap_err()
                .to_string()
                .contains("was ended")
        );
    }
}
