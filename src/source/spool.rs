//! The spool: what the source sends is appended here as it comes, and decoded from here at the target's pace.
//!
//! A source that is written to never waits for the target, so its replica output buffer does not overflow.
//! A shard's folder holds `snapshot.rdb` and the stream as segments named by the offset of their first byte.
//! Invariant: bytes are in the file before they are announced, so whatever was sent to the target can be read again.

mod arrivals;
mod files;
mod link;
mod parts;
mod shared;
mod state;
mod tail;
mod writer;

pub use link::Down;
pub use shared::Spool;
pub use state::End;
pub use tail::{SnapshotTail, StreamTail};
pub use writer::SpoolWriter;

#[cfg(test)]
mod tests;
