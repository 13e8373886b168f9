//! Which keys may have an expiry, so that their commands are not replayed after a lag.

/// Keys that may have an expiry on the target (or fields that have one): a Bloom filter, so some have none.
///
/// While we lag, such a key may expire on the target although the source has renewed it: its commands cannot be replayed.
pub struct MaybeTimed {
    bits: Vec<u64>,
    /// False after a restart: then any key may.
    complete: bool,
}

impl MaybeTimed {
    /// 8 MiB: one key in a hundred is wrongly suspected with 7 million timed keys.
    const WORDS: usize = 1 << 20;

    pub fn new(complete: bool) -> MaybeTimed {
        MaybeTimed {
            bits: Vec::new(),
            complete,
        }
    }

    fn places(key: &[u8]) -> [usize; 2] {
        let hash = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, key);
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bits = MaybeTimed::WORDS * 64;
        [hash as usize % bits, (mixed >> 32) as usize % bits]
    }

    pub fn add(&mut self, key: &[u8]) {
        if !self.complete {
            return;
        }
        if self.bits.is_empty() {
            self.bits = vec![0; MaybeTimed::WORDS];
        }
        for place in MaybeTimed::places(key) {
            if let Some(word) = self.bits.get_mut(place / 64) {
                *word |= 1 << (place % 64);
            }
        }
    }

    pub fn may(&self, key: &[u8]) -> bool {
        !self.complete
            || MaybeTimed::places(key).iter().all(|place| {
                (self.bits.get(place / 64)).is_some_and(|word| word & 1 << (place % 64) != 0)
            })
    }
}
