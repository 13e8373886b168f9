//! Snapshots that come gzipped: found by their first bytes, unpacked while they are read.

use flate2::read::MultiGzDecoder;
use std::io::{Cursor, Read, Result};

const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Whether a file begins like a gzip file.
pub fn is_gzip(start: &[u8]) -> bool {
    start.starts_with(&MAGIC)
}

/// The plain bytes of `input`, gzipped or not.
pub fn unpacked(mut input: Box<dyn Read>) -> Result<Box<dyn Read>> {
    let mut start = Vec::with_capacity(MAGIC.len());
    input
        .by_ref()
        .take(MAGIC.len() as u64)
        .read_to_end(&mut start)?;
    let packed = is_gzip(&start);
    let whole = Cursor::new(start).chain(input);
    Ok(if packed {
        Box::new(MultiGzDecoder::new(std::io::BufReader::with_capacity(
            256 << 10,
            whole,
        )))
    } else {
        Box::new(whole)
    })
}
