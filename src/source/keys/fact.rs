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
}
