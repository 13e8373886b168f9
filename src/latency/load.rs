//! An open-loop generator: requests are planned ahead, whether or not the server keeps up.
//!
//! Response time counts from the planned moment, so that waiting behind a stalled server is seen ("coordinated
//! omission" is what hides it); service time counts from the real send. Both are kept.
//! Everything runs on one thread. It sleeps until an answer comes, as an application's does, so that its own waking up
//! is in the times as it is in an application's; shortly before a planned moment, and at high rates always, it spins, so
//! as to send in time. How late it is itself is measured as well.

use crate::error::{Error, ErrorKind, Result};
use crate::histogram::{self, Times, micros};
use crate::latency::lines::Lines;
use crate::latency::request::Request;
use crate::latency::rng::Rng;
use crate::latency::workload::Workload;
use crate::net::{self, Conn};
use crate::plan::Endpoint;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// A request that takes longer counts as an error, with this time.
const LIMIT: Duration = Duration::from_secs(10);
/// How far ahead of a planned moment the thread stops sleeping: longer than it takes to wake up.
const SPIN: Duration = Duration::from_micros(120);
/// From this rate on it does not sleep at all: an application's thread hardly does either, and one late waking up would
/// make several requests late.
const BUSY_RATE: f64 = 2_000.0;
/// Requests that may wait for a connection: of so many seconds of the rate, but within these bounds; more are shed.
const QUEUE_S: f64 = 2.0;
const QUEUE: (usize, usize) = (100, 10_000);
/// Bytes of requests that may wait for one node.
const QUEUE_BYTES: usize = 32 << 20;
/// So far behind its own plan, this program sheds as well.
const BEHIND: Duration = Duration::from_millis(200);
/// Requests planned at one go.
const AT_ONCE: u32 = 16;
/// The share of a block that is not counted.
pub const WARM_UP: f64 = 0.1;
/// A p99 of our own lateness above this share of the median colours the result.
pub const SLIP_SHARE: f64 = 0.2;
const SLIP_US: f64 = 100.0;

/// One stretch of measuring.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    /// Requests per second.
    pub rate: f64,
    pub seconds: f64,
    /// Of these, the first are not counted.
    pub warm_up: f64,
    pub seed: u64,
    /// Planned at even distances instead of at random ones.
    pub even: bool,
}

/// What a block has come to; times in µs.
#[derive(Clone)]
pub struct Measured {
    pub response: Times,
    pub service: Times,
    /// Service times of each kind of request.
    pub kinds: BTreeMap<&'static str, Times>,
    /// How late this program itself was with requests that a connection was free for.
    pub slip: Times,
    pub errors: u64,
    pub shed: u64,
    /// Of these, shed as this program itself was late.
    pub shed_late: u64,
    /// Planned in the counted time.
    pub planned: u64,
    pub first_error: Option<String>,
    /// How long requests were counted, up to the last answer.
    pub counted: Duration,
    /// How long requests were planned.
    pub wanted: Duration,
}

impl Measured {
    /// Over the whole time that it took to answer them.
    pub fn answered_per_s(&self) -> f64 {
        self.response.len() as f64 / self.counted.as_secs_f64().max(0.001)
    }

    /// What was asked for; at low rates not quite the rate itself.
    pub fn planned_per_s(&self) -> f64 {
        self.planned as f64 / self.wanted.as_secs_f64().max(0.001)
    }

    fn new() -> Measured {
        Measured {
            response: histogram::new(),
            service: histogram::new(),
            kinds: BTreeMap::new(),
            slip: histogram::new(),
            errors: 0,
            shed: 0,
            shed_late: 0,
            planned: 0,
            first_error: None,
            counted: Duration::ZERO,
            wanted: Duration::ZERO,
        }
    }
}

