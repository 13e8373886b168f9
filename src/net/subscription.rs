//! A connection that listens to channels: the `redis` crate's PubSub over a stream that `net::connect` has opened.
//!
//! Invariants: the answer to a PING comes after everything that the server had sent before it; what waits for whoever
//! listens is bounded, and beyond that the server has to wait.

use super::conn::{Conn, LoggedIn, REPLY_LIMIT, accepted, refused_before};
use super::control::{MAX_BYTES, bare, error_text, lost};
use super::meter::{Metered, Watched};
use crate::error::{Error, ErrorKind, Result};
use crate::resp::Reply;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use redis::aio::{PubSub, PubSubSink, PubSubStream};
use redis::{RedisResult, Value};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// Bytes that are read ahead of whoever listens; in memory they take about four times that.
const ROOM: u64 = 1 << 20;

/// What a connection that gives place to another is asked at last.
const LAST: &[u8] = b"last";

/// What a connection that listens hears.
pub enum Heard {
    Message {
        channel: Vec<u8>,
        payload: Vec<u8>,
    },
    /// The answer to a PING, which says the same.
    Pong(Vec<u8>),
}

pub struct Subscription {
    requests: PubSubSink,
    messages: PubSubStream,
    /// PINGs that are to be answered.
    asked: FuturesOrdered<BoxFuture<'static, (Vec<u8>, RedisResult<Value>)>>,
    /// One that is answered, whose place is behind all that is there.
    answered: Option<Vec<u8>>,
    watched: Arc<Watched>,
    login: LoggedIn,
    address: String,
    /// How long an answer may take.
    limit: Duration,
}

impl Subscription {
    /// Takes over a connection that has logged in; a password that changes is not told to it, as it takes no AUTH.
    pub async fn over(conn: Conn) -> Result<Subscription> {
        let (address, login) = (conn.address().to_owned(), conn.login());
        let (stream, watched) = Metered::over(conn, MAX_BYTES, ROOM)?;
        let made = PubSub::new(&bare(), stream).await;
        let (requests, messages) = made.map_err(|e| lost(&address, &watched, e))?.split();
        Ok(Subscription {
            requests,
            messages,
            asked: FuturesOrdered::new(),
            answered: None,
            watched,
            login,
            address,
            limit: REPLY_LIMIT,
        })
    }

    /// Listens to the channels of a pattern.
    ///
    /// Errors: `Refused`; `Connection`.
    pub async fn listen(&mut self, pattern: &[u8]) -> Result<()> {
        const NAME: &[u8] = b"PSUBSCRIBE";
        let command = [NAME, pattern];
        let learnt = self.login.learnt();
        if learnt.refuses(&command) {
            return accepted(&self.address, NAME, refused_before()).map(drop);
        }
        let asked = tokio::time::timeout(self.limit, self.requests.psubscribe(pattern));
        let asked = asked.await.map_err(|_| silent(&self.address, self.limit))?;
        match asked {
            Ok(()) => {
                learnt.works(&command);
                Ok(())
            }
            Err(e) => match error_text(&e) {
                Some(text) => {
                    learnt.note(&command, &text);
                    accepted(&self.address, NAME, Reply::Error(text)).map(drop)
                }
                None => Err(lost(&self.address, &self.watched, e)),
            },
        }
    }

    /// Sends a PING with the next [`Subscription::next`]; its answer is heard behind all that was sent before it.
    pub fn ping(&mut self, token: &[u8]) {
        let (mut requests, token) = (self.requests.clone(), token.to_vec());
        self.asked.push_back(Box::pin(async move {
            let answer = requests.ping_message(token.as_slice()).await;
            (token, answer)
        }));
    }

    /// Hands on what the server has sent up to now.
    ///
    /// Errors: `Connection`, also where the server does not answer a last PING.
    pub async fn finish(&mut self, mut take: impl FnMut(&Heard)) -> Result<()> {
        self.ping(LAST);
        let limit = self.limit;
        let all = async {
            loop {
                match self.next().await? {
                    Heard::Pong(token) if token == LAST => return Ok(()),
                    heard => take(&heard),
                }
            }
        };
        let all = tokio::time::timeout(limit, all).await;
        all.unwrap_or_else(|_| Err(silent(&self.address, self.limit)))
    }

