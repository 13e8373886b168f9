//! Replies counted and looked at without being kept: what a writer needs to know of them.

use super::frame::{MAX_ARGS, MAX_BULK, MAX_DEPTH, corrupt, line, number};
use crate::error::Result;

/// What a reply says of the command it answers, without its value.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Fine,
    Nil,
    /// An integer reply 0: for some commands it says that nothing was there to act on.
    Zero,
    /// An integer reply -2, by itself or inside an array: a field (or key) was not there.
    Absent,
    /// The error line, or the first error inside an array (EXEC) with its index.
    Error(String),
    ErrorInside(usize, String),
}

/// Of an error line no more is kept.
const KEPT_TEXT: usize = 512;

/// Takes replies apart as their bytes come, and keeps none of these.
#[derive(Debug, Default)]
pub struct Skimmer {
    /// Arrays that are open, the outermost first: how many elements are still to come.
    open: Vec<usize>,
    /// Bytes of a string that are still to come.
    string: usize,
    /// Elements of the outermost array that are over.
    index: usize,
    absent: bool,
    error: Option<(usize, String)>,
}

impl Skimmer {
    /// Takes the bytes at the start of `buf`; returns what the reply says, once it is whole, and how many bytes were
    /// used. Bytes that are not used have to come again, with more behind them.
    pub fn take(&mut self, buf: &[u8]) -> Result<(Option<Outcome>, usize)> {
        let mut at = 0usize;
        if self.open.is_empty() && self.string == 0 && buf.starts_with(b"+OK\r\n") {
            return Ok((Some(Outcome::Fine), 5));
        }
        loop {
            let rest = buf.get(at..).unwrap_or_default();
            let (item, used) = match self.string {
                0 => self.next(rest)?,
                missing => {
                    let n = missing.min(rest.len());
                    self.string = missing.saturating_sub(n);
                    ((self.string == 0).then_some(Outcome::Fine), n)
                }
            };
            at = at.saturating_add(used);
            match item {
                Some(item) => {
                    if let Some(whole) = self.put(item) {
                        return Ok((Some(whole), at));
                    }
                }
                None if used > 0 => {}
                None => return Ok((None, at)),
            }
        }
    }

    fn next(&mut self, buf: &[u8]) -> Result<(Option<Outcome>, usize)> {
        let nothing = Ok((None, 0));
        match buf.first() {
            None => nothing,
            Some(sign @ (b'+' | b'-')) => Ok(match line(buf, 1)? {
                Some((_, next)) if *sign == b'+' => (Some(Outcome::Fine), next),
                Some((text, next)) => {
                    let text = text.get(..KEPT_TEXT).unwrap_or(text);
                    let text = String::from_utf8_lossy(text).into_owned();
                    (Some(Outcome::Error(text)), next)
                }
                None => (None, 0),
            }),
            Some(b':') => Ok(match number(buf, 1)? {
                Some((0, next)) => (Some(Outcome::Zero), next),
                Some((-2, next)) => (Some(Outcome::Absent), next),
                Some((_, next)) => (Some(Outcome::Fine), next),
                None => (None, 0),
            }),
            Some(b'$') => {
                let Some((len, next)) = number(buf, 1)? else {
                    return nothing;
                };
                if len < 0 {
                    return Ok((Some(Outcome::Nil), next));
                }
                // With the end of the line behind it.
                let len = usize::try_from(len.min(MAX_BULK)).unwrap_or(usize::MAX);
                self.string = len.saturating_add(2);
                Ok((None, next))
            }
            Some(b'*') => {
                let Some((count, next)) = number(buf, 1)? else {
                    return nothing;
                };
                if count > MAX_ARGS {
                    return Err(corrupt(&format!("an array reply of {count} elements")));
                }
                if self.open.len() > MAX_DEPTH {
                    return Err(corrupt("a reply nested too deep"));
                }
                match usize::try_from(count) {
                    Ok(count @ 1..) => {
                        self.open.push(count);
                        Ok((None, next))
                    }
                    Ok(0) => Ok((Some(Outcome::Fine), next)),
                    Err(_) => Ok((Some(Outcome::Nil), next)),
                }
            }
            Some(other) => Err(corrupt(&format!("byte 0x{other:02x} where a reply begins"))),
        }
    }

    /// Notes what an item says; what the whole reply says when it was the last one.
    fn put(&mut self, item: Outcome) -> Option<Outcome> {
        if self.open.is_empty() {
            return Some(item);
        }
        match item {
            Outcome::Absent => self.absent = true,
            Outcome::Error(text) if self.error.is_none() => self.error = Some((self.index, text)),
            _ => {}
        }
        while let Some(left) = self.open.pop() {
            if self.open.is_empty() {
                self.index = self.index.saturating_add(1);
            }
            if left > 1 {
                self.open.push(left.saturating_sub(1));
                return None;
            }
        }
        let said = std::mem::take(self);
        Some(match said.error {
            Some((index, text)) => Outcome::ErrorInside(index, text),
            None if said.absent => Outcome::Absent,
            None => Outcome::Fine,
        })
    }
}

/// Looks at one reply at the start of `buf`; `None` means that more bytes are needed.
pub fn skim_reply(buf: &[u8]) -> Result<Option<(Outcome, usize)>> {
    let (outcome, used) = Skimmer::default().take(buf)?;
    Ok(outcome.map(|outcome| (outcome, used)))
}
