//! Ziplists (ziplist.c), of every age.

use crate::error::Result;
use crate::rdb::cursor::Reader;
use crate::rdb::encoding::listpack::Packed;

const WHAT: &str = "a ziplist";

/// Walks a ziplist's entries.
pub struct Ziplist<'a> {
    r: Reader<'a>,
    ended: bool,
}

impl<'a> Ziplist<'a> {
    pub fn new(bytes: &'a [u8], at: u64) -> Result<Ziplist<'a>> {
        let mut r = Reader::new(bytes, at);
        r.total(WHAT)?;
        r.u32(WHAT)?;
        r.u16(WHAT)?;
        Ok(Ziplist { r, ended: false })
    }

    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Packed<'a>>> {
        if self.ended {
            return Ok(None);
        }
        let r = &mut self.r;
        match r.u8(WHAT)? {
            0xff => {
                r.finish(WHAT)?;
                self.ended = true;
                return Ok(None);
            }
            0xfe => {
                r.u32(WHAT)?;
            }
            _ => {}
        }
        let first = r.u8(WHAT)?;
        Ok(Some(match first {
            0..=0x3f => Packed::Bytes(r.take(usize::from(first), WHAT)?),
            0x40..=0x7f => {
                let n = usize::from(first & 0x3f) << 8 | usize::from(r.u8(WHAT)?);
                Packed::Bytes(r.take(n, WHAT)?)
            }
            0x80 => {
                let n = u32::from_be_bytes(r.array(WHAT)?);
                Packed::Bytes(r.take(n as usize, WHAT)?)
            }
            0xc0 => Packed::Int(i64::from(i16::from_le_bytes(r.array(WHAT)?))),
            0xd0 => Packed::Int(i64::from(i32::from_le_bytes(r.array(WHAT)?))),
            0xe0 => Packed::Int(r.i64(WHAT)?),
            0xf0 => {
                let [x, y, z] = r.array(WHAT)?;
                Packed::Int(i64::from(i32::from_le_bytes([0, x, y, z]) >> 8))
            }
            0xfe => Packed::Int(i64::from(i8::from_le_bytes(r.array(WHAT)?))),
            0xf1..=0xfd => Packed::Int(i64::from(first) - 0xf1),
            other => return Err(r.fail(WHAT, format_args!("0x{other:02x} begins no entry"))),
        }))
    }

    /// The next entry where there must be one.
    pub fn need(&mut self) -> Result<Packed<'a>> {
        let at = self.r.clone();
        self.next()?
            .ok_or_else(|| at.fail(WHAT, "an entry is missing"))
    }
}
