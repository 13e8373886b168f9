//! Short strings, read by GETRANGE: the server need not encode, compress and sum them as DUMP does.
//!
//! TYPE goes first, as a GETRANGE of any other type would count as an error at the server; not where there have been
//! nothing but strings for a while.

use super::expiry::Expiry;
use super::fact::{Found, KeyFact};
use super::reader::{Reader, SHORT_ROOM};
use super::unforeseen;
use crate::digest::{self, Width};
use crate::error::{ErrorKind, Result};
use crate::net::server::Server;
use crate::net::{is_elsewhere, refusal};
use crate::resp::Reply;
use crate::types::{DbIndex, ExpireAt};
use std::sync::atomic::Ordering::Relaxed;

/// Only strings shorter than this.
const SHORT: usize = 4096;
/// The last byte that is asked for.
const LAST: &[u8] = b"4095";
/// Keys asked for at a time: what they hold fits in 2 MiB.
const AT_ONCE: usize = 500;
/// Where fewer than a quarter of a page are short strings, so many pages after it are not asked about.
const PATIENCE: u32 = 15;
/// After so many keys of one database that were short strings, the next ones are taken for such until one is not: an
/// error or two at the server for some thousand keys.
const TRUST: usize = 8_000;

/// A string and its expiry.
type Short = (Vec<u8>, Option<ExpireAt>);

/// Reads short strings on both sides.
#[derive(Default)]
pub struct ShortStrings {
    /// Pages that are not asked about any more.
    skip: u32,
    /// Keys of one database on end that were short strings.
    only: Option<(DbIndex, usize)>,
}

impl ShortStrings {
    /// What both sides hold of those of a page's keys that are short strings on both; `None` for all others.
    pub async fn pairs(
        &mut self,
        source: &mut Reader,
        source_db: DbIndex,
        target: &mut Reader,
        target_db: DbIndex,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<(Found, Found)>>> {
        let nothing = keys.iter().map(|_| None).collect();
        if !(source.side.short.load(Relaxed) && target.side.short.load(Relaxed)) {
            return Ok(nothing);
        }
        if self.skip > 0 {
            self.skip = self.skip.saturating_sub(1);
            return Ok(nothing);
        }
        let only = match self.only {
            Some((db, before)) if db == source_db => before,
            _ => 0,
        };
        match read(source, source_db, target, target_db, keys, only >= TRUST).await {
            Ok(found) => {
                let short = found.iter().flatten().count();
                if short * 4 < keys.len() {
                    self.skip = PATIENCE;
                }
                self.only = (short == keys.len()).then_some((source_db, only + short));
                Ok(found)
            }
            Err(e) if e.kind() == ErrorKind::Refused => {
                tracing::debug!("short strings are read as other values are: {e}");
                source.side.short.store(false, Relaxed);
                source.reset();
                target.reset();
                Ok(nothing)
            }
            Err(e) => Err(e),
        }
    }
}

async fn read(
    source: &mut Reader,
    source_db: DbIndex,
    target: &mut Reader,
    target_db: DbIndex,
    keys: &[&[u8]],
    only_strings: bool,
) -> Result<Vec<Option<(Found, Found)>>> {
    let mut found: Vec<Option<(Found, Found)>> = keys.iter().map(|_| None).collect();
    let mut strings: Vec<(usize, &[u8])> = keys.iter().copied().enumerate().collect();
    if !only_strings {
        let types = source.types(source_db, keys).await?;
        let is = |place: usize| types.get(place).and_then(Option::as_deref) == Some("string");
        strings.retain(|(place, _)| is(*place));
    }
    for some in strings.chunks(AT_ONCE) {
        let names: Vec<&[u8]> = some.iter().map(|(_, key)| *key).collect();
        let (ours, theirs) = tokio::try_join!(
            strings_of(source, source_db, &names),
            strings_of(target, target_db, &names)
        )?;
        for (((i, _), a), b) in some.iter().zip(ours).zip(theirs) {
            if let (Some(a), Some(b), Some(place)) = (a, b, found.get_mut(*i)) {
                *place = Some(both(a, b, source.width)?);
            }
        }
    }
    Ok(found)
}

fn both((a, a_expire): Short, (b, b_expire): Short, width: Width) -> Result<(Found, Found)> {
    let (first, second) = match a == b {
        true => {
            let digest = digest::of_bytes(&a, width)?;
            (digest, digest)
        }
        // Of a HyperLogLog that may be the same in other bytes.
        false => (digest::of_string(&a, width)?, digest::of_string(&b, width)?),
    };
    let fact = |digest, expire| Found::Here(KeyFact { digest, expire });
    Ok((fact(first, a_expire), fact(second, b_expire)))
}

/// Strings that are there, not empty, and short; `None` for whatever else there is.
async fn strings_of(
    reader: &mut Reader,
    db: DbIndex,
    keys: &[&[u8]],
) -> Result<Vec<Option<Short>>> {
    let pexpiretime = reader.side.pexpiretime;
    let ask = |conn: &mut crate::net::Conn, key: &[u8]| {
        conn.push(&[b"GETRANGE", key, b"0", LAST]);
        conn.push(&[Server::expiry_command(pexpiretime), key]);
    };
    let answer = |[value, expire]: [Reply; 2]| {
        Ok(match value {
            // Nothing there reads like an empty string.
            Reply::Bulk(value) if !value.is_empty() && value.len() < SHORT => {
                match Expiry::of(expire, pexpiretime)? {
                    Expiry::Is(expire) => Some((value, expire)),
                    Expiry::Gone | Expiry::Elsewhere => None,
                }
            }
            Reply::Bulk(_) | Reply::Nil => None,
            Reply::Error(text) if is_elsewhere(&text) || text.starts_with("WRONGTYPE") => None,
            Reply::Error(text) => return Err(refusal("GETRANGE", &text)),
            _ => return Err(unforeseen("GETRANGE")),
        })
    };
    reader
        .each(db, keys, SHORT_ROOM, || None, ask, answer)
        .await
}
