//! The healer: which keys wait to be rewritten, reading them many at a time, and up to which offset each is covered.
//!
//! Whoever wants a key healed queues it; the loop drains the queue. A key that trouble has cut off is queued again.
//! Invariant: from the moment that a key is queued until its state is on its way, a hold keeps checkpoints before the
//! command that it waits for, and commands on it are queued too instead of being sent.

use crate::error::{Error, Result};
use crate::fence::KeyState;
use crate::migrate::checkpoint::checkpoints::Checkpoints;
use crate::migrate::checkpoint::holds::{HoldId, Why};
use crate::migrate::context::ShardContext;
use crate::migrate::heal::fenced_reader::ReadStates;
use crate::migrate::heal::queue::{HealQueue, Key};
use crate::migrate::heal::state::{StateWriter, Written};
use crate::migrate::write::large_value::Delivery;
use crate::migrate::write::wire::Wire;
use crate::task::failpoint;
use crate::types::{DbIndex, Mark, ReplOffset, Slot, db_key, shown, split_db_key};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Keys read in one round trip to the source, and the memory that they may take there in bytes.
const HEAL_CHUNK: usize = 64;
const HEAL_BYTES: u64 = 2 << 20;
/// Keys whose sizes are asked for in one round trip.
const SIZES_CHUNK: usize = 512;
/// What a key counts whose size is not told, in bytes.
const UNTOLD: u64 = HEAL_BYTES / 16;
/// Maximum times that a key's state, which the target keeps refusing, is written again.
const MOST_REFUSALS: u32 = 8;
/// After this long without another, a refusal no longer counts.
const REFUSALS_APART: Duration = Duration::from_secs(60);

/// How a drain of the queue has ended.
pub(crate) enum Drained {
    /// Nothing waits any more.
    Empty,
    /// Trouble at the target: the rest waits until it is settled.
    Troubled,
    /// A value has to be delivered over a connection of its own; then [`Healer::delivered`].
    Deliver(Box<Delivery>, Key, ReplOffset),
}

/// Keys that wait, and keys whose state is ahead of the stream.
pub(crate) struct Healer {
    queue: HealQueue,
    /// Keeps checkpoints before the first command that a waiting key stands for, with that command's mark.
    hold: Option<(HoldId, Mark)>,
    /// Keys whose state on the target is already that of a later offset, by [`db_key`].
    ahead: HashMap<Vec<u8>, ReplOffset>,
    ahead_to: ReplOffset,
    /// How often the target has refused a key's state for good, and when last.
    refusals: HashMap<Vec<u8>, (u32, Instant)>,
}

impl Healer {
    pub fn new() -> Healer {
        Healer {
            queue: HealQueue::default(),
            hold: None,
            ahead: HashMap::new(),
            ahead_to: ReplOffset(0),
            refusals: HashMap::new(),
        }
    }

    /// Has keys healed: those of a command that stands at `mark`.
    pub fn queue(
        &mut self,
        keys: impl IntoIterator<Item = Key>,
        mark: Mark,
        marks: &mut Checkpoints,
        now: Instant,
    ) {
        for key in keys {
            match &mut self.hold {
                Some((id, held)) => {
                    *held = held.earlier(mark);
                    marks.extend(*id, *held);
                }
                None => self.hold = Some((marks.hold(mark, Why::Undone), mark)),
            }
            self.queue.push(key, now);
        }
    }

    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether keys have waited long enough, or are enough.
    pub fn is_due(&self, now: Instant) -> bool {
        self.queue.is_due(now)
    }

    /// Whether a key waits, so that a command on it has to wait as well.
    pub fn waits(&self, db: DbIndex, key: &[u8]) -> bool {
        self.queue.has(db, key)
    }

    /// Whether what a command that ends at `end` does to a key is already in the state that was written.
    pub fn covers(&self, db: DbIndex, key: &[u8], end: ReplOffset) -> bool {
        !self.ahead.is_empty() && (self.ahead.get(&db_key(db, key))).is_some_and(|f| end <= *f)
    }

    /// Whether any key may be ahead of the stream.
    pub fn is_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Up to where keys may be ahead.
    pub fn ahead_to(&self) -> ReplOffset {
        self.ahead_to
    }

    /// The stream has come to `end`: what is ahead of it no more is forgotten.
    pub fn pass(&mut self, end: ReplOffset) {
        if !self.ahead.is_empty() && end > self.ahead_to {
            self.ahead.clear();
        }
    }

    /// Keys that are ahead of the stream, of one of the source's databases or of all.
    pub fn keys_ahead(&self, of: Option<DbIndex>) -> Vec<Key> {
        (self.ahead.keys().map(|name| split_db_key(name)))
            .filter(|(db, _)| of.is_none_or(|of| of == *db))
            .collect()
    }

    /// Keys whose state belongs to an offset beyond `from`, where another server's history begins.
    pub fn keys_beyond(&self, from: ReplOffset) -> Vec<Key> {
        (self.ahead.iter().filter(|(_, offset)| **offset > from))
            .map(|(name, _)| split_db_key(name))
            .collect()
    }

