//! The plan file: what a user types, key by key.
//!
//! `Plan::parse` turns text into these structs and refuses what it does not know; `validate` turns them into a `Job`,
//! which is what will be done.
//! Invariant: nothing here opens a file, asks the environment or a clock, and no `Debug` shows a secret.

mod cutover;
mod document;
mod glob;
mod indexes;
mod job;
mod learnt;
mod names;
mod path;
mod price;
mod rename;
mod secret;
mod shape;
mod share;
mod starting;
mod unknown;
mod url;
mod validate;

pub use cutover::{CutoverPlan, FreezeWay, HooksPlan, OldSide};
pub use document::{
    DatabasesPlan, Expired, ExpiryFilter, FilterPlan, OnExisting, OnLoss, PasswordPlan, Plan,
    TlsVerify, Topology, WORKLOAD_FILE, without_arguments,
};
pub use indexes::Indexes;
pub use job::{Databases, Endpoint, Job, Limits, Mode, RdbPath, Source, TlsOptions};
pub use learnt::{Held, Learnt, Reading, is_for_good};
pub use names::CommandNames;
pub use rename::Renames;
pub use secret::{Identity, Redacted, Secret};
pub use share::Share;
pub use unknown::UnknownCommands;
pub use url::Location;
pub use validate::validate;

#[cfg(test)]
pub use price::PricePlan;
#[cfg(test)]
mod tests;
