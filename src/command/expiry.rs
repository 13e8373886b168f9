//! Commands that set an expiry, rewritten: a relative one made absolute, an early one held back.

use super::{Command, Spec, lookup};
use crate::error::{Error, ErrorKind, Result};
use crate::resp;
use crate::types::ExpireAt;

/// Where a command holds its expiry.
struct Place {
    /// The argument with the number.
    at: usize,
    /// The option word before it, if there is one.
    word: Option<usize>,
    /// Milliseconds in one unit of it.
    unit: i64,
    relative: bool,
}

fn is(cmd: &Command<'_>, i: usize, word: &str) -> bool {
    cmd.arg(i)
        .is_some_and(|a| a.eq_ignore_ascii_case(word.as_bytes()))
}

fn named(cmd: &Command<'_>, name: &str) -> bool {
    is(cmd, 0, name)
}

fn place(cmd: &Command<'_>) -> Option<Place> {
    place_of(lookup(cmd.name())?, cmd)
}

fn place_of(spec: &Spec, cmd: &Command<'_>) -> Option<Place> {
    let fixed = |at, unit, relative| {
        Some(Place {
            at,
            word: None,
            unit,
            relative,
        })
    };
    let options = |from: usize| {
        (from..cmd.len().saturating_sub(1)).find_map(|i| {
            let (unit, relative) = [
                ("EX", 1000, true),
                ("PX", 1, true),
                ("EXAT", 1000, false),
                ("PXAT", 1, false),
            ]
            .into_iter()
            .find_map(|(word, unit, relative)| is(cmd, i, word).then_some((unit, relative)))?;
            Some(Place {
                at: i + 1,
                word: Some(i),
                unit,
                relative,
            })
        })
    };
    match spec.name {
        "SET" => options(3),
        "GETEX" | "INCREX" => options(2),
        "SETEX" | "EXPIRE" | "HEXPIRE" => fixed(2, 1000, true),
        "PSETEX" | "PEXPIRE" | "HPEXPIRE" => fixed(2, 1, true),
        "EXPIREAT" | "HEXPIREAT" => fixed(2, 1000, false),
        "PEXPIREAT" | "HPEXPIREAT" => fixed(2, 1, false),
        "RESTORE" | "RESTORE-ASKING" => {
            if cmd.number(2)? == 0 {
                return None;
            }
            fixed(2, 1, cmd.find(4, b"ABSTTL").is_none())
        }
        "HSETEX" | "HGETEX" => {
            let fields = cmd.find(2, b"FIELDS").unwrap_or(cmd.len());
            options(2).filter(|p| p.at < fields)
        }
        "MSETEX" => {
            let n = usize::try_from(cmd.number(1)?).ok()?;
            options(n.checked_mul(2)?.checked_add(2)?)
        }
        _ => None,
    }
}

/// Whether the command gives a key an expiry, or fields of one.
pub fn carries(spec: &Spec, cmd: &Command<'_>) -> bool {
    spec.carries_expiry
        && match spec.name {
            // Most have none.
            "SET" => cmd.len() > 4 && place_of(spec, cmd).is_some(),
            "GETEX" | "INCREX" | "MSETEX" | "HSETEX" | "HGETEX" => place_of(spec, cmd).is_some(),
            // RESTORE may bring a hash whose fields have one.
            _ => true,
        }
}

/// Appends the command with its expiry at `ms`; conditions, which held on the source, are dropped where they could fail now.
fn rewrite(cmd: &Command<'_>, place: &Place, ms: i64, out: &mut Vec<u8>) {
    let text = ms.to_string();
    let arg = |i: usize| cmd.arg(i).unwrap_or_default();
    let condition = |a: &[u8]| {
        [b"NX", b"XX", b"GT", b"LT"]
            .iter()
            .any(|w| a.eq_ignore_ascii_case(*w))
    };
    let mut args: Vec<&[u8]> = Vec::with_capacity(cmd.len() + 2);
    let name = cmd.name().to_ascii_uppercase();
    match name.as_slice() {
        b"SETEX" | b"PSETEX" => args.extend([b"SET", arg(1), arg(3), b"PXAT", text.as_bytes()]),
        b"GETEX" | b"EXPIRE" | b"PEXPIRE" | b"EXPIREAT" | b"PEXPIREAT" => {
            args.extend([b"PEXPIREAT", arg(1), text.as_bytes()])
        }
        b"HEXPIRE" | b"HPEXPIRE" | b"HEXPIREAT" | b"HPEXPIREAT" => {
            args.extend([b"HPEXPIREAT", arg(1), text.as_bytes()]);
            let fields = cmd.find(3, b"FIELDS").unwrap_or(cmd.len());
            args.extend((3..fields).map(arg).filter(|a| !condition(a)));
            args.extend((fields..cmd.len()).map(arg));
        }
        b"RESTORE" | b"RESTORE-ASKING" => {
            args.extend([b"RESTORE", arg(1), text.as_bytes()]);
            args.extend((3..cmd.len()).map(arg));
            if place.relative {
                args.push(b"ABSTTL");
            }
        }
        _ => {
            for i in 0..cmd.len() {
                if Some(i) == place.word {
                    args.push(b"PXAT");
                } else if i == place.at {
                    args.push(text.as_bytes());
                } else {
                    args.push(arg(i));
                }
            }
        }
    }
    resp::command(out, &args);
}

