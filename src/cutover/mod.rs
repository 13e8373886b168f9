//! The cutover: the writers are frozen, the last byte is drained, both sides proven equal, and the clients moved.
//!
//! Read first: [`run`], then `pass.rs`, which is one direction of it. A process of its own freezes and moves the clients
//! (`guard.rs`), and the migration runs in yet another one (`migration.rs`), so a cutover that is killed leaves neither
//! frozen writers nor a broken stream. On which side the clients are is in SQLite (`store/cutover.rs`).
//! Invariant: one direction at a time; from the fence on nothing of the old side is applied to the new one.

mod admission;
mod copies;
mod guard;
mod handle;
mod hook;
mod journal;
mod late;
mod members;
mod migration;
mod old_side;
mod options;
mod pass;
mod place;
mod proof;
mod reverse;
mod side;
mod take_over;
mod watch;

pub use admission::admit;
pub use guard::serve as serve_guard;
pub use migration::look;
pub use options::Options;
pub use place::Remote;

use self::journal::Journal;
use self::late::Late;
use self::migration::Migration;
use self::old_side::OldSide;
use self::options::stopped;
use self::pass::{Pass, Passed};
use self::place::Where;
use self::proof::Proof;
use self::side::{Closed, Freezer};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Endpoint, Job, Plan, Source, validate, without_arguments};
use crate::store::{CutoverStep, Lock, Phase, Stage, Store, frozen, pass_on_nodes, recall_nodes};
use crate::task::{Shutdown, private_dir};
use crate::types::unix_ms;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// The answer of `cutover --json` and `rollback --json`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    pub plan: String,
    /// `cutover`, `rehearsal` or `rollback`.
    pub direction: &'static str,
    /// The clients are where they were to go; in a rehearsal: they could be.
    pub done: bool,
    /// Where the clients are now.
    pub clients_at: &'static str,
    /// How long writers could not write.
    pub pause_ms: Option<f64>,
    /// What the pause was spent on.
    pub parts_ms: Value,
    /// What a rehearsal foretells, without the time of the switch hook.
    pub predicted_pause_ms: Option<u64>,
    /// Which gate has refused, why, and what to do.
    pub refused: Option<Value>,
    /// What would run, in a rehearsal: the program, and `***` for each argument.
    pub would_run: Vec<String>,
    /// How the way back stands.
    pub way_back: Value,
    /// How the side that the clients have left is kept closed, and what was written to it all the same.
    pub old_side: Value,
    pub message: String,
    pub steps: Vec<CutoverStep>,
}

/// How long a guard that has outlived its cutover may take to finish.
const GUARD_PATIENCE: Duration = Duration::from_secs(30);

