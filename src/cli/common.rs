//! What every command has in common: its options, its plan, and how it is run.

use super::output;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::plan::{Job, Plan, RdbPath, Source, validate};
use clap::Args;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The flags of every command.
#[derive(Args)]
pub struct Common {
    /// Where state is kept, a folder for each plan
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = ".keyferry",
        env = "KEYFERRY_WORK_DIR",
        help_heading = "Common options"
    )]
    pub work_dir: PathBuf,
    /// What to log to standard error: error, warn, info, debug, trace
    #[arg(
        long,
        global = true,
        value_name = "LEVEL",
        default_value = "warn",
        env = "KEYFERRY_LOG",
        help_heading = "Common options"
    )]
    pub log: String,
    /// Log as JSON, one object per line
    #[arg(long, global = true, help_heading = "Common options")]
    pub log_json: bool,
    /// Never draw; one plain line every few seconds instead
    #[arg(long, global = true, help_heading = "Common options")]
    pub no_progress: bool,
    /// Serve Prometheus text at http://ADDR/metrics while a migration runs
    #[arg(
        long,
        global = true,
        value_name = "ADDR",
        help_heading = "Common options"
    )]
    pub metrics: Option<SocketAddr>,
}

impl Common {
    /// The folder of a plan's state.
    pub fn state_dir(&self, job: &Job) -> PathBuf {
        self.work_dir.join(&job.name)
    }
}

/// Reads, parses and validates a plan; `-` is standard input.
pub fn load(path: &Path) -> Result<Job> {
    let plan = plan_of(path)?;
    let job = validate(&plan).map_err(|e| e.context(format!("read the plan {}", named(path))))?;
    if path == Path::new("-")
        && matches!(
            job.source,
            Source::Rdb {
                path: RdbPath::Stdin
            }
        )
    {
        return Err(Error::new(
            ErrorKind::Plan,
            "the plan and its snapshot cannot both come from standard input",
        )
        .hint("put the plan into a file"));
    }
    Ok(job)
}

pub fn named(path: &Path) -> String {
    match path == Path::new("-") {
        true => "from standard input".to_string(),
        false => path.display().to_string(),
    }
}

/// Reads and parses a plan; `-` is standard input.
pub fn plan_of(path: &Path) -> Result<Plan> {
    let from_stdin = path == Path::new("-");
    let text = if from_stdin {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map(|_| text)
            .context(ErrorKind::Plan, || {
                "read the plan from standard input".into()
            })
    } else {
        std::fs::read_to_string(path).context(ErrorKind::Plan, || {
            format!("read the plan {}", path.display())
        })
    };
    let text = text.map_err(|e| {
        e.hint("check the path; `keyferry plan new FILE` writes a plan to start from")
    })?;
    Plan::parse(&text).map_err(|e| e.context(format!("read the plan {}", named(path))))
}

/// As [`load`], and says on standard error what is remarkable about the plan.
pub fn load_and_warn(path: &Path) -> Result<Job> {
    let job = load(path)?;
    for warning in &job.warnings {
        output::say(&format!("warning: {warning}"));
    }
    Ok(job)
}

/// Runs a flow to its end; what it left behind in other threads gets a second.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::new(ErrorKind::Bug, "start the runtime").cause(e))?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}
