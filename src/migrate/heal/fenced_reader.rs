//! Fenced reads: the state of a key together with the replication offset that it belongs to, in one atomic answer.

use crate::error::{Error, ErrorKind, Result, Retry};
use crate::fence::{Dump, Fence, GroupFact, KeyPlaces, KeyState, Room};
use crate::migrate::context::ShardContext;
use crate::net;
use crate::source::place::Place;
use crate::source::spool::End;
use crate::types::{DbIndex, ExpireAt};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::Handle;

/// Where the states of keys are read: the source, or in tests a model of one. Keys have the target's names.
pub(crate) trait ReadStates {
    /// Whether there is anybody to ask: a snapshot file cannot be.
    fn asks(&self) -> bool;
    /// The sizes of keys in bytes, where the source tells them.
    fn sizes(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<Option<u64>>>;
    /// States with their offsets; those of keys that `moved` are [`KeyState::elsewhere`].
    fn read(
        &mut self,
        db: DbIndex,
        keys: &[&[u8]],
        moved: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Vec<KeyState>>;
    /// Which of some keys the source holds.
    fn exist(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<bool>>;
    /// The expiries of keys: `None` for a key that is gone, `Some(None)` for one without.
    fn expiries(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<Option<Option<ExpireAt>>>>;
    /// The consumer groups of a stream.
    fn groups(&mut self, db: DbIndex, key: &[u8]) -> Result<Vec<GroupFact>>;
    /// The expiries of hash fields, where they have one.
    fn field_expiries(
        &mut self,
        db: DbIndex,
        fields: &[(&[u8], &[u8])],
    ) -> Result<Vec<Option<ExpireAt>>>;
    /// Another server has become the source's master.
    fn meet_history(&mut self);
    /// Where the keys of a command stand that is in no table of ours: first, last, step; `None` where that is not told.
    fn key_places(&mut self, _command: &[u8]) -> Result<Option<KeyPlaces>> {
        Ok(None)
    }
}

/// The source's database that a key of the target's `db` comes from: where several go there, the one that holds it.
pub(crate) fn source_of(
    ctx: &ShardContext,
    reader: &mut impl ReadStates,
    db: DbIndex,
    key: &[u8],
) -> Result<DbIndex> {
    let databases = &ctx.job().databases;
    if databases.is_identity() {
        return Ok(db);
    }
    let sources: Vec<DbIndex> = databases.sources_of(db).collect();
    if let [_, _, ..] = sources.as_slice() {
        for from in &sources {
            if reader.exist(*from, &[key])? == [true] {
                return Ok(*from);
            }
        }
    }
    Ok(sources.first().copied().unwrap_or(db))
}

/// Reads at the source's master; opens its connection anew when it was cut.
pub(crate) struct FencedReader {
    ctx: Rc<ShardContext>,
    /// The source master; `None` for a snapshot file.
    place: Option<Arc<Place>>,
    fence: Option<Fence>,
    /// What the source has told of commands that are in no table of ours.
    told: BTreeMap<Vec<u8>, Option<KeyPlaces>>,
}

/// Commands that the source is asked about: a hostile one may send any number of names.
const ASKED_COMMANDS: usize = 256;

impl FencedReader {
    pub fn new(ctx: Rc<ShardContext>, place: Option<Arc<Place>>) -> FencedReader {
        FencedReader {
            ctx,
            place,
            fence: None,
            told: BTreeMap::new(),
        }
    }

    /// The source master; `None` for a snapshot file.
    pub fn place(&self) -> Option<Arc<Place>> {
        self.place.clone()
    }

    fn fenced<T>(&mut self, mut read: impl FnMut(&mut Fence, &Handle) -> Result<T>) -> Result<T> {
        let Some(place) = self.place.clone() else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a command of the file cannot be sent as it is, and a file cannot be asked for the state it leads to",
            )
            .hint("when the target was away for a moment, run the same command again: the file is loaded from its beginning; when the command's keys lie on different shards, load the file into a standalone server first"));
        };
        let ctx = self.ctx.clone();
        let runtime = &ctx.shared.runtime;
        let (began, mut backoff) = (Instant::now(), net::Backoff::new());
        let mut telling = net::Telling::default();
        let room = Room {
            bytes: ctx.whole_value(),
            dir: ctx.spool.dir().to_owned(),
        };
        loop {
            let attempt = match &mut self.fence {
                Some(fence) => read(fence, runtime),
                None => match runtime.block_on(Fence::open(
                    place.endpoint(),
                    &place.address(),
                    ctx.spool.replid(),
                    room.clone(),
                )) {
                    Ok(fence) => read(self.fence.insert(fence), runtime),
                    Err(e) => Err(e),
                },
            };
            let e = match attempt {
                Ok(value) => return Ok(value),
                Err(e) => e,
            };
            self.fence = None;
            if e.retry() == Retry::Never || began.elapsed() > ctx.shared.run.patience {
                return Err(e);
            }
            if ctx.shared.stop.requested() || ctx.spool.ended() == Some(End::Superseded) {
                let stopped = "stopped while reading keys from the source";
                return Err(Error::stopped(stopped).cause(e));
            }
            match telling.is_due() {
                true => tracing::warn!("reading keys from the source failed, trying again: {e}"),
                false => tracing::debug!("reading keys from the source failed, trying again: {e}"),
            }
            let _ = runtime.block_on(place.locate());
            std::thread::sleep(backoff.next());
        }
    }

    fn names<'k>(&self, keys: &[&'k [u8]]) -> Vec<Cow<'k, [u8]>> {
        keys.iter().map(|k| self.ctx.source_name(k)).collect()
    }
}

