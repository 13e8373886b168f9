//! The guard: a process of its own that freezes the writers, moves the clients, and lets the writers go.
//!
//! Whatever becomes of the cutover, the guard ends in order: when the cutover goes away before the switch, the writers
//! go on at once; when it goes away during the switch, the switch is brought to its end and its result is written down.
//! Each side speaks lines of JSON; the first one is the [`Setup`].

use crate::cutover::freeze::Freezer;
use crate::cutover::hook::{self, Hook};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{CutoverPlan, FreezeWay, Plan, Source, validate};
use crate::store::{Lock, Stage, Store};
use crate::task::failpoint;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::signal::unix::{SignalKind, signal};

/// How often a pause is renewed.
const RENEW: Duration = Duration::from_millis(500);
/// How long the hook that leads clients back may take after a switch that has failed.
const BACK_LIMIT: Duration = Duration::from_secs(10);
/// How long before the end of the pause the switch hook has to be done.
const MARGIN: Duration = Duration::from_millis(500);
/// How long a guard may take to answer, beyond the pause.
const ANSWER: Duration = Duration::from_secs(40);

/// What a guard has to know. It comes over its standard input, as a plan may hold secrets.
#[derive(Serialize, Deserialize)]
pub struct Setup {
    /// The plan of this direction: its source is the side whose writers are frozen.
    pub plan: Value,
    /// Where the state of the way there is kept, whichever the direction.
    pub home: PathBuf,
    /// Where the state of the migration in this direction is kept.
    pub dir: PathBuf,
    /// `source` or `target`: which side of the user's plan is frozen.
    pub side: String,
    /// Told to the hook.
    pub told: Value,
    /// What the stage becomes when the switch is done.
    pub done: Stage,
    /// What it is before.
    pub before: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Order {
    Rehearse,
    Freeze(FreezeWay),
    Switch,
    Thaw,
}

/// The answer to an order.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Said {
    Done(Value),
    Refused { why: String, hint: String },
}

