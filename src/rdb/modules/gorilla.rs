//! Samples of a compressed chunk of a time series: timestamps by the change of their distance, values by XOR.
//!
//! Bits count from the lowest of each byte. A timestamp is one bit 0 (the distance stays), or up to six bits 1 that say
//! how many bits of change follow; a value is one bit 0 (it stays), or its XOR with the one before, in the window of the
//! last one (bit 0) or of its own (bit 1, 5 bits of leading zeros, 6 bits of length less one).

use crate::error::Result;
use crate::rdb::cursor::corrupt;

/// Bits of change that follow one, two, … bits 1 and a bit 0; after six bits 1 all 64.
const WIDTHS: [u32; 5] = [5, 8, 11, 15, 32];

struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn bit(&mut self) -> Result<bool> {
        let byte = self.bytes.get(self.at / 8);
        let byte = byte.ok_or_else(|| corrupt(0, "a chunk of a time series", "it is cut off"))?;
        let bit = byte >> (self.at % 8) & 1;
        self.at += 1;
        Ok(bit == 1)
    }

    fn take(&mut self, n: u32) -> Result<u64> {
        let mut out = 0;
        for i in 0..n {
            out |= u64::from(self.bit()?) << i;
        }
        Ok(out)
    }

    /// A signed number of `n` bits.
    fn signed(&mut self, n: u32) -> Result<i64> {
        let bits = self.take(n)?;
        let unused = 64 - n;
        Ok((bits << unused) as i64 >> unused)
    }
}

/// Hands the `count` samples of a chunk to `each`, which are the first one and what `data` holds.
pub(super) fn samples(
    data: &[u8],
    count: u64,
    first: (u64, f64),
    mut each: impl FnMut(u64, f64) -> Result<()>,
) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let (mut ts, mut value) = (first.0, first.1.to_bits());
    each(ts, first.1)?;
    let mut bits = Bits { bytes: data, at: 0 };
    let mut distance = 0u64;
    // The window of the last XOR: its length, and the zeros behind it.
    let (mut length, mut trailing) = (0u32, 0u32);
    for _ in 1..count {
        if bits.bit()? {
            let mut change = None;
            for width in WIDTHS {
                if !bits.bit()? {
                    change = Some(bits.signed(width)?);
                    break;
                }
            }
            let change = match change {
                Some(change) => change as u64,
                None => bits.take(64)?,
            };
            distance = distance.wrapping_add(change);
        }
        ts = ts.wrapping_add(distance);
        if bits.bit()? {
            if bits.bit()? {
                let leading = bits.take(5)? as u32;
                length = bits.take(6)? as u32 + 1;
                trailing = 64u32.checked_sub(leading + length).ok_or_else(|| {
                    corrupt(0, "a chunk of a time series", "a window beyond 64 bits")
                })?;
            }
            value ^= bits.take(length)?.checked_shl(trailing).unwrap_or(0);
        }
        each(ts, f64::from_bits(value))?;
    }
    Ok(())
}
