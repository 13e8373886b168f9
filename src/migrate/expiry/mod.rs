//! Expiries: keys must not expire at the target before their renewal arrives, and commands must not run on those that have.
#![cfg_attr(peers_numbers, deny(clippy::arithmetic_side_effects))]

pub(crate) mod filter;
pub(crate) mod guard;
pub(crate) mod held;
