//! What a cutover asks of the migration that runs, over a socket in the plan's folder.

pub(crate) mod drain;
pub mod orders;
