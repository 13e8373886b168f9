//! A key's state onto the target, as it was read from the source: through the door, whole or in parts, or removed.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::fence::{Dump, KeyState};
use crate::migrate::context::ShardContext;
use crate::migrate::expiry::guard::ExpiryGuard;
use crate::migrate::write::door::{Admission, Barred, Door, Pass};
use crate::migrate::write::large_value::{self, Carried, Delivery};
use crate::migrate::write::module_way;
use crate::migrate::write::target_writer::TargetWriter;
use crate::migrate::write::value::Encoded;
use crate::migrate::write::wire::Wire;
use crate::rdb::file::{Header, Options, Snapshot};
use crate::rdb::large;
use crate::rdb::opcode::Dialect;
use crate::rdb::payload::{self, Fit};
use crate::rdb::value;
use crate::types::{DbIndex, ExpireAt, Mark, shown};
use std::fs::File;
use std::io::{Read, Seek};

/// What has become of a state that was to be written.
pub(crate) enum Written {
    Value,
    /// The key is not there, or is left out.
    Nothing,
    /// Trouble came in the middle of a large value.
    CutOff,
    /// It goes over a connection of its own, once nothing else is on its way.
    Deliver(Box<Delivery>),
}

/// Writes states; put together from the parts of a shard for as long as it takes.
pub(crate) struct StateWriter<'a, W> {
    pub ctx: &'a ShardContext,
    pub door: &'a mut Door,
    pub writer: &'a mut TargetWriter<W>,
    pub expiry: &'a mut ExpiryGuard,
}

/// A collection without elements is a key that does not exist, whatever the source says of it.
pub(crate) fn note_empty(ctx: &ShardContext, key: &[u8]) {
    ctx.note(
        "skipped.empty",
        &format!(
            "the source holds {} as a collection without elements (Valkey 9.1 makes such of a COPY of a hash whose fields have expired): no server takes it, and it counts as a key that is not there",
            shown(key)
        ),
    );
}