    /// What is heard next. May be given up at any time, and nothing is lost.
    pub async fn next(&mut self) -> Result<Heard> {
        std::future::poll_fn(|cx| {
            loop {
                match self.messages.poll_next_unpin(cx) {
                    Poll::Ready(Some(message)) => {
                        // A channel that is not bytes is none.
                        let channel = message.get_channel().unwrap_or_default();
                        let payload = message.get_payload_bytes().to_vec();
                        return Poll::Ready(Ok(Heard::Message { channel, payload }));
                    }
                    Poll::Ready(None) => {
                        let ended = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
                        return Poll::Ready(Err(lost(&self.address, &self.watched, ended.into())));
                    }
                    Poll::Pending => self.watched.all_taken(),
                }
                if let Some(token) = self.answered.take() {
                    return Poll::Ready(Ok(Heard::Pong(token)));
                }
                match self.asked.poll_next_unpin(cx) {
                    // What came before the answer is there by now, but may have come since it was looked for.
                    Poll::Ready(Some((token, Ok(_)))) => self.answered = Some(token),
                    Poll::Ready(Some((_, Err(e)))) => {
                        return Poll::Ready(Err(lost(&self.address, &self.watched, e)));
                    }
                    Poll::Ready(None) | Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }
}

fn silent(address: &str, limit: Duration) -> Error {
    let text = format!("{address} did not answer for {} s", limit.as_secs());
    Error::new(ErrorKind::Connection, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{connect, testing};
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const MESSAGES: u64 = 400_000;

    fn bulks(words: &[&str]) -> String {
        let words = words.iter().map(|w| format!("${}\r\n{w}\r\n", w.len()));
        format!("*{}\r\n{}", words.len(), words.collect::<String>())
    }

    /// Takes a PSUBSCRIBE, sends many messages, and answers the PING that has come meanwhile.
    async fn serve(listener: TcpListener, sent: Arc<AtomicU64>) -> std::io::Result<()> {
        let (mut stream, _) = listener.accept().await?;
        let mut buf = vec![0; 4096];
        let _ = stream.read(&mut buf).await?;
        stream.write_all(b"+PONG\r\n").await?;
        let _ = stream.read(&mut buf).await?;
        let taken = "*3\r\n$10\r\npsubscribe\r\n$1\r\n*\r\n:1\r\n";
        stream.write_all(taken.as_bytes()).await?;
        for n in 0..MESSAGES {
            let message = bulks(&["pmessage", "*", "__keyevent@0__:set", &n.to_string()]);
            stream.write_all(message.as_bytes()).await?;
            sent.fetch_add(message.len() as u64, Relaxed);
        }
        let _ = stream.read(&mut buf).await?;
        stream.write_all(bulks(&["pong", "now"]).as_bytes()).await?;
        std::future::pending().await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_server_waits_for_whoever_listens_and_a_pong_comes_last() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = testing::endpoint(listener.local_addr().unwrap(), None);
        let sent = Arc::new(AtomicU64::new(0));
        tokio::spawn(serve(listener, sent.clone()));
        let conn = connect(&endpoint, &endpoint.address()).await.unwrap();
        let mut subscription = Subscription::over(conn).await.unwrap();
        subscription.listen(b"*").await.unwrap();
        let mut before = u64::MAX;
        while before != sent.load(Relaxed) {
            before = sent.load(Relaxed);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // What the two sockets hold as well.
        assert!(before < 16 << 20, "{before} bytes were taken");
        subscription.ping(b"now");
        for n in 0..MESSAGES {
            match subscription.next().await.unwrap() {
                Heard::Message { payload, .. } => assert_eq!(payload, n.to_string().as_bytes()),
                Heard::Pong(_) => panic!("a PONG before message {n}"),
            }
        }
        assert!(sent.load(Relaxed) > 16 << 20, "it was enough to fill them");
        let last = subscription.next().await.unwrap();
        assert!(matches!(last, Heard::Pong(token) if token == b"now"));
    }

    /// A server that falls silent is given up: asked to listen (`answers` false), or for the last that it has to say.
    async fn falls_silent(answers: bool) -> Error {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = testing::endpoint(listener.local_addr().unwrap(), None);
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buf = [0; 4096];
            let _ = stream.read(&mut buf).await;
            stream.write_all(b"+PONG\r\n").await.unwrap();
            if answers {
                let _ = stream.read(&mut buf).await;
                let taken = "*3\r\n$10\r\npsubscribe\r\n$1\r\n*\r\n:1\r\n";
                stream.write_all(taken.as_bytes()).await.unwrap();
            }
            stream
        });
        let conn = connect(&endpoint, &endpoint.address()).await.unwrap();
        let mut subscription = Subscription::over(conn).await.unwrap();
        if answers {
            subscription.listen(b"*").await.unwrap();
        }
        let _stream = server.await.unwrap();
        subscription.limit = Duration::from_millis(300);
        let given_up = match answers {
            false => subscription.listen(b"*").await,
            true => subscription.finish(|_| {}).await,
        };
        given_up.unwrap_err()
    }

    #[tokio::test]
    async fn a_server_that_falls_silent_is_given_up() {
        for answers in [false, true] {
            let e = falls_silent(answers).await;
            assert_eq!(e.kind(), ErrorKind::Connection, "{e}");
            assert!(e.to_string().contains("did not answer for"), "{e}");
        }
    }
}
