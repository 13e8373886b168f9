//! The target as one shard sees it: commands in by slot, acknowledged marks out, trouble resolved in one place.
//!
//! [`Pipe`] keeps an open batch for each node and remembers the mark at which each batch began.
//! Invariant: `applied()` is the lowest mark over all nodes; nothing is done before the target has replied.

mod batch;
pub mod flight;
mod groups;
pub mod health;
pub mod restoring;
mod shared;
pub mod topology;
pub mod trouble;
mod units;
pub mod writer;

use crate::error::{Error, ErrorKind, Result};
use crate::plan::Endpoint;
pub use crate::target::batch::{Batch, Database, KnownDatabases};
use crate::target::flight::Flight;
use crate::target::groups::Groups;
use crate::target::shared::{Order, Shared};
use crate::target::topology::{Pairs, Topology};
pub use crate::target::trouble::{Fate, Unit};
use crate::target::units::{split_units, trouble_bytes, units_of};
use crate::target::writer::Writer;
use crate::task::event_loop::EventLoop;
use crate::types::{Mark, SLOTS, Slot};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot};

/// A batch is sent when it has this many bytes.
const BATCH_BYTES: usize = 64 * 1024;
const BATCH_COMMANDS: u32 = 4096;
/// Strings of at most this many bytes are set several at a time where any may stand together.
const SHORT: usize = 4 << 10;

/// One node's side of the pipe.
struct Node {
    address: String,
    orders: mpsc::UnboundedSender<Order>,
    /// None in a dry run.
    flight: Option<Arc<Flight>>,
    open: Batch,
    open_mark: Option<Mark>,
    next_seq: u64,
    acked: Arc<AtomicU64>,
    outstanding: VecDeque<(u64, Mark)>,
}

/// Commands to the target in slot order, with marks.
pub struct Pipe {
    endpoint: Endpoint,
    events: EventLoop,
    topology: Topology,
    nodes: Vec<Node>,
    /// Strings that wait for others of their slots.
    groups: Groups,
    /// Slots that have enough of them.
    full: Vec<Slot>,
    /// How much had been sent when the first of them came.
    grouped_at: u64,
    shared: Arc<Shared>,
    fixed_db: bool,
    dry_run: bool,
    /// Commands handed over so far.
    pub sent_commands: u64,
    pub sent_bytes: u64,
}

/// What a pipe needs to know beside the topology.
#[derive(Debug, Clone, Copy)]
pub struct PipeOptions {
    /// Bytes that may be on their way at once.
    pub budget: usize,
    /// The target has one database only and is never sent SELECT.
    pub fixed_db: bool,
    /// Nothing is sent; everything counts as acknowledged at once.
    pub dry_run: bool,
}

impl Pipe {
    pub fn new(
        endpoint: Endpoint,
        topology: Topology,
        events: EventLoop,
        options: PipeOptions,
    ) -> Pipe {
        let shared = Shared::new(options.budget, topology.nodes.len());
        let mut pipe = Pipe {
            endpoint,
            events,
            topology,
            nodes: Vec::new(),
            groups: Groups::default(),
            full: Vec::new(),
            grouped_at: 0,
            shared: Arc::new(shared),
            fixed_db: options.fixed_db,
            dry_run: options.dry_run,
            sent_commands: 0,
            sent_bytes: 0,
        };
        pipe.connect_nodes();
        pipe
    }

    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Opens a side for each node of the topology; only called when nothing is outstanding.
    fn connect_nodes(&mut self) {
        self.nodes = (self.topology.nodes.iter())
            .map(|address| {
                let (orders, inbox) = mpsc::unbounded_channel();
                let acked = Arc::new(AtomicU64::new(0));
                let mut flight = None;
                if !self.dry_run {
                    let writer = Writer::new(
                        self.endpoint.clone(),
                        address.clone(),
                        self.shared.clone(),
                        acked.clone(),
                        self.fixed_db,
                    );
                    flight = Some(writer.flight());
                    self.events.spawn(writer.run(inbox));
                }
                Node {
                    address: address.clone(),
                    orders,
                    flight,
                    open: empty_batch(&self.shared, Database::ZERO),
                    open_mark: None,
                    next_seq: 1,
                    acked,
                    outstanding: VecDeque::new(),
                }
            })
            .collect();
    }

    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// A key's slot; of one node that gets its keys in no order of slots, any will do.
    pub fn slot_of(&self, key: &[u8]) -> Slot {
        match self.nodes.len() == 1 && self.topology.pairs != Pairs::OfOneSlot {
            true => Slot::numbered(0),
            false => Slot::of(key),
        }
    }

    pub fn node_of(&self, slot: Slot) -> usize {
        match self.nodes.len() {
            1 => 0,
            _ => self.topology.node(slot),
        }
    }

