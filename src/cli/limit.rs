//! `keyferry limit`: how fast a migration or a verification may be, changed while it runs.

use super::common::{Common, load};
use super::output;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{LIMITS, Store, workers};
use clap::Args;
use std::path::PathBuf;

/// Change how fast a migration or a verification may be, while it runs
///
/// The running process takes it within seconds; it holds for later runs as well, until it is changed back. The stream
/// is never held back: only loading, sweeping and verifying. Where workers have shared the source out, each of those in
/// the work folder may be so fast.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keyferry limit move.json --keys-per-s 5000
  keyferry limit move.json --bytes-per-s 10000000 --keys-per-s 0     0 is no limit
  keyferry limit move.json --as-planned                             back to the plan's limits")]
pub struct Arguments {
    /// The plan; "-" is standard input
    plan: PathBuf,
    /// Keys per second; 0 is no limit
    #[arg(long, value_name = "N")]
    keys_per_s: Option<u64>,
    /// Bytes per second; 0 is no limit
    #[arg(long, value_name = "N")]
    bytes_per_s: Option<u64>,
    /// Go back to the plan's limits
    #[arg(long, conflicts_with_all = ["keys_per_s", "bytes_per_s"])]
    as_planned: bool,
}

pub fn run(arguments: &Arguments, common: &Common) -> Result<u8> {
    let job = load(&arguments.plan)?;
    let dir = common.state_dir(&job);
    let mut dirs: Vec<PathBuf> = workers(&dir)?.into_iter().map(|w| w.dir).collect();
    if Store::open_readonly(&dir)?.is_some() {
        dirs.push(dir);
    }
    let mut now = job.limits.clone();
    for dir in &dirs {
        let mut store = Store::open(dir)?;
        change(&mut store, arguments)?;
        now = store.limits(&job.limits)?;
    }
    if dirs.is_empty() {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("nothing has been run of the plan {} yet", job.name),
        )
        .hint("set limits in the plan, or start it first"));
    }
    let shown = |n: Option<u64>| n.map_or("no limit".to_owned(), |n| n.to_string());
    output::print(&format!(
        "keys per second: {}, bytes per second: {}\n",
        shown(now.keys_per_s),
        shown(now.bytes_per_s)
    ))?;
    Ok(0)
}

fn change(store: &mut Store, arguments: &Arguments) -> Result<()> {
    let mut set = store.json(LIMITS)?.unwrap_or_else(|| serde_json::json!({}));
    if arguments.as_planned {
        set = serde_json::json!({});
    }
    for (key, n) in [
        ("keys_per_s", arguments.keys_per_s),
        ("bytes_per_s", arguments.bytes_per_s),
    ] {
        if let Some(n) = n {
            set[key] = n.into();
        }
    }
    store.put_json(LIMITS, &set)
}
