//! The nouns that every part shares: slot, database, replication id and offset, expiry, position.
//!
//! A number has a name: none of these has a `Default`, and none mixes with another.

pub mod address;

use crate::error::{Error, ErrorKind, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::fmt;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// How many hash slots a cluster has; standalone data is counted by the same slots.
pub const SLOTS: usize = 16384;

/// A cluster hash slot, 0 to 16383.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The slot of a key: CRC-16/XMODEM of the hash tag if there is one, else of the whole key
    /// (cluster specification, `keyHashSlot` in cluster.c).
    pub fn of(key: &[u8]) -> Slot {
        let mut hashed = key;
        if let Some(open) = memchr::memchr(b'{', key) {
            let rest = key.get(open + 1..).unwrap_or_default();
            if let Some(close) = memchr::memchr(b'}', rest)
                && close > 0
            {
                hashed = rest.get(..close).unwrap_or_default();
            }
        }
        Slot(crc16(hashed) & 0x3fff)
    }

    /// The slot of this number, which is taken modulo 16384.
    pub fn numbered(n: u16) -> Slot {
        Slot(n & 0x3fff)
    }

    pub fn new(n: u16) -> Option<Slot> {
        (usize::from(n) < SLOTS).then_some(Slot(n))
    }

    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    pub fn number(self) -> u16 {
        self.0
    }

    pub fn all() -> impl Iterator<Item = Slot> {
        (0..SLOTS as u16).map(Slot)
    }

    /// A name in this slot that nobody else has.
    pub fn own_name(self) -> String {
        static TAGS: OnceLock<Vec<u32>> = OnceLock::new();
        let tags = TAGS.get_or_init(|| {
            let (mut tags, mut left) = (vec![None; SLOTS], SLOTS);
            for n in 0u32.. {
                if let Some(tag @ None) = tags.get_mut(Slot::of(n.to_string().as_bytes()).index()) {
                    *tag = Some(n);
                    left = left.saturating_sub(1);
                }
                if left == 0 {
                    break;
                }
            }
            tags.into_iter().flatten().collect()
        });
        let tag = tags.get(self.index()).copied().unwrap_or_default();
        format!("keyferry:{{{tag}}}")
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of slots, written as in "0-5460,6000".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotSet(Vec<bool>);

impl SlotSet {
    pub fn none() -> SlotSet {
        SlotSet(vec![false; SLOTS])
    }

    pub fn all() -> SlotSet {
        SlotSet(vec![true; SLOTS])
    }

    /// Numbers and ranges between commas, as [`fmt::Display`] writes them; `None` for anything else.
    pub fn parse(text: &str) -> Option<SlotSet> {
        let mut set = SlotSet::none();
        for range in text.split(',').filter(|_| !text.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (usize, usize) =
                (first.trim().parse().ok()?, last.trim().parse().ok()?);
            if first > last {
                return None;
            }
            set.0.get_mut(first..=last)?.fill(true);
        }
        Some(set)
    }

    pub fn insert(&mut self, slot: Slot) {
        if let Some(place) = self.0.get_mut(slot.index()) {
            *place = true;
        }
    }

    pub fn remove(&mut self, slot: Slot) {
        if let Some(place) = self.0.get_mut(slot.index()) {
            *place = false;
        }
    }

    pub fn has(&self, slot: Slot) -> bool {
        self.0.get(slot.index()).copied().unwrap_or(false)
    }

    pub fn count(&self) -> usize {
        self.0.iter().filter(|c| **c).count()
    }

    pub fn iter(&self) -> impl Iterator<Item = Slot> {
        (0u16..)
            .zip(&self.0)
            .filter(|(_, there)| **there)
            .map(|(n, _)| Slot(n))
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> SlotSet {
        let mut set = SlotSet::none();
        slots.into_iter().for_each(|s| set.insert(s));
        set
    }
}

impl fmt::Display for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for slot in self.iter().map(Slot::number) {
            match ranges.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(slot) => *last = slot,
                _ => ranges.push((slot, slot)),
            }
        }
        for (i, (first, last)) in ranges.into_iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

const CRC16: [u16; 256] = {
    let mut table = [0u16; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = (i as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 {
                (crc << 1) ^ 0x1021
            } else {
                crc << 1
            };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

/// The same of a byte with another one behind it.
const CRC16_AHEAD: [u16; 256] = {
    let mut table = [0u16; 256];
    let mut i = 0;
    while i < 256 {
        let crc = CRC16[i];
        table[i] = (crc << 8) ^ CRC16[(crc >> 8) as usize];
        i += 1;
    }
    table
};

fn crc16(bytes: &[u8]) -> u16 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let crc = pairs.iter().fold(0u16, |crc, pair| {
        let [high, low] = (crc ^ u16::from_be_bytes(*pair)).to_be_bytes();
        CRC16_AHEAD[usize::from(high)] ^ CRC16[usize::from(low)]
    });
    rest.iter().fold(crc, |crc, &b| {
        (crc << 8) ^ CRC16[usize::from((crc >> 8) as u8 ^ b)]
    })
}

/// A logical database number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DbIndex(pub u32);

impl DbIndex {
    pub const ZERO: DbIndex = DbIndex(0);
}

impl fmt::Display for DbIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An absolute expiry: Unix time in milliseconds. Never a relative TTL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExpireAt(pub i64);

impl fmt::Display for ExpireAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A position in a replication stream: how many of its bytes lie before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplOffset(pub u64);

impl ReplOffset {
    #[must_use]
    pub fn plus(self, bytes: u64) -> ReplOffset {
        ReplOffset(self.0.saturating_add(bytes))
    }

    /// How many bytes `self` is ahead of `other`, 0 if it is not.
    pub fn since(self, other: ReplOffset) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

impl fmt::Display for ReplOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The 40 hexadecimal digits that name a replication history.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReplId([u8; 40]);

impl ReplId {
    pub fn parse(text: &[u8]) -> Result<ReplId> {
        match <[u8; 40]>::try_from(text) {
            Ok(id) if id.iter().all(u8::is_ascii_hexdigit) => Ok(ReplId(id)),
            _ => Err(Error::new(
                ErrorKind::Protocol,
                "the server sent a replication id that is not 40 hexadecimal digits",
            )),
        }
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for ReplId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ReplId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One master of the source, in the order in which the topology named them when the run began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How far a source shard has been carried over: everything before it is done.
///
/// The database belongs to the position because a stream that continues does not select it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Byte position in the snapshot file, at the start of a record, and the database selected there.
    Snapshot { at: u64, db: DbIndex },
    /// Offset in the replication stream, at the start of a command or transaction, and the database selected there.
    Stream { at: ReplOffset, db: DbIndex },
}

impl Mark {
    /// The lower of two; what is loaded comes before what is streamed.
    pub fn earlier(self, other: Mark) -> Mark {
        let later = match (self, other) {
            (Mark::Snapshot { at: x, .. }, Mark::Snapshot { at: y, .. }) => x > y,
            (Mark::Stream { at: x, .. }, Mark::Stream { at: y, .. }) => x > y,
            (mine, _) => matches!(mine, Mark::Stream { .. }),
        };
        if later { other } else { self }
    }
}

/// A key with its database as one name: how keys are kept in sets and files.
pub fn db_key(db: DbIndex, key: &[u8]) -> Vec<u8> {
    [&db.0.to_be_bytes(), key].concat()
}

/// 64 bits for a key of a database, for sets that may be wrong once in a long while.
pub fn key_hash(db: DbIndex, key: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, &db_key(db, key))
}

/// The database and the key of a [`db_key`].
pub fn split_db_key(name: &[u8]) -> (DbIndex, Vec<u8>) {
    let (db, key) = name.split_at(4.min(name.len()));
    let db = u32::from_be_bytes(db.try_into().unwrap_or_default());
    (DbIndex(db), key.to_vec())
}

/// Now, as Unix time in milliseconds.
pub fn unix_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// A byte string in a JSON answer: text when it is valid UTF-8, else `{"base64": "…"}`.
pub fn byte_string(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({"base64": STANDARD.encode(bytes)}),
    }
}

/// A key in a message: printable, and not longer than a line.
pub fn shown(key: &[u8]) -> String {
    let text: String = key.escape_ascii().map(char::from).take(120).collect();
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_text_or_base64() {
        assert_eq!(byte_string("ключ".as_bytes()), json!("ключ"));
        for (bytes, wanted) in [
            (&b"\xff"[..], "/w=="),
            (b"\xff\xfe", "//4="),
            (b"\xff\xfe\xfd", "//79"),
            (b"\xff\xfe\xfd\x00", "//79AA=="),
        ] {
            assert_eq!(byte_string(bytes), json!({"base64": wanted}));
        }
    }

    #[test]
    fn each_slot_has_a_name_of_its_own() {
        assert!(Slot::all().all(|slot| Slot::of(slot.own_name().as_bytes()) == slot));
    }

    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(Slot::of(b"foo").number(), 12182);
        assert_eq!(
            Slot::of(b"{user1000}.following"),
            Slot::of(b"{user1000}.followers")
        );
        assert_eq!(Slot::of(b"foo{}{bar}"), Slot(crc16(b"foo{}{bar}") & 0x3fff));
        assert_eq!(Slot::of(b"foo{{bar}}zap"), Slot(crc16(b"{bar") & 0x3fff));
        assert_eq!(Slot::of(b"").number(), 0);
    }

    #[test]
    fn sets_of_slots_read_back_as_they_are_written() {
        for text in ["", "5", "0-4,6-8191", "5,8192-16383", "0-16383"] {
            assert_eq!(SlotSet::parse(text).unwrap().to_string(), text);
        }
        for wrong in ["x", "3-", "7-5", "16384", "0-99999", "1,,2"] {
            assert!(SlotSet::parse(wrong).is_none(), "{wrong}");
        }
    }
}