/// Moves the clients of `plan` to the target.
///
/// An outcome that is not `done` means: the clients are where they were, and are not frozen.
/// Errors: wrong plan; `State` when nobody knows where the clients are; `Interrupted`.
pub async fn run(plan: &Plan, options: &Options, stop: &Shutdown) -> Result<Outcome> {
    let job = validate(plan)?;
    let most = Duration::from_millis(plan.cutover.max_pause_ms);
    if options.freeze_for.is_some_and(|time| time > most) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "--freeze-for is longer than cutover.max_pause_ms ({})",
                most.as_millis()
            ),
        )
        .hint("freeze for less, or allow a longer pause in the plan"));
    }
    let home = options.work_dir.join(&plan.name);
    private_dir(&home)?;
    recall_nodes(&home, &job);
    let place = Where::find(&home, options.remote.as_ref())?;
    let _lock = Lock::acquire(&home.join("cutover"))?;
    let _listening = take_over::listen(&home, stop)?;
    let stage = settled(plan, &job, (&home, &place), options, stop).await?;
    let direction = match options.dry_run {
        true => "rehearsal",
        false => "cutover",
    };
    let mut outcome = Outcome {
        plan: plan.name.clone(),
        direction,
        clients_at: side_of(stage),
        ..Outcome::default()
    };
    match stage {
        Stage::RolledBack => {
            return Err(Error::new(
                ErrorKind::State,
                "this migration was rolled back; what was written to the source since is not at the target",
            )
            .hint("start over: `keyferry migrate --fresh`, with on_existing \"reconcile\""));
        }
        Stage::Committed => {
            migration::end(&place).await?;
            outcome.done = true;
            outcome.message = "the clients are at the target already".into();
            outcome.old_side = Late::load(&home)?.json(side::closed(&home)?);
            return Ok(outcome);
        }
        Stage::Switched if options.dry_run => {
            outcome.done = true;
            outcome.message =
                "the clients are at the target already; `keyferry cutover` goes on watching".into();
            return Ok(outcome);
        }
        // One that was started again while the clients were moved.
        Stage::Switched => migration::end(&place).await?,
        _ => {}
    }
    let mut forth = None;
    let mut journal = Journal::open(&home, direction, options.tell.clone())?;
    if stage == Stage::Source {
        let met = match place.is_spread() || !Store::open(&home)?.shards()?.is_empty() {
            true => Migration::meet(plan, &place, stop).await,
            false => Err(Error::new(
                ErrorKind::Refused,
                "this plan was never migrated, so the target holds nothing",
            )
            .hint("run `keyferry migrate` first, and leave it running")),
        };
        let mut migration = match met {
            Ok(migration) => migration,
            Err(e) if place.is_spread() || e.kind() == ErrorKind::Refused => {
                let never = std::future::ready(Err::<(), _>(e));
                return match journal.step("preflight", never, |()| Value::Null).await {
                    Err(e) => refuse(outcome, journal, e, place.is_spread()),
                    Ok(()) => Ok(outcome),
                };
            }
            Err(e) => return Err(e),
        };
        let mut pass = Pass {
            plan,
            job: &job,
            proof: Proof::new(
                &job,
                options.work_dir.join(&plan.name),
                stop,
                plan.cutover.wait_s,
            ),
            work_dir: options.work_dir.clone(),
            place: &place,
            home: home.clone(),
            side: "source",
            before: Stage::Source,
            opens: None,
            after: Stage::Switched,
            options,
            stop,
        };
        // What an attempt has left that came to nothing.
        Late::default().save(&home)?;
        let _ = std::fs::remove_dir_all(watch::back_dir(&home));
        let stays = migration.stays();
        let passed = pass.run(&mut journal, &mut migration).await;
        let passed = match passed {
            Ok(passed) if !options.dry_run => {
                // It holds still, and sees what still comes to the old side.
                match passed.closed {
                    Closed::ByPause | Closed::Watched => forth = Some(migration),
                    Closed::ByRights | Closed::Open => migration.end().await?,
                }
                passed
            }
            other => {
                if let Err(e) = &other
                    && e.kind() == ErrorKind::State
                {
                    // It holds still until somebody knows where the clients are.
                    return other.map(|_| outcome);
                }
                let left = migration.leave().await;
                let passed = match other {
                    Ok(passed) => passed,
                    Err(e) => return refuse(outcome, journal, e, stays),
                };
                left?;
                outcome.would_run = without_arguments(&plan.cutover.hooks.switch);
                outcome.predicted_pause_ms = passed.predicted_ms;
                outcome.pause_ms = passed.pause_us.map(ms);
                if passed.pause_us.is_some() {
                    outcome.parts_ms = parts(&journal);
                }
                outcome.done = true;
                outcome.message = follow_up(stays).into();
                outcome.way_back = match watch::way_back(plan, &home) {
                    Ok(_) => json!({ "armed": "at the switch" }),
                    Err(e) => json!({ "none": e.to_string() }),
                };
                outcome.steps = std::mem::take(&mut journal.steps);
                return Ok(outcome);
            }
        };
        took(&mut outcome, &journal, &passed);
    }
    outcome.clients_at = "target";
    let mut old = OldSide::open(plan, &job, &home, forth).await?;
    let accept = options.accept_late;
    let watched = watch::run(plan, &home, &mut journal, (&mut old, accept), stop).await;
    outcome.old_side = old.late().json(old.closed());
    outcome.done = accept || old.late().is_empty();
    match watched {
        Ok(way_back) => outcome.way_back = way_back,
        Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
        Err(e) => {
            // The clients are there; what is wrong with the new side is for people to judge.
            outcome.refused = Some(journal.refusal(&e));
            outcome.message =
                "the clients are at the target; `keyferry rollback` takes them back".into();
        }
    }
    outcome.steps = std::mem::take(&mut journal.steps);
    Ok(outcome)
}

