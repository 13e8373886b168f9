//! Keys at the borders of every encoding: just under and over each limit, every width, every odd name.

use super::dataset::now_ms;
use super::rng::Rng;
use super::side::Side;
use super::wire::{Command, Value};
use std::io;

/// Fills one standalone server; `large` is how many elements its largest keys have.
pub fn fill(side: &mut Side, large: u64) -> io::Result<()> {
    let mut b = Borders {
        side,
        queue: Vec::new(),
        bytes: 0,
        rng: Rng::new(7),
    };
    b.strings()?;
    b.names()?;
    b.lists(large)?;
    b.sets(large)?;
    b.zsets(large)?;
    b.hashes(large)?;
    b.streams(large)?;
    b.send()
}

struct Borders<'a> {
    side: &'a mut Side,
    queue: Vec<Command>,
    bytes: usize,
    rng: Rng,
}

const INTS: [i64; 20] = [
    0,
    -1,
    12,
    13,
    127,
    128,
    -128,
    -129,
    4095,
    4096,
    -4097,
    32767,
    32768,
    -32769,
    8_388_607,
    8_388_608,
    2_147_483_647,
    2_147_483_648,
    i64::MAX,
    i64::MIN,
];
const LENGTHS: [usize; 15] = [
    0, 1, 20, 21, 63, 64, 65, 4095, 4096, 16378, 16379, 16383, 16384, 65535, 65536,
];

