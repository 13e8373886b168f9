//! A transaction of the stream that is held whole: sent as one where it may run so, else taken command by command.

use crate::command::{self, Command};
use crate::error::Result;
use crate::migrate::apply::applier::{Applier, is_end};
use crate::migrate::heal::fenced_reader::ReadStates;
use crate::migrate::stream::router;
use crate::migrate::write::wire::Wire;
use crate::resp;
use crate::types::Mark;
use std::sync::atomic::Ordering::Relaxed;

impl<W: Wire, S: ReadStates> Applier<W, S> {
    /// Takes the transaction whose MULTI is `first` bytes long; `None` when it is not all there.
    pub(super) fn take_transaction(&mut self, buf: &[u8], first: usize) -> Result<Option<usize>> {
        let begin = self.position.at();
        let mut args = Vec::new();
        let mut ends = vec![first];
        let mut to = first;
        loop {
            let rest = buf.get(to..).unwrap_or_default();
            let parsed = resp::parse_command(rest, &mut args);
            let Some(len) = parsed.map_err(|e| self.in_stream(e, begin))? else {
                return Ok(None);
            };
            let raw = rest.get(..len).unwrap_or_default();
            let cmd = Command { raw, args: &args };
            to += len;
            if is_end(cmd.name()) {
                break;
            }
            if !cmd.is_empty() && command::lookup(cmd.name()).is_none() {
                // Before anything of the transaction is sent.
                router::may_skip(&cmd, &self.ctx).map_err(|e| self.in_stream(e, begin))?;
            }
            ends.push(to);
        }
        let end = begin.plus(to as u64);
        self.position.widen_window(end);
        let mark = self.position.mark();
        let whole = buf.get(..to).unwrap_or_default();
        if let Some(as_one) = router::transaction(whole, &ends, end, &mut self.view())? {
            self.send_transaction(whole, &ends, as_one, mark)?;
            self.position.advance(to);
            return Ok(Some(to));
        }
        // Command by command; all carry the mark of the MULTI, as the stream cannot be continued inside.
        for raw in router::parts(whole, &ends) {
            if resp::parse_command(raw, &mut args)?.is_none() {
                continue;
            }
            let cmd = Command { raw, args: &args };
            if self.writer.troubled() {
                // What follows may read what is being healed.
                self.resolve()?;
            }
            if !cmd.is_empty() {
                // The transaction took effect as one, so it is before a fence as a whole or not at all.
                self.command(&cmd, end, mark)
                    .map_err(|e| self.in_stream(e, begin))?;
            }
        }
        self.position.advance(to);
        Ok(Some(to))
    }

    /// Sends a transaction as one, to where it may run.
    fn send_transaction(
        &mut self,
        whole: &[u8],
        ends: &[usize],
        as_one: router::AsOne,
        mark: Mark,
    ) -> Result<()> {
        let db = self.position.db();
        let mut args = Vec::new();
        // Keys, or fields of them, that must be there.
        let mut guarded: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
        let mut fields = false;
        let mut keys = std::mem::take(&mut self.keys);
        // They stand before the MULTI, so they ask for what is there before any of its commands.
        for raw in router::parts(whole, ends) {
            resp::parse_command(raw, &mut args)?;
            let cmd = Command { raw, args: &args };
            let spec = router::known(&cmd)?;
            fields |= command::expiry::expects_field(cmd.name());
            spec.keys(&cmd, &mut keys)?;
            self.expiry.guards(db, &cmd, spec, &keys, |key, field| {
                let new = (key.to_vec(), field.map(<[u8]>::to_vec));
                if !guarded.contains(&new) {
                    guarded.push(new);
                }
            });
        }
        for raw in router::parts(whole, ends) {
            resp::parse_command(raw, &mut args)?;
            let cmd = Command { raw, args: &args };
            let spec = router::known(&cmd)?;
            spec.keys(&cmd, &mut keys)?;
            self.note_unreplicated(&cmd, spec, mark);
            self.expiry.observe(&cmd, spec, &keys);
            self.expiry.observe_sent(db, &cmd, spec, &keys);
            for key in &keys {
                self.marks.touch(db, cmd.arg(key.index).unwrap_or_default());
            }
        }
        self.keys = keys;
        // MULTI, the commands, EXEC.
        let commands = ends.len() as u32 + 1;
        self.writer
            .commands(as_one.pass, as_one.slot, mark, |batch| {
                let mut guards = 0;
                for (key, field) in &guarded {
                    batch.guard(&mut guards, key, field.as_deref());
                }
                batch.bytes.extend_from_slice(whole);
                if fields {
                    batch.expect.push(batch.commands + guards + commands - 1);
                }
                guards + commands
            })?;
        let sent = u64::from(commands) - 2;
        self.ctx.progress.commands.fetch_add(sent, Relaxed);
        self.ctx.progress.writes.fetch_add(sent, Relaxed);
        Ok(())
    }
}
