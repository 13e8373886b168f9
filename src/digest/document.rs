//! The digest of a JSON document that comes in pieces: its values, not its spelling.
//!
//! Members of objects have no order; numbers are what they are worth, so 1.0 is 1; strings are what their escapes stand
//! for. Held at a time: a number, and a few words for each object and array that is open.

use super::lane::{Lane, LaneHasher, mix};

/// A document that nests deeper is taken as the text it is. The module itself stops at 128.
const DEEPEST: usize = 4096;
/// The same for a number that is longer.
const LONGEST: usize = 1024;

/// An object or array that is open.
struct Open {
    is_object: bool,
    acc: u64,
    /// The name whose value comes next.
    name: Option<u64>,
}

/// A string that is open.
struct Text {
    hasher: LaneHasher,
    len: u64,
    escape: Escape,
    /// The first half of a character of two escapes.
    high: Option<u32>,
}

enum Escape {
    None,
    Begun,
    Hex { digits: u8, value: u32 },
}

impl Text {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(high) = self.high.take() {
            self.lone(high);
        }
        self.hasher.write(bytes);
        self.len = self.len.saturating_add(bytes.len() as u64);
    }

    /// Half a character, as UTF-8 would have it.
    fn lone(&mut self, unit: u32) {
        let bytes = [
            0xe0 | (unit >> 12) as u8,
            0x80 | (unit >> 6 & 0x3f) as u8,
            0x80 | (unit & 0x3f) as u8,
        ];
        self.write(&bytes);
    }

    fn unit(&mut self, unit: u32) {
        match (self.high.take(), unit) {
            (Some(high), 0xdc00..0xe000) => {
                let whole = ((high & 0x3ff) << 10 | unit & 0x3ff).wrapping_add(0x10000);
                let whole = char::from_u32(whole).unwrap_or_default();
                self.write(whole.encode_utf8(&mut [0; 4]).as_bytes());
            }
            (high, unit) => {
                if let Some(high) = high {
                    self.lone(high);
                }
                match char::from_u32(unit) {
                    Some(c) => self.write(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    None if unit < 0xdc00 => self.high = Some(unit),
                    None => self.lone(unit),
                }
            }
        }
    }

    fn finish(mut self) -> u64 {
        self.write(&[]);
        mix(self.hasher.finish(self.len) ^ 1)
    }
}

pub(super) struct Document {
    lane: Lane,
    open: Vec<Open>,
    text: Option<Text>,
    /// A number or a word.
    word: Vec<u8>,
    root: Option<u64>,
    /// It is no document, or none that this reads.
    broken: bool,
    raw: LaneHasher,
    len: u64,
}

impl Document {
    pub(super) fn new(lane: Lane) -> Document {
        Document {
            lane,
            open: Vec::new(),
            text: None,
            word: Vec::new(),
            root: None,
            broken: false,
            raw: lane.hasher(),
            len: 0,
        }
    }

    pub(super) fn feed(&mut self, mut part: &[u8]) {
        self.raw.write(part);
        self.len = self.len.saturating_add(part.len() as u64);
        while !part.is_empty() && !self.broken {
            let used = match &mut self.text {
                Some(text) => match in_text(text, part) {
                    Some((used, true)) => {
                        if let Some(text) = self.text.take() {
                            self.string(text.finish());
                        }
                        used
                    }
                    Some((used, false)) => used,
                    None => {
                        self.broken = true;
                        0
                    }
                },
                None => {
                    self.broken = self.outside(part).is_none();
                    1
                }
            };
            part = part.get(used..).unwrap_or_default();
        }
    }

    pub(super) fn finish(mut self) -> u64 {
        let ended = self.end_word().is_some() && self.open.is_empty() && self.text.is_none();
        match self.root {
            Some(root) if ended && !self.broken => mix(root),
            _ => self.raw.finish(self.len),
        }
    }

    /// A byte that is not in a string; `None` where none such can stand.
    fn outside(&mut self, part: &[u8]) -> Option<()> {
        let byte = *part.first()?;
        if matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'E' | b'+' | b'-' | b'.') {
            self.word.push(byte);
            return (self.word.len() <= LONGEST).then_some(());
        }
        self.end_word()?;
        match byte {
            b'{' | b'[' if self.open.len() < DEEPEST => self.open.push(Open {
                is_object: byte == b'{',
                acc: mix(u64::from(byte)),
                name: None,
            }),
            b'}' | b']' => {
                let closed = self.open.pop()?;
                let fits = closed.is_object == (byte == b'}') && closed.name.is_none();
                return self.value(mix(closed.acc)).filter(|()| fits);
            }
            b'"' => {
                self.text = Some(Text {
                    hasher: self.lane.hasher(),
                    len: 0,
                    escape: Escape::None,
                    high: None,
                });
            }
            b',' | b':' | b' ' | b'\t' | b'\r' | b'\n' => {}
            _ => return None,
        }
        Some(())
    }

    fn string(&mut self, h: u64) {
        match self.open.last_mut() {
            Some(open) if open.is_object && open.name.is_none() => open.name = Some(h),
            _ => self.broken = self.value(h).is_none(),
        }
    }

    fn end_word(&mut self) -> Option<()> {
        let word = std::mem::take(&mut self.word);
        match word.as_slice() {
            b"" => Some(()),
            b"true" => self.value(mix(4)),
            b"false" => self.value(mix(5)),
            b"null" => self.value(mix(6)),
            number => self.value(worth(number)?),
        }
    }

    /// A whole value, in whatever holds it.
    fn value(&mut self, h: u64) -> Option<()> {
        match self.open.last_mut() {
            None => match self.root.replace(h) {
                None => Some(()),
                Some(_) => None,
            },
            Some(open) if open.is_object => {
                let name = open.name.take()?;
                open.acc = open.acc.wrapping_add(mix(name ^ mix(h).rotate_left(21)));
                Some(())
            }
            Some(open) => {
                open.acc = mix(open.acc.rotate_left(5) ^ h);
                Some(())
            }
        }
    }
}

