//! Making keys exact by reading them: heal, the window after a crash, held expiries, trouble on the target, reconcile.
//!
//! Everything here reads a state from the source at a known offset and writes it behind what is already on its way.

use crate::error::{Context, Error, ErrorKind, Result, Retry};
use crate::fence::{Dump, Fence, KeyState, Room};
use crate::migrate::admission::{Admission, Barred};
use crate::migrate::carry::{Carried, Delivery};
use crate::migrate::expiry::HEAL_WHOLE;
use crate::migrate::pump::Pump;
use crate::net;
use crate::rdb::file::{Header, Options, Snapshot};
use crate::rdb::large;
use crate::rdb::opcode::Dialect;
use crate::rdb::payload;
use crate::rdb::value;
use crate::resp;
use crate::source::spool::End;
use crate::target::Database;
use crate::task::failpoint;
use crate::types::{DbIndex, ExpireAt, Mark, ReplOffset, Slot, db_key, shown, split_db_key};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

/// Keys read in one round trip to the source, and the memory that they may take there.
const HEAL_CHUNK: usize = 64;
const HEAL_BYTES: u64 = 2 << 20;
/// Keys whose sizes are asked for in one round trip.
const SIZES_CHUNK: usize = 512;
/// What a key counts whose size is not told.
const UNTOLD: u64 = HEAL_BYTES / 16;
/// Fence offsets are reserved this far ahead, so that not every heal writes to SQLite.
pub(super) const FENCE_RESERVE: u64 = 4 << 20;
const RELEASE_CHUNK: usize = 512;

pub(super) type Key = (DbIndex, Vec<u8>);

/// What has become of a state that was to be written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    Value,
    /// The key is not there, or is left out.
    Nothing,
    /// Trouble came in the middle of a large value.
    CutOff,
}

impl Pump {
    /// Reads the true state of `keys` (in the source's databases) and writes it to the target.
    ///
    /// Afterwards every streamed command on them up to the offset of that state is skipped.
    /// A large value that trouble has cut off is healed with that trouble: see [`Pump::unfinished`].
    pub(super) fn heal(&mut self, keys: &[Key], mark: Mark) -> Result<()> {
        if self.shared.dry_run {
            self.shard.healed_keys += keys.len() as u64;
            return Ok(());
        }
        let before = self.hold(mark);
        self.heal_all(keys, mark)?;
        self.floor = before;
        Ok(())
    }

    fn heal_all(&mut self, keys: &[Key], mark: Mark) -> Result<()> {
        let mut by_db: BTreeMap<DbIndex, Vec<&[u8]>> = BTreeMap::new();
        for (db, key) in keys.iter().filter(|(_, k)| self.adopting || self.owns(k)) {
            by_db.entry(*db).or_default().push(key);
        }
        for (db, mut list) in by_db {
            list.sort_unstable();
            list.dedup();
            for some in list.chunks(SIZES_CHUNK) {
                let mut rest = some;
                for n in self.windows(db, some)? {
                    let (window, after) = rest.split_at(n);
                    match self.pipe.troubled() {
                        // Nothing would make room for them.
                        true => (self.unfinished)
                            .extend(window.iter().map(|key| (mark, (db, key.to_vec())))),
                        false => self.heal_window(db, window, mark)?,
                    }
                    rest = after;
                }
            }
        }
        Ok(())
    }

    fn heal_window(&mut self, db: DbIndex, keys: &[&[u8]], mark: Mark) -> Result<()> {
        let states = self.states(db, keys)?;
        failpoint("heal-read");
        self.reserve(states.iter().map(|s| s.offset).max())?;
        failpoint("heal-reserved");
        for (key, state) in keys.iter().zip(&states) {
            if state.elsewhere {
                self.count("left_to_adoption");
                continue;
            }
            let written = self.write_state(db, key, state, mark)?;
            self.timed.note(db, key, state.payload.is_some());
            self.touch(db, key);
            self.fenced_to = self.fenced_to.max(state.offset);
            if written == Written::CutOff {
                self.unfinished.push((mark, (db, key.to_vec())));
                continue;
            }
            self.fenced.insert(db_key(db, key), state.offset);
            self.shard.healed_keys += 1;
            self.progress.healed.store(self.shard.healed_keys, Relaxed);
        }
        failpoint("heal-written");
        Ok(())
    }

