//! Keys of our own: what they are called, requests on them, and how they come and go.

use super::lines::Lines;
use super::request::{Exchange, Request, What};
use crate::error::{Error, Result};
use crate::resp;
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
