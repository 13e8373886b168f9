//! The document itself, as it is typed.

use super::cutover::CutoverPlan;
use super::indexes::Indexes;
use super::path::PathPlan;
use super::price::PricePlan;
use super::unknown::UnknownCommands;
use super::{shape, url};
use crate::error::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// A migration plan of keyferry.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Names the folder of the saved state: letters, digits, dot, underscore and hyphen.
    pub name: String,
    /// Where the data comes from.
    pub source: SourcePlan,
    /// Where the data goes.
    pub target: TargetPlan,
    /// Which logical databases are moved, and where to.
    #[serde(default)]
    pub databases: DatabasesPlan,
    /// Which keys are moved.
    #[serde(default)]
    pub filter: FilterPlan,
    /// Prefixes that keys change on their way: the source's to the target's, as {"old:": "new:"}.
    #[serde(default)]
    pub rename: BTreeMap<String, String>,
    /// What to do when the target holds keys already.
    #[serde(default)]
    pub on_existing: OnExisting,
    /// What to do with what the target cannot hold.
    #[serde(default)]
    pub on_loss: OnLoss,
    /// What to do with a command of the replication stream that keyferry does not know.
    #[serde(default)]
    pub unknown_commands: UnknownCommands,
    /// What becomes of search indexes: made at the target after the load, before it, or not at all.
    #[serde(default)]
    pub indexes: Indexes,
    /// A new full sync or sweep that would remove more than this share of the keys that the target got (and at least
    /// 1,000 of them) stops before removing; 100 never stops.
    #[serde(default = "default_max_loss_percent")]
    #[schemars(range(max = 100))]
    pub max_loss_percent: u8,
    /// What to do with keys whose expiry has passed.
    #[serde(default)]
    pub expired: Expired,
    /// Upper bounds; 0 or absent means chosen by the program.
    #[serde(default)]
    pub limits: LimitsPlan,
    /// How both sides are compared.
    #[serde(default)]
    pub verify: VerifyPlan,
    /// The bounds and hooks of the switch to the target.
    #[serde(default)]
    pub cutover: CutoverPlan,
    /// The A/B latency measurement.
    #[serde(default)]
    pub latency: LatencyPlan,
    /// What both sides cost, for the report.
    #[serde(default)]
    pub price: Option<PricePlan>,
}

/// Where the data comes from: a server, or a snapshot file with mode "rdb".
#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourcePlan {
    /// How the source is read.
    #[serde(default)]
    pub mode: SourceMode,
    /// redis://host:port/db, or rediss:// for TLS; several with commas: redis://a:6379,b:6379, of which the first that
    /// answers is taken. redis+sentinel://host:26379,host:26379/NAME, or a socket: redis+unix:///path?db=1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The snapshot of mode "rdb": a file, several (one of each shard), or globs; "-" is standard input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathPlan>,
    /// The ACL user; absent means "default".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Where the password comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<PasswordPlan>,
    /// Options of a rediss:// connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsPlan>,
    /// How the sentinels of a redis+sentinel:// url are asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentinel: Option<SentinelPlan>,
    /// The shape of the server.
    #[serde(default)]
    pub topology: Topology,
    /// Announced address to reachable address, for clusters behind a private network.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub address_map: BTreeMap<String, String>,
    /// What the server calls commands that were renamed there (rename-command): {"CONFIG": "its-name"}.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub commands: BTreeMap<String, String>,
    /// Which of its servers answer SCAN, DUMP and what `verify` reads; the replication stream comes from the master.
    #[serde(default)]
    pub read_from: ReadFrom,
}

/// Which servers of a side are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReadFrom {
    #[default]
    Master,
    /// A replica of each master, once it is in step; the master itself where there is none.
    Replica,
}

