//! The command line: what can be asked for, and how errors are shown.
//!
//! Invariant: standard output carries results only; everything else goes to standard error.

mod migrate;
mod plan;
mod progress;
pub mod rdb;
mod report;
mod status;
mod verify;

use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Job, Plan, validate};
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

const AFTER: &str = "\
Examples:
  keyferry plan new > plan.json        write a starting plan
  keyferry plan validate plan.json     check it
  keyferry migrate plan.json --dry-run --until caught-up
  keyferry migrate plan.json           load, then follow until Ctrl-C; run again to go on
  keyferry verify plan.json            prove that both sides are equal
  keyferry report plan.json            what was recorded, as Markdown and JSON

Exit codes: 0 done, equal · 1 the answer is no · 2 wrong usage or plan · 3 failed, state saved · 130 interrupted, state saved";

/// Moves live Redis and Valkey data between providers and proves that it arrived.
#[derive(Parser)]
#[command(name = "keyferry", version, about, after_help = AFTER, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Args, Clone)]
pub struct Common {
    /// Where plans keep their state, each in a folder of its own
    #[arg(long, global = true, default_value = ".keyferry", value_name = "DIR")]
    pub work_dir: PathBuf,
    /// What is logged to standard error: error, warn, info, debug, trace
    #[arg(long, global = true, default_value = "warn", value_name = "LEVEL")]
    pub log: String,
    /// Log as JSON, one object a line
    #[arg(long, global = true)]
    pub log_json: bool,
    /// Draw no progress; print a plain line every few seconds instead
    #[arg(long, global = true)]
    pub no_progress: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Load a snapshot of the source, then follow its replication stream until Ctrl-C
    ///
    /// Started again, it goes on where it was. With --dry-run nothing is written to the target.
    Migrate(migrate::Migrate),
    /// Progress, lag and marks of a plan, also while or after another process runs it
    Status(status::Status),
    /// Compare both sides by checksums per slot, down to the key; exit code 1 when they differ
    Verify(verify::Verify),
    /// Write what was recorded as Markdown and JSON
    Report(report::Report),
    /// Look into a snapshot file ("-" is standard input)
    #[command(subcommand)]
    Rdb(rdb::RdbCommand),
    /// Write a starting plan, check one, print its JSON Schema
    #[command(subcommand)]
    Plan(plan::PlanCommand),
    /// Print completions for a shell
    Completions { shell: clap_complete::Shell },
}

/// Runs the program; returns the exit code.
pub fn run() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { 2 } else { 0 };
        }
    };
    match dispatch(cli) {
        Ok(code) => code,
        Err(e) => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let (red, plain) = if colour {
                ("\x1b[1;31m", "\x1b[0m")
            } else {
                ("", "")
            };
            eprintln!("{red}error:{plain} {e}\n  hint: {}", e.remedy());
            e.exit_code()
        }
    }
}

fn dispatch(cli: Cli) -> Result<u8> {
    log(&cli.common)?;
    let common = cli.common;
    match cli.command {
        Command::Migrate(args) => block_on(migrate::run(args, common)),
        Command::Status(args) => status::run(args, &common),
        Command::Verify(args) => block_on(verify::run(args, common)),
        Command::Report(args) => report::run(args, &common),
        Command::Rdb(args) => rdb::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "keyferry",
                &mut std::io::stdout(),
            );
            Ok(0)
        }
    }
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(
            std::thread::available_parallelism()
                .map_or(2, usize::from)
                .clamp(2, 8),
        )
        .enable_all()
        .build()
        .map_err(|e| Error::new(ErrorKind::Bug, "start the runtime").cause(e))?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

fn log(common: &Common) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(format!("keyferry={0}", common.log))
        .map_err(|e| {
            Error::new(
                ErrorKind::Usage,
                format!("--log {:?} is not a level", common.log),
            )
            .cause(e)
        })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if common.log_json {
        builder.json().init()
    } else {
        builder.with_target(false).init()
    }
    Ok(())
}

/// Reads and checks a plan; "-" is standard input. Warnings go to standard error.
fn load(path: &Path) -> Result<Job> {
    let text = if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.map_err(|e| {
        Error::new(ErrorKind::Plan, format!("read the plan {}", path.display()))
            .cause(e)
            .hint("write one with `keyferry plan new`")
    })?;
    let job = Plan::parse(&text)
        .and_then(|plan| validate(&plan))
        .map_err(|e| e.context(format!("the plan {} is wrong", path.display())))?;
    for warning in &job.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(job)
}

/// The folder of a plan's state.
fn state_dir(common: &Common, job: &Job) -> PathBuf {
    common.work_dir.join(&job.name)
}

/// Prints a result; a reader that has gone away is no error.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::new(ErrorKind::Disk, "write the result to standard output").cause(e))
        }
        _ => Ok(()),
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print(
        &serde_json::to_string(value)
            .map_err(|e| Error::new(ErrorKind::Bug, "write the result as JSON").cause(e))?,
    )
}

/// "1.5 GB".
fn human_bytes(n: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let name = units.get(unit).copied().unwrap_or_default();
    if unit == 0 {
        format!("{n} {name}")
    } else {
        format!("{value:.1} {name}")
    }
}
