//! A small RESP2 client over a plain socket: commands in, replies out, pipelined.
//!
//! It is not keyferry's own parser on purpose: the judge of a migration shares no code with the migrator.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
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

/// What can be an argument.
pub trait Arg {
    fn append(&self, out: &mut Vec<u8>);
}

fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

macro_rules! arg_bytes {
    ($($t:ty),*) => { $(impl Arg for $t { fn append(&self, out: &mut Vec<u8>) { bulk(out, self.as_ref()) } })* };
}
macro_rules! arg_display {
    ($($t:ty),*) => { $(impl Arg for $t { fn append(&self, out: &mut Vec<u8>) { bulk(out, self.to_string().as_bytes()) } })* };
}
arg_bytes!(&str, String, &String, &[u8], Vec<u8>, &Vec<u8>);
arg_display!(i64, u64, i32, u32, usize, u16, f64);

/// One command; `key` names the argument that decides which node it goes to.
#[derive(Clone)]
pub struct Command {
    packed: Vec<u8>,
    args: usize,
    key: Option<Vec<u8>>,
}

impl Command {
    /// A command from its name, which may have several words: "XGROUP CREATE".
    pub fn new(words: &str) -> Command {
        let mut command = Command {
            packed: Vec::with_capacity(64),
            args: 0,
            key: None,
        };
        for word in words.split_ascii_whitespace() {
            command = command.arg(word);
        }
        command
    }

    pub fn arg(mut self, arg: impl Arg) -> Command {
        arg.append(&mut self.packed);
        self.args += 1;
        self
    }

    pub fn args<A: Arg>(mut self, args: impl IntoIterator<Item = A>) -> Command {
        for arg in args {
            self = self.arg(arg);
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

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("*{}\r\n", self.args).as_bytes());
        out.extend_from_slice(&self.packed);
    }
}

/// One connection.
pub struct Client {
    stream: TcpStream,
    input: Vec<u8>,
    at: usize,
    output: Vec<u8>,
    waiting: usize,
}

impl Client {
    pub fn connect(address: &str) -> io::Result<Client> {
        let to = address
            .to_socket_addrs()?
            .next()
            .ok_or_else(|| io::Error::other(format!("no address: {address}")))?;
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Client {
            stream,
            input: Vec::new(),
            at: 0,
            output: Vec::new(),
            waiting: 0,
        })
    }

    /// How long it waits for an answer from now on; a minute at first.
    pub fn patience(&self, limit: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(limit))
    }

    /// Connects and logs in as a `redis://user:password@host:port/db` url says.
    pub fn open(url: &str) -> io::Result<Client> {
        let address = Address::parse(url)?;
        let mut client = Client::connect(&address.host_port)?;
        client.enter(&address)?;
        Ok(client)
    }

    /// Logs in and selects the database of `address`.
    pub fn enter(&mut self, address: &Address) -> io::Result<()> {
        if let Some((user, password)) = &address.login {
            let auth = Command::new("AUTH");
            let auth = if user.is_empty() {
                auth
            } else {
                auth.arg(user)
            };
            self.expect(&auth.arg(password))?;
        }
        if address.db != 0 {
            self.expect(&Command::new("SELECT").arg(address.db))?;
        }
        Ok(())
    }

    /// Queues a command; its reply comes out of `replies` or `read`.
    pub fn push(&mut self, command: &Command) {
        command.encode(&mut self.output);
        self.waiting += 1;
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.output)?;
        self.output.clear();
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
        let value = self.value()?;
        self.waiting = self.waiting.saturating_sub(1);
        if self.at == self.input.len() {
            self.input.clear();
            self.at = 0;
        } else if self.at > 1 << 20 {
            self.input.drain(..self.at);
            self.at = 0;
        }
        Ok(value)
    }

    fn value(&mut self) -> io::Result<Value> {
        let line = self.line()?;
        let (sigil, rest) = line.split_at(1);
        let number = || {
            rest.parse::<i64>()
                .map_err(|_| io::Error::other(format!("a bad reply: {line}")))
        };
        Ok(match sigil {
            "+" => Value::Status(rest.to_owned()),
            "-" => Value::Error(rest.to_owned()),
            ":" => Value::Int(number()?),
            "$" | "*" if number()? < 0 => Value::Nil,
            "$" => {
                let size = number()? as usize;
                self.need(size + 2)?;
                let bytes = self.input[self.at..self.at + size].to_vec();
                self.at += size + 2;
                Value::Bulk(bytes)
            }
            "*" => Value::Array(
                (0..number()?)
                    .map(|_| self.value())
                    .collect::<io::Result<_>>()?,
            ),
            _ => return Err(io::Error::other(format!("a bad reply: {line}"))),
        })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut from = self.at;
        loop {
            if let Some(end) = self.input[from..].iter().position(|b| *b == b'\n') {
                let line = String::from_utf8_lossy(&self.input[self.at..from + end])
                    .trim_end()
                    .to_owned();
                self.at = from + end + 1;
                if line.is_empty() {
                    return Err(io::Error::other("an empty reply"));
                }
                return Ok(line);
            }
            from = self.input.len();
            self.fill()?;
        }
    }

    fn need(&mut self, bytes: usize) -> io::Result<()> {
        while self.input.len() < self.at + bytes {
            self.fill()?;
        }
        Ok(())
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut chunk = [0u8; 65536];
        let n = self.stream.read(&mut chunk)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.input.extend_from_slice(&chunk[..n]);
        Ok(())
    }
}

/// The parts of a `redis://` url.
#[derive(Debug, Clone)]
pub struct Address {
    pub host_port: String,
    pub login: Option<(String, String)>,
    pub db: u32,
}

impl Address {
    pub fn parse(url: &str) -> io::Result<Address> {
        let rest = url
            .strip_prefix("redis://")
            .ok_or_else(|| io::Error::other(format!("not a redis:// url: {url}")))?;
        let (login, rest) = match rest.rsplit_once('@') {
            Some((login, rest)) => {
                let (user, password) = login.split_once(':').unwrap_or(("", login));
                (Some((user.to_owned(), password.to_owned())), rest)
            }
            None => (None, rest),
        };
        let (host_port, db) = rest.split_once('/').unwrap_or((rest, ""));
        let db = if db.is_empty() { Ok(0) } else { db.parse() };
        let db = db.map_err(|_| io::Error::other(format!("not a database number in {url}")))?;
        Ok(Address {
            host_port: host_port.to_owned(),
            login,
            db,
        })
    }
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
