//! The report for people: report.md, one page.

use super::measured::{latency, more_latency, source_cost};
use super::steps::{STEP, step_row};
use super::view::Table;
use super::{Report, Verification, bytes, duration, grouped, instant};
use crate::store::CutoverStep;
use serde_json::Value;
use std::fmt::Write;

/// How many rows a table of keys or slots has; report.json has more.
const ROWS: usize = 100;

pub fn render(report: &Report) -> String {
    let mut page = Page(String::new());
    let status = &report.status;
    page.line(format_args!("# Migration {}", report.job.name));
    page.line(format_args!(""));
    page.line(format_args!(
        "Written {} by keyferry {}.",
        instant(report.generated_ms),
        env!("CARGO_PKG_VERSION")
    ));
    page.line(format_args!("\n{}", verdict(report)));

    page.heading("What is not proven");
    for sentence in &report.unproven {
        page.line(format_args!("- {}", text(sentence)));
    }

    page.heading("What was moved");
    page.table(&["", ""]);
    page.row(&[
        "source",
        &code(
            &report
                .run
                .as_ref()
                .map_or_else(|| report.job.source.to_string(), |r| r.run.source.clone()),
        ),
    ]);
    page.row(&["target", &code(&report.job.target.to_string())]);
    page.row(&["databases", &text(&report.job.databases.to_string())]);
    page.row(&["keys", &text(&report.job.filter.to_string())]);
    page.row(&["mode", &status.mode]);
    if let Some(guarantee) = status.guarantee() {
        page.row(&["guarantee", &text(guarantee)]);
    }
    if let Some(found) = report.products() {
        page.row(&["found at the last start", &text(found)]);
    }
    if let Some(run) = &report.run {
        page.row(&[
            "begun",
            &format!("{}, run {}", instant(run.run.started_ms), run.run_id),
        ]);
        page.row(&["last worked on by", &format!("keyferry {}", run.version)]);
    }
    page.row(&["phase", status.phase.as_str()]);
    if let Some(pid) = status.pid {
        page.row(&[
            "running",
            &format!("process {pid} works on it now; these numbers still change"),
        ]);
    }

    if report.run.is_some() {
        page.heading("Numbers");
        page.table(&["", "total"]);
        page.row(&[
            "keys read from the snapshot",
            &grouped(status.snapshot.keys_read),
        ]);
        page.row(&["keys written", &grouped(status.snapshot.keys_written)]);
        page.row(&[
            "snapshot",
            &format!(
                "{} of {}, {}",
                bytes(status.snapshot.bytes_read),
                bytes(status.snapshot.bytes_total),
                if status.snapshot.done {
                    "done"
                } else {
                    "not done"
                }
            ),
        ]);
        page.row(&[
            "commands applied from the stream",
            &grouped(status.stream.commands_applied),
        ]);
        page.row(&[
            "keys healed (read again at a known offset)",
            &grouped(status.healed_keys),
        ]);
        page.row(&[
            "lag when last saved",
            &format!(
                "{}, {}",
                bytes(status.stream.lag_bytes),
                duration(status.stream.lag_ms)
            ),
        ]);
        if status.shards.len() > 1 {
            page.heading("Source shards");
            page.table(&[
                "shard",
                "address",
                "keys written",
                "commands",
                "applied offset",
                "lag",
            ]);
            for s in &status.shards {
                let applied = s
                    .stream
                    .applied_offset
                    .map_or("-".into(), |o| o.to_string());
                page.row(&[
                    &s.shard.to_string(),
                    &code(&s.address),
                    &grouped(s.snapshot.keys_written),
                    &grouped(s.stream.commands_applied),
                    &applied,
                    &bytes(s.stream.lag_bytes),
                ]);
            }
        }
        if !report.counts.is_empty() {
            page.heading("Counters");
            page.table(&["what", "how often"]);
            for (name, n) in &report.counts {
                page.row(&[&code(name), &grouped(*n)]);
            }
        }
        page.heading("Phases");
        page.table(&["phase", "from", "to", "for"]);
        for p in &report.phases {
            let took = p.left_ms.map_or("-".into(), |left| {
                duration(u64::try_from(left - p.entered_ms).unwrap_or(0))
            });
            page.row(&[
                p.phase.as_str(),
                &instant(p.entered_ms),
                &p.left_ms.map_or("now".into(), instant),
                &took,
            ]);
        }
    }
    if let Some(verify) = &report.verify {
        comparison(&mut page, verify);
    }
    measured(&mut page, report);
    cutovers(&mut page, &report.cutover);
    if let Some(table) = source_cost(report) {
        page.heading("What reading cost the source");
        page.0 += &table.markdown();
    }

    if let Some(table) = report.index_table() {
        page.heading("Search indexes");
        page.0 += &table.markdown();
    }
    if !report.losses.is_empty() {
        page.heading("What the target could not hold");
        page.table(&["database", "key", "what is lost"]);
        for (db, key, what) in report.losses.iter().take(ROWS) {
            let key = key.escape_ascii().to_string();
            page.row(&[&db.to_string(), &code(&key), &text(what)]);
        }
        page.more(report.losses.len());
    }
    if !report.status.unknown_commands.is_empty() {
        page.heading("Commands that keyferry does not know");
        page.table(&[
            "command",
            "source",
            "first at offset",
            "left out",
            "keys read instead",
        ]);
        for c in report.status.unknown_commands.iter().take(ROWS) {
            page.row(&[
                &code(&c.name),
                &code(&c.source),
                &c.first_offset.to_string(),
                &grouped(c.left_out),
                &grouped(c.read_again),
            ]);
        }
        page.more(report.status.unknown_commands.len());
    }
    if let Some(dry) = &report.dry_run {
        page.heading("Dry run");
        page.line(format_args!(
            "A dry run read {} keys and {} of the snapshot, and {} commands; it wrote nothing.",
            grouped(dry.status.snapshot.keys_read),
            bytes(dry.status.snapshot.bytes_read),
            grouped(dry.status.stream.commands_applied)
        ));
        if let Some(census) = &dry.census {
            census_tables(&mut page, census);
        }
    }
    if !report.events.is_empty() {
        page.heading("Events");
        page.table(&["when", "level", "what"]);
        for e in report.events.iter().rev().take(ROWS).rev() {
            page.row(&[&instant(e.at_ms), &text(&e.level), &text(&e.message)]);
        }
    }
    page.heading("The plan");
    page.line(format_args!("Passwords are left out."));
    page.line(format_args!(""));
    page.line(format_args!("```json"));
    page.line(format_args!("{:#}", report.job.redacted));
    page.line(format_args!("```"));
    page.0
}