/// Lets writers write again at the side that the clients have left.
pub async fn reopen(plan: &Plan, options: &Options, stop: &Shutdown) -> Result<Outcome> {
    let job = validate(plan)?;
    let home = options.work_dir.join(&plan.name);
    private_dir(&home)?;
    recall_nodes(&home, &job);
    let _lock = Lock::acquire(&home.join("cutover"))?;
    await_guard(plan, &home, stop).await?;
    let stage = Store::open(&home)?.stage()?;
    if stage == Stage::Switching {
        return Err(nobody_knows());
    }
    let left = matches!(stage, Stage::Switched | Stage::Committed);
    if left {
        // What it writes would meet what others write from now on.
        migration::end(&Where::Folder(watch::back_dir(&home).join(&plan.name))).await?;
        // First: it may be open in part when it cannot be opened as a whole.
        let mut late = Late::load(&home)?;
        late.may_be("it was opened by `cutover --reopen`".into());
        late.save(&home)?;
    }
    if let Source::Server { endpoint, .. } = &job.source {
        let mut freezer = Freezer::open(endpoint, &plan.cutover, "source", home.clone()).await?;
        freezer.clean_up(side_of(stage)).await?;
        if left {
            freezer.stays_open()?;
        }
    }
    Ok(Outcome {
        plan: plan.name.clone(),
        direction: "reopen",
        done: true,
        clients_at: side_of(stage),
        message: match stage {
            Stage::Switched | Stage::Committed => {
                "the source takes writes again; nobody brings them to the target".into()
            }
            _ => "the source takes writes".into(),
        },
        ..Outcome::default()
    })
}

/// Takes the clients back to the source, with what was written to the target.
pub async fn roll_back(plan: &Plan, options: &Options, stop: &Shutdown) -> Result<Outcome> {
    let job = validate(plan)?;
    let home = options.work_dir.join(&plan.name);
    private_dir(&home)?;
    recall_nodes(&home, &job);
    let place = Where::find(&home, options.remote.as_ref())?;
    let _lock = take_over::lock(&home).await?;
    let _listening = take_over::listen(&home, stop)?;
    let stage = settled(plan, &job, (&home, &place), options, stop).await?;
    let mut outcome = Outcome {
        plan: plan.name.clone(),
        direction: "rollback",
        clients_at: side_of(stage),
        ..Outcome::default()
    };
    if matches!(stage, Stage::Source | Stage::RolledBack) {
        // `settled` has let the writers go.
        outcome.done = true;
        outcome.message = "the clients are at the source, and are not frozen".into();
        return Ok(outcome);
    }
    // One that holds still sees what came late.
    let mut old = OldSide::open(plan, &job, &home, Migration::connect(&place).await.ok()).await?;
    old.answering()?;
    old.end_forth().await?;
    migration::end(&place).await?;
    if let Some(e) = old.late().refusal().filter(|_| !options.accept_late) {
        outcome.old_side = old.late().json(old.closed());
        let mut journal = Journal::open(&home, "rollback", options.tell.clone())?;
        let late = journal.step("late-writes", std::future::ready(Err(e)), |()| Value::Null);
        return match late.await {
            Err(e) => refuse(outcome, journal, e, false),
            Ok(()) => Ok(outcome),
        };
    }
    if !old.late().is_empty() {
        // A way back that has begun does not know of it: only a new one makes both sides equal.
        migration::end(&Where::Folder(watch::back_dir(&home).join(&plan.name))).await?;
        let _ = std::fs::remove_dir_all(watch::back_dir(&home));
    }
    let source = old.answering()?;
    let by_rights = source.closed() == Some(Closed::ByRights);
    if !by_rights {
        // What comes back has to get in.
        source.clean_up("target").await?;
    }
    let back = watch::admitted(plan, &home, source).await?;
    let back_job = validate(&back)?;
    recall_nodes(&home, &back_job);
    let mut journal = Journal::open(&home, "rollback", options.tell.clone())?;
    let work_dir = watch::back_dir(&home);
    let there = Where::Folder(work_dir.join(&back.name));
    let mut pass = Pass {
        plan: &back,
        job: &back_job,
        proof: Proof::new(
            &back_job,
            work_dir.join(&back.name),
            stop,
            plan.cutover.wait_s,
        ),
        work_dir: work_dir.clone(),
        place: &there,
        home: home.clone(),
        side: "target",
        before: stage,
        opens: Some(serde_json::to_value(plan).unwrap_or_default()),
        after: Stage::RolledBack,
        options,
        stop,
    };
    pass_on_nodes(&home, &work_dir.join(&back.name))?;
    let mut migration = Migration::meet(&back, &there, stop).await?;
    let passed = match pass.run(&mut journal, &mut migration).await {
        Ok(passed) => passed,
        Err(e) if e.kind() == ErrorKind::State => return Err(e),
        Err(e) => {
            // What it has brought back is worth keeping for the next attempt; but what was written to the old side beside
            // it is found by a new one only.
            let apart = journal.refused_at(&["warm-up", "verify"]);
            let _ = migration.leave().await;
            if apart {
                let _ = std::fs::remove_dir_all(&work_dir);
            }
            if !by_rights && let Err(e) = source.close_again().await {
                tracing::warn!("the source could not be closed again: {e}");
            }
            return refuse(outcome, journal, e, false);
        }
    };
    // The clients are there: they must be able to write.
    source.clean_up("source").await?;
    migration.end().await?;
    took(&mut outcome, &journal, &passed);
    outcome.done = true;
    outcome.clients_at = "source";
    outcome.steps = std::mem::take(&mut journal.steps);
    Ok(outcome)
}

