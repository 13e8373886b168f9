//! What a source's stream does not tell, and so has to be asked of it once a second.
//!
//! No fence is needed: what the source says later only comes early, and what the stream still brings leads to it.

use crate::command::{Command, Spec};
use crate::error::{ErrorKind, Result};
use crate::migrate::admission::Admission;
use crate::migrate::expiry::{HEAL_WHOLE, LAG_MS};
use crate::migrate::heal::Key;
use crate::migrate::pump::Pump;
use crate::resp;
use crate::types::{DbIndex, Mark, Slot};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// What is to be asked.
#[derive(Default)]
pub struct Debts {
    /// Streams: older sources replicate a group's last id, but not how many entries it has read.
    groups: BTreeSet<(DbIndex, Vec<u8>)>,
    /// Fields of hashes: some sources replicate HINCRBYFLOAT as an HSET, which takes the field's expiry away.
    fields: BTreeSet<(DbIndex, Vec<u8>, Vec<u8>)>,
    /// The libraries of functions are to be compared.
    pub functions: bool,
    /// Before the first command that left some, and when it came: no checkpoint passes it.
    pub from: Option<(Mark, Instant)>,
}

/// With more fields than this, their keys are read whole when the source has been caught up with.
const MOST: usize = 10_000;
/// How long a checkpoint is held back while the source has not been caught up with.
const LONG: Duration = Duration::from_secs(10);

impl Pump {
    /// Notes what a command leaves to be asked.
    pub(super) fn note_debts(&mut self, cmd: &Command<'_>, spec: &Spec, mark: Mark) {
        let [Some(key), Some(second)] = [cmd.arg(1), cmd.arg(2)] else {
            return;
        };
        match spec.name {
            "XCLAIM" if self.shared.silent_entries_read => {
                self.debts.groups.insert((self.db, key.to_vec()));
            }
            "HSET"
                if self.shared.silent_field_expiry
                    && cmd.len() == 4
                    && self.timed.expects_field(self.db, key, second) =>
            {
                if self.holding || self.debts.fields.len() >= MOST {
                    self.held.note(DbIndex(self.db.0 | HEAL_WHOLE), key);
                    return;
                }
                let of = (self.db, key.to_vec(), second.to_vec());
                self.debts.fields.insert(of);
            }
            _ => return,
        }
        (self.debts.from).get_or_insert_with(|| (mark, Instant::now()));
    }

    /// Whether to ask with this checkpoint; while much is still to come, the same would be asked again and again.
    pub(super) fn wants_paying(&self, lag_ms: u64) -> bool {
        (self.debts.from).is_some_and(|(_, since)| lag_ms < LAG_MS || since.elapsed() > LONG)
    }

    pub(super) fn pay_debts(&mut self) -> Result<()> {
        let Some((from, _)) = self.debts.from else {
            return Ok(());
        };
        let before = self.hold(from);
        let Debts {
            groups,
            fields,
            functions,
            ..
        } = std::mem::take(&mut self.debts);
        if !self.shared.dry_run {
            if functions {
                self.sync_functions()?;
            }
            if self.format.valkey || self.format.version >= (7, 0, 0) {
                self.set_entries_read(groups)?;
            }
            self.set_field_expiries(fields.into_iter().collect())?;
        }
        self.floor = before;
        Ok(())
    }

    fn set_entries_read(&mut self, streams: BTreeSet<(DbIndex, Vec<u8>)>) -> Result<()> {
        for (db, key) in streams {
            let Admission::Yes(to) = self.admission(db, &key)? else {
                continue;
            };
            let asked = self.source_name(&key);
            let groups =
                self.fenced(|fence, runtime| runtime.block_on(fence.groups(db, &asked)))?;
            let node = self.pipe.node_of(Slot::of(&key));
            let mark = self.now();
            for group in groups {
                let mut args: Vec<&[u8]> =
                    vec![b"XGROUP", b"SETID", &key, &group.name, &group.last_id];
                let read = group.entries_read.map(|n| n.to_string());
                if let Some(read) = &read {
                    args.extend([b"ENTRIESREAD".as_slice(), read.as_bytes()]);
                }
                resp::command(&mut self.pipe.batch(node, to, mark)?.bytes, &args);
                self.pipe.added(node, 1);
            }
        }
        Ok(())
    }

    fn set_field_expiries(&mut self, fields: Vec<(DbIndex, Vec<u8>, Vec<u8>)>) -> Result<()> {
        for chunk in fields.chunk_by(|a, b| a.0 == b.0) {
            let Some(db) = chunk.first().map(|(db, ..)| *db) else {
                continue;
            };
            let names: Vec<_> = (chunk.iter())
                .map(|(_, key, field)| (self.source_name(key), field.as_slice()))
                .collect();
            let told =
                self.fenced(|fence, runtime| runtime.block_on(fence.field_expiries(db, &names)));
            let mark = self.now();
            let expiries = match told {
                Ok(expiries) => expiries,
                Err(e) if e.kind() == ErrorKind::Refused => {
                    // The plan's user may not ask that, but may read the keys whole.
                    let keys: Vec<Key> = chunk.iter().map(|(_, k, _)| (db, k.clone())).collect();
                    self.heal(&keys, mark)?;
                    continue;
                }
                Err(e) => return Err(e),
            };
            for ((_, key, field), at) in chunk.iter().zip(expiries) {
                let Some(at) = at else { continue };
                let Admission::Yes(to) = self.admission(db, key)? else {
                    continue;
                };
                let node = self.pipe.node_of(Slot::of(key));
                let batch = self.pipe.batch(node, to, mark)?;
                // Where the field is not there, the key is read whole.
                batch.expect.push(batch.commands);
                let at = at.to_string();
                let args: [&[u8]; 6] = [b"HPEXPIREAT", key, at.as_bytes(), b"FIELDS", b"1", field];
                resp::command(&mut batch.bytes, &args);
                self.pipe.added(node, 1);
            }
        }
        Ok(())
    }
}