/// One sentence, and no better than the facts.
fn verdict(report: &Report) -> String {
    let moved = report.run.is_some();
    match &report.verify {
        _ if !moved => "**This plan never ran.**".into(),
        None => "**Not verified: source and target were never compared.**".into(),
        Some(v) if v.run.equal => format!(
            "**Equal: the comparison that ended {} found no difference.**",
            instant(v.run.ended_ms)
        ),
        Some(v) => format!(
            "**Not equal: the comparison that ended {} found differences.**",
            instant(v.run.ended_ms)
        ),
    }
}

fn comparison(page: &mut Page, v: &Verification) {
    let total = |key: &str| v.run.answer[key].as_u64();
    page.heading("Comparison");
    page.table(&["", ""]);
    page.row(&["result", if v.run.equal { "equal" } else { "not equal" }]);
    page.row(&["from", &instant(v.run.started_ms)]);
    page.row(&["to", &instant(v.run.ended_ms)]);
    for (name, key) in [
        ("keys at the source", "keys_source"),
        ("keys at the target", "keys_target"),
        ("slots that differ", "slots_different"),
        ("keys missing at the target", "missing_count"),
        ("keys only at the target", "extra_count"),
        ("keys that differ", "different_count"),
        ("keys that could not be proven", "unprovable_count"),
        (
            "keys with what the source's version does not replicate, no difference",
            "not_replicated_count",
        ),
        ("keys repaired", "repaired_count"),
    ] {
        if let Some(n) = total(key) {
            page.row(&[name, &grouped(n)]);
        }
    }
    for (state, n) in &v.slot_states {
        page.row(&[&format!("slots {}", text(state)), &grouped(*n)]);
    }
    if !v.slots_apart.is_empty() {
        page.heading("Slots that are not equal");
        page.table(&["slot", "state", "keys at the source", "keys at the target"]);
        for s in v.slots_apart.iter().take(ROWS) {
            page.row(&[
                &s.slot.to_string(),
                &text(&s.state),
                &grouped(s.keys_source),
                &grouped(s.keys_target),
            ]);
        }
        page.more(v.slots_apart.len());
    }
    if !v.differences.is_empty() {
        page.heading("Keys that are not equal");
        page.table(&["database", "key", "slot", "reason", "detail"]);
        for d in v.differences.iter().take(ROWS) {
            page.row(&[
                &d.db.to_string(),
                &code(&d.key.escape_ascii().to_string()),
                &d.slot.to_string(),
                &text(&d.reason),
                &text(&d.detail),
            ]);
        }
        page.more(v.differences.len());
    }
}

