//! What becomes of each key and each command: forwarded as it is, split by slot, or made exact by healing its keys.

use crate::command::{self, Access, Command, Kind, Spec};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::bulk::no_database;
use crate::migrate::expiry::{HEAL_WHOLE, HOLD_MS};
use crate::migrate::losses;
use crate::migrate::obey;
use crate::migrate::pump::Pump;
use crate::migrate::renamed::Room;
use crate::plan::OnExisting;
use crate::resp;
use crate::types::unix_ms;
use crate::types::{DbIndex, Mark, ReplOffset, Slot, db_key, shown, split_db_key};
use std::sync::atomic::Ordering::Relaxed;

impl Pump {
    /// A library of functions goes to every node.
    pub(super) fn function(&mut self, code: &[u8], mark: Mark) -> Result<()> {
        if !self.shared.target_has_functions {
            self.note(
                "skipped.function",
                "the target has no functions: the source's function libraries are left out",
            );
            return Ok(());
        }
        let mut command = Vec::new();
        resp::command(&mut command, &[b"FUNCTION", b"LOAD", b"REPLACE", code]);
        self.broadcast(&command, mark)
    }

    pub(super) fn lost_function(&mut self, name: &[u8]) -> Result<()> {
        let name = shown(name);
        self.note("skipped.function", &format!("the function library {name} has the format of a Redis 7.0 release candidate and is left out"));
        Ok(())
    }

    pub(super) fn broadcast(&mut self, command: &[u8], mark: Mark) -> Result<()> {
        for node in 0..self.pipe.node_count() {
            self.pipe
                .batch(node, DbIndex::ZERO, mark)?
                .bytes
                .extend_from_slice(command);
            self.pipe.added(node, 1);
        }
        Ok(())
    }

    /// Sends a transaction as one when it keeps to one slot and needs nothing special; false: treat its commands one by one.
    pub(super) fn transaction(&mut self, whole: &[u8], ends: &[usize], mark: Mark) -> Result<bool> {
        let end = self.at.plus(whole.len() as u64);
        let special = end <= self.window_end
            || !self.fenced.is_empty()
            || !self.dirty.is_empty()
            || self.holding
            || self.lagging
            || self.shared.relative_ttls
            || !self.shared.job.filter.is_empty()
            || !self.shared.job.renames.is_empty();
        if special {
            return Ok(false);
        }
        let Some(db) = self.shared.job.databases.map(self.db) else {
            return Ok(false);
        };
        let mut slot = None;
        let mut args = Vec::new();
        // Keys, or fields of them, that must be there.
        let mut guarded: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
        let mut fields = false;
        let mut keys = std::mem::take(&mut self.keys);
        for pair in ends.windows(2) {
            let [from, to] = pair else { continue };
            let raw = whole.get(*from..*to).unwrap_or_default();
            resp::parse_command(raw, &mut args)?;
            let cmd = Command { raw, args: &args };
            let spec = known(&cmd)?;
            if !matches!(spec.kind, Kind::Write | Kind::Split(_))
                || command::copy_db(&cmd).is_some()
            {
                self.keys = keys;
                return Ok(false);
            }
            self.note_debts(&cmd, spec, mark);
            fields |= command::expiry::expects_field(cmd.name());
            spec.keys(&cmd, &mut keys)?;
            (self.timed).each_needed(self.db, &cmd, spec, &keys, |key, field| {
                let new = (key.to_vec(), field.map(<[u8]>::to_vec));
                if !guarded.contains(&new) {
                    guarded.push(new);
                }
            });
            self.note_timed(&cmd, spec, &keys);
            self.note_there(&cmd, spec, &keys);
            for key in &keys {
                let key = cmd.arg(key.index).unwrap_or_default();
                if !self.owns(key) {
                    self.keys = keys;
                    return Ok(false);
                }
                let this = Slot::of(key);
                if self.pipe.topology().one_slot && slot.is_some_and(|s| s != this) {
                    self.keys = keys;
                    self.count("transactions_split");
                    return Ok(false);
                }
                slot = Some(this);
                self.touch(self.db, key);
            }
        }
        self.keys = keys;
        let Some(slot) = slot else { return Ok(false) };
        let node = self.pipe.node_of(slot);
        let batch = self.pipe.batch(node, db, mark)?;
        let mut guards = 0;
        for (key, field) in &guarded {
            batch.guard(&mut guards, key, field.as_deref());
        }
        batch.bytes.extend_from_slice(whole);
        // MULTI, the commands, EXEC.
        let commands = ends.len() as u32 + 1;
        if fields {
            batch.expect.push(batch.commands + guards + commands - 1);
        }
        self.pipe.added(node, guards + commands);
        self.progress
            .commands
            .fetch_add(u64::from(commands) - 2, Relaxed);
        self.progress
            .writes
            .fetch_add(u64::from(commands) - 2, Relaxed);
        Ok(true)
    }

