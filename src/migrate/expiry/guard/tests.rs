//! The expiry guard by table: what it makes of lag, which expiries it holds back, which keys it guards.
//!
//! Expiries lie far on either side of the horizon, so that the time that a test takes does not matter.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod guards;
mod released;

use super::*;
use crate::migrate::expiry::held::HeldKey;
use crate::migrate::testing::{self, encoded};
use crate::rdb::opcode;
use serde_json::{Value, json};
use tempfile::TempDir;

const S: i64 = 1_000;
const H: i64 = 3_600 * S;

struct Bench {
    guard: ExpiryGuard,
    ctx: Rc<ShardContext>,
    dir: TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(json!({}), 0, true, false)
    }

    fn with(members: Value, load_estimate_ms: i64, asks: bool, loaded: bool) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let mut shared = testing::shared(dir.path(), testing::job(members));
        shared.run.load_estimate_ms = load_estimate_ms;
        let ctx = testing::context(dir.path(), shared);
        Bench {
            guard: open(&ctx, &dir, asks, loaded),
            ctx,
            dir,
        }
    }

    /// Another run over the same folder.
    fn again(&mut self) {
        self.guard = open(&self.ctx, &self.dir, true, true);
    }

    fn has_file(&self, name: &str) -> bool {
        self.dir.path().join(name).exists()
    }

    /// Everything that a release would ask for, which is then left unfinished.
    fn held(&mut self) -> Vec<HeldKey> {
        self.guard.take_held().unwrap().next(100).unwrap()
    }

    fn release(&mut self, at: u64) -> usize {
        let mut releasing = self.guard.take_held().unwrap();
        let n = releasing.next(100).unwrap().len();
        self.guard.released(releasing, ReplOffset(at)).unwrap();
        n
    }

    /// What is held back of a near expiry.
    fn hold(&mut self, key: &str) {
        let near = Some(ExpireAt(unix_ms() + S));
        let at = self
            .guard
            .hold_restored(DbIndex(0), key.as_bytes(), near)
            .unwrap();
        assert!(at.0 > unix_ms() + 23 * H);
    }

    /// The same, and then nothing more is.
    fn hold_anew(&mut self) {
        self.guard.holding = true;
        self.hold("k");
        self.guard.holding = false;
    }

    /// A command of the stream that is sent.
    fn sent(&mut self, db: u32, line: &str) {
        parsed(line, |cmd, spec, keys| {
            self.guard.observe(cmd, spec, keys);
            self.guard.observe_sent(DbIndex(db), cmd, spec, keys);
        });
    }

    fn must_heal(&self, line: &str) -> bool {
        parsed(line, |cmd, spec, keys| {
            self.guard.must_heal(cmd, spec, keys)
        })
    }

    /// The guards of a command: `key` or `key.field`.
    fn guards(&self, db: u32, line: &str) -> String {
        parsed(line, |cmd, spec, keys| {
            let mut said: Vec<String> = Vec::new();
            self.guard
                .guards(DbIndex(db), cmd, spec, keys, |key, field| {
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                    let field = field.map(|f| format!(".{}", text(f)));
                    said.push(text(key) + &field.unwrap_or_default());
                });
            said.join(" ")
        })
    }
}

fn open(ctx: &Rc<ShardContext>, dir: &TempDir, asks: bool, loaded: bool) -> ExpiryGuard {
    let timed = MaybeTimed::open(dir.path(), loaded, 1 << 20);
    let held = Held::open(dir.path());
    ExpiryGuard::new(ctx.clone(), held, timed, asks, loaded)
}