/// Whether the command sets an expiry that counts from when it ran.
pub fn is_relative(cmd: &Command<'_>) -> bool {
    place(cmd).is_some_and(|place| place.relative)
}

/// Appends the command with an absolute expiry if it has a relative one; false when there is nothing to do.
///
/// `arrived_ms` is when the command came from the source.
pub fn make_absolute(cmd: &Command<'_>, arrived_ms: i64, out: &mut Vec<u8>) -> Result<bool> {
    let Some(place) = place(cmd).filter(|p| p.relative) else {
        return Ok(false);
    };
    let n = number(cmd, &place)?;
    rewrite(
        cmd,
        &place,
        arrived_ms.saturating_add(n.saturating_mul(place.unit)),
        out,
    );
    Ok(true)
}

/// Whether the command is a SET with an absolute expiry, which servers before Redis 6.2 do not know.
pub fn is_set_at(cmd: &Command<'_>) -> bool {
    named(cmd, "SET") && place(cmd).is_some_and(|place| !place.relative)
}

/// Appends such a SET as two commands that older servers know: SET, which asks for nothing back, then PEXPIREAT.
pub fn in_two(cmd: &Command<'_>, out: &mut Vec<u8>) -> Result<()> {
    let Some(place) = place(cmd) else {
        return Ok(());
    };
    let ms = number(cmd, &place)?.saturating_mul(place.unit).to_string();
    let kept = (0..cmd.len()).filter(|i| *i != place.at && Some(*i) != place.word);
    let args: Vec<&[u8]> = (kept.filter(|i| *i < 3 || !is(cmd, *i, "GET")))
        .filter_map(|i| cmd.arg(i))
        .collect();
    resp::command(out, &args);
    let key = cmd.arg(1).unwrap_or_default();
    resp::command(out, &[b"PEXPIREAT", key, ms.as_bytes()]);
    Ok(())
}

/// What RESTORE brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored<'a> {
    /// As DUMP tells it.
    pub payload: &'a [u8],
    pub expire: Option<ExpireAt>,
}

/// Takes a RESTORE apart; `arrived_ms` is when it came from the source, for an expiry that is relative.
pub fn restored<'a>(cmd: &Command<'a>, arrived_ms: i64) -> Result<Restored<'a>> {
    let (Some(ttl), Some(payload)) = (cmd.number(2), cmd.arg(3)) else {
        return Err(Error::new(
            ErrorKind::Protocol,
            format!("the stream holds a RESTORE of {} arguments", cmd.len()),
        ));
    };
    let absolute = cmd.find(4, b"ABSTTL").is_some();
    let at = match absolute {
        true => ttl,
        false => arrived_ms.saturating_add(ttl),
    };
    Ok(Restored {
        payload,
        expire: (ttl > 0).then_some(ExpireAt(at)),
    })
}

/// An expiry that was held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The argument that is the key.
    pub key_index: usize,
    /// The true expiry, Unix ms.
    pub expire_at_ms: i64,
    /// It is that of fields, not of the key.
    pub fields: bool,
}

/// Appends the command with the expiry `hold_until_ms` when its own is before `not_before_ms`.
///
/// Only absolute expiries are looked at.
pub fn hold(
    cmd: &Command<'_>,
    not_before_ms: i64,
    hold_until_ms: i64,
    out: &mut Vec<u8>,
) -> Result<Option<Held>> {
    let Some(place) = place(cmd).filter(|p| !p.relative) else {
        return Ok(None);
    };
    let at = number(cmd, &place)?.saturating_mul(place.unit);
    // MSETEX has several keys, and its callers treat one.
    if at >= not_before_ms || named(cmd, "MSETEX") {
        return Ok(None);
    }
    rewrite(cmd, &place, hold_until_ms, out);
    let fields = cmd
        .name()
        .first()
        .is_some_and(|b| b.eq_ignore_ascii_case(&b'H'));
    Ok(Some(Held {
        key_index: 1,
        expire_at_ms: at,
        fields,
    }))
}

fn number(cmd: &Command<'_>, place: &Place) -> Result<i64> {
    cmd.number(place.at).ok_or_else(|| {
        Error::new(
            ErrorKind::Protocol,
            format!(
                "{} holds an expiry that is not a number",
                String::from_utf8_lossy(cmd.name())
            ),
        )
    })
}

/// Whether the answer to this command tells that what it works on was not there: a 0 that a key was not, a -2 that a
/// field was not.
pub fn expects_key(name: &[u8]) -> bool {
    matches!(name.len(), 6..=9)
        && (["PEXPIREAT", "PERSIST", "EXPIREAT", "PEXPIRE", "EXPIRE"].iter())
            .any(|n| name.eq_ignore_ascii_case(n.as_bytes()))
        || expects_field(name)
}

