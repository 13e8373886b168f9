//! What a cutover asks of the migration that runs: which keys were written, drain, hold still, go on.
//!
//! A line of JSON each way. When the asker goes away, the migration goes on as if nobody had asked (`desk.rs`).

use crate::migrate::progress::{ENDED, Progress};
use crate::store::{ShardState, Stage};
use crate::task::Shutdown;
use crate::types::DbIndex;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Names of written keys that are kept; beyond, only that there were more.
const NAMES_BYTES: usize = 64 << 20;
/// Names of keys written behind the fence that are told.
pub const LATE_KEYS: usize = 1_000;
/// The longest question.
pub const ASK_BYTES: usize = 4096;
/// The longest answer: all names, twice in base64 when it comes from another machine.
pub const ANSWER_BYTES: usize = 2 * NAMES_BYTES + (1 << 20);

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Where it stands.
    State,
    /// Begin to note which keys are written.
    Record,
    /// The keys noted since this was asked last.
    Take,
    /// Apply all that the source has written until now, expiries that were held back included.
    Drain,
    /// Apply nothing more of the source. Asked again: look at all that it has written until now.
    Fence,
    /// As before.
    Follow,
    /// End, as by Ctrl-C.
    Stop,
    /// Who answers.
    Whose,
    /// On which side the clients are, by the number of the work folder that knows it.
    Stage { stage: Stage, by: u64 },
    /// A piece of one of its files.
    Part { part: Part, from: u64 },
    /// How far its shards are, as saved.
    Marks,
}

/// A file of a worker that a verification on another machine needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    State,
    /// The keys of the target's own, and those of them that were overwritten.
    Existing,
    Taken,
}

/// What is answered to a worker's own questions.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    Whose {
        /// The plan that it moves.
        plan: String,
        /// The name of the folder that holds its state.
        name: String,
        /// A number of the process's own.
        instance: u64,
        /// It moves nothing until it is told on which side the clients are.
        held: bool,
    },
    Part {
        /// In base64; none at the end.
        bytes: String,
        is_there: bool,
    },
    Marks {
        shards: Vec<Mark>,
        sweeps: Value,
    },
}

/// How far a shard is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mark {
    pub shard: u16,
    pub loaded: bool,
    pub applied: Option<u64>,
    pub source_offset: Option<u64>,
    pub lag_ms: u64,
    pub updated_at: i64,
}

impl Mark {
    pub fn of(shard: &ShardState) -> Mark {
        Mark {
            shard: shard.shard.0,
            loaded: shard.snapshot_loaded,
            applied: shard.applied.map(|o| o.0),
            source_offset: shard.source_offset.map(|o| o.0),
            lag_ms: shard.lag_ms,
            updated_at: shard.updated_at,
        }
    }
}

/// The answer to each of them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Answer {
    pub shards: Vec<ShardNow>,
    /// The source is read by SCAN.
    pub scan: bool,
    /// The target has lost a master since it was drained.
    pub lost: bool,
    /// Nobody can tell whether something was written behind the fence.
    #[serde(default)]
    pub blind: bool,
    /// Keys in base64, with the target's database.
    pub keys: Vec<(u32, String)>,
    /// More keys were written than could be noted.
    pub more: bool,
    /// Keys written behind the fence, in base64 with the source's database: the first [`LATE_KEYS`] of them.
    #[serde(default)]
    pub late_keys: Vec<(u32, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<Said>,
    /// It was not done: why, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<(String, String)>,
}

