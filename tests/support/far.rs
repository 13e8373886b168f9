//! A TCP proxy that makes a line far, silent or broken, at a word: delay, silence, cut, down.
//!
//! Every byte comes `delay` later in both directions, whatever is under way meanwhile: the line is long, not narrow.
//! Silence holds what is under way and closes nothing, as a partition does, and ends as if nothing had been.
//! Invariant: bytes that pass are never changed or reordered, and at most `BUFFERED` of a direction wait here.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Bytes of one direction of a connection that may wait here: enough for 40 MB/s over 100 ms.
const BUFFERED: usize = 4 << 20;
/// How soon a thread notices what it is not woken for.
const LOOK: Duration = Duration::from_millis(50);

/// The switches of a line; several proxies may share them.
#[derive(Clone, Default)]
pub struct Line(Arc<Switches>);

#[derive(Default)]
struct Switches {
    delay_us: AtomicU64,
    silent: Mutex<bool>,
    changed: Condvar,
    down: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
    trips: AtomicU64,
    waiting: AtomicU64,
}

impl Line {
    /// How much later every byte arrives, in each direction; a round trip takes twice that.
    pub fn delay(&self, one_way: Duration) {
        self.0.delay_us.store(one_way.as_micros() as u64, Relaxed);
    }

    /// Nothing passes, and nothing is closed, until this is taken back.
    pub fn silence(&self, yes: bool) {
        *lock(&self.0.silent) = yes;
        self.0.changed.notify_all();
    }

