//! Listing the keys of one node: SCAN page by page, and the keys of a slot.

use crate::error::{Error, ErrorKind, Result};
use crate::net::{self, Conn, refusal, server};
use crate::plan::Endpoint;
use crate::resp::Reply;
use crate::types::{DbIndex, Slot};

/// SCAN over the selected database.
///
/// A key that is there all the time comes at least once, and while the server resizes its table perhaps twice.
pub struct Scan {
    /// `None` when the end has been reached.
    cursor: Option<Vec<u8>>,
    /// Only keys that begin so; without it all.
    pattern: Option<Vec<u8>>,
    /// Asks for the page after the one that has come, so that the server works while that is looked at.
    ahead: bool,
    /// It has been asked for.
    asked: bool,
    /// Keys of a page at most: fewer once a page of long names was too large.
    most: u32,
}

impl Scan {
    pub fn new() -> Scan {
        Scan::from(b"0".to_vec())
    }

    /// Goes on where an earlier scan of the same server has stopped.
    pub fn from(cursor: Vec<u8>) -> Scan {
        Scan {
            cursor: Some(cursor),
            pattern: None,
            ahead: false,
            asked: false,
            most: u32::MAX,
        }
    }

    /// Has one page on its way always: the connection serves nothing else, and no other may take over after it.
    pub fn ahead(mut self) -> Scan {
        self.ahead = true;
        self
    }

    /// Only the keys with a prefix.
    pub fn of_prefix(prefix: &[u8]) -> Scan {
        let mut pattern = Vec::with_capacity(prefix.len() + 1);
        for byte in prefix {
            if b"*?[]\\^-".contains(byte) {
                pattern.push(b'\\');
            }
            pattern.push(*byte);
        }
        pattern.push(b'*');
        Scan {
            pattern: Some(pattern),
            ..Scan::new()
        }
    }

    /// The next page, which may be empty; `None` after the last one.
    ///
    /// Where a page of long names is too large, it goes on by smaller ones over a new connection, which `conn` is then.
    pub async fn next(
        &mut self,
        endpoint: &Endpoint,
        conn: &mut Conn,
        count: u32,
    ) -> Result<Option<Vec<Vec<u8>>>> {
        loop {
            let count = count.min(self.most);
            match self.page(conn, count).await {
                Err(e) if e.kind() == ErrorKind::Oversized && count > 1 => {
                    self.most = (count / FEWER).max(1);
                    *conn = again(endpoint, conn).await?;
                }
                page => return page,
            }
        }
    }

    async fn page(&mut self, conn: &mut Conn, count: u32) -> Result<Option<Vec<Vec<u8>>>> {
        let Some(cursor) = &self.cursor else {
            return Ok(None);
        };
        let reply = match std::mem::take(&mut self.asked) {
            true => {
                let reply = conn.reply().await?;
                conn.accepted(b"SCAN", reply)?
            }
            false => (conn.call(&self.command(cursor, &count.to_string()))).await?,
        };
        let Reply::Array(parts) = reply else {
            return Err(unforeseen("SCAN", conn));
        };
        let mut parts = parts.into_iter();
        let (Some(Reply::Bulk(next)), Some(Reply::Array(page))) = (parts.next(), parts.next())
        else {
            return Err(unforeseen("SCAN", conn));
        };
        self.cursor = Some(next).filter(|c| c != b"0");
        if let (true, Some(cursor)) = (self.ahead, &self.cursor) {
            conn.push(&self.command(cursor, &count.to_string()));
            // If that fails, the next call says so: this page must not be lost.
            self.asked = conn.flush().await.is_ok();
        }
        Ok(Some(names(page)))
    }

    fn command<'a>(&'a self, cursor: &'a [u8], count: &'a str) -> Vec<&'a [u8]> {
        let mut command: Vec<&[u8]> = vec![b"SCAN", cursor, b"COUNT", count.as_bytes()];
        if let Some(pattern) = &self.pattern {
            command.extend([b"MATCH".as_slice(), pattern]);
        }
        command
    }

    /// Where the next page begins; `None` at the end.
    pub fn cursor(&self) -> Option<&[u8]> {
        self.cursor.as_deref()
    }
}

impl Default for Scan {
    fn default() -> Scan {
        Scan::new()
    }
}

/// The next page after one that was too large has so many times fewer names.
const FEWER: u32 = 16;
/// What a name takes beside its bytes.
const NAME: usize = 64;

fn names(page: Vec<Reply>) -> Vec<Vec<u8>> {
    page.into_iter()
        .filter_map(|key| match key {
            Reply::Bulk(key) => Some(key),
            _ => None,
        })
        .collect()
}

/// Another connection to the same server, on which a cursor of it means the same.
async fn again(endpoint: &Endpoint, conn: &Conn) -> Result<Conn> {
    let mut other = net::connect(endpoint, conn.address()).await?;
    if other.address() != conn.address() {
        let text = format!("{} answers instead of {}", other.address(), conn.address());
        return Err(Error::new(ErrorKind::Connection, text));
    }
    other.select(conn.db()).await?;
    Ok(other)
}

fn unforeseen(command: &str, conn: &Conn) -> Error {
    Error::new(
        ErrorKind::Protocol,
        format!(
            "{} answered {command} in a form that is not understood",
            conn.address()
        ),
    )
}

/// The databases that hold keys, over the connection that will list them.
pub async fn databases(conn: &mut Conn) -> Result<Vec<(DbIndex, u64)>> {
    let reply = conn.call(&[b"INFO", b"keyspace"]).await?;
    Ok(server::databases_in(&reply))
}

