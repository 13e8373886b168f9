//! One direction of a cutover: from the first look to the moment when the clients are on the other side.

use crate::check::{self, Finding, Severity};
use crate::cutover::guard::{self, Setup};
use crate::cutover::handle::Handle;
use crate::cutover::journal::Journal;
use crate::cutover::late::late_writes;
use crate::cutover::migration::Migration;
use crate::cutover::options::{Options, go_on};
use crate::cutover::place::Where;
use crate::cutover::proof::{self, Proof};
use crate::cutover::side::{Closed, Foretold, Freezer};
use crate::cutover::watch;
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::control::orders::{Answer, Ask, ShardNow};
use crate::plan::{FreezeWay, Job, Plan, Source};
use crate::source::mix;
use crate::store::{MIX, MODE, Phase, Stage, Store};
use crate::task::Shutdown;
use crate::types::unix_ms;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often the migration is asked while it drains.
const POLL: Duration = Duration::from_millis(1);
/// For this long the clients' traffic is looked at.
const TRAFFIC: Duration = Duration::from_millis(500);
/// For this long nothing may be written before a person's word is believed.
const STILL: Duration = Duration::from_secs(2);

/// From one side to the other.
pub struct Pass<'a> {
    /// The plan of this direction.
    pub plan: &'a Plan,
    pub job: &'a Job,
    pub proof: Proof<'a>,
    /// The folder that holds the folder of this direction's state.
    pub work_dir: PathBuf,
    /// Where its migration is asked.
    pub place: &'a Where,
    /// The state of the user's plan.
    pub home: PathBuf,
    pub side: &'static str,
    /// Where the clients are before and after, as the user's plan has it.
    pub before: Stage,
    pub after: Stage,
    /// On the way back: the user's plan, whose source is closed as yet.
    pub opens: Option<Value>,
    pub options: &'a Options,
    pub stop: &'a Shutdown,
}

/// What a pass has come to.
pub struct Passed {
    /// From the freeze to the moment when the clients had been moved.
    pub pause_us: Option<i64>,
    /// What a rehearsal foretells.
    pub predicted_ms: Option<u64>,
    /// How the side that the clients have left is kept closed.
    pub closed: Closed,
}

