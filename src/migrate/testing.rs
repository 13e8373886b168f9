//! A shard without servers, for unit tests: a real store and spool in a folder of its own, a plan, and facts to set.

use crate::migrate::checkpoint::checkpoints::Checkpoints;
use crate::migrate::checkpoint::writer::Saver;
use crate::migrate::context::{Facts, Pace, RunOptions, ShardContext, Shared};
use crate::migrate::expiry::filter::MaybeTimed;
use crate::migrate::expiry::guard::ExpiryGuard;
use crate::migrate::expiry::held::Held;
use crate::migrate::progress::ShardProgress;
use crate::migrate::write::door::Door;
use crate::plan::{Job, Plan, validate};
use crate::source::spool::Spool;
use crate::store::{ShardState, Store};
use crate::target::KnownDatabases;
use crate::types::{DbIndex, ReplOffset, ShardId};
use serde_json::{Value, json};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use tempfile::TempDir;

static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());

/// A job with these members of the plan beside source and target.
pub(crate) fn job(members: Value) -> Job {
    let mut plan = json!({
        "name": "unit",
        "source": {"url": "redis://127.0.0.1:1"},
        "target": {"url": "redis://127.0.0.1:2"},
    });
    for (name, value) in members.as_object().unwrap() {
        plan[name] = value.clone();
    }
    validate(&Plan::parse(&plan.to_string()).unwrap()).unwrap()
}

/// What the shards of a run share, kept in `dir`.
pub(crate) fn shared(dir: &Path, job: Job) -> Shared {
    Shared {
        pace: Pace::new(&job, 1),
        job,
        run: RunOptions {
            dry_run: false,
            until_caught_up: false,
            accept_loss: false,
            strict: false,
            scan: false,
            patience: Duration::from_secs(1),
            load_estimate_ms: 0,
        },
        facts: Facts {
            target_has_functions: true,
            target_has_set_pxat: true,
            ..Facts::default()
        },
        store: Mutex::new(Store::open(dir).unwrap()),
        saver: Saver::start(dir).unwrap(),
        runtime: RUNTIME.handle().clone(),
        stop: Default::default(),
        reached: Default::default(),
        health: None,
        ownership: None,
        own: Default::default(),
        control: Default::default(),
        losses_seen: Default::default(),
        told: Default::default(),
    }
}

/// One shard's context, with its spool in `dir`.
pub(crate) fn context(dir: &Path, shared: Shared) -> Rc<ShardContext> {
    let spool = Spool::open(&dir.join("spool"), 1 << 30).unwrap();
    let progress = Arc::new(ShardProgress::new(ShardId(0), "source:1".into()));
    let address = "source:1".to_owned();
    Rc::new(ShardContext::new(
        Arc::new(shared),
        spool,
        progress,
        ShardId(0),
        address,
    ))
}

/// A shard whose snapshot is loaded, at the beginning of its stream.
pub(crate) fn streaming() -> ShardState {
    ShardState {
        snapshot_loaded: true,
        applied: Some(ReplOffset(0)),
        snapshot_offset: Some(ReplOffset(0)),
        ..ShardState::new(ShardId(0), "source:1".into(), String::new())
    }
}

/// The parts that decide, without those that write: what a view of the router looks at.
pub(crate) struct Quiet {
    pub ctx: Rc<ShardContext>,
    pub door: Door,
    pub expiry: ExpiryGuard,
    pub marks: Checkpoints,
    _dir: TempDir,
}

impl Quiet {
    /// `change` sets what differs from a plain run; the target has the databases 0 to 3.
    pub fn new(members: Value, change: impl FnOnce(&mut Shared)) -> Quiet {
        let dir = tempfile::tempdir().unwrap();
        let mut shared = shared(dir.path(), job(members));
        change(&mut shared);
        let ctx = context(dir.path(), shared);
        let mut expiry = guard(&ctx, dir.path());
        // As after the first release: nothing is held back.
        expiry.drained();
        Quiet {
            door: Door::new(ctx.clone(), databases(4)),
            marks: Checkpoints::new(ctx.clone(), streaming()),
            expiry,
            ctx,
            _dir: dir,
        }
    }
}

/// A command of words without spaces, as it comes in the stream.
pub(crate) fn encoded(line: &str) -> Vec<u8> {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    let mut raw = Vec::new();
    crate::resp::command(&mut raw, &words);
    raw
}

/// A guard of a source that can be asked.
pub(crate) fn guard(ctx: &Rc<ShardContext>, dir: &Path) -> ExpiryGuard {
    let timed = MaybeTimed::open(dir, false, 8 << 20);
    ExpiryGuard::new(ctx.clone(), Held::open(dir), timed, true, false)
}

/// A target that is known to have so many databases, and none of the next few.
pub(crate) fn databases(n: u32) -> KnownDatabases {
    let mut databases = KnownDatabases::default();
    for db in 1..16 {
        databases.learn(DbIndex(db), db < n);
    }
    databases
}
