//! The hashes that bytes and numbers go through.

use siphasher::sip::SipHasher24;
use std::hash::Hasher;

/// A bijection without linear structure (the finalizer of SplitMix64).
pub(super) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Which hash an element's bytes go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Crc,
    Sip,
}

impl Lane {
    pub(super) fn hash(self, bytes: &[u8]) -> u64 {
        let mut hasher = self.hasher();
        hasher.write(bytes);
        hasher.finish(bytes.len() as u64)
    }

    pub(super) fn hasher(self) -> LaneHasher {
        match self {
            Lane::Crc => LaneHasher::Crc(crc64fast::Digest::new()),
            Lane::Sip => LaneHasher::Sip(SipHasher24::new()),
        }
    }
}

pub(super) enum LaneHasher {
    Crc(crc64fast::Digest),
    Sip(SipHasher24),
}

impl LaneHasher {
    pub(super) fn write(&mut self, bytes: &[u8]) {
        match self {
            LaneHasher::Crc(digest) => digest.write(bytes),
            LaneHasher::Sip(hasher) => hasher.write(bytes),
        }
    }

    pub(super) fn finish(&self, len: u64) -> u64 {
        let hash = match self {
            LaneHasher::Crc(digest) => digest.sum64(),
            LaneHasher::Sip(hasher) => hasher.finish(),
        };
        // The length keeps apart what leading zeros would not.
        hash ^ len.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}
