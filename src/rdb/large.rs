//! Payloads that are too large to be held: checked, and made into RESTORE, piece by piece.

use crate::error::{Context, ErrorKind, Result};
use crate::rdb::cursor::{Reader, corrupt};
use crate::resp;
use crate::types::ExpireAt;
use std::io::Read;

/// Bytes behind a payload's value: version and CRC.
pub const FOOTER: u64 = 10;
/// Bytes at a time.
const PIECE: usize = 256 << 10;

fn digest() -> crc_fast::Digest {
    crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Redis)
}

fn failed() -> String {
    "read a large value again".to_owned()
}

/// Reads a payload of `len` bytes through; its CRC must be right (or zero: not computed). Returns its version.
pub fn check(mut payload: impl Read, len: u64) -> Result<u16> {
    const WHAT: &str = "a DUMP payload";
    let mut left = len
        .checked_sub(FOOTER)
        .ok_or_else(|| corrupt(0, WHAT, "it is too short"))?;
    let mut crc = digest();
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        let piece = piece.get_mut(..n).unwrap_or_default();
        payload.read_exact(piece).context(ErrorKind::Disk, failed)?;
        crc.update(piece);
        left -= n as u64;
    }
    let mut footer = [0; 10];
    payload
        .read_exact(&mut footer)
        .context(ErrorKind::Disk, failed)?;
    let mut r = Reader::new(&footer, len - 10);
    let version = r.u16(WHAT)?;
    let stored = u64::from_le_bytes(r.array(WHAT)?);
    crc.update(&version.to_le_bytes());
    if stored != 0 && stored != crc.finalize() {
        return Err(corrupt(len - 8, WHAT, "its checksum is wrong"));
    }
    Ok(version)
}

/// RESTORE being made of a value's bytes.
pub struct Restore<R> {
    body: R,
    left: u64,
    /// What comes before the body: the command up to the payload, and the type.
    head: Option<(Vec<u8>, u8)>,
    /// What comes behind it: the payload's version, and the command's options.
    tail: Option<(u16, Vec<u8>)>,
    crc: crc_fast::Digest,
}

impl<R: Read> Restore<R> {
    /// `body` tells the `len` bytes of the value behind its type; `version` is the payload's.
    pub fn new(
        key: &[u8],
        expire: Option<ExpireAt>,
        type_id: u8,
        body: R,
        len: u64,
        version: u16,
    ) -> Restore<R> {
        let (mut head, mut tail) = (Vec::new(), b"\r\n".to_vec());
        resp::array(&mut head, 5 + usize::from(expire.is_some()));
        resp::bulk(&mut head, b"RESTORE");
        resp::bulk(&mut head, key);
        resp::bulk_int(&mut head, expire.map_or(0, |e| e.0.max(1)));
        let mut digits = [0u8; 20];
        head.push(b'$');
        let payload = i64::try_from(1 + len + 10).unwrap_or(i64::MAX);
        head.extend_from_slice(resp::decimal(payload, &mut digits));
        head.extend_from_slice(b"\r\n");
        resp::bulk(&mut tail, b"REPLACE");
        if expire.is_some() {
            resp::bulk(&mut tail, b"ABSTTL");
        }
        Restore {
            body,
            left: len,
            head: Some((head, type_id)),
            tail: Some((version, tail)),
            crc: digest(),
        }
    }

    /// Appends what comes next of the command; false when that was all.
    pub fn piece(&mut self, out: &mut Vec<u8>) -> Result<bool> {
        if let Some((head, type_id)) = self.head.take() {
            out.extend_from_slice(&head);
            out.push(type_id);
            self.crc.update(&[type_id]);
            return Ok(true);
        }
        if self.left > 0 {
            let n = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
            let at = out.len();
            out.resize(at + n, 0);
            let piece = out.get_mut(at..).unwrap_or_default();
            self.body
                .read_exact(piece)
                .context(ErrorKind::Disk, failed)?;
            self.crc.update(piece);
            self.left -= n as u64;
            return Ok(true);
        }
        let Some((version, tail)) = self.tail.take() else {
            return Ok(false);
        };
        let version = version.to_le_bytes();
        self.crc.update(&version);
        out.extend_from_slice(&version);
        out.extend_from_slice(&self.crc.finalize().to_le_bytes());
        out.extend_from_slice(&tail);
        Ok(true)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::rdb::payload;

    #[test]
    fn pieces_make_the_same_command_and_a_wrong_payload_is_refused() {
        for len in [0, 1, PIECE - 1, PIECE, 2 * PIECE + 7] {
            for expire in [None, Some(ExpireAt(1_900_000_000_000))] {
                let body: Vec<u8> = (0..len).map(|n| n as u8).collect();
                let (mut payload, mut whole, mut pieces) = (Vec::new(), Vec::new(), Vec::new());
                payload::seal(&mut payload, &[], 7, &body, 11);
                let at = expire.map_or("0".into(), |e| e.0.to_string());
                let mut args: Vec<&[u8]> =
                    vec![b"RESTORE", b"k", at.as_bytes(), &payload, b"REPLACE"];
                args.extend(expire.map(|_| b"ABSTTL".as_slice()));
                resp::command(&mut whole, &args);
                let mut restore = Restore::new(b"k", expire, 7, body.as_slice(), len as u64, 11);
                while restore.piece(&mut pieces).unwrap() {}
                assert!(whole == pieces);
                assert_eq!(check(payload.as_slice(), payload.len() as u64).unwrap(), 11);
                payload[0] ^= 1;
                assert!(check(payload.as_slice(), payload.len() as u64).is_err());
            }
        }
        assert!(check([0u8; 9].as_slice(), 9).is_err());
    }
}
