//! A key of the snapshot (or a healed one) onto the target: SET, RESTORE, transcoded, or rebuilt by commands.

use crate::error::{Error, ErrorKind, Result};
use crate::migrate::admission::{Admission, Barred};
use crate::migrate::carry::Delivery;
use crate::migrate::expiry::HOLD_MS;
use crate::migrate::losses;
use crate::migrate::pump::Pump;
use crate::migrate::rebuild::Rebuild;
use crate::migrate::timed::MaybeTimed;
use crate::plan::Expired;
use crate::rdb::cursor::Reader;
use crate::rdb::encoding;
use crate::rdb::file::{Entry, Header, LargeEntry};
use crate::rdb::opcode::{Dialect, STRING};
use crate::rdb::payload::{self, Fit};
use crate::rdb::value::{self, ValueKind, ValueSink};
use crate::resp;
use crate::target::Database;
use crate::types::{DbIndex, ExpireAt, Mark, Slot, key_hash, shown, unix_ms};
use std::borrow::Cow;
use std::io::Read;
use std::sync::atomic::Ordering::Relaxed;

impl Pump {
    /// One key of the snapshot.
    pub(super) fn entry(
        &mut self,
        entry: &Entry<'_>,
        dialect: Dialect,
        version: u32,
        mark: Mark,
    ) -> Result<()> {
        if payload::is_empty(entry.header.type_id, dialect, version, entry.value) {
            self.note_empty(entry.header.key);
            return Ok(());
        }
        let Some((db, name)) = self.admit(&entry.header, dialect)? else {
            return Ok(());
        };
        let h = &Header {
            key: &name,
            ..entry.header
        };
        self.note_expiries(h, Some(entry.value), dialect, version);
        let expire = self.held_expiry(h, mark);
        let fit = payload::fit(h.type_id, dialect, version, entry.value, &self.format);
        if self.shared.dry_run {
            let way = match fit {
                Fit::AsIs => "as_is",
                Fit::Transcode => "transcoded",
                Fit::Rebuild => "rebuilt",
                Fit::Module => "module",
                Fit::Impossible(_) => "impossible",
            };
            self.sizes.add(
                value::kind(h.type_id, dialect)?.name(),
                h.key,
                entry.value.len() as u64,
                way,
            );
        }
        if self.put(db, h, entry.value, dialect, version, fit, expire, mark)? {
            self.count_written();
        }
        Ok(())
    }

    /// A collection without elements is a key that does not exist, whatever the source says of it.
    pub(super) fn note_empty(&mut self, key: &[u8]) {
        self.note(
            "skipped.empty",
            &format!(
                "the source holds {} as a collection without elements (Valkey 9.1 makes such of a COPY of a hash whose fields have expired): no server takes it, and it counts as a key that is not there",
                shown(key)
            ),
        );
    }

