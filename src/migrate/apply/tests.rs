//! A model test: random commands, acknowledgements, lost connections, crashes and failovers, against a reference model
//! of both servers. The parts are the real ones; only the sockets are not.
//!
//! `KEYFERRY_FULL=1` runs it for a minute; `KEYFERRY_SEED=n` repeats one run.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

pub(crate) mod servers;

use crate::migrate::apply::applier::{Applier, Parts};
use crate::migrate::checkpoint::checkpoints::Checkpoints;
use crate::migrate::context::ShardContext;
use crate::migrate::stream::position::{StreamPosition, window_after};
use crate::migrate::testing;
use crate::migrate::write::door::Door;
use crate::migrate::write::target_writer::TargetWriter;
use crate::rdb::payload::Target;
use crate::store::{Existing, Own, ShardState};
use crate::target::health::{Health, View};
use crate::target::{Batch, Database};
use crate::types::{DbIndex, Mark, ReplOffset, Slot, unix_ms};
use servers::{DATABASES, FakeReader, FakeWire, Model, Random, Rules, Source, Strings};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A whole run: both servers, and the shard between them, which crashes and comes back.
struct Run {
    dir: tempfile::TempDir,
    rules: Rules,
    nodes: usize,
    source: Rc<RefCell<Source>>,
    model: Rc<RefCell<Model>>,
    health: Arc<Health>,
    /// Failovers that have taken something away, in this run of the shard and altogether.
    losses: (u64, u64),
    /// How many of them what is saved has taken in: the next run finds out about the others.
    known: u64,
    shard: Option<Applier<FakeWire, FakeReader>>,
    random: Random,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            random.below(2);
        }
        let rules = Rules {
            only_keep: random.one_in(3),
            skips_own: random.one_in(3),
            leaves_out_1: random.one_in(3),
        };
        let nodes = 1 + random.below(2) as usize * 2;
        let mut strings = Strings::default();
        if rules.skips_own {
            strings.0.insert((0, "own".into()), "the target's".into());
        }
        let model = Model {
            survives: vec![strings.clone()],
            strings,
            rules,
            flight: (0..nodes).map(|_| VecDeque::new()).collect(),
            refused: Vec::new(),
            texts: Vec::new(),
            cut: false,
            cuts: 2,
            random: Random(random.0.rotate_left(7) | 1),
        };
        let mut run = Run {
            dir: tempfile::tempdir().unwrap(),
            rules,
            nodes,
            source: Rc::default(),
            model: Rc::new(RefCell::new(model)),
            health: Arc::default(),
            losses: (0, 0),
            known: 0,
            shard: None,
            random,
        };
        run.start(testing::streaming());
        run
    }

    /// One node, and a plan that leaves nothing out.
    fn plain() -> Run {
        let plain = Rules {
            only_keep: false,
            skips_own: false,
            leaves_out_1: false,
        };
        let is = |run: &Run| run.nodes == 1 && run.rules == plain;
        (1..).map(Run::new).find(is).unwrap()
    }

    /// What the next run finds.
    fn stored(&mut self) -> ShardState {
        let ctx = self.shard().ctx.clone();
        ctx.shared.store(|s| s.shards()).unwrap().remove(0)
    }

    /// Begins, or goes on from what was saved.
    fn start(&mut self, shard: ShardState) {
        self.shard = None;
        let mut shared = testing::shared(self.dir.path(), testing::job(self.rules.plan()));
        shared.health = Some(self.health.clone());
        shared.run.patience = Duration::from_secs(60);
        if self.rules.skips_own {
            let mut keys = Existing::default();
            keys.insert(DbIndex(0), b"own");
            shared.own = Own::kept(keys);
        }
        let ctx: Rc<ShardContext> = testing::context(self.dir.path(), shared);
        let shard = ShardState {
            clean: false,
            ..shard
        };
        (ctx.shared.store)
            .lock()
            .unwrap()
            .save_shards(std::slice::from_ref(&shard), &BTreeMap::new(), None)
            .unwrap();
        let arrived = ReplOffset(self.source.borrow().stream.len() as u64);
        let window_end = window_after(&shard, arrived);
        let mut expiry = testing::guard(&ctx, self.dir.path());
        if self.random.one_in(2) {
            expiry.drained();
        }
        let wire = FakeWire {
            model: self.model.clone(),
            open: Batch::new(Vec::new(), Database::ZERO),
            open_mark: None,
            nodes: self.nodes,
        };
        let format = Target {
            valkey: false,
            version: (7, 0, 0),
        };
        self.losses.0 = u64::from(self.known < self.losses.1);
        self.health.show(View {
            losses: self.losses.0,
            ..View::default()
        });
        let at = shard.applied.unwrap();
        let parts = Parts {
            position: StreamPosition::new(at, shard.applied_db, window_end),
            marks: Checkpoints::new(ctx.clone(), shard),
            expiry,
            door: Door::new(ctx.clone(), testing::databases(DATABASES)),
            writer: TargetWriter::new(ctx.clone(), wire, format),
            reader: FakeReader(self.source.clone(), self.model.clone()),
        };
        self.shard = Some(Applier::new(ctx, parts));
    }

    fn shard(&mut self) -> &mut Applier<FakeWire, FakeReader> {
        self.shard.as_mut().unwrap()
    }

    /// The source runs something.
    fn write(&mut self) {
        let random = &mut self.random;
        let db = random.below(u64::from(DATABASES) + 2) as u32;
        let many = if random.one_in(4) { 3 } else { 1 };
        let commands: Vec<Vec<String>> = (0..many)
            .map(|_| {
                let (a, b, n) = (random.key(), random.key(), random.below(6).to_string());
                let v = random.below(7);
                let line = match random.below(24) {
                    0..=7 => "INCR keep:n".to_owned(),
                    8..=10 => format!("APPEND {a} x{v}"),
                    11..=13 => format!("SET {a} {v}"),
                    14 => format!("MSET {a} 1 {b} 2"),
                    15 | 16 => format!("DEL {a} {b}"),
                    17 | 18 if a != b => format!("RENAME {a} {b}"),
                    19 | 20 => format!("COPY {a} {b} DB {n} REPLACE"),
                    21 => format!("MOVE {a} {n}"),
                    22 if many == 1 && random.one_in(6) => "FLUSHDB".to_owned(),
                    23 if many == 1 && random.one_in(20) => "FLUSHALL".to_owned(),
                    _ => format!("INCR {a}"),
                };
                line.split(' ').map(str::to_owned).collect()
            })
            .collect();
        self.source.borrow_mut().run(db, &commands);
    }

    /// The shard takes some of what has come.
    fn take(&mut self, most: u64) {
        let stream = self.source.borrow().stream.clone();
        // Long enough for what waits to be due.
        if most < 10 && !self.shard().healer.is_idle() && self.random.one_in(6) {
            std::thread::sleep(Duration::from_millis(21));
        }
        for _ in 0..most {
            let shard = self.shard();
            if shard.writer.troubled() {
                shard.resolve().unwrap();
            }
            let at = shard.position.routed().0 as usize;
            let taken = shard.take(&stream[at..], &mut Vec::new(), 1 << 20).unwrap();
            self.finish_flush();
            if taken.is_none() {
                return;
            }
        }
    }

    /// As the loop does: what a flush may have left is compared with the source.
    fn finish_flush(&mut self) {
        while let Some((hold, only)) = self.shard().flush.take() {
            self.shard().settle_all().unwrap();
            let mut by_db: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
            for (db, key) in self.model.borrow().strings.0.keys() {
                let ours = self.rules.admit(*db, key);
                if ours && only.is_none_or(|only| only.0 == *db) {
                    by_db.entry(*db).or_default().push(key.clone().into_bytes());
                }
            }
            for (db, keys) in by_db {
                self.shard().compare(DbIndex(db), keys).unwrap();
            }
            self.shard().settle_all().unwrap();
            self.shard().marks.release(hold);
        }
    }

    fn save(&mut self) {
        let shard = self.shard();
        let timed = shard.expiry.save().unwrap();
        let standing = shard.standing(false);
        shard.marks.save(standing, timed).unwrap();
        // No saved mark passes what is on its way.
        let applied = shard.marks.shard().applied.unwrap();
        if let Some(Mark::Stream { at, .. }) = shard.writer.oldest() {
            assert!(applied <= at, "{applied} is saved, {at} is on its way");
        }
    }

    /// A kill: of what is on its way, any part of each node's has run.
    fn crash(&mut self) {
        {
            let mut model = self.model.borrow_mut();
            for node in 0..self.nodes {
                let many = model.flight[node].len() as u64;
                for _ in 0..model.random.below(many + 1) {
                    model.run_one(node);
                }
                model.flight[node].clear();
            }
            model.refused.clear();
            model.texts.clear();
            model.cut = false;
        }
        let saved = self.stored();
        self.start(saved);
    }

    /// Everything that the target has answered survives a failover from now on.
    fn stabilize(&mut self) {
        let mut model = self.model.borrow_mut();
        model.survives = vec![model.strings.clone()];
        self.health.show(View {
            stable_until: Some(Instant::now()),
            losses: self.losses.0,
            ..View::default()
        });
    }

    /// A replica takes over that lacks some of what was answered last.
    fn fail_over(&mut self) {
        {
            let mut model = self.model.borrow_mut();
            let states = model.survives.len() as u64;
            let kept = model.random.below(states) as usize;
            model.strings = model.survives[kept].clone();
            model.survives.truncate(kept + 1);
        }
        self.losses = (self.losses.0 + 1, self.losses.1 + 1);
        self.health.show(View {
            losses: self.losses.0,
            ..View::default()
        });
        self.shard().settle_sent().unwrap();
    }

    /// As the loop does, when it finds that the target has lost a master.
    fn meet_loss(&mut self) {
        if !self.shard().marks.has_lost() {
            return;
        }
        self.shard().settle_sent().unwrap();
        let losses = self.losses.0;
        self.shard().go_back(losses);
        // A kill in between leaves the loss to be found again.
        if self.random.one_in(4) {
            return self.crash();
        }
        self.save();
        self.known = self.losses.1;
    }

    fn step(&mut self, cuts: &mut u32) {
        match self.random.below(31) {
            0..=9 => self.write(),
            10..=17 => {
                let most = 1 + self.random.below(6);
                self.take(most);
            }
            18..=21 => {
                let node = self.random.below(self.nodes as u64) as usize;
                let many = self.random.below(8);
                for _ in 0..many {
                    self.model.borrow_mut().run_one(node);
                }
            }
            22 | 23 => self.save(),
            24 => self.shard().heal_all().unwrap(),
            25 => self.crash(),
            26 => self.stabilize(),
            27 => self.fail_over(),
            29 => self.meet_loss(),
            // Each costs a pause.
            28 if *cuts > 0 => {
                *cuts -= 1;
                self.model.borrow_mut().cut = true;
            }
            _ => {
                self.shard().settle_all().unwrap();
            }
        }
    }

    /// Everything is applied: what does the target hold that it should not, or lack?
    fn end(&mut self) {
        while self.shard().marks.has_lost() {
            self.meet_loss();
        }
        self.take(u64::MAX);
        loop {
            self.shard().settle_all().unwrap();
            if self.shard().flush.is_none() {
                break;
            }
            self.finish_flush();
        }
        self.save();
        let source = self.source.borrow();
        let mut wanted: BTreeMap<(u32, String), String> = (source.strings.0.iter())
            .filter(|((db, key), _)| self.rules.admit(*db, key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if self.rules.skips_own {
            wanted.insert((0, "own".into()), "the target's".into());
        }
        assert_eq!(self.model.borrow().strings.0, wanted);
        let applied = self.shard.as_ref().unwrap().marks.shard().applied;
        assert_eq!(applied, Some(ReplOffset(source.stream.len() as u64)));
    }
}

#[test]
fn whatever_happens_the_target_becomes_the_source() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let limit = match std::env::var("KEYFERRY_FULL").is_ok() {
        true => Duration::from_secs(60),
        false => Duration::from_secs(4),
    };
    let (began, first) = (Instant::now(), number("KEYFERRY_SEED"));
    let mut seed = first.unwrap_or(unix_ms() as u64);
    let mut runs = 0;
    while began.elapsed() < limit {
        let caught = std::panic::catch_unwind(|| {
            let (mut run, mut cuts) = (Run::new(seed), 2);
            for _ in 0..120 {
                run.step(&mut cuts);
            }
            run.end();
        });
        assert!(
            caught.is_ok(),
            "run {runs}: KEYFERRY_SEED={seed} repeats it"
        );
        seed = seed.wrapping_add(1);
        runs += 1;
    }
    assert!(runs > 3, "{runs} runs");
}

