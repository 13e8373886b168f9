//! LZF decompression (lzf_d.c): literal runs and back references of up to 8 KiB.

use crate::error::Result;
use crate::rdb::cursor::corrupt;

/// LZF cannot make more than this of a byte: a reference of 3 bytes yields 264.
const MAX_RATIO: u64 = 264;

/// Decompresses `input` (at file position `at`), whose plain length must be `plain`.
pub fn decompress(input: &[u8], plain: u64, at: u64) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    decompress_into(input, plain, at, &mut out)?;
    Ok(out)
}

/// The same into a buffer, in place of what it holds.
pub fn decompress_into(input: &[u8], plain: u64, at: u64, out: &mut Vec<u8>) -> Result<()> {
    const WHAT: &str = "a compressed string";
    if plain > (input.len() as u64).saturating_mul(MAX_RATIO) {
        return Err(corrupt(
            at,
            WHAT,
            format_args!("{} bytes cannot hold {plain}", input.len()),
        ));
    }
    let plain = plain as usize;
    out.clear();
    out.reserve(plain);
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
            let from = out
                .len()
                .checked_sub(back)
                .ok_or_else(|| corrupt(at + i as u64, WHAT, "a reference before the start"))?;
            if out.len() + n > plain {
                return Err(corrupt(at + i as u64, WHAT, "it is longer than it says"));
            }
            refer(out, from, n);
        }
        if out.len() > plain {
            return Err(corrupt(at + i as u64, WHAT, "it is longer than it says"));
        }
    }
    if out.len() != plain {
        return Err(corrupt(
            at + i as u64,
            WHAT,
            format_args!("{} bytes instead of {plain}", out.len()),
        ));
    }
    Ok(())
}

/// Appends `n` bytes that stand at `from`, which may reach into what is being appended.
fn refer(out: &mut Vec<u8>, from: usize, n: usize) {
    let end = out.len() + n;
    if from + 1 == out.len() {
        // A run of one byte.
        let byte = out.last().copied().unwrap_or_default();
        out.resize(end, byte);
    }
    while out.len() < end {
        // All from there on is the same piece over and over, so there is twice as much of it each time.
        let have = (out.len() - from).min(end - out.len());
        out.extend_from_within(from..from + have);
    }
}

/// Decompresses piece by piece, holding no more than the window that references reach.
pub struct Unpacker {
    out: Vec<u8>,
    /// How many bytes of `out` have been handed over.
    given: usize,
    made: u64,
    plain: u64,
}

/// How far back a reference reaches.
const WINDOW: usize = 8192;
const PIECE: usize = 256 << 10;
/// The longest instruction: a control byte and 32 literals.
pub const LONGEST: usize = 33;

impl Unpacker {
    pub fn new(plain: u64) -> Unpacker {
        Unpacker {
            out: Vec::with_capacity(PIECE + WINDOW + 264),
            given: 0,
            made: 0,
            plain,
        }
    }

    /// Runs the instructions in `input` that are whole and returns how many bytes they took.
    ///
    /// `at` is the position of `input` in the file; `each` gets the plain bytes.
    pub fn feed(
        &mut self,
        input: &[u8],
        at: u64,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<usize> {
        const WHAT: &str = "a compressed string";
        let mut i = 0;
        while let Some(&control) = input.get(i) {
            let (used, n) = if control < 32 {
                let n = usize::from(control) + 1;
                let Some(literals) = input.get(i + 1..i + 1 + n) else {
                    break;
                };
                self.out.extend_from_slice(literals);
                (1 + n, n)
            } else {
                let long = control >> 5 == 7;
                let Some(rest) = input.get(i + 1..i + 2 + usize::from(long)) else {
                    break;
                };
                let (extra, low) = match rest {
                    [extra, low] => (usize::from(*extra), *low),
                    [low] => (0, *low),
                    _ => break,
                };
                let n = usize::from(control >> 5) + extra + 2;
                let back = (usize::from(control & 31) << 8 | usize::from(low)) + 1;
                let from =
                    self.out.len().checked_sub(back).ok_or_else(|| {
                        corrupt(at + i as u64, WHAT, "a reference before the start")
                    })?;
                refer(&mut self.out, from, n);
                (1 + rest.len(), n)
            };
            i += used;
            self.made += n as u64;
            if self.made > self.plain {
                return Err(corrupt(at + i as u64, WHAT, "it is longer than it says"));
            }
            if self.out.len() >= PIECE + WINDOW {
                self.give(each)?;
                let keep = self.out.len() - WINDOW;
                self.out.drain(..keep);
                self.given = WINDOW;
            }
        }
        Ok(i)
    }

    fn give(&mut self, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        each(self.out.get(self.given..).unwrap_or_default())?;
        self.given = self.out.len();
        Ok(())
    }

    /// The last bytes; an error when the string is shorter than it said.
    pub fn finish(mut self, at: u64, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.give(each)?;
        if self.made == self.plain {
            return Ok(());
        }
        Err(corrupt(
            at,
            "a compressed string",
            format_args!("{} bytes instead of {}", self.made, self.plain),
        ))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    /// Literals, references near and far, of all lengths.
    fn sample() -> (Vec<u8>, Vec<u8>) {
        let (mut packed, mut plain) = (Vec::new(), Vec::<u8>::new());
        let mut seed = 1u32;
        while plain.len() < 1_000_000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let n = (seed >> 24) as usize % 32 + 1;
            packed.push(n as u8 - 1);
            for k in 0..n {
                let byte = (seed >> (k % 24)) as u8;
                packed.push(byte);
                plain.push(byte);
            }
            let back = ((seed >> 8) as usize % 8192).min(plain.len() - 1) + 1;
            let n = (seed >> 3) as usize % 262 + 3;
            let short = (back - 1) as u16;
            if n - 2 < 7 {
                packed.push(((n - 2) as u8) << 5 | (short >> 8) as u8);
            } else {
                packed.push(7 << 5 | (short >> 8) as u8);
                packed.push((n - 9) as u8);
            }
            packed.push(short as u8);
            for _ in 0..n {
                plain.push(plain[plain.len() - back]);
            }
        }
        (packed, plain)
    }

    #[test]
    fn pieces_are_the_whole() {
        let (packed, plain) = sample();
        assert_eq!(decompress(&packed, plain.len() as u64, 0).unwrap(), plain);
        for step in [LONGEST, 100, 64 << 10] {
            let mut unpacker = Unpacker::new(plain.len() as u64);
            let (mut out, mut at) = (Vec::new(), 0);
            while at < packed.len() {
                let end = (at + step).min(packed.len());
                let mut each = |b: &[u8]| {
                    out.extend_from_slice(b);
                    Ok(())
                };
                let used = unpacker.feed(&packed[at..end], 0, &mut each).unwrap();
                assert!(used > 0);
                at += used;
            }
            unpacker
                .finish(0, &mut |b: &[u8]| {
                    out.extend_from_slice(b);
                    Ok(())
                })
                .unwrap();
            assert!(out == plain, "step {step}");
        }
    }
}
