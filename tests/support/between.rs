//! A TCP proxy each of whose connections is in a test's hands, one direction at a time.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// Carries one direction of a connection; what both directions of it know is whether it has been struck.
pub trait Carry: Send + Sync + 'static {
    /// What the client says.
    fn ask(&self, from: TcpStream, to: TcpStream, struck: &AtomicBool);
    /// What the server says.
    fn answer(&self, from: TcpStream, to: TcpStream, struck: &AtomicBool);
}

/// A proxy on a port of its own; dropped, it ends with all of its connections.
pub struct Between {
    port: u16,
    ended: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Between {
    /// In front of `target`; `ended` is told when it ends.
    pub fn start(target: &str, carry: &Arc<impl Carry>, ended: &Arc<AtomicBool>) -> Between {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let open = Arc::new(Mutex::new(Vec::new()));
        let (target, kept) = (target.to_owned(), open.clone());
        let (carry, over) = (carry.clone(), ended.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if over.load(SeqCst) {
                    return;
                }
                if let Ok(server) = TcpStream::connect(&target) {
                    join(&carry, &client, &server, &kept);
                }
            }
        });
        let ended = ended.clone();
        Between { port, ended, open }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
        let open = self.open.lock().unwrap_or_else(|e| e.into_inner());
        for stream in open.iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(open);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn join(
    carry: &Arc<impl Carry>,
    client: &TcpStream,
    server: &TcpStream,
    open: &Mutex<Vec<TcpStream>>,
) {
    let struck = Arc::new(AtomicBool::new(false));
    for (from, to, asks) in [(client, server, true), (server, client, false)] {
        let _ = to.set_nodelay(true);
        let streams = (from.try_clone(), to.try_clone(), to.try_clone());
        let (Ok(from), Ok(to), Ok(kept)) = streams else {
            return;
        };
        open.lock().unwrap_or_else(|e| e.into_inner()).push(kept);
        let (carry, struck) = (carry.clone(), struck.clone());
        std::thread::spawn(move || match asks {
            true => carry.ask(from, to, &struck),
            false => carry.answer(from, to, &struck),
        });
    }
}
