//! A peer that answers as a server does until it is asked for a certain word, and then something that no server sends.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// What it says: once, and then again and again.
#[derive(Clone)]
pub struct Says {
    /// What it has to be asked.
    pub to: &'static str,
    pub first: Vec<u8>,
    pub again: Vec<u8>,
    /// Between two of these.
    pub every: Duration,
}

pub struct Hostile {
    port: u16,
    ended: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
}

/// More is not sent to anybody, nor for longer.
const MOST: u64 = 1 << 30;
const LONGEST: Duration = Duration::from_secs(120);

impl Hostile {
    pub fn start(says: Says) -> Hostile {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (ended, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stop, count) = (ended.clone(), sent.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if stop.load(SeqCst) {
                    return;
                }
                let (says, stop, count) = (says.clone(), stop.clone(), count.clone());
                std::thread::spawn(move || {
                    let _ = answer(&client, &says, &stop, &count);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        Hostile { port, ended, sent }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// How many bytes somebody has taken.
    pub fn sent(&self) -> u64 {
        self.sent.load(SeqCst)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn answer(
    mut client: &TcpStream,
    says: &Says,
    ended: &AtomicBool,
    sent: &AtomicU64,
) -> std::io::Result<()> {
    let mut buf = [0; 4096];
    'asked: loop {
        let n = client.read(&mut buf)?;
        if n == 0 {
            return Ok(());
        }
        let all = String::from_utf8_lossy(&buf[..n]);
        // Several may come at once. A pattern has an asterisk too.
        let is_command = |text: &&str| text.starts_with(|c: char| c.is_ascii_digit());
        for asked in all.split('*').filter(is_command) {
            let answer = match asked {
                asked if asked.contains(says.to) => break 'asked,
                asked if asked.contains("PING") => "+PONG\r\n".to_owned(),
                asked if asked.contains("INFO") => {
                    let info = "redis_version:7.2.0\r\nrole:master\r\n";
                    format!("${}\r\n{info}\r\n", info.len())
                }
                _ => "$-1\r\n".to_owned(),
            };
            client.write_all(answer.as_bytes())?;
        }
    }
    client.write_all(&says.first)?;
    let began = Instant::now();
    while !says.again.is_empty()
        && !ended.load(SeqCst)
        && began.elapsed() < LONGEST
        && sent.load(SeqCst) < MOST
    {
        client.write_all(&says.again)?;
        sent.fetch_add(says.again.len() as u64, SeqCst);
        std::thread::sleep(says.every);
    }
    Ok(())
}
