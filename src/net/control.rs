//! A connection for questions and answers: the `redis` crate over a stream that `net::connect` has opened.
//!
//! Invariants: nothing is sent that nobody asked for (no HELLO, CLIENT SETINFO or SELECT of the crate's); a request that
//! is given up cannot leave its answer to the next one; a reply is bounded in bytes, elements and time.

use super::conn::{Conn, LoggedIn, REPLY_LIMIT, accepted, refused_before};
use super::dial::{connect, enter, exactly};
use super::meter::{Ended, Metered, Watched};
use super::refusals;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Endpoint, Learnt};
use crate::resp::Reply;
use crate::types::DbIndex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo, RedisError, Value};
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// A reply. The longest that is known is CLUSTER SLOTS, 7 MB where 16384 slots alternate between masters of two replicas.
pub(super) const MAX_BYTES: u64 = 16 * MIB;
/// Libraries of functions; the clients of a server that has 65,000 of them.
const MAX_BYTES_LONG: u64 = 24 * MIB;
/// How long such a reply may take in all; others [`REPLY_LIMIT`].
const LONG_LIMIT: Duration = Duration::from_secs(300);

/// Sends what is queued and reads what comes, for as long as somebody waits for an answer.
type Driver = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// A connection for questions to the server at `address`.
pub async fn control(endpoint: &Endpoint, address: &str) -> Result<Control> {
    Control::over(connect(endpoint, address).await?).await
}

/// A connection for questions to the server at an address that servers have told.
pub async fn told(endpoint: &Endpoint, address: &str) -> Result<Control> {
    Control::over(exactly(endpoint, address).await?).await
}

/// A connection for questions to the server that stands for a side.
pub async fn question(endpoint: &Endpoint) -> Result<Control> {
    Control::over(enter(endpoint).await?).await
}

/// Questions to one server, and its answers.
pub struct Control {
    requests: MultiplexedConnection,
    /// Gone once the connection has ended.
    driver: Option<Driver>,
    watched: Arc<Watched>,
    /// The selected database; `None` when a SELECT was given up.
    db: Option<DbIndex>,
    login: LoggedIn,
    address: String,
}

