//! keyferry moves live Redis and Valkey data between providers and proves that it arrived.
//!
//! The map of the crate, by floors; a file imports its own folder and lower floors (`docs/architecture.md`,
//! enforced by `tests/house.rs`).

// 4 surface
pub mod cli;
pub mod report;

// 3 flows
pub mod check;
pub mod cutover;
pub mod fleet;
pub mod latency;
pub mod migrate;
pub mod verify;

// 2 edges
pub mod fence;
pub mod net;
pub mod source;
pub mod store;
pub mod target;
pub mod task;

// 1 formats: bytes in, values out; they meet hostile input, so nothing in them may panic.
#[deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable
)]
pub mod command;
pub mod digest;
pub mod plan;
#[deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable
)]
pub mod rdb;
#[deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable
)]
pub mod resp;

// 0 nouns
pub mod error;
mod histogram;
mod keyset;
pub mod types;
