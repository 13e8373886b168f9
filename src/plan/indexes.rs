//! The plan's word on search indexes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What becomes of the source's search indexes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Indexes {
    /// They are made at the target after the load, so that loading is not slowed.
    #[default]
    Create,
    /// They are made at the target first: loading is slower, and searches find what has arrived.
    CreateBeforeLoad,
    /// They are left out.
    Skip,
}
