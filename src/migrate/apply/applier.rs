//! Carries out what the router decides: the parts of one shard, and the only place that calls across them.
//!
//! A command is routed, then sent or its keys queued for healing; trouble is settled and judged, which sends again or
//! queues. Nothing here recurses: whatever has to be healed waits in the queue until [`Applier::heal_all`].

use crate::command::{self, Access, Command, KeyArg, Kind, Spec, SplitKind};
use crate::error::{Error, ErrorKind, Result};
use crate::fence::Dump;
use crate::migrate::checkpoint::checkpoints::{Checkpoints, Rewound, Standing};
use crate::migrate::checkpoint::holds::{HoldId, Why};
use crate::migrate::context::ShardContext;
use crate::migrate::expiry::guard::ExpiryGuard;
use crate::migrate::heal::fenced_reader::{ReadStates, unfenced};
use crate::migrate::heal::healer::Healer;
use crate::migrate::heal::state::StateWriter;
use crate::migrate::load::position::LoadPosition;
use crate::migrate::recover::flush::PendingFlush;
use crate::migrate::stream::forms::Forms;
use crate::migrate::stream::functions::{self, Function};
use crate::migrate::stream::position::StreamPosition;
use crate::migrate::stream::rename::{Renamed, Room, renamed};
use crate::migrate::stream::router::{self, Leave, Reads, Route, View};
use crate::migrate::stream::scripts;
use crate::migrate::stream::unreplicated::Unreplicated;
use crate::migrate::write::door::{Door, Flush, Pass};
use crate::migrate::write::losses;
use crate::migrate::write::target_writer::TargetWriter;
use crate::migrate::write::wire::Wire;
use crate::net::Backoff;
use crate::resp;
use crate::task::failpoint;
use crate::types::{DbIndex, Mark, ReplOffset, Slot, unix_ms};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

/// The parts of a shard; `W` carries commands to the target, `S` reads states at the source.
pub(crate) struct Applier<W, S> {
    pub(super) ctx: Rc<ShardContext>,
    pub(super) position: StreamPosition,
    pub(super) loading: LoadPosition,
    pub(super) marks: Checkpoints,
    pub(super) expiry: ExpiryGuard,
    pub(super) door: Door,
    pub(super) writer: TargetWriter<W>,
    pub(super) reader: S,
    pub(super) healer: Healer,
    pub(super) unreplicated: Unreplicated,
    pub(super) flush: PendingFlush,
    /// What the target is in, since it got no further.
    pub(super) trouble: Option<Trouble>,
    pub(super) forms: Forms,
    /// Keeps checkpoints before a long transaction that is taken command by command.
    inside: Option<HoldId>,
    pub(super) keys: Vec<KeyArg>,
}

/// Trouble of the target: how long it lasts counts against the plan's patience.
pub(crate) struct Trouble {
    /// The lowest mark that was not done.
    pub mark: Mark,
    pub began: Instant,
    pub backoff: Backoff,
}

impl Trouble {
    pub fn at(mark: Mark) -> Trouble {
        Trouble {
            mark,
            began: Instant::now(),
            backoff: Backoff::new(),
        }
    }
}

/// The parts that an [`Applier`] is made of.
pub(crate) struct Parts<W, S> {
    pub position: StreamPosition,
    pub marks: Checkpoints,
    pub expiry: ExpiryGuard,
    pub door: Door,
    pub writer: TargetWriter<W>,
    pub reader: S,
}

impl<W: Wire, S: ReadStates> Applier<W, S> {
    pub fn new(ctx: Rc<ShardContext>, parts: Parts<W, S>) -> Applier<W, S> {
        Applier {
            ctx,
            position: parts.position,
            loading: LoadPosition::new(&parts.marks),
            marks: parts.marks,
            expiry: parts.expiry,
            door: parts.door,
            writer: parts.writer,
            reader: parts.reader,
            healer: Healer::new(),
            unreplicated: Unreplicated::default(),
            flush: PendingFlush::default(),
            trouble: None,
            forms: Forms::default(),
            inside: None,
            keys: Vec::new(),
        }
    }

