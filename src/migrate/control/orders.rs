//! What a cutover asks of the migration that runs: which keys were written, drain, hold still, go on.
//!
//! Asked over a socket in the plan's folder, a line of JSON each way. When the asker goes away, the migration goes on
//! as if nobody had asked.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::migrate::progress::{ENDED, Progress};
use crate::store::{Stage, Store};
use crate::task::{Shutdown, socket};
use crate::types::DbIndex;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Names of written keys that are kept; beyond, only that there were more.
const NAMES_BYTES: usize = 64 << 20;
/// Names of keys written behind the fence that are told.
pub const LATE_KEYS: usize = 1_000;

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
}

/// The answer to each of them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Answer {
    pub shards: Vec<ShardNow>,
    /// The source is read by SCAN.
    pub scan: bool,
    /// The target has lost a master since it was drained.
    pub lost: bool,
    /// Keys in base64, with the target's database.
    pub keys: Vec<(u32, String)>,
    /// More keys were written than could be noted.
    pub more: bool,
    /// Keys written behind the fence, in base64 with the source's database: the first [`LATE_KEYS`] of them.
    #[serde(default)]
    pub late_keys: Vec<(u32, String)>,
}

impl Answer {
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

    fn give(&self, ask: Ask, stop: &Shutdown) {
        let mut orders = self.orders();
        match ask {
            Ask::State | Ask::Take => {}
            Ask::Record => {
                *self.changed() = Changed::default();
                self.recording.store(true, Relaxed);
            }
            Ask::Drain => {
                orders.drains += 1;
                orders.order = Order::Drain(orders.drains);
                orders.shards.clear();
                orders.lost = false;
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

    fn answer(&self, ask: Ask, progress: &Progress, scan: bool) -> Answer {
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
            keys: taken.keys.iter().map(encoded).collect(),
            more: taken.more,
            late_keys: (orders.shards.values())
                .flat_map(|obeyed| obeyed.late_keys.iter().map(encoded))
                .take(LATE_KEYS)
                .collect(),
        }
    }
}

/// The name of the socket in a plan's folder.
const NAME: &str = "control";

/// Answers until the run ends.
pub async fn serve(
    dir: PathBuf,
    control: Arc<Control>,
    progress: Arc<Progress>,
    scan: bool,
    stop: Shutdown,
) -> Result<()> {
    // We hold the lock.
    let listener = socket::listen(&dir, NAME).context(ErrorKind::Disk, || {
        format!("open a socket for cutovers in {}", dir.display())
    })?;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let (control, progress, stop) = (control.clone(), progress.clone(), stop.clone());
        let dir = dir.clone();
        tokio::spawn(async move {
            control.attended.fetch_add(1, Relaxed);
            let heard = attend(stream, &control, &progress, scan, &stop, &dir).await;
            // Whoever asked has gone: nothing it wanted holds any more.
            if control.attended.fetch_sub(1, Relaxed) == 1 {
                release(&dir, &control, &stop).await;
            }
            if let Err(e) = heard {
                tracing::debug!("a cutover went away: {e}");
            }
        });
    }
}

/// Goes on as before. But a fence outlives whoever has put it up, once the clients are being moved.
async fn release(dir: &Path, control: &Control, stop: &Shutdown) {
    control.recording.store(false, Relaxed);
    *control.changed() = Changed::default();
    while matches!(control.order(), Order::Fence(_)) && !control.attended() {
        match stage(dir) {
            Stage::Source => break,
            Stage::Switching => tokio::time::sleep(Duration::from_millis(50)).await,
            Stage::Switched | Stage::Committed | Stage::RolledBack => {
                stop.request();
                return;
            }
        }
    }
    if !control.attended() {
        control.orders().order = Order::Follow;
    }
}

/// Where the clients are; as long as nobody knows, nothing is let through.
fn stage(dir: &Path) -> Stage {
    match Store::open_readonly(dir) {
        Ok(Some(store)) => store.stage().unwrap_or(Stage::Switching),
        _ => Stage::Switching,
    }
}

async fn attend(
    stream: UnixStream,
    control: &Control,
    progress: &Progress,
    scan: bool,
    stop: &Shutdown,
    dir: &Path,
) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        let Ok(ask) = serde_json::from_str::<Ask>(&line) else {
            return Ok(());
        };
        // A fence outlives the wish to go on, once the clients are being moved.
        if !(ask == Ask::Follow
            && matches!(control.order(), Order::Fence(_))
            && stage(dir) != Stage::Source)
        {
            control.give(ask, stop);
        }
        let answer = control.answer(ask, progress, scan);
        let mut text = serde_json::to_vec(&answer).unwrap_or_default();
        text.push(b'\n');
        write.write_all(&text).await?;
    }
    Ok(())
}

/// The asking end.
pub struct Asker {
    lines: tokio::io::Lines<BufReader<tokio::net::unix::OwnedReadHalf>>,
    write: tokio::net::unix::OwnedWriteHalf,
}

impl Asker {
    /// `NotReady` when no migration runs there.
    pub async fn connect(dir: &Path) -> Result<Asker> {
        let stream = (socket::connect(dir, NAME).await).context(ErrorKind::NotReady, || {
            format!("no migration answers in {}", dir.display())
        })?;
        let (read, write) = stream.into_split();
        let lines = BufReader::new(read).lines();
        Ok(Asker { lines, write })
    }

    pub async fn ask(&mut self, ask: Ask) -> Result<Answer> {
        let gone = || Error::new(ErrorKind::NotReady, "the migration has ended");
        let mut text = serde_json::to_vec(&ask)
            .map_err(|e| Error::new(ErrorKind::Bug, "write a question as JSON").cause(e))?;
        text.push(b'\n');
        (self.write.write_all(&text).await).map_err(|e| gone().cause(e))?;
        let line = self.lines.next_line().await.map_err(|e| gone().cause(e))?;
        serde_json::from_str(&line.ok_or_else(gone)?)
            .map_err(|e| Error::new(ErrorKind::Protocol, "an answer is not understood").cause(e))
    }
}
