//! The beginning of a reply that is read item by item.

use crate::resp::Reply;

/// An array reply of which only the head has been read, or another reply.
pub enum Answer {
    /// So many items follow, to be read by [`Conn::item`](super::Conn::item).
    Items(usize),
    Other(Reply),
}
