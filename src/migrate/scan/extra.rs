//! Mode "scan": what only the target holds goes, unless it is too much to be true.

use crate::error::Result;
use crate::migrate::load::loss_guard::{self, FEW};
use crate::migrate::scan::ahead::Reading;
use crate::migrate::scan::sweep::{MARK, Sweeper};
use crate::source::keys::list::Page;
use crate::types::DbIndex;

/// Keys of one database that only the target holds.
type Extra = (DbIndex, Vec<Vec<u8>>);

/// How many of some keys come from the source, and which of these it does not have (any more).
type Gone = (u64, Vec<Vec<u8>>);

impl Sweeper<'_> {
    /// Removes what only the target holds; returns how many keys, or `None` when a cutover is served sooner without it.
    pub(super) fn sweep_extra(&mut self) -> Result<Option<u64>> {
        let mut found = 0;
        let Some((many, extra)) = self.find_extra()? else {
            return Ok(None);
        };
        if !many {
            for (db, keys) in extra {
                found += self.again(|me| me.remove_extra(db, &keys))?;
            }
            return Ok(Some(found));
        }
        self.walk(
            &self.target.side.clone(),
            None,
            |me, page| me.read_gone(page),
            |me, page, read| {
                let gone = match read {
                    Ok((_, gone)) => gone,
                    Err(e) => {
                        me.failed_ahead(e)?;
                        page.keys.clone()
                    }
                };
                if !gone.is_empty() {
                    // It may have come since: what is removed was just asked for.
                    found += me.again(|me| me.remove_extra(page.db, &gone))?;
                }
                me.write_told(me.at_once())?;
                Ok(true)
            },
        )?;
        Ok(Some(found))
    }

    /// Counts what only the target holds, and names it unless it is many; stops the run when it is too much to be true.
    /// `None` when a cutover is served sooner without it.
    pub(super) fn find_extra(&mut self) -> Result<Option<(bool, Vec<Extra>)>> {
        let (mut extra, mut lost, mut of) = (Vec::new(), 0, 0);
        let whole = self.walk(
            &self.target.side.clone(),
            None,
            |me, page| me.read_gone(page),
            |me, page, read| {
                if me.is_needless() {
                    return Ok(false);
                }
                let (ours, gone) = match read {
                    Ok(read) => read,
                    Err(e) => {
                        me.failed_ahead(e)?;
                        me.again(|me| me.extra(page.db, &page.keys))?
                    }
                };
                lost += gone.len() as u64;
                of += ours;
                if lost < FEW && !gone.is_empty() {
                    extra.push((page.db, gone));
                }
                Ok(true)
            },
        )?;
        if !whole {
            return Ok(None);
        }
        let percent = self.ctx.shared.job.max_loss_percent;
        let guarded = self.guarded && !self.accept_loss;
        if guarded && loss_guard::is_loss(lost, of, percent) {
            return Err(loss_guard::refused(&format!(
                "the source {} has lost data or is another one: of {of} keys that the target got from it, it does not hold {lost} any more",
                self.source.side.endpoint.redacted_url(),
            )));
        }
        Ok(Some((lost >= FEW, extra)))
    }

    /// Begins to ask which of a page's keys the source does not have.
    fn read_gone(&mut self, page: &Page) -> Result<Reading<Gone>> {
        let keys = self.of_ours(page.db, &page.keys);
        self.pace(keys.len())?;
        let ours = keys.len() as u64;
        let keys = keys.into_iter().map(<[u8]>::to_vec).collect();
        let (pool, job, db) = (self.ahead.clone(), self.ctx.shared.job.clone(), page.db);
        Ok(Box::pin(async move {
            Ok((ours, pool.gone(job, db, keys).await?))
        }))
    }

    /// Those of some keys of the target that come from the source.
    fn of_ours<'k>(&self, db: DbIndex, keys: &'k [Vec<u8>]) -> Vec<&'k [u8]> {
        let job = &self.ctx.shared.job;
        (keys.iter().map(Vec::as_slice))
            .filter(|k| job.filter.accepts(k) && !self.is_own(db, k))
            .collect()
    }

    /// Of some keys of the target, how many are ours, and which of those the source does not have (any more).
    fn extra(&mut self, db: DbIndex, keys: &[Vec<u8>]) -> Result<Gone> {
        let runtime = self.ctx.shared.runtime.clone();
        let job = self.ctx.shared.job.clone();
        let keys = self.of_ours(db, keys);
        self.pace(keys.len())?;
        let ours = keys.len() as u64;
        let gone = runtime.block_on(self.source.lacks(&job, db, keys))?;
        Ok((ours, gone.into_iter().map(<[u8]>::to_vec).collect()))
    }

    /// Removes those of some keys that the source does not have.
    fn remove_extra(&mut self, db: DbIndex, keys: &[Vec<u8>]) -> Result<u64> {
        let (_, gone) = self.extra(db, keys)?;
        if self.unproven {
            // Another may have answered than the one that was counted: the next sweep counts again.
            return Ok(0);
        }
        let ctx = self.ctx.clone();
        for name in gone
            .iter()
            .filter_map(|key| ctx.job().renames.to_target(key))
        {
            if let Some(pass) = self.core.door().admit_removal(db, &name)? {
                self.core.writer().remove(pass, &name, MARK)?;
            }
        }
        self.resolve()?;
        Ok(gone.len() as u64)
    }
}
