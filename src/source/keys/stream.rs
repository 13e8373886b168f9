//! What a stream has beside its entries, read by XINFO without being held: groups, consumers, pending entries.
//!
//! XINFO STREAM FULL is the one command that tells when a pending entry was delivered, and it has no pages: its answer is
//! taken item by item as it comes. Its COUNT is chosen so that it lists all pending entries, but not a million entries
//! beside these (t_stream.c xinfoReplyWithStreamInfo).

use crate::error::{Error, Result};
use crate::net::Conn;
use crate::rdb::value::ValueSink;
use crate::rdb::value::stream::{Group, Pending, StreamId, StreamMeta};
use crate::resp::Reply;

const FULL: &str = "XINFO STREAM FULL";
/// More pending entries than were counted a moment before: some may be delivered in between.
const MORE: u64 = 100;

/// Reads one stream's groups into a sink.
pub struct Groups<'a, S> {
    conn: &'a mut Conn,
    key: &'a [u8],
    /// What one item may take.
    most: usize,
    sink: &'a mut S,
}

impl<'a, S: ValueSink> Groups<'a, S> {
    pub fn new(conn: &'a mut Conn, key: &'a [u8], most: usize, sink: &'a mut S) -> Groups<'a, S> {
        Groups {
            conn,
            key,
            most,
            sink,
        }
    }

    fn strange(&self) -> Error {
        self.conn.strange(FULL)
    }

    async fn item(&mut self) -> Result<Reply> {
        self.conn.item(self.most).await
    }

    async fn number(&mut self) -> Result<Option<u64>> {
        Ok(self.item().await?.int().and_then(|n| u64::try_from(n).ok()))
    }

    async fn id(&mut self) -> Result<Option<StreamId>> {
        Ok(self.item().await?.bytes().and_then(StreamId::parse))
    }

    /// The items of a list inside of the reply.
    async fn list(&mut self) -> Result<usize> {
        match self.conn.inner().await? {
            Some(n) => Ok(n),
            None => Err(self.strange()),
        }
    }

    /// The pairs of a map inside of the reply.
    async fn map(&mut self) -> Result<usize> {
        Ok(self.list().await? / 2)
    }

    /// The name in front of what comes next.
    async fn field(&mut self) -> Result<Vec<u8>> {
        match self.item().await? {
            Reply::Bulk(name) => Ok(name),
            _ => Err(self.strange()),
        }
    }

    pub async fn read(mut self) -> Result<()> {
        let pending = self.pending_of_the_largest().await?;
        let count = pending.saturating_add(MORE.min(pending)).max(1).to_string();
        let args = [
            b"XINFO".as_slice(),
            b"STREAM",
            self.key,
            b"FULL",
            b"COUNT",
            count.as_bytes(),
        ];
        let fields = self.conn.list(&args).await? / 2;
        let mut head = StreamMeta {
            length: 0,
            last_id: StreamId { ms: 0, seq: 0 },
            first_id: None,
            max_deleted_id: None,
            entries_added: None,
            groups: Vec::new(),
        };
        let (mut length, mut last_id, mut groups) = (None, None, false);
        for _ in 0..fields {
            match self.field().await?.as_slice() {
                b"length" => length = self.number().await?,
                b"last-generated-id" => last_id = self.id().await?,
                b"max-deleted-entry-id" => head.max_deleted_id = self.id().await?,
                b"entries-added" => head.entries_added = self.number().await?,
                // Whatever is told of the stream comes before them.
                b"groups" => {
                    let (Some(length), Some(last_id)) = (length, last_id) else {
                        return Err(self.strange());
                    };
                    (head.length, head.last_id, groups) = (length, last_id, true);
                    self.sink.stream_head(&head)?;
                    for _ in 0..self.list().await? {
                        self.group(head.entries_added.is_some()).await?;
                    }
                }
                _ => drop(self.conn.skim().await?),
            }
        }
        match groups {
            true => Ok(()),
            false => Err(self.strange()),
        }
    }

    /// How many entries are pending in the group that has most.
    async fn pending_of_the_largest(&mut self) -> Result<u64> {
        let mut largest = 0;
        for _ in 0..self.conn.list(&[b"XINFO", b"GROUPS", self.key]).await? {
            for _ in 0..self.map().await? {
                match self.field().await?.as_slice() {
                    b"pending" => largest = largest.max(self.number().await?.unwrap_or(0)),
                    _ => drop(self.conn.skim().await?),
                }
            }
        }
        Ok(largest)
    }

    async fn group(&mut self, counts: bool) -> Result<()> {
        let (mut name, mut last_id, mut read) = (None, None, u64::MAX);
        let mut told = false;
        for _ in 0..self.map().await? {
            let field = self.field().await?;
            if !told && matches!(field.as_slice(), b"pel" | b"pending" | b"consumers") {
                let (Some(name), Some(last_id)) = (&name, last_id) else {
                    return Err(self.strange());
                };
                let group = Group {
                    name: Vec::clone(name),
                    last_id,
                    // "Unknown" is nil here, and the largest number in a payload.
                    entries_read: counts.then_some(read),
                    pending: Vec::new(),
                    consumers: Vec::new(),
                    nacked: Vec::new(),
                };
                self.sink.stream_group(&group)?;
                told = true;
            }
            match field.as_slice() {
                b"name" => name = self.item().await?.bytes().map(<[u8]>::to_vec),
                b"last-delivered-id" => last_id = self.id().await?,
                b"entries-read" => read = self.number().await?.unwrap_or(u64::MAX),
                b"pel" | b"pending" => {
                    for _ in 0..self.list().await? {
                        self.pending(name.as_deref().unwrap_or_default()).await?;
                    }
                }
                b"consumers" => {
                    for _ in 0..self.list().await? {
                        self.consumer(name.as_deref().unwrap_or_default()).await?;
                    }
                }
                _ => drop(self.conn.skim().await?),
            }
        }
        match told {
            true => Ok(()),
            false => Err(self.strange()),
        }
    }

    /// \[id, consumer, delivered at, deliveries\]
    async fn pending(&mut self, group: &[u8]) -> Result<()> {
        let Reply::Array(parts) = self.item().await? else {
            return Err(self.strange());
        };
        let int = |at: usize| parts.get(at).and_then(Reply::int);
        let id = (parts.first().and_then(Reply::bytes)).and_then(StreamId::parse);
        let deliveries = int(3).and_then(|n| u64::try_from(n).ok());
        let (Some(id), Some(delivery_ms), Some(deliveries)) = (id, int(2), deliveries) else {
            return Err(self.strange());
        };
        let pending = Pending {
            id,
            delivery_ms,
            deliveries,
        };
        let owner = parts.get(1).and_then(Reply::bytes);
        self.sink.stream_pending(group, &pending, owner)
    }

    async fn consumer(&mut self, group: &[u8]) -> Result<()> {
        let (mut name, mut idle) = (None, true);
        for _ in 0..self.map().await? {
            match self.field().await?.as_slice() {
                b"name" => name = self.item().await?.bytes().map(<[u8]>::to_vec),
                b"pel" | b"pending" => {
                    for _ in 0..self.list().await? {
                        idle = false;
                        self.conn.skim().await?;
                    }
                }
                _ => drop(self.conn.skim().await?),
            }
        }
        match name {
            Some(name) => self.sink.stream_consumer(group, &name, idle),
            None => Err(self.strange()),
        }
    }
}
