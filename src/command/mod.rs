//! A command: its own bytes and its arguments' places; what it does and where its keys are is in [`table`].

pub mod expiry;
pub mod fields;
mod replay;
mod search;
pub mod split;
mod table;
mod what;

pub use replay::repeats;
pub use table::Spec;
pub use what::{Access, Command, KeyArg, Kind, SplitKind};

use crate::resp;
use crate::types::{Slot, SlotSet};
use std::collections::HashMap;
use std::sync::LazyLock;

static INDEX: LazyLock<HashMap<&'static [u8], &'static Spec>> = LazyLock::new(|| {
    (table::SPECS.iter().chain(search::SPECS))
        .map(|s| (s.name.as_bytes(), s))
        .collect()
});

/// Whether a command reads or changes what its `i`-th key held before, so that it must not run on a key that is missing.
pub fn needs_key(spec: &Spec, cmd: &Command<'_>, i: usize, access: Access) -> bool {
    match spec.name {
        "SET" => {
            // With an expiry of its own, or with nothing, it replaces whatever was there.
            let words = (3..cmd.len()).filter_map(|n| cmd.arg(n));
            let depends = |w: &[u8]| {
                [&b"KEEPTTL"[..], b"NX", b"XX", b"GET", b"IFEQ"]
                    .iter()
                    .any(|o| w.eq_ignore_ascii_case(o))
            };
            words.into_iter().any(depends)
        }
        "SETEX" | "PSETEX" | "MSET" | "DEL" | "UNLINK" | "RESTORE" | "GETDEL" => false,
        // The answer 0 tells it anyway.
        "EXPIRE" | "PEXPIRE" | "EXPIREAT" | "PEXPIREAT" | "PERSIST" => false,
        // A script may make its keys; after a lag it does not run on one that may have expired (migrate/scripts.rs).
        "EVAL" | "EVALSHA" | "FCALL" => false,
        "RENAME" | "RENAMENX" => i == 0,
        "COPY" | "BITOP" | "SORT" | "GEORADIUS" | "GEORADIUSBYMEMBER" => access == Access::Read,
        name if name.ends_with("STORE") => access == Access::Read,
        _ => true,
    }
}

/// Longest name in the table.
const MAX_NAME: usize = 32;

/// The row of a command, whatever its case; `None` for one that is not known.
pub fn lookup(name: &[u8]) -> Option<&'static Spec> {
    let mut upper = [0u8; MAX_NAME];
    let upper = upper.get_mut(..name.len())?;
    upper.copy_from_slice(name);
    upper.make_ascii_uppercase();
    INDEX.get(&*upper).copied()
}

/// The keys of a command's frame, or of all commands of a transaction; none of what is not understood.
pub fn keys_in(frames: &[u8]) -> Vec<(Vec<u8>, Access)> {
    let (mut found, mut args, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    let mut rest = frames;
    while let Ok(Some(len)) = resp::parse_command(rest, &mut args) {
        let raw = rest.get(..len).unwrap_or_default();
        let cmd = Command { raw, args: &args };
        if let Some(spec) = lookup(cmd.name())
            && spec.keys(&cmd, &mut keys).is_ok()
        {
            let named = keys.iter().map(|k| (cmd.arg(k.index), k.access));
            found.extend(named.filter_map(|(key, access)| Some((key?.to_vec(), access))));
        }
        rest = rest.get(len..).unwrap_or_default();
    }
    found
}

/// The slots that a TRIMSLOTS names: `RANGES n first last …`; `None` when its shape does not fit.
pub fn trimmed_slots(cmd: &Command<'_>) -> Option<SlotSet> {
    let ranges = usize::try_from(cmd.number(2)?).ok()?;
    let named = cmd.arg(1)?.eq_ignore_ascii_case(b"RANGES");
    if !named || cmd.len() != ranges.checked_mul(2)?.checked_add(3)? {
        return None;
    }
    let mut slots = SlotSet::none();
    for i in (3..cmd.len()).step_by(2) {
        let slot = |i| Slot::new(u16::try_from(cmd.number(i)?).ok()?);
        (slot(i)?.number()..=slot(i + 1)?.number()).for_each(|n| slots.insert(Slot::numbered(n)));
    }
    Some(slots)
}

/// The database that MOVE, or COPY with DB, writes to.
pub fn copy_db(cmd: &Command<'_>) -> Option<u32> {
    let name = cmd.name();
    let at = if name.eq_ignore_ascii_case(b"MOVE") {
        2
    } else if name.eq_ignore_ascii_case(b"COPY") {
        cmd.find(3, b"DB")? + 1
    } else {
        return None;
    };
    cmd.number(at).and_then(|n| u32::try_from(n).ok())
}

/// All names of the table.
#[cfg(test)]
pub fn names() -> impl Iterator<Item = &'static str> {
    (table::SPECS.iter().chain(search::SPECS)).map(|spec| spec.name)
}

