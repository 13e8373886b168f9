//! Mode "scan" without a sweep: all that was told since the last one is brought over and compared.
//!
//! A sweep that began on a [`Ground`] leaves every key as it was read then or later; what has changed since is told.
//! Invariant: whatever raises a doubt takes the ground away, and only a whole sweep gives another.

use crate::error::Result;
use crate::migrate::scan::ahead::Reading;
use crate::migrate::scan::copy::by_database;
use crate::migrate::scan::pool::Compared;
use crate::migrate::scan::sweep::Sweeper;
use crate::migrate::scan::told::{Begun, Caught, Drained, has_groups};
use crate::source::keys::events::Name;
use crate::source::keys::fact::Found;
use crate::source::keys::reader::pairs;
use crate::store::SWEEPS;
use crate::types::{DbIndex, unix_ms};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// Readings before keys that differ each time are left to the next round.
const TRIES: u32 = 3;
/// How often it is written down how far everything is over there.
const TELL_EVERY: Duration = Duration::from_secs(1);

impl Sweeper<'_> {
    /// Something may have changed untold: only a sweep can tell.
    pub(super) fn doubt(&mut self, why: &str) {
        if self.changes.ground.take().is_some() {
            tracing::info!("the changes that were told may not be all: {why}");
            let runtime = self.ctx.shared.runtime.clone();
            let _ = runtime.block_on(self.source.side.refresh());
            // Another server may have taken the source's place.
            self.source.reset();
            self.ahead.reset();
        }
        self.changes.why = why.to_owned();
    }

    /// Whether every change was told since the last sweep.
    pub(super) fn stands(&self) -> bool {
        let ground = self.changes.ground.as_ref();
        !self.unproven && ground.is_some_and(|g| self.hearing.holds(g))
    }

    /// A sweep begins: where every change is told from now on, it leaves a ground behind.
    pub(super) fn begin_sweep(&mut self) -> Begun {
        if self.unproven {
            self.doubt("connections were lost");
        }
        let recent = self.changes.recent.take();
        let mut begun = Begun {
            ground: None,
            looks: None,
            why: String::new(),
            recent,
        };
        if self.changes.ground.is_none() {
            match self.hearing.ground() {
                Ok(ground) => begun.ground = Some(ground),
                Err(why) => begun.why = why,
            }
            // The sweep reads them all, and what is called after its beginning is known.
            self.changes.groups.take();
            self.hearing.events.take_grouped();
            self.changes.groups_due = false;
        }
        begun.looks = match &begun.ground {
            Some(ground) => Some(ground.looks().clone()),
            None => self.hearing.looks().ok(),
        };
        begun
    }

    pub(super) fn end_sweep(&mut self, begun: Begun) {
        if self.changes.ground.is_none() {
            match begun.ground {
                Some(ground) if !self.unproven && self.hearing.holds(&ground) => {
                    self.changes.ground = Some(ground);
                }
                Some(_) => self.doubt("connections were lost"),
                None if begun.why.is_empty() => {}
                None => self.doubt(&begun.why),
            }
        }
        self.changes.drained = Some(Drained {
            ground: None,
            looks: begun.looks,
        });
    }

    /// Brings over all that was told up to now, and with `compare` compares what has changed since it was compared last.
    pub(super) fn catch_up(&mut self, compare: bool) -> Result<Caught> {
        if self.unproven {
            self.doubt("connections were lost");
        }
        let Some(mut ground) = self.changes.ground.take() else {
            return Ok(Caught::Unknown);
        };
        let called = self.hearing.advance(&mut ground);
        self.changes.ground = Some(ground);
        let called = match called {
            Ok(called) => called,
            Err(why) => {
                self.doubt(&why);
                return Ok(Caught::Unknown);
            }
        };
        self.changes.groups_due |= called.groups;
        if called.functions {
            self.core.sync_functions()?;
        }
        let before = self.hearing.events.put_back();
        self.write_told(usize::MAX)?;
        self.settle()?;
        for name in self.hearing.events.take_grouped() {
            self.changes.groups.put(name);
        }
        let (changes, over) = (
            &self.changes,
            "more keys were written than can be kept in mind",
        );
        if compare && (changes.recent.over || (changes.groups_due && changes.groups.over)) {
            self.doubt(over);
            return Ok(Caught::Unknown);
        }
        let alike = !compare || self.compare_changed()?;
        if !self.stands() {
            self.doubt("connections were lost");
            return Ok(Caught::Unknown);
        }
        // A stream's groups are left alone where nothing is compared.
        let whole = alike && (compare || !self.changes.groups_due);
        Ok(match whole && self.hearing.events.put_back() == before {
            true => Caught::All,
            false => Caught::Some,
        })
    }

    /// Compares what has changed since it was compared last, and writes again what differs; false when something differs
    /// that was not written meanwhile.
    fn compare_changed(&mut self) -> Result<bool> {
        let mut names: Vec<Name> = self.changes.recent.take().set.into_iter().collect();
        if std::mem::take(&mut self.changes.groups_due) {
            let known: HashSet<&Name> = names.iter().collect();
            let groups = self.changes.groups.set.iter();
            let more: Vec<Name> = groups.filter(|n| !known.contains(n)).cloned().collect();
            names.extend(more);
        }
        let mut before: HashMap<Name, Found> = HashMap::new();
        for _ in 0..TRIES {
            let mut apart = HashMap::new();
            for (name, a, b) in self.read_both(&names)? {
                match has_groups(&a) {
                    true => self.changes.groups.put(name.clone()),
                    false => self.changes.groups.drop_name(&name),
                }
                if !self.agree(&a, &b) {
                    apart.insert(name, a);
                }
            }
            // What the source still holds as it did when it was written has not arrived.
            let stuck =
                |(name, a): (&Name, &Found)| (before.get(name) == Some(a)).then(|| name.clone());
            let stuck: Vec<Name> = apart.iter().filter_map(stuck).collect();
            if !stuck.is_empty() && !self.are_lost(&stuck)? {
                self.changes.groups_due = true;
                self.changes.note(&names);
                return Ok(false);
            }
            for name in &stuck {
                apart.remove(name);
            }
            if apart.is_empty() {
                return Ok(true);
            }
            names = apart.keys().cloned().collect();
            self.write_names(&names)?;
            self.settle()?;
            before = apart;
        }
        // They are written all the time; each was read after this began.
        self.changes.groups_due |= names
            .iter()
            .any(|name| self.changes.groups.set.contains(name));
        self.changes.note(&names);
        Ok(true)
    }

    /// Whether all of some keys are known as losses: the target cannot hold them as they are.
    fn are_lost(&mut self, names: &[Name]) -> Result<bool> {
        self.core.save(false)?;
        let job = self.ctx.shared.job.clone();
        let lost = self.ctx.shared.store(|s| s.losses(100_000))?;
        let lost: HashSet<(DbIndex, &[u8])> = lost
            .iter()
            .map(|(db, key, _)| (*db, key.as_slice()))
            .collect();
        Ok(names.iter().all(|(db, key)| {
            let to = job.databases.map(*db).unwrap_or(*db);
            let name = job.renames.to_target(key);
            name.is_none_or(|name| lost.contains(&(to, name.as_ref())))
        }))
    }

    /// What both sides hold of some keys, of those that are to be brought over.
    pub(super) fn read_both(&mut self, names: &[Name]) -> Result<Vec<(Name, Found, Found)>> {
        let mut read = Vec::with_capacity(names.len());
        self.in_chunks(
            by_database(names).into_iter().collect(),
            |me, db, keys| me.read_compared(db, keys),
            |me, db, keys, found| {
                let found = match found {
                    Ok(found) => found,
                    Err(e) => {
                        me.failed_ahead(e)?;
                        me.again(|me| me.compare(db, keys))?
                    }
                };
                read.extend(found.into_iter().map(|(key, a, b)| ((db, key), a, b)));
                Ok(())
            },
        )?;
        Ok(read)
    }

    /// Begins to read what both sides hold of some keys.
    pub(super) fn read_compared(
        &mut self,
        db: DbIndex,
        keys: &[Vec<u8>],
    ) -> Result<Reading<Compared>> {
        let wanted = self.wanted_ahead(db, keys)?;
        Ok(match self.ctx.shared.job.databases.map(db) {
            Some(to) => Box::pin(self.ahead.clone().compared((db, to), wanted)),
            None => Box::pin(std::future::ready(Ok(Vec::new()))),
        })
    }

    /// The same in the plain way.
    pub(super) fn compare(&mut self, db: DbIndex, keys: &[Vec<u8>]) -> Result<Compared> {
        let Some(to) = self.ctx.shared.job.databases.map(db) else {
            return Ok(Vec::new());
        };
        let runtime = self.ctx.shared.runtime.clone();
        let wanted = self.wanted(db, keys)?;
        let mut found = Vec::with_capacity(wanted.len());
        for window in runtime.block_on(self.source.windows(db, &wanted))? {
            self.pace(window.keys.len())?;
            let both = pairs(&mut self.source, db, &mut self.target, to, &window);
            let both = runtime.block_on(both)?;
            let named = window.keys.iter().zip(both);
            found.extend(named.map(|(key, (a, b))| (key.to_vec(), a, b)));
        }
        Ok(found)
    }

    /// Streams whose groups differ.
    pub(super) fn groups_apart(&mut self) -> Result<Vec<Name>> {
        let names: Vec<Name> = self.changes.groups.set.iter().cloned().collect();
        let read = self.read_both(&names)?;
        let apart = read.into_iter().filter(|(_, a, b)| !self.agree(a, b));
        Ok(apart.map(|(name, ..)| name).collect())
    }

    /// A round has brought everything over that was written before `began`: what a cutover waits for.
    pub(super) fn drained_by_changes(&mut self, began: Instant) {
        let Some(drain) = &mut self.drain else { return };
        if drain.done || began < drain.since {
            return;
        }
        drain.done = true;
        let ground = self.changes.ground.clone();
        let looks = ground.as_ref().map(|g| g.looks().clone());
        self.changes.drained = Some(Drained { ground, looks });
        self.changes.drain = json!({
            "by": "changes", "sweeps": self.sweeps - drain.sweeps, "took_ms": millis(drain.since),
        });
        self.ctx.shared.control.drained(self.ctx.id.0);
    }

    /// A sweep has ended: whether it is the one that a cutover waits for.
    pub(super) fn drained_by_sweep(&mut self, alike: bool, began: Instant) {
        // Where a round of changes can follow, that is the proof.
        if self.stands() {
            return;
        }
        if let Some(drain) = &mut self.drain
            && !drain.done
            && alike
            && began >= drain.since
        {
            drain.done = true;
            self.changes.drain = json!({
                "by": "sweep", "sweeps": self.sweeps - drain.sweeps, "took_ms": millis(drain.since),
            });
            self.ctx.shared.control.drained(self.ctx.id.0);
        }
    }
}

