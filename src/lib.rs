//! keyferry moves live Redis and Valkey data between providers and proves that it arrived.
//!
//! The map of the crate, by floors; a file imports its own folder and lower floors (`docs/architecture.md`,
//! enforced by `tests/house.rs`).

// 4 surface
mod cli;
mod report;

// Modules that take numbers of peers: a server, or whoever writes to it, may say anything from -2^63 to 2^64-1, and a sum
// of it must neither panic nor wrap. Each says by itself what is meant (saturating, checked).

// 3 flows
#[cfg_attr(peers_numbers, deny(clippy::arithmetic_side_effects))]
mod check;
mod cutover;
mod fleet;
mod latency;
mod migrate;
#[cfg_attr(peers_numbers, deny(clippy::arithmetic_side_effects))]
mod verify;

// 2 edges
#[cfg_attr(peers_numbers, deny(clippy::arithmetic_side_effects))]
mod fence;
#[cfg_attr(peers_numbers, deny(clippy::arithmetic_side_effects))]
mod net;
#[cfg_attr(peers_numbers, deny(clippy::arithmetic_side_effects))]
mod source;
mod store;
#[cfg_attr(peers_numbers, deny(clippy::arithmetic_side_effects))]
mod target;
mod task;

// 1 formats: bytes in, values out; they meet hostile input, so nothing in them may panic.
#[deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable
)]
#[cfg_attr(peers_numbers, deny(clippy::arithmetic_side_effects))]
mod command;
#[cfg_attr(peers_numbers, deny(clippy::arithmetic_side_effects))]
mod digest;
mod plan;
#[deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable
)]
mod rdb;
#[deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable
)]
#[cfg_attr(peers_numbers, deny(clippy::arithmetic_side_effects))]
mod resp;
mod search;

// 0 nouns
mod error;
mod histogram;
mod keyset;
#[cfg_attr(peers_numbers, deny(clippy::arithmetic_side_effects))]
mod types;

// What `main` calls, and what tests, benchmarks and fuzz targets look at; of anything else the compiler says when
// nobody uses it.
pub use cli::rdb::{write_json, write_resp};
pub use cli::run;
pub use error::Result;
pub use source::handshake;
pub use source::keys::unnotified;
pub use task::FAILPOINTS;
pub use types::{ExpireAt, Slot, unix_ms};

/// The formats, as far as they are looked at from outside.
pub mod formats {
    pub mod command {
        pub use crate::command::{Access, Command, Kind, keys_in, lookup, split};
    }

    pub mod digest {
        pub use crate::digest::{Width, of_body, of_payload};
    }

    pub mod resp {
        pub use crate::resp::{Reply, command, parse_command, parse_reply, skim_reply};
    }

    pub mod rdb {
        pub use crate::rdb::opcode;

        pub mod encoding {
            pub use crate::rdb::encoding::listpack::{Builder, Listpack, Packed};
            pub use crate::rdb::encoding::ziplist::Ziplist;
            pub use crate::rdb::encoding::{intset, lzf, put_length, put_string, zipmap};
        }

        pub mod file {
            pub use crate::rdb::file::{Item, Options, Snapshot};
        }

        pub mod payload {
            pub use crate::rdb::payload::{
                Fit, KNOWN, crc, fit, footer_version, open, seal, transcode,
            };
        }

        pub mod value {
            pub use crate::rdb::value::stream::{StreamId, StreamMeta};
            pub use crate::rdb::value::{ValueKind, ValueSink, decode};
        }
    }
}
