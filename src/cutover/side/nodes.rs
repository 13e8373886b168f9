//! Servers of one side, each with a connection that survives an answer that came too late and a server that went away.

use crate::command::{self, Spec};
use crate::error::{Error, ErrorKind, Result};
use crate::net::{self, Control, server};
use crate::plan::Endpoint;
use crate::resp::{Reply, info};
use crate::types::ReplOffset;
use crate::types::address::join;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// A pause ends by itself after this long, unless it is renewed.
pub const LEASE: Duration = Duration::from_secs(3);
/// How long a master may take to answer while writers wait.
const ANSWER: Duration = Duration::from_secs(1);
/// How often what must be done in the end is tried on a master.
const TRIES: u32 = 5;
/// How long a pause lasts that somebody ends.
const NO_END: Duration = Duration::from_secs(10 * 365 * 86_400);
/// The longest chain of replicas that is followed to its master.
const CHAIN: usize = 8;

/// Clients whose connections were ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cut {
    /// Ordinary ones; keyferry's own among them.
    pub clients: i64,
    /// Those that had subscribed to channels.
    pub subscribers: i64,
}

/// Some servers of one side: its masters, or their replicas.
pub struct Nodes {
    endpoint: Endpoint,
    nodes: Vec<Node>,
}

struct Node {
    address: String,
    /// The servers have told the address, which is one server's and no other's.
    told: bool,
    /// Absent after an answer that came too late: the connection may be dead, and whoever waits has no time to find out.
    conn: Option<Control>,
    /// As INFO tells it; `None` where it does not.
    run_id: Option<String>,
    /// Until when its pause holds without being renewed.
    leased: Option<Instant>,
    /// Its pause has ended before it was renewed, or another server answers in its place.
    gap: bool,
}

impl Nodes {
    /// Connects to whoever is a master now.
    pub async fn masters(endpoint: &Endpoint) -> Result<Nodes> {
        let places = places(endpoint).await?;
        let told = places.told;
        let opened = (places.addresses.into_iter()).map(|at| Node::open(endpoint, at, told));
        let nodes = futures::future::join_all(opened).await;
        Ok(Nodes {
            endpoint: endpoint.clone(),
            nodes: nodes.into_iter().collect::<Result<_>>()?,
        })
    }

    /// None of them.
    pub fn none(endpoint: &Endpoint) -> Nodes {
        Nodes {
            endpoint: endpoint.clone(),
            nodes: Vec::new(),
        }
    }

    /// Connects to the replicas of these masters, as far as they can be reached.
    pub async fn replicas(&mut self) -> Nodes {
        let addresses = self.replica_addresses().await;
        let endpoint = Endpoint {
            learnt: self.endpoint.learnt.of_replicas(),
            ..self.endpoint.clone()
        };
        let one = &endpoint;
        let opened = (addresses.into_iter()).map(|address| async move {
            let opened = tokio::time::timeout(ANSWER, Node::open(one, address.clone(), true));
            match opened.await {
                Ok(Ok(node)) => Some(node),
                _ => {
                    tracing::debug!("the replica {address} cannot be reached");
                    None
                }
            }
        });
        let nodes = futures::future::join_all(opened).await;
        Nodes {
            nodes: nodes.into_iter().flatten().collect(),
            endpoint,
        }
    }