    /// How many of `keys` to read at a time: the source's answers are held by it as well.
    fn windows(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<usize>> {
        if let [_] = keys {
            return Ok(vec![1]);
        }
        let asked: Vec<Cow<[u8]>> = keys.iter().map(|k| self.source_name(k)).collect();
        let asked: Vec<&[u8]> = asked.iter().map(Cow::as_ref).collect();
        let sizes = self.fenced(|fence, runtime| runtime.block_on(fence.sizes(db, &asked)))?;
        Ok(windows_of(&sizes))
    }

    /// What a value may take to be held whole.
    pub(super) fn whole_value(&self) -> usize {
        self.shared.job.limits.whole_value(self.shared.shards)
    }

    /// Another server has become the source's master: what the one before had written last may have gone with it, so
    /// states that were read of it beyond the common history are read again.
    pub(super) fn meet_history(&mut self) -> Result<()> {
        let Some(from) = self.spool.take_history() else {
            return Ok(());
        };
        self.fence = None;
        let beyond = self.fenced.iter().filter(|(_, offset)| **offset > from);
        let keys: Vec<Key> = beyond.map(|(name, _)| split_db_key(name)).collect();
        *self.counts.entry("healed.other_history").or_default() += keys.len() as u64;
        let mark = self.now();
        self.heal(&keys, mark)
    }

    /// Fenced reads of some keys; what moves away meanwhile is left to its new owner.
    fn states(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<KeyState>> {
        let (ownership, me) = (self.shared.ownership.clone(), self.shard.shard);
        let adopting = self.adopting;
        let names: Vec<Cow<[u8]>> = keys.iter().map(|k| self.source_name(k)).collect();
        self.fenced(|fence, runtime| {
            // While slots are copied that have come to us, one may go on to the next.
            let goes = |key: &[u8]| {
                let slot = Slot::of(key);
                (ownership.as_ref())
                    .is_some_and(|o| o.has_left(me, slot) && !(adopting && o.is_coming(me, slot)))
            };
            let (at, here): (Vec<usize>, Vec<&[u8]>) = (names.iter().enumerate())
                .filter(|(_, k)| !goes(k))
                .map(|(i, k)| (i, k.as_ref()))
                .unzip();
            let mut states: Vec<_> = names.iter().map(|_| KeyState::elsewhere()).collect();
            for (i, state) in at.into_iter().zip(runtime.block_on(fence.read(db, &here))?) {
                if let Some(place) = states.get_mut(i) {
                    *place = state;
                }
            }
            Ok(states)
        })
    }

    /// Heals the keys that wait for it.
    pub(super) fn heal_queued(&mut self) -> Result<()> {
        if self.heal_queue.is_empty() {
            return Ok(());
        }
        let (keys, mark) = self.heal_queue.take();
        self.heal(&keys, mark.unwrap_or_else(|| self.now()))
    }

    /// The same once they have waited long enough, or are enough.
    pub(super) fn heal_due(&mut self) -> Result<()> {
        match self.heal_queue.is_due() {
            true => self.heal_queued(),
            false => Ok(()),
        }
    }

    /// Makes durable how far ahead of the stream the target's keys may be, before they are.
    fn reserve(&mut self, offset: Option<ReplOffset>) -> Result<()> {
        let Some(offset) = offset else { return Ok(()) };
        if self.shard.fence_high.is_none_or(|high| offset > high) {
            self.shard.fence_high = Some(offset.plus(FENCE_RESERVE));
            self.save(false)?;
        }
        Ok(())
    }

    /// Writes a key as it was read.
    pub(super) fn write_state(
        &mut self,
        db: DbIndex,
        key: &[u8],
        state: &KeyState,
        mark: Mark,
    ) -> Result<Written> {
        let to = match (self.admission(db, key)?, &state.payload) {
            (Admission::Yes(to), _) => to,
            (Admission::Replace(to), Some(_)) => {
                self.shared.own.replace(to.index(), key)?;
                to
            }
            (Admission::No(Barred::NoDatabase(to)), Some(_)) => {
                self.lose_for_want_of(db, to, key)?;
                return Ok(Written::Nothing);
            }
            // A write of the stream is why it is read, so the source had such a key, and has deleted it since.
            (Admission::Replace(to), None) if !self.adopting => {
                self.shared.own.replace(to.index(), key)?;
                to
            }
            (Admission::Replace(_) | Admission::No(_), _) => return Ok(Written::Nothing),
        };
        self.write_admitted(to, db, key, state, mark)
    }

    /// Writes what was read of a key of the source's database `db` to the target's database `to`.
    pub(super) fn write_admitted(
        &mut self,
        to: Database,
        db: DbIndex,
        key: &[u8],
        state: &KeyState,
        mark: Mark,
    ) -> Result<Written> {
        let read;
        let dump = match &state.payload {
            None => return self.remove(to, key, mark).map(|()| Written::Nothing),
            Some(Dump::Whole(dump)) => dump,
            Some(Dump::File(file, len)) if *len > self.whole_value() as u64 => {
                return self.write_from(file, *len, (to, db), key, state.expire, mark);
            }
            Some(Dump::File(file, _)) => {
                let mut bytes = Vec::new();
                let mut file = file;
                file.read_to_end(&mut bytes)
                    .context(ErrorKind::Disk, || "read a value again".to_owned())?;
                read = bytes;
                &read
            }
        };
        let value = payload::open(dump)
            .map_err(|e| e.context(format!("read the key {} from the source", shown(key))))?;
        let kind = value::kind(value.type_id, value.dialect)?;
        let filter = &self.shared.job.filter;
        if !filter.accepts_value(kind.name(), state.expire.is_some()) {
            return self.remove(to, key, mark).map(|()| Written::Nothing);
        }
        let version = u32::from(value.version);
        if payload::is_empty(value.type_id, value.dialect, version, value.body) {
            self.note_empty(key);
            return self.remove(to, key, mark).map(|()| Written::Nothing);
        }
        let fit = payload::fit(
            value.type_id,
            value.dialect,
            version,
            value.body,
            &self.format,
        );
        let header = Header {
            db,
            key,
            expire: state.expire,
            idle_s: None,
            freq: None,
            meta: value.meta,
            type_id: value.type_id,
            at: 0,
            value_at: 0,
        };
        self.note_expiries(&header, Some(value.body), value.dialect, version);
        let put = self.put(
            to,
            &header,
            value.body,
            value.dialect,
            version,
            fit,
            state.expire,
            mark,
        )?;
        Ok(if put {
            Written::Value
        } else {
            Written::Nothing
        })
    }

    /// Writes a value that is too large to be held: by commands, or as it is.
    fn write_from(
        &mut self,
        mut file: &File,
        len: u64,
        (to, db): (Database, DbIndex),
        key: &[u8],
        expire: Option<ExpireAt>,
        mark: Mark,
    ) -> Result<Written> {
        let named = |e: Error| e.context(format!("read the key {} from the source", shown(key)));
        let version = u32::from(large::check(file, len).map_err(named)?);
        file.rewind()
            .context(ErrorKind::Disk, || "read a value again".to_owned())?;
        let dialect = Dialect::of_version(version);
        let mut dump = Snapshot::resume(file, 0, db, dialect, version, Options::default());
        let value = dump.dumped().map_err(named)?;
        let header = Header {
            key,
            expire,
            ..value.header()
        };
        let kind = value::kind(header.type_id, dialect)?;
        let filter = &self.shared.job.filter;
        if !filter.accepts_value(kind.name(), expire.is_some()) {
            return self.remove(to, key, mark).map(|()| Written::Nothing);
        }
        self.note_expiries(&header, None, dialect, version);
        if !kind.has_commands() {
            let (type_id, from) = (header.type_id, header.value_at);
            let file = file
                .try_clone()
                .context(ErrorKind::Disk, || "read a value again".to_owned())?;
            let carried = Carried {
                type_id,
                dialect,
                file,
                from,
                len: (len - large::FOOTER).saturating_sub(from),
            };
            return Ok(match self.carry(to, key, carried, expire)? {
                Delivery::Done => Written::Value,
                Delivery::Lost => Written::Nothing,
                Delivery::Again => Written::CutOff,
            });
        }
        match self.put_parts(to, key, value, expire, mark, false)? {
            true => Ok(Written::Value),
            false => Ok(Written::CutOff),
        }
    }

    pub(super) fn remove(&mut self, db: Database, key: &[u8], mark: Mark) -> Result<()> {
        let node = self.pipe.node_of(Slot::of(key));
        let batch = self.pipe.batch(node, db, mark)?;
        batch.state(1);
        resp::command(&mut batch.bytes, &[b"DEL", key]);
        self.pipe.added(node, 1);
        Ok(())
    }

    /// Runs a read on the source's fence connection; opens it anew when it was cut.
    pub(super) fn fenced<T>(
        &mut self,
        mut read: impl FnMut(&mut Fence, &tokio::runtime::Handle) -> Result<T>,
    ) -> Result<T> {
        let Some(place) = self.source.clone() else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a command of the file cannot be sent as it is, and a file cannot be asked for the state it leads to",
            )
            .hint("when the target was away for a moment, run the same command again: the file is loaded from its beginning; when the command's keys lie on different shards, load the file into a standalone server first"));
        };
        let runtime = self.shared.runtime.clone();
        let (began, mut backoff) = (Instant::now(), net::Backoff::new());
        let room = Room {
            bytes: self.whole_value(),
            dir: self.spool.dir().to_owned(),
        };
        loop {
            let attempt = match &mut self.fence {
                Some(fence) => read(fence, &runtime),
                None => match runtime.block_on(Fence::open(
                    place.endpoint(),
                    &place.address(),
                    self.spool.replid(),
                    room.clone(),
                )) {
                    Ok(fence) => read(self.fence.insert(fence), &runtime),
                    Err(e) => Err(e),
                },
            };
            match attempt {
                Ok(value) => return Ok(value),
                Err(e) if e.retry() == Retry::Never || began.elapsed() > self.shared.patience => {
                    self.fence = None;
                    return Err(e);
                }
                Err(e)
                    if self.shared.stop.requested()
                        || self.spool.ended() == Some(End::Superseded) =>
                {
                    self.fence = None;
                    return Err(Error::new(
                        ErrorKind::Interrupted,
                        "stopped while reading keys from the source",
                    )
                    .cause(e));
                }
                Err(e) => {
                    tracing::warn!("reading keys from the source failed, trying again: {e}");
                    self.fence = None;
                    let _ = runtime.block_on(place.locate());
                    std::thread::sleep(backoff.next());
                }
            }
        }
    }

    /// Gives held keys the expiry that the source tells now.
    pub(super) fn release_held(&mut self) -> Result<()> {
        if self.shared.dry_run {
            self.held.take()?.done()?;
            return Ok(());
        }
        let mut releasing = self.held.take()?;
        let mut released = 0u64;
        loop {
            let mut keys = releasing.next(RELEASE_CHUNK)?;
            if keys.is_empty() {
                break;
            }
            // Whoever has copied a slot that went away has written the true expiry.
            keys.retain(|(_, key)| self.owns(key));
            let mut rest = keys.as_slice();
            while let Some((db, _)) = rest.first() {
                let db = *db;
                let n = rest.iter().take_while(|(d, _)| *d == db).count();
                let (same, others) = rest.split_at(n);
                rest = others;
                if db.0 & HEAL_WHOLE != 0 {
                    let db = DbIndex(db.0 & !HEAL_WHOLE);
                    let whole: Vec<Key> = same.iter().map(|(_, k)| (db, k.clone())).collect();
                    let mark = self.now();
                    self.heal(&whole, mark)?;
                    continue;
                }
                let names: Vec<&[u8]> = same.iter().map(|(_, k)| k.as_slice()).collect();
                let asked: Vec<Cow<[u8]>> = names.iter().map(|k| self.source_name(k)).collect();
                let asked: Vec<&[u8]> = asked.iter().map(Cow::as_ref).collect();
                let expiries =
                    self.fenced(|fence, runtime| runtime.block_on(fence.expiries(db, &asked)))?;
                let mark = self.now();
                for (key, expiry) in names.iter().zip(expiries) {
                    let Admission::Yes(to) = self.admission(db, key)? else {
                        continue;
                    };
                    released += 1;
                    self.touch(db, key);
                    let node = self.pipe.node_of(Slot::of(key));
                    let out = &mut self.pipe.batch(node, to, mark)?.bytes;
                    match expiry {
                        None => resp::command(out, &[b"DEL", key]),
                        Some(None) => resp::command(out, &[b"PERSIST", key]),
                        Some(Some(at)) => {
                            resp::command(out, &[b"PEXPIREAT", key, at.to_string().as_bytes()])
                        }
                    }
                    self.pipe.added(node, 1);
                }
            }
            if self.pipe.troubled() {
                self.resolve()?;
            }
        }
        self.settle_all()?;
        releasing.done()?;
        self.released_at = Some(self.at);
        if released > 0 {
            tracing::debug!("{released} held expiries released");
        }
        Ok(())
    }
}

/// Parts keys by their sizes.
fn windows_of(sizes: &[Option<u64>]) -> Vec<usize> {
    let mut windows: Vec<usize> = Vec::new();
    let mut bytes = 0u64;
    for size in sizes {
        let size = size.unwrap_or(UNTOLD);
        bytes = bytes.saturating_add(size);
        match windows.last_mut() {
            Some(n) if *n < HEAL_CHUNK && bytes <= HEAL_BYTES => *n += 1,
            _ => {
                windows.push(1);
                bytes = size;
            }
        }
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_at_a_time_by_number_and_by_size() {
        assert_eq!(windows_of(&[]), [] as [usize; 0]);
        assert_eq!(windows_of(&[Some(100); 130]), [64, 64, 2]);
        assert_eq!(windows_of(&[None; 20]), [16, 4]);
        let mb = Some(1 << 20);
        assert_eq!(
            windows_of(&[mb, mb, mb, Some(1 << 30), Some(0), mb]),
            [2, 1, 1, 2]
        );
    }
}
