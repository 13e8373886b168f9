//! The healer between a model of the source and one of the target: what waits, what is held, and what is covered.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::error::ErrorKind;
use crate::fence::GroupFact;
use crate::migrate::apply::tests::servers::{FakeReader, FakeWire, Model, Random, Rules, Source};
use crate::migrate::context::Shared;
use crate::migrate::slots::ownership::Ownership;
use crate::migrate::testing::Quiet;
use crate::migrate::write::target_writer::TargetWriter;
use crate::net::server::Master;
use crate::rdb::payload::Target;
use crate::target::{Batch, Database};
use crate::types::{ExpireAt, ShardId};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// The source, which tells what a key weighs and may bring trouble while it is read.
struct Reader {
    source: FakeReader,
    model: Rc<RefCell<Model>>,
    size: u64,
    /// What has been read, a line for each round trip.
    log: Vec<String>,
    /// The target's connections are cut after so many round trips.
    cut_after: usize,
    /// The source fails after so many.
    fails_after: usize,
}

impl ReadStates for Reader {
    fn asks(&self) -> bool {
        true
    }

    fn sizes(&mut self, _: DbIndex, keys: &[&[u8]]) -> Result<Vec<Option<u64>>> {
        Ok(vec![Some(self.size); keys.len()])
    }