    /// One command of the stream; `end` is the offset after it.
    pub(super) fn command(&mut self, cmd: &Command<'_>, end: ReplOffset, mark: Mark) -> Result<()> {
        let spec = known(cmd)?;
        match spec.kind {
            Kind::Ping
            | Kind::Replconf
            | Kind::Read
            | Kind::Ignore
            | Kind::Multi
            | Kind::Exec
            | Kind::Discard => Ok(()),
            Kind::Select => {
                let db = cmd
                    .arg(1)
                    .and_then(|n| std::str::from_utf8(n).ok())
                    .and_then(|n| n.parse().ok());
                self.db = DbIndex(db.ok_or_else(|| {
                    Error::new(
                        ErrorKind::Protocol,
                        "the stream holds a SELECT without a number",
                    )
                })?);
                Ok(())
            }
            Kind::Publish => {
                // Subscribers of the target are not the source's: they are served from the cutover on.
                self.count("skipped.publish");
                Ok(())
            }
            Kind::Function => self.stream_function(cmd, mark),
            Kind::Script => match cmd.arg(1) {
                Some(sub) if sub.eq_ignore_ascii_case(b"LOAD") => self.broadcast(cmd.raw, mark),
                _ => Ok(()),
            },
            Kind::FlushDb | Kind::FlushAll => {
                self.flush_command(cmd, spec.kind == Kind::FlushAll, end, mark)
            }
            Kind::SwapDb => Err(Error::new(
                ErrorKind::Unsupported,
                "the source ran SWAPDB, which exchanges whole databases under the migration",
            )
            .hint("start over with --fresh once the databases are as they shall stay")),
            Kind::Write | Kind::Split(_) | Kind::Move | Kind::Eval => {
                self.progress.commands.fetch_add(1, Relaxed);
                let expired = obey::removes_expired(cmd, |key| self.timed.may(key));
                self.progress.writes.fetch_add(u64::from(!expired), Relaxed);
                let mut room = Room::default();
                let Some(cmd) = &self.renamed(cmd, spec, mark, &mut room)? else {
                    return Ok(());
                };
                if !self.long.is_cut() {
                    self.note_debts(cmd, spec, mark);
                }
                self.write_command(cmd, spec, end, mark)
            }
        }
    }

    fn stream_function(&mut self, cmd: &Command<'_>, mark: Mark) -> Result<()> {
        if !self.shared.target_has_functions {
            self.note(
                "skipped.function",
                "the target has no functions: the source's function libraries are left out",
            );
            return Ok(());
        }
        let sub = cmd.arg(1).unwrap_or_default();
        let mut out = Vec::new();
        if sub.eq_ignore_ascii_case(b"LOAD") {
            // With REPLACE it may run twice.
            let code = cmd.arg(cmd.len() - 1).unwrap_or_default();
            resp::command(&mut out, &[b"FUNCTION", b"LOAD", b"REPLACE", code]);
        } else if sub.eq_ignore_ascii_case(b"RESTORE") {
            resp::command(
                &mut out,
                &[
                    b"FUNCTION",
                    b"RESTORE",
                    cmd.arg(2).unwrap_or_default(),
                    b"REPLACE",
                ],
            );
        } else {
            out.extend_from_slice(cmd.raw);
        }
        self.broadcast(&out, mark)
    }

    fn flush_command(
        &mut self,
        cmd: &Command<'_>,
        all: bool,
        end: ReplOffset,
        mark: Mark,
    ) -> Result<()> {
        self.shared.event(
            "warning",
            "flush",
            &format!(
                "the source ran {} at offset {end}",
                String::from_utf8_lossy(cmd.name())
            ),
        );
        self.touch_all();
        self.timed.forget_absent();
        self.heal_dirty()?;
        // In a cluster, a flush of one master concerns its own slots only.
        let simple = self.shared.ownership.is_none()
            && self.shared.job.databases.is_identity()
            && self.shared.job.filter.is_empty()
            && self.shared.job.on_existing == OnExisting::Fail;
        if simple {
            let mut out = Vec::new();
            resp::command(
                &mut out,
                &[if all {
                    b"FLUSHALL".as_slice()
                } else {
                    b"FLUSHDB"
                }],
            );
            for node in 0..self.pipe.node_count() {
                self.pipe
                    .batch(node, self.db, mark)?
                    .bytes
                    .extend_from_slice(&out);
                self.pipe.added(node, 1);
            }
            // States that were read later than the flush have just been wiped: write them once more.
            let again: Vec<_> = self.fenced.keys().map(|k| split_db_key(k)).collect();
            self.heal(&again, mark)
        } else {
            // Only what is ours may go: every key of the target is compared with the source.
            self.reconcile(true)
        }
    }

