//! One request: what goes over the line, what it is called, and the keys of our own that it works on.

use super::load::Lines;
use crate::error::{Error, Result};
use crate::net::{Conn, refusal};
use crate::resp::{self, Reply};
use std::collections::BTreeSet;

/// Before the name of every key that is written.
pub const PREFIX: &str = "keyferry:latency:";
/// Sets of keys of our own.
pub const OWN: usize = 500;
/// Keys that MGET asks for, and commands of a pipeline.
pub const TOGETHER: usize = 10;
/// How long a key of our own lives, should nobody remove it.
pub const LIFE_S: &str = "3600";
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
    /// Several GET in one write.
    Pipeline,
    /// A request of the user's file, by its place in it.
    File(usize),
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
            What::Pipeline => "10 GET in one write",
            What::File(_) => "of the file",
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
    pub fn reads(self) -> Option<&'static str> {
        match self {
            What::Get | What::MGet | What::Pipeline => Some("string"),
            What::HGetAll => Some("hash"),
            What::LRange => Some("list"),
            What::SCard => Some("set"),
            What::ZRange => Some("zset"),
            _ => None,
        }
    }

    /// The kind that stands for a command of the observed traffic.
    pub fn of(command: &str) -> Option<What> {
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
    /// Writes; what ends it by itself is sent when the time of the answer was taken.
    Ending {
        frame: Vec<u8>,
        life: Vec<u8>,
        n: u32,
    },
}

impl Exchange {
    /// Sends it and reads the answers; `Refused` when the server refuses.
    pub async fn run(&self, conn: &mut Conn) -> Result<()> {
        match self {
            Exchange::One(frame) | Exchange::Ending { frame, .. } => {
                ask(conn, frame).await.map(drop)
            }
            Exchange::All(frames, n) => ask_all(conn, frames, *n).await,
            Exchange::Aside { get, lock, fill } => {
                if ask(conn, get).await? == Reply::Nil && ask(conn, lock).await? != Reply::Nil {
                    ask(conn, fill).await?;
                }
                Ok(())
            }
        }
    }
}

async fn ask_all(conn: &mut Conn, frames: &[u8], n: u32) -> Result<()> {
    conn.outgoing().extend_from_slice(frames);
    conn.flush().await?;
    let mut first = Ok(());
    for _ in 0..n {
        if let (Reply::Error(text), true) = (conn.reply().await?, first.is_ok()) {
            first = Err(refusal("a command", &text));
        }
    }
    first
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
    pub key: Vec<u8>,
    pub kind: &'static str,
    pub exchange: Exchange,
}

impl Request {
    pub async fn run(&self, conn: &mut Conn) -> Result<()> {
        self.exchange.run(conn).await
    }

    /// Its bytes, about.
    pub fn len(&self) -> usize {
        match &self.exchange {
            Exchange::One(frame) | Exchange::All(frame, _) => frame.len(),
            Exchange::Aside { get, lock, fill } => get.len() + lock.len() + fill.len(),
            Exchange::Ending { frame, life, .. } => frame.len() + life.len(),
        }
    }

    /// What is to be done when its time was taken.
    pub async fn settle(&self, conn: &mut Conn) -> Result<()> {
        match &self.exchange {
            Exchange::Ending { life, n, .. } => ask_all(conn, life, *n).await,
            _ => Ok(()),
        }
    }
}

/// A request on keys of our own.
pub fn own(what: What, n: usize, variant: usize, value: &[u8]) -> Request {
    let name = |kind: &str| format!("{PREFIX}{{{n}}}:{kind}").into_bytes();
    let mut frame = Vec::new();
    let text = variant.to_string();
    let key = match what {
        What::Get | What::SetEx | What::Exists | What::MGet | What::Pipeline | What::File(_) => {
            name("s")
        }
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
        What::Get | What::File(_) => resp::command(&mut frame, &[b"GET", &key]),
        What::Exists => resp::command(&mut frame, &[b"EXISTS", &key]),
        What::HGetAll => resp::command(&mut frame, &[b"HGETALL", &key]),
        What::LRange => resp::command(&mut frame, &[b"LRANGE", &key, b"0", b"9"]),
        What::SCard => resp::command(&mut frame, &[b"SCARD", &key]),
        What::ZRange => resp::command(&mut frame, &[b"ZREVRANGE", &key, b"0", b"9"]),
        What::SetEx => resp::command(&mut frame, &[b"SET", &key, value, b"EX", LIFE_S.as_bytes()]),
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
        What::Pipeline => {
            for i in 0..TOGETHER {
                resp::command(&mut frame, &[b"GET", &name(&format!("e{i}"))]);
            }
            return Request {
                key,
                kind: what.name(),
                exchange: Exchange::All(frame, TOGETHER as u32),
            };
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
            resp::command(&mut fill, &[b"SET", &key, value, b"EX", life.as_bytes()]);
            return Request {
                key,
                kind: what.name(),
                exchange: Exchange::Aside { get, lock, fill },
            };
        }
    }
    // Should it have ended meanwhile, it is made anew by this.
    let exchange = match what {
        What::Incr | What::HSet | What::ZIncrBy => {
            let mut life = Vec::new();
            resp::command(&mut life, &[b"EXPIRE", &key, LIFE_S.as_bytes()]);
            Exchange::Ending { frame, life, n: 1 }
        }
        _ => Exchange::One(frame),
    };
    Request {
        key,
        kind: what.name(),
        exchange,
    }
}

/// Fills in, or removes, the keys of our own; `names` are those of the user's file.
pub async fn furnish(
    lines: &mut Lines,
    there: bool,
    value: &[u8],
    names: &BTreeSet<String>,
) -> Result<()> {
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
            let more = more.iter().chain(names).map(String::as_str);
            for kind in kinds.iter().copied().chain(more) {
                add(&[b"DEL", &name(kind)]);
            }
        } else {
            for kind in ["s", "e", "aside"]
                .into_iter()
                .chain(more.iter().map(String::as_str))
            {
                add(&[b"SET", &name(kind), value, b"EX", life]);
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
