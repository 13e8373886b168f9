//! Makes up commands from the forms: keys from a small set of names, so that commands meet.

use super::commands::{FORMS, WAITING};
use super::grammar::{Piece, expand, parse};
use crate::support::dataset::now_ms;
use crate::support::rng::Rng;
use crate::support::wire::Shown;
use std::fmt;

/// The words of one command.
pub type Words = Vec<Vec<u8>>;

/// What the list of a run consists of; a run is repeated from it.
#[derive(Clone)]
pub enum Step {
    /// Commands that one client sends in a row, to the node of `key`.
    Run {
        db: u32,
        key: Vec<u8>,
        commands: Vec<Words>,
    },
    /// Another client waits for a key that somebody may write.
    Wait {
        db: u32,
        key: Vec<u8>,
        command: Words,
    },
    Pause(u64),
    Event(Event),
}

/// What happens to the migration and the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The migration starts.
    Begin,
    /// Nobody writes until all that was written is applied.
    Rest,
    /// SIGKILL, and so many milliseconds later it runs again.
    Kill(u64),
    /// Ctrl-C, and it runs again.
    Stop,
    /// It is stopped for so many milliseconds, and goes on.
    Freeze(u64),
    SourceSilent(u64),
    TargetSilent(u64),
    SourceCut,
    TargetCut,
    /// From now on the lines are that long, in ms.
    Delay(u64),
    /// A slot of the source's cluster moves.
    MoveSlot(u16),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, words: &Words| {
            for word in words {
                match word.iter().all(u8::is_ascii_graphic) && word.len() < 60 {
                    true => write!(f, " {}", String::from_utf8_lossy(word))?,
                    false => write!(f, " {}", Shown(word))?,
                }
            }
            Ok(())
        };
        match self {
            Step::Run { db, commands, .. } => {
                write!(f, "[{db}]")?;
                for (n, words) in commands.iter().enumerate() {
                    if n > 0 {
                        write!(f, " ;")?;
                    }
                    line(f, words)?;
                }
                Ok(())
            }
            Step::Wait { db, command, .. } => {
                write!(f, "[{db}] another client:")?;
                line(f, command)
            }
            Step::Pause(ms) => write!(f, "(pause of {ms} ms)"),
            Step::Event(event) => write!(f, "({event:?})"),
        }
    }
}

/// What the source can do, and what the target can hold.
#[derive(Clone)]
pub struct Able {
    pub commands: std::collections::HashSet<String>,
    pub cluster: bool,
    /// Words that no form may hold; EVAL leaves out scripts and functions.
    pub without: Vec<String>,
    /// Both sides have expiries of fields.
    pub fields: bool,
    pub databases: Vec<u32>,
    pub functions: bool,
}

/// A script that runs whatever it is given: counts of words, and words.
pub const SCRIPT: &str = "local i = 1 while i <= #ARGV do local n = tonumber(ARGV[i]) \
     redis.pcall(unpack(ARGV, i + 1, i + n)) i = i + n + 1 end return i";
pub const LIBRARY: &str = "#!lua name=fuzz\nredis.register_function('fuzz_many', function(keys, args) \
     local i = 1 while i <= #args do local n = tonumber(args[i]) \
     redis.pcall(unpack(args, i + 1, i + n)) i = i + n + 1 end return i end)\n";

const TAGS: [&str; 4] = ["{a}", "{b}", "{c}", "{d}"];
const TYPES: [&str; 9] = ["s", "l", "e", "z", "h", "x", "g", "p", "q"];
/// Types that commands may take for each other.
const MIXED: [&str; 8] = ["s", "l", "e", "z", "h", "x", "g", "q"];
const OF_A_TYPE: u64 = 2;
/// Where the ids of the streams begin: later than now, so that "*" goes on from them.
const FIRST_ID: u64 = 2_000_000_000_000;

/// Every name that a key can have.
pub fn names() -> Vec<String> {
    let all = TAGS.iter().flat_map(|tag| {
        let of_tag = move |kind| (0..OF_A_TYPE).map(move |n| format!("{tag}{kind}{n}"));
        TYPES.iter().flat_map(of_tag)
    });
    all.collect()
}

pub struct Maker {
    rng: Rng,
    able: Able,
    forms: Vec<Vec<Piece>>,
    waiting: Vec<Vec<Piece>>,
    ids: u64,
    /// Payloads of the source's own keys, for RESTORE.
    pub dumps: Vec<Vec<u8>>,
    db: u32,
    scripts: bool,
    tag: &'static str,
}

