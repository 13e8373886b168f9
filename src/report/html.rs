//! The report for stakeholders: report.html, one file that needs no network and no script.
//!
//! It shows what is in report.json, nothing else; a chart never stands without its numbers.

use super::measured::{by_load, latency, more_latency, source_cost};
use super::steps::{STEP, step_row};
use super::view::{Card, Chart, Part, Table, mood, render_page, table};
use super::{Report, charts, duration, grouped, instant, price_text};
use crate::error::Result;
use crate::store::Stage;
use askama::Template;
use serde_json::Value;

/// Rows of events and of keys; report.json has more.
const ROWS: usize = 40;

#[derive(Template)]
#[template(path = "report.html", config = "src/report/page/askama.toml")]
struct Page {
    version: &'static str,
    name: String,
    moved: String,
    written: String,
    cards: Vec<Card>,
    map: Option<String>,
    map_text: String,
    proof: Vec<Table>,
    unproven: Vec<String>,
    latency: Vec<Part>,
    no_latency: &'static str,
    by_load: Vec<Chart>,
    more_latency: Vec<Table>,
    cutover: Vec<Table>,
    timeline: Option<String>,
    migration: Vec<Table>,
    conditions: Vec<Table>,
    plan: String,
    limits: Vec<&'static str>,
    repeat: String,
}

pub fn render(report: &Report) -> Result<String> {
    let run = report.run.as_ref();
    let source = run.map_or_else(|| report.job.source.to_string(), |r| r.run.source.clone());
    let (map, map_text) = map(report);
    let mut cards = vec![
        proof_card(report),
        keys_card(report),
        pause_card(report),
        latency_card(report),
        guarantee_card(report),
    ];
    cards.extend(price_card(report));
    let page = Page {
        version: env!("CARGO_PKG_VERSION"),
        name: report.job.name.clone(),
        moved: format!("From {source} to {}.", report.job.target),
        written: instant(report.generated_ms),
        cards,
        map,
        map_text,
        proof: proof(report),
        unproven: report.unproven.clone(),
        latency: latency(report),
        no_latency: "It was not measured: `keyferry latency PLAN` does that.",
        by_load: by_load(report),
        more_latency: more_latency(report),
        cutover: cutover(report),
        timeline: charts::timeline(&report.phases, report.generated_ms),
        migration: migration(report),
        conditions: conditions(report),
        plan: serde_json::to_string_pretty(&report.job.redacted).unwrap_or_default(),
        limits: LIMITS.to_vec(),
        repeat: REPEAT.replace("PLAN", &format!("{}.json", report.job.name)),
    };
    render_page(&page)
}

const LIMITS: [&str; 6] = [
    "Equal means equal by a digest of each key; two different values agree with a probability of about 2⁻⁶⁴.",
    "Latency is measured from one host, over the connections of the plan, one request at a time on each; an application that pipelines sees other numbers.",
    "An interval holds the true difference in 95 of 100 such measurements; it is drawn from blocks, and says nothing about hours that were not measured.",
    "A percentile is shown where at least ten requests lie beyond it.",
    "What reading cost the source is told by a PING every 10 ms of this program, which at times is busy itself: it says how long a client waited at most, not at least.",
    "The servers' own figures are those of the end of the measurement, and count all their clients.",
];

const REPEAT: &str = "keyferry verify PLAN\nkeyferry latency PLAN --fresh\nkeyferry report PLAN";

fn proof_card(report: &Report) -> Card {
    let (value, text, mood) = match &report.verify {
        None => (
            "not proven".to_owned(),
            "Source and target were never compared.".to_owned(),
            "warn",
        ),
        Some(v) => {
            let n = |key: &str| v.run.answer[key].as_u64().unwrap_or(0);
            let apart = n("missing_count") + n("extra_count") + n("different_count");
            let when = instant(v.run.ended_ms);
            match v.run.equal {
                true => (
                    "equal".to_owned(),
                    format!(
                        "{} of 16 384 slots compared, {when}",
                        grouped(n("slots_compared"))
                    ),
                    "good",
                ),
                false => (
                    format!("{} keys differ", grouped(apart)),
                    format!("compared {when}"),
                    "bad",
                ),
            }
        }
    };
    Card {
        title: "Proof",
        value,
        text,
        mood,
    }
}

