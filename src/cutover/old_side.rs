//! The side that the clients have left: kept closed, watched, and what was written to it all the same.

use crate::cutover::late::Late;
use crate::cutover::migration::{self, Migration};
use crate::cutover::place::Where;
use crate::cutover::side::{Closed, Freezer};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::control::orders::Ask;
use crate::plan::{Job, Plan, Source};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often the migration is asked for the last time.
const POLL: Duration = Duration::from_millis(10);
/// How long it may take to look at the last of the old side.
const LAST_LOOK: Duration = Duration::from_secs(10);

/// The old side, from the switch on.
pub struct OldSide {
    home: PathBuf,
    /// Absent where it does not answer, and in a plan from a file.
    freezer: Option<Freezer>,
    /// The migration that holds still, as long as it has to tell what comes late.
    forth: Option<Migration>,
    /// Why it could not be looked at the last time.
    unseen: Option<String>,
    late: Late,
}

impl OldSide {
    /// Closes it where that was cut off; `forth` is the migration that has brought the clients' data, if it still runs.
    pub async fn open(
        plan: &Plan,
        job: &Job,
        home: &Path,
        forth: Option<Migration>,
    ) -> Result<OldSide> {
        let mut late = Late::load(home)?;
        let freezer = match &job.source {
            Source::Server { endpoint, .. } => {
                Freezer::open(endpoint, &plan.cutover, "source", home.to_owned()).await
            }
            Source::Rdb { .. } => Err(Error::new(ErrorKind::Plan, "a file has no writers")),
        };
        let mut unseen = None;
        let mut freezer = match freezer {
            Ok(freezer) => Some(freezer),
            Err(e) => {
                tracing::warn!("the old side cannot be looked at: {e}");
                unseen = Some(e.chain());
                None
            }
        };
        if let Some(freezer) = &mut freezer {
            freezer.close_again().await?;
            if forth.is_none() && is_watched(freezer) {
                let calls = freezer.write_calls().await?;
                if late.calls.is_none() || calls != late.calls {
                    late.may_be("nobody watched it since the cutover was cut off".into());
                }
            }
            if freezer.closed() == Some(Closed::ByRights)
                && let Some(why) = freezer.keep_closed().await?
            {
                late.may_be(why);
            }
        }
        Ok(OldSide {
            home: home.to_owned(),
            freezer,
            forth,
            unseen,
            late,
        })
    }

    pub fn closed(&self) -> Option<Closed> {
        self.freezer.as_ref().and_then(Freezer::closed)
    }

    pub fn late(&self) -> &Late {
        &self.late
    }

    /// Its writers; an error where it does not answer.
    pub fn answering(&mut self) -> Result<&mut Freezer> {
        self.freezer.as_mut().ok_or_else(|| {
            Error::new(
                ErrorKind::Connection,
                "the source does not answer, so nobody can go back to it",
            )
            .hint("bring it back, then run the same command again")
        })
    }

    /// Why the way back cannot be opened yet; `None` when it may write here.
    pub fn keeps_out_the_way_back(&self) -> Option<&'static str> {
        match self.closed() {
            Some(Closed::ByPause) => Some(
                "the old side is kept closed by a pause, which keeps us out as well: `keyferry rollback` ends it and brings everything back",
            ),
            Some(Closed::Watched) => Some(
                "the old side cannot be closed, so until the commit it is watched, and nothing is written to it: `keyferry rollback` brings everything back",
            ),
            _ => None,
        }
    }

    /// Looks at it once.
    pub async fn look(&mut self) -> Result<()> {
        let before = self.late.clone();
        if let Some(freezer) = &mut self.freezer {
            let kept = freezer.keep_closed().await;
            self.unseen = kept.as_ref().err().map(Error::chain);
            match kept {
                Ok(None) => {}
                // Where the stream is still read, it tells what was written.
                Ok(Some(why)) if self.forth.is_none() => self.late.may_be(why),
                Ok(Some(why)) => tracing::warn!("the old side: {why}"),
                Err(e) => tracing::warn!("the old side cannot be looked at: {e}"),
            }
        }
        self.count_calls().await;
        if let Some(forth) = &mut self.forth {
            match forth.ask(Ask::State).await {
                Ok(now) => self.late.take(&now),
                Err(e) => {
                    self.late.may_be(e.chain());
                    self.forth = None;
                }
            }
        }
        match before == self.late {
            true => Ok(()),
            false => self.late.save(&self.home),
        }
    }

    /// Where nobody is kept out, the old side's own count of commands that write tells what no migration has seen.
    async fn count_calls(&mut self) {
        let Some(freezer) = self.freezer.as_mut().filter(|f| is_watched(f)) else {
            return;
        };
        match freezer.write_calls().await {
            Ok(Some(calls)) => {
                let more = self.late.calls.is_some_and(|before| calls != before);
                if more && self.late.writes == 0 {
                    self.late.may_be("it counts more commands that write than when it was left (INFO commandstats)".into());
                }
                self.late.calls = Some(calls);
            }
            Ok(None) => {}
            Err(e) => tracing::debug!("{e}"),
        }
    }

    /// Looks at all that was written until now, and has the migration end: from now on nobody reads it.
    pub async fn end_forth(&mut self) -> Result<()> {
        self.count_calls().await;
        if let Some(why) = self.unseen.take() {
            self.late.may_be(format!(
                "it did not answer when it was looked at last: {why}"
            ));
        }
        let Some(mut forth) = self.forth.take() else {
            return self.late.save(&self.home);
        };
        match tokio::time::timeout(LAST_LOOK, forth.fence_again(POLL)).await {
            Ok(Ok(now)) => {
                self.late.take(&now);
                if now.blind && self.closed() == Some(Closed::Watched) {
                    self.late.may_be("it does not tell whether anybody writes to it (INFO commandstats, INFO persistence)".into());
                }
            }
            Ok(Err(e)) => self.late.may_be(e.chain()),
            Err(_) => self.late.may_be(format!(
                "it did not tell within {} s where it stands",
                LAST_LOOK.as_secs()
            )),
        }
        self.late.save(&self.home)?;
        forth.end().await
    }
}

/// Nobody is kept out of it, or a server that takes its place would not be.
fn is_watched(freezer: &Freezer) -> bool {
    matches!(freezer.closed(), Some(Closed::Watched | Closed::ByPause))
}

/// What a migration that holds still since a switch that was cut off has seen; it is ended.
pub async fn last_words(place: &Where, home: &Path) -> Result<()> {
    let mut late = Late::load(home)?;
    match Migration::connect(place).await {
        Ok(mut forth) => match tokio::time::timeout(LAST_LOOK, forth.fence_again(POLL)).await {
            Ok(Ok(now)) => late.take(&now),
            _ => late.may_be("the migration did not tell what was written since the freeze".into()),
        },
        Err(_) => late.may_be("no migration watched it since the switch was cut off".into()),
    }
    late.save(home)?;
    migration::end(place).await
}
