//! Writes checkpoints beside the shards, so that forcing them to disk delays no command.
//!
//! A thread of its own with a connection of its own to the state. A loop has at most one checkpoint on its way, and waits
//! for it before it saves anything itself: so the states of a shard are written in the order in which they came about.

use crate::error::{Error, ErrorKind, Result};
use crate::migrate::checkpoint::relied::Relied;
use crate::source::spool::Spool;
use crate::store::{Loss, ShardState, Store, UnknownCommand, Written};
use crate::task::failpoint;
use crate::types::Mark;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

/// Everything of a shard that goes to disk together.
pub(crate) struct Checkpoint {
    pub shard: ShardState,
    pub counts: BTreeMap<&'static str, u64>,
    pub losses: Vec<Loss>,
    pub unknown: Vec<UnknownCommand>,
    /// When its slots were written to.
    pub written: Option<Written>,
    /// What has to be on disk before.
    pub relied: Relied,
    /// What the spool need not keep any more, once this is saved.
    pub release: Option<(Arc<Spool>, Mark)>,
}

impl Checkpoint {
    /// Marks come last, so that they never pass what they rely on.
    pub fn write(self, store: &mut Store) -> Result<()> {
        failpoint("before-save");
        self.relied.write()?;
        store.add_losses(&self.losses)?;
        store.add_unknown_commands(&self.unknown)?;
        let shard = std::slice::from_ref(&self.shard);
        store.save_shards(shard, &self.counts, self.written.as_ref())?;
        failpoint("after-save");
        match self.release {
            Some((spool, Mark::Stream { at, .. })) => spool.release(at),
            Some((spool, Mark::Snapshot { at, .. })) => {
                spool.leave_to_disk(at);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

type Order = (Checkpoint, SyncSender<Result<()>>);

/// The thread; it ends with the last loop.
pub(crate) struct Saver {
    orders: Sender<Order>,
}

impl Saver {
    /// Opens the state in a plan's folder once more.
    pub fn start(dir: &Path) -> Result<Saver> {
        let mut store = Store::open(dir)?;
        let (orders, inbox) = channel::<Order>();
        std::thread::Builder::new()
            .name("saver".into())
            .spawn(move || {
                for (checkpoint, tell) in inbox {
                    // A loop that does not listen any more has ended with an error of its own.
                    let _ = tell.send(checkpoint.write(&mut store));
                }
            })
            .map_err(|e| Error::new(ErrorKind::Bug, "start a thread").cause(e))?;
        Ok(Saver { orders })
    }

    /// Writes it soon; the result comes over the channel.
    pub fn save(&self, checkpoint: Checkpoint) -> Receiver<Result<()>> {
        let (tell, told) = sync_channel(1);
        // Were the thread gone, the channel would say so.
        let _ = self.orders.send((checkpoint, tell));
        told
    }
}

/// Why nothing came over the channel.
pub(crate) fn gone() -> Error {
    Error::new(ErrorKind::Bug, "the thread that saves has ended")
}
