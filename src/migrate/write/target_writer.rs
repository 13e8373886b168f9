//! Writes to the target: each key behind a [`Pass`], each command with the mark of where the source stood before it.
//!
//! It never waits for answers and never decides what becomes of trouble: [`TargetWriter::settle`] hands that out.

use crate::error::{Error, ErrorKind, Result};
use crate::migrate::context::ShardContext;
use crate::migrate::write::door::{FlushPass, Pass};
use crate::migrate::write::large_value::Delivery;
use crate::migrate::write::wire::Wire;
use crate::rdb::payload;
use crate::resp;
use crate::target::{Batch, Database, Unit};
use crate::types::{ExpireAt, Mark, Slot};
use std::rc::Rc;

/// The writing end of a shard; `W` is the pipe to the target.
pub(crate) struct TargetWriter<W> {
    pub(super) ctx: Rc<ShardContext>,
    pub(super) wire: W,
    /// What the target takes.
    pub(super) format: payload::Target,
    pub(super) scratch: Vec<u8>,
}

impl<W: Wire> TargetWriter<W> {
    pub fn new(ctx: Rc<ShardContext>, wire: W, format: payload::Target) -> TargetWriter<W> {
        TargetWriter {
            ctx,
            wire,
            format,
            scratch: Vec::new(),
        }
    }

    /// The version and product that payloads are written for.
    pub fn format(&self) -> &payload::Target {
        &self.format
    }

    /// One command must keep to one slot.
    pub fn one_slot(&self) -> bool {
        self.wire.one_slot()
    }

    /// Where the nodes are reached.
    pub fn addresses(&self) -> Vec<String> {
        (0..self.wire.nodes())
            .map(|node| self.wire.address(node))
            .collect()
    }

    /// Where the node of a slot is reached.
    pub fn address_of(&self, slot: Slot) -> String {
        self.wire.address(self.wire.node_of(slot))
    }

    /// The target is a cluster, and lists the keys of its slots.
    pub fn is_cluster(&self) -> bool {
        self.wire.is_cluster()
    }

    /// Adds commands on keys of one slot: `write` encodes them and returns how many they are.
    pub fn commands(
        &mut self,
        pass: Pass,
        slot: Slot,
        mark: Mark,
        write: impl FnOnce(&mut Batch) -> u32,
    ) -> Result<()> {
        let node = self.wire.node_of(slot);
        let commands = write(self.wire.batch(node, pass.database(), mark)?);
        self.wire.added(node, commands);
        Ok(())
    }

    /// Adds one command on a key; `expects` that the key is there, else the answer counts as trouble.
    pub fn command(
        &mut self,
        pass: Pass,
        key: &[u8],
        args: &[&[u8]],
        expects: bool,
        mark: Mark,
    ) -> Result<()> {
        self.commands(pass, Slot::of(key), mark, |batch| {
            if expects {
                batch.expect.push(batch.commands);
            }
            resp::command(&mut batch.bytes, args);
            1
        })
    }

    /// Removes a key.
    pub fn remove(&mut self, pass: Pass, key: &[u8], mark: Mark) -> Result<()> {
        self.commands(pass, Slot::of(key), mark, |batch| {
            batch.state(1);
            resp::command(&mut batch.bytes, &[b"DEL", key]);
            1
        })
    }

    /// Gives a key the expiry that the source has told: none at all, or that the key is gone.
    pub fn expire(
        &mut self,
        pass: Pass,
        key: &[u8],
        expiry: Option<Option<ExpireAt>>,
        mark: Mark,
    ) -> Result<()> {
        match expiry {
            None => self.command(pass, key, &[b"DEL", key], false, mark),
            Some(None) => self.command(pass, key, &[b"PERSIST", key], false, mark),
            Some(Some(at)) => {
                let at = at.to_string();
                let args: [&[u8]; 3] = [b"PEXPIREAT", key, at.as_bytes()];
                self.command(pass, key, &args, false, mark)
            }
        }
    }

