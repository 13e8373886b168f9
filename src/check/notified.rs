//! Whether a source sends keyspace notifications where it does not let us read its setting: by a key of our own.

use super::probe::random_name;
use crate::error::Result;
use crate::net::server;
use crate::net::{Conn, connect};
use crate::plan::Endpoint;
use crate::resp::Reply;
use crate::types::Slot;
use std::time::Duration;

/// How long a notification may take.
const LIMIT: Duration = Duration::from_secs(2);

/// Writes a key and listens for it; `None` where that is refused, so that nothing is known.
///
/// The key has a random name, ends by itself in seconds and is deleted before.
pub async fn heard(endpoint: &Endpoint) -> Option<bool> {
    match tokio::time::timeout(LIMIT.saturating_mul(3), listen(endpoint)).await {
        Ok(Ok(heard)) => heard,
        Ok(Err(e)) => {
            tracing::debug!("whether the source sends notifications cannot be tried: {e}");
            None
        }
        Err(_) => None,
    }
}

async fn listen(endpoint: &Endpoint) -> Result<Option<bool>> {
    let name = random_name();
    let (layout, _) = server::layout(endpoint).await?;
    let owner = layout.master_of(Slot::of(name.as_bytes()));
    let address = owner.map_or_else(|| endpoint.address(), |m| m.address.clone());
    let mut conn = connect(endpoint, &address).await?;
    let mut listener = connect(endpoint, &address).await?;
    let space = format!("__keyspace@0__:{name}");
    // An event that is rare, as we get those of all keys.
    let channels: [&[u8]; 2] = [space.as_bytes(), b"__keyevent@0__:setrange"];
    for channel in channels {
        if let Reply::Error(_) = listener.ask(&[b"SUBSCRIBE", channel]).await? {
            return Ok(None);
        }
    }
    let key = name.as_bytes();
    if !write(&mut conn, key).await? {
        return Ok(None);
    }
    let heard = tokio::time::timeout(LIMIT, told(&mut listener, &space, key)).await;
    conn.ask(&[b"DEL", key]).await?;
    match heard {
        Ok(told) => told.map(|()| Some(true)),
        Err(_) => Ok(Some(false)),
    }
}

/// False where it is refused.
async fn write(conn: &mut Conn, key: &[u8]) -> Result<bool> {
    let commands: [&[&[u8]]; 2] = [
        &[b"SET", key, b"a", b"PX", b"10000"],
        &[b"SETRANGE", key, b"0", b"b"],
    ];
    for command in commands {
        if let Reply::Error(_) = conn.ask(command).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns when the key was told of.
async fn told(listener: &mut Conn, space: &str, key: &[u8]) -> Result<()> {
    loop {
        let message = listener.reply().await?;
        let part = |at: usize| message.array().and_then(|p| p.get(at)?.bytes());
        let ours = part(1) == Some(space.as_bytes()) || part(2) == Some(key);
        if part(0) == Some(b"message") && ours {
            return Ok(());
        }
    }
}
