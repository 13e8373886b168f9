//! The end of a snapshot: its checksum, and what may follow: nothing, a stray byte, commands, or another snapshot.

use super::head::{Head, MAGIC_LEN, WHAT_MAGIC, magic};
use super::{Item, Options, Snapshot};
use crate::error::{Error, ErrorKind, Result};
use crate::rdb::cursor::{Bytes, corrupt};
use crate::types::DbIndex;
use std::io::Read;

/// What old files hold behind their end: nothing, a stray byte, the mark of a diskless transfer.
const STRAY: [usize; 3] = [0, 1, 40];

impl<R: Read> Snapshot<R> {
    /// Reads a snapshot that begins at byte `start` of its file as far as its keys, but not what stands at `until`
    /// and behind it.
    pub fn head_at(reader: R, start: u64, until: u64, options: Options) -> Result<Head> {
        let mut snapshot = Snapshot::open_at(reader, start, options)?;
        while snapshot.position() < until
            && !matches!(
                snapshot.next()?,
                Item::Entry(_) | Item::Large(_) | Item::Joined(..) | Item::End
            )
        {}
        Ok(snapshot.head)
    }

    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Where the snapshot's magic stands in the file; several may be joined.
    pub fn start(&self) -> u64 {
        self.head.start()
    }

    /// The checksum.
    pub(super) fn end(&mut self) -> Result<()> {
        if self.head.version() < 5 {
            return Ok(());
        }
        let computed = self.input.checksum();
        self.input.ensure(8, "the checksum")?;
        let stored = self
            .input
            .peek()
            .get(..8)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u64::from_le_bytes);
        let at = self.input.position();
        self.input.consume(8);
        match computed {
            // Zero means that the writer was told not to compute one.
            Some(computed) if self.checksum && stored != 0 && computed != stored => Err(corrupt(
                at,
                "the checksum",
                format_args!("the file says {stored:016x}, its bytes give {computed:016x}"),
            )),
            _ => Ok(()),
        }
    }

    /// Whether exactly `n` bytes are left.
    fn is_left(&mut self, n: usize) -> Result<bool> {
        const WHAT: &str = "what follows the end";
        for (to, expected) in [(n, true), (n.saturating_add(1), false)] {
            match self.input.ensure(to, WHAT) {
                Err(e) if e.kind() != ErrorKind::Corrupt => return Err(e),
                there if there.is_ok() != expected => return Ok(false),
                _ => {}
            }
        }
        Ok(true)
    }

    fn refuse_commands(&self) -> Error {
        let at = self.input.position();
        Error::new(
            ErrorKind::Unsupported,
            format!("byte {at}: commands follow the snapshot, which can only be read from an append-only file that lies there as it was written"),
        )
        .hint("unpack the append-only file first, save it to a file, and name that")
    }

    /// Looks behind the end: true when another snapshot begins there, which is read from now on.
    pub(super) fn joined(&mut self) -> Result<bool> {
        for stray in STRAY {
            // Commands may hold anything.
            if stray > 0 && self.head.commands_follow() {
                return match self.options.commands {
                    true => Ok(false),
                    false => Err(self.refuse_commands()),
                };
            }
            let is_left = self.is_left(stray)?;
            let mark = self.input.peek().get(..stray).unwrap_or_default();
            if stray > 1 && !mark.iter().all(u8::is_ascii_alphanumeric) {
                continue;
            }
            if is_left {
                return Ok(false);
            }
            // Less may be there.
            let _ = (self.input).ensure(stray.saturating_add(MAGIC_LEN), WHAT_MAGIC);
            let there = self.input.peek();
            let next = there.get(stray..).and_then(|next| next.get(..MAGIC_LEN));
            if next.and_then(magic).is_some_and(|(_, v)| v.is_some()) {
                self.input.consume(stray);
                self.input.restart_checksum(!self.options.ignore_checksum);
                self.head = Head::read(&mut self.input, self.options.strict)?;
                self.checksum = self.head.has_checksum() && !self.options.ignore_checksum;
                self.db = DbIndex::ZERO;
                return Ok(true);
            }
        }
        Err(corrupt(
            self.input.position(),
            "what follows the end",
            "bytes that are no snapshot",
        )
        .hint("the file was cut, written over or put together wrongly: export it again, or cut it off at this byte"))
    }
}
