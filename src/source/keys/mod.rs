//! Reading a server's keys by ordinary commands: which there are, and what they hold.
//!
//! For verification on both sides, and for sources that refuse to be replicated.

use crate::error::{Error, ErrorKind};

mod by_slot;
pub mod calls;
pub mod depth;
mod dumped;
pub mod events;
mod expiry;
pub mod fact;
pub mod functions;
pub mod hearing;
pub mod list;
pub mod reader;
mod replicas;
pub mod short;
pub mod side;
mod stream;
pub mod typed;
pub mod unnotified;
pub mod window;

/// The error of an answer that no server is known to give.
fn unforeseen(command: &str) -> Error {
    Error::new(
        ErrorKind::Protocol,
        format!("{command} was answered in a form that is not understood"),
    )
}