/// What a cluster node lists of a slot.
#[derive(Default)]
pub struct SlotKeys {
    /// `None` where it holds more than was asked for.
    pub keys: Option<Vec<Vec<u8>>>,
    /// The node that holds the rest, as the slot is on its way there.
    pub rest_at: Option<String>,
}

/// What a node is to the slots that it is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// Their master; a node that is not (any more) is an error.
    Master,
    /// They are on their way to it, and it lists what has come.
    Importing,
}

/// How many keys each of some slots has, as a cluster node counts them.
pub async fn slots_sizes(conn: &mut Conn, slots: &[Slot]) -> Result<Vec<u64>> {
    let mut sizes = Vec::with_capacity(slots.len());
    for some in slots.chunks(SIZES_AT_ONCE) {
        for slot in some {
            let slot = slot.to_string();
            conn.push(&[b"CLUSTER", b"COUNTKEYSINSLOT", slot.as_bytes()]);
        }
        conn.flush().await?;
        for _ in some {
            match conn.reply().await? {
                Reply::Int(n) => sizes.push(u64::try_from(n).unwrap_or(0)),
                Reply::Error(text) => return Err(refusal("CLUSTER COUNTKEYSINSLOT", &text)),
                _ => return Err(unforeseen("CLUSTER COUNTKEYSINSLOT", conn)),
            }
        }
    }
    Ok(sizes)
}

/// The keys of slots, as a cluster node lists them, but not those of a slot that holds more than `most`.
///
/// A node lists a slot that has left it as empty, and of one that is leaving what is left, without a word. So each is
/// asked for a key that nobody has, before and behind the list: MOVED and ASK say it.
///
/// Errors: `Oversized` when they all take more than `room` bytes; `Moved` when a slot is another master's.
pub async fn slots_keys(
    conn: &mut Conn,
    slots: &[Slot],
    most: i64,
    mut room: usize,
    holder: Holder,
) -> Result<Vec<SlotKeys>> {
    let master = holder == Holder::Master;
    for slot in slots {
        if master {
            conn.push(&[b"EXISTS", slot.own_name().as_bytes()]);
        }
        let slot = slot.to_string();
        conn.push(&[b"CLUSTER", b"COUNTKEYSINSLOT", slot.as_bytes()]);
    }
    conn.flush().await?;
    let mut counts = Vec::with_capacity(slots.len());
    let mut listed = Vec::with_capacity(slots.len());
    for _ in slots {
        let rest_at = match master {
            true => rest_at(conn).await?,
            false => None,
        };
        listed.push(SlotKeys {
            keys: None,
            rest_at,
        });
        match conn.reply().await? {
            Reply::Int(n) => counts.push(n),
            Reply::Error(text) => return Err(refusal("CLUSTER COUNTKEYSINSLOT", &text)),
            _ => return Err(unforeseen("CLUSTER COUNTKEYSINSLOT", conn)),
        }
    }
    let asked = |n: i64| n <= most;
    for (slot, n) in slots.iter().zip(&counts) {
        if asked(*n) {
            // A few more, for keys that come in between.
            let (slot, n) = (slot.to_string(), n.saturating_add(1000).to_string());
            conn.push(&[b"CLUSTER", b"GETKEYSINSLOT", slot.as_bytes(), n.as_bytes()]);
        }
        if master {
            conn.push(&[b"EXISTS", slot.own_name().as_bytes()]);
        }
    }
    conn.flush().await?;
    for (slot, n) in listed.iter_mut().zip(counts) {
        if asked(n) {
            slot.keys = match conn.reply_within(room).await? {
                Reply::Array(page) => {
                    let page = names(page);
                    let taken = |sum: usize, key: &Vec<u8>| {
                        sum.saturating_add(NAME).saturating_add(key.len())
                    };
                    room = room.saturating_sub(page.iter().fold(0, taken));
                    Some(page)
                }
                Reply::Error(text) => return Err(refusal("CLUSTER GETKEYSINSLOT", &text)),
                _ => return Err(unforeseen("CLUSTER GETKEYSINSLOT", conn)),
            };
        }
        if master {
            slot.rest_at = rest_at(conn).await?.or(slot.rest_at.take());
        }
    }
    Ok(listed)
}

/// Asks a master for slots: which of them are on their way, and to which node.
///
/// Errors: as [`slots_keys`].
pub async fn leaving(conn: &mut Conn, slots: &[Slot]) -> Result<Vec<(Slot, String)>> {
    let mut found = Vec::new();
    for some in slots.chunks(AT_ONCE) {
        for slot in some {
            conn.push(&[b"EXISTS", slot.own_name().as_bytes()]);
        }
        conn.flush().await?;
        for slot in some {
            found.extend(rest_at(conn).await?.map(|address| (*slot, address)));
        }
    }
    Ok(found)
}

/// Questions on their way together.
const AT_ONCE: usize = 1024;
const SIZES_AT_ONCE: usize = 4096;

/// The answer to EXISTS of a name that nobody has.
async fn rest_at(conn: &mut Conn) -> Result<Option<String>> {
    match conn.reply().await? {
        Reply::Error(text) if text.starts_with("ASK ") => {
            let host = conn.address().rsplit_once(':').map_or("", |(host, _)| host);
            Ok(Some(net::leads_to(&text, host)))
        }
        Reply::Error(text) if net::is_elsewhere(&text) => {
            let text = format!("{} has given a slot to another master", conn.address());
            Err(Error::new(ErrorKind::Moved, text))
        }
        // A user without rights on such names learns nothing by them.
        Reply::Error(text) if text.starts_with("NOPERM") => Ok(None),
        Reply::Error(text) => Err(refusal("EXISTS", &text)),
        _ => Ok(None),
    }
}
