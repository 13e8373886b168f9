//! The canonical digest of a key: the same whatever the version, vendor and encoding that holds its value.
//!
//! A sink of the one decoder; crc64fast over the bytes, then a non-linear mix, so that sums do not cancel out.
//! Covered: type, value, field expiry, stream metadata, groups, consumers' names, pending entries with their times.
//! A module's value is its items, whatever the compression and the encoding version.
//! A string that is a HyperLogLog is its registers, in whichever of its two encodings.
//! Not covered, because servers invent or forget them: seen and active times, access frequency, idle time.

mod document;
mod lane;
mod module;
mod samples;

use crate::error::{Error, ErrorKind, Result};
use crate::rdb::encoding::hyperloglog;
use crate::rdb::opcode::Dialect;
use crate::rdb::payload;
use crate::rdb::value::stream::{Group, Pending, StreamId, StreamMeta};
use crate::rdb::value::{self, ValueKind, ValueSink};
use crate::types::{DbIndex, ExpireAt};
use lane::{Lane, LaneHasher, mix};
use module::ModuleDigest;

/// A key's value in 64 bits (or 128), and beside it what is not its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyDigest {
    pub value: u64,
    /// The expiries of a hash's fields; the groups and pending entries of a stream; 0 without any.
    pub beside: u64,
    /// What streams have counted since Redis 7: entries added and the last id deleted; `None` for a payload that cannot
    /// hold it.
    pub later: Option<u64>,
    /// The same of how many entries each group has read, which older sources do not replicate.
    pub read: Option<u64>,
    /// What of a stream's groups no version replicates in every case.
    pub loose: Loose,
    /// Value and beside once more, by a hash of another family; 0 with [`Width::Bits64`].
    pub wide: u64,
    pub kind: ValueKind,
}

/// What of a stream's groups replicas may lack: measured from Redis 6.0 to 8.0 and Valkey 8.0 to 9.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Loose {
    /// When and how often pending entries were delivered: a consumer that reads its own history again raises both.
    pub delivered: u64,
    /// The sum of all deliveries.
    pub deliveries: u64,
    /// Consumers without pending entries: one that is made by reading its empty history, or by claiming nothing.
    pub idle: u64,
    pub idle_count: u64,
    /// A bit or a few for each of them.
    pub idle_bits: u64,
}

impl Loose {
    /// Whether `replica` may hold what a replica of this has; a replica has fewer deliveries and fewer idle consumers.
    fn covers(&self, replica: &Loose) -> bool {
        let delivered = self.delivered == replica.delivered || self.deliveries > replica.deliveries;
        let more = self.idle_count > replica.idle_count;
        let idle = self.idle == replica.idle || (more && replica.idle_bits & !self.idle_bits == 0);
        delivered && idle
    }
}

/// What may differ because a source does not replicate it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unreplicated {
    /// Its version does not replicate how many entries a group has read, and that is not settled now.
    pub entries_read: bool,
    /// What is read of it is a replica's, or was one's: it may itself lack what the target got of another.
    pub was_replica: bool,
}

impl KeyDigest {
    /// Whether streams agree in what both sides have counted.
    pub fn agrees_later(&self, other: &KeyDigest) -> bool {
        agree(self.later, other.later) && agree(self.read, other.read) && self.loose == other.loose
    }

    /// Whether `target` differs in nothing but what the source, whose this is, does not replicate.
    pub fn differs_in_unreplicated(&self, target: &KeyDigest, may: Unreplicated) -> bool {
        let (ours, theirs) = (&self.loose, &target.loose);
        agree(self.later, target.later)
            && (may.entries_read || agree(self.read, target.read))
            && (may.was_replica || ours.covers(theirs))
    }
}

/// What one side's version lacks is no difference.
fn agree(a: Option<u64>, b: Option<u64>) -> bool {
    a.zip(b).is_none_or(|(a, b)| a == b)
}

/// How many bits a digest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Width {
    /// CRC-64 with a non-linear mix.
    #[default]
    Bits64,
    /// SipHash-2-4 beside it.
    Bits128,
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
        let mut h = Lane::Crc.hash(key)
            ^ mix(u64::from(db.0))
            ^ expire.map_or(0, |e| mix(e.0 as u64).rotate_left(31));
        let value = digest.value
            ^ digest.beside.rotate_left(9)
            ^ digest.later.map_or(0, |l| mix(l).rotate_left(23))
            ^ digest.read.map_or(0, |r| mix(r).rotate_left(33))
            ^ digest.loose.delivered.rotate_left(47)
            ^ digest.loose.idle.rotate_left(53)
            ^ digest.wide.rotate_left(41);
        h = mix(h).wrapping_add(mix(value).rotate_left(17));
        self.sum = self.sum.wrapping_add(mix(h));
        self.count = self.count.saturating_add(1);
    }

    pub fn merge(&mut self, other: SlotSum) {
        self.sum = self.sum.wrapping_add(other.sum);
        self.count = self.count.saturating_add(other.count);
    }
}