fn parsed<T>(line: &str, look: impl FnOnce(&Command<'_>, &Spec, &[KeyArg]) -> T) -> T {
    let (raw, mut args, mut keys) = (encoded(line), Vec::new(), Vec::new());
    resp::parse_command(&raw, &mut args).unwrap();
    let cmd = Command {
        raw: &raw,
        args: &args,
    };
    let spec = command::lookup(cmd.name()).unwrap();
    spec.keys(&cmd, &mut keys).unwrap();
    look(&cmd, spec, &keys)
}

/// As close behind the source as can be.
const CLOSE: Lag = Lag {
    applied: ReplOffset(1_000),
    expected: ReplOffset(1_000),
    stream_end: ReplOffset(1_200),
    lag_ms: 0,
    down_ms: None,
    in_window: false,
};

/// The same, with so much applied.
fn applied(at: u64) -> Lag {
    Lag {
        applied: ReplOffset(at),
        ..CLOSE
    }
}

fn behind_by(lag_ms: u64) -> Lag {
    Lag { lag_ms, ..CLOSE }
}

fn down_for(ms: u64, lag_ms: u64) -> Lag {
    Lag {
        down_ms: Some(ms),
        ..behind_by(lag_ms)
    }
}

fn unheard(lag_ms: u64) -> Lag {
    Lag {
        expected: ReplOffset(1_001),
        ..behind_by(lag_ms)
    }
}

fn window(lag_ms: u64) -> Lag {
    Lag {
        in_window: true,
        ..behind_by(lag_ms)
    }
}

const RELEASE: Pressure = Pressure::Near { release: true };
const NEAR: Pressure = Pressure::Near { release: false };
const BEHIND: Pressure = Pressure::Behind;
const BETWEEN: Pressure = Pressure::Between;

#[test]
fn lag_by_table() {
    // What it is (holding, lagging), the lag, what is made of it, what it is then.
    let quiet = (false, false);
    let holds = (true, false);
    let lags = (false, true);
    let both = (true, true);
    let table = [
        ("first time close", holds, CLOSE, RELEASE, quiet),
        ("as always", quiet, CLOSE, NEAR, quiet),
        ("close again", lags, CLOSE, NEAR, quiet),
        ("short lag", quiet, behind_by(250), NEAR, quiet),
        ("longer lag", quiet, behind_by(251), NEAR, lags),
        ("longer lag, held", holds, behind_by(251), RELEASE, lags),
        ("too long to release", holds, behind_by(500), BETWEEN, holds),
        ("just close enough", holds, behind_by(499), RELEASE, lags),
        ("long lag", quiet, behind_by(500), BETWEEN, lags),
        ("long lag", quiet, behind_by(1_000), BETWEEN, lags),
        ("very long lag", quiet, behind_by(1_001), BETWEEN, both),
        ("very long, held", holds, behind_by(1_001), BETWEEN, holds),
        ("very long, lagging", lags, behind_by(9_999), BETWEEN, both),
        ("in the window", quiet, window(0), BETWEEN, quiet),
        ("in the window, held", holds, window(0), BETWEEN, holds),
        ("in the window, late", quiet, window(1_001), BETWEEN, both),
        ("not all has come", quiet, unheard(0), BEHIND, lags),
        ("not all has come, held", holds, unheard(0), BEHIND, holds),
        ("not all, and late", quiet, unheard(1_001), BEHIND, both),
        (
            "down for a moment",
            quiet,
            down_for(1_000, 0),
            BEHIND,
            quiet,
        ),
        ("down for longer", quiet, down_for(1_001, 0), BEHIND, lags),
        ("down, held", holds, down_for(1_001, 0), BEHIND, both),
        ("down, late", quiet, down_for(1, 9_999), BEHIND, quiet),
        ("down, lagging", both, down_for(1, 0), BEHIND, both),
    ];
    let mut bench = Bench::new();
    for (what, (holding, lagging), lag, pressure, after) in table {
        bench.guard.holding = holding;
        bench.guard.lagging = lagging;
        assert_eq!(bench.guard.on_lag(lag), pressure, "{what}: {lag:?}");
        if matches!(pressure, Pressure::Near { .. }) {
            bench.guard.near(lag);
        }
        let now = (bench.guard.is_holding(), bench.guard.is_lagging());
        assert_eq!(now, after, "{what}: {lag:?}");
    }
    // What is still held back is released, though nothing more is.
    bench.hold_anew();
    assert_eq!(bench.guard.on_lag(CLOSE), RELEASE);
}

#[test]
fn a_file_is_neither_held_back_nor_late() {
    let mut bench = Bench::with(json!({}), 0, false, true);
    for lag in [CLOSE, behind_by(9_999), window(9_999)] {
        let pressure = bench.guard.on_lag(lag);
        assert_ne!(pressure, RELEASE);
        assert!(!bench.guard.is_holding() && !bench.guard.is_lagging());
    }
    bench.guard.on_trouble(ReplOffset(5_000));
    bench.guard.target_lost();
    assert!(!bench.guard.is_holding() && !bench.guard.is_lagging());
}

#[test]
fn how_a_run_begins() {
    // Asks, loaded before: holding, lagging.
    for (asks, loaded, wanted) in [
        (true, false, (true, false)),
        (true, true, (true, true)),
        (false, false, (false, false)),
        (false, true, (false, false)),
    ] {
        let guard = Bench::with(json!({}), 0, asks, loaded).guard;
        assert_eq!((guard.is_holding(), guard.is_lagging()), wanted);
    }
}

/// Commands are read until the stream has come to where it stood when it was late.
#[test]
fn lag_ends_where_the_stream_stood() {
    let mut bench = Bench::new();
    bench.guard.drained();
    assert!(!bench.guard.is_holding());
    bench.guard.near(behind_by(300));
    bench.guard.near(applied(1_199));
    assert!(bench.guard.is_lagging());
    let later = Lag {
        stream_end: ReplOffset(1_300),
        ..behind_by(300)
    };
    bench.guard.near(later);
    bench.guard.near(applied(1_299));
    assert!(bench.guard.is_lagging());
    // No more lag: the end stays where it was.
    let close = Lag {
        stream_end: ReplOffset(9_000),
        ..CLOSE
    };
    bench.guard.on_lag(close);
    bench.guard.near(applied(1_300));
    assert!(!bench.guard.is_lagging());
    bench.guard.on_trouble(ReplOffset(2_000));
    bench.guard.near(applied(1_999));
    assert!(bench.guard.is_lagging());
    bench.guard.near(applied(2_000));
    assert!(!bench.guard.is_lagging());
    // What has been held back during a release keeps it going.
    bench.hold_anew();
    bench.guard.near(applied(2_000));
    assert!(bench.guard.is_holding());
    bench.release(2_000);
    bench.guard.near(applied(2_000));
    assert!(!bench.guard.is_holding());
}

fn header(key: &[u8], expire: Option<i64>) -> Header<'_> {
    Header {
        db: DbIndex(2),
        key,
        expire: expire.map(ExpireAt),
        idle_s: None,
        freq: None,
        meta: &[],
        type_id: opcode::STRING,
        at: 0,
        value_at: 0,
    }
}

