//! Streams: what they are beside their entries, in all five layouts (rdb.c rdbSaveObject OBJ_STREAM).

use crate::error::Result;
use crate::rdb::cursor::Reader;
use crate::rdb::encoding::{length, put_length, put_string, string};
use crate::rdb::opcode as op;

/// An entry's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    pub ms: u64,
    pub seq: u64,
}

impl StreamId {
    /// As servers write it, `1526919030474-55`.
    pub fn parse(text: &[u8]) -> Option<StreamId> {
        let (ms, seq) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(StreamId {
            ms: ms.parse().ok()?,
            seq: seq.parse().ok()?,
        })
    }
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// What an older layout does not hold is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamMeta {
    pub length: u64,
    pub last_id: StreamId,
    pub first_id: Option<StreamId>,
    pub max_deleted_id: Option<StreamId>,
    pub entries_added: Option<u64>,
    pub groups: Vec<Group>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub name: Vec<u8>,
    pub last_id: StreamId,
    /// `u64::MAX` is the server's own "unknown".
    pub entries_read: Option<u64>,
    pub pending: Vec<Pending>,
    pub consumers: Vec<Consumer>,
    /// Entries handed back without an owner (Redis 8.8).
    pub nacked: Vec<StreamId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    pub id: StreamId,
    pub delivery_ms: i64,
    pub deliveries: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    pub name: Vec<u8>,
    pub seen_ms: i64,
    pub active_ms: Option<i64>,
    pub pending: Vec<StreamId>,
}

impl Group {
    /// The consumer that owns a pending entry.
    pub fn owners(&self) -> std::collections::HashMap<StreamId, &[u8]> {
        self.consumers
            .iter()
            .flat_map(|c| c.pending.iter().map(|id| (*id, c.name.as_slice())))
            .collect()
    }
}

const WHAT: &str = "a stream";

/// An id as sixteen bytes.
pub(super) fn raw_id(r: &mut Reader<'_>) -> Result<StreamId> {
    Ok(StreamId {
        ms: u64::from_be_bytes(r.array(WHAT)?),
        seq: u64::from_be_bytes(r.array(WHAT)?),
    })
}

fn id(r: &mut Reader<'_>) -> Result<StreamId> {
    Ok(StreamId {
        ms: length(r, WHAT)?,
        seq: length(r, WHAT)?,
    })
}

/// Everything after the nodes.
pub fn meta(type_id: u8, r: &mut Reader<'_>) -> Result<StreamMeta> {
    let v2 = type_id != op::STREAM;
    let v3 = v2 && type_id != op::STREAM_2;
    let mut meta = StreamMeta {
        length: length(r, WHAT)?,
        last_id: id(r)?,
        first_id: None,
        max_deleted_id: None,
        entries_added: None,
        groups: Vec::new(),
    };
    if v2 {
        meta.first_id = Some(id(r)?);
        meta.max_deleted_id = Some(id(r)?);
        meta.entries_added = Some(length(r, WHAT)?);
    }
    for _ in 0..length(r, WHAT)? {
        let mut group = Group {
            name: string(r, "a group's name")?.into_owned(),
            last_id: id(r)?,
            entries_read: if v2 { Some(length(r, WHAT)?) } else { None },
            pending: Vec::new(),
            consumers: Vec::new(),
            nacked: Vec::new(),
        };
        for _ in 0..length(r, WHAT)? {
            group.pending.push(Pending {
                id: raw_id(r)?,
                delivery_ms: r.i64(WHAT)?,
                deliveries: length(r, WHAT)?,
            });
        }
        for _ in 0..length(r, WHAT)? {
            let mut consumer = Consumer {
                name: string(r, "a consumer's name")?.into_owned(),
                seen_ms: r.i64(WHAT)?,
                active_ms: if v3 { Some(r.i64(WHAT)?) } else { None },
                pending: Vec::new(),
            };
            for _ in 0..length(r, WHAT)? {
                consumer.pending.push(raw_id(r)?);
            }
            group.consumers.push(consumer);
        }
        if type_id == op::STREAM_5 {
            for _ in 0..length(r, WHAT)? {
                group.nacked.push(raw_id(r)?);
            }
        }
        meta.groups.push(group);
    }
    if type_id == op::STREAM_4 || type_id == op::STREAM_5 {
        idempotent_producers(r)?;
    }
    Ok(meta)
}

/// The tail of Redis 8.6: producers and the ids they have used (rdb.c rdbSaveStreamIdmpEntries).
fn idempotent_producers(r: &mut Reader<'_>) -> Result<()> {
    length(r, WHAT)?;
    length(r, WHAT)?;
    for _ in 0..length(r, WHAT)? {
        string(r, WHAT)?;
        for _ in 0..length(r, WHAT)? {
            string(r, WHAT)?;
            id(r)?;
        }
    }
    length(r, WHAT)?;
    length(r, WHAT)?;
    Ok(())
}

/// Appends everything after the nodes in an older layout; what that layout lacks is left out.
pub fn put_meta(out: &mut Vec<u8>, meta: &StreamMeta, type_id: u8) {
    let (v2, v3) = (type_id != op::STREAM, type_id == op::STREAM_3);
    let put_id = |out: &mut Vec<u8>, id: StreamId| {
        put_length(out, id.ms);
        put_length(out, id.seq);
    };
    let put_raw = |out: &mut Vec<u8>, id: StreamId| {
        out.extend_from_slice(&id.ms.to_be_bytes());
        out.extend_from_slice(&id.seq.to_be_bytes());
    };
    let zero = StreamId { ms: 0, seq: 0 };
    put_length(out, meta.length);
    put_id(out, meta.last_id);
    if v2 {
        put_id(out, meta.first_id.unwrap_or(zero));
        put_id(out, meta.max_deleted_id.unwrap_or(zero));
        put_length(out, meta.entries_added.unwrap_or(meta.length));
    }
    put_length(out, meta.groups.len() as u64);
    for group in &meta.groups {
        put_string(out, &group.name);
        put_id(out, group.last_id);
        if v2 {
            put_length(out, group.entries_read.unwrap_or(u64::MAX));
        }
        // A pending entry without an owner cannot be loaded by a version that knows none.
        let owners = group.owners();
        let pending: Vec<&Pending> = group
            .pending
            .iter()
            .filter(|p| owners.contains_key(&p.id))
            .collect();
        put_length(out, pending.len() as u64);
        for p in pending {
            put_raw(out, p.id);
            out.extend_from_slice(&p.delivery_ms.to_le_bytes());
            put_length(out, p.deliveries);
        }
        put_length(out, group.consumers.len() as u64);
        for c in &group.consumers {
            put_string(out, &c.name);
            out.extend_from_slice(&c.seen_ms.to_le_bytes());
            if v3 {
                out.extend_from_slice(&c.active_ms.unwrap_or(c.seen_ms).to_le_bytes());
            }
            put_length(out, c.pending.len() as u64);
            for id in &c.pending {
                put_raw(out, *id);
            }
        }
    }
}
