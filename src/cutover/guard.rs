//! The guard: a process of its own that freezes the writers, moves the clients, and lets the writers go.
//!
//! Whatever becomes of the cutover, the guard ends in order: when the cutover goes away before the switch, the writers
//! go on at once; when it goes away during the switch, the switch is brought to its end and its result is written down.
//! Each side speaks lines of JSON; the first one is the [`Setup`].

use crate::cutover::hook::{self, Hook};
use crate::cutover::late::late_writes;
use crate::cutover::migration::Migration;
use crate::cutover::place::Where;
use crate::cutover::side::{Closed, Freezer, Hold};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{FreezeWay, Job, Plan, Source, validate};
use crate::store::{Lock, Stage, Store, recall_nodes};
use crate::task::failpoint;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::signal::unix::{SignalKind, signal};

/// How often a pause is renewed.
const RENEW: Duration = Duration::from_millis(500);
/// How long the hook that leads clients back may take after a switch that has failed.
const BACK_LIMIT: Duration = Duration::from_secs(10);
/// How long before the end of the pause the switch hook has to be done.
const MARGIN: Duration = Duration::from_millis(500);
/// How long the last proof may take, when the hook has left less time.
const PROOF: Duration = Duration::from_secs(5);
/// How often the migration is asked in it.
const POLL: Duration = Duration::from_millis(2);

/// What a guard has to know. It comes over its standard input, as a plan may hold secrets.
#[derive(Serialize, Deserialize)]
pub struct Setup {
    /// The plan of this direction: its source is the side whose writers are frozen.
    pub plan: Value,
    /// Where the state of the way there is kept, whichever the direction.
    pub home: PathBuf,
    /// Where the state of the migration in this direction is kept.
    pub dir: PathBuf,
    /// Where that migration is asked.
    pub migration: Where,
    /// `source` or `target`: which side of the user's plan is frozen.
    pub side: String,
    /// Told to the hook.
    pub told: Value,
    /// What the stage becomes when the switch is done.
    pub done: Stage,
    /// What it is before.
    pub before: Stage,
    /// On the way back: the user's plan, whose source the clients go to, and which is closed as yet.
    pub opens: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Order {
    Rehearse,
    Prepare,
    Freeze(FreezeWay),
    Switch,
    Thaw,
}

/// The answer to an order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Said {
    Done(Value),
    Refused {
        why: String,
        hint: String,
        /// Nobody knows where the clients are.
        #[serde(default)]
        unknown: bool,
    },
}

impl From<Result<Value>> for Said {
    fn from(done: Result<Value>) -> Said {
        match done {
            Ok(detail) => Said::Done(detail),
            Err(e) => Said::Refused {
                why: e.chain(),
                hint: e.remedy().to_owned(),
                unknown: e.kind() == ErrorKind::State,
            },
        }
    }
}

/// Where a guard says that it lives.
pub fn place(home: &Path) -> PathBuf {
    home.join("guard")
}

/// The guard's own process: `keyferry cutover-guard`.
pub async fn serve() -> Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let broken = || {
        Error::new(
            ErrorKind::Usage,
            "the guard is started by `keyferry cutover` only",
        )
    };
    let first = lines.next_line().await.ok().flatten().ok_or_else(broken)?;
    let setup: Setup = serde_json::from_str(&first).map_err(|e| broken().cause(e))?;
    let mut guard = match Guard::open(setup).await {
        Ok(guard) => guard,
        Err(e) => {
            say(0, Err(e)).await;
            return Ok(());
        }
    };
    // It ends in order when the cutover does; a signal to all of them must not leave writers frozen.
    let mut signals = Vec::new();
    for kind in [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ] {
        signals.extend(signal(kind));
    }
    say(0, Ok(Value::Null)).await;
    guard.obey(lines).await;
    Ok(())
}

/// Answers the order of that number; nobody may be left to hear it.
async fn say(number: u64, done: Result<Value>) {
    let mut text = serde_json::to_vec(&(number, Said::from(done))).unwrap_or_default();
    text.push(b'\n');
    let mut out = tokio::io::stdout();
    let _ = out.write_all(&text).await;
    let _ = out.flush().await;
}

