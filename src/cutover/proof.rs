//! The proof that both sides are equal: everything while writers write, and what they have written since while they wait.

use crate::cutover::migration::Migration;
use crate::cutover::options::go_on;
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::control::orders::{Answer, Ask};
use crate::plan::Job;
use crate::store::{SWEEPS, Store};
use crate::task::Shutdown;
use crate::types::DbIndex;
use crate::verify::{self, Live};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Rounds of comparing what has changed before the writers are frozen.
const ROUNDS: u32 = 20;
/// After so many sweeps in vain, what changes untold is taken to go on.
const SWEEPS_TRIED: u64 = 2;
/// How often it is looked how a scan would drain.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Words of reasons that no sweep takes away.
const HOPELESS: [&str; 4] = [
    "sends no keyspace notifications",
    "does not tell its command statistics",
    "read from replicas",
    "is a replica",
];
/// How often a migration is asked whether it has drained.
const POLL: Duration = Duration::from_millis(1);
/// A round as quick as this is quick enough: a few round trips, also at 40 ms.
const QUICK: Duration = Duration::from_millis(200);
/// A comparison may stand still for so long at least: a key may have to be read again for a while.
const STANDSTILL: Duration = Duration::from_secs(60);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// The proof of one pass, prepared while the writers still write.
pub struct Proof<'a> {
    job: &'a Job,
    /// The state of the migration that is proven.
    dir: PathBuf,
    stop: &'a Shutdown,
    /// How long a comparison may stand still.
    patience: Duration,
    /// Absent before the warm-up, and of a scan.
    live: Option<Live>,
    /// Keys still to be compared.
    left: Vec<(DbIndex, Vec<u8>)>,
    /// How long the last comparison of what had changed has taken.
    compare: Duration,
}

/// What a warm-up has left to do.
pub struct Warm {
    /// Keys still to be compared.
    pub left: usize,
    /// What the pause of a scan will contain.
    pub pause: Option<String>,
    /// How long the last comparison of what had changed has taken.
    pub compare: Duration,
}

/// How a scan would drain.
pub struct Scanned {
    /// It needs to look only at what has changed since its last sweep.
    pub by_changes: bool,
    /// Why it needs a whole sweep.
    why: String,
    /// How long the last one took.
    sweep: Duration,
    sweeps: u64,
}

impl Scanned {
    /// How long a drain by sweeps will take: the first may find what a second has to find gone.
    pub fn predicted(&self) -> Duration {
        2 * self.sweep
    }

    /// What a person is told before the pause.
    pub fn told(&self) -> String {
        match self.by_changes {
            true => "the pause compares only what has changed since the last round".into(),
            false => format!(
                "as it stands, the pause needs a whole sweep of both sides, about {} ms: {}",
                self.predicted().as_millis(),
                self.why
            ),
        }
    }

    /// Whether more sweeps change nothing about that.
    fn is_hopeless(&self) -> bool {
        HOPELESS.iter().any(|why| self.why.contains(why))
    }
}

