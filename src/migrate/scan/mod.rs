//! Mode "scan", for sources that refuse to be replicated: copy, notifications, sweeps.

mod ahead;
pub(crate) mod changes;
pub(crate) mod copy;
mod extra;
pub(crate) mod obey;
mod pool;
pub(crate) mod sweep;
pub(crate) mod told;
