//! What will be done: a plan after validation, with nothing left to doubt.
//!
//! Invariant: `Debug` and `Display` of these types show no secret.

use super::cutover::CutoverPlan;
use super::document::{
    Expired, ExpiryFilter, LatencyPlan, OnExisting, OnLoss, TlsVerify, Topology,
};
use super::glob::Glob;
use super::indexes::Indexes;
use super::learnt::Learnt;
use super::names::CommandNames;
use super::price::PricePlan;
use super::rename::Renames;
use super::secret::{Redacted, Secret};
use super::unknown::UnknownCommands;
use super::url::Location;
use crate::types::{DbIndex, Slot, SlotSet, address};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

/// One migration, as the flows get it.
#[derive(Debug, Clone)]
pub struct Job {
    /// Also the name of the folder of the saved state: `[A-Za-z0-9._-]+`.
    pub name: String,
    pub source: Source,
    pub target: Endpoint,
    pub databases: Databases,
    pub filter: Filter,
    pub renames: Renames,
    pub on_existing: OnExisting,
    pub on_loss: OnLoss,
    pub unknown_commands: UnknownCommands,
    pub indexes: Indexes,
    /// A share of what the target got, in percent: a source that lacks more than that has lost it.
    pub max_loss_percent: u8,
    pub expired: Expired,
    pub limits: Limits,
    pub verify: VerifyOptions,
    pub cutover: CutoverPlan,
    pub latency: LatencyPlan,
    /// `latency.also`: what is measured beside source and target.
    pub also: Vec<(String, Endpoint)>,
    pub price: Option<PricePlan>,
    /// What a person should know before it starts; one sentence each.
    pub warnings: Vec<String>,
    /// `source=… target=… databases=… filter=… on_existing=…`, a hash each: a saved state fits only the same movement.
    pub fingerprint: String,
    /// The plan as it may be stored and shown.
    pub redacted: serde_json::Value,
}

/// Where the data comes from.
// There is one of these in a process, so its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
pub enum Source {
    Server { mode: Mode, endpoint: Endpoint },
    Rdb { path: RdbPath },
}

/// How a server is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Auto,
    Replica,
    Scan,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Auto => "auto",
            Mode::Replica => "replica",
            Mode::Scan => "scan",
        }
    }
}

impl Source {
    /// The mode as the plan names it.
    pub fn mode_name(&self) -> &'static str {
        match self {
            Source::Server { mode, .. } => mode.name(),
            Source::Rdb { .. } => "rdb",
        }
    }

    pub fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Source::Server { endpoint, .. } => Some(endpoint),
            Source::Rdb { .. } => None,
        }
    }
}

/// The url without secrets, or the path of the snapshot.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Server { endpoint, .. } => endpoint.fmt(f),
            Source::Rdb { path } => path.fmt(f),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RdbPath {
    Stdin,
    /// Files and globs.
    Files(Vec<PathBuf>),
}

impl fmt::Display for RdbPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RdbPath::Stdin => f.write_str("standard input"),
            RdbPath::Files(paths) => {
                let paths: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
                f.write_str(&paths.join(", "))
            }
        }
    }
}

/// One side: where it is and how to get in.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub location: Location,
    /// The database the url names, already worked into `Databases`.
    pub db: Option<u32>,
    /// Present when the connection is TLS.
    pub tls: Option<TlsOptions>,
    pub username: Option<String>,
    pub password: Option<Secret>,
    pub topology: Topology,
    /// Announced address to reachable address.
    pub address_map: BTreeMap<String, String>,
    /// Keys are read from replicas, where there are any.
    pub from_replicas: bool,
    /// What a single element of a value may take when it is read: nothing smaller can be asked for.
    pub element_bytes: usize,
    /// What it calls its commands, where that is otherwise.
    pub commands: CommandNames,
    /// How the sentinels are asked, where they tell the master's address.
    pub sentinels: Option<Box<Endpoint>>,
    /// What is found out about it while the program runs.
    pub learnt: Learnt,
}

impl Endpoint {
    /// The first of the plan's addresses, which stands for the side: `host:port` with brackets around an IPv6 address,
    /// or the path of a socket.
    pub fn address(&self) -> String {
        self.addresses().first().cloned().unwrap_or_default()
    }

    /// All of the plan's addresses; those of the sentinels where these tell the server's.
    pub fn addresses(&self) -> Vec<String> {
        match &self.location {
            Location::Addresses(at) | Location::Sentinels { nodes: at, .. } => at.clone(),
            Location::Socket(path) => vec![path.clone()],
        }
    }

