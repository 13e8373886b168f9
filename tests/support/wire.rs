//! The tests' client: a thin face over the `redis` crate, so that the judge of a migration shares no code with it.
//!
//! Error replies are values, pipelines are explicit, and nothing is sent that the caller has not asked for.

use redis::cluster::NodeAddress;
use redis::io::tcp::TcpSettings;
use redis::{Cmd, Connection, ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use redis::{RedisConnectionInfo, RedisError, ServerError, ToRedisArgs};
use std::fmt;
use std::io;
use std::time::Duration;

/// One reply; an error reply is a value, because a pipeline goes on after it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Nil,
    Int(i64),
    Status(String),
    Bulk(Vec<u8>),
    Array(Vec<Value>),
    Error(String),
}

impl Value {
    /// The text of a status, bulk, number or error; empty for the rest.
    pub fn text(&self) -> String {
        match self {
            Value::Status(s) | Value::Error(s) => s.clone(),
            Value::Bulk(b) => String::from_utf8_lossy(b).into_owned(),
            Value::Int(n) => n.to_string(),
            Value::Nil | Value::Array(_) => String::new(),
        }
    }

    pub fn int(&self) -> Option<i64> {
        match self {
            Value::Int(n) => Some(*n),
            _ => self.text().parse().ok(),
        }
    }

    pub fn items(&self) -> &[Value] {
        match self {
            Value::Array(items) => items,
            _ => &[],
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Value::Bulk(b) => b,
            Value::Status(s) => s.as_bytes(),
            _ => &[],
        }
    }

    pub fn is_error(&self) -> bool {
        matches!(self, Value::Error(_))
    }
}

impl From<redis::Value> for Value {
    fn from(reply: redis::Value) -> Value {
        match reply {
            redis::Value::Nil => Value::Nil,
            redis::Value::Int(n) => Value::Int(n),
            redis::Value::Okay => Value::Status("OK".to_owned()),
            redis::Value::SimpleString(text) => Value::Status(text),
            redis::Value::BulkString(bytes) => Value::Bulk(bytes),
            redis::Value::Array(items) => {
                Value::Array(items.into_iter().map(Value::from).collect())
            }
            redis::Value::ServerError(error) => Value::Error(said(&error)),
            other => panic!("not a reply of RESP2: {other:?}"),
        }
    }
}

/// An error reply as the server has sent it.
fn said(error: &ServerError) -> String {
    match error.details() {
        Some(rest) => format!("{} {rest}", error.code()),
        None => error.code().to_owned(),
    }
}

fn broken(error: RedisError) -> io::Error {
    io::Error::other(error.to_string())
}

/// One command; `key` names the argument that decides which node it goes to.
#[derive(Clone)]
pub struct Command {
    cmd: Cmd,
    key: Option<Vec<u8>>,
}

impl Command {
    /// A command from its name, which may have several words: "XGROUP CREATE".
    pub fn new(words: &str) -> Command {
        let command = Command {
            cmd: Cmd::new(),
            key: None,
        };
        command.args(words.split_ascii_whitespace())
    }

    pub fn arg(mut self, arg: impl ToRedisArgs) -> Command {
        self.cmd.arg(arg);
        self
    }

    pub fn args<A: ToRedisArgs>(mut self, args: impl IntoIterator<Item = A>) -> Command {
        for arg in args {
            self.cmd.arg(arg);
        }
        self
    }

    /// A key; the first one routes the command.
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Command {
        if self.key.is_none() {
            self.key = Some(key.as_ref().to_vec());
        }
        self.arg(key.as_ref())
    }

    /// Sends a command without a key to the node of `key`.
    pub fn routed(mut self, key: impl AsRef<[u8]>) -> Command {
        self.key = Some(key.as_ref().to_vec());
        self
    }

    pub fn routing_key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }
}

/// One connection.
pub struct Client {
    connection: Connection,
    output: Vec<u8>,
    waiting: usize,
}

impl Client {
    pub fn connect(address: &str) -> io::Result<Client> {
        let node = NodeAddress::try_from(address).map_err(broken)?;
        let info = place(&node).into_connection_info().map_err(broken)?;
        Client::with(info)
    }

    /// Connects and logs in as a `redis://user:password@host:port/db` url says.
    pub fn open(url: &str) -> io::Result<Client> {
        Client::with(url.into_connection_info().map_err(broken)?)
    }

