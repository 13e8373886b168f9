//! A module's value read as its bytes come, in pieces of any size: the twin of `ModuleValue` for what is not held.
//!
//! Held at a time: a number's bytes, and the 8 KiB window of a compressed string.

use super::module::{ModuleItem, module_version};
use crate::error::Result;
use crate::rdb::cursor::{Reader, corrupt};
use crate::rdb::encoding::{Len, len_size, length, length_or_encoding, lzf, string};

const WHAT: &str = "a module's value";

/// Takes a module's items; strings come unpacked, in parts, the last of them with `last`.
pub trait ModuleSink {
    fn version(&mut self, version: u16);
    fn number(&mut self, number: &ModuleItem<'_>);
    fn text(&mut self, part: &[u8], last: bool);
}

/// What comes next.
enum State {
    Id,
    Opcode,
    Number(u64),
    TextHead,
    Text {
        left: u64,
    },
    Packed {
        left: u64,
        unpacker: Box<lzf::Unpacker>,
    },
    End,
}

/// Reads the body of type 7, from the module's id to opcode 0.
pub struct ModulePieces {
    state: State,
    /// The beginning of what is not whole yet.
    begun: Vec<u8>,
    at: u64,
}

impl Default for ModulePieces {
    fn default() -> ModulePieces {
        ModulePieces {
            state: State::Id,
            begun: Vec::new(),
            at: 0,
        }
    }
}

impl ModulePieces {
    pub fn feed(&mut self, mut piece: &[u8], sink: &mut impl ModuleSink) -> Result<()> {
        while !piece.is_empty() {
            let used = match &mut self.state {
                State::Text { left } => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX);
                    let text = piece.get(..n.min(piece.len())).unwrap_or_default();
                    *left -= text.len() as u64;
                    sink.text(text, *left == 0);
                    if *left == 0 {
                        self.state = State::Opcode;
                    }
                    text.len()
                }
                State::Packed { .. } => self.packed(piece, sink)?,
                _ => {
                    let byte = piece.first().copied().unwrap_or_default();
                    self.begun.push(byte);
                    if self.is_whole()? {
                        let whole = std::mem::take(&mut self.begun);
                        self.state = self.next(&whole, sink)?;
                    }
                    1
                }
            };
            self.at = self.at.saturating_add(used as u64);
            piece = piece.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    /// An error when the value is not whole.
    pub fn finish(&self) -> Result<()> {
        match self.state {
            State::End => Ok(()),
            _ => Err(corrupt(self.at, WHAT, "it ends in the middle")),
        }
    }

    /// Whether what has begun is all there.
    fn is_whole(&self) -> Result<bool> {
        let first = self.begun.first().copied().unwrap_or_default();
        let length_at = |i: usize| match self.begun.get(i) {
            None => Ok(i + 1),
            Some(first) => (len_size(*first).map(|n| i + n))
                .ok_or_else(|| corrupt(self.at, WHAT, "no length begins so")),
        };
        let wanted = match self.state {
            State::Number(3) => 4,
            State::Number(4) => 8,
            State::TextHead if first >> 6 == 3 => match first & 0x3f {
                0 => 2,
                1 => 3,
                2 => 5,
                // The packed length, and the plain one.
                _ => match length_at(1)? {
                    end if end <= self.begun.len() => length_at(end)?,
                    end => end,
                },
            },
            _ => length_at(0)?,
        };
        Ok(self.begun.len() >= wanted)
    }

    /// Takes what is whole, and says what comes behind it.
    fn next(&mut self, whole: &[u8], sink: &mut impl ModuleSink) -> Result<State> {
        let mut r = Reader::new(whole, self.at);
        let number = match self.state {
            State::Id => {
                sink.version(module_version(length(&mut r, WHAT)?));
                return Ok(State::Opcode);
            }
            State::Opcode => {
                return match length(&mut r, WHAT)? {
                    0 => Ok(State::End),
                    opcode @ 1..=4 => Ok(State::Number(opcode)),
                    5 => Ok(State::TextHead),
                    other => {
                        let why = format_args!("{other} is no opcode of a module's value");
                        Err(r.fail(WHAT, why))
                    }
                };
            }
            State::TextHead => return text_head(whole, self.at, sink),
            State::Number(1) => ModuleItem::Signed(length(&mut r, WHAT)? as i64),
            State::Number(2) => ModuleItem::Unsigned(length(&mut r, WHAT)?),
            State::Number(3) => ModuleItem::Float(f32::from_le_bytes(r.array(WHAT)?)),
            State::Number(_) => ModuleItem::Double(f64::from_le_bytes(r.array(WHAT)?)),
            _ => return Err(r.fail(WHAT, "it goes on behind its end")),
        };
        sink.number(&number);
        Ok(State::Opcode)
    }

