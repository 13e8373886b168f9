//! Writes of several keys: transactions, scripts, and the commands that cross slots outside a cluster.

use super::super::wire::Command;
use super::mix::{Generator, SCRIPT, SCRIPT_SHA, Write, name, one};

impl Generator {
    /// Several keys in one transaction, script or function call.
    pub fn together(&mut self) -> Option<Write> {
        let n = self.number();
        let (a, b) = (name(n, "n"), name(n, "set"));
        let word = self.word();
        let transaction = |kind, commands: Vec<Command>| {
            let begin = Command::new("MULTI");
            // The first command's key decides the node: MULTI has none, so it goes along with the key's node.
            let mut all = vec![begin.routed(&a)];
            all.extend(commands);
            all.push(Command::new("EXEC"));
            Some(Write {
                kind,
                commands: all,
                counter: None,
            })
        };
        match self.rng.below(6) {
            0 => transaction(
                "MULTI, one key",
                vec![
                    Command::new("INCR").key(&a),
                    Command::new("EXPIRE").key(&a).arg("600"),
                ],
            ),
            1 => {
                let (_, other) = self.two("n", "h");
                let other = if self.cluster { name(n, "h") } else { other };
                let set = Command::new("HSET").key(other).arg("f1").arg(&word);
                transaction(
                    "MULTI, several keys",
                    vec![
                        Command::new("INCR").key(&a),
                        Command::new("SADD").key(&b).arg(&word),
                        set,
                    ],
                )
            }
            2 => Some(one(
                "EVAL",
                Command::new("EVAL")
                    .arg(SCRIPT)
                    .arg("2")
                    .key(a)
                    .key(b)
                    .arg("3")
                    .arg(word),
            )),
            3 => Some(one(
                "EVALSHA",
                Command::new("EVALSHA")
                    .arg(SCRIPT_SHA)
                    .arg("2")
                    .key(a)
                    .key(b)
                    .arg("2")
                    .arg(word),
            )),
            4 if self.knows.contains("fcall") => Some(one(
                "FCALL",
                Command::new("FCALL kf_incr 1").key(a).arg("5"),
            )),
            5 => Some(one("PUBLISH", Command::new("PUBLISH").key(a).arg(word))),
            _ => None,
        }
    }

    /// Commands over several keys; outside a cluster their slots differ.
    pub fn across(&mut self) -> Option<Write> {
        let (a, b) = self.two("s", "s2");
        let (sa, sb) = self.two("set", "set2");
        let (za, zb) = self.two("z", "zb");
        let (word, cluster) = (self.word(), self.cluster);
        let n = self.number();
        // A further key: of the same slot in a cluster, of any slot elsewhere.
        let like = |key: &str, kind: &str| match key.rsplit_once(':') {
            Some((tag, _)) if cluster => format!("{tag}:{kind}"),
            _ => name(n, kind),
        };
        let dst = |kind: &str| like(&a, kind);
        Some(match self.rng.below(20) {
            0 => one("DEL", Command::new("DEL").key(&a).key(&b).key(dst("e"))),
            1 => one("UNLINK", Command::new("UNLINK").key(sa).key(sb)),
            2 | 3 => one(
                "MSET",
                Command::new("MSET")
                    .key(&a)
                    .arg(&word)
                    .key(&b)
                    .arg(word.len()),
            ),
            4 => one(
                "MSETNX",
                Command::new("MSETNX")
                    .key(dst("nx"))
                    .arg(&word)
                    .key(b.replace("s2", "nx2"))
                    .arg("1"),
            ),
            5 => one("RENAME", Command::new("RENAME").key(&a).key(&b)),
            6 => one("RENAMENX", Command::new("RENAMENX").key(&b).key(dst("nx"))),
            7 if self.knows.contains("copy") => one(
                "COPY",
                Command::new("COPY").key(&a).key(dst("cp")).arg("REPLACE"),
            ),
            8 => one(
                "SUNIONSTORE",
                Command::new("SUNIONSTORE")
                    .key(like(&sa, "su"))
                    .key(&sa)
                    .key(&sb),
            ),
            9 => one(
                "SDIFFSTORE",
                Command::new("SDIFFSTORE")
                    .key(like(&sa, "sd"))
                    .key(&sa)
                    .key(&sb),
            ),
            10 => one(
                "ZUNIONSTORE",
                Command::new("ZUNIONSTORE")
                    .key(like(&za, "zu"))
                    .arg("2")
                    .key(&za)
                    .key(&zb),
            ),
            11 => one(
                "BITOP",
                Command::new("BITOP OR").key(dst("bo")).key(&a).key(&b),
            ),
            12 => {
                let (ha, hb) = self.two("hll", "hll");
                one("PFMERGE", Command::new("PFMERGE").key(ha).key(hb))
            }
            13 => {
                let n = self.number();
                let (from, to) = (
                    name(n, "ints"),
                    if cluster {
                        name(n, "so")
                    } else {
                        self.key("so")
                    },
                );
                one(
                    "SORT STORE",
                    Command::new("SORT").key(from).arg("STORE").key(to),
                )
            }
            14 if self.knows.contains("geosearchstore") => {
                let (from, to) = self.two("geo", "gs");
                let command = Command::new("GEOSEARCHSTORE").key(to).key(from);
                one(
                    "GEOSEARCHSTORE",
                    command.args(["FROMLONLAT", "13", "38", "BYRADIUS", "5000", "km"]),
                )
            }
            15 if self.knows.contains("getdel") => one("GETDEL", Command::new("GETDEL").key(&a)),
            16 if self.knows.contains("zrangestore") => one(
                "ZRANGESTORE",
                Command::new("ZRANGESTORE")
                    .key(like(&za, "zr"))
                    .key(&za)
                    .args(["0", "3"]),
            ),
            17 if self.knows.contains("zdiffstore") => one(
                "ZDIFFSTORE",
                Command::new("ZDIFFSTORE")
                    .key(like(&za, "zd"))
                    .arg("2")
                    .key(&za)
                    .key(&zb),
            ),
            18 => one("GETSET", Command::new("GETSET").key(&a).arg(word)),
            19 => one(
                "SINTERSTORE",
                Command::new("SINTERSTORE")
                    .key(like(&sa, "sn"))
                    .key(&sa)
                    .key(&sb),
            ),
            _ => return None,
        })
    }
}
