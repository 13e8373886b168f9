//! Opcode 242: the field names of hashes (Redis 8.10), or a command amid the keys (Valkey 9.2).

use super::Snapshot;
use super::pieces::all;
use crate::error::{Error, ErrorKind, Result};
use crate::rdb::cursor::{Input, Reader};
use crate::rdb::encoding::string;
use crate::rdb::frame::Walk;
use crate::rdb::opcode::{self as op, Dialect};
use crate::rdb::value::ValueSink;
use crate::rdb::value::template::{self, Names, Templates};
use std::borrow::Cow;
use std::io::Read;

impl<R: Read> Snapshot<R> {
    pub(super) fn has_templates(&self) -> bool {
        self.head.dialect() == Dialect::Redis && self.head.version() >= 15
    }

    /// Reads a template: its id, and names.
    pub(super) fn template(&mut self) -> Result<()> {
        const WHAT: &str = "a hash template";
        let at = self.input.position();
        self.input.consume(1);
        let id = self.length(WHAT)?;
        let names = self.length(WHAT)?;
        self.head.templates_mut().begin(id, names, at)?;
        for _ in 0..names {
            let at = self.input.position();
            self.string_into_text(WHAT)?;
            let name = std::mem::take(&mut self.text);
            self.head.templates_mut().name(&name, at)?;
        }
        self.head.templates_mut().end();
        Ok(())
    }

    pub(super) fn refuse_update(&self) -> Error {
        Error::new(
            ErrorKind::Unsupported,
            format!(
                "byte {}: the opcode 242 (UPDATE) is a command that ran while the snapshot was written (a forkless save of Valkey 9.2), which is not applied yet",
                self.input.position()
            ),
        )
        .hint("write the snapshot while nothing writes or by a save that forks, or take the data from the live server (source.mode \"replica\" or \"scan\")")
    }

    /// A large hash whose names stand in a template, value by value.
    pub(super) fn templated_pieces(
        &mut self,
        type_id: u8,
        sink: &mut impl ValueSink,
    ) -> Result<()> {
        // The table may be large: it is lent, and not copied.
        let templates = std::mem::take(self.head.templates_mut());
        let read = self.templated(type_id, &templates, sink);
        *self.head.templates_mut() = templates;
        read
    }

    fn templated(
        &mut self,
        type_id: u8,
        templates: &Templates,
        sink: &mut impl ValueSink,
    ) -> Result<()> {
        let head = |walk: &mut Walk<'_, Input<R>>| match type_id {
            op::HASH_TEMPLATE_ARRAY_REF => walk.length("a hash").map(|_| ()),
            op::HASH_TEMPLATE_ARRAY => all(template::walk_names(walk)),
            _ => all(template::walk(walk, type_id, templates)),
        };
        let names = self.walked(head, |(), r| match template::is_packed(type_id) {
            true => template::decode(type_id, r, templates, sink).map(|()| None),
            false => Ok(template::names(type_id, r, templates)?.map(Cow::into_owned)),
        })?;
        for name in names.iter().flat_map(Names::iter) {
            self.walked(
                |walk| all(walk.string()),
                |(), r| sink.hash_field(name, &string(r, "a hash value")?, None),
            )?;
        }
        Ok(())
    }

    /// Shows a large path hash field by field: a head for each path with its name and the number of its fields.
    pub(super) fn paths<C>(
        &mut self,
        context: &mut C,
        head: impl FnMut(&mut C, &mut Reader<'_>) -> Result<()>,
        field: impl FnMut(&mut C, &mut Reader<'_>) -> Result<()>,
    ) -> Result<()> {
        let paths = self.walked(|walk| walk.length("a path hash"), |n, _| Ok(n))?;
        self.paths_of(paths, context, head, field)
    }

    /// The same of so many paths, when their number is read.
    pub(super) fn paths_of<C>(
        &mut self,
        paths: u64,
        context: &mut C,
        mut head: impl FnMut(&mut C, &mut Reader<'_>) -> Result<()>,
        mut field: impl FnMut(&mut C, &mut Reader<'_>) -> Result<()>,
    ) -> Result<()> {
        const WHAT: &str = "a path hash";
        for _ in 0..paths {
            let fields = self.walked(
                |walk| {
                    all(walk.string())?;
                    walk.length(WHAT)
                },
                |n, r| head(context, r).map(|()| n),
            )?;
            for _ in 0..fields {
                self.walked(
                    |walk| {
                        all(walk.string())?;
                        all(walk.string())
                    },
                    |(), r| field(context, r),
                )?;
            }
        }
        Ok(())
    }
}
