//! One record of the snapshot onto the target: admitted, its expiry held back where need be, written as it fits.

use crate::error::Result;
use crate::migrate::checkpoint::checkpoints::Checkpoints;
use crate::migrate::context::ShardContext;
use crate::migrate::expiry::guard::ExpiryGuard;
use crate::migrate::heal::state::note_empty;
use crate::migrate::load::dry_run_stats::DryRunStats;
use crate::migrate::load::loaded_keys::LoadedKeys;
use crate::migrate::write::door::{Admission, Barred, Door, Pass};
use crate::migrate::write::large_value::{self, Delivery};
use crate::migrate::write::losses;
use crate::migrate::write::target_writer::TargetWriter;
use crate::migrate::write::value::Encoded;
use crate::migrate::write::wire::Wire;
use crate::plan::Expired;
use crate::rdb::file::{Entry, Header, LargeEntry};
use crate::rdb::opcode::Dialect;
use crate::rdb::payload::{self, Fit};
use crate::rdb::value;
use crate::types::{Mark, key_hash, unix_ms};
use std::borrow::Cow;
use std::io::Read;

/// What has become of a value that is too large for one command.
pub(crate) enum Large {
    /// It is left out, or a listed loss.
    Nothing,
    /// All of it is on its way in parts, which must be answered before anything follows.
    Sent,
    /// Trouble or a stop has cut it off: it is begun again.
    CutOff,
    /// It goes over a connection of its own, once nothing else is on its way.
    Deliver(Box<Delivery>),
}

/// Writes records; put together from the parts of a shard for as long as it takes.
pub(crate) struct Loader<'a, W> {
    pub ctx: &'a ShardContext,
    pub marks: &'a mut Checkpoints,
    pub door: &'a mut Door,
    pub expiry: &'a mut ExpiryGuard,
    pub writer: &'a mut TargetWriter<W>,
    pub loaded: &'a mut LoadedKeys,
    pub stats: &'a mut DryRunStats,
}

impl<W: Wire> Loader<'_, W> {
    /// One key of the snapshot.
    pub fn entry(
        &mut self,
        entry: &Entry<'_>,
        dialect: Dialect,
        version: u32,
        mark: Mark,
    ) -> Result<()> {
        let (type_id, body) = (entry.header.type_id, entry.value);
        if payload::is_empty(type_id, dialect, version, body) {
            note_empty(self.ctx, entry.header.key);
            return Ok(());
        }
        let Some((pass, name)) = self.admit(&entry.header, dialect)? else {
            return Ok(());
        };
        let h = &Header {
            key: &name,
            ..entry.header
        };
        self.expiry.note_value(h, Some((body, version)), dialect);
        let expire = self.expiry.hold_loaded(h, mark);
        let value = Encoded {
            dialect,
            version,
            body,
        };
        let fit = self.writer.fit(type_id, value);
        if self.ctx.dry_run() {
            let kind = value::kind(type_id, dialect)?.name();
            let way = match fit {
                Fit::AsIs => "as_is",
                Fit::Transcode => "transcoded",
                Fit::Rebuild => "rebuilt",
                Fit::Module => "module",
                Fit::Impossible(_) => "impossible",
            };
            self.stats.add(kind, h.key, body.len() as u64, way);
        }
        if self.writer.put(pass, h, value, fit, expire, mark)? {
            self.marks.count_written();
        }
        Ok(())
    }

    /// Counts a key read and asks the door for it, under the name that it gets; `None` when it is left out.
    fn admit<'k>(
        &mut self,
        h: &Header<'k>,
        dialect: Dialect,
    ) -> Result<Option<(Pass, Cow<'k, [u8]>)>> {
        self.marks.count_read(1);
        let ctx = self.ctx;
        let job = ctx.job();
        if job.expired == Expired::Drop && h.expire.is_some_and(|e| e.0 <= unix_ms()) {
            ctx.count("skipped.expired");
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
                ctx.count("skipped.filter");
                return Ok(None);
            }
        }
        let Some(name) = job.renames.to_target(h.key) else {
            if let Some(db) = job.databases.map(h.db) {
                ctx.lose_source_key(db, h.key, losses::NAME, losses::NAME_TAKEN)?;
            }
            return Ok(None);
        };
        let pass = match self.door.admit(h.db, &name)? {
            Admission::Yes(pass) => pass,
            Admission::Replace(own) => self.door.claim(own, &name)?,
            Admission::No(Barred::NoDatabase(to)) => {
                ctx.lose_for_want_of(h.db, to, &name)?;
                return Ok(None);
            }
            Admission::No(why) => {
                ctx.count(why.counter());
                return Ok(None);
            }
        };
        if self.marks.shard().reconcile {
            self.loaded.add(key_hash(pass.db(), &name))?;
        }
        Ok(Some((pass, name)))
    }

    /// One key whose value is too large for one command.
    pub fn large<R: Read>(&mut self, large: LargeEntry<'_, R>, mark: Mark) -> Result<Large> {
        let (h, dialect) = (large.header(), large.dialect());
        let kind = value::kind(h.type_id, dialect)?;
        let Some((pass, name)) = self.admit(&h, dialect)? else {
            return Ok(Large::Nothing);
        };
        let key = name.into_owned();
        let h = Header { key: &key, ..h };
        self.expiry.note_value(&h, None, dialect);
        let expire = self.expiry.hold_loaded(&h, mark);
        let by_commands = kind.has_commands();
        if self.ctx.dry_run() {
            let way = if by_commands { "rebuilt" } else { "module" };
            self.stats.add(kind.name(), &key, 0, way);
        }
        if by_commands {
            return Ok(
                match (self.writer).put_parts(pass, &key, large, expire, mark, true)? {
                    true => Large::Sent,
                    false => Large::CutOff,
                },
            );
        }
        let mut value = large_value::spill(self.ctx, large)?;
        let format = *self.writer.format();
        if let Some(body) = large_value::for_commands(self.ctx, &format, &mut value)? {
            let sent = (self.writer).put_large_module(pass, &key, &body, expire, mark)?;
            return Ok(if sent { Large::Sent } else { Large::Nothing });
        }
        if !large_value::is_held(self.ctx, &format, pass, &key, &mut value)? {
            return Ok(Large::Nothing);
        }
        Ok(Large::Deliver(Box::new(Delivery {
            pass,
            key,
            value,
            expire,
        })))
    }
}
