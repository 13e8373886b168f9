//! Fills a server or a cluster with keys of every type and encoding, repeatably.
//!
//! First a zoo of single keys, one or more for each encoding and odd case, then many small mixed keys.
//! About one key in five has an expiry; most lie hours ahead, a few within seconds.

use super::rng::Rng;
use super::side::Side;
use super::wire::{Client, Command, Value};
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

/// What to fill in.
pub struct Fill {
    pub keys: u64,
    pub seed: u64,
    /// Put before every key, except those whose name is the odd thing about them.
    pub prefix: String,
    /// Some keys that expire within seconds; off where the exact number of keys matters.
    pub expiring_soon: bool,
    /// A function library, where the server has functions.
    pub functions: bool,
    /// Hash fields with an expiry, where the server has them.
    pub field_expiry: bool,
}

impl Fill {
    pub fn new(keys: u64) -> Fill {
        Fill {
            keys,
            seed: 1,
            prefix: String::new(),
            expiring_soon: true,
            functions: true,
            field_expiry: true,
        }
    }
}

/// A Lua library that the traffic calls too.
pub const LIBRARY: &str = "#!lua name=keyferry_demo\nredis.register_function('kf_incr', function(keys, args) \
     return redis.call('INCRBY', keys[1], args[1]) end)\n";

pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}

/// Fills one side; returns how many keys were written.
pub fn fill(side: &mut Side, what: &Fill) -> io::Result<u64> {
    if what.functions && side.knows("function") {
        for node in side.nodes() {
            node.expect(&Command::new("FUNCTION LOAD REPLACE").arg(LIBRARY))?;
        }
    }
    let field_expiry = what.field_expiry && side.knows("hpexpire");
    let mut writer = Writer {
        side,
        field_expiry,
        queue: Vec::new(),
        rng: Rng::new(what.seed),
        keys: 0,
    };
    if what.prefix.is_empty() {
        odd_names(&mut writer)?;
    }
    zoo(&mut writer, &what.prefix)?;
    let mut n = 0;
    while writer.keys < what.keys {
        small(&mut writer, what, n)?;
        n += 1;
    }
    writer.send()?;
    Ok(writer.keys)
}

struct Writer<'a> {
    side: &'a mut Side,
    field_expiry: bool,
    queue: Vec<Command>,
    rng: Rng,
    keys: u64,
}

impl Writer<'_> {
    fn put(&mut self, command: Command) -> io::Result<()> {
        self.queue.push(command);
        if self.queue.len() >= 1000 {
            self.send()
        } else {
            Ok(())
        }
    }

    fn send(&mut self) -> io::Result<()> {
        for reply in self.side.all(&self.queue)? {
            if let Value::Error(text) = reply {
                return Err(io::Error::other(format!(
                    "the data set could not be written: {text}"
                )));
            }
        }
        self.queue.clear();
        Ok(())
    }

    /// The command that starts a new key.
    fn new_key(&mut self, command: Command) -> io::Result<()> {
        self.keys += 1;
        self.put(command)
    }

    fn each(
        &mut self,
        name: &str,
        key: &str,
        count: u64,
        item: impl Fn(u64) -> Vec<Vec<u8>>,
    ) -> io::Result<()> {
        self.keys += 1;
        let mut n = 0;
        while n < count {
            let to = (n + 100).min(count);
            let mut command = Command::new(name).key(key);
            for i in n..to {
                command = command.args(item(i));
            }
            self.put(command)?;
            n = to;
        }
        Ok(())
    }
}

fn odd_names(w: &mut Writer) -> io::Result<()> {
    w.new_key(Command::new("SET").key("").arg("the empty key"))?;
    w.new_key(
        Command::new("SET")
            .key(b"\x00\xff\r\n\"'\\ \xc3\x28")
            .arg("a binary key"),
    )?;
    w.new_key(Command::new("SET").key("schlüssel:日本語").arg("größe"))?;
    w.new_key(Command::new("SET").key("{}tag").arg("an empty hash tag"))?;
    w.new_key(
        Command::new("SET")
            .key("a{b{c}d}e")
            .arg("a nested hash tag"),
    )?;
    w.new_key(Command::new("SET").key("k".repeat(2000)).arg("a long key"))
}