/// Where the data goes.
#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetPlan {
    /// redis://host:port/db, or rediss:// for TLS; several with commas: redis://a:6379,b:6379, of which the first that
    /// answers is taken. redis+sentinel://host:26379,host:26379/NAME, or a socket: redis+unix:///path?db=1.
    pub url: String,
    /// The ACL user; absent means "default".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Where the password comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<PasswordPlan>,
    /// Options of a rediss:// connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsPlan>,
    /// How the sentinels of a redis+sentinel:// url are asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentinel: Option<SentinelPlan>,
    /// The shape of the server.
    #[serde(default)]
    pub topology: Topology,
    /// Announced address to reachable address, for clusters behind a private network.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub address_map: BTreeMap<String, String>,
    /// What the server calls commands that were renamed there (rename-command): {"CONFIG": "its-name"}.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub commands: BTreeMap<String, String>,
}

/// How the source is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SourceMode {
    /// As a replica where the provider allows it, else by scanning.
    #[default]
    Auto,
    /// As a replica (PSYNC).
    Replica,
    /// By SCAN and DUMP.
    Scan,
    /// From a snapshot file.
    Rdb,
}

/// The shape of a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Topology {
    /// Found out when connecting.
    #[default]
    Auto,
    /// One server.
    Standalone,
    /// The cluster protocol: slots, MOVED, ASK.
    Cluster,
    /// One endpoint in front of shards: never CLUSTER, never SELECT, cross-slot rules hold.
    Proxy,
}

/// What to do when the target holds keys already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnExisting {
    /// Refuse to start.
    #[default]
    Fail,
    /// Overwrite keys of the same name, as soon as the source has one, and leave all others.
    Replace,
    /// Leave keys of the same name as they are.
    Skip,
    /// Make the target equal: overwrite keys, and remove those that the source does not hold.
    Reconcile,
}

pub(super) fn default_max_loss_percent() -> u8 {
    20
}

/// What to do with what the target cannot hold: a module's value, a field's expiry, a database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnLoss {
    /// Stop, with the key named.
    #[default]
    Fail,
    /// Go on without it, and list the key.
    List,
}

/// What to do with keys of a snapshot whose expiry has passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Expired {
    /// Write them with their expiry, as a replica would: the target removes them.
    #[default]
    Carry,
    /// Leave them out.
    Drop,
    /// Write them without an expiry.
    Persist,
}

/// A password as plain text (accepted with a warning), or where to get it.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "a password is a string, {\"env\": …}, {\"file\": …}, {\"command\": […], \"refresh_s\": n} or {\"entra\": {\"identity\": …}}"
)]
pub enum PasswordPlan {
    Text(String),
    From(PasswordSource),
}

/// Exactly one of env, file, command and entra.
#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PasswordSource {
    /// The name of an environment variable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// A file whose first line is the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// A program with its arguments; its standard output is the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Run the command again before so many seconds are over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_s: Option<u64>,
    /// A token of Entra ID, for Azure's services; it is renewed before it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entra: Option<EntraPlan>,
}

/// How a token of Entra ID is got.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EntraPlan {
    /// Whose token it is.
    pub identity: IdentityPlan,
}

/// Who logs in at Entra ID.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "an identity is \"system\", \"environment\" or {\"client_id\": …}"
)]
pub enum IdentityPlan {
    Known(KnownIdentity),
    Assigned(AssignedIdentity),
}

/// An identity that needs no name.
#[derive(Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KnownIdentity {
    /// The managed identity of this machine (system-assigned).
    System,
    /// An application by AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET or AZURE_FEDERATED_TOKEN_FILE.
    Environment,
}

/// A managed identity that is assigned to this machine (user-assigned).
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AssignedIdentity {
    /// Its client id.
    pub client_id: String,
}

/// Options of a rediss:// connection.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TlsPlan {
    /// A file with the certificates to trust instead of the system's.
    pub ca: Option<String>,
    /// The client certificate.
    pub cert: Option<String>,
    /// The client certificate's key.
    pub key: Option<String>,
    /// The name the server's certificate must hold, when it is not the url's host.
    pub server_name: Option<String>,
    /// What of the server's certificate is verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<TlsVerify>,
    /// An older way to write verify "none".
    pub insecure: bool,
}

