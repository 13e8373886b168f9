//! The digest of a module's value: its items, in a form that equal values share whatever server wrote them.
//!
//! Measured on Redis Stack 7.4 and redis 8.2 with its modules. What differs in the items of equal values: a document's
//! spelling; addresses of memory in top-k; the order of
//! suggestions, and what lies behind their payloads; a time series' own name, how its samples are cut
//! into chunks, and what lies behind them. A series' compaction rules are left out: DUMP does not tell them.

use super::document::Document;
use super::lane::{Lane, LaneHasher, mix};
use super::samples;
use crate::rdb::value::{ModuleItem, ModulePieces, ModuleSink};

/// A chunk of a time series that is longer is taken as it is; the module makes none beyond 1.2 MB.
const LONGEST_CHUNK: usize = 4 << 20;

/// The digest of one value, fed in pieces of any size.
pub(super) struct ModuleDigest {
    pieces: ModulePieces,
    items: Items,
    /// What is no sequence of items (Redis 4.0 before its release) is taken as it is.
    broken: bool,
    raw: LaneHasher,
    len: u64,
}

impl ModuleDigest {
    pub(super) fn new(name: &str, lane: Lane) -> ModuleDigest {
        ModuleDigest {
            pieces: ModulePieces::default(),
            items: Items::new(name, lane),
            broken: false,
            raw: lane.hasher(),
            len: 0,
        }
    }

    pub(super) fn feed(&mut self, piece: &[u8]) {
        self.raw.write(piece);
        self.len = self.len.saturating_add(piece.len() as u64);
        self.broken = self.broken || self.pieces.feed(piece, &mut self.items).is_err();
    }

    pub(super) fn finish(self) -> u64 {
        match self.broken || self.pieces.finish().is_err() {
            true => self.raw.finish(self.len),
            false => self.items.finish(),
        }
    }
}

/// How a type's items are taken.
enum Form {
    /// In their order.
    Plain,
    Json(Option<Document>),
    TopK,
    /// So many items for each suggestion, behind their number.
    Suggestions(u64),
    Series(Series),
}

struct Items {
    lane: Lane,
    is_named: [bool; 4],
    form: Form,
    /// How many items there were.
    count: u64,
    acc: u64,
    /// One of several that have no order.
    one: u64,
    text: LaneHasher,
    len: u64,
    /// The last byte of a suggestion's text, which counts only when more comes.
    held: Option<u8>,
}

impl Items {
    fn new(name: &str, lane: Lane) -> Items {
        let named = ["ReJSON-RL", "TopK-TYPE", "trietype0", "TSDB-TYPE"];
        Items {
            lane,
            is_named: named.map(|n| n == name),
            form: Form::Plain,
            count: 0,
            acc: mix(lane.hash(name.as_bytes())),
            one: 0,
            text: lane.hasher(),
            len: 0,
            held: None,
        }
    }

    fn chain(&mut self, h: u64) {
        self.acc = mix(self.acc.rotate_left(5) ^ h);
    }

    /// A whole item.
    fn item(&mut self, h: u64) {
        let at = self.count;
        self.count = self.count.saturating_add(1);
        match &self.form {
            Form::Suggestions(each) if at > 0 => {
                let last = at.is_multiple_of(*each);
                self.one = mix(self.one.rotate_left(5) ^ h);
                if last {
                    self.acc = self.acc.wrapping_add(mix(std::mem::take(&mut self.one)));
                }
            }
            _ => self.chain(h),
        }
    }

    fn finish(self) -> u64 {
        let series = match self.form {
            Form::Series(series) => series.finish(),
            _ => 0,
        };
        mix(self.acc ^ self.one ^ series)
    }
}

