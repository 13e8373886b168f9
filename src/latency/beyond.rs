//! Beyond the rates of the plan: raised until a side is saturated (only when asked for), then more than it can do.

use super::load::{Block, Measured};
use super::workload::Workload;
use super::{OVERLOAD, Side, WARM_UP, is_late, stopped};
use crate::error::Result;
use crate::histogram::told as times;
use crate::task::Shutdown;
use serde_json::{Value, json};

/// How long one stage lasts, at most.
const STAGE_S: f64 = 3.0;
/// From one stage of a sweep to the next.
const STEP: f64 = 1.5;
/// Stages of a sweep, at most.
const STAGES: usize = 24;
/// A side that answers less than this share of what was planned is saturated.
const KEPT_UP: f64 = 0.98;

/// A workload that can be run, with the requests of each side.
pub struct Load<'a> {
    pub name: &'a str,
    pub of_sides: &'a [Workload],
}

/// What the stages have come to.
#[derive(Default)]
pub struct Beyond {
    pub sweep: Vec<Value>,
    pub overload: Vec<Value>,
    /// The highest rate that each side has kept up with; `None` without a sweep.
    pub peak: Option<Vec<f64>>,
}

/// `from` is the highest rate that was measured.
pub async fn run(
    sides: &mut [Side],
    load: &Load<'_>,
    from: f64,
    how: How,
    tell: &(dyn Fn(&str) + Send + Sync),
    stop: &Shutdown,
) -> Result<Beyond> {
    let mut out = Beyond::default();
    let mut highest = from;
    if how.sweep {
        let peaks = sweep(sides, load, from, how, tell, stop, &mut out.sweep).await?;
        // What saturates the weaker side shows how both bear it.
        highest = peaks.iter().copied().fold(f64::MAX, f64::min);
        out.peak = Some(peaks);
    }
    for times_highest in OVERLOAD {
        for (side, requests) in sides.iter_mut().zip(load.of_sides) {
            let rate = highest * times_highest;
            tell(&format!(
                "overload: {} at {rate:.0}/s on the {}",
                load.name, side.name
            ));
            let measured = stage(side, requests, rate, how, stop).await?;
            let mut row = row(load, side, rate, &measured);
            row["times_highest_rate"] = json!(times_highest);
            out.overload.push(row);
        }
    }
    Ok(out)
}

/// How stages are measured.
#[derive(Debug, Clone, Copy)]
pub struct How {
    pub sweep: bool,
    pub even: bool,
    pub block_s: u32,
}

/// Raises the rate for all sides that still keep up; the highest rate that each has kept up with.
async fn sweep(
    sides: &mut [Side],
    load: &Load<'_>,
    from: f64,
    how: How,
    tell: &(dyn Fn(&str) + Send + Sync),
    stop: &Shutdown,
    rows: &mut Vec<Value>,
) -> Result<Vec<f64>> {
    let mut peaks = vec![from; sides.len()];
    let mut over = vec![false; sides.len()];
    let mut rate = from;
    for _ in 0..STAGES {
        if over.iter().all(|o| *o) {
            break;
        }
        rate *= STEP;
        let each = sides
            .iter_mut()
            .zip(load.of_sides)
            .zip(peaks.iter_mut().zip(&mut over));
        for ((side, requests), (peak, over)) in each {
            if *over {
                continue;
            }
            tell(&format!(
                "sweep: {} at {rate:.0}/s on the {}",
                load.name, side.name
            ));
            let measured = stage(side, requests, rate, how, stop).await?;
            let mut row = row(load, side, rate, &measured);
            // Our own limit is not the side's, but beyond it there is nothing to be learnt.
            // An error is no answer, and what was answered after the end was answered too late.
            let answered = 1.0 - measured.errors as f64 / measured.response.len().max(1) as f64;
            let held = measured.answered_per_s() * answered >= KEPT_UP * measured.planned_per_s()
                && measured.shed == 0;
            row["kept_up"] = json!(held);
            rows.push(row);
            match held {
                true => *peak = rate,
                false => *over = true,
            }
        }
    }
    Ok(peaks)
}

async fn stage(
    side: &mut Side,
    requests: &Workload,
    rate: f64,
    how: How,
    stop: &Shutdown,
) -> Result<Measured> {
    if stop.requested() {
        return Err(stopped());
    }
    let seconds = STAGE_S.min(f64::from(how.block_s));
    let block = Block {
        rate,
        seconds,
        warm_up: seconds * WARM_UP,
        seed: 7,
        even: how.even,
    };
    side.lines.run(requests, &block).await
}

fn row(load: &Load, side: &Side, rate: f64, m: &Measured) -> Value {
    let slip = m.slip.value_at_quantile(0.99) as f64;
    json!({
        "workload": load.name, "rate_per_s": rate, "side": side.name,
        "planned": m.planned, "answered": m.response.len(), "answered_per_s": m.answered_per_s(),
        "shed": m.shed, "shed_by_client": m.shed_late, "errors": m.errors, "response": times(&m.response), "service": times(&m.service),
        "client_late_p99_us": slip,
        // Without a connection that was free, nothing is known of our own lateness.
        "client_late": !m.slip.is_empty() && is_late(slip, &m.response),
    })
}
