//! The replication link: handshake, PSYNC, snapshot and stream, drained into the spool.
//!
//! Invariant: while the source is written to, this side never waits for the target; it stops reading only when the spool
//! has reached its limit. A quiet source's snapshot may wait a little for its load (`source/lead.rs`).
//! Sources: replication.c (syncWithMaster, readSyncBulkPayload, syncCommand) of Redis and Valkey.

use crate::error::{Error, ErrorKind, Result};
use crate::net::fork::Fork;
use crate::net::server;
use crate::net::{self, Conn};
use crate::plan::Endpoint;
use crate::resp::Reply;
use crate::source::handshake::{self, Framing, Start, not_allowed};
use crate::source::lead::Lead;
use crate::source::place::Place;
use crate::source::receiver::Receiver;
use crate::source::spool::{End, Spool, SpoolWriter};
use crate::task::{Shutdown, failpoint};
use crate::types::unix_ms;
use crate::types::{ReplId, ReplOffset};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Valkey 9.1 and later choose the snapshot's version by this: one below 9.0 gets an old format that cannot hold field
/// expiry, 9.0 to 9.1 the version 80, and a higher one formats that were never tried on a server, or do not exist yet.
const ANNOUNCED_VERSION: &[u8] = b"9.1.0";
const ACK_EVERY: Duration = Duration::from_secs(1);
/// The same right after a snapshot: a diskless source that has not yet noticed that its child is done ignores an ACK,
/// and sends nothing before the first one that it takes.
const ACK_SOON: Duration = Duration::from_millis(20);
/// So many of those at most, should nothing come: the source may just have nothing to send.
const UNHEARD: u32 = 50;
/// After this silence, in a handshake, a snapshot or a stream, the link is taken for dead: a source that is at work
/// sends a newline each second, or a ping every 10 s.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// After this silence of the stream the source is asked where it stands, over another connection. A source pings its
/// replicas every 10 s unless somebody has set another period (`repl-ping-replica-period`, which not every provider
/// lets us read); a replica as a source does not ping at all while its master is away. So silence alone is no proof:
/// what it has written and we do not have, is.
const ASK_AFTER: Duration = Duration::from_secs(11);
/// How long the answer to that may take.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// What the source has written must begin to come within this time after it has said so.
const GRACE: Duration = Duration::from_secs(3);
/// How often a source that is a replica is asked for the link to its own master.
const UPSTREAM_EVERY: Duration = Duration::from_secs(1);
/// A replica that has heard nothing of its master for so many seconds may be behind: masters ping every 10 s, and what
/// another period is set to cannot be asked of all of them.
const UPSTREAM_QUIET_S: i64 = 25;
const READ_BYTES: usize = 256 * 1024;
/// How much of a snapshot has to come within [`SILENCE_LIMIT`] that is waited for it.
const SNAPSHOT_PROGRESS: usize = 1024;

/// Sends the replica handshake and PSYNC; `None` when a stop is asked for before the source answers.
///
/// It answers when it begins its snapshot, for which it may wait for other replicas first.
/// `from` is the history and the offset that the next byte has (bytes before it); `None` asks for a full sync.
/// Errors: `Refused` where the provider does not allow replication, `NotReady` while the server loads or fails over.
pub async fn start(
    endpoint: &Endpoint,
    address: &str,
    from: Option<(ReplId, ReplOffset)>,
    stop: &Shutdown,
) -> Result<Option<(Conn, Start)>> {
    tokio::select! {
        () = stop.wait() => Ok(None),
        begun = begin(endpoint, address, from) => begun.map(Some),
    }
}

async fn begin(
    endpoint: &Endpoint,
    address: &str,
    from: Option<(ReplId, ReplOffset)>,
) -> Result<(Conn, Start)> {
    if endpoint.commands.hide_psync() {
        return Err(Error::new(
            ErrorKind::Refused,
            "a renamed PSYNC is answered as SYNC, which tells no offsets",
        )
        .hint(
            "start over with source.mode \"scan\", or let the source have PSYNC by its own name",
        ));
    }
    let mut conn = net::connect(endpoint, address).await?;
    let options: [&[&[u8]]; 3] = [
        &[b"REPLCONF", b"listening-port", b"0"],
        &[b"REPLCONF", b"capa", b"eof", b"capa", b"psync2"],
        &[b"REPLCONF", b"version", ANNOUNCED_VERSION],
    ];
    // PSYNC waits for the answers: for one that is not to be, the source would begin a snapshot.
    conn.ask_each(&options, |_, reply| match reply {
        // An option that the server does not know is no obstacle; a command that it refuses is.
        Reply::Error(text) if handshake::refuses(&text) => Err(not_allowed("REPLCONF", &text)),
        reply => handshake::capable(&reply.text().unwrap_or_default()),
    })
    .await?;
    let (id, offset) = match from {
        Some((id, at)) => (id.to_string(), at.plus(1).to_string()),
        None => ("?".into(), "-1".into()),
    };
    conn.push(&[b"PSYNC", id.as_bytes(), offset.as_bytes()]);
    conn.flush().await?;
    let line = loop {
        // Bare newlines keep the link alive while a diskless sync waits for more replicas.
        let line = conn.read_line().await?;
        if !line.is_empty() {
            break line;
        }
    };
    Ok((conn, handshake::answer(&line)?))
}