/// What a transaction makes itself is not there before it: a rate limiter's counter must not cost a reading each time.
#[test]
fn a_transaction_that_makes_a_timed_key_asks_for_nothing() {
    let mut run = Run::plain();
    let mut stream = Vec::new();
    for line in [
        "MULTI",
        "SET keep:n 0 PXAT 99999999999999",
        "INCR keep:n",
        "EXEC",
    ] {
        stream.extend(testing::encoded(line));
    }
    run.shard().expiry.drained();
    let taken = run.shard().take(&stream, &mut Vec::new(), 1 << 20);
    assert_eq!(taken.unwrap(), Some(stream.len()));
    let model = run.model.borrow();
    let sent: Vec<u8> = model
        .flight
        .iter()
        .flatten()
        .flat_map(|s| s.bytes.clone())
        .collect();
    assert_eq!(
        String::from_utf8_lossy(&sent),
        String::from_utf8_lossy(&stream)
    );
}

/// A failover during the load, or right after it: what is saved goes back with the shard, and is not where it had been.
#[test]
fn a_lost_master_takes_the_load_back() {
    for loaded in [false, true] {
        let mut run = Run::new(4);
        run.start(ShardState {
            snapshot_loaded: false,
            ..testing::streaming()
        });
        let shard = run.shard();
        shard.loading.set_active(!loaded);
        shard.loading.seek(5_000, DbIndex(2));
        if loaded {
            shard.marks.loaded(ReplOffset(0), DbIndex(0));
        }
        run.health.show(View {
            losses: 1,
            ..View::default()
        });
        run.shard().go_back(1);
        run.save();
        let saved = run.stored();
        assert_eq!((saved.snapshot_at, saved.snapshot_loaded), (0, false));
        assert_eq!(run.shard().loading.at(), 0);
    }
}

