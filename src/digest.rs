//! The canonical digest of a key: the same whatever the version, vendor and encoding that holds its value.
//!
//! A sink of the one decoder; crc64fast over the bytes, then a non-linear mix, so that sums do not cancel out.
//! Covered: type, value, field expiry, stream metadata, groups, consumers' names, pending entries with their times.
//! Not covered, because servers invent or forget them: seen and active times, access frequency, idle time.

use crate::error::Result;
use crate::rdb::opcode::{self, Dialect};
use crate::rdb::payload;
use crate::rdb::value::stream::{StreamId, StreamMeta};
use crate::rdb::value::{self, ValueKind, ValueSink};
use crate::types::{DbIndex, ExpireAt};

/// A key's value in 64 bits, and beside it what is not its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyDigest {
    pub value: u64,
    /// The expiries of a hash's fields; the groups, consumers and pending entries of a stream; 0 without any.
    pub beside: u64,
    pub kind: ValueKind,
}

/// An order-free sum over the keys of a slot; the count stands beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotSum {
    pub sum: u64,
    pub count: u64,
}

impl SlotSum {
    /// Adds a key with its expiry, to the millisecond: a difference within the plan's tolerance sends its slot to the
    /// comparison key by key, which knows the tolerance.
    pub fn add(&mut self, db: DbIndex, key: &[u8], digest: &KeyDigest, expire: Option<ExpireAt>) {
        let mut h =
            crc(key) ^ mix(u64::from(db.0)) ^ expire.map_or(0, |e| mix(e.0 as u64).rotate_left(31));
        let value = digest.value ^ digest.beside.rotate_left(9);
        h = mix(h).wrapping_add(mix(value).rotate_left(17));
        self.sum = self.sum.wrapping_add(mix(h));
        self.count += 1;
    }

    pub fn merge(&mut self, other: SlotSum) {
        self.sum = self.sum.wrapping_add(other.sum);
        self.count += other.count;
    }
}