struct Guard {
    setup: Setup,
    /// What the plan of this direction comes to.
    job: Job,
    freezer: Freezer,
    /// The side that the clients are moved to, where writes to it can be held.
    new_side: Option<Hold>,
    /// The clients have been moved, or may have been: nothing is undone when the cutover goes away.
    moved: bool,
    /// As long as it is held, the switch may still come to an end.
    _lock: Lock,
}

impl Guard {
    async fn open(setup: Setup) -> Result<Guard> {
        let job = job_of(&setup.plan, &setup.home)?;
        let Source::Server { endpoint, .. } = &job.source else {
            return Err(Error::new(ErrorKind::Plan, "a file has no writers"));
        };
        let side = if setup.side == "target" {
            "target"
        } else {
            "source"
        };
        let freezer = Freezer::open(endpoint, &job.cutover, side, setup.home.clone()).await?;
        Ok(Guard {
            _lock: Lock::acquire(&place(&setup.home))?,
            job,
            setup,
            freezer,
            new_side: None,
            moved: false,
        })
    }

    async fn obey(&mut self, mut lines: Lines<BufReader<tokio::io::Stdin>>) {
        let mut tick = tokio::time::interval(RENEW);
        loop {
            let line = tokio::select! {
                line = lines.next_line() => line.ok().flatten(),
                _ = tick.tick() => {
                    self.keep_frozen().await;
                    continue;
                }
            };
            let Some((number, order)) =
                line.and_then(|l| serde_json::from_str::<(u64, Order)>(&l).ok())
            else {
                if self.moved {
                    return;
                }
                // The cutover has gone: the writers go on, and nothing was begun.
                let thawed = self.freezer.thaw().await;
                let noted = match self.stage() {
                    Ok(Stage::Switching) => self.note(self.setup.before, Stage::Source),
                    other => other.map(drop),
                };
                for failed in [thawed, noted] {
                    if let Err(e) = failed {
                        tracing::warn!("{e}");
                    }
                }
                return;
            };
            let done = match order {
                Order::Rehearse => self.freezer.rehearse().await.map(|found| json!(found)),
                Order::Prepare => self.prepare().await.map(|()| Value::Null),
                Order::Freeze(way) => self.freezer.freeze(way).await.map(|()| Value::Null),
                Order::Thaw => self.freezer.thaw().await.map(|()| Value::Null),
                Order::Switch => self.switch().await,
            };
            say(number, done).await;
        }
    }

    /// Renews the pause, or ends it when its time is over.
    async fn keep_frozen(&mut self) {
        if !self.freezer.is_frozen() {
            return;
        }
        let kept = match Instant::now() < self.freezer.deadline() {
            true => self.freezer.renew().await,
            false => self.freezer.thaw().await,
        };
        if let Err(e) = kept {
            tracing::warn!("{e}");
        }
    }

    async fn prepare(&mut self) -> Result<()> {
        // On the way back that side is closed anyhow.
        self.new_side = match self.job.cutover.hold_new_side && self.setup.opens.is_none() {
            true => Hold::prepare(&self.job.target).await?,
            false => None,
        };
        self.freezer.prepare().await
    }

    /// Keeps both sides as they are for a while longer.
    async fn renew(&mut self) {
        let new_side = async {
            match &mut self.new_side {
                Some(hold) => hold.renew().await,
                None => Ok(()),
            }
        };
        let (old, new) = tokio::join!(self.freezer.renew(), new_side);
        for failed in [old, new] {
            if let Err(e) = failed {
                tracing::warn!("{e}");
            }
        }
    }

    /// Lets writes to the new side go on, or ends those that wait, when their clients were led back.
    async fn let_new_side_go(&mut self, undone: bool) {
        if let Some(hold) = &mut self.new_side
            && let Err(e) = hold.end(undone).await
        {
            tracing::warn!("the new side: {e}");
        }
    }

