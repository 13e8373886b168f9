//! What one side is and what it lets us do, found out by harmless commands.

use super::surroundings::{self, Surroundings};
use crate::command;
use crate::error::Result;
use crate::net::server::{self, Layout, Product, Server};
use crate::net::{Control, connect, control, enter, is_elsewhere, question};
use crate::plan::{self, Endpoint, Topology};
use crate::rdb::modules::ways::Loaded;
use crate::rdb::payload;
use crate::resp::{Reply, info};
use crate::target::restoring;
use crate::types::{DbIndex, Slot, unix_ms};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, Instant};

/// How often the round trip is measured; the middle one counts.
const PINGS: usize = 7;
/// After this time it is measured no more.
const PINGS_TAKE: Duration = Duration::from_millis(50);
/// What asks the server who we are, among what it lets us do.
const WHO: &str = "ACL WHOAMI";
/// Of so many names of ours, one leads to any master.
const NAMES: usize = 1_000_000;
/// The footers of DUMP payloads tried on a target, the newest first.
const FOOTERS: [u16; 9] = [81, 80, 14, 13, 12, 11, 10, 9, 6];

/// What was found out about a side; sums over its masters where that makes sense.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Facts {
    pub url: String,
    /// The addresses of its masters.
    #[serde(skip)]
    pub nodes: Vec<String>,
    /// "redis 7.0.15".
    pub server: String,
    pub topology: &'static str,
    pub masters: usize,
    pub tls: bool,
    /// When the server's certificate ends, as Unix time in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_ends_ms: Option<i64>,
    /// Keys of each database that holds any.
    pub databases: BTreeMap<u32, u64>,
    /// Databases that can be selected beside 0 (asked for 1 only).
    pub select: bool,
    pub keys: u64,
    /// Keys with an expiry.
    pub expires: u64,
    pub used_memory: u64,
    /// 0 is no limit; `None` where it is not told.
    pub maxmemory: Option<u64>,
    pub eviction: Option<String>,
    pub clients: Option<u64>,
    pub maxclients: Option<u64>,
    pub rtt_us: u64,
    pub clock_ahead_ms: Option<i64>,
    pub modules: Vec<String>,
    /// The same with their versions; `None` where they are not told.
    #[serde(skip)]
    pub loaded: Option<Vec<Loaded>>,
    /// What payloads it writes and takes.
    #[serde(skip)]
    pub format: Option<payload::Target>,
    /// Keys of each module type that holds any; asked of a source only.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub module_types: BTreeMap<&'static str, Counted>,
    /// Libraries of functions.
    pub functions: Option<usize>,
    /// Hash fields may expire there.
    pub takes_field_expiry: bool,
    /// Hashes whose fields expire, as far as the server counts them.
    pub field_expiry_keys: Option<u64>,
    pub notifications: Option<String>,
    /// Where that is not told: whether a key of our own was notified of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notified: Option<bool>,
    pub backlog_bytes: Option<u64>,
    pub replica_buffer: Option<String>,
    /// Commands that clients have called since the server started.
    #[serde(skip)]
    pub called: BTreeSet<String>,
    /// Scripts and functions that were called since the server started.
    pub scripts: u64,
    /// Scripts are replicated as they were called, instead of what they did.
    pub scripts_verbatim: bool,
    /// Calls that make one key of several, or rename one.
    pub several_keys: u64,
    /// What is written to it, in bytes per second.
    pub input_bytes_per_s: u64,
    /// What the server saves to disk: `rdb`, `aof`, both or nothing.
    pub persistence: String,
    /// Commands that matter here, and whether they may be run.
    pub commands: BTreeMap<&'static str, bool>,
    /// The newest DUMP format that RESTORE takes; `None` when it was not tried.
    pub restore_version: Option<u16>,
    pub surroundings: Surroundings,
}

/// Keys of one module type.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Counted {
    /// So many were found.
    pub keys: u64,
    /// Every key was looked at; else there are at least so many.
    pub complete: bool,
    /// Time series with compaction rules, of some that were asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub with_rules: Option<u64>,
}

