//! Replies read item by item, and bulk strings piece by piece: for what is too large to be held.

use super::answer::Answer;
use super::conn::Conn;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::resp::{self, Outcome, Reply};
use std::io::Write;

impl Conn {
    /// Begins to read a reply.
    pub async fn answer(&mut self) -> Result<Answer> {
        match self.head(b'*').await? {
            Some((count, next)) => {
                self.at = self.at.saturating_add(next);
                self.answered();
                Ok(Answer::Items(count))
            }
            None => Ok(Answer::Other(self.reply().await?)),
        }
    }

    /// Sends a command and begins to read its reply, the items of which come next.
    ///
    /// Errors: of the server, as those of [`Conn::call`]; `Protocol` when the reply is no array.
    pub async fn list(&mut self, args: &[&[u8]]) -> Result<usize> {
        if self.refuses(args) {
            self.call(args).await?;
        }
        self.push(args);
        self.flush().await?;
        let name = args.first().copied().unwrap_or_default();
        match self.answer().await? {
            Answer::Items(n) => Ok(n),
            Answer::Other(reply) => {
                self.learn(args, &reply);
                self.accepted(name, reply)?;
                Err(self.strange(&String::from_utf8_lossy(name)))
            }
        }
    }

    /// A reply to that command in a form that no server is known to send.
    pub fn strange(&self, command: &str) -> Error {
        Error::new(
            ErrorKind::Protocol,
            format!(
                "{} answered {command} in a form that is not understood",
                self.address()
            ),
        )
    }

    /// Reads a reply, or an item of one, and says only what it is.
    ///
    /// Cancelled, it goes on where it was.
    pub async fn skim(&mut self) -> Result<Outcome> {
        loop {
            let unread = self.read.get(self.at..).unwrap_or_default();
            let (outcome, used) = (self.skimmer.take(unread))
                .map_err(|e| e.context(format!("read a reply of {}", self.address())))?;
            self.at = self.at.saturating_add(used);
            if let Some(outcome) = outcome {
                self.in_time();
                return Ok(outcome);
            }
            self.fill().await?;
        }
    }

    /// Says that what was read by [`Conn::item`] or [`Conn::copy_bulk`] was a reply of its own.
    pub fn answered(&mut self) {
        self.due = self.due.saturating_sub(1);
        self.in_time();
    }

    /// Reads one item of an array reply, or a reply, that takes at most so many bytes of memory.
    ///
    /// Cancelled, it goes on where it was. Errors: `Oversized` when it takes more, after which the connection is of no
    /// use.
    pub async fn item(&mut self, most: usize) -> Result<Reply> {
        loop {
            let unread = self.read.get(self.at..).unwrap_or_default();
            let (reply, used) = (self.parser.take(unread, most))
                .map_err(|e| e.context(format!("read a reply of {}", self.address())))?;
            self.at = self.at.saturating_add(used);
            if let Some(reply) = reply {
                self.in_time();
                return Ok(reply);
            }
            self.fill().await?;
        }
    }

    /// The number of items of the array that comes next, inside of another; `None` when something else does.
    pub async fn inner(&mut self) -> Result<Option<usize>> {
        let Some((count, next)) = self.head(b'*').await? else {
            return Ok(None);
        };
        self.at = self.at.saturating_add(next);
        Ok(Some(count))
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
        self.at = self.at.saturating_add(next);
        while left > 0 {
            let unread = self.read.get(self.at..).unwrap_or_default();
            let piece = unread.get(..left.min(unread.len())).unwrap_or_default();
            let n = piece.len();
            out.write_all(piece)
                .context(ErrorKind::Disk, || "write a value to a file".to_owned())?;
            self.at = self.at.saturating_add(n);
            left = left.saturating_sub(n);
            if left > 0 {
                self.fill().await?;
            }
        }
        while self.read.len().saturating_sub(self.at) < 2 {
            self.fill().await?;
        }
        self.at = self.at.saturating_add(2);
        self.in_time();
        Ok(())
    }

    /// The number behind `sigil` and where what follows begins, when such a head comes next and the number is not -1.
    async fn head(&mut self, sigil: u8) -> Result<Option<(usize, usize)>> {
        if !self.parser.is_idle() {
            return Err(Error::new(
                ErrorKind::Bug,
                "a reply is looked at of which a part was read already",
            ));
        }
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
