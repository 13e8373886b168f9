//! A module's value read field by field, each of the kind that its layout wants there.

use crate::error::{Error, ErrorKind, Result};
use crate::rdb::cursor::Reader;
use crate::rdb::encoding::{Len, length, length_or_encoding};
use crate::rdb::value::{ModuleItem, ModuleValue};
use std::borrow::Cow;

/// How many bytes the strings of a value take when they are unpacked.
pub fn unpacked(body: &[u8]) -> Result<u64> {
    const WHAT: &str = "a module's value";
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let mut r = Reader::new(body, 0);
    length(&mut r, WHAT)?;
    let mut sum = 0u64;
    loop {
        match length(&mut r, WHAT)? {
            0 => return Ok(sum),
            1 | 2 => drop(length(&mut r, WHAT)?),
            3 => drop(r.take(4, WHAT)?),
            4 => drop(r.take(8, WHAT)?),
            _ => {
                let (stored, plain) = match length_or_encoding(&mut r)? {
                    Len::Plain(n) => (n, n),
                    Len::Encoded(3) => (length(&mut r, WHAT)?, length(&mut r, WHAT)?),
                    Len::Encoded(e) => (1 << e.min(2), 20),
                };
                r.take(size(stored), WHAT)?;
                sum = sum.saturating_add(plain);
            }
        }
    }
}

/// Reads the items of one value.
pub(super) struct Fields<'a>(ModuleValue<'a>);

impl<'a> Fields<'a> {
    /// `body` is what follows the type byte 7.
    pub fn new(body: &'a [u8]) -> Result<Fields<'a>> {
        Ok(Fields(ModuleValue::new(body, 0)?))
    }

    pub fn version(&self) -> u16 {
        self.0.version()
    }

    fn strange(&self, wanted: &str) -> Error {
        Error::new(
            ErrorKind::Corrupt,
            format!(
                "a value of the module type {} in encoding version {}: {wanted} is missing",
                self.0.name(),
                self.0.version()
            ),
        )
    }

    /// An unsigned number; servers save signed ones alike.
    pub fn number(&mut self) -> Result<u64> {
        match self.0.item()? {
            Some(ModuleItem::Unsigned(n)) => Ok(n),
            Some(ModuleItem::Signed(n)) => Ok(n as u64),
            _ => Err(self.strange("a number")),
        }
    }

    pub fn double(&mut self) -> Result<f64> {
        match self.0.item()? {
            Some(ModuleItem::Double(n)) => Ok(n),
            _ => Err(self.strange("a floating-point number")),
        }
    }

    pub fn text(&mut self) -> Result<Cow<'a, [u8]>> {
        match self.0.item()? {
            Some(ModuleItem::Text(text)) => Ok(text),
            _ => Err(self.strange("a string")),
        }
    }

    /// The next item, whatever it is; `None` behind the last.
    pub fn item(&mut self) -> Result<Option<ModuleItem<'a>>> {
        self.0.item()
    }

    /// Nothing may follow.
    pub fn finish(&mut self) -> Result<()> {
        match self.0.item()? {
            None => Ok(()),
            Some(_) => Err(self.strange("its end")),
        }
    }
}