/// Whether a server lets us be its replica, as far as that can be known without beginning a sync.
pub async fn allowed(endpoint: &Endpoint) -> Result<bool> {
    if endpoint.commands.hide_psync() {
        return Ok(false);
    }
    let mut conn = net::enter(endpoint).await?;
    let first: [&[&[u8]]; 3] = [
        &[b"REPLCONF", b"listening-port", b"0"],
        &[b"INFO", b"server"],
        &[b"ACL", b"WHOAMI"],
    ];
    let (mut no, mut user) = (false, None);
    let asked = conn.ask_each(&first, |i, reply| {
        match (i, reply) {
            (0, Reply::Error(text)) => no = handshake::refuses(&text),
            // A product of its own may know the word and nothing of what we mean by it.
            (1, info) => no |= Fork::parse(&info.text().unwrap_or_default()).is_some(),
            (2, who) => user = who.bytes().map(<[u8]>::to_vec),
            _ => {}
        }
        Ok(())
    });
    match asked.await {
        _ if no => return Ok(false),
        asked => asked?,
    }
    let mut second: Vec<&[&[u8]]> = vec![&[b"PSYNC"], &[b"REPLCONF", b"capa", b"psync2"]];
    let user = user.unwrap_or_default();
    let dry: [&[u8]; 6] = [b"ACL", b"DRYRUN", &user, b"PSYNC", b"?", b"-1"];
    // Before 7.0 there is no DRYRUN, and where ACL is refused nothing is known.
    if !user.is_empty() {
        second.push(&dry);
    }
    let asked = conn.ask_each(&second, |i, reply| {
        no |= match (i, reply) {
            // Without its arguments it does nothing; where it is allowed, that is what the answer complains of.
            (0, Reply::Error(text)) => !text.contains("wrong number of arguments"),
            (1, capa) => handshake::capable(&capa.text().unwrap_or_default()).is_err(),
            (_, dry) => dry.text().is_some_and(|t| t.contains("no permissions")),
        };
        Ok(())
    });
    match asked.await {
        _ if no => Ok(false),
        asked => asked.map(|()| true),
    }
}

/// A link that fills one shard's spool.
pub struct Link {
    pub place: Arc<Place>,
    pub spool: Arc<Spool>,
    /// How long the source may be away before the run gives up.
    pub patience: Duration,
}

/// Why [`Link::follow`] returned.
pub enum Ended {
    Stopped,
    /// The source answered a reconnect with a full sync: its backlog no longer held our offset.
    FullResync,
}

impl Link {
    /// Drains an open link until `stop`; reconnects with PSYNC when it is cut.
    ///
    /// With `start` a full sync, the snapshot is spooled first; else the stream goes on at the spool's end.
    pub async fn follow(&self, mut conn: Conn, start: Start, stop: &Shutdown) -> Result<Ended> {
        let mut writer = SpoolWriter::new(self.spool.clone());
        let mut full = matches!(start, Start::Full { .. });
        loop {
            if !full {
                match self.source_offset().await {
                    Ok(at) => self.spool.await_offset(at),
                    Err(e) => {
                        tracing::debug!("the source does not tell its offset: {e}");
                        self.spool.note_late(None, unix_ms());
                    }
                }
            }
            self.spool.set_link(true, unix_ms());
            let result = self.drain(conn, full, &mut writer, stop).await;
            self.spool.set_link(false, unix_ms());
            let lost = match result {
                Ok(()) => {
                    self.spool.end(End::Stopped);
                    return Ok(Ended::Stopped);
                }
                Err(e) if e.kind() == ErrorKind::Connection => e,
                Err(e) => {
                    self.spool.end(End::Stopped);
                    return Err(e);
                }
            };
            if full && !self.spool.snapshot().2 {
                // A snapshot that was cut off cannot be continued.
                tracing::warn!(
                    "the link to {} was cut while its snapshot was arriving: {lost}",
                    self.place.address()
                );
                self.spool.end(End::Superseded);
                return Ok(Ended::FullResync);
            }
            full = false;
            tracing::warn!("the link to the source was cut, reconnecting: {lost}");
            match self.reconnect(lost, stop).await? {
                None => {
                    self.spool.end(End::Stopped);
                    return Ok(Ended::Stopped);
                }
                Some((_, Start::Full { .. })) => {
                    self.spool.end(End::Superseded);
                    return Ok(Ended::FullResync);
                }
                Some((next, Start::Continue { replid: new })) => {
                    if let Some(new) = new.filter(|new| Some(*new) != self.spool.replid()) {
                        tracing::info!("the source goes on under the replication id {new}");
                        self.spool.continue_as(new);
                    }
                    conn = next;
                    writer = SpoolWriter::new(self.spool.clone());
                }
            }
        }
    }

