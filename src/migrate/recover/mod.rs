//! After trouble: what is sent again, what is healed, and how far back a shard has to go.

pub(crate) mod flush;
pub(crate) mod resolve;
