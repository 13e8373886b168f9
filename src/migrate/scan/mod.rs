//! Mode "scan", for sources that refuse to be replicated: copy, notifications, sweeps.

pub(crate) mod changes;
pub(crate) mod copy;
pub(crate) mod obey;
pub(crate) mod sweep;
pub(crate) mod told;