    fn write_command(
        &mut self,
        cmd: &Command<'_>,
        spec: &'static Spec,
        end: ReplOffset,
        mark: Mark,
    ) -> Result<()> {
        let mut keys = std::mem::take(&mut self.keys);
        let routed = spec
            .keys(cmd, &mut keys)
            .and_then(|()| self.route(cmd, spec, &keys, end, mark));
        self.keys = keys;
        routed
    }

    fn route(
        &mut self,
        cmd: &Command<'_>,
        spec: &'static Spec,
        keys: &[command::KeyArg],
        end: ReplOffset,
        mark: Mark,
    ) -> Result<()> {
        for k in keys.iter().filter(|k| k.access == Access::Write) {
            self.touch(self.db, cmd.arg(k.index).unwrap_or_default());
        }
        if let Some(key) = keys.first().and_then(|k| cmd.arg(k.index))
            && !self.owns(key)
        {
            // The slot is on its way: its new owner copies it.
            if let Some(ownership) = &self.shared.ownership {
                ownership.suspect(Slot::of(&self.source_name(key)));
            }
            self.count("left_to_adoption");
            return Ok(());
        }
        let source_db = self.db;
        let job = &self.shared.job;
        let other_db = command::copy_db(cmd);
        let target_db = match (job.databases.map(source_db), other_db) {
            (None, None) => {
                self.count("skipped.database");
                return Ok(());
            }
            (db, _) => db,
        };
        let key = |k: &command::KeyArg| cmd.arg(k.index).unwrap_or_default();
        if keys.is_empty() {
            return match spec.kind {
                Kind::Eval => Err(Error::new(ErrorKind::Unsupported, format!("the source replicates {} without keys: what it writes cannot be known", spec.name))
                    .hint("a source of Redis 4 or older sends scripts as they are: stop writers that use keyless scripts, then start over with --fresh")),
                _ => Err(Error::new(ErrorKind::Protocol, format!("{} without a key", spec.name))),
            };
        }
        if !job.filter.is_empty() {
            let wanted = keys.iter().filter(|k| self.accepts(key(k))).count();
            if wanted == 0 {
                self.count("skipped.filter");
                return Ok(());
            }
            if wanted < keys.len() || job.filter.looks_inside() {
                let written = self.written(cmd, keys, |k| self.accepts(k));
                return self.heal(&written, mark);
            }
        }
        if !self.shared.existing.is_empty()
            && let Some(db) = target_db
            && keys.iter().any(|k| self.is_existing(db, key(k)))
        {
            let mut written = self.written(cmd, keys, |_| true);
            written.retain(|(_, k)| !self.is_existing(db, k));
            self.count("skipped.existing");
            return self.heal(&written, mark);
        }
        if let Some(db) = target_db
            && !self.target_has(db)?
        {
            let why = no_database(source_db);
            return self
                .written(cmd, keys, |_| true)
                .iter()
                .try_for_each(|(_, k)| self.lose(db, k, losses::DATABASE, &why));
        }
        let timed = self.note_timed(cmd, spec, keys);
        // What was too long to be held cannot run.
        if end <= self.window_end || self.long.is_cut() || (self.lagging && timed) {
            let written = self.written(cmd, keys, |_| true);
            for (db, k) in written.into_iter().chain(moved_to(cmd, other_db, keys)) {
                if !self.is_fenced(db, &k, end) {
                    self.dirty.push((db, k));
                    self.dirty_from.get_or_insert(mark);
                }
            }
            return if self.dirty.len() >= 512 {
                self.heal_dirty()
            } else {
                Ok(())
            };
        }
        self.heal_dirty()?;
        if let Some(other) = other_db {
            let mut both = self.written(cmd, keys, |_| true);
            both.extend(moved_to(cmd, Some(other), keys));
            self.count("cross_database");
            return self.heal(&both, mark);
        }
        if !self.fenced.is_empty() {
            if end > self.fenced_to {
                self.fenced.clear();
                self.refusals.clear();
            } else if keys.iter().any(|k| self.is_fenced(source_db, key(k), end)) {
                // What is already there is left; what is not is read, as the command cannot run on a mixed state.
                let mut rest = self.written(cmd, keys, |_| true);
                rest.retain(|(db, k)| !self.is_fenced(*db, k, end));
                return if rest.is_empty() {
                    Ok(())
                } else {
                    self.heal(&rest, mark)
                };
            }
        }
        let Some(target_db) = target_db else {
            return Ok(());
        };
        let slot = keys.first().map_or(Slot::of(b""), |k| Slot::of(key(k)));
        let together =
            !self.pipe.topology().one_slot || keys.iter().all(|k| Slot::of(key(k)) == slot);
        if together {
            self.forward(cmd, spec, keys, slot, target_db, mark)?;
            self.note_there(cmd, spec, keys);
            return Ok(());
        }
        self.count("cross_slot");
        if let Kind::Split(kind) = spec.kind {
            let mut failed = None;
            command::split::by_slot(cmd, kind, Slot::of, |slot, part, _| {
                let mut args = Vec::new();
                let one = resp::parse_command(part, &mut args).and_then(|_| {
                    self.forward(
                        &Command {
                            raw: part,
                            args: &args,
                        },
                        spec,
                        &[],
                        slot,
                        target_db,
                        mark,
                    )
                });
                if let (Err(e), None) = (one, &failed) {
                    failed = Some(e);
                }
            })?;
            self.note_there(cmd, spec, keys);
            return failed.map_or(Ok(()), Err);
        }
        let written = self.written(cmd, keys, |_| true);
        self.heal(&written, mark)
    }

