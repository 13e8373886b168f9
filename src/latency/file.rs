//! A workload of the user's own: a JSON file with requests, their weights, and places for keys and values.
//!
//! Invariant: a command that writes names only keys under our own prefix; anything else is refused when it is read.

use super::own::PREFIX;
use crate::command::{self, Kind};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::resp;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::Path;

/// Commands that only read; whether a command writes is told by the table of the stream's commands.
const READS: [&str; 57] = [
    "BITCOUNT",
    "BITPOS",
    "DUMP",
    "ECHO",
    "EXISTS",
    "EXPIRETIME",
    "GEODIST",
    "GEOHASH",
    "GEOPOS",
    "GEOSEARCH",
    "GET",
    "GETBIT",
    "GETRANGE",
    "HEXISTS",
    "HGET",
    "HGETALL",
    "HKEYS",
    "HLEN",
    "HMGET",
    "HRANDFIELD",
    "HSTRLEN",
    "HTTL",
    "HVALS",
    "LCS",
    "LINDEX",
    "LLEN",
    "LPOS",
    "LRANGE",
    "MGET",
    "PING",
    "PTTL",
    "SCARD",
    "SDIFF",
    "SINTER",
    "SINTERCARD",
    "SISMEMBER",
    "SMEMBERS",
    "SMISMEMBER",
    "SRANDMEMBER",
    "STRLEN",
    "SUNION",
    "TTL",
    "TYPE",
    "XLEN",
    "XRANGE",
    "XREVRANGE",
    "ZCARD",
    "ZCOUNT",
    "ZLEXCOUNT",
    "ZMSCORE",
    "ZRANGE",
    "ZRANGEBYSCORE",
    "ZRANK",
    "ZREVRANGE",
    "ZREVRANGEBYSCORE",
    "ZREVRANK",
    "ZSCORE",
];
/// As TYPE answers.
const TYPES: [&str; 6] = ["string", "list", "set", "zset", "hash", "stream"];
/// The longest value that is made up.
const LONGEST: usize = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    requests: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    command: Words,
    #[serde(default = "one")]
    weight: f64,
}

fn one() -> f64 {
    1.0
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    /// Split at blanks.
    Line(String),
    List(Vec<String>),
}

/// A request with places that are filled in anew each time.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    pub name: &'static str,
    pub weight: f64,
    pub writes: bool,
    words: Vec<Vec<Piece>>,
    /// Which word tells the slot.
    key: usize,
}

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Text(Vec<u8>),
    /// `{key}`, `{key:hash}`: one of the source's keys.
    Key(Option<String>),
    /// `{own:NAME}`: one of our own.
    Own(String),
    /// `{value:N}`: so many bytes.
    Value(usize),
    /// `{number:N}`: 0 to N - 1.
    Number(u64),
}

/// What fills the places of one request.
pub trait Fill {
    /// One of the source's keys, popular ones more often.
    fn key(&mut self, kind: Option<&str>) -> Vec<u8>;
    /// 0 to `n` - 1.
    fn number(&mut self, n: u64) -> u64;
}

/// Reads a file; the error names the request.
pub fn read(path: &Path) -> Result<Vec<Template>> {
    let text = std::fs::read_to_string(path).context(ErrorKind::Plan, || {
        format!("read the workload {}", path.display())
    })?;
    parse(&text).map_err(|e| e.context(format!("the workload {}", path.display())))
}

fn wrong(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Plan, text.into())
}

fn parse(text: &str) -> Result<Vec<Template>> {
    let document: Document = serde_json::from_str(text)
        .map_err(|e| wrong("it is not a list of requests").cause(e).hint(
            r#"write {"requests": [{"command": "GET {key:string}", "weight": 9}, …]}; docs/report.md has an example"#,
        ))?;
    if document.requests.is_empty() {
        return Err(wrong("it has no requests"));
    }
    let each = document.requests.into_iter().enumerate();
    each.map(|(i, entry)| template(entry).map_err(|e| e.context(format!("requests[{i}]"))))
        .collect()
}