    /// Another node of the cluster that `url` names one of, as the same user.
    pub fn open_node(url: &str, node: &NodeAddress) -> io::Result<Client> {
        let info = url.into_connection_info().map_err(broken)?;
        Client::with(info.set_addr(place(node)))
    }

    fn with(info: ConnectionInfo) -> io::Result<Client> {
        // Statistics and servers that know no CLIENT SETINFO are to see the tests' own commands only; and the crate
        // keeps a server's words about a login to itself.
        let quiet = RedisConnectionInfo::default().set_skip_set_lib_name();
        let login = info.redis_settings().clone();
        let info = info
            .set_redis_settings(quiet)
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let connection = redis::Client::open(info)
            .and_then(|client| client.get_connection_with_timeout(Duration::from_secs(5)))
            .map_err(broken)?;
        let mut client = Client {
            connection,
            output: Vec::new(),
            waiting: 0,
        };
        client.patience(Duration::from_secs(60))?;
        if let Some(password) = login.password() {
            let auth = Command::new("AUTH").args(login.username());
            client.expect(&auth.arg(password))?;
        }
        if login.db() != 0 {
            client.expect(&Command::new("SELECT").arg(login.db()))?;
        }
        Ok(client)
    }

    /// How long it waits for an answer from now on; a minute at first. What comes later answers no other command.
    pub fn patience(&self, limit: Duration) -> io::Result<()> {
        (self.connection.set_read_timeout(Some(limit))).map_err(broken)
    }

    /// Queues a command; its reply comes out of `replies` or `read`.
    pub fn push(&mut self, command: &Command) {
        command.cmd.write_packed_command(&mut self.output);
        self.waiting += 1;
    }

    pub fn flush(&mut self) -> io::Result<()> {
        if !self.output.is_empty() {
            (self.connection.send_packed_command(&self.output)).map_err(broken)?;
            self.output.clear();
        }
        Ok(())
    }

    /// How many replies are still to be read.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Sends what is queued and reads every reply.
    pub fn replies(&mut self) -> io::Result<Vec<Value>> {
        self.flush()?;
        (0..self.waiting).map(|_| self.read()).collect()
    }

    pub fn run(&mut self, command: &Command) -> io::Result<Value> {
        self.push(command);
        self.flush()?;
        self.read()
    }

    /// As `run`, but an error reply is an error.
    pub fn expect(&mut self, command: &Command) -> io::Result<Value> {
        match self.run(command)? {
            Value::Error(text) => Err(io::Error::other(text)),
            value => Ok(value),
        }
    }

    /// Runs a command written as plain words.
    pub fn words(&mut self, words: &str) -> io::Result<Value> {
        self.expect(&Command::new(words))
    }

    /// One field of INFO.
    pub fn info(&mut self, section: &str, field: &str) -> io::Result<String> {
        let found = self.info_of(&format!("INFO {section}"), field);
        found.ok_or_else(|| io::Error::other(format!("INFO {section} has no {field}")))
    }

    /// One field of an answer in INFO's form.
    pub fn info_of(&mut self, words: &str, field: &str) -> Option<String> {
        let text = self.words(words).ok()?.text();
        text.lines()
            .find_map(|l| l.strip_prefix(field)?.strip_prefix(':').map(str::to_owned))
    }

    /// Reads one reply.
    pub fn read(&mut self) -> io::Result<Value> {
        let reply = self.connection.recv_response().map_err(broken)?;
        self.waiting = self.waiting.saturating_sub(1);
        Ok(reply.into())
    }
}

fn place(node: &NodeAddress) -> ConnectionAddr {
    ConnectionAddr::Tcp(node.host().to_owned(), node.port())
}

/// Where the server of a `redis://` url is.
pub fn node_at(url: &str) -> io::Result<NodeAddress> {
    let info = url.into_connection_info().map_err(broken)?;
    NodeAddress::try_from(info.addr()).map_err(broken)
}

/// Bytes as a person can read them.
pub struct Shown<'a>(pub &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = &self.0[..self.0.len().min(80)];
        write!(f, "\"{}\"", cut.escape_ascii())?;
        if cut.len() < self.0.len() {
            write!(f, "… ({} bytes)", self.0.len())
        } else {
            Ok(())
        }
    }
}