    /// Moves the clients: to its end, whoever listens.
    async fn switch(&mut self) -> Result<Value> {
        // Whoever gives the order has written down that it begins; so it is known whatever happens to both.
        let held = tokio::time::timeout(PROOF, self.freezer.is_held()).await;
        if let Err(e) = held.unwrap_or_else(|_| Err(too_late())) {
            self.note(self.setup.before, Stage::Source)?;
            self.freezer.thaw().await?;
            return Err(e);
        }
        failpoint("guard-switching");
        self.renew().await;
        let ran = self.run_hook().await;
        let began = ran.is_ok();
        let said = ran.and_then(|ran| hook::succeeded("switch", &ran).map(|()| json!(ran)));
        let proven = match said {
            Ok(said) => self.close().await.map(|closed| (said, closed)),
            Err(e) => Err(e),
        };
        let (mut said, closed) = match proven {
            Ok(proven) => proven,
            Err(e) => return Err(self.lead_back(e, began).await),
        };
        self.moved = true;
        failpoint("guard-closed");
        // Where the clients are now they must be able to write, before anybody calls it done.
        self.open_the_other().await?;
        // When it cannot be written down, it stays "switching", and closed: nobody takes it for undone.
        self.note(self.setup.done, Stage::Switched)?;
        self.let_new_side_go(false).await;
        let gone = self.freezer.let_go().await;
        let opened = match self.setup.side.as_str() {
            // The clients are where they began: what is left behind need not be kept from anybody.
            "target" => self.freezer.thaw().await,
            _ => Ok(()),
        };
        match gone {
            Ok(cut) => {
                said["clients_ended"] = json!({ "normal": cut.clients, "pubsub": cut.subscribers });
            }
            Err(e) => tracing::warn!("the old side could not be let go: {e}"),
        }
        let noted = self.freezer.note_taken().await;
        for failed in [opened, noted] {
            if let Err(e) = failed {
                tracing::warn!("the side that the clients have left: {e}");
            }
        }
        said["old_side"] = json!(closed);
        Ok(said)
    }

    /// Opens the side that the clients have come back to.
    async fn open_the_other(&self) -> Result<()> {
        let Some(plan) = &self.setup.opens else {
            return Ok(());
        };
        let job = job_of(plan, &self.setup.home)?;
        let Source::Server { endpoint, .. } = &job.source else {
            return Ok(());
        };
        let home = self.setup.home.clone();
        let mut source = Freezer::open(endpoint, &job.cutover, "source", home).await?;
        source.clean_up("source").await
    }

    /// The switch hook.
    async fn run_hook(&mut self) -> Result<hook::Ran> {
        // What follows the hook has to fit into the pause as well.
        let pause = Duration::from_millis(self.job.cutover.max_pause_ms);
        let limit = (self.freezer.deadline()).saturating_duration_since(Instant::now());
        let limit = limit.saturating_sub(MARGIN.min(pause / 5));
        let told = self.setup.told.clone();
        self.run("switch", limit, &told).await
    }

    /// Runs a hook while the pause is renewed.
    async fn run(&mut self, name: &str, limit: Duration, told: &Value) -> Result<hook::Ran> {
        let hooks = &self.job.cutover.hooks;
        let argv = match name {
            "switch" => hooks.switch.clone(),
            _ => hooks.switch_back.clone(),
        };
        let without = hooks.without.clone();
        let hook = Hook {
            name,
            argv: &argv,
            without: &without,
            limit,
        };
        let running = hook.run(told);
        tokio::pin!(running);
        let mut tick = tokio::time::interval(RENEW);
        loop {
            tokio::select! {
                ran = &mut running => return ran,
                _ = tick.tick() => self.renew().await,
            }
        }
    }