    fn read(
        &mut self,
        db: DbIndex,
        keys: &[&[u8]],
        moved: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Vec<KeyState>> {
        if self.log.len() == self.fails_after {
            return Err(Error::new(ErrorKind::Connection, "the source is gone"));
        }
        let names: Vec<_> = keys.iter().map(|k| String::from_utf8_lossy(k)).collect();
        self.log.push(format!("{db}: {}", names.join(" ")));
        let mut states = self.source.read(db, keys, moved)?;
        for (state, key) in states.iter_mut().zip(keys) {
            if moved(key) {
                *state = KeyState::elsewhere();
            }
        }
        self.model.borrow_mut().cut |= self.log.len() == self.cut_after;
        Ok(states)
    }

    fn exist(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<bool>> {
        self.source.exist(db, keys)
    }

    fn expiries(&mut self, db: DbIndex, keys: &[&[u8]]) -> Result<Vec<Option<Option<ExpireAt>>>> {
        self.source.expiries(db, keys)
    }

    fn groups(&mut self, db: DbIndex, key: &[u8]) -> Result<Vec<GroupFact>> {
        self.source.groups(db, key)
    }

    fn field_expiries(
        &mut self,
        db: DbIndex,
        fields: &[(&[u8], &[u8])],
    ) -> Result<Vec<Option<ExpireAt>>> {
        self.source.field_expiries(db, fields)
    }

    fn meet_history(&mut self) {}
}

struct Bench {
    quiet: Quiet,
    writer: TargetWriter<FakeWire>,
    reader: Reader,
    source: Rc<RefCell<Source>>,
    model: Rc<RefCell<Model>>,
    healer: Healer,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(json!({"on_loss": "list"}), |_| {})
    }

    fn with(members: Value, change: impl FnOnce(&mut Shared)) -> Bench {
        let quiet = Quiet::new(members, change);
        let model = Rc::new(RefCell::new(Model {
            strings: Default::default(),
            rules: Rules {
                only_keep: false,
                skips_own: false,
                leaves_out_1: false,
            },
            flight: vec![Default::default()],
            refused: Vec::new(),
            texts: Vec::new(),
            cut: false,
            cuts: 0,
            survives: Vec::new(),
            random: Random(1),
        }));
        let wire = FakeWire {
            model: model.clone(),
            open: Batch::new(Vec::new(), Database::ZERO),
            open_mark: None,
            nodes: 1,
        };
        let format = Target {
            valkey: false,
            version: (7, 0, 0),
        };
        let source: Rc<RefCell<Source>> = Rc::default();
        Bench {
            writer: TargetWriter::new(quiet.ctx.clone(), wire, format),
            quiet,
            reader: Reader {
                source: FakeReader(source.clone(), model.clone()),
                model: model.clone(),
                size: 10,
                log: Vec::new(),
                cut_after: usize::MAX,
                fails_after: usize::MAX,
            },
            source,
            model,
            healer: Healer::new(),
        }
    }

    /// The source runs a command; returns where its stream ends then.
    fn run(&self, db: u32, line: &str) -> ReplOffset {
        let words = line.split(' ').map(str::to_owned).collect();
        let mut source = self.source.borrow_mut();
        source.run(db, &[words]);
        ReplOffset(source.stream.len() as u64)
    }

    fn queue(&mut self, db: u32, keys: &[&str], at: u64) {
        let keys = keys.iter().map(|k| key(db, k));
        let now = Instant::now();
        self.healer
            .queue(keys, mark(at), &mut self.quiet.marks, now);
    }

    fn try_drain(&mut self) -> Result<Drained> {
        let mut states = StateWriter {
            ctx: &self.quiet.ctx,
            door: &mut self.quiet.door,
            writer: &mut self.writer,
            expiry: &mut self.quiet.expiry,
        };
        let (ctx, marks) = (&self.quiet.ctx, &mut self.quiet.marks);
        self.healer.drain(ctx, &mut self.reader, &mut states, marks)
    }

    #[track_caller]
    fn drains(&mut self) {
        assert!(matches!(self.try_drain().unwrap(), Drained::Empty));
    }

    #[track_caller]
    fn is_cut_off(&mut self) {
        assert!(matches!(self.try_drain().unwrap(), Drained::Troubled));
    }

    /// Where checkpoints are held, apart from what is in flight.
    fn held(&self) -> Option<Mark> {
        self.quiet.marks.oldest(None)
    }

    fn waits(&self, db: u32, key: &str) -> bool {
        self.healer.waits(DbIndex(db), key.as_bytes())
    }

    fn covers(&self, db: u32, key: &str, end: ReplOffset) -> bool {
        self.healer.covers(DbIndex(db), key.as_bytes(), end)
    }

    fn healed(&self) -> u64 {
        self.quiet.ctx.progress.healed.load(Relaxed)
    }

    /// What the target holds once everything is answered, as `database:key=value`.
    fn target(&mut self) -> String {
        assert!(self.writer.settle().0.is_empty());
        let model = self.model.borrow();
        let pairs = (model.strings.0.iter()).map(|((db, k), v)| format!("{db}:{k}={v}"));
        pairs.collect::<Vec<_>>().join(" ")
    }
}

fn key(db: u32, name: &str) -> Key {
    (DbIndex(db), name.as_bytes().to_vec())
}

fn mark(at: u64) -> Mark {
    Mark::Stream {
        at: ReplOffset(at),
        db: DbIndex::ZERO,
    }
}

#[test]
fn keys_are_read_at_a_time_by_number_and_by_size() {
    assert_eq!(windows_of(&[]), [] as [usize; 0]);
    assert_eq!(windows_of(&[Some(100); 130]), [64, 64, 2]);
    assert_eq!(windows_of(&[None; 20]), [16, 4]);
    let mb = Some(1 << 20);
    assert_eq!(
        windows_of(&[mb, mb, mb, Some(1 << 30), Some(0), mb]),
        [2, 1, 1, 2]
    );
}

#[test]
fn the_earliest_mark_is_held_until_the_states_are_on_their_way() {
    let mut bench = Bench::new();
    bench.run(0, "SET a 1");
    bench.run(2, "SET b 2");
    bench.drains();
    assert!(bench.healer.is_idle() && bench.reader.log.is_empty());
    for (db, name, at, held) in [(0, "a", 50, 50), (2, "b", 30, 30), (0, "c", 90, 30)] {
        bench.queue(db, &[name], at);
        assert_eq!(bench.held(), Some(mark(held)));
        assert!(bench.waits(db, name) && !bench.waits(db + 1, name));
    }
    bench.drains();
    assert!(bench.healer.is_idle() && !bench.waits(0, "a"));
    // From here on it is what is in flight that keeps checkpoints back.
    assert_eq!(bench.held(), None);
    assert_eq!(bench.writer.oldest(), Some(mark(30)));
    assert_eq!(bench.reader.log, ["0: a c", "2: b"]);
    // The source has no c.
    bench
        .model
        .borrow_mut()
        .strings
        .0
        .insert((0, "c".into()), "old".into());
    assert_eq!(bench.target(), "0:a=1 2:b=2");
    assert_eq!(bench.healed(), 3);
}

#[test]
fn fences_are_durable_before_a_state_is_written() {
    let mut bench = Bench::new();
    let end = bench.run(0, "SET a 1");
    bench.queue(0, &["a"], 0);
    bench.drains();
    let shards = bench.quiet.ctx.shared.store(|s| s.shards()).unwrap();
    assert!(shards.iter().all(|s| s.fence_high >= Some(end)) && shards.len() == 1);
}

#[test]
fn after_trouble_the_rest_waits_and_is_held() {
    let mut bench = Bench::new();
    // Each is read by itself.
    bench.reader.size = 4 << 20;
    bench.reader.cut_after = 2;
    for line in ["SET a 1", "SET b 2", "SET c 3", "SET d 4"] {
        bench.run(0, line);
    }
    let end = bench.run(1, "SET a 5");
    bench.queue(0, &["a", "b", "c", "d"], 40);
    bench.queue(1, &["a"], 60);
    bench.is_cut_off();
    assert_eq!(bench.reader.log, ["0: a", "0: b"]);
    for (db, name, done) in [
        (0, "a", true),
        (0, "b", true),
        (0, "c", false),
        (0, "d", false),
        (1, "a", false),
    ] {
        assert_eq!(bench.waits(db, name), !done, "{db}:{name}");
        assert_eq!(bench.covers(db, name, end), done, "{db}:{name}");
    }
    assert_eq!((bench.held(), bench.healed()), (Some(mark(40)), 2));
    // Still in trouble: nothing is read.
    bench.is_cut_off();
    assert_eq!(bench.reader.log.len(), 2);
    assert_eq!(bench.held(), Some(mark(40)));
    // What has not arrived is queued again by whoever settles it; an earlier mark extends the hold.
    let _ = bench.writer.settle();
    bench.queue(0, &["a", "b"], 35);
    assert_eq!(bench.held(), Some(mark(35)));
    bench.drains();
    assert_eq!((bench.held(), bench.healed()), (None, 7));
    assert_eq!(bench.target(), "0:a=1 0:b=2 0:c=3 0:d=4 1:a=5");
}

#[test]
fn after_an_error_the_hold_stays() {
    let mut bench = Bench::new();
    bench.reader.size = 4 << 20;
    bench.reader.fails_after = 1;
    bench.queue(0, &["a", "b"], 40);
    let Err(e) = bench.try_drain() else {
        panic!("the source is gone")
    };
    assert_eq!(e.kind(), ErrorKind::Connection);
    assert_eq!(bench.held(), Some(mark(40)));
}

#[test]
fn a_state_covers_the_stream_up_to_its_offset() {
    let mut bench = Bench::new();
    let first = bench.run(0, "SET a 1");
    bench.queue(0, &["a"], 0);
    assert!(!bench.covers(0, "a", first), "nothing is read yet");
    bench.drains();
    assert!(bench.covers(0, "a", ReplOffset(1)) && bench.covers(0, "a", first));
    assert!(!bench.covers(0, "a", first.plus(1)));
    assert!(!bench.covers(1, "a", first) && !bench.covers(0, "b", first));
    let second = bench.run(1, "SET b 2");
    bench.queue(1, &["b"], 0);
    bench.drains();
    assert!(bench.covers(1, "b", second) && !bench.covers(0, "a", second));
    assert_eq!(bench.healer.ahead_to(), second);
    let mut all = bench.healer.keys_ahead(None);
    all.sort_unstable();
    assert_eq!(all, [key(0, "a"), key(1, "b")]);
    assert_eq!(bench.healer.keys_ahead(Some(DbIndex(1))), [key(1, "b")]);
    assert_eq!(bench.healer.keys_beyond(first), [key(1, "b")]);
    assert_eq!(bench.healer.keys_beyond(second), []);
    // It is forgotten only when the stream is behind all of it.
    bench.healer.pass(second);
    assert!(bench.healer.is_ahead() && bench.covers(1, "b", second));
    bench.healer.pass(second.plus(1));
    assert!(!bench.healer.is_ahead() && !bench.covers(1, "b", second));
    // A key that is read once more is covered further.
    bench.queue(0, &["a"], 0);
    bench.drains();
    let third = bench.run(0, "SET a 3");
    assert!(bench.covers(0, "a", second) && !bench.covers(0, "a", third));
    bench.queue(0, &["a"], 0);
    bench.drains();
    assert!(bench.covers(0, "a", third));
    // Also one that the source has no more.
    bench.run(0, "DEL a");
    let end = bench.run(0, "SET other 1");
    bench.queue(0, &["a"], 0);
    bench.drains();
    assert!(bench.covers(0, "a", end));
    bench.healer.rewind();
    assert!(!bench.healer.is_ahead() && bench.healer.is_idle());
}

#[test]
fn a_state_that_is_refused_too_often_is_an_error_that_names_the_key() {
    let mut bench = Bench::new();
    let why = || Error::new(ErrorKind::Refused, "WRONGTYPE");
    let begun = Instant::now();
    let at = |healer: &mut Healer, db, key: &str, s: u64| {
        let now = begun + Duration::from_secs(s);
        healer.refused(DbIndex(db), key.as_bytes(), why(), now)
    };
    let refused = |healer: &mut Healer, db, key: &str| at(healer, db, key, 0);
    for _ in 0..8 {
        refused(&mut bench.healer, 0, "stubborn").unwrap();
    }
    refused(&mut bench.healer, 1, "stubborn").unwrap();
    refused(&mut bench.healer, 0, "other").unwrap();
    let Err(e) = refused(&mut bench.healer, 0, "stubborn") else {
        panic!("that was too often")
    };
    assert!(e.chain().contains("\"stubborn\"") && e.chain().contains("WRONGTYPE"));
    assert_eq!(e.kind(), ErrorKind::Refused);
    // However far the stream gets meanwhile; but a minute without a refusal makes good.
    let end = bench.run(0, "SET other 1");
    bench.queue(0, &["other"], 0);
    bench.drains();
    bench.healer.pass(end.plus(1));
    at(&mut bench.healer, 0, "stubborn", 59).unwrap_err();
    at(&mut bench.healer, 0, "stubborn", 119).unwrap();
}

/// A source of two shards, of which this one has the lower slots; and a key of either.
fn of_two() -> (Bench, Arc<Ownership>, String, String) {
    let master = |slots: std::ops::RangeInclusive<u16>| Master {
        address: "source:1".into(),
        slots: slots.map(Slot::numbered).collect(),
        replicas: Vec::new(),
    };
    let (low, high) = (master(0..=8191), master(8192..=16383));
    let both = [(ShardId(0), &low), (ShardId(1), &high)];
    let ownership = Arc::new(Ownership::new(&both, &[], None));
    let mut bench = Bench::with(json!({}), |shared| {
        shared.ownership = Some(ownership.clone());
    });
    let ctx = bench.quiet.ctx.clone();
    bench.quiet.door.slots_mut().refresh(&ctx);
    let name = |high: bool| {
        let name = |n: u32| format!("key:{n}");
        let is = |n: &u32| (Slot::of(name(*n).as_bytes()).number() > 8191) == high;
        name((0..).find(is).unwrap())
    };
    (bench, ownership, name(false), name(true))
}

#[test]
fn a_key_whose_slot_is_not_ours_is_left_out() {
    let (mut bench, _, ours, theirs) = of_two();
    bench.run(0, &format!("SET {ours} 1"));
    bench.run(0, &format!("SET {theirs} 1"));
    bench.queue(0, &[&ours, &theirs], 40);
    bench.drains();
    assert_eq!(bench.reader.log, [format!("0: {ours}")]);
    assert_eq!((bench.held(), bench.healed()), (None, 1));
    assert!(!bench.covers(0, &theirs, ReplOffset(1)));
    assert_eq!(bench.target(), format!("0:{ours}=1"));
}

#[test]
fn a_key_whose_slot_moves_while_it_is_read_is_left_out() {
    let (mut bench, ownership, ours, _) = of_two();
    bench.run(0, &format!("SET {ours} 1"));
    bench.queue(0, &[&ours], 40);
    // The shard has not met this yet.
    ownership.suspect(Slot::of(ours.as_bytes()));
    bench.drains();
    assert_eq!(bench.reader.log.len(), 1);
    assert_eq!((bench.held(), bench.healed()), (None, 0));
    assert!(!bench.covers(0, &ours, ReplOffset(1)));
    assert_eq!(bench.target(), "");
    let counts = bench.quiet.ctx.take_tally().0;
    assert_eq!(counts.get("left_to_adoption"), Some(&1));
}

#[test]
fn a_key_whose_slot_has_come_is_written_while_it_is_copied() {
    let (mut bench, ownership, _, theirs) = of_two();
    bench.run(0, &format!("SET {theirs} 1"));
    bench.quiet.door.slots_mut().adopt(true);
    // Without a picture of the cluster that shows it here, it may have gone on to the next.
    bench.queue(0, &[&theirs], 40);
    bench.drains();
    assert_eq!(bench.target(), "");
    ownership.observe(&[0; crate::types::SLOTS]);
    bench.queue(0, &[&theirs], 40);
    bench.drains();
    assert_eq!(bench.target(), format!("0:{theirs}=1"));
}

#[test]
fn a_dry_run_only_counts() {
    let mut bench = Bench::with(json!({}), |shared| shared.run.dry_run = true);
    let end = bench.run(0, "SET a 1");
    bench.queue(0, &["a", "b"], 40);
    bench.drains();
    assert!(bench.reader.log.is_empty() && bench.healer.is_idle());
    assert_eq!((bench.held(), bench.healed()), (None, 2));
    assert!(!bench.covers(0, "a", end));
    assert_eq!(bench.target(), "");
}

#[test]
fn what_is_delivered_waits_no_more() {
    let mut bench = Bench::new();
    bench.queue(0, &["large", "other"], 40);
    let (healer, marks) = (&mut bench.healer, &mut bench.quiet.marks);
    healer.delivered(&key(0, "large"), ReplOffset(500), marks);
    assert!(!bench.waits(0, "large") && bench.waits(0, "other"));
    assert!(bench.covers(0, "large", ReplOffset(500)));
    assert!(!bench.covers(0, "large", ReplOffset(501)));
    assert_eq!((bench.held(), bench.healed()), (Some(mark(40)), 1));
    let (healer, marks) = (&mut bench.healer, &mut bench.quiet.marks);
    healer.delivered(&key(0, "other"), ReplOffset(500), marks);
    assert_eq!((bench.held(), bench.healed()), (None, 2));
    assert!(bench.healer.is_idle());
}

#[test]
fn what_is_handed_out_waits_no_more() {
    let mut bench = Bench::new();
    bench.queue(1, &["b", "a"], 40);
    bench.queue(0, &["c"], 50);
    let keys = bench.healer.hand_out(&mut bench.quiet.marks);
    assert_eq!(keys, [key(0, "c"), key(1, "a"), key(1, "b")]);
    assert!(bench.healer.is_idle() && bench.held().is_none());
    assert_eq!(bench.healer.hand_out(&mut bench.quiet.marks), []);
}