impl Control {
    /// Takes over a connection that has logged in.
    pub async fn over(conn: Conn) -> Result<Control> {
        let (address, login) = (conn.address().to_owned(), conn.login());
        let (stream, watched) = Metered::over(conn, MAX_BYTES, u64::MAX)?;
        // The time limits are ours.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None);
        let made = MultiplexedConnection::new_with_config(&bare(), stream, config).await;
        let (requests, driver) = made.map_err(|e| lost(&address, &watched, e))?;
        Ok(Control {
            requests,
            driver: Some(Box::pin(driver)),
            watched,
            db: Some(DbIndex::ZERO),
            login,
            address,
        })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sends a command and returns its reply, an error reply included.
    ///
    /// What the server has refused for good is not sent again: the refusal is repeated.
    pub async fn ask(&mut self, args: &[&[u8]]) -> Result<Reply> {
        let mut replies = self.ask_all(&[args]).await?;
        let none = || Error::new(ErrorKind::Bug, "a command without a reply");
        replies.pop().ok_or_else(none)
    }

    /// The same for several commands, one sent after the other without waiting.
    pub async fn ask_all(&mut self, commands: &[&[&[u8]]]) -> Result<Vec<Reply>> {
        self.stay_logged_in().await?;
        let learnt = self.login.learnt().clone();
        let refused: Vec<bool> = commands.iter().map(|args| learnt.refuses(args)).collect();
        let asked: Vec<&[&[u8]]> = (commands.iter().zip(&refused))
            .filter_map(|(args, refused)| (!refused).then_some(*args))
            .collect();
        let mut came = self.send(&asked).await?.into_iter();
        let mut replies = Vec::with_capacity(commands.len());
        for (args, refused) in commands.iter().zip(refused) {
            if refused {
                replies.push(refused_before());
                continue;
            }
            let none = || Error::new(ErrorKind::Bug, "a command without a reply");
            let reply = came.next().ok_or_else(none)?;
            match &reply {
                Reply::Error(text) => learnt.note(args, text),
                _ => learnt.works(args),
            }
            replies.push(reply);
        }
        Ok(replies)
    }

    /// The same, with no refusal brought about twice: of commands that go by one name, and of which none was answered
    /// before, the first is answered before the others are sent. They run in this order.
    pub async fn ask_new(&mut self, commands: &[&[&[u8]]]) -> Result<Vec<Reply>> {
        let learnt = self.login.learnt().clone();
        let (mut replies, mut met) = (Vec::with_capacity(commands.len()), BTreeSet::new());
        while replies.len() < commands.len() {
            let rest = commands.get(replies.len()..).unwrap_or_default();
            let mut sent = BTreeSet::new();
            let repeats = |args: &&[&[u8]]| {
                let name = Learnt::name(args);
                !met.contains(&name) && !learnt.allows(&name) && !sent.insert(name)
            };
            let n = rest.iter().position(repeats).unwrap_or(rest.len());
            replies.extend(self.ask_all(rest.get(..n).unwrap_or_default()).await?);
            met.extend(sent);
        }
        Ok(replies)
    }

    /// Sends a command; an error reply becomes an error that names the command.
    pub async fn call(&mut self, args: &[&[u8]]) -> Result<Reply> {
        let reply = self.ask(args).await?;
        self.accepted(args, reply)
    }

    /// The reply to a command; an error reply becomes an error that names it.
    pub fn accepted(&self, args: &[&[u8]], reply: Reply) -> Result<Reply> {
        let name = args.first().copied().unwrap_or_default();
        accepted(&self.address, name, reply)
    }

    /// Selects a database, unless it already is.
    ///
    /// Errors: `Refused` when the server has no such database.
    pub async fn select(&mut self, db: DbIndex) -> Result<()> {
        if self.db != Some(db) {
            self.db = None;
            self.call(&[b"SELECT", db.to_string().as_bytes()]).await?;
            self.db = Some(db);
        }
        Ok(())
    }

    /// Authenticates anew when the password has changed.
    async fn stay_logged_in(&mut self) -> Result<()> {
        let Some(words) = self.login.due().await else {
            return Ok(());
        };
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        let replies = self.send(&[&words]).await?;
        self.login.told();
        if let Some(Reply::Error(text)) = replies.first() {
            // As it was: the server goes on with who we were until that ends.
            let text = refusals::said(text);
            tracing::warn!("{} refuses the new password: {text}", self.address);
            self.login.refused();
        }
        Ok(())
    }

    /// The one place where commands leave.
    async fn send(&mut self, commands: &[&[&[u8]]]) -> Result<Vec<Reply>> {
        let mut pipeline = redis::Pipeline::with_capacity(commands.len());
        let mut limit = REPLY_LIMIT;
        for args in commands {
            let mut command = redis::Cmd::new();
            for arg in self.login.names().words(args) {
                command.arg(arg);
            }
            pipeline.add_command(command);
            if is_long(args) {
                self.watched.allow(MAX_BYTES_LONG);
                limit = LONG_LIMIT;
            }
        }
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        let names = commands.iter().map(|args| shown_name(args));
        tracing::trace!("{}: {}", self.address, names.collect::<Vec<_>>().join(", "));
        let watched = self.watched.clone();
        let _asking = watched.ask();
        let (requests, driver) = (&mut self.requests, &mut self.driver);
        let answered = async {
            let request = requests.send_packed_commands(&pipeline, 0, commands.len());
            let mut request = std::pin::pin!(request);
            if let Some(driving) = driver {
                tokio::select! {
                    biased;
                    answered = &mut request => return answered,
                    () = driving => {}
                }
            }
            // The end of the connection is the answer to all that wait.
            *driver = None;
            request.await
        };
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok(values)) => values
                .into_iter()
                .map(|v| reply(&self.address, v))
                .collect(),
            Ok(Err(e)) => Err(lost(&self.address, &self.watched, e)),
            Err(_) => Err(Error::new(
                ErrorKind::Connection,
                format!("{} did not answer for {} s", self.address, limit.as_secs()),
            )),
        }
    }
}