/// The digest of a DUMP answer as of `now_ms`: hash fields that have expired count as gone, as readers see it.
///
/// `None` when nothing is left of the key then.
pub fn of_payload(dump: &[u8], now_ms: i64, width: Width) -> Result<Option<KeyDigest>> {
    let p = payload::open(dump)?;
    let mut digester = Digester::new(value::kind(p.type_id, p.dialect)?, now_ms, width);
    value::decode(
        p.type_id,
        p.dialect,
        u32::from(p.version),
        &p.body,
        0,
        &mut digester,
    )?;
    Ok(digester.finish())
}

/// The digest of a string's bytes, for two sides that hold the same ones; any other pair takes [`of_string`].
pub fn of_bytes(bytes: &[u8], width: Width) -> Result<KeyDigest> {
    let mut digester = Digester::new(ValueKind::String, 0, width);
    digester.each(|s| {
        s.chain(s.lane.hash(bytes));
        Ok(())
    })?;
    (digester.finish()).ok_or_else(|| Error::new(ErrorKind::Bug, "a string has no digest"))
}

/// The digest of a string.
pub fn of_string(bytes: &[u8], width: Width) -> Result<KeyDigest> {
    let mut digester = Digester::new(ValueKind::String, 0, width);
    digester.string(bytes)?;
    digester
        .finish()
        .ok_or_else(|| Error::new(ErrorKind::Bug, "a string has no digest"))
}

/// The digest of a value's bytes.
pub fn of_body(type_id: u8, dialect: Dialect, version: u32, body: &[u8]) -> Result<KeyDigest> {
    let kind = value::kind(type_id, dialect)?;
    let mut state = State::new(kind, i64::MIN, Lane::Crc);
    value::decode(type_id, dialect, version, body, 0, &mut state)?;
    Ok(state.finish(kind, 0))
}

/// Takes a value's elements, wherever they come from.
pub struct Digester {
    kind: ValueKind,
    first: State,
    second: Option<State>,
}

impl Digester {
    pub fn new(kind: ValueKind, now_ms: i64, width: Width) -> Digester {
        let second = width == Width::Bits128;
        Digester {
            kind,
            first: State::new(kind, now_ms, Lane::Crc),
            second: second.then(|| State::new(kind, now_ms, Lane::Sip)),
        }
    }

    /// `None` for a collection without elements, and a hash of which nothing is left: such a key does not exist.
    pub fn finish(self) -> Option<KeyDigest> {
        let wide = self.second.map_or(0, |s| {
            let other = s.finish(self.kind, 0);
            mix(other.value ^ other.beside.rotate_left(19))
        });
        let left = !self.kind.is_collection() || self.first.count > 0;
        left.then(|| self.first.finish(self.kind, wide))
    }

    fn each(&mut self, mut take: impl FnMut(&mut State) -> Result<()>) -> Result<()> {
        take(&mut self.first)?;
        self.second.as_mut().map_or(Ok(()), take)
    }
}

/// Everything goes to both states.
impl ValueSink for Digester {
    fn string(&mut self, value: &[u8]) -> Result<()> {
        self.each(|s| s.string(value))
    }

    fn string_part(&mut self, part: &[u8], last: bool) -> Result<()> {
        self.each(|s| s.string_part(part, last))
    }

    fn list_item(&mut self, item: &[u8]) -> Result<()> {
        self.each(|s| s.list_item(item))
    }

    fn set_member(&mut self, member: &[u8]) -> Result<()> {
        self.each(|s| s.set_member(member))
    }

    fn zset_member(&mut self, member: &[u8], score: f64) -> Result<()> {
        self.each(|s| s.zset_member(member, score))
    }

    fn hash_field(&mut self, field: &[u8], value: &[u8], expire: Option<ExpireAt>) -> Result<()> {
        self.each(|s| s.hash_field(field, value, expire))
    }

    fn stream_entry(&mut self, id: StreamId, fields: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        self.each(|s| s.stream_entry(id, fields))
    }

    fn stream_head(&mut self, head: &StreamMeta) -> Result<()> {
        self.each(|s| s.stream_head(head))
    }

    fn stream_group(&mut self, group: &Group) -> Result<()> {
        self.each(|s| s.stream_group(group))
    }