fn template(entry: Entry) -> Result<Template> {
    if !(entry.weight.is_finite() && entry.weight > 0.0) {
        return Err(wrong("its weight must be above 0"));
    }
    let words: Vec<String> = match entry.command {
        Words::Line(line) => line.split_whitespace().map(str::to_owned).collect(),
        Words::List(list) => list,
    };
    let name = words
        .first()
        .map(|n| n.to_ascii_uppercase())
        .unwrap_or_default();
    let words: Vec<Vec<Piece>> = words.iter().map(|w| pieces(w)).collect::<Result<_>>()?;
    if let Some(read) = READS.iter().find(|r| **r == name) {
        let key = words.iter().position(|w| w.iter().any(Piece::is_key));
        return Ok(Template {
            name: read,
            weight: entry.weight,
            writes: false,
            key: key.unwrap_or(1.min(words.len() - 1)),
            words,
        });
    }
    let elsewhere = name == "MIGRATE"
        || name == "COPY"
            && words
                .iter()
                .any(|w| sample(w, 1).eq_ignore_ascii_case(b"DB"));
    let spec = command::lookup(name.as_bytes())
        .filter(|s| matches!(s.kind, Kind::Write | Kind::Split(_) | Kind::Eval) && !elsewhere)
        .ok_or_else(|| {
            wrong(format!("{name:?} cannot be measured"))
                .hint("name a command that reads keys, or one that writes keys under {own:NAME}")
        })?;
    // As it would be sent, to learn where its keys are; their number may be one that is made up.
    let mut first = None;
    for least in [true, false] {
        let number = |n: u64| if least { 1 } else { n - 1 };
        let plain: Vec<Vec<u8>> = (words.iter())
            .map(|w| sample(w, w.iter().find_map(Piece::most).map_or(1, number)))
            .collect();
        let plain: Vec<&[u8]> = plain.iter().map(Vec::as_slice).collect();
        let (mut frame, mut args) = (Vec::new(), Vec::new());
        resp::command(&mut frame, &plain);
        resp::parse_command(&frame, &mut args)?;
        let mut keys = Vec::new();
        let sent = command::Command {
            raw: &frame,
            args: &args,
        };
        spec.keys(&sent, &mut keys)?;
        for key in &keys {
            if !matches!(
                words.get(key.index).map(Vec::as_slice),
                Some([Piece::Own(_)])
            ) {
                let text = plain.get(key.index).copied().unwrap_or_default();
                return Err(wrong(format!(
                    "{name} writes, but its key {:?} is not one of our own",
                    String::from_utf8_lossy(text)
                ))
                .hint("write {own:NAME} for the key, and nothing else in that word: it lies under a prefix that is removed afterwards"));
            }
        }
        first = first.or(keys.first().map(|k| k.index));
    }
    let Some(first) = first else {
        return Err(wrong(format!("{name} names no key")));
    };
    Ok(Template {
        name: spec.name,
        weight: entry.weight,
        writes: true,
        words,
        key: first,
    })
}

impl Piece {
    fn most(&self) -> Option<u64> {
        match self {
            Piece::Number(n) => Some(*n),
            _ => None,
        }
    }

    fn is_key(&self) -> bool {
        matches!(self, Piece::Key(_) | Piece::Own(_))
    }
}

fn pieces(word: &str) -> Result<Vec<Piece>> {
    let (mut out, mut rest) = (Vec::new(), word);
    while let Some(open) = rest.find('{') {
        let (before, from) = rest.split_at(open);
        if !before.is_empty() {
            out.push(Piece::Text(before.into()));
        }
        let Some(close) = from.find('}') else {
            return Err(wrong(format!("{word:?} has a {{ without its }}")));
        };
        let (place, after) = from.split_at(close + 1);
        let inner = place.trim_matches(['{', '}']);
        let (what, of) = inner.split_once(':').unwrap_or((inner, ""));
        let number = of.parse::<u64>().ok().filter(|n| *n > 0);
        out.push(match (what, number) {
            ("key", None) if of.is_empty() || TYPES.contains(&of) => Piece::Key((!of.is_empty()).then(|| of.to_owned())),
            ("own", None) if !of.is_empty() => Piece::Own(of.to_owned()),
            ("value", Some(n)) if n <= LONGEST as u64 => Piece::Value(n as usize),
            ("number", Some(n)) => Piece::Number(n),
            _ => {
                return Err(wrong(format!("{place} in {word:?} is no place")).hint(
                    "places are {key}, {key:TYPE}, {own:NAME}, {value:BYTES} (up to 1 MiB), {number:N}",
                ));
            }
        });
        rest = after;
    }
    if !rest.is_empty() || out.is_empty() {
        out.push(Piece::Text(rest.into()));
    }
    if out.len() > 1 && out.iter().skip(1).any(Piece::is_key) {
        return Err(wrong(format!(
            "{word:?}: a key stands at the beginning of its word"
        )));
    }
    Ok(out)
}

/// A word as an example.
fn sample(word: &[Piece], number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in word {
        match piece {
            Piece::Text(text) => out.extend_from_slice(text),
            Piece::Key(_) => out.extend_from_slice(b"{key}"),
            Piece::Own(name) => out.extend_from_slice(own(name, 0).as_slice()),
            Piece::Value(_) => out.push(b'v'),
            Piece::Number(_) => out.extend(number.to_string().bytes()),
        }
    }
    out
}

fn own(name: &str, n: u64) -> Vec<u8> {
    format!("{PREFIX}{{{n}}}:file:{name}").into_bytes()
}

impl Template {
    /// The types of the source's keys that it asks for; `None` for any.
    pub fn wants(&self) -> impl Iterator<Item = Option<&str>> {
        self.words.iter().flatten().filter_map(|p| match p {
            Piece::Key(kind) => Some(kind.as_deref()),
            _ => None,
        })
    }