    /// The target has refused a key's state for good; an error once that has been too often.
    pub fn refused(&mut self, db: DbIndex, key: &[u8], why: Error, now: Instant) -> Result<()> {
        (self.refusals).retain(|_, (_, last)| now.duration_since(*last) < REFUSALS_APART);
        let entry = self.refusals.entry(db_key(db, key));
        let (times, last) = entry.or_insert((0, now));
        (*times, *last) = (*times + 1, now);
        match *times > MOST_REFUSALS {
            true => Err(why.context(format!("write the key {} to the target", shown(key)))),
            false => Ok(()),
        }
    }

    /// Empties the queue without healing, for a driver that reads the keys in its own way.
    pub fn hand_out(&mut self, marks: &mut Checkpoints) -> Vec<Key> {
        self.let_go(marks);
        self.queue.take()
    }

    /// Everything that waits or is ahead is read again from before it.
    pub fn rewind(&mut self) {
        *self = Healer::new();
    }

    fn let_go(&mut self, marks: &mut Checkpoints) {
        if let Some((id, _)) = self.hold.take() {
            marks.release(id);
        }
    }

    /// Reads the true state of every waiting key and writes it; afterwards commands of the stream up to the offset of
    /// that state are covered.
    pub fn drain<W: Wire>(
        &mut self,
        ctx: &ShardContext,
        reader: &mut impl ReadStates,
        states: &mut StateWriter<'_, W>,
        marks: &mut Checkpoints,
    ) -> Result<Drained> {
        let Some((_, mark)) = self.hold else {
            return Ok(Drained::Empty);
        };
        let now = Instant::now();
        let keys = self.queue.take();
        if ctx.dry_run() {
            marks.count_healed(keys.len() as u64);
            self.let_go(marks);
            return Ok(Drained::Empty);
        }
        let mut by_db: BTreeMap<DbIndex, Vec<&[u8]>> = BTreeMap::new();
        for (db, key) in &keys {
            if states.door.slots().may_write(ctx, key) {
                by_db.entry(*db).or_default().push(key);
            }
        }
        let mut ended = None;
        for (db, list) in by_db {
            for some in list.chunks(SIZES_CHUNK) {
                let windows = match (some, &ended) {
                    (_, Some(_)) => vec![some.len()],
                    ([_], None) => vec![1],
                    _ => windows_of(&reader.sizes(db, some)?),
                };
                let mut rest = some;
                for n in windows {
                    let (window, after) = rest.split_at(n);
                    rest = after;
                    if ended.is_none() && states.writer.troubled() {
                        // Nothing would make room for more.
                        ended = Some(Drained::Troubled);
                    }
                    let left = match ended {
                        Some(_) => window.to_vec(),
                        None => {
                            let (left, end) =
                                self.window(ctx, reader, states, marks, db, window, mark)?;
                            ended = end;
                            left
                        }
                    };
                    for key in left {
                        self.queue.push((db, key.to_vec()), now);
                    }
                }
            }
        }
        if self.queue.is_empty() && ended.is_none() {
            self.let_go(marks);
        }
        Ok(ended.unwrap_or(Drained::Empty))
    }

    /// Heals keys that are read at once; returns those that are not done, and why no more may follow.
    #[allow(clippy::too_many_arguments)]
    fn window<'k, W: Wire>(
        &mut self,
        ctx: &ShardContext,
        reader: &mut impl ReadStates,
        states: &mut StateWriter<'_, W>,
        marks: &mut Checkpoints,
        db: DbIndex,
        keys: &[&'k [u8]],
        mark: Mark,
    ) -> Result<(Vec<&'k [u8]>, Option<Drained>)> {
        let (ownership, adopting) = (&ctx.shared.ownership, states.door.slots().adopting());
        // What moves away meanwhile is left to its new owner; while slots are copied that have come to us, one may go on
        // to the next.
        let moved = |key: &[u8]| {
            let slot = Slot::of(key);
            (ownership.as_ref()).is_some_and(|o| {
                o.has_left(ctx.id, slot) && !(adopting && o.is_coming(ctx.id, slot))
            })
        };
        let read = reader.read(db, keys, &moved)?;
        failpoint("heal-read");
        if let Some(offset) = read.iter().map(|s: &KeyState| s.offset).max() {
            marks.reserve(offset)?;
        }
        failpoint("heal-reserved");
        let mut left = Vec::new();
        for (i, (key, state)) in keys.iter().zip(&read).enumerate() {
            if state.elsewhere {
                ctx.count("left_to_adoption");
                continue;
            }
            let written = states.write(db, key, state, mark)?;
            states.expiry.observe_read(db, key, state.payload.is_some());
            marks.touch(db, key);
            self.ahead_to = self.ahead_to.max(state.offset);
            match written {
                Written::Value | Written::Nothing => {
                    self.ahead.insert(db_key(db, key), state.offset);
                    marks.count_healed(1);
                }
                Written::CutOff => left.push(*key),
                Written::Deliver(delivery) => {
                    let of = (db, key.to_vec());
                    left.extend(keys.get(i..).unwrap_or_default());
                    return Ok((left, Some(Drained::Deliver(delivery, of, state.offset))));
                }
            }
        }
        failpoint("heal-written");
        Ok((left, None))
    }

    /// A value has been delivered, of a state at `offset`.
    pub fn delivered(&mut self, key: &Key, offset: ReplOffset, marks: &mut Checkpoints) {
        self.ahead.insert(db_key(key.0, &key.1), offset);
        self.queue.remove(key.0, &key.1);
        marks.count_healed(1);
        if self.queue.is_empty() {
            self.let_go(marks);
        }
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
mod tests;
