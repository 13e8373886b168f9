//! Healing: rewriting a key from the source's current state, read with the replication offset that it belongs to.

pub(crate) mod fenced_reader;
pub(crate) mod healer;
pub(crate) mod queue;
pub(crate) mod repair;
pub(crate) mod state;
