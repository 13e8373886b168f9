//! `keyferry plan new|validate|schema`.

use super::{load, print};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Plan, RdbPath, Source};
use clap::Subcommand;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

#[derive(Subcommand)]
pub enum PlanCommand {
    /// Write a starting plan to a file, or to standard output
    New {
        /// The file; it must not exist yet
        file: Option<PathBuf>,
        #[arg(long, default_value = "my-service")]
        name: String,
        #[arg(long, default_value = "redis://source.example:6379")]
        source: String,
        #[arg(long, default_value = "rediss://target.example:10000")]
        target: String,
        /// Overwrite the file if it exists
        #[arg(long)]
        force: bool,
    },
    /// Check a plan and say what would be done; nothing is contacted
    Validate {
        /// The plan file
        plan: PathBuf,
    },
    /// Print the JSON Schema of a plan
    Schema,
}

pub fn run(command: PlanCommand) -> Result<u8> {
    match command {
        PlanCommand::New {
            file,
            name,
            source,
            target,
            force,
        } => new(file, &name, &source, &target, force)?,
        PlanCommand::Validate { plan } => {
            let job = load(&plan)?;
            let from = match &job.source {
                Source::Server { endpoint, .. } => endpoint.redacted_url(),
                Source::Rdb {
                    path: RdbPath::Stdin,
                } => "a snapshot on standard input".into(),
                Source::Rdb {
                    path: RdbPath::File(path),
                } => format!("the snapshot {}", path.display()),
            };
            print(&format!(
                "the plan is valid: {} moves {from} to {}",
                job.name,
                job.target.redacted_url()
            ))?;
        }
        PlanCommand::Schema => print(&format!("{:#}", Plan::schema()))?,
    }
    Ok(0)
}

fn new(file: Option<PathBuf>, name: &str, source: &str, target: &str, force: bool) -> Result<()> {
    let plan = json!({
        "name": name,
        "source": { "mode": "auto", "url": source, "password": { "env": "SOURCE_PASSWORD" } },
        "target": { "url": target, "password": { "env": "TARGET_PASSWORD" } },
        "on_existing": "fail",
        "verify": { "ttl_tolerance_ms": 1000 }
    });
    let text = format!("{plan:#}");
    Plan::parse(&text).and_then(|p| crate::plan::validate(&p))?;
    let Some(path) = file else {
        return print(&text);
    };
    let mut options = std::fs::OpenOptions::new();
    options.write(true);
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    options
        .open(&path)
        .and_then(|mut f| writeln!(f, "{text}"))
        .map_err(|e| {
            Error::new(
                ErrorKind::Usage,
                format!("write the plan {}", path.display()),
            )
            .cause(e)
            .hint("choose another file, or use --force")
        })
}
