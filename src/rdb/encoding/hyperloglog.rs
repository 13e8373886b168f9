//! HyperLogLog strings: which registers they hold, in either of their two layouts (hyperloglog.c).
//!
//! Sixteen bytes stand before the registers: the letters `HYLL`, the layout (0 dense, 1 sparse), three bytes that are
//! not used, and the count that was computed last, whose topmost bit says that it is out of date.
//! Dense are 16384 registers of 6 bits one after the other, the lowest bits of a byte first.
//! Sparse are runs of registers of one value, by the two topmost bits of a byte: 00 and 6 bits say how many zeros follow,
//! less one; 01 and 14 bits the same of longer runs; a first bit of 1 says a value of 5 bits and a length of 2, each
//! less one. A server makes the dense layout of a sparse one when it grows beyond `hll-sparse-max-bytes`, or holds a
//! value above 32: so two servers may keep the same registers in other bytes.

const MAGIC: &[u8] = b"HYLL";
const HEADER: usize = 16;
const REGISTERS: usize = 16384;
const DENSE: usize = REGISTERS * 6 / 8;
/// No sparse one is longer by far: servers turn it into a dense one.
pub const LONGEST: usize = 64 << 10;

/// Whether a string may be one: cheap, for the many that are not.
pub fn may_be(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC) && (HEADER..=LONGEST).contains(&bytes.len())
}

/// The registers; `None` where the string is no HyperLogLog that servers would take.
pub fn registers(bytes: &[u8]) -> Option<Vec<u8>> {
    if !may_be(bytes) {
        return None;
    }
    let (header, body) = bytes.split_at_checked(HEADER)?;
    match header.get(MAGIC.len())? {
        0 => dense(body),
        1 => sparse(body),
        _ => None,
    }
}

fn dense(body: &[u8]) -> Option<Vec<u8>> {
    if body.len() != DENSE {
        return None;
    }
    let mut registers = Vec::with_capacity(REGISTERS);
    for three in body.chunks_exact(3) {
        let [a, b, c] = *three else { return None };
        let four = u32::from_le_bytes([a, b, c, 0]);
        registers.extend((0..4).map(|n| (four >> (6 * n)) as u8 & 63));
    }
    Some(registers)
}

fn sparse(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut registers = Vec::with_capacity(REGISTERS);
    while let Some((first, rest)) = body.split_first() {
        body = rest;
        let low = usize::from(first & 63);
        let (value, run) = match first >> 6 {
            0 => (0, low + 1),
            1 => {
                let (second, rest) = body.split_first()?;
                body = rest;
                (0, (low << 8 | usize::from(*second)) + 1)
            }
            _ => ((first >> 2 & 31) + 1, usize::from(first & 3) + 1),
        };
        if registers.len() + run > REGISTERS {
            return None;
        }
        registers.resize(registers.len() + run, value);
    }
    (registers.len() == REGISTERS).then_some(registers)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn header(layout: u8, count: u8) -> Vec<u8> {
        let mut bytes = b"HYLL".to_vec();
        bytes.extend([layout, 0, 0, 0, count, 0, 0, 0, 0, 0, 0, 0x80]);
        bytes
    }

    #[test]
    fn both_layouts_hold_the_same_registers() {
        // 1000 zeros, two of 5, one of 32, then zeros.
        let mut sparse = header(1, 3);
        sparse.extend([0x40 | 3, 0xe7, 0x80 | 4 << 2 | 1, 0x80 | 31 << 2, 0x00]);
        let rest = REGISTERS - 1004 - 1;
        sparse.extend([0x40 | (rest >> 8) as u8, rest as u8]);
        let found = registers(&sparse).unwrap();
        assert_eq!(found[999..1004], [0, 5, 5, 32, 0]);
        let mut dense = header(0, 9);
        for four in found.chunks(4) {
            let bits = (0..4).fold(0u32, |bits, n| bits | u32::from(four[n]) << (6 * n));
            dense.extend(&bits.to_le_bytes()[..3]);
        }
        assert_eq!(registers(&dense).as_ref(), Some(&found));
        // One register too few or too many, a run that is cut off, another length, another layout.
        assert_eq!(registers(&sparse[..sparse.len() - 1]), None);
        assert_eq!(registers(&sparse[..sparse.len() - 2]), None);
        assert_eq!(registers(&[&sparse[..], &[0]].concat()), None);
        assert_eq!(registers(&dense[..dense.len() - 1]), None);
        dense[4] = 2;
        assert_eq!(registers(&dense), None);
        assert_eq!(registers(b"HYLL"), None);
    }
}
