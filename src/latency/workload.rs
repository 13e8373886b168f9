//! What is asked of a server while it is measured: requests as an application would send them.
//!
//! Real keys are only read. What is written (only with `allow_writes`) lies under a prefix of its own, ends by itself,
//! and is removed afterwards.

use crate::error::{Error, Result};
use crate::latency::load::{Lines, Rng};
use crate::net::{Conn, refusal};
use crate::plan::Renames;
use crate::resp::{self, Reply};
use crate::source::mix::Mix;
use std::collections::BTreeMap;

/// Before the name of every key that is written.
pub const PREFIX: &str = "keyferry:latency:";
/// Sets of keys of our own.
const OWN: usize = 500;
/// Keys that MGET asks for.
const TOGETHER: usize = 10;
/// How long a key of our own lives, should nobody remove it.
const LIFE_S: &str = "3600";
/// How uneven the keys' popularity is (Zipf).
const SKEW: f64 = 0.99;
/// A lock of a session: taken when it is free, as session providers do.
const LOCK: &[u8] =
    b"if redis.call('set', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 else return 0 end";

/// One kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    Get,
    HGetAll,
    LRange,
    SCard,
    ZRange,
    Exists,
    MGet,
    SetEx,
    Incr,
    HSet,
    Expire,
    ZIncrBy,
    EvalLock,
    CacheAside,
}

impl What {
    pub fn name(self) -> &'static str {
        match self {
            What::Get => "GET",
            What::HGetAll => "HGETALL",
            What::LRange => "LRANGE",
            What::SCard => "SCARD",
            What::ZRange => "ZRANGE",
            What::Exists => "EXISTS",
            What::MGet => "MGET",
            What::SetEx => "SET EX",
            What::Incr => "INCR",
            What::HSet => "HSET",
            What::Expire => "EXPIRE",
            What::ZIncrBy => "ZINCRBY",
            What::EvalLock => "EVAL (lock)",
            What::CacheAside => "GET, on a miss SET NX and SET EX",
        }
    }

    pub fn writes(self) -> bool {
        matches!(
            self,
            What::SetEx
                | What::Incr
                | What::HSet
                | What::Expire
                | What::ZIncrBy
                | What::EvalLock
                | What::CacheAside
        )
    }

    /// The type of the keys that it reads; `None` where any will do.
    fn reads(self) -> Option<&'static str> {
        match self {
            What::Get | What::MGet => Some("string"),
            What::HGetAll => Some("hash"),
            What::LRange => Some("list"),
            What::SCard => Some("set"),
            What::ZRange => Some("zset"),
            _ => None,
        }
    }

    /// The kind that stands for a command of the observed traffic.
    fn of(command: &str) -> Option<What> {
        Some(match command {
            "get" | "getrange" | "strlen" | "getex" => What::Get,
            "mget" => What::MGet,
            "hget" | "hmget" | "hgetall" | "hlen" | "hexists" | "hkeys" | "hvals" => What::HGetAll,
            "lrange" | "lindex" | "llen" => What::LRange,
            "scard" | "sismember" | "smembers" | "smismember" | "srandmember" => What::SCard,
            "zrange" | "zrevrange" | "zrangebyscore" | "zscore" | "zcard" | "zrank" => What::ZRange,
            "exists" | "ttl" | "pttl" | "type" => What::Exists,
            "set" | "setex" | "psetex" | "getset" => What::SetEx,
            "incr" | "incrby" | "decr" | "decrby" => What::Incr,
            "hset" | "hmset" | "hincrby" | "hsetnx" => What::HSet,
            "expire" | "pexpire" | "expireat" | "pexpireat" => What::Expire,
            "zadd" | "zincrby" => What::ZIncrBy,
            "eval" | "evalsha" | "fcall" => What::EvalLock,
            _ => return None,
        })
    }
}

