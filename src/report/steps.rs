//! The steps of a cutover, in sentences.

use super::{duration, grouped, instant};
use crate::store::CutoverStep;
use serde_json::Value;

/// What a table of cutover steps has in each row, and its head.
pub const STEP: [&str; 7] = ["attempt", "step", "state", "took", "begun", "who", "detail"];

pub fn step_row(step: &CutoverStep) -> [String; STEP.len()] {
    [
        format!("{} {}", step.direction, step.attempt),
        step.step.clone(),
        step.state.clone(),
        step_time(step),
        instant(step.started_ms),
        step.who.clone(),
        step_text(&step.step, &step.detail),
    ]
}

/// How long a step has taken; nothing as long as it runs.
pub fn step_time(step: &CutoverStep) -> String {
    let ms = |us| format!("{:.1} ms", us as f64 / 1000.0);
    step.took_us.map(ms).unwrap_or_default()
}

/// What a step has found or done.
pub fn step_text(step: &str, detail: &Value) -> String {
    if let Some(why) = detail["why"].as_str() {
        return why.to_owned();
    }
    // Whoever has more to say than fits a pattern says it.
    if let Some(text) = detail["text"].as_str() {
        return text.to_owned();
    }
    let number = |key: &str| detail[key].as_u64();
    let compared = |keys: u64| match keys {
        0 => "nothing was left to compare".to_owned(),
        1 => "1 key compared, equal".to_owned(),
        keys => format!("{} keys compared, all equal", grouped(keys)),
    };
    match step {
        "preflight" => preflight(detail),
        // Of a scan.
        "warm-up" if detail["pause"].is_string() => {
            let pause = detail["pause"].as_str().unwrap_or_default();
            format!("all keys compared; {pause}")
        }
        "warm-up" => match (number("left_keys"), number("compare_us")) {
            (Some(left), Some(us)) => {
                let left = match left {
                    0 => String::new(),
                    left => format!(
                        "; {} keys are written too often to be compared before the freeze",
                        grouped(left)
                    ),
                };
                format!(
                    "all keys compared, and then those written meanwhile; the last of these rounds took {:.1} ms{left}",
                    us as f64 / 1000.0
                )
            }
            _ => String::new(),
        },
        "freeze" => detail["way"]
            .as_str()
            .map(way)
            .unwrap_or_default()
            .to_owned(),
        "drain" => match (number("writes"), number("us")) {
            (Some(n), _) => format!(
                "all that was written is at the other side, {} writes since the migration was started",
                grouped(n)
            ),
            (_, Some(us)) => format!("it took {:.1} ms while writers went on", us as f64 / 1000.0),
            _ => String::new(),
        },
        "verify" | "fence" => number("keys").map(compared).unwrap_or_default(),
        "switch" => switch(detail),
        "arm-rollback" => match (detail["from"].as_str(), detail["to"].as_str()) {
            (Some(from), Some(to)) => format!("a migration from the {from} to the {to} has begun"),
            _ => String::new(),
        },
        "watch" => way_back(detail),
        _ => String::new(),
    }
}

fn preflight(detail: &Value) -> String {
    let mut parts = Vec::new();
    if let Some(by) = detail["freeze"].as_str() {
        parts.push(way(by).to_owned());
    }
    if let Some(pause) = detail["pause"].as_str() {
        parts.push(pause.to_owned());
    }
    if let Some(closed) = detail["old_side"].as_str() {
        parts.push(format!(
            "afterwards the side that the clients leave {}",
            closed_text(closed)
        ));
    }
    for warning in detail["warnings"].as_array().into_iter().flatten() {
        let of = |key: &str| warning[key].as_str().unwrap_or_default();
        parts.push(format!(
            "warning {}: {} ({})",
            of("id"),
            of("message"),
            of("fix")
        ));
    }
    if let Some(why) = detail["no_way_back"].as_str() {
        parts.push(why.to_owned());
    }
    parts.join("; ")
}

fn way(way: &str) -> &'static str {
    match way {
        "pause" => "writers wait (CLIENT PAUSE)",
        "acl" => "writers are refused (their users lose the right to write)",
        "hook" => "writers are held by the freeze hook",
        "operator" => "writers were stopped by the operator",
        _ => "",
    }
}

/// How a side is kept closed, after "the side …".
pub fn closed_text(closed: &str) -> &'static str {
    match closed {
        "by-rights" => "stays closed: its users have no right to write",
        "by-pause" => "stays closed: writes to it wait (CLIENT PAUSE without an end)",
        "watched" => "cannot be closed, so it is watched until the commit",
        "open" => "stays open, as the plan wants it",
        _ => "is open",
    }
}

fn switch(detail: &Value) -> String {
    let mut parts = Vec::new();
    if let (Some(program), Some(ms)) = (detail["program"].as_str(), detail["ms"].as_u64()) {
        let exit = detail["exit"]
            .as_i64()
            .map_or("a signal".into(), |e| e.to_string());
        parts.push(format!("{program} ended with {exit} after {ms} ms"));
    }
    if let Some(closed) = detail["old_side"].as_str() {
        parts.push(format!("the old side {}", closed_text(closed)));
    }
    let ended = [
        ("normal", "connection of a client", "connections of clients"),
        (
            "pubsub",
            "connection of a subscriber",
            "connections of subscribers",
        ),
    ];
    let ended: Vec<String> = ended
        .into_iter()
        .filter_map(
            |(kind, one, many)| match detail["clients_ended"][kind].as_u64()? {
                0 => None,
                1 => Some(format!("1 {one}")),
                n => Some(format!("{} {many}", grouped(n))),
            },
        )
        .collect();
    if !ended.is_empty() {
        parts.push(format!("{} to it were ended", ended.join(" and ")));
    }
    if let Some(note) = detail["note"].as_str() {
        parts.push(note.to_owned());
    }
    parts.join("; ")
}

/// How the way back stands.
pub fn way_back(detail: &Value) -> String {
    if let Some(none) = detail["none"].as_str() {
        return none.to_owned();
    }
    if let Some(armed) = detail["armed"].as_str() {
        return format!("will be opened {armed}");
    }
    match (
        detail["ready"].as_bool(),
        detail["data_loss_bound_ms"].as_u64(),
    ) {
        (Some(true), Some(ms)) => format!("open, and behind by {}", duration(ms)),
        (Some(true), None) => "open".into(),
        (Some(false), _) => "being loaded".into(),
        (None, _) => "not open".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn steps_are_told_in_sentences() {
        for (step, detail, text) in [
            (
                "preflight",
                json!({"freeze": "pause", "old_side": "by-rights", "scan": false, "no_way_back": null}),
                "writers wait (CLIENT PAUSE); afterwards the side that the clients leave stays closed: its users have no right to write",
            ),
            (
                "verify",
                json!({"keys": 1204}),
                "1 204 keys compared, all equal",
            ),
            (
                "switch",
                json!({"program": "./dns", "ms": 31, "exit": 0, "old_side": "watched", "clients_ended": {"normal": 13, "pubsub": 1}}),
                "./dns ended with 0 after 31 ms; the old side cannot be closed, so it is watched until the commit; 13 connections of clients and 1 connection of a subscriber to it were ended",
            ),
            (
                "watch",
                json!({"ready": true, "data_loss_bound_ms": 3}),
                "open, and behind by 3 ms",
            ),
            ("commit", Value::Null, ""),
            ("fence", json!({"why": "no"}), "no"),
        ] {
            assert_eq!(step_text(step, &detail), text);
        }
    }
}