/// Whether a command may be what a master sends when a key has expired.
pub fn removes_expired(cmd: &Command<'_>, may_expire: impl Fn(&[u8]) -> bool) -> bool {
    let name = cmd.name();
    (name.eq_ignore_ascii_case(b"DEL") || name.eq_ignore_ascii_case(b"UNLINK"))
        && cmd.len() == 2
        && cmd.arg(1).is_some_and(may_expire)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    /// Writes the positions as "w1 r2".
    fn keys(line: &str) -> String {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let (mut raw, mut args, mut out) = (Vec::new(), Vec::new(), Vec::new());
        crate::resp::command(&mut raw, &words);
        crate::resp::parse_command(&raw, &mut args).unwrap();
        let cmd = Command {
            raw: &raw,
            args: &args,
        };
        lookup(cmd.name()).unwrap().keys(&cmd, &mut out).unwrap();
        let shown: Vec<_> = out
            .iter()
            .map(|k| {
                format!(
                    "{}{}",
                    if k.access == Access::Write { 'w' } else { 'r' },
                    k.index
                )
            })
            .collect();
        shown.join(" ")
    }

    #[test]
    fn the_slots_of_a_trim_are_named_by_ranges() {
        let slots = |line: &str| {
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            let (mut raw, mut args) = (Vec::new(), Vec::new());
            crate::resp::command(&mut raw, &words);
            crate::resp::parse_command(&raw, &mut args).unwrap();
            let cmd = Command {
                raw: &raw,
                args: &args,
            };
            trimmed_slots(&cmd).map(|s| s.to_string())
        };
        assert_eq!(
            slots("trimslots ranges 2 0 100 7000 7000").as_deref(),
            Some("0-100,7000")
        );
        for wrong in [
            "TRIMSLOTS",
            "TRIMSLOTS RANGES 1 0",
            "TRIMSLOTS RANGES 2 0 1",
            "TRIMSLOTS RANGES 1 0 16384",
            "TRIMSLOTS RANGES -1",
            "TRIMSLOTS SLOTS 1 0 1",
        ] {
            assert_eq!(slots(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn keys_are_where_the_servers_say() {
        for (line, expected) in [
            ("set k v EX 10", "w1"),
            ("MSET a 1 b 2", "w1 w3"),
            ("MSETEX 2 a 1 b 2 EX 10", "w2 w4"),
            ("DEL a b c", "w1 w2 w3"),
            ("RENAME a b", "w1 w2"),
            ("COPY a b DB 3", "r1 w2"),
            ("SUNIONSTORE d a b", "w1 r2 r3"),
            ("ZUNIONSTORE d 2 a b WEIGHTS 1 2", "w1 r3 r4"),
            ("BITOP AND d a b", "w2 r3 r4"),
            ("SORT l BY x GET y STORE d", "r1 w7"),
            ("SORT l", "r1"),
            ("GEORADIUS g 13 38 200 km STORE d", "r1 w7"),
            ("GEOSEARCHSTORE d g FROMLONLAT 1 2 BYRADIUS 3 km", "w1 r2"),
            ("XREADGROUP GROUP g c COUNT 1 STREAMS a b 0 0", "w7 w8"),
            // Where GROUP comes later, the servers' own COMMAND GETKEYS is wrong from 7.0 on.
            (
                "XREADGROUP COUNT 1 BLOCK 0 GROUP streams streams STREAMS a >",
                "w9",
            ),
            ("XGROUP CREATE x g 0 MKSTREAM", "w2"),
            ("EVAL s 2 a b arg", "w3 w4"),
            ("LMPOP 2 a b LEFT", "w2 w3"),
            ("BLMPOP 0 1 a LEFT", "w3"),
            ("PFMERGE d a b", "w1 r2 r3"),
            ("PFMERGE d", "w1"),
            ("LMOVEM a b LEFT RIGHT EXACTLY 2", "w1 w2"),
            ("BLMOVEM a b LEFT RIGHT 0 COUNT 2", "w1 w2"),
            ("PHSET t p FIELDS 1 f v", "w1"),
            ("PEXPIREMEMBERAT s m 17", "w1"),
            ("KEYDB.HRENAME h a b", "w1"),
            ("HIMPORT SET k v", "w2"),
            ("KEYDB.MVCCRESTORE k 1 0 payload", "w1"),
            ("RREPLAY uuid raw 0 1", ""),
            ("KEYDB.CRON job SINGLE 1000 code", "w1"),
            ("GEORADIUS g 1 2 3 km STORE store", "r1 w7"),
            ("TRIMSLOTS RANGES 1 0 100", ""),
            ("SMOVE a b m", "w1 w2"),
            ("BLPOP a b 0", "w1 w2"),
            ("MIGRATE h 1 k 0 10", "w3"),
            ("JSON.MSET a $ 1 b $ 2", "w1 w4"),
        ] {
            assert_eq!(keys(line), expected, "{line}");
        }
    }
}
