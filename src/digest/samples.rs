//! The samples in a chunk of a time series (RedisTimeSeries), as times in ms and the bits of their values.
//!
//! Compressed chunks hold the change of each time's step, and which bits of the value differ from the one before.

/// Bits, the lowest of each byte first.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn take(&mut self, n: u32) -> Option<u64> {
        let mut out = 0u64;
        let mut have = 0;
        while have < n {
            let byte = u64::from(*self.bytes.get(self.at / 8)?);
            let from = (self.at % 8) as u32;
            let more = (8u32.saturating_sub(from)).min(n.saturating_sub(have));
            out |= (byte >> from & (1u64 << more).wrapping_sub(1)) << have;
            have = have.saturating_add(more);
            self.at = self.at.saturating_add(more as usize);
        }
        Some(out)
    }

    fn is_set(&mut self) -> Option<bool> {
        Some(self.take(1)? == 1)
    }

    /// A number of `n` bits with a sign.
    fn signed(&mut self, n: u32) -> Option<u64> {
        let raw = self.take(n)?;
        let above = 64u32.saturating_sub(n);
        Some((((raw << above) as i64) >> above) as u64)
    }
}

/// The widths of a change of the step; each further one has one more bit set before it.
const WIDTHS: [u32; 6] = [5, 8, 11, 15, 32, 64];

/// Tells each sample; `None` when the chunk is not as it should be.
pub(super) fn compressed(
    numbers: &[u64],
    bytes: &[u8],
    each: &mut impl FnMut(u64, u64),
) -> Option<()> {
    let [_, count, _, value, time, ..] = *numbers else {
        return None;
    };
    let (mut value, mut time, mut step) = (value, time, 0u64);
    let (mut leading, mut width) = (0, 64);
    let mut bits = Bits { bytes, at: 0 };
    if count > 0 {
        each(time, value);
    }
    for _ in 1..count {
        if bits.is_set()? {
            let mut widths = WIDTHS.iter();
            let mut of = *widths.next()?;
            while of < 64 && bits.is_set()? {
                of = *widths.next()?;
            }
            step = step.wrapping_add(bits.signed(of)?);
        }
        time = time.wrapping_add(step);
        if bits.is_set()? {
            if bits.is_set()? {
                leading = bits.take(5)? as u32;
                width = (bits.take(6)? as u32).saturating_add(1);
            }
            let trailing = 64u32.checked_sub(leading.saturating_add(width))?;
            value ^= bits.take(width)? << trailing;
        }
        each(time, value);
    }
    Some(())
}

/// The same of a chunk that holds them as they are; what lies behind them is whatever was in that memory.
pub(super) fn plain(numbers: &[u64], bytes: &[u8], each: &mut impl FnMut(u64, u64)) -> Option<()> {
    let [.., _, count, _] = *numbers else {
        return None;
    };
    let (pairs, _) = bytes.as_chunks::<16>();
    for pair in pairs.get(..usize::try_from(count).ok()?)? {
        let pair = u128::from_le_bytes(*pair);
        each(pair as u64, (pair >> 64) as u64);
    }
    Some(())
}