/// Trouble that comes up while others are healed may heal the key of the command at hand: then that is there already.
#[test]
fn a_command_is_decided_after_what_is_due_is_healed() {
    // The first is lost with its connection.
    let lost = |k: &u64| Random(*k).below(2) == 0;
    let lost = (1u64..)
        .map(|k| k.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
        .find(lost)
        .unwrap();
    let mut run = Run::plain();
    run.shard().expiry.drained();
    run.model.borrow_mut().cuts = 0;
    let command = |line: &str| vec![line.split(' ').map(str::to_owned).collect::<Vec<String>>()];
    for line in ["INCR keep:n", "INCR keep:n"] {
        run.source.borrow_mut().run(0, &command(line));
    }
    run.take(1);
    // On its way, and its connection is lost; meanwhile another key is due to be healed.
    let mark = run.shard().position.mark();
    run.shard().queue([(DbIndex(0), b"a".to_vec())], mark);
    std::thread::sleep(Duration::from_millis(25));
    run.model.borrow_mut().random = Random(lost);
    run.model.borrow_mut().cut = true;
    let stream = run.source.borrow().stream.clone();
    let at = run.shard().position.at().0 as usize;
    run.shard()
        .take(&stream[at..], &mut Vec::new(), 1 << 20)
        .unwrap();
    run.end();
}

/// A script that is run as it was called may write keys that it does not name: a verification of what has changed must
/// read every slot.
#[test]
fn a_script_writes_to_any_slot() {
    let mut run = Run::plain();
    run.shard().expiry.drained();
    run.shard().marks.note_writes(false).unwrap();
    let stream = testing::encoded("EVAL redis.call('incr','unnamed') 1 keep:n");
    run.shard().take(&stream, &mut Vec::new(), 1 << 20).unwrap();
    run.save();
    let written = (run.shard().ctx.shared.store(|s| s.written())).unwrap();
    let last = written[0].last_ms(Slot::of(b"unnamed"));
    assert!(last.is_some());
}
