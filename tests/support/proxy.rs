//! One endpoint in front of a real cluster, as Azure Managed Redis (Enterprise policy) and Redis Software have it.
//!
//! It terminates TLS, wants a password, knows no CLUSTER and no SELECT, and refuses what crosses slots; everything else
//! goes to the real node that owns the key. A client never learns that there are several.

use super::tls::Tls;
use keyferry::formats::command::{self, Command};
use keyferry::formats::resp;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// How it behaves.
#[derive(Clone)]
pub struct Rules {
    pub password: String,
    /// Commands it does not know, upper case; "CLUSTER" or "CLIENT PAUSE".
    pub refused: &'static [&'static str],
}

struct Inner {
    rules: Rules,
    /// The nodes, and which serves a slot.
    nodes: Vec<String>,
    owner: Vec<usize>,
    rejected: Mutex<Vec<String>>,
}

/// A running proxy; it ends with its value.
pub struct Proxy {
    port: u16,
    inner: Arc<Inner>,
    _runtime: tokio::runtime::Runtime,
}

impl Proxy {
    /// `nodes` in the order in which they share the slots evenly, as the tests' clusters do.
    pub fn start(nodes: &[String], owner: Vec<usize>, tls: Option<&Tls>, rules: Rules) -> Proxy {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let inner = Arc::new(Inner {
            rules,
            nodes: nodes.to_vec(),
            owner,
            rejected: Mutex::default(),
        });
        let acceptor = tls.map(acceptor);
        let shared = inner.clone();
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let _ = client.set_nodelay(true);
                let (inner, acceptor) = (shared.clone(), acceptor.clone());
                tokio::spawn(async move {
                    // A client that goes away is no concern of anybody.
                    let _ = match acceptor {
                        Some(acceptor) => match acceptor.accept(client).await {
                            Ok(stream) => serve(stream, &inner).await,
                            Err(e) => Err(e),
                        },
                        None => serve(client, &inner).await,
                    };
                });
            }
        });
        Proxy {
            port,
            inner,
            _runtime: runtime,
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The commands it has refused since this was asked last.
    pub fn take_rejected(&self) -> Vec<String> {
        std::mem::take(&mut *self.inner.rejected.lock().expect("a lock"))
    }
}

fn acceptor(tls: &Tls) -> TlsAcceptor {
    let chain: Vec<_> = CertificateDer::pem_file_iter(tls.cert())
        .expect("the certificate")
        .map(|c| c.expect("a certificate"))
        .collect();
    let key = PrivateKeyDer::from_pem_file(tls.key()).expect("the key");
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a pair");
    TlsAcceptor::from(Arc::new(config))
}