/// A gate has refused: the clients are where they were.
fn refuse(mut outcome: Outcome, mut journal: Journal, e: Error, stays: bool) -> Result<Outcome> {
    // A state means that nobody knows where the clients are, or that they are frozen.
    if matches!(
        e.kind(),
        ErrorKind::Interrupted | ErrorKind::Plan | ErrorKind::State
    ) {
        return Err(e);
    }
    outcome.refused = Some(journal.refusal(&e));
    outcome.message = match outcome.direction {
        "rollback" => "the clients are at the target, and are not frozen".into(),
        _ => format!(
            "the clients are at the source, and are not frozen; {}",
            follow_up(stays)
        ),
    };
    outcome.steps = std::mem::take(&mut journal.steps);
    Ok(outcome)
}

fn follow_up(stays: bool) -> &'static str {
    match stays {
        true => "the migration goes on",
        false => {
            "the migration has ended as it was not running before: start `keyferry migrate` to keep the lag small"
        }
    }
}

fn took(outcome: &mut Outcome, journal: &Journal, passed: &Passed) {
    outcome.pause_ms = passed.pause_us.map(ms);
    outcome.parts_ms = parts(journal);
}

/// What a pause was spent on.
fn parts(journal: &Journal) -> Value {
    let parts = ["freeze", "drain", "verify", "fence", "switch"];
    (parts.iter())
        .filter_map(|name| Some((name.to_string(), json!(ms(journal.took_us(name)?)))))
        .collect::<serde_json::Map<String, Value>>()
        .into()
}

fn ms(us: i64) -> f64 {
    us as f64 / 1000.0
}

fn side_of(stage: Stage) -> &'static str {
    match stage {
        Stage::Source | Stage::RolledBack => "source",
        Stage::Switching => "unknown",
        Stage::Switched | Stage::Committed => "target",
    }
}

/// The guard of an earlier cutover brings its switch to an end.
async fn await_guard(plan: &Plan, home: &Path, stop: &Shutdown) -> Result<()> {
    let place = guard::place(home);
    let began = Instant::now();
    while Lock::is_held(&place) {
        if began.elapsed() > GUARD_PATIENCE + Duration::from_millis(plan.cutover.max_pause_ms) {
            return Err(Error::new(
                ErrorKind::Locked,
                "the guard of an earlier cutover does not end",
            )
            .hint("wait for its switch hook to end, or end the process `keyferry cutover-guard`"));
        }
        if !stop.sleep(Duration::from_millis(50)).await {
            return Err(stopped());
        }
    }
    Ok(())
}

