//! What a checkpoint relies on: files that the disk must have before SQLite has the marks that pass what is in them.
//!
//! It is handed to the thread that saves, so that no command waits for the disk; only what has changed is in it.

use crate::error::Result;
use crate::migrate::expiry::filter::Pages;
use crate::task::Unsynced;

#[derive(Default)]
pub(crate) struct Relied {
    pub files: Vec<Unsynced>,
    /// Which keys may have an expiry.
    pub timed: Option<Pages>,
}

impl Relied {
    /// Returns when the disk has all of it.
    pub fn write(&self) -> Result<()> {
        if let Some(pages) = &self.timed {
            pages.write()?;
        }
        self.files.iter().try_for_each(Unsynced::sync)
    }
}
