//! What carries commands to the target: the pipe, or in tests a model of a server.

use crate::error::{Error, Result};
use crate::migrate::write::large_value::{self, Delivery};
use crate::net;
use crate::resp::Outcome;
use crate::target::{Batch, Database, Pipe, Unit};
use crate::types::address::split;
use crate::types::{Mark, Slot};
use tokio::runtime::Handle;

/// Commands in by node, acknowledged marks out, trouble collected in one place.
pub(crate) trait Wire {
    fn nodes(&self) -> usize;
    fn node_of(&self, slot: Slot) -> usize;
    /// A key's slot; of one node that gets its keys in no order of slots, any will do.
    fn slot_of(&self, key: &[u8]) -> Slot;
    /// Where a node is reached.
    fn address(&self, node: usize) -> String;
    /// The nodes are those of a cluster.
    fn is_cluster(&self) -> bool;
    /// One command must keep to one slot.
    fn one_slot(&self) -> bool;
    /// The open batch of a node; `mark` is where the source stands before the commands. Then [`Wire::added`].
    fn batch(&mut self, node: usize, db: Database, mark: Mark) -> Result<&mut Batch>;
    fn added(&mut self, node: usize, commands: u32);
    /// The longest string, in bytes, that is better sent by [`Wire::pair`].
    fn takes_pairs(&self) -> Option<usize>;
    /// The target has refused one.
    fn no_pairs(&mut self);
    /// Sets a string together with others; nothing else on its way may touch the key.
    fn pair(
        &mut self,
        slot: Slot,
        db: Database,
        mark: Mark,
        key: &[u8],
        value: &[u8],
    ) -> Result<()>;
    /// Sends strings that have waited for others while much else was sent.
    fn put_old(&mut self) -> Result<()>;
    fn flush(&mut self);
    /// Whether something went wrong that [`Wire::settle`] must collect before more is added.
    fn troubled(&self) -> bool;
    /// The lowest mark that is not acknowledged; `None` when everything is.
    fn oldest(&mut self) -> Option<Mark>;
    /// Sends everything, waits until it is answered or lost, and returns what has to be dealt with, in order per slot.
    fn settle(&mut self) -> (Vec<Unit>, Option<Error>);
    /// Takes a new picture of the target; only after [`Wire::settle`].
    fn refresh(&mut self) -> Result<()>;
    /// Sends a unit whose slot is on its way to the node that the answer `ask` names; false when the slot has arrived
    /// in between, or that node does not take it.
    fn redirect(&mut self, runtime: &Handle, unit: &Unit, ask: &str) -> bool;
    /// Writes a large value over a connection of its own; only after [`Wire::settle`].
    fn deliver(&self, runtime: &Handle, delivery: &mut Delivery, footer: u16) -> Result<()>;
}

impl Wire for Pipe {
    fn nodes(&self) -> usize {
        self.node_count()
    }

    fn node_of(&self, slot: Slot) -> usize {
        Pipe::node_of(self, slot)
    }

    fn slot_of(&self, key: &[u8]) -> Slot {
        Pipe::slot_of(self, key)
    }

    fn address(&self, node: usize) -> String {
        Pipe::address(self, node).to_owned()
    }

    fn is_cluster(&self) -> bool {
        self.topology().cluster
    }

    fn one_slot(&self) -> bool {
        self.topology().one_slot
    }

    fn batch(&mut self, node: usize, db: Database, mark: Mark) -> Result<&mut Batch> {
        Pipe::batch(self, node, db, mark)
    }

    fn added(&mut self, node: usize, commands: u32) {
        Pipe::added(self, node, commands);
    }

    fn takes_pairs(&self) -> Option<usize> {
        Pipe::takes_pairs(self)
    }

    fn no_pairs(&mut self) {
        Pipe::no_pairs(self);
    }

    fn pair(
        &mut self,
        slot: Slot,
        db: Database,
        mark: Mark,
        key: &[u8],
        value: &[u8],
    ) -> Result<()> {
        Pipe::pair(self, slot, db, mark, key, value)
    }

    fn put_old(&mut self) -> Result<()> {
        Pipe::put_old(self)
    }

    fn flush(&mut self) {
        Pipe::flush(self);
    }

    fn troubled(&self) -> bool {
        Pipe::troubled(self)
    }

    fn oldest(&mut self) -> Option<Mark> {
        Pipe::oldest(self)
    }

    fn settle(&mut self) -> (Vec<Unit>, Option<Error>) {
        Pipe::settle(self)
    }

    fn refresh(&mut self) -> Result<()> {
        Pipe::refresh(self)
    }

    fn redirect(&mut self, runtime: &Handle, unit: &Unit, ask: &str) -> bool {
        let endpoint = self.endpoint();
        // The node that has answered, by the slot that the answer names.
        let slot = ask.split(' ').nth(1).and_then(|n| n.parse().ok());
        let asked = Pipe::node_of(self, Slot::numbered(slot.unwrap_or(0)));
        let address = net::leads_to(ask, split(Pipe::address(self, asked)).0);
        let mut backoff = net::Backoff::new();
        for _ in 0..REDIRECTS {
            let answer: Result<Option<String>> = runtime.block_on(async {
                let mut conn = net::connect(endpoint, &address).await?;
                conn.select(unit.db.index()).await?;
                conn.push(&[b"ASKING"]);
                conn.outgoing().extend_from_slice(&unit.bytes);
                conn.flush().await?;
                conn.reply().await?;
                let mut error = None;
                for _ in 0..unit.commands {
                    // It may be as long as what a command takes away.
                    if let (Outcome::Error(text), None) = (conn.skim().await?, &error) {
                        error = Some(text);
                    }
                }
                Ok(error)
            });
            match answer {
                Ok(None) => return true,
                Ok(Some(text)) if text.starts_with("TRYAGAIN") => {
                    std::thread::sleep(backoff.next());
                }
                // The migration of the slot has ended in between: the new topology knows.
                _ => return false,
            }
        }
        false
    }

    fn deliver(&self, runtime: &Handle, delivery: &mut Delivery, footer: u16) -> Result<()> {
        let address = Pipe::address(self, Pipe::node_of(self, Slot::of(&delivery.key)));
        large_value::deliver(self.endpoint(), address, runtime, delivery, footer)
    }
}

/// How often a unit is sent to a node that answers TRYAGAIN.
const REDIRECTS: u32 = 40;