    fn stream_consumer(&mut self, group: &[u8], name: &[u8], idle: bool) -> Result<()> {
        self.each(|s| s.stream_consumer(group, name, idle))
    }

    fn stream_pending(
        &mut self,
        group: &[u8],
        pending: &Pending,
        owner: Option<&[u8]>,
    ) -> Result<()> {
        self.each(|s| s.stream_pending(group, pending, owner))
    }

    fn array_element(&mut self, index: u64, text: &[u8]) -> Result<()> {
        self.each(|s| s.array_element(index, text))
    }

    fn array_cursor(&mut self, next: Option<u64>) -> Result<()> {
        self.each(|s| s.array_cursor(next))
    }

    fn path_field(&mut self, path: &[u8], field: &[u8], value: &[u8]) -> Result<()> {
        self.each(|s| s.path_field(path, field, value))
    }

    fn number(&mut self, n: u64) -> Result<()> {
        self.each(|s| s.number(n))
    }

    fn module(&mut self, name: &str, version: u16, raw: &[u8]) -> Result<()> {
        self.each(|s| s.module(name, version, raw))
    }

    fn vector_set(&mut self, dimensions: u64, config: u64, projection: &[u8]) -> Result<()> {
        self.each(|s| s.vector_set(dimensions, config, projection))
    }

    fn vector(&mut self, name: &[u8], attributes: &[u8], vector: &[u8], scale: u64) -> Result<()> {
        self.each(|s| s.vector(name, attributes, vector, scale))
    }

    fn module_part(&mut self, name: &str, version: u16, part: &[u8], last: bool) -> Result<()> {
        self.each(|s| s.module_part(name, version, part, last))
    }
}

struct State {
    acc: u64,
    count: u64,
    beside: u64,
    later: Option<u64>,
    read: Option<u64>,
    loose: Loose,
    now_ms: i64,
    lane: Lane,
    /// A string that comes in parts.
    part: Option<(LaneHasher, u64)>,
    /// Its first part, while it may be a HyperLogLog.
    first: Vec<u8>,
    module: Option<Box<ModuleDigest>>,
}

impl State {
    fn new(kind: ValueKind, now_ms: i64, lane: Lane) -> State {
        State {
            acc: mix((kind as u64).saturating_add(1)),
            count: 0,
            beside: 0,
            later: None,
            read: None,
            loose: Loose::default(),
            now_ms,
            lane,
            part: None,
            first: Vec::new(),
            module: None,
        }
    }

    fn finish(&self, kind: ValueKind, wide: u64) -> KeyDigest {
        KeyDigest {
            value: mix(self.acc ^ mix(self.count)),
            beside: self.beside,
            later: self.later,
            read: self.read,
            loose: self.loose,
            wide,
            kind,
        }
    }

    /// For what has an order.
    fn chain(&mut self, h: u64) {
        self.acc = mix(self.acc.rotate_left(5) ^ h);
        self.count = self.count.saturating_add(1);
    }

    /// For what has none.
    fn sum(&mut self, h: u64) {
        self.acc = self.acc.wrapping_add(mix(h));
        self.count = self.count.saturating_add(1);
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
        match hyperloglog::registers(value) {
            Some(registers) => self.chain(mix(self.lane.hash(&registers))),
            None => self.chain(self.lane.hash(value)),
        }
        Ok(())
    }

    fn string_part(&mut self, part: &[u8], last: bool) -> Result<()> {
        if self.part.is_none() && self.first.is_empty() && hyperloglog::may_be(part) {
            self.first = part.to_vec();
            return match last {
                true => self.string_part(b"", true),
                false => Ok(()),
            };
        }
        let first = std::mem::take(&mut self.first);
        if !first.is_empty() && last && part.is_empty() {
            return self.string(&first);
        }
        let lane = self.lane;
        let (hasher, len) = self.part.get_or_insert_with(|| (lane.hasher(), 0));
        hasher.write(&first);
        hasher.write(part);
        *len = len.saturating_add((first.len() + part.len()) as u64);
        if last && let Some((hasher, len)) = self.part.take() {
            self.chain(hasher.finish(len));
        }
        Ok(())
    }

    fn list_item(&mut self, item: &[u8]) -> Result<()> {
        self.chain(self.lane.hash(item));
        Ok(())
    }

    fn set_member(&mut self, member: &[u8]) -> Result<()> {
        self.sum(self.lane.hash(member));
        Ok(())
    }

    fn zset_member(&mut self, member: &[u8], score: f64) -> Result<()> {
        // The server compares -0 and 0 as equal, and a listpack cannot tell them apart.
        let bits = if score == 0.0 { 0 } else { score.to_bits() };
        self.sum(mix(self.lane.hash(member)) ^ mix(bits).rotate_left(21));
        Ok(())
    }

