//! The control port of a worker: a cutover on another machine asks over it what one beside it asks over the socket.
//!
//! Whoever comes must prove within seconds that it knows the token; until then it gets nothing but random bytes, and few
//! may try at a time.

use crate::error::{Error, ErrorKind, Result};
use crate::migrate::control::asker::Asker;
use crate::migrate::control::desk::Desk;
use crate::migrate::control::orders::{ANSWER_BYTES, ASK_BYTES};
use crate::migrate::control::token::{GREETING, GREETING_BYTES, Stranger, TokenFrom};
use crate::migrate::control::wire::Wire;
use crate::store::Stage;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// So many may be greeted at a time; whoever comes beyond that is sent away.
const STRANGERS: usize = 32;
/// So many may ask at a time.
const GUESTS: usize = 16;
/// How often it is looked whether a held migration may go on.
const LOOK: Duration = Duration::from_millis(50);

/// Where a worker is asked from other machines.
#[derive(Debug, Clone)]
pub struct Listen {
    pub address: SocketAddr,
    pub token: TokenFrom,
}

/// An open control port.
pub struct Port {
    listener: TcpListener,
    token: TokenFrom,
}

impl Port {
    /// Errors: `Auth` without a token; `Usage` where it cannot listen.
    pub async fn open(listen: &Listen) -> Result<Port> {
        listen.token.read()?;
        let listener = TcpListener::bind(listen.address).await.map_err(|e| {
            let what = format!("listen for cutovers at {}", listen.address);
            Error::new(ErrorKind::Usage, what)
                .cause(e)
                .hint("choose another address for --control-listen")
        })?;
        Ok(Port {
            listener,
            token: listen.token.clone(),
        })
    }

    /// Answers until it is dropped.
    pub async fn serve(&self, desk: Desk) {
        let strangers = Arc::new(Semaphore::new(STRANGERS));
        let guests = Arc::new(Semaphore::new(GUESTS));
        let mut tasks = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = tasks.join_next() => continue,
            };
            let Ok((stream, from)) = accepted else {
                // No file descriptor left, as a rule.
                tokio::time::sleep(LOOK).await;
                continue;
            };
            let Ok(place) = strangers.clone().try_acquire_owned() else {
                continue;
            };
            let (desk, token, guests) = (desk.clone(), self.token.clone(), guests.clone());
            tasks.spawn(async move {
                let greeted = tokio::time::timeout(GREETING, greet(stream, &token)).await;
                let wire = match greeted {
                    Ok(Ok(wire)) => wire,
                    Ok(Err(e)) => return sent_away(&e, from),
                    Err(_) => return,
                };
                drop(place);
                if let Ok(_guest) = guests.try_acquire() {
                    desk.attend(wire).await;
                }
            });
        }
    }

    /// Moves nothing while nobody knows where the clients are, but can be told; where they are then.
    pub async fn hold(&self, desk: Desk) -> Stage {
        let told = async {
            loop {
                match desk.stage() {
                    Stage::Switching => tokio::time::sleep(LOOK).await,
                    stage => {
                        // Whoever has said so gets its answer.
                        tokio::time::sleep(LOOK).await;
                        return stage;
                    }
                }
            }
        };
        tokio::select! {
            stage = told => stage,
            () = self.serve(desk.clone()) => Stage::Switching,
            () = desk.stop.wait() => Stage::Switching,
        }
    }
}

fn sent_away(why: &Error, from: SocketAddr) {
    match why.kind() {
        ErrorKind::Auth => {
            tracing::warn!("a cutover from {from} was sent away from the control port: {why}");
        }
        // Whoever scans ports, or looks whether this one is open.
        _ => tracing::debug!("somebody from {from} was sent away from the control port: {why}"),
    }
}

async fn greet(stream: TcpStream, token: &TokenFrom) -> Result<Wire> {
    let mut wire = over(stream);
    let seals = token.read()?.greet(&mut wire).await.map_err(|e| match e {
        Stranger::Unproven => Error::new(ErrorKind::Auth, "it does not know the token"),
        Stranger::NoWorker(why) => Error::new(ErrorKind::Protocol, why),
        Stranger::Refused => Error::new(ErrorKind::Auth, "it refuses"),
        Stranger::Gone(e) => Error::new(ErrorKind::Connection, "it went away").cause(e),
    })?;
    wire.seal(seals, 2 * ASK_BYTES);
    Ok(wire)
}

fn over(stream: TcpStream) -> Wire {
    let _ = stream.set_nodelay(true);
    // A fence must not stand for ever because the machine of a cutover is gone.
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(5))
        .with_interval(Duration::from_secs(2));
    let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    let (read, write) = stream.into_split();
    Wire::new(read, write, GREETING_BYTES)
}

/// Connects to the worker at one address.
///
/// Errors: `NotReady` when nobody answers; `Auth` when the tokens differ; `Protocol` when it is no worker.
pub async fn connect(address: SocketAddr, token: &TokenFrom) -> Result<Asker> {
    let silent = || {
        Error::new(ErrorKind::NotReady, format!("no worker answers at {address}")).hint(
            "start the worker with --control-listen at this address, or open the way there, then run the same command again",
        )
    };
    let token = token.read()?;
    let greeted = tokio::time::timeout(GREETING, async {
        let stream = TcpStream::connect(address).await?;
        let mut wire = over(stream);
        let seals = token.knock(&mut wire).await?;
        wire.seal(seals, ANSWER_BYTES);
        Ok(Asker::over(wire))
    });
    let why = match greeted.await {
        Err(_) => return Err(silent()),
        Ok(Ok(asker)) => return Ok(asker),
        Ok(Err(why)) => why,
    };
    Err(match why {
        Stranger::Gone(e) => silent().cause(e),
        Stranger::NoWorker(why) => Error::new(
            ErrorKind::Protocol,
            format!("what answers at {address} is no worker of keyferry, or of another version: {why}"),
        )
        .hint("name the address that the worker was given with --control-listen"),
        Stranger::Refused => Error::new(
            ErrorKind::Auth,
            format!("the worker at {address} does not know this control token"),
        )
        .hint("give the cutover and all workers the same token (--control-token-env or --control-token-file)"),
        Stranger::Unproven => Error::new(
            ErrorKind::Auth,
            format!("what answers at {address} has not proven that it knows the control token"),
        )
        .hint("it may be somebody else: look what listens there before you try again"),
    })
}
