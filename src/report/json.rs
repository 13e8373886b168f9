//! The report for programs: report.json.

use super::{DryRun, Report, Verification, status};
use crate::store::Difference;
use crate::types::byte_string;
use serde_json::{Value, json};

/// The whole report as one object; times are Unix milliseconds.
pub fn render(report: &Report) -> Value {
    json!({
        "generated_at": report.generated_ms,
        "keyferry": env!("CARGO_PKG_VERSION"),
        "plan": report.job.redacted,
        "run": report.run.as_ref().map(|r| json!({
            "run_id": r.run_id,
            "keyferry": r.version,
            "mode": r.run.mode,
            "source": r.run.source,
            "target": r.run.target,
            "begun_at": r.run.started_ms,
            "found": report.products(),
        })),
        "status": report.status,
        "phases": report.phases,
        "counters": report.counts,
        "verify": report.verify.as_ref().map(verification),
        "dry_run": report.dry_run.as_ref().map(|DryRun { status, census }| json!({"status": status, "census": census})),
        "losses": report.losses.iter().map(|(db, key, what)| json!({"db": db.0, "key": byte_string(key), "what": what})).collect::<Vec<_>>(),
        "indexes": report.indexes.as_ref().map(|i| &i["indexes"]),
        "cutover": report.cutover,
        "latency": report.latency,
        "source_latency": report.pulse,
        "price": report.job.price,
        "unproven": report.unproven,
        "events": report.events,
    })
}

fn verification(v: &Verification) -> Value {
    let mut answer = status::verify_answer(&v.run);
    if let Some(into) = answer.as_object_mut() {
        into.insert("slot_states".into(), json!(v.slot_states));
        into.insert("slots_apart".into(), json!(v.slots_apart));
        into.insert(
            "differences".into(),
            v.differences.iter().map(difference).collect(),
        );
    }
    answer
}

fn difference(d: &Difference) -> Value {
    json!({"db": d.db.0, "key": byte_string(&d.key), "slot": d.slot, "reason": d.reason, "detail": d.detail})
}
