//! Mode "scan": readers of both sides, a pair for each reading.

use crate::error::{ErrorKind, Result};
use crate::plan::{Job, Limits};
use crate::source::keys::depth;
use crate::source::keys::fact::Found;
use crate::source::keys::reader::{Dumped, Reader, pairs};
use crate::source::keys::side::Side;
use crate::source::keys::window;
use crate::types::DbIndex;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A reading of values whose sizes are not told counts as so many.
const UNTOLD: u32 = 4;
/// What a window's values are counted as until they have come.
const WINDOW_KIB: u32 = 2 << 10;

/// Readers of both sides, so many at a time.
#[derive(Clone)]
pub(super) struct Pool {
    sides: (Arc<Side>, Arc<Side>),
    idle: Arc<Mutex<Vec<(Reader, Reader)>>>,
    /// Readings at a time.
    turns: Arc<Semaphore>,
    /// KiB of values, beside the first window of each reading.
    room: Arc<Semaphore>,
    depth: usize,
}

/// What was read of some keys.
pub(super) struct States {
    pub read: Vec<(Vec<u8>, Dumped)>,
    /// Keys that are not read ahead: too large, or more than there is room for.
    pub rest: Vec<Vec<u8>>,
    _room: Vec<OwnedSemaphorePermit>,
}

/// Held while something is read.
type Turn = Option<OwnedSemaphorePermit>;

/// What both sides hold of some keys.
pub(super) type Compared = Vec<(Vec<u8>, Found, Found)>;

impl Pool {
    pub fn new(source: &Arc<Side>, target: &Arc<Side>, limits: &Limits) -> Pool {
        let masters = |side: &Arc<Side>| side.layout().masters.len().max(1);
        let most = limits.connections.map_or(usize::MAX, |n| n as usize);
        // Some are needed beside: for lists, notifications, and whoever reads the plain way.
        let most = most.saturating_sub(8) / masters(source).max(masters(target));
        let far = source.round_trip().max(target.round_trip());
        let depth = depth::pages(far, limits).min(most).max(1);
        let room = usize::try_from(limits.memory() >> 12).unwrap_or(1 << 16);
        Pool {
            sides: (source.clone(), target.clone()),
            idle: Arc::default(),
            turns: Arc::new(Semaphore::new(depth)),
            room: Arc::new(Semaphore::new(room)),
            depth,
        }
    }

    /// How many readings are under way at most.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Another server may have taken a side's place: all connections are opened anew.
    pub fn reset(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Reader, Reader)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where sizes are not told, a window may turn out to be several times what it should be: fewer are read at a time.
    async fn make_room(&self, turn: &mut Turn) {
        let (source, target) = &self.sides;
        if source.tells_sizes() && target.tells_sizes() {
            return;
        }
        // Given back first, as others wait for theirs.
        drop(turn.take());
        let many = u32::try_from(self.depth).map_or(UNTOLD, |depth| depth.min(UNTOLD));
        *turn = self.turns.clone().acquire_many_owned(many).await.ok();
    }

    /// Reads with a pair of readers; after an error its connections are not used any more.
    async fn with<T>(
        self,
        work: impl AsyncFnOnce(&mut Reader, &mut Reader, &Pool, &mut Turn) -> Result<T>,
    ) -> Result<T> {
        let mut turn = self.turns.clone().acquire_owned().await.ok();
        let idle = self.lock().pop();
        let (mut source, mut target) = idle.unwrap_or_else(|| {
            let (source, target) = self.sides.clone();
            let new = |side| Reader::new(side, Default::default());
            (new(source), new(target))
        });
        let done = work(&mut source, &mut target, &self, &mut turn).await?;
        self.lock().push((source, target));
        drop(turn);
        Ok(done)
    }

    /// What the source holds of some keys, as far as that is quickly read.
    pub async fn states(self, db: DbIndex, keys: Vec<Vec<u8>>) -> Result<States> {
        self.with(
            async move |source: &mut Reader, _: &mut Reader, pool: &Pool, turn: &mut Turn| {
                let mut states = States {
                    read: Vec::with_capacity(keys.len()),
                    rest: Vec::new(),
                    _room: Vec::new(),
                };
                let names: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
                let mut windows = VecDeque::from(source.windows(db, &names).await?);
                pool.make_room(turn).await;
                let owned = |keys: &[&[u8]]| keys.iter().map(|k| k.to_vec()).collect::<Vec<_>>();
                let mut first = true;
                while let Some(window) = windows.pop_front() {
                    let mut room = match first {
                        true => None,
                        false => (pool.room.clone().try_acquire_many_owned(WINDOW_KIB)).ok(),
                    };
                    let fits = first || room.is_some();
                    if !fits || window.is_wide() || !source.reads_whole(&window) {
                        states.rest.extend(owned(&window.keys));
                        continue;
                    }
                    match source.dumps(db, &window).await {
                        Ok(dumps) => {
                            let bytes = |dump: &Dumped| match dump {
                                Dumped::Here(payload, _) => payload.len(),
                                _ => 0,
                            };
                            let kib = dumps.iter().map(bytes).sum::<usize>() >> 10;
                            if let Some(room) = &mut room {
                                // What they have not taken is given back.
                                drop(room.split(room.num_permits().saturating_sub(kib + 1)));
                            }
                            let keys = owned(&window.keys).into_iter();
                            states.read.extend(keys.zip(dumps));
                            states._room.extend(room);
                            first = false;
                        }
                        Err(e) if window.shrinks(&e) => {
                            window::first(&mut windows, window.smaller());
                        }
                        // Whoever takes it finds out what to do about that.
                        Err(e) if e.kind() == ErrorKind::Refused => {
                            source.reset();
                            states.rest.extend(owned(&window.keys));
                        }
                        Err(e) => return Err(e),
                    }
                }
                Ok(states)
            },
        )
        .await
    }

    /// What both sides hold of some keys.
    pub async fn compared(
        self,
        (from, to): (DbIndex, DbIndex),
        keys: Vec<Vec<u8>>,
    ) -> Result<Compared> {
        self.with(
            async move |source: &mut Reader, target: &mut Reader, pool: &Pool, turn: &mut Turn| {
                let names: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
                let mut compared = Vec::with_capacity(keys.len());
                let windows = source.windows(from, &names).await?;
                pool.make_room(turn).await;
                for window in windows {
                    let both = pairs(source, from, target, to, &window).await?;
                    let both = window.keys.iter().zip(both);
                    compared.extend(both.map(|(key, (a, b))| (key.to_vec(), a, b)));
                }
                Ok(compared)
            },
        )
        .await
    }

    /// Those of some keys of the target that the source does not hold (any more).
    pub async fn gone(self, job: Job, db: DbIndex, keys: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        self.with(
            async move |source: &mut Reader, _: &mut Reader, _: &Pool, _: &mut Turn| {
                let names: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
                let gone = source.lacks(&job, db, names).await?;
                Ok(gone.into_iter().map(<[u8]>::to_vec).collect())
            },
        )
        .await
    }
}
