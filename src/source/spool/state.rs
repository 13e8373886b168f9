//! What is known of what is spooled, and of what is still to come.

use super::arrivals::Arrivals;
use super::link::Link;
use crate::types::{ReplId, ReplOffset};
use std::path::PathBuf;

/// Why no more bytes will come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The run is stopping; what is spooled may be read on or left for the next run.
    Stopped,
    /// The file is read: nothing comes after what is spooled.
    Finished,
    /// The source has started a new full sync: the snapshot and stream spooled here do not go on.
    Superseded,
}

/// All of it; guarded by the spool's lock.
#[derive(Debug)]
pub struct State {
    pub snapshot: Snapshot,
    pub stream_start: ReplOffset,
    pub stream_end: ReplOffset,
    pub released: ReplOffset,
    pub end: Option<End>,
    pub arrivals: Arrivals,
    /// The history that the spooled bytes belong to.
    pub replid: Option<ReplId>,
    /// Where the source went on under another replication id, the first time that nobody has dealt with.
    pub history_from: Option<ReplOffset>,
    pub link: Link,
    /// The disk is nearly full, whatever the limit says.
    pub disk_low: bool,
}

/// How far the snapshot is.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub len: u64,
    /// How far the loop has read it.
    pub read: u64,
    /// Before the first, it has been left to the disk; before the second it is on its way there.
    pub on_disk: (u64, u64),
    pub total: Option<u64>,
    pub complete: bool,
    /// Also after a power cut.
    pub durable: bool,
    /// Files of the user's, read where they lie.
    pub parts: Vec<Part>,
    /// Commands behind them come as the stream.
    pub commands: bool,
}

/// A file that is a part of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub path: PathBuf,
    /// Where it begins in the whole.
    pub from: u64,
    pub len: u64,
}

impl Part {
    pub fn end(&self) -> u64 {
        self.from.saturating_add(self.len)
    }
}

impl State {
    /// With a snapshot of this length and a stream from `start` to `end` on disk.
    pub fn new(snapshot_len: u64, start: ReplOffset, end: ReplOffset, arrivals: Arrivals) -> State {
        State {
            snapshot: Snapshot {
                len: snapshot_len,
                ..Snapshot::default()
            },
            stream_start: start,
            stream_end: end,
            released: start,
            end: None,
            arrivals,
            replid: None,
            history_from: None,
            link: Link::new(),
            disk_low: false,
        }
    }

    /// The snapshot is of no use any more, or not now.
    pub fn ended_early(&self) -> bool {
        matches!(self.end, Some(End::Stopped | End::Superseded))
    }
}
