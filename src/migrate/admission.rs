//! The door to the target: whether a key may be written, and in which database.
//!
//! Asked for everything that is written: keys of the snapshot, commands by themselves and in transactions, the other
//! database of COPY and MOVE, flushes, heals, what the stream does not tell, released expiries, and mode "scan".
//! Invariant: [`Pipe::batch`](crate::target::Pipe::batch) takes a [`Database`] only, and one comes from here.

use crate::error::{ErrorKind, Result};
use crate::migrate::bulk::no_database;
use crate::migrate::losses;
use crate::migrate::pump::Pump;
use crate::net;
use crate::target::Database;
use crate::types::{DbIndex, Slot};

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    Yes(Database),
    /// The target's own key, which the source's replaces as a whole where it has one.
    Replace(Database),
    No(Barred),
}

/// Why a key is not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Barred {
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

impl Pump {
    /// What becomes of a key of the source's database `db`, by the name that it gets at the target.
    pub(super) fn admission(&mut self, db: DbIndex, name: &[u8]) -> Result<Admission> {
        let job = &self.shared.job;
        let Some(to) = job.databases.map(db) else {
            return Ok(Admission::No(Barred::Database));
        };
        if !self.adopting && !self.owns(name) {
            return Ok(Admission::No(Barred::Slot));
        }
        if !job.filter.is_empty() && !self.accepts(name) {
            return Ok(Admission::No(Barred::Filter));
        }
        let own = self.shared.own.has(to, name);
        if own && !self.shared.own.may_be_replaced() {
            return Ok(Admission::No(Barred::Own));
        }
        Ok(match self.database(to)? {
            None => Admission::No(Barred::NoDatabase(to)),
            Some(db) if own => Admission::Replace(db),
            Some(db) => Admission::Yes(db),
        })
    }

    /// The target's database `db`; `None` where it has none of that number. It is asked once.
    pub(super) fn database(&mut self, db: DbIndex) -> Result<Option<Database>> {
        if let Some(known) = self.pipe.database(db) {
            return Ok(known);
        }
        let endpoint = self.pipe.endpoint().clone();
        let there = self.asked("asking the target for its databases", |me| {
            let ask = async {
                let mut conn = net::connect(&endpoint, me.pipe.address(0)).await?;
                conn.select(db).await
            };
            match me.shared.runtime.block_on(ask) {
                Ok(()) => Ok(true),
                Err(e) if e.kind() == ErrorKind::Refused => Ok(false),
                Err(e) => Err(e),
            }
        })?;
        self.pipe.learn_database(db, there);
        Ok(self.pipe.database(db).flatten())
    }

    /// A key that the target cannot hold for want of its database.
    pub(super) fn lose_for_want_of(
        &mut self,
        from: DbIndex,
        to: DbIndex,
        name: &[u8],
    ) -> Result<()> {
        self.lose(to, name, losses::DATABASE, &no_database(from))
    }

    /// The slot of a command's keys is on its way: whoever gets it copies it.
    pub(super) fn suspect(&mut self, name: &[u8]) {
        if let Some(ownership) = &self.shared.ownership {
            ownership.suspect(Slot::of(&self.source_name(name)));
        }
        self.count("left_to_adoption");
    }
}
