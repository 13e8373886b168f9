//! Cursors: [`Reader`] over a slice, [`Input`] over a stream; both checked, both naming the place of an error.

use crate::error::{Error, ErrorKind, Result};
use std::io::Read;

/// Bytes that can be looked at from a fixed start, more of them coming when asked for.
pub trait Bytes {
    /// Makes sure that `to` bytes from the start are there.
    fn ensure(&mut self, to: usize, what: &'static str) -> Result<()>;
    /// What is there from the start on.
    fn peek(&self) -> &[u8];
    /// The position of the start in the file.
    fn base(&self) -> u64;
}

#[cold]
pub fn corrupt(at: u64, what: &'static str, problem: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("byte {at}, reading {what}: {problem}"),
    )
}

/// A cursor over a slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    base: u64,
}

impl<'a> Reader<'a> {
    /// `base` is the position of the first byte in its file or payload, for error messages.
    pub fn new(bytes: &'a [u8], base: u64) -> Reader<'a> {
        Reader { bytes, at: 0, base }
    }

    pub fn position(&self) -> u64 {
        self.base + self.at as u64
    }

    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// What is left, which stays there.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    pub fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8]> {
        match self
            .at
            .checked_add(n)
            .and_then(|end| self.bytes.get(self.at..end))
        {
            Some(bytes) => {
                self.at += n;
                Ok(bytes)
            }
            None => Err(corrupt(
                self.position(),
                what,
                format_args!("{n} bytes are needed, {} are left", self.remaining()),
            )),
        }
    }

    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        let bytes = self.take(N, what)?;
        <[u8; N]>::try_from(bytes).map_err(|_| corrupt(self.position(), what, "too short"))
    }

    pub fn u8(&mut self, what: &'static str) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array(what)?))
    }

    pub fn u16(&mut self, what: &'static str) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub fn i64(&mut self, what: &'static str) -> Result<i64> {
        Ok(i64::from_le_bytes(self.array(what)?))
    }

    /// Reads the length that a packed value begins with, and refuses another than that of all its bytes.
    pub fn total(&mut self, what: &'static str) -> Result<()> {
        let (says, has) = (self.u32(what)?, self.bytes.len());
        if says as usize != has {
            return Err(self.fail(what, format_args!("it says {says} bytes and has {has}")));
        }
        Ok(())
    }

    /// Refuses leftovers.
    pub fn finish(&self, what: &'static str) -> Result<()> {
        match self.remaining() {
            0 => Ok(()),
            n => Err(corrupt(
                self.position(),
                what,
                format_args!("{n} bytes too many"),
            )),
        }
    }

    pub fn fail(&self, what: &'static str, problem: impl std::fmt::Display) -> Error {
        corrupt(self.position(), what, problem)
    }
}

/// A slice as [`Bytes`].
pub struct Slice<'a>(pub &'a [u8], pub u64);

impl Bytes for Slice<'_> {
    fn ensure(&mut self, to: usize, what: &'static str) -> Result<()> {
        if to <= self.0.len() {
            return Ok(());
        }
        Err(corrupt(
            self.1 + self.0.len() as u64,
            what,
            "the value ends too early",
        ))
    }

    fn peek(&self) -> &[u8] {
        self.0
    }

    fn base(&self) -> u64 {
        self.1
    }
}

/// The buffer begins small, for small files, and doubles up to the chunk, which is to stay in the processor's own cache.
const FIRST: usize = 64 << 10;
const CHUNK: usize = 256 << 10;
/// What is held in one piece; servers take no string of more than 512 MB unless told to.
const MOST_HELD: usize = 1 << 30;

/// A buffered cursor over a stream; counts the position and the checksum of what has been consumed.
pub struct Input<R> {
    reader: R,
    buf: Vec<u8>,
    start: usize,
    end: usize,
    base: u64,
    crc: Option<(crc_fast::Digest, usize)>,
    ended: bool,
}

impl<R: Read> Input<R> {
    pub fn new(reader: R, at: u64, checksum: bool) -> Input<R> {
        let crc = checksum.then(|| (crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Redis), 0));
        Input {
            reader,
            buf: Vec::new(),
            start: 0,
            end: 0,
            base: at,
            crc,
            ended: false,
        }
    }

    pub fn position(&self) -> u64 {
        self.base
    }

    pub fn consume(&mut self, n: usize) {
        let n = n.min(self.end - self.start);
        self.start += n;
        self.base += n as u64;
    }

    /// Begins a new checksum with the next byte.
    pub fn restart_checksum(&mut self, checksum: bool) {
        let digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Redis);
        self.crc = checksum.then_some((digest, self.start));
    }

    fn absorb(&mut self) {
        if let Some((digest, from)) = &mut self.crc {
            digest.update(self.buf.get(*from..self.start).unwrap_or_default());
            *from = self.start;
        }
    }

    /// The checksum of everything consumed so far.
    pub fn checksum(&mut self) -> Option<u64> {
        self.absorb();
        self.crc.as_ref().map(|(digest, _)| digest.finalize())
    }

    #[cold]
    fn fill(&mut self, to: usize, what: &'static str) -> Result<()> {
        if self.start > 0 {
            self.absorb();
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if let Some((_, from)) = &mut self.crc {
                *from = 0;
            }
            if self.buf.len() > 4 * CHUNK && self.end < CHUNK && to < CHUNK {
                self.buf.truncate(CHUNK);
                self.buf.shrink_to_fit();
            }
        }
        if to > MOST_HELD {
            return Err(corrupt(
                self.base,
                what,
                format_args!(
                    "a length of {to} bytes, and nothing that must be held is longer than {MOST_HELD}"
                ),
            ));
        }
        while self.end < to {
            if self.ended {
                return Err(corrupt(
                    self.base + self.end as u64,
                    what,
                    "the file ends here",
                ));
            }
            if self.buf.len() - self.end < CHUNK / 4 {
                // Grows with what has come, never with what a length claims.
                let len = self.buf.len().max(FIRST / 2) * 2;
                self.buf
                    .resize(len.min(self.end + 64 * CHUNK).max(self.end + FIRST), 0);
            }
            match self
                .reader
                .read(self.buf.get_mut(self.end..).unwrap_or_default())
            {
                Ok(0) => self.ended = true,
                Ok(n) => self.end += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(Error::new(
                        ErrorKind::Disk,
                        format!("byte {}, reading {what}", self.base + self.end as u64),
                    )
                    .cause(e));
                }
            }
        }
        Ok(())
    }

    /// Whether the stream ends `to` bytes from here.
    pub fn ends_at(&mut self, to: usize) -> bool {
        self.ensure(to, "the end").is_ok() && self.ensure(to + 1, "the end").is_err()
    }
}

impl<R: Read> Bytes for Input<R> {
    #[inline]
    fn ensure(&mut self, to: usize, what: &'static str) -> Result<()> {
        if to <= self.end - self.start {
            Ok(())
        } else {
            self.fill(to, what)
        }
    }

    #[inline]
    fn peek(&self) -> &[u8] {
        self.buf.get(self.start..self.end).unwrap_or_default()
    }

    fn base(&self) -> u64 {
        self.base
    }
}
