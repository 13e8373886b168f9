//! The text of a JSON document: as encoding versions 2 and 3 hold it, or made of the tree of version 0 (RedisJSON 1.0).

use super::fields::Fields;
use crate::error::Result;
use crate::rdb::cursor::corrupt;
use std::borrow::Cow;
use std::fmt::Write;

const WHAT: &str = "a JSON document";
/// Deeper ones no server takes.
const DEPTH: u32 = 256;

/// The text of a document; `None` of an encoding version that is not known.
pub(super) fn text<'a>(fields: &mut Fields<'a>) -> Result<Option<Cow<'a, [u8]>>> {
    Ok(Some(match fields.version() {
        0 => {
            let mut out = String::new();
            node(fields, &mut out, 0)?;
            Cow::Owned(out.into_bytes())
        }
        // Behind the text of version 2 stands what an index wanted.
        2 | 3 => fields.text()?,
        _ => return Ok(None),
    }))
}

fn node(fields: &mut Fields<'_>, out: &mut String, depth: u32) -> Result<()> {
    if depth > DEPTH {
        return Err(corrupt(0, WHAT, "it is nested too deep"));
    }
    match fields.number()? {
        0x01 => out.push_str("null"),
        0x02 => quoted(&fields.text()?, out)?,
        0x04 => {
            let n = fields.double()?;
            if !n.is_finite() {
                return Err(corrupt(0, WHAT, "a number that JSON does not have"));
            }
            // As a fraction, so that it stays one.
            let _ = write!(out, "{n:?}");
        }
        0x08 => {
            let _ = write!(out, "{}", fields.number()? as i64);
        }
        0x10 => out.push_str(match fields.text()?.first() {
            Some(b'1') => "true",
            _ => "false",
        }),
        0x20 => {
            out.push('{');
            for i in 0..fields.number()? {
                if i > 0 {
                    out.push(',');
                }
                if fields.number()? != 0x80 {
                    return Err(corrupt(0, WHAT, "an object without names"));
                }
                quoted(&fields.text()?, out)?;
                out.push(':');
                node(fields, out, depth + 1)?;
            }
            out.push('}');
        }
        0x40 => {
            out.push('[');
            for i in 0..fields.number()? {
                if i > 0 {
                    out.push(',');
                }
                node(fields, out, depth + 1)?;
            }
            out.push(']');
        }
        other => return Err(corrupt(0, WHAT, format_args!("a node of the kind {other}"))),
    }
    Ok(())
}

fn quoted(bytes: &[u8], out: &mut String) -> Result<()> {
    let text =
        std::str::from_utf8(bytes).map_err(|_| corrupt(0, WHAT, "a string that is not UTF-8"))?;
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    Ok(())
}