/// What of a server's certificate is verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TlsVerify {
    /// Who has signed it, and that it holds the server's name.
    #[default]
    Full,
    /// Who has signed it, for servers at addresses that their certificates do not hold.
    Ca,
    /// Nothing.
    None,
}

/// How sentinels are asked; without a username and password they are asked without, and then with those of the server.
#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SentinelPlan {
    /// The ACL user of the sentinels; absent means "default".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Where the sentinels' password comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<PasswordPlan>,
    /// Whether the sentinels speak TLS, or with which options; absent means as the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<SentinelTls>,
}

/// True, false, or the options of TLS.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "sentinel.tls is true, false, or an object with the options of TLS"
)]
pub enum SentinelTls {
    Spoken(bool),
    By(TlsPlan),
}

/// Which logical databases are moved, and where to.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DatabasesPlan {
    /// The source databases to move; absent means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include: Option<Vec<u32>>,
    /// Source database to target database; one that is not named keeps its number.
    pub map: BTreeMap<String, u32>,
}

/// Which keys are moved; an empty list does not restrict.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FilterPlan {
    /// Globs as in KEYS; a key is moved when one matches.
    pub include: Vec<String>,
    /// Globs as in KEYS; a key is left out when one matches, whatever include says.
    pub exclude: Vec<String>,
    /// Type names: string, list, set, zset, hash, stream, array, module.
    pub types: Vec<String>,
    /// Hash slots, as "0-8191,9000"; empty is all.
    pub slots: String,
    /// Only keys with an expiry, or only those without.
    pub expiry: ExpiryFilter,
}

/// Whether keys with an expiry are moved, or those without.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExpiryFilter {
    /// Both.
    #[default]
    Any,
    /// Keys that end by themselves.
    With,
    /// Keys that stay.
    Without,
}

/// Upper bounds; 0 means chosen by the program.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsPlan {
    /// Keys written per second.
    pub keys_per_s: u64,
    /// Bytes written per second.
    pub bytes_per_s: u64,
    /// Disk space of the spool.
    pub spool_bytes: u64,
    /// Memory of the whole process.
    pub memory_bytes: u64,
    /// Connections to each side: a verification reads with fewer at a time, and `check` wants room for so many.
    pub connections: u32,
    /// How long source or target may be away before the run gives up; it goes on when it is run again.
    pub outage_s: u64,
    /// When a PING of source or target takes longer than this, reading and writing slow down.
    pub latency_ms: u64,
}

/// How both sides are compared.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VerifyPlan {
    /// By how much the expiry of a key may differ.
    pub ttl_tolerance_ms: u64,
    /// Globs of keys that are not compared.
    pub exclude: Vec<String>,
}

impl Default for VerifyPlan {
    fn default() -> VerifyPlan {
        VerifyPlan {
            ttl_tolerance_ms: 1000,
            exclude: Vec::new(),
        }
    }
}

/// The A/B latency measurement.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LatencyPlan {
    /// Names of workloads: observed, session-store, cache-aside, entity-lookup, counter, pipeline; or file:PATH, requests of your own (docs/report.md).
    pub workloads: Vec<String>,
    /// Request rates as multiples of the observed one.
    pub rates: Vec<f64>,
    /// How many interleaved blocks are measured.
    pub blocks: u32,
    /// The length of a block in seconds.
    pub block_s: u32,
    /// Connections to each side.
    pub connections: u32,
    /// Whether workloads may write keys of their own.
    pub allow_writes: bool,
    /// Whether the rate is raised until each side is saturated. That is felt by its other clients.
    pub sweep: bool,
    /// Further servers to measure beside source and target, by names of your own: a legacy service, another offer.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub also: BTreeMap<String, TargetPlan>,
}

/// The workloads a plan can name.
pub const WORKLOADS: [&str; 6] = [
    "observed",
    "session-store",
    "cache-aside",
    "entity-lookup",
    "counter",
    "pipeline",
];