/// RESP 2, database 0 and no credentials: nothing that the crate would have to send.
pub(super) fn bare() -> RedisConnectionInfo {
    RedisConnectionInfo::default().set_skip_set_lib_name()
}

/// Why a connection has ended.
pub(super) fn lost(address: &str, watched: &Watched, e: RedisError) -> Error {
    let connection = |text| Error::new(ErrorKind::Connection, text);
    match watched.take_end() {
        Some(Ended::Refused(what)) => Error::new(
            ErrorKind::Protocol,
            format!("{address} sent {what}, which no server does"),
        ),
        Some(Ended::Closed) => connection(format!("{address} closed the connection")),
        Some(Ended::Cut(e)) => connection(format!("the connection to {address} was cut")).cause(e),
        None if e.is_io_error() => connection(format!("the connection to {address} was cut")),
        // Without the crate's words, which repeat what it has read.
        None => Error::new(
            ErrorKind::Protocol,
            format!("{address} sent a reply that cannot be read"),
        ),
    }
}

/// A server's own words, when that is what an error of the crate holds.
pub(super) fn error_text(e: &RedisError) -> Option<String> {
    let code = e.code()?;
    Some(match e.detail() {
        Some(detail) => format!("{code} {detail}"),
        None => code.to_owned(),
    })
}

/// What a command is called, without anything that could be a secret.
fn shown_name(args: &[&[u8]]) -> String {
    String::from_utf8_lossy(args.first().copied().unwrap_or_default()).into_owned()
}

/// Whether the reply to a command may be a long one.
fn is_long(args: &[&[u8]]) -> bool {
    let is = |at: usize, word: &str| {
        (args.get(at)).is_some_and(|arg| arg.eq_ignore_ascii_case(word.as_bytes()))
    };
    is(0, "FUNCTION") || (is(0, "CLIENT") && is(1, "LIST"))
}