    /// The open batch of `node`, in database `db`, to encode commands into; then call [`Pipe::added`].
    ///
    /// `mark` is where the source stands before the commands; false from a call that must send says that trouble waits.
    pub fn batch(&mut self, node: usize, db: Database, mark: Mark) -> Result<&mut Batch> {
        let switch = self
            .nodes
            .get(node)
            .is_some_and(|n| n.open.db != db && !n.open.is_empty());
        if switch {
            // A batch is all in one database, so this one has to go, whether there is room or trouble.
            self.hand_over(node, true);
        }
        let node = self
            .nodes
            .get_mut(node)
            .ok_or_else(|| Error::new(ErrorKind::Bug, "a slot leads to no node"))?;
        node.open.db = db;
        // A heal has the mark of the command that it stands for, which may be earlier than what was added before it.
        node.open_mark = Some(node.open_mark.map_or(mark, |open| open.earlier(mark)));
        Ok(&mut node.open)
    }

    /// Whether strings of up to this length are better sent by [`Pipe::pair`].
    pub fn takes_pairs(&self) -> Option<usize> {
        match self.topology.pairs {
            Pairs::None => None,
            Pairs::OfOneSlot => Some(groups::MOST),
            Pairs::OfAny => Some(SHORT),
        }
    }

    /// The target has refused one.
    pub fn no_pairs(&mut self) {
        self.topology.pairs = Pairs::None;
    }

    /// Sets a string together with others; only where [`Pipe::takes_pairs`].
    ///
    /// Nothing else on its way may touch the key, as it may overtake what was added before it, and be overtaken.
    pub fn pair(
        &mut self,
        slot: Slot,
        db: Database,
        mark: Mark,
        key: &[u8],
        value: &[u8],
    ) -> Result<()> {
        if self.topology.pairs == Pairs::OfAny {
            let node = self.node_of(slot);
            let new = self.batch(node, db, mark)?.pair(key, value);
            self.added(node, new);
            return Ok(());
        }
        if self.groups.from.is_some_and(|(of, _)| of != db) {
            self.put_groups()?;
        }
        if self.groups.from.is_none() {
            self.groups.from = Some((db, mark));
            self.grouped_at = self.sent_bytes;
        }
        if self.groups.add(slot, key, value) {
            self.sort_groups()?;
        }
        while self.groups.len() > self.shared.budget / 2 {
            let slot = self.groups.turn(mark);
            self.put_group(slot)?;
        }
        Ok(())
    }

    fn sort_groups(&mut self) -> Result<()> {
        let mut full = std::mem::take(&mut self.full);
        self.groups.sort(&mut full);
        for slot in full.drain(..) {
            self.put_group(slot)?;
        }
        self.full = full;
        Ok(())
    }

    /// The strings of a slot that wait for others wait no longer.
    fn put_group(&mut self, slot: Slot) -> Result<()> {
        let Some((db, mark)) = self.groups.from else {
            return Ok(());
        };
        let node = self.node_of(slot);
        let mut groups = std::mem::take(&mut self.groups);
        let put = (self.batch(node, db, mark)).map(|batch| groups.put(slot, &mut batch.bytes));
        self.groups = groups;
        if put? {
            self.added(node, 1);
        }
        Ok(())
    }

    /// Strings that wait while much else is sent would keep the mark back.
    pub fn put_old(&mut self) -> Result<()> {
        match self.sent_bytes.saturating_sub(self.grouped_at)
            > (self.shared.budget as u64).saturating_mul(8)
        {
            true => self.put_groups(),
            false => Ok(()),
        }
    }

    fn put_groups(&mut self) -> Result<()> {
        let Some((_, mark)) = self.groups.from else {
            return Ok(());
        };
        self.sort_groups()?;
        for _ in 0..SLOTS {
            let slot = self.groups.turn(mark);
            self.put_group(slot)?;
        }
        self.groups.emptied();
        Ok(())
    }

    /// Says that `commands` were encoded into the open batch of `node`; a full batch is sent.
    pub fn added(&mut self, node: usize, commands: u32) {
        self.sent_commands = self.sent_commands.saturating_add(u64::from(commands));
        let Some(n) = self.nodes.get_mut(node) else {
            return;
        };
        n.open.commands = n.open.commands.saturating_add(commands);
        if n.open.len() >= BATCH_BYTES || n.open.commands >= BATCH_COMMANDS {
            self.send(node);
        }
    }

    fn send(&mut self, node: usize) {
        self.hand_over(node, false);
    }

