//! Checkpoints: which marks may be saved, which are stable, and how they come to disk.

pub(crate) mod checkpoints;
pub(crate) mod holds;
pub(crate) mod relied;
pub(crate) mod stable;
pub(crate) mod writer;