fn zoo(w: &mut Writer, p: &str) -> io::Result<()> {
    let key = |name: &str| format!("{p}zoo:{name}");
    let text = |n: u64| n.to_string().into_bytes();
    // strings: int in each width, embstr, raw, compressible, incompressible, bitmap, HLL
    for n in [
        "0",
        "-1",
        "127",
        "-128",
        "32767",
        "-32768",
        "2147483647",
        "-2147483648",
        "9223372036854775807",
    ] {
        w.new_key(Command::new("SET").key(key(&format!("int:{n}"))).arg(n))?;
    }
    w.new_key(Command::new("SET").key(key("not-int")).arg("007"))?;
    w.new_key(Command::new("SET").key(key("empty")).arg(""))?;
    w.new_key(Command::new("SET").key(key("embstr")).arg("x".repeat(44)))?;
    w.new_key(Command::new("SET").key(key("raw")).arg("x".repeat(45)))?;
    w.new_key(
        Command::new("SET")
            .key(key("lzf"))
            .arg("to be compressed ".repeat(500)),
    )?;
    let noise = w.rng.bytes(70_000);
    w.new_key(Command::new("SET").key(key("noise")).arg(noise))?;
    let half = [w.rng.bytes(2_000), vec![0; 2_000]].concat();
    w.new_key(Command::new("SET").key(key("half-lzf")).arg(half))?;
    w.new_key(
        Command::new("SETBIT")
            .key(key("bitmap"))
            .args(["100000", "1"]),
    )?;
    w.new_key(
        Command::new("PFADD")
            .key(key("hll:sparse"))
            .args(["a", "b", "c"]),
    )?;
    w.each("PFADD", &key("hll:dense"), 5_000, |n| vec![text(n)])?;
    // lists
    w.each("RPUSH", &key("list:small"), 10, |n| vec![text(n)])?;
    w.each("RPUSH", &key("list:nodes"), 5_000, |n| {
        vec![format!("item {n} {}", "y".repeat(50)).into_bytes()]
    })?;
    w.each("RPUSH", &key("list:lzf"), 300, |n| {
        vec![[text(n), b"abc".repeat(300)].concat()]
    })?;
    let big = w.rng.bytes(20_000);
    w.new_key(
        Command::new("RPUSH")
            .key(key("list:big"))
            .arg("before")
            .arg(big)
            .arg("after"),
    )?;
    // sets
    w.each("SADD", &key("set:int16"), 100, |n| vec![text(n)])?;
    w.each("SADD", &key("set:int32"), 100, |n| vec![text(n * 100_000)])?;
    w.each("SADD", &key("set:int64"), 100, |n| {
        vec![text(n * 100_000_000_000)]
    })?;
    w.each("SADD", &key("set:listpack"), 20, |n| {
        vec![format!("member {n}").into_bytes()]
    })?;
    w.each("SADD", &key("set:hashtable"), 3_000, |n| {
        vec![format!("member {n}").into_bytes()]
    })?;
    // sorted sets
    w.new_key(
        Command::new("ZADD")
            .key(key("zset:odd-scores"))
            .args(["inf", "a", "-inf", "b", "0.1", "c"])
            .args([
                "1e308",
                "d",
                "-1e-308",
                "e",
                "3.0000000000000004",
                "f",
                "-0",
                "g",
                "123456789012345",
                "h",
                "5e-324",
                "i",
            ]),
    )?;
    w.each("ZADD", &key("zset:listpack"), 20, |n| {
        vec![text(n), format!("member {n}").into_bytes()]
    })?;
    w.each("ZADD", &key("zset:skiplist"), 2_000, |n| {
        vec![format!("{n}.5").into_bytes(), text(n)]
    })?;
    w.new_key(Command::new("GEOADD").key(key("geo")).args([
        "13.361389",
        "38.115556",
        "Palermo",
        "15.087269",
        "37.502669",
        "Catania",
        "-46.63",
        "-23.55",
        "São Paulo",
    ]))?;
    // hashes
    w.each("HSET", &key("hash:listpack"), 20, |n| {
        vec![format!("field {n}").into_bytes(), text(n)]
    })?;
    w.each("HSET", &key("hash:hashtable"), 2_000, |n| {
        vec![format!("field {n}").into_bytes(), text(n)]
    })?;
    w.new_key(
        Command::new("HSET")
            .key(key("hash:long-value"))
            .arg("f")
            .arg("v".repeat(500)),
    )?;
    for (name, count) in [("hash:ttl-small", 10), ("hash:ttl-big", 1_000)] {
        w.each("HSET", &key(name), count, |n| {
            vec![format!("field {n}").into_bytes(), text(n)]
        })?;
        if w.field_expiry {
            let hour = Command::new("HPEXPIRE")
                .key(key(name))
                .args(["3600000", "FIELDS", "2", "field 1", "field 3"]);
            let day = Command::new("HPEXPIRE")
                .key(key(name))
                .args(["86400000", "FIELDS", "1", "field 5"]);
            w.put(hour)?;
            w.put(day)?;
        }
    }
    streams(w, p)
}