/// Asks all masters of `endpoint`; with `write` also whether RESTORE works, on a key of our own.
pub async fn facts(endpoint: &Endpoint, write: bool) -> Result<Facts> {
    // Rights may have been given since they were asked about.
    endpoint.learnt.forget_refusals();
    let (layout, server) = server::layout(endpoint).await?;
    let ((mut told, mut conn), loaded, (clock_ahead_ms, rtt_us), libraries) = futures::try_join!(
        masters(endpoint, &layout, &server, write),
        server::modules(endpoint),
        clock(endpoint),
        libraries(endpoint, &layout, &server),
    )?;
    if let Some(libraries) = libraries {
        told.functions = libraries.array().map(<[Reply]>::len);
        told.commands.insert("FUNCTION", !is_refusal(&libraries));
    }
    let mut facts = Facts {
        url: endpoint.redacted_url(),
        server: server.to_string(),
        topology: match (layout.cluster, endpoint.topology) {
            (true, _) => "cluster",
            (false, Topology::Proxy) => "proxy",
            (false, _) => "standalone",
        },
        masters: layout.masters.len(),
        tls: endpoint.tls.is_some(),
        takes_field_expiry: server.has_field_expiry(),
        clock_ahead_ms,
        rtt_us,
        modules: (loaded.iter().flatten()).map(|m| m.name.clone()).collect(),
        loaded,
        format: Some(server.payload_target()),
        ..told
    };
    (facts.surroundings.count_indexes(&mut conn, &facts.modules)).await?;
    facts.nodes = layout.masters.into_iter().map(|m| m.address).collect();
    Ok(facts)
}

/// The libraries of functions, by themselves: their answer may be longer than others, and has more time. `None` where
/// there are no functions.
async fn libraries(endpoint: &Endpoint, layout: &Layout, server: &Server) -> Result<Option<Reply>> {
    if !server.has_functions() {
        return Ok(None);
    }
    let mut conn = match layout.masters.first() {
        Some(first) => control(endpoint, &first.address).await?,
        None => question(endpoint).await?,
    };
    conn.ask(&[b"FUNCTION", b"LIST"]).await.map(Some)
}

/// Another master's slot is no refusal: that it may be run is what counts.
fn is_refusal(reply: &Reply) -> bool {
    matches!(reply, Reply::Error(text) if !is_elsewhere(text) && !text.contains("no such key"))
}

