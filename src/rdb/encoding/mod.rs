//! Lengths, strings and the packed encodings that values are made of.

pub mod hyperloglog;
pub mod listpack;
pub mod lzf;
pub mod ziplist;

use crate::error::Result;
use crate::rdb::cursor::Reader;
use crate::resp::decimal;
use std::borrow::Cow;

/// A length, or the number of a special string encoding (rdb.c rdbLoadLenByRef).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Len {
    Plain(u64),
    Encoded(u8),
}

/// How many bytes the length that begins with `first` takes; `None` for a first byte no writer produces.
pub fn len_size(first: u8) -> Option<usize> {
    match first >> 6 {
        0 | 3 => Some(1),
        1 => Some(2),
        _ => match first {
            0x80 => Some(5),
            0x81 => Some(9),
            _ => None,
        },
    }
}

#[inline]
pub fn length_or_encoding(r: &mut Reader<'_>) -> Result<Len> {
    let first = r.u8("a length")?;
    Ok(match first >> 6 {
        0 => Len::Plain(u64::from(first & 0x3f)),
        1 => Len::Plain(u64::from(first & 0x3f) << 8 | u64::from(r.u8("a length")?)),
        3 => Len::Encoded(first & 0x3f),
        _ => match first {
            0x80 => Len::Plain(u64::from(u32::from_be_bytes(r.array("a length")?))),
            0x81 => Len::Plain(u64::from_be_bytes(r.array("a length")?)),
            _ => return Err(r.fail("a length", format_args!("0x{first:02x} begins no length"))),
        },
    })
}

pub fn length(r: &mut Reader<'_>, what: &'static str) -> Result<u64> {
    match length_or_encoding(r)? {
        Len::Plain(n) => Ok(n),
        Len::Encoded(e) => Err(r.fail(
            what,
            format_args!("a string encoding ({e}) where a length must be"),
        )),
    }
}

/// A string in any of its forms (rdb.c rdbGenericLoadStringObject).
pub fn string<'a>(r: &mut Reader<'a>, what: &'static str) -> Result<Cow<'a, [u8]>> {
    let text = |n: i64| Cow::Owned(n.to_string().into_bytes());
    match length_or_encoding(r)? {
        Len::Plain(n) => Ok(Cow::Borrowed(
            r.take(usize::try_from(n).unwrap_or(usize::MAX), what)?,
        )),
        Len::Encoded(0) => Ok(text(i64::from(i8::from_le_bytes(r.array(what)?)))),
        Len::Encoded(1) => Ok(text(i64::from(i16::from_le_bytes(r.array(what)?)))),
        Len::Encoded(2) => Ok(text(i64::from(i32::from_le_bytes(r.array(what)?)))),
        Len::Encoded(3) => {
            let compressed = length(r, what)?;
            let plain = length(r, what)?;
            let at = r.position();
            let bytes = r.take(usize::try_from(compressed).unwrap_or(usize::MAX), what)?;
            lzf::decompress(bytes, plain, at).map(Cow::Owned)
        }
        Len::Encoded(e) => Err(r.fail(what, format_args!("the string encoding {e} is unknown"))),
    }
}

/// Like [`string`], into a buffer where it is not stored plainly; `None` when it is longer than `most`.
pub fn short_string<'a>(
    r: &mut Reader<'a>,
    most: usize,
    buffer: &'a mut Vec<u8>,
    what: &'static str,
) -> Result<Option<&'a [u8]>> {
    let fits = |n: u64| usize::try_from(n).is_ok_and(|n| n <= most);
    let n = match length_or_encoding(r)? {
        Len::Plain(n) if fits(n) => return r.take(n as usize, what).map(Some),
        Len::Plain(_) => return Ok(None),
        Len::Encoded(0) => i64::from(i8::from_le_bytes(r.array(what)?)),
        Len::Encoded(1) => i64::from(i16::from_le_bytes(r.array(what)?)),
        Len::Encoded(2) => i64::from(i32::from_le_bytes(r.array(what)?)),
        Len::Encoded(3) => {
            let compressed = length(r, what)?;
            let plain = length(r, what)?;
            if !fits(plain) {
                return Ok(None);
            }
            let at = r.position();
            let bytes = r.take(usize::try_from(compressed).unwrap_or(usize::MAX), what)?;
            lzf::decompress_into(bytes, plain, at, buffer)?;
            return Ok(Some(buffer));
        }
        Len::Encoded(e) => {
            return Err(r.fail(what, format_args!("the string encoding {e} is unknown")));
        }
    };
    buffer.clear();
    buffer.extend_from_slice(decimal(n, &mut [0; 20]));
    Ok(Some(buffer))
}

/// Appends a length as writers do.
pub fn put_length(out: &mut Vec<u8>, n: u64) {
    match n {
        0..=0x3f => out.push(n as u8),
        0x40..=0x3fff => out.extend_from_slice(&(0x4000 | n as u16).to_be_bytes()),
        0x4000..=0xffff_ffff => {
            out.push(0x80);
            out.extend_from_slice(&(n as u32).to_be_bytes());
        }
        _ => {
            out.push(0x81);
            out.extend_from_slice(&n.to_be_bytes());
        }
    }
}

/// Appends a plain string.
pub fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The members of an intset, in order (intset.c).
pub fn intset(bytes: &[u8], at: u64, mut each: impl FnMut(i64) -> Result<()>) -> Result<()> {
    let mut r = Reader::new(bytes, at);
    let (width, count) = (r.u32("an intset")?, r.u32("an intset")?);
    for _ in 0..count {
        let n = match width {
            2 => i64::from(i16::from_le_bytes(r.array("an intset")?)),
            4 => i64::from(i32::from_le_bytes(r.array("an intset")?)),
            8 => r.i64("an intset")?,
            other => return Err(r.fail("an intset", format_args!("an element width of {other}"))),
        };
        each(n)?;
    }
    r.finish("an intset")
}

/// The fields and values of a zipmap (zipmap.c of Redis 2.4).
pub fn zipmap(
    bytes: &[u8],
    at: u64,
    mut each: impl FnMut(&[u8], &[u8]) -> Result<()>,
) -> Result<()> {
    const WHAT: &str = "a zipmap";
    let mut r = Reader::new(bytes, at);
    r.u8(WHAT)?;
    loop {
        let first = r.u8(WHAT)?;
        if first == 255 {
            return r.finish(WHAT);
        }
        let size = |r: &mut Reader<'_>, first: u8| match first {
            254 => r.u32(WHAT).map(|n| n as usize),
            255 => Err(r.fail(WHAT, "an end inside a pair")),
            n => Ok(usize::from(n)),
        };
        let n = size(&mut r, first)?;
        let field = r.take(n, WHAT)?;
        let second = r.u8(WHAT)?;
        let n = size(&mut r, second)?;
        let free = r.u8(WHAT)?;
        let value = r.take(n, WHAT)?;
        r.take(usize::from(free), WHAT)?;
        each(field, value)?;
    }
}
