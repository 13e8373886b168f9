//! One connection: its bytes, who it is, and plain requests and replies.

use super::refusals::{refusal, said};
use super::stream::Stream;
use super::{credentials, tls};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{CommandNames, Endpoint, Held, Learnt, Secret};
use crate::resp::{self, Parser, Reply, Skimmer};
use crate::types::DbIndex;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

/// A server that answers nothing for this long is taken for gone.
///
/// A longer reply has this time for each [`PROGRESS_BYTES`] of it, so that one that trickles ends as well.
pub const REPLY_LIMIT: Duration = Duration::from_secs(60);
/// How much of a reply has to come within [`REPLY_LIMIT`].
pub const PROGRESS_BYTES: usize = 64 * 1024;
/// What one reply may take in memory unless its reader says otherwise: a page of keys, the slots of a large cluster,
/// what INFO and FUNCTION LIST tell.
pub const REPLY_BYTES: usize = 12 << 20;
const READ_CHUNK: usize = 64 * 1024;

/// AUTH over a socket of this machine.
pub async fn open_unix(
    socket: UnixStream,
    endpoint: &Endpoint,
    path: &str,
    held: Option<Held>,
) -> Result<Conn> {
    let mut conn = Conn::over(Stream::Unix(socket), endpoint, path);
    conn.enter(endpoint, held).await?;
    Ok(conn)
}

/// TLS and AUTH over a socket that is connected.
pub async fn open_over(
    tcp: TcpStream,
    endpoint: &Endpoint,
    address: &str,
    held: Option<Held>,
) -> Result<Conn> {
    tune(&tcp);
    let (stream, client) = match &endpoint.tls {
        None => (Stream::Plain(tcp), Default::default()),
        Some(options) => {
            let wrapped = tls::wrap(tcp, options, address, &endpoint.hosts()).await;
            let (stream, client) = wrapped?;
            (Stream::Tls(Box::new(stream)), client)
        }
    };
    let mut conn = Conn::over(stream, endpoint, address);
    let entered = conn.enter(endpoint, held).await;
    entered.map_err(|e| client.explain(e))?;
    Ok(conn)
}

fn tune(tcp: &TcpStream) {
    // Best effort: a platform without these options still works.
    let _ = tcp.set_nodelay(true);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10));
    let _ = socket2::SockRef::from(tcp).set_tcp_keepalive(&keepalive);
}

/// The time that a reply has.
struct Pace {
    /// For each [`PROGRESS_BYTES`] of it.
    limit: Duration,
    /// Since a reply is awaited that has not come yet: until when, and the bytes since that was put off last.
    awaited: Option<(Instant, usize)>,
}

impl Pace {
    /// When the reply that is awaited has to have come, or a part of it.
    fn until(&mut self) -> Instant {
        let limit = self.limit;
        self.awaited
            .get_or_insert_with(|| (Instant::now() + limit, 0))
            .0
    }

    fn came(&mut self, n: usize) {
        if let Some((until, bytes)) = &mut self.awaited {
            *bytes = bytes.saturating_add(n);
            if *bytes >= PROGRESS_BYTES {
                (*until, *bytes) = (Instant::now() + self.limit, 0);
            }
        }
    }
}

/// One connection: commands out, replies in, in order.
pub struct Conn {
    stream: Stream,
    /// What has come of a reply that is not whole.
    pub(super) parser: Parser,
    pub(super) skimmer: Skimmer,
    pace: Pace,
    pub(super) read: Vec<u8>,
    pub(super) at: usize,
    write: Vec<u8>,
    received: u64,
    /// The selected database.
    db: DbIndex,
    /// Replies that are still to come, and those of what is queued.
    pub(super) due: u64,
    queued: u64,
    learnt: Learnt,
    login: Option<Login>,
    address: String,
    names: CommandNames,
}

/// Who a connection is.
#[derive(Clone)]
struct Login {
    username: Option<String>,
    secret: Secret,
    held: Held,
}

impl Login {
    /// The same with the password of now; `None` when it has not changed.
    async fn renewed(&self, learnt: &Learnt) -> Option<Login> {
        if self.held.version == learnt.version() {
            return None;
        }
        let held = learnt.held.lock().await.clone()?;
        Some(Login {
            held,
            ..self.clone()
        })
    }

    fn command(&self) -> Vec<&[u8]> {
        let mut words: Vec<&[u8]> = vec![b"AUTH"];
        words.extend(self.username.as_ref().map(String::as_bytes));
        words.push(self.held.password.reveal().as_bytes());
        words
    }
}

/// Keeps a raw connection logged in.
pub struct LoggedIn {
    learnt: Learnt,
    names: CommandNames,
    login: Option<Login>,
    /// Who it is to be.
    next: Option<Login>,
}