    /// The hosts of these, an IPv6 address without brackets.
    pub fn hosts(&self) -> Vec<String> {
        match &self.location {
            Location::Socket(_) => vec!["127.0.0.1".to_owned()],
            _ => (self.addresses().iter())
                .map(|a| address::split(a).0.to_owned())
                .collect(),
        }
    }

    /// Whether an address is that of a node of a cluster, and no other may answer in its place.
    pub fn is_cluster(&self) -> bool {
        self.topology == Topology::Cluster || self.learnt.is_cluster()
    }

    /// The url without a user.
    pub fn url(&self) -> String {
        self.location.url(self.tls.is_some(), None, self.db)
    }

    /// Who logs in: the plan's user, or the one that came with the password.
    pub fn user(&self) -> Option<String> {
        self.username.clone().or_else(|| self.learnt.user())
    }

    /// Every password that belongs to it, Sentinel's included.
    pub(super) fn secrets(&mut self) -> impl Iterator<Item = &mut Secret> {
        let sentinels = self.sentinels.iter_mut();
        (self.password.iter_mut()).chain(sentinels.filter_map(|s| s.password.as_mut()))
    }

    /// The url of another server of this side, without a user.
    pub fn url_at(&self, address: &str) -> String {
        let at = Location::Addresses(vec![address.to_owned()]);
        at.url(self.tls.is_some(), None, self.db)
    }

    /// The same servers, entered as somebody else: what was learnt as the first user need not hold for that one.
    pub fn entered_as(&self, user: String, password: String) -> Endpoint {
        // Sentinels without a login of their own were asked as the first user, and know nobody else.
        let mut sentinels = self.sentinels.clone();
        if let Some(own) = sentinels.as_mut().filter(|own| own.password.is_none()) {
            own.username.clone_from(&self.username);
            own.password.clone_from(&self.password);
        }
        Endpoint {
            sentinels,
            username: Some(user),
            password: Some(Secret::Plain(Redacted::new(password))),
            learnt: Learnt::default(),
            ..self.clone()
        }
    }

    /// The url with the user and without the password.
    pub fn redacted_url(&self) -> String {
        let user = self.username.as_deref();
        self.location.url(self.tls.is_some(), user, self.db)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted_url())
    }
}

#[derive(Debug, Clone, Default)]
pub struct TlsOptions {
    pub ca: Option<PathBuf>,
    /// Comes with `key` or not at all.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub server_name: Option<String>,
    pub verify: TlsVerify,
}

/// Which databases are moved, and where to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Databases {
    /// `None` is all of them.
    pub(super) include: Option<BTreeSet<DbIndex>>,
    pub(super) map: BTreeMap<DbIndex, DbIndex>,
}

/// More databases than a server is known to be run with.
const DATABASES: u32 = 1024;

impl Databases {
    /// The target database of a source database; `None` when it is not moved.
    pub fn map(&self, source: DbIndex) -> Option<DbIndex> {
        if self.include.as_ref().is_some_and(|i| !i.contains(&source)) {
            return None;
        }
        Some(self.map.get(&source).copied().unwrap_or(source))
    }

    /// The databases that are moved, each with the target's; in the order of their numbers.
    pub fn moved(&self) -> impl Iterator<Item = (DbIndex, DbIndex)> + '_ {
        (0..DATABASES)
            .map(DbIndex)
            .filter_map(|from| Some((from, self.map(from)?)))
    }

    /// The source's databases that go to one of the target's.
    pub fn sources_of(&self, target: DbIndex) -> impl Iterator<Item = DbIndex> + '_ {
        let into = self.moved().filter(move |(_, to)| *to == target);
        into.map(|(from, _)| from)
    }

    /// Whether every database keeps its number and none is left out.
    pub fn is_identity(&self) -> bool {
        self.include.is_none() && self.map.iter().all(|(from, to)| from == to)
    }
}

impl fmt::Display for Databases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.include {
            None => f.write_str("all")?,
            Some(include) => {
                let shown: Vec<String> = include.iter().map(DbIndex::to_string).collect();
                f.write_str(&shown.join(", "))?;
            }
        }
        let moved: Vec<String> = self
            .map
            .iter()
            .filter(|(from, to)| from != to)
            .map(|(from, to)| format!("{from} to {to}"))
            .collect();
        if moved.is_empty() {
            Ok(())
        } else {
            write!(f, " ({})", moved.join(", "))
        }
    }
}

/// Which keys are moved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub(super) include: Vec<Glob>,
    pub(super) exclude: Vec<Glob>,
    pub(super) types: BTreeSet<String>,
    /// `None` is all.
    pub(super) slots: Option<SlotSet>,
    pub(super) expiry: ExpiryFilter,
}

