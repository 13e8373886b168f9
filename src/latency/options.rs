//! How a measurement is run, beside its plan, and how it is stopped.

use crate::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

/// How a measurement is run, beside its plan.
pub struct Options {
    /// The plan's own folder.
    pub work_dir: PathBuf,
    /// Forgets blocks of a measurement that was stopped.
    pub fresh: bool,
    /// Requests at even distances.
    pub even: bool,
    /// Which requests come in which order.
    pub seed: Option<u64>,
    pub tell: Arc<dyn Fn(&str) + Send + Sync>,
}

pub fn stopped() -> Error {
    Error::stopped("the measurement was stopped; run again, it goes on with the next block")
}
