//! The source: its masters, the replication link to each, and the spool between link and decoder.

pub mod aof;
pub mod files;
pub mod handshake;
pub mod keys;
pub mod lead;
pub mod mix;
pub mod place;
pub mod psync;
pub mod pulse;
mod receiver;
pub mod spool;
pub mod unpack;
