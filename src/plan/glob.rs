//! Redis-style globs on bytes, as KEYS and SCAN match them.

/// Redis-style glob (util.c stringmatchlen): `*`, `?`, `[a-z]`, `[^a]`, `\` before any of them.
pub fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            None if t == text.len() => return true,
            None => None,
            Some(_) if t == text.len() => None,
            Some(b'?') => Some(p + 1),
            Some(b'[') => class(pattern, p, text[t]),
            Some(b'\\') if p + 1 < pattern.len() => (pattern[p + 1] == text[t]).then_some(p + 2),
            Some(c) => (*c == text[t]).then_some(p + 1),
        };
        match (step, star) {
            (Some(next), _) => {
                p = next;
                t += 1;
            }
            (None, Some((after, from))) if from < text.len() => {
                star = Some((after, from + 1));
                p = after;
                t = from + 1;
            }
            (None, _) => return false,
        }
    }
}

/// Matches `[…]` at `p`; the place after it when the byte is in it.
fn class(pattern: &[u8], p: usize, byte: u8) -> Option<usize> {
    let mut i = p + 1;
    let not = pattern.get(i) == Some(&b'^');
    i += usize::from(not);
    let mut found = false;
    loop {
        match pattern.get(i) {
            None => break,
            Some(b']') => {
                i += 1;
                break;
            }
            Some(b'\\') if i + 1 < pattern.len() => {
                found |= pattern[i + 1] == byte;
                i += 2;
            }
            Some(first) => match (pattern.get(i + 1), pattern.get(i + 2)) {
                (Some(b'-'), Some(last)) if *last != b']' => {
                    found |= (*first.min(last)..=*first.max(last)).contains(&byte);
                    i += 3;
                }
                _ => {
                    found |= *first == byte;
                    i += 1;
                }
            },
        }
    }
    (found != not).then_some(i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_in_redis() {
        for (pattern, text, expected) in [
            ("session:*", "session:1", true),
            ("session:*", "sess:1", false),
            ("*a*b", "xaxxb", true),
            ("h?llo", "hello", true),
            ("h[ae]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("\\*", "*", true),
            ("", "", true),
            ("*", "", true),
            ("a*", "", false),
        ] {
            assert_eq!(
                glob(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }
}
