//! A TCP proxy that loses one direction of one connection: the reply to a chosen command comes late, once, and nothing
//! that the client sends afterwards over that connection arrives.
//!
//! Whoever waits a second and then asks again over the same connection takes the late reply for that of its next command,
//! which has never arrived. Other connections, also later ones, pass everything.

use super::between::{Between, Carry};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

pub struct LateReply {
    between: Between,
    state: Arc<State>,
}

struct State {
    /// Bytes of the command whose reply will be late.
    command: Vec<u8>,
    late_by: Duration,
    /// Whether it has come; only the first one counts.
    seen: AtomicBool,
}

impl LateReply {
    pub fn start(target: &str, command: &str, late_by: Duration) -> LateReply {
        let state = Arc::new(State {
            command: command.as_bytes().to_vec(),
            late_by,
            seen: AtomicBool::new(false),
        });
        let between = Between::start(target, &state, &Arc::default());
        LateReply { between, state }
    }

    pub fn url(&self) -> String {
        self.between.url()
    }

    /// Whether the command has come by.
    pub fn has_struck(&self) -> bool {
        self.state.seen.load(SeqCst)
    }
}

/// A connection that is struck has lost a direction.
impl Carry for State {
    fn ask(&self, mut from: TcpStream, mut to: TcpStream, lame: &AtomicBool) {
        let mut buf = vec![0; 16 << 10];
        while let Ok(n @ 1..) = from.read(&mut buf) {
            if lame.load(SeqCst) {
                continue;
            }
            let chosen = (buf[..n].windows(self.command.len())).any(|w| w == self.command);
            if chosen && !self.seen.swap(true, SeqCst) {
                lame.store(true, SeqCst);
            }
            if to.write_all(&buf[..n]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }

    fn answer(&self, mut from: TcpStream, mut to: TcpStream, lame: &AtomicBool) {
        let mut buf = vec![0; 16 << 10];
        while let Ok(n @ 1..) = from.read(&mut buf) {
            if lame.load(SeqCst) {
                std::thread::sleep(self.late_by);
            }
            if to.write_all(&buf[..n]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }
}

mod tests {
    use super::*;
    use crate::support::need;
    use crate::support::server::Server;
    use crate::support::wire::Client;

    #[test]
    fn the_reply_of_one_command_is_late_and_the_next_never_arrives() {
        let Some([name]) = need(["any"]) else { return };
        let server = Server::start(&name);
        let late = LateReply::start(&server.address(), "INCR", Duration::from_millis(300));
        let address = late.url().replace("redis://", "");
        // A client of the crate's would throw the late reply away.
        let mut plain = TcpStream::connect(&address).expect("a connection");
        let mut ask = |words: &str, patience: Duration| {
            let mut reply = [0; 64];
            plain.set_read_timeout(Some(patience)).expect("a socket");
            plain.write_all(words.as_bytes()).expect("it is sent");
            let n = plain.read(&mut reply).ok()?;
            Some(String::from_utf8_lossy(&reply[..n]).into_owned())
        };
        let soon = Duration::from_secs(5);
        assert_eq!(ask("SET n 6\r\n", soon).as_deref(), Some("+OK\r\n"));
        assert!(!late.has_struck());
        assert_eq!(ask("INCR n\r\n", Duration::from_millis(100)), None);
        // The answer is that of the command before.
        assert_eq!(ask("SET n 100\r\n", soon).as_deref(), Some(":7\r\n"));
        assert!(late.has_struck());
        assert_eq!(server.run("GET n").text(), "7");
        let mut other = Client::connect(&address).expect("a connection");
        assert_eq!(other.words("INCR n").expect("a reply").int(), Some(8));
    }
}
