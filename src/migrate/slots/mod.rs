//! Slots of a source cluster: who owns which, and what happens when one moves.

pub(crate) mod handover;
pub(crate) mod owned;
pub(crate) mod ownership;
pub(crate) mod watch;