/// Whether a -2 in the answer to this command says that a field was not there.
///
/// A source sends HPERSIST only when there was one; of the others it may name fields that it does not have itself.
pub fn expects_field(name: &[u8]) -> bool {
    matches!(name.len(), 7..=10)
        && (["HPEXPIREAT", "HPERSIST", "HEXPIREAT", "HPEXPIRE", "HEXPIRE"].iter())
            .any(|n| name.eq_ignore_ascii_case(n.as_bytes()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn run(line: &str, f: impl Fn(&Command<'_>, &mut Vec<u8>)) -> String {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let (mut raw, mut args, mut out) = (Vec::new(), Vec::new(), Vec::new());
        resp::command(&mut raw, &words);
        resp::parse_command(&raw, &mut args).unwrap();
        f(
            &Command {
                raw: &raw,
                args: &args,
            },
            &mut out,
        );
        resp::parse_command(&out, &mut args).unwrap();
        args.iter()
            .map(|r| String::from_utf8_lossy(&out[r.clone()]).into_owned())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn a_set_becomes_two_commands_for_old_servers() {
        for (line, expected) in [
            ("SET k v PXAT 5000", "SET k v PEXPIREAT k 5000"),
            ("set k GET GET EXAT 5", "set k GET PEXPIREAT k 5000"),
        ] {
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            let (mut raw, mut args, mut out) = (Vec::new(), Vec::new(), Vec::new());
            resp::command(&mut raw, &words);
            resp::parse_command(&raw, &mut args).unwrap();
            let cmd = Command {
                raw: &raw,
                args: &args,
            };
            assert!(is_set_at(&cmd));
            in_two(&cmd, &mut out).unwrap();
            let (mut shown, mut rest) = (Vec::new(), out.as_slice());
            while let Some(len) = resp::parse_command(rest, &mut args).unwrap() {
                let word = |r: &std::ops::Range<usize>| {
                    String::from_utf8_lossy(&rest[r.clone()]).into_owned()
                };
                shown.extend(args.iter().map(word));
                rest = &rest[len..];
            }
            assert_eq!(shown.join(" "), expected);
        }
    }

    #[test]
    fn few_forms_carry_an_expiry() {
        for (line, expected) in [
            ("SET k v", false),
            ("SET k EX KEEPTTL", false),
            ("set k v px 5", true),
            ("SET k v KEEPTTL", false),
            ("GETEX k PERSIST", false),
            ("GETEX k PXAT 5", true),
            ("HSETEX k KEEPTTL FIELDS 1 EX 5", false),
            ("HSETEX k PXAT 5 FIELDS 1 a 5", true),
            ("MSETEX 1 k PX PXAT 5", true),
            ("MSETEX 1 PX 5 KEEPTTL", false),
            ("RESTORE k 0 p", true),
            ("EXPIRE k 5", true),
            ("INCR k", false),
        ] {
            let carries = run(line, |c, out| {
                let spec = crate::command::lookup(c.name()).unwrap();
                resp::command(out, &[super::carries(spec, c).to_string().as_bytes()]);
            });
            assert_eq!(carries, expected.to_string(), "{line}");
        }
    }

    #[test]
    fn relative_becomes_absolute() {
        for (line, expected) in [
            ("SET k v EX 10", "SET k v PXAT 11000"),
            ("SET k EX PX 5 KEEPTTL", "SET k EX PXAT 1005 KEEPTTL"),
            ("SETEX k 10 v", "SET k v PXAT 11000"),
            ("EXPIRE k 10", "PEXPIREAT k 11000"),
            ("GETEX k PX 3", "PEXPIREAT k 1003"),
            ("RESTORE k 7 p REPLACE", "RESTORE k 1007 p REPLACE ABSTTL"),
            (
                "HPEXPIRE h 5 NX FIELDS 2 a NX",
                "HPEXPIREAT h 1005 FIELDS 2 a NX",
            ),
            ("SET k v", ""),
            ("RESTORE k 0 p", ""),
        ] {
            assert_eq!(
                run(line, |c, out| {
                    make_absolute(c, 1000, out).unwrap();
                }),
                expected,
                "{line}"
            );
        }
    }

    #[test]
    fn only_early_expiries_are_held() {
        for (line, expected) in [
            ("SET k v PXAT 500", "SET k v PXAT 9000"),
            ("SET k v PXAT 1500", ""),
            ("PEXPIREAT k 500 GT", "PEXPIREAT k 9000"),
            (
                "HSETEX h PXAT 500 FIELDS 1 PXAT 7",
                "HSETEX h PXAT 9000 FIELDS 1 PXAT 7",
            ),
            ("HSETEX h FIELDS 1 PXAT 7", ""),
        ] {
            assert_eq!(
                run(line, |c, out| {
                    hold(c, 1000, 9000, out).unwrap();
                }),
                expected,
                "{line}"
            );
        }
    }
}
