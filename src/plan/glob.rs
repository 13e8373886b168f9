//! Redis-style globs on bytes, as KEYS and SCAN MATCH know them.
//!
//! Compiled once; matching goes back to the last star only, so it is never exponential.

use crate::error::{Error, ErrorKind, Result};

/// A compiled pattern: `*`, `?`, `[a-z]`, `[^a]` and `\` before a byte that is meant literally.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    text: String,
    /// The literal bytes before the first special one: most keys are decided here.
    prefix: Vec<u8>,
    rest: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Byte(u8),
    Any,
    Star,
    Class {
        negated: bool,
        ranges: Vec<(u8, u8)>,
    },
}

impl Glob {
    /// Refuses what KEYS would silently read as something else: an empty pattern, an open class, a last backslash.
    pub fn parse(text: &str) -> Result<Glob> {
        let wrong = |what: &str| Error::new(ErrorKind::Plan, format!("the glob {text:?} {what}"));
        if text.is_empty() {
            return Err(wrong("is empty").hint("leave it out, or write \"*\" for every key"));
        }
        let mut pieces = Vec::new();
        let mut bytes = text.bytes().peekable();
        while let Some(byte) = bytes.next() {
            pieces.push(match byte {
                b'*' => Piece::Star,
                b'?' => Piece::Any,
                b'\\' => Piece::Byte(bytes.next().ok_or_else(|| {
                    wrong("ends with a backslash").hint("write \\\\ for a backslash")
                })?),
                b'[' => {
                    let open = || wrong("has a [ without its ]").hint("write \\[ for a bracket");
                    let negated = bytes.next_if_eq(&b'^').is_some();
                    let mut ranges = Vec::new();
                    loop {
                        let first = bytes.next().ok_or_else(open)?;
                        if first == b']' {
                            break;
                        }
                        let from = if first == b'\\' {
                            bytes.next().ok_or_else(open)?
                        } else {
                            first
                        };
                        let mut to = from;
                        // "a-z" is a range; a hyphen right before the closing bracket is a hyphen.
                        let mut ahead = bytes.clone();
                        if ahead.next() == Some(b'-') && ahead.peek().is_some_and(|b| *b != b']') {
                            bytes.next();
                            let last = bytes.next().ok_or_else(open)?;
                            to = if last == b'\\' {
                                bytes.next().ok_or_else(open)?
                            } else {
                                last
                            };
                        }
                        ranges.push((from.min(to), from.max(to)));
                    }
                    Piece::Class { negated, ranges }
                }
                other => Piece::Byte(other),
            });
        }
        let literal = pieces
            .iter()
            .take_while(|p| matches!(p, Piece::Byte(_)))
            .count();
        let rest = pieces.split_off(literal);
        let prefix = pieces
            .iter()
            .filter_map(|p| {
                if let Piece::Byte(b) = p {
                    Some(*b)
                } else {
                    None
                }
            })
            .collect();
        Ok(Glob {
            text: text.to_string(),
            prefix,
            rest,
        })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn matches(&self, key: &[u8]) -> bool {
        let Some(key) = key.strip_prefix(self.prefix.as_slice()) else {
            return false;
        };
        let (mut at, mut piece) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        loop {
            match (self.rest.get(piece), key.get(at)) {
                (None, None) => return true,
                (Some(Piece::Star), _) => {
                    star = Some((piece, at));
                    piece += 1;
                    continue;
                }
                (Some(p), Some(b)) if p.takes(*b) => {
                    at += 1;
                    piece += 1;
                    continue;
                }
                _ => {}
            }
            match star {
                Some((s, from)) if from < key.len() => {
                    star = Some((s, from + 1));
                    at = from + 1;
                    piece = s + 1;
                }
                _ => return false,
            }
        }
    }
}

impl Piece {
    fn takes(&self, byte: u8) -> bool {
        match self {
            Piece::Byte(b) => *b == byte,
            Piece::Any => true,
            Piece::Star => false,
            Piece::Class { negated, ranges } => {
                ranges
                    .iter()
                    .any(|(from, to)| (*from..=*to).contains(&byte))
                    != *negated
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_in_redis() {
        for (glob, key, yes) in [
            ("*", "", true),
            ("*", "anything", true),
            ("session:*", "session:1", true),
            ("session:*", "sessio", false),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-b]llo", "hbllo", true),
            ("h[b-a]llo", "hbllo", true),
            ("h[a-]llo", "h-llo", true),
            ("[]", "a", false),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("[\\]]", "]", true),
            ("*:a:*:b", "x:a:a:y:b", true),
            ("*:a:*:b", "x:a:a:y:c", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
        ] {
            assert_eq!(
                Glob::parse(glob).unwrap().matches(key.as_bytes()),
                yes,
                "{glob} {key}"
            );
        }
        assert!(Glob::parse("k*").unwrap().matches(b"k\xff\x00"));
    }

    #[test]
    fn many_stars_stay_fast() {
        let glob = Glob::parse(&"a*".repeat(30)).unwrap();
        assert!(!glob.matches(&[b'b'; 10_000]));
        assert!(
            !Glob::parse(&format!("{}b", "*a".repeat(20)))
                .unwrap()
                .matches(&[b'a'; 5_000])
        );
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for glob in ["", "a[b", "a\\", "[a-", "[\\", "[^"] {
            assert!(Glob::parse(glob).is_err(), "{glob}");
        }
    }
}