/// What goes over the line for one request.
#[derive(Debug, Clone)]
pub enum Exchange {
    One(Vec<u8>),
    /// Several commands in one write.
    All(Vec<u8>, u32),
    /// Reads; when nothing is there, takes a lock and fills it in.
    Aside {
        get: Vec<u8>,
        lock: Vec<u8>,
        fill: Vec<u8>,
    },
}

impl Exchange {
    /// Sends it and reads the answers; `Refused` when the server refuses.
    pub async fn run(&self, conn: &mut Conn) -> Result<()> {
        match self {
            Exchange::One(frame) => ask(conn, frame).await.map(drop),
            Exchange::All(frames, n) => {
                conn.outgoing().extend_from_slice(frames);
                conn.flush().await?;
                let mut first = Ok(());
                for _ in 0..*n {
                    if let (Reply::Error(text), true) = (conn.reply().await?, first.is_ok()) {
                        first = Err(refusal("a command", &text));
                    }
                }
                first
            }
            Exchange::Aside { get, lock, fill } => {
                if ask(conn, get).await? == Reply::Nil && ask(conn, lock).await? != Reply::Nil {
                    ask(conn, fill).await?;
                }
                Ok(())
            }
        }
    }
}

async fn ask(conn: &mut Conn, frame: &[u8]) -> Result<Reply> {
    conn.outgoing().extend_from_slice(frame);
    conn.flush().await?;
    match conn.reply().await? {
        Reply::Error(text) => Err(refusal("a request", &text)),
        reply => Ok(reply),
    }
}

/// A request, ready to be sent.
pub struct Request {
    key: Vec<u8>,
    what: What,
    exchange: Exchange,
}

impl Request {
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    pub fn kind(&self) -> &'static str {
        self.what.name()
    }

    pub async fn run(&self, conn: &mut Conn) -> Result<()> {
        self.exchange.run(conn).await
    }
}

/// Keys of the source that may be read, by their types, as they are called on one side.
#[derive(Debug, Clone, Default)]
pub struct RealKeys(pub BTreeMap<String, Vec<Vec<u8>>>);

impl RealKeys {
    /// As the target calls them.
    pub fn renamed(&self, renames: &Renames) -> RealKeys {
        let names = |keys: &Vec<Vec<u8>>| {
            let named = keys.iter().filter_map(|k| renames.to_target(k));
            named.map(|k| k.into_owned()).collect()
        };
        RealKeys(
            self.0
                .iter()
                .map(|(kind, keys)| (kind.clone(), names(keys)))
                .collect(),
        )
    }

    pub fn count(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}

/// Which requests, in which proportion.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    pub name: String,
    pub parts: Vec<(What, f64)>,
    /// The share of the observed traffic that is left out, with the reason.
    pub left_out: Vec<(String, f64)>,
}

impl Recipe {
    /// One of the named workloads; with real keys alone when nothing may be written.
    pub fn named(name: &str, mix: &Mix, writes: bool) -> Option<Recipe> {
        let mut left_out = Vec::new();
        let parts = match name {
            "observed" => observed(mix, writes, &mut left_out),
            "session-store" => vec![
                (What::Get, 50.0),
                (What::HGetAll, 30.0),
                (What::SetEx, 10.0),
                (What::Expire, 5.0),
                (What::EvalLock, 5.0),
            ],
            "cache-aside" if writes => vec![(What::CacheAside, 100.0)],
            "cache-aside" => vec![(What::Get, 100.0)],
            "entity-lookup" => vec![(What::MGet, 90.0), (What::HGetAll, 10.0)],
            "counter" => vec![
                (What::Incr, 50.0),
                (What::ZIncrBy, 25.0),
                (What::ZRange, 25.0),
            ],
            _ => return None,
        };
        let parts: Vec<(What, f64)> = parts
            .into_iter()
            .filter(|(what, _)| writes || !what.writes())
            .collect();
        (!parts.is_empty()).then(|| Recipe {
            name: name.to_owned(),
            parts,
            left_out,
        })
    }
}

