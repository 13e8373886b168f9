//! A connection between a cutover and a migration: lines of bounded length, sealed once both ends have proven themselves.
//!
//! Invariant: no more is held of a line than was allowed, whatever comes; a line that was changed on its way, left out or
//! sent twice ends the connection.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use std::io;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};

/// Both directions of a connection.
pub struct Wire {
    read: BufReader<Box<dyn AsyncRead + Send + Sync + Unpin>>,
    write: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    /// What has come of the next line.
    line: Vec<u8>,
    /// The longest line that is taken.
    most: usize,
    seals: Option<Seals>,
}

/// What seals the lines of each direction.
pub struct Seals {
    pub ours: Seal,
    pub theirs: Seal,
}

/// One direction: a key that only this connection has, and how many lines it has sealed.
pub struct Seal {
    key: LessSafeKey,
    lines: u64,
}

impl Seal {
    /// `None` only for a key of the wrong length.
    pub fn new(key: &[u8]) -> Option<Seal> {
        let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).ok()?);
        Some(Seal { key, lines: 0 })
    }

    /// Each number is used once, and the key is another for each connection and direction.
    fn nonce(&mut self) -> Nonce {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.lines.to_le_bytes());
        self.lines += 1;
        Nonce::assume_unique_for_key(bytes)
    }

    fn close(&mut self, text: &[u8]) -> io::Result<Vec<u8>> {
        let (mut sealed, nonce) = (text.to_vec(), self.nonce());
        self.key
            .seal_in_place_append_tag(nonce, Aad::empty(), &mut sealed)
            .map_err(|_| io::Error::other("a line could not be sealed"))?;
        Ok(BASE64.encode(sealed).into_bytes())
    }

    fn open(&mut self, line: &[u8]) -> io::Result<Vec<u8>> {
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "a line was changed on its way");
        let (mut sealed, nonce) = (BASE64.decode(line).map_err(|_| broken())?, self.nonce());
        let text = (self.key)
            .open_in_place(nonce, Aad::empty(), &mut sealed)
            .map_err(|_| broken())?;
        Ok(text.to_vec())
    }
}

impl Wire {
    pub fn new(
        read: impl AsyncRead + Send + Sync + Unpin + 'static,
        write: impl AsyncWrite + Send + Sync + Unpin + 'static,
        most: usize,
    ) -> Wire {
        Wire {
            read: BufReader::new(Box::new(read)),
            write: Box::new(write),
            line: Vec::new(),
            most,
            seals: None,
        }
    }

    /// From here on every line is sealed, and may be of another length.
    pub fn seal(&mut self, seals: Seals, most: usize) {
        (self.seals, self.most) = (Some(seals), most);
    }

    /// The next line; `None` at the end. Cancel-safe.
    pub async fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let buf = self.read.fill_buf().await?;
            if buf.is_empty() {
                return Ok(None);
            }
            let end = memchr::memchr(b'\n', buf);
            let part = buf.get(..end.unwrap_or(buf.len())).unwrap_or_default();
            if self.line.len() + part.len() > self.most {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("a line is longer than {} bytes", self.most),
                ));
            }
            self.line.extend_from_slice(part);
            let taken = part.len() + usize::from(end.is_some());
            self.read.consume(taken);
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                return match &mut self.seals {
                    Some(seals) => seals.theirs.open(&line).map(Some),
                    None => Ok(Some(line)),
                };
            }
        }
    }

    pub async fn send(&mut self, text: &[u8]) -> io::Result<()> {
        let mut line = match &mut self.seals {
            Some(seals) => seals.ours.close(text)?,
            None => text.to_vec(),
        };
        line.push(b'\n');
        self.write.write_all(&line).await?;
        self.write.flush().await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pair(key: u8) -> (Seal, Seal) {
        (
            Seal::new(&[key; 32]).unwrap(),
            Seal::new(&[key; 32]).unwrap(),
        )
    }

    #[tokio::test]
    async fn a_line_is_never_longer_than_was_allowed() {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let (read, write) = tokio::io::split(near);
        let mut wire = Wire::new(read, write, 10);
        far.write_all(b"0123456789\n0123456789a").await.unwrap();
        assert_eq!(wire.line().await.unwrap().unwrap(), b"0123456789");
        let e = wire.line().await.unwrap_err();
        assert!(e.to_string().contains("longer than 10 bytes"), "{e}");
    }

    #[test]
    fn what_was_changed_repeated_or_left_out_is_not_opened() {
        let (mut ours, mut theirs) = pair(1);
        let first = ours.close(b"\"state\"").unwrap();
        assert!(!first.contains(&b'\n') && !String::from_utf8_lossy(&first).contains("state"));
        assert_eq!(theirs.open(&first).unwrap(), b"\"state\"");
        theirs.open(&first).unwrap_err();
        let (mut ours, mut theirs) = pair(1);
        let (_, second) = (ours.close(b"a").unwrap(), ours.close(b"b").unwrap());
        theirs.open(&second).unwrap_err();
        let (mut ours, mut theirs) = pair(1);
        let mut line = BASE64.decode(ours.close(b"abc").unwrap()).unwrap();
        line[0] ^= 1;
        theirs.open(BASE64.encode(line).as_bytes()).unwrap_err();
        let (mut ours, _) = pair(1);
        pair(2).0.open(&ours.close(b"abc").unwrap()).unwrap_err();
        pair(2).0.open(b"\xff not base64").unwrap_err();
    }
}
