//! Prefixes that keys change on their way: `rename` of the plan.
//!
//! Invariant: where both are answered, `to_source` undoes `to_target` and the other way round.

use std::borrow::Cow;
use std::fmt;

/// Renamed prefixes; where several fit, the longest counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renames {
    /// The source's prefix and the target's.
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Renames {
    pub(super) fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Renames {
        let pairs = pairs
            .into_iter()
            .map(|(from, to)| (from.into_bytes(), to.into_bytes()));
        Renames {
            pairs: pairs.filter(|(from, to)| from != to).collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The name at the target of one of the source's keys; `None` when another key has a better claim to that name,
    /// so that this one has nowhere to go.
    pub fn to_target<'k>(&self, key: &'k [u8]) -> Option<Cow<'k, [u8]>> {
        let name = self.forth(key);
        (self.pairs.is_empty() || *self.back(&name) == *key).then_some(name)
    }

    /// The source's key that has this name at the target; `None` when none is led there.
    pub fn to_source<'k>(&self, key: &'k [u8]) -> Option<Cow<'k, [u8]>> {
        let name = self.back(key);
        (self.pairs.is_empty() || *self.forth(&name) == *key).then_some(name)
    }

    /// What the keys begin with at the target that begin so at the source; `None` where that is not one prefix, or where
    /// other keys begin so there too.
    pub fn prefix_to_target(&self, prefix: &[u8]) -> Option<Vec<u8>> {
        if prefix.is_empty() || self.pairs.is_empty() {
            return Some(prefix.to_vec());
        }
        let there = self.to_target(prefix)?.into_owned();
        let longer = |word: &[u8], than: &[u8]| word.len() > than.len() && word.starts_with(than);
        let exact = (self.pairs.iter()).all(|(from, to)| {
            (!longer(from, prefix) || to.starts_with(&there))
                && (!longer(to, &there) || from.starts_with(prefix))
        });
        exact.then_some(there)
    }

    /// The prefixes that keys get at the target.
    pub fn given(&self) -> impl Iterator<Item = &[u8]> {
        self.pairs.iter().map(|(_, to)| to.as_slice())
    }

    fn forth<'k>(&self, key: &'k [u8]) -> Cow<'k, [u8]> {
        exchanged(key, self.pairs.iter().map(|(from, to)| (from, to)))
    }

    fn back<'k>(&self, key: &'k [u8]) -> Cow<'k, [u8]> {
        exchanged(key, self.pairs.iter().map(|(from, to)| (to, from)))
    }
}

fn exchanged<'k, 'p>(
    key: &'k [u8],
    pairs: impl Iterator<Item = (&'p Vec<u8>, &'p Vec<u8>)>,
) -> Cow<'k, [u8]> {
    let fitting = pairs.filter(|(old, _)| key.starts_with(old));
    match fitting.max_by_key(|(old, _)| old.len()) {
        Some((old, new)) => {
            let rest = key.get(old.len()..).unwrap_or_default();
            Cow::Owned([new.as_slice(), rest].concat())
        }
        None => Cow::Borrowed(key),
    }
}

impl fmt::Display for Renames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy;
        let shown: Vec<String> = (self.pairs.iter())
            .map(|(from, to)| format!("{}* becomes {}*", text(from), text(to)))
            .collect();
        f.write_str(&shown.join(", "))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn renames(pairs: &[(&str, &str)]) -> Renames {
        Renames::new(pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())))
    }

    fn to(r: &Renames, key: &str) -> String {
        match r.to_target(key.as_bytes()) {
            Some(name) => String::from_utf8(name.into_owned()).unwrap(),
            None => "-".into(),
        }
    }

    fn back(r: &Renames, key: &str) -> String {
        match r.to_source(key.as_bytes()) {
            Some(name) => String::from_utf8(name.into_owned()).unwrap(),
            None => "-".into(),
        }
    }

    #[test]
    fn a_prefix_is_exchanged_and_a_taken_name_is_refused() {
        let r = renames(&[("a:", "b:")]);
        assert_eq!(to(&r, "a:1"), "b:1");
        assert_eq!(to(&r, "c:1"), "c:1");
        // a:1 is led there.
        assert_eq!(to(&r, "b:1"), "-");
        assert_eq!(
            (back(&r, "b:1"), back(&r, "a:1")),
            ("a:1".into(), "-".into())
        );
        assert_eq!(back(&r, "c:1"), "c:1");
    }

    #[test]
    fn prefixes_may_be_chained_nested_added_and_taken_away() {
        let chain = renames(&[("a:", "b:"), ("b:", "c:")]);
        assert_eq!(
            (to(&chain, "a:1"), to(&chain, "b:1")),
            ("b:1".into(), "c:1".into())
        );
        assert_eq!(to(&chain, "c:1"), "-");
        let swap = renames(&[("a:", "b:"), ("b:", "a:")]);
        assert_eq!(
            (to(&swap, "a:1"), to(&swap, "b:1")),
            ("b:1".into(), "a:1".into())
        );
        let all = renames(&[("", "prod:")]);
        assert_eq!(
            (to(&all, "x"), back(&all, "prod:x"), back(&all, "x")),
            ("prod:x".into(), "x".into(), "-".into())
        );
        let none = renames(&[("prod:", "")]);
        assert_eq!(to(&none, "prod:x"), "x");
        let nested = renames(&[("a:", "x:"), ("b:", "x:b:")]);
        assert_eq!(to(&nested, "b:1"), "x:b:1");
        assert_eq!(to(&nested, "a:b:1"), "-");
    }

    #[test]
    fn a_prefix_of_an_index_is_renamed_where_that_is_exact() {
        let r = renames(&[("a:", "b:"), ("c:x:", "d:")]);
        let to = |p: &str| {
            r.prefix_to_target(p.as_bytes())
                .map(|p| String::from_utf8(p).unwrap())
        };
        assert_eq!(to("a:1:").as_deref(), Some("b:1:"));
        assert_eq!(to("z:").as_deref(), Some("z:"));
        assert_eq!(to("").as_deref(), Some(""));
        // Some of its keys go elsewhere; keys of others come there; it has no place.
        assert_eq!((to("c:"), to("a"), to("b:")), (None, None, None));
        assert_eq!(to("d"), None);
        let within = renames(&[("a:x:", "a:y:")]);
        assert_eq!(within.prefix_to_target(b"a:").as_deref(), Some(&b"a:"[..]));
    }
}