    /// The clients have been told to go: the side that they leave is closed for good, and then proven to have been
    /// closed all the time, and all that it holds to be at the other side.
    async fn close(&mut self) -> Result<Closed> {
        let until = self.freezer.deadline().max(Instant::now() + PROOF);
        loop {
            let mut held = self.new_side.take();
            let tried = tokio::select! {
                tried = tokio::time::timeout_at(until.into(), self.try_to_close()) => tried,
                never = keep(&mut held) => match never {},
            };
            self.new_side = held;
            match tried {
                Err(_) => return Err(too_late()),
                // It may be a line that is cut for a while.
                Ok(Err(e)) if e.kind() == ErrorKind::Connection && Instant::now() < until => {
                    tracing::warn!("{e}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Ok(done) => return done,
            }
        }
    }

    async fn try_to_close(&mut self) -> Result<Closed> {
        self.freezer.renew().await?;
        let closed = self.freezer.close().await?;
        self.freezer.passed_on().await?;
        let fenced = async {
            let mut migration = Migration::connect(&self.setup.migration).await?;
            migration.fence_again(POLL).await
        };
        let ((), now) = tokio::try_join!(self.freezer.has_held(), fenced)?;
        if now.lost {
            return Err(Error::new(
                ErrorKind::Refused,
                "the new side has lost a master while the clients were moved",
            )
            .hint("wait until its failover is over, then run the same command again"));
        }
        match now.late() {
            0 => Ok(closed),
            late => Err(late_writes(late, &now.late_names())),
        }
    }

    /// Writes down where the clients are: `home` as the user's plan has it, `own` as the plan of this direction has it.
    fn note(&self, home: Stage, own: Stage) -> Result<()> {
        note(&self.setup.home, &self.setup.dir, home, own)
    }

    fn stage(&self) -> Result<Stage> {
        Store::open(&self.setup.home)?.stage()
    }

    /// A switch has failed: clients that may have moved (where the hook has begun) are led back, and the writers go on
    /// where they were. Where nobody can lead them back, a person has to say where they are: until then nothing is written
    /// to the side that they were at.
    async fn lead_back(&mut self, e: Error, began: bool) -> Error {
        let mut also = String::new();
        if began {
            match self.run_back_hook().await {
                Ok(()) => {}
                Err(why) => {
                    self.moved = true;
                    self.let_new_side_go(false).await;
                    let closed = match self.freezer.close().await {
                        Ok(Closed::ByRights | Closed::ByPause) => "is closed to writers",
                        Ok(Closed::Watched | Closed::Open) => "takes writes",
                        Err(e) => {
                            also = format!("; {e}");
                            "could not be closed"
                        }
                    };
                    return Error::new(
                        ErrorKind::State,
                        format!("{}; {}{also}", e.chain(), why.chain()),
                    )
                    .hint(format!("the clients may be on either side, and the side that they were at {closed}: look where they are, then run the same command with --clients-at source or --clients-at target"));
                }
            }
        }
        let was_held = self.new_side.as_ref().is_some_and(Hold::has_held);
        self.let_new_side_go(true).await;
        let thawed = self.freezer.thaw().await;
        let noted = self.note(self.setup.before, Stage::Source);
        for failed in [thawed, noted] {
            if let Err(e) = failed {
                also.push_str(&format!("; {e}"));
            }
        }
        if began && !was_held {
            also.push_str("; the clients were led back by switch_back: what they have written to the other side in between is only there");
        }
        match also.is_empty() {
            true => e,
            false => {
                Error::new(ErrorKind::Refused, format!("{}{also}", e.chain())).hint(e.remedy())
            }
        }
    }

    /// Leads the clients back; an error when that was not done.
    async fn run_back_hook(&mut self) -> Result<()> {
        if self.job.cutover.hooks.switch_back.is_empty() {
            return Err(Error::new(
                ErrorKind::State,
                "the plan names no program that leads clients back (cutover.hooks.switch_back)",
            ));
        }
        let mut told = self.setup.told.clone();
        told["step"] = json!("switch_back");
        let ran = self.run("switch_back", BACK_LIMIT, &told).await?;
        hook::succeeded("switch_back", &ran)
    }
}

/// Holds the new side for as long as it is polled.
async fn keep(held: &mut Option<Hold>) -> Infallible {
    let mut tick = tokio::time::interval(RENEW);
    loop {
        tick.tick().await;
        if let Some(hold) = held
            && let Err(e) = hold.renew().await
        {
            tracing::warn!("{e}");
        }
    }
}

fn job_of(plan: &Value, home: &Path) -> Result<Job> {
    let job = validate(&Plan::parse(&plan.to_string())?)?;
    recall_nodes(home, &job);
    Ok(job)
}

fn too_late() -> Error {
    Error::new(
        ErrorKind::Refused,
        "the side that the clients leave did not answer in time, so nobody knows whether it was frozen",
    )
    .hint("see that it answers, then run the same command again")
}

/// Writes down where the clients are: in the state of the user's plan last, as that is what counts; but when they have
/// not been moved, first. Cut off between both, the way back's "switching" is then known to be over.
pub fn note(home: &Path, dir: &Path, at_home: Stage, own: Stage) -> Result<()> {
    if own == Stage::Source {
        Store::open(home)?.set_stage(at_home)?;
    }
    if dir != home {
        Store::open(dir)?.set_stage(own)?;
    }
    Store::open(home)?.set_stage(at_home)
}
