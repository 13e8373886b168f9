//! A peer that answers PING as a server does, and whatever is asked then by something that no server sends.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// What it says: once, and then again and again.
#[derive(Clone)]
pub struct Says {
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
    loop {
        let n = client.read(&mut buf)?;
        if n == 0 {
            return Ok(());
        }
        if !buf[..n].windows(4).any(|word| word == b"PING") {
            break;
        }
        client.write_all(b"+PONG\r\n")?;
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
