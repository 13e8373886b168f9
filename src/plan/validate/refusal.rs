//! Refusals of a plan.

use crate::error::{Error, ErrorKind, Result};
use crate::plan::document::Topology;

pub fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Plan, message)
}

pub fn check_db_zero(side: &str, who: &str, topology: Topology, db: Option<u32>) -> Result<()> {
    let (name, hint) = match topology {
        Topology::Cluster => (
            "cluster",
            format!(
                "map it to 0 in databases.map; for a Valkey cluster with several databases leave {side}.topology at \"auto\""
            ),
        ),
        Topology::Proxy => (
            "proxy",
            "map it to 0 in databases.map: a proxy has one database".to_string(),
        ),
        Topology::Auto | Topology::Standalone => return Ok(()),
    };
    match db {
        Some(n) if n > 0 => Err(wrong(format!(
            "{who} database {n}, but {side}.topology is \"{name}\""
        ))
        .hint(hint)),
        _ => Ok(()),
    }
}
