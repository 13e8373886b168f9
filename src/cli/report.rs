//! `keyferry report`: writes report.html, report.md and report.json, each whole or not at all.

use super::common::{Common, load};
use super::output;
use crate::error::{Context, Error, ErrorKind, Result, printable};
use crate::report::{Report, fleet, html, json, markdown};
use crate::task::{private_dir, private_file};
use crate::types::unix_ms;
use clap::Args;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Write down what is known about a migration, as HTML, Markdown and JSON
///
/// The page says what was moved, how the comparison ended, and what is not proven. It holds names of keys, never
/// their values, and no password.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keyferry report move.json --out reports/
  keyferry report --fleet plans/*.json")]
pub struct Arguments {
    /// The plan; "-" is standard input
    #[arg(required = true, value_name = "PLAN")]
    plans: Vec<PathBuf>,
    /// One page over all these plans: fleet.html, fleet.md and fleet.json, what got worse first
    #[arg(long)]
    fleet: bool,
    /// Where to write report.html, report.md and report.json [default: WORK_DIR/<plan name>/report, WORK_DIR/fleet]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where else workers' states lie, when the migration is spread over machines: a worker's folder, or another
    /// machine's --work-dir; may be given more than once
    #[arg(long, value_name = "DIR", conflicts_with = "fleet")]
    also: Vec<PathBuf>,
}

pub fn run(arguments: &Arguments, common: &Common) -> Result<u8> {
    let (pages, out) = match (arguments.plans.as_slice(), arguments.fleet) {
        ([plan], false) => one(plan, &arguments.also, common)?,
        (plans, true) => all(plans, common)?,
        _ => {
            return Err(Error::new(
                ErrorKind::Usage,
                "a report is about one plan, unless --fleet makes one page over all of them",
            )
            .hint("add --fleet, or run `keyferry fleet report` for a report of each"));
        }
    };
    let out = arguments.out.clone().unwrap_or(out);
    private_dir(&out)?;
    let mut written = String::new();
    for (name, text) in pages {
        let path = out.join(name);
        replace(&path, &harmless(name, &text))?;
        written += &format!("{}\n", path.display());
    }
    output::print(&written).map(|()| 0)
}

/// The pages of a report, and the folder they belong to.
type Pages = ([(&'static str, String); 3], PathBuf);

fn one(plan: &Path, also: &[PathBuf], common: &Common) -> Result<Pages> {
    let job = load(plan)?;
    let state_dir = common.state_dir(&job);
    let report = Report::read(&state_dir, also, &job, unix_ms())?;
    let pages = [
        ("report.html", html::render(&report)?),
        ("report.md", markdown::render(&report)),
        ("report.json", pretty(&json::render(&report))?),
    ];
    Ok((pages, state_dir.join("report")))
}

fn all(plans: &[PathBuf], common: &Common) -> Result<Pages> {
    let now = unix_ms();
    let mut reports = Vec::new();
    for plan in plans {
        let job = load(plan)?;
        reports.push(Report::read(&common.state_dir(&job), &[], &job, now)?);
    }
    let services = fleet::services(&reports);
    let pages = [
        ("fleet.html", fleet::render(&services, now)?),
        ("fleet.md", fleet::markdown(&services, now)),
        ("fleet.json", pretty(&fleet::as_json(&services, now))?),
    ];
    Ok((pages, common.work_dir.join("fleet")))
}

fn pretty(value: &serde_json::Value) -> Result<String> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::new(ErrorKind::Bug, "write the report as JSON").cause(e))?;
    Ok(text + "\n")
}

/// A page in which nothing acts on the terminal of whoever prints it.
fn harmless(name: &str, page: &str) -> String {
    match name.ends_with(".json") {
        true => output::escaped(page),
        false => printable(page, "\n\t").into_owned(),
    }
}

/// Writes beside the file and renames: a reader sees the old one or the new one.
fn replace(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let write = || {
        let mut file = private_file()
            .write(true)
            .create(true)
            .truncate(true)
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
