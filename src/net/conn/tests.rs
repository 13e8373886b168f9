//! How long a reply may take, and that its bytes are read once.

use super::*;
use crate::plan::{Plan, validate};
use std::net::TcpListener;
use std::time::Instant as Clock;

/// A connection to a peer that sends pieces, with a rest before each.
async fn conn(pieces: Vec<Vec<u8>>, rest: Duration) -> Conn {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        for piece in pieces {
            std::thread::sleep(rest);
            if stream.write_all(&piece).is_err() {
                return;
            }
        }
        let _ = stream.read(&mut [0; 100]);
    });
    let plan = format!(
        r#"{{"name": "unit", "source": {{"url": "redis://{address}"}}, "target": {{"url": "redis://127.0.0.1:2"}}}}"#
    );
    let job = validate(&Plan::parse(&plan).unwrap()).unwrap();
    let stream = Stream::Plain(TcpStream::connect(&address).await.unwrap());
    let mut conn = Conn::over(stream, &job.target, &address);
    conn.pace.limit = Duration::from_millis(400);
    conn
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    runtime.block_on(work)
}

/// A byte now and then is no answer, though the peer is never silent for long.
#[test]
fn a_reply_that_trickles_ends_in_time() {
    wait(async {
        let began = Clock::now();
        let wire = b"$1000\r\n".iter().chain([b'x'; 100].iter());
        let pieces = wire.map(|b| vec![*b]).collect();
        let mut conn = conn(pieces, Duration::from_millis(50)).await;
        let e = conn.reply().await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Connection);
        let took = began.elapsed();
        assert!(took < Duration::from_millis(1500), "{took:?}");
    });
}

/// A long reply over a slow line takes as long as it takes.
#[test]
fn a_slow_reply_that_gets_on_is_read() {
    wait(async {
        let value = vec![b'v'; 10 * PROGRESS_BYTES];
        let wire = [b"$655360\r\n".as_slice(), &value, b"\r\n:7\r\n"].concat();
        let pieces = wire.chunks(PROGRESS_BYTES / 2).map(<[u8]>::to_vec);
        let mut conn = conn(pieces.collect(), Duration::from_millis(60)).await;
        let began = Clock::now();
        assert_eq!(conn.reply().await.unwrap().bytes(), Some(&*value));
        assert!(began.elapsed() > conn.pace.limit);
        assert_eq!(conn.reply().await.unwrap().int(), Some(7));
    });
}

/// A reader that was cut off in the middle of a reply goes on there.
#[test]
fn a_reply_is_read_on_after_a_cancelled_read() {
    wait(async {
        let pieces = vec![b"*2\r\n$4\r\nab".to_vec(), b"cd\r\n:1\r\n".to_vec()];
        let mut conn = conn(pieces, Duration::from_millis(150)).await;
        let early = tokio::time::timeout(Duration::from_millis(220), conn.reply()).await;
        assert!(early.is_err());
        let reply = conn.reply().await.unwrap();
        assert_eq!(reply.array().unwrap()[0].bytes(), Some(b"abcd".as_slice()));
    });
}

/// A refusal of the first of several commands is heard, though the server closes the connection behind it.
#[test]
fn an_error_counts_though_the_connection_ends_behind_it() {
    wait(async {
        let said = b"-NOPERM this user has no permissions to run the 'replconf' command\r\n";
        let mut conn = conn(vec![said.to_vec()], Duration::ZERO).await;
        let mut heard = Vec::new();
        let asked: [&[&[u8]]; 2] = [&[b"REPLCONF", b"capa", b"eof"], &[b"INFO"]];
        let e = conn.ask_each(&asked, |i, reply| match reply {
            Reply::Error(text) => Err(refusal("REPLCONF", &text)),
            _ => {
                heard.push(i);
                Ok(())
            }
        });
        let e = e.await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Refused, "{e}");
        assert_eq!(heard, [0usize; 0]);
    });
}