impl<W: Wire> StateWriter<'_, W> {
    /// Writes a key of the source's database `db` as it was read.
    pub fn write(
        &mut self,
        db: DbIndex,
        key: &[u8],
        state: &KeyState,
        mark: Mark,
    ) -> Result<Written> {
        let pass = match (self.door.admit(db, key)?, &state.payload) {
            (Admission::Yes(pass), _) => pass,
            (Admission::Replace(own), Some(_)) => self.door.claim(own, key)?,
            (Admission::No(Barred::NoDatabase(to)), Some(_)) => {
                self.ctx.lose_for_want_of(db, to, key)?;
                return Ok(Written::Nothing);
            }
            // A write of the stream is why it is read, so the source had such a key, and has deleted it since.
            (Admission::Replace(own), None) if !self.door.slots().adopting() => {
                self.door.claim(own, key)?
            }
            (Admission::Replace(_) | Admission::No(_), _) => return Ok(Written::Nothing),
        };
        self.write_admitted(pass, db, key, state, mark)
    }

    /// Writes what was read of a key that the door has let through.
    pub fn write_admitted(
        &mut self,
        pass: Pass,
        db: DbIndex,
        key: &[u8],
        state: &KeyState,
        mark: Mark,
    ) -> Result<Written> {
        let read;
        let dump = match &state.payload {
            None => return self.remove(pass, key, mark),
            Some(Dump::Whole(dump)) => dump,
            Some(Dump::File(file, len)) if *len > self.ctx.whole_value() as u64 => {
                return self.write_large(file, *len, pass, db, key, state, mark);
            }
            Some(Dump::File(file, _)) => {
                let mut bytes = Vec::new();
                let mut file = file;
                file.read_to_end(&mut bytes)
                    .context(ErrorKind::Disk, read_again)?;
                read = bytes;
                &read
            }
        };
        let value = payload::open(dump)
            .map_err(|e| e.context(format!("read the key {} from the source", shown(key))))?;
        let kind = value::kind(value.type_id, value.dialect)?;
        let filter = &self.ctx.job().filter;
        if !filter.accepts_value(kind.name(), state.expire.is_some()) {
            return self.remove(pass, key, mark);
        }
        let version = u32::from(value.version);
        if payload::is_empty(value.type_id, value.dialect, version, &value.body) {
            note_empty(self.ctx, key);
            return self.remove(pass, key, mark);
        }
        let header = Header {
            db,
            key,
            expire: state.expire,
            idle_s: None,
            freq: None,
            meta: value.meta,
            type_id: value.type_id,
            at: 0,
            value_at: 0,
        };
        (self.expiry).note_value(&header, Some((&value.body, version)), value.dialect);
        let encoded = Encoded {
            dialect: value.dialect,
            version,
            body: &value.body,
        };
        let fit = self.writer.fit(value.type_id, encoded);
        if fit == Fit::Module {
            module_way::note_dumped(self.ctx, &value.body);
        }
        Ok(
            match (self.writer).put(pass, &header, encoded, fit, state.expire, mark)? {
                true => Written::Value,
                false => Written::Nothing,
            },
        )
    }

    fn remove(&mut self, pass: Pass, key: &[u8], mark: Mark) -> Result<Written> {
        self.writer.remove(pass, key, mark)?;
        Ok(Written::Nothing)
    }

    /// Writes a value that is too large to be held: by commands, or as it is.
    #[allow(clippy::too_many_arguments)]
    fn write_large(
        &mut self,
        mut file: &File,
        len: u64,
        pass: Pass,
        db: DbIndex,
        key: &[u8],
        state: &KeyState,
        mark: Mark,
    ) -> Result<Written> {
        let named = |e: Error| e.context(format!("read the key {} from the source", shown(key)));
        let version = u32::from(large::check(file, len).map_err(named)?);
        file.rewind().context(ErrorKind::Disk, read_again)?;
        let dialect = Dialect::of_version(version);
        let mut dump = Snapshot::resume(file, 0, db, dialect, version, Options::default());
        let value = dump.dumped().map_err(named)?;
        let expire = state.expire;
        let header = Header {
            key,
            expire,
            ..value.header()
        };
        let kind = value::kind(header.type_id, dialect)?;
        let filter = &self.ctx.job().filter;
        if !filter.accepts_value(kind.name(), expire.is_some()) {
            return self.remove(pass, key, mark);
        }
        self.expiry.note_value(&header, None, dialect);
        if kind.has_commands() {
            return Ok(
                match (self.writer).put_parts(pass, key, value, expire, mark, false)? {
                    true => Written::Value,
                    false => Written::CutOff,
                },
            );
        }
        let (type_id, from) = (header.type_id, header.value_at);
        let file = file.try_clone().context(ErrorKind::Disk, read_again)?;
        let value = Carried {
            type_id,
            dialect,
            file,
            from,
            len: (len - large::FOOTER).saturating_sub(from),
        };
        self.deliver(pass, key, value, expire, mark)
    }

    /// Prepares a value for a connection of its own, if the target can hold it.
    fn deliver(
        &mut self,
        pass: Pass,
        key: &[u8],
        mut value: Carried,
        expire: Option<ExpireAt>,
        mark: Mark,
    ) -> Result<Written> {
        let format = *self.writer.format();
        if let Some(body) = large_value::for_commands(self.ctx, &format, &mut value)? {
            let sent = (self.writer).put_large_module(pass, key, &body, expire, mark)?;
            return Ok(if sent {
                Written::Value
            } else {
                Written::Nothing
            });
        }
        if !large_value::is_held(self.ctx, &format, pass, key, &mut value)? {
            return Ok(Written::Nothing);
        }
        Ok(Written::Deliver(Box::new(Delivery {
            pass,
            key: key.to_vec(),
            value,
            expire,
        })))
    }
}

fn read_again() -> String {
    "read a value again".to_owned()
}