    async fn source_offset(&self) -> Result<ReplOffset> {
        let mut conn = net::control(self.place.endpoint(), &self.place.address()).await?;
        server::replication_offset(&mut conn).await
    }

    /// Tries again until the source answers, `patience` is over (the error) or a stop is asked for (`None`).
    async fn reconnect(&self, mut last: Error, stop: &Shutdown) -> Result<Option<(Conn, Start)>> {
        let began = Instant::now();
        let mut backoff = net::Backoff::new();
        while began.elapsed() < self.patience {
            if !stop.sleep(backoff.next()).await {
                return Ok(None);
            }
            let from = self.spool.replid().map(|id| (id, self.spool.stream_end()));
            // A failover may have made another node the master; while no node tells, the old address is as good.
            if let Err(e) = self.place.locate().await {
                tracing::debug!("the source's cluster does not tell its masters: {e}");
            }
            match start(self.place.endpoint(), &self.place.address(), from, stop).await {
                Ok(answer) => return Ok(answer),
                Err(e) if e.retry() == crate::error::Retry::Later => last = e,
                Err(e) => return Err(e),
            }
        }
        Err(last.context(format!(
            "the source {} stayed away for {} s",
            self.place.address(),
            self.patience.as_secs()
        )))
    }

    async fn drain(
        &self,
        conn: Conn,
        full: bool,
        writer: &mut SpoolWriter,
        stop: &Shutdown,
    ) -> Result<()> {
        let mut conn = conn;
        let mark = if full {
            // A source that writes a file first takes its time.
            tokio::select! {
                () = stop.wait() => return Ok(()),
                head = self.snapshot_head(&mut conn) => Some(head?),
            }
        } else {
            None
        };
        let address = self.place.address();
        let (stream, unread) = conn.into_parts();
        let (mut read, mut write) = tokio::io::split(stream);
        let mut buf = unread;
        buf.reserve(READ_BYTES);
        if let Some(framing) = mark {
            // A snapshot that is a file at the source keeps no child waiting, and shares its processors with nobody.
            let mut lead = matches!(framing, Framing::Mark { .. }).then(Lead::begin);
            let mut rest = Receiver { framing, writer };
            let (mut waited, mut came) = (Duration::ZERO, 0usize);
            loop {
                if rest.take(&mut buf)? {
                    break;
                }
                if let Some(lead) = &mut lead
                    && !self.wait_for_load(lead, stop).await
                {
                    return Ok(());
                }
                let began = Instant::now();
                tokio::select! {
                    () = stop.wait() => return Ok(()),
                    n = read_some(&mut read, &mut buf, &address) => came = came.saturating_add(n?),
                };
                waited = waited.saturating_add(began.elapsed());
                if came >= SNAPSHOT_PROGRESS {
                    (waited, came) = (Duration::ZERO, 0);
                } else if waited >= SILENCE_LIMIT {
                    return Err(Error::new(
                        ErrorKind::Connection,
                        format!(
                            "{address} sent {came} bytes of its snapshot in {} s",
                            waited.as_secs()
                        ),
                    ));
                }
                if self.spool.is_full() {
                    return Err(self.no_room("the source's snapshot"));
                }
            }
            let force = writer.finish_snapshot();
            // No task: nobody waits for it, not even the end of the run.
            std::thread::spawn(move || {
                if let Err(e) = force() {
                    // Until the load is done, another run would have to begin anew.
                    tracing::warn!("{e}");
                }
            });
            failpoint("snapshot-complete");
            // What was written while it came waits at the source.
            self.note_late().await;
        }
        let mut awaited = if full { UNHEARD } else { 0 };
        let mut next_ack = tokio::time::Instant::now();
        let mut silence = Silence::begin();
        let mut was_full = false;
        let upstream = self.watch_upstream();
        tokio::pin!(upstream);
        loop {
            if !buf.is_empty() {
                awaited = 0;
                silence = Silence::begin();
                let asked = memchr::memmem::find(&buf, b"GETACK").is_some();
                writer.append_stream(&buf, unix_ms())?;
                buf.clear();
                if asked {
                    ack(&mut write, self.spool.stream_end(), &self.place).await?;
                }
            }
            if buf.capacity() > 4 * READ_BYTES {
                buf = Vec::with_capacity(READ_BYTES);
            }
            let full = self.spool.is_full();
            if was_full && !full {
                self.note_late().await;
            }
            was_full = full;
            if full {
                // It is not the source that is silent.
                silence = Silence::begin();
                self.spool.hear(unix_ms());
            }
            tokio::select! {
                () = stop.wait() => return Ok(()),
                () = tokio::time::sleep_until(next_ack) => {
                    ack(&mut write, self.spool.stream_end(), &self.place).await?;
                    let next = if awaited > 0 { ACK_SOON } else { ACK_EVERY };
                    next_ack = tokio::time::Instant::now() + next;
                    awaited = awaited.saturating_sub(1);
                }
                () = tokio::time::sleep(Duration::from_millis(20)), if full => {}
                n = read_some(&mut read, &mut buf, &address), if !full => drop(n?),
                () = &mut upstream => {}
                // Whatever else happens meanwhile, it goes on where it was.
                told = silence.next(self), if !full => self.judge(&mut silence, told)?,
            }
        }
    }