    /// Counts a key read and says which database of the target it goes to under which name; `None` when the plan
    /// leaves it out.
    fn admit<'k>(
        &mut self,
        h: &Header<'k>,
        dialect: Dialect,
    ) -> Result<Option<(Database, Cow<'k, [u8]>)>> {
        self.shard.keys_read += 1;
        self.progress.keys_read.store(self.shard.keys_read, Relaxed);
        let job = &self.shared.job;
        if job.expired == Expired::Drop && h.expire.is_some_and(|e| e.0 <= unix_ms()) {
            self.count("skipped.expired");
            return Ok(None);
        }
        if !job.filter.is_empty() {
            let wanted = job.filter.accepts(h.key)
                && (!job.filter.looks_inside()
                    || job.filter.accepts_value(
                        value::kind(h.type_id, dialect)?.name(),
                        h.expire.is_some(),
                    ));
            // A name that the plan leaves out may be taken by `rename` all the same: that is no loss.
            if !wanted {
                self.count("skipped.filter");
                return Ok(None);
            }
        }
        let shared = self.shared.clone();
        let Some(name) = shared.job.renames.to_target(h.key) else {
            if let Some(db) = shared.job.databases.map(h.db) {
                self.lose_source_key(db, h.key, losses::NAME, NAME_TAKEN)?;
            }
            return Ok(None);
        };
        let db = match self.admission(h.db, &name)? {
            Admission::Yes(db) => db,
            Admission::Replace(db) => {
                shared.own.replace(db.index(), &name)?;
                db
            }
            Admission::No(Barred::NoDatabase(to)) => {
                self.lose_for_want_of(h.db, to, &name)?;
                return Ok(None);
            }
            Admission::No(why) => {
                self.count(why.counter());
                return Ok(None);
            }
        };
        if self.shard.reconcile {
            self.loaded.add(key_hash(db.index(), &name))?;
        }
        let name = Cow::Owned(name.into_owned());
        Ok(Some((db, name)))
    }

    /// Notes what has an expiry: the key, or which of its fields; without a body it may be any of them.
    pub(super) fn note_expiries(
        &mut self,
        h: &Header<'_>,
        body: Option<&[u8]>,
        dialect: Dialect,
        version: u32,
    ) {
        let fields = payload::may_have_field_expiry(h.type_id);
        if h.expire.is_some() || fields {
            self.timed.add_soon(h.key);
        }
        if fields {
            let mut sink = TimedFields {
                timed: &mut self.timed,
                db: h.db,
                key: h.key,
            };
            let told = body.is_some_and(|body| {
                value::decode(h.type_id, dialect, version, body, h.value_at, &mut sink).is_ok()
            });
            if !told {
                self.timed.add_field(h.key, None);
            }
        }
    }

    /// The expiry to write: far off when the true one may come before the key's renewal does.
    fn held_expiry(&mut self, h: &Header<'_>, mark: Mark) -> Option<ExpireAt> {
        let expire = h.expire?;
        if self.shared.job.expired == Expired::Persist && expire.0 <= unix_ms() {
            return None;
        }
        if self.source.is_none() || !matches!(mark, Mark::Snapshot { .. }) {
            return Some(expire);
        }
        let now = unix_ms();
        if expire.0 < now + self.horizon_ms() {
            self.held.note(h.db, h.key);
            return Some(ExpireAt(now + HOLD_MS));
        }
        Some(expire)
    }

    /// How far ahead an expiry may lie and still come before we have caught up.
    pub(super) fn horizon_ms(&self) -> i64 {
        let elapsed = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.shared
            .load_estimate_ms
            .max(elapsed.saturating_mul(2))
            .clamp(60_000, HOLD_MS / 2)
    }

    /// One more key of the first copy.
    pub(super) fn count_written(&mut self) {
        self.shard.keys_written += 1;
        let written = self.shard.keys_written;
        self.progress.keys_written.store(written, Relaxed);
    }

    /// Writes a whole value by whichever way fits the target; false when it is a listed loss.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn put(
        &mut self,
        db: Database,
        h: &Header<'_>,
        body: &[u8],
        dialect: Dialect,
        version: u32,
        fit: Fit,
        expire: Option<ExpireAt>,
        mark: Mark,
    ) -> Result<bool> {
        let slot = self.pipe.slot_of(h.key);
        let footer = payload::footer_version(&self.format);
        match fit {
            Fit::AsIs => {
                let meta = if !self.format.valkey && self.format.version >= (8, 6, 0) {
                    h.meta
                } else {
                    &[]
                };
                let bare = h.type_id == STRING
                    && meta.is_empty()
                    && expire.is_none()
                    && h.freq.is_none()
                    && h.idle_s.is_none();
                if bare
                    && matches!(mark, Mark::Snapshot { .. })
                    && let Some(most) = self.pipe.takes_pairs()
                {
                    let mut r = Reader::new(body, h.value_at);
                    if let Some(text) =
                        encoding::short_string(&mut r, most, &mut self.scratch, "a string")?
                    {
                        self.pipe.pair(slot, db, mark, h.key, text)?;
                        return Ok(true);
                    }
                }
                let node = self.pipe.node_of(slot);
                let batch = self.pipe.batch(node, db, mark)?;
                batch.state(1);
                match bare.then(|| plain_string(body)).flatten() {
                    Some(text) => resp::command(&mut batch.bytes, &[b"SET", h.key, text]),
                    None => restore(&mut batch.bytes, h, meta, h.type_id, body, footer, expire),
                }
                self.pipe.added(node, 1);
            }
            Fit::Transcode => {
                self.scratch.clear();
                let type_id = payload::transcode(
                    h.type_id,
                    dialect,
                    version,
                    body,
                    &self.format,
                    &mut self.scratch,
                )
                .map_err(|e| e.context(format!("convert the key {}", shown(h.key))))?;
                let node = self.pipe.node_of(slot);
                let batch = self.pipe.batch(node, db, mark)?;
                batch.state(1);
                restore(
                    &mut batch.bytes,
                    h,
                    &[],
                    type_id,
                    &self.scratch,
                    footer,
                    expire,
                );
                self.pipe.added(node, 1);
            }
            Fit::Rebuild => {
                let node = self.pipe.node_of(slot);
                let pipe = &mut self.pipe;
                let mut out = Vec::new();
                let mut rebuild = Rebuild::new(
                    h.key,
                    &self.format,
                    &mut out,
                    |bytes: &mut Vec<u8>, commands| {
                        let batch = pipe.batch(node, db, mark)?;
                        batch.state(commands);
                        batch.bytes.extend_from_slice(bytes);
                        bytes.clear();
                        pipe.added(node, commands);
                        Ok(())
                    },
                );
                value::decode(h.type_id, dialect, version, body, h.value_at, &mut rebuild)
                    .and_then(|()| rebuild.finish(expire))
                    .map(drop)
                    .map_err(|e| e.context(format!("rebuild the key {}", shown(h.key))))?;
            }
            Fit::Module => match self.lacks_module(body) {
                Some(why) => {
                    return (self.lose(db.index(), h.key, losses::MODULE, &why)).map(|()| false);
                }
                None => {
                    let node = self.pipe.node_of(slot);
                    let batch = self.pipe.batch(node, db, mark)?;
                    batch.state(1);
                    restore(&mut batch.bytes, h, &[], h.type_id, body, footer, expire);
                    self.pipe.added(node, 1);
                }
            },
            Fit::Impossible(why) if value::kind(h.type_id, dialect)? == ValueKind::Hash => {
                // Everything but the fields' expiries can be held.
                self.lose(db.index(), h.key, losses::FIELD_EXPIRY, why)?;
                return self.put(db, h, body, dialect, version, Fit::Transcode, expire, mark);
            }
            Fit::Impossible(why) => {
                return (self.lose(db.index(), h.key, losses::TYPE, why)).map(|()| false);
            }
        }
        Ok(true)
    }

    /// One key whose value is too large for one command; true when it has to be begun again.
    pub(super) fn large<R: Read>(&mut self, large: LargeEntry<'_, R>, mark: Mark) -> Result<bool> {
        let (h, dialect) = (large.header(), large.dialect());
        let kind = value::kind(h.type_id, dialect)?.name();
        let Some((db, name)) = self.admit(&h, dialect)? else {
            return Ok(false);
        };
        let key = name.into_owned();
        let h = Header { key: &key, ..h };
        self.note_expiries(&h, None, dialect, 0);
        let expire = self.held_expiry(&h, mark);
        let by_commands = value::kind(h.type_id, dialect)?.has_commands();
        if self.shared.dry_run {
            let way = if by_commands { "rebuilt" } else { "module" };
            self.sizes.add(kind, &key, 0, way);
        }
        if !by_commands {
            let value = self.spill(large)?;
            let delivered = self.carry(db, &key, value, expire)?;
            if delivered == Delivery::Done {
                self.count_written();
            }
            return Ok(delivered == Delivery::Again);
        }
        self.in_large = true;
        if !self.put_parts(db, &key, large, expire, mark, true)? {
            self.settle_all()?;
            self.in_large = false;
            return Ok(true);
        }
        self.count_written();
        // Its parts must not be mixed with a second try, so they are all answered before anything follows.
        let again = self.settle_all()?;
        self.in_large = false;
        Ok(again)
    }

    /// Writes a value by commands while it is read; false when trouble (or, if it `may_stop`, a stop) has cut it off.
    pub(super) fn put_parts<R: Read>(
        &mut self,
        db: Database,
        key: &[u8],
        large: LargeEntry<'_, R>,
        expire: Option<ExpireAt>,
        mark: Mark,
        may_stop: bool,
    ) -> Result<bool> {
        let node = self.pipe.node_of(Slot::of(key));
        let pipe = &mut self.pipe;
        let stop = &self.shared.stop;
        let mut out = Vec::new();
        let mut rebuild = Rebuild::new(
            key,
            &self.format,
            &mut out,
            |bytes: &mut Vec<u8>, commands| {
                if pipe.troubled() || (may_stop && stop.requested()) {
                    return Err(Error::new(
                        ErrorKind::Interrupted,
                        "the value is begun again",
                    ));
                }
                let batch = pipe.batch(node, db, mark)?;
                batch.state(commands);
                batch.bytes.extend_from_slice(bytes);
                bytes.clear();
                pipe.added(node, commands);
                Ok(())
            },
        );
        let done = large
            .decode(&mut rebuild)
            .and_then(|()| rebuild.finish(expire));
        match done {
            Ok(left_out) => {
                if left_out {
                    self.lose(
                        db.index(),
                        key,
                        losses::FIELD_EXPIRY,
                        payload::NO_FIELD_EXPIRY,
                    )?;
                }
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(false),
            Err(e) => Err(e.context(format!("rebuild the key {}", shown(key)))),
        }
    }
}

