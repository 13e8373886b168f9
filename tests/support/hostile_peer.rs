//! A hostile peer: passes everything on to a real server, and answers one chosen command with what no server sends.

use super::between::{Between, Carry};
use keyferry::formats::resp;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// What it answers: a beginning, and then something again and again until nobody takes it any more.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    pub head: &'static str,
    pub again: &'static str,
}

pub const HUGE_STRING: Answer = Answer {
    head: "$1099511627776\r\n",
    again: "x",
};
pub const ENDLESS_STATUS: Answer = Answer {
    head: "+",
    again: "x",
};
pub const ENDLESS_ERROR: Answer = Answer {
    head: "-ERR ",
    again: "x",
};
pub const HUGE_ARRAY: Answer = Answer {
    head: "*1000000000\r\n",
    again: ":1\r\n",
};
pub const DEEP_ARRAY: Answer = Answer {
    head: "",
    again: "*1\r\n",
};
pub const MANY_STRINGS: Answer = Answer {
    head: "*2\r\n$1\r\n0\r\n*2000000000\r\n",
    again: "$9\r\nkey:00000\r\n",
};
/// What it does to commands.
#[derive(Clone)]
enum Hostility {
    /// Answers what begins with these words so, after so many that pass.
    Answer(String, u64, Answer),
    /// Tells the largest numbers that there are in INFO.
    Numbers,
}

/// Of INFO, what decides how one talks to a server.
const LEFT_ALONE: [&str; 12] = [
    "arch_bits",
    "async_loading",
    "cluster_enabled",
    "loading",
    "master_host",
    "process_id",
    "redis_git_dirty",
    "redis_git_sha1",
    "rdb_last_bgsave_status",
    "slave_read_only",
    "tcp_port",
    "connected_slaves",
];
const NUMBERS: [&str; 3] = [
    "18446744073709551615",
    "9223372036854775807",
    "9223372036854775806",
];

/// At most so much of it.
const MOST: usize = 200 << 20;
const LONGEST: Duration = Duration::from_secs(25);

pub struct HostilePeer {
    between: Between,
    state: Arc<State>,
}

struct State {
    server: String,
    hostility: Hostility,
    seen: AtomicU64,
    sent: AtomicU64,
    ended: Arc<AtomicBool>,
}

impl HostilePeer {
    /// In front of `server`, hostile to commands that begin with these words, of which the first `spared` pass.
    pub fn start(server: &str, command: &str, spared: u64, answer: Answer) -> HostilePeer {
        HostilePeer::with(
            server,
            Hostility::Answer(command.to_owned(), spared, answer),
        )
    }

    /// In front of `server`, with the largest numbers there are in INFO.
    pub fn boasting(server: &str) -> HostilePeer {
        HostilePeer::with(server, Hostility::Numbers)
    }

    fn with(server: &str, hostility: Hostility) -> HostilePeer {
        let state = Arc::new(State {
            server: server.to_owned(),
            hostility,
            seen: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            ended: Arc::default(),
        });
        let between = Between::start(server, &state, &state.ended);
        HostilePeer { between, state }
    }

    pub fn url(&self) -> String {
        self.between.url()
    }

    /// Bytes of hostile answers that were taken.
    pub fn sent(&self) -> u64 {
        self.state.sent.load(SeqCst)
    }
}

/// A connection that is struck gets no answers of the real server any more.
impl Carry for State {
    /// Passes commands on until the chosen one.
    fn ask(&self, mut from: TcpStream, mut to: TcpStream, hostile: &AtomicBool) {
        let (mut buf, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
        let mut args = Vec::new();
        while let Ok(n @ 1..) = from.read(&mut chunk) {
            buf.extend_from_slice(&chunk[..n]);
            while let Ok(Some(len)) = resp::parse_command(&buf, &mut args) {
                let words = args
                    .iter()
                    .map(|r| String::from_utf8_lossy(&buf[r.clone()]));
                let words = words.collect::<Vec<_>>().join(" ").to_uppercase();
                match &self.hostility {
                    Hostility::Answer(command, spared, answer)
                        if words.starts_with(command)
                            && self.seen.fetch_add(1, SeqCst) >= *spared =>
                    {
                        hostile.store(true, SeqCst);
                        self.strike(*answer, from, to);
                        return;
                    }
                    Hostility::Numbers if words.starts_with("INFO") => {
                        let told = self.boast(&buf[..len]);
                        if from.write_all(&told).is_err() {
                            return;
                        }
                        buf.drain(..len);
                        continue;
                    }
                    _ => {}
                }
                if to.write_all(&buf[..len]).is_err() {
                    return;
                }
                buf.drain(..len);
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }

    /// The real server's answers.
    fn answer(&self, mut from: TcpStream, mut to: TcpStream, hostile: &AtomicBool) {
        let mut buf = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut buf) {
            if hostile.load(SeqCst) || to.write_all(&buf[..n]).is_err() {
                return;
            }
        }
        if !hostile.load(SeqCst) {
            let _ = to.shutdown(Shutdown::Both);
        }
    }
}

impl State {
    fn strike(&self, answer: Answer, mut client: TcpStream, server: TcpStream) {
        let again = answer.again.as_bytes();
        let filler = again.repeat((256 << 10) / again.len());
        let (mut sent, began) = (0, Instant::now());
        let mut taken = client.write_all(answer.head.as_bytes()).is_ok();
        while taken && sent < MOST && began.elapsed() < LONGEST && !self.ended.load(SeqCst) {
            taken = client.write_all(&filler).is_ok();
            sent += filler.len();
            self.sent.fetch_add(filler.len() as u64, SeqCst);
        }
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    }

    /// The answer to an INFO command, with other numbers.
    fn boast(&self, command: &[u8]) -> Vec<u8> {
        self.sent.fetch_add(1, SeqCst);
        let mut server = TcpStream::connect(&self.server).expect("the server");
        server.write_all(command).expect("the server");
        let (mut buf, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
        let text = loop {
            let n = server.read(&mut chunk).expect("the server");
            assert!(n > 0, "the server answers");
            buf.extend_from_slice(&chunk[..n]);
            if let Ok(Some((reply, _))) = resp::parse_reply(&buf) {
                break reply.text().unwrap_or_default().into_owned();
            }
        };
        let mut lines = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let number = NUMBERS[at % NUMBERS.len()];
            let is_number =
                |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let line = match line.split_once(':') {
                Some((name, value)) if !LEFT_ALONE.contains(&name) && is_number(value) => {
                    format!("{name}:{number}")
                }
                Some((name, pairs)) if pairs.contains('=') && !name.starts_with("slave") => {
                    let pairs = pairs.split(',').map(|pair| match pair.split_once('=') {
                        Some((name, value)) if is_number(value) => format!("{name}={number}"),
                        _ => pair.to_owned(),
                    });
                    format!("{name}:{}", pairs.collect::<Vec<_>>().join(","))
                }
                _ => line.to_owned(),
            };
            lines.push(line);
        }
        let text = lines.join("\r\n") + "\r\n";
        format!("${}\r\n{text}\r\n", text.len()).into_bytes()
    }
}
