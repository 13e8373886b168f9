//! RDB and DUMP: bytes in, values out; no I/O of its own, no clock.
//!
//! [`frame`] finds where a value ends without decoding it; [`value`] turns its bytes into elements for a sink;
//! [`file`] is the loop over a snapshot; [`payload`] is the envelope of DUMP and RESTORE.

pub mod commands;
pub mod cursor;
pub mod encoding;
pub mod file;
pub mod frame;
pub mod large;
pub mod modules;
pub mod old_module;
pub mod opcode;
pub mod payload;
pub mod tombstones;
pub mod value;