    /// Ends every connection there is, as a router that is restarted does.
    pub fn cut(&self) {
        for stream in lock(&self.0.open).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Cuts, and ends new connections at once, until this is taken back.
    pub fn down(&self, yes: bool) {
        self.0.down.store(yes, Relaxed);
        if yes {
            self.cut();
        }
    }

    /// How often a client has sent something after an answer: the least round trips that its work took.
    pub fn round_trips(&self) -> u64 {
        self.0.trips.load(Relaxed)
    }

    /// Bytes that wait here now, of both directions and all connections.
    pub fn waiting(&self) -> u64 {
        self.0.waiting.load(Relaxed)
    }

    /// Returns when the line is not silent.
    fn await_speech(&self) {
        let silent = lock(&self.0.silent);
        let speech = self.0.changed.wait_while(silent, |silent| *silent);
        drop(speech.unwrap_or_else(|e| e.into_inner()));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// A proxy on a port of its own; it and its connections end when it is dropped.
pub struct Far {
    port: u16,
    line: Line,
    target: Arc<Mutex<String>>,
    ended: Arc<AtomicBool>,
}

impl Far {
    /// A line to `target` (host:port) that is this long one way.
    pub fn start(target: &str, one_way: Duration) -> Far {
        let line = Line::default();
        line.delay(one_way);
        Far::with(target, line)
    }

    /// One more proxy with the same switches.
    pub fn with(target: &str, line: Line) -> Far {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let ended = Arc::new(AtomicBool::new(false));
        let target = Arc::new(Mutex::new(target.to_owned()));
        let (place, shared, end) = (target.clone(), line.clone(), ended.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if end.load(Relaxed) {
                    return;
                }
                // A client that comes while the line is silent waits, like one whose SYN is lost.
                let (line, place) = (shared.clone(), place.clone());
                std::thread::spawn(move || connect(client, &place, &line));
            }
        });
        Far {
            port,
            line,
            target,
            ended,
        }
    }

    /// New connections lead to another server, as when a name or a virtual address moves.
    pub fn lead_to(&self, target: &str) {
        *lock(&self.target) = target.to_owned();
    }

    /// A proxy before each of some servers, and what a plan's `address_map` says of them.
    pub fn before(
        servers: impl IntoIterator<Item = String>,
        line: &Line,
    ) -> (Vec<Far>, serde_json::Value) {
        let mut map = serde_json::Map::new();
        let mut all = Vec::new();
        for address in servers {
            let far = Far::with(&address, line.clone());
            map.insert(address, far.address().into());
            all.push(far);
        }
        (all, map.into())
    }

    pub fn line(&self) -> &Line {
        &self.line
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        self.line.silence(false);
        self.line.cut();
        // Wakes the accepting thread.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn connect(client: TcpStream, target: &Mutex<String>, line: &Line) {
    line.await_speech();
    if line.0.down.load(Relaxed) {
        return;
    }
    let target = lock(target).clone();
    let Ok(server) = TcpStream::connect(target) else {
        return;
    };
    let answered = Arc::new(AtomicBool::new(true));
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
        if let Ok(stream) = stream.try_clone() {
            lock(&line.0.open).push(stream);
        }
    }
    for (from, to, asks) in [(&client, &server, true), (&server, &client, false)] {
        let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else {
            return;
        };
        let pipe = Arc::new(Pipe::default());
        let (line, answered) = (line.clone(), answered.clone());
        let (in_line, in_pipe) = (line.clone(), pipe.clone());
        std::thread::spawn(move || take_in(from, &in_pipe, &in_line));
        std::thread::spawn(move || {
            hand_on(to, &pipe, &line, |line| {
                if !asks {
                    answered.store(true, Relaxed);
                } else if answered.swap(false, Relaxed) {
                    line.0.trips.fetch_add(1, Relaxed);
                }
            })
        });
    }
}

/// When bytes are due, and the bytes; none are the end.
type Piece = (Instant, Vec<u8>);

/// What is under way in one direction.
#[derive(Default)]
struct Pipe {
    /// And how many bytes they are together.
    pieces: Mutex<(VecDeque<Piece>, usize)>,
    changed: Condvar,
    broken: AtomicBool,
}

fn take_in(mut from: TcpStream, pipe: &Pipe, line: &Line) {
    let mut buf = vec![0; 64 << 10];
    loop {
        // What the kernel's buffers hold stays there: the sender notices that nobody reads.
        line.await_speech();
        let n = from.read(&mut buf).unwrap_or(0);
        let due = Instant::now() + Duration::from_micros(line.0.delay_us.load(Relaxed));
        let mut held = lock(&pipe.pieces);
        while held.1 + n > BUFFERED && !pipe.broken.load(Relaxed) {
            held =
                (pipe.changed.wait_timeout(held, LOOK)).map_or_else(|e| e.into_inner().0, |r| r.0);
        }
        if pipe.broken.load(Relaxed) {
            return;
        }
        held.0.push_back((due, buf[..n].to_vec()));
        held.1 += n;
        line.0.waiting.fetch_add(n as u64, Relaxed);
        pipe.changed.notify_all();
        if n == 0 {
            return;
        }
    }
}

fn hand_on(mut to: TcpStream, pipe: &Pipe, line: &Line, mut each: impl FnMut(&Line)) {
    loop {
        let mut held = lock(&pipe.pieces);
        let (due, bytes) = loop {
            match held.0.pop_front() {
                Some(piece) => break piece,
                None => {
                    held = pipe.changed.wait(held).unwrap_or_else(|e| e.into_inner());
                }
            }
        };
        drop(held);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        line.await_speech();
        // An end passes like a byte: behind all that was sent before.
        if bytes.is_empty() || to.write_all(&bytes).is_err() {
            break;
        }
        each(line);
        let n = bytes.len();
        line.0.waiting.fetch_sub(n as u64, Relaxed);
        lock(&pipe.pieces).1 -= n;
        pipe.changed.notify_all();
    }
    let held = lock(&pipe.pieces);
    pipe.broken.store(true, Relaxed);
    line.0.waiting.fetch_sub(held.1 as u64, Relaxed);
    drop(held);
    pipe.changed.notify_all();
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::server::Server;
    use crate::support::wire::{Client, Command, Value};
    use crate::support::{need, wait_until};

    const SECOND: Duration = Duration::from_secs(1);

    /// A long line is not a narrow one: a hundred commands one after the other take one round trip together.
    #[test]
    fn a_far_line_delays_and_keeps_the_order() {
        let Some([name]) = need(["any"]) else { return };
        let server = Server::start(&name);
        let far = Far::start(&server.address(), Duration::from_millis(40));
        let mut client = Client::connect(&far.address()).expect("a connection");
        let trips = far.line().round_trips();
        let started = Instant::now();
        for n in 0..100 {
            client.push(&Command::new("ECHO").arg(n));
            client.flush().expect("it is sent");
        }
        let replies = client.replies().expect("answers");
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(80), "{took:?}");
        assert!(took < SECOND, "{took:?}");
        let numbers: Vec<String> = replies.iter().map(Value::text).collect();
        assert_eq!(numbers, (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
        for _ in 0..3 {
            client.words("PING").expect("an answer");
        }
        assert_eq!(far.line().round_trips() - trips, 4);
        far.line().delay(Duration::ZERO);
        let started = Instant::now();
        client.words("PING").expect("an answer");
        assert!(started.elapsed() < Duration::from_millis(80));
    }

    #[test]
    fn a_silent_line_holds_what_is_under_way_and_closes_nothing() {
        let Some([name]) = need(["any"]) else { return };
        let server = Server::start(&name);
        let far = Far::start(&server.address(), Duration::ZERO);
        let mut client = Client::connect(&far.address()).expect("a connection");
        client.words("SET n 1").expect("an answer");
        far.line().silence(true);
        client.push(&Command::new("INCR n"));
        client.flush().expect("it is taken");
        let late = Client::connect(&far.address());
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(server.run("GET n").text(), "1", "it came through");
        // No more than the buffers are taken from a client that goes on.
        let mut pusher = TcpStream::connect(far.address()).expect("a connection");
        pusher.set_nonblocking(true).expect("a socket");
        let megabyte = vec![b'x'; 1 << 20];
        let taken: usize = (0..100).map_while(|_| pusher.write(&megabyte).ok()).sum();
        assert!(taken < 50 << 20, "{taken} bytes were taken");
        assert!(far.line().waiting() <= 8 << 20);
        far.line().silence(false);
        assert_eq!(client.read().expect("the answer"), Value::Int(2));
        let mut late = late.expect("a connection");
        assert_eq!(late.words("PING").expect("an answer").text(), "PONG");
    }

    #[test]
    fn a_line_that_is_cut_ends_every_connection() {
        let Some([name]) = need(["any"]) else { return };
        let server = Server::start(&name);
        let far = Far::start(&server.address(), Duration::from_millis(1));
        let mut client = Client::connect(&far.address()).expect("a connection");
        client.words("PING").expect("an answer");
        far.line().cut();
        assert!(client.words("PING").is_err());
        let answers = || Client::connect(&far.address()).and_then(|mut c| c.words("PING"));
        assert!(answers().is_ok(), "a new connection passes");
        far.line().down(true);
        assert!(answers().is_err());
        far.line().down(false);
        wait_until("it is up", SECOND, || answers().is_ok());
    }
}