/// A connection to a node, with what was read too much.
struct Node {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Node {
    async fn reply(&mut self) -> std::io::Result<Vec<u8>> {
        loop {
            if let Ok(Some((_, len))) = resp::parse_reply(&self.read) {
                return Ok(self.read.drain(..len).collect());
            }
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Where the answer to a command comes from.
enum Answer {
    Own(Vec<u8>),
    /// So many replies of one node.
    Of(usize, u32),
    /// The last of so many: the client has the others.
    LastOf(usize, u32),
    /// One reply of each node; the first is handed on.
    All,
    /// INFO of each node, with the keys added up.
    Info,
    /// SCAN of one node: the cursor leads on to the next.
    Scan(usize),
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut client: S,
    inner: &Inner,
) -> std::io::Result<()> {
    let mut nodes = Vec::new();
    for address in &inner.nodes {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        nodes.push(Node {
            stream,
            read: Vec::new(),
        });
    }
    let (mut buf, mut args) = (Vec::with_capacity(64 << 10), Vec::new());
    let mut known = false;
    // A transaction that came without its end: its bytes, and how many commands.
    let mut open: Option<(Vec<u8>, u32)> = None;
    loop {
        let mut answers = Vec::new();
        let mut to_nodes = vec![Vec::new(); nodes.len()];
        let mut used = 0;
        loop {
            let rest = &buf[used..];
            let Ok(Some(len)) = resp::parse_command(rest, &mut args) else {
                break;
            };
            let raw = &rest[..len];
            let cmd = Command { raw, args: &args };
            let name = cmd.name().to_ascii_uppercase();
            if let Some((mut bytes, commands)) = open.take() {
                used += len;
                bytes.extend_from_slice(raw);
                let keys = command::keys_in(&bytes);
                let place = inner.place(keys.iter().map(|(k, _)| k.as_slice()));
                answers.push(match (name.as_slice(), place) {
                    (b"DISCARD", _) => Answer::Own(b"+OK\r\n".to_vec()),
                    (b"EXEC", Some(node)) => {
                        to_nodes[node].extend_from_slice(&bytes);
                        Answer::LastOf(node, commands + 1)
                    }
                    (_, None) => Answer::Own(inner.reject("MULTI", CROSSSLOT)),
                    _ => Answer::Own(b"+QUEUED\r\n".to_vec()),
                });
                if !matches!(name.as_slice(), b"EXEC" | b"DISCARD") {
                    open = Some((bytes, commands + 1));
                }
                continue;
            }
            if name == b"MULTI" && !inner.rules.refused.contains(&"MULTI") {
                let Some((whole, commands)) = transaction(rest) else {
                    answers.push(Answer::Own(b"+OK\r\n".to_vec()));
                    open = Some((raw.to_vec(), 1));
                    used += len;
                    continue;
                };
                let keys = command::keys_in(&rest[..whole]);
                answers.push(match inner.place(keys.iter().map(|(k, _)| k.as_slice())) {
                    Some(node) => {
                        to_nodes[node].extend_from_slice(&rest[..whole]);
                        Answer::Of(node, commands)
                    }
                    None => Answer::Own(inner.reject("MULTI", CROSSSLOT)),
                });
                used += whole;
                continue;
            }
            if name == b"AUTH" {
                known = cmd.arg(cmd.len() - 1) == Some(inner.rules.password.as_bytes());
                answers.push(Answer::Own(match known {
                    true => b"+OK\r\n".to_vec(),
                    false => b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
                        .to_vec(),
                }));
            } else if !known {
                answers.push(Answer::Own(
                    b"-NOAUTH Authentication required.\r\n".to_vec(),
                ));
            } else {
                answers.push(inner.route(&cmd, &name, &mut to_nodes));
            }
            used += len;
        }
        buf.drain(..used);
        for (node, bytes) in nodes.iter_mut().zip(&to_nodes) {
            if !bytes.is_empty() {
                node.stream.write_all(bytes).await?;
            }
        }
        let mut out = Vec::new();
        for answer in answers {
            match answer {
                Answer::Own(bytes) => out.extend(bytes),
                Answer::Of(node, replies) => {
                    for _ in 0..replies {
                        out.extend(nodes[node].reply().await?);
                    }
                }
                Answer::LastOf(node, replies) => {
                    let mut last = Vec::new();
                    for _ in 0..replies {
                        last = nodes[node].reply().await?;
                    }
                    out.extend(last);
                }
                Answer::All => {
                    let mut first = None;
                    for node in &mut nodes {
                        let reply = node.reply().await?;
                        first.get_or_insert(reply);
                    }
                    out.extend(first.unwrap_or_default());
                }
                Answer::Info => {
                    let mut texts = Vec::new();
                    for node in &mut nodes {
                        texts.push(String::from_utf8_lossy(&node.reply().await?).into_owned());
                    }
                    out.extend(added_up(&texts));
                }
                Answer::Scan(node) => {
                    let reply = nodes[node].reply().await?;
                    out.extend(lead_on(&reply, node, nodes.len()));
                }
            }
        }
        if !out.is_empty() {
            client.write_all(&out).await?;
            client.flush().await?;
        }
        if client.read_buf(&mut buf).await? == 0 {
            return Ok(());
        }
    }
}

const CROSSSLOT: &str = "CROSSSLOT Keys in request don't hash to the same slot";

impl Inner {
    fn reject(&self, name: &str, error: &str) -> Vec<u8> {
        self.rejected.lock().expect("a lock").push(name.to_owned());
        format!("-{error}\r\n").into_bytes()
    }

    /// The node of some keys, when they are all of one slot.
    fn place<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) -> Option<usize> {
        let mut slots: Vec<u16> = keys.map(super::side::slot).collect();
        slots.dedup();
        match slots.as_slice() {
            [] => Some(0),
            [slot] => self.owner.get(usize::from(*slot)).copied(),
            _ => None,
        }
    }

    fn route(&self, cmd: &Command<'_>, name: &[u8], to_nodes: &mut [Vec<u8>]) -> Answer {
        let first = String::from_utf8_lossy(name).into_owned();
        let second = String::from_utf8_lossy(cmd.arg(1).unwrap_or_default()).to_ascii_uppercase();
        let both = format!("{first} {second}");
        let refused = &self.rules.refused;
        if refused.contains(&first.as_str()) || refused.contains(&both.as_str()) {
            return Answer::Own(self.reject(&both, &format!("ERR unknown command '{first}'")));
        }
        let all = |to_nodes: &mut [Vec<u8>]| {
            to_nodes
                .iter_mut()
                .for_each(|n| n.extend_from_slice(cmd.raw));
        };
        match name {
            b"INFO" => {
                all(to_nodes);
                return Answer::Info;
            }
            b"FLUSHALL" | b"FLUSHDB" | b"FUNCTION" | b"SCRIPT" => {
                all(to_nodes);
                return Answer::All;
            }
            b"SCAN" => {
                let nodes = to_nodes.len() as u64;
                let text = cmd.arg(1).map(String::from_utf8_lossy).unwrap_or_default();
                let Ok(cursor) = text.parse::<u64>() else {
                    return Answer::Own(b"-ERR invalid cursor\r\n".to_vec());
                };
                let (node, own) = ((cursor % nodes) as usize, (cursor / nodes).to_string());
                let mut words: Vec<&[u8]> = (0..cmd.len()).filter_map(|i| cmd.arg(i)).collect();
                words[1] = own.as_bytes();
                resp::command(&mut to_nodes[node], &words);
                return Answer::Scan(node);
            }
            _ => {}
        }
        let mut keys = command::keys_in(cmd.raw);
        const KEYLESS: [&[u8]; 9] = [
            b"PING", b"TIME", b"ROLE", b"WAIT", b"CONFIG", b"COMMAND", b"CLIENT", b"DBSIZE",
            b"PUBLISH",
        ];
        if let (true, Some(key)) = (keys.is_empty() && !KEYLESS.contains(&name), cmd.arg(1)) {
            keys = vec![(key.to_vec(), command::Access::Read)];
        }
        if let (true, Some(key)) = (matches!(name, b"MEMORY" | b"XINFO" | b"OBJECT"), cmd.arg(2)) {
            keys = vec![(key.to_vec(), command::Access::Read)];
        }
        match self.place(keys.iter().map(|(k, _)| k.as_slice())) {
            Some(node) => {
                to_nodes[node].extend_from_slice(cmd.raw);
                Answer::Of(node, 1)
            }
            None => Answer::Own(self.reject(&first, CROSSSLOT)),
        }
    }
}

/// The length of the transaction at the start of `bytes` and how many commands it has; `None` when it is not all there.
fn transaction(bytes: &[u8]) -> Option<(usize, u32)> {
    let (mut at, mut commands, mut args) = (0, 0, Vec::new());
    loop {
        let len = resp::parse_command(&bytes[at..], &mut args).ok()??;
        let raw = &bytes[at..at + len];
        let name = Command { raw, args: &args }.name().to_ascii_uppercase();
        at += len;
        commands += 1;
        if name == b"EXEC" || name == b"DISCARD" {
            return Some((at, commands));
        }
    }
}

/// A page of SCAN whose cursor says which node comes next.
fn lead_on(reply: &[u8], node: usize, nodes: usize) -> Vec<u8> {
    let Ok(Some((resp::Reply::Array(parts), _))) = resp::parse_reply(reply) else {
        return reply.to_vec();
    };
    let own: u64 = parts[0].text().and_then(|t| t.parse().ok()).unwrap_or(0);
    let next = match (own, node + 1 < nodes) {
        (0, true) => node as u64 + 1,
        (0, false) => 0,
        (own, _) => own * nodes as u64 + node as u64,
    };
    let keys: Vec<&[u8]> = (parts[1].array().unwrap_or_default().iter())
        .filter_map(resp::Reply::bytes)
        .collect();
    let mut out = Vec::new();
    let cursor = next.to_string();
    out.extend(format!("*2\r\n${}\r\n{cursor}\r\n", cursor.len()).into_bytes());
    // An array of bulk strings is written as a command is.
    match keys.is_empty() {
        true => out.extend(b"*0\r\n"),
        false => resp::command(&mut out, &keys),
    }
    out
}

/// The first node's INFO with the keys of all.
fn added_up(texts: &[String]) -> Vec<u8> {
    let number = |text: &str, field: &str| -> u64 {
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix("db0:"))
            .unwrap_or("");
        line.split(',')
            .find_map(|f| f.strip_prefix(field)?.parse().ok())
            .unwrap_or(0)
    };
    let sum = |field: &str| texts.iter().map(|t| number(t, field)).sum::<u64>();
    let mut lines: Vec<String> = (texts[0].lines().skip(1))
        .filter(|l| !l.starts_with("db0:") && !l.starts_with("cluster_enabled"))
        .map(str::to_owned)
        .collect();
    if sum("keys=") > 0 {
        lines.push(format!(
            "db0:keys={},expires={},avg_ttl=0",
            sum("keys="),
            sum("expires=")
        ));
    }
    let text = lines.join("\r\n") + "\r\n";
    format!("${}\r\n{text}\r\n", text.len()).into_bytes()
}
