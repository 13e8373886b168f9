//! LZF decompression (lzf_d.c): literal runs and back references of up to 8 KiB.

use crate::error::Result;
use crate::rdb::cursor::corrupt;

/// LZF cannot make more than this of a byte: a reference of 3 bytes yields 264.
const MAX_RATIO: u64 = 264;

/// Decompresses `input` (at file position `at`), whose plain length must be `plain`.
pub fn decompress(input: &[u8], plain: u64, at: u64) -> Result<Vec<u8>> {
    const WHAT: &str = "a compressed string";
    if plain > (input.len() as u64).saturating_mul(MAX_RATIO) {
        return Err(corrupt(at, WHAT, format_args!("{} bytes cannot hold {plain}", input.len())));
    }
    let plain = plain as usize;
    let mut out: Vec<u8> = Vec::with_capacity(plain);
    let mut i = 0;
    let short = |i: usize| corrupt(at + i as u64, WHAT, "it ends inside a run");
    while let Some(&control) = input.get(i) {
        i += 1;
        if control < 32 {
            let n = usize::from(control) + 1;
            out.extend_from_slice(input.get(i..i + n).ok_or_else(|| short(i))?);
            i += n;
        } else {
            let mut n = usize::from(control >> 5);
            if n == 7 {
                n += usize::from(*input.get(i).ok_or_else(|| short(i))?);
                i += 1;
            }
            n += 2;
            let low = *input.get(i).ok_or_else(|| short(i))?;
            i += 1;
            let back = (usize::from(control & 31) << 8 | usize::from(low)) + 1;
            let from = out.len().checked_sub(back).ok_or_else(|| corrupt(at + i as u64, WHAT, "a reference before the start"))?;
            if out.len() + n > plain {
                return Err(corrupt(at + i as u64, WHAT, "it is longer than it says"));
            }
            if back >= n {
                out.extend_from_within(from..from + n);
            } else {
                for k in 0..n {
                    let byte = out.get(from + k).copied().unwrap_or_default();
                    out.push(byte);
                }
            }
        }
        if out.len() > plain {
            return Err(corrupt(at + i as u64, WHAT, "it is longer than it says"));
        }
    }
    if out.len() != plain {
        return Err(corrupt(at + i as u64, WHAT, format_args!("{} bytes instead of {plain}", out.len())));
    }
    Ok(out)
}
