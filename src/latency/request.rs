//! One request: what goes over the line, and what it is called.

use crate::error::Result;
use crate::net::{Conn, refusal};
use crate::resp::Outcome;

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
                if ask(conn, get).await? == Outcome::Nil && ask(conn, lock).await? != Outcome::Nil {
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
        let outcome = conn.skim().await?;
        conn.answered();
        if let (Outcome::Error(text), true) = (outcome, first.is_ok()) {
            first = Err(refusal("a command", &text));
        }
    }
    first
}

async fn ask(conn: &mut Conn, frame: &[u8]) -> Result<Outcome> {
    conn.outgoing().extend_from_slice(frame);
    conn.flush().await?;
    let outcome = conn.skim().await?;
    conn.answered();
    match outcome {
        Outcome::Error(text) => Err(refusal("a request", &text)),
        outcome => Ok(outcome),
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
