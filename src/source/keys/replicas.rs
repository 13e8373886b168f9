//! Replicas of the source that are read instead of their masters (`source.read_from` of the plan).

use crate::error::{Error, Result};
use crate::net::{self, Conn, server};
use crate::plan::Endpoint;
use crate::resp::info;
use crate::types::address;
use std::time::{Duration, Instant};

/// How long a replica may take to have what its master has.
const PATIENCE: Duration = Duration::from_secs(10);

/// A replica of a master that has all that the master has written until now; `None` when there is none.
pub async fn in_step(endpoint: &Endpoint, master: &str) -> Result<Option<String>> {
    let mut conn = net::control(endpoint, master).await?;
    let reply = conn.call(&[b"INFO", b"replication"]).await?;
    let text = reply.text().unwrap_or_default();
    let wanted = server::replication_offset(&mut conn).await?;
    for replica in online(&text) {
        let in_step = tokio::time::timeout(PATIENCE, async {
            let mut conn = net::told(endpoint, &replica).await?;
            let began = Instant::now();
            while server::replication_offset(&mut conn).await? < wanted {
                // Backing off a little: replicas acknowledge once a second, but apply at once.
                tokio::time::sleep(Duration::from_millis(5).max(began.elapsed() / 20)).await;
            }
            Ok::<_, Error>(())
        });
        match in_step.await {
            Ok(Ok(())) => return Ok(Some(replica)),
            Ok(Err(e)) => tracing::warn!("the replica {replica} cannot be read: {e}"),
            Err(_) => tracing::warn!("the replica {replica} is behind its master {master}"),
        }
    }
    Ok(None)
}

/// The replicas that follow, as a master tells.
fn online(text: &str) -> Vec<String> {
    let place = |of: info::Pairs| Some(address::join(of.get("ip")?, of.get("port")?));
    info::replicas(text).filter_map(place).collect()
}

/// A connection to a replica; a cluster's wants to be told that old values are welcome.
pub async fn connect(endpoint: &Endpoint, replica: &str, cluster: bool) -> Result<Conn> {
    let mut conn = net::exactly(endpoint, replica).await?;
    if cluster {
        conn.call(&[b"READONLY"]).await?;
    }
    Ok(conn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_replicas_that_follow_are_taken() {
        let info = "role:master\r\nconnected_slaves:3\r\n\
            slave0:ip=10.0.0.1,port=6380,state=wait_bgsave,offset=0,lag=0\r\n\
            slave1:ip=10.0.0.2,port=6381,state=online,offset=14,lag=1,type=replica\r\n\
            slave2:ip=::1,port=7,state=online,offset=14,lag=0\r\n";
        assert_eq!(online(info), ["10.0.0.2:6381", "[::1]:7"]);
        assert!(online("role:slave\r\n").is_empty());
    }
}
