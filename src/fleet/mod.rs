//! One command over many plans: a process for each, so many at a time, and what they have come to as one answer.
//!
//! Invariant: after a failure nothing more is begun (unless the user says so); what has begun comes to its end.

use crate::error::{Error, ErrorKind, Result};
use crate::task::Shutdown;
use serde::Serialize;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;
use tokio::process::Command;
use tokio::task::JoinSet;

/// What is run.
pub struct Options {
    pub command: String,
    pub plans: Vec<PathBuf>,
    /// More words for each of them.
    pub more: Vec<String>,
    pub work_dir: PathBuf,
    pub at_once: usize,
    /// Go on with the others after a failure.
    pub keep_going: bool,
    /// Told when a plan begins and when it has ended.
    pub tell: Arc<dyn Fn(&Row) + Send + Sync>,
}

/// What one plan has come to.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Row {
    pub plan: String,
    /// `running`, `done`, `refused` (1), `failed` or `not begun`.
    pub state: &'static str,
    pub exit: Option<i32>,
    pub elapsed_ms: u64,
    /// What it has answered, where that is JSON.
    pub answer: Value,
    /// The last line of its log, where it has failed.
    pub said: String,
}

/// The answer of `fleet --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub command: String,
    pub done: usize,
    pub not_done: usize,
    pub not_begun: usize,
    pub plans: Vec<Row>,
}

/// Runs the command on all plans, in their order.
///
/// A stop reaches those that run as Ctrl-C does; they save their state.
pub async fn run(options: &Options, stop: &Shutdown) -> Result<Summary> {
    let mut rows: Vec<Row> = (options.plans.iter())
        .map(|plan| Row {
            plan: plan.display().to_string(),
            state: "not begun",
            ..Row::default()
        })
        .collect();
    let mut running: JoinSet<Result<(usize, Row)>> = JoinSet::new();
    let (mut next, mut failed) = (0, false);
    loop {
        let go_on = (!failed || options.keep_going) && !stop.requested();
        while go_on && running.len() < options.at_once.max(1) && next < rows.len() {
            let Some(row) = rows.get_mut(next) else { break };
            row.state = "running";
            (options.tell)(row);
            running.spawn(one(
                next,
                row.clone(),
                command(options, next)?,
                stop.clone(),
            ));
            next += 1;
        }
        let Some(ended) = running.join_next().await else {
            break;
        };
        let (at, row) =
            ended.map_err(|e| Error::new(ErrorKind::Bug, "a plan's task panicked").cause(e))??;
        failed |= row.state != "done";
        (options.tell)(&row);
        if let Some(place) = rows.get_mut(at) {
            *place = row;
        }
    }
    let count = |state: &str| rows.iter().filter(|r| r.state == state).count();
    Ok(Summary {
        command: options.command.clone(),
        done: count("done"),
        not_begun: count("not begun"),
        not_done: rows.len() - count("done") - count("not begun"),
        plans: rows,
    })
}

fn command(options: &Options, at: usize) -> Result<Command> {
    let program = std::env::current_exe()
        .map_err(|e| Error::new(ErrorKind::Bug, "find this program").cause(e))?;
    let mut command = Command::new(program);
    command
        .arg(&options.command)
        .args(options.plans.get(at))
        .arg("--work-dir")
        .arg(&options.work_dir)
        .arg("--no-progress")
        .args(takes_json(&options.command).then_some("--json"))
        .args(&options.more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C reaches it from here, once.
        .process_group(0);
    Ok(command)
}

fn takes_json(command: &str) -> bool {
    command != "report"
}

async fn one(at: usize, row: Row, mut command: Command, stop: Shutdown) -> Result<(usize, Row)> {
    let began = Instant::now();
    let child = command
        .spawn()
        .map_err(|e| Error::new(ErrorKind::Bug, "start keyferry for a plan").cause(e))?;
    let pid = child.id();
    let output = child.wait_with_output();
    tokio::pin!(output);
    let output = tokio::select! {
        output = &mut output => output,
        () = stop.wait() => {
            use rustix::process::{Pid, Signal, kill_process};
            if let Some(pid) = pid.and_then(|p| Pid::from_raw(p.cast_signed())) {
                let _ = kill_process(pid, Signal::INT);
            }
            output.await
        }
    };
    let output = output.map_err(|e| Error::new(ErrorKind::Bug, "wait for keyferry").cause(e))?;
    let exit = output.status.code();
    let log = String::from_utf8_lossy(&output.stderr);
    let error = log.lines().rev().find(|l| l.starts_with("error"));
    let row = Row {
        state: match exit {
            Some(0) => "done",
            Some(1) => "refused",
            _ => "failed",
        },
        exit,
        elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        answer: serde_json::from_slice(&output.stdout).unwrap_or_default(),
        said: match exit {
            Some(0) => String::new(),
            _ => error.or(log.lines().last()).unwrap_or_default().to_owned(),
        },
        ..row
    };
    Ok((at, row))
}
