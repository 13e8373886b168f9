//! What becomes of each key and each command: forwarded as it is, split by slot, or made exact by healing its keys.

use crate::command::{self, Access, Command, Kind, Spec};
use crate::error::{Error, ErrorKind, Result};
use crate::fence::{Dump, KeyState};
use crate::migrate::admission::{Admission, Barred};
use crate::migrate::expiry::{HEAL_WHOLE, HOLD_MS};
use crate::migrate::heal::Key;
use crate::migrate::obey;
use crate::migrate::pump::Pump;
use crate::migrate::reconcile::Older;
use crate::migrate::renamed::Room;
use crate::plan::OnExisting;
use crate::resp;
use crate::target::Database;
use crate::types::unix_ms;
use crate::types::{DbIndex, ExpireAt, Mark, ReplOffset, Slot, db_key, shown, split_db_key};
use std::sync::atomic::Ordering::Relaxed;

impl Pump {
    pub(super) fn broadcast(&mut self, command: &[u8], mark: Mark) -> Result<()> {
        for node in 0..self.pipe.node_count() {
            self.pipe
                .batch(node, Database::ZERO, mark)?
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
            || !self.heal_queue.is_empty()
            || self.holding
            || self.lagging
            || self.shared.relative_ttls
            || !self.shared.job.filter.is_empty()
            || !self.shared.job.renames.is_empty();
        if special {
            return Ok(false);
        }
        let Some((slot, db)) = self.runs_as_one(whole, ends)? else {
            return Ok(false);
        };
        let mut args = Vec::new();
        // Keys, or fields of them, that must be there.
        let mut guarded: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
        let mut fields = false;
        let mut keys = std::mem::take(&mut self.keys);
        for raw in parts(whole, ends) {
            resp::parse_command(raw, &mut args)?;
            let cmd = Command { raw, args: &args };
            let spec = known(&cmd)?;
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
                self.touch(self.db, cmd.arg(key.index).unwrap_or_default());
            }
        }
        self.keys = keys;
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

    /// Where a transaction may run as it is: all of its keys are admitted, and in one slot where that matters.
    fn runs_as_one(&mut self, whole: &[u8], ends: &[usize]) -> Result<Option<(Slot, Database)>> {
        let (mut found, mut args, mut keys) = (None, Vec::new(), Vec::new());
        for raw in parts(whole, ends) {
            resp::parse_command(raw, &mut args)?;
            let cmd = Command { raw, args: &args };
            let spec = known(&cmd)?;
            let in_two = !self.shared.target_has_set_pxat && command::expiry::is_set_at(&cmd);
            let plain = matches!(spec.kind, Kind::Write | Kind::Split(_)) && !in_two;
            if !plain || !self.runs_as_it_is(&cmd, spec) {
                return Ok(None);
            }
            spec.keys(&cmd, &mut keys)?;
            for key in &keys {
                let key = cmd.arg(key.index).unwrap_or_default();
                let Admission::Yes(db) = self.admission(self.db, key)? else {
                    return Ok(None);
                };
                let slot = Slot::of(key);
                if self.pipe.topology().one_slot && found.is_some_and(|(s, _)| s != slot) {
                    self.count("transactions_split");
                    return Ok(None);
                }
                found = Some((slot, db));
            }
        }
        Ok(found)
    }

    /// Whether the target may run a command itself, its keys being admitted; else they are healed.
    fn runs_as_it_is(&self, cmd: &Command<'_>, spec: &'static Spec) -> bool {
        // What the target could not hold of the one key is missing in the other as well, and has to be listed.
        let copies_loss =
            self.shared.loses_field_expiry && matches!(spec.name, "RENAME" | "RENAMENX" | "COPY");
        let elsewhere = command::copy_db(cmd).is_some();
        !elsewhere && !copies_loss && !is_restore(spec) && !self.forms.has(cmd)
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
            Kind::TrimSlots => self.trim_slots(cmd),
            Kind::Write | Kind::Split(_) | Kind::Move | Kind::Eval => {
                if spec.kind == Kind::Eval {
                    // It may write what waits.
                    self.heal_queued()?;
                    self.check_script(cmd, spec, end)?;
                }
                self.progress.commands.fetch_add(1, Relaxed);
                let expired = obey::removes_expired(cmd, |key| self.timed.may(key));
                self.progress.writes.fetch_add(u64::from(!expired), Relaxed);
                let mut room = Room::default();
                let Some(cmd) = &self.renamed(cmd, spec, mark, &mut room)? else {
                    return Ok(());
                };
                self.write_command(cmd, spec, end, mark)
            }
        }
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
                "the source ran {} in database {} at offset {end}",
                String::from_utf8_lossy(cmd.name()),
                self.db
            ),
        );
        self.touch_all();
        self.timed.forget_absent();
        self.heal_queued()?;
        let job = self.shared.job.clone();
        let flushed = match all {
            true => None,
            // What the plan leaves out, or the target does not have, holds nothing of ours.
            false => match job.databases.map(self.db) {
                Some(to) => match self.database(to)? {
                    Some(db) => Some(db),
                    None => return Ok(()),
                },
                None => return Ok(()),
            },
        };
        // In a cluster, a flush of one master concerns its own slots only.
        let simple = self.shared.ownership.is_none()
            && job.databases.is_identity()
            && job.filter.is_empty()
            && job.on_existing == OnExisting::Fail;
        if !simple {
            // Only what is ours may go: the target's keys are compared with the source.
            return self.reconcile(Older::Flushed(flushed.map(Database::index)));
        }
        let mut out = Vec::new();
        let name: &[u8] = if all { b"FLUSHALL" } else { b"FLUSHDB" };
        resp::command(&mut out, &[name]);
        for node in 0..self.pipe.node_count() {
            let db = flushed.unwrap_or(Database::ZERO);
            let batch = self.pipe.batch(node, db, mark)?;
            batch.bytes.extend_from_slice(&out);
            self.pipe.added(node, 1);
        }
        // States that were read later than the flush have just been wiped: write them once more.
        let states = self.fenced.keys().map(|k| split_db_key(k));
        let again: Vec<Key> = (states.filter(|(db, _)| all || *db == self.db)).collect();
        self.heal(&again, mark)
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
        if keys.is_empty() {
            let wrong = format!("{} without a key", spec.name);
            return Err(Error::new(ErrorKind::Protocol, wrong));
        }
        let key = |k: &command::KeyArg| cmd.arg(k.index).unwrap_or_default();
        let mut to = None;
        for k in keys {
            match self.admission(self.db, key(k))? {
                Admission::Yes(db) => to = Some(db),
                Admission::Replace(db) if self.source.is_none() && k.access == Access::Write => {
                    // A file cannot be asked, but in it the key was not there before this command.
                    self.shared.own.replace(db.index(), key(k))?;
                    self.remove(db, key(k), mark)?;
                    to = Some(db);
                }
                Admission::No(Barred::Slot) => {
                    // Its new owner copies it.
                    self.suspect(key(k));
                    return Ok(());
                }
                _ => return self.heal_admitted(cmd, spec, keys, mark),
            }
        }
        let Some(target_db) = to else { return Ok(()) };
        if self.shared.job.filter.looks_inside() {
            return self.heal_admitted(cmd, spec, keys, mark);
        }
        let timed = self.note_timed(cmd, spec, keys);
        let waits = !self.heal_queue.is_empty()
            && keys.iter().any(|k| self.heal_queue.has(self.db, key(k)));
        // What was too long to be held cannot run.
        let read = end <= self.window_end
            || self.long.is_cut()
            || self.is_timeless(cmd, spec)
            || (self.lagging && timed);
        if read || waits || self.forms.has(cmd) {
            for (db, k) in self.written(cmd, keys) {
                if !self.is_fenced(db, &k, end) {
                    self.heal_queue.push((db, k), mark);
                }
            }
            return self.heal_due();
        }
        self.heal_due()?;
        if !self.fenced.is_empty() {
            if end > self.fenced_to {
                self.fenced.clear();
                self.refusals.clear();
            } else if keys.iter().any(|k| self.is_fenced(self.db, key(k), end)) {
                // What is already there is left; what is not is read, as the command cannot run on a mixed state.
                let mut rest = self.written(cmd, keys);
                rest.retain(|(db, k)| !self.is_fenced(*db, k, end));
                return if rest.is_empty() {
                    Ok(())
                } else {
                    self.heal(&rest, mark)
                };
            }
        }
        if is_restore(spec) {
            return self.restored(cmd, target_db, mark);
        }
        if !self.runs_as_it_is(cmd, spec) {
            if command::copy_db(cmd).is_some() {
                self.count("cross_database");
            }
            let written = self.written(cmd, keys);
            return self.heal(&written, mark);
        }
        self.note_debts(cmd, spec, mark);
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
        let written = self.written(cmd, keys);
        self.heal(&written, mark)
    }

    /// Some key of a command is not simply admitted, so the command cannot run: what it writes is healed as far as each
    /// key's own admission goes, in whichever database it is.
    fn heal_admitted(
        &mut self,
        cmd: &Command<'_>,
        spec: &'static Spec,
        keys: &[command::KeyArg],
        mark: Mark,
    ) -> Result<()> {
        let removes = matches!(spec.kind, Kind::Split(command::SplitKind::Keys));
        let mut wanted = Vec::new();
        let mut barred = None;
        for (db, name) in self.written(cmd, keys) {
            match self.admission(db, &name)? {
                Admission::Yes(_) | Admission::Replace(_) => wanted.push((db, name)),
                Admission::No(Barred::NoDatabase(to)) if !removes => {
                    self.lose_for_want_of(db, to, &name)?;
                }
                Admission::No(Barred::NoDatabase(_)) => {}
                Admission::No(Barred::Slot) => self.suspect(&name),
                Admission::No(why) => {
                    barred.get_or_insert(why);
                }
            }
        }
        if let Some(why) = barred.filter(|why| wanted.is_empty() || *why == Barred::Own) {
            self.count(why.counter());
        }
        self.heal(&wanted, mark)
    }

    /// What a command writes, in whichever database of the source it is.
    fn written(&self, cmd: &Command<'_>, keys: &[command::KeyArg]) -> Vec<Key> {
        let written = (keys.iter())
            .filter(|k| k.access == Access::Write)
            .filter_map(|k| cmd.arg(k.index));
        match command::copy_db(cmd).map(DbIndex) {
            None => written.map(|k| (self.db, k.to_vec())).collect(),
            // COPY leaves its first key as it is, MOVE takes it away.
            Some(other) => written
                .flat_map(|k| [(self.db, k.to_vec()), (other, k.to_vec())])
                .filter(|(db, _)| *db == other || cmd.name().eq_ignore_ascii_case(b"MOVE"))
                .collect(),
        }
    }

    pub(super) fn is_fenced(&self, db: DbIndex, key: &[u8], end: ReplOffset) -> bool {
        !self.fenced.is_empty() && self.fenced.get(&db_key(db, key)).is_some_and(|f| end <= *f)
    }

    /// Whether a command sets an expiry that counts from a moment which nobody knows.
    fn is_timeless(&self, cmd: &Command<'_>, spec: &'static Spec) -> bool {
        self.shared.relative_ttls
            && spec.carries_expiry
            && self.source.is_some()
            && command::expiry::is_relative(cmd)
            && self.spool.written_ms(self.at).is_none()
    }

    /// RESTORE takes the way of every value: what the source has restored, the target may hold in another form only.
    fn restored(&mut self, cmd: &Command<'_>, db: Database, mark: Mark) -> Result<()> {
        let key = cmd.arg(1).unwrap_or_default().to_vec();
        let arrived = self.spool.written_ms(self.at);
        let restored = command::expiry::restored(cmd, arrived.unwrap_or_else(unix_ms))?;
        let (mut expire, now) = (restored.expire, unix_ms());
        if self.holding && expire.is_some_and(|e| e.0 < now + self.horizon_ms()) {
            self.held.note(self.db, &key);
            expire = Some(ExpireAt(now + HOLD_MS));
        }
        let state = KeyState {
            payload: Some(Dump::Whole(restored.payload.to_vec())),
            expire,
            offset: ReplOffset(0),
            elsewhere: false,
        };
        self.write_admitted(db, self.db, &key, &state, mark)?;
        self.timed.note(self.db, &key, true);
        Ok(())
    }

    /// Appends a command that keeps to one slot, its expiry made absolute and held back where need be.
    fn forward(
        &mut self,
        cmd: &Command<'_>,
        spec: &'static Spec,
        keys: &[command::KeyArg],
        slot: Slot,
        db: Database,
        mark: Mark,
    ) -> Result<()> {
        let node = self.pipe.node_of(slot);
        let mut raw = cmd.raw;
        let (mut absolute, mut held) = (Vec::new(), Vec::new());
        if spec.carries_expiry && (self.shared.relative_ttls || self.holding) {
            let now = unix_ms();
            let mut args = Vec::new();
            if self.shared.relative_ttls {
                // Where nobody knows it, the key was read instead.
                let arrived = self.spool.written_ms(self.at).unwrap_or(now);
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
        let (mut commands, mut two) = (1, Vec::new());
        if spec.carries_expiry && !self.shared.target_has_set_pxat {
            let mut args = Vec::new();
            resp::parse_command(raw, &mut args)?;
            let set = Command { raw, args: &args };
            if command::expiry::is_set_at(&set) {
                command::expiry::in_two(&set, &mut two)?;
                (raw, commands) = (&two, 2);
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
        self.pipe.added(node, guards + commands);
        Ok(())
    }
}

/// The commands of a transaction, without its MULTI and EXEC.
fn parts<'a>(whole: &'a [u8], ends: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    ends.windows(2)
        .filter_map(|pair| whole.get(*pair.first()?..*pair.get(1)?))
}

fn is_restore(spec: &Spec) -> bool {
    matches!(spec.name, "RESTORE" | "RESTORE-ASKING")
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