fn census_tables(page: &mut Page, census: &Value) {
    if let Some(types) = census["types"].as_object() {
        page.line(format_args!(""));
        page.table(&["type", "keys", "bytes"]);
        for (kind, of) in types {
            page.row(&[
                &text(kind),
                &grouped(of["keys"].as_u64().unwrap_or(0)),
                &bytes(of["bytes"].as_u64().unwrap_or(0)),
            ]);
        }
    }
    if let Some(ways) = census["ways"].as_object() {
        page.line(format_args!(""));
        page.table(&["written by", "keys"]);
        for (way, n) in ways {
            page.row(&[&text(way), &grouped(n.as_u64().unwrap_or(0))]);
        }
    }
    if let Some(largest) = census["largest"].as_array().filter(|l| !l.is_empty()) {
        page.line(format_args!(""));
        page.table(&["largest keys", "type", "bytes"]);
        for of in largest {
            page.row(&[
                &code(of["key"].as_str().unwrap_or("")),
                &text(of["type"].as_str().unwrap_or("")),
                &bytes(of["bytes"].as_u64().unwrap_or(0)),
            ]);
        }
    }
}

struct Page(String);

impl Page {
    fn line(&mut self, line: std::fmt::Arguments) {
        // Writing to a String cannot fail.
        let _ = self.0.write_fmt(line);
        self.0.push('\n');
    }

    fn heading(&mut self, title: &str) {
        self.line(format_args!("\n## {title}\n"));
    }

    fn table(&mut self, columns: &[&str]) {
        self.row(columns);
        self.line(format_args!("|{}", "---|".repeat(columns.len())));
    }

    /// Cells are markdown already: see [`text`] and [`code`].
    fn row(&mut self, cells: &[&str]) {
        self.line(format_args!("| {} |", cells.join(" | ")));
    }

    fn more(&mut self, all: usize) {
        if all > ROWS {
            self.line(format_args!("\n{} more are in report.json.", all - ROWS));
        }
    }
}

/// The same tables as the HTML report has, without its charts.
fn measured(page: &mut Page, report: &Report) {
    let parts = latency(report);
    if parts.is_empty() {
        return;
    }
    page.heading("Latency");
    for part in parts {
        page.line(format_args!(
            "### {}: {}\n\n{}",
            text(&part.title),
            part.verdict,
            text(&part.why)
        ));
        for table in part.tables {
            page.0 += &table.markdown();
        }
    }
    for table in more_latency(report) {
        page.0 += &table.markdown();
    }
}

impl Table {
    pub(super) fn markdown(&self) -> String {
        let mut page = Page(format!("\n{}\n\n", text(&self.caption)));
        for (at, row) in std::iter::once(&self.head).chain(&self.rows).enumerate() {
            let cells: Vec<String> = row.iter().map(|cell| text(cell)).collect();
            let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
            match at {
                0 => page.table(&cells),
                _ => page.row(&cells),
            }
        }
        page.0.push('\n');
        page.0
    }
}

/// Every step of every attempt, with what was measured or why it was refused.
fn cutovers(page: &mut Page, steps: &[CutoverStep]) {
    if steps.is_empty() {
        return;
    }
    page.heading("Cutover");
    page.table(&STEP);
    for step in steps {
        let cells = step_row(step).map(|cell| text(&cell));
        page.row(&cells.each_ref().map(String::as_str));
    }
}

/// Text of unknown origin: nothing in it acts as markdown or HTML.
pub(super) fn text(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for c in raw.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' => out.extend(['\\', c]),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A name as code, whatever it holds.
fn code(raw: &str) -> String {
    let clean: String = raw
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let clean = clean.replace('|', "\\|");
    // Longer than any run of backticks in it.
    let runs = clean.split(|c| c != '`').map(str::len);
    match runs.max().unwrap_or(0) {
        0 => format!("`{clean}`"),
        most => {
            let fence = "`".repeat(most + 1);
            format!("{fence} {clean} {fence}")
        }
    }
}
