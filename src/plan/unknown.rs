//! What becomes of commands of the stream that keyferry does not know (`unknown_commands`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What to do with a command of the stream that keyferry does not know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UnknownCommands {
    /// Stop, with the command named.
    #[default]
    Fail,
    /// Go on, and list the command: the keys that the source says it has are read there; else it is left out.
    Skip,
}
