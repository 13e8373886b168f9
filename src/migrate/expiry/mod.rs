//! Expiries: keys must not expire at the target before their renewal arrives, and commands must not run on those that have.

pub(crate) mod filter;
pub(crate) mod guard;
pub(crate) mod held;