impl Answer {
    /// Takes in another worker's answer to the same question; `name` stands for one that has no shard to show yet.
    pub fn add(&mut self, other: Answer, name: &str) {
        match other.shards.is_empty() {
            true => self.shards.push(ShardNow {
                address: name.to_owned(),
                phase: "starting".into(),
                ..ShardNow::default()
            }),
            false => self.shards.extend(other.shards),
        }
        self.scan |= other.scan;
        self.lost |= other.lost;
        self.blind |= other.blind;
        self.more |= other.more;
        self.keys.extend(other.keys);
        let room = LATE_KEYS.saturating_sub(self.late_keys.len());
        (self.late_keys).extend(other.late_keys.into_iter().take(room));
        if self
            .keys
            .iter()
            .map(|(_, key)| key.len() + 64)
            .sum::<usize>()
            > 2 * NAMES_BYTES
        {
            // Slots are compared instead.
            (self.more, self.keys) = (true, Vec::new());
        }
    }

    pub fn names(&self) -> Vec<(DbIndex, Vec<u8>)> {
        names(&self.keys)
    }

    /// Keys of the source that were written behind the fence.
    pub fn late_names(&self) -> Vec<(DbIndex, Vec<u8>)> {
        names(&self.late_keys)
    }

    /// Commands that write which came behind the fence.
    pub fn late(&self) -> u64 {
        self.shards.iter().map(|s| s.late).sum()
    }
}

fn names(keys: &[(u32, String)]) -> Vec<(DbIndex, Vec<u8>)> {
    let name = |(db, key): &(u32, String)| Some((DbIndex(*db), BASE64.decode(key).ok()?));
    keys.iter().filter_map(name).collect()
}

/// One source shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardNow {
    pub address: String,
    pub phase: String,
    pub lag_ms: u64,
    pub lag_bytes: u64,
    pub caught_up: bool,
    pub note: String,
    /// Commands that write, routed so far; what removes expired keys is not counted.
    pub writes: u64,
    /// All that the source had written when draining was asked for is at the target.
    pub drained: bool,
    /// Nothing more of it is applied, and all that it had written when this was asked for has been looked at.
    pub fenced: bool,
    /// Commands that write which came after the fence; they were not applied.
    pub late: u64,
}

/// What the shards are to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    Follow,
    /// With a number of its own, as it may be asked for again.
    Drain(u64),
    /// Likewise: each number wants all looked at that the source has written until then.
    Fence(u64),
}

#[derive(Default)]
struct Changed {
    keys: HashSet<(DbIndex, Vec<u8>)>,
    bytes: usize,
    more: bool,
}

/// What a shard has done of what was asked.
#[derive(Debug, Clone, Default)]
struct Obeyed {
    drained: bool,
    /// The last fence up to which all was looked at; 0 is none.
    fenced: u64,
    late: u64,
    late_keys: Vec<(DbIndex, Vec<u8>)>,
}

#[derive(Default)]
struct Orders {
    order: Order,
    drains: u64,
    fences: u64,
    shards: BTreeMap<u16, Obeyed>,
    lost: bool,
    blind: bool,
}

/// Shared by the socket and the shards.
#[derive(Default)]
pub struct Control {
    recording: AtomicBool,
    /// How many cutovers are connected.
    attended: AtomicU64,
    changed: Mutex<Changed>,
    orders: Mutex<Orders>,
}