    fn hash_field(&mut self, field: &[u8], value: &[u8], expire: Option<ExpireAt>) -> Result<()> {
        if expire.is_some_and(|e| e.0 <= self.now_ms) {
            return Ok(());
        }
        let name = mix(self.lane.hash(field));
        self.sum(name ^ mix(self.lane.hash(value)).rotate_left(21));
        if let Some(e) = expire {
            let timed = mix(name ^ mix(e.0 as u64).rotate_left(31));
            self.beside = self.beside.wrapping_add(timed);
        }
        Ok(())
    }

    fn stream_entry(&mut self, id: StreamId, fields: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        self.id(id);
        for (field, value) in fields {
            self.chain(self.lane.hash(field));
            self.chain(self.lane.hash(value));
        }
        Ok(())
    }

    fn stream_head(&mut self, head: &StreamMeta) -> Result<()> {
        self.chain(head.length);
        self.id(head.last_id);
        // What the oldest layout lacks, servers invent on loading and count on from there: it stands apart.
        self.later = (head.entries_added.zip(head.max_deleted_id))
            .map(|(added, deleted)| mix(mix(added) ^ id_hash(deleted)));
        self.read = self.later.map(|_| 0);
        Ok(())
    }

    fn stream_group(&mut self, group: &Group) -> Result<()> {
        self.chain_beside(self.lane.hash(&group.name));
        self.chain_beside(id_hash(group.last_id));
        self.read = (self.read.zip(group.entries_read)).map(|(acc, n)| mix(acc.rotate_left(5) ^ n));
        Ok(())
    }

    fn stream_consumer(&mut self, group: &[u8], name: &[u8], idle: bool) -> Result<()> {
        if idle {
            let name = mix(self.lane.hash(group) ^ self.lane.hash(name).rotate_left(21));
            self.loose.idle = self.loose.idle.wrapping_add(name);
            self.loose.idle_count = self.loose.idle_count.saturating_add(1);
            self.loose.idle_bits |= 1 << (name & 63) | 1 << (name >> 6 & 63);
        }
        Ok(())
    }

    fn stream_pending(&mut self, _: &[u8], pending: &Pending, owner: Option<&[u8]>) -> Result<()> {
        self.chain_beside(id_hash(pending.id));
        self.chain_beside(owner.map_or(0, |name| self.lane.hash(name)));
        let delivered = mix(pending.delivery_ms as u64) ^ pending.deliveries.rotate_left(32);
        self.loose.delivered = mix(self.loose.delivered.rotate_left(5) ^ delivered);
        self.loose.deliveries = self.loose.deliveries.saturating_add(pending.deliveries);
        Ok(())
    }

    fn array_element(&mut self, index: u64, text: &[u8]) -> Result<()> {
        self.sum(mix(index) ^ self.lane.hash(text).rotate_left(21));
        Ok(())
    }

    fn array_cursor(&mut self, next: Option<u64>) -> Result<()> {
        self.sum(mix(next.map_or(0, |n| n.wrapping_add(1))));
        Ok(())
    }

    fn path_field(&mut self, path: &[u8], field: &[u8], value: &[u8]) -> Result<()> {
        let name = mix(self.lane.hash(path)) ^ mix(self.lane.hash(field)).rotate_left(21);
        self.sum(mix(name) ^ mix(self.lane.hash(value)).rotate_left(42));
        Ok(())
    }

    fn number(&mut self, n: u64) -> Result<()> {
        self.chain(n);
        Ok(())
    }

    fn module(&mut self, name: &str, version: u16, raw: &[u8]) -> Result<()> {
        self.module_part(name, version, raw, true)
    }

    fn vector_set(&mut self, dimensions: u64, config: u64, projection: &[u8]) -> Result<()> {
        self.chain(dimensions);
        self.chain(config);
        self.chain(self.lane.hash(projection));
        Ok(())
    }

    fn vector(&mut self, name: &[u8], attributes: &[u8], vector: &[u8], scale: u64) -> Result<()> {
        let name = mix(self.lane.hash(name));
        let held = mix(self.lane.hash(vector)).rotate_left(21);
        let beside = mix(self.lane.hash(attributes) ^ mix(scale)).rotate_left(42);
        self.sum(name ^ held ^ beside);
        Ok(())
    }

    fn module_part(&mut self, name: &str, _: u16, part: &[u8], last: bool) -> Result<()> {
        let lane = self.lane;
        let begin = || Box::new(ModuleDigest::new(name, lane));
        self.module.get_or_insert_with(begin).feed(part);
        if last && let Some(module) = self.module.take() {
            self.chain(module.finish());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
