//! What the loop does beside the snapshot and the stream: reconcile, copy slots, release expiries, repair, obey a cutover.

use crate::error::{Error, ErrorKind, Result};
use crate::migrate::apply::apply_loop::ApplyLoop;
use crate::migrate::checkpoint::checkpoints::Rewound;
use crate::migrate::control::drain::Drain;
use crate::migrate::control::orders::Order;
use crate::migrate::expiry::held::HeldKey;
use crate::migrate::heal::fenced_reader::ReadStates;
use crate::migrate::heal::queue::Key;
use crate::migrate::heal::repair;
use crate::migrate::load::loss_guard;
use crate::migrate::load::our_keys::{OurKeys, interrupted};
use crate::migrate::load::reconcile::{Older, Part};
use crate::migrate::slots::handover;
use crate::migrate::stream::functions::{self, Synced};
use crate::migrate::stream::unreplicated;
use crate::migrate::write::door::Admission;
use crate::source::keys::functions as source_functions;
use crate::source::keys::side::Side;
use crate::types::{DbIndex, ReplOffset, Slot};
use std::collections::{BTreeMap, BTreeSet};

/// Keys copied, or released, at a time.
const CHUNK: usize = 512;

impl ApplyLoop {
    /// Reads keys from the source and writes them, now.
    fn heal_now(&mut self, keys: Vec<Key>) -> Result<()> {
        let mark = self.applier.position.mark();
        self.applier.queue(keys, mark);
        self.applier.heal_all()
    }

    /// Before the new snapshot is loaded: how much the target holds of what this shard has brought, if that is to be
    /// known.
    pub(super) fn count_before_load(&mut self) -> Result<()> {
        if !loss_guard::wants_count(&self.ctx)? {
            return Ok(());
        }
        let mut keys = 0;
        self.applier.asked("counting the target's keys", |me| {
            keys = 0;
            let mut pages = OurKeys::of(me.writer.addresses(), None);
            while let Some((_, page)) = pages.next(&me.ctx, &me.door)? {
                keys += page.len() as u64;
            }
            Ok(())
        })?;
        loss_guard::counted(&self.ctx, keys)
    }

    /// Makes exact what the target holds beside the keys of the snapshot that was just loaded, or after a flush
    /// everything: it is older than that, so it is read from the source, where it may be gone or new.
    pub(super) fn reconcile(&mut self, which: Older) -> Result<()> {
        let ctx = self.ctx.clone();
        ctx.shared.event("info", "reconcile", which.text());
        self.applier.settle_all()?;
        let (parts, bytes) = which.parts(&ctx, &mut self.loaded)?;
        // All shards may have come to this: as many compare at once as there is memory for.
        let room = ctx
            .shared
            .runtime
            .block_on(ctx.shared.room_for_loaded(bytes));
        let Some(_room) = room else {
            return Err(interrupted());
        };
        if which == Older::NotLoaded && loss_guard::guards(&ctx)? {
            let mut lost = 0;
            for part in 0..parts {
                let older = which.part(&mut self.loaded, part, parts)?;
                lost += self.count_lost(&older)?;
            }
            loss_guard::refuse(&ctx, lost, self.applier.marks.shard().keys_read)?;
        }
        for part in 0..parts {
            let older = which.part(&mut self.loaded, part, parts)?;
            // A failover in the middle: once more from the beginning, as nothing is healed wrong by that.
            self.applier.asked("listing the target's keys", |me| {
                let mut pages = OurKeys::of(me.writer.addresses(), which.only());
                while let Some((db, mut keys)) = pages.next(&me.ctx, &me.door)? {
                    keys.retain(|key| older.has(db, key));
                    me.compare(db, keys)?;
                }
                Ok(())
            })?;
        }
        self.applier.settle_all()?;
        Ok(())
    }

    /// Counts what would be removed of the target's keys that are older than the new snapshot.
    fn count_lost(&mut self, older: &Part) -> Result<u64> {
        let mut lost = 0;
        self.applier.asked("listing the target's keys", |me| {
            lost = 0;
            let mut pages = OurKeys::of(me.writer.addresses(), None);
            while let Some((db, mut keys)) = pages.next(&me.ctx, &me.door)? {
                keys.retain(|key| older.has(db, key));
                let mut sources: BTreeMap<DbIndex, Vec<&[u8]>> = BTreeMap::new();
                for key in &keys {
                    let from = me.source_of(db, key)?;
                    sources.entry(from).or_default().push(key);
                }
                for (from, keys) in sources {
                    let there = me.reader.exist(from, &keys)?;
                    lost += there.iter().filter(|there| !**there).count() as u64;
                }
            }
            Ok(())
        })?;
        Ok(lost)
    }