/// Runs a block. Must be called inside of [`spin`].
pub async fn run(lines: &mut Lines, workload: &Workload, block: &Block) -> Result<Measured> {
    let shared = Arc::new(Shared {
        queues: lines.nodes.iter().map(|_| Queue::default()).collect(),
        measured: Mutex::new(Measured::new()),
        over: AtomicBool::new(false),
        open: AtomicU64::new(0),
    });
    let began = Instant::now() + Duration::from_millis(5);
    let counted_from = began + Duration::from_secs_f64(block.warm_up.min(block.seconds));
    // A timer that is due before any request's limit: without it, each of those would wake the runtime to say so.
    let mut timer = JoinSet::<()>::new();
    timer.spawn(async {
        loop {
            tokio::time::sleep(LIMIT / 2).await;
        }
    });
    let mut workers = JoinSet::new();
    for (at, node) in lines.nodes.iter_mut().enumerate() {
        for conn in node.idle.drain(..) {
            let (shared, endpoint) = (shared.clone(), lines.endpoint.clone());
            let address = node.address.clone();
            workers.spawn(async move { (at, work(conn, &endpoint, &address, at, &shared).await) });
        }
    }
    plan(lines, workload, block, began, counted_from, &shared).await;
    shared.measured().wanted = Duration::from_secs_f64(block.seconds - block.warm_up);
    // What is under way has its own limit.
    let drained = Instant::now();
    while shared.open.load(Relaxed) > 0 && drained.elapsed() < LIMIT + Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // What still waits for a connection will not be answered in time.
    for queue in &shared.queues {
        let left: Vec<Planned> = queue.waiting().drain(..).collect();
        let mut measured = shared.measured();
        for planned in left {
            shared.open.fetch_sub(1, Relaxed);
            if planned.counted {
                measured.errors += 1;
                measured
                    .response
                    .saturating_record(micros(planned.at.elapsed()));
                measured
                    .first_error
                    .get_or_insert_with(|| "no answer in time".into());
            }
        }
    }
    shared.measured().counted = counted_from.elapsed();
    shared.over.store(true, Relaxed);
    shared.queues.iter().for_each(|q| q.notify.notify_waiters());
    while let Some(ended) = workers.join_next().await {
        let (at, conn) = ended
            .map_err(|e| Error::new(ErrorKind::Bug, "a connection's task panicked").cause(e))?;
        let conn = match conn {
            Some(conn) => conn,
            None => {
                let address = lines.nodes.get(at).map(|n| n.address.clone());
                net::connect(&lines.endpoint, &address.unwrap_or_default()).await?
            }
        };
        if let Some(node) = lines.nodes.get_mut(at) {
            node.idle.push(conn);
        }
    }
    Ok(shared.measured().clone())
}

/// Plans every request at its time.
async fn plan(
    lines: &Lines,
    workload: &Workload,
    block: &Block,
    began: Instant,
    counted_from: Instant,
    shared: &Arc<Shared>,
) {
    let mut rng = Rng::new(block.seed);
    let alarm = Alarm::new();
    let spin = match block.rate < BUSY_RATE {
        true => SPIN,
        false => Duration::MAX,
    };
    let end = began + Duration::from_secs_f64(block.seconds);
    let most = ((block.rate * QUEUE_S) as usize).clamp(QUEUE.0, QUEUE.1);
    let (mut next, mut at_once) = (began, 0);
    while next < end {
        loop {
            let wait = next.saturating_duration_since(Instant::now());
            at_once += 1;
            if wait.is_zero() && at_once < AT_ONCE {
                break;
            }
            at_once = 0;
            match wait.checked_sub(spin) {
                Some(sleep) if !sleep.is_zero() => alarm.sleep(sleep).await,
                // Gives way to whatever has come in.
                _ => tokio::task::yield_now().await,
            }
        }
        let counted = next >= counted_from;
        if counted {
            shared.measured().planned += 1;
        }
        let distance = match block.even {
            true => 1.0 / block.rate,
            false => -(1.0 - rng.unit()).ln() / block.rate,
        };
        let planned = next;
        next += Duration::from_secs_f64(distance);
        if planned.elapsed() > BEHIND {
            if counted {
                let mut measured = shared.measured();
                measured.shed += 1;
                measured.shed_late += 1;
            }
            continue;
        }
        let request = workload.next(&mut rng);
        let at = lines.node_of(&request.key);
        if let Some(queue) = shared.queues.get(at) {
            let mut waiting = queue.waiting();
            if waiting.len() >= most || queue.bytes.load(Relaxed) >= QUEUE_BYTES {
                if counted {
                    shared.measured().shed += 1;
                }
            } else {
                let free = waiting.is_empty() && queue.idle.load(Relaxed) > 0;
                queue.bytes.fetch_add(request.len(), Relaxed);
                waiting.push_back(Planned {
                    request,
                    at: planned,
                    counted,
                    free,
                });
                shared.open.fetch_add(1, Relaxed);
                queue.notify.notify_one();
            }
        }
    }
}