impl Proof<'_> {
    /// `wait_s`: how long the plan waits for anything.
    pub fn new<'a>(job: &'a Job, dir: PathBuf, stop: &'a Shutdown, wait_s: u64) -> Proof<'a> {
        Proof {
            job,
            dir,
            stop,
            patience: Duration::from_secs(wait_s).max(STANDSTILL),
            live: None,
            left: Vec::new(),
            compare: Duration::ZERO,
        }
    }

    /// How long the last comparison of what had changed has taken.
    pub fn compare(&self) -> Duration {
        self.compare
    }

    /// Whether keys are compared as they are written; of a scan, a whole sweep is the proof.
    pub fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Compares everything, then what was written meanwhile, until that is quickly done.
    pub async fn warm_up(&mut self, migration: &mut Migration, scan: bool) -> Result<Warm> {
        migration.ask(Ask::Record).await?;
        if scan {
            self.compare_all(migration, false, false).await?;
            self.rounds(migration).await?;
        } else {
            // The connections of the rounds are opened meanwhile.
            let options = self.verify_options(false);
            let opened = async {
                let mut live = Live::open(self.job.clone(), &options, self.stop.clone()).await?;
                live.warm().await?;
                Ok(live)
            };
            let compared = self.compare_all(migration, false, false);
            let (live, ()) = tokio::try_join!(opened, compared)?;
            self.follow(migration, live).await?;
        }
        Ok(Warm {
            left: self.left.len(),
            pause: scan.then(|| self.scanned().map(|s| s.told())).transpose()?,
            compare: self.compare,
        })
    }

    /// Has a scan compare what was told to have changed, round by round, until only a little is left for the pause. Where
    /// it cannot do without a whole sweep, that is left for the pause too.
    async fn rounds(&mut self, migration: &mut Migration) -> Result<()> {
        let (first, mut before) = (self.scanned()?, None);
        for _ in 0..ROUNDS {
            let began = Instant::now();
            let mut looked = Instant::now();
            let patience = self.patience;
            let in_vain = || {
                if began.elapsed() > patience && self.scanned()?.by_changes {
                    return Err(Error::new(
                        ErrorKind::Refused,
                        format!(
                            "the changes of the source could not be brought over and found equal within {} s",
                            patience.as_secs()
                        ),
                    )
                    .hint("`keyferry verify PLAN` names the keys that differ; `keyferry status` says whether the target takes writes"));
                }
                if looked.elapsed() < LOOK_EVERY {
                    return Ok(false);
                }
                looked = Instant::now();
                self.is_swept_in_vain(&first)
            };
            if drained_unless(migration, self.stop, in_vain)
                .await?
                .is_none()
            {
                break;
            }
            let took = began.elapsed();
            self.compare = took;
            let enough = took < QUICK || before.is_some_and(|b: Duration| took * 10 > b * 7);
            before = Some(took);
            if enough {
                break;
            }
        }
        migration.ask(Ask::Follow).await?;
        Ok(())
    }

    /// Whether a sweep has ended of which no proof by changes can follow.
    fn is_swept_in_vain(&self, first: &Scanned) -> Result<bool> {
        let now = self.scanned()?;
        let swept = now.sweeps.saturating_sub(first.sweeps);
        let given_up = swept >= SWEEPS_TRIED || now.is_hopeless();
        Ok(!now.by_changes && given_up)
    }

    /// How a scan would drain now.
    pub fn scanned(&self) -> Result<Scanned> {
        let store = Store::open_readonly(&self.dir)?;
        let last = store.map_or(Ok(None), |s| s.json(SWEEPS))?;
        let last = last.unwrap_or_default();
        Ok(Scanned {
            by_changes: last["by_changes"] == true,
            why: last["why"]
                .as_str()
                .unwrap_or("no sweep has ended yet")
                .into(),
            sweep: Duration::from_millis(last["took_ms"].as_u64().unwrap_or(0)),
            sweeps: last["sweeps"].as_u64().unwrap_or(0),
        })
    }

    /// Compares what is written, round by round.
    async fn follow(&mut self, migration: &mut Migration, mut live: Live) -> Result<()> {
        let (mut left, mut before) = (Vec::new(), None);
        for _ in 0..ROUNDS {
            go_on(self.stop)?;
            let written = migration.ask(Ask::Take).await?;
            if written.more {
                self.compare_all(migration, true, false).await?;
                continue;
            }
            let mut names = written.names();
            names.append(&mut left);
            let began = Instant::now();
            let compared = tokio::time::timeout(self.patience, live.differing(names));
            let apart = compared.await.unwrap_or_else(|_| {
                Err(Error::new(
                    ErrorKind::Refused,
                    format!(
                        "the keys that were written meanwhile could not be compared within {} s",
                        self.patience.as_secs()
                    ),
                )
                .hint("choose an hour with fewer writes, or raise cutover.wait_s"))
            })?;
            let took = began.elapsed();
            for key in apart {
                match key.reason.as_str() {
                    // It is written so often that only a standing source can tell.
                    verify::UNPROVABLE => left.push((DbIndex(key.db), key.name)),
                    _ => return Err(refusal(migration, std::slice::from_ref(&key)).await),
                }
            }
            let enough = took < QUICK || before.is_some_and(|b: Duration| took * 10 > b * 7);
            before = Some(took);
            if enough {
                break;
            }
        }
        self.live = Some(live);
        self.left = left;
        self.compare = before.unwrap_or_default();
        Ok(())
    }

    /// Returns when a comparison has not moved for as long as the plan waits for anything.
    async fn stands_still(&self, gauge: &verify::Gauge) -> Error {
        let (mut seen, mut since) = (gauge.done.load(Relaxed), Instant::now());
        loop {
            tokio::time::sleep(LOOK).await;
            let now = gauge.done.load(Relaxed);
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
            if since.elapsed() > self.patience {
                return Error::new(
                    ErrorKind::Refused,
                    format!(
                        "the comparison has stood still for {} s, at {now} of {} keys",
                        self.patience.as_secs(),
                        gauge.total.load(Relaxed)
                    ),
                )
                .hint("`keyferry status` says whether the migration goes on, `keyferry verify` what it waits for; then run the same command again");
            }
        }
    }

    fn verify_options(&self, incremental: bool) -> verify::Options {
        verify::Options {
            work_dir: self.dir.clone(),
            incremental,
            ..verify::Options::default()
        }
    }

    /// `standing`: nothing is written, so what cannot be proven is a difference.
    async fn compare_all(
        &self,
        migration: &mut Migration,
        incremental: bool,
        standing: bool,
    ) -> Result<()> {
        let options = self.verify_options(incremental);
        let gauge = options.gauge.clone();
        let found = tokio::select! {
            found = verify::run(self.job.clone(), options, self.stop.clone()) => found?,
            e = self.stands_still(&gauge) => return Err(e),
        };
        let all = [&found.missing, &found.extra, &found.different];
        let mut apart: Vec<_> = all.into_iter().flatten().cloned().collect();
        if standing {
            apart.extend(found.unprovable.iter().cloned());
        }
        if !apart.is_empty() {
            return Err(refusal(migration, &apart).await);
        }
        if let Some(library) = found.functions_different.first() {
            // "name: missing on …", "name: extra on …"
            let hint = match library.contains(": extra on ") {
                true => {
                    "only the target has it: delete it there (FUNCTION DELETE), or load it at the source if it is wanted; then run the same command again"
                }
                false => {
                    "`keyferry verify PLAN --repair` writes it again; or load it on the target (FUNCTION LOAD); then run the same command again"
                }
            };
            return Err(Error::new(
                ErrorKind::Refused,
                format!("libraries of functions differ: {library}"),
            )
            .hint(hint));
        }
        if let Some(index) = found.indexes.iter().find(|i| i.differs()) {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "the search index {} is {} at the target",
                    index.name, index.state
                ),
            )
            .hint("start `keyferry migrate` again, which makes missing indexes, or make it by hand; with \"indexes\": \"skip\" indexes are not compared; then run the same command again"));
        }
        Ok(())
    }

    /// Compares what was written since it was compared last; returns how many keys.
    pub async fn prove(&mut self, migration: &mut Migration) -> Result<usize> {
        if self.live.is_none() {
            // Of a scan, the last sweep was this proof.
            return Ok(0);
        }
        let written = migration.ask(Ask::Take).await?;
        if written.more {
            self.compare_all(migration, true, true).await?;
        }
        let Some(live) = &mut self.live else {
            return Ok(0);
        };
        let mut names = written.names();
        names.append(&mut self.left);
        let keys = names.len();
        let apart = live.differing(names).await?;
        match apart.is_empty() {
            true => Ok(keys),
            false => Err(refusal(migration, &apart).await),
        }
    }
}

