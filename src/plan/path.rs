//! `source.path` as a plan has it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One file or glob, or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum PathPlan {
    One(String),
    Several(Vec<String>),
}

impl PathPlan {
    /// All of them.
    pub fn all(&self) -> &[String] {
        match self {
            PathPlan::One(path) => std::slice::from_ref(path),
            PathPlan::Several(paths) => paths,
        }
    }
}
