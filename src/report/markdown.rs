//! The report as a page of Markdown.

use serde_json::Value;
use std::fmt::Write;

/// The page for a report's model.
pub fn page(model: &Value) -> String {
    let mut out = String::new();
    // Writing into a string cannot fail.
    let _ = fill(&mut out, model);
    out
}

fn text(v: &Value) -> String {
    match v {
        Value::Null => "–".into(),
        Value::String(s) => s.replace('|', "\\|").replace('\n', " "),
        other => other.to_string(),
    }
}

fn fill(out: &mut String, m: &Value) -> std::fmt::Result {
    writeln!(out, "# Migration report: {}\n", text(&m["plan"]))?;
    let verdict = match m["verification"]["equal"].as_bool() {
        Some(true) => "**Proven equal** when last compared.",
        Some(false) => "**Not proven equal** when last compared.",
        None => "**Not compared yet.**",
    };
    writeln!(out, "{verdict}\n")?;
    writeln!(out, "| | |\n|---|---|")?;
    for (name, key) in [
        ("From", "source"),
        ("To", "target"),
        ("Mode", "mode"),
        ("Begun (UTC)", "started"),
        ("Phase now", "phase"),
        ("keyferry", "keyferry_version"),
    ] {
        writeln!(out, "| {name} | {} |", text(&m[key]))?;
    }
    writeln!(out, "\n## What moved\n\n| | |\n|---|---:|")?;
    table(out, &m["moved"])?;
    writeln!(out, "\n## Proof\n")?;
    match &m["verification"] {
        Value::Null => writeln!(out, "There is none: the two sides were never compared.")?,
        v => {
            writeln!(
                out,
                "Compared until {} UTC, slot by slot and, where sums differed, key by key.\n\n| | |\n|---|---:|",
                text(&v["ended"])
            )?;
            table(out, &v["summary"])?;
            writeln!(out, "\nSlots by state: {}", text(&m["slots"]))?;
        }
    }
    if let Some(list) = m["differences"].as_array().filter(|l| !l.is_empty()) {
        writeln!(
            out,
            "\n| database | slot | key | reason |\n|---:|---:|---|---|"
        )?;
        for d in list {
            writeln!(
                out,
                "| {} | {} | {} | {} |",
                text(&d["db"]),
                text(&d["slot"]),
                text(&d["key"]),
                text(&d["reason"])
            )?;
        }
    }
    writeln!(out, "\n## Not proven\n")?;
    match m["not_proven"].as_array().filter(|l| !l.is_empty()) {
        None => writeln!(
            out,
            "- Nothing is left open, within the method's limits (docs/report.md)."
        )?,
        Some(list) => list
            .iter()
            .try_for_each(|line| writeln!(out, "- {}", text(line)))?,
    }
    for (title, key) in [
        ("Left out", "left_out"),
        ("Faults and what was counted", "counters"),
    ] {
        if m[key].as_object().is_some_and(|o| !o.is_empty()) {
            writeln!(out, "\n## {title}\n\n| | |\n|---|---:|")?;
            table(out, &m[key])?;
        }
    }
    writeln!(
        out,
        "\n## Phases\n\n| phase | started (UTC) | ended (UTC) | ms |\n|---|---|---|---:|"
    )?;
    for p in m["phases"].as_array().into_iter().flatten() {
        writeln!(
            out,
            "| {} | {} | {} | {} |",
            text(&p["phase"]),
            text(&p["started"]),
            text(&p["ended"]),
            text(&p["ms"])
        )?;
    }
    writeln!(
        out,
        "\n## Events\n\n| at (UTC) | level | what | |\n|---|---|---|---|"
    )?;
    for e in m["events"].as_array().into_iter().flatten() {
        writeln!(
            out,
            "| {} | {} | {} | {} |",
            text(&e["at"]),
            text(&e["level"]),
            text(&e["code"]),
            text(&e["message"])
        )?;
    }
    if !m["census"].is_null() {
        writeln!(
            out,
            "\n## Census of the dry run\n\n```json\n{:#}\n```",
            m["census"]
        )?;
    }
    writeln!(
        out,
        "\n## Conditions\n\nFingerprint {}.\n\n```json\n{:#}\n```",
        text(&m["fingerprint"]),
        m["conditions"]
    )
}

fn table(out: &mut String, object: &Value) -> std::fmt::Result {
    for (name, value) in object.as_object().into_iter().flatten() {
        writeln!(out, "| {} | {} |", name.replace('_', " "), text(value))?;
    }
    Ok(())
}
