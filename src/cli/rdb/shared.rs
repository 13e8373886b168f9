//! What every form of a snapshot file's output has in common.

use crate::cli::output::say;
use crate::rdb::file::Options;

/// How a file is read.
pub fn options(ignore_checksum: bool, strict: bool) -> Options {
    Options {
        ignore_checksum,
        strict,
        joined: true,
        unpacked_limit: 8 << 20,
        ..Options::default()
    }
}

/// Prints a warning, if there is one, where it does not mix with the results.
pub fn warn_of(warning: Option<String>) {
    if let Some(warning) = warning {
        say(&format!("warning: {warning}"));
    }
}

/// The code of a library as FUNCTION LOAD takes it, from the form of Redis 7.0's release candidates.
pub fn library(name: &[u8], engine: &[u8], code: &[u8]) -> Vec<u8> {
    [b"#!", engine, b" name=", name, b"\n", code].concat()
}

pub fn temporary() -> String {
    format!(
        "keep a large value in a temporary file in {} (TMPDIR chooses another folder)",
        std::env::temp_dir().display()
    )
}

pub fn to_stdout() -> String {
    "write to standard output".into()
}
