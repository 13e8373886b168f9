//! Commands of a module's value, handed over whenever enough has gathered.

use crate::error::Result;
use crate::resp;

/// Commands are handed over when so many bytes have gathered.
const CHUNK_BYTES: usize = 256 * 1024;

/// Gathers commands; `flush` gets their bytes and how many they are, and empties them.
pub(super) struct Commands<'a, F> {
    out: &'a mut Vec<u8>,
    commands: u32,
    flush: F,
}

impl<'a, F: FnMut(&mut Vec<u8>, u32) -> Result<()>> Commands<'a, F> {
    pub fn new(out: &'a mut Vec<u8>, flush: F) -> Commands<'a, F> {
        Commands {
            out,
            commands: 0,
            flush,
        }
    }

    pub fn push(&mut self, args: &[&[u8]]) -> Result<()> {
        resp::command(self.out, args);
        self.commands += 1;
        match self.out.len() >= CHUNK_BYTES {
            true => self.hand_over(),
            false => Ok(()),
        }
    }

    /// Hands over what is left.
    pub fn hand_over(&mut self) -> Result<()> {
        match std::mem::take(&mut self.commands) {
            0 => Ok(()),
            n => {
                (self.flush)(self.out, n)?;
                self.out.clear();
                Ok(())
            }
        }
    }
}
