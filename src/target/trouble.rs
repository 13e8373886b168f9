//! What the target could not do: errors among its replies, what a node has left, and what is known of each command.

use crate::error::Error;
use crate::target::batch::{Batch, Database};
use std::sync::Arc;

/// A reply that was an error (or a 0 or -2 where none was expected).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Index of the command in its batch.
    pub index: u32,
    pub text: String,
}

/// The text of a [`Failure`] that is not an error: a command found no key where the source had one.
pub const NOTHING_THERE: &str = "(nothing there)";

/// What a node could not do, in the order in which it was sent.
#[derive(Debug, Default)]
pub struct Trouble {
    /// Batches that were answered, from the first with errors on, with the errors among the answers.
    pub failed: Vec<(Arc<Batch>, Vec<Failure>)>,
    /// Batches cut off with the connection: how many commands were answered, and the errors among those.
    pub uncertain: Vec<(Arc<Batch>, u32, Vec<Failure>)>,
    /// Batches that were not sent because of the above.
    pub unsent: Vec<Arc<Batch>>,
    /// Why the connection was lost or could not be opened.
    pub error: Option<Error>,
}

/// A command or a whole transaction that has to be dealt with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    pub bytes: Vec<u8>,
    pub commands: u32,
    pub db: Database,
    /// It writes a key's whole state, not a change of the source's.
    pub state: bool,
    pub fate: Fate,
}

/// What is known of a [`Unit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The target answered with this error.
    Refused(String),
    /// The connection was lost before the answer: it ran, or it did not.
    Uncertain,
    /// It never left.
    Unsent,
}
