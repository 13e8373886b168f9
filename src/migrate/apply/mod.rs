//! The loop of one shard: what drives the parts, in the order in which things happen.

pub(crate) mod applier;
pub(crate) mod apply_loop;
pub(crate) mod chores;
pub(crate) mod load;
pub(crate) mod searches;
mod settle;
pub(crate) mod transaction;
mod unknown;

#[cfg(test)]
pub(crate) mod tests;
