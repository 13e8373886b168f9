//! Replies read item by item, and bulk strings piece by piece: for what is too large to be held.

use super::answer::Answer;
use super::conn::Conn;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::resp::{self, Reply};
use std::io::Write;

impl Conn {
    /// Begins to read a reply.
    pub async fn answer(&mut self) -> Result<Answer> {
        match self.head(b'*').await? {
            Some((count, next)) => {
                self.at += next;
                self.due = self.due.saturating_sub(1);
                Ok(Answer::Items(count))
            }
            None => Ok(Answer::Other(self.reply().await?)),
        }
    }

    /// Says that what was read by [`Conn::item`] or [`Conn::copy_bulk`] was a reply of its own.
    pub fn answered(&mut self) {
        self.due = self.due.saturating_sub(1);
    }

    /// Reads one item of an array reply, or a reply.
    pub async fn item(&mut self) -> Result<Reply> {
        loop {
            let unread = self.read.get(self.at..).unwrap_or_default();
            if let Some((reply, len)) = resp::parse_reply(unread)? {
                self.at += len;
                return Ok(reply);
            }
            self.fill().await?;
        }
    }

    /// The length of the bulk string that comes next; `None` when something else does.
    pub async fn bulk_len(&mut self) -> Result<Option<usize>> {
        Ok(self.head(b'$').await?.map(|(len, _)| len))
    }

    /// Writes the bulk string that comes next to `out`, piece by piece.
    ///
    /// Errors: `Connection`; `Disk` when it cannot be written, after which the rest of it is still on its way.
    pub async fn copy_bulk(&mut self, out: &mut impl Write) -> Result<()> {
        let Some((mut left, next)) = self.head(b'$').await? else {
            return Err(Error::new(
                ErrorKind::Bug,
                "there is no bulk string to copy",
            ));
        };
        self.at += next;
        while left > 0 {
            let unread = self.read.get(self.at..).unwrap_or_default();
            let piece = unread.get(..left.min(unread.len())).unwrap_or_default();
            let n = piece.len();
            out.write_all(piece)
                .context(ErrorKind::Disk, || "write a value to a file".to_owned())?;
            self.at += n;
            left -= n;
            if left > 0 {
                self.fill().await?;
            }
        }
        while self.read.len() - self.at < 2 {
            self.fill().await?;
        }
        self.at += 2;
        Ok(())
    }

    /// The number behind `sigil` and where what follows begins, when such a head comes next and the number is not -1.
    async fn head(&mut self, sigil: u8) -> Result<Option<(usize, usize)>> {
        loop {
            let unread = self.read.get(self.at..).unwrap_or_default();
            match unread.first() {
                Some(first) if *first != sigil => return Ok(None),
                Some(_) => {
                    if let Some((n, next)) = resp::parse_head(unread)? {
                        return Ok(usize::try_from(n).ok().map(|n| (n, next)));
                    }
                }
                None => {}
            }
            self.fill().await?;
        }
    }
}
