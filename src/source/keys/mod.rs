//! Reading a server's keys by ordinary commands: which there are, and what they hold.
//!
//! For verification on both sides, and for sources that refuse to be replicated.

mod dumped;
pub mod events;
pub mod fact;
pub mod functions;
pub mod list;
pub mod reader;
mod replicas;
pub mod short;
pub mod side;
pub mod typed;