    /// `must`: also when there is no room, while trouble keeps any from being made.
    fn hand_over(&mut self, node: usize, must: bool) {
        let Some(n) = self.nodes.get_mut(node) else {
            return;
        };
        let (Some(mark), false) = (n.open_mark, n.open.is_empty()) else {
            return;
        };
        let closed = n.open.close();
        n.open.commands = n.open.commands.saturating_add(closed);
        self.sent_commands = self.sent_commands.saturating_add(u64::from(closed));
        let len = n.open.bytes.len();
        if self.dry_run {
            self.sent_bytes = self.sent_bytes.saturating_add(len as u64);
            n.open.clear();
            n.open_mark = None;
            return;
        }
        if !self.shared.acquire(len, &self.events) {
            if !must {
                // The batch stays open until the trouble has been resolved.
                return;
            }
            // Its writer keeps it as unsent, in its place.
            self.shared.exceed(len);
        }
        self.sent_bytes = self.sent_bytes.saturating_add(len as u64);
        let next = empty_batch(&self.shared, n.open.db);
        let mut batch = std::mem::replace(&mut n.open, next);
        n.open_mark = None;
        batch.seq = n.next_seq;
        n.next_seq = n.next_seq.saturating_add(1);
        n.outstanding.push_back((batch.seq, mark));
        let order = match &n.flight {
            Some(flight) => flight.write_now(batch, &n.address),
            None => None,
        };
        if let Some(order) = order {
            // The writer lives as long as the pipe; if its event loop is gone, so are we.
            let _ = n.orders.send(order);
        }
    }

    /// Sends all open batches.
    pub fn flush(&mut self) {
        if let Err(e) = self.put_groups() {
            // Only a slot without a node would do that, and a topology has one for each.
            tracing::error!("{e}");
        }
        for node in 0..self.nodes.len() {
            self.send(node);
        }
    }

    /// Whether something went wrong that [`Pipe::settle`] must collect before more is added.
    pub fn troubled(&self) -> bool {
        self.shared.trouble.load(Ordering::Acquire)
    }

    /// The lowest mark that is not yet acknowledged; `None` when everything is.
    pub fn oldest(&mut self) -> Option<Mark> {
        let mut oldest = self.groups.from.map(|(_, mark)| mark);
        for node in &mut self.nodes {
            let acked = node.acked.load(Ordering::Acquire);
            while node
                .outstanding
                .front()
                .is_some_and(|(seq, _)| *seq <= acked)
            {
                node.outstanding.pop_front();
            }
            let marks = node.outstanding.iter().map(|(_, mark)| *mark);
            oldest = (marks.chain(node.open_mark).chain(oldest)).reduce(Mark::earlier);
        }
        oldest
    }

    /// Sends everything, waits until it is answered or lost, and returns what has to be dealt with, in order per slot.
    ///
    /// After it nothing is outstanding: what the units hold is the caller's to do again.
    pub fn settle(&mut self) -> (Vec<Unit>, Option<Error>) {
        if self.dry_run {
            self.flush();
            return (Vec::new(), None);
        }
        self.flush();
        let mut waits = Vec::new();
        for node in &self.nodes {
            let (tell, told) = oneshot::channel();
            if let Some(flight) = &node.flight {
                flight.ordered();
            }
            let _ = node.orders.send(Order::Settle(tell));
            waits.push(told);
        }
        let mut units = Vec::new();
        let mut error = None;
        for (node, told) in self.nodes.iter_mut().zip(waits) {
            let trouble = self.events.drive(told).unwrap_or_default();
            let held: usize = trouble_bytes(&trouble);
            if held > 0 {
                self.shared.release(held);
            }
            units_of(trouble, &mut units, &mut error);
            // What could not even be handed over.
            if node.open.commands > 0 {
                let db = node.open.db;
                let batch = std::mem::replace(&mut node.open, empty_batch(&self.shared, db));
                split_units(
                    &batch,
                    &mut |_| Some(Fate::Unsent),
                    &mut HashSet::new(),
                    &mut units,
                );
            }
            node.open_mark = None;
            node.outstanding.clear();
        }
        self.shared.trouble.store(false, Ordering::Release);
        (units, error)
    }

    /// Takes a new picture of the target; only when nothing is outstanding (after [`Pipe::settle`]).
    pub fn refresh(&mut self) -> Result<()> {
        let new = self.topology.refresh(&self.endpoint);
        let topology = self.events.drive(new)?;
        if topology.nodes != self.topology.nodes {
            tracing::info!("the target's masters are now {}", topology.nodes.join(", "));
            self.topology = topology;
            self.connect_nodes();
        } else {
            self.topology = topology;
        }
        Ok(())
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub fn address(&self, node: usize) -> &str {
        self.nodes.get(node).map_or("", |n| &n.address)
    }
}

fn empty_batch(shared: &Shared, db: Database) -> Batch {
    Batch::new(shared.buffer(), db)
}

#[cfg(test)]
mod tests;
