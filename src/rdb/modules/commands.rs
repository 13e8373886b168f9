//! A module's value as the commands of its module, where those make exactly the same value.

use super::fields::Fields;
use super::gather::Commands;
use super::{filters, json, series};
use crate::error::Result;
use crate::rdb::commands::score_text;
use crate::rdb::value::ModuleValue;
use crate::types::ExpireAt;

/// Why no commands make a value of this type in this encoding version; `None` where they do.
pub fn why_not(name: &str, version: u16) -> Option<&'static str> {
    let known = match name {
        "ReJSON-RL" => matches!(version, 0 | 2 | 3),
        "MBbloom--" | "MBbloomCF" => version == 4,
        "trietype0" => version <= 1,
        "TSDB-TYPE" => series::KNOWN.contains(&version),
        "CMSk-TYPE" => return Some("no command sets the counters of a count-min sketch"),
        "TopK-TYPE" => return Some("no command sets the counters of a top-k list"),
        "TDIS-TYPE" => {
            return Some("TDIGEST.ADD of its centroids would make another t-digest");
        }
        _ => return Some("no commands are known that make such a value"),
    };
    match known {
        true => None,
        false => Some("how this encoding version is laid out is not known"),
    }
}

/// Why the commands would not make exactly this value, whose type and encoding version they can make; `None` where they
/// do. `body` is what follows the type byte 7.
pub fn inexact(body: &[u8]) -> Result<Option<&'static str>> {
    let value = ModuleValue::new(body, 0)?;
    Ok(match value.name().as_str() {
        "TSDB-TYPE" if !series::is_plain(body)? => {
            Some("it has samples that are no finite numbers, which TS.ADD does not take everywhere")
        }
        _ => None,
    })
}

/// Whether commands make exactly this value, and all that belongs to it.
pub fn exact(body: &[u8]) -> Result<bool> {
    let value = ModuleValue::new(body, 0)?;
    let name = value.name();
    Ok(why_not(&name, value.version()).is_none()
        && inexact(body)?.is_none()
        && (name != "TSDB-TYPE" || series::rules(body)?.is_empty()))
}

/// Hands over the commands that make the key anew: first DEL, last its expiry.
///
/// Rules of a time series are not made: the series that they fill may not be there yet.
pub fn write(
    key: &[u8],
    body: &[u8],
    expire: Option<ExpireAt>,
    out: &mut Vec<u8>,
    flush: impl FnMut(&mut Vec<u8>, u32) -> Result<()>,
) -> Result<()> {
    let name = ModuleValue::new(body, 0)?.name();
    let mut fields = Fields::new(body)?;
    let mut commands = Commands::new(out, flush);
    commands.push(&[b"DEL", key])?;
    match name.as_str() {
        "ReJSON-RL" => {
            let text = json::text(&mut fields)?.unwrap_or_default();
            commands.push(&[b"JSON.SET", key, b"$", &text])?;
        }
        "MBbloom--" => filters::write(&mut fields, true, key, &mut commands)?,
        "MBbloomCF" => filters::write(&mut fields, false, key, &mut commands)?,
        "TSDB-TYPE" => series::write(&mut fields, key, &mut commands)?,
        _ => suggestions(&mut fields, key, &mut commands)?,
    }
    if let Some(at) = expire {
        commands.push(&[b"PEXPIREAT", key, at.to_string().as_bytes()])?;
    }
    commands.hand_over()
}

/// Strings with a score and, from version 1 on, a payload; each string ends in a zero byte.
fn suggestions<F: FnMut(&mut Vec<u8>, u32) -> Result<()>>(
    fields: &mut Fields<'_>,
    key: &[u8],
    out: &mut Commands<'_, F>,
) -> Result<()> {
    let count = fields.number()?;
    for _ in 0..count {
        let (text, score) = (fields.text()?, score_text(fields.double()?));
        let payload = match fields.version() {
            0 => None,
            _ => Some(fields.text()?),
        };
        let bare = |text: &[u8]| text.strip_suffix(b"\0").unwrap_or(text).to_vec();
        let (text, payload) = (bare(&text), payload.map(|p| bare(&p)).unwrap_or_default());
        let mut add: Vec<&[u8]> = vec![b"FT.SUGADD", key, &text, score.as_bytes()];
        if !payload.is_empty() {
            add.extend([b"PAYLOAD".as_slice(), &payload]);
        }
        out.push(&add)?;
    }
    if count == 0 {
        // A list without suggestions is still a key.
        out.push(&[b"FT.SUGADD", key, b"x", b"1"])?;
        out.push(&[b"FT.SUGDEL", key, b"x"])?;
    }
    fields.finish()
}
