//! A sink that writes a value as commands: for values too large for one command, or that RESTORE cannot carry.

use crate::error::Result;
use crate::rdb::payload::Target;
use crate::rdb::tombstones::Tombstones;
use crate::rdb::value::ValueSink;
use crate::rdb::value::stream::{Group, Pending, StreamId, StreamMeta};
use crate::resp;
use crate::types::ExpireAt;

/// Whether the target can be told how many entries a stream has had, and a group has read.
fn knows_counts(target: &Target) -> bool {
    target.valkey || target.version >= (7, 0, 0)
}

const CHUNK_ITEMS: usize = 512;
const CHUNK_BYTES: usize = 256 * 1024;

/// Commands that make the key anew: first DEL, then its elements in chunks, last its expiry.
///
/// Whenever enough has gathered, `flush` is called with the bytes and the number of commands in them and empties them.
pub struct Rebuild<'a, F> {
    key: &'a [u8],
    target: &'a Target,
    out: &'a mut Vec<u8>,
    flush: F,
    commands: u32,
    verb: &'static [u8],
    /// Arguments gathered for the next command, already encoded.
    args: Vec<u8>,
    count: usize,
    items: usize,
    expiries: Vec<(Vec<u8>, ExpireAt)>,
    begun: bool,
    entries: u64,
    tombstones: Tombstones,
    /// Expiries of fields that the target cannot hold.
    left_out: bool,
}

impl<'a, F: FnMut(&mut Vec<u8>, u32) -> Result<()>> Rebuild<'a, F> {
    pub fn new(key: &'a [u8], target: &'a Target, out: &'a mut Vec<u8>, flush: F) -> Self {
        let mut rebuild = Rebuild {
            key,
            target,
            out,
            flush,
            commands: 0,
            verb: b"",
            args: Vec::new(),
            count: 0,
            items: 0,
            expiries: Vec::new(),
            begun: false,
            entries: 0,
            tombstones: Tombstones::default(),
            left_out: false,
        };
        rebuild.push(&[b"DEL", key]);
        rebuild
    }

    /// Takes the deleted messages that a stream's groups still wait for.
    pub fn with_tombstones(mut self, tombstones: Tombstones) -> Self {
        self.tombstones = tombstones;
        self
    }

    fn push(&mut self, args: &[&[u8]]) {
        resp::command(self.out, args);
        self.commands += 1;
    }

    fn sent(&mut self) -> Result<()> {
        if self.out.len() >= CHUNK_BYTES {
            return self.hand_over();
        }
        Ok(())
    }

    fn hand_over(&mut self) -> Result<()> {
        let commands = std::mem::take(&mut self.commands);
        if commands > 0 {
            (self.flush)(self.out, commands)?;
            self.out.clear();
        }
        Ok(())
    }

    fn element(&mut self, verb: &'static [u8], args: &[&[u8]]) -> Result<()> {
        self.verb = verb;
        for arg in args {
            resp::bulk(&mut self.args, arg);
            self.count += 1;
        }
        self.items += 1;
        if self.items >= CHUNK_ITEMS || self.args.len() >= CHUNK_BYTES {
            self.close()
        } else {
            Ok(())
        }
    }

    fn close(&mut self) -> Result<()> {
        if self.items == 0 {
            return Ok(());
        }
        resp::array(self.out, self.count + 2);
        resp::bulk(self.out, self.verb);
        resp::bulk(self.out, self.key);
        self.out.extend_from_slice(&self.args);
        self.commands += 1;
        self.args.clear();
        (self.count, self.items) = (0, 0);
        for (field, at) in std::mem::take(&mut self.expiries) {
            let key = self.key;
            self.push(&[
                b"HPEXPIREAT",
                key,
                at.to_string().as_bytes(),
                b"FIELDS",
                b"1",
                &field,
            ]);
        }
        self.sent()
    }

    fn add_tombstones(&mut self, before: Option<StreamId>) {
        let key = self.key;
        while let Some(id) = self.tombstones.next(before) {
            self.push(&[b"XADD", key, id.to_string().as_bytes(), b"", b""]);
        }
    }

    fn set_id(&mut self, last: StreamId, head: &StreamMeta, at_least: u64) {
        let (key, last) = (self.key, last.to_string());
        match (head.entries_added, head.max_deleted_id) {
            (Some(added), Some(deleted)) if knows_counts(self.target) => {
                let (added, deleted) = (added.max(at_least).to_string(), deleted.to_string());
                self.push(&[
                    b"XSETID",
                    key,
                    last.as_bytes(),
                    b"ENTRIESADDED",
                    added.as_bytes(),
                    b"MAXDELETEDID",
                    deleted.as_bytes(),
                ]);
            }
            _ => self.push(&[b"XSETID", key, last.as_bytes()]),
        }
    }

    /// Removes the tombstones, and gives the stream the head that it had.
    fn bury(&mut self) {
        let tombstones = std::mem::take(&mut self.tombstones);
        let Some(head) = &tombstones.head else {
            return;
        };
        let key = self.key;
        let (trimmed, deleted) = tombstones.parted();
        // XTRIM does not count as a deletion: what the source has trimmed has left no other trace there either.
        if !trimmed.is_empty() {
            let left = self.entries.saturating_add(deleted.len() as u64);
            self.push(&[b"XTRIM", key, b"MAXLEN", left.to_string().as_bytes()]);
        }
        for chunk in deleted.chunks(CHUNK_ITEMS) {
            let ids: Vec<String> = chunk.iter().map(StreamId::to_string).collect();
            let mut args: Vec<&[u8]> = vec![b"XDEL", key];
            args.extend(ids.iter().map(String::as_bytes));
            self.push(&args);
        }
        self.set_id(head.last_id, head, 0);
    }

