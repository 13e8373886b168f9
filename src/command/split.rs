//! Exact splits of the commands that act on each of their keys by itself, one part for each slot.

use super::{Command, SplitKind};
use crate::error::{Error, ErrorKind, Result};
use crate::resp;
use crate::types::Slot;

/// Calls `part` with each slot's own command and its number of keys.
pub fn by_slot(
    cmd: &Command<'_>,
    kind: SplitKind,
    slot_of: impl Fn(&[u8]) -> Slot,
    mut part: impl FnMut(Slot, &[u8], usize),
) -> Result<()> {
    let wrong = || Error::new(ErrorKind::Protocol, format!("{} with {} arguments", String::from_utf8_lossy(cmd.name()), cmd.len()));
    let (first, step, tail) = match kind {
        SplitKind::Keys => (1, 1, cmd.len()),
        SplitKind::Pairs => (1, 2, cmd.len()),
        SplitKind::MsetEx => {
            let n = cmd.number(1).and_then(|n| usize::try_from(n).ok()).ok_or_else(wrong)?;
            (2, 2, n.checked_mul(2).and_then(|n| n.checked_add(2)).filter(|n| *n <= cmd.len()).ok_or_else(wrong)?)
        }
    };
    if (tail - first) % step != 0 {
        return Err(wrong());
    }
    let mut places: Vec<(Slot, usize)> =
        (first..tail).step_by(step).map(|i| (slot_of(cmd.arg(i).unwrap_or_default()), i)).collect();
    // Stable: of a key that stands twice, the last value must stay the last.
    places.sort_by_key(|(slot, _)| *slot);
    let mut out = Vec::new();
    for group in places.chunk_by(|a, b| a.0 == b.0) {
        let Some((slot, _)) = group.first() else { continue };
        let n = group.len().to_string();
        let name: &[u8] = if kind == SplitKind::Pairs { b"MSET" } else { cmd.name() };
        let mut args: Vec<&[u8]> = vec![name];
        if kind == SplitKind::MsetEx {
            args.push(n.as_bytes());
        }
        for (_, i) in group {
            args.extend((*i..i + step).filter_map(|i| cmd.arg(i)));
        }
        // MSETEX's options follow its pairs; its condition held, or it would not be in the stream.
        let options = (tail..cmd.len()).filter_map(|i| cmd.arg(i));
        args.extend(options.filter(|o| !o.eq_ignore_ascii_case(b"NX") && !o.eq_ignore_ascii_case(b"XX")));
        out.clear();
        resp::command(&mut out, &args);
        part(*slot, &out, group.len());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn split(line: &str, kind: SplitKind) -> Vec<String> {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let (mut raw, mut args, mut out) = (Vec::new(), Vec::new(), Vec::new());
        resp::command(&mut raw, &words);
        resp::parse_command(&raw, &mut args).unwrap();
        by_slot(&Command { raw: &raw, args: &args }, kind, Slot::of, |_, part, _| {
            let mut ranges = Vec::new();
            resp::parse_command(part, &mut ranges).unwrap();
            let words: Vec<_> = ranges.iter().map(|r| String::from_utf8_lossy(&part[r.clone()]).into_owned()).collect();
            out.push(words.join(" "));
        })
        .unwrap();
        out.sort();
        out
    }

    #[test]
    fn each_slot_gets_its_own_keys_in_order() {
        assert_eq!(split("DEL {a}1 {b}1 {a}2", SplitKind::Keys), ["DEL {a}1 {a}2", "DEL {b}1"]);
        assert_eq!(split("MSETNX {a}1 x {b}1 y {a}1 z", SplitKind::Pairs), ["MSET {a}1 x {a}1 z", "MSET {b}1 y"]);
        assert_eq!(
            split("MSETEX 3 {a}1 x {b}1 y {a}2 z NX PXAT 99", SplitKind::MsetEx),
            ["MSETEX 1 {b}1 y PXAT 99", "MSETEX 2 {a}1 x {a}2 z PXAT 99"]
        );
    }
}
