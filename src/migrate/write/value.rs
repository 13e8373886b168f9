//! A whole value onto the target: SET, RESTORE, transcoded, or rebuilt by commands.

use crate::error::{Error, ErrorKind, Result};
use crate::migrate::write::door::Pass;
use crate::migrate::write::losses;
use crate::migrate::write::target_writer::TargetWriter;
use crate::migrate::write::wire::Wire;
use crate::rdb::commands::Rebuild;
use crate::rdb::cursor::Reader;
use crate::rdb::encoding;
use crate::rdb::file::{Header, LargeEntry};
use crate::rdb::opcode::{Dialect, STRING};
use crate::rdb::payload::{self, Fit};
use crate::rdb::tombstones::Tombstones;
use crate::rdb::value::{self, ValueKind};
use crate::resp;
use crate::types::{ExpireAt, Mark, Slot, shown};
use std::io::Read;

/// A value as it is encoded: whose numbering of types it follows, of which RDB version, and its bytes behind the type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encoded<'a> {
    pub dialect: Dialect,
    pub version: u32,
    pub body: &'a [u8],
}

impl<W: Wire> TargetWriter<W> {
    /// How the target takes a value.
    pub fn fit(&self, type_id: u8, value: Encoded<'_>) -> Fit {
        let fit = payload::fit(
            type_id,
            value.dialect,
            value.version,
            value.body,
            &self.format,
        );
        self.without_restore(fit, type_id, value.dialect)
    }

    /// The same where the target refuses RESTORE: by commands, as far as there are any.
    fn without_restore(&self, fit: Fit, type_id: u8, dialect: Dialect) -> Fit {
        if !self.ctx.facts().modules.no_restore {
            return fit;
        }
        let by_commands = value::kind(type_id, dialect).is_ok_and(ValueKind::has_commands);
        match fit {
            Fit::AsIs | Fit::Transcode if by_commands => Fit::Rebuild,
            Fit::AsIs | Fit::Transcode => Fit::Impossible(losses::ONLY_BY_RESTORE),
            // Modules have ways of their own.
            Fit::Rebuild | Fit::Module | Fit::Impossible(_) => fit,
        }
    }