impl From<Result<Value>> for Said {
    fn from(done: Result<Value>) -> Said {
        match done {
            Ok(detail) => Said::Done(detail),
            Err(e) => Said::Refused {
                why: e.chain(),
                hint: e.remedy().to_owned(),
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
            say(Err(e)).await;
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
    say(Ok(Value::Null)).await;
    guard.obey(lines).await;
    Ok(())
}

/// Nobody may be left to hear it.
async fn say(done: Result<Value>) {
    let mut text = serde_json::to_vec(&Said::from(done)).unwrap_or_default();
    text.push(b'\n');
    let mut out = tokio::io::stdout();
    let _ = out.write_all(&text).await;
    let _ = out.flush().await;
}

struct Guard {
    setup: Setup,
    plan: CutoverPlan,
    freezer: Freezer,
    /// As long as it is held, the switch may still come to an end.
    _lock: Lock,
}

impl Guard {
    async fn open(setup: Setup) -> Result<Guard> {
        let job = validate(&Plan::parse(&setup.plan.to_string())?)?;
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
            plan: job.cutover,
            setup,
            freezer,
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
            let Some(order) = line.and_then(|l| serde_json::from_str::<Order>(&l).ok()) else {
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
                Order::Rehearse => self.freezer.rehearse().await.map(|way| json!(way)),
                Order::Freeze(way) => self.freezer.freeze(way).await.map(|()| Value::Null),
                Order::Thaw => self.freezer.thaw().await.map(|()| Value::Null),
                Order::Switch => self.switch().await,
            };
            say(done).await;
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

    /// Moves the clients: to its end, whoever listens.
    async fn switch(&mut self) -> Result<Value> {
        // Whoever gives the order has written down that it begins; so it is known whatever happens to both.
        if let Err(e) = self.freezer.holds().await {
            self.note(self.setup.before, Stage::Source)?;
            self.freezer.thaw().await?;
            return Err(e);
        }
        failpoint("guard-switching");
        // What follows the hook has to fit into the pause as well.
        let pause = Duration::from_millis(self.plan.max_pause_ms);
        let limit = (self.freezer.deadline()).saturating_duration_since(Instant::now());
        let limit = limit.saturating_sub(MARGIN.min(pause / 5));
        let argv = self.plan.hooks.switch.clone();
        let hook = Hook {
            name: "switch",
            argv: &argv,
            limit,
        };
        let told = self.setup.told.clone();
        let ran = {
            let running = hook.run(&told);
            tokio::pin!(running);
            let mut tick = tokio::time::interval(RENEW);
            loop {
                tokio::select! {
                    ran = &mut running => break ran,
                    _ = tick.tick() => {
                        if let Err(e) = self.freezer.renew().await {
                            tracing::warn!("{e}");
                        }
                    }
                }
            }
        };
        let began = ran.is_ok();
        match ran.and_then(|ran| hook::succeeded("switch", &ran).map(|()| json!(ran))) {
            Ok(ran) => {
                let noted = self.note(self.setup.done, Stage::Switched);
                self.let_go().await;
                // When it could not be written down, it stays "switching": nobody takes it for undone.
                noted.map(|()| ran)
            }
            Err(e) => Err(self.lead_back(e, began).await),
        }
    }

    /// Writes down where the clients are: `home` as the user's plan has it, `own` as the plan of this direction has it.
    fn note(&self, home: Stage, own: Stage) -> Result<()> {
        note(&self.setup.home, &self.setup.dir, home, own)
    }

    fn stage(&self) -> Result<Stage> {
        Store::open(&self.setup.home)?.stage()
    }

    /// After the switch: whoever is still here is sent away before the pause ends.
    async fn let_go(&mut self) {
        self.freezer.moved();
        if self.plan.cut_clients
            && let Err(e) = self.freezer.cut_clients().await
        {
            tracing::warn!("clients of the old side could not be cut off: {e}");
        }
        if let Err(e) = self.freezer.thaw().await {
            tracing::warn!("the old side could not be let go: {e}");
        }
    }

    /// A switch has failed: clients that may have moved (where the hook has begun) are led back, and the writers go on where they were.
    async fn lead_back(&mut self, e: Error, began: bool) -> Error {
        let argv = self.plan.hooks.switch_back.clone();
        let mut also = String::new();
        if !argv.is_empty() && began {
            let hook = Hook {
                name: "switch_back",
                argv: &argv,
                limit: BACK_LIMIT,
            };
            let mut told = self.setup.told.clone();
            told["step"] = json!("switch_back");
            // Beyond the pause's limit nobody waits for it.
            let left = (self.freezer.deadline()).saturating_duration_since(Instant::now());
            let running = hook.run(&told);
            tokio::pin!(running);
            let ended = match tokio::time::timeout(left, &mut running).await {
                Ok(ended) => ended,
                Err(_) => {
                    let _ = self.freezer.thaw().await;
                    running.await
                }
            };
            let back = ended.and_then(|ran| hook::succeeded("switch_back", &ran));
            if let Err(e) = back {
                also = format!("; {e}");
            }
        }
        let thawed = self.freezer.thaw().await;
        let noted = self.note(self.setup.before, Stage::Source);
        for failed in [thawed, noted] {
            if let Err(e) = failed {
                also.push_str(&format!("; {e}"));
            }
        }
        match also.is_empty() {
            true => e,
            false => {
                Error::new(ErrorKind::Refused, format!("{}{also}", e.chain())).hint(e.remedy())
            }
        }
    }
}

/// Writes down where the clients are: in the state of the user's plan last, as that is what counts.
pub fn note(home: &Path, dir: &Path, at_home: Stage, own: Stage) -> Result<()> {
    if dir != home {
        Store::open(dir)?.set_stage(own)?;
    }
    Store::open(home)?.set_stage(at_home)
}

/// A guard as the cutover sees it.
pub struct Handle {
    child: Child,
    /// Closed, it lets the writers go.
    orders: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
    /// The longest that an order may take.
    patience: Duration,
}

impl Handle {
    pub async fn start(setup: &Setup, max_pause_ms: u64) -> Result<Handle> {
        let failed = |e: std::io::Error| Error::new(ErrorKind::Bug, "start the guard").cause(e);
        let program = std::env::current_exe().map_err(failed)?;
        let mut child = tokio::process::Command::new(program)
            .arg("cutover-guard")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the cutover, which tells the guard.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::new(ErrorKind::Bug, "a guard without pipes"));
        };
        let mut handle = Handle {
            child,
            orders: Some(orders),
            answers: BufReader::new(answers).lines(),
            patience: ANSWER + Duration::from_millis(max_pause_ms),
        };
        let setup = serde_json::to_value(setup)
            .map_err(|e| Error::new(ErrorKind::Bug, "write the guard's setup").cause(e))?;
        handle.send(&setup).await?;
        handle.answer().await?;
        Ok(handle)
    }

    async fn send(&mut self, value: &Value) -> Result<()> {
        let line = format!("{value}\n");
        let orders = self.orders.as_mut().ok_or_else(gone)?;
        orders
            .write_all(line.as_bytes())
            .await
            .map_err(|e| gone().cause(e))
    }

    async fn answer(&mut self) -> Result<Value> {
        let line = self
            .answers
            .next_line()
            .await
            .map_err(|e| gone().cause(e))?;
        let said = serde_json::from_str(&line.ok_or_else(gone)?)
            .map_err(|e| Error::new(ErrorKind::Bug, "the guard is not understood").cause(e))?;
        match said {
            Said::Done(detail) => Ok(detail),
            Said::Refused { why, hint } => Err(Error::new(ErrorKind::Refused, why).hint(hint)),
        }
    }

    async fn order(&mut self, order: Order) -> Result<Value> {
        let answered = tokio::time::timeout(self.patience, async {
            self.send(&json!(order)).await?;
            self.answer().await
        });
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Which way would be taken.
    pub async fn rehearse(&mut self) -> Result<FreezeWay> {
        let way = self.order(Order::Rehearse).await?;
        serde_json::from_value(way)
            .map_err(|e| Error::new(ErrorKind::Bug, "the guard is not understood").cause(e))
    }

    pub async fn freeze(&mut self, way: FreezeWay) -> Result<()> {
        self.order(Order::Freeze(way)).await.map(drop)
    }

    /// Moves the clients and lets the writers go; what the hook has said.
    pub async fn switch(&mut self) -> Result<Value> {
        self.order(Order::Switch).await
    }

    pub async fn thaw(&mut self) -> Result<()> {
        self.order(Order::Thaw).await.map(drop)
    }

    /// Ends it; whatever is frozen is let go.
    pub async fn dismiss(mut self) {
        self.orders = None;
        let _ = tokio::time::timeout(Duration::from_secs(15), self.child.wait()).await;
    }
}

fn gone() -> Error {
    Error::new(
        ErrorKind::Refused,
        "the guard has ended, or does not answer",
    )
    .hint("run the same command again")
}
