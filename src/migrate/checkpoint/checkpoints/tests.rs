//! Checkpoints against a reference model and a store that is read again: which mark is saved, and what goes with it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;
use crate::error::{Error, ErrorKind};
use crate::migrate::expiry::filter::MaybeTimed;
use crate::migrate::expiry::held::Held;
use crate::migrate::load::loaded_keys::LoadedKeys;
use crate::migrate::testing;
use crate::store::Store;
use crate::target::health::{Health, View};
use crate::task::on_sync;
use crate::types::ShardId;
use proptest::prelude::*;
use serde_json::json;
use std::sync::Arc;
use tempfile::TempDir;

/// A shard with its store, whose target is watched.
struct Bench {
    marks: Checkpoints,
    ctx: Rc<ShardContext>,
    health: Arc<Health>,
    _dir: TempDir,
}

impl Bench {
    fn new(shard: ShardState) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let mut shared = testing::shared(dir.path(), testing::job(json!({"on_loss": "list"})));
        let health = Arc::new(Health::default());
        shared.health = Some(health.clone());
        let ctx = testing::context(dir.path(), shared);
        Bench {
            marks: Checkpoints::new(ctx.clone(), shard),
            ctx,
            health,
            _dir: dir,
        }
    }

    /// In the middle of its snapshot or of its stream.
    fn at(streams: bool) -> Bench {
        Bench::new(if streams {
            testing::streaming()
        } else {
            loading()
        })
    }

    /// Has everything that was acknowledged until now survive.
    fn survives(&self) {
        self.health.show(View {
            stable_until: Some(Instant::now() + Duration::from_secs(3600)),
            ..self.health.view()
        });
    }

    /// The shard as a new run would find it.
    fn stored(&self) -> ShardState {
        let shards = self.ctx.shared.store(|s| s.shards()).unwrap();
        assert_eq!(shards.len(), 1);
        shards[0].clone()
    }

    fn save(&mut self, routed: Mark, in_flight: Option<Mark>) {
        self.marks
            .save(standing(routed, in_flight), Relied::default())
            .unwrap();
    }

    /// What is saved with everything routed up to `at` and nothing in flight.
    fn saved_at(&mut self, at: u64) -> u64 {
        let streams = self.marks.shard().snapshot_loaded;
        self.save(mark(streams, at), None);
        saved(&self.stored()).0
    }
}

fn loading() -> ShardState {
    ShardState::new(ShardId(0), "source:1".into(), String::new())
}

fn standing(routed: Mark, in_flight: Option<Mark>) -> Standing {
    Standing {
        routed,
        in_flight,
        clean: false,
        sweep_lag_ms: 0,
    }
}

/// A mark whose database follows from its place.
fn mark(streams: bool, at: u64) -> Mark {
    let db = DbIndex((at % 5) as u32);
    match streams {
        true => Mark::Stream {
            at: ReplOffset(at),
            db,
        },
        false => Mark::Snapshot { at, db },
    }
}

fn stream(at: u64) -> Mark {
    mark(true, at)
}

fn snapshot(at: u64) -> Mark {
    mark(false, at)
}