/// How far the clock is ahead, and the middle one of some round trips.
async fn clock(endpoint: &Endpoint) -> Result<(Option<i64>, u64)> {
    let mut conn = question(endpoint).await?;
    let ahead = server::clock_of(&mut conn).await?;
    let (mut times, since) = (Vec::with_capacity(PINGS), Instant::now());
    // Long ones are much the same.
    while times.len() < PINGS && since.elapsed() < PINGS_TAKE {
        let began = Instant::now();
        conn.ask(&[b"PING"]).await?;
        times.push(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    times.sort_unstable();
    Ok((ahead, times.get(times.len() / 2).copied().unwrap_or(0)))
}

/// Asks the masters what they hold and the first of them what it lets us do, whose connection is returned too. What that
/// one has refused is known before the others are asked.
async fn masters(
    endpoint: &Endpoint,
    layout: &Layout,
    server: &Server,
    write: bool,
) -> Result<(Facts, Control)> {
    let mut facts = Facts::default();
    let Some((first, others)) = layout.masters.split_first() else {
        let conn = enter(endpoint).await?;
        facts.certificate_ends_ms = conn.certificate_ends_ms();
        let mut conn = Control::over(conn).await?;
        commands(&mut conn, server, layout.cluster, write, &mut facts).await?;
        return Ok((facts, conn));
    };
    let conn = connect(endpoint, &first.address).await?;
    facts.certificate_ends_ms = conn.certificate_ends_ms();
    let mut conn = Control::over(conn).await?;
    let told = Told::by(&mut conn).await?;
    told.add_to(&mut facts);
    let others = futures::future::try_join_all(others.iter().map(async |master| {
        let mut conn = control(endpoint, &master.address).await?;
        Told::by(&mut conn).await
    }));
    let upstream = async {
        Ok(match layout.cluster {
            true => None,
            false => surroundings::master_of(endpoint, &told.info).await,
        })
    };
    let may = async {
        commands(&mut conn, server, layout.cluster, write, &mut facts).await?;
        if write {
            // One of this master's slots, where there are such.
            let mut names = (0..NAMES).map(|_| random_name());
            let ours = |name: &String| first.slots.has(Slot::of(name.as_bytes()));
            if let Some(name) = names.find(ours) {
                facts.restore_version = restore(&mut conn, &name, &mut facts).await?;
            }
        }
        Ok(())
    };
    let (others, upstream, ()) = futures::try_join!(others, upstream, may)?;
    others.iter().for_each(|told| told.add_to(&mut facts));
    facts.surroundings.master = upstream;
    Ok((facts, conn))
}

/// What servers tell adds up to more than a number holds at worst to the largest one.
fn add(sum: &mut u64, n: u64) {
    *sum = sum.saturating_add(n);
}

/// What one master has told of itself.
struct Told {
    /// All of INFO.
    info: String,
    databases: Vec<(DbIndex, u64)>,
    maxclients: Option<u64>,
    /// See [`Facts::scripts_verbatim`].
    verbatim: bool,
    /// Channels of keyspace notifications that somebody listens to.
    channels: u64,
    sentinels: u64,
}

impl Told {
    async fn by(conn: &mut Control) -> Result<Told> {
        let asked: [&[&[u8]]; 3] = [
            &[b"INFO", b"everything"],
            &[b"INFO", b"keyspace"],
            &[b"PUBSUB", b"CHANNELS", b"__key*"],
        ];
        let replies = conn.ask_new(&asked).await?;
        let text = |i: usize| Some(replies.get(i)?.text()?.into_owned());
        let info = text(0).unwrap_or_default();
        let databases = replies.get(1).map(server::databases_in);
        let channels = (replies.get(2)).and_then(|reply| Some(reply.array()?.len() as u64));
        let mut maxclients = info::number(&info, "maxclients");
        let verbatim = verbatim(&Server::parse(&info));
        let mut asked: Vec<&[&[u8]]> = vec![&[b"PUBSUB", b"NUMSUB", b"__sentinel__:hello"]];
        if maxclients.is_none() {
            // Redis 6 tells it only where CONFIG is allowed.
            asked.push(&[b"CONFIG", b"GET", b"maxclients"]);
        }
        if verbatim.is_none() {
            asked.push(&[b"CONFIG", b"GET", b"lua-replicate-commands"]);
        }
        let mut replies = conn.ask_new(&asked).await?.into_iter();
        let mut value = || replies.next().and_then(|r| r.array()?.get(1).cloned());
        let sentinels = value().and_then(|n| u64::try_from(n.int()?).ok());
        if maxclients.is_none() {
            maxclients = value().and_then(|n| n.text()?.parse().ok());
        }
        let verbatim = match verbatim {
            Some(known) => known,
            None => value().is_some_and(|told| told.bytes() == Some(b"no")),
        };
        Ok(Told {
            info,
            databases: databases.unwrap_or_default(),
            maxclients,
            verbatim,
            channels: channels.unwrap_or(0),
            sentinels: sentinels.unwrap_or(0),
        })
    }

    fn add_to(&self, facts: &mut Facts) {
        let text = &self.info;
        let number = |name: &str| info::number(text, name);
        for (db, keys) in &self.databases {
            add(facts.databases.entry(db.0).or_default(), *keys);
            add(&mut facts.keys, *keys);
        }
        for (_, of) in info::databases(text) {
            add(&mut facts.expires, of.count("expires").unwrap_or(0));
            let with_fields = of.count("subexpiry");
            if let Some(n) = with_fields.or(of.count("keys_with_volatile_items")) {
                add(facts.field_expiry_keys.get_or_insert(0), n);
            }
        }
        let dataset = number("used_memory_dataset").or(number("used_memory"));
        add(&mut facts.used_memory, dataset.unwrap_or(0));
        if let Some(max) = number("maxmemory") {
            let sum = facts.maxmemory.get_or_insert(0);
            // Without a limit on one master there is none.
            *sum = match (*sum, max) {
                (_, 0) => 0,
                (sum, max) => sum.saturating_add(max),
            };
        }
        facts.eviction = info::field(text, "maxmemory_policy").map(str::to_owned);
        let fewest = |known: Option<u64>, now: Option<u64>| match (known, now) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        facts.clients = facts.clients.max(number("connected_clients"));
        facts.maxclients = fewest(facts.maxclients, self.maxclients);
        facts.backlog_bytes = fewest(facts.backlog_bytes, number("repl_backlog_size"));
        let kbps =
            info::field(text, "instantaneous_input_kbps").and_then(|n| n.parse::<f64>().ok());
        add(
            &mut facts.input_bytes_per_s,
            kbps.map_or(0, |k| (k * 1024.0) as u64),
        );
        for (name, of) in info::commands(text) {
            let calls = of.count("calls");
            if calls > Some(0) && !OURS.contains(&name.as_str()) {
                let command = name.split('|').next().unwrap_or_default();
                facts.called.insert(command.to_ascii_uppercase());
            }
            match name.as_str() {
                "eval" | "evalsha" | "fcall" => add(&mut facts.scripts, calls.unwrap_or(0)),
                "rename" | "renamenx" | "smove" | "lmove" | "rpoplpush" | "copy" | "sort"
                | "bitop" | "pfmerge" | "sunionstore" | "sinterstore" | "sdiffstore"
                | "zunionstore" | "zinterstore" | "zdiffstore" | "zrangestore"
                | "geosearchstore" => {
                    add(&mut facts.several_keys, calls.unwrap_or(0));
                }
                _ => {}
            }
        }
        facts.scripts_verbatim |= self.verbatim;
        let aof = info::field(text, "aof_enabled") == Some("1");
        facts.persistence = if aof { "aof" } else { "rdb or none" }.to_owned();
        (facts.surroundings).add(text, self.channels, self.sentinels);
    }
}

/// What keyferry asks modules, and hardly a client does.
const OURS: [&str; 5] = [
    "ft._list",
    "ft.info",
    "ft.syndump",
    "ft.dictdump",
    "ts.info",
];

/// Those of the commands that a server's clients have called that write, by its own word, and that keyferry does not
/// know; none where it does not tell.
pub async fn unknown_to_us(endpoint: &Endpoint, called: &BTreeSet<String>) -> Result<Vec<String>> {
    let ours = |name: &&String| command::lookup(name.as_bytes()).is_none();
    let unknown: Vec<&String> = called.iter().filter(ours).collect();
    if unknown.is_empty() {
        return Ok(Vec::new());
    }
    let mut conn = question(endpoint).await?;
    let mut ask: Vec<&[u8]> = vec![b"COMMAND", b"INFO"];
    ask.extend(unknown.iter().map(|c| c.as_bytes()));
    let reply = conn.ask(&ask).await?;
    let told = reply.array().unwrap_or_default();
    let writes = |row: &Reply| {
        let flags = row.array().and_then(|row| row.get(2)?.array());
        (flags.into_iter().flatten()).any(|flag| flag.text().is_some_and(|f| f == "write"))
    };
    let writing = (unknown.iter().zip(told)).filter(|(_, row)| writes(row));
    Ok(writing.map(|(name, _)| (*name).clone()).collect())
}

/// Those of some commands that a server does not know; none where it does not tell.
pub async fn unknown(endpoint: &Endpoint, commands: &BTreeSet<String>) -> Result<Vec<String>> {
    let mut conn = question(endpoint).await?;
    let mut ask: Vec<&[u8]> = vec![b"COMMAND", b"INFO"];
    ask.extend(commands.iter().map(|c| endpoint.commands.of(c.as_bytes())));
    let reply = conn.ask(&ask).await?;
    let told = reply.array().unwrap_or_default();
    if told.len() != commands.len() {
        return Ok(Vec::new());
    }
    let unknown = commands
        .iter()
        .zip(told)
        .filter(|(_, info)| info.array().is_none());
    Ok(unknown.map(|(name, _)| name.clone()).collect())
}

/// Whether a server has a database.
pub async fn has_database(endpoint: &Endpoint, db: u32) -> Result<bool> {
    let mut conn = question(endpoint).await?;
    let reply = conn.ask(&[b"SELECT", db.to_string().as_bytes()]).await?;
    Ok(!matches!(reply, Reply::Error(_)))
}

/// Whether a server replicates scripts as they were called: Redis 4 and older do, 5.0 to 6.2 when they are told to (`None`).
fn verbatim(server: &Server) -> Option<bool> {
    if server.product != Product::Redis || server.at_least(7, 0) || server.version.0 == 0 {
        return Some(false);
    }
    (!server.at_least(5, 0)).then_some(true)
}

/// Tries what harms nobody: on a name that does not exist, or without the arguments it needs.
async fn commands(
    conn: &mut Control,
    server: &Server,
    cluster: bool,
    write: bool,
    facts: &mut Facts,
) -> Result<()> {
    let nobody = random_name();
    let name = nobody.as_bytes();
    let tries: [(&'static str, Vec<&[u8]>); 13] = [
        ("SCAN", vec![b"SCAN", b"0", b"COUNT", b"1"]),
        ("DUMP", vec![b"DUMP", name]),
        ("TYPE", vec![b"TYPE", name]),
        ("EXISTS", vec![b"EXISTS", name]),
        ("MEMORY USAGE", vec![b"MEMORY", b"USAGE", name]),
        ("ROLE", vec![b"ROLE"]),
        ("COMMAND", vec![b"COMMAND", b"COUNT"]),
        (
            "CONFIG GET",
            vec![b"CONFIG", b"GET", b"notify-keyspace-events"],
        ),
        (
            "CLUSTER COUNTKEYSINSLOT",
            vec![b"CLUSTER", b"COUNTKEYSINSLOT", b"0"],
        ),
        (
            "CLUSTER GETKEYSINSLOT",
            vec![b"CLUSTER", b"GETKEYSINSLOT", b"0", b"1"],
        ),
        ("XINFO", vec![b"XINFO", b"GROUPS", name]),
        ("HEXISTS", vec![b"HEXISTS", name, b"f"]),
        (WHO, vec![b"ACL", b"WHOAMI"]),
    ];
    let fits = |what: &str| {
        (cluster || !what.starts_with("CLUSTER"))
            && (server.has_field_expiry() || what != "HEXISTS")
    };
    let tries: Vec<_> = tries.iter().filter(|(what, _)| fits(what)).collect();
    let asked: Vec<&[&[u8]]> = tries.iter().map(|(_, args)| args.as_slice()).collect();
    let replies = conn.ask_new(&asked).await?;
    let mut user = None;
    for ((what, _), reply) in tries.into_iter().zip(&replies) {
        if *what == WHO {
            user = reply.bytes().map(<[u8]>::to_vec);
            continue;
        }
        facts.commands.insert(what, !is_refusal(reply));
        if let ("CONFIG GET", Reply::Array(parts)) = (*what, reply) {
            facts.notifications = parts.get(1).and_then(Reply::text).map(|t| t.into_owned());
        }
    }
    let dry: [(&'static str, Vec<&[u8]>); 5] = [
        ("WAIT", vec![b"WAIT", b"0", b"1"]),
        ("ACL SETUSER", vec![b"ACL", b"SETUSER", name, b"x"]),
        ("RESTORE", vec![b"RESTORE", name, b"0", b"x", b"REPLACE"]),
        ("CLIENT PAUSE", vec![b"CLIENT", b"PAUSE", b"x"]),
        ("DEL", vec![b"DEL", name]),
    ];
    let selects = !cluster || server.may_have_cluster_databases();
    let settings = surroundings::ask_for_settings();
    let mut asked: Vec<Vec<&[u8]>> = vec![settings];
    if selects {
        asked.push(vec![b"SELECT", b"1"]);
    }
    if let Some(user) = &user {
        asked.push(vec![b"ACL", b"LIST"]);
        for (_, args) in &dry {
            let mut dry: Vec<&[u8]> = vec![b"ACL", b"DRYRUN", user];
            dry.extend(args);
            asked.push(dry);
        }
    }
    if selects {
        asked.push(vec![b"SELECT", b"0"]);
    }
    let asked: Vec<&[&[u8]]> = asked.iter().map(Vec::as_slice).collect();
    let mut replies = conn.ask_new(&asked).await?.into_iter();
    let mut next = || replies.next().unwrap_or(Reply::Nil);
    let settings = next();
    if selects {
        facts.select = !matches!(next(), Reply::Error(_));
    }
    let users = user.is_some().then(&mut next);
    let mut left = Vec::new();
    for (what, args) in &dry {
        let dry = match &user {
            Some(_) => next(),
            None => Reply::Nil,
        };
        let allowed = match (dry, *what) {
            (Reply::Status(_), _) => true,
            (Reply::Bulk(_), _) => false,
            // A call would be taken for a client's by the next check.
            (_, "WAIT") => continue,
            (_, "ACL SETUSER") if user.is_none() => false,
            // Redis 6 counts the arguments before it looks at the rights. There is no such key.
            (_, "DEL") if write => {
                left.push((*what, args.as_slice()));
                continue;
            }
            // No DRYRUN here: what is allowed complains of its arguments, or that there are none.
            _ => {
                let bare = args.get(..if what.contains(' ') { args.len() } else { 1 });
                left.push((*what, bare.unwrap_or_default()));
                continue;
            }
        };
        facts.commands.insert(what, allowed);
    }
    let asked: Vec<&[&[u8]]> = left.iter().map(|(_, args)| *args).collect();
    for ((what, _), reply) in left.iter().zip(conn.ask_new(&asked).await?) {
        let allowed = match (*what, reply) {
            ("DEL", reply) if write => {
                !matches!(reply, Reply::Error(text) if plan::is_for_good(&text))
            }
            (_, Reply::Error(text)) => ["wrong number", "syntax", "not an integer"]
                .iter()
                .any(|words| text.to_ascii_lowercase().contains(words)),
            _ => false,
        };
        facts.commands.insert(what, allowed);
    }
    let may = |what: &str| facts.commands.get(what) == Some(&true);
    facts.surroundings.closes = surroundings::Closes {
        pause: may("CLIENT PAUSE") && surroundings::pauses_writes(server),
        users: may("ACL SETUSER"),
    };
    (facts.surroundings.take(conn, settings, users)).await?;
    facts.replica_buffer = facts.surroundings.replica_buffer();
    Ok(())
}

/// The newest payload that RESTORE takes, tried on a key that ends in seconds and is deleted before.
async fn restore(conn: &mut Control, name: &str, facts: &mut Facts) -> Result<Option<u16>> {
    let key = name.as_bytes();
    let ends = unix_ms().saturating_add(10_000).to_string();
    let bodies = FOOTERS.map(|footer| {
        let mut body = Vec::new();
        // A string of one letter (type 0).
        payload::seal(&mut body, &[], 0, b"\x01a", footer);
        body
    });
    let bodies: Vec<(u16, Vec<u8>)> = FOOTERS.into_iter().zip(bodies).collect();
    // The first by itself, as all may be refused.
    for bodies in <[_; 2]>::from(bodies.split_at(1)) {
        let commands: Vec<[&[u8]; 6]> = (bodies.iter())
            .map(|(_, body)| -> [&[u8]; 6] {
                [
                    b"RESTORE",
                    key,
                    ends.as_bytes(),
                    body,
                    b"REPLACE",
                    b"ABSTTL",
                ]
            })
            .collect();
        let mut asked: Vec<&[&[u8]]> = commands.iter().map(<[_; 6]>::as_slice).collect();
        let remove: [&[u8]; 2] = [b"DEL", key];
        asked.push(&remove);
        let replies = conn.ask_all(&asked).await?;
        for ((footer, _), reply) in bodies.iter().zip(replies) {
            match reply {
                Reply::Error(text) if restoring::is_refused(&text) => {
                    facts.commands.insert("RESTORE", false);
                    return Ok(None);
                }
                Reply::Error(_) => {}
                _ => return Ok(Some(*footer)),
            }
        }
    }
    Ok(None)
}

/// The name of a key of our own.
pub fn random_name() -> String {
    let state = std::collections::hash_map::RandomState::new();
    let mut hasher = state.build_hasher();
    hasher.write_i64(unix_ms());
    format!("keyferry-probe:{:016x}", hasher.finish())
}
