//! Which writes the traffic consists of: every kind that a replication stream can carry.

use super::super::dataset::{LIBRARY, now_ms};
use super::super::rng::Rng;
use super::super::side::Side;
use super::super::wire::Command;
use super::{Mix, Options};
use std::collections::HashSet;
use std::io;

/// The list that a blocked consumer waits for.
pub const QUEUE: &str = "t:queue";

const STREAMS: u64 = 20;
const COUNTERS: u64 = 50;
pub const SCRIPT: &str =
    "redis.call('INCRBY', KEYS[1], ARGV[1]) redis.call('SADD', KEYS[2], ARGV[2]) return 1";
/// SHA-1 of `SCRIPT`.
pub const SCRIPT_SHA: &str = "7b15c45b146041fbf772cdef0526177588128cfa";
const NEWER: &[&str] = &[
    "hpexpire",
    "hsetex",
    "hgetex",
    "hgetdel",
    "copy",
    "getdel",
    "getex",
    "lmove",
    "geosearchstore",
    "xautoclaim",
    "fcall",
    "lmpop",
    "zmpop",
    "sintercard",
    "zdiffstore",
    "zrangestore",
    "spublish",
    "delifeq",
    "msetex",
];

const FIELD_EXPIRY: &[&str] = &["hpexpire", "hsetex"];

/// One write: commands for one node; the last reply is the one that counts.
pub struct Write {
    pub kind: &'static str,
    pub commands: Vec<Command>,
    pub counter: Option<(String, i64)>,
}

/// Makes what the writes rely on: stream groups, the function library.
pub fn prepare(side: &mut Side) -> io::Result<()> {
    let createconsumer = side.knows("xautoclaim");
    for n in 0..STREAMS {
        let key = name(n, "x");
        // The group is there already when traffic runs a second time.
        side.run(
            &Command::new("XGROUP CREATE")
                .key(&key)
                .args(["g", "0", "MKSTREAM"]),
        )?;
        // A consumer that XAUTOCLAIM makes without claiming anything is not replicated (valkey 8.1): a native
        // replica lacks it too. So that it proves nothing against a migration, all consumers exist from the start.
        for consumer in ["c0", "c1", "c2"].iter().filter(|_| createconsumer) {
            side.run(
                &Command::new("XGROUP CREATECONSUMER")
                    .key(&key)
                    .arg("g")
                    .arg(*consumer),
            )?;
        }
    }
    for node in side.nodes() {
        node.words("PING")?;
        node.run(&Command::new("SCRIPT LOAD").arg(SCRIPT))?;
    }
    if side.knows("function") {
        for node in side.nodes() {
            // It fails when the library is there.
            node.run(&Command::new("FUNCTION LOAD").arg(LIBRARY))?;
        }
    }
    Ok(())
}

pub fn name(n: u64, kind: &str) -> String {
    format!("t:{{{n}}}:{kind}")
}

pub struct Generator {
    pub rng: Rng,
    pub keys: u64,
    mix: Mix,
    pub cluster: bool,
    pub knows: HashSet<&'static str>,
    entry: u64,
}

impl Generator {
    pub fn new(options: &Options, side: &Side, number: u64) -> Generator {
        Generator {
            rng: Rng::new(options.seed * 1_000 + number + 1),
            keys: options.keys.max(1),
            mix: options.mix,
            cluster: options.cluster,
            knows: NEWER
                .iter()
                .copied()
                .filter(|c| side.knows(c) && (options.field_expiry || !FIELD_EXPIRY.contains(c)))
                .collect(),
            entry: 0,
        }
    }

    pub fn next(&mut self) -> Write {
        match self.mix {
            Mix::Counters => self.counter(),
            Mix::Ttl => self.expiring(),
            Mix::Plain => match self.rng.below(3) {
                0 => one(
                    "SET",
                    Command::new("SET").key(self.key("s")).arg(self.word()),
                ),
                1 => self.counter(),
                _ => one(
                    "LPUSH",
                    Command::new("LPUSH").key(self.key("l")).arg(self.word()),
                ),
            },
            Mix::Mixed => {
                // A write that the server does not know gives way to another.
                for _ in 0..20 {
                    let made = match self.rng.below(20) {
                        0..=5 => Some(self.string()),
                        6 => Some(self.counter()),
                        7..=8 => Some(self.expiring()),
                        9..=10 => self.list(),
                        11 => Some(self.set()),
                        12 => Some(self.zset()),
                        13..=14 => self.hash(),
                        15..=16 => self.stream(),
                        17 => self.together(),
                        _ => self.across(),
                    };
                    if let Some(made) = made {
                        return made;
                    }
                }
                self.string()
            }
        }
    }

