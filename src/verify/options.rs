//! How a verification is run, beside its plan, and how far it is.

use crate::digest::Width;
use crate::error::{Error, ErrorKind, Result};
use crate::types::{SLOTS, Slot, SlotSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// How a verification is run, beside its plan.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The plan's own folder.
    pub work_dir: PathBuf,
    /// Where else workers' states lie.
    pub also: Vec<PathBuf>,
    /// Only these slots; `None` is all of them.
    pub slots: Option<SlotSet>,
    /// Only slots that were written to since they were compared last.
    pub incremental: bool,
    /// What earlier verifications have found of other slots stays.
    pub keep: bool,
    /// Asks the migration to write again what differs.
    pub repair: bool,
    /// Forgets what an earlier verification has left when it was stopped.
    pub fresh: bool,
    pub width: Width,
    /// Told how far it is.
    pub gauge: Arc<Gauge>,
}

/// How far a verification is.
#[derive(Debug, Default)]
pub struct Gauge {
    pub done: AtomicU64,
    /// 0 while it is not known.
    pub total: AtomicU64,
}

/// The slots that `--slots` names.
pub fn slots(text: &str) -> Result<SlotSet> {
    SlotSet::parse(text)
        .filter(|s| s.count() > 0)
        .ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("--slots cannot be {text:?}"))
                .hint("give numbers and ranges of 0 to 16383, as in 0-4095,8000")
        })
}

/// A share of the slots, spread over all of them; the same share is always the same slots.
pub fn sample(text: &str) -> Result<SlotSet> {
    let percent = text.trim().strip_suffix('%').unwrap_or("").trim();
    match percent.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => {
            let wanted = (percent / 100.0 * SLOTS as f64).ceil() as usize;
            // An odd step visits every slot once.
            let visited =
                (0..wanted.min(SLOTS)).map(|i| Slot::numbered((i * 6_151 % SLOTS) as u16));
            Ok(visited.collect())
        }
        _ => Err(
            Error::new(ErrorKind::Usage, format!("--sample cannot be {text:?}"))
                .hint("give a share of the slots, as in 1%"),
        ),
    }
}
