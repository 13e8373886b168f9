//! After the switch: the way back is opened, and the new side is looked at for a while.

use crate::cutover::journal::Journal;
use crate::cutover::migration::{self, Migration};
use crate::cutover::old_side::OldSide;
use crate::cutover::place::Where;
use crate::cutover::reverse;
use crate::cutover::side::Freezer;
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::control::orders::Ask;
use crate::net::{self, server};
use crate::plan::{Endpoint, Location, PasswordPlan, Plan, Secret, Source, validate};
use crate::store::{Stage, Store, has_losses, pass_on_nodes, recall_nodes};
use crate::task::Shutdown;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the new side is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How many times the plan's time is taken for the way back to be ready.
const LONGER: u32 = 10;
/// Looks in a row that may fail.
const FAILURES: u32 = 6;

/// Where the state of the way back lies.
pub fn back_dir(home: &Path) -> PathBuf {
    home.join("back")
}

/// Opens the way back, watches both sides, commits; how the way back stood at the end.
///
/// What came late to the old side is in `old`; then nothing is committed.
pub async fn run(
    plan: &Plan,
    home: &Path,
    journal: &mut Journal,
    (old, accept_late): (&mut OldSide, bool),
    stop: &Shutdown,
) -> Result<Value> {
    let armed = match arm(plan, home, old, accept_late).await {
        Ok(back) => {
            journal
                .step(
                    "arm-rollback",
                    open(&back, home, stop),
                    |_| json!({ "from": "target", "to": "source" }),
                )
                .await
        }
        Err(e) => Err(e),
    };
    let (mut migration, none) = match armed {
        Ok(migration) => (Some(migration), None),
        Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
        Err(e) => {
            // One that a killed cutover has left must not write any more.
            migration::end(&Where::Folder(back_dir(home).join(&plan.name))).await?;
            (None, Some(e.chain()))
        }
    };
    let watched = journal
        .step(
            "watch",
            look((plan, home), migration.as_mut(), old, stop),
            Value::clone,
        )
        .await;
    let ended = match migration {
        Some(migration) => migration.end().await,
        None => Ok(()),
    };
    let mut seen = watched?;
    ended?;
    if let Some(why) = none {
        seen = json!({ "none": why });
    }
    old.end_forth().await?;
    let late = old.late().refusal().filter(|_| !accept_late);
    match late {
        Some(e) => {
            let late = std::future::ready(Err(e));
            journal.step("late-writes", late, |()| Value::Null).await?;
        }
        None => {
            journal
                .step("commit", commit(home), |()| Value::Null)
                .await?;
        }
    }
    Ok(seen)
}

/// The plan of the way back, by which we may write to the old side; an error says why there is none now.
async fn arm(plan: &Plan, home: &Path, old: &mut OldSide, accept_late: bool) -> Result<Plan> {
    let no = |why: &str| Error::new(ErrorKind::Plan, why.to_owned());
    if let Some(why) = old.keeps_out_the_way_back() {
        return Err(no(why));
    }
    // What the way back writes must not be taken for a late write, nor overwrite one.
    old.end_forth().await?;
    if !old.late().is_empty() && !accept_late {
        return Err(no(
            "what was written late to the old side would be overwritten",
        ));
    }
    admitted(plan, home, old.answering()?).await
}