fn streams(w: &mut Writer, p: &str) -> io::Result<()> {
    let key = |name: &str| format!("{p}zoo:stream:{name}");
    for (name, entries) in [
        ("small", 10u64),
        ("groups", 500),
        ("nodes", 3_000),
        ("emptied", 20),
    ] {
        w.keys += 1;
        for n in 1..=entries {
            // Same fields in a row are stored apart from changing ones.
            let add =
                Command::new("XADD")
                    .key(key(name))
                    .arg(format!("{}-{}", 1_000 + n / 3, n % 3));
            let add = if n % 7 == 0 {
                add.arg("other").arg(n)
            } else {
                add.arg("a").arg(n).arg("b").arg("text")
            };
            w.put(add)?;
        }
    }
    for n in 1..=20u64 {
        w.put(Command::new("XDEL").key(key("emptied")).arg(format!(
            "{}-{}",
            1_000 + n / 3,
            n % 3
        )))?;
    }
    w.new_key(
        Command::new("XGROUP CREATE")
            .key(key("empty-with-group"))
            .args(["g", "$", "MKSTREAM"]),
    )?;
    let groups = key("groups");
    for group in ["first", "second", "unread"] {
        w.put(
            Command::new("XGROUP CREATE")
                .key(&groups)
                .arg(group)
                .arg("0"),
        )?;
    }
    let read = |group: &str, consumer: &str, count: &str| {
        let read = Command::new("XREADGROUP GROUP")
            .arg(group)
            .arg(consumer)
            .arg("COUNT")
            .arg(count);
        read.arg("STREAMS").key(&groups).arg(">")
    };
    w.put(read("first", "alice", "100"))?;
    w.put(read("first", "bob", "50"))?;
    w.put(read("second", "carol", "30"))?;
    for n in (1..100u64).step_by(2) {
        w.put(Command::new("XACK").key(&groups).arg("first").arg(format!(
            "{}-{}",
            1_000 + n / 3,
            n % 3
        )))?;
    }
    // Deleted while pending, in the middle, and the last one.
    for id in ["1001-1", "1010-2", "1100-0", "1166-2"] {
        w.put(Command::new("XDEL").key(&groups).arg(id))?;
    }
    if w.side.knows("xautoclaim") {
        w.put(
            Command::new("XGROUP CREATECONSUMER")
                .key(&groups)
                .arg("second")
                .arg("idle"),
        )?;
    }
    Ok(())
}