    /// The number in a key's name; half the time one of the few that are used much.
    pub fn number(&mut self) -> u64 {
        let hot = self.rng.chance(50);
        self.rng
            .below(if hot { self.keys / 50 + 1 } else { self.keys })
    }

    pub fn key(&mut self, kind: &str) -> String {
        name(self.number(), kind)
    }

    /// Two keys: of one slot in a cluster, of any two slots elsewhere.
    pub fn two(&mut self, kind: &str, other: &str) -> (String, String) {
        let n = self.number();
        let m = if self.cluster { n } else { self.number() };
        (name(n, kind), name(m, other))
    }

    pub fn word(&mut self) -> String {
        let len = self.rng.range(3, 20) as usize;
        self.rng.word(len)
    }

    fn string(&mut self) -> Write {
        let (key, word) = (self.key("s"), self.word());
        let n = self.rng.below(1_000);
        match self.rng.below(9) {
            0..=2 => one("SET", Command::new("SET").key(key).arg(word)),
            3 => one(
                "SET KEEPTTL",
                Command::new("SET").key(key).arg(word).arg("KEEPTTL"),
            ),
            4 => one("APPEND", Command::new("APPEND").key(key).arg(word)),
            5 => one(
                "SETRANGE",
                Command::new("SETRANGE").key(key).arg(n % 100).arg(word),
            ),
            6 => {
                let key = self.key("f");
                one(
                    "INCRBYFLOAT",
                    Command::new("INCRBYFLOAT")
                        .key(key)
                        .arg(format!("{}.125", n % 10)),
                )
            }
            7 => {
                let key = self.key("bits");
                let command = Command::new("BITFIELD").key(key);
                one(
                    "BITFIELD",
                    command
                        .args(["SET", "u8", "#3"])
                        .arg(n % 256)
                        .args(["INCRBY", "i16", "#9", "7"]),
                )
            }
            _ => {
                let key = self.key("hll");
                one("PFADD", Command::new("PFADD").key(key).arg(word).arg(n))
            }
        }
    }

    fn counter(&mut self) -> Write {
        let key = format!("counter:{}", self.rng.below(COUNTERS));
        let by = self.rng.range(1, 9) as i64;
        let (command, by) = match self.rng.below(4) {
            0 => (Command::new("INCRBY").key(&key).arg(by), by),
            1 => (Command::new("DECR").key(&key), -1),
            _ => (Command::new("INCR").key(&key), 1),
        };
        Write {
            kind: "INCR",
            commands: vec![command],
            counter: Some((key, by)),
        }
    }

    fn expiring(&mut self) -> Write {
        let (key, word) = (self.key("e"), self.word());
        let ms = if self.rng.chance(70) {
            self.rng.range(50, 3_000)
        } else {
            self.rng.range(60_000, 7_200_000)
        };
        match self.rng.below(10) {
            0 | 1 => one(
                "SET PX",
                Command::new("SET").key(key).arg(word).arg("PX").arg(ms),
            ),
            2 => one(
                "SET EX",
                Command::new("SET")
                    .key(key)
                    .arg(word)
                    .arg("EX")
                    .arg(1 + ms / 1_000),
            ),
            3 => one(
                "SETEX",
                Command::new("SETEX").key(key).arg(1 + ms / 1_000).arg(word),
            ),
            4 => one("PSETEX", Command::new("PSETEX").key(key).arg(ms).arg(word)),
            5 => one(
                "EXPIRE",
                Command::new("EXPIRE").key(key).arg(1 + ms / 1_000),
            ),
            6 => one(
                "PEXPIREAT",
                Command::new("PEXPIREAT").key(key).arg(now_ms() + ms),
            ),
            7 => one("PERSIST", Command::new("PERSIST").key(key)),
            8 if self.knows.contains("getex") => {
                one("GETEX", Command::new("GETEX").key(key).arg("PX").arg(ms))
            }
            _ => {
                let kind = self.rng.one_of(&["l", "set", "z", "h", "s", "x2"]);
                let key = self.key(kind);
                one("EXPIRE", Command::new("EXPIRE").key(key).arg(1 + ms / 500))
            }
        }
    }

