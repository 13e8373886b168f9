//! What one side is and what it lets us do, found out by harmless commands.

use super::surroundings::{self, Surroundings};
use crate::command;
use crate::error::Result;
use crate::net::server::{self, Product, Server};
use crate::net::{Control, connect, control, enter, is_elsewhere, question};
use crate::plan::{self, Endpoint, Topology};
use crate::rdb::modules::ways::Loaded;
use crate::rdb::payload;
use crate::resp::{Reply, info};
use crate::target::restoring;
use crate::types::{Slot, unix_ms};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher};
use std::time::Instant;

/// How often the round trip is measured; the middle one counts.
const PINGS: usize = 7;
/// The footers of DUMP payloads tried on a target, the newest first.
const FOOTERS: [u16; 9] = [81, 80, 14, 13, 12, 11, 10, 9, 6];

/// What was found out about a side; sums over its masters where that makes sense.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Facts {
    pub url: String,
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
    let loaded = server::modules(endpoint).await?;
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
        clock_ahead_ms: server::clock_ahead_ms(endpoint).await?,
        modules: (loaded.iter().flatten()).map(|m| m.name.clone()).collect(),
        loaded,
        format: Some(server.payload_target()),
        ..Facts::default()
    };
    for master in &layout.masters {
        let mut conn = control(endpoint, &master.address).await?;
        let info = sums(&mut conn, &mut facts).await?;
        facts.surroundings.add(&mut conn, &info).await?;
        if !layout.cluster {
            facts.surroundings.master = surroundings::master_of(endpoint, &info).await;
        }
    }
    let conn = match layout.masters.first() {
        Some(first) => connect(endpoint, &first.address).await?,
        None => enter(endpoint).await?,
    };
    facts.certificate_ends_ms = conn.certificate_ends_ms();
    let mut conn = Control::over(conn).await?;
    let mut times = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let began = Instant::now();
        conn.ask(&[b"PING"]).await?;
        times.push(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    times.sort_unstable();
    facts.rtt_us = times.get(PINGS / 2).copied().unwrap_or(0);
    commands(&mut conn, &server, layout.cluster, write, &mut facts).await?;
    facts.surroundings.ask(&mut conn, &facts.modules).await?;
    if write {
        let name = random_name();
        let slot = Slot::of(name.as_bytes());
        let owner = layout.masters.iter().find(|m| m.slots.has(slot));
        let mut conn = match owner {
            Some(owner) => control(endpoint, &owner.address).await?,
            None => conn,
        };
        facts.restore_version = restore(&mut conn, &name, &mut facts).await?;
    }
    Ok(facts)
}

/// What servers tell adds up to more than a number holds at worst to the largest one.
fn add(sum: &mut u64, n: u64) {
    *sum = sum.saturating_add(n);
}