fn keys_card(report: &Report) -> Card {
    let written = report.status.snapshot.keys_written;
    Card {
        title: "Moved",
        value: format!("{} keys", grouped(written)),
        text: format!(
            "and {} commands of the stream",
            grouped(report.status.stream.commands_applied)
        ),
        mood: "",
    }
}

fn pause_card(report: &Report) -> Card {
    let (value, text, mood) = match report.pause() {
        None if report.cutover.is_empty() => ("no cutover yet".into(), String::new(), ""),
        None => (
            "not switched".into(),
            "The clients are where they were.".into(),
            "warn",
        ),
        Some((ms, last)) => (
            format!("{ms:.0} ms"),
            format!("{} of {}", last.direction, instant(last.started_ms)),
            "good",
        ),
    };
    Card {
        title: "Writers were paused",
        value,
        text,
        mood,
    }
}

fn price_card(report: &Report) -> Option<Card> {
    let price = report.job.price.as_ref()?;
    Some(Card {
        title: "Price of a month",
        value: price_text(price.source, price.target, &price.currency),
        text: "as the plan says".into(),
        mood: "",
    })
}

fn latency_card(report: &Report) -> Card {
    let (value, text, mood) = match report.told_result() {
        None => ("not measured".into(), String::new(), ""),
        Some(result) => {
            let verdict = result["verdict"].as_str().unwrap_or("").to_owned();
            let middle = &result["difference_us"]["p50_us"];
            let tail = &result["difference_us"]["p99_us"];
            let one = |name: &str, d: &Value| {
                d["value"].as_f64().map(|v| {
                    format!(
                        "{name} {v:+.0} µs ({:+.0} to {:+.0})",
                        d["low"].as_f64().unwrap_or(v),
                        d["high"].as_f64().unwrap_or(v)
                    )
                })
            };
            let parts: Vec<String> = [one("p50", middle), one("p99", tail)]
                .into_iter()
                .flatten()
                .collect();
            let mood = mood(&verdict);
            (format!("target: {verdict}"), parts.join(", "), mood)
        }
    };
    Card {
        title: "Latency",
        value,
        text,
        mood,
    }
}

fn guarantee_card(report: &Report) -> Card {
    let (value, text) = match report.status.mode.as_str() {
        "replica" => (
            "replication stream",
            "Every write of the source arrived once and in order, exact by offset.",
        ),
        "scan" => (
            "scan and sweeps",
            report.status.guarantee().unwrap_or(
                "Each key is what the source had when it was read last; the last sweep without a difference is the proof.",
            ),
        ),
        "rdb" => ("snapshot", "The target holds what the snapshot held."),
        _ => ("not begun", ""),
    };
    Card {
        title: "Guarantee",
        value: value.into(),
        text: text.into(),
        mood: "",
    }
}

fn map(report: &Report) -> (Option<String>, String) {
    let Some(v) = &report.verify else {
        return (None, String::new());
    };
    let of = |state: &str| v.slot_states.get(state).copied().unwrap_or(0);
    let text = format!(
        "All 16 384 slots, 256 in a row: {} equal, {} different, {} not provable.",
        grouped(of("equal")),
        grouped(of("different")),
        grouped(of("unprovable"))
    );
    let apart: Vec<u16> = v.slots_apart.iter().map(|s| s.slot).collect();
    let compared: u64 = v.slot_states.values().sum();
    (Some(charts::slots(&apart, compared == 16_384)), text)
}

fn proof(report: &Report) -> Vec<Table> {
    let Some(v) = &report.verify else {
        return Vec::new();
    };
    let n = |key: &str| grouped(v.run.answer[key].as_u64().unwrap_or(0));
    let mut tables = vec![table(
        "The last comparison",
        &["", "keys"],
        [
            ("at the source", "keys_source"),
            ("at the target", "keys_target"),
            ("missing", "missing_count"),
            ("too many", "extra_count"),
            ("different", "different_count"),
            ("not provable", "unprovable_count"),
            (
                "not replicated by the source's version, no difference",
                "not_replicated_count",
            ),
            ("listed losses, not compared", "known_losses"),
        ]
        .map(|(name, key)| vec![name.to_owned(), n(key)])
        .to_vec(),
    )];
    if !v.differences.is_empty() {
        let rows = v.differences.iter().take(ROWS).map(|d| {
            vec![
                d.db.0.to_string(),
                d.slot.to_string(),
                String::from_utf8_lossy(&d.key).into_owned(),
                d.reason.clone(),
            ]
        });
        tables.push(table(
            "Keys that are not equal",
            &["db", "slot", "key", "how"],
            rows.collect(),
        ));
    }
    tables
}