    /// Compares what a flush may have left with the source.
    pub(super) fn finish_flush(&mut self) -> Result<()> {
        let Some((hold, db)) = self.applier.flush.take() else {
            return Ok(());
        };
        // After an error the hold stays: the next run meets the flush again.
        self.reconcile(Older::Flushed(db))?;
        self.applier.marks.release(hold);
        Ok(())
    }

    /// Another server has become the source's master: what the one before had written last may have gone with it, so
    /// states that were read of it beyond the common history are read again.
    pub(super) fn meet_history(&mut self) -> Result<()> {
        let Some(from) = self.ctx.spool.take_history() else {
            return Ok(());
        };
        self.applier.reader.meet_history();
        let keys = self.applier.healer.keys_beyond(from);
        (self.ctx).add("healed.other_history", keys.len() as u64);
        self.heal_now(keys)
    }

    /// Slots have been moving inside the source for a while.
    pub(super) fn slots_unsettled(&self) -> bool {
        (self.ctx.shared.ownership.as_ref()).is_some_and(|o| o.unsettled_ms().is_some())
    }

    /// Stops writing to slots on their way, and says so; true when the snapshot must be read again from its mark.
    pub(super) fn sync_ownership(&mut self) -> Result<bool> {
        if !self.applier.door.slots().is_stale(&self.ctx) {
            return Ok(false);
        }
        let again = self.applier.settle_all()?;
        let slots = self.applier.door.slots_mut().refresh(&self.ctx);
        self.applier.marks.set_slots(slots);
        self.save(false)?;
        Ok(again)
    }

    /// Copies the slots that have come to us.
    pub(super) fn adopt_slots(&mut self) -> Result<()> {
        let ctx = self.ctx.clone();
        let Some(ownership) = &ctx.shared.ownership else {
            return Ok(());
        };
        let slots = ownership.arrived(ctx.id);
        if slots.is_empty() {
            return Ok(());
        }
        let (of, n) = (&ctx.address, slots.len());
        let message = format!("{of} copies {n} slots that have come to it");
        ctx.shared.event("info", "adopt", &message);
        self.applier.heal_all()?;
        self.applier.door.slots_mut().adopt(true);
        // What the target refuses of the copy is healed as part of it.
        let copied =
            (self.copy_slots(&slots)).and_then(|copied| Ok(copied && !self.applier.settle_all()?));
        self.applier.door.slots_mut().adopt(false);
        if !copied? {
            // The cluster was not ready: the next tick tries again.
            return Ok(());
        }
        ownership.adopt(ctx.id, &slots);
        self.sync_ownership().map(drop)
    }

    /// False when the slots are not (or no longer) where the cluster said they were.
    fn copy_slots(&mut self, slots: &[u16]) -> Result<bool> {
        let ctx = self.ctx.clone();
        let Some(place) = self.applier.reader.place() else {
            return Ok(false);
        };
        let Some(source) = handover::source_keys(&ctx, &place, slots)? else {
            return Ok(false);
        };
        let target = match ctx.dry_run() {
            true => BTreeSet::new(),
            false => self.applier.asked("listing the target's keys", |me| {
                let mut nodes: BTreeMap<String, Vec<u16>> = BTreeMap::new();
                for slot in slots {
                    // Under other names they may lie anywhere.
                    let addresses = match ctx.job().renames.is_empty() {
                        true => vec![me.writer.address_of(Slot::numbered(*slot))],
                        false => me.writer.addresses(),
                    };
                    for address in addresses {
                        nodes.entry(address).or_default().push(*slot);
                    }
                }
                handover::target_keys(&ctx, &nodes, me.writer.is_cluster())
            })?,
        };
        for chunk in handover::to_copy(&ctx, source, target).chunks(CHUNK) {
            if ctx.shared.stop.requested() {
                // The slots stay noted as being on their way.
                return Ok(false);
            }
            self.heal_now(chunk.to_vec())?;
        }
        Ok(true)
    }

    /// Makes the target's libraries of functions those of the source; returns how many were written or removed.
    pub fn sync_functions(&mut self) -> Result<u64> {
        self.applier.unreplicated.functions_done();
        let ctx = self.ctx.clone();
        let Some(endpoint) = ctx.job().source.endpoint() else {
            return Ok(0);
        };
        if !ctx.facts().target_has_functions || ctx.dry_run() {
            return Ok(0);
        }
        let what = "asking the source for its function libraries";
        let ours = self.applier.asked(what, |_| {
            ctx.shared.runtime.block_on(async {
                let side = Side::source(endpoint).await?;
                source_functions::of(&side).await
            })
        })?;
        let Some(ours) = ours else {
            ctx.note(
                "skipped.function",
                "the source does not tell its function libraries (FUNCTION LIST): what its stream has not brought as code is missing",
            );
            return Ok(0);
        };
        self.applier.settle_all()?;
        let mut changed = 0;
        for node in 0..self.applier.writer.addresses().len() {
            let what = "writing the function libraries";
            let Synced {
                changed: more,
                refused,
            } = self.applier.asked(what, |me| {
                let addresses = me.writer.addresses();
                let address = addresses.get(node).map_or("", String::as_str);
                let (to, on_existing) = (&ctx.job().target, ctx.job().on_existing);
                (ctx.shared.runtime).block_on(functions::sync_node(to, address, &ours, on_existing))
            })?;
            changed += more;
            for (name, why) in refused {
                let text = format!("the target refuses the function library {name}: {why}");
                ctx.note("skipped.function", &text);
            }
        }
        Ok(changed)
    }

