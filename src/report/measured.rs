//! The latency part of the HTML report: charts and tables from the answer of `keyferry latency`.

use super::view::{Chart, Part, Table, mood, table};
use super::{Report, charts, grouped};
use crate::histogram::PERCENTILES;
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

fn word(value: &Value) -> String {
    value.as_str().unwrap_or("").to_owned()
}

/// What was measured: source, target, and what the plan has named beside them.
fn sides(endpoints: &Value) -> Vec<&str> {
    let all = endpoints.as_object().into_iter().flatten();
    let mut names: Vec<&str> = all.map(|(name, _)| name.as_str()).collect();
    names.sort_by_key(|name| match *name {
        "source" => 0,
        "target" => 1,
        _ => 2,
    });
    names
}

fn interval(d: &Value) -> String {
    match d["value"].as_f64() {
        Some(v) => format!(
            "{v:+.0} ({:+.0} to {:+.0})",
            d["low"].as_f64().unwrap_or(v),
            d["high"].as_f64().unwrap_or(v)
        ),
        None => String::new(),
    }
}

fn ratio(r: &Value) -> String {
    r["value"]
        .as_f64()
        .map_or(String::new(), |r| format!("{r:.2}"))
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
        vec![
            (*name).to_owned(),
            us(&side("source")["response"][*key]),
            us(&side("target")["response"][*key]),
            interval(&result["difference_us"][*key]),
            ratio(&result["ratio"][*key]),
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
    let further = result["against"].as_object().into_iter().flatten();
    tables.extend(further.map(|(name, other)| beside(name, other, result)));
    let measured = sides(&result["endpoints"]);
    let counts = measured.iter().map(|name| {
        let of = side(name);
        vec![
            (*name).to_owned(),
            of["count"].to_string(),
            of["errors"].to_string(),
            of["shed"].to_string(),
            us(&of["client_late_p99_us"]),
        ]
    });
    tables.push(table(
        "Requests counted, failed, and not sent as the queue was full; and how late this program itself was (p99, µs)",
        &["", "requests", "errors", "shed", "own lateness"],
        counts.collect(),
    ));
    let share = |n: &Value| format!("{:.1} %", n.as_f64().unwrap_or(0.0));
    let kinds = result["requests"].as_array().into_iter().flatten();
    let all: f64 = kinds.clone().filter_map(|k| k["weight"].as_f64()).sum();
    let mut requests: Vec<Vec<String>> = kinds
        .map(|k| {
            let of = k["weight"].as_f64().unwrap_or(0.0) / all.max(f64::MIN_POSITIVE);
            vec![word(&k["kind"]), share(&(100.0 * of).into())]
        })
        .collect();
    let left = result["left_out"].as_array().into_iter().flatten();
    requests.extend(left.map(|k| {
        let of = 100.0 * k["share"].as_f64().unwrap_or(0.0);
        vec![format!("not sent: {}", word(&k["what"])), share(&of.into())]
    }));
    tables.push(table(
        "What was asked; what was not is a share of the traffic seen",
        &["request", "share"],
        requests,
    ));
    let points = |name: &str, key: &str| -> Option<f64> { side(name)["response"][key].as_f64() };
    let curve = |name: &str| -> Vec<(f64, f64)> {
        (PERCENTILES.iter())
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

/// The target next to a further server of the plan's.
fn beside(name: &str, other: &Value, result: &Value) -> Table {
    let of = |side: &str, key: &str| us(&result["endpoints"][side]["response"][key]);
    let rows = NAMES.iter().map(|(title, key)| {
        vec![
            (*title).to_owned(),
            of(name, key),
            of("target", key),
            interval(&other["difference_us"][*key]),
            ratio(&other["ratio"][*key]),
        ]
    });
    let said = format!(
        "The target next to {name}: {}; {} (response times in µs, the difference with its 95 % interval)",
        word(&other["verdict"]),
        word(&other["why"])
    );
    table(
        &said,
        &["", name, "target", "difference", "ratio"],
        rows.collect(),
    )
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
        sides(&latency["floor"]).into_iter().map(floor).collect(),
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
            "Overload: 1.5 and 2 times the highest rate, or the lower of both peaks where there was a sweep",
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
    let stages = latency["sweep"].as_array().into_iter().flatten().map(|s| {
        vec![
            word(&s["side"]),
            format!("{:.0}", s["rate_per_s"].as_f64().unwrap_or(0.0)),
            format!("{:.0}", s["answered_per_s"].as_f64().unwrap_or(0.0)),
            us(&s["response"]["p50_us"]),
            us(&s["response"]["p99_us"]),
            match (s["kept_up"] == true, s["shed_by_client"] == 0) {
                (true, _) => "kept up".into(),
                (false, true) => "saturated".into(),
                (false, false) => "the limit of this program".into(),
            },
        ]
    });
    let stages: Vec<Vec<String>> = stages.collect();
    if !stages.is_empty() {
        tables.push(table(
            "The sweep: the rate raised until a side is saturated",
            &["", "requests/s", "answered/s", "p50 µs", "p99 µs", ""],
            stages,
        ));
    }
    let client = &latency["client"];
    if let Some(held) = client["held_per_s"].as_f64() {
        let limit = match client["was_the_limit"] == true {
            true => "its limit on this host",
            false => "more was not asked of it",
        };
        tables.push(table(
            "This program itself, on one core",
            &["requests/s held", ""],
            vec![vec![grouped(held as u64), limit.to_owned()]],
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
        "expired_keys",
        "used_cpu_user",
        "used_cpu_sys",
    ];
    let measured = sides(&latency["servers"]);
    let mut head = vec![String::new()];
    for side in &measured {
        head.extend([format!("{side}, before"), "after".into()]);
    }
    let rows = figures.map(|name| {
        let of = |when: &str, side: &str| match &latency[when][side][name] {
            Value::String(text) => text.clone(),
            Value::Null => "-".into(),
            Value::Number(n) if n.as_f64().is_some_and(|f| f.fract() != 0.0) => {
                format!("{:.3}", n.as_f64().unwrap_or(0.0))
            }
            other => grouped(other.as_f64().unwrap_or(0.0) as u64),
        };
        let mut row = vec![name.replace('_', " ")];
        for side in &measured {
            row.extend(["servers_before", "servers"].map(|when| of(when, side)));
        }
        row
    });
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    tables.push(table(
        "What the servers say of themselves before and after",
        &head,
        rows.to_vec(),
    ));
    tables.extend(by_command(latency));
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

/// What the servers counted meanwhile: all clients' commands, the most frequent ones.
fn by_command(latency: &Value) -> Option<Table> {
    let of = |when: &str, side: &str, name: &str| latency[when][side]["commands"][name].clone();
    let meanwhile = |side: &str, name: &str, key: &str| {
        let n = |when: &str| of(when, side, name)[key].as_u64().unwrap_or(0);
        n("servers").saturating_sub(n("servers_before"))
    };
    let mut names: Vec<(u64, &str)> = Vec::new();
    for side in ["source", "target"] {
        let commands = latency["servers"][side]["commands"].as_object();
        for name in commands
            .into_iter()
            .flatten()
            .map(|(name, _)| name.as_str())
        {
            if !names.iter().any(|(_, known)| *known == name) {
                let calls = ["source", "target"].map(|side| meanwhile(side, name, "calls"));
                names.push((calls.iter().sum(), name));
            }
        }
    }
    names.retain(|(calls, _)| *calls > 0);
    names.sort_by(|a, b| b.cmp(a));
    let rows = names.iter().take(COMMANDS).map(|(_, name)| {
        let mut row = vec![(*name).to_owned()];
        for side in ["source", "target"] {
            let (calls, usec) = (
                meanwhile(side, name, "calls"),
                meanwhile(side, name, "usec"),
            );
            row.push(grouped(calls));
            row.push(match calls {
                0 => "-".into(),
                _ => format!("{:.1}", usec as f64 / calls as f64),
            });
            row.push(us(&of("servers", side, name)["p99_us"]));
        }
        row
    });
    let rows: Vec<Vec<String>> = rows.collect();
    (!rows.is_empty()).then(|| {
        table(
            "Commands meanwhile, as the servers count them (all clients); µs for a call without the network, p99 since the start",
            &["", "source: calls", "µs", "p99", "target: calls", "µs", "p99"],
            rows,
        )
    })
}

/// Commands that are shown.
const COMMANDS: usize = 12;

/// How fast the source answered before it was read, and while it was.
pub fn source_cost(report: &Report) -> Option<Table> {
    let pulse = report.pulse.as_ref()?;
    let rows = [
        ("before", "before"),
        ("while it was copied", "snapshot"),
        ("while it was followed", "stream"),
    ];
    let rows = rows.map(|(name, key)| {
        let of = &pulse[key];
        let mut row = vec![name.to_owned(), us(&of["count"])];
        row.extend(["p50_us", "p95_us", "p99_us", "max_us"].map(|p| us(&of[p])));
        row
    });
    Some(table(
        "What the migration cost the source: PING every 10 ms, in µs",
        &["", "asked", "p50", "p95", "p99", "max"],
        rows.to_vec(),
    ))
}

/// The median and the tail of each side by the rate, where there was a sweep or there are several rates.
pub fn by_load(report: &Report) -> Vec<Chart> {
    let Some(latency) = &report.latency else {
        return Vec::new();
    };
    let list = |key: &str| latency[key].as_array().into_iter().flatten();
    let told = report
        .told_result()
        .map(|r| word(&r["workload"]))
        .unwrap_or_default();
    let one = |side: &str, name: &str| -> Vec<(f64, f64)> {
        let rates = list("results")
            .filter(|r| r["workload"].as_str() == Some(&told))
            .map(|r| (&r["rate_per_s"], &r["endpoints"][side]["response"][name]));
        let stages = list("sweep")
            .filter(|s| s["side"] == side && s["workload"].as_str() == Some(&told))
            .map(|s| (&s["rate_per_s"], &s["response"][name]));
        let mut points: Vec<(f64, f64)> = rates
            .chain(stages)
            .filter_map(|(rate, us)| Some((rate.as_f64()?, us.as_f64()?)))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    let names = [("p50_us", "median (p50)"), ("p99_us", "tail (p99)")];
    let chart = |(key, name): (&str, &str)| {
        let svg = charts::loads(one("source", key), one("target", key))?;
        let text = format!(
            "{told}: the {name} of the response time by requests per second, both scales logarithmic."
        );
        Some(Chart { svg, text })
    };
    names.into_iter().filter_map(chart).collect()
}
