//! Beyond the rates of the plan: raised until a side is saturated (only when asked for), then more than it can do.

use super::load::{self, Block, Measured, WARM_UP, is_late};
use super::options::stopped;
use super::side::Side;
use super::workload::Workload;
use crate::error::Result;
use crate::histogram::told as times;
use crate::task::Shutdown;
use serde_json::{Value, json};

/// Beyond the highest rate of the plan.
const OVERLOAD: [f64; 2] = [1.5, 2.0];
/// How long one stage lasts, at most.
const STAGE_S: f64 = 3.0;
/// From one stage of a sweep to the next.
const STEP: f64 = 1.5;
/// Stages of a sweep, at most.
const STAGES: usize = 24;
/// A side that answers less than this share of what was planned is saturated.
const KEPT_UP: f64 = 0.98;

/// The workload that is run, and how its stages are measured.
pub struct Course<'a> {
    pub name: &'a str,
    /// The requests of each side.
    pub of_sides: &'a [Workload],
    pub block_s: u32,
    pub even: bool,
    pub tell: &'a (dyn Fn(&str) + Send + Sync),
    pub stop: &'a Shutdown,
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
    course: &Course<'_>,
    from: f64,
    with_sweep: bool,
) -> Result<Beyond> {
    let mut out = Beyond::default();
    let mut highest = from;
    if with_sweep {
        let peaks = sweep(sides, course, from, &mut out.sweep).await?;
        // What saturates the weaker side shows how both bear it.
        highest = peaks.iter().copied().fold(f64::MAX, f64::min);
        out.peak = Some(peaks);
    }
    for times_highest in OVERLOAD {
        for (side, requests) in sides.iter_mut().zip(course.of_sides) {
            let rate = highest * times_highest;
            let (_, mut row) = course.stage("overload", side, requests, rate).await?;
            row["times_highest_rate"] = json!(times_highest);
            out.overload.push(row);
        }
    }
    Ok(out)
}

/// Raises the rate for all sides that still keep up; the highest rate that each has kept up with.
async fn sweep(
    sides: &mut [Side],
    course: &Course<'_>,
    from: f64,
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
            .zip(course.of_sides)
            .zip(peaks.iter_mut().zip(&mut over));
        for ((side, requests), (peak, over)) in each {
            if *over {
                continue;
            }
            let (measured, mut row) = course.stage("sweep", side, requests, rate).await?;
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

impl Course<'_> {
    /// One stage of one side, with its row of the answer.
    async fn stage(
        &self,
        what: &str,
        side: &mut Side,
        requests: &Workload,
        rate: f64,
    ) -> Result<(Measured, Value)> {
        let name = self.name;
        (self.tell)(&format!(
            "{what}: {name} at {rate:.0}/s on {}",
            side.called()
        ));
        if self.stop.requested() {
            return Err(stopped());
        }
        let seconds = STAGE_S.min(f64::from(self.block_s));
        let block = Block {
            rate,
            seconds,
            warm_up: seconds * WARM_UP,
            seed: 7,
            even: self.even,
        };
        let measured = load::run(&mut side.lines, requests, &block).await?;
        let row = row(name, side, rate, &measured);
        Ok((measured, row))
    }
}

fn row(workload: &str, side: &Side, rate: f64, m: &Measured) -> Value {
    let slip = m.slip.value_at_quantile(0.99) as f64;
    json!({
        "workload": workload, "rate_per_s": rate, "side": side.name,
        "planned": m.planned, "answered": m.response.len(), "answered_per_s": m.answered_per_s(),
        "shed": m.shed, "shed_by_client": m.shed_late, "errors": m.errors, "response": times(&m.response), "service": times(&m.service),
        "client_late_p99_us": slip,
        // Without a connection that was free, nothing is known of our own lateness.
        "client_late": !m.slip.is_empty() && is_late(slip, &m.response),
    })
}
