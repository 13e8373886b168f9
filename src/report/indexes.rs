//! Search indexes on a report: what has become of each, and what the last comparison found.

use super::view::{self, Table};
use crate::search::TOLD_BY_NOBODY;
use serde_json::Value;

/// Rows of the table.
const ROWS: usize = 200;

/// One row for each index of the saved document; `answer` is the last comparison's. `None` where there are none.
pub(super) fn table(saved: Option<&Value>, answer: Option<&Value>) -> Option<Table> {
    let indexes = saved?["indexes"].as_object()?;
    let rows: Vec<Vec<String>> = (indexes.iter().take(ROWS))
        .map(|(name, index)| {
            let text = |v: &Value| v.as_str().unwrap_or_default().replace('_', " ");
            let notes = index["notes"].as_array().into_iter().flatten();
            let notes = notes.filter_map(Value::as_str);
            let mut notes: Vec<String> = notes.map(str::to_owned).collect();
            let compared = answer.and_then(|a| compared(a, name));
            if let Some(reason) = compared.and_then(|c| c["reason"].as_str()) {
                notes.push(reason.to_owned());
            }
            vec![
                name.clone(),
                text(&index["state"]),
                index["documents"].as_u64().unwrap_or(0).to_string(),
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

fn compared<'a>(answer: &'a Value, name: &str) -> Option<&'a Value> {
    (answer["indexes"].as_array()?.iter()).find(|i| i["name"] == name)
}

/// What is not proven of them.
pub(super) fn unproven(saved: Option<&Value>) -> Vec<String> {
    let Some(indexes) = saved.and_then(|i| i["indexes"].as_object()) else {
        return Vec::new();
    };
    let out: Vec<&str> = (indexes.iter())
        .filter(|(_, i)| !matches!(i["state"].as_str(), Some("created" | "present")))
        .map(|(name, _)| name.as_str())
        .collect();
    let mut list = Vec::new();
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
