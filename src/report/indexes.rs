//! Search indexes on a report: what has become of each, and what the last comparison found.

use super::view::{self, Table};
use super::{Report, grouped};
use crate::search::TOLD_BY_NOBODY;
use serde_json::Value;

/// Rows of the table.
const ROWS: usize = 200;

/// One row for each index; `None` where there are none.
pub(super) fn table(report: &Report) -> Option<Table> {
    let indexes = report.indexes.as_ref()?["indexes"].as_object()?;
    let rows: Vec<Vec<String>> = (indexes.iter().take(ROWS))
        .map(|(name, index)| {
            let text = |v: &Value| v.as_str().unwrap_or_default().replace('_', " ");
            let notes = index["notes"].as_array().into_iter().flatten();
            let mut notes: Vec<String> = notes.map(text).collect();
            let compared = compared(report, name);
            if let Some(reason) = compared.and_then(|c| c["reason"].as_str()) {
                notes.push(reason.to_owned());
            }
            vec![
                name.clone(),
                text(&index["state"]),
                grouped(index["documents"].as_u64().unwrap_or(0)),
                compared.map_or("-".into(), |c| text(&c["state"])),
                notes.join("; "),
            ]
        })
        .collect();
    let head = [
        "index",
        "at the target",
        "documents",
        "last comparison",
        "notes",
    ];
    (!rows.is_empty()).then(|| view::table("Search indexes", &head, rows))
}

fn compared<'r>(report: &'r Report, name: &str) -> Option<&'r Value> {
    let answer = &report.verify.as_ref()?.run.answer;
    (answer["indexes"].as_array()?.iter()).find(|i| i["name"] == name)
}

/// What is not proven of them.
pub(super) fn unproven(report: &Report) -> Vec<String> {
    let Some(indexes) = report
        .indexes
        .as_ref()
        .and_then(|i| i["indexes"].as_object())
    else {
        return Vec::new();
    };
    let (mut list, mut out) = (Vec::new(), Vec::new());
    for (name, index) in indexes {
        match index["state"].as_str() {
            Some("created" | "present") => {}
            _ => out.push(name.as_str()),
        }
    }
    if !out.is_empty() {
        list.push(format!(
            "Search indexes that the target has not as the source has them: {}; the table of search indexes says why.",
            out.join(", ")
        ));
    }
    if indexes.len() > out.len() {
        list.push(format!("{TOLD_BY_NOBODY}."));
    }
    list
}