/// Notes the fields of a hash that have an expiry.
struct TimedFields<'a> {
    timed: &'a mut MaybeTimed,
    db: DbIndex,
    key: &'a [u8],
}

impl ValueSink for TimedFields<'_> {
    fn hash_field(&mut self, field: &[u8], _: &[u8], expire: Option<ExpireAt>) -> Result<()> {
        if expire.is_some() {
            self.timed.add_field(self.key, Some(field));
        }
        self.timed.note_field(self.db, self.key, field, true);
        Ok(())
    }
}

/// Why a key has nowhere to go whose name another one gets.
pub(super) const NAME_TAKEN: &str =
    "by `rename`, keys of another prefix get names like its own at the target";

/// Why a key of the source's database `db` has nowhere to go.
pub(super) fn no_database(db: DbIndex) -> String {
    format!(
        "it is in database {db}, which the target does not have (databases.map can lead it to another)"
    )
}

/// The bytes of a string that is stored plainly (not as an integer, not compressed).
fn plain_string(body: &[u8]) -> Option<&[u8]> {
    let (first, rest) = body.split_first()?;
    match first >> 6 {
        0 => Some(rest),
        1 => rest.get(1..),
        2 if *first == 0x80 => rest.get(4..),
        2 => rest.get(8..),
        _ => None,
    }
}

