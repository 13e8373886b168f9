//! One workload at one rate: what each side's blocks come to, how the target differs from the others, the verdicts.

use super::load::{SLIP_SHARE, is_late};
use super::side::Side;
use super::stats::{Difference, Verdict, differences, is_judged, verdict};
use super::workload::{Recipe, Workload};
use crate::error::Result;
use crate::histogram::{Times, merged, told as times, unpacked};
use crate::store::LatencyBlock;
use serde_json::{Map, Value, json};

/// With a larger share of errors nothing is said of the times of answers.
const ERRORS: f64 = 0.001;
/// Sides that hold shares of the keys to read which differ by more were not asked the same.
const THERE: f64 = 0.05;

/// What was asked of all sides.
pub struct Asked<'a> {
    pub workload: &'a str,
    /// Multiple of the observed rate.
    pub rate: f64,
    pub per_s: f64,
    pub recipe: &'a Recipe,
    /// The requests of the source.
    pub load: Option<&'a Workload>,
    pub seed: u64,
}

/// What one side has come to.
struct Seen<'a> {
    side: &'a Side,
    /// Of each block, in their order.
    response: Vec<Times>,
    /// Why nothing can be said of it.
    trouble: Option<String>,
    /// Our own lateness where it is of the size of what was measured, in µs.
    late: f64,
    told: Value,
}

/// The element of `results` in the answer.
pub fn conclude(asked: &Asked, sides: &[Side], blocks: &[LatencyBlock]) -> Result<Value> {
    let seen: Vec<Seen> = (sides.iter())
        .map(|side| look(side, blocks))
        .collect::<Result<_>>()?;
    let mut out = json!({
        "workload": asked.workload,
        "rate": asked.rate,
        "rate_per_s": asked.per_s,
        "requests": asked.load.into_iter().flat_map(Workload::kinds).map(|(kind, weight)| json!({"kind": kind, "weight": weight})).collect::<Vec<_>>(),
        "left_out": asked.load.into_iter().flat_map(|l| &l.without_keys).chain(&asked.recipe.left_out).map(|(what, share)| json!({"what": what, "share": share})).collect::<Vec<_>>(),
        "endpoints": seen.iter().map(|s| (s.side.name.clone(), s.told.clone())).collect::<Map<_, _>>(),
    });
    let [source, target, also @ ..] = seen.as_slice() else {
        return Ok(out);
    };
    let reads = asked.load.is_some_and(Workload::reads_real_keys);
    if let (Value::Object(out), Value::Object(found)) =
        (&mut out, against(source, target, reads, asked.seed))
    {
        out.extend(found);
    }
    if !also.is_empty() {
        let each = also.iter().map(|other| {
            let found = against(other, target, reads, asked.seed);
            (other.side.name.clone(), found)
        });
        out["against"] = Value::Object(each.collect());
    }
    Ok(out)
}

fn look<'a>(side: &'a Side, blocks: &[LatencyBlock]) -> Result<Seen<'a>> {
    let name = &side.name;
    let mut own: Vec<&LatencyBlock> = blocks.iter().filter(|b| b.side == *name).collect();
    own.sort_by_key(|b| b.block);
    let response: Vec<Times> = own
        .iter()
        .map(|b| unpacked(&b.response))
        .collect::<Result<_>>()?;
    let service: Vec<Times> = own
        .iter()
        .map(|b| unpacked(&b.service))
        .collect::<Result<_>>()?;
    let (all, served) = (merged(&response), merged(&service));
    let sum = |of: fn(&LatencyBlock) -> u64| own.iter().map(|b| of(b)).sum::<u64>();
    let slips: Vec<f64> = (own.iter())
        .filter_map(|b| b.detail["slip"]["p99_us"].as_f64())
        .collect();
    let slip = median(slips);
    let (shed, errors) = (sum(|b| b.shed), sum(|b| b.errors));
    let first_error = own.iter().find_map(|b| b.detail["first_error"].as_str());
    let mut trouble = None;
    if errors as f64 > all.len() as f64 * ERRORS {
        trouble = Some(format!(
            "{errors} of {} requests to {} failed, the first one: {}",
            all.len(),
            side.called(),
            first_error.unwrap_or("no answer")
        ));
    }
    if shed > 0 {
        trouble = Some(format!(
            "{} did not keep up: {shed} requests were shed; see the overload stage",
            side.called()
        ));
    }
    let told = json!({
        "count": all.len(), "errors": errors, "shed": shed, "planned": sum(|b| b.planned),
        "first_error": first_error,
        "response": times(&all), "service": times(&served),
        "client_late_p99_us": slip,
        "kinds": own.last().map(|b| b.detail["kinds"].clone()),
        "blocks": own.iter().zip(&response).map(|(b, h)| json!({
            "block": b.block, "started_at": b.started_ms, "response": times(h),
        })).collect::<Vec<_>>(),
    });
    Ok(Seen {
        side,
        late: if is_late(slip, &all) { slip } else { 0.0 },
        response,
        trouble,
        told,
    })
}

/// How `target` differs from `base`, and what may be said of it.
fn against(base: &Seen, target: &Seen, reads: bool, seed: u64) -> Value {
    let found = differences(&base.response, &target.response, seed);
    let mut trouble = target.trouble.clone().or(base.trouble.clone());
    // What is many times as large as our own lateness is not made by it.
    let judged = found.iter().filter(|d| is_judged(d));
    let largest = judged
        .map(|d| d.difference_us.value.abs())
        .fold(0.0, f64::max);
    let late = base.late.max(target.late);
    if late > 0.0 && late > largest * SLIP_SHARE {
        trouble.get_or_insert(format!(
            "this program itself was late: {late:.0} µs at its p99; measure from a host with a core to spare"
        ));
    }
    if let (true, Some(a), Some(b)) = (reads, base.side.there, target.side.there)
        && (a - b).abs() > THERE
    {
        trouble.get_or_insert(format!(
            "the keys that are read are not alike: {} holds {:.0} % of them, {} {:.0} %; measure once the data is there",
            base.side.called(),
            a * 100.0,
            target.side.called(),
            b * 100.0
        ));
    }
    let turns = base.response.len().min(target.response.len());
    let (verdict, why) = verdict(&found, turns, trouble);
    let by_name = |of: &dyn Fn(&Difference) -> Value| -> Map<String, Value> {
        found.iter().map(|d| (d.name.to_owned(), of(d))).collect()
    };
    json!({
        "difference_us": by_name(&|d| json!(d.difference_us)),
        "ratio": by_name(&|d| json!(d.ratio)),
        "verdict": verdict,
        "why": why,
        "conclusive": verdict != Verdict::Refused,
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
