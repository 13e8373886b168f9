//! A module's value read field by field, each of the kind that its layout wants there.

use crate::error::{Error, ErrorKind, Result};
use crate::rdb::value::{ModuleItem, ModuleValue};
use std::borrow::Cow;

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