/// One of the many small keys; four in ten are strings, as in most live data.
fn small(w: &mut Writer, what: &Fill, n: u64) -> io::Result<()> {
    let kind = w.rng.below(20);
    let size = w.rng.range(1, 8);
    let (name, word) = (w.rng.next() % 100_000, w.rng.word(12));
    let key = |kind: &str| format!("{}{kind}:{n}:{name}", what.prefix);
    let key = match kind {
        0..=3 => {
            let key = key("s");
            w.new_key(
                Command::new("SET")
                    .key(&key)
                    .arg(format!("{{\"id\":{n},\"token\":\"{word}\"}}")),
            )?;
            key
        }
        4 | 5 => {
            let key = key("n");
            let number = w.rng.next() as i64 >> w.rng.below(64);
            w.new_key(Command::new("SET").key(&key).arg(number))?;
            key
        }
        6 => {
            let key = key("lzf");
            w.new_key(Command::new("SET").key(&key).arg(word.repeat(30)))?;
            key
        }
        7 => {
            let key = key("bin");
            let bytes = w.rng.bytes(100);
            w.new_key(Command::new("SET").key(&key).arg(bytes))?;
            key
        }
        8 | 9 => {
            let key = key("l");
            w.new_key(
                Command::new("RPUSH")
                    .key(&key)
                    .args((0..size).map(|i| format!("{word}{i}"))),
            )?;
            key
        }
        10 => {
            let key = key("si");
            w.new_key(
                Command::new("SADD")
                    .key(&key)
                    .args((0..size).map(|i| n + i * 70_000)),
            )?;
            key
        }
        11 => {
            let key = key("sl");
            w.new_key(
                Command::new("SADD")
                    .key(&key)
                    .args((0..size).map(|i| format!("{word}{i}"))),
            )?;
            key
        }
        12 | 13 => {
            let key = key("z");
            let members = (0..size).flat_map(|i| [format!("{}.25", i * n), format!("{word}{i}")]);
            w.new_key(Command::new("ZADD").key(&key).args(members))?;
            key
        }
        14..=16 => {
            let key = key("h");
            let fields = (0..size).flat_map(|i| [format!("f{i}"), format!("{word}{i}")]);
            w.new_key(Command::new("HSET").key(&key).args(fields))?;
            if n.is_multiple_of(5) && w.field_expiry {
                let ms = w.rng.range(3_600_000, 90_000_000);
                w.put(
                    Command::new("HPEXPIRE")
                        .key(&key)
                        .arg(ms)
                        .args(["FIELDS", "1", "f0"]),
                )?;
            }
            key
        }
        17 => {
            let key = key("x");
            w.keys += 1;
            for i in 1..=size {
                w.put(
                    Command::new("XADD")
                        .key(&key)
                        .arg(format!("{n}-{i}"))
                        .arg("f")
                        .arg(&word),
                )?;
            }
            if n.is_multiple_of(3) {
                w.put(Command::new("XGROUP CREATE").key(&key).arg("g").arg("0"))?;
                let read = Command::new("XREADGROUP GROUP g c COUNT 2 STREAMS")
                    .key(&key)
                    .arg(">");
                w.put(read)?;
            }
            key
        }
        18 => {
            let key = key("bits");
            let bit = w.rng.below(5_000);
            w.new_key(Command::new("SETBIT").key(&key).arg(bit).arg("1"))?;
            key
        }
        _ => {
            let key = key("pf");
            w.new_key(
                Command::new("PFADD")
                    .key(&key)
                    .args((0..size).map(|i| format!("{word}{i}"))),
            )?;
            key
        }
    };
    if w.rng.chance(20) {
        let soon = what.expiring_soon && w.rng.chance(2);
        let ms = if soon {
            w.rng.range(500, 20_000)
        } else {
            w.rng.range(3_600_000, 90_000_000)
        };
        w.put(Command::new("PEXPIREAT").key(&key).arg(now_ms() + ms))?;
    }
    Ok(())
}

/// Fills `keys` plain strings of `size` bytes that do not compress, for tests of volume.
pub fn fill_volume(client: &mut Client, keys: u64, size: usize) -> io::Result<()> {
    let mut rng = Rng::new(7);
    let value = rng.bytes(size * 2);
    for n in 0..keys {
        let at = rng.below(size as u64) as usize;
        client.push(
            &Command::new("SET")
                .key(format!("volume:{n}"))
                .arg(&value[at..at + size]),
        );
        if client.waiting() * size > 4 << 20 || client.waiting() > 5_000 {
            client.replies()?;
        }
    }
    client.replies()?;
    Ok(())
}