impl LoggedIn {
    /// Appends AUTH when the password has changed; true when it did.
    pub async fn renew(&mut self, out: &mut Vec<u8>) -> bool {
        let Some(words) = self.due().await else {
            return false;
        };
        encode(
            &self.names,
            out,
            &words.iter().map(Vec::as_slice).collect::<Vec<_>>(),
        );
        self.told();
        true
    }

    /// AUTH when the password has changed: after it was sent, [`LoggedIn::told`] says so.
    pub async fn due(&mut self) -> Option<Vec<Vec<u8>>> {
        self.next = self.login.as_ref()?.renewed(&self.learnt).await;
        let words = self.next.as_ref()?.command();
        Some(words.into_iter().map(<[u8]>::to_vec).collect())
    }

    /// The server has been told the password that was [`LoggedIn::due`].
    pub fn told(&mut self) {
        if let Some(next) = self.next.take() {
            self.login = Some(next);
        }
    }

    pub fn learnt(&self) -> &Learnt {
        &self.learnt
    }

    /// What the server calls its commands.
    pub(super) fn names(&self) -> &CommandNames {
        &self.names
    }

    /// The server has not taken the password that it was [`LoggedIn::told`] last: another is looked for.
    pub fn refused(&self) {
        if let Some(login) = &self.login {
            tracing::warn!("a server does not take the new password yet");
            credentials::read_again(&login.secret, &self.learnt, login.held.version);
        }
    }
}

/// Appends a command by the name that the server has for it; whatever else is sent to a source goes through [`Conn`].
pub fn encode(names: &CommandNames, out: &mut Vec<u8>, args: &[&[u8]]) {
    match names.is_empty() {
        true => resp::command(out, args),
        false => resp::command(out, &names.words(args)),
    }
}

/// A server without a password refuses AUTH; that is the plan's mistake, but a harmless one.
fn is_without_password(text: &str) -> bool {
    text.contains("without any password configured") || text.contains("no password is set")
}

impl Conn {
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A connection over a stream; nobody has logged in yet.
    fn over(stream: Stream, endpoint: &Endpoint, address: &str) -> Conn {
        Conn {
            stream,
            parser: Parser::default(),
            skimmer: Skimmer::default(),
            pace: Pace {
                limit: REPLY_LIMIT,
                awaited: None,
            },
            read: Vec::with_capacity(READ_CHUNK),
            at: 0,
            write: Vec::new(),
            received: 0,
            db: DbIndex::ZERO,
            due: 0,
            queued: 0,
            learnt: endpoint.learnt.clone(),
            login: None,
            address: address.to_owned(),
            names: endpoint.commands.clone(),
        }
    }

    /// Logs in, and sees that commands are answered.
    async fn enter(&mut self, endpoint: &Endpoint, held: Option<Held>) -> Result<()> {
        let login = match (held, &endpoint.password) {
            (Some(held), Some(secret)) => Some(Login {
                username: endpoint.user(),
                secret: secret.clone(),
                held,
            }),
            _ => None,
        };
        if let Some(login) = &login {
            self.push(&login.command());
        }
        let (ping, refused): ([&[u8]; 1], _) = ([b"PING"], self.refuses(&[b"PING"]));
        if !refused {
            self.push(&ping);
        }
        // What it says of AUTH may be its last word, whatever else was sent.
        let sent = self.flush().await;
        if let Some(login) = login {
            let reply = self.reply().await?;
            self.logged_in(login, reply)?;
        }
        sent?;
        let reply = match refused {
            true => refused_before(),
            false => self.reply().await?,
        };
        self.learn(&ping, &reply);
        match reply {
            Reply::Error(text) => Err(refusal("PING", &text)),
            _ => Ok(()),
        }
    }

    /// Authenticates; what was queued is sent after it.
    async fn log_in(&mut self, login: Login) -> Result<()> {
        let queued = std::mem::take(&mut self.write);
        encode(&self.names, &mut self.write, &login.command());
        let sent = self.send().await;
        self.write = queued;
        sent?;
        self.due = self.due.saturating_add(1);
        let reply = self.reply().await?;
        self.logged_in(login, reply)
    }

    /// Takes the answer to AUTH.
    fn logged_in(&mut self, login: Login, reply: Reply) -> Result<()> {
        match reply {
            Reply::Error(text) if !is_without_password(&text) => Err(Error::new(
                ErrorKind::Auth,
                format!("the server refused AUTH: {}", said(&text)),
            )),
            _ => {
                self.learnt.worked.store(true, Relaxed);
                self.login = Some(login);
                Ok(())
            }
        }
    }