/// Waits until everything that the source had written when this was asked is at the target.
pub async fn drained(migration: &mut Migration, stop: &Shutdown) -> Result<Answer> {
    loop {
        let drained = drained_unless(migration, stop, || Ok(false)).await?;
        if let Some(now) = drained {
            return Ok(now);
        }
    }
}

/// The same, or `None` as soon as `given_up` says so. No answer is left behind for the next question.
pub async fn drained_unless(
    migration: &mut Migration,
    stop: &Shutdown,
    mut given_up: impl FnMut() -> Result<bool>,
) -> Result<Option<Answer>> {
    migration.ask(Ask::Drain).await?;
    loop {
        go_on(stop)?;
        let now = migration.ask(Ask::State).await?;
        if !now.shards.is_empty() && now.shards.iter().all(|s| s.drained) {
            return Ok(Some(now));
        }
        if given_up()? {
            return Ok(None);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Why the sides are apart: of a migration that has ended, nothing else is to be expected.
async fn refusal(migration: &mut Migration, keys: &[verify::KeyReport]) -> Error {
    match migration.ask(Ask::State).await {
        Err(ended) => ended,
        Ok(_) => differs(keys),
    }
}

fn differs(keys: &[verify::KeyReport]) -> Error {
    let shown: Vec<String> = (keys.iter().take(5))
        .map(|k| format!("{:?} ({})", k.key, k.reason))
        .collect();
    Error::new(
        ErrorKind::Refused,
        format!(
            "both sides differ in {} keys: {}",
            keys.len(),
            shown.join(", ")
        ),
    )
    .hint("`keyferry verify PLAN --repair` writes them again; then run the same command again")
}
