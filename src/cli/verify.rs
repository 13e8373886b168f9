//! `keyferry verify`.

use super::{Common, load, print, print_json, state_dir};
use crate::error::Result;
use crate::task::Shutdown;
use crate::verify::{self, Options, Summary};
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct Verify {
    /// The plan file
    plan: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Verify, common: Common) -> Result<u8> {
    let job = load(&args.plan)?;
    let options = Options {
        work_dir: state_dir(&common, &job),
    };
    let stop = Shutdown::default();
    stop.on_signals()?;
    let summary = verify::run(job, options, stop).await?;
    if args.json {
        print_json(&summary)?;
    } else {
        print(&text(&summary))?;
    }
    Ok(u8::from(!summary.equal))
}

fn text(s: &Summary) -> String {
    let mut lines = vec![format!(
        "{}: {} keys on the source, {} on the target, {} of {} slots differ, in {:.1} s",
        if s.equal { "equal" } else { "NOT proven equal" },
        s.keys_source,
        s.keys_target,
        s.slots_different,
        s.slots,
        s.elapsed_ms as f64 / 1000.0
    )];
    for (name, keys, count) in [
        ("missing on the target", &s.missing, s.missing_count),
        ("extra on the target", &s.extra, s.extra_count),
        ("different", &s.different, s.different_count),
        ("not provable now", &s.unprovable, s.unprovable_count),
    ] {
        if count > 0 {
            lines.push(format!("{name}: {count}"));
        }
        lines.extend(keys.iter().take(20).map(|k| {
            format!(
                "  {:?} (database {}, slot {}): {}",
                k.key, k.db, k.slot, k.reason
            )
        }));
    }
    lines.join("\n")
}
