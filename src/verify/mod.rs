//! Verification: every key of both sides read and compared, sums per slot, differences proven, live.
//!
//! First the source's keys are listed, and each is read on both sides at the same time; then the target's keys, for
//! those that the source lacks; what did not agree is read again until it is equal, or proven different (`confirm`).
//! Invariant: a key is called different only if the source did not change between the readings that say so, and the
//! migration, where one runs, had applied everything before them.

mod answer;
mod check;
mod confirm;
mod file;
mod file_keys;
mod functions;
mod incremental;
mod indexes;
mod live;
mod met;
mod migration;
mod options;
mod progress;
mod reading;
mod walk;

pub use answer::{KeyReport, Summary};
pub use indexes::IndexReport;
pub use live::Live;
pub use options::{Gauge, Options, sample, slots};
pub use progress::UNPROVABLE;

use crate::error::Result;
use crate::net::guard;
use crate::plan::{Job, Source};
use crate::source::keys::list;
use crate::source::keys::side::Side;
use crate::store::{Lock, Run, Store, recall_nodes};
use crate::task::{Shutdown, private_dir};
use crate::types::{SlotSet, unix_ms};
use answer::{conclude, dbsize};
use check::{Check, Origin};
use migration::Migration;
use progress::{Pass, Progress};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Compares source and target of `job`.
///
/// Errors: as for any connection; `Interrupted` after a stop, with the state saved: the same call goes on.
pub async fn run(job: Job, options: Options, stop: Shutdown) -> Result<Summary> {
    let started = Instant::now();
    private_dir(&options.work_dir)?;
    let verify_dir = options.work_dir.join("verify");
    private_dir(&verify_dir)?;
    // A migration may run meanwhile; only a second verification may not.
    let _lock = Lock::acquire(&verify_dir)?;
    let mut store = Store::open(&options.work_dir)?;
    store.recall(&job)?;
    recall_nodes(&options.work_dir, &job);
    store.begin_run(&Run {
        plan: job.name.clone(),
        fingerprint: job.fingerprint.clone(),
        redacted: job.redacted.clone(),
        mode: match job.source {
            Source::Server { .. } => "replica",
            Source::Rdb { .. } => "rdb",
        }
        .into(),
        source: job.source.to_string(),
        target: job.target.redacted_url(),
        started_ms: unix_ms(),
    })?;
    let mut check = Check::open(job, &options, store, stop).await?;
    check.store().keep_nodes(&check.job)?;
    if options.incremental {
        let store = Store::open(&options.work_dir)?;
        let slots = incremental::slots(&check, &store).await?;
        check.slots = Some(slots);
    }
    let named = about(&check, &options);
    check.name(named);
    let saved = match options.fresh {
        true => None,
        false => Progress::load(&check.store(), check.about())?,
    };
    let progress = match saved {
        Some(progress) => progress,
        None => {
            check.store().clear_verify()?;
            Progress::new(unix_ms())
        }
    };
    let (resumed, started_ms) = (progress.resumed, progress.at.started_ms);
    options.gauge.done.store(progress.at.compared, Relaxed);
    check.resume(progress);
    if let Origin::Server(side) = &check.origin {
        let slots = check.slots.as_ref();
        let (ours, theirs) = tokio::join!(
            list::estimate(side, slots),
            list::estimate(&check.target, slots),
        );
        let total = ours.saturating_add(theirs);
        options.gauge.total.store(total, Relaxed);
    }
    let check = Arc::new(check);
    let watched = Shutdown::default();
    tokio::spawn(guard::watch(
        check.nodes(),
        check.job.limits.latency_ms.map(Duration::from_millis),
        check.throttle(),
        watched.clone(),
    ));
    let mut cpu = (None, None);
    let asked = async { cpu = cpu_s(&check).await };
    let ran = tokio::join!(asked, passes(&check)).1;
    watched.request();
    if let Err(e) = ran {
        // What was compared is worth keeping, whatever went wrong.
        let saved = check.save(&mut check.progress());
        return Err(e).inspect_err(|_| {
            if let Err(e) = saved {
                tracing::warn!("{e}");
            }
        });
    }
    let (functions, cpu_now, dbsize, indexes) = tokio::join!(
        functions::compare(&check),
        cpu_s(&check),
        dbsize(&check),
        indexes::compare(&check),
    );
    let functions = functions?;
    if check.repair && !functions.is_empty() {
        (check.migrations.iter()).try_for_each(Migration::ask_functions)?;
    }
    let seconds = started.elapsed().as_secs_f64().max(0.001);
    let percent = |before: Option<f64>, after: Option<f64>| {
        Some((100.0 * (after? - before?).max(0.0) / seconds).round() as u64)
    };
    let mut summary = conclude(&check, started, started_ms, &options)?;
    summary.known_losses = check.learn_losses()?;
    summary.resumed = resumed;
    summary.cpu_percent_source = percent(cpu.0, cpu_now.0);
    summary.cpu_percent_target = percent(cpu.1, cpu_now.1);
    summary.dbsize = dbsize?;
    summary.functions_different = functions;
    summary.equal &= summary.functions_different.is_empty();
    summary.indexes = indexes?;
    summary.equal &= !summary.indexes.iter().any(IndexReport::differs);
    let value = serde_json::to_value(&summary).unwrap_or_default();
    (check.store()).save_verify(&value, started_ms, unix_ms(), summary.equal)?;
    let whole = options.slots.is_none() || options.keep;
    for migration in &check.migrations {
        migration.note_verdict(summary.equal, whole)?;
    }
    Ok(summary)
}

/// All passes that are still to be made.
async fn passes(check: &Arc<Check>) -> Result<()> {
    if check.progress().at.pass == Pass::Source {
        walk::pass(check, Pass::Source, check.slots.clone()).await?;
        check.progress().enter(Pass::Target);
        if check.met.all() {
            let mut progress = check.progress();
            progress.enter(Pass::Confirm);
            check.save(&mut progress)?;
        } else {
            // What was listed beside is listed again.
            let compared = check.progress().at.compared;
            check.gauge.done.store(compared, Relaxed);
        }
    }
    if check.progress().at.pass == Pass::Target {
        match &check.origin {
            Origin::Server(_) => {
                walk::pass(check, Pass::Target, check.slots.clone()).await?;
            }
            Origin::File(file) => {
                for range in file.ranges(&check.job.limits) {
                    file_keys::search(file, check, range.clone()).await?;
                    // Each range is listed from its beginning.
                    check.progress().enter(Pass::Target);
                    walk::pass(check, Pass::Target, Some(range)).await?;
                }
            }
        }
        let mut progress = check.progress();
        progress.enter(Pass::Confirm);
        check.save(&mut progress)?;
    }
    confirm::run(check).await
}

/// Names the comparison that saved progress belongs to: the plan, its options, and the nodes on both sides.
fn about(check: &Check, options: &Options) -> String {
    let nodes = |side: &Side| {
        let layout = side.layout();
        let nodes: Vec<&str> = layout.masters.iter().map(|m| m.address.as_str()).collect();
        nodes.join(",")
    };
    format!(
        "{} slots={} {:?} {} {}",
        check.job.fingerprint,
        (check.slots.as_ref()).map_or("all".into(), SlotSet::to_string),
        options.width,
        (check.origin.server()).map_or("file".into(), |s| nodes(s)),
        nodes(&check.target),
    )
}

async fn cpu_s(check: &Check) -> (Option<f64>, Option<f64>) {
    let source = async {
        match &check.origin {
            Origin::Server(side) => side.cpu_s().await,
            Origin::File(_) => None,
        }
    };
    tokio::join!(source, check.target.cpu_s())
}
