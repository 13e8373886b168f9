//! The plan file: what a user types, key by key.
//!
//! `Plan::parse` turns text into these structs and refuses what it does not know; `validate` turns them into a `Job`,
//! which is what will be done.
//! Invariant: nothing here opens a file, asks the environment or a clock, and no `Debug` shows a secret.

mod document;
mod glob;
mod job;
mod learnt;
mod rename;
mod secret;
mod shape;
mod share;
mod starting;
mod url;
mod validate;

pub use document::{
    CutoverPlan, DatabasesPlan, Expired, ExpiryFilter, FilterPlan, FreezeWay, HooksPlan,
    LatencyPlan, LimitsPlan, OnExisting, OnLoss, PasswordPlan, PasswordSource, Plan, PricePlan,
    ReadFrom, SourceMode, SourcePlan, TargetPlan, TlsPlan, Topology, VerifyPlan, WORKLOAD_FILE,
    WORKLOADS,
};
pub use glob::Glob;
pub use job::{
    Databases, Endpoint, Filter, Job, Limits, Mode, RdbPath, Source, TlsOptions, VerifyOptions,
};
pub use learnt::{Held, Learnt, is_for_good};
pub use rename::Renames;
pub use secret::{Redacted, Secret};
pub use share::Share;
pub use url::Sentinel;
pub use validate::validate;

#[cfg(test)]
mod tests;
