//! What a source says in the replica handshake: the answer to PSYNC and the head of a snapshot (replication.c).
//!
//! Pure: lines in, meaning out; the link in [`super::psync`] does the talking.

use crate::error::{Error, ErrorKind, Result};
use crate::net;
use crate::types::{ReplId, ReplOffset};
use memchr::memmem::Finder;

pub const MARK_LEN: usize = 40;

/// What the source answered to PSYNC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// A snapshot follows; the stream begins at the offset.
    Full { replid: ReplId, offset: ReplOffset },
    /// The stream goes on where it was, perhaps under a new id.
    Continue { replid: Option<ReplId> },
}

/// Reads the answer to PSYNC.
///
/// Errors: `NotReady` for NOMASTERLINK and LOADING, `Refused` where replication is not allowed, `Protocol` for anything else.
pub fn answer(line: &[u8]) -> Result<Start> {
    let strange = || {
        Error::new(
            ErrorKind::Protocol,
            format!(
                "PSYNC was answered with: {}",
                net::said(&String::from_utf8_lossy(line))
            ),
        )
    };
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_ascii_whitespace();
    match words.next().unwrap_or_default() {
        "+FULLRESYNC" => {
            let (id, offset) = (
                words.next().unwrap_or_default(),
                words.next().unwrap_or_default(),
            );
            Ok(Start::Full {
                replid: ReplId::parse(id.as_bytes())?,
                // Servers count by signed numbers.
                offset: (offset.parse().ok())
                    .filter(|n| *n <= i64::MAX as u64)
                    .map(ReplOffset)
                    .ok_or_else(strange)?,
            })
        }
        "+CONTINUE" => Ok(Start::Continue {
            replid: words
                .next()
                .map(|id| ReplId::parse(id.as_bytes()))
                .transpose()?,
        }),
        word if word.starts_with('-') => {
            let text = line.trim_start_matches('-');
            Err(match net::refusal("PSYNC", text) {
                e if e.kind() == ErrorKind::NotReady => e,
                _ => not_allowed("PSYNC", text),
            })
        }
        _ => Err(strange()),
    }
}

/// Whether an answer to REPLCONF says that it is not for us, and not of an option alone.
pub fn refuses(text: &str) -> bool {
    text.contains("unknown command") || text.contains("isallowed") || text.starts_with("NO")
}

/// Reads the answer to `REPLCONF capa`: behind OK may stand what the source is.
///
/// Errors: `Refused` for an active replica of KeyDB.
pub fn capable(answer: &str) -> Result<()> {
    if !answer
        .split_ascii_whitespace()
        .any(|word| word == "active-replica")
    {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Refused,
        "the source is an active replica of KeyDB: its stream wraps every write (RREPLAY) and does not tell when keys expire",
    )
    .hint("set source.mode to \"scan\"; or run CONFIG SET active-replica no at the source, which ends its replication with its peers"))
}

pub fn not_allowed(command: &str, text: &str) -> Error {
    net::refusal(command, text).hint(
        "the source does not let this user replicate: allow PSYNC and REPLCONF for it (ACL: +psync +replconf), \
         say in source.commands what they are called there when they were renamed, \
         or set source.mode to \"scan\" or \"rdb\"",
    )
}

/// Where a snapshot on the link ends.
#[allow(clippy::large_enum_variant)] // one value for each link
#[derive(Debug)]
pub enum Framing {
    /// After so many bytes.
    Sized { left: u64 },
    /// At a mark that was announced before it.
    Mark {
        mark: [u8; MARK_LEN],
        finder: Finder<'static>,
    },
}

/// Reads `$<length>` or `$EOF:<mark>`.
pub fn framing(line: &[u8]) -> Result<Framing> {
    if let Some(mark) = line.strip_prefix(b"$EOF:") {
        let mark = <[u8; MARK_LEN]>::try_from(mark).map_err(|_| {
            Error::new(
                ErrorKind::Protocol,
                format!("the snapshot's end mark is {} bytes long", mark.len()),
            )
        })?;
        return Ok(Framing::Mark {
            mark,
            finder: Finder::new(&mark).into_owned(),
        });
    }
    let text = String::from_utf8_lossy(line);
    match text.strip_prefix('$').and_then(|n| n.parse::<u64>().ok()) {
        Some(left) => Ok(Framing::Sized { left }),
        None if text.starts_with('-') => Err(net::refusal("PSYNC", text.trim_start_matches('-'))),
        None => Err(Error::new(
            ErrorKind::Protocol,
            format!("a snapshot begins with: {}", net::said(&text)),
        )),
    }
}

/// How many bytes of `buf` are snapshot, how many after them are its mark, and whether it ends there.
pub fn cut(framing: &mut Framing, buf: &[u8]) -> (usize, usize, bool) {
    match framing {
        Framing::Sized { left } => {
            let n = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
            *left = left.saturating_sub(n as u64);
            (n, 0, *left == 0)
        }
        Framing::Mark { mark, finder } => match finder.find(buf) {
            Some(at) => (at, mark.len(), true),
            // The mark may be cut by the end of what was read: keep that many bytes back.
            None => (buf.len().saturating_sub(MARK_LEN - 1), 0, false),
        },
    }
}
