//! From what was typed to what will be done: everything is checked here, before anything is touched.

use super::glob::glob;
use super::url::parse_url;
use super::{ModeSpec, OnExistingSpec, Plan, SecretSpec, TlsSpec, TopologySpec};
use crate::error::{Error, ErrorKind, Result};
use crate::types::DbIndex;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// A plan that has been checked.
#[derive(Debug, Clone)]
pub struct Job {
    pub name: String,
    pub source: Source,
    pub target: Endpoint,
    pub databases: Databases,
    pub filter: Filter,
    pub on_existing: OnExisting,
    pub limits: Limits,
    pub verify: VerifyOptions,
    /// What is allowed but unwise.
    pub warnings: Vec<String>,
    /// Stands for what is moved where: a saved state belongs to one fingerprint.
    pub fingerprint: String,
    /// The plan without its secrets.
    pub redacted: serde_json::Value,
}

#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)] // one value in the whole program
pub enum Source {
    Server { mode: Mode, endpoint: Endpoint },
    Rdb { path: RdbPath },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RdbPath {
    Stdin,
    File(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Auto,
    Replica,
    Scan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    Auto,
    Standalone,
    Cluster,
    Proxy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExisting {
    Fail,
    Replace,
    Skip,
}

/// Where a server is and how to log in.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
    pub db: Option<u32>,
    pub tls: Option<TlsOptions>,
    pub username: Option<String>,
    pub password: Option<Secret>,
    pub topology: Topology,
    pub address_map: BTreeMap<String, String>,
}

impl Endpoint {
    /// host:port, with brackets around an IPv6 address.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The url without user and password.
    pub fn redacted_url(&self) -> String {
        let scheme = if self.tls.is_some() {
            "rediss"
        } else {
            "redis"
        };
        format!(
            "{scheme}://{}{}",
            self.address(),
            self.db.map_or(String::new(), |d| format!("/{d}"))
        )
    }
}

#[derive(Debug, Clone)]
pub struct TlsOptions {
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub server_name: Option<String>,
    pub insecure: bool,
}

/// A secret that was written into the plan; it never shows itself.
#[derive(Clone)]
pub struct Redacted(String);

impl Redacted {
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[derive(Debug, Clone)]
pub enum Secret {
    Env(String),
    File(PathBuf),
    Command {
        argv: Vec<String>,
        refresh_s: Option<u64>,
    },
    Plain(Redacted),
}

/// Which databases go where.
#[derive(Debug, Clone, Default)]
pub struct Databases {
    include: Vec<u32>,
    map: BTreeMap<u32, u32>,
}

impl Databases {
    /// The target's database for one of the source's; `None` when it is not moved.
    pub fn map(&self, source: DbIndex) -> Option<DbIndex> {
        if !self.include.is_empty() && !self.include.contains(&source.0) {
            return None;
        }
        Some(DbIndex(
            self.map.get(&source.0).copied().unwrap_or(source.0),
        ))
    }

    pub fn is_identity(&self) -> bool {
        self.include.is_empty() && self.map.is_empty()
    }
}

/// Which keys are moved.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    include: Vec<Vec<u8>>,
    exclude: Vec<Vec<u8>>,
    types: Vec<String>,
}

impl Filter {
    pub fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty() && self.types.is_empty()
    }

    pub fn accepts(&self, key: &[u8]) -> bool {
        (self.include.is_empty() || self.include.iter().any(|g| glob(g, key)))
            && !self.exclude.iter().any(|g| glob(g, key))
    }

    pub fn has_types(&self) -> bool {
        !self.types.is_empty()
    }

    pub fn accepts_type(&self, name: &str) -> bool {
        self.types.is_empty() || self.types.iter().any(|t| t == name)
    }
}

#[derive(Debug, Clone, Default)]
pub struct Limits {
    pub keys_per_s: Option<u64>,
    pub bytes_per_s: Option<u64>,
    pub spool_bytes: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub connections: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct VerifyOptions {
    pub ttl_tolerance_ms: i64,
    /// Keys that are not compared.
    pub exclude: Filter,
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Plan, message)
}

/// Checks a plan; the first mistake is the error, with its path.
pub fn validate(plan: &Plan) -> Result<Job> {
    let mut warnings = Vec::new();
    let named = !plan.name.is_empty()
        && plan.name.len() <= 100
        && !plan.name.starts_with('.')
        && plan
            .name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !named {
        return Err(wrong(format!("name {:?} cannot name a folder", plan.name))
            .hint("use letters, digits, dot, dash and underscore"));
    }
    let target = endpoint(
        "target",
        Some(&plan.target.url),
        plan.target.username.as_ref(),
        plan.target.password.as_ref(),
        &plan.target.tls,
        plan.target.topology,
        &plan.target.address_map,
        &mut warnings,
    )?;
    if target.db.is_some_and(|d| d != 0) {
        return Err(wrong("target.url names a database")
            .hint("leave it out of the url and use databases.map"));
    }
    let source = source(plan, &target, &mut warnings)?;
    let databases = databases(plan, &mut warnings)?;
    if target.topology == Topology::Cluster && databases.map.values().any(|to| *to != 0) {
        return Err(wrong(
            "databases.map leads to a database other than 0, but a cluster has only 0",
        ));
    }
    const TYPES: [&str; 8] = [
        "string", "list", "set", "zset", "hash", "stream", "array", "module",
    ];
    if let Some(t) = plan
        .filter
        .types
        .iter()
        .find(|t| !TYPES.contains(&t.as_str()))
    {
        return Err(wrong(format!("filter.types: {t:?} is not a type"))
            .hint(format!("the types are {}", TYPES.join(", "))));
    }
    let globs = |list: &[String]| list.iter().map(|g| g.clone().into_bytes()).collect();
    let filter = Filter {
        include: globs(&plan.filter.include),
        exclude: globs(&plan.filter.exclude),
        types: plan.filter.types.clone(),
    };
    let chosen = |n: u64| (n > 0).then_some(n);
    let limits = Limits {
        keys_per_s: chosen(plan.limits.keys_per_s),
        bytes_per_s: chosen(plan.limits.bytes_per_s),
        spool_bytes: chosen(plan.limits.spool_bytes),
        memory_bytes: chosen(plan.limits.memory_bytes),
        connections: chosen(plan.limits.connections),
    };
    let tolerance = i64::try_from(plan.verify.ttl_tolerance_ms)
        .map_err(|_| wrong("verify.ttl_tolerance_ms is too large"))?;
    let verify = VerifyOptions {
        ttl_tolerance_ms: tolerance,
        exclude: Filter {
            include: Vec::new(),
            exclude: globs(&plan.verify.exclude),
            types: Vec::new(),
        },
    };
    let redacted = redact(serde_json::to_value(plan).unwrap_or_default());
    let fingerprint = fingerprint(&source, &target, &redacted);
    let on_existing = match plan.on_existing {
        OnExistingSpec::Fail => OnExisting::Fail,
        OnExistingSpec::Replace => OnExisting::Replace,
        OnExistingSpec::Skip => OnExisting::Skip,
    };
    Ok(Job {
        name: plan.name.clone(),
        source,
        target,
        databases,
        filter,
        on_existing,
        limits,
        verify,
        warnings,
        fingerprint,
        redacted,
    })
}

fn source(plan: &Plan, target: &Endpoint, warnings: &mut Vec<String>) -> Result<Source> {
    let spec = &plan.source;
    if spec.mode == ModeSpec::Rdb {
        if spec.url.is_some() {
            return Err(wrong("source.url has no meaning with source.mode \"rdb\"")
                .hint("leave it out, or choose another mode"));
        }
        let path = spec
            .path
            .as_ref()
            .ok_or_else(|| wrong("source.path is missing: the snapshot file to read"))?;
        let path = if path.as_os_str() == "-" {
            RdbPath::Stdin
        } else {
            RdbPath::File(path.clone())
        };
        return Ok(Source::Rdb { path });
    }
    if spec.path.is_some() {
        return Err(wrong(
            "source.path has a meaning only with source.mode \"rdb\"",
        ));
    }
    let endpoint = endpoint(
        "source",
        spec.url.as_ref(),
        spec.username.as_ref(),
        spec.password.as_ref(),
        &spec.tls,
        spec.topology,
        &spec.address_map,
        warnings,
    )?;
    if endpoint.address() == target.address() {
        return Err(wrong(format!(
            "source.url and target.url are the same server ({})",
            target.address()
        )));
    }
    if endpoint.db.is_some_and(|d| d != 0) && !plan.databases.include.iter().eq(endpoint.db.iter())
    {
        return Err(wrong("source.url names a database")
            .hint("leave it out of the url and use databases.include"));
    }
    let mode = match spec.mode {
        ModeSpec::Replica => Mode::Replica,
        ModeSpec::Scan => {
            return Err(wrong("source.mode \"scan\" is not built yet")
                .hint("use \"replica\" where the source allows PSYNC, else \"rdb\""));
        }
        _ => Mode::Auto,
    };
    Ok(Source::Server { mode, endpoint })
}

#[allow(clippy::too_many_arguments)]
fn endpoint(
    side: &str,
    url: Option<&String>,
    username: Option<&String>,
    password: Option<&SecretSpec>,
    tls: &TlsSpec,
    topology: TopologySpec,
    address_map: &BTreeMap<String, String>,
    warnings: &mut Vec<String>,
) -> Result<Endpoint> {
    let url = url.ok_or_else(|| {
        wrong(format!("{side}.url is missing"))
            .hint("write redis://host:port, or rediss:// for TLS")
    })?;
    let parsed = parse_url(url).map_err(|what| {
        // The url may hold a password: only its head is named.
        wrong(format!("{side}.url {what}")).hint("write redis://host:port/db, or rediss:// for TLS")
    })?;
    if !parsed.tls
        && (tls.ca.is_some()
            || tls.cert.is_some()
            || tls.key.is_some()
            || tls.server_name.is_some()
            || tls.insecure)
    {
        return Err(wrong(format!(
            "{side}.tls is set, but {side}.url is not rediss://"
        ))
        .hint("write rediss:// to use TLS"));
    }
    if tls.cert.is_some() != tls.key.is_some() {
        return Err(wrong(format!("{side}.tls needs cert and key together")));
    }
    if tls.insecure {
        warnings.push(format!("{side}.tls.insecure: the server's certificate is not verified; anyone in between can read and change the data"));
    }
    let mut secret = match password {
        None => None,
        Some(SecretSpec::Env(s)) => Some(Secret::Env(s.env.clone())),
        Some(SecretSpec::File(s)) => Some(Secret::File(s.file.clone())),
        Some(SecretSpec::Command(s)) if s.command.is_empty() => {
            return Err(wrong(format!("{side}.password.command is empty")));
        }
        Some(SecretSpec::Command(s)) => Some(Secret::Command {
            argv: s.command.clone(),
            refresh_s: s.refresh_s,
        }),
        Some(SecretSpec::Plain(text)) => {
            warnings.push(format!("{side}.password stands in the plan as plain text; use {{\"env\": …}}, {{\"file\": …}} or {{\"command\": …}}"));
            Some(Secret::Plain(Redacted(text.clone())))
        }
    };
    if let Some(text) = parsed.password {
        if secret.is_some() {
            return Err(wrong(format!(
                "{side} has a password in its url and another in {side}.password"
            )));
        }
        warnings.push(format!("{side}.url holds a password; use {side}.password with {{\"env\": …}}, {{\"file\": …}} or {{\"command\": …}}"));
        secret = Some(Secret::Plain(Redacted(text)));
    }
    let user = username.cloned().or(parsed.user);
    if user.is_some() && secret.is_none() {
        return Err(wrong(format!(
            "{side}.username is set without {side}.password"
        )));
    }
    let topology = match topology {
        TopologySpec::Auto => Topology::Auto,
        TopologySpec::Standalone => Topology::Standalone,
        TopologySpec::Cluster => Topology::Cluster,
        TopologySpec::Proxy => Topology::Proxy,
    };
    let tls = parsed.tls.then(|| TlsOptions {
        ca: tls.ca.clone(),
        cert: tls.cert.clone(),
        key: tls.key.clone(),
        server_name: tls.server_name.clone(),
        insecure: tls.insecure,
    });
    Ok(Endpoint {
        host: parsed.host,
        port: parsed.port,
        db: parsed.db,
        tls,
        username: user,
        password: secret,
        topology,
        address_map: address_map.clone(),
    })
}

fn databases(plan: &Plan, warnings: &mut Vec<String>) -> Result<Databases> {
    let mut map = BTreeMap::new();
    for (from, to) in &plan.databases.map {
        let n: u32 = from
            .parse()
            .map_err(|_| wrong(format!("databases.map: {from:?} is not a database number")))?;
        if !plan.databases.include.is_empty() && !plan.databases.include.contains(&n) {
            return Err(wrong(format!(
                "databases.map names database {n}, which databases.include leaves out"
            )));
        }
        map.insert(n, *to);
    }
    let databases = Databases {
        include: plan.databases.include.clone(),
        map,
    };
    let mut sources: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for db in plan.databases.include.iter().chain(databases.map.keys()) {
        let to = databases.map(DbIndex(*db)).map_or(*db, |d| d.0);
        let list = sources.entry(to).or_default();
        if !list.contains(db) {
            list.push(*db);
        }
    }
    for (to, from) in sources.iter().filter(|(_, from)| from.len() > 1) {
        warnings.push(format!("the databases {from:?} are merged into {to}: a key that is in two of them will hold only one value"));
    }
    Ok(databases)
}

/// The plan as JSON with secrets replaced.
fn redact(mut plan: serde_json::Value) -> serde_json::Value {
    for side in ["source", "target"] {
        let Some(side) = plan.get_mut(side) else {
            continue;
        };
        if let Some(password) = side.get_mut("password").filter(|p| p.is_string()) {
            *password = "***".into();
        }
        if let Some(url) = side.get_mut("url")
            && let Some(text) = url.as_str()
            && let (Some((scheme, rest)), true) = (text.split_once("://"), text.contains('@'))
        {
            let place = rest.rsplit_once('@').map_or(rest, |(_, p)| p);
            *url = format!("{scheme}://***@{place}").into();
        }
    }
    plan
}

fn fingerprint(source: &Source, target: &Endpoint, redacted: &serde_json::Value) -> String {
    let from = match source {
        Source::Server { endpoint, .. } => endpoint.redacted_url(),
        Source::Rdb { path } => format!("{path:?}"),
    };
    let part = |name: &str| {
        redacted
            .get(name)
            .map(ToString::to_string)
            .unwrap_or_default()
    };
    let text = format!(
        "{from}\n{}\n{}\n{}",
        target.redacted_url(),
        part("databases"),
        part("filter")
    );
    let mut digest = crc64fast::Digest::new();
    digest.write(text.as_bytes());
    format!("{:016x}", digest.sum64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<Job> {
        validate(&Plan::parse(json)?)
    }

    fn plan(source: &str, rest: &str) -> String {
        format!(r#"{{"name":"t","source":{{{source}}},"target":{{"url":"redis://b:2"}}{rest}}}"#)
    }

    #[test]
    fn each_mistake_is_one_sentence_with_its_path() {
        for (json, words) in [
            (
                plan(r#""url":"http://a""#, ""),
                "source.url has the scheme \"http\"",
            ),
            (
                plan(r#""url":"redis://a:0""#, ""),
                "source.url names a port",
            ),
            (plan("", ""), "source.url is missing"),
            (plan(r#""mode":"rdb""#, ""), "source.path is missing"),
            (plan(r#""url":"redis://b:2""#, ""), "same server"),
            (
                plan(r#""url":"redis://a:1","tls":{"ca":"x"}"#, ""),
                "source.tls is set",
            ),
            (
                plan(r#""url":"redis://a:1","username":"u""#, ""),
                "without source.password",
            ),
            (
                plan(
                    r#""url":"redis://a:1""#,
                    r#","databases":{"include":[1],"map":{"2":0}}"#,
                ),
                "databases.map names database 2",
            ),
            (
                plan(r#""url":"redis://a:1""#, r#","filter":{"types":["sting"]}"#),
                "filter.types",
            ),
            (
                plan(r#""url":"redis://a:1","mode":"scan""#, ""),
                "not built yet",
            ),
        ] {
            let e = check(&json).unwrap_err();
            assert!(e.to_string().contains(words), "{json}: {e}");
            assert_eq!(e.exit_code(), 2);
        }
    }

    #[test]
    fn secrets_never_show() {
        let job = check(&plan(r#""url":"rediss://me:s3cr%21t@[::1]:7000""#, "")).unwrap();
        let Source::Server { endpoint, .. } = &job.source else {
            panic!()
        };
        let Some(Secret::Plain(p)) = &endpoint.password else {
            panic!()
        };
        assert_eq!(
            (p.reveal(), endpoint.address()),
            ("s3cr!t", "[::1]:7000".into())
        );
        assert!(!format!("{job:?} {}", job.redacted).contains("s3cr"));
        assert_eq!(job.warnings.len(), 1);
    }
}
