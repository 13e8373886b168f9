//! Healing what waits and settling trouble: until everything sent is answered, and done again where it was not.

use crate::command::Access;
use crate::error::{Error, ErrorKind, Result, Retry};
use crate::migrate::apply::applier::{Applier, Trouble};
use crate::migrate::checkpoint::holds::Why;
use crate::migrate::heal::fenced_reader::{ReadStates, source_of};
use crate::migrate::heal::healer::Drained;
use crate::migrate::heal::queue::Key;
use crate::migrate::heal::state::StateWriter;
use crate::migrate::load::our_keys::OurKeys;
use crate::migrate::recover::resolve::{self, Action, Circumstances};
use crate::migrate::stream::scripts;
use crate::migrate::write::large_value::Delivery;
use crate::migrate::write::wire::Wire;
use crate::net;
use crate::target::{Fate, Unit};
use crate::types::{DbIndex, Mark, shown};
use std::collections::HashSet;
use std::time::Instant;

/// The end of a file's run whose flush was sent while the target was away.
fn flush_unsure() -> Error {
    Error::new(
        ErrorKind::NotReady,
        "the target was away while the file's flush was sent to it, and a file cannot be asked what was to be flushed",
    )
    .hint("run the same command again: the file is loaded from its beginning")
}

/// How one attempt to settle trouble has ended.
enum Settled {
    Done,
    /// More has come meanwhile.
    Again,
    /// The snapshot is to be read again from its mark.
    Reload,
}

impl<W: Wire, S: ReadStates> Applier<W, S> {
    /// Has keys of the source's databases read and written as they are.
    pub(super) fn queue(&mut self, keys: impl IntoIterator<Item = Key>, mark: Mark) {
        (self.healer).queue(keys, mark, &mut self.marks, Instant::now());
    }

    /// Heals what waits, if it has waited long enough.
    pub(super) fn heal_due(&mut self) -> Result<()> {
        // Asked for every command: without anything that waits, not even the clock is.
        match !self.healer.is_idle() && self.healer.is_due(Instant::now()) {
            true => self.heal_all(),
            false => Ok(()),
        }
    }

    /// Heals what waits. A value that trouble has cut off may wait still: [`Applier::settle_all`] does not leave it so.
    pub(super) fn heal_all(&mut self) -> Result<()> {
        loop {
            if self.healer.is_idle() {
                return Ok(());
            }
            if self.writer.troubled() {
                self.resolve()?;
            }
            match self.drain()? {
                Drained::Empty => return Ok(()),
                Drained::Troubled => {}
                Drained::Deliver(mut delivery, key, offset) => {
                    // What was sent before may be on the same key.
                    self.settle_sent()?;
                    self.deliver(&mut delivery)?;
                    self.healer.delivered(&key, offset, &mut self.marks);
                }
            }
        }
    }

    fn drain(&mut self) -> Result<Drained> {
        let mut states = StateWriter {
            ctx: &self.ctx,
            door: &mut self.door,
            writer: &mut self.writer,
            expiry: &mut self.expiry,
        };
        let marks = &mut self.marks;
        (self.healer).drain(&self.ctx, &mut self.reader, &mut states, marks)
    }

    /// Writes a large value over a connection of its own, as long as the plan's patience lasts.
    pub(super) fn deliver(&mut self, delivery: &mut Delivery) -> Result<()> {
        if self.ctx.dry_run() {
            return Ok(());
        }
        let key = shown(&delivery.key);
        self.asked("writing a large value", |me| me.writer.deliver(delivery))
            .map_err(|e| e.context(format!("write the key {key} to the target")))
    }

    /// Waits until everything sent is answered and all trouble resolved; true when the snapshot must be read again. What
    /// trouble has left to heal may still wait.
    pub(super) fn settle_sent(&mut self) -> Result<bool> {
        loop {
            self.writer.flush();
            if self.resolve()? {
                return Ok(true);
            }
            if self.writer.oldest().is_none() && !self.writer.troubled() {
                return Ok(false);
            }
        }
    }

    /// Waits until everything is sent, answered and healed; true when the snapshot must be read again from its mark.
    pub(super) fn settle_all(&mut self) -> Result<bool> {
        loop {
            if !self.ctx.shared.run.scan {
                self.heal_all()?;
            }
            if self.settle_sent()? {
                return Ok(true);
            }
            if self.healer.is_idle() || self.ctx.shared.run.scan {
                return Ok(false);
            }
        }
    }

    /// Asks one side something until it answers, as long as the plan's patience lasts.
    pub(super) fn asked<T>(
        &mut self,
        what: &str,
        mut ask: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let mut tries = net::Tries::new(self.ctx.shared.run.patience);
        loop {
            let e = match ask(self) {
                Ok(answer) => return Ok(answer),
                Err(e) => e,
            };
            let ctx = self.ctx.clone();
            (ctx.shared.runtime).block_on(tries.again(e, what, &ctx.shared.stop))?;
            self.settle_sent()?;
            // Others may be its masters by now.
            if let Err(e) = self.writer.refresh() {
                tracing::warn!("the target's topology could not be read: {e}");
            }
        }
    }