    /// The request, with its key and the keys of our own that it names. `n` tells which of our own keys.
    pub fn frame(&self, n: u64, fill: &mut impl Fill) -> (Vec<u8>, Vec<u8>, Vec<Vec<u8>>) {
        let (mut words, mut owned) = (Vec::with_capacity(self.words.len()), Vec::new());
        for word in &self.words {
            let mut out = Vec::new();
            for piece in word {
                match piece {
                    Piece::Text(text) => out.extend_from_slice(text),
                    Piece::Key(kind) => out.extend(fill.key(kind.as_deref())),
                    Piece::Own(name) => {
                        out.extend(own(name, n));
                        // With whatever is behind it.
                        owned.push(words.len());
                    }
                    Piece::Value(bytes) => out.resize(out.len() + bytes, b'v'),
                    Piece::Number(most) => out.extend(fill.number(*most).to_string().bytes()),
                }
            }
            words.push(out);
        }
        let mut frame = Vec::new();
        let slices: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        resp::command(&mut frame, &slices);
        let owned = owned
            .into_iter()
            .filter_map(|i| words.get(i).cloned())
            .collect();
        (
            frame,
            words.get(self.key).cloned().unwrap_or_default(),
            owned,
        )
    }
}

/// The names of our own keys that a file writes, to be removed afterwards.
pub fn names(templates: &[Template]) -> BTreeSet<String> {
    let pieces = templates.iter().flat_map(|t| t.words.iter().flatten());
    pieces
        .filter_map(|p| match p {
            Piece::Own(name) => Some(format!("file:{name}")),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Ones;
    impl Fill for Ones {
        fn key(&mut self, kind: Option<&str>) -> Vec<u8> {
            format!("a-{}", kind.unwrap_or("key")).into_bytes()
        }
        fn number(&mut self, n: u64) -> u64 {
            n - 1
        }
    }

    fn of(requests: &str) -> Result<Vec<Template>> {
        parse(&format!(r#"{{"requests": [{requests}]}}"#))
    }

    #[test]
    fn places_are_filled_in() {
        let list = of(r#"{"command": "get {key:string}", "weight": 9},
            {"command": ["HSET", "{own:cart}", "item {number:50}", "{value:3}"]},
            {"command": "EVAL return 2 {own:a} {own:b}"}"#)
        .unwrap();
        let (frame, key, owned) = list[0].frame(4, &mut Ones);
        assert_eq!(frame, b"*2\r\n$3\r\nget\r\n$8\r\na-string\r\n");
        assert_eq!(
            (key, owned.len(), list[0].writes),
            (b"a-string".to_vec(), 0, false)
        );
        let (frame, key, owned) = list[1].frame(4, &mut Ones);
        let text = String::from_utf8(frame).unwrap();
        assert!(text.ends_with("$7\r\nitem 49\r\n$3\r\nvvv\r\n"), "{text}");
        assert_eq!(key, b"keyferry:latency:{4}:file:cart");
        assert_eq!(owned, [key]);
        assert_eq!(names(&list).len(), 3);
        assert_eq!(list[2].name, "EVAL");
    }

    #[test]
    fn what_could_harm_is_refused_by_its_place() {
        for (request, says) in [
            (r#"{"command": "SET {key} x"}"#, "{own:NAME}"),
            (r#"{"command": "SET counter x"}"#, "SET writes"),
            (r#"{"command": "MSET {own:a} 1 user:1 2"}"#, "user:1"),
            (r#"{"command": "FLUSHALL"}"#, "cannot be measured"),
            (
                r#"{"command": "CONFIG SET maxmemory 1"}"#,
                "cannot be measured",
            ),
            (r#"{"command": "EVAL return 0"}"#, "names no key"),
            (
                r#"{"command": ["MSETEX", "{number:3}", "{own:a}", "1", "user:1", "2"]}"#,
                "user:1",
            ),
            (
                r#"{"command": "SET {own:a}{number:9} x"}"#,
                "nothing else in that word",
            ),
            (
                r#"{"command": "COPY {own:a} {own:b} db 5"}"#,
                "cannot be measured",
            ),
            (r#"{"command": "HGETALL {key:hsah}"}"#, "is no place"),
            (r#"{"command": "GET {id:4}"}"#, "is no place"),
            (r#"{"command": "GET {key"}"#, "without its }"),
            (r#"{"command": "GET a:{key}"}"#, "at the beginning"),
            (
                r#"{"command": "SET {own:a} {value:99999999}"}"#,
                "is no place",
            ),
            (r#"{"command": "GET {key}", "weight": 0}"#, "weight"),
            (r#"{"command": []}"#, "cannot be measured"),
        ] {
            let e = of(request).unwrap_err();
            let text = format!("{} {}", e.chain(), e.remedy());
            assert!(
                text.contains("requests[0]") && text.contains(says),
                "{request}: {text}"
            );
        }
        assert!(parse("{}").is_err() && of("").is_err());
    }
}
