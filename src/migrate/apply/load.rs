//! The first half of the loop: the snapshot out of the spool, record by record, from the saved mark on.

use crate::error::{Error, Result};
use crate::migrate::apply::apply_loop::{ApplyLoop, Ended, TICK};
use crate::migrate::load::loader::{Large, Loader};
use crate::migrate::stream::functions;
use crate::migrate::write::losses;
use crate::plan::Source;
use crate::rdb::file::{Head, Header, Item, Options, Snapshot};
use crate::rdb::opcode::Dialect;
use crate::rdb::value::is_of_search;
use crate::source::spool::{End, SnapshotTail};
use crate::target::Pipe;
use crate::task::failpoint;
use crate::types::{DbIndex, Mark, shown};
use std::sync::atomic::Ordering::Relaxed;

/// Records of the snapshot between two looks at everything else.
const RECORDS: u32 = 256;
/// The AUX field by which KeyDB tells of a member that expires, behind its key.
const MEMBER_EXPIRY: &[u8] = b"keydb-subexpire-key";

/// The key that was read last, and where its record begins.
#[derive(Default)]
struct Last {
    place: Option<(u64, DbIndex)>,
    key: Vec<u8>,
}

impl Last {
    fn is(&mut self, at: u64, h: &Header<'_>) {
        self.place = Some((at, h.db));
        self.key.clear();
        self.key.extend_from_slice(h.key);
    }
}