/// Before the path of a file with a workload of the user's.
pub const WORKLOAD_FILE: &str = "file:";

impl Default for LatencyPlan {
    fn default() -> LatencyPlan {
        LatencyPlan {
            workloads: (WORKLOADS.iter())
                .filter(|name| **name != "pipeline")
                .map(|name| (*name).to_owned())
                .collect(),
            rates: vec![1.0],
            blocks: 12,
            block_s: 60,
            connections: 50,
            allow_writes: false,
            sweep: false,
            also: BTreeMap::new(),
        }
    }
}

impl Plan {
    /// Reads a plan; an error names the line and column, or the JSON path.
    pub fn parse(text: &str) -> Result<Plan> {
        let value: Value = serde_json::from_str(text).map_err(|e| {
            Error::new(ErrorKind::Plan, format!("the plan is not JSON: {e}"))
                .hint("correct the plan at this line and column")
        })?;
        shape::check(&value, &Plan::schema())?;
        // From the text again: only this sees a key that is written twice.
        serde_json::from_str(text)
            .map_err(|e| Error::new(ErrorKind::Plan, format!("the plan has a mistake: {e}")))
    }

    /// The JSON Schema of a plan.
    pub fn schema() -> Value {
        schemars::schema_for!(Plan).to_value()
    }

    /// The plan as it may be stored and shown: without passwords, and without the arguments of password commands and hooks.
    pub fn redacted(&self) -> Value {
        let mut plan = self.clone();
        plan.source.url = plan.source.url.as_deref().map(url::without_password);
        let further = plan.latency.also.values_mut();
        let mut passwords = vec![&mut plan.source.password];
        let mut sentinels = vec![&mut plan.source.sentinel];
        for side in [&mut plan.target].into_iter().chain(further) {
            side.url = url::without_password(&side.url);
            passwords.push(&mut side.password);
            sentinels.push(&mut side.sentinel);
        }
        passwords.extend(sentinels.into_iter().flatten().map(|s| &mut s.password));
        for password in passwords {
            match password {
                Some(PasswordPlan::Text(text)) => *text = "***".into(),
                Some(PasswordPlan::From(PasswordSource {
                    command: Some(command),
                    ..
                })) => *command = without_arguments(command),
                _ => {}
            }
        }
        let hooks = &mut plan.cutover.hooks;
        for hook in [
            &mut hooks.switch,
            &mut hooks.switch_back,
            &mut hooks.freeze,
            &mut hooks.thaw,
        ] {
            *hook = without_arguments(hook);
        }
        serde_json::to_value(&plan).unwrap_or_default()
    }
}

impl SourcePlan {
    /// The server, as the plan would name it for a target.
    pub fn as_target(&self, url: String) -> TargetPlan {
        TargetPlan {
            url,
            username: self.username.clone(),
            password: self.password.clone(),
            tls: self.tls.clone(),
            sentinel: self.sentinel.clone(),
            topology: self.topology,
            address_map: self.address_map.clone(),
            commands: self.commands.clone(),
        }
    }
}

impl TargetPlan {
    /// The server, as the plan would name it for a source.
    pub fn as_source(&self) -> SourcePlan {
        let side = self.clone();
        SourcePlan {
            url: Some(side.url),
            username: side.username,
            password: side.password,
            tls: side.tls,
            sentinel: side.sentinel,
            topology: side.topology,
            address_map: side.address_map,
            commands: side.commands,
            ..SourcePlan::default()
        }
    }
}

/// A program as it may be shown: each of its arguments may be a secret.
pub fn without_arguments(argv: &[String]) -> Vec<String> {
    let shown = |(i, word): (usize, &String)| match i {
        0 => word.clone(),
        _ => "***".to_owned(),
    };
    argv.iter().enumerate().map(shown).collect()
}

impl fmt::Debug for TargetPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&url::without_password(&self.url))
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.redacted().fmt(f)
    }
}
