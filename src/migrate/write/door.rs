//! The door to the target: whether a key may be written, and in which database.
//!
//! Asked for everything that is written: keys of the snapshot, commands by themselves and in transactions, the other
//! database of COPY and MOVE, flushes, heals, what the stream does not tell, released expiries, and mode "scan".
//! Invariant: each method of [`TargetWriter`](crate::migrate::write::target_writer::TargetWriter) that writes a key
//! wants a [`Pass`], and only this file makes one.

use crate::error::{ErrorKind, Result};
use crate::migrate::context::ShardContext;
use crate::migrate::slots::owned::OwnedSlots;
use crate::migrate::write::losses;
use crate::net::{self, Tries, server};
use crate::plan::OnExisting;
use crate::target::{Database, KnownDatabases};
use crate::types::{DbIndex, Slot};
use std::rc::Rc;

/// Leave to write a key to a database of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pass(Database);

impl Pass {
    pub fn database(self) -> Database {
        self.0
    }

    /// The target's database.
    pub fn db(self) -> DbIndex {
        self.0.index()
    }
}

/// Leave to write over one of the target's own keys; [`Door::claim`] makes a [`Pass`] of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Replacement(Database);

impl Replacement {
    /// The target's database.
    pub fn db(self) -> DbIndex {
        self.0.index()
    }
}

/// Leave to send a flush as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlushPass(Option<Database>);

impl FlushPass {
    /// The target's database; `None` for all of them.
    pub fn database(self) -> Option<Database> {
        self.0
    }
}

/// What becomes of a flush of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// All that goes is ours.
    Send(FlushPass),
    /// Some of it may not be ours: the keys of this database of the target, or of all, are compared with the source.
    Compare(Option<DbIndex>),
    /// Nothing of ours is there.
    Skip,
}

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Yes(Pass),
    /// The target's own key, which the source's replaces as a whole where it has one.
    Replace(Replacement),
    No(Barred),
}

/// Why a key is not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Barred {
    /// The plan leaves its database out.
    Database,
    /// Its slot is another shard's, or on its way there.
    Slot,
    /// The plan's filter leaves it out by its name.
    Filter,
    /// The target's own key, which is kept.
    Own,
    /// The target lacks this database of its own.
    NoDatabase(DbIndex),
}

impl Barred {
    /// The counter of what is left out for this reason.
    pub fn counter(self) -> &'static str {
        match self {
            Barred::Database => "skipped.database",
            Barred::Slot => "left_to_adoption",
            Barred::Filter => "skipped.filter",
            Barred::Own => "skipped.existing",
            Barred::NoDatabase(_) => losses::DATABASE,
        }
    }
}

/// The one place that decides what may be written.
pub(crate) struct Door {
    ctx: Rc<ShardContext>,
    slots: OwnedSlots,
    databases: KnownDatabases,
}

impl Door {
    pub fn new(ctx: Rc<ShardContext>, databases: KnownDatabases) -> Door {
        Door {
            ctx,
            slots: OwnedSlots::default(),
            databases,
        }
    }

    pub fn slots(&self) -> &OwnedSlots {
        &self.slots
    }

    pub fn slots_mut(&mut self) -> &mut OwnedSlots {
        &mut self.slots
    }

    /// What becomes of a key of the source's database `db`, by the name that it gets at the target.
    pub fn admit(&mut self, db: DbIndex, name: &[u8]) -> Result<Admission> {
        let job = &self.ctx.shared.job;
        let Some(to) = job.databases.map(db) else {
            return Ok(Admission::No(Barred::Database));
        };
        if !self.slots.may_write(&self.ctx, name) {
            return Ok(Admission::No(Barred::Slot));
        }
        if !job.filter.is_empty() && !self.ctx.accepts(name) {
            return Ok(Admission::No(Barred::Filter));
        }
        let own = self.ctx.shared.own.has(to, name);
        if own && !self.ctx.shared.own.may_be_replaced() {
            return Ok(Admission::No(Barred::Own));
        }
        Ok(match self.database(to)? {
            None => Admission::No(Barred::NoDatabase(to)),
            Some(db) if own => Admission::Replace(Replacement(db)),
            Some(db) => Admission::Yes(Pass(db)),
        })
    }

    /// Notes that a key of the source takes the place of one of the target's own, before it is written.
    pub fn claim(&self, replacement: Replacement, name: &[u8]) -> Result<Pass> {
        self.ctx.shared.own.replace(replacement.db(), name)?;
        Ok(Pass(replacement.0))
    }

    /// A key of the target that an earlier write of ours has brought and that is to go: keys to be removed are listed
    /// from the target, so there is no source database to ask for.
    pub fn admit_removal(&mut self, to: DbIndex, name: &[u8]) -> Result<Option<Pass>> {
        if self.ctx.shared.own.has(to, name) {
            return Ok(None);
        }
        Ok(self.database(to)?.map(Pass))
    }

    /// What becomes of FLUSHDB in the source's database `db`, or of FLUSHALL.
    pub fn admit_flush(&mut self, all: bool, db: DbIndex) -> Result<Flush> {
        let job = &self.ctx.shared.job;
        // In a cluster, a flush of one master concerns its own slots only.
        let ours = self.ctx.shared.ownership.is_none()
            && job.databases.is_identity()
            && job.filter.is_empty()
            && job.on_existing == OnExisting::Fail;
        let flushed = match all {
            true => None,
            // What the plan leaves out, or the target does not have, holds nothing of ours.
            false => match job.databases.map(db) {
                Some(to) => match self.database(to)? {
                    Some(db) => Some(db),
                    None => return Ok(Flush::Skip),
                },
                None => return Ok(Flush::Skip),
            },
        };
        Ok(match ours {
            true => Flush::Send(FlushPass(flushed)),
            false => Flush::Compare(flushed.map(Database::index)),
        })
    }

    /// Whether the target has a database; it is asked once.
    pub fn has_database(&mut self, db: DbIndex) -> Result<bool> {
        Ok(self.database(db)?.is_some())
    }

    fn database(&mut self, db: DbIndex) -> Result<Option<Database>> {
        if let Some(known) = self.databases.get(db) {
            return Ok(known);
        }
        let there = ask(&self.ctx, db)?;
        self.databases.learn(db, there);
        Ok(self.databases.get(db).flatten())
    }

    /// The slot of a command's keys is on its way: whoever gets it copies it.
    pub fn suspect(&self, name: &[u8]) {
        if let Some(ownership) = &self.ctx.shared.ownership {
            ownership.suspect(Slot::of(&self.ctx.source_name(name)));
        }
        self.ctx.count("left_to_adoption");
    }
}

/// Whether a node of the target has a database.
fn ask(ctx: &ShardContext, db: DbIndex) -> Result<bool> {
    let endpoint = &ctx.job().target;
    let mut tries = Tries::new(ctx.shared.run.patience);
    loop {
        let asked = ctx.shared.runtime.block_on(async {
            let (layout, _) = server::layout(endpoint).await?;
            let address = layout.masters.first().map(|m| m.address.clone());
            let address = address.unwrap_or_else(|| endpoint.address());
            net::control(endpoint, &address).await?.select(db).await
        });
        let e = match asked {
            Ok(()) => return Ok(true),
            Err(e) if e.kind() == ErrorKind::Refused => return Ok(false),
            Err(e) => e,
        };
        let what = "asking the target for its databases";
        (ctx.shared.runtime).block_on(tries.again(e, what, &ctx.shared.stop))?;
    }
}

#[cfg(test)]
mod tests;