impl ApplyLoop {
    /// Loads the snapshot from the saved mark on; `Some` when the run ends before it is loaded.
    pub(super) fn load(&mut self) -> Result<Option<Ended>> {
        'again: loop {
            self.applier.loading.take_again();
            let shard = self.applier.marks.shard();
            let (from, from_db) = (shard.snapshot_at, shard.snapshot_db);
            let mut snapshot = match self.open_snapshot(from, from_db) {
                Ok(snapshot) => snapshot,
                Err(e) => return self.load_error(e, from),
            };
            let mut part = self.ctx.spool.part(from).map_or(0, |part| part.from);
            let (mut dialect, mut version) = self.begins(snapshot.head());
            self.applier.loading.seek(from, from_db);
            let mut records: u32 = 0;
            // The key before: what KeyDB tells of its members stands behind it.
            let mut last = Last::default();
            loop {
                if self.applier.writer.troubled() {
                    self.applier.resolve()?;
                }
                if self.applier.loading.wants_again() {
                    continue 'again;
                }
                records = records.wrapping_add(1);
                failpoint("load-begun");
                if records.is_multiple_of(RECORDS) {
                    if self.ctx.shared.stop.requested() {
                        return self.stop_loading().map(Some);
                    }
                    let done = snapshot.position();
                    self.ctx.progress.bytes_done.store(done, Relaxed);
                    self.tick()?;
                    self.applier.writer.put_old()?;
                    if self.sync_ownership()? {
                        continue 'again;
                    }
                    if self.applier.marks.has_lost() {
                        self.rewind()?;
                        continue 'again;
                    }
                }
                let before = self.applier.loading.at();
                self.keep_pace(snapshot.position().saturating_sub(before))?;
                (self.applier.loading).seek(snapshot.position(), snapshot.db());
                let (here, mark) = (self.applier.loading.at(), self.applier.loading.mark());
                let item = match snapshot.next() {
                    Ok(item) => item,
                    Err(e) => return self.load_error(e, part),
                };
                let mut again = false;
                match item {
                    Item::Aux { name, .. } if name == MEMBER_EXPIRY => {
                        self.lose_member_expiry(&last)?;
                    }
                    Item::Entry(entry) => {
                        last.is(here, &entry.header);
                        self.loader().entry(&entry, dialect, version, mark)?
                    }
                    Item::Large(large) => {
                        last.is(here, &large.header());
                        self.applier.loading.set_in_large(true);
                        let written = self.loader().large(large, mark)?;
                        again = self.finish_large(written)?;
                        self.applier.loading.set_in_large(false);
                    }
                    Item::Function(code) => self.load_function(code, mark)?,
                    Item::FunctionPreGa { name, .. } => self.ctx.note(
                        "skipped.function",
                        &format!(
                            "the function library {} has the format of a Redis 7.0 release candidate and is left out",
                            shown(name)
                        ),
                    ),
                    Item::Aux { name, value } => self.aux(name, value),
                    Item::ModuleAux { module, texts } if is_of_search(&module) => {
                        self.search_names(&module, &texts)?;
                    }
                    Item::ModuleAux { module, .. } => self.ctx.note(
                        "module_aux",
                        &format!(
                            "the snapshot holds data of the module {module} outside of keys; it is left out"
                        ),
                    ),
                    Item::Database(_)
                    | Item::Resize { .. }
                    | Item::SlotInfo { .. }
                    | Item::SlotImport => {}
                    Item::Joined(..) => {
                        self.ctx.spool.note_joined(snapshot.start())?;
                        (dialect, version) = self.begins(snapshot.head());
                        again = self.applier.settle_all()?;
                    }
                    Item::End => {
                        let Some(next) = self.ctx.spool.part_after(part) else {
                            break;
                        };
                        // What waits of one snapshot must not be written over the next one's.
                        if self.applier.settle_all()? {
                            continue 'again;
                        }
                        snapshot = match self.open_snapshot(next, DbIndex::ZERO) {
                            Ok(snapshot) => snapshot,
                            Err(e) => return self.load_error(e, next),
                        };
                        part = next;
                        (dialect, version) = self.begins(snapshot.head());
                        self.applier.loading.seek(next, DbIndex::ZERO);
                    }
                }
                if again {
                    if self.ctx.shared.stop.requested() {
                        return self.stop_loading().map(Some);
                    }
                    continue 'again;
                }
            }
            self.applier.marks.snapshot_read(snapshot.position());
            drop(snapshot);
            if self.applier.settle_all()? {
                continue 'again;
            }
            return Ok(None);
        }
    }

    /// A member of the key before expires by itself. Should that end the run, the next one begins with the key.
    fn lose_member_expiry(&mut self, last: &Last) -> Result<()> {
        let (Some((at, db)), key) = (last.place, &last.key) else {
            return Ok(());
        };
        self.applier.loading.seek(at, db);
        let job = self.ctx.job();
        match job.databases.map(db).filter(|_| job.filter.accepts(key)) {
            Some(to) => {
                let why = losses::HAS_MEMBER_EXPIRY;
                (self.ctx).lose_source_key(to, key, losses::MEMBER_EXPIRY, why)
            }
            None => Ok(()),
        }
    }

    /// Reads the snapshot from byte `from` on, where a record or a whole snapshot begins.
    fn open_snapshot(&self, from: u64, db: DbIndex) -> Result<Snapshot<SnapshotTail>> {
        let spool = &self.ctx.spool;
        let options = Options {
            whole_value_limit: self.ctx.whole_value(),
            // What a link brings ends where the link says.
            joined: matches!(self.ctx.job().source, Source::Rdb { .. }),
            commands: spool.has_commands(),
            strict: self.ctx.shared.run.strict,
            ..Options::default()
        };
        if from == 0 {
            spool.forget_joined()?;
        }
        let start = spool.snapshot_start(from)?;
        let tail = |at| SnapshotTail::new(spool.clone(), at);
        if from == start {
            return Snapshot::open_at(tail(from), from, options);
        }
        let head = Snapshot::head_at(tail(start), start, from, options)?;
        Ok(Snapshot::resume_with(tail(from), from, db, head, options))
    }

    /// A snapshot begins: whose numbers it uses, and of which version.
    fn begins(&mut self, head: &Head) -> (Dialect, u32) {
        let (dialect, version) = (head.dialect(), head.version());
        self.applier.marks.snapshot_is(dialect, version);
        if let Some(newer) = head.newer() {
            self.ctx.note("newer_format", &newer);
        }
        (dialect, version)
    }

    fn loader(&mut self) -> Loader<'_, Pipe> {
        Loader {
            ctx: &self.ctx,
            marks: &mut self.applier.marks,
            door: &mut self.applier.door,
            expiry: &mut self.applier.expiry,
            writer: &mut self.applier.writer,
            loaded: &mut self.loaded,
            stats: &mut self.stats,
        }
    }

    /// Waits for a large value, as its parts must not be mixed with a second try; true when it has to be begun again.
    fn finish_large(&mut self, written: Large) -> Result<bool> {
        match written {
            Large::Nothing => Ok(false),
            Large::CutOff => {
                self.applier.settle_all()?;
                Ok(true)
            }
            Large::Sent => {
                self.applier.marks.count_written();
                self.applier.settle_all()
            }
            Large::Deliver(mut delivery) => {
                self.applier.loading.set_in_large(false);
                if self.applier.settle_all()? {
                    return Ok(true);
                }
                self.applier.deliver(&mut delivery)?;
                self.applier.marks.count_written();
                Ok(false)
            }
        }
    }

    fn load_function(&mut self, code: &[u8], mark: Mark) -> Result<()> {
        match self.ctx.facts().target_has_functions {
            true => (self.applier.writer).broadcast(&functions::load(code), mark),
            false => {
                functions::note_left_out(&self.ctx);
                Ok(())
            }
        }
    }

    /// Waits as long as the plan's limits want after one more key.
    fn keep_pace(&mut self, bytes: u64) -> Result<()> {
        let ctx = self.ctx.clone();
        let mut wait = ctx.shared.pace.throttle.take(1, bytes);
        if wait < TICK {
            // Short waits add up in the throttle until one is worth a sleep.
            return Ok(());
        }
        self.applier.writer.flush();
        while !wait.is_zero() && !ctx.shared.stop.requested() {
            std::thread::sleep(wait.min(TICK));
            self.tick()?;
            // The limits may be others by now.
            wait = ctx.shared.pace.throttle.due();
        }
        Ok(())
    }

    fn aux(&mut self, name: &[u8], value: &[u8]) {
        // The database that the stream goes on in; without it a SELECT comes first.
        if name == b"repl-stream-db"
            && let Some(db) = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok())
        {
            self.applier.position.select(DbIndex(db));
        }
    }

    /// What becomes of an error in the file that `at` lies in.
    fn load_error(&mut self, e: Error, at: u64) -> Result<Option<Ended>> {
        match self.ctx.spool.ended() {
            Some(End::Superseded) => Ok(Some(Ended::Superseded)),
            Some(End::Stopped) => self.stop_loading().map(Some),
            Some(End::Finished) | None => Err(e.context(match self.ctx.spool.part(at) {
                Some(part) if part.from > 0 || self.ctx.spool.part_after(0).is_some() => format!(
                    "read the snapshot {}, which begins at byte {} of all files",
                    part.path.display(),
                    part.from
                ),
                _ => format!("read the snapshot of {}", self.ctx.address),
            })),
        }
    }

    fn stop_loading(&mut self) -> Result<Ended> {
        let _ = self.applier.settle_all()?;
        self.save(false)?;
        self.finish_stats()?;
        Ok(Ended::Stopped)
    }
}