    /// Sends a command that concerns no key (FUNCTION, SCRIPT) to every node.
    pub fn broadcast(&mut self, command: &[u8], mark: Mark) -> Result<()> {
        let mut args = Vec::new();
        resp::parse_command(command, &mut args)?;
        let name = args.first().and_then(|name| command.get(name.clone()));
        let keyless = |name: &&[u8]| {
            name.eq_ignore_ascii_case(b"FUNCTION") || name.eq_ignore_ascii_case(b"SCRIPT")
        };
        if name.filter(keyless).is_none() {
            return Err(Error::new(
                ErrorKind::Bug,
                "a command with keys for every node",
            ));
        }
        self.every_node(Database::ZERO, command, mark)
    }

    /// Flushes on every node what the door lets go.
    pub fn flush_all(&mut self, pass: FlushPass, mark: Mark) -> Result<()> {
        let mut command = Vec::new();
        let name: &[u8] = match pass.database() {
            None => b"FLUSHALL",
            Some(_) => b"FLUSHDB",
        };
        resp::command(&mut command, &[name]);
        self.every_node(pass.database().unwrap_or(Database::ZERO), &command, mark)
    }

    fn every_node(&mut self, db: Database, command: &[u8], mark: Mark) -> Result<()> {
        for node in 0..self.wire.nodes() {
            let batch = self.wire.batch(node, db, mark)?;
            batch.bytes.extend_from_slice(command);
            self.wire.added(node, 1);
        }
        Ok(())
    }

    /// Sends again what the door has let through before: to the node of `key` now, or without a key to all.
    pub fn resend(
        &mut self,
        unit: &Unit,
        key: Option<&[u8]>,
        expecting: &[u32],
        mark: Mark,
    ) -> Result<()> {
        let nodes = match key {
            Some(key) => {
                let node = self.wire.node_of(Slot::of(key));
                node..node + 1
            }
            None => 0..self.wire.nodes(),
        };
        for node in nodes {
            let batch = self.wire.batch(node, unit.db, mark)?;
            let first = batch.commands;
            if unit.state {
                batch.state(unit.commands);
            }
            batch.expect.extend(expecting.iter().map(|i| first + i));
            batch.bytes.extend_from_slice(&unit.bytes);
            self.wire.added(node, unit.commands);
        }
        Ok(())
    }

    /// See [`Wire::redirect`].
    pub fn redirect(&mut self, unit: &Unit, ask: &str) -> bool {
        let ctx = self.ctx.clone();
        self.wire.redirect(&ctx.shared.runtime, unit, ask)
    }

    /// Writes a large value over a connection of its own, after [`TargetWriter::settle`].
    pub fn deliver(&self, delivery: &mut Delivery) -> Result<()> {
        let footer = payload::footer_version(&self.format);
        (self.wire).deliver(&self.ctx.shared.runtime, delivery, footer)
    }

    /// Sends what has been added and is not on its way yet.
    pub fn flush(&mut self) {
        self.wire.flush();
    }

    /// See [`Wire::put_old`].
    pub fn put_old(&mut self) -> Result<()> {
        self.wire.put_old()
    }

    /// Whether several strings may go in one MSET, and that from now on none does.
    pub fn gives_up_pairs(&mut self) -> bool {
        let had = self.wire.takes_pairs().is_some();
        self.wire.no_pairs();
        had
    }

    /// Whether something went wrong that has to be settled before more is added.
    pub fn troubled(&self) -> bool {
        self.wire.troubled()
    }

    /// The lowest mark that is not acknowledged; `None` when everything is.
    pub fn oldest(&mut self) -> Option<Mark> {
        self.wire.oldest()
    }

    /// Waits until everything is answered or lost, and hands out what was not done, in order per slot.
    pub fn settle(&mut self) -> (Vec<Unit>, Option<Error>) {
        self.wire.settle()
    }

    /// Takes a new picture of the target, after [`TargetWriter::settle`].
    pub fn refresh(&mut self) -> Result<()> {
        self.wire.refresh()
    }
}
