//! A value too large to be held, read item by item in bounded memory.

use super::Snapshot;
use crate::error::{Error, ErrorKind, Result};
use crate::rdb::cursor::{Bytes, Input, Reader, corrupt};
use crate::rdb::encoding::{Len, lzf, string};
use crate::rdb::frame::{ModuleOpcode, TooLarge, Walk};
use crate::rdb::opcode as op;
use crate::rdb::value::{self, Layout, ValueSink, module_name, module_version, vectorset};
use std::io::Read;

/// Bytes of a string that are shown at a time.
const PIECE: usize = 1 << 20;

/// A walk without a limit: only a length that no value has is too large for it.
pub(super) fn all(walked: Result<std::result::Result<(), TooLarge>>) -> Result<()> {
    walked?.map_err(|TooLarge| Error::new(ErrorKind::Corrupt, "a length in a value is beyond all"))
}

impl<R: Read> Snapshot<R> {
    /// Reads the value at the cursor item by item.
    pub(super) fn pieces(&mut self, type_id: u8, sink: &mut impl ValueSink) -> Result<()> {
        if self.head.is_templated(type_id) {
            return self.templated_pieces(type_id, sink);
        }
        match value::layout(type_id, self.head.dialect())? {
            Layout::Items => {
                self.input.ensure(1, "a value")?;
                let mut walk = Walk::new(
                    &mut self.input,
                    if type_id == op::HASH_METADATA { 8 } else { 0 },
                    usize::MAX,
                );
                walk.length("the number of items")?;
                let n = walk.at;
                let at = self.input.position();
                let bytes = self.input.peek().get(..n).unwrap_or_default();
                let head = value::head(type_id, &mut Reader::new(bytes, at))?;
                self.input.consume(n);
                for _ in 0..head.items {
                    let mut walk = Walk::new(&mut self.input, 0, usize::MAX);
                    let _ = walk.item(type_id, self.head.dialect())?;
                    walk.there("an item")?;
                    let n = walk.at;
                    let at = self.input.position();
                    let bytes = self.input.peek().get(..n).unwrap_or_default();
                    value::item(
                        type_id,
                        self.head.dialect(),
                        &head,
                        &mut Reader::new(bytes, at),
                        sink,
                    )?;
                    self.input.consume(n);
                }
                Ok(())
            }
            Layout::String => self.string_pieces(sink),
            Layout::Stream => {
                for _ in 0..self.length("the number of stream nodes")? {
                    let mut walk = Walk::new(&mut self.input, 0, usize::MAX);
                    let _ = walk.string()?;
                    let _ = walk.string()?;
                    walk.there("a stream node")?;
                    let n = walk.at;
                    let at = self.input.position();
                    let bytes = self.input.peek().get(..n).unwrap_or_default();
                    value::entries::node(&mut Reader::new(bytes, at), sink)?;
                    self.input.consume(n);
                }
                // What follows is as large as the pending lists are.
                let bytes = self.tail_of_stream(type_id)?;
                let meta =
                    value::stream::meta(type_id, &mut Reader::new(&bytes, self.input.position()))?;
                sink.stream_meta(&meta)
            }
            Layout::Module if type_id == op::MODULE_2 => {
                if vectorset::is_one(&mut Walk::new(&mut self.input, 0, usize::MAX))? {
                    return self.vector_set(sink);
                }
                let id = Walk::new(&mut self.input, 0, usize::MAX).length("a module's id")?;
                let (name, version) = (module_name(id), module_version(id));
                self.module_pieces(|part, last| sink.module_part(&name, version, part, last))
            }
            Layout::Array => {
                let count =
                    self.walked(|walk| walk.array_head(), |_, r| value::array_head(r, sink))?;
                for _ in 0..count {
                    self.walked(
                        |walk| all(walk.array_element()),
                        |_, r| value::array_element(r, sink),
                    )?;
                }
                Ok(())
            }
            Layout::Paths => {
                let mut context = (sink, Vec::new());
                self.paths(
                    &mut context,
                    |(_, path), r| {
                        *path = string(r, "a path")?.into_owned();
                        Ok(())
                    },
                    |(sink, path), r| {
                        let name = string(r, "a field")?;
                        sink.path_field(path, &name, &string(r, "a value")?)
                    },
                )
            }
            _ => {
                let mut walk = Walk::new(&mut self.input, 0, usize::MAX);
                let _ = walk.value(type_id, self.head.dialect())?;
                walk.there("a value")?;
                let n = walk.at;
                let at = self.input.position();
                let bytes = self.input.peek().get(..n).unwrap_or_default();
                value::decode(
                    type_id,
                    self.head.dialect(),
                    self.head.version(),
                    bytes,
                    at,
                    sink,
                )?;
                self.input.consume(n);
                Ok(())
            }
        }
    }

    /// Shows the bytes of a value that no command puts together, as they are, in pieces.
    pub(super) fn raw(
        &mut self,
        type_id: u8,
        mut out: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        match value::layout(type_id, self.head.dialect())? {
            Layout::Module if type_id == op::MODULE_2 => self.module_pieces(|part, _| out(part)),
            Layout::Array => {
                let head = |count, r: &mut Reader<'_>| out(r.rest()).map(|()| count);
                for _ in 0..self.walked(|walk| walk.array_head(), head)? {
                    self.walked(|walk| all(walk.array_element()), |_, r| out(r.rest()))?;
                }
                Ok(())
            }
            Layout::Paths => {
                // The number of paths is looked at first, and shown as it is.
                let head = self.walked(
                    |walk| walk.length("a path hash"),
                    |n, r| out(r.rest()).map(|()| n),
                )?;
                self.paths_of(
                    head,
                    &mut out,
                    |out, r| out(r.rest()),
                    |out, r| out(r.rest()),
                )
            }
            _ => {
                let dialect = self.head.dialect();
                self.walked(
                    |walk| all(walk.value(type_id, dialect)),
                    |_, r| out(r.rest()),
                )
            }
        }
    }

