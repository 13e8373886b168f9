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

pub(super) fn add(
    findings: &mut Vec<Finding>,
    id: &'static str,
    severity: Severity,
    message: impl Into<String>,
    fix: impl Into<String>,
) {
    findings.push(Finding {
        id,
        severity,
        message: message.into(),
        fix: fix.into(),
    });
}