    /// Unpacks what is whole of `piece`; what is left of an instruction waits for more.
    fn packed(&mut self, piece: &[u8], sink: &mut impl ModuleSink) -> Result<usize> {
        let State::Packed { left, unpacker } = &mut self.state else {
            return Ok(0);
        };
        let mut each = |part: &[u8]| {
            sink.text(part, false);
            Ok(())
        };
        // Behind what has begun comes no more than an instruction needs, so that nothing large is copied.
        let most = match self.begun.is_empty() {
            true => piece.len(),
            false => lzf::LONGEST,
        };
        let most = most.min(usize::try_from(*left).unwrap_or(usize::MAX));
        let taken = piece.get(..most.min(piece.len())).unwrap_or_default();
        *left -= taken.len() as u64;
        if self.begun.is_empty() {
            let used = unpacker.feed(taken, self.at, &mut each)?;
            (self.begun).extend_from_slice(taken.get(used..).unwrap_or_default());
        } else {
            self.begun.extend_from_slice(taken);
            let used = unpacker.feed(&self.begun, self.at, &mut each)?;
            self.begun.drain(..used);
        }
        if *left == 0 {
            if !self.begun.is_empty() {
                return Err(corrupt(self.at, WHAT, "a string ends inside a run"));
            }
            if let State::Packed { unpacker, .. } =
                std::mem::replace(&mut self.state, State::Opcode)
            {
                unpacker.finish(self.at, &mut each)?;
            }
            sink.text(&[], true);
        }
        Ok(taken.len())
    }
}

/// What a string's head announces; a number that stands for its digits is the string.
fn text_head(whole: &[u8], at: u64, sink: &mut impl ModuleSink) -> Result<State> {
    let mut r = Reader::new(whole, at);
    Ok(match length_or_encoding(&mut r)? {
        Len::Plain(0) => {
            sink.text(&[], true);
            State::Opcode
        }
        Len::Plain(left) => State::Text { left },
        Len::Encoded(3) => {
            let left = length(&mut r, WHAT)?;
            let unpacker = Box::new(lzf::Unpacker::new(length(&mut r, WHAT)?));
            if left == 0 {
                return Err(r.fail(WHAT, "a compressed string without bytes"));
            }
            State::Packed { left, unpacker }
        }
        Len::Encoded(_) => {
            sink.text(&string(&mut Reader::new(whole, at), WHAT)?, true);
            State::Opcode
        }
    })
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::rdb::encoding::{put_length, put_string};
    use crate::rdb::value::ModuleValue;
    use proptest::prelude::*;
    use std::borrow::Cow;

    #[derive(Default)]
    struct Seen {
        items: Vec<ModuleItem<'static>>,
        text: Vec<u8>,
    }

    impl ModuleSink for Seen {
        fn version(&mut self, _: u16) {}

        fn number(&mut self, number: &ModuleItem<'_>) {
            self.items.push(match number {
                ModuleItem::Signed(n) => ModuleItem::Signed(*n),
                ModuleItem::Unsigned(n) => ModuleItem::Unsigned(*n),
                ModuleItem::Float(n) => ModuleItem::Float(*n),
                ModuleItem::Double(n) => ModuleItem::Double(*n),
                ModuleItem::Text(_) => panic!("text is no number"),
            });
        }

        fn text(&mut self, part: &[u8], last: bool) {
            self.text.extend_from_slice(part);
            if last {
                let text = std::mem::take(&mut self.text);
                self.items.push(ModuleItem::Text(Cow::Owned(text)));
            }
        }
    }

    /// `n` times `byte` as LZF writes it, behind two literals.
    fn packed(byte: u8, n: u8) -> Vec<u8> {
        let mut out = vec![0xc3];
        put_length(&mut out, 6);
        put_length(&mut out, 3 + 9 + u64::from(n));
        out.extend_from_slice(&[1, b'a', byte, 0xe0, n, 0]);
        // A literal more, so that an instruction is cut by pieces.
        let at = 1;
        out[at] += 2;
        out.extend_from_slice(&[0, b'z']);
        out
    }

    fn item() -> impl Strategy<Value = Vec<u8>> {
        let number = (1u8..3, any::<u64>()).prop_map(|(opcode, n)| {
            let mut out = vec![opcode];
            put_length(&mut out, n);
            out
        });
        let double = any::<[u8; 8]>().prop_map(|b| [&[4u8][..], &b].concat());
        let float = any::<[u8; 4]>().prop_map(|b| [&[3u8][..], &b].concat());
        let text = prop::collection::vec(any::<u8>(), 0..400).prop_map(|t| {
            let mut out = vec![5];
            put_string(&mut out, &t);
            out
        });
        let run =
            (any::<u8>(), any::<u8>()).prop_map(|(b, n)| [&[5u8][..], &packed(b, n)].concat());
        let small = any::<i16>().prop_map(|n| [&[5u8, 0xc1][..], &n.to_le_bytes()].concat());
        prop_oneof![number, double, float, text, run, small]
    }

    proptest! {
        /// Whatever the pieces, the items are those of the value held whole.
        #[test]
        fn pieces_of_any_size_give_the_same_items(
            items in prop::collection::vec(item(), 0..12),
            sizes in prop::collection::vec(1usize..70, 1..20),
        ) {
            let mut body = Vec::new();
            put_length(&mut body, 0x1234_5678_9abc_def0);
            body.extend(items.concat());
            body.push(0);
            let mut whole = ModuleValue::new(&body, 0).expect("a value");
            let mut wanted = Vec::new();
            while let Some(item) = whole.item().expect("an item") {
                wanted.push(item);
            }
            let (mut seen, mut pieces, mut rest) = (Seen::default(), ModulePieces::default(), &body[..]);
            for size in sizes.iter().cycle() {
                let (piece, behind) = rest.split_at((*size).min(rest.len()));
                pieces.feed(piece, &mut seen).expect("a piece");
                rest = behind;
                if rest.is_empty() {
                    break;
                }
                prop_assert!(pieces.finish().is_err());
            }
            pieces.finish().expect("the end");
            // Bits, as a number may be none.
            prop_assert_eq!(format!("{:?}", seen.items), format!("{wanted:?}"));
        }
    }
}