    /// Authenticates anew when the password has changed; called when no reply is due.
    async fn stay_logged_in(&mut self) -> Result<()> {
        let Some(before) = &self.login else {
            return Ok(());
        };
        let Some(login) = before.renewed(&self.learnt).await else {
            return Ok(());
        };
        match self.log_in(login.clone()).await {
            // As it was: the server goes on with who we were until that ends.
            Err(e) if e.kind() == ErrorKind::Auth => {
                tracing::warn!("{} does not take the new password yet: {e}", self.address);
                credentials::read_again(&login.secret, &self.learnt, login.held.version);
                self.login = Some(login);
                Ok(())
            }
            done => done,
        }
    }

    /// Queues a command; [`Conn::flush`] sends it.
    pub fn push(&mut self, args: &[&[u8]]) {
        encode(&self.names, &mut self.write, args);
        self.queued = self.queued.saturating_add(1);
    }

    /// The buffer that [`Conn::flush`] sends, for commands encoded elsewhere.
    pub fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.write
    }

    pub async fn flush(&mut self) -> Result<()> {
        if self.due == 0 {
            self.stay_logged_in().await?;
        }
        self.due = self.due.saturating_add(std::mem::take(&mut self.queued));
        self.in_time();
        self.send().await
    }

    async fn send(&mut self) -> Result<()> {
        let sent = put(&mut self.stream, &self.write).await;
        self.write.clear();
        sent.map_err(|e| self.lost(e))
    }

    fn lost(&self, e: std::io::Error) -> Error {
        Error::new(
            ErrorKind::Connection,
            format!("the connection to {} was cut", self.address),
        )
        .cause(e)
    }

    /// Reads one reply, whatever it is, of at most [`REPLY_BYTES`].
    pub async fn reply(&mut self) -> Result<Reply> {
        self.reply_within(REPLY_BYTES).await
    }

    /// Reads one reply that takes at most so many bytes of memory.
    ///
    /// Errors: `Oversized` when it takes more, after which the connection is of no use.
    pub async fn reply_within(&mut self, most: usize) -> Result<Reply> {
        let reply = self.item(most).await?;
        self.answered();
        Ok(reply)
    }

    /// Reads more bytes; refuses the end of the stream.
    pub(super) async fn fill(&mut self) -> Result<()> {
        if self.at > 0 {
            self.read.drain(..self.at);
            self.at = 0;
        }
        if self.read.capacity() > 4 * READ_CHUNK && self.read.is_empty() {
            self.read = Vec::with_capacity(READ_CHUNK);
        }
        self.read.reserve(READ_CHUNK);
        let until = self.pace.until();
        match tokio::time::timeout_at(until, self.stream.read_buf(&mut self.read)).await {
            Err(_) => Err(Error::new(
                ErrorKind::Connection,
                format!(
                    "{} did not answer for {} s",
                    self.address,
                    self.pace.limit.as_secs()
                ),
            )),
            Ok(Err(e)) => Err(self.lost(e)),
            Ok(Ok(0)) => Err(Error::new(
                ErrorKind::Connection,
                format!("{} closed the connection", self.address),
            )),
            Ok(Ok(n)) => {
                self.received = self.received.saturating_add(n as u64);
                self.pace.came(n);
                Ok(())
            }
        }
    }

    /// The reply that was awaited has come, or another question is asked: the time begins anew.
    pub(super) fn in_time(&mut self) {
        self.pace.awaited = None;
    }

    /// Gives the buffer of replies back if it is larger than so many bytes, and all in it has been read.
    pub fn trim(&mut self, most: usize) {
        if self.at == self.read.len() && self.read.capacity() > most.max(READ_CHUNK) {
            self.read = Vec::new();
            self.at = 0;
        }
    }

    /// Bytes received since this was asked last.
    pub fn take_received(&mut self) -> u64 {
        std::mem::take(&mut self.received)
    }

    /// Sends a command and returns its reply, an error reply included.
    ///
    /// What the server has refused for good is not sent again: the refusal is repeated.
    pub async fn ask(&mut self, args: &[&[u8]]) -> Result<Reply> {
        if self.refuses(args) {
            return Ok(refused_before());
        }
        let name = args.first().copied().unwrap_or_default();
        tracing::trace!("{}: {}", self.address, String::from_utf8_lossy(name));
        self.push(args);
        self.flush().await?;
        let reply = self.reply().await?;
        self.learn(args, &reply);
        Ok(reply)
    }

    /// Sends several commands, one after the other without waiting, and hands their replies to `take` as they come: an
    /// error of it counts, though the server should have closed the connection behind what it is of.
    pub async fn ask_each(
        &mut self,
        commands: &[&[&[u8]]],
        mut take: impl FnMut(usize, Reply) -> Result<()>,
    ) -> Result<()> {
        let refused: Vec<bool> = commands.iter().map(|args| self.refuses(args)).collect();
        for (args, _) in commands
            .iter()
            .zip(&refused)
            .filter(|(_, refused)| !**refused)
        {
            self.push(args);
        }
        let sent = self.flush().await;
        for (i, (args, refused)) in commands.iter().zip(refused).enumerate() {
            if refused {
                take(i, refused_before())?;
                continue;
            }
            match self.reply().await {
                Ok(reply) => {
                    self.learn(args, &reply);
                    take(i, reply)?;
                }
                // Where it could not even be sent, that says more.
                Err(e) => return sent.and(Err(e)),
            }
        }
        sent
    }

    /// The server has refused this command for good.
    pub(super) fn refuses(&self, args: &[&[u8]]) -> bool {
        self.learnt.refuses(args)
    }

    /// What a reply says of whether the command is allowed.
    pub(super) fn learn(&self, args: &[&[u8]], reply: &Reply) {
        match reply {
            Reply::Error(text) => self.learnt.note(args, text),
            _ => self.learnt.works(args),
        }
    }

    /// Sends a command; an error reply becomes an error that names the command.
    pub async fn call(&mut self, args: &[&[u8]]) -> Result<Reply> {
        let reply = self.ask(args).await?;
        self.accepted(args.first().unwrap_or(&b"".as_slice()), reply)
    }

    /// A reply to the command of that name; an error reply becomes an error that names it.
    pub fn accepted(&self, name: &[u8], reply: Reply) -> Result<Reply> {
        accepted(&self.address, name, reply)
    }

    /// Selects a database, unless it already is.
    ///
    /// Errors: `Refused` when the server has no such database.
    pub async fn select(&mut self, db: DbIndex) -> Result<()> {
        if self.db != db {
            self.call(&[b"SELECT", db.to_string().as_bytes()]).await?;
            self.db = db;
        }
        Ok(())
    }

    pub(super) fn db(&self) -> DbIndex {
        self.db
    }

    /// When the server's certificate ends, as Unix time in ms; `None` without TLS.
    pub fn certificate_ends_ms(&self) -> Option<i64> {
        match &self.stream {
            Stream::Plain(_) | Stream::Unix(_) => None,
            Stream::Tls(stream) => tls::certificate_ends_ms(stream),
        }
    }

    /// For a connection that takes no more commands: a new password is not told to it.
    pub fn stays_as_it_is(&mut self) {
        self.login = None;
    }

    /// Who the connection is, for a protocol of its own that has to stay logged in.
    pub fn login(&self) -> LoggedIn {
        LoggedIn {
            learnt: self.learnt.clone(),
            names: self.names.clone(),
            login: self.login.clone(),
            next: None,
        }
    }

    /// Gives the raw stream and the bytes already read from it, for a protocol of its own (replication, bulk writing).
    pub fn into_parts(self) -> (Stream, Vec<u8>) {
        let mut unread = self.read;
        unread.drain(..self.at);
        (self.stream, unread)
    }

    /// One line beside replies, as the replication handshake needs it.
    pub async fn read_line(&mut self) -> Result<Vec<u8>> {
        loop {
            let unread = self.read.get(self.at..).unwrap_or_default();
            if let Some(n) = memchr::memchr(b'\n', unread) {
                let text = unread.get(..n).unwrap_or_default();
                let text = text.strip_suffix(b"\r").unwrap_or(text).to_vec();
                self.at += n + 1;
                self.in_time();
                return Ok(text);
            }
            if unread.len() > READ_CHUNK {
                return Err(Error::new(
                    ErrorKind::Protocol,
                    format!("{} sent a line without an end", self.address),
                ));
            }
            self.fill().await?;
        }
    }
}

