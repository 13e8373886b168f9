//! `keyferry plan new|validate|schema`: nothing here connects anywhere.

use super::common::{Common, load};
use super::output;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Job, OnExisting, Plan, Source};
use clap::Subcommand;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum PlanCommand {
    /// Write a plan to start from, to FILE or standard output
    #[command(after_help = "\
A password in a url does not get into the plan: the plan names an environment variable instead.
In a url, the characters : / @ # ? % of a password are written percent-encoded: %3A %2F %40 %23 %3F %25.

Example:
  keyferry plan new --source redis://old:6379 --target rediss://new:6380 move.json")]
    New {
        /// Where to write it
        file: Option<PathBuf>,
        /// The name of the migration, and of its folder of state
        #[arg(long)]
        name: Option<String>,
        /// redis://host:port (several with commas), rediss:// for TLS, redis+sentinel://host:port/name, redis+unix:///path
        #[arg(
            long,
            value_name = "URL",
            default_value = "redis://127.0.0.1:6379",
            hide_default_value = true
        )]
        source: String,
        /// redis://host:port (several with commas), rediss:// for TLS, redis+sentinel://host:port/name, redis+unix:///path
        #[arg(
            long,
            value_name = "URL",
            default_value = "redis://127.0.0.1:6380",
            hide_default_value = true
        )]
        target: String,
        /// Overwrite FILE
        #[arg(long)]
        force: bool,
    },
    /// Say what a plan would do, and what is remarkable about it; touches nothing
    #[command(after_help = "Exit codes: 0 the plan is valid, 2 it is not.")]
    Validate {
        /// The plan; "-" is standard input
        plan: PathBuf,
    },
    /// Print the JSON Schema of plans, for editors and other programs
    Schema,
}

pub fn run(command: &PlanCommand, common: &Common) -> Result<u8> {
    match command {
        PlanCommand::New {
            file,
            name,
            source,
            target,
            force,
        } => new(file.as_deref(), name.as_deref(), source, target, *force),
        PlanCommand::Validate { plan } => {
            let job = load(plan)?;
            output::print(&described(&job, &common.state_dir(&job)))
        }
        PlanCommand::Schema => output::json(&Plan::schema()),
    }
    .map(|()| 0)
}

fn new(
    file: Option<&Path>,
    name: Option<&str>,
    source: &str,
    target: &str,
    force: bool,
) -> Result<()> {
    let stem = file.and_then(Path::file_stem).and_then(|s| s.to_str());
    let plan = Plan::starting(name.or(stem).unwrap_or("my-migration"), source, target)?;
    crate::plan::validate(&plan)?;
    let as_json = |e| Error::new(ErrorKind::Bug, "write the plan as JSON").cause(e);
    let mut value = serde_json::to_value(&plan).map_err(as_json)?;
    if let Some(members) = value.as_object_mut() {
        // Sections whose commands are not built yet would only raise hopes.
        members.retain(|key, _| key != "cutover" && key != "latency");
    }
    let text = serde_json::to_string_pretty(&value).map_err(as_json)? + "\n";
    let Some(file) = file.filter(|f| *f != Path::new("-")) else {
        return output::print(&text);
    };
    let mut options = std::fs::OpenOptions::new();
    let options = if force {
        options.write(true).create(true).truncate(true)
    } else {
        options.write(true).create_new(true)
    };
    options
        .open(file)
        .and_then(|mut f| f.write_all(text.as_bytes()))
        .map_err(|e| {
            let exists = e.kind() == std::io::ErrorKind::AlreadyExists;
            let error = Error::new(
                ErrorKind::Usage,
                format!("write the plan {}", file.display()),
            )
            .cause(e);
            error.hint(if exists {
                "choose another name, or overwrite it with --force"
            } else {
                "check the path and its permissions"
            })
        })?;
    output::print(&format!("{}\n", file.display()))
}

/// What a valid plan would do.
fn described(job: &Job, state_dir: &Path) -> String {
    let mode = match job.source.mode_name() {
        "auto" => "auto: as a replica; a source that refuses that cannot be read yet",
        "replica" => "replica: snapshot and stream, as a replica gets them",
        "scan" => "scan: SCAN and DUMP",
        _ => "rdb: a snapshot file, without a stream",
    };
    let existing = match job.on_existing {
        OnExisting::Fail => "fail: refuse to start when the target holds keys",
        OnExisting::Replace => "replace: overwrite keys of the same name",
        OnExisting::Skip => "skip: leave keys of the same name as they are",
        OnExisting::Reconcile => "reconcile: overwrite, and remove what the source does not hold",
    };
    let limits: Vec<String> = [
        ("keys/s", job.limits.keys_per_s),
        ("bytes/s", job.limits.bytes_per_s),
        ("bytes of spool", job.limits.spool_bytes),
        ("bytes of memory", job.limits.memory_bytes),
        ("seconds of outage", job.limits.outage_s),
        ("connections", job.limits.connections.map(u64::from)),
    ]
    .into_iter()
    .filter_map(|(what, n)| n.map(|n| format!("{n} {what}")))
    .collect();
    let limits = if limits.is_empty() {
        "chosen by the program".into()
    } else {
        limits.join(", ")
    };
    let mut text = format!("plan {} is valid; nothing was touched\n", job.name);
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<10} {value}");
    };
    line("from", &job.source);
    line("mode", &mode);
    if let Source::Server { endpoint, .. } = &job.source {
        line(
            "topology",
            &format!(
                "source {}, target {}",
                topology(endpoint),
                topology(&job.target)
            ),
        );
    }
    line("to", &job.target);
    line("databases", &job.databases);
    line("keys", &job.filter);
    line("existing", &existing);
    line("limits", &limits);
    line("state in", &state_dir.display());
    for warning in &job.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

fn topology(endpoint: &crate::plan::Endpoint) -> &'static str {
    match endpoint.topology {
        crate::plan::Topology::Auto => "found out when connecting",
        crate::plan::Topology::Standalone => "standalone",
        crate::plan::Topology::Cluster => "cluster",
        crate::plan::Topology::Proxy => "proxy",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_plan_is_valid_is_never_overwritten_and_takes_the_name_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("move.json");
        let write = |source: &str, force| new(Some(&file), None, source, "redis://new:2", force);
        write("redis://old:1", false).unwrap();
        let refused = write("redis://other:1", false).unwrap_err();
        assert!(refused.exit_code() == 2 && refused.remedy().contains("--force"));
        let job = load(&file).unwrap();
        assert_eq!(
            (job.name.as_str(), job.source.to_string().as_str()),
            ("move", "redis://old:1")
        );
        write("redis://other:1", true).unwrap();
        assert_eq!(load(&file).unwrap().source.to_string(), "redis://other:1");
        let text = described(&job, Path::new(".keyferry/move"));
        assert!(
            text.contains("redis://new:2") && text.contains(".keyferry/move"),
            "{text}"
        );
    }
}
