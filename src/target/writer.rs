//! One task per target node: batches out, replies counted in, trouble kept until it is asked for.
//!
//! Writing and reading go on at the same time, bounded by bytes in flight.
//! Invariant: a batch is acknowledged only when every one of its commands was answered without an error,
//! and nothing that follows a failed batch is acknowledged before the trouble has been resolved.

use crate::error::{Error, Result};
use crate::net::{self, LoggedIn, Stream};
use crate::plan::Endpoint;
use crate::resp;
use crate::target::batch::{Batch, Database};
use crate::target::flight::{Before, Flight, cut, read_replies};
use crate::target::shared::{Order, Shared};
use crate::target::trouble::{Failure, Trouble};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::WriteHalf;
use tokio::sync::mpsc;

/// A node's writer; owned by one shard.
pub struct Writer {
    endpoint: Endpoint,
    address: String,
    flight: Arc<Flight>,
    live: Option<Live>,
    uncertain: Vec<(Arc<Batch>, u32, Vec<Failure>)>,
    unsent: Vec<Arc<Batch>>,
    error: Option<Error>,
}

struct Live {
    write: WriteHalf<Stream>,
    login: LoggedIn,
    reader: tokio::task::JoinHandle<()>,
    /// Databases that this connection has been let into.
    selected: BTreeSet<Database>,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Writer {
    pub fn new(
        endpoint: Endpoint,
        address: String,
        shared: Arc<Shared>,
        acked: Arc<AtomicU64>,
        fixed_db: bool,
    ) -> Writer {
        Writer {
            endpoint,
            address,
            flight: Arc::new(Flight::new(shared, acked, fixed_db)),
            live: None,
            uncertain: Vec::new(),
            unsent: Vec::new(),
            error: None,
        }
    }

    /// What the loop shares with it.
    pub fn flight(&self) -> Arc<Flight> {
        self.flight.clone()
    }

    /// Serves orders until the channel closes.
    pub async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut passwords = self.endpoint.learnt.versions();
        // Before there is something to send; should it fail, the first batch tries again and tells.
        if let Ok(live) = self.open().await {
            self.live = Some(live);
        }
        loop {
            let order = tokio::select! {
                biased;
                order = orders.recv() => order,
                Ok(()) = passwords.changed() => {
                    self.stay_logged_in().await;
                    continue;
                }
            };
            match order {
                Some(Order::Send(batch)) => self.send(batch).await,
                Some(Order::Finish(batch, at)) => self.finish(&batch, at).await,
                Some(Order::Settle(tell)) => {
                    let trouble = self.settle().await;
                    let _ = tell.send(trouble);
                }
                None => return,
            }
            (self.flight).carried_out(!self.unsent.is_empty() || self.error.is_some());
        }
    }

    /// A connection with nothing to send has to tell the new password as well.
    async fn stay_logged_in(&mut self) {
        if self.live.is_none() || self.troubled() {
            return;
        }
        let nothing = {
            let mut gate = self.flight.gate();
            gate.busy = true;
            let mut nothing = Batch::new(Vec::new(), gate.db);
            nothing.seq = gate.last_seq;
            nothing
        };
        if let Err(e) = self.write(Arc::new(nothing)).await {
            self.flight.lose(e);
        }
        self.flight.gate().busy = false;
    }

    fn troubled(&self) -> bool {
        if !self.unsent.is_empty() || self.error.is_some() {
            return true;
        }
        self.flight.waiting().troubled()
    }

    async fn send(&mut self, batch: Arc<Batch>) {
        loop {
            if self.troubled() {
                self.unsent.push(batch);
                self.flight.shared.signal();
                return;
            }
            if self.flight.waiting().bytes < self.flight.shared.in_flight {
                break;
            }
            self.flight.moved.notified().await;
        }
        if let Err(e) = self.write(batch).await {
            self.flight.lose(e);
        }
    }