/// The plan of the way back, with a user that may write to the old side.
pub async fn admitted(plan: &Plan, home: &Path, freezer: &mut Freezer) -> Result<Plan> {
    let mut back = way_back(plan, home)?;
    let job = validate(plan)?;
    let Source::Server { endpoint, .. } = job.source else {
        return Ok(back);
    };
    let user = freezer.way_back_user().await?;
    let master = freezer.master_elsewhere();
    if user.is_some() || master.is_some() {
        // Beside a user in the url there may be no other; what stands there is told in words of its own.
        let login = &mut back.target;
        login.username = login.username.take().or_else(|| endpoint.username.clone());
        if let (None, Some(Secret::Plain(password))) = (&login.password, &endpoint.password) {
            login.password = Some(PasswordPlan::Text(password.reveal().to_owned()));
        }
        login.url = master.map_or_else(|| endpoint.url(), |m| endpoint.url_at(m));
        login.sentinel = match (master, &endpoint.location) {
            (None, Location::Sentinels { .. }) => {
                // Those without a login of their own know the old one only.
                let mut own = login.sentinel.take().unwrap_or_default();
                if own.password.is_none() {
                    own.username.clone_from(&login.username);
                    own.password.clone_from(&login.password);
                }
                Some(own)
            }
            _ => None,
        };
        // A variable that holds a password is still one when another password is used.
        back.cutover.hooks.without = job.cutover.hooks.without;
    }
    if let Some((user, password)) = user {
        // One that was left running by a cutover that was killed has a password that is no more.
        migration::end(&Where::Folder(back_dir(home).join(&back.name))).await?;
        back.target.username = Some(user);
        back.target.password = Some(PasswordPlan::Text(password));
    }
    Ok(back)
}

/// The plan of the way back, where there is one.
pub fn way_back(plan: &Plan, home: &Path) -> Result<Plan> {
    if has_losses(home)? {
        // They are nowhere but at the old side, which would be made equal.
        return Err(Error::new(
            ErrorKind::Plan,
            "there is no way back: the target lacks keys that are listed as losses",
        ));
    }
    reverse::plan(plan)
}

async fn open(back: &Plan, home: &Path, stop: &Shutdown) -> Result<Migration> {
    let dir = back_dir(home);
    // A state that is there was begun after this switch: every new attempt begins without one.
    let begun = Store::open_readonly(&dir.join(&back.name))?
        .is_some_and(|s| s.stage().is_ok_and(|stage| stage == Stage::Source));
    if !begun {
        let _ = std::fs::remove_dir_all(&dir);
    }
    let own = dir.join(&back.name);
    pass_on_nodes(home, &own)?;
    Migration::meet(back, &Where::Folder(own), stop).await
}

async fn commit(home: &Path) -> Result<()> {
    Store::open(home)?.set_stage(Stage::Committed)
}

/// Looks at the new side until the plan's time is over.
async fn look(
    (plan, home): (&Plan, &Path),
    mut back: Option<&mut Migration>,
    old: &mut OldSide,
    stop: &Shutdown,
) -> Result<Value> {
    let job = validate(plan)?;
    recall_nodes(home, &job);
    let began = Instant::now();
    let (mut failures, mut seen) = (0, Value::Null);
    loop {
        match ping(&job.target).await {
            Ok(()) => failures = 0,
            Err(e) => {
                failures += 1;
                if failures >= FAILURES {
                    return Err(e.context("the new side does not answer".to_string()));
                }
            }
        }
        old.look().await?;
        if let Some(migration) = &mut back {
            let now = migration.ask(Ask::State).await?;
            let loaded = !now.shards.is_empty() && now.shards.iter().all(|s| s.phase == "stream");
            let lag_ms = now.shards.iter().map(|s| s.lag_ms).max();
            seen = json!({
                // What a rollback at this moment would have to wait for, or lose if the new side were gone.
                "ready": loaded, "data_loss_bound_ms": lag_ms.filter(|_| loaded),
            });
            tracing::info!("the way back: {seen}");
        }
        // The way back is waited for a while longer: before, it would take a whole copy.
        let watch = Duration::from_secs(plan.cutover.watch_s);
        let ready = back.is_none() || seen["ready"] == true;
        if began.elapsed() >= watch && (ready || began.elapsed() >= watch * LONGER) {
            return Ok(seen);
        }
        if !stop.sleep(LOOK).await {
            return Err(Error::stopped(
                "stopped while the new side was watched: the clients are there, and the same command goes on",
            ));
        }
    }
}

async fn ping(endpoint: &Endpoint) -> Result<()> {
    let (layout, _) = server::layout(endpoint).await?;
    for master in &layout.masters {
        let mut conn = net::control(endpoint, &master.address).await?;
        conn.call(&[b"PING"]).await?;
    }
    Ok(())
}