fn reply(address: &str, value: Value) -> Result<Reply> {
    Ok(match value {
        Value::Nil => Reply::Nil,
        Value::Int(n) => Reply::Int(n),
        Value::BulkString(bytes) => Reply::Bulk(bytes),
        Value::Okay => Reply::Status("OK".into()),
        Value::SimpleString(text) => Reply::Status(text.into()),
        Value::ServerError(e) => Reply::Error(match e.details() {
            Some(details) => format!("{} {details}", e.code()),
            None => e.code().to_owned(),
        }),
        Value::Array(items) => {
            let items = items.into_iter().map(|item| reply(address, item));
            Reply::Array(items.collect::<Result<_>>()?)
        }
        _ => {
            let text = format!("{address} answered in RESP 3, which was not asked for");
            return Err(Error::new(ErrorKind::Protocol, text));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing;
    use crate::plan::Endpoint;
    use serde_json::{Value, json};
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// An endpoint whose server answers each command by a status that repeats it, after so many ms; and what it was asked.
    async fn echo(delay_ms: u64, password: Option<Value>) -> (Endpoint, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = testing::endpoint(listener.local_addr().unwrap(), password);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let asked = heard.clone();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buf = vec![0; 1 << 16];
            while let Ok(n @ 1..) = stream.read(&mut buf).await {
                for command in String::from_utf8_lossy(&buf[..n]).split('*').skip(1) {
                    let words = command.split("\r\n").skip(2).step_by(2);
                    let words = words.collect::<Vec<_>>().join(" ");
                    tokio::time::sleep(Duration::from_millis(delay_ms)).await;
                    let refused = words == "NO WAY";
                    let answer = match refused {
                        true => {
                            "-ERR unknown command 'NO', with args beginning with: 'WAY'\r\n".into()
                        }
                        false => format!("+{words}\r\n"),
                    };
                    asked.lock().unwrap().push(words);
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
        (endpoint, heard)
    }

    async fn control(endpoint: &Endpoint) -> Control {
        let conn = super::super::connect(endpoint, &endpoint.address()).await;
        Control::over(conn.unwrap()).await.unwrap()
    }

    fn status(text: &str) -> Reply {
        Reply::Status(text.to_owned().into())
    }

    #[tokio::test]
    async fn an_answer_that_nobody_waits_for_is_not_taken_for_another() {
        let (endpoint, heard) = echo(100, None).await;
        let mut control = control(&endpoint).await;
        for n in 0..3 {
            let given_up = control.ask(&[b"FIRST"]);
            let limit = Duration::from_millis(20 * n);
            assert!(tokio::time::timeout(limit, given_up).await.is_err());
            let reply = control.ask(&[b"SECOND", b"x"]).await.unwrap();
            assert_eq!(reply, status("SECOND x"));
        }
        // A SELECT that was given up may have run.
        let selected = tokio::time::timeout(Duration::from_millis(20), control.select(DbIndex(3)));
        assert!(selected.await.is_err());
        control.select(DbIndex::ZERO).await.unwrap();
        let heard = heard.lock().unwrap().join(", ");
        assert!(heard.starts_with("PING, "), "{heard}");
        assert!(heard.ends_with("SECOND x, SELECT 3, SELECT 0"), "{heard}");
        assert!(heard.contains("FIRST"), "{heard}");
    }

    #[tokio::test]
    async fn what_is_refused_for_good_is_sent_once_and_all_others_are_answered_in_order() {
        let (endpoint, heard) = echo(0, None).await;
        let mut control = control(&endpoint).await;
        let asked: [&[&[u8]]; 3] = [&[b"A"], &[b"NO", b"WAY"], &[b"B"]];
        for _ in 0..3 {
            let replies = control.ask_all(&asked).await.unwrap();
            let refused = |reply: &Reply| matches!(reply, Reply::Error(_));
            assert!(refused(&replies[1]), "{replies:?}");
            assert_eq!((&replies[0], &replies[2]), (&status("A"), &status("B")));
        }
        let heard = heard.lock().unwrap().join(", ");
        assert_eq!(heard, "PING, A, NO WAY, B, A, B, A, B");
        assert_eq!(endpoint.learnt.list(), ["NO"]);
    }

    #[tokio::test]
    async fn of_new_commands_one_goes_first() {
        let (endpoint, heard) = echo(0, None).await;
        let mut control = control(&endpoint).await;
        let no: &[&[u8]] = &[b"NO", b"WAY"];
        let asked: [&[&[u8]]; 6] = [&[b"A"], no, &[b"B", b"1"], no, &[b"B", b"2"], no];
        let replies = control.ask_new(&asked).await.unwrap();
        let refused: Vec<bool> = (replies.iter())
            .map(|reply| matches!(reply, Reply::Error(_)))
            .collect();
        assert_eq!(refused, [false, true, false, true, false, true]);
        assert_eq!(replies[4], status("B 2"));
        let heard = heard.lock().unwrap().join(", ");
        assert_eq!(heard, "PING, A, NO WAY, B 1, B 2");
    }

    #[tokio::test]
    async fn a_new_password_is_told_between_two_questions() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "one\n").unwrap();
        let (endpoint, heard) = echo(0, Some(json!({ "file": file.path() }))).await;
        let mut control = control(&endpoint).await;
        control.ask(&[b"A"]).await.unwrap();
        {
            let mut held = endpoint.learnt.held.lock().await;
            let held = held.as_mut().unwrap();
            (held.password, held.version) = (crate::plan::Redacted::new("two".into()), 2);
        }
        endpoint.learnt.changed(2);
        control.ask(&[b"B"]).await.unwrap();
        control.ask(&[b"C"]).await.unwrap();
        let heard = heard.lock().unwrap().join(", ");
        assert_eq!(heard, "AUTH one, PING, A, AUTH two, B, C");
    }
}
