//! What both sides cost (`price`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a month costs; shown in the report beside what it brings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PricePlan {
    /// Of the source, for a month.
    pub source: f64,
    /// Of the target, for a month.
    pub target: f64,
    /// As it is to be written: EUR, USD.
    pub currency: String,
}