fn slices<'a>(names: &'a [Cow<'_, [u8]>]) -> Vec<&'a [u8]> {
    names.iter().map(Cow::as_ref).collect()
}

impl ReadStates for FencedReader {
    fn asks(&self) -> bool {
        self.place.is_some()
    }

    fn sizes(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<Option<u64>>> {
        let names = self.names(keys);
        let names = slices(&names);
        self.fenced(|fence, runtime| runtime.block_on(fence.sizes(db, &names)))
    }

    fn read(
        &mut self,
        db: DbIndex,
        keys: &[&[u8]],
        moved: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Vec<KeyState>> {
        let names = self.names(keys);
        self.fenced(|fence, runtime| {
            // Asked anew each time: a slot may go while the source is tried again.
            let (at, here): (Vec<usize>, Vec<&[u8]>) = (names.iter().enumerate())
                .filter(|(_, k)| !moved(k))
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

    fn exist(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<bool>> {
        let names = self.names(keys);
        let names = slices(&names);
        self.fenced(|fence, runtime| runtime.block_on(fence.exist(db, &names)))
    }

    fn expiries(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<Option<Option<ExpireAt>>>> {
        let names = self.names(keys);
        let names = slices(&names);
        self.fenced(|fence, runtime| runtime.block_on(fence.expiries(db, &names)))
    }

    fn groups(&mut self, db: DbIndex, key: &[u8]) -> Result<Vec<GroupFact>> {
        let name = self.ctx.source_name(key).into_owned();
        self.fenced(|fence, runtime| runtime.block_on(fence.groups(db, &name)))
    }

    fn field_expiries(
        &mut self,
        db: DbIndex,
        fields: &[(&[u8], &[u8])],
    ) -> Result<Vec<Option<ExpireAt>>> {
        let ctx = self.ctx.clone();
        let names: Vec<_> = (fields.iter())
            .map(|(key, field)| (ctx.source_name(key), *field))
            .collect();
        let told = self.fenced(|fence, runtime| runtime.block_on(fence.field_expiries(db, &names)));
        Ok(told?.into_iter().map(|at| at.map(ExpireAt)).collect())
    }

    fn meet_history(&mut self) {
        self.fence = None;
    }

    fn key_places(&mut self, command: &[u8]) -> Result<Option<KeyPlaces>> {
        let name = command.to_ascii_uppercase();
        if let Some(told) = self.told.get(&name) {
            return Ok(*told);
        }
        if self.told.len() >= ASKED_COMMANDS {
            return Ok(None);
        }
        let told = self.fenced(|fence, runtime| runtime.block_on(fence.key_places(&name)))?;
        self.told.insert(name, told);
        Ok(told)
    }
}

/// A state that was read without a fence, as mode "scan" does.
pub(crate) fn unfenced(payload: Option<Dump>, expire: Option<ExpireAt>) -> KeyState {
    KeyState {
        payload,
        expire,
        offset: crate::types::ReplOffset(0),
        elsewhere: false,
    }
}
