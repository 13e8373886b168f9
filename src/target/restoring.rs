//! Whether a target runs RESTORE, asked with a payload that no server takes: nothing is written.

use crate::error::Result;
use crate::net;
use crate::plan::{self, Endpoint};
use crate::resp::Reply;

/// A name that nobody uses; the payload is refused before anything is written to it.
const PROBE_KEY: &[u8] = b"keyferry-probe:restore";
/// Too short for a version and a checksum.
const BROKEN: &[u8] = b"x";

/// Whether an answer to RESTORE means that no RESTORE of this user will ever run here. Everything else, a complaint
/// about the payload first of all, says that the command itself is allowed.
pub fn is_refused(text: &str) -> bool {
    if net::passes(text) || text.starts_with("OOM") {
        return false;
    }
    let lower = text.to_ascii_lowercase();
    let of_payload = ["bad data format", "payload version", "checksum"];
    if of_payload.iter().any(|words| lower.contains(words)) {
        return false;
    }
    plan::is_for_good(text)
        || [
            "not supported",
            "unsupported",
            "disallowed",
            // What a connection repeats instead of asking again.
            "refused before",
            "not allowed",
            "crdb",
            "crdt",
            "active-active",
        ]
        .iter()
        .any(|words| lower.contains(words))
}

/// Whether this node refuses RESTORE.
async fn refused_by(conn: &mut net::Control) -> Result<bool> {
    let reply = conn
        .ask(&[b"RESTORE", PROBE_KEY, b"0", BROKEN, b"REPLACE"])
        .await?;
    Ok(matches!(reply, Reply::Error(text) if is_refused(&text)))
}

/// Whether any of these nodes refuses RESTORE: then none of them gets one. A node that cannot be asked has no say.
pub async fn refused(endpoint: &Endpoint, nodes: &[String]) -> bool {
    let ask = async |address: &String| {
        let mut conn = net::control(endpoint, address).await?;
        refused_by(&mut conn).await
    };
    let Some((first, others)) = nodes.split_first() else {
        return false;
    };
    // What that one refuses, the others are not asked.
    if matches!(ask(first).await, Ok(true)) {
        return true;
    }
    let others = futures::future::join_all(others.iter().map(ask)).await;
    others.iter().any(|told| matches!(told, Ok(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_from_a_complaint_about_the_payload() {
        for refused in [
            "NOPERM this user has no permissions to run the 'restore' command",
            "NOPERM User ferry has no permissions to run the 'restore' command",
            "ERR unknown command 'RESTORE', with args beginning with: ",
            "ERR unknown command `RESTORE`, with args beginning with: ",
            "ERR Command disallowed",
            "ERR command is not allowed",
            "ERR RESTORE is not supported in an active-active database",
        ] {
            assert!(is_refused(refused), "{refused}");
        }
        for allowed in [
            "ERR DUMP payload version or checksum are wrong",
            "ERR Bad data format",
            "MOVED 12 127.0.0.1:7001",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "READONLY You can't write against a read only replica.",
            "LOADING Redis is loading the dataset in memory",
            "NOPERM No permissions to access a key",
            "CLUSTERDOWN Hash slot not served",
        ] {
            assert!(!is_refused(allowed), "{allowed}");
        }
    }
}