/// Sleeps to the microsecond, which the runtime's own clock (1 ms) cannot.
struct Alarm(Option<AsyncFd<OwnedFd>>);

impl Alarm {
    /// Where the system has no such clock, it spins instead.
    // The way that is not deprecated is unsafe; what it asks for holds: this descriptor is owned and never exchanged.
    #[allow(deprecated)]
    fn new() -> Alarm {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).ok();
        Alarm(timer.and_then(|fd| AsyncFd::with_interest(fd, Interest::READABLE).ok()))
    }

    async fn sleep(&self, time: Duration) {
        let Some(fd) = &self.0 else {
            return tokio::task::yield_now().await;
        };
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: time.subsec_nanos().into(),
            },
        };
        let set = timerfd_settime(fd, TimerfdTimerFlags::empty(), &once);
        match (set, fd.readable().await) {
            (Ok(_), Ok(mut rang)) => rang.clear_ready(),
            _ => tokio::task::yield_now().await,
        }
    }
}

/// Of one block. All on one thread, so that no lock is ever waited for; but tasks of the runtime itself, as those that
/// may share without locks (a `LocalSet`) are woken through an eventfd, two system calls for each request.
struct Shared {
    queues: Vec<Queue>,
    measured: Mutex<Measured>,
    over: AtomicBool,
    /// Requests planned and not yet ended.
    open: AtomicU64,
}

impl Shared {
    fn measured(&self) -> MutexGuard<'_, Measured> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<VecDeque<Planned>>,
    /// Bytes of the requests that wait.
    bytes: AtomicUsize,
    notify: Notify,
    /// Connections that wait for a request.
    idle: AtomicU32,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Planned>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Planned {
    request: Request,
    at: Instant,
    counted: bool,
    /// A connection was free when it was planned.
    free: bool,
}

/// One connection: takes what is due, one at a time. `None` when the connection is gone.
async fn work(
    conn: Conn,
    endpoint: &Endpoint,
    address: &str,
    at: usize,
    shared: &Shared,
) -> Option<Conn> {
    let mut conn = Some(conn);
    let queue = shared.queues.get(at)?;
    loop {
        let planned = loop {
            let next = queue.waiting().pop_front();
            if let Some(planned) = next {
                queue.bytes.fetch_sub(planned.request.len(), Relaxed);
                break planned;
            }
            if shared.over.load(Relaxed) {
                return conn;
            }
            queue.idle.fetch_add(1, Relaxed);
            queue.notify.notified().await;
            queue.idle.fetch_sub(1, Relaxed);
        };
        let sent = Instant::now();
        let done = tokio::time::timeout(LIMIT, async {
            let open = match &mut conn {
                Some(open) => open,
                None => conn.insert(net::connect(endpoint, address).await?),
            };
            planned.request.run(open).await
        })
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Connection, "no answer in time")));
        let now = Instant::now();
        shared.open.fetch_sub(1, Relaxed);
        if let Err(e) = &done
            && e.kind() != ErrorKind::Refused
        {
            // Whatever comes on it belongs to nobody.
            conn = None;
        }
        if let (Ok(()), Some(open)) = (&done, &mut conn)
            && planned.request.settle(open).await.is_err()
        {
            conn = None;
        }
        if !planned.counted {
            continue;
        }
        let mut measured = shared.measured();
        measured
            .response
            .saturating_record(micros(now.saturating_duration_since(planned.at)));
        let service = micros(now.saturating_duration_since(sent));
        measured.service.saturating_record(service);
        let kind = planned.request.kind;
        measured
            .kinds
            .entry(kind)
            .or_insert_with(histogram::new)
            .saturating_record(service);
        if planned.free {
            measured
                .slip
                .saturating_record(micros(sent.saturating_duration_since(planned.at)));
        }
        if let Err(e) = done {
            measured.errors += 1;
            measured.first_error.get_or_insert_with(|| e.chain());
        }
    }
}

/// Whether our own lateness, at its p99, colours times like these.
pub fn is_late(slip_us: f64, response: &Times) -> bool {
    let middle = response.value_at_quantile(0.5) as f64;
    slip_us > SLIP_US.max(middle * SLIP_SHARE)
}

/// Runs the work of a measurement on a thread that looks at its sockets at every turn.
pub fn spin<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(1)
        .global_queue_interval(1)
        .build()
        .map_err(|e| Error::new(ErrorKind::Bug, "start the runtime").cause(e))?;
    runtime.block_on(work)
}