impl ModuleSink for Items {
    fn version(&mut self, version: u16) {
        self.form = match (self.is_named, version) {
            // As text; version 0 is the tree, and what later ones hold is not known.
            ([true, ..], 2 | 3) => Form::Json(None),
            ([_, true, ..], 0) => Form::TopK,
            ([_, _, true, _], 0) => Form::Suggestions(2),
            ([_, _, true, _], 1) => Form::Suggestions(3),
            ([.., true], 7 | 8) => Form::Series(Series::new(self.lane, version)),
            _ => Form::Plain,
        };
    }

    fn number(&mut self, number: &ModuleItem<'_>) {
        let h = hash_of(number);
        match &mut self.form {
            Form::Series(series) => series.number(number, h),
            _ => self.item(h),
        }
    }

    fn text(&mut self, part: &[u8], last: bool) {
        match &mut self.form {
            Form::Series(series) => return series.text(part, last),
            Form::Json(document) if self.count == 0 => {
                let lane = self.lane;
                let reading = document.get_or_insert_with(|| Document::new(lane));
                reading.feed(part);
                if last && let Some(document) = document.take() {
                    let h = document.finish();
                    self.item(h);
                }
                return;
            }
            // The heap as it lies in memory: 24 bytes each, of which 8 are an address and 4 are nothing.
            Form::TopK if self.count == 5 => {
                let at = self.len % 24;
                let masked: Vec<u8> = (at..)
                    .zip(part)
                    .map(|(at, byte)| match at % 24 {
                        8..16 | 20.. => 0,
                        _ => *byte,
                    })
                    .collect();
                self.text.write(&masked);
            }
            // Saved with the byte behind it: behind a payload lies whatever was in that memory.
            Form::Suggestions(_) => {
                if let Some((end, rest)) = part.split_last() {
                    if let Some(held) = self.held.replace(*end) {
                        self.text.write(&[held]);
                    }
                    self.text.write(rest);
                }
            }
            _ => self.text.write(part),
        }
        self.len = self.len.saturating_add(part.len() as u64);
        if last {
            self.held = None;
            let text = std::mem::replace(&mut self.text, self.lane.hasher());
            let h = text.finish(std::mem::take(&mut self.len));
            self.item(h);
        }
    }
}

/// Whole numbers are numbers, with a sign or without; others are their bits.
fn hash_of(number: &ModuleItem<'_>) -> u64 {
    match number {
        ModuleItem::Signed(n) => mix(*n as u64),
        ModuleItem::Unsigned(n) => mix(*n),
        ModuleItem::Float(n) => mix(f64::from(*n).to_bits()),
        ModuleItem::Double(n) => mix(n.to_bits()),
        ModuleItem::Text(_) => 0,
    }
}

/// What stands next in a time series (RedisTimeSeries, encoding versions 7 and 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Name,
    /// Its settings, and its newest sample and the number of them, which follow from the samples.
    Head(u8),
    /// Whether the name of the series that feeds it comes next.
    HasSource,
    Source,
    /// What is ignored as a duplicate.
    Ignored(u8),
    Labels,
    Label {
        left: u64,
    },
    Rules,
    /// Rules, and then chunks: the first texts are the rules' names.
    Chunks {
        rules: u64,
    },
}

struct Series {
    lane: Lane,
    version: u16,
    next: Next,
    acc: u64,
    labels: u64,
    /// Of the label whose value comes next.
    label: u64,
    samples: u64,
    compressed: bool,
    /// The last numbers before a text.
    numbers: Vec<u64>,
    bytes: Vec<u8>,
    text: LaneHasher,
    len: u64,
}

/// How many numbers stand before the samples of a compressed chunk.
const COMPRESSED: usize = 10;

impl Series {
    fn new(lane: Lane, version: u16) -> Series {
        Series {
            lane,
            version,
            next: Next::Name,
            acc: 0,
            labels: 0,
            label: 0,
            samples: 0,
            compressed: false,
            numbers: Vec::new(),
            bytes: Vec::new(),
            text: lane.hasher(),
            len: 0,
        }
    }