/// The hash of what a number is worth: as a whole one where it is, else as a double.
fn worth(number: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(number).ok()?;
    let whole = |n: i128| mix(mix(n as u64) ^ mix((n >> 64) as u64).rotate_left(21) ^ 2);
    let limits = i128::from(i64::MIN)..=i128::from(u64::MAX);
    if let Some(n) = text.parse::<i128>().ok().filter(|n| limits.contains(n)) {
        return Some(whole(n));
    }
    // What is beyond 64 bits is a double for every server.
    let double: f64 = text.parse().ok().filter(|n: &f64| n.is_finite())?;
    let exact = double.fract() == 0.0 && double.abs() < 9e18;
    Some(match exact {
        true => whole(double as i128),
        false => mix(double.to_bits() ^ 3),
    })
}

/// Takes what comes next of a string: how much that was, and whether the string ends with it.
fn in_text(text: &mut Text, part: &[u8]) -> Option<(usize, bool)> {
    let byte = *part.first()?;
    match &mut text.escape {
        Escape::None => {
            let plain = part.iter().position(|b| matches!(b, b'"' | b'\\'));
            match plain.unwrap_or(part.len()) {
                0 if byte == b'"' => return Some((1, true)),
                0 => text.escape = Escape::Begun,
                n => {
                    text.write(part.get(..n)?);
                    return Some((n, false));
                }
            }
        }
        Escape::Begun => {
            text.escape = Escape::None;
            let stands_for = match byte {
                b'"' | b'\\' | b'/' => byte,
                b'b' => 8,
                b'f' => 12,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'u' => {
                    text.escape = Escape::Hex {
                        digits: 0,
                        value: 0,
                    };
                    return Some((1, false));
                }
                _ => return None,
            };
            text.write(&[stands_for]);
        }
        Escape::Hex { digits, value } => {
            *value = *value << 4 | char::from(byte).to_digit(16)?;
            *digits = digits.saturating_add(1);
            if *digits == 4 {
                let unit = *value;
                text.escape = Escape::None;
                text.unit(unit);
            }
        }
    }
    Some((1, false))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn digest(parts: &[&[u8]]) -> u64 {
        let mut document = Document::new(Lane::Crc);
        parts.iter().for_each(|part| document.feed(part));
        document.finish()
    }

    #[test]
    fn a_document_is_its_values_and_not_its_spelling() {
        let same = [
            r#"{"a":1,"b":[true,null,{}],"\u00e9\ud83d\ude00/":-0.5e1,"n":0}"#,
            r#" { "b" : [ true , null , {} ] , "é😀\/" : -5, "n":-0.0, "a" : 1.0 } "#,
        ];
        let wanted = digest(&[same[0].as_bytes()]);
        for text in same {
            assert_eq!(digest(&[text.as_bytes()]), wanted, "{text}");
            for at in 0..text.len() {
                let (a, b) = text.as_bytes().split_at(at);
                assert_eq!(digest(&[a, b]), wanted, "{text} cut at {at}");
            }
        }
        let others = [
            r#"{"a":1}"#,
            r#"{"a":2}"#,
            r#"{"a":"1"}"#,
            r#"{"a":[1]}"#,
            r#"{"a":{"1":1}}"#,
            r#"{"a":1,"b":2}"#,
            r#"{"a":2,"b":1}"#,
            r#"{"a":null}"#,
            r#"{"a":true}"#,
            r#"{"a":"\ud83d"}"#,
            r#"[1,[2,3]]"#,
            r#"[[1,2],3]"#,
            r#"[1,2,3]"#,
            r#"[3,2,1]"#,
            "[]",
            "{}",
            "1",
            "1.5",
            "18446744073709551615",
            "18446744073709551614",
            "9007199254740993",
            "9007199254740992",
            "1e300",
            r#""1""#,
        ];
        let mut seen: Vec<u64> = others.iter().map(|o| digest(&[o.as_bytes()])).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), others.len());
    }

    /// Neither is held: the one would take a frame for each byte, the other all of its digits.
    #[test]
    fn what_nests_too_deep_or_is_no_document_is_its_text() {
        let deep = vec![b'['; 1 << 20];
        let long = vec![b'1'; 1 << 20];
        for text in [
            &deep[..],
            &long,
            b"{\"a\"}",
            b"[1,}",
            b"\"\\x\"",
            b"",
            b"\xff",
        ] {
            let mut document = Document::new(Lane::Sip);
            document.feed(text);
            assert!(document.open.len() <= DEEPEST && document.word.len() <= LONGEST + 1);
            let mut other = Document::new(Lane::Sip);
            other.feed(text);
            other.feed(b" ");
            assert_ne!(document.finish(), other.finish(), "{} bytes", text.len());
        }
    }
}