    /// Collects what the target could not do and does it again, by the way that fits each error.
    ///
    /// True when the snapshot must be read again from its saved mark, because it is not known what has run. After an
    /// error the mark stays held: what was not done lies behind it.
    pub(super) fn resolve(&mut self) -> Result<bool> {
        loop {
            let here = match self.loading.is_active() {
                true => self.loading.mark(),
                false => self.position.mark(),
            };
            let mark = self.oldest().unwrap_or(here);
            // Until it is sent again, nothing else knows of it.
            let hold = self.marks.hold(mark, Why::Undone);
            let (units, error) = self.writer.settle();
            let settled = if units.is_empty() && error.is_none() {
                self.ctx.progress.set_note("");
                self.trouble = None;
                Settled::Done
            } else {
                // The same trouble as before, as long as the target has got no further.
                if self.trouble.as_ref().is_none_or(|t| t.mark != mark) {
                    self.trouble = Some(Trouble::at(mark));
                }
                self.resolve_units(units, error, mark)?
            };
            self.marks.release(hold);
            match settled {
                Settled::Done => return Ok(false),
                Settled::Reload => return Ok(true),
                Settled::Again => {}
            }
        }
    }

    fn resolve_units(
        &mut self,
        units: Vec<Unit>,
        error: Option<Error>,
        mark: Mark,
    ) -> Result<Settled> {
        let ctx = self.ctx.clone();
        let loading = self.loading.is_active();
        if error.is_none() && resolve::only_expired(&units) {
            self.ctx.count("healed.expired_there");
            return self.redo(units, mark);
        }
        self.ctx.count("faults.target");
        if !loading {
            // Meanwhile keys expire over there.
            self.expiry.on_trouble(self.ctx.spool.stream_end());
        }
        let why = match (&error, resolve::first_refusal(&units)) {
            (Some(e), _) => e.to_string(),
            (None, Some(text)) => format!("the target answered: {}", net::said(text)),
            (None, None) => "commands were not sent".into(),
        };
        if loading && units.iter().any(resolve::refused_pairs) && self.writer.gives_up_pairs() {
            // Its strings can go one by one: they are read again.
            ctx.shared.event("warning", "pairs", &why);
            self.load_again_from(mark);
            return Ok(Settled::Reload);
        }
        if let Some(e) = resolve::fatal(&units, loading) {
            return Err(e);
        }
        if let Some(e) = error.filter(|e| e.retry() == Retry::Never) {
            return Err(e);
        }
        let began = self.trouble.as_ref().map(|t| t.began);
        if began.is_some_and(|began| began.elapsed() > ctx.shared.run.patience) {
            let s = ctx.shared.run.patience.as_secs();
            return Err(Error::new(
                ErrorKind::NotReady,
                format!("the target was not usable for {s} s: {why}"),
            ));
        }
        if ctx.shared.stop.requested() {
            // What has not been done stays before the mark: the next run does it.
            let message = format!("stopped while the target had trouble: {why}");
            return Err(Error::stopped(message));
        }
        ctx.progress.set_note(format!("target: {why}"));
        ctx.shared.event("warning", "target", &why);
        if resolve::wants_wait(&units) {
            self.wait_a_little();
        }
        if let Err(e) = self.writer.refresh() {
            tracing::warn!("the target's topology could not be read: {e}");
            self.wait_a_little();
        }
        let uncertain = (units.iter()).any(|u| u.fate == Fate::Uncertain);
        let mixed = uncertain || self.loading.in_large();
        if loading && (mixed || units.iter().any(resolve::has_expired)) {
            self.load_again_from(mark);
            return Ok(Settled::Reload);
        }
        let settled = self.redo(units, mark)?;
        if matches!(settled, Settled::Done) {
            ctx.progress.set_note("");
        }
        Ok(settled)
    }

    fn wait_a_little(&mut self) {
        if let Some(trouble) = &mut self.trouble {
            std::thread::sleep(trouble.backoff.next());
        }
    }

    fn load_again_from(&mut self, mark: Mark) {
        self.loading.again();
        if let Mark::Snapshot { at, db } = mark {
            self.marks.load_from(at, db);
            // A checkpoint before it is read again must not pass it.
            self.loading.seek(at, db);
        }
    }