const SNAPSHOT: Mark = Mark::Snapshot {
    at: 7,
    db: DbIndex(2),
};
const STREAM: Mark = Mark::Stream {
    at: ReplOffset(7),
    db: DbIndex(2),
};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Given {
    None,
    Its,
    Far,
}

fn given(its: Option<i64>, got: Option<ExpireAt>) -> Given {
    match got {
        None => Given::None,
        Some(at) if Some(at.0) == its => Given::Its,
        Some(at) => {
            assert!((unix_ms() + 23 * H..unix_ms() + 25 * H).contains(&at.0));
            Given::Far
        }
    }
}

#[test]
fn a_near_expiry_of_the_snapshot_is_held_back() {
    let persist = json!({"expired": "persist"});
    let table = [
        // (members, estimate of the load, asks, mark, expiry from now, wanted)
        (json!({}), 0, true, SNAPSHOT, None, Given::None),
        (json!({}), 0, true, SNAPSHOT, Some(30 * S), Given::Far),
        (json!({}), 0, true, SNAPSHOT, Some(-H), Given::Far),
        (json!({}), 0, true, SNAPSHOT, Some(H), Given::Its),
        // The longer the load, the further the horizon, but never beyond half of what is held.
        (json!({}), 2 * H, true, SNAPSHOT, Some(H), Given::Far),
        (json!({}), 2 * H, true, SNAPSHOT, Some(3 * H), Given::Its),
        (json!({}), 99 * H, true, SNAPSHOT, Some(11 * H), Given::Far),
        (json!({}), 99 * H, true, SNAPSHOT, Some(13 * H), Given::Its),
        // Nobody could be asked later, or it is no load.
        (json!({}), 0, false, SNAPSHOT, Some(30 * S), Given::Its),
        (json!({}), 0, false, SNAPSHOT, Some(-H), Given::Its),
        (json!({}), 0, true, STREAM, Some(30 * S), Given::Its),
        (persist.clone(), 0, false, SNAPSHOT, Some(-H), Given::None),
        (persist, 0, false, SNAPSHOT, Some(H), Given::Its),
    ];
    for (members, estimate, asks, mark, from_now, wanted) in table {
        let mut bench = Bench::with(members, estimate, asks, false);
        let its = from_now.map(|ms| unix_ms() + ms);
        let got = bench.guard.hold_loaded(&header(b"k", its), mark);
        let what = (estimate, asks, mark, from_now);
        assert_eq!(given(its, got), wanted, "{what:?}");
        let held = u64::from(wanted == Given::Far);
        assert_eq!(bench.guard.held(), held, "{what:?}");
        if wanted == Given::Far {
            let key = HeldKey {
                db: DbIndex(2),
                key: b"k".to_vec(),
                whole: false,
            };
            assert_eq!(bench.held(), [key]);
        }
    }
}

