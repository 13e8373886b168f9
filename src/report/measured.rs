//! The latency part of the HTML report: charts and tables from the answer of `keyferry latency`.

use super::html::{Chart, Part, Table, mood, table};
use super::{Report, charts, grouped};
use serde_json::Value;

const NAMES: [(&str, &str); 8] = [
    ("mean", "mean_us"),
    ("p50", "p50_us"),
    ("p90", "p90_us"),
    ("p95", "p95_us"),
    ("p99", "p99_us"),
    ("p99.9", "p99_9_us"),
    ("p99.99", "p99_99_us"),
    ("max", "max_us"),
];

fn us(value: &Value) -> String {
    value.as_f64().map_or("-".into(), |n| format!("{n:.0}"))
}

pub fn latency(report: &Report) -> Vec<Part> {
    let results = report
        .latency
        .as_ref()
        .and_then(|l| l["results"].as_array());
    results.into_iter().flatten().map(part).collect()
}

fn part(result: &Value) -> Part {
    let title = format!(
        "{} at {:.0} requests/s ({}× the observed rate)",
        result["workload"].as_str().unwrap_or(""),
        result["rate_per_s"].as_f64().unwrap_or(0.0),
        result["rate"]
    );
    let side = |name: &str| &result["endpoints"][name];
    let rows = NAMES.iter().map(|(name, key)| {
        let d = &result["difference_us"][*key];
        let interval = match d["value"].as_f64() {
            Some(v) => format!(
                "{v:+.0} ({:+.0} to {:+.0})",
                d["low"].as_f64().unwrap_or(v),
                d["high"].as_f64().unwrap_or(v)
            ),
            None => String::new(),
        };
        let ratio = result["ratio"][*key]["value"]
            .as_f64()
            .map_or(String::new(), |r| format!("{r:.2}"));
        vec![
            (*name).to_owned(),
            us(&side("source")["response"][*key]),
            us(&side("target")["response"][*key]),
            interval,
            ratio,
            us(&side("source")["service"][*key]),
            us(&side("target")["service"][*key]),
        ]
    });
    let mut tables = vec![table(
        "Times in µs: response from the planned moment, service from the send; the difference with its 95 % interval",
        &[
            "",
            "response, source",
            "response, target",
            "difference",
            "ratio",
            "service, source",
            "service, target",
        ],
        rows.collect(),
    )];
    let counts = ["source", "target"].map(|name| {
        let of = side(name);
        vec![
            name.to_owned(),
            of["count"].to_string(),
            of["errors"].to_string(),
            of["shed"].to_string(),
            us(&of["client_late_p99_us"]),
        ]
    });
    tables.push(table(
        "Requests counted, failed, and not sent as the queue was full; and how late this program itself was (p99, µs)",
        &["", "requests", "errors", "shed", "own lateness"],
        counts.to_vec(),
    ));
    let points = |name: &str, key: &str| -> Option<f64> { side(name)["response"][key].as_f64() };
    let curve = |name: &str| -> Vec<(f64, f64)> {
        let of = [
            ("p50_us", 0.5),
            ("p90_us", 0.9),
            ("p95_us", 0.95),
            ("p99_us", 0.99),
            ("p99_9_us", 0.999),
            ("p99_99_us", 0.9999),
        ];
        of.iter()
            .filter_map(|(key, q)| Some((*q, points(name, key)?)))
            .collect()
    };
    let by_block = |name: &str, key: &str| -> Vec<f64> {
        let blocks = side(name)["blocks"].as_array();
        blocks
            .into_iter()
            .flatten()
            .filter_map(|b| b["response"][key].as_f64())
            .collect()
    };
    let mut list = Vec::new();
    if let Some(svg) = charts::percentiles(&curve("source"), &curve("target")) {
        list.push(Chart {
            svg,
            text: "Response time by percentile, both scales logarithmic.".into(),
        });
    }
    if let Some(svg) = charts::blocks(&by_block("source", "p50_us"), &by_block("target", "p50_us"))
    {
        list.push(Chart {
            svg,
            text: "The median response time of each block, in the order of the blocks.".into(),
        });
    }
    let verdict = result["verdict"].as_str().unwrap_or("").to_owned();
    Part {
        title,
        mood: mood(&verdict),
        verdict: format!("target {verdict}"),
        why: result["why"].as_str().unwrap_or("").to_owned(),
        charts: list,
        tables,
    }
}

pub fn more_latency(report: &Report) -> Vec<Table> {
    let Some(latency) = &report.latency else {
        return Vec::new();
    };
    let mut tables = Vec::new();
    let floor = |side: &str| {
        let of = &latency["floor"][side];
        vec![
            side.to_owned(),
            us(&of["p50_us"]),
            us(&of["p99_us"]),
            us(&of["max_us"]),
        ]
    };
    tables.push(table(
        "The floor: PING, one at a time, in µs",
        &["", "p50", "p99", "max"],
        vec![floor("source"), floor("target")],
    ));
    let stages = latency["overload"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|s| {
            vec![
                s["side"].as_str().unwrap_or("").to_owned(),
                format!("{:.0}", s["rate_per_s"].as_f64().unwrap_or(0.0)),
                s["planned"].to_string(),
                s["answered"].to_string(),
                s["shed"].to_string(),
                s["errors"].to_string(),
                us(&s["response"]["p99_us"]),
            ]
        });
    let stages: Vec<Vec<String>> = stages.collect();
    if !stages.is_empty() {
        tables.push(table(
            "Overload: 1.5 and 2 times the highest rate",
            &[
                "",
                "requests/s",
                "planned",
                "answered",
                "shed",
                "errors",
                "p99 µs",
            ],
            stages,
        ));
    }
    let figures = [
        "server",
        "masters",
        "used_memory",
        "fragmentation",
        "hit_ratio",
        "evicted_keys",
        "connected_clients",
    ];
    let rows = figures.map(|name| {
        let of = |side: &str| match &latency["servers"][side][name] {
            Value::String(text) => text.clone(),
            Value::Null => "-".into(),
            Value::Number(n) if n.as_f64().is_some_and(|f| f.fract() != 0.0) => {
                format!("{:.3}", n.as_f64().unwrap_or(0.0))
            }
            other => grouped(other.as_f64().unwrap_or(0.0) as u64),
        };
        vec![name.replace('_', " "), of("source"), of("target")]
    });
    tables.push(table(
        "What the servers say of themselves at the end",
        &["", "source", "target"],
        rows.to_vec(),
    ));
    let skipped = latency["skipped"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|s| {
            vec![
                s["workload"].as_str().unwrap_or("").to_owned(),
                s["why"].as_str().unwrap_or("").to_owned(),
            ]
        });
    let skipped: Vec<Vec<String>> = skipped.collect();
    if !skipped.is_empty() {
        tables.push(table("Not measured", &["workload", "why"], skipped));
    }
    tables
}