/// What the source's own traffic comes to.
fn observed(mix: &Mix, writes: bool, left_out: &mut Vec<(String, f64)>) -> Vec<(What, f64)> {
    let mut parts: BTreeMap<What, f64> = BTreeMap::new();
    let all = mix.total().max(f64::MIN_POSITIVE);
    for (command, rate) in &mix.per_s {
        match What::of(command) {
            Some(what) if writes || !what.writes() => *parts.entry(what).or_default() += rate,
            Some(_) => left_out.push((format!("{command}: writes are not allowed"), rate / all)),
            None => left_out.push((format!("{command}: not imitated"), rate / all)),
        }
    }
    parts.into_iter().collect()
}

/// A recipe with the keys of one side.
pub struct Workload {
    /// Each kind with the sum of the weights up to it, and the keys it reads.
    parts: Vec<(f64, What, Vec<Vec<u8>>)>,
    popularity: BTreeMap<usize, Vec<f64>>,
    /// MGET asks for one key only, as several may lie in several slots.
    apart: bool,
}

impl Workload {
    /// `None` when a part has no keys to read.
    pub fn new(recipe: &Recipe, real: &RealKeys, writes: bool, apart: bool) -> Option<Workload> {
        let (mut parts, mut sum) = (Vec::new(), 0.0);
        let mut popularity = BTreeMap::new();
        for (what, weight) in &recipe.parts {
            let keys = match (what.writes(), what.reads()) {
                (true, _) => Vec::new(),
                (false, Some(kind)) => real.0.get(kind).cloned().unwrap_or_default(),
                (false, None) => real.0.values().flatten().cloned().collect(),
            };
            if !what.writes() && keys.is_empty() && !writes {
                // Nothing to read, and nothing may be put there.
                continue;
            }
            sum += weight;
            popularity
                .entry(keys.len().max(1))
                .or_insert_with_key(|n| zipf(*n));
            parts.push((sum, *what, keys));
        }
        popularity.entry(OWN).or_insert_with_key(|n| zipf(*n));
        (!parts.is_empty()).then_some(Workload {
            parts,
            popularity,
            apart,
        })
    }

    fn popular(&self, n: usize, rng: &mut Rng) -> usize {
        let at = rng.unit();
        let Some(sums) = self.popularity.get(&n) else {
            return rng.below(n);
        };
        sums.partition_point(|s| *s < at).min(n.saturating_sub(1))
    }

    /// The next request.
    pub fn next(&self, rng: &mut Rng) -> Request {
        let all = self.parts.last().map_or(0.0, |(sum, ..)| *sum);
        let at = rng.unit() * all;
        let place = self.parts.partition_point(|(sum, ..)| *sum <= at);
        let Some((_, what, keys)) = self.parts.get(place).or(self.parts.last()) else {
            return own(What::Get, 0, 0);
        };
        if keys.is_empty() {
            // Some of the keys of cache-aside are not there.
            let n = match what {
                What::CacheAside => self.popular(OWN, rng) + OWN * usize::from(rng.unit() < 0.05),
                _ => self.popular(OWN, rng),
            };
            return own(*what, n, rng.below(1000));
        }
        let key = |rng: &mut Rng| {
            let place = self.popular(keys.len(), rng);
            keys.get(place).cloned().unwrap_or_default()
        };
        let first = key(rng);
        let mut frame = Vec::new();
        match what {
            What::HGetAll => resp::command(&mut frame, &[b"HGETALL", &first]),
            What::LRange => resp::command(&mut frame, &[b"LRANGE", &first, b"0", b"9"]),
            What::SCard => resp::command(&mut frame, &[b"SCARD", &first]),
            What::ZRange => resp::command(&mut frame, &[b"ZRANGE", &first, b"0", b"9"]),
            What::Exists => resp::command(&mut frame, &[b"EXISTS", &first]),
            What::MGet => {
                let mut names = vec![first.clone()];
                names.extend((1..TOGETHER).filter(|_| !self.apart).map(|_| key(rng)));
                let mut words: Vec<&[u8]> = vec![b"MGET"];
                words.extend(names.iter().map(Vec::as_slice));
                resp::command(&mut frame, &words);
            }
            _ => resp::command(&mut frame, &[b"GET", &first]),
        }
        Request {
            key: first,
            what: *what,
            exchange: Exchange::One(frame),
        }
    }
}

