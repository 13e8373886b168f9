//! One side of a cutover: how its writers are kept from writing, and how it stays closed when the clients have left it.
//!
//! Read first: [`Freezer`]. What it does that does not end by itself is written down before it is done (`record.rs`), so
//! that whoever comes after a crash can undo it.

mod freezer;
mod hold;
mod nodes;
mod record;
mod rights;

pub use freezer::{Foretold, Freezer};
pub use hold::Hold;
pub use record::Closed;

use crate::error::Result;
use std::path::Path;

/// How the source is kept closed, as it is written down.
pub fn closed(home: &Path) -> Result<Option<Closed>> {
    Ok(record::Record::load(home, "source")?.closed)
}