    pub(super) fn view(&mut self) -> View<'_> {
        View {
            ctx: &self.ctx,
            position: &self.position,
            door: &mut self.door,
            healer: &self.healer,
            expiry: &self.expiry,
            forms: &self.forms,
            one_slot: self.writer.one_slot(),
            asks: self.reader.asks(),
        }
    }

    pub(super) fn states(&mut self) -> StateWriter<'_, W> {
        StateWriter {
            ctx: &self.ctx,
            door: &mut self.door,
            writer: &mut self.writer,
            expiry: &mut self.expiry,
        }
    }

    /// The lowest mark that is not yet done; `None` when everything routed is.
    pub(super) fn oldest(&mut self) -> Option<Mark> {
        self.marks.oldest(self.writer.oldest())
    }

    /// Everything of the stream before this offset is acknowledged.
    pub(super) fn applied(&mut self) -> ReplOffset {
        let oldest = self.oldest();
        if oldest.is_none() && !self.writer.troubled() {
            self.trouble = None;
        }
        match oldest {
            Some(Mark::Stream { at, .. }) => at,
            _ => self.position.at(),
        }
    }

    /// Nothing beyond what is acknowledged has touched the target, when all that was sent is answered.
    fn is_clean(&self) -> bool {
        self.healer.ahead_to() <= self.position.at()
            && !self.position.window_open()
            && self.healer.is_idle()
            && self.flush.is_none()
            && !self.position.is_inside()
    }

    /// Where the shard stands, for a checkpoint; `clean`: the run ends in order.
    pub(super) fn standing(&mut self, clean: bool) -> Standing {
        let loaded = self.marks.shard().snapshot_loaded;
        Standing {
            routed: match loaded {
                true => self.position.mark(),
                false => self.loading.mark(),
            },
            in_flight: self.writer.oldest(),
            clean: clean && self.is_clean(),
            sweep_lag_ms: 0,
        }
    }

    /// Routes the command (or whole transaction) at the start of `buf`; `None` when it is not all there. Transactions of
    /// more than `longest` bytes are taken command by command.
    pub(super) fn take(
        &mut self,
        buf: &[u8],
        args: &mut Vec<std::ops::Range<usize>>,
        longest: usize,
    ) -> Result<Option<usize>> {
        let at = self.position.at();
        let Some(len) = resp::parse_command(buf, args).map_err(|e| self.in_stream(e, at))? else {
            return Ok(None);
        };
        let raw = buf.get(..len).unwrap_or_default();
        let cmd = Command { raw, args };
        if !self.position.is_inside() && cmd.name().eq_ignore_ascii_case(b"MULTI") {
            let taken = self.take_transaction(buf, len)?;
            if taken.is_some() || buf.len() <= longest {
                return Ok(taken);
            }
            self.ctx.count("transactions_split");
            let mark = self.position.begin_long(len);
            self.inside = Some(self.marks.hold(mark, Why::Undone));
            return Ok(Some(len));
        }
        if self.position.is_inside() && is_end(cmd.name()) {
            self.position.end_long(len);
            if let Some(hold) = self.inside.take() {
                self.marks.release(hold);
            }
            return Ok(Some(len));
        }
        if !cmd.is_empty() {
            failpoint("stream-command");
            self.command(&cmd, self.position.behind(len), self.position.mark())
                .map_err(|e| self.in_stream(e, at))?;
        }
        self.position.advance(len);
        Ok(Some(len))
    }

    pub(super) fn in_stream(&self, e: Error, at: ReplOffset) -> Error {
        e.context(format!(
            "replicate from {} at offset {at}",
            self.ctx.address
        ))
    }

    pub(super) fn note_unreplicated(&mut self, cmd: &Command<'_>, spec: &Spec, mark: Mark) {
        let (db, marks) = (self.position.db(), &mut self.marks);
        (self.unreplicated).note(&self.ctx, db, cmd, spec, &mut self.expiry, (mark, marks));
    }

    /// One command of the stream; `end` is the offset after it.
    pub(super) fn command(&mut self, cmd: &Command<'_>, end: ReplOffset, mark: Mark) -> Result<()> {
        let Some(spec) = command::lookup(cmd.name()) else {
            return self.unknown(cmd, mark);
        };
        if !router::writes_keys(spec) {
            let route = router::route(cmd, spec, &[], end, &mut self.view())?;
            return self.act(route, cmd, spec, &[], end, mark);
        }
        let mut keys = std::mem::take(&mut self.keys);
        let done = self.write(cmd, spec, &mut keys, end, mark);
        self.keys = keys;
        done
    }

    /// One command that writes keys.
    fn write(
        &mut self,
        cmd: &Command<'_>,
        spec: &'static Spec,
        keys: &mut Vec<KeyArg>,
        end: ReplOffset,
        mark: Mark,
    ) -> Result<()> {
        if spec.kind == Kind::Eval {
            // It may write what waits.
            self.heal_all()?;
            spec.keys(cmd, keys)?;
            scripts::check(cmd, spec, keys, end, &self.view())?;
            // Keys that it does not name as well.
            self.marks.touch_all();
        }
        self.ctx.progress.commands.fetch_add(1, Relaxed);
        let expired = command::removes_expired(cmd, |key| self.expiry.may(key));
        (self.ctx.progress.writes).fetch_add(u64::from(!expired), Relaxed);
        let (ctx, db, mut room) = (self.ctx.clone(), self.position.db(), Room::default());
        let cmd = match &renamed(ctx.job(), db, cmd, spec, &mut room)? {
            Renamed::Command(cmd) => *cmd,
            Renamed::Keys { healed, lost } => {
                for (to, key) in lost {
                    (self.ctx).lose_source_key(*to, key, losses::NAME, losses::NAME_TAKEN)?;
                }
                self.ctx.count("renamed.read_again");
                self.queue(healed.clone(), mark);
                return self.heal_due();
            }
        };
        spec.keys(&cmd, keys)?;
        for k in keys.iter().filter(|k| k.access == Access::Write) {
            self.marks.touch(db, cmd.arg(k.index).unwrap_or_default());
        }
        // Before the decision: between it and the sending nothing may be healed or resolved, or the command could run on
        // a state that has it already.
        self.heal_due()?;
        let route = router::route(&cmd, spec, keys, end, &mut self.view())?;
        self.act(route, &cmd, spec, keys, end, mark)
    }

    /// Carries out a decision.
    fn act(
        &mut self,
        route: Route,
        cmd: &Command<'_>,
        spec: &'static Spec,
        keys: &[KeyArg],
        end: ReplOffset,
        mark: Mark,
    ) -> Result<()> {
        let db = self.position.db();
        match route {
            Route::Nothing => Ok(()),
            Route::Skip(counter) => {
                self.ctx.count(counter);
                Ok(())
            }
            Route::Select(db) => {
                self.position.select(db);
                Ok(())
            }
            Route::Function => self.function(cmd, mark),
            Route::Search => self.search(cmd),
            Route::Broadcast => self.writer.broadcast(cmd.raw, mark),
            Route::Flush { all } => self.flush(cmd, all, end, mark),
            Route::Trim => self.trim_slots(cmd),
            Route::Forward(leave, slot) => {
                self.expiry.observe(cmd, spec, keys);
                let pass = self.enter(leave, mark)?;
                self.healer.pass(end);
                self.note_unreplicated(cmd, spec, mark);
                self.forward(cmd, spec, keys, slot, pass, mark)?;
                self.expiry.observe_sent(db, cmd, spec, keys);
                Ok(())
            }
            Route::Split(leave, kind) => {
                self.expiry.observe(cmd, spec, keys);
                let pass = self.enter(leave, mark)?;
                self.healer.pass(end);
                self.split(cmd, spec, kind, pass, mark)?;
                self.expiry.observe_sent(db, cmd, spec, keys);
                Ok(())
            }
            Route::Restore(leave) => {
                self.expiry.observe(cmd, spec, keys);
                let pass = self.enter(leave, mark)?;
                self.healer.pass(end);
                self.restored(cmd, pass, mark)
            }
            Route::Lose { keys, code, why } => {
                (keys.iter()).try_for_each(|(to, name)| self.ctx.lose(*to, name, code, why))
            }
            Route::Heal(reads) => {
                self.expiry.observe(cmd, spec, keys);
                self.read(reads, mark)
            }
        }
    }

    /// The pass of a command whose keys are admitted, once the target's own keys that it replaces are gone.
    fn enter(&mut self, leave: Leave, mark: Mark) -> Result<Pass> {
        let mut pass = leave.pass;
        for (own, name) in leave.replaces {
            let claimed = self.door.claim(own, &name)?;
            self.writer.remove(claimed, &name, mark)?;
            pass = Some(claimed);
        }
        pass.ok_or_else(|| Error::new(ErrorKind::Bug, "a command without a pass"))
    }

    /// Queues what is read instead of sent, and accounts for the rest.
    pub(super) fn read(&mut self, reads: Reads, mark: Mark) -> Result<()> {
        for (from, to, name) in reads.lost {
            self.ctx.lose_for_want_of(from, to, &name)?;
        }
        for name in reads.suspects {
            self.door.suspect(&name);
        }
        if let Some(counter) = reads.counts {
            self.ctx.count(counter);
        }
        self.queue(reads.keys, mark);
        self.heal_due()
    }

    fn function(&mut self, cmd: &Command<'_>, mark: Mark) -> Result<()> {
        let has = self.ctx.facts().target_has_functions;
        match functions::route(cmd, has, self.reader.asks()) {
            Function::Broadcast(command) => self.writer.broadcast(&command, mark)?,
            Function::Compare => self.owe_functions(mark),
            Function::LeaveOut => functions::note_left_out(&self.ctx),
        }
        Ok(())
    }

    pub(super) fn owe_functions(&mut self, mark: Mark) {
        let before = (!self.loading.is_active()).then_some((mark, &mut self.marks));
        self.unreplicated.owe_functions(before);
    }

    fn flush(&mut self, cmd: &Command<'_>, all: bool, end: ReplOffset, mark: Mark) -> Result<()> {
        let db = self.position.db();
        self.ctx.shared.event(
            "warning",
            "flush",
            &format!(
                "the source ran {} in database {db} at offset {end}",
                String::from_utf8_lossy(cmd.name()),
            ),
        );
        self.marks.touch_all();
        self.expiry.observe_flush();
        self.heal_all()?;
        match self.door.admit_flush(all, db)? {
            Flush::Skip => {}
            // What follows in the same transaction must not be taken for older than the flush.
            Flush::Compare(db) if !self.reader.asks() => self.forget_ours(db)?,
            Flush::Compare(db) => self.flush.add(db, mark, &mut self.marks),
            Flush::Send(pass) => {
                self.writer.flush_all(pass, mark)?;
                // States that were read later than the flush have just been wiped: write them once more.
                let again = self.healer.keys_ahead((!all).then_some(db));
                self.queue(again, mark);
            }
        }
        Ok(())
    }

    /// A TRIMSLOTS of the stream: the source has removed the keys of slots that it has handed to another master.
    ///
    /// Nothing is removed at the target: there the keys are the other master's, whose shard copies them. A slot that the
    /// last picture of the cluster still shows here is on its way, or was trimmed for a reason that we do not know:
    /// whoever turns out to own it copies it from the source, which removes what is gone.
    fn trim_slots(&mut self, cmd: &Command<'_>) -> Result<()> {
        let slots = command::trimmed_slots(cmd).ok_or_else(|| {
            Error::new(
                ErrorKind::Protocol,
                format!("TRIMSLOTS with {} arguments names no slots", cmd.len()),
            )
        })?;
        let Some(ownership) = &self.ctx.shared.ownership else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the source has removed the keys of the slots {slots}, which it has handed to another master of its cluster (TRIMSLOTS), and the plan moves it as a single server"
                ),
            )
            .hint("set source.topology to \"cluster\", so that the other masters are read as well, then start over with --fresh and \"on_existing\": \"reconcile\""));
        };
        let mine = self.door.slots();
        let here = (slots.iter())
            .filter(|slot| mine.has(*slot) && !ownership.has_left(self.ctx.id, *slot));
        here.for_each(|slot| ownership.suspect(slot));
        self.ctx.count("slots_trimmed");
        Ok(())
    }

    /// RESTORE takes the way of every value.
    fn restored(&mut self, cmd: &Command<'_>, pass: Pass, mark: Mark) -> Result<()> {
        let key = cmd.arg(1).unwrap_or_default().to_vec();
        let db = self.position.db();
        let arrived = self.ctx.spool.written_ms(self.position.at());
        let restored = command::expiry::restored(cmd, arrived.unwrap_or_else(unix_ms))?;
        let expire = self.expiry.hold_restored(db, &key, restored.expire);
        let payload = Dump::Whole(restored.payload.to_vec());
        let state = unfenced(Some(payload), expire);
        // It came in one command, so it is not too large to be held.
        let _ = (self.states()).write_admitted(pass, db, &key, &state, mark)?;
        self.expiry.observe_read(db, &key, true);
        Ok(())
    }

    fn split(
        &mut self,
        cmd: &Command<'_>,
        spec: &'static Spec,
        kind: SplitKind,
        pass: Pass,
        mark: Mark,
    ) -> Result<()> {
        self.ctx.count("cross_slot");
        let mut failed = None;
        command::split::by_slot(cmd, kind, Slot::of, |slot, part, _| {
            let mut args = Vec::new();
            let one = resp::parse_command(part, &mut args).and_then(|_| {
                let part = Command {
                    raw: part,
                    args: &args,
                };
                self.forward(&part, spec, &[], slot, pass, mark)
            });
            if let (Err(e), None) = (one, &failed) {
                failed = Some(e);
            }
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// Sends a command that keeps to one slot, its expiry made absolute and held back where need be.
    fn forward(
        &mut self,
        cmd: &Command<'_>,
        spec: &'static Spec,
        keys: &[KeyArg],
        slot: Slot,
        pass: Pass,
        mark: Mark,
    ) -> Result<()> {
        let db = self.position.db();
        let facts = self.ctx.facts();
        let mut raw = cmd.raw;
        let (mut absolute, mut held, mut two) = (Vec::new(), Vec::new(), Vec::new());
        let mut commands = 1;
        if spec.carries_expiry {
            if facts.relative_ttls {
                // Where nobody knows it, the key was read instead.
                let arrived = self.ctx.spool.written_ms(self.position.at());
                let arrived = arrived.unwrap_or_else(unix_ms);
                if command::expiry::make_absolute(cmd, arrived, &mut absolute)? {
                    raw = &absolute;
                }
            }
            if self.expiry.hold_command(db, raw, &mut held)? {
                raw = &held;
            }
            if !facts.target_has_set_pxat {
                let mut args = Vec::new();
                resp::parse_command(raw, &mut args)?;
                let set = Command { raw, args: &args };
                if command::expiry::is_set_at(&set) {
                    command::expiry::in_two(&set, &mut two)?;
                    (raw, commands) = (&two, 2);
                }
            }
        }
        let expiry = &self.expiry;
        self.writer.commands(pass, slot, mark, |batch| {
            let mut guards = 0;
            expiry.guards(db, cmd, spec, keys, |key, field| {
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
            guards + commands
        })
    }

    /// The target has lost a master, its `losses`th: goes back to the stable mark. Everything that was under way is read
    /// again from before it, up to where keys may hold a later state as a window.
    pub(super) fn go_back(&mut self, losses: u64) -> Rewound {
        let window_end = (self.position.routed())
            .max(self.healer.ahead_to())
            .max(self.position.window_end());
        self.healer.rewind();
        self.flush = PendingFlush::default();
        self.inside = None;
        self.expiry.target_lost();
        let (at, asks) = (self.position.at(), self.reader.asks());
        let back = self.marks.rewind(losses, at, asks);
        match back {
            Rewound::Stream(at, db) => self.position.rewind(at, db, window_end),
            Rewound::Load(at) => self.position.rewind(at, DbIndex::ZERO, window_end),
            Rewound::Snapshot(_) => self.position.reread(),
        }
        // What is saved from now on must not say that the snapshot is read up to where it was.
        let shard = self.marks.shard();
        self.loading.seek(shard.snapshot_at, shard.snapshot_db);
        back
    }
}

/// Whether a command ends a transaction.
pub(super) fn is_end(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"EXEC") || name.eq_ignore_ascii_case(b"DISCARD")
}
