//! Mode "scan": keys read from the source and written to the target, by page, by told change, by wish.

use crate::error::{Context, ErrorKind, Result};
use crate::fence::Dump;
use crate::migrate::heal::fenced_reader::unfenced;
use crate::migrate::scan::ahead::Reading;
use crate::migrate::scan::pool::States;
use crate::migrate::scan::sweep::{MARK, Sweeper};
use crate::migrate::write::door::Admission;
use crate::migrate::write::losses::{self, NAME_TAKEN};
use crate::rdb::payload;
use crate::source::keys::events::Name;
use crate::source::keys::list::Position;
use crate::source::keys::reader::Dumped;
use crate::source::keys::window;
use crate::types::DbIndex;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// The document that says where an unfinished copy goes on.
const COPIED: &str = "scan_copied";

impl Sweeper<'_> {
    /// The first copy, from where an earlier run has stopped.
    pub(super) fn copy(&mut self) -> Result<()> {
        let side = self.source.side.clone();
        let saved = self.ctx.shared.store(|s| s.json(COPIED))?;
        let from: Option<Position> = saved.and_then(|v| serde_json::from_value(v).ok());
        // The target has nothing of us that could be lost.
        self.unproven &= from.is_some();
        let mut saved = Instant::now();
        self.walk(
            &side,
            from,
            |me, page| me.read_states(page.db, &page.keys),
            |me, page, read| {
                me.take_states(page.db, &page.keys, read)?;
                (me.core.marks()).count_read(page.keys.len() as u64);
                if let (Some(next), true) = (&page.next, saved.elapsed() > Duration::from_secs(1)) {
                    me.settle()?;
                    // Before the place, so that a kill in between counts keys twice, not never.
                    me.core.save(false)?;
                    let next = serde_json::to_value(next).unwrap_or_default();
                    me.ctx.shared.store(|s| s.put_json(COPIED, &next))?;
                    saved = Instant::now();
                }
                Ok(true)
            },
        )?;
        self.settle()?;
        let end = serde_json::to_value(Position::End).unwrap_or_default();
        self.ctx.shared.store(|s| s.put_json(COPIED, &end))
    }

    /// The keys of a database of the source that are to be written.
    pub(super) fn wanted<'k>(&mut self, db: DbIndex, keys: &'k [Vec<u8>]) -> Result<Vec<&'k [u8]>> {
        let shared = self.ctx.shared.clone();
        let Some(to) = shared.job.databases.map(db) else {
            return Ok(Vec::new());
        };
        let wanted: Vec<&[u8]> = (keys.iter().map(Vec::as_slice))
            .filter(|k| shared.job.filter.accepts(k) && !self.is_own(to, k))
            .collect();
        if self.core.door().has_database(to)? {
            return Ok(wanted);
        }
        for key in wanted {
            if let Some(name) = shared.job.renames.to_target(key) {
                self.ctx.lose_for_want_of(db, to, &name)?;
            }
        }
        Ok(Vec::new())
    }

    /// A key that the target held before us; by its name at the source.
    pub(super) fn is_own(&self, db: DbIndex, key: &[u8]) -> bool {
        let name = self.ctx.shared.job.renames.to_target(key);
        name.is_some_and(|name| self.ctx.shared.own.has(db, &name))
    }

    /// The same for a reading ahead, at the plan's pace.
    pub(super) fn wanted_ahead(&mut self, db: DbIndex, keys: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        let owned = |keys: Vec<&[u8]>| keys.into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>();
        let wanted = self.again(|me| me.wanted(db, keys).map(owned))?;
        self.pace(wanted.len())?;
        Ok(wanted)
    }

    /// Begins to read what the source holds of some keys.
    pub(super) fn read_states(&mut self, db: DbIndex, keys: &[Vec<u8>]) -> Result<Reading<States>> {
        let wanted = self.wanted_ahead(db, keys)?;
        Ok(Box::pin(self.ahead.clone().states(db, wanted)))
    }

    /// Writes what was read ahead.
    pub(super) fn take_states(
        &mut self,
        db: DbIndex,
        keys: &[Vec<u8>],
        read: Result<States>,
    ) -> Result<()> {
        let written = read.and_then(|states| {
            let States { read, rest, .. } = states;
            let moved = self.write_dumps(db, read.into_iter())?;
            self.resolve()?;
            self.wait_for_move(moved);
            let rest: Vec<&[u8]> = rest.iter().map(Vec::as_slice).collect();
            self.write(db, &rest)
        });
        match written {
            Ok(()) => Ok(()),
            Err(e) => {
                self.failed_ahead(e)?;
                self.again(|me| {
                    let keys = me.wanted(db, keys)?;
                    me.write(db, &keys)
                })
            }
        }
    }

    /// Reads keys of the source and writes what they hold.
    pub(super) fn write(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<()> {
        let runtime = self.ctx.shared.runtime.clone();
        let mut moved = false;
        let mut windows = VecDeque::from(runtime.block_on(self.source.windows(db, keys))?);
        while let Some(window) = windows.pop_front() {
            self.pace(window.keys.len())?;
            if !self.source.reads_whole(&window) {
                for key in &window.keys {
                    self.write_large(db, key)?;
                }
                continue;
            }
            let dumps = match runtime.block_on(self.source.dumps(db, &window)) {
                Err(e) if window.shrinks(&e) => {
                    window::first(&mut windows, window.smaller());
                    continue;
                }
                Err(e) if e.kind() == ErrorKind::Refused => {
                    self.source.refuse_dumps(&e);
                    windows.push_front(window);
                    continue;
                }
                dumps => dumps?,
            };
            let dumps = window.keys.iter().copied().zip(dumps);
            moved |= self.write_dumps(db, dumps)?;
            self.resolve()?;
        }
        self.wait_for_move(moved);
        Ok(())
    }

    /// Writes what was read of some keys; true where a slot is on its way to another master.
    fn write_dumps(
        &mut self,
        db: DbIndex,
        dumps: impl Iterator<Item = (impl AsRef<[u8]>, Dumped)>,
    ) -> Result<bool> {
        let mut moved = false;
        for (key, dump) in dumps {
            let key = key.as_ref();
            let (payload, expire) = match dump {
                Dumped::Gone if self.unproven => continue,
                Dumped::Gone => (None, None),
                Dumped::Here(payload, expire) => (Some(Dump::Whole(payload)), expire),
                Dumped::Foreign => {
                    self.write_large(db, key)?;
                    continue;
                }
                // Its slot is moving: it is read again.
                Dumped::Elsewhere => {
                    self.hearing.events.put([(db, key.to_vec())]);
                    moved = true;
                    continue;
                }
            };
            let state = unfenced(payload, expire);
            let renames = &self.ctx.shared.job.renames;
            let Some(name) = renames.to_target(key) else {
                if state.payload.is_some() {
                    let to = self.ctx.shared.job.databases.map(db).unwrap_or(db);
                    self.ctx
                        .lose_source_key(to, key, losses::NAME, NAME_TAKEN)?;
                }
                continue;
            };
            let written = self.core.write_state(db, &name, &state, MARK)?;
            self.count(written);
        }
        Ok(moved)
    }

    fn wait_for_move(&mut self, moved: bool) {
        if moved {
            let runtime = self.ctx.shared.runtime.clone();
            let _ = runtime.block_on(self.source.side.refresh());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A key of the first copy, or a change after it.
    fn count(&mut self, written: bool) {
        if self.core.marks().shard().snapshot_loaded {
            self.ctx.progress.commands.fetch_add(1, Relaxed);
        } else if written {
            self.core.marks().count_written();
        }
    }

    /// A value too large for one DUMP: its parts become commands.
    fn write_large(&mut self, db: DbIndex, key: &[u8]) -> Result<()> {
        let job = self.ctx.shared.job.clone();
        let Some(to) = job.databases.map(db) else {
            return Ok(());
        };
        let Some(name) = job.renames.to_target(key) else {
            return self.ctx.lose_source_key(to, key, losses::NAME, NAME_TAKEN);
        };
        let Admission::Yes(pass) = self.core.door().admit(db, &name)? else {
            return Ok(());
        };
        let runtime = self.ctx.shared.runtime.clone();
        let timed = job.filter.looks_at_expiry();
        match runtime.block_on(self.source.kind(db, key, timed))? {
            Some((kind, expires)) if !job.filter.accepts_value(kind.name(), expires) => {
                return self.core.writer().remove(pass, &name, MARK);
            }
            Some((kind, _)) if !kind.has_commands() => return self.write_whole(db, key, &name),
            _ => {}
        }
        let mut out = Vec::new();
        let writer = &mut self.core.writer();
        let mut rebuild = writer.rebuild(pass, &name, MARK, &mut out, |_| false);
        let read = runtime.block_on(self.source.parts(db, key, &mut rebuild))?;
        match read {
            Some(expire) => {
                if rebuild.finish(expire)? {
                    let why = payload::NO_FIELD_EXPIRY;
                    (self.ctx).lose(pass.db(), &name, losses::FIELD_EXPIRY, why)?;
                }
            }
            None => {
                // Gone meanwhile, perhaps in its middle.
                drop(rebuild);
                if self.unproven {
                    return self.settle();
                }
                (self.core.writer()).remove(pass, &name, MARK)?;
            }
        }
        self.count(true);
        // Its parts must not be mixed with another try.
        self.settle()
    }

    /// A large value that no command puts together.
    fn write_whole(&mut self, db: DbIndex, key: &[u8], name: &[u8]) -> Result<()> {
        let opened = tempfile::tempfile_in(self.ctx.spool.dir());
        let mut file = opened.context(ErrorKind::Disk, || {
            "keep a large value in a file".to_owned()
        })?;
        let runtime = self.ctx.shared.runtime.clone();
        let read = match runtime.block_on(self.source.dump_to(db, key, &mut file)) {
            // Neither DUMP nor a command tells it.
            Err(e) if e.kind() == ErrorKind::Refused => {
                return self.lose_untold(db, name);
            }
            read => read?,
        };
        if let Some((len, _)) = &read
            && is_foreign(&mut file, *len)?
        {
            return self.lose_untold(db, name);
        }
        let (payload, expire) = match read {
            Some((len, expire)) => (Some(Dump::File(file, len)), expire),
            None if self.unproven => return Ok(()),
            None => (None, None),
        };
        let state = unfenced(payload, expire);
        let written = self.core.write_state(db, name, &state, MARK)?;
        self.count(written);
        Ok(())
    }

    /// A value that the source gives in no form that anyone else reads.
    fn lose_untold(&mut self, db: DbIndex, name: &[u8]) -> Result<()> {
        match self.ctx.job().databases.map(db) {
            Some(to) => self.ctx.lose(to, name, losses::TYPE, UNTOLD),
            None => Ok(()),
        }
    }

    /// Writes up to so many keys whose change was told; returns how many.
    pub(super) fn write_told(&mut self, most: usize) -> Result<usize> {
        let taken = self.hearing.events.take(most);
        // What has only expired is no write.
        let written = taken.iter().filter(|(_, written)| *written).count();
        self.ctx.progress.writes.fetch_add(written as u64, Relaxed);
        let some: Vec<Name> = taken.into_iter().map(|(name, _)| name).collect();
        self.changes.note(&some);
        if let Err(e) = self.write_names(&some) {
            self.hearing.events.put(some);
            return Err(e);
        }
        Ok(some.len())
    }

    /// Reads keys of the source, of several databases, and writes what they hold.
    pub(super) fn write_names(&mut self, names: &[Name]) -> Result<()> {
        self.in_chunks(
            by_database(names).into_iter().collect(),
            |me, db, keys| me.read_states(db, keys),
            |me, db, keys, read| me.take_states(db, keys, read),
        )
    }
}

/// Keys by their databases.
pub(super) fn by_database(names: &[Name]) -> BTreeMap<DbIndex, Vec<Vec<u8>>> {
    let mut by_db: BTreeMap<DbIndex, Vec<Vec<u8>>> = BTreeMap::new();
    for (db, key) in names {
        by_db.entry(*db).or_default().push(key.clone());
    }
    by_db
}

/// Why a key is listed whose value cannot be read.
const UNTOLD: &str = "the source gives its value in no form that another server reads, neither by DUMP nor by commands";

/// Whether a payload in a file is of a kind that no server of ours writes; the file stands at its beginning before and
/// after.
fn is_foreign(file: &mut File, len: u64) -> Result<bool> {
    let mut ends = [0; 1 + FOOTER];
    let read = |file: &mut File, ends: &mut [u8; 1 + FOOTER]| {
        let (first, footer) = ends.split_at_mut(1);
        file.read_exact(first)?;
        file.seek(SeekFrom::Start(len.saturating_sub(FOOTER as u64)))?;
        file.read_exact(footer)?;
        file.rewind()
    };
    if len <= FOOTER as u64 {
        return Ok(true);
    }
    read(file, &mut ends).context(ErrorKind::Disk, || "read a large value again".to_owned())?;
    Ok(payload::is_foreign(&ends))
}

/// Version and checksum behind a payload.
const FOOTER: usize = 10;