    /// Sends again what may be sent again; queues the keys of everything else, and of what touches those.
    fn redo(&mut self, units: Vec<Unit>, mark: Mark) -> Result<Settled> {
        let ctx = self.ctx.clone();
        let actions = resolve::judge(
            units,
            &Circumstances {
                loading: self.loading.is_active(),
                scan: ctx.shared.run.scan,
                asks: self.reader.asks(),
                databases: &ctx.job().databases,
                may_expire: &|key| self.expiry.may(key),
                waits: &|db, key| self.healer.waits(db, key),
            },
        );
        let mut refused: HashSet<Key> = HashSet::new();
        for action in actions {
            match action {
                Action::Resend(unit, key) => self.resend(&unit, key.as_deref(), mark)?,
                Action::Redirect(unit, ask) => {
                    if !self.writer.redirect(&unit, &ask) {
                        self.redirect_failed(&unit, mark)?;
                    }
                }
                Action::Heal(keys) => {
                    let keys = self.placed(keys)?;
                    self.queue(keys, mark);
                }
                Action::CompareFlushed(_) if !self.reader.asks() => return Err(flush_unsure()),
                Action::CompareFlushed(db) => self.flush.add(db, mark, &mut self.marks),
                Action::CompareFunctions => self.owe_functions(mark),
                Action::Learn(unit, text) => {
                    self.ctx.count("healed.refused");
                    self.learn_form(&unit, &text);
                }
                Action::StateRefused(keys, name, text) => {
                    self.ctx.count("healed.refused");
                    for (db, key) in keys {
                        if refused.insert((db, key.clone())) {
                            let why = net::refusal(&name, &text);
                            (self.healer).refused(db, &key, why, Instant::now())?;
                        }
                    }
                }
                Action::Note(text) => {
                    let message = format!("the target answered: {}", net::said(&text));
                    self.ctx.note("refused", &message);
                }
                Action::Script(name, why) => {
                    let effects = ctx.facts().scripts_can_be_effects;
                    return Err(scripts::not_run(&name, &why, effects, self.reader.asks()));
                }
            }
        }
        if self.writer.troubled() {
            return Ok(Settled::Again);
        }
        self.writer.flush();
        Ok(Settled::Done)
    }

    fn resend(&mut self, unit: &Unit, key: Option<&[u8]>, mark: Mark) -> Result<()> {
        let expecting = resolve::expecting(unit);
        self.writer.resend(unit, key, &expecting, mark)
    }

    /// The node that a slot was on its way to does not take a unit: where the slot is by now, the topology knows.
    fn redirect_failed(&mut self, unit: &Unit, mark: Mark) -> Result<()> {
        let touched = resolve::keys_of(unit, &self.ctx.job().databases);
        if self.loading.is_active() {
            let key = touched.into_iter().next().map(|((_, key), _)| key);
            return self.resend(unit, key.as_deref(), mark);
        }
        let written = touched.into_iter().filter(|(_, a)| *a == Access::Write);
        let keys = self.placed(written.map(|(key, _)| key).collect())?;
        self.queue(keys, mark);
        Ok(())
    }

    /// Keys with the source's database that really holds each.
    fn placed(&mut self, keys: Vec<Key>) -> Result<Vec<Key>> {
        if self.ctx.job().databases.is_identity() || !self.reader.asks() {
            return Ok(keys);
        }
        (keys.into_iter())
            .map(|(db, key)| {
                let target = self.ctx.job().databases.map(db).unwrap_or(db);
                Ok((self.source_of(target, &key)?, key))
            })
            .collect()
    }

    /// The source's database that a key of the target's `db` comes from.
    pub(super) fn source_of(&mut self, db: DbIndex, key: &[u8]) -> Result<DbIndex> {
        source_of(&self.ctx, &mut self.reader, db, key)
    }

    /// A command of the source's was refused: perhaps the target does not know it.
    fn learn_form(&mut self, unit: &Unit, text: &str) {
        let learned = resolve::first_command(unit, |cmd| self.forms.learn(cmd, text));
        if learned == Some(true) {
            self.ctx.shared.event(
                "info",
                "unknown_to_target",
                &format!(
                    "the target does not know {} in the form that the source sends: the keys of such commands are read from the source and written as they are",
                    resolve::name_of(unit)
                ),
            );
        }
    }

    /// A file's flush of the target's `db`, or of all: at this point of the file there is nothing of ours.
    pub(super) fn forget_ours(&mut self, db: Option<DbIndex>) -> Result<()> {
        self.settle_sent()?;
        self.asked("listing the target's keys", |me| {
            let mark = me.position.mark();
            let mut pages = OurKeys::of(me.writer.addresses(), db);
            while let Some((db, keys)) = pages.next(&me.ctx, &me.door)? {
                for key in &keys {
                    if let Some(pass) = me.door.admit_removal(db, key)? {
                        me.writer.remove(pass, key, mark)?;
                    }
                }
            }
            Ok(())
        })
    }

    /// Reads keys of ours of the target's `db` from the source again.
    pub(super) fn compare(&mut self, db: DbIndex, keys: Vec<Vec<u8>>) -> Result<()> {
        let mark = self.position.mark();
        let mut ours: Vec<Key> = Vec::with_capacity(keys.len());
        for key in keys {
            ours.push((self.source_of(db, &key)?, key));
        }
        self.ctx.add("reconciled", ours.len() as u64);
        self.queue(ours, mark);
        self.heal_all()
    }

    /// The run ends with an error: what is acknowledged is worth keeping, and what could not be done stays to be done.
    pub(super) fn abandon(&mut self) {
        let hold = self.oldest().map(|mark| self.marks.hold(mark, Why::Undone));
        let (undone, error) = self.writer.settle();
        if let Some(hold) = hold.filter(|_| undone.is_empty() && error.is_none()) {
            self.marks.release(hold);
        }
    }
}