/// A request on keys of our own.
fn own(what: What, n: usize, variant: usize) -> Request {
    let name = |kind: &str| format!("{PREFIX}{{{n}}}:{kind}").into_bytes();
    let mut frame = Vec::new();
    let text = variant.to_string();
    let value = [b'v'; 200];
    let key = match what {
        What::Get | What::SetEx | What::Exists | What::MGet => name("s"),
        What::HGetAll | What::HSet => name("h"),
        What::ZRange | What::ZIncrBy => name("z"),
        What::LRange => name("l"),
        What::SCard => name("m"),
        What::Incr => name("c"),
        What::Expire => name("e"),
        What::EvalLock => name("lock"),
        What::CacheAside => name("aside"),
    };
    match what {
        What::Get => resp::command(&mut frame, &[b"GET", &key]),
        What::Exists => resp::command(&mut frame, &[b"EXISTS", &key]),
        What::HGetAll => resp::command(&mut frame, &[b"HGETALL", &key]),
        What::LRange => resp::command(&mut frame, &[b"LRANGE", &key, b"0", b"9"]),
        What::SCard => resp::command(&mut frame, &[b"SCARD", &key]),
        What::ZRange => resp::command(&mut frame, &[b"ZREVRANGE", &key, b"0", b"9"]),
        What::SetEx => resp::command(
            &mut frame,
            &[b"SET", &key, &value, b"EX", LIFE_S.as_bytes()],
        ),
        What::Incr => resp::command(&mut frame, &[b"INCR", &key]),
        What::HSet => {
            let field = format!("f{}", variant % 10);
            resp::command(
                &mut frame,
                &[b"HSET", &key, field.as_bytes(), text.as_bytes()],
            );
        }
        What::Expire => resp::command(&mut frame, &[b"EXPIRE", &key, LIFE_S.as_bytes()]),
        What::ZIncrBy => {
            let member = format!("m{}", variant % 50);
            resp::command(&mut frame, &[b"ZINCRBY", &key, b"1", member.as_bytes()]);
        }
        What::EvalLock => {
            resp::command(
                &mut frame,
                &[b"EVAL", LOCK, b"1", &key, text.as_bytes(), b"50"],
            );
        }
        What::MGet => {
            let names: Vec<Vec<u8>> = (0..TOGETHER).map(|i| name(&format!("e{i}"))).collect();
            let mut words: Vec<&[u8]> = vec![b"MGET"];
            words.extend(names.iter().map(Vec::as_slice));
            resp::command(&mut frame, &words);
        }
        What::CacheAside => {
            let guard = name("aside-lock");
            let (mut get, mut lock, mut fill) = (Vec::new(), Vec::new(), Vec::new());
            resp::command(&mut get, &[b"GET", &key]);
            resp::command(&mut lock, &[b"SET", &guard, b"1", b"NX", b"PX", b"50"]);
            // Soon gone again, so that there are always misses.
            let life = match n < OWN {
                true => LIFE_S,
                false => "1",
            };
            resp::command(&mut fill, &[b"SET", &key, &value, b"EX", life.as_bytes()]);
            return Request {
                key,
                what,
                exchange: Exchange::Aside { get, lock, fill },
            };
        }
    }
    Request {
        key,
        what,
        exchange: Exchange::One(frame),
    }
}