/// Adds what one master tells of itself; returns its INFO.
async fn sums(conn: &mut Control, facts: &mut Facts) -> Result<String> {
    let reply = conn.ask(&[b"INFO", b"everything"]).await?;
    let text = reply.text().unwrap_or_default().into_owned();
    let number = |name: &str| info::number(&text, name);
    for (db, keys) in server::databases(conn).await.unwrap_or_default() {
        add(facts.databases.entry(db.0).or_default(), keys);
        add(&mut facts.keys, keys);
    }
    for (_, of) in info::databases(&text) {
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
    facts.eviction = info::field(&text, "maxmemory_policy").map(str::to_owned);
    let fewest = |known: Option<u64>, now: Option<u64>| match (known, now) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    facts.clients = facts.clients.max(number("connected_clients"));
    let mut maxclients = number("maxclients");
    if maxclients.is_none() {
        // Redis 6 tells it only where CONFIG is allowed.
        let told = conn.ask(&[b"CONFIG", b"GET", b"maxclients"]).await?;
        let value = told.array().and_then(|pair| pair.get(1)?.text());
        maxclients = value.and_then(|n| n.parse().ok());
    }
    facts.maxclients = fewest(facts.maxclients, maxclients);
    facts.backlog_bytes = fewest(facts.backlog_bytes, number("repl_backlog_size"));
    let kbps = info::field(&text, "instantaneous_input_kbps").and_then(|n| n.parse::<f64>().ok());
    add(
        &mut facts.input_bytes_per_s,
        kbps.map_or(0, |k| (k * 1024.0) as u64),
    );
    for (name, of) in info::commands(&text) {
        let calls = of.count("calls");
        if calls > Some(0) && !OURS.contains(&name.as_str()) {
            let command = name.split('|').next().unwrap_or_default();
            facts.called.insert(command.to_ascii_uppercase());
        }
        match name.as_str() {
            "eval" | "evalsha" | "fcall" => add(&mut facts.scripts, calls.unwrap_or(0)),
            "rename" | "renamenx" | "smove" | "lmove" | "rpoplpush" | "copy" | "sort" | "bitop"
            | "pfmerge" | "sunionstore" | "sinterstore" | "sdiffstore" | "zunionstore"
            | "zinterstore" | "zdiffstore" | "zrangestore" | "geosearchstore" => {
                add(&mut facts.several_keys, calls.unwrap_or(0));
            }
            _ => {}
        }
    }
    facts.scripts_verbatim |= verbatim(conn, &Server::parse(&text)).await?;
    let aof = info::field(&text, "aof_enabled") == Some("1");
    facts.persistence = if aof { "aof" } else { "rdb or none" }.to_owned();
    Ok(text)
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

/// Whether a server replicates scripts as they were called: Redis 4 and older do, 5.0 to 6.2 when they are told to.
async fn verbatim(conn: &mut Control, server: &Server) -> Result<bool> {
    if server.product != Product::Redis || server.at_least(7, 0) || server.version.0 == 0 {
        return Ok(false);
    }
    if !server.at_least(5, 0) {
        return Ok(true);
    }
    let reply = (conn.ask(&[b"CONFIG", b"GET", b"lua-replicate-commands"])).await?;
    let told = reply.array().and_then(|p| p.get(1)?.bytes());
    Ok(told == Some(b"no".as_slice()))
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
        ("FUNCTION", vec![b"FUNCTION", b"LIST"]),
        ("XINFO", vec![b"XINFO", b"GROUPS", name]),
        ("HEXISTS", vec![b"HEXISTS", name, b"f"]),
    ];
    for (what, args) in tries {
        if (what.starts_with("CLUSTER") && !cluster)
            || (what == "FUNCTION" && !server.has_functions())
            || (what == "HEXISTS" && !server.has_field_expiry())
        {
            continue;
        }
        let reply = conn.ask(&args).await?;
        // Another master's slot: that it may be run is what counts.
        let refused = matches!(&reply, Reply::Error(text) if !is_elsewhere(text) && !text.contains("no such key"));
        facts.commands.insert(what, !refused);
        match (what, &reply) {
            ("FUNCTION", Reply::Array(list)) => facts.functions = Some(list.len()),
            ("CONFIG GET", Reply::Array(parts)) => {
                facts.notifications = parts.get(1).and_then(Reply::text).map(|t| t.into_owned());
            }
            _ => {}
        }
    }
    if facts.commands.get("CONFIG GET") == Some(&true) {
        let reply = conn
            .ask(&[b"CONFIG", b"GET", b"client-output-buffer-limit"])
            .await?;
        facts.replica_buffer = (reply.array())
            .and_then(|p| p.get(1)?.text().map(|t| t.into_owned()))
            .and_then(|text| {
                let words: Vec<&str> = text.split(' ').collect();
                let at = words
                    .iter()
                    .position(|w| *w == "slave" || *w == "replica")?;
                Some(words.get(at + 1..at + 4)?.join(" "))
            });
    }
    let user = conn.ask(&[b"ACL", b"WHOAMI"]).await?;
    let user = user.bytes().map(<[u8]>::to_vec);
    let dry: [(&'static str, Vec<&[u8]>); 5] = [
        ("WAIT", vec![b"WAIT", b"0", b"1"]),
        ("ACL SETUSER", vec![b"ACL", b"SETUSER", name, b"x"]),
        ("RESTORE", vec![b"RESTORE", name, b"0", b"x", b"REPLACE"]),
        ("CLIENT PAUSE", vec![b"CLIENT", b"PAUSE", b"x"]),
        ("DEL", vec![b"DEL", name]),
    ];
    for (what, args) in dry {
        let dry = match &user {
            Some(user) => {
                let mut asked: Vec<&[u8]> = vec![b"ACL", b"DRYRUN", user];
                asked.extend(&args);
                conn.ask(&asked).await?
            }
            None => Reply::Nil,
        };
        let allowed = match (dry, what) {
            (Reply::Status(_), _) => true,
            (Reply::Bulk(_), _) => false,
            // A call would be taken for a client's by the next check.
            (_, "WAIT") => continue,
            (_, "ACL SETUSER") if user.is_none() => false,
            // Redis 6 counts the arguments before it looks at the rights. There is no such key.
            (_, "DEL") if write => {
                let reply = conn.ask(&args).await?;
                !matches!(reply, Reply::Error(text) if plan::is_for_good(&text))
            }
            // No DRYRUN here: what is allowed complains of its arguments, or that there are none.
            _ => {
                let bare = args.get(..if what.contains(' ') { args.len() } else { 1 });
                match conn.ask(bare.unwrap_or_default()).await? {
                    Reply::Error(text) => ["wrong number", "syntax", "not an integer"]
                        .iter()
                        .any(|words| text.to_ascii_lowercase().contains(words)),
                    _ => false,
                }
            }
        };
        facts.commands.insert(what, allowed);
    }
    let may = |what: &str| facts.commands.get(what) == Some(&true);
    facts.surroundings.closes = surroundings::Closes {
        pause: may("CLIENT PAUSE") && surroundings::pauses_writes(server),
        users: may("ACL SETUSER"),
    };
    if !cluster || server.may_have_cluster_databases() {
        facts.select = !matches!(conn.ask(&[b"SELECT", b"1"]).await?, Reply::Error(_));
        conn.ask(&[b"SELECT", b"0"]).await?;
    }
    Ok(())
}

/// The newest payload that RESTORE takes, tried on a key that ends in seconds and is deleted before.
async fn restore(conn: &mut Control, name: &str, facts: &mut Facts) -> Result<Option<u16>> {
    let key = name.as_bytes();
    let ends = unix_ms().saturating_add(10_000).to_string();
    let mut taken = None;
    for footer in FOOTERS {
        let mut body = Vec::new();
        // A string of one letter (type 0).
        payload::seal(&mut body, &[], 0, b"\x01a", footer);
        let reply = conn
            .ask(&[
                b"RESTORE",
                key,
                ends.as_bytes(),
                &body,
                b"REPLACE",
                b"ABSTTL",
            ])
            .await?;
        match reply {
            Reply::Error(text) if restoring::is_refused(&text) => {
                facts.commands.insert("RESTORE", false);
                break;
            }
            Reply::Error(_) => {}
            _ => {
                taken = Some(footer);
                break;
            }
        }
    }
    if taken.is_some() {
        conn.ask(&[b"DEL", key]).await?;
    }
    Ok(taken)
}

/// The name of a key of our own.
pub fn random_name() -> String {
    let state = std::collections::hash_map::RandomState::new();
    let mut hasher = state.build_hasher();
    hasher.write_i64(unix_ms());
    format!("keyferry-probe:{:016x}", hasher.finish())
}