    async fn replica_addresses(&mut self) -> Vec<String> {
        if let Ok((layout, _)) = server::layout(&self.endpoint).await
            && layout.cluster
        {
            let replicas = layout.masters.into_iter().flat_map(|m| m.replicas);
            return replicas.collect();
        }
        let told = self.everywhere(&[b"INFO", b"replication"]).await;
        let mut addresses = Vec::new();
        for reply in told.unwrap_or_default() {
            let text = reply.text().unwrap_or_default();
            let address = |replica: info::Pairs<'_>| {
                let port: u16 = replica.get("port")?.parse().ok()?;
                // One that does not say where it listens is no server.
                (port > 0).then(|| join(replica.get("ip").unwrap_or_default(), port))
            };
            addresses.extend(info::replicas(&text).filter_map(address));
        }
        addresses
    }

    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|m| m.address.as_str())
    }

    pub fn address(&self, at: usize) -> &str {
        self.nodes.get(at).map_or("", |node| &node.address)
    }

    /// Asks one of them; an error reply is an error.
    pub async fn ask(&mut self, at: usize, command: &[&[u8]]) -> Result<Reply> {
        match self.nodes.get_mut(at) {
            Some(master) => master.ask(&self.endpoint, command).await,
            None => Err(Error::new(ErrorKind::Bug, "a server that is not there")),
        }
    }

    /// Asks all at once; the first failure, after all have been tried.
    pub async fn everywhere(&mut self, command: &[&[u8]]) -> Result<Vec<Reply>> {
        let endpoint = &self.endpoint;
        let asked = (self.nodes.iter_mut()).map(|m| m.ask(endpoint, command));
        futures::future::join_all(asked).await.into_iter().collect()
    }

    /// Sends each of them commands of its own, one after the other without waiting, to all at once. An error reply is
    /// among the replies; a server that does not answer is an error, after all have been tried.
    pub async fn each(&mut self, commands: &[Vec<Words>]) -> Result<Vec<Vec<Reply>>> {
        let endpoint = &self.endpoint;
        let asked = (self.nodes.iter_mut().zip(commands)).map(|(m, c)| m.ask_all(endpoint, c));
        futures::future::join_all(asked).await.into_iter().collect()
    }

    /// Keeps those that answer a command; the others are named in the log.
    pub async fn keep_those_that(&mut self, command: &[&[u8]]) {
        let mut kept = Vec::new();
        for mut node in std::mem::take(&mut self.nodes) {
            match node.ask(&self.endpoint, command).await {
                Ok(_) => kept.push(node),
                Err(e) => tracing::warn!("{} is left as it is: {e}", node.address),
            }
        }
        self.nodes = kept;
    }

    /// What each of them calls itself, by its address.
    pub fn run_ids(&self) -> BTreeMap<String, Option<String>> {
        let id = |node: &Node| (node.address.clone(), node.run_id.clone());
        self.nodes.iter().map(id).collect()
    }

    /// Commands of modules that write, in small letters.
    pub async fn module_writes(&mut self) -> Result<Vec<String>> {
        let told = self.everywhere(&[b"INFO", b"modules"]).await?;
        let has = |reply: &Reply| reply.text().is_some_and(|text| text.contains("module:"));
        if !told.iter().any(has) {
            return Ok(Vec::new());
        }
        let mut found = BTreeSet::new();
        for reply in self.everywhere(&[b"COMMAND"]).await? {
            for command in reply.array().unwrap_or_default() {
                let parts = command.array().unwrap_or_default();
                let name = parts.first().and_then(Reply::text).unwrap_or_default();
                let flags = parts.get(2).and_then(Reply::array).unwrap_or_default();
                let writes = flags.iter().any(|f| f.bytes() == Some(b"write"));
                if writes && command::lookup(name.as_bytes()).is_none() {
                    found.insert(name.to_ascii_lowercase());
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// An error unless all of them answer at this moment and are masters: one round trip.
    pub async fn are_masters(&mut self) -> Result<()> {
        for reply in self.everywhere(&[b"INFO", b"replication"]).await? {
            if info::is_replica(&reply.text().unwrap_or_default()) {
                return Err(Error::new(
                    ErrorKind::Refused,
                    "a master has become a replica since the writers were frozen",
                )
                .hint("run the same command again"));
            }
        }
        Ok(())
    }

    /// The same as [`Nodes::ask`], tried again for a while.
    pub async fn insist(&mut self, at: usize, command: &[&[u8]]) -> Result<Reply> {
        let mut tried = 1;
        loop {
            match self.ask(at, command).await {
                Err(e) if tried < TRIES && e.kind() != ErrorKind::Refused => {
                    tracing::debug!("{e}");
                    tried = tried.saturating_add(1);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                done => return done,
            }
        }
    }

    /// The same everywhere; the first failure, after all have been tried.
    async fn insist_everywhere(&mut self, command: &[&[u8]]) -> Result<()> {
        let mut first = Ok(());
        for at in 0..self.nodes.len() {
            let done = self.insist(at, command).await;
            first = first.and(done.map(drop));
        }
        first
    }

    /// Pauses writes for a while, or renews that; a pause that had ended by then is a gap.
    pub async fn pause(&mut self, lease: Duration) -> Result<()> {
        let endpoint = &self.endpoint;
        let asked = (self.nodes.iter_mut()).map(|m| m.pause(endpoint, lease));
        let mut first = Ok(());
        for paused in futures::future::join_all(asked).await {
            first = first.and(paused);
        }
        first
    }

    /// Whether writes may be paused, and with `cut` the clients be ended that wait then.
    pub async fn rehearse_pause(&mut self, cut: bool) -> Result<()> {
        // It has ended when it begins.
        let none: &[&[u8]] = &[b"CLIENT", b"PAUSE", b"0", b"WRITE"];
        self.everywhere(none).await?;
        if cut {
            let nobody: &[&[u8]] = &[
                b"CLIENT",
                b"KILL",
                b"TYPE",
                b"normal",
                b"ADDR",
                b"0.0.0.0:1",
            ];
            self.everywhere(nobody).await?;
        }
        Ok(())
    }

    /// Ends a pause of ours.
    pub async fn unpause(&mut self) -> Result<()> {
        let unpause: &[&[u8]] = &[b"CLIENT", b"UNPAUSE"];
        let ended = match self.everywhere(unpause).await {
            Ok(_) => Ok(()),
            Err(_) => self.insist_everywhere(unpause).await,
        };
        self.forget_pauses();
        ended
    }

    /// Pauses writes until somebody ends it, or the server ends.
    pub async fn pause_for_good(&mut self) -> Result<()> {
        self.pause(NO_END).await
    }

    /// Whether some pause has ended before it was renewed, or would have by now.
    pub fn has_gap(&self) -> bool {
        let now = Instant::now();
        (self.nodes.iter()).any(|m| m.gap || m.leased.is_some_and(|until| now >= until))
    }

    /// From now on something else keeps everybody out: the pause need not hold any longer, only up to here.
    pub fn pause_is_over(&mut self) {
        let gap = self.has_gap();
        self.nodes.iter_mut().for_each(|m| m.gap |= gap);
        self.forget_pauses();
    }

    /// No pause is kept up any more.
    fn forget_pauses(&mut self) {
        self.nodes.iter_mut().for_each(|m| m.leased = None);
    }

    /// Why these are not the masters any more; `None` when they are. A server that does not answer is an error.
    pub async fn changed(&self) -> Result<Option<String>> {
        let places = places(&self.endpoint).await?;
        let (mut now, fresh) = (places.addresses, places.run_id);
        let mut then: Vec<String> = self.addresses().map(str::to_owned).collect();
        then.sort();
        now.sort();
        if then != now {
            return Ok(Some(format!(
                "the masters were {}, and are {}",
                then.join(", "),
                now.join(", ")
            )));
        }
        // Another server may answer at the same address: behind a name, a proxy, a Sentinel.
        let is_other = async |node: &Node| {
            let run_id = match &fresh {
                Some(run_id) => Some(run_id.clone()),
                None => {
                    Node::open(&self.endpoint, node.address.clone(), node.told)
                        .await?
                        .run_id
                }
            };
            let other = run_id.is_some() && node.run_id.is_some() && run_id != node.run_id;
            Ok::<_, Error>(other.then(|| node.address.clone()))
        };
        let looks = self.nodes.iter().map(is_other);
        for other in futures::future::join_all(looks).await {
            if let Some(address) = other? {
                return Ok(Some(format!(
                    "another server answers at {address} than when the writers were frozen"
                )));
            }
        }
        Ok(None)
    }

    /// How many calls of commands that write they count; `None` where that is not told.
    pub async fn write_calls(&mut self) -> Result<Option<u64>> {
        let Ok(replies) = self.everywhere(&[b"INFO", b"commandstats"]).await else {
            return Ok(None);
        };
        let mut calls = 0;
        for reply in replies {
            let text = reply.text().unwrap_or_default();
            let mut told = false;
            for (name, counts) in info::commands(&text) {
                told = true;
                let name = name.split('|').next().unwrap_or_default();
                if command::lookup(name.as_bytes()).is_some_and(Spec::may_write) {
                    calls = u64::saturating_add(calls, counts.count("calls").unwrap_or(0));
                }
            }
            if !told {
                return Ok(None);
            }
        }
        Ok(Some(calls))
    }

    /// Where each of them stands in its own stream.
    pub async fn offsets(&mut self) -> Result<Vec<ReplOffset>> {
        let replies = self.everywhere(&[b"INFO", b"replication"]).await?;
        let offset = |reply: Reply| {
            let text = reply.text()?.into_owned();
            info::offset(&text)
        };
        let offsets = replies.into_iter().map(offset);
        let unknown = || Error::new(ErrorKind::Protocol, "INFO replication tells no offset");
        offsets.collect::<Option<_>>().ok_or_else(unknown)
    }

    /// Ends the connections of clients and of subscribers; what they have not got an answer to has not run.
    pub async fn cut_clients(&mut self) -> Result<Cut> {
        let first = [
            words(&[b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes"]),
            words(&[b"CLIENT", b"LIST", b"TYPE", b"pubsub"]),
        ];
        let told = self.each(&vec![first.to_vec(); self.count()]).await?;
        let mut cut = Cut::default();
        let mut kills = Vec::new();
        for replies in &told {
            if let Some(Reply::Error(text)) = replies.first() {
                return Err(net::refusal("CLIENT KILL", text));
            }
            cut.clients = cut
                .clients
                .saturating_add(replies.first().and_then(Reply::int).unwrap_or(0));
            kills.push(match replies.get(1) {
                Some(Reply::Error(_)) | None => {
                    vec![words(&[
                        b"CLIENT", b"KILL", b"TYPE", b"pubsub", b"SKIPME", b"yes",
                    ])]
                }
                Some(list) => subscribers(&list.text().unwrap_or_default()),
            });
        }
        for reply in self.each(&kills).await?.iter().flatten() {
            // One may have gone meanwhile.
            cut.subscribers = cut.subscribers.saturating_add(reply.int().unwrap_or(0));
        }
        Ok(cut)
    }
}

/// What ends each subscriber of a CLIENT LIST that is none of ours.
fn subscribers(list: &str) -> Vec<Words> {
    let kill = |line: &str| {
        let of = |name: &str| line.split(' ').find_map(|w| w.strip_prefix(name));
        let id = of("id=")?;
        let ours = of("name=").map(str::as_bytes) == Some(net::OWN_NAME);
        (!ours).then(|| words(&[b"CLIENT", b"KILL", b"ID", id.as_bytes()]))
    };
    list.lines().filter_map(kill).collect()
}

/// A command.
pub type Words = Vec<Vec<u8>>;

pub fn words(command: &[&[u8]]) -> Words {
    command.iter().map(|word| word.to_vec()).collect()
}

impl Node {
    async fn open(endpoint: &Endpoint, address: String, told: bool) -> Result<Node> {
        let mut conn = control(endpoint, &address, told).await?;
        let run_id = run_id(&mut conn).await?;
        Ok(Node {
            address,
            told,
            conn: Some(conn),
            run_id,
            leased: None,
            gap: false,
        })
    }

    async fn ask(&mut self, endpoint: &Endpoint, command: &[&[u8]]) -> Result<Reply> {
        let replies = self.ask_all(endpoint, &[words(command)]).await?;
        match replies.into_iter().next() {
            Some(Reply::Error(text)) => {
                let name = String::from_utf8_lossy(command.first().unwrap_or(&b"".as_slice()))
                    .into_owned();
                Err(net::refusal(&name, &text).context(format!("run {name} on {}", self.address)))
            }
            Some(reply) => Ok(reply),
            None => Err(Error::new(ErrorKind::Bug, "a command without a reply")),
        }
    }

    async fn ask_all(&mut self, endpoint: &Endpoint, commands: &[Words]) -> Result<Vec<Reply>> {
        let asked = tokio::time::timeout(ANSWER, async {
            let mut conn = match self.conn.take() {
                Some(conn) => conn,
                None => self.connect_again(endpoint).await?,
            };
            let commands: Vec<Vec<&[u8]>> = (commands.iter())
                .map(|command| command.iter().map(Vec::as_slice).collect())
                .collect();
            let commands: Vec<&[&[u8]]> = commands.iter().map(Vec::as_slice).collect();
            let replies = conn.ask_all(&commands).await?;
            self.conn = Some(conn);
            Ok(replies)
        });
        // What is cut off in its middle takes its connection with it.
        asked.await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Connection,
                format!(
                    "{} gave no answer within {} s",
                    self.address,
                    ANSWER.as_secs()
                ),
            ))
        })
    }

    async fn connect_again(&mut self, endpoint: &Endpoint) -> Result<Control> {
        let mut conn = control(endpoint, &self.address, self.told).await?;
        let run_id = run_id(&mut conn).await?;
        if run_id != self.run_id {
            // Nobody has frozen this one.
            self.gap = true;
            self.run_id = run_id;
        }
        Ok(conn)
    }

    async fn pause(&mut self, endpoint: &Endpoint, lease: Duration) -> Result<()> {
        let (began, ms) = (Instant::now(), lease.as_millis().to_string());
        self.ask(endpoint, &[b"CLIENT", b"PAUSE", ms.as_bytes(), b"WRITE"])
            .await?;
        // It was renewed at some moment before the answer.
        self.gap |= self.leased.is_some_and(|until| Instant::now() >= until);
        self.leased = Some(began + lease);
        Ok(())
    }
}

async fn control(endpoint: &Endpoint, address: &str, told: bool) -> Result<Control> {
    match told {
        true => net::told(endpoint, address).await,
        false => net::control(endpoint, address).await,
    }
}

/// Where the masters of a side are.
struct Places {
    addresses: Vec<String>,
    /// The servers have told them.
    told: bool,
    /// What a single server calls itself.
    run_id: Option<String>,
}

/// Where the plan names a replica, its master is meant: there the writers are.
async fn places(endpoint: &Endpoint) -> Result<Places> {
    let (layout, server) = server::layout(endpoint).await?;
    let (addresses, told) = match (layout.cluster, server.replica) {
        (true, _) => (
            layout.masters.into_iter().map(|m| m.address).collect(),
            true,
        ),
        (false, false) => (vec![endpoint.address()], false),
        (false, true) => (vec![master_above(endpoint).await?], true),
    };
    Ok(Places {
        addresses,
        told,
        run_id: server.run_id.filter(|_| !told),
    })
}

/// The master of the replica that an endpoint names, by its address.
pub async fn master_above(endpoint: &Endpoint) -> Result<String> {
    let mut address = endpoint.address();
    for step in 0..CHAIN {
        let above = step > 0;
        let unreachable = |e: Error| {
            match above {
                true => Error::new(
                    ErrorKind::Refused,
                    format!("{endpoint} is a replica, and its master {address} cannot be asked: its clients would go on writing"),
                )
                .cause(e)
                .hint("name the master in the plan, or say in address_map how it is reached"),
                false => e,
            }
        };
        let asked = async {
            let mut conn = control(endpoint, &address, above).await?;
            conn.call(&[b"INFO", b"replication"]).await
        };
        let reply = asked.await.map_err(unreachable)?;
        let text = reply.text().unwrap_or_default();
        if !info::is_replica(&text) {
            return Ok(address);
        }
        let (Some(host), Some(port)) = (
            info::field(&text, "master_host"),
            info::field(&text, "master_port").and_then(|p| p.parse::<u16>().ok()),
        ) else {
            break;
        };
        address = join(host, port);
    }
    Err(Error::new(
        ErrorKind::Refused,
        format!(
            "{endpoint} is a replica that does not tell its master: its clients would go on writing"
        ),
    )
    .hint("name the master in the plan"))
}

/// What a server calls itself since it was started; `None` where it does not tell.
async fn run_id(conn: &mut Control) -> Result<Option<String>> {
    let reply = conn.ask(&[b"INFO", b"server"]).await?;
    let text = reply.text().unwrap_or_default();
    Ok(info::field(&text, "run_id").map(str::to_owned))
}
