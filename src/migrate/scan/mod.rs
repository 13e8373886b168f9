//! Mode "scan", for sources that refuse to be replicated: copy, notifications, sweeps.

pub(crate) mod copy;
pub(crate) mod sweep;