    /// Shows what `walk` walks over to `take`, and consumes it.
    pub(super) fn walked<T, U>(
        &mut self,
        walk: impl FnOnce(&mut Walk<'_, Input<R>>) -> Result<T>,
        take: impl FnOnce(T, &mut Reader<'_>) -> Result<U>,
    ) -> Result<U> {
        let mut over = Walk::new(&mut self.input, 0, usize::MAX);
        let told = walk(&mut over)?;
        over.there("a value")?;
        let n = over.at;
        let at = self.input.position();
        let bytes = self.input.peek().get(..n).unwrap_or_default();
        let taken = take(told, &mut Reader::new(bytes, at))?;
        self.input.consume(n);
        Ok(taken)
    }

    fn vector_set(&mut self, sink: &mut impl ValueSink) -> Result<()> {
        self.walked(|walk| walk.length("a module's id"), |_, _| Ok(()))?;
        let head = self.walked(
            |walk| all(walk.vector_set_head()),
            |(), r| vectorset::head(r, sink),
        )?;
        for _ in 0..head.vectors {
            self.walked(
                |walk| all(walk.vector(&head)),
                |(), r| vectorset::node(&head, r, sink),
            )?;
        }
        self.walked(
            |walk| walk.module_opcode(),
            |opcode, r| match opcode {
                ModuleOpcode::End => Ok(()),
                _ => Err(r.fail("a vector set", "more than its vectors")),
            },
        )
    }

    /// Shows a module's value in pieces; the last is empty.
    fn module_pieces(&mut self, mut out: impl FnMut(&[u8], bool) -> Result<()>) -> Result<()> {
        const WHAT: &str = "a module's value";
        self.walked(
            |walk| walk.length("a module's id"),
            |_, r| out(r.rest(), false),
        )?;
        loop {
            let opcode = self.walked(
                |walk| walk.module_opcode(),
                |opcode, r| out(r.rest(), false).map(|()| opcode),
            )?;
            let mut left = match opcode {
                ModuleOpcode::End => return out(&[], true),
                ModuleOpcode::Fixed(n) => n,
                ModuleOpcode::Text => self.walked(
                    |walk| walk.string_head(),
                    |n, r| out(r.rest(), false).map(|()| n),
                )?,
            };
            while left > 0 {
                let n = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                self.input.ensure(n, WHAT)?;
                out(self.input.peek().get(..n).unwrap_or_default(), false)?;
                self.input.consume(n);
                left -= n as u64;
            }
        }
    }

    fn tail_of_stream(&mut self, type_id: u8) -> Result<Vec<u8>> {
        let mut walk = Walk::new(&mut self.input, 0, usize::MAX);
        let _ = walk.stream_meta(type_id)?;
        walk.there("a stream")?;
        let n = walk.at;
        let bytes = self.input.peek().get(..n).unwrap_or_default().to_vec();
        self.input.consume(n);
        Ok(bytes)
    }

    /// A string that is not plain: a compressed one is unpacked in pieces.
    fn compressed_pieces(&mut self, head: Len, sink: &mut impl ValueSink) -> Result<()> {
        if head != Len::Encoded(3) {
            self.string_into_text("a string")?;
            sink.string_part(&self.text, false)?;
            return sink.string_part(&[], true);
        }
        const WHAT: &str = "a compressed string";
        self.input.consume(1);
        let mut left = self.length(WHAT)?;
        let mut unpacker = lzf::Unpacker::new(self.length(WHAT)?);
        while left > 0 {
            // At least one whole instruction, as much as lies there otherwise.
            let least = left.min(lzf::LONGEST as u64) as usize;
            self.input.ensure(least, WHAT)?;
            let at = self.input.position();
            let there = self.input.peek();
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(there.len());
            let piece = there.get(..most).unwrap_or_default();
            let used = unpacker.feed(piece, at, &mut |b| sink.string_part(b, false))?;
            if used == 0 {
                return Err(corrupt(at, WHAT, "it ends inside a run"));
            }
            self.input.consume(used);
            left -= used as u64;
        }
        unpacker.finish(self.input.position(), &mut |b| sink.string_part(b, false))?;
        sink.string_part(&[], true)
    }

    fn string_pieces(&mut self, sink: &mut impl ValueSink) -> Result<()> {
        let mut walk = Walk::new(&mut self.input, 0, usize::MAX);
        let head = walk.length_or_encoding()?;
        let Len::Plain(mut left) = head else {
            return self.compressed_pieces(head, sink);
        };
        let n = walk.at;
        self.input.consume(n);
        while left > 0 {
            let n = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            self.input.ensure(n, "a string")?;
            sink.string_part(self.input.peek().get(..n).unwrap_or_default(), false)?;
            self.input.consume(n);
            left -= n as u64;
        }
        sink.string_part(&[], true)
    }
}
