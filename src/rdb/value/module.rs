//! A module's value: the id of its type, and the numbers and strings that follow it.
//!
//! `ModuleValue` reads the body of type 7 (rdb.c rdbLoadCheckModuleValue): a sequence of an opcode and what it announces,
//! up to opcode 0. What the numbers mean is the module's own affair.

use crate::error::Result;
use crate::rdb::cursor::Reader;
use crate::rdb::encoding::{length, string};
use std::borrow::Cow;

/// The version of a module type's values.
pub fn module_version(id: u64) -> u16 {
    (id & 0x3ff) as u16
}

/// The nine characters of a module type's name (module.c moduleTypeEncodeId).
pub fn module_name(id: u64) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    (0..9)
        .map(|i| {
            ALPHABET
                .get((id >> (58 - 6 * i)) as usize & 63)
                .map_or('?', |c| char::from(*c))
        })
        .collect()
}

/// What the type of this name holds, in its users' words; `None` for one that is not known.
pub fn module_holds(name: &str) -> Option<&'static str> {
    Some(match name {
        "ReJSON-RL" => "JSON",
        "MBbloom--" | "bloomfltr" => "Bloom filter",
        "MBbloomCF" => "cuckoo filter",
        "CMSk-TYPE" => "count-min sketch",
        "TopK-TYPE" => "top-k",
        "TDIS-TYPE" => "t-digest",
        "TSDB-TYPE" => "time series",
        "trietype0" => "suggestions",
        _ => return None,
    })
}

/// One number or string that a module saved.
#[derive(Debug, Clone, PartialEq)]
pub enum ModuleItem<'a> {
    /// RedisModule_SaveSigned.
    Signed(i64),
    /// RedisModule_SaveUnsigned.
    Unsigned(u64),
    /// RedisModule_SaveFloat.
    Float(f32),
    /// RedisModule_SaveDouble, and SaveLongDouble as a string.
    Double(f64),
    /// RedisModule_SaveString, unpacked.
    Text(Cow<'a, [u8]>),
}

/// A module's value, item by item.
#[derive(Debug, Clone)]
pub struct ModuleValue<'a> {
    id: u64,
    rest: Reader<'a>,
}

impl<'a> ModuleValue<'a> {
    /// `body` is what follows the type byte 7; `base` its position, for errors.
    pub fn new(body: &'a [u8], base: u64) -> Result<ModuleValue<'a>> {
        let mut rest = Reader::new(body, base);
        let id = length(&mut rest, "a module's id")?;
        Ok(ModuleValue { id, rest })
    }

    /// The same where the id was read already.
    pub fn behind_id(id: u64, body: &'a [u8], base: u64) -> ModuleValue<'a> {
        let rest = Reader::new(body, base);
        ModuleValue { id, rest }
    }

    pub fn name(&self) -> String {
        module_name(self.id)
    }

    pub fn version(&self) -> u16 {
        module_version(self.id)
    }

    /// The next item; `None` behind the last.
    pub fn item(&mut self) -> Result<Option<ModuleItem<'a>>> {
        let r = &mut self.rest;
        Ok(Some(match length(r, "a module's opcode")? {
            0 => return Ok(None),
            1 => ModuleItem::Signed(length(r, "a module's number")? as i64),
            2 => ModuleItem::Unsigned(length(r, "a module's number")?),
            3 => ModuleItem::Float(f32::from_le_bytes(r.array("a module's float")?)),
            4 => ModuleItem::Double(f64::from_le_bytes(r.array("a module's double")?)),
            5 => ModuleItem::Text(string(r, "a module's string")?),
            other => {
                return Err(r.fail(
                    "a module's value",
                    format_args!("{other} is no opcode of a module's value"),
                ));
            }
        }))
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;

    /// An id, then 1, -2, 0.5, 0.25 and two strings, the second a packed number.
    const VALUE: &[u8] = &[
        0x81, 0x24, 0x93, 0x5c, 0x20, 0xc2, 0x5d, 0x90, 0x03, // an id of version 3
        2, 1, 1, 0x81, 255, 255, 255, 255, 255, 255, 255, 254, // 1, -2
        3, 0, 0, 0, 0x3f, 4, 0, 0, 0, 0, 0, 0, 0xd0, 0x3f, // 0.5, 0.25
        5, 2, b'h', b'i', 5, 0xc0, 42, 0,
    ];

    #[test]
    fn items_come_in_order_and_whole() {
        let mut value = ModuleValue::new(VALUE, 0).expect("a value");
        assert_eq!(value.version(), 3);
        let mut items = Vec::new();
        while let Some(item) = value.item().expect("an item") {
            items.push(item);
        }
        let text = |t: &'static [u8]| ModuleItem::Text(Cow::Borrowed(t));
        assert_eq!(
            items,
            [
                ModuleItem::Unsigned(1),
                ModuleItem::Signed(-2),
                ModuleItem::Float(0.5),
                ModuleItem::Double(0.25),
                text(b"hi"),
                text(b"42"),
            ]
        );
    }

    #[test]
    fn a_value_that_is_cut_off_is_an_error() {
        for end in 0..VALUE.len() {
            let cut = VALUE.get(..end).expect("a part");
            let all = ModuleValue::new(cut, 0).and_then(|mut value| {
                while value.item()?.is_some() {}
                Ok(())
            });
            assert!(all.is_err(), "{end} bytes");
        }
    }
}