impl Borders<'_> {
    fn put(&mut self, command: Command, size: usize) -> io::Result<()> {
        self.queue.push(command);
        self.bytes += size;
        if self.queue.len() >= 500 || self.bytes > 4 << 20 {
            return self.send();
        }
        Ok(())
    }

    fn send(&mut self) -> io::Result<()> {
        for reply in self.side.all(&self.queue)? {
            if let Value::Error(text) = reply {
                return Err(io::Error::other(text));
            }
        }
        self.queue.clear();
        self.bytes = 0;
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.put(Command::new("SET").key(key).arg(value), value.len())
    }

    fn random(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.rng.next() as u8).collect()
    }

    fn strings(&mut self) -> io::Result<()> {
        for n in INTS {
            self.set(format!("s:int:{n}").as_bytes(), n.to_string().as_bytes())?;
        }
        for odd in [
            "007",
            "-0",
            "+1",
            " 1",
            "9223372036854775808",
            "1e3",
            "\u{e9}t\u{e9}",
        ] {
            self.set(format!("s:odd:{odd}").as_bytes(), odd.as_bytes())?;
        }
        for len in LENGTHS {
            let random = self.random(len);
            self.set(format!("s:random:{len}").as_bytes(), &random)?;
            self.set(format!("s:same:{len}").as_bytes(), &vec![b'a'; len])?;
        }
        let random = self.random(10 << 20);
        self.set(b"s:10MB:random", &random)?;
        let words = b"the quick brown fox ".repeat((10 << 20) / 20);
        self.set(b"s:10MB:text", &words)?;
        self.set(b"s:100MB:same", &vec![b'z'; 100 << 20])?;
        let at = now_ms() + 86_400_000;
        self.put(
            Command::new("SET")
                .key("s:expiring")
                .arg("x")
                .arg("PX")
                .arg(86_400_000),
            0,
        )?;
        self.set(b"s:expiring:at", b"x")?;
        self.put(Command::new("PEXPIREAT").key("s:expiring:at").arg(at), 0)
    }

    fn names(&mut self) -> io::Result<()> {
        self.set(b"", b"the empty key")?;
        self.set(b"12345", b"an integer key")?;
        self.set(b"-7", b"a negative key")?;
        self.set(b"\x00\xff\r\n\"\\", b"a binary key")?;
        self.set(&vec![b'k'; 20_000], b"a long key")
    }

    /// Pushes items in commands of bounded size.
    fn many(&mut self, verb: &str, key: &str, items: Vec<Vec<u8>>, step: usize) -> io::Result<()> {
        for chunk in items.chunks(step * 250) {
            let size = chunk.iter().map(Vec::len).sum();
            self.put(
                Command::new(verb)
                    .key(key)
                    .args(chunk.iter().map(Vec::as_slice)),
                size,
            )?;
        }
        Ok(())
    }

    fn lists(&mut self, large: u64) -> io::Result<()> {
        let ints = INTS.map(|n| n.to_string().into_bytes()).to_vec();
        self.many("RPUSH", "l:ints", ints, 1)?;
        let lengths: Vec<Vec<u8>> = LENGTHS.iter().map(|n| vec![b'x'; *n]).collect();
        self.many("RPUSH", "l:lengths", lengths, 1)?;
        for len in [8100, 8191, 8192, 8193, 16384, 65_500, 65_536, 200_000] {
            let items = (0..3).map(|_| self.random(len)).collect();
            self.many("RPUSH", &format!("l:items:{len}"), items, 1)?;
        }
        for n in [1, 127, 128, 129, 512, 513] {
            let items = (0..n).map(|i| format!("item {i}").into_bytes()).collect();
            self.many("RPUSH", &format!("l:count:{n}"), items, 1)?;
        }
        let items = (0..large).map(|i| i.to_string().into_bytes()).collect();
        self.many("RPUSH", "l:large", items, 1)
    }

    fn sets(&mut self, large: u64) -> io::Result<()> {
        for (name, base) in [("16", 100i64), ("32", 100_000), ("64", 10_000_000_000)] {
            for n in [1i64, 512, 513] {
                let items = (0..n)
                    .map(|i| (base - 50 + i).to_string().into_bytes())
                    .collect();
                self.many("SADD", &format!("set:int{name}:{n}"), items, 1)?;
            }
        }
        for n in [1, 128, 129] {
            for len in [10usize, 64, 65] {
                let items = (0..n)
                    .map(|i| format!("{i:0len$}x").into_bytes()[1..].to_vec())
                    .collect();
                self.many("SADD", &format!("set:{n}:{len}"), items, 1)?;
            }
        }
        let items = (0..50).map(|_| self.random(30)).collect();
        self.many("SADD", "set:binary", items, 1)?;
        let items = (0..large)
            .map(|i| format!("member:{i}").into_bytes())
            .collect();
        self.many("SADD", "set:large", items, 1)
    }

    fn zsets(&mut self, large: u64) -> io::Result<()> {
        let scores = [
            "0",
            "-0",
            "1",
            "-1",
            "0.1",
            "3.14159265358979",
            "1e300",
            "-1e300",
            "5e-324",
            "1.7976931348623157e308",
            "inf",
            "-inf",
            "123456789012345680",
            "0.30000000000000004",
            "100000",
            "-4097",
        ];
        for n in [16, 128, 129] {
            let items = (0..n)
                .flat_map(|i| {
                    [
                        scores[i % scores.len()].as_bytes().to_vec(),
                        format!("m{i}").into_bytes(),
                    ]
                })
                .collect();
            self.many("ZADD", &format!("z:count:{n}"), items, 2)?;
        }
        for len in [64usize, 65] {
            self.many(
                "ZADD",
                &format!("z:len:{len}"),
                vec![b"1".to_vec(), vec![b'm'; len]],
                2,
            )?;
        }
        let items = INTS
            .iter()
            .flat_map(|n| [b"2.5".to_vec(), n.to_string().into_bytes()])
            .collect();
        self.many("ZADD", "z:ints", items, 2)?;
        let items = (0..large)
            .flat_map(|i| {
                [
                    format!("{}", i as f64 / 7.0).into_bytes(),
                    format!("member:{i}").into_bytes(),
                ]
            })
            .collect();
        self.many("ZADD", "z:large", items, 2)
    }

    fn hashes(&mut self, large: u64) -> io::Result<()> {
        for n in [1, 128, 129, 512, 513] {
            for len in [8usize, 64, 65] {
                let items = (0..n)
                    .flat_map(|i| [format!("f{i}").into_bytes(), vec![b'v'; len]])
                    .collect();
                self.many("HSET", &format!("h:{n}:{len}"), items, 2)?;
            }
        }
        let items = INTS
            .iter()
            .flat_map(|n| [n.to_string().into_bytes(), n.to_string().into_bytes()])
            .collect();
        self.many("HSET", "h:ints", items, 2)?;
        let binary = (0..20).map(|_| self.random(40)).collect();
        self.many("HSET", "h:binary", binary, 2)?;
        let big = vec![
            b"a".to_vec(),
            self.random(100_000),
            b"b".to_vec(),
            Vec::new(),
        ];
        self.many("HSET", "h:big", big, 2)?;
        let items = (0..large)
            .flat_map(|i| {
                [
                    format!("field:{i}").into_bytes(),
                    i.to_string().into_bytes(),
                ]
            })
            .collect();
        self.many("HSET", "h:large", items, 2)?;
        if self.side.knows("hpexpireat") {
            for (n, timed) in [(3, 1), (3, 3), (600, 1), (600, 300)] {
                let key = format!("hx:{n}:{timed}");
                let items = (0..n)
                    .flat_map(|i| [format!("f{i}").into_bytes(), b"v".to_vec()])
                    .collect();
                self.many("HSET", &key, items, 2)?;
                for i in 0..timed {
                    let at = now_ms() + 3_600_000 + 1000 * i;
                    let expire = Command::new("HPEXPIREAT")
                        .key(&key)
                        .arg(at)
                        .arg("FIELDS")
                        .arg(1);
                    self.put(expire.arg(format!("f{i}")), 0)?;
                }
            }
        }
        Ok(())
    }

    fn streams(&mut self, large: u64) -> io::Result<()> {
        let add = |key: &str, id: u64| Command::new("XADD").key(key).arg(format!("{id}-1"));
        for n in [1, 99, 100, 101, 250] {
            let key = format!("x:count:{n}");
            for i in 1..=n {
                let same = add(&key, i).args(["field", "value", "n"]).arg(i);
                self.put(same, 50)?;
            }
        }
        for i in 1..=120u64 {
            let mut entry = add("x:mixed", i);
            for f in 0..i % 5 + 1 {
                entry = entry
                    .arg(format!("field{}", (i + f) % 7))
                    .arg(INTS[(i % 20) as usize]);
            }
            self.put(entry, 100)?;
        }
        for len in [16_378usize, 16_379, 16_383, 5000, 70_000] {
            let key = format!("x:len:{len}");
            self.put(add(&key, 5).arg("f").arg(vec![b'v'; len].as_slice()), len)?;
            self.put(add(&key, 6).arg("f").arg("after"), 10)?;
        }
        for id in [3u64, 50, 77, 100] {
            self.put(
                Command::new("XDEL").key("x:mixed").arg(format!("{id}-1")),
                10,
            )?;
        }
        self.put(
            Command::new("XTRIM")
                .key("x:count:250")
                .args(["MAXLEN", "170"]),
            10,
        )?;
        self.put(add("x:empty", 9).args(["a", "b"]), 10)?;
        self.put(Command::new("XDEL").key("x:empty").arg("9-1"), 10)?;
        for group in ["g1", "g2", "g3 empty"] {
            self.put(
                Command::new("XGROUP CREATE")
                    .key("x:mixed")
                    .arg(group)
                    .arg("0"),
                10,
            )?;
        }
        for (group, consumer, n) in [
            ("g1", "alice", 30),
            ("g1", "bob", 20),
            ("g2", "\u{e9}ve", 5),
        ] {
            let read = Command::new("XREADGROUP GROUP").arg(group).arg(consumer);
            self.put(
                read.args(["COUNT"])
                    .arg(n)
                    .arg("STREAMS")
                    .key("x:mixed")
                    .arg(">"),
                10,
            )?;
        }
        self.put(
            Command::new("XACK")
                .key("x:mixed")
                .arg("g1")
                .args(["1-1", "2-1", "31-1"]),
            10,
        )?;
        let claim = Command::new("XCLAIM")
            .key("x:mixed")
            .args(["g1", "carol", "0", "5-1", "6-1"]);
        self.put(claim.args(["RETRYCOUNT", "7"]), 10)?;
        self.put(Command::new("XSETID").key("x:count:1").arg("1000-5"), 10)?;
        for i in 1..=large / 10 {
            self.put(add("x:large", i).arg("n").arg(i), 40)?;
        }
        Ok(())
    }
}