    /// Asks the source for what its stream has not told.
    pub(super) fn fetch_unreplicated(&mut self) -> Result<()> {
        let Some(mut to_ask) = self.applier.unreplicated.take() else {
            return Ok(());
        };
        if !self.ctx.dry_run() {
            if to_ask.functions {
                self.sync_functions()?;
            }
            let mark = to_ask.mark;
            let me = &mut self.applier;
            let format = me.writer.format();
            if format.valkey || format.version >= (7, 0, 0) {
                let groups = std::mem::take(&mut to_ask.groups);
                unreplicated::set_entries_read(
                    groups,
                    &mut me.reader,
                    &mut me.door,
                    &mut me.writer,
                    mark,
                )?;
            }
            let whole = unreplicated::set_field_expiries(
                &to_ask.fields,
                &mut me.reader,
                &mut me.door,
                &mut me.writer,
                mark,
            )?;
            me.queue(whole, mark);
        }
        to_ask.done(&mut self.applier.marks);
        Ok(())
    }

    /// Gives held keys the expiry that the source tells now.
    pub(super) fn release_held(&mut self) -> Result<()> {
        let ctx = self.ctx.clone();
        let mut releasing = self.applier.expiry.take_held()?;
        if ctx.dry_run() {
            return releasing.done();
        }
        let mut released = 0u64;
        loop {
            let mut keys = releasing.next(CHUNK)?;
            if keys.is_empty() {
                break;
            }
            // Whoever has copied a slot that went away has written the true expiry.
            let slots = self.applier.door.slots();
            keys.retain(|held| slots.owns(&ctx, &held.key));
            let whole = |held: &HeldKey| held.whole;
            let (whole, expiring): (Vec<_>, Vec<_>) = keys.into_iter().partition(whole);
            for same in expiring.chunk_by(|a, b| a.db == b.db) {
                let Some(db) = same.first().map(|held| held.db) else {
                    continue;
                };
                let names: Vec<&[u8]> = same.iter().map(|held| held.key.as_slice()).collect();
                let me = &mut self.applier;
                let expiries = me.reader.expiries(db, &names)?;
                let mark = me.position.mark();
                for (key, expiry) in names.iter().zip(expiries) {
                    let Admission::Yes(pass) = me.door.admit(db, key)? else {
                        continue;
                    };
                    released += 1;
                    me.marks.touch(db, key);
                    me.writer.expire(pass, key, expiry, mark)?;
                }
            }
            self.heal_now(whole.into_iter().map(|held| (held.db, held.key)).collect())?;
            if self.applier.writer.troubled() {
                self.applier.resolve()?;
            }
        }
        self.applier.settle_all()?;
        let at = self.applier.position.at();
        self.applier.expiry.released(releasing, at)?;
        if released > 0 {
            tracing::debug!("{released} held expiries released");
        }
        Ok(())
    }

    /// Whether a verification has asked for anything: else a run that goes on need not wait for its first checkpoint.
    pub(super) fn look_for_repairs(&mut self) -> Result<()> {
        let ctx = self.ctx.clone();
        self.repairs_pending = repair::wants_functions(&ctx)? || !repair::asked(&ctx)?.is_empty();
        Ok(())
    }

    /// Heals what a verification has asked for; called with every checkpoint.
    pub(super) fn repair(&mut self) -> Result<()> {
        let ctx = self.ctx.clone();
        if !self.applier.reader.asks() || ctx.dry_run() {
            self.repairs_pending = false;
            return Ok(());
        }
        if !self.applier.marks.shard().snapshot_loaded {
            return Ok(());
        }
        if repair::wants_functions(&ctx)? {
            self.sync_functions()?;
            repair::functions_done(&ctx)?;
        }
        let asked = repair::asked(&ctx)?;
        self.repairs_pending = !asked.is_empty();
        let mine = repair::of(&ctx, self.applier.door.slots(), asked);
        if mine.is_empty() {
            return Ok(());
        }
        self.applier.heal_all()?;
        let mut keys: Vec<Key> = Vec::with_capacity(mine.len());
        for (db, key) in &mine {
            if let Some(name) = ctx.job().renames.to_target(key) {
                let name = name.into_owned();
                keys.push((self.applier.source_of(*db, &name)?, name));
            }
        }
        self.heal_now(keys)?;
        self.applier.settle_all()?;
        repair::done(&ctx, &mine)
    }