    /// Writes a whole value by whichever way fits the target; false when it is a listed loss.
    pub fn put(
        &mut self,
        pass: Pass,
        h: &Header<'_>,
        value: Encoded<'_>,
        fit: Fit,
        expire: Option<ExpireAt>,
        mark: Mark,
    ) -> Result<bool> {
        let Encoded {
            dialect,
            version,
            body,
        } = value;
        let slot = self.wire.slot_of(h.key);
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
                if bare && self.paired(pass, h, body, mark)? {
                    return Ok(true);
                }
                self.commands(pass, slot, mark, |batch| {
                    batch.state(1);
                    match bare.then(|| plain_string(body)).flatten() {
                        Some(text) => resp::command(&mut batch.bytes, &[b"SET", h.key, text]),
                        None => restore(&mut batch.bytes, h, meta, h.type_id, body, footer, expire),
                    }
                    1
                })?;
            }
            Fit::Transcode => {
                let mut out = std::mem::take(&mut self.scratch);
                out.clear();
                let type_id =
                    payload::transcode(h.type_id, dialect, version, body, &self.format, &mut out)
                        .map_err(|e| e.context(format!("convert the key {}", shown(h.key))))?;
                self.commands(pass, slot, mark, |batch| {
                    batch.state(1);
                    restore(&mut batch.bytes, h, &[], type_id, &out, footer, expire);
                    1
                })?;
                self.scratch = out;
            }
            Fit::Rebuild if h.type_id == STRING => {
                self.put_string(pass, h, body, expire, mark)?;
            }
            Fit::Rebuild => {
                let mut out = Vec::new();
                let named = |e: Error| e.context(format!("rebuild the key {}", shown(h.key)));
                let deleted = Tombstones::of(h.type_id, dialect, version, body).map_err(named)?;
                let mut rebuild =
                    (self.rebuild(pass, h.key, mark, &mut out, |_| false)).with_tombstones(deleted);
                value::decode(h.type_id, dialect, version, body, h.value_at, &mut rebuild)
                    .and_then(|()| rebuild.finish(expire))
                    .map(drop)
                    .map_err(named)?;
            }
            Fit::Module => return self.put_module(pass, h, body, expire, mark),
            Fit::Impossible(why) if value::kind(h.type_id, dialect)? == ValueKind::Hash => {
                // Everything but the fields' expiries can be held.
                (self.ctx).lose(pass.db(), h.key, losses::FIELD_EXPIRY, why)?;
                let fit = self.without_restore(Fit::Transcode, h.type_id, dialect);
                return self.put(pass, h, value, fit, expire, mark);
            }
            Fit::Impossible(why) => {
                self.ctx.lose(pass.db(), h.key, losses::TYPE, why)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Adds a short string of the snapshot to those that go out several at a time; false when it has to go by itself.
    fn paired(&mut self, pass: Pass, h: &Header<'_>, body: &[u8], mark: Mark) -> Result<bool> {
        let (Mark::Snapshot { .. }, Some(most)) = (mark, self.wire.takes_pairs()) else {
            return Ok(false);
        };
        let slot = self.wire.slot_of(h.key);
        let mut r = Reader::new(body, h.value_at);
        let text = encoding::short_string(&mut r, most, &mut self.scratch, "a string")?;
        if let Some(text) = text {
            self.wire.pair(slot, pass.database(), mark, h.key, text)?;
        }
        Ok(text.is_some())
    }

    /// Writes a string by SET, which replaces whatever was there at once.
    fn put_string(
        &mut self,
        pass: Pass,
        h: &Header<'_>,
        body: &[u8],
        expire: Option<ExpireAt>,
        mark: Mark,
    ) -> Result<()> {
        if expire.is_none() && self.paired(pass, h, body, mark)? {
            return Ok(());
        }
        let text = encoding::string(&mut Reader::new(body, h.value_at), "a string")
            .map_err(|e| e.context(format!("rebuild the key {}", shown(h.key))))?;
        let at = expire.map(|e| e.0.max(1).to_string());
        let in_one = self.ctx.facts().target_has_set_pxat;
        let slot = self.wire.slot_of(h.key);
        self.commands(pass, slot, mark, |batch| {
            let mut set: Vec<&[u8]> = vec![b"SET", h.key, &text];
            let mut commands = 1;
            match &at {
                Some(at) if in_one => set.extend([b"PXAT", at.as_bytes()]),
                Some(_) => commands = 2,
                None => {}
            }
            batch.state(commands);
            resp::command(&mut batch.bytes, &set);
            if let (2, Some(at)) = (commands, &at) {
                resp::command(&mut batch.bytes, &[b"PEXPIREAT", h.key, at.as_bytes()]);
            }
            commands
        })
    }

    /// A sink that writes a value to the target by commands; where `cut_off` says so of the pipe, it ends with
    /// `Interrupted` instead of writing more.
    pub fn rebuild<'a>(
        &'a mut self,
        pass: Pass,
        key: &'a [u8],
        mark: Mark,
        out: &'a mut Vec<u8>,
        cut_off: impl Fn(&W) -> bool + 'a,
    ) -> Rebuild<'a, impl FnMut(&mut Vec<u8>, u32) -> Result<()> + 'a> {
        let TargetWriter { wire, format, .. } = self;
        let node = wire.node_of(Slot::of(key));
        Rebuild::new(key, format, out, move |bytes: &mut Vec<u8>, commands| {
            if cut_off(wire) {
                return Err(Error::new(
                    ErrorKind::Interrupted,
                    "the value is begun again",
                ));
            }
            let batch = wire.batch(node, pass.database(), mark)?;
            batch.state(commands);
            batch.bytes.extend_from_slice(bytes);
            bytes.clear();
            wire.added(node, commands);
            Ok(())
        })
    }

    /// Writes a value by commands while it is read; false when trouble (or, if it `may_stop`, a stop) has cut it off.
    pub fn put_parts<R: Read>(
        &mut self,
        pass: Pass,
        key: &[u8],
        large: LargeEntry<'_, R>,
        expire: Option<ExpireAt>,
        mark: Mark,
        may_stop: bool,
    ) -> Result<bool> {
        let ctx = self.ctx.clone();
        let mut out = Vec::new();
        let cut_off = |wire: &W| wire.troubled() || (may_stop && ctx.shared.stop.requested());
        let mut rebuild = self.rebuild(pass, key, mark, &mut out, cut_off);
        let done = large
            .decode(&mut rebuild)
            .and_then(|()| rebuild.finish(expire));
        match done {
            Ok(left_out) => {
                if left_out {
                    let why = payload::NO_FIELD_EXPIRY;
                    self.ctx.lose(pass.db(), key, losses::FIELD_EXPIRY, why)?;
                }
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(false),
            Err(e) => Err(e.context(format!("rebuild the key {}", shown(key)))),
        }
    }
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
pub(super) fn restore(
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
