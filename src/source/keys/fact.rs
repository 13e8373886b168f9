//! What is compared of a key, and why two differ.

use crate::digest::{KeyDigest, Unreplicated};
use crate::rdb::value::ValueKind;
use crate::types::ExpireAt;

/// What is compared of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFact {
    pub digest: KeyDigest,
    pub expire: Option<ExpireAt>,
}

/// Why keys differ that differ in nothing but what the source does not replicate.
pub const NOT_REPLICATED: &str = "not replicated by the source's version";

impl KeyFact {
    /// Why a key of the target differs from this one of the source; `None` when it does not.
    ///
    /// An expiry may be `tolerance_ms` off; what `may` differ is told as [`NOT_REPLICATED`].
    pub fn difference(
        &self,
        target: &KeyFact,
        tolerance_ms: i64,
        may: Unreplicated,
    ) -> Option<&'static str> {
        let (a, b) = (&self.digest, &target.digest);
        if a.kind != b.kind {
            return Some("type");
        }
        if a.value != b.value {
            return Some("value");
        }
        let beside = match a.kind {
            ValueKind::Hash => "field expiry",
            ValueKind::Stream => "group state",
            _ => "value",
        };
        if a.beside != b.beside {
            return Some(beside);
        }
        if a.wide != b.wide {
            return Some("value");
        }
        let later = a.agrees_later(b);
        if !later && !a.differs_in_unreplicated(b, may) {
            return Some(beside);
        }
        match (self.expire, target.expire) {
            (None, None) => {}
            (Some(x), Some(y)) if x.0.abs_diff(y.0) <= tolerance_ms.unsigned_abs() => {}
            _ => return Some("expiry"),
        }
        (!later).then_some(NOT_REPLICATED)
    }
}

/// What was found under a key's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Gone,
    Here(KeyFact),
    /// Its slot is on its way to another master.
    Elsewhere,
}

impl Found {
    pub fn fact(&self) -> Option<&KeyFact> {
        match self {
            Found::Here(fact) => Some(fact),
            _ => None,
        }
    }

    /// Whether a later reading says the same. An expiry that was told as the time that is left may be so much off, as
    /// the answers took unlike long.
    pub fn stands(&self, later: &Found, off_ms: u64) -> bool {
        match (self, later) {
            (Found::Here(a), Found::Here(b)) => {
                let expires = match (a.expire, b.expire) {
                    (Some(x), Some(y)) => x.0.abs_diff(y.0) <= off_ms,
                    (x, y) => x == y,
                };
                a.digest == b.digest && expires
            }
            _ => self == later,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{self, Width};

    #[test]
    fn what_stands_still_may_be_told_late() {
        let here = |value: &[u8], expire: Option<i64>| {
            Found::Here(KeyFact {
                digest: digest::of_bytes(value, Width::Bits64).expect("a digest"),
                expire: expire.map(ExpireAt),
            })
        };
        let one = here(b"a", Some(10_000));
        assert!(one.stands(&one, 0));
        assert!(!one.stands(&here(b"a", Some(10_003)), 0));
        assert!(one.stands(&here(b"a", Some(10_003)), 100));
        assert!(!one.stands(&here(b"a", Some(10_103)), 100));
        assert!(!one.stands(&here(b"a", None), 100));
        assert!(!one.stands(&here(b"b", Some(10_000)), 100));
        assert!(!one.stands(&Found::Gone, 100));
        assert!(Found::Gone.stands(&Found::Gone, 0));
    }
}