    fn number(&mut self, number: &ModuleItem<'_>, h: u64) {
        let n = match number {
            ModuleItem::Unsigned(n) => *n,
            ModuleItem::Signed(n) => *n as u64,
            ModuleItem::Double(n) => n.to_bits(),
            _ => 0,
        };
        let ignored = match self.version {
            7 => Next::Labels,
            _ => Next::Ignored(0),
        };
        self.next = match self.next {
            Next::Head(at) => {
                // Retention, chunk size, kind of chunks; newest time and value, how many; policy for duplicates.
                if matches!(at, 0..=2 | 6) {
                    self.acc = mix(self.acc.rotate_left(5) ^ h);
                }
                if at == 2 {
                    self.compressed = n & 2 != 0;
                }
                if at == 6 {
                    Next::HasSource
                } else {
                    Next::Head(at.saturating_add(1))
                }
            }
            Next::HasSource if n != 0 => Next::Source,
            Next::HasSource => ignored,
            Next::Ignored(at) => {
                self.acc = mix(self.acc.rotate_left(5) ^ h);
                if at == 0 {
                    Next::Ignored(1)
                } else {
                    Next::Labels
                }
            }
            Next::Labels if n == 0 => Next::Rules,
            Next::Labels => Next::Label {
                left: n.saturating_mul(2),
            },
            Next::Rules => Next::Chunks { rules: n },
            Next::Chunks { rules } => {
                if self.numbers.len() == COMPRESSED {
                    self.numbers.remove(0);
                }
                self.numbers.push(n);
                Next::Chunks { rules }
            }
            other => other,
        };
    }

    fn text(&mut self, part: &[u8], last: bool) {
        self.text.write(part);
        self.len = self.len.saturating_add(part.len() as u64);
        let is_chunk = self.next == Next::Chunks { rules: 0 };
        if is_chunk && self.bytes.len().saturating_add(part.len()) <= LONGEST_CHUNK {
            self.bytes.extend_from_slice(part);
        }
        if !last {
            return;
        }
        let text = std::mem::replace(&mut self.text, self.lane.hasher());
        let len = std::mem::take(&mut self.len);
        let h = text.finish(len);
        self.next = match self.next {
            Next::Name => Next::Head(0),
            Next::Source if self.version == 7 => Next::Labels,
            Next::Source => Next::Ignored(0),
            Next::Label { left } => {
                if left.is_multiple_of(2) {
                    self.label = mix(h);
                } else {
                    let one = mix(self.label ^ mix(h).rotate_left(21));
                    self.labels = self.labels.wrapping_add(one);
                }
                match left {
                    0 | 1 => Next::Rules,
                    _ => Next::Label {
                        left: left.saturating_sub(1),
                    },
                }
            }
            Next::Chunks { rules: 0 } => {
                self.chunk(h, len);
                Next::Chunks { rules: 0 }
            }
            Next::Chunks { rules } => Next::Chunks {
                rules: rules.saturating_sub(1),
            },
            other => other,
        };
    }

    fn chunk(&mut self, h: u64, len: u64) {
        let bytes = std::mem::take(&mut self.bytes);
        let numbers = std::mem::take(&mut self.numbers);
        let mut acc = self.samples;
        let mut each = |at: u64, value: u64| {
            acc = mix(acc.rotate_left(5) ^ mix(at) ^ mix(value).rotate_left(21));
        };
        let whole = bytes.len() as u64 == len;
        let read = match self.compressed {
            true => samples::compressed(&numbers, &bytes, &mut each),
            false => samples::plain(&numbers, &bytes, &mut each),
        };
        self.samples = match whole && read.is_some() {
            true => acc,
            false => mix(self.samples.rotate_left(5) ^ h),
        };
    }

    fn finish(self) -> u64 {
        mix(self.acc ^ mix(self.labels).rotate_left(13) ^ mix(self.samples).rotate_left(29))
    }
}