impl Filter {
    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.include.is_empty()
            && self.exclude.is_empty()
            && self.slots.is_none()
            && !self.looks_inside()
    }

    /// Whether the key is wanted by its name and its slot; exclude wins over include.
    pub fn accepts(&self, key: &[u8]) -> bool {
        (self.include.is_empty() || self.include.iter().any(|g| g.matches(key)))
            && !self.exclude.iter().any(|g| g.matches(key))
            && (self.slots.as_ref()).is_none_or(|s| s.has(Slot::of(key)))
    }

    /// Whether a key is wanted by its type (by the name of `rdb json`) and by whether it expires.
    pub fn accepts_value(&self, kind: &str, expires: bool) -> bool {
        (self.types.is_empty() || self.types.contains(kind))
            && match self.expiry {
                ExpiryFilter::Any => true,
                ExpiryFilter::With => expires,
                ExpiryFilter::Without => !expires,
            }
    }

    /// Whether more than a key's name must be known before it is moved.
    pub fn looks_inside(&self) -> bool {
        !self.types.is_empty() || self.looks_at_expiry()
    }

    pub fn looks_at_expiry(&self) -> bool {
        self.expiry != ExpiryFilter::Any
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let globs = |list: &[Glob]| list.iter().map(Glob::as_str).collect::<Vec<_>>().join(" ");
        if !self.include.is_empty() {
            parts.push(format!("only {}", globs(&self.include)));
        }
        if !self.exclude.is_empty() {
            parts.push(format!("without {}", globs(&self.exclude)));
        }
        if let Some(slots) = &self.slots {
            parts.push(format!("slots {slots}"));
        }
        if !self.types.is_empty() {
            parts.push(format!(
                "types {}",
                self.types
                    .iter()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(" ")
            ));
        }
        match self.expiry {
            ExpiryFilter::Any => {}
            ExpiryFilter::With => parts.push("with an expiry".into()),
            ExpiryFilter::Without => parts.push("without an expiry".into()),
        }
        f.write_str(&if parts.is_empty() {
            "every key".to_string()
        } else {
            parts.join(", ")
        })
    }
}

/// The longest string that servers take, and what stands around it.
const ELEMENT: usize = (512 << 20) + (1 << 20);

/// Upper bounds; `None` is chosen by the program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    pub keys_per_s: Option<u64>,
    pub bytes_per_s: Option<u64>,
    pub spool_bytes: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub connections: Option<u32>,
    pub outage_s: Option<u64>,
    /// The longest round trip of either side before we slow down.
    pub latency_ms: Option<u64>,
}

impl Limits {
    /// Bytes that the program may take in all.
    pub fn memory(&self) -> u64 {
        self.memory_bytes.unwrap_or(256 << 20)
    }

    /// Of these, what a set of keys may take.
    pub fn key_set(&self) -> u64 {
        self.memory() / 10 * 3
    }

    /// Of these, what the filter of timed keys may take, and what the names may that are known to be gone.
    pub fn timed(&self) -> usize {
        usize::try_from(self.memory() / 8).unwrap_or(32 << 20)
    }

    /// Of these, what a load's keys may take while the target's older ones are compared.
    pub fn loaded(&self) -> usize {
        usize::try_from(self.memory() / 4).unwrap_or(64 << 20)
    }

    /// Of these, what the names may take that a source has told to have changed.
    pub fn told(&self) -> usize {
        usize::try_from(self.memory() / 4).unwrap_or(64 << 20)
    }

    /// What a value may take to be loaded whole by one of so many shards, which holds it twice; larger ones go in parts.
    pub fn whole_value(&self, shards: usize) -> usize {
        (self.in_flight() / shards).clamp(256 << 10, 8 << 20)
    }

    /// Of these, what a single element of a value may take. Where the plan sets no limit, it is the servers' own
    /// (`proto-max-bulk-len`).
    pub fn element(&self) -> usize {
        let share = |memory: u64| usize::try_from(memory / 8).unwrap_or(usize::MAX);
        self.memory_bytes.map_or(ELEMENT, share).min(ELEMENT)
    }

    /// Of these, what may be on its way to the target.
    pub fn in_flight(&self) -> usize {
        usize::try_from(self.memory() / 16).unwrap_or(16 << 20)
    }
}

/// How both sides are compared.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    pub ttl_tolerance_ms: i64,
    /// Refuses the keys that are not compared.
    pub exclude: Filter,
}