    fn written(
        &self,
        cmd: &Command<'_>,
        keys: &[command::KeyArg],
        accept: impl Fn(&[u8]) -> bool,
    ) -> Vec<(DbIndex, Vec<u8>)> {
        keys.iter()
            .filter(|k| k.access == Access::Write)
            .filter_map(|k| cmd.arg(k.index))
            .filter(|k| accept(k))
            .map(|k| (self.db, k.to_vec()))
            .collect()
    }

    /// A key that the target held before us, which the plan says to keep.
    pub(super) fn is_existing(&self, target_db: DbIndex, key: &[u8]) -> bool {
        self.shared.existing.contains(target_db, key)
    }

    pub(super) fn is_fenced(&self, db: DbIndex, key: &[u8], end: ReplOffset) -> bool {
        !self.fenced.is_empty() && self.fenced.get(&db_key(db, key)).is_some_and(|f| end <= *f)
    }

    /// Appends a command that keeps to one slot, its expiry made absolute and held back where need be.
    fn forward(
        &mut self,
        cmd: &Command<'_>,
        spec: &'static Spec,
        keys: &[command::KeyArg],
        slot: Slot,
        db: DbIndex,
        mark: Mark,
    ) -> Result<()> {
        let node = self.pipe.node_of(slot);
        let mut raw = cmd.raw;
        let (mut absolute, mut held) = (Vec::new(), Vec::new());
        if spec.carries_expiry && (self.shared.relative_ttls || self.holding) {
            let now = unix_ms();
            let mut args = Vec::new();
            if self.shared.relative_ttls {
                let arrived = self.spool.arrival_ms(self.at).unwrap_or(now);
                if command::expiry::make_absolute(cmd, arrived, &mut absolute)? {
                    raw = &absolute;
                }
            }
            if self.holding {
                resp::parse_command(raw, &mut args)?;
                let cmd = Command { raw, args: &args };
                if let Some(was) =
                    command::expiry::hold(&cmd, now + self.horizon_ms(), now + HOLD_MS, &mut held)?
                {
                    let key = cmd.arg(was.key_index).unwrap_or_default().to_vec();
                    // Fields are released by healing the whole key.
                    let db = if was.fields {
                        DbIndex(self.db.0 | HEAL_WHOLE)
                    } else {
                        self.db
                    };
                    self.held.note(db, &key);
                    raw = &held;
                }
            }
        }
        let batch = self.pipe.batch(node, db, mark)?;
        let mut guards = 0;
        (self.timed).each_needed(self.db, cmd, spec, keys, |key, field| {
            batch.guard(&mut guards, key, field);
        });
        if command::expiry::expects_key(cmd.name()) {
            batch.expect.push(batch.commands + guards);
        }
        if raw.first() == Some(&b'*') {
            batch.bytes.extend_from_slice(raw);
        } else {
            // An inline command of a very old source.
            let words: Vec<&[u8]> = (0..cmd.len()).filter_map(|i| cmd.arg(i)).collect();
            resp::command(&mut batch.bytes, &words);
        }
        self.pipe.added(node, guards + 1);
        Ok(())
    }
}

/// The key that COPY … DB or MOVE writes in another database.
fn moved_to(
    cmd: &Command<'_>,
    db: Option<u32>,
    keys: &[command::KeyArg],
) -> Option<(DbIndex, Vec<u8>)> {
    let last = keys.last()?;
    Some((DbIndex(db?), cmd.arg(last.index)?.to_vec()))
}

fn known(cmd: &Command<'_>) -> Result<&'static Spec> {
    command::lookup(cmd.name()).ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!(
                "the stream holds the command {}, which keyferry does not know",
                shown(cmd.name())
            ),
        )
        .hint("report it; until it is known, stop its writers and start over with --fresh")
    })
}