impl Control {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) -> MutexGuard<'_, Changed> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cutover has come.
    pub fn enter(&self) {
        self.attended.fetch_add(1, Relaxed);
    }

    /// One has gone; whether it was the last.
    pub fn leave(&self) -> bool {
        self.attended.fetch_sub(1, Relaxed) == 1
    }

    /// Nobody wants to know any more which keys are written.
    pub fn forget(&self) {
        self.recording.store(false, Relaxed);
        *self.changed() = Changed::default();
    }

    /// Somebody waits for answers.
    pub fn attended(&self) -> bool {
        self.attended.load(Relaxed) > 0
    }

    /// A cutover warms up.
    pub fn records(&self) -> bool {
        self.recording.load(Relaxed)
    }

    /// Notes a written key, by the target's database and the source's name.
    pub fn note(&self, db: DbIndex, key: &[u8]) {
        if !self.recording.load(Relaxed) {
            return;
        }
        let mut changed = self.changed();
        if changed.bytes > NAMES_BYTES {
            changed.more = true;
        } else if changed.keys.insert((db, key.to_vec())) {
            changed.bytes += key.len() + 64;
        }
    }

    /// Any key may have been written.
    pub fn note_all(&self) {
        self.changed().more = true;
    }

    pub fn order(&self) -> Order {
        self.orders().order
    }

    pub fn drained(&self, shard: u16) {
        self.orders().shards.entry(shard).or_default().drained = true;
    }

    /// All that the source had written when the fence of this number was asked for has been looked at: so many commands
    /// came too late, which wrote these keys (by the source's databases).
    pub fn fenced(&self, shard: u16, number: u64, late: u64, keys: &[(DbIndex, Vec<u8>)]) {
        let mut orders = self.orders();
        let obeyed = orders.shards.entry(shard).or_default();
        (obeyed.fenced, obeyed.late) = (number, late);
        let known = obeyed.late_keys.len();
        let new = keys.iter().take(LATE_KEYS).skip(known).cloned();
        obeyed.late_keys.extend(new);
    }

    pub fn lost(&self) {
        self.orders().lost = true;
    }

    /// The source does not tell whether anybody writes to it behind the fence.
    pub fn blind(&self) {
        self.orders().blind = true;
    }

    pub fn give(&self, ask: Ask, stop: &Shutdown) {
        let mut orders = self.orders();
        match ask {
            Ask::State | Ask::Take | Ask::Whose | Ask::Marks => {}
            Ask::Stage { .. } | Ask::Part { .. } => {}
            Ask::Record => {
                *self.changed() = Changed::default();
                self.recording.store(true, Relaxed);
            }
            Ask::Drain => {
                orders.drains += 1;
                orders.order = Order::Drain(orders.drains);
                orders.shards.clear();
                orders.lost = false;
                orders.blind = false;
            }
            Ask::Fence => {
                orders.fences += 1;
                orders.order = Order::Fence(orders.fences);
            }
            Ask::Follow => orders.order = Order::Follow,
            Ask::Stop => {
                stop.request();
            }
        }
    }

    pub fn answer(&self, ask: Ask, progress: &Progress, scan: bool) -> Answer {
        let orders = self.orders();
        let wanted = match orders.order {
            Order::Fence(number) => Some(number),
            Order::Follow | Order::Drain(_) => None,
        };
        let shards = progress
            .shards
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let shards = (shards.iter())
            .map(|shard| (shard, shard.view()))
            // A master that has given all its slots away has nothing more to bring.
            .filter(|(_, view)| view.phase != ENDED)
            .map(|(shard, view)| {
                let obeyed = orders.shards.get(&view.shard).cloned().unwrap_or_default();
                ShardNow {
                    address: view.address,
                    phase: view.phase.into(),
                    lag_ms: view.lag_ms,
                    lag_bytes: view.lag_bytes,
                    caught_up: shard.caught_up.load(Relaxed),
                    note: view.note,
                    writes: shard.writes.load(Relaxed),
                    drained: obeyed.drained,
                    fenced: wanted == Some(obeyed.fenced),
                    late: obeyed.late,
                }
            })
            .collect();
        let taken = match ask {
            Ask::Take => std::mem::take(&mut *self.changed()),
            _ => Changed::default(),
        };
        let encoded = |(db, key): &(DbIndex, Vec<u8>)| (db.0, BASE64.encode(key));
        Answer {
            shards,
            scan,
            lost: orders.lost,
            blind: orders.blind,
            keys: taken.keys.iter().map(encoded).collect(),
            more: taken.more,
            late_keys: (orders.shards.values())
                .flat_map(|obeyed| obeyed.late_keys.iter().map(encoded))
                .take(LATE_KEYS)
                .collect(),
            said: None,
            refused: None,
        }
    }
}
