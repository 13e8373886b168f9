//! `keyferry migrate`.

use super::{Common, human_bytes, load, print, print_json, progress, state_dir};
use crate::error::Result;
use crate::migrate::{self, Options, Summary, progress::Progress};
use crate::task::Shutdown;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Args)]
pub struct Migrate {
    /// The plan file
    plan: PathBuf,
    /// Read, decode, route and count everything, but write nothing to the target
    #[arg(long)]
    dry_run: bool,
    /// End when this is reached, instead of following the stream until Ctrl-C
    #[arg(long, value_enum, value_name = "STATE")]
    until: Option<Until>,
    /// Forget the saved state and begin anew
    #[arg(long)]
    fresh: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Until {
    /// The target holds everything the source has sent
    CaughtUp,
}

pub async fn run(args: Migrate, common: Common) -> Result<u8> {
    let job = load(&args.plan)?;
    let options = Options {
        dry_run: args.dry_run,
        until_caught_up: args.until == Some(Until::CaughtUp),
        fresh: args.fresh,
        work_dir: state_dir(&common, &job),
    };
    let stop = Shutdown::default();
    stop.on_signals()?;
    let progress = Arc::new(Progress::default());
    let drawn = tokio::spawn(progress::draw(progress.clone(), common.no_progress));
    let result = migrate::run(job, options, progress, stop).await;
    drawn.abort();
    // A drawing that was cut off is of no interest.
    let _ = drawn.await;
    let summary = result?;
    if args.json {
        print_json(&summary)?;
    } else {
        print(&text(&summary))?;
    }
    Ok(if summary.interrupted { 130 } else { 0 })
}

fn text(s: &Summary) -> String {
    let mut lines = vec![format!(
        "{}: {} keys and {} commands {}, {} keys healed, in {:.1} s ({} keys/s), peak memory {}",
        if s.caught_up {
            "caught up"
        } else if s.interrupted {
            "interrupted, state is saved"
        } else {
            "done"
        },
        s.keys_written,
        s.commands_applied,
        if s.dry_run {
            "would be written"
        } else {
            "written"
        },
        s.healed_keys,
        s.elapsed_ms as f64 / 1000.0,
        s.keys_per_s,
        human_bytes(s.peak_rss_bytes),
    )];
    lines.extend(
        s.skipped
            .iter()
            .map(|(why, n)| format!("left out, {why}: {n}")),
    );
    if let Some(census) = &s.census {
        lines.push(format!("what is there: {census}"));
    }
    lines.join("\n")
}