#[test]
fn a_near_expiry_of_a_restored_key_is_held_back_while_catching_up() {
    for (holding, from_now, wanted) in [
        (true, None, Given::None),
        (true, Some(30 * S), Given::Far),
        (true, Some(-H), Given::Far),
        (true, Some(H), Given::Its),
        (false, Some(30 * S), Given::Its),
        (false, Some(-H), Given::Its),
    ] {
        let mut bench = Bench::new();
        bench.guard.holding = holding;
        let its = from_now.map(|ms| unix_ms() + ms);
        let got = (bench.guard).hold_restored(DbIndex(2), b"k", its.map(ExpireAt));
        assert_eq!(given(its, got), wanted, "{holding} {from_now:?}");
        assert_eq!(bench.guard.held(), u64::from(wanted == Given::Far));
    }
}

#[test]
fn a_near_expiry_of_a_command_is_held_back_while_catching_up() {
    let (near, far) = (unix_ms() + 30 * S, unix_ms() + H);
    let table = [
        (format!("SET k v PXAT {near}"), "SET k v PXAT ~", false),
        (format!("SET k v PXAT {far}"), "", false),
        ("SET k v".to_owned(), "", false),
        (format!("PEXPIREAT k {near} GT"), "PEXPIREAT k ~", false),
        (format!("PEXPIREAT k {far}"), "", false),
        // Relative ones have been made absolute before.
        ("PEXPIRE k 10".to_owned(), "", false),
        (
            format!("HPEXPIREAT k {near} FIELDS 1 f"),
            "HPEXPIREAT k ~ FIELDS 1 f",
            true,
        ),
        (
            format!("HSETEX k PXAT {near} FIELDS 1 f v"),
            "HSETEX k PXAT ~ FIELDS 1 f v",
            true,
        ),
        (format!("HPEXPIREAT k {far} FIELDS 1 f"), "", false),
    ];
    for (line, wanted, whole) in table {
        let mut bench = Bench::new();
        let mut out = Vec::new();
        let raw = encoded(&line);
        let held = (bench.guard)
            .hold_command(DbIndex(3), &raw, &mut out)
            .unwrap();
        assert_eq!(held, !wanted.is_empty(), "{line}");
        let (mut args, mut said) = (Vec::new(), Vec::new());
        if held {
            resp::parse_command(&out, &mut args).unwrap();
            for range in args {
                let word = String::from_utf8(out[range].to_vec()).unwrap();
                let at = word.parse::<i64>().ok().filter(|n| *n > far);
                said.push(if at.is_some() { "~".into() } else { word });
            }
            let key = HeldKey {
                db: DbIndex(3),
                key: b"k".to_vec(),
                whole,
            };
            assert_eq!(bench.held(), [key], "{line}");
        }
        assert_eq!(said.join(" "), wanted, "{line}");
        // Once nothing is held back, commands are as they were.
        bench.guard.drained();
        out.clear();
        let held = (bench.guard)
            .hold_command(DbIndex(3), &raw, &mut out)
            .unwrap();
        assert!(!held && out.is_empty(), "{line}");
    }
}

#[test]
fn while_lagging_a_command_on_a_timed_key_is_read() {
    let mut bench = Bench::new();
    bench.sent(0, "SET timed v PXAT 99");
    for (line, wanted) in [
        ("INCR timed", true),
        ("DEL timed", true),
        ("SET timed v", true),
        ("MSET other 1 timed 2", true),
        ("SINTERSTORE other timed", true),
        ("RENAME timed new", true),
        ("COPY timed new", true),
        ("INCR other", false),
        ("SET other v", false),
        ("RENAME other new", false),
        // It gives one itself, and may have come too late for it.
        ("SET other v PXAT 99", true),
        ("PEXPIREAT other 99", true),
        ("HPEXPIREAT h 99 FIELDS 1 f", true),
        ("PERSIST other", false),
    ] {
        bench.guard.lagging = true;
        assert_eq!(bench.must_heal(line), wanted, "{line}");
        bench.guard.lagging = false;
        assert!(!bench.must_heal(line), "{line}");
    }
}
