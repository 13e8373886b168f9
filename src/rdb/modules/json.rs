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

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;
    use crate::rdb::encoding::{put_length, put_string};

    /// The id of the type, without a version.
    const ID: u64 = 0x45e2_5238_df91_2c00;

    enum Part {
        N(u64),
        D(f64),
        T(&'static [u8]),
    }
    use Part::{D, N, T};

    fn body(version: u64, parts: &[Part]) -> Vec<u8> {
        let mut out = Vec::new();
        put_length(&mut out, ID | version);
        for part in parts {
            match part {
                N(n) => {
                    put_length(&mut out, 2);
                    put_length(&mut out, *n);
                }
                D(n) => {
                    put_length(&mut out, 4);
                    out.extend(n.to_le_bytes());
                }
                T(text) => {
                    put_length(&mut out, 5);
                    put_string(&mut out, text);
                }
            }
        }
        out.push(0);
        out
    }

    fn text_of(body: &[u8]) -> Result<Option<String>> {
        let text = text(&mut Fields::new(body)?)?;
        Ok(text.map(|t| String::from_utf8_lossy(&t).into_owned()))
    }

    /// Each kind of node of RedisJSON 1.0, as RedisJSON 2.8 reads it.
    #[test]
    fn a_tree_becomes_text_and_a_text_stays() {
        let tree = [
            N(0x20),
            N(4),
            N(0x80),
            T(b"a\"\n"),
            N(0x40),
            N(3),
            N(0x01),
            N(0x10),
            T(b"1"),
            N(0x10),
            T(b"0"),
            N(0x80),
            T(b"int"),
            N(0x08),
            N(-5i64 as u64),
            N(0x80),
            T(b"float"),
            N(0x04),
            D(2.0),
            N(0x80),
            T(b"s"),
            N(0x02),
            T("é\\".as_bytes()),
        ];
        let text = text_of(&body(0, &tree)).expect("a document");
        let wanted = r#"{"a\"\u000a":[null,true,false],"int":-5,"float":2.0,"s":"é\\"}"#;
        assert_eq!(text.as_deref(), Some(wanted));
        for version in [2, 3] {
            let text = text_of(&body(version, &[T(b"{}"), N(0)])).expect("a document");
            assert_eq!(text.as_deref(), Some("{}"));
        }
        assert_eq!(text_of(&body(4, &[T(b"{}")])).expect("a document"), None);
    }

    #[test]
    fn what_is_no_document_is_an_error() {
        let deep: Vec<Part> = (0..2000)
            .map(|n| N(if n % 2 == 0 { 0x40 } else { 1 }))
            .collect();
        for parts in [
            [N(0x04), D(f64::NAN)].as_slice(),
            &[N(0x03)],
            &[N(0x02), T(b"\xff")],
            &[N(0x20), N(1), N(0x02), T(b"a")],
            &deep,
        ] {
            assert!(text_of(&body(0, parts)).is_err());
        }
    }
}
