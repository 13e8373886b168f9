//! A stand-in for forks of Redis that cannot be had here: a real server behind a proxy that changes what the fork
//! answers differently. It shows how keyferry takes such answers, not how the fork behaves.
//!
//! A question is changed into one whose answer is the fork's, so that the real server keeps all answers in order.

use super::between::{Between, Carry};
use keyferry::formats::resp;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// Makes another command of one; `None` leaves it.
type Change = Box<dyn Fn(&[Vec<u8>]) -> Option<Vec<Vec<u8>>> + Send + Sync>;

/// Words of what the server sends, and what stands there instead, of the same length: offsets stay true.
type Swap = (Vec<u8>, Vec<u8>);

pub struct Fork {
    between: Between,
    state: Arc<State>,
}

struct State {
    changes: Vec<Change>,
    swaps: Vec<Swap>,
    changed: AtomicU64,
    swapped: AtomicU64,
}

/// What it does to questions and answers.
#[derive(Default)]
pub struct Rules {
    changes: Vec<Change>,
    swaps: Vec<Swap>,
}

impl Rules {
    /// Commands that begin with these words are answered with a line: `+OK` or `-ERR …`.
    pub fn answer(self, words: &'static str, line: &'static str) -> Rules {
        self.change(move |args| {
            let kind = match line.starts_with('-') {
                true => "err",
                false => "ok",
            };
            begins(args, words)
                .then(|| script(&format!("return {{{kind}=ARGV[1]}}"), &line.as_bytes()[1..]))
        })
    }

    /// INFO has these lines before all others.
    pub fn info(self, lines: &'static str) -> Rules {
        self.change(move |args| {
            let code = "return ARGV[1] .. redis.call('INFO', 'everything')";
            begins(args, "INFO").then(|| script(code, lines.as_bytes()))
        })
    }

    pub fn change(
        mut self,
        change: impl Fn(&[Vec<u8>]) -> Option<Vec<Vec<u8>>> + Send + Sync + 'static,
    ) -> Rules {
        self.changes.push(Box::new(change));
        self
    }

    /// A command of the stream has another name of the same length.
    pub fn in_stream(mut self, real: &str, fork: &str) -> Rules {
        assert_eq!(real.len(), fork.len());
        let framed = |name: &str| format!("\r\n{name}\r\n").into_bytes();
        self.swaps.push((framed(real), framed(fork)));
        self
    }
}

/// Whether a command begins with these words.
pub fn begins(args: &[Vec<u8>], words: &str) -> bool {
    let words: Vec<&str> = words.split(' ').collect();
    words.len() <= args.len()
        && (words.iter().zip(args)).all(|(w, a)| a.eq_ignore_ascii_case(w.as_bytes()))
}

/// A call of a script without keys.
pub fn script(code: &str, argument: &[u8]) -> Vec<Vec<u8>> {
    let words: [&[u8]; 4] = [b"EVAL", code.as_bytes(), b"0", argument];
    words.map(<[u8]>::to_vec).to_vec()
}

impl Fork {
    pub fn start(server: &str, rules: Rules) -> Fork {
        let state = Arc::new(State {
            changes: rules.changes,
            swaps: rules.swaps,
            changed: AtomicU64::new(0),
            swapped: AtomicU64::new(0),
        });
        let between = Between::start(server, &state, &Arc::default());
        Fork { between, state }
    }

    pub fn url(&self) -> String {
        self.between.url()
    }

    /// How many questions were changed, and how many words of answers.
    pub fn struck(&self) -> (u64, u64) {
        (
            self.state.changed.load(SeqCst),
            self.state.swapped.load(SeqCst),
        )
    }
}

impl State {
    /// Swaps words in place; returns how much of the end may be the beginning of one and has to wait for more.
    fn swap(&self, buf: &mut [u8]) -> usize {
        let mut keep = 0;
        for (real, fork) in &self.swaps {
            let mut at = 0;
            while let Some(found) = buf[at..].windows(real.len()).position(|w| w == real) {
                at += found;
                buf[at..at + fork.len()].copy_from_slice(fork);
                at += fork.len();
                self.swapped.fetch_add(1, SeqCst);
            }
            let longest = (1..real.len().min(buf.len() + 1)).rev();
            let begun = longest.into_iter().find(|n| buf.ends_with(&real[..*n]));
            keep = keep.max(begun.unwrap_or(0));
        }
        keep
    }
}

impl Carry for State {
    fn ask(&self, mut from: TcpStream, mut to: TcpStream, _: &AtomicBool) {
        let (mut buf, mut chunk, mut args) = (Vec::new(), vec![0; 64 << 10], Vec::new());
        while let Ok(n @ 1..) = from.read(&mut chunk) {
            buf.extend_from_slice(&chunk[..n]);
            let mut out = Vec::new();
            while let Ok(Some(len)) = resp::parse_command(&buf, &mut args) {
                let words: Vec<Vec<u8>> = args.iter().map(|r| buf[r.clone()].to_vec()).collect();
                match self.changes.iter().find_map(|change| change(&words)) {
                    Some(other) => {
                        self.changed.fetch_add(1, SeqCst);
                        let other: Vec<&[u8]> = other.iter().map(Vec::as_slice).collect();
                        resp::command(&mut out, &other);
                    }
                    None => out.extend_from_slice(&buf[..len]),
                }
                buf.drain(..len);
            }
            if to.write_all(&out).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }

    fn answer(&self, mut from: TcpStream, mut to: TcpStream, _: &AtomicBool) {
        let (mut buf, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
        while let Ok(n @ 1..) = from.read(&mut chunk) {
            buf.extend_from_slice(&chunk[..n]);
            // A snapshot's length ends in a line end, and so does every word of a stream's command: "\r\n" alone at the
            // end must not wait, or a reply would.
            let keep = self.swap(&mut buf);
            let keep = if keep <= 2 { 0 } else { keep };
            let done = buf.len() - keep;
            if to.write_all(&buf[..done]).is_err() {
                break;
            }
            buf.drain(..done);
        }
        let _ = to.shutdown(Shutdown::Both);
    }
}