    /// What the source has written until now has waited to be read.
    async fn note_late(&self) {
        let at = tokio::time::timeout(ASK_LIMIT, self.source_offset()).await;
        self.spool
            .note_late(at.ok().and_then(Result::ok), unix_ms());
    }

    /// What a silent source has said of where it stands.
    fn judge(&self, silence: &mut Silence, told: Told) -> Result<()> {
        let dead = |text: String| Err(Error::new(ErrorKind::Connection, text));
        let address = self.place.address();
        match told {
            Told::Stands(at, asked_ms) if at <= self.spool.stream_end() => {
                self.spool.hear(asked_ms);
                *silence = Silence::begin();
                Ok(())
            }
            Told::Stands(at, _) if silence.missed.is_some_and(|since| since.elapsed() >= GRACE) => {
                dead(format!(
                    "{address} has written up to offset {at}, but nothing has come over the link for {} s",
                    silence.since.elapsed().as_secs()
                ))
            }
            Told::Stands(at, _) => {
                silence.missed.get_or_insert(Instant::now());
                self.spool.miss(at);
                Ok(())
            }
            Told::Nothing if silence.since.elapsed() > SILENCE_LIMIT => dead(format!(
                "{address} was silent for {} s",
                silence.since.elapsed().as_secs()
            )),
            Told::Nothing => Ok(()),
        }
    }

    /// Where a source that is a replica stands with its own master, again and again; for any other there is nothing to do.
    async fn watch_upstream(&self) {
        let mut conn: Option<Conn> = None;
        loop {
            let asked = async {
                let mut open = match conn.take() {
                    Some(open) => open,
                    None => net::connect(self.place.endpoint(), &self.place.address()).await?,
                };
                let reply = open.call(&[b"INFO", b"replication"]).await?;
                let upstream = server::upstream(&reply.text().unwrap_or_default());
                conn = Some(open);
                Ok::<_, Error>(upstream)
            };
            match tokio::time::timeout(ASK_LIMIT, asked).await {
                Ok(Ok(None)) => std::future::pending().await,
                Ok(Ok(Some(found))) => {
                    let silent_s = match found.up {
                        true => found.silent_s.filter(|s| *s > UPSTREAM_QUIET_S),
                        false => Some(found.silent_s.unwrap_or(0)),
                    };
                    let since = silent_s.map(|s| unix_ms().saturating_sub(s.saturating_mul(1000)));
                    self.spool.set_upstream(since, found.offset);
                }
                Ok(Err(e)) => tracing::debug!("the source does not tell of its master: {e}"),
                Err(_) => tracing::debug!("the source does not tell of its master in time"),
            }
            tokio::time::sleep(UPSTREAM_EVERY).await;
        }
    }