fn crc(bytes: &[u8]) -> u64 {
    let mut digest = crc64fast::Digest::new();
    digest.write(bytes);
    // The length keeps apart what leading zeros would not.
    digest.sum64() ^ (bytes.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A bijection without linear structure (the finalizer of SplitMix64).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The digest of a DUMP answer as of `now_ms`: hash fields that have expired count as gone, as readers see it.
///
/// `None` when nothing is left of the key then.
pub fn of_payload(dump: &[u8], now_ms: i64) -> Result<Option<KeyDigest>> {
    let p = payload::open(dump)?;
    let kind = value::kind(p.type_id, p.dialect)?;
    let mut state = State::new(kind, p.type_id, now_ms);
    value::decode(
        p.type_id,
        p.dialect,
        u32::from(p.version),
        p.body,
        0,
        &mut state,
    )?;
    Ok((kind != ValueKind::Hash || state.count > 0).then(|| state.finish(kind)))
}

/// The digest of a value's bytes.
pub fn of_body(type_id: u8, dialect: Dialect, version: u32, body: &[u8]) -> Result<KeyDigest> {
    let kind = value::kind(type_id, dialect)?;
    let mut state = State::new(kind, type_id, i64::MIN);
    value::decode(type_id, dialect, version, body, 0, &mut state)?;
    Ok(state.finish(kind))
}

struct State {
    acc: u64,
    count: u64,
    beside: u64,
    version: u8,
    now_ms: i64,
}

impl State {
    fn new(kind: ValueKind, version: u8, now_ms: i64) -> State {
        State {
            acc: mix(kind as u64 + 1),
            count: 0,
            beside: 0,
            version,
            now_ms,
        }
    }

    fn finish(&self, kind: ValueKind) -> KeyDigest {
        KeyDigest {
            value: mix(self.acc ^ mix(self.count)),
            beside: self.beside,
            kind,
        }
    }

    /// For what has an order.
    fn chain(&mut self, h: u64) {
        self.acc = mix(self.acc.rotate_left(5) ^ h);
        self.count += 1;
    }

    /// For what has none.
    fn sum(&mut self, h: u64) {
        self.acc = self.acc.wrapping_add(mix(h));
        self.count += 1;
    }

    fn id(&mut self, id: StreamId) {
        self.chain(id_hash(id));
    }

    fn chain_beside(&mut self, h: u64) {
        self.beside = mix(self.beside.rotate_left(5) ^ h ^ 1);
    }
}

fn id_hash(id: StreamId) -> u64 {
    mix(id.ms) ^ id.seq.rotate_left(32)
}

impl ValueSink for State {
    fn string(&mut self, value: &[u8]) -> Result<()> {
        self.chain(crc(value));
        Ok(())
    }

    fn list_item(&mut self, item: &[u8]) -> Result<()> {
        self.chain(crc(item));
        Ok(())
    }

    fn set_member(&mut self, member: &[u8]) -> Result<()> {
        self.sum(crc(member));
        Ok(())
    }

    fn zset_member(&mut self, member: &[u8], score: f64) -> Result<()> {
        // The server compares -0 and 0 as equal, and a listpack cannot tell them apart.
        let bits = if score == 0.0 { 0 } else { score.to_bits() };
        self.sum(mix(crc(member)) ^ mix(bits).rotate_left(21));
        Ok(())
    }

    fn hash_field(&mut self, field: &[u8], value: &[u8], expire: Option<ExpireAt>) -> Result<()> {
        if expire.is_some_and(|e| e.0 <= self.now_ms) {
            return Ok(());
        }
        let name = mix(crc(field));
        self.sum(name ^ mix(crc(value)).rotate_left(21));
        if let Some(e) = expire {
            let timed = mix(name ^ mix(e.0 as u64).rotate_left(31));
            self.beside = self.beside.wrapping_add(timed);
        }
        Ok(())
    }

    fn stream_entry(&mut self, id: StreamId, fields: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        self.id(id);
        for (field, value) in fields {
            self.chain(crc(field));
            self.chain(crc(value));
        }
        Ok(())
    }

    fn stream_meta(&mut self, meta: &StreamMeta) -> Result<()> {
        let zero = StreamId { ms: 0, seq: 0 };
        self.chain(meta.length);
        self.id(meta.last_id);
        // What the oldest layout lacks, servers invent on loading; so do we.
        self.id(meta.max_deleted_id.unwrap_or(zero));
        self.chain(meta.entries_added.unwrap_or(meta.length));
        let mut groups: Vec<_> = meta.groups.iter().collect();
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        for group in groups {
            self.chain_beside(crc(&group.name));
            self.chain_beside(id_hash(group.last_id));
            if self.version != opcode::STREAM {
                self.chain_beside(group.entries_read.unwrap_or(u64::MAX));
            }
            let mut consumers: Vec<_> = group.consumers.iter().map(|c| crc(&c.name)).collect();
            consumers.sort_unstable();
            consumers.into_iter().for_each(|c| self.chain_beside(c));
            let owners = group.owners();
            let mut pending: Vec<_> = group.pending.iter().collect();
            pending.sort_by_key(|p| p.id);
            for p in pending {
                self.chain_beside(id_hash(p.id));
                self.chain_beside(owners.get(&p.id).map_or(0, |name| crc(name)));
                self.chain_beside(p.delivery_ms as u64);
                self.chain_beside(p.deliveries);
            }
        }
        Ok(())
    }

    fn array_element(&mut self, index: u64, text: &[u8]) -> Result<()> {
        self.sum(mix(index) ^ crc(text).rotate_left(21));
        Ok(())
    }

    fn array_cursor(&mut self, next: Option<u64>) -> Result<()> {
        self.sum(mix(next.map_or(0, |n| n.wrapping_add(1))));
        Ok(())
    }

    fn number(&mut self, n: u64) -> Result<()> {
        self.chain(n);
        Ok(())
    }

    fn module(&mut self, _: &str, _: u16, raw: &[u8]) -> Result<()> {
        self.chain(crc(raw));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdb::encoding::listpack::{Builder, Packed};
    use crate::rdb::encoding::put_string;

    fn digest(type_id: u8, body: &[u8]) -> u64 {
        of_body(type_id, Dialect::Redis, 11, body).unwrap().value
    }

    #[test]
    fn encodings_do_not_matter_and_order_only_where_it_counts() {
        let mut lp = Builder::default();
        for e in [Packed::Int(7), Packed::Bytes(b"abc"), Packed::Bytes(b"x")] {
            assert!(lp.push(e));
        }
        let mut packed = Vec::new();
        put_string(&mut packed, &lp.finish());
        let plain = |items: &[&[u8]]| {
            let mut out = vec![items.len() as u8];
            items.iter().for_each(|i| put_string(&mut out, i));
            out
        };
        let set = digest(opcode::SET_LISTPACK, &packed);
        assert_eq!(set, digest(opcode::SET, &plain(&[b"abc", b"x", b"7"])));
        assert_eq!(
            set,
            digest(opcode::SET, b"\x03\xc0\x07\x03abc\x01x"),
            "an integer-encoded member"
        );
        assert_ne!(set, digest(opcode::SET, &plain(&[b"abc", b"x", b"8"])));
        let list = digest(opcode::LIST, &plain(&[b"a", b"b"]));
        assert_ne!(list, digest(opcode::LIST, &plain(&[b"b", b"a"])));
        assert_ne!(
            list,
            digest(opcode::SET, &plain(&[b"a", b"b"])),
            "the type counts"
        );
    }

    #[test]
    fn an_expiry_off_by_a_millisecond_changes_the_sum() {
        let value = of_body(0, Dialect::Redis, 11, b"\x01a").unwrap();
        let sum = |expire| {
            let mut s = SlotSum::default();
            s.add(DbIndex::ZERO, b"k", &value, expire);
            s
        };
        assert_ne!(sum(Some(ExpireAt(5))), sum(Some(ExpireAt(6))));
        assert_ne!(sum(Some(ExpireAt(0))), sum(None));
    }

    #[test]
    fn two_values_swapped_between_two_keys_change_the_sum() {
        let (a, b) = (
            of_body(0, Dialect::Redis, 11, b"\x01a").unwrap(),
            of_body(0, Dialect::Redis, 11, b"\x01b").unwrap(),
        );
        let sum = |x: &KeyDigest, y: &KeyDigest| {
            let mut s = SlotSum::default();
            s.add(DbIndex::ZERO, b"k1", x, None);
            s.add(DbIndex::ZERO, b"k2", y, None);
            s
        };
        assert_ne!(sum(&a, &b), sum(&b, &a));
        assert_eq!(sum(&a, &b), sum(&a, &b));
    }
}
