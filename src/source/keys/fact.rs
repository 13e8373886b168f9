//! What is compared of a key, and why two differ.

use crate::digest::KeyDigest;
use crate::rdb::value::ValueKind;
use crate::types::ExpireAt;

/// What is compared of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFact {
    pub digest: KeyDigest,
    pub expire: Option<ExpireAt>,
}

impl KeyFact {
    /// Why two keys differ; `None` when they do not.
    ///
    /// An expiry may be `tolerance_ms` off. `silent`: the source does not replicate what groups have read, so while a
    /// migration runs that may lag.
    pub fn difference(
        &self,
        other: &KeyFact,
        tolerance_ms: i64,
        silent: bool,
    ) -> Option<&'static str> {
        let (a, b) = (&self.digest, &other.digest);
        if a.kind != b.kind {
            return Some("type");
        }
        if a.value != b.value {
            return Some("value");
        }
        let beside = a.beside == b.beside && a.agrees_later(b, silent);
        if beside && a.wide != b.wide {
            return Some("value");
        }
        if !beside {
            return Some(match a.kind {
                ValueKind::Hash => "field expiry",
                ValueKind::Stream => "group state",
                _ => "value",
            });
        }
        match (self.expire, other.expire) {
            (None, None) => None,
            (Some(x), Some(y)) if x.0.abs_diff(y.0) <= tolerance_ms.unsigned_abs() => None,
            _ => Some("expiry"),
        }
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
