//! The load: the snapshot onto the target record by record, and what the target held before it.

pub(crate) mod aof_restart;
pub(crate) mod dry_run_stats;
pub(crate) mod existing;
pub(crate) mod loaded_keys;
pub(crate) mod loader;
pub(crate) mod loss_guard;
pub(crate) mod our_keys;
pub(crate) mod position;
pub(crate) mod reconcile;