    /// False when a stop is asked for.
    async fn wait_for_load(&self, lead: &mut Lead, stop: &Shutdown) -> bool {
        while let Some(nap) = lead.nap(&self.spool) {
            if !stop.sleep(nap).await {
                return false;
            }
            if lead.asks() {
                let at = self.source_offset().await.ok();
                lead.told(at, self.spool.stream_start());
            }
        }
        true
    }

    fn no_room(&self, what: &str) -> Error {
        Error::new(
            ErrorKind::SpoolFull,
            format!(
                "{what} does not fit into the spool, which may hold {} bytes",
                self.spool.limit()
            ),
        )
    }

    /// `$<length>` or `$EOF:<mark>`, after any number of newlines.
    async fn snapshot_head(&self, conn: &mut Conn) -> Result<Framing> {
        let line = loop {
            let line = conn.read_line().await?;
            if !line.is_empty() {
                break line;
            }
        };
        let framing = handshake::framing(&line)?;
        if let Framing::Sized { left } = framing
            && left > self.spool.limit()
        {
            return Err(self.no_room(&format!("the source's snapshot of {left} bytes")));
        }
        self.spool.set_snapshot_total(match framing {
            Framing::Sized { left } => Some(left),
            Framing::Mark { .. } => None,
        });
        Ok(framing)
    }
}

/// What a source that sends nothing has said over another connection.
enum Told {
    /// Where it stands, and when it was asked (unix ms).
    Stands(ReplOffset, i64),
    Nothing,
}

type Asked<'a> = std::pin::Pin<Box<dyn Future<Output = Told> + Send + 'a>>;

/// How long nothing has come, and what is done about it.
struct Silence<'a> {
    since: Instant,
    /// When it was first known that something is missing.
    missed: Option<Instant>,
    /// When to ask (again).
    next: tokio::time::Instant,
    asking: Option<Asked<'a>>,
}

impl<'a> Silence<'a> {
    fn begin() -> Silence<'a> {
        Silence {
            since: Instant::now(),
            missed: None,
            next: tokio::time::Instant::now() + ASK_AFTER,
            asking: None,
        }
    }

    /// Waits until it is time, and asks. Cancelled, it goes on where it was.
    async fn next(&mut self, link: &'a Link) -> Told {
        if self.asking.is_none() {
            tokio::time::sleep_until(self.next).await;
            self.next = tokio::time::Instant::now() + GRACE;
            self.asking = Some(Box::pin(async move {
                let asked_ms = unix_ms();
                match tokio::time::timeout(ASK_LIMIT, link.source_offset()).await {
                    Ok(Ok(at)) => Told::Stands(at, asked_ms),
                    Ok(Err(e)) => {
                        tracing::debug!("the silent source does not tell its offset: {e}");
                        Told::Nothing
                    }
                    Err(_) => Told::Nothing,
                }
            }));
        }
        let told = match &mut self.asking {
            Some(asking) => asking.await,
            None => Told::Nothing,
        };
        self.asking = None;
        told
    }
}

async fn read_some(
    read: &mut (impl tokio::io::AsyncRead + Unpin),
    buf: &mut Vec<u8>,
    address: &str,
) -> Result<usize> {
    if buf.capacity() - buf.len() < READ_BYTES {
        buf.reserve(READ_BYTES);
    }
    match tokio::time::timeout(SILENCE_LIMIT, read.read_buf(buf)).await {
        Err(_) => Err(Error::new(ErrorKind::Connection, format!("{address} was silent for {} s", SILENCE_LIMIT.as_secs()))),
        Ok(Err(e)) => Err(Error::new(ErrorKind::Connection, format!("the link to {address} was cut")).cause(e)),
        Ok(Ok(0)) => Err(Error::new(ErrorKind::Connection, format!("{address} closed the link"))
            .hint("if it closes at once each time, look into the source's log: its replica output buffer or a key it cannot send")),
        Ok(Ok(n)) => Ok(n),
    }
}

async fn ack(
    write: &mut (impl tokio::io::AsyncWrite + Unpin),
    at: ReplOffset,
    place: &Place,
) -> Result<()> {
    let (address, names) = (place.address(), &place.endpoint().commands);
    let mut out = Vec::with_capacity(64);
    let offset = at.to_string();
    net::encode(names, &mut out, &[b"REPLCONF", b"ACK", offset.as_bytes()]);
    let sent = async {
        write.write_all(&out).await?;
        write.flush().await
    };
    match tokio::time::timeout(SILENCE_LIMIT, sent).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(Error::new(
            ErrorKind::Connection,
            format!("the link to {address} was cut"),
        )
        .cause(e)),
        Err(_) => Err(Error::new(
            ErrorKind::Connection,
            format!("{address} takes no ACK"),
        )),
    }
}
