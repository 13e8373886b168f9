//! `keyferry report`.

use super::{Common, load, print, state_dir};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct Report {
    /// The plan file
    plan: PathBuf,
    /// Where the report is written [default: report/ beside the plan's state]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(args: Report, common: &Common) -> Result<u8> {
    let job = load(&args.plan)?;
    let dir = state_dir(common, &job);
    let store = Store::open_existing(&dir)?.ok_or_else(|| {
        Error::new(
            ErrorKind::State,
            format!(
                "nothing is recorded for the plan {} in {}",
                job.name,
                dir.display()
            ),
        )
        .hint("run `keyferry migrate PLAN` first, or name the right --work-dir")
    })?;
    let written = crate::report::write(&store, &args.out.unwrap_or_else(|| dir.join("report")))?;
    for path in written {
        print(&path.display().to_string())?;
    }
    Ok(0)
}