    /// The loop has begun to write a batch; what is left of it.
    async fn finish(&mut self, batch: &Batch, at: usize) {
        let rest = batch.bytes.get(at..).unwrap_or_default();
        if let Some(live) = &mut self.live
            && let Err(e) = put(&mut live.write, &[], rest).await
        {
            self.flight.lose(cut(&self.address, e));
        }
    }

    async fn write(&mut self, batch: Arc<Batch>) -> Result<()> {
        if self.live.is_none() {
            match self.open().await {
                Ok(live) => self.live = Some(live),
                Err(e) => {
                    self.unsent.push(batch);
                    self.error = Some(e);
                    self.flight.shared.signal();
                    return Ok(());
                }
            }
        }
        let Some(live) = &mut self.live else {
            return Ok(());
        };
        let (mut ours, mut before) = (Vec::new(), Before::default());
        if self.flight.outdated.swap(false, Ordering::Relaxed) {
            live.login.refused();
        }
        before.auth = live.login.renew(&mut ours).await;
        let sent_before = self.flight.gate().last_seq;
        if self.flight.selects(&batch) {
            let db = batch.db.index().to_string();
            resp::command(&mut ours, &[b"SELECT", db.as_bytes()]);
            before.select = true;
            if live.selected.insert(batch.db) {
                // What follows must not be on its way before it is known where it will run.
                let mut alone = Batch::new(Vec::new(), batch.db);
                alone.seq = sent_before;
                self.flight.waiting().push(Arc::new(alone), before);
                let sent = put(&mut live.write, &std::mem::take(&mut ours), &[]).await;
                sent.map_err(|e| cut(&self.address, e))?;
                before = Before::default();
                if !self.flight.answered().await {
                    self.unsent.push(batch);
                    return Ok(());
                }
            }
        }
        if batch.commands == 0 && before.replies() == 0 {
            // The password was told with another batch already.
            return Ok(());
        }
        self.flight.waiting().push(batch.clone(), before);
        let result = put(&mut live.write, &ours, &batch.bytes).await;
        result.map_err(|e| cut(&self.address, e))
    }

    async fn open(&self) -> Result<Live> {
        let conn = net::connect(&self.endpoint, &self.address).await?;
        let login = conn.login();
        let (stream, unread) = conn.into_parts();
        {
            let mut gate = self.flight.gate();
            gate.out = stream.handle();
            gate.db = Database::ZERO;
        }
        let (read, write) = tokio::io::split(stream);
        let flight = self.flight.clone();
        let address = self.address.clone();
        let reader = tokio::spawn(async move {
            if let Err(e) = read_replies(read, unread, &flight, &address).await {
                flight.lose(e);
            }
        });
        Ok(Live {
            write,
            login,
            reader,
            selected: BTreeSet::from([Database::ZERO]),
        })
    }

    /// Waits until all that was sent is answered or lost; hands over the trouble and begins anew.
    async fn settle(&mut self) -> Trouble {
        loop {
            {
                let waiting = self.flight.waiting();
                if waiting.queue.is_empty() || waiting.lost.is_some() {
                    break;
                }
            }
            self.flight.moved.notified().await;
        }
        let mut waiting = self.flight.waiting();
        waiting.texts = 0;
        let lost = waiting.lost.take();
        if lost.is_some() {
            self.live = None;
            self.flight.gate().out = None;
            let mut answered = std::mem::take(&mut waiting.answered);
            let mut failures = std::mem::take(&mut waiting.failures);
            waiting.bytes = 0;
            for (batch, before) in std::mem::take(&mut waiting.queue) {
                let own = answered.saturating_sub(before.replies());
                self.uncertain
                    .push((batch, own, std::mem::take(&mut failures)));
                answered = 0;
            }
        }
        Trouble {
            failed: std::mem::take(&mut waiting.failed),
            uncertain: std::mem::take(&mut self.uncertain),
            unsent: std::mem::take(&mut self.unsent),
            error: lost.or(self.error.take()),
        }
    }
}

async fn put(to: &mut WriteHalf<Stream>, first: &[u8], then: &[u8]) -> std::io::Result<()> {
    if !first.is_empty() {
        net::put(to, first).await?;
    }
    net::put(to, then).await
}
