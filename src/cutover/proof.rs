//! The proof that both sides are equal: everything while writers write, and what they have written since while they wait.

use crate::cutover::migration::Migration;
use crate::cutover::pass::Pass;
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::control::orders::Ask;
use crate::types::DbIndex;
use crate::verify::{self, Live};
use std::time::{Duration, Instant};

/// Rounds of comparing what has changed before the writers are frozen.
const ROUNDS: u32 = 20;
/// A round as quick as this is quick enough.
const QUICK: Duration = Duration::from_millis(100);

/// What was prepared while the writers still wrote.
pub struct Ready {
    pub live: Option<Live>,
    /// Keys still to be compared.
    pub left: Vec<(DbIndex, Vec<u8>)>,
    /// How long the last comparison of what had changed has taken.
    pub compare: Duration,
}

impl Pass<'_> {
    /// Compares everything, then what was written meanwhile, until that is quickly done.
    pub(super) async fn warm_up(&self, migration: &mut Migration, scan: bool) -> Result<Ready> {
        migration.ask(Ask::Record).await?;
        self.compare(migration, false, false).await?;
        if scan {
            // The sweep after the freeze compares everything anyway.
            return Ok(Ready {
                live: None,
                left: Vec::new(),
                compare: Duration::ZERO,
            });
        }
        let options = self.verify_options(false);
        let mut live = Live::open(self.job.clone(), &options, self.stop.clone()).await?;
        live.warm().await?;
        let (mut left, mut before) = (Vec::new(), None);
        for _ in 0..ROUNDS {
            self.go_on()?;
            let written = migration.ask(Ask::Take).await?;
            if written.more {
                self.compare(migration, true, false).await?;
                continue;
            }
            let mut names = written.names();
            names.append(&mut left);
            let began = Instant::now();
            let apart = live.differing(names).await?;
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
        Ok(Ready {
            live: Some(live),
            left,
            compare: before.unwrap_or_default(),
        })
    }

    fn verify_options(&self, incremental: bool) -> verify::Options {
        verify::Options {
            work_dir: self.dir(),
            incremental,
            ..verify::Options::default()
        }
    }

    /// `standing`: nothing is written, so what cannot be proven is a difference.
    async fn compare(
        &self,
        migration: &mut Migration,
        incremental: bool,
        standing: bool,
    ) -> Result<()> {
        let options = self.verify_options(incremental);
        let found = verify::run(self.job.clone(), options, self.stop.clone()).await?;
        let all = [&found.missing, &found.extra, &found.different];
        let mut apart: Vec<_> = all.into_iter().flatten().cloned().collect();
        if standing {
            apart.extend(found.unprovable.iter().cloned());
        }
        if !apart.is_empty() {
            return Err(refusal(migration, &apart).await);
        }
        if let Some(name) = found.functions_different.first() {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("the library of functions {name} differs"),
            )
            .hint("load it on the target (FUNCTION LOAD), then run the same command again"));
        }
        Ok(())
    }

    /// Compares what was written since it was compared last; returns how many keys.
    pub(super) async fn prove(
        &self,
        migration: &mut Migration,
        ready: &mut Ready,
    ) -> Result<usize> {
        let Some(live) = &mut ready.live else {
            // Of a scan, the last sweep was this proof.
            return Ok(0);
        };
        let written = migration.ask(Ask::Take).await?;
        if written.more {
            self.compare(migration, true, true).await?;
        }
        let mut names = written.names();
        names.append(&mut ready.left);
        let keys = names.len();
        let apart = live.differing(names).await?;
        match apart.is_empty() {
            true => Ok(keys),
            false => Err(refusal(migration, &apart).await),
        }
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
