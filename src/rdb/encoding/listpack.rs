//! Listpacks (listpack.c): the elements, and writing new ones.

use crate::error::Result;
use crate::rdb::cursor::Reader;

/// An element of a listpack or ziplist.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Packed<'a> {
    Bytes(&'a [u8]),
    Int(i64),
}

impl<'a> Packed<'a> {
    /// The element as a string; integers are written into `digits`.
    pub fn text<'b>(&self, digits: &'b mut [u8; 20]) -> &'b [u8]
    where
        'a: 'b,
    {
        match self {
            Packed::Bytes(b) => b,
            Packed::Int(n) => crate::resp::decimal(*n, digits),
        }
    }

    /// The element as an integer, if it is one.
    pub fn int(&self) -> Option<i64> {
        match self {
            Packed::Int(n) => Some(*n),
            Packed::Bytes(b) => std::str::from_utf8(b).ok()?.parse().ok(),
        }
    }
}

const WHAT: &str = "a listpack";

/// Walks a listpack's elements.
pub struct Listpack<'a> {
    r: Reader<'a>,
    left: Option<u16>,
    ended: bool,
    /// An element whose length is one at which versions disagree about the back-length was met.
    pub disputed: bool,
}

impl<'a> Listpack<'a> {
    pub fn new(bytes: &'a [u8], at: u64) -> Result<Listpack<'a>> {
        let mut r = Reader::new(bytes, at);
        r.total(WHAT)?;
        let count = r.u16(WHAT)?;
        Ok(Listpack {
            r,
            left: (count != u16::MAX).then_some(count),
            ended: false,
            disputed: false,
        })
    }

    /// The next element, `None` at the end.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Packed<'a>>> {
        if self.ended {
            return Ok(None);
        }
        let r = &mut self.r;
        let before = r.remaining();
        let first = r.u8(WHAT)?;
        if first == 0xff {
            if self.left.is_some_and(|n| n != 0) {
                return Err(r.fail(WHAT, "it ends before its last element"));
            }
            r.finish(WHAT)?;
            self.ended = true;
            return Ok(None);
        }
        if let Some(left) = &mut self.left {
            *left = left
                .checked_sub(1)
                .ok_or_else(|| r.fail(WHAT, "it has more elements than it says"))?;
        }
        let b = |n: u8| u64::from(n);
        let element = match first {
            0..=0x7f => Packed::Int(i64::from(first)),
            0x80..=0xbf => Packed::Bytes(r.take(usize::from(first & 0x3f), WHAT)?),
            0xc0..=0xdf => {
                let n = (b(first & 0x1f) << 8 | b(r.u8(WHAT)?)) as i64;
                Packed::Int(if n >= 1 << 12 { n - (1 << 13) } else { n })
            }
            0xe0..=0xef => {
                let n = usize::from(first & 0x0f) << 8 | usize::from(r.u8(WHAT)?);
                Packed::Bytes(r.take(n, WHAT)?)
            }
            0xf0 => {
                let n = r.u32(WHAT)?;
                Packed::Bytes(r.take(n as usize, WHAT)?)
            }
            0xf1 => Packed::Int(i64::from(i16::from_le_bytes(r.array(WHAT)?))),
            0xf2 => {
                let [x, y, z] = r.array(WHAT)?;
                Packed::Int(i64::from(i32::from_le_bytes([0, x, y, z]) >> 8))
            }
            0xf3 => Packed::Int(i64::from(i32::from_le_bytes(r.array(WHAT)?))),
            0xf4 => Packed::Int(r.i64(WHAT)?),
            other => return Err(r.fail(WHAT, format_args!("0x{other:02x} begins no element"))),
        };
        let size = before - r.remaining();
        let mut back = back_length_size(size);
        // Versions disagree at these sizes by one byte; the first byte of the longer form is 0, of the shorter not.
        if matches!(size, 16383 | 2_097_151 | 268_435_455) {
            self.disputed = true;
            let mut look = r.clone();
            if look.u8(WHAT)? == 0 {
                back += 1;
            }
        }
        r.take(back, WHAT)?;
        Ok(Some(element))
    }

    /// The next element where there must be one.
    pub fn need(&mut self) -> Result<Packed<'a>> {
        let at = self.r.clone();
        self.next()?
            .ok_or_else(|| at.fail(WHAT, "an element is missing"))
    }
}

fn back_length_size(size: usize) -> usize {
    match size {
        0..=127 => 1,
        128..=16383 => 2,
        16384..=2_097_151 => 3,
        2_097_152..=268_435_455 => 4,
        _ => 5,
    }
}

/// Builds a listpack.
pub struct Builder {
    bytes: Vec<u8>,
    count: usize,
}

impl Default for Builder {
    fn default() -> Self {
        Builder {
            bytes: vec![0; 6],
            count: 0,
        }
    }
}

impl Builder {
    /// Appends an element; false (nothing appended) at a size at which versions disagree about its back-length.
    pub fn push(&mut self, element: Packed<'_>) -> bool {
        let start = self.bytes.len();
        match element {
            Packed::Bytes(b) => {
                match b.len() {
                    n @ 0..=63 => self.bytes.push(0x80 | n as u8),
                    n @ 64..=4095 => self
                        .bytes
                        .extend_from_slice(&[0xe0 | (n >> 8) as u8, n as u8]),
                    n => {
                        self.bytes.push(0xf0);
                        self.bytes.extend_from_slice(&(n as u32).to_le_bytes());
                    }
                }
                self.bytes.extend_from_slice(b);
            }
            Packed::Int(n @ 0..=127) => self.bytes.push(n as u8),
            Packed::Int(n) => {
                self.bytes.push(0xf4);
                self.bytes.extend_from_slice(&n.to_le_bytes());
            }
        }
        let size = self.bytes.len() - start;
        if matches!(size, 16383 | 2_097_151 | 268_435_455) {
            self.bytes.truncate(start);
            return false;
        }
        let groups = back_length_size(size);
        for i in (0..groups).rev() {
            let seven = (size >> (7 * i)) as u8 & 0x7f;
            self.bytes
                .push(if i + 1 == groups { seven } else { seven | 0x80 });
        }
        self.count += 1;
        true
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.push(0xff);
        let total = (self.bytes.len() as u32).to_le_bytes();
        let count = u16::try_from(self.count).unwrap_or(u16::MAX).to_le_bytes();
        let head = [total.as_slice(), &count].concat();
        if let Some(place) = self.bytes.get_mut(..6) {
            place.copy_from_slice(&head);
        }
        self.bytes
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_built_reads_back(items in prop::collection::vec(prop_oneof![
            any::<i64>().prop_map(Ok), prop::collection::vec(any::<u8>(), 0..5000).prop_map(Err)], 0..40)) {
            let mut builder = Builder::default();
            for item in &items {
                let packed = match item { Ok(n) => Packed::Int(*n), Err(b) => Packed::Bytes(b) };
                prop_assert!(builder.push(packed));
            }
            let bytes = builder.finish();
            let mut lp = Listpack::new(&bytes, 0).unwrap();
            for item in &items {
                let expected = match item { Ok(n) => Packed::Int(*n), Err(b) => Packed::Bytes(b) };
                prop_assert_eq!(lp.next().unwrap(), Some(expected));
            }
            prop_assert_eq!(lp.next().unwrap(), None);
        }

        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(mut lp) = Listpack::new(&bytes, 0) { while let Ok(Some(_)) = lp.next() {} }
        }
    }
}
