//! What a source's stream does not tell, and so has to be asked of it once a second.
//!
//! No fence is needed: what the source says later only comes early, and what the stream still brings leads to it.

use crate::command::{Command, Spec};
use crate::error::{ErrorKind, Result};
use crate::migrate::checkpoint::checkpoints::Checkpoints;
use crate::migrate::checkpoint::holds::{HoldId, Why};
use crate::migrate::context::ShardContext;
use crate::migrate::expiry::guard::ExpiryGuard;
use crate::migrate::expiry::held::LAG_MS;
use crate::migrate::heal::fenced_reader::ReadStates;
use crate::migrate::heal::queue::Key;
use crate::migrate::write::door::{Admission, Door};
use crate::migrate::write::target_writer::TargetWriter;
use crate::migrate::write::wire::Wire;
use crate::types::{DbIndex, Mark};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A field of a hash, with its database.
pub(crate) type Field = (DbIndex, Vec<u8>, Vec<u8>);

/// What is to be asked.
#[derive(Default)]
pub(crate) struct Unreplicated {
    /// Streams: older sources replicate a group's last id, but not how many entries it has read.
    groups: BTreeSet<Key>,
    /// Fields of hashes: some sources replicate HINCRBYFLOAT as an HSET, which takes the field's expiry away.
    fields: BTreeSet<Field>,
    /// The libraries of functions are to be compared.
    functions: bool,
    /// Keeps checkpoints before the first command that left some, with its mark, and when it came.
    since: Option<(HoldId, Mark, Instant)>,
}

/// What [`Unreplicated::take`] hands out.
pub(crate) struct ToAsk {
    pub groups: BTreeSet<Key>,
    pub fields: Vec<Field>,
    pub functions: bool,
    /// Of the first command that left some: what is written on its account has this mark.
    pub mark: Mark,
    hold: HoldId,
}

impl ToAsk {
    /// All of it is on its way.
    pub fn done(self, marks: &mut Checkpoints) {
        marks.release(self.hold);
    }
}

/// With more fields than this, their keys are read whole when the source has been caught up with.
const MOST: usize = 10_000;
/// How long a checkpoint is held back while the source has not been caught up with.
const LONG: Duration = Duration::from_secs(10);

impl Unreplicated {
    /// Notes what a command of the source's database `db` leaves to be asked.
    pub fn note(
        &mut self,
        ctx: &ShardContext,
        db: DbIndex,
        cmd: &Command<'_>,
        spec: &Spec,
        expiry: &mut ExpiryGuard,
        (mark, marks): (Mark, &mut Checkpoints),
    ) {
        let [Some(key), Some(second)] = [cmd.arg(1), cmd.arg(2)] else {
            return;
        };
        match spec.name {
            "XCLAIM" if ctx.facts().silent_entries_read => {
                self.groups.insert((db, key.to_vec()));
            }
            "HSET"
                if ctx.facts().silent_field_expiry
                    && cmd.len() == 4
                    && expiry.expects_field(db, key, second) =>
            {
                if expiry.is_holding() || self.fields.len() >= MOST {
                    expiry.hold_whole(db, key);
                    return;
                }
                self.fields.insert((db, key.to_vec(), second.to_vec()));
            }
            _ => return,
        }
        self.hold(mark, marks);
    }

    fn hold(&mut self, mark: Mark, marks: &mut Checkpoints) {
        if self.since.is_none() {
            self.since = Some((marks.hold(mark, Why::ToAsk), mark, Instant::now()));
        }
    }

    /// The target's libraries are to be made the source's: before a checkpoint passes the mark, or without one at the
    /// end of the load.
    pub fn owe_functions(&mut self, of: Option<(Mark, &mut Checkpoints)>) {
        self.functions = true;
        if let Some((mark, marks)) = of {
            self.hold(mark, marks);
        }
    }

    pub fn owes_functions(&self) -> bool {
        self.functions
    }

    /// They are.
    pub fn functions_done(&mut self) {
        self.functions = false;
    }

    /// Whether to ask with this checkpoint; while much is still to come, the same would be asked again and again.
    pub fn is_due(&self, lag_ms: u64) -> bool {
        (self.since).is_some_and(|(.., since)| lag_ms < LAG_MS || since.elapsed() > LONG)
    }

    /// Hands out what is to be asked, if anything is.
    pub fn take(&mut self) -> Option<ToAsk> {
        let (hold, mark, _) = self.since.take()?;
        Some(ToAsk {
            groups: std::mem::take(&mut self.groups),
            fields: std::mem::take(&mut self.fields).into_iter().collect(),
            functions: std::mem::take(&mut self.functions),
            mark,
            hold,
        })
    }
}

/// Sets how many entries the groups of streams have read.
pub(crate) fn set_entries_read<W: Wire>(
    streams: BTreeSet<Key>,
    reader: &mut impl ReadStates,
    door: &mut Door,
    writer: &mut TargetWriter<W>,
    mark: Mark,
) -> Result<()> {
    for (db, key) in streams {
        let Admission::Yes(pass) = door.admit(db, &key)? else {
            continue;
        };
        for group in reader.groups(db, &key)? {
            let mut args: Vec<&[u8]> = vec![b"XGROUP", b"SETID", &key, &group.name, &group.last_id];
            let read = group.entries_read.map(|n| n.to_string());
            if let Some(read) = &read {
                args.extend([b"ENTRIESREAD".as_slice(), read.as_bytes()]);
            }
            writer.command(pass, &key, &args, false, mark)?;
        }
    }
    Ok(())
}

/// Sets the expiries of hash fields; returns keys that have to be read whole instead, as the plan's user may not ask.
pub(crate) fn set_field_expiries<W: Wire>(
    fields: &[Field],
    reader: &mut impl ReadStates,
    door: &mut Door,
    writer: &mut TargetWriter<W>,
    mark: Mark,
) -> Result<Vec<Key>> {
    let mut whole = Vec::new();
    for chunk in fields.chunk_by(|a, b| a.0 == b.0) {
        let Some(db) = chunk.first().map(|(db, ..)| *db) else {
            continue;
        };
        let names: Vec<(&[u8], &[u8])> = (chunk.iter())
            .map(|(_, key, field)| (key.as_slice(), field.as_slice()))
            .collect();
        let expiries = match reader.field_expiries(db, &names) {
            Ok(expiries) => expiries,
            Err(e) if e.kind() == ErrorKind::Refused => {
                whole.extend(chunk.iter().map(|(_, key, _)| (db, key.clone())));
                continue;
            }
            Err(e) => return Err(e),
        };
        for ((_, key, field), at) in chunk.iter().zip(expiries) {
            let Some(at) = at else { continue };
            let Admission::Yes(pass) = door.admit(db, key)? else {
                continue;
            };
            let at = at.to_string();
            let args: [&[u8]; 6] = [b"HPEXPIREAT", key, at.as_bytes(), b"FIELDS", b"1", field];
            // Where the field is not there, the key is read whole.
            writer.command(pass, key, &args, true, mark)?;
        }
    }
    Ok(whole)
}
