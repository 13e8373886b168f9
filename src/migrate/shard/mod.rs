//! The source shards of a run: one from its state to its end, and the set of them.

pub(crate) mod runner;
pub(crate) mod set;
