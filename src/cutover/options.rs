//! How a cutover is run, beside its plan, and how it is stopped.

use crate::cutover::journal::Tell;
use crate::cutover::place::Remote;
use crate::error::{Error, Result};
use crate::store::Stage;
use crate::task::Shutdown;
use std::path::PathBuf;
use std::time::Duration;

/// How a cutover is run, beside its plan.
pub struct Options {
    /// The folder that holds the plan's own folder.
    pub work_dir: PathBuf,
    /// All but the freeze and the switch.
    pub dry_run: bool,
    /// In a dry run: freeze the writers as well, for so long at most.
    pub freeze_for: Option<Duration>,
    /// Go on although something was written to the old side that is not at the new one.
    pub accept_late: bool,
    /// Findings of `check` that do not matter.
    pub ignore: Vec<String>,
    /// Where a person has seen the clients, when nobody else knows.
    pub clients_at: Option<Stage>,
    /// Workers on other machines.
    pub remote: Option<Remote>,
    pub tell: Tell,
}

/// An error when somebody has asked the cutover to stop.
pub fn go_on(stop: &Shutdown) -> Result<()> {
    match stop.requested() {
        true => Err(stopped()),
        false => Ok(()),
    }
}

pub fn stopped() -> Error {
    Error::stopped("the cutover was stopped")
}