/// What is written down of where it stands.
impl Sweeper<'_> {
    pub(super) fn tell(&mut self, found: u64, alike: bool, began: Instant) -> Result<()> {
        let took = millis(began);
        tracing::info!("a sweep found {found} keys to write, in {took} ms");
        self.changes.last["found"] = json!(found);
        self.changes.last["took_ms"] = json!(took);
        self.write_down(began, alike)
    }

    pub(super) fn tell_of_changes(&mut self, began: Instant, alike: bool) -> Result<()> {
        let last = &self.changes.last;
        let is_new = last["by_changes"] != true || last["last_drain"] != self.changes.drain;
        let due = self
            .changes
            .told
            .is_none_or(|at| at.elapsed() >= TELL_EVERY);
        match is_new || due {
            true => self.write_down(began, alike),
            false => Ok(()),
        }
    }

    /// Says that the next drain needs a sweep, unless that is known.
    pub(super) fn tell_of_doubt(&mut self) -> Result<()> {
        let last = &self.changes.last;
        if last["by_changes"] == false && last["why"] == json!(self.changes.why) {
            return Ok(());
        }
        self.changes.last["by_changes"] = json!(false);
        self.changes.last["why"] = json!(self.changes.why);
        let last = self.changes.last.clone();
        self.ctx.shared.store(|s| s.put_json(SWEEPS, &last))
    }

    fn write_down(&mut self, began: Instant, alike: bool) -> Result<()> {
        let by_changes = self.stands();
        let guarantee = match (by_changes, alike, self.hears_all()) {
            (true, ..) => {
                "every change since the last sweep was told by keyspace notifications, and the command statistics show none that was not: what was told is at the target"
            }
            (false, true, _) => "both sides were alike at the beginning of the last sweep",
            (false, false, true) => {
                "what was written before the last sweep is at the target; what came after is told, but for the state of stream groups"
            }
            (false, false, false) => "what was written before the last sweep is at the target",
        };
        let notifications = self.hears_all();
        let Value::Object(last) = &mut self.changes.last else {
            return Ok(());
        };
        let more = json!({
            "sweeps": self.sweeps,
            "began_at": unix_ms() - millis(began),
            "notifications": notifications,
            "guarantee": guarantee,
            "by_changes": by_changes,
            "why": if by_changes { Value::Null } else { json!(self.changes.why) },
            "last_drain": self.changes.drain,
        });
        if let Value::Object(more) = more {
            last.extend(more);
        }
        self.changes.told = Some(Instant::now());
        let last = self.changes.last.clone();
        self.ctx.shared.store(|s| s.put_json(SWEEPS, &last))
    }
}

fn millis(since: Instant) -> i64 {
    i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX)
}