impl Pass<'_> {
    fn dir(&self) -> PathBuf {
        self.work_dir.join(&self.plan.name)
    }

    /// Everything up to the switch. An error means that the writers go on where they were.
    pub async fn run(
        &mut self,
        journal: &mut Journal,
        migration: &mut Migration,
    ) -> Result<Passed> {
        // A cutover that was cut off in its switch has left it holding still, and where the clients are is known by now.
        migration.ask(Ask::Follow).await?;
        let mut guard = Handle::start(&self.setup()?, self.plan.cutover.max_pause_ms).await?;
        let result = self.guarded(journal, migration, &mut guard).await;
        let Err(e) = result else {
            guard.dismiss().await;
            return result;
        };
        if e.kind() == ErrorKind::State {
            // Nobody knows where the clients are: the fence stays, and a person decides.
            guard.dismiss().await;
            return Err(e);
        }
        let thawed = guard.thaw().await;
        guard.dismiss().await;
        let _ = migration.ask(Ask::Follow).await;
        self.phase(match self.side {
            "source" => Phase::Stream,
            _ => Phase::Switched,
        });
        if thawed.is_err()
            && let Err(why) = self.thaw_without_guard().await
        {
            return Err(Error::new(
                ErrorKind::State,
                format!(
                    "{}; and the writers could not be let go: {}",
                    e.chain(),
                    why.chain()
                ),
            )
            .hint("run `keyferry rollback PLAN`: it tries again; a CLIENT PAUSE ends by itself"));
        }
        Err(e)
    }

    /// The guard is gone, or could not.
    async fn thaw_without_guard(&self) -> Result<()> {
        let Source::Server { endpoint, .. } = &self.job.source else {
            return Ok(());
        };
        let (plan, home) = (&self.plan.cutover, self.home.clone());
        let mut freezer = Freezer::open(endpoint, plan, self.side, home).await?;
        freezer.clean_up(self.side).await
    }

    fn setup(&self) -> Result<Setup> {
        let plan = serde_json::to_value(self.plan)
            .map_err(|e| Error::new(ErrorKind::Bug, "write the plan as JSON").cause(e))?;
        let (source, target) = (self.job.source.to_string(), self.job.target.redacted_url());
        Ok(Setup {
            plan,
            home: self.home.clone(),
            dir: self.dir(),
            migration: self.place.clone(),
            side: self.side.into(),
            told: json!({
                "step": "switch", "plan": self.plan.name, "from": source, "to": target,
                "direction": match self.side { "source" => "cutover", _ => "rollback" },
                "redacted": self.job.redacted,
            }),
            before: self.before,
            done: self.after,
            opens: self.opens.clone(),
        })
    }

    async fn guarded(
        &mut self,
        journal: &mut Journal,
        migration: &mut Migration,
        guard: &mut Handle,
    ) -> Result<Passed> {
        let pause = self.foretold();
        let (found, scan, _) = journal
            .step(
                "preflight",
                self.preflight(migration, guard),
                |(found, scan, warnings)| {
                    let back = watch::way_back(self.plan, &self.home)
                        .err()
                        .map(|e| e.to_string());
                    json!({
                        "freeze": found.way, "old_side": found.closed, "scan": scan, "pause": pause,
                        "no_way_back": back, "warnings": warnings,
                    })
                },
            )
            .await?;
        let way = found.way;
        journal
            .step(
                "warm-up",
                self.proof.warm_up(migration, scan),
                |warm| json!({ "left_keys": warm.left, "compare_us": micros(warm.compare), "pause": warm.pause }),
            )
            .await?;
        if self.options.dry_run {
            return match self.options.freeze_for {
                Some(time) => {
                    self.rehearse_frozen(journal, migration, guard, (found, time))
                        .await
                }
                None => self.rehearse(journal, migration, found.closed).await,
            };
        }
        if way == FreezeWay::Operator {
            journal
                .step("wait-for-operator", self.until_still(migration), |()| {
                    Value::Null
                })
                .await?;
        }
        let pause = Duration::from_millis(self.plan.cutover.max_pause_ms);
        guard.prepare().await?;
        let began = Instant::now();
        let paused = self.paused(journal, migration, guard, way);
        match tokio::time::timeout(pause, paused).await {
            Ok(done) => done?,
            Err(_) => {
                let over = std::future::ready(Err(too_long(pause)));
                journal.step("time", over, |()| Value::Null).await?;
            }
        }
        // The switch has its own limit, and its end is waited for whatever it is.
        journal
            .step("switch", self.switch(migration, guard), Value::clone)
            .await?;
        let pause_us = Some(micros(began.elapsed()));
        self.phase(match self.side {
            "source" => Phase::Switched,
            _ => Phase::RolledBack,
        });
        Ok(Passed {
            pause_us,
            predicted_ms: None,
            closed: found.closed,
        })
    }

    /// What has to hold before anybody is disturbed.
    async fn preflight(
        &self,
        migration: &mut Migration,
        guard: &mut Handle,
    ) -> Result<(Foretold, bool, Vec<Finding>)> {
        if self.plan.cutover.hooks.switch.is_empty() {
            return Err(Error::new(
                ErrorKind::Plan,
                format!(
                    "the plan names no program that moves the clients (cutover.hooks.{})",
                    match self.side {
                        "source" => "switch",
                        _ => "switch_back",
                    }
                ),
            )
            .hint("name one; [\"true\"] where they move by themselves"));
        }
        let known = Store::open(&self.dir())?.json(MODE)?;
        let known = known.as_ref().and_then(Value::as_str);
        let report = check::run(self.job, false, known).await?;
        if let Some(found) = report.stops(&self.options.ignore).next() {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("{}: {}", found.id, found.message),
            )
            .hint(format!(
                "{}; --ignore {} goes on in spite of it",
                found.fix, found.id
            )));
        }
        let scan = self.caught_up(migration).await?;
        self.note_traffic().await?;
        let found = guard.rehearse().await?;
        let mut warnings = report.findings;
        warnings.retain(|f| {
            f.severity == Severity::Warning && !self.options.ignore.contains(&f.id.to_owned())
        });
        Ok((found, scan, warnings))
    }

    /// What the pause of a scan will contain.
    fn foretold(&self) -> Option<String> {
        let scans = Store::open_readonly(&self.dir()).ok()??.json(MODE).ok()??;
        (scans == "scan").then(|| self.proof.scanned().ok().map(|s| s.told()))?
    }

    /// Keeps what the clients do now, for a measurement when they are gone.
    async fn note_traffic(&self) -> Result<()> {
        // On the way back the clients are at the target, whose traffic nobody asks about.
        let (Source::Server { endpoint, .. }, "source") = (&self.job.source, self.side) else {
            return Ok(());
        };
        let mix = mix::observe(endpoint, TRAFFIC).await?;
        if mix.total() >= mix::IDLE {
            let value = serde_json::to_value(&mix).unwrap_or_default();
            Store::open(&self.home)?.put_json(MIX, &value)?;
        }
        Ok(())
    }

    /// Waits until the lag is within its bound; whether the source is scanned.
    async fn caught_up(&self, migration: &mut Migration) -> Result<bool> {
        let bound = self.plan.cutover.max_lag_ms;
        let patience = Duration::from_secs(self.plan.cutover.wait_s);
        let began = Instant::now();
        loop {
            go_on(self.stop)?;
            let now = migration.ask(Ask::State).await?;
            let loaded = !now.shards.is_empty() && now.shards.iter().all(|s| s.phase == "stream");
            let lag = now.shards.iter().map(|s| s.lag_ms).max().unwrap_or(0);
            // A scan's lag is the age of its last sweep, which the drain makes anew.
            if loaded && (now.scan || lag <= bound) {
                return Ok(now.scan);
            }
            // The way back is loaded while one waits for it.
            if began.elapsed() > patience && (loaded || self.side == "source") {
                let why = match loaded {
                    true => format!(
                        "the lag is {lag} ms after {} s of waiting, and cutover.max_lag_ms is {bound}",
                        patience.as_secs()
                    ),
                    false => "the target does not hold the whole snapshot yet".into(),
                };
                return Err(Error::new(ErrorKind::Refused, why)
                    .hint("wait until `keyferry status` shows it caught up"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// From the freeze to the fence: all that happens while writers wait, but for the switch.
    async fn paused(
        &mut self,
        journal: &mut Journal,
        migration: &mut Migration,
        guard: &mut Handle,
        way: FreezeWay,
    ) -> Result<()> {
        journal
            .step("freeze", guard.freeze(way), |()| json!({ "way": way }))
            .await?;
        self.phase(Phase::Frozen);
        journal
            .step(
                "drain",
                self.drained(migration),
                |now| json!({ "writes": writes(now) }),
            )
            .await?;
        journal
            .step(
                "verify",
                self.proof.prove(migration),
                |keys| json!({ "keys": keys }),
            )
            .await?;
        journal
            .step(
                "fence",
                self.fence(migration),
                |keys| json!({ "keys": keys }),
            )
            .await?;
        // Draining has given every key its true expiry.
        journal
            .step("release", std::future::ready(Ok(())), |()| Value::Null)
            .await
    }

    /// Has the guard move the clients. An error of kind `State` means that nobody knows where they are.
    async fn switch(&self, migration: &mut Migration, guard: &mut Handle) -> Result<Value> {
        let (home, dir) = (&self.home, self.dir());
        // Before the order is given, so that it is known whatever happens to whom.
        guard::note(home, &dir, Stage::Switching, Stage::Switching)?;
        // The migration that holds still is the only one: it has the lock.
        let told = migration.tell_stage().await;
        let still = match told.and(migration.ask(Ask::State).await) {
            Ok(now) => self.is_fenced(&now).and_then(|there| match there {
                true => Ok(()),
                false => Err(Error::new(ErrorKind::Refused, "the fence is gone")
                    .hint("run the same command again")),
            }),
            Err(e) => Err(e),
        };
        if let Err(e) = still {
            guard::note(home, &dir, self.before, Stage::Source)?;
            return Err(e);
        }
        let e = match guard.switch().await {
            Ok(said) => return Ok(said),
            Err(e) if e.kind() == ErrorKind::State => return Err(e),
            Err(e) => e,
        };
        match Store::open(home)?.stage()? {
            stage if stage == self.before => Err(e),
            stage if stage == self.after => Ok(json!({ "note": e.chain() })),
            _ => Err(Error::new(
                ErrorKind::State,
                format!("nobody knows where the clients are: {}", e.chain()),
            )
            .hint("look where your clients are, then run the same command with --clients-at source or --clients-at target")),
        }
    }

    /// Everything that the source had written is at the target.
    async fn drained(&self, migration: &mut Migration) -> Result<Answer> {
        proof::drained(migration, self.stop).await
    }

    /// From here on nothing of the old side is applied; nothing was written since it was frozen, and what was applied
    /// up to this moment is proven. Returns how many keys that still were.
    async fn fence(&mut self, migration: &mut Migration) -> Result<usize> {
        migration.ask(Ask::Fence).await?;
        loop {
            go_on(self.stop)?;
            let now = migration.ask(Ask::State).await?;
            if self.is_fenced(&now)? {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        self.proof.prove(migration).await
    }

    /// Whether all that the source had written is looked at; an error when something of it is not at the target.
    fn is_fenced(&self, now: &Answer) -> Result<bool> {
        if now.lost {
            return Err(Error::new(
                ErrorKind::Refused,
                "the new side has lost a master meanwhile",
            )
            .hint("wait until its failover is over, then run the same command again"));
        }
        if now.late() > 0 {
            return Err(late_writes(now.late(), &now.late_names()));
        }
        let held = |s: &ShardNow| s.fenced && s.phase == "stream";
        Ok(!now.shards.is_empty() && now.shards.iter().all(held))
    }

    /// Waits until nothing has been written for a while: what a person's word is worth.
    async fn until_still(&self, migration: &mut Migration) -> Result<()> {
        let patience = Duration::from_secs(self.plan.cutover.wait_s);
        let (began, mut since, mut last) = (Instant::now(), Instant::now(), None);
        loop {
            go_on(self.stop)?;
            let now = migration.ask(Ask::State).await?;
            if now.scan && !self.proof.scanned()?.by_changes {
                // Only a sweep that finds nothing tells.
                let over = || Ok(began.elapsed() > patience);
                let found = proof::drained_unless(migration, self.stop, over).await?;
                migration.ask(Ask::Follow).await?;
                return found.map(drop).ok_or_else(|| still_writing(patience));
            }
            let seen = writes(&now);
            if last != Some(seen) {
                (last, since) = (Some(seen), Instant::now());
            }
            if since.elapsed() > STILL {
                return Ok(());
            }
            if began.elapsed() > patience {
                return Err(still_writing(patience));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// All but the freeze and the switch; foretells how long writers will wait.
    async fn rehearse(
        &self,
        journal: &mut Journal,
        migration: &mut Migration,
        closed: Closed,
    ) -> Result<Passed> {
        let drain = journal
            .step(
                "drain",
                self.drained_live(migration),
                |took| json!({ "us": micros(*took) }),
            )
            .await?;
        migration.ask(Ask::Follow).await?;
        let predicted = micros(drain) + micros(self.proof.compare()) + 10_000;
        Ok(Passed {
            pause_us: None,
            predicted_ms: u64::try_from(predicted / 1000).ok(),
            closed,
        })
    }

    /// The same with a freeze, which is what clients would feel: until both sides are proven equal, or for so long.
    async fn rehearse_frozen(
        &mut self,
        journal: &mut Journal,
        migration: &mut Migration,
        guard: &mut Handle,
        (found, time): (Foretold, Duration),
    ) -> Result<Passed> {
        guard.prepare().await?;
        let began = Instant::now();
        let paused = self.paused(journal, migration, guard, found.way);
        let done = tokio::time::timeout(time, paused).await;
        journal.step("thaw", guard.thaw(), |()| Value::Null).await?;
        let pause_us = micros(began.elapsed());
        migration.ask(Ask::Follow).await?;
        self.phase(Phase::Stream);
        match done {
            Ok(done) => done?,
            Err(_) => {
                let over = Error::new(
                    ErrorKind::Refused,
                    format!(
                        "within the {} ms of --freeze-for the sides were not proven equal; the writers go on",
                        time.as_millis()
                    ),
                )
                .hint("the steps say what takes so long: choose an hour with fewer writes, or allow more");
                journal
                    .step("time", std::future::ready(Err(over)), |()| Value::Null)
                    .await?;
            }
        }
        Ok(Passed {
            pause_us: Some(pause_us),
            predicted_ms: u64::try_from(pause_us / 1000).ok(),
            closed: found.closed,
        })
    }

    async fn drained_live(&self, migration: &mut Migration) -> Result<Duration> {
        let scanned = self.proof.scanned()?;
        if !self.proof.is_live() && !scanned.by_changes {
            // Under traffic a sweep always finds something; the pause will have to wait for one that does not.
            return Ok(scanned.predicted());
        }
        let began = Instant::now();
        let limit = Duration::from_millis(self.plan.cutover.max_pause_ms);
        let over = || Ok(began.elapsed() > limit);
        match proof::drained_unless(migration, self.stop, over).await? {
            Some(_) => Ok(began.elapsed()),
            None => Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "within cutover.max_pause_ms ({}) the target did not get all that was written",
                    limit.as_millis()
                ),
            )
            .hint("allow a longer pause, or choose an hour with fewer writes")),
        }
    }

    fn phase(&self, phase: Phase) {
        let noted = Store::open(&self.home).and_then(|mut s| s.enter_phase(phase, unix_ms()));
        if let Err(e) = noted {
            tracing::warn!("{e}");
        }
    }
}

fn too_long(pause: Duration) -> Error {
    Error::new(
        ErrorKind::Refused,
        format!(
            "the writers were paused for {} ms, which is all that cutover.max_pause_ms allows",
            pause.as_millis()
        ),
    )
    .hint("rehearse with --dry-run to see what takes so long, or allow a longer pause")
}

fn still_writing(patience: Duration) -> Error {
    Error::new(
        ErrorKind::Refused,
        format!("after {} s the writers still write", patience.as_secs()),
    )
    .hint("stop them, then run the same command again; cutover.wait_s is how long it waits")
}

fn writes(now: &Answer) -> u64 {
    now.shards.iter().map(|s| s.writes).sum()
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}
