//! One thing to know before a migration, and how much it weighs.

use serde::Serialize;

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Blocker,
    Warning,
    Info,
}

/// One thing to know before the migration.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// Stable, for scripts: `target_memory`, `eviction`, …
    pub id: &'static str,
    pub severity: Severity,
    pub message: String,
    /// What to do about it.
    pub fix: String,
}
