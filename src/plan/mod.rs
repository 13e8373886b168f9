//! The plan file: what a user writes, and its JSON Schema. What will be done with it is in [`validate`].

mod glob;
mod url;
mod validate;

pub use validate::{
    Databases, Endpoint, Filter, Job, Limits, Mode, OnExisting, RdbPath, Redacted, Secret, Source,
    TlsOptions, Topology, VerifyOptions, validate,
};

use crate::error::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A migration plan.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Names the plan's folder: letters, digits, dot, dash and underscore.
    pub name: String,
    pub source: SourceSpec,
    pub target: TargetSpec,
    #[serde(default)]
    pub databases: DatabasesSpec,
    #[serde(default)]
    pub filter: FilterSpec,
    /// What to do when the target holds keys: "fail" (refuse to start), "replace" or "skip".
    #[serde(default)]
    pub on_existing: OnExistingSpec,
    #[serde(default)]
    pub limits: LimitsSpec,
    #[serde(default)]
    pub verify: VerifySpec,
    #[serde(default)]
    pub cutover: CutoverSpec,
    #[serde(default)]
    pub latency: LatencySpec,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceSpec {
    #[serde(default)]
    pub mode: ModeSpec,
    /// redis://host:port/db, or rediss:// for TLS.
    pub url: Option<String>,
    pub username: Option<String>,
    pub password: Option<SecretSpec>,
    #[serde(default)]
    pub tls: TlsSpec,
    #[serde(default)]
    pub topology: TopologySpec,
    /// Addresses as the cluster announces them, and where they are reached from here.
    #[serde(default)]
    pub address_map: BTreeMap<String, String>,
    /// A snapshot file for mode "rdb"; "-" is standard input.
    pub path: Option<PathBuf>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetSpec {
    /// redis://host:port/db, or rediss:// for TLS.
    pub url: String,
    pub username: Option<String>,
    pub password: Option<SecretSpec>,
    #[serde(default)]
    pub tls: TlsSpec,
    #[serde(default)]
    pub topology: TopologySpec,
    #[serde(default)]
    pub address_map: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModeSpec {
    /// By replication where the source allows it.
    #[default]
    Auto,
    /// PSYNC.
    Replica,
    /// SCAN and DUMP.
    Scan,
    /// A snapshot file.
    Rdb,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TopologySpec {
    #[default]
    Auto,
    Standalone,
    Cluster,
    Proxy,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnExistingSpec {
    #[default]
    Fail,
    Replace,
    Skip,
}

/// A password: from the environment, a file, a command's output, or (with a warning) as it is.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum SecretSpec {
    Env(EnvSecret),
    File(FileSecret),
    Command(CommandSecret),
    Plain(String),
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvSecret {
    pub env: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSecret {
    pub file: PathBuf,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandSecret {
    pub command: Vec<String>,
    pub refresh_s: Option<u64>,
}

impl std::fmt::Debug for SecretSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SecretSpec::Env(s) => s.fmt(f),
            SecretSpec::File(s) => s.fmt(f),
            SecretSpec::Command(s) => s.fmt(f),
            SecretSpec::Plain(_) => f.write_str("***"),
        }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSpec {
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub server_name: Option<String>,
    pub insecure: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DatabasesSpec {
    /// The source's databases to move; all when empty.
    pub include: Vec<u32>,
    /// Source database to target database.
    pub map: BTreeMap<String, u32>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FilterSpec {
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub types: Vec<String>,
}

/// 0 or absent: chosen by the program.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSpec {
    pub keys_per_s: u64,
    pub bytes_per_s: u64,
    pub spool_bytes: u64,
    pub memory_bytes: u64,
    pub connections: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VerifySpec {
    pub ttl_tolerance_ms: u64,
    /// Keys that are not compared.
    pub exclude: Vec<String>,
}

impl Default for VerifySpec {
    fn default() -> Self {
        VerifySpec {
            ttl_tolerance_ms: 1000,
            exclude: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CutoverSpec {
    pub max_lag_ms: u64,
    pub max_pause_ms: u64,
    pub hooks: HooksSpec,
}

impl Default for CutoverSpec {
    fn default() -> Self {
        CutoverSpec {
            max_lag_ms: 500,
            max_pause_ms: 10_000,
            hooks: HooksSpec::default(),
        }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HooksSpec {
    pub switch: Vec<String>,
    pub switch_back: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LatencySpec {
    pub workloads: Vec<String>,
    pub rates: Vec<f64>,
    pub blocks: u32,
    pub block_s: u32,
    pub connections: u32,
    pub allow_writes: bool,
}

impl Default for LatencySpec {
    fn default() -> Self {
        LatencySpec {
            workloads: vec!["observed".into()],
            rates: vec![1.0],
            blocks: 12,
            block_s: 60,
            connections: 50,
            allow_writes: false,
        }
    }
}

impl Plan {
    /// Reads a plan; an unknown key is refused with its path and the nearest known key.
    pub fn parse(text: &str) -> Result<Plan> {
        let mut json = serde_json::Deserializer::from_str(text);
        let plan = serde_path_to_error::deserialize(&mut json).map_err(|e| {
            let path = e.path().to_string();
            describe(&path, &e.inner().to_string())
        })?;
        json.end().map_err(|e| {
            Error::new(
                ErrorKind::Plan,
                format!("the plan goes on after its end: {e}"),
            )
        })?;
        Ok(plan)
    }

    /// The JSON Schema of a plan.
    pub fn schema() -> serde_json::Value {
        serde_json::to_value(schemars::schema_for!(Plan)).unwrap_or_default()
    }
}

/// Turns serde's words into ours: the path, what is wrong, the nearest key that exists.
fn describe(path: &str, problem: &str) -> Error {
    let Some(rest) = problem.strip_prefix("unknown field `") else {
        let place = if path == "." {
            "the plan".to_owned()
        } else {
            path.to_owned()
        };
        return Error::new(ErrorKind::Plan, format!("{place}: {problem}"));
    };
    let (field, rest) = rest.split_once('`').unwrap_or((rest, ""));
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    // The path may or may not end with the field itself.
    let full = if path == "." {
        field.to_owned()
    } else if path == field || path.ends_with(&format!(".{field}")) {
        path.to_owned()
    } else {
        format!("{path}.{field}")
    };
    let at = rest
        .rsplit_once(" at line ")
        .map_or(String::new(), |(_, at)| format!(" (line {at})"));
    let error = Error::new(
        ErrorKind::Plan,
        format!("{full} is not a key of the plan{at}"),
    );
    let nearest = known
        .iter()
        .min_by_key(|k| strsim::damerau_levenshtein(k, field));
    match nearest {
        Some(near) if strsim::damerau_levenshtein(near, field) <= 3 => {
            error.hint(format!("did you mean \"{near}\"?"))
        }
        _ => error.hint(format!("the keys here are: {}", known.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_with_path_and_nearest_key() {
        let e = Plan::parse(r#"{"name":"a","source":{"url":"redis://a:1","pasword":"x"},"target":{"url":"redis://b:1"}}"#).unwrap_err();
        assert!(
            e.to_string()
                .starts_with("source.pasword is not a key of the plan"),
            "{e}"
        );
        assert_eq!(e.remedy(), "did you mean \"password\"?");
        assert_eq!(e.exit_code(), 2);
        let e = Plan::parse(r#"{"nam":"a"}"#).unwrap_err();
        assert!(e.to_string().starts_with("nam is not a key"), "{e}");
        let e = Plan::parse(r#"{"name":"a","source":{"url":"redis://a:1","tls":{"caa":"x"}},"target":{"url":"redis://b:1"}}"#).unwrap_err();
        assert!(e.to_string().starts_with("source.tls.caa is"), "{e}");
    }

    #[test]
    fn every_plan_in_plans_is_valid() {
        let mut seen = 0;
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/plans")).unwrap() {
            let path = entry.unwrap().path();
            let plan = Plan::parse(&std::fs::read_to_string(&path).unwrap())
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            validate(&plan).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            seen += 1;
        }
        assert!(seen >= 2);
    }
}
