//! `keyferry report`: writes report.html, report.md and report.json, each whole or not at all.

use super::{Common, load, output};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::report::{Report, html, json, markdown};
use crate::source::private_dir;
use crate::types::unix_ms;
use clap::Args;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Write down what is known about a migration, as HTML, Markdown and JSON
///
/// The page says what was moved, how the comparison ended, and what is not proven. It holds names of keys, never
/// their values, and no password.
#[derive(Args)]
#[command(after_help = "Example:\n  keyferry report move.json --out reports/")]
pub struct Arguments {
    /// The plan; "-" is standard input
    plan: PathBuf,
    /// Where to write report.html, report.md and report.json [default: WORK_DIR/<plan name>/report]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(arguments: &Arguments, common: &Common) -> Result<u8> {
    let job = load(&arguments.plan)?;
    let state_dir = common.state_dir(&job);
    let report = Report::read(&state_dir, &job, unix_ms())?;
    let out = arguments
        .out
        .clone()
        .unwrap_or_else(|| state_dir.join("report"));
    private_dir(&out)?;
    let as_json = serde_json::to_string_pretty(&json::render(&report))
        .map_err(|e| Error::new(ErrorKind::Bug, "write the report as JSON").cause(e))?;
    let mut written = String::new();
    for (name, text) in [
        ("report.html", html::render(&report)?),
        ("report.md", markdown::render(&report)),
        ("report.json", as_json + "\n"),
    ] {
        let path = out.join(name);
        replace(&path, &text)?;
        written += &format!("{}\n", path.display());
    }
    output::print(&written).map(|()| 0)
}

/// Writes beside the file and renames: a reader sees the old one or the new one.
fn replace(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let write = || {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write()
        .context(ErrorKind::Disk, || format!("write {}", path.display()))
        .inspect_err(|_| {
            // What is half written is of no use; that it cannot be removed is no news.
            let _ = std::fs::remove_file(&temporary);
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.md");
        replace(&path, "one").unwrap();
        replace(&path, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(
            replace(&dir.path().join("none/report.md"), "x")
                .unwrap_err()
                .kind(),
            ErrorKind::Disk
        );
    }
}