fn cutover(report: &Report) -> Vec<Table> {
    if report.cutover.is_empty() {
        return Vec::new();
    }
    let from = report.cutover.len().saturating_sub(3 * ROWS);
    let rows = report.cutover.iter().skip(from);
    let rows: Vec<Vec<String>> = rows.map(|step| step_row(step).to_vec()).collect();
    let at = match report.stage() {
        Some(Stage::Source) => "The clients are at the source.",
        Some(Stage::Switching) => "The clients were being moved when this was written.",
        Some(Stage::Switched | Stage::Committed) => "The clients are at the target.",
        Some(Stage::RolledBack) => "The clients were taken back to the source.",
        None => "",
    };
    vec![table(at, &STEP, rows)]
}

fn migration(report: &Report) -> Vec<Table> {
    let s = &report.status;
    let mut tables = vec![table(
        "Numbers",
        &["", ""],
        vec![
            vec![
                "keys read of the snapshot".into(),
                grouped(s.snapshot.keys_read),
            ],
            vec!["keys written".into(), grouped(s.snapshot.keys_written)],
            vec![
                "commands of the stream".into(),
                grouped(s.stream.commands_applied),
            ],
            vec![
                "keys read once more and written (healed)".into(),
                grouped(s.healed_keys),
            ],
            vec![
                "lag when it was saved last".into(),
                duration(s.stream.lag_ms),
            ],
        ],
    )];
    tables.extend(source_cost(report));
    tables.extend(report.index_table());
    let phases = report.phases.iter().map(|p| {
        let took = p.left_ms.map_or("-".into(), |left| {
            duration(u64::try_from(left - p.entered_ms).unwrap_or(0))
        });
        vec![p.phase.to_string(), instant(p.entered_ms), took]
    });
    tables.push(table(
        "Phases",
        &["phase", "begun", "took"],
        phases.collect(),
    ));
    let events: Vec<Vec<String>> = (report.events.iter().rev().take(ROWS))
        .map(|e| vec![instant(e.at_ms), e.level.clone(), e.message.clone()])
        .collect();
    if !events.is_empty() {
        tables.push(table(
            "Faults and what was done, the latest first",
            &["when", "level", "what"],
            events,
        ));
    }
    tables
}

fn conditions(report: &Report) -> Vec<Table> {
    let mut rows = Vec::new();
    if let Some(found) = report.products() {
        rows.push(vec![
            "both sides, at the last start".to_owned(),
            found.to_owned(),
        ]);
    }
    if let Some(run) = &report.run {
        rows.push(vec![
            "begun".into(),
            format!("{}, run {}", instant(run.run.started_ms), run.run_id),
        ]);
        rows.push(vec![
            "fingerprint of what is moved".into(),
            run.run.fingerprint.clone(),
        ]);
    }
    rows.push(vec!["keys".into(), report.job.filter.to_string()]);
    rows.push(vec!["databases".into(), report.job.databases.to_string()]);
    if let Some(latency) = &report.latency {
        let d = &latency["design"];
        rows.push(vec![
            "latency measured".into(),
            instant(latency["measured_at"].as_i64().unwrap_or(0)),
        ]);
        for (name, key) in [
            ("blocks of each side", "blocks"),
            ("length of a block, s", "block_s"),
            ("connections to each side", "connections"),
            ("order", "order"),
            ("began with", "begins_with"),
            ("arrivals", "arrivals"),
            ("seed", "seed"),
            ("base rate, requests/s", "base_rate_per_s"),
            ("which keys are popular", "popularity"),
            ("length of values written, bytes", "value_bytes"),
            ("tolerance named beforehand", "tolerance"),
        ] {
            let value = match &d[key] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            rows.push(vec![name.into(), value]);
        }
    }
    vec![table("", &["", ""], rows)]
}