/// The place that a new run would begin at.
fn saved(shard: &ShardState) -> (u64, DbIndex) {
    match shard.snapshot_loaded {
        true => (shard.applied.unwrap().0, shard.applied_db),
        false => (shard.snapshot_at, shard.snapshot_db),
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// So much more is routed.
    Route(u64),
    /// The lowest mark on its way is so far behind what is routed; or nothing is on its way.
    Flight(Option<u64>),
    /// So far behind what is routed.
    Hold(u64, Why),
    /// The hold of this number goes back by so much, or (what must change nothing) forward.
    Extend(usize, u64, bool),
    /// It may have been released before.
    Release(usize),
    Save,
    Beside,
    /// A state is about to be written that is so far ahead.
    Reserve(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let why = prop_oneof![Just(Why::Undone), Just(Why::ToAsk)];
    prop_oneof![
        3 => (1u64..100).prop_map(Step::Route),
        2 => prop::option::of(0u64..200).prop_map(Step::Flight),
        3 => (0u64..200, why).prop_map(|(back, why)| Step::Hold(back, why)),
        1 => (any::<usize>(), 0u64..200, any::<bool>()).prop_map(|(i, n, on)| Step::Extend(i, n, on)),
        3 => any::<usize>().prop_map(Step::Release),
        3 => Just(Step::Save),
        1 => Just(Step::Beside),
        1 => (0u64..10_000_000).prop_map(Step::Reserve),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Whatever the order: the saved mark is the lowest of what is routed, in flight and held.
    #[test]
    fn a_saved_mark_passes_nothing_that_is_not_done(
        streams: bool,
        steps in prop::collection::vec(any_step(), 1..50),
    ) {
        let mut bench = Bench::at(streams);
        let (mut routed, mut flight) = (1_000u64, None);
        let mut holds: Vec<(HoldId, Option<(u64, Why)>)> = Vec::new();
        // Nothing is saved yet.
        let mut wanted: Option<u64> = None;
        for step in steps {
            match step {
                Step::Route(n) => routed += n,
                Step::Flight(back) => flight = back.map(|back| routed - back),
                Step::Hold(back, why) => {
                    let at = routed - back;
                    holds.push((bench.marks.hold(mark(streams, at), why), Some((at, why))));
                }
                Step::Extend(i, n, on) if !holds.is_empty() => {
                    let i = i % holds.len();
                    let (id, held) = &mut holds[i];
                    let from = held.map_or(routed, |(at, _)| at);
                    let to = if on { from + n } else { from.saturating_sub(n) };
                    bench.marks.extend(*id, mark(streams, to));
                    *held = held.map(|(at, why)| (at.min(to), why));
                }
                Step::Release(i) if !holds.is_empty() => {
                    let i = i % holds.len();
                    bench.marks.release(holds[i].0);
                    holds[i].1 = None;
                }
                Step::Extend(..) | Step::Release(_) => {}
                Step::Save | Step::Beside => {
                    let standing = standing(mark(streams, routed), flight.map(|at| mark(streams, at)));
                    match step {
                        Step::Save => drop(bench.marks.save(standing, Relied::default()).unwrap()),
                        _ => {
                            bench.marks.save_beside(standing, Relied::default()).unwrap();
                            bench.marks.wait_saved().unwrap();
                        }
                    }
                    let held = holds.iter().filter_map(|(_, held)| held.map(|(at, _)| at));
                    wanted = held.chain(flight).chain([routed]).min();
                }
                Step::Reserve(ahead) => {
                    let to = ReplOffset(routed + ahead);
                    bench.marks.reserve(to).unwrap();
                    let stored = bench.stored();
                    prop_assert!(stored.fence_high.unwrap() >= to);
                    prop_assert_eq!(saved(&stored).0, wanted.unwrap_or(0));
                }
            }
            if let Some(at) = wanted {
                prop_assert_eq!(saved(&bench.stored()), (at, DbIndex((at % 5) as u32)));
            }
            let undone = holds.iter().filter_map(|(_, held)| *held).filter(|(_, why)| *why == Why::Undone);
            let oldest = undone.map(|(at, _)| at).chain(flight).min();
            let in_flight = flight.map(|at| mark(streams, at));
            prop_assert_eq!(bench.marks.oldest(in_flight), oldest.map(|at| mark(streams, at)));
        }
    }
}

#[test]
fn the_mark_moves_on_once_all_is_released() {
    for streams in [true, false] {
        let mut bench = Bench::at(streams);
        let undone = bench.marks.hold(mark(streams, 30), Why::Undone);
        let to_ask = bench.marks.hold(mark(streams, 20), Why::ToAsk);
        assert_eq!(bench.saved_at(100), 20);
        bench.marks.release(to_ask);
        assert_eq!(bench.saved_at(100), 30);
        bench.marks.extend(undone, mark(streams, 25));
        assert_eq!(bench.saved_at(100), 25);
        bench.marks.release(undone);
        assert_eq!(bench.saved_at(120), 120);
        bench.save(mark(streams, 140), Some(mark(streams, 130)));
        assert_eq!(saved(&bench.stored()).0, 130);
    }
}

/// Whoever meets an error releases nothing: what is saved at the end is still before it, and the next run begins there.
#[test]
fn a_hold_that_stays_after_an_error_keeps_the_mark() {
    for (streams, why) in [
        (true, Why::Undone),
        (true, Why::ToAsk),
        (false, Why::Undone),
    ] {
        let mut bench = Bench::at(streams);
        bench.marks.hold(mark(streams, 40), why);
        let later = bench.marks.hold(mark(streams, 60), Why::Undone);
        bench.marks.release(later);
        assert_eq!(bench.saved_at(100), 40);
        assert_eq!(bench.saved_at(5_000), 40);
        let next = Checkpoints::new(bench.ctx.clone(), bench.stored());
        assert_eq!(next.acknowledged(), Some(mark(streams, 40)));
    }
}

/// What is left of the load is not passed by the stream: then the mark stays where the last checkpoint has put it.
#[test]
fn the_stream_does_not_pass_what_is_left_of_the_load() {
    let mut bench = Bench::at(false);
    assert_eq!(bench.saved_at(70), 70);
    bench.save(stream(500), Some(snapshot(80)));
    let stored = bench.stored();
    assert_eq!((stored.snapshot_at, stored.applied), (70, None));
    let hold = bench.marks.hold(snapshot(90), Why::Undone);
    bench.marks.loaded(ReplOffset(400), DbIndex(2));
    bench.save(stream(500), None);
    assert_eq!(saved(&bench.stored()), (400, DbIndex(2)));
    bench.marks.release(hold);
    assert_eq!(bench.saved_at(500), 500);
}

#[test]
fn fences_are_durable_before_they_are_used_and_move_no_mark() {
    let mut bench = Bench::at(true);
    assert_eq!(bench.saved_at(100), 100);
    // A checkpoint that is still on its way to disk is waited for, not overtaken.
    bench
        .marks
        .save_beside(standing(stream(200), None), Relied::default())
        .unwrap();
    bench.marks.reserve(ReplOffset(9_000_000)).unwrap();
    let stored = bench.stored();
    assert_eq!(saved(&stored).0, 200);
    assert_eq!(
        stored.fence_high,
        Some(ReplOffset(9_000_000 + FENCE_RESERVE))
    );
    // What is reserved already goes to no disk.
    let told = ShardState {
        note: "as it was".into(),
        ..stored
    };
    let none = BTreeMap::new();
    (bench.ctx.shared)
        .store(|s| s.save_shards(std::slice::from_ref(&told), &none, None))
        .unwrap();
    bench
        .marks
        .reserve(ReplOffset(9_000_000 + FENCE_RESERVE))
        .unwrap();
    assert_eq!(bench.stored(), told);
    bench
        .marks
        .reserve(ReplOffset(9_000_001 + FENCE_RESERVE))
        .unwrap();
    let high = Some(ReplOffset(9_000_001 + 2 * FENCE_RESERVE));
    assert_eq!(bench.stored().fence_high, high);
    // A checkpoint never takes it back.
    bench.save(stream(300), None);
    assert_eq!(bench.stored().fence_high, high);
}

/// A checkpoint that the disk has refused is told by whatever is saved next: nothing goes on without it.
#[test]
fn what_could_not_be_saved_beside_is_an_error_of_the_next() {
    let failed = |bench: &mut Bench, told: Option<Result<()>>| {
        let (tell, result) = std::sync::mpsc::sync_channel(1);
        if let Some(told) = told {
            tell.send(told).unwrap();
        }
        bench.marks.saving = Some(result);
    };
    let full = || Some(Err(Error::new(ErrorKind::Disk, "it is full")));
    let mut bench = Bench::at(true);
    assert_eq!(bench.saved_at(100), 100);
    for (told, kind) in [(full(), ErrorKind::Disk), (None, ErrorKind::Bug)] {
        failed(&mut bench, told);
        let e = bench.marks.reserve(ReplOffset(50 << 20)).unwrap_err();
        assert_eq!(e.kind(), kind);
        assert_eq!(bench.stored().fence_high, None);
    }
    failed(&mut bench, full());
    let standing = standing(stream(200), None);
    let e = bench.marks.save(standing, Relied::default()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Disk);
    assert_eq!(saved(&bench.stored()).0, 100);
    // What is saved after that is saved.
    assert_eq!(bench.saved_at(300), 300);
}

#[test]
fn a_lost_master_takes_the_stream_back_to_what_survived() {
    let mut bench = Bench::at(true);
    bench.save(stream(301), None);
    bench.survives();
    bench.save(stream(302), None);
    bench.health.show(View::default());
    bench.save(stream(900), None);
    let stored = bench.stored();
    assert_eq!(saved(&stored).0, 900);
    assert_eq!(
        (stored.stable, stored.stable_db),
        (Some(ReplOffset(302)), DbIndex(2))
    );
    bench.marks.hold(stream(890), Why::Undone);
    let to_ask = bench.marks.hold(stream(310), Why::ToAsk);
    bench.health.show(View {
        losses: 1,
        ..View::default()
    });
    assert!(bench.marks.has_lost());
    assert_eq!(
        bench.marks.rewind(1, ReplOffset(950), true),
        Rewound::Stream(ReplOffset(302), DbIndex(2))
    );
    assert!(!bench.marks.has_lost());
    let shard = bench.marks.shard();
    assert_eq!(saved(shard), (302, DbIndex(2)));
    assert!(shard.snapshot_loaded && !shard.reconcile);
    // What was not done comes again; what is to be asked is asked still.
    assert_eq!(bench.marks.oldest(None), None);
    assert_eq!(bench.saved_at(302), 302);
    assert_eq!(bench.saved_at(900), 310);
    bench.marks.release(to_ask);
    assert_eq!(bench.saved_at(900), 900);
    assert_eq!(bench.stored().stable, Some(ReplOffset(302)));
    let counts = bench.ctx.shared.store(|s| s.counts()).unwrap();
    assert_eq!(counts["faults.target_lost"], 1);
    // Another run goes back there as well.
    let mut next = Checkpoints::new(bench.ctx.clone(), bench.stored());
    assert_eq!(
        next.rewind(1, ReplOffset(950), true),
        Rewound::Stream(ReplOffset(302), DbIndex(2))
    );
}

#[test]
fn a_lost_master_takes_a_load_back_to_what_survived() {
    let mut bench = Bench::at(false);
    bench.save(snapshot(70), None);
    bench.survives();
    bench.save(snapshot(81), None);
    bench.health.show(View::default());
    bench.save(snapshot(95), None);
    assert_eq!(
        bench.marks.rewind(1, ReplOffset(0), true),
        Rewound::Snapshot(81)
    );
    assert_eq!(saved(bench.marks.shard()), (81, DbIndex(1)));
    // Nothing is known to have survived.
    let mut bench = Bench::at(false);
    bench.save(snapshot(70), None);
    assert_eq!(
        bench.marks.rewind(1, ReplOffset(0), true),
        Rewound::Snapshot(0)
    );
    assert!(!bench.marks.shard().reconcile);
}

#[test]
fn a_lost_master_undoes_a_load_that_was_not_stable() {
    for (asks, snapshot_offset, from) in [(true, Some(400), 400), (false, None, 950)] {
        let mut bench = Bench::new(ShardState {
            snapshot_offset: snapshot_offset.map(ReplOffset),
            ..loading()
        });
        bench.save(snapshot(70), None);
        bench.survives();
        bench.save(snapshot(80), None);
        bench.health.show(View::default());
        bench.marks.loaded(ReplOffset(400), DbIndex(2));
        bench.save(stream(900), None);
        assert_eq!(saved(&bench.stored()).0, 900);
        assert_eq!(bench.stored().stable, None);
        assert_eq!(
            bench.marks.rewind(1, ReplOffset(950), asks),
            Rewound::Load(ReplOffset(from))
        );
        bench.save(snapshot(0), None);
        let stored = bench.stored();
        assert_eq!(saved(&stored), (0, DbIndex::ZERO));
        assert_eq!(
            (stored.snapshot_loaded, stored.reconcile, stored.applied),
            (false, asks, Some(ReplOffset(from)))
        );
        bench.marks.reconciled();
        bench.save(snapshot(0), None);
        assert!(!bench.stored().reconcile);
    }
}

/// A shard is clean by what the last checkpoint said, not by the one before.
#[test]
fn only_the_last_checkpoint_says_whether_a_shard_is_clean() {
    let mut bench = Bench::at(true);
    for clean in [false, true, false] {
        let standing = Standing {
            clean,
            ..standing(stream(100), None)
        };
        bench.marks.save(standing, Relied::default()).unwrap();
        assert_eq!(bench.stored().clean, clean);
        assert_eq!(saved(&bench.stored()).0, 100);
    }
}

#[test]
fn counters_and_losses_are_saved_once() {
    let mut bench = Bench::at(true);
    let ctx = bench.ctx.clone();
    ctx.add("healed_somehow", 2);
    for _ in 0..2 {
        ctx.lose(DbIndex(1), b"k", "skipped.type", "it is too new")
            .unwrap();
    }
    ctx.progress.commands.store(7, Relaxed);
    bench.marks.count_read(3);
    bench.marks.count_written();
    bench.marks.count_healed(4);
    for at in [100, 200] {
        bench.save(stream(at), None);
        let counts = ctx.shared.store(|s| s.counts()).unwrap();
        assert_eq!(counts["healed_somehow"], 2);
        // Told once, so counted once.
        assert_eq!(counts["skipped.type"], 1);
        let losses = ctx.shared.store(|s| s.losses(10)).unwrap();
        assert_eq!(losses, [(DbIndex(1), b"k".to_vec(), "type".to_owned())]);
        let shard = bench.stored();
        assert_eq!(shard.commands_applied, 7);
        assert_eq!(
            (shard.keys_read, shard.keys_written, shard.healed_keys),
            (3, 1, 4)
        );
    }
    ctx.add("healed_somehow", 1);
    ctx.progress.commands.store(9, Relaxed);
    let standing = standing(stream(300), None);
    bench
        .marks
        .save_beside(standing, Relied::default())
        .unwrap();
    bench.marks.wait_saved().unwrap();
    let counts = ctx.shared.store(|s| s.counts()).unwrap();
    assert_eq!(
        (counts["healed_somehow"], bench.stored().commands_applied),
        (3, 9)
    );
}

/// A checkpoint raises the fence ahead of time; while it is on its way to disk, that counts for nothing.
#[test]
fn a_fence_counts_only_once_it_is_on_disk() {
    let mut bench = Bench::at(true);
    bench.save(stream(100), None);
    bench.marks.reserve(ReplOffset(1_000)).unwrap();
    bench.ctx.spool.start_stream(ReplOffset(20_000_000));
    let later = standing(stream(200), None);
    bench.marks.save_beside(later, Relied::default()).unwrap();
    bench.marks.reserve(ReplOffset(20_000_000)).unwrap();
    assert!(bench.stored().fence_high.unwrap() >= ReplOffset(20_000_000));
}

#[test]
fn a_fence_that_could_not_be_saved_is_not_reserved() {
    let mut bench = Bench::at(true);
    let (tell, result) = std::sync::mpsc::sync_channel(1);
    let full = Error::new(ErrorKind::Disk, "it is full");
    tell.send(Err(full)).unwrap();
    bench.marks.saving = Some(result);
    bench.marks.reserve(ReplOffset(1_000)).unwrap_err();
    bench.marks.reserve(ReplOffset(1_000)).unwrap();
    assert!(bench.stored().fence_high >= Some(ReplOffset(1_000)));
}

/// What a mark relies on is on disk while the state still has the mark before.
#[test]
fn what_a_mark_relies_on_is_on_disk_before_it() {
    let mut bench = Bench::at(true);
    let dir = bench._dir.path().to_owned();
    let before = bench.marks.shard().applied.unwrap();
    bench.save(stream(before.0), None);
    let mut held = Held::open(&dir);
    let mut timed = MaybeTimed::open(&dir, false, 1 << 20);
    let mut loaded = LoadedKeys::open(&dir, false);
    let synced = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (seen, place) = (synced.clone(), dir.clone());
    on_sync::with(move |path| {
        let mark = Store::open_readonly(&place)
            .unwrap()
            .unwrap()
            .shards()
            .unwrap()[0]
            .applied;
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        seen.lock().unwrap().push((name, mark.unwrap()));
    });
    for n in 1..=2 {
        held.note(DbIndex::ZERO, b"k");
        timed.add(format!("k{n}").as_bytes());
        loaded.add(n).unwrap();
        let mut relied = Relied {
            files: held.save().unwrap().into_iter().collect(),
            timed: timed.take_fresh().unwrap(),
        };
        relied.files.extend(loaded.save().unwrap());
        let from = bench.marks.shard().applied.unwrap();
        let to = from.plus(10);
        bench
            .marks
            .save(standing(stream(to.0), None), relied)
            .unwrap();
        assert_eq!(bench.stored().applied, Some(to));
        let mut all = std::mem::take(&mut *synced.lock().unwrap());
        all.sort();
        let wanted = ["held", "loaded", "timed-2"].map(|name| (name.to_owned(), from));
        assert_eq!(all, wanted);
    }
    // Nothing new, so nothing is waited for.
    let relied = Relied {
        files: held
            .save()
            .unwrap()
            .into_iter()
            .chain(loaded.save().unwrap())
            .collect(),
        timed: timed.take_fresh().unwrap(),
    };
    let to = bench.marks.shard().applied.unwrap().plus(10);
    bench
        .marks
        .save(standing(stream(to.0), None), relied)
        .unwrap();
    assert!(synced.lock().unwrap().is_empty());
}