/// Encodes RESTORE with the value's bytes as they lie in the snapshot and a footer of the target's version.
#[allow(clippy::too_many_arguments)]
fn restore(
    out: &mut Vec<u8>,
    h: &Header<'_>,
    meta: &[u8],
    type_id: u8,
    body: &[u8],
    footer: u16,
    expire: Option<ExpireAt>,
) {
    let args = 4
        + 1
        + usize::from(expire.is_some())
        + 2 * usize::from(h.freq.is_some() || h.idle_s.is_some());
    resp::array(out, args);
    resp::bulk(out, b"RESTORE");
    resp::bulk(out, h.key);
    resp::bulk_int(out, expire.map_or(0, |e| e.0.max(1)));
    let mut digits = [0u8; 20];
    out.push(b'$');
    out.extend_from_slice(resp::decimal(
        (meta.len() + 1 + body.len() + 10) as i64,
        &mut digits,
    ));
    out.extend_from_slice(b"\r\n");
    payload::seal(out, meta, type_id, body, footer);
    out.extend_from_slice(b"\r\n");
    resp::bulk(out, b"REPLACE");
    if expire.is_some() {
        resp::bulk(out, b"ABSTTL");
    }
    if let Some(freq) = h.freq {
        resp::bulk(out, b"FREQ");
        resp::bulk_int(out, i64::from(freq));
    } else if let Some(idle) = h.idle_s {
        resp::bulk(out, b"IDLETIME");
        resp::bulk_int(out, i64::try_from(idle).unwrap_or(i64::MAX));
    }
}