impl Maker {
    pub fn new(seed: u64, able: Able) -> Maker {
        let usable = |forms: &[&'static str]| -> Vec<Vec<Piece>> {
            (forms.iter())
                .filter_map(|form| {
                    let Some((needs, form)) = form.split_once(": ") else {
                        return Some(*form);
                    };
                    let there = match needs {
                        "alone" => !able.cluster,
                        "fields" | "hsetex" | "hgetex" if !able.fields => false,
                        "fields" => able.commands.contains("hpexpire"),
                        command => able.commands.contains(command),
                    };
                    there.then_some(form)
                })
                .filter(|form| {
                    let mut words = form.split([' ', '(', ')', '[', ']', '|']);
                    !words.any(|w| able.without.iter().any(|without| w == without))
                })
                .map(parse)
                .collect()
        };
        let (forms, waiting) = (usable(FORMS), usable(WAITING));
        Maker {
            rng: Rng::new(seed),
            db: able.databases[0],
            scripts: !able.without.iter().any(|w| w == "EVAL"),
            able,
            forms,
            waiting,
            ids: 0,
            dumps: Vec::new(),
            tag: TAGS[0],
        }
    }

    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// The next thing to do, without events.
    pub fn step(&mut self) -> Step {
        if self.rng.chance(10) {
            self.db =
                self.able.databases[self.rng.below(self.able.databases.len() as u64) as usize];
        }
        // More often the same, so that what one command makes the next one finds.
        self.tag = match self.rng.chance(50) {
            true => TAGS[0],
            false => TAGS[self.rng.below(TAGS.len() as u64) as usize],
        };
        let key = format!("{}k", self.tag).into_bytes();
        let db = self.db;
        let commands = match self.rng.below(1000) {
            0..=2 => return Step::Pause(1 + self.rng.below(30)),
            3..=8 => {
                let command = self.filled(true);
                return Step::Wait { db, key, command };
            }
            9 => vec![vec![b"FLUSHDB".to_vec()]],
            10 if self.rng.chance(30) => vec![vec![b"FLUSHALL".to_vec()]],
            11..=60 => self.transaction(),
            61..=110 if self.scripts => vec![self.script()],
            _ => vec![self.filled(false)],
        };
        Step::Run { db, key, commands }
    }

    fn transaction(&mut self) -> Vec<Words> {
        let words = |text: &str| vec![text.as_bytes().to_vec()];
        let mut all = Vec::new();
        if self.rng.chance(20) {
            let watched = self.fill("k");
            all.push(vec![b"WATCH".to_vec(), watched]);
        }
        all.push(words("MULTI"));
        for _ in 0..1 + self.rng.below(5) {
            let (script, waits) = (self.scripts && self.rng.chance(8), self.rng.chance(5));
            all.push(match script {
                true => self.script(),
                false => self.filled(waits),
            });
        }
        all.push(words(if self.rng.chance(8) {
            "DISCARD"
        } else {
            "EXEC"
        }));
        all
    }

    fn script(&mut self) -> Words {
        let text = |text: &str| text.as_bytes().to_vec();
        let mut out = match self.able.functions && self.rng.chance(40) {
            true => vec![text("FCALL"), text("fuzz_many")],
            false => vec![text("EVAL"), text(SCRIPT)],
        };
        let mut arguments = Vec::new();
        for _ in 0..1 + self.rng.below(4) {
            let command = self.filled(false);
            arguments.push(command.len().to_string().into_bytes());
            arguments.extend(command);
        }
        // One key is named, as a cluster wants it; what a script names or not is its own affair elsewhere.
        out.push(text("1"));
        out.push(format!("{}s0", self.tag).into_bytes());
        out.extend(arguments);
        out
    }

    fn filled(&mut self, waits: bool) -> Words {
        let mut forms = std::mem::take(if waits {
            &mut self.waiting
        } else {
            &mut self.forms
        });
        let mut rng = Rng::new(self.rng.next());
        let form = &forms[rng.below(forms.len() as u64) as usize];
        let mut out = Vec::with_capacity(8);
        expand(form, &mut rng, &mut out, &mut |name, _| self.fill(name));
        std::mem::swap(
            if waits {
                &mut self.waiting
            } else {
                &mut self.forms
            },
            &mut forms,
        );
        out
    }

    /// A key of a type, mostly.
    fn key(&mut self, kind: &str) -> Vec<u8> {
        let tag = match self.able.cluster || self.rng.chance(60) {
            true => self.tag,
            false => TAGS[self.rng.below(TAGS.len() as u64) as usize],
        };
        let kind = match kind {
            // Kept apart: other writes into a HyperLogLog make some servers crash (CVE-2025-32023).
            "p" => "p",
            // Hashes and streams take long to build up: they are overwritten more rarely.
            "d" if self.rng.chance(85) => self.rng.one_of(&MIXED[..4]),
            "k" if self.rng.chance(50) => self.rng.one_of(&MIXED[..4]),
            "k" | "d" => self.rng.one_of(&MIXED),
            _ if self.rng.chance(2) => self.rng.one_of(&MIXED),
            kind => TYPES.iter().find(|t| **t == kind).copied().unwrap_or("s"),
        };
        format!("{tag}{kind}{}", self.rng.below(OF_A_TYPE)).into_bytes()
    }

    fn id(&mut self) -> String {
        let back = self.rng.below(25).min(self.ids);
        format!("{}-{}", FIRST_ID + self.ids - back, self.rng.below(2))
    }