/// A server's reply to the command of that name; an error reply becomes an error that names it.
pub(super) fn accepted(address: &str, name: &[u8], reply: Reply) -> Result<Reply> {
    match reply {
        Reply::Error(text) => {
            let name = String::from_utf8_lossy(name);
            Err(refusal(&name, &text).context(format!("run {name} on {address}")))
        }
        reply => Ok(reply),
    }
}

/// What is answered for a server that has refused a command for good.
pub(super) fn refused_before() -> Reply {
    Reply::Error("NOPERM it was refused before, so it was not sent again".to_owned())
}

/// Writes all of it; `TimedOut` when the other end takes nothing for [`REPLY_LIMIT`], however much there is to send.
pub async fn put(to: &mut (impl AsyncWrite + Unpin), mut bytes: &[u8]) -> std::io::Result<()> {
    let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    while !bytes.is_empty() {
        let n = tokio::time::timeout(REPLY_LIMIT, to.write(bytes)).await;
        match n.map_err(late)?? {
            0 => return Err(std::io::ErrorKind::WriteZero.into()),
            n => bytes = bytes.get(n..).unwrap_or_default(),
        }
    }
    let flushed = tokio::time::timeout(REPLY_LIMIT, to.flush()).await;
    flushed.map_err(late)?
}

#[cfg(test)]
mod tests;