    fn list(&mut self) -> Option<Write> {
        let (key, word) = (self.key("l"), self.word());
        let command = |name: &str| Command::new(name).key(&key);
        Some(match self.rng.below(15) {
            0..=2 => one("LPUSH", command("LPUSH").arg(&word).arg("same")),
            3 | 4 => one(
                "RPUSH",
                command("RPUSH")
                    .arg(&word)
                    .arg("same")
                    .arg("x".repeat(word.len() * 5)),
            ),
            5 => one("RPOP", command("RPOP")),
            6 => one("LPOP", command("LPOP")),
            7 => one("LREM", command("LREM").arg("1").arg("same")),
            8 => one(
                "LINSERT",
                command("LINSERT").args(["BEFORE", "same"]).arg(&word),
            ),
            9 => one("LTRIM", command("LTRIM").args(["0", "30"])),
            10 => one("LSET", command("LSET").arg("0").arg(&word)),
            11 => one(
                "RPUSH to a waiting consumer",
                Command::new("RPUSH").key(QUEUE).arg(&word),
            ),
            12 => {
                let push = Command::new("RPUSH").key(&key).arg(&word);
                Write {
                    kind: "BLPOP",
                    commands: vec![push, Command::new("BLPOP").key(&key).arg("0.05")],
                    counter: None,
                }
            }
            13 if self.knows.contains("lmpop") => one(
                "LMPOP",
                Command::new("LMPOP 1")
                    .key(&key)
                    .args(["LEFT", "COUNT", "2"]),
            ),
            14 if self.knows.contains("lmove") => {
                let (from, to) = self.two("l", "l");
                one(
                    "LMOVE",
                    Command::new("LMOVE")
                        .key(from)
                        .key(to)
                        .args(["LEFT", "RIGHT"]),
                )
            }
            _ => {
                let (from, to) = self.two("l", "l");
                one("RPOPLPUSH", Command::new("RPOPLPUSH").key(from).key(to))
            }
        })
    }

    fn set(&mut self) -> Write {
        let (key, word) = (self.key("set"), self.word());
        let n = self.rng.below(50);
        match self.rng.below(8) {
            0..=2 => one("SADD", Command::new("SADD").key(key).arg(word).arg(n)),
            3 => one(
                "SADD",
                Command::new("SADD")
                    .key(self.key("ints"))
                    .arg(n)
                    .arg(n * 70_000),
            ),
            4 => one("SREM", Command::new("SREM").key(key).arg(n)),
            5 => one("SPOP", Command::new("SPOP").key(key)),
            6 => one("SPOP COUNT", Command::new("SPOP").key(key).arg("2")),
            _ => {
                let (from, to) = self.two("set", "set2");
                one("SMOVE", Command::new("SMOVE").key(from).key(to).arg(n))
            }
        }
    }

    fn zset(&mut self) -> Write {
        let (key, word) = (self.key("z"), self.word());
        let n = self.rng.below(1_000);
        match self.rng.below(9) {
            0..=2 => one(
                "ZADD",
                Command::new("ZADD")
                    .key(key)
                    .arg(format!("{n}.5"))
                    .arg(word)
                    .arg(n)
                    .arg("same"),
            ),
            3 => one(
                "ZADD GT",
                Command::new("ZADD")
                    .key(key)
                    .args(["GT", "CH"])
                    .arg(n)
                    .arg("same"),
            ),
            4 => one(
                "ZINCRBY",
                Command::new("ZINCRBY").key(key).arg("0.1").arg("same"),
            ),
            5 => one("ZPOPMIN", Command::new("ZPOPMIN").key(key)),
            6 => one("ZREM", Command::new("ZREM").key(key).arg("same")),
            7 => one(
                "ZREMRANGEBYRANK",
                Command::new("ZREMRANGEBYRANK").key(key).args(["20", "-1"]),
            ),
            _ => {
                let place = format!("{}.5", n % 180);
                one(
                    "GEOADD",
                    Command::new("GEOADD")
                        .key(self.key("geo"))
                        .arg(place)
                        .arg("38.1")
                        .arg(word),
                )
            }
        }
    }