    /// Milliseconds of a life: some end at once, some soon, some never here.
    fn life(&mut self) -> i64 {
        const SHORT: [i64; 5] = [1, 5, 40, 300, 1_500];
        const LONG: [i64; 4] = [6_000, 3_600_000, 86_400_000, 50_000_000_000];
        let life = match self.rng.chance(30) {
            true => SHORT[self.rng.below(5) as usize],
            false => LONG[self.rng.below(4) as usize],
        };
        life + self.rng.below(3) as i64
    }

    fn fill(&mut self, blank: &str) -> Vec<u8> {
        let rng = &mut self.rng;
        let text = match blank {
            "s" | "l" | "e" | "z" | "h" | "x" | "g" | "p" | "q" | "k" | "d" => {
                return self.key(blank);
            }
            "v" => match rng.below(12) {
                0 => {
                    let len = [10, 60, 500, 5_000, 20_000][rng.below(5) as usize];
                    return rng.bytes(len);
                }
                1 => return Vec::new(),
                2 => "3.25".to_owned(),
                3 => (rng.next() as i64).to_string(),
                4..=6 => rng.below(100).to_string(),
                _ => rng.word(3),
            },
            "m" => format!("m{}", rng.below(12)),
            "F" => format!("f{}", rng.below(8)),
            "i" => match rng.below(10) {
                0 => i64::MAX.to_string(),
                1 => format!("-{}", rng.below(1000)),
                _ => rng.below(40).to_string(),
            },
            "f" => rng
                .one_of(&["0.1", "-2.5", "3", "1e10", "1e-7", "0.333333333333", "-0"])
                .to_owned(),
            "c" => rng
                .one_of(&["1", "2", "0", "-1.5", "inf", "-inf", "2.5e-3", "7", "-0"])
                .to_owned(),
            "r" => rng
                .one_of(&["-inf", "+inf", "1", "(1", "2", "(2.5", "-1", "5"])
                .to_owned(),
            "lex" => rng.one_of(&["-", "+", "[m3", "(m6", "[m9"]).to_owned(),
            "n" => (1 + rng.below(4)).to_string(),
            "o" => rng.below(30).to_string(),
            "j" => (rng.below(12) as i64 - 5).to_string(),
            "bit" => rng.below(2).to_string(),
            "bt" => rng.one_of(&["u8", "i5", "u63", "i64"]).to_owned(),
            "lon" => (rng.below(360) as i64 - 180).to_string(),
            "lat" => (rng.below(170) as i64 - 85).to_string(),
            "km" => rng.one_of(&["100", "5000", "30000"]).to_owned(),
            "pat" => rng.one_of(&["{a}s*", "{b}h*->f1", "s*"]).to_owned(),
            "grp" if rng.chance(70) => "g0".to_owned(),
            "grp" => format!("g{}", rng.below(2)),
            "con" => format!("c{}", rng.below(3)),
            "idle" => rng.one_of(&["0", "0", "1", "50"]).to_owned(),
            "wait" => "0.03".to_owned(),
            "db" => rng.below(3).to_string(),
            "ms" if rng.chance(4) => "-5".to_owned(),
            "ms" => self.life().to_string(),
            "sec" => (self.life() / 1000 + rng_bit(&mut self.rng)).to_string(),
            "ttl" if rng.chance(50) => "0".to_owned(),
            "ttl" => self.life().to_string(),
            "mat" if rng.chance(5) => "1000".to_owned(),
            "mat" => (now_ms() as i64 + self.life()).to_string(),
            "at" if rng.chance(5) => "1".to_owned(),
            "at" => ((now_ms() as i64 + self.life()) / 1000).to_string(),
            "id" => self.id(),
            "new" if rng.chance(15) => "*".to_owned(),
            "new" if rng.chance(10) => self.id(),
            "new" => {
                self.ids += 1;
                format!("{}-{}", FIRST_ID + self.ids, rng_bit(&mut self.rng))
            }
            "dump" => match self.dumps.is_empty() {
                true => "none".to_owned(),
                false => {
                    let n = self.rng.below(self.dumps.len() as u64) as usize;
                    return self.dumps[n].clone();
                }
            },
            other => panic!("no blank is called {other}"),
        };
        text.into_bytes()
    }
}

fn rng_bit(rng: &mut Rng) -> i64 {
    rng.below(2) as i64
}

/// Every form is understood, and every blank in it can be filled.
#[test]
fn every_form_can_be_made() {
    let all = FORMS.iter().chain(WAITING);
    let commands = all.filter_map(|f| Some(f.split_once(": ")?.0.to_owned()));
    let able = Able {
        commands: commands.chain(["hpexpire".to_owned()]).collect(),
        cluster: false,
        without: Vec::new(),
        fields: true,
        databases: vec![0, 1],
        functions: true,
    };
    let mut maker = Maker::new(1, able);
    assert_eq!(
        maker.forms.len() + maker.waiting.len(),
        FORMS.len() + WAITING.len()
    );
    for _ in 0..5_000 {
        maker.step();
    }
}
