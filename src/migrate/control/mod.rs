//! What a cutover asks of the migration that runs: over a socket in the plan's folder, or from another machine.

pub mod asker;
pub mod desk;
pub(crate) mod drain;
pub mod orders;
pub mod port;
pub mod token;
mod wire;
