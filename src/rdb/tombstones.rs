//! Deleted messages that a stream's groups still wait for: put in for as long as XCLAIM takes to make them pending.

use crate::error::Result;
use crate::rdb::cursor::Reader;
use crate::rdb::opcode::{self as op, Dialect};
use crate::rdb::payload;
use crate::rdb::value::stream::{self, StreamId, StreamMeta};
use crate::rdb::value::{self, ValueSink};
use std::collections::BTreeSet;

/// What has to be added to a stream and removed again, in the order of ids.
#[derive(Debug, Default)]
pub struct Tombstones {
    pub ids: Vec<StreamId>,
    /// How many of them are in the stream.
    added: usize,
    /// The first message that is really there.
    pub first_entry: Option<StreamId>,
    /// What the stream's head is to say in the end; only where there are tombstones.
    pub head: Option<StreamMeta>,
}

/// Leaves of the ids those that no message has.
struct Missing(BTreeSet<StreamId>);

impl ValueSink for Missing {
    fn stream_entry(&mut self, id: StreamId, _: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        self.0.remove(&id);
        Ok(())
    }
}

impl Tombstones {
    /// Those of a value; none for anything but a stream.
    pub fn of(type_id: u8, dialect: Dialect, version: u32, body: &[u8]) -> Result<Tombstones> {
        if !matches!(
            type_id,
            op::STREAM | op::STREAM_2 | op::STREAM_3 | op::STREAM_4 | op::STREAM_5
        ) {
            return Ok(Tombstones::default());
        }
        let (nodes, tail) = payload::stream_parts(body)?;
        let meta = stream::meta(type_id, &mut Reader::new(tail, nodes.len() as u64))?;
        let waiting = meta.groups.iter().flat_map(|group| &group.pending);
        let mut missing = Missing(waiting.map(|p| p.id).collect());
        if !missing.0.is_empty() {
            value::decode(type_id, dialect, version, body, 0, &mut missing)?;
        }
        // No message can have it.
        missing.0.remove(&StreamId { ms: 0, seq: 0 });
        Ok(Tombstones {
            ids: missing.0.into_iter().collect(),
            ..Tombstones::default()
        })
    }

    /// The next one to be added, if it comes before `entry` (before the end without one).
    pub fn next(&mut self, entry: Option<StreamId>) -> Option<StreamId> {
        let id = *self.ids.get(self.added)?;
        if entry.is_some_and(|entry| entry <= id) {
            return None;
        }
        self.added += 1;
        Some(id)
    }

    /// Those before the first message, which are trimmed, and the others, which are deleted.
    pub fn parted(&self) -> (&[StreamId], &[StreamId]) {
        let before = |id: &StreamId| self.first_entry.is_none_or(|first| *id < first);
        self.ids.split_at(self.ids.partition_point(before))
    }
}