    fn hash(&mut self) -> Option<Write> {
        let (key, word) = (self.key("h"), self.word());
        let n = self.rng.below(10);
        let ms = if self.rng.chance(50) {
            self.rng.range(100, 3_000)
        } else {
            3_600_000
        };
        let fields = |c: Command| c.args(["FIELDS", "1", "f1"]);
        Some(match self.rng.below(10) {
            0..=2 => one(
                "HSET",
                Command::new("HSET")
                    .key(key)
                    .arg(format!("f{n}"))
                    .arg(word)
                    .arg("f1")
                    .arg(n),
            ),
            3 => one(
                "HINCRBY",
                Command::new("HINCRBY").key(key).arg("count").arg(n),
            ),
            4 => one(
                "HINCRBYFLOAT",
                Command::new("HINCRBYFLOAT")
                    .key(key)
                    .arg("float")
                    .arg("1.25"),
            ),
            5 => one(
                "HDEL",
                Command::new("HDEL").key(key).arg(format!("f{n}")).arg("f2"),
            ),
            6 if self.knows.contains("hpexpire") => one(
                "HPEXPIRE",
                fields(Command::new("HPEXPIRE").key(key).arg(ms)),
            ),
            7 if self.knows.contains("hpexpire") => one(
                "HEXPIRE",
                fields(Command::new("HEXPIRE").key(key).arg(1 + ms / 1_000)),
            ),
            8 if self.knows.contains("hpexpire") => {
                one("HPERSIST", fields(Command::new("HPERSIST").key(key)))
            }
            9 if self.knows.contains("hsetex") => one(
                "HSETEX",
                Command::new("HSETEX")
                    .key(key)
                    .arg("PX")
                    .arg(ms)
                    .args(["FIELDS", "1", "f1"])
                    .arg(word),
            ),
            _ => return None,
        })
    }

    fn stream(&mut self) -> Option<Write> {
        let key = name(self.rng.below(STREAMS), "x");
        let consumer = format!("c{}", self.rng.below(3));
        self.entry += 1;
        let word = self.word();
        let command = |name: &str| Command::new(name).key(&key);
        Some(match self.rng.below(14) {
            0..=3 => one(
                "XADD",
                command("XADD")
                    .arg("*")
                    .arg("n")
                    .arg(self.entry)
                    .arg("word")
                    .arg(word),
            ),
            4 | 5 => one(
                "XADD MAXLEN ~",
                command("XADD")
                    .args(["MAXLEN", "~", "500", "*"])
                    .arg("word")
                    .arg(word),
            ),
            6..=8 => {
                let read = Command::new("XREADGROUP GROUP g")
                    .arg(consumer)
                    .args(["COUNT", "3", "STREAMS"]);
                one("XREADGROUP", read.key(&key).arg(">"))
            }
            9 => {
                // Reads and acknowledges in one go: EVAL knows the ids.
                let script = "local r = redis.call('XPENDING', KEYS[1], 'g', '-', '+', 5) \
                              for _, e in ipairs(r) do redis.call('XACK', KEYS[1], 'g', e[1]) end return #r";
                one("XACK", Command::new("EVAL").arg(script).arg("1").key(&key))
            }
            10 => {
                let script = "local r = redis.call('XPENDING', KEYS[1], 'g', '-', '+', 2) \
                              for _, e in ipairs(r) do redis.call('XCLAIM', KEYS[1], 'g', ARGV[1], 0, e[1]) end return #r";
                one(
                    "XCLAIM",
                    Command::new("EVAL")
                        .arg(script)
                        .arg("1")
                        .key(&key)
                        .arg(consumer),
                )
            }
            11 if self.knows.contains("xautoclaim") => one(
                "XAUTOCLAIM",
                command("XAUTOCLAIM")
                    .arg("g")
                    .arg(consumer)
                    .args(["100", "0", "COUNT", "3"]),
            ),
            12 => {
                let script = "local r = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 2) \
                              for _, e in ipairs(r) do redis.call('XDEL', KEYS[1], e[1]) end return #r";
                one("XDEL", Command::new("EVAL").arg(script).arg("1").key(&key))
            }
            13 => one("XTRIM", command("XTRIM").args(["MAXLEN", "800"])),
            _ => return None,
        })
    }
}

pub fn one(kind: &'static str, command: Command) -> Write {
    Write {
        kind,
        commands: vec![command],
        counter: None,
    }
}
