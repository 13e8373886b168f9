//! The one integration binary.

mod judge;
mod support;
