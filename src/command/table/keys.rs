//! Where a command's keys stand among its arguments, and finding them.

use crate::command::what::{Access, Command, KeyArg};
use Access::{Read, Write};

/// Where keys stand.
pub enum Keys {
    None,
    /// Runs of arguments: first, last (negative counts from the end), step. Only the first must have a key.
    Runs(&'static [(usize, i64, usize, Access)]),
    /// A count at the first place, keys from the second on.
    Counted {
        count: usize,
        first: usize,
        access: Access,
    },
    /// Destination at 1, a count at 2, sources from 3 on.
    Store,
    /// A count at 1, then pairs of key and value.
    MsetEx,
    Sort,
    GeoRadius(usize),
    Streams,
    Migrate,
}

pub const ONE: Keys = Keys::Runs(&[(1, 1, 1, Write)]);
pub const ONE_READ: Keys = Keys::Runs(&[(1, 1, 1, Read)]);
pub const SECOND: Keys = Keys::Runs(&[(2, 2, 1, Write)]);
pub const ALL: Keys = Keys::Runs(&[(1, -1, 1, Write)]);
pub const ALL_READ: Keys = Keys::Runs(&[(1, -1, 1, Read)]);
pub const ALL_BUT_LAST: Keys = Keys::Runs(&[(1, -2, 1, Write)]);
pub const BOTH: Keys = Keys::Runs(&[(1, 2, 1, Write)]);
pub const FROM_SECOND: Keys = Keys::Runs(&[(1, 1, 1, Write), (2, 2, 1, Read)]);
pub const FROM_REST: Keys = Keys::Runs(&[(1, 1, 1, Write), (2, -1, 1, Read)]);
pub const PAIRS: Keys = Keys::Runs(&[(1, -1, 2, Write)]);
pub const TRIPLES: Keys = Keys::Runs(&[(1, -1, 3, Write)]);

/// Appends the keys of `cmd`; `None` when its shape does not fit.
pub fn find(keys: &Keys, cmd: &Command<'_>, out: &mut Vec<KeyArg>) -> Option<()> {
    let mut push = |index: usize, access: Access| out.push(KeyArg { index, access });
    match keys {
        Keys::None => {}
        Keys::Runs(runs) => {
            for (n, (first, last, step, access)) in runs.iter().enumerate() {
                let last = cmd.place(*last)?;
                if n > 0 && last + 1 == *first {
                    // No sources: a PFMERGE of its destination alone.
                    continue;
                }
                cmd.places(*first, last as i64, *step)?
                    .for_each(|i| push(i, *access));
            }
        }
        Keys::Counted {
            count,
            first,
            access,
        } => {
            for i in counted(cmd, *count, *first, 1)? {
                push(i, *access);
            }
        }
        Keys::Store => {
            push(1, Write);
            for i in counted(cmd, 2, 3, 1)? {
                push(i, Read);
            }
        }
        Keys::MsetEx => {
            for i in counted(cmd, 1, 2, 2)? {
                push(i, Write);
            }
        }
        Keys::Sort => {
            cmd.arg(1)?;
            push(1, Read);
            // The last STORE counts, and patterns may be called so: options are walked.
            let (mut i, mut store) = (2, None);
            while let Some(word) = cmd.arg(i) {
                i += if word.eq_ignore_ascii_case(b"LIMIT") {
                    3
                } else if word.eq_ignore_ascii_case(b"BY") || word.eq_ignore_ascii_case(b"GET") {
                    2
                } else if word.eq_ignore_ascii_case(b"STORE") {
                    store = Some(i + 1);
                    2
                } else {
                    1
                };
            }
            if let Some(i) = store.filter(|i| *i < cmd.len()) {
                push(i, Write);
            }
        }
        Keys::GeoRadius(options) => {
            cmd.arg(1)?;
            push(1, Read);
            // The last one counts, and a key may be called "store": options are walked.
            let (mut i, mut store) = (*options, None);
            while let Some(word) = cmd.arg(i) {
                i += if word.eq_ignore_ascii_case(b"STORE")
                    || word.eq_ignore_ascii_case(b"STOREDIST")
                {
                    store = Some(i + 1);
                    2
                } else if word.eq_ignore_ascii_case(b"COUNT") {
                    2
                } else {
                    1
                };
            }
            if let Some(i) = store.filter(|i| *i < cmd.len()) {
                push(i, Write);
            }
        }
        Keys::Streams => {
            // A group or a consumer may be called "streams", and GROUP need not come first: options are walked.
            let mut i = 1;
            loop {
                let word = cmd.arg(i)?;
                let is = |names: &[&[u8]]| names.iter().any(|n| word.eq_ignore_ascii_case(n));
                i += if is(&[b"STREAMS"]) {
                    break;
                } else if is(&[b"GROUP"]) {
                    3
                } else if is(&[b"COUNT", b"BLOCK", b"CLAIM"]) {
                    2
                } else {
                    1
                };
            }
            let n = (cmd.len() - i - 1) / 2;
            (i + 1..i + 1 + n).for_each(|i| push(i, Write));
        }
        Keys::Migrate => match cmd.arg(3)? {
            [] => {
                // A user or a password may be called "keys": options are walked.
                let mut i = 6;
                loop {
                    let word = cmd.arg(i)?;
                    i += if word.eq_ignore_ascii_case(b"KEYS") {
                        break;
                    } else if word.eq_ignore_ascii_case(b"AUTH2") {
                        3
                    } else if word.eq_ignore_ascii_case(b"AUTH") {
                        2
                    } else {
                        1
                    };
                }
                (i + 1..cmd.len()).for_each(|i| push(i, Write));
            }
            _ => push(3, Write),
        },
    }
    Some(())
}

/// Whether argument `i` of `count` may be a key, before the others are known.
pub fn may_be_key(keys: &Keys, i: usize, count: usize) -> bool {
    match keys {
        Keys::None => false,
        Keys::Runs(runs) => runs.iter().any(|(first, last, step, _)| {
            let last = match usize::try_from(*last) {
                Ok(last) => last,
                Err(_) => count.saturating_sub(last.unsigned_abs() as usize),
            };
            (*first..=last).contains(&i) && (i - first).is_multiple_of(*step)
        }),
        Keys::Counted { first, .. } => i >= *first,
        Keys::MsetEx => i >= 2 && i.is_multiple_of(2),
        Keys::Store | Keys::Sort | Keys::GeoRadius(_) | Keys::Streams | Keys::Migrate => true,
    }
}

/// The places of as many keys as the argument at `count` says.
fn counted(
    cmd: &Command<'_>,
    count: usize,
    first: usize,
    step: usize,
) -> Option<impl Iterator<Item = usize>> {
    let n = usize::try_from(cmd.number(count)?).ok()?;
    let last = first.checked_add(n.checked_mul(step)?)?;
    (last <= cmd.len()).then(|| (first..last).step_by(step))
}