    /// Goes back to the stable mark, as the target has lost a master; the snapshot is to be loaded again when it was not
    /// stable yet.
    pub(super) fn rewind(&mut self) -> Result<()> {
        let ctx = self.ctx.clone();
        let Some(health) = &ctx.shared.health else {
            return Ok(());
        };
        let view = health.view();
        if let Some(emptied) = view.emptied {
            return Err(Error::new(ErrorKind::State, emptied).hint(
                "it came back without its data: set on_existing to \"reconcile\" and run again with --fresh to write everything anew",
            ));
        }
        self.applier.settle_sent()?;
        // What was drained is not any more.
        ctx.shared.control.lost();
        self.drain = None;
        let back = match self.applier.go_back(view.losses) {
            Rewound::Stream(at, _) => format!("offset {at} of its stream"),
            Rewound::Snapshot(at) => format!("byte {at} of its snapshot"),
            Rewound::Load(_) => {
                self.loaded.done();
                "the beginning of its snapshot".into()
            }
        };
        // Only then may the next run take the new masters for known ones.
        self.save(false)?;
        ctx.shared.loss_taken_in(ctx.id, view.losses)?;
        ctx.shared.event(
            "warning",
            "target_lost",
            &format!(
                "the target lost a master: what {} wrote since {back} is written again",
                ctx.address
            ),
        );
        Ok(())
    }

    /// Does what a cutover asks; true while nothing may be routed. `buf` holds what has arrived, up to `to`, and is not
    /// routed.
    pub(super) fn obey(&mut self, buf: &[u8], to: ReplOffset) -> Result<bool> {
        match self.ctx.shared.control.order() {
            Order::Follow => {
                self.drain = None;
                if self.ctx.shared.control.records()
                    && let Some(place) = self.applier.reader.place()
                {
                    self.standing.prepare(&self.ctx, &place);
                }
                Ok(false)
            }
            Order::Drain(number) => {
                if !self.drain.as_ref().is_some_and(|d| d.is_number(number)) {
                    let Some(goal) = self.source_stands_at(false) else {
                        return Ok(false);
                    };
                    self.drain = Some(Drain::begin(number, goal));
                }
                let at = self.applier.position.at();
                // Where it is not finished, the next round tries again.
                if self.drain.as_ref().is_some_and(|d| d.is_reached(at))
                    && self.finish_drain()?
                    && let Some(drain) = &mut self.drain
                {
                    drain.done();
                }
                Ok(false)
            }
            Order::Fence(number) => {
                self.hold_still(number, buf, to);
                Ok(true)
            }
        }
    }

    /// Behind the fence: what has come, up to where the source stood when this was asked for, is looked at.
    fn hold_still(&mut self, number: u64, buf: &[u8], to: ReplOffset) {
        let ctx = self.ctx.clone();
        if self.applier.marks.has_lost() {
            ctx.shared.control.lost();
        }
        let Some(mut drain) = self.drain.take() else {
            // Nothing was drained, so nothing is in order.
            return ctx.shared.control.lost();
        };
        let anew = drain.is_fenced();
        if let Some(goal) = drain.fence(number).or_else(|| self.source_stands_at(anew)) {
            drain.put_fence(number, goal, self.applier.position.db());
            let (most, expiry) = (self.longest(), &self.applier.expiry);
            if drain.look(buf, to, most, |key| expiry.may(key)) {
                let (late, keys) = drain.late();
                ctx.shared.control.fenced(ctx.id.0, number, late, keys);
            }
        }
        self.drain = Some(drain);
    }

    /// Everything routed is answered, and no expiry is held back; false when something is still missing.
    fn finish_drain(&mut self) -> Result<bool> {
        self.applier.settle_all()?;
        self.finish_flush()?;
        let lost = self.applier.marks.has_lost();
        if self.applier.position.window_open() || lost || self.slots_unsettled() {
            return Ok(false);
        }
        self.release_held()?;
        self.fetch_unreplicated()?;
        self.applier.settle_all()?;
        self.applier.expiry.drained();
        self.save(false)?;
        self.ctx.shared.control.drained(self.ctx.id.0);
        Ok(true)
    }

    fn source_stands_at(&mut self, anew: bool) -> Option<ReplOffset> {
        match self.applier.reader.place() {
            Some(place) => self.standing.ask(&self.ctx, &place, anew),
            None => Some(self.ctx.spool.stream_end()),
        }
    }
}
