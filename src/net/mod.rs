//! Connections: TCP, TLS and AUTH in one place; on top [`Control`] for questions, [`Conn`] for data and measurement.
//!
//! Invariant: every connection of the program is opened by [`connect`]; TLS verifies unless the plan says `insecure`.

mod answer;
mod conn;
mod control;
mod credentials;
mod find;
pub mod guard;
mod items;
mod meter;
mod refusals;
mod retry;
pub mod scan;
pub mod server;
mod subscription;
#[cfg(test)]
mod testing;
mod tls;

pub use answer::Answer;
pub use conn::{Conn, LoggedIn, PROGRESS_BYTES, REPLY_BYTES, REPLY_LIMIT, Stream, put};
pub use control::Control;
pub use refusals::{is_elsewhere, is_on_its_way, leads_to, passes, refusal};
pub use retry::{Backoff, Tries};
pub use subscription::{Heard, Subscription};

use crate::error::{Error, ErrorKind, Result};
use crate::plan::Endpoint;
use std::time::{Duration, Instant};

/// The name of connections of ours that must not be ended together with the clients'.
pub const OWN_NAME: &[u8] = b"keyferry";

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long a password may be refused that the server has taken before: the next one may take a while to come.
const AUTH_PATIENCE: Duration = Duration::from_secs(45);
const AUTH_AGAIN: Duration = Duration::from_secs(1);

/// Opens an authenticated connection to `endpoint`'s host, or to `address` (host:port) with the same credentials.
///
/// Errors: `Connection` (not reachable), `Tls`, `Auth`, `Protocol` (not a Redis server).
pub async fn connect(endpoint: &Endpoint, address: &str) -> Result<Conn> {
    let mapped = endpoint
        .address_map
        .get(address)
        .map_or(address, String::as_str);
    let resolved = find::resolve(endpoint, mapped).await?;
    let mapped = resolved.as_deref().unwrap_or(mapped);
    let (learnt, began) = (&endpoint.learnt, Instant::now());
    let mut refused = None;
    loop {
        // Outside of the connection's time limit: a password command has its own.
        if let Some(secret) = &endpoint.password {
            credentials::keep_fresh(secret, learnt);
        }
        let held = credentials::of(endpoint, refused).await?;
        let version = held.as_ref().map(|h| h.version);
        let attempt = find::open(endpoint, mapped, held);
        let opened = tokio::time::timeout(CONNECT_LIMIT, attempt)
            .await
            .unwrap_or_else(|_| Err(no_answer(endpoint)));
        match opened {
            // Between the end of one password and the next, which may take a moment to get about.
            Err(e)
                if e.kind() == ErrorKind::Auth
                    && (endpoint.password.as_ref()).is_some_and(credentials::can_change)
                    && (refused.is_none()
                        || (learnt.has_worked() && began.elapsed() < AUTH_PATIENCE)) =>
            {
                tracing::warn!("{mapped} has refused the password, which is read anew");
                if refused.is_some() {
                    tokio::time::sleep(AUTH_AGAIN).await;
                }
                refused = version;
            }
            opened => return opened.map_err(|e| e.context(format!("connect to {mapped}"))),
        }
    }
}

/// The same for questions and answers that are neither data nor measured.
pub async fn control(endpoint: &Endpoint, address: &str) -> Result<Control> {
    Control::over(connect(endpoint, address).await?).await
}

fn no_answer(endpoint: &Endpoint) -> Error {
    let text = format!("no answer within {} s", CONNECT_LIMIT.as_secs());
    let error = Error::new(ErrorKind::Connection, text);
    match endpoint.tls {
        Some(_) => error.hint("is this a TLS port? a plain one says nothing to TLS; a cluster of Redis 7.0 and before announces its TLS ports with \"tls-cluster yes\" only"),
        None => error.hint("is this a TLS port (then the url begins with rediss://)? is a firewall in between?"),
    }
}