    /// The last elements and the key's expiry; true when expiries of fields were left out, as the target has none.
    pub fn finish(mut self, expire: Option<ExpireAt>) -> Result<bool> {
        self.close()?;
        self.bury();
        if let Some(at) = expire {
            let key = self.key;
            self.push(&[b"PEXPIREAT", key, at.to_string().as_bytes()]);
        }
        self.hand_over()?;
        Ok(self.left_out)
    }
}

impl<F: FnMut(&mut Vec<u8>, u32) -> Result<()>> ValueSink for Rebuild<'_, F> {
    fn string(&mut self, value: &[u8]) -> Result<()> {
        let key = self.key;
        self.push(&[b"SET", key, value]);
        self.sent()
    }

    fn string_part(&mut self, part: &[u8], last: bool) -> Result<()> {
        let key = self.key;
        let verb: &[u8] = if self.begun { b"APPEND" } else { b"SET" };
        if !last || !self.begun {
            self.push(&[verb, key, part]);
        }
        self.begun = true;
        self.sent()
    }

    fn list_item(&mut self, item: &[u8]) -> Result<()> {
        self.element(b"RPUSH", &[item])
    }

    fn set_member(&mut self, member: &[u8]) -> Result<()> {
        self.element(b"SADD", &[member])
    }

    fn zset_member(&mut self, member: &[u8], score: f64) -> Result<()> {
        self.element(b"ZADD", &[score_text(score).as_bytes(), member])
    }

    fn hash_field(&mut self, field: &[u8], value: &[u8], expire: Option<ExpireAt>) -> Result<()> {
        match expire {
            Some(at) if self.target.field_expiry() => self.expiries.push((field.to_vec(), at)),
            expire => self.left_out |= expire.is_some(),
        }
        self.element(b"HSET", &[field, value])
    }

    fn stream_entry(&mut self, id: StreamId, fields: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        self.add_tombstones(Some(id));
        self.tombstones.first_entry.get_or_insert(id);
        let id = id.to_string();
        let mut args: Vec<&[u8]> = vec![b"XADD", self.key, id.as_bytes()];
        args.extend(fields.iter().flat_map(|(f, v)| [f.as_slice(), v]));
        resp::command(self.out, &args);
        self.commands += 1;
        self.entries += 1;
        self.sent()
    }

    fn stream_head(&mut self, head: &StreamMeta) -> Result<()> {
        let key = self.key;
        self.add_tombstones(None);
        let buried = self.tombstones.ids.len() as u64;
        if self.entries.saturating_add(buried) == 0 {
            // An empty stream: an entry that is trimmed away at once makes it exist.
            self.push(&[b"XADD", key, b"MAXLEN", b"0", b"0-1", b"x", b"x"]);
        }
        let last = self.tombstones.ids.last().copied();
        let last = last.map_or(head.last_id, |id| id.max(head.last_id));
        self.set_id(last, head, self.entries.saturating_add(buried));
        self.tombstones.head = (buried > 0).then(|| head.clone());
        self.sent()
    }

    fn stream_group(&mut self, group: &Group) -> Result<()> {
        let (key, id) = (self.key, group.last_id.to_string());
        match group.entries_read {
            Some(read) if knows_counts(self.target) && read != u64::MAX => {
                let read = read.to_string();
                self.push(&[
                    b"XGROUP",
                    b"CREATE",
                    key,
                    &group.name,
                    id.as_bytes(),
                    b"ENTRIESREAD",
                    read.as_bytes(),
                ]);
            }
            _ => self.push(&[b"XGROUP", b"CREATE", key, &group.name, id.as_bytes()]),
        }
        self.sent()
    }

    fn stream_consumer(&mut self, group: &[u8], name: &[u8], idle: bool) -> Result<()> {
        let key = self.key;
        if self.target.valkey || self.target.version >= (6, 2, 0) {
            self.push(&[b"XGROUP", b"CREATECONSUMER", key, group, name]);
        } else if idle {
            // Reading its empty history makes a consumer; XCLAIM makes the others.
            self.push(&[
                b"XREADGROUP",
                b"GROUP",
                group,
                name,
                b"COUNT",
                b"1",
                b"STREAMS",
                key,
                b"0",
            ]);
        }
        self.sent()
    }

    fn stream_pending(
        &mut self,
        group: &[u8],
        pending: &Pending,
        owner: Option<&[u8]>,
    ) -> Result<()> {
        let (key, Some(owner)) = (self.key, owner) else {
            return Ok(());
        };
        let (entry, ms, n) = (
            pending.id.to_string(),
            pending.delivery_ms.to_string(),
            pending.deliveries.to_string(),
        );
        self.push(&[
            b"XCLAIM",
            key,
            group,
            owner,
            b"0",
            entry.as_bytes(),
            b"TIME",
            ms.as_bytes(),
            b"RETRYCOUNT",
            n.as_bytes(),
            b"FORCE",
            b"JUSTID",
        ]);
        self.sent()
    }
}

/// The shortest decimal that reads back to the same double.
pub fn score_text(score: f64) -> String {
    if score == f64::INFINITY {
        "inf".into()
    } else if score == f64::NEG_INFINITY {
        "-inf".into()
    } else {
        // Positional where that is short, as most tools print doubles: 0.0001 to 16 digits.
        let scientific = format!("{score:e}");
        match scientific
            .split_once('e')
            .and_then(|(m, e)| Some((m, e.parse::<i32>().ok()?)))
        {
            Some((mantissa, e)) if !(-4..16).contains(&e) => {
                format!("{mantissa}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs())
            }
            _ => score.to_string(),
        }
    }
}