/// Fills in, or removes, the keys of our own.
pub async fn furnish(lines: &mut Lines, there: bool) -> Result<()> {
    // Cache-aside makes some beyond, which end by themselves soon.
    let last = if there { OWN } else { 2 * OWN };
    for n in 0..last {
        let name = |kind: &str| format!("{PREFIX}{{{n}}}:{kind}").into_bytes();
        let (mut frames, mut count) = (Vec::new(), 0);
        let mut add = |words: &[&[u8]]| {
            resp::command(&mut frames, words);
            count += 1;
        };
        let life = LIFE_S.as_bytes();
        let kinds = [
            "s",
            "h",
            "z",
            "l",
            "m",
            "c",
            "e",
            "lock",
            "aside",
            "aside-lock",
        ];
        let more: Vec<String> = (0..TOGETHER).map(|i| format!("e{i}")).collect();
        if !there {
            for kind in kinds.iter().copied().chain(more.iter().map(String::as_str)) {
                add(&[b"DEL", &name(kind)]);
            }
        } else {
            let value = [b'v'; 200];
            for kind in ["s", "e", "aside"]
                .into_iter()
                .chain(more.iter().map(String::as_str))
            {
                add(&[b"SET", &name(kind), &value, b"EX", life]);
            }
            add(&[b"SET", &name("c"), b"0", b"EX", life]);
            for i in 0..10 {
                add(&[
                    b"HSET",
                    &name("h"),
                    format!("f{i}").as_bytes(),
                    b"some text of a session",
                ]);
                add(&[b"RPUSH", &name("l"), b"an item of a list"]);
                add(&[b"SADD", &name("m"), format!("m{i}").as_bytes()]);
            }
            for i in 0..50 {
                add(&[
                    b"ZADD",
                    &name("z"),
                    i.to_string().as_bytes(),
                    format!("m{i}").as_bytes(),
                ]);
            }
            for kind in ["h", "l", "m", "z"] {
                add(&[b"EXPIRE", &name(kind), life]);
            }
        }
        let exchange = Exchange::All(frames, count);
        let filled = lines.exchange(&name("s"), &exchange).await;
        filled.map_err(|e: Error| e.context("write the keys that are measured".to_string()))?;
    }
    Ok(())
}

/// Sums of a Zipf distribution over `n` keys, the most popular first.
fn zipf(n: usize) -> Vec<f64> {
    let weights: Vec<f64> = (1..=n).map(|i| 1.0 / (i as f64).powf(SKEW)).collect();
    let all: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let step = |w: f64| {
        sum += w / all;
        sum
    };
    weights.into_iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix(parts: &[(&str, f64)]) -> Mix {
        Mix {
            per_s: parts
                .iter()
                .map(|(name, n)| (name.to_string(), *n))
                .collect(),
            ..Mix::default()
        }
    }

    #[test]
    fn what_was_observed_becomes_requests_and_the_rest_is_told() {
        let mix = mix(&[("get", 60.0), ("set", 30.0), ("object|freq", 10.0)]);
        let read = Recipe::named("observed", &mix, false).unwrap();
        assert_eq!(read.parts, [(What::Get, 60.0)]);
        assert_eq!(read.left_out.len(), 2);
        let all = Recipe::named("observed", &mix, true).unwrap();
        assert_eq!(all.parts.len(), 2);
        assert!(Recipe::named("observed", &Mix::default(), true).is_none());
        // Without writes, a counter can only be looked at.
        assert_eq!(
            Recipe::named("counter", &mix, false).unwrap().parts,
            [(What::ZRange, 25.0)]
        );
    }

    #[test]
    fn requests_keep_to_real_keys_or_to_the_prefix() {
        let real = RealKeys([("string".to_string(), vec![b"a".to_vec(), b"b".to_vec()])].into());
        let recipe = Recipe::named("session-store", &Mix::default(), true).unwrap();
        let workload = Workload::new(&recipe, &real, true, true).unwrap();
        let mut rng = Rng::new(7);
        for _ in 0..2_000 {
            let request = workload.next(&mut rng);
            let own = request.key().starts_with(PREFIX.as_bytes());
            assert!(own || !request.what.writes(), "{}", request.kind());
        }
    }

    #[test]
    fn the_first_keys_are_the_popular_ones() {
        let sums = zipf(1000);
        assert!((sums[999] - 1.0).abs() < 1e-9);
        assert!(sums[9] > 0.35, "{}", sums[9]);
    }
}