/// Where the clients are, after whatever an earlier cutover has left behind has come to its end.
async fn settled(
    plan: &Plan,
    job: &Job,
    (home, place): (&Path, &Where),
    options: &Options,
    stop: &Shutdown,
) -> Result<Stage> {
    await_guard(plan, home, stop).await?;
    let mut store = Store::open(home)?;
    let back = watch::back_dir(home).join(&plan.name);
    let Source::Server { endpoint, .. } = &job.source else {
        return Err(Error::new(
            ErrorKind::Plan,
            "a snapshot file has no clients that could be moved",
        ));
    };
    let sides = (plan, endpoint);
    let at = (home, place);
    let stage = known(sides, &mut store, at, &back, options.clients_at).await?;
    // Whatever was frozen and could not be let go.
    // A pause is written down nowhere, as it ends by itself; but why wait.
    let paused = store.phase()? == Phase::Frozen;
    for (endpoint, side) in [(endpoint, "source"), (&job.target, "target")] {
        let left = store.json(&frozen(side))?.is_some_and(|v| !v.is_null());
        let has_left = side == "source" && matches!(stage, Stage::Switched | Stage::Committed);
        if !paused && (!left || has_left) {
            continue;
        }
        let mut freezer = match Freezer::open(endpoint, &plan.cutover, side, home.into()).await {
            Ok(freezer) => freezer,
            // Nobody writes to what does not answer; the clients are elsewhere.
            Err(e) if has_left => {
                tracing::warn!("the old side cannot be looked at: {e}");
                continue;
            }
            Err(e) => return Err(e),
        };
        match has_left {
            // It stays closed, but lets go of the clients.
            true => {
                freezer.close_again().await?;
                freezer.let_go().await?;
                freezer.note_taken().await?;
            }
            false => freezer.clean_up(side_of(stage)).await?,
        }
        if paused && freezer.closed() != Some(Closed::ByPause) {
            freezer.unpause_if_allowed().await;
        }
    }
    if paused {
        store.enter_phase(
            match stage {
                Stage::Source => Phase::Stream,
                Stage::RolledBack => Phase::RolledBack,
                _ => Phase::Switched,
            },
            unix_ms(),
        )?;
    }
    Ok(stage)
}

/// Where the clients are: what is written down, or what a person has seen where that says "switching".
async fn known(
    (plan, source): (&Plan, &Endpoint),
    store: &mut Store,
    (home, place): (&Path, &Where),
    back: &Path,
    seen: Option<Stage>,
) -> Result<Stage> {
    let stage = store.stage()?;
    // What the way back has written down for its own direction.
    let own = match Store::open_readonly(back)? {
        Some(back) => back.stage()?,
        None => Stage::Source,
    };
    if stage != Stage::Switching {
        if own == Stage::Switching {
            // Cut off between the two notes, before anybody was moved.
            Store::open(back)?.set_stage(Stage::Source)?;
        }
        return Ok(stage);
    }
    let Some(seen) = seen else {
        return Err(nobody_knows());
    };
    let returning = own != Stage::Source;
    let (at_home, own) = match (returning, seen) {
        (true, Stage::Source) => (Stage::RolledBack, Stage::Switched),
        (true, _) => (Stage::Switched, Stage::Source),
        (false, seen) => (seen, seen),
    };
    let dir = if returning { back } else { home };
    if at_home == Stage::Switched && !returning {
        // What was written to the source since the freeze is not at the target: nothing more is, and then one looks.
        let mut source = Freezer::open(source, &plan.cutover, "source", home.into()).await?;
        source.close_again().await?;
        old_side::last_words(place, home).await?;
    }
    guard::note(home, dir, at_home, own)?;
    Ok(at_home)
}

fn nobody_knows() -> Error {
    Error::new(
        ErrorKind::State,
        "an earlier cutover was cut off while the clients were moved, or its hook failed: nobody knows where they are",
    )
    .hint("look where your clients are, then say so: --clients-at source, or --clients-at target")
}
