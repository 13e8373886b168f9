//! Everything that a restart, a report or an auditor needs, in one SQLite file per plan.
//!
//! Every SQL statement of the program is in `state.rs`, `verification.rs`, `cutover.rs`, `latency.rs`, `unknown.rs`
//! and `schema.rs`;
//! `record.rs` holds the values, `lock.rs` keeps a second process away.
//! Invariant: times come in as Unix milliseconds; no statement asks a clock, and no row holds a secret or a value.

mod column;
mod cutover;
mod existing;
mod latency;
mod lock;
mod nodes;
mod own;
mod record;
mod schema;
mod state;
mod unknown;
mod verification;
mod workers;

pub use cutover::{CutoverStep, LATE, Stage, frozen};
pub use existing::{Existing, NameFile};
pub use latency::LatencyBlock;
pub use lock::Lock;
pub use nodes::{pass_on_nodes, recall_nodes};
pub use own::Own;
pub use record::{
    CHECKED, Difference, Event, INDEXES, LATENCY, LIMITS, Loss, MASTERS, MIX, MODE, PULSE, Phase,
    PhaseSpan, REPAIR_FUNCTIONS, Run, SWEEPS, SavedRun, ShardState, SlotApart, SlotRow,
    VerifyProgress, VerifyRun, Written,
};
pub use state::Store;
pub use unknown::UnknownCommand;
pub use workers::{
    Claim, Worker, coverage, has_losses, remote_dir, stage_of, worker_dir, workers, workers_and,
};

#[cfg(test)]
mod tests;
