//! What pages are made of: cards, tables and charts.

use crate::error::{Error, ErrorKind, Result};
use askama::Template;

/// A number of the first screen.
pub struct Card {
    pub title: &'static str,
    pub value: String,
    pub text: String,
    /// `good`, `bad`, `warn` or nothing.
    pub mood: &'static str,
}

#[derive(Default)]
pub struct Table {
    pub caption: String,
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// One workload at one rate.
pub struct Part {
    pub title: String,
    pub verdict: String,
    pub mood: &'static str,
    pub why: String,
    pub charts: Vec<Chart>,
    pub tables: Vec<Table>,
}

pub struct Chart {
    pub svg: String,
    pub text: String,
}

pub fn table(caption: &str, head: &[&str], rows: Vec<Vec<String>>) -> Table {
    Table {
        caption: caption.to_owned(),
        head: head.iter().map(|h| (*h).to_owned()).collect(),
        rows,
    }
}

/// How a verdict is coloured.
pub fn mood(verdict: &str) -> &'static str {
    match verdict {
        "faster" => "good",
        "slower" => "bad",
        "mixed" | "no verdict" => "warn",
        _ => "",
    }
}

pub fn render_page(page: &impl Template) -> Result<String> {
    page.render()
        .map_err(|e| Error::new(ErrorKind::Bug, "write the page").cause(e))
}
