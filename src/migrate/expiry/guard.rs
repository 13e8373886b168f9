//! The expiry guard: which expiries are held back, and which commands need a guard or a reading because of lag.
//!
//! While the target catches up it is behind the clock: a key may expire there although the source has renewed it. So
//! near expiries are held back, commands on keys that may have one are read instead of replayed while lagging, and are
//! sent behind an EXISTS at all other times.

use crate::command::{self, Access, Command, KeyArg, Kind, Spec, SplitKind};
use crate::error::Result;
use crate::migrate::checkpoint::relied::Relied;
use crate::migrate::context::ShardContext;
use crate::migrate::expiry::filter::MaybeTimed;
use crate::migrate::expiry::held::{HOLD_MS, Held, LAG_MS, Releasing};
use crate::plan::Expired;
use crate::rdb::file::Header;
use crate::rdb::opcode::Dialect;
use crate::rdb::payload;
use crate::rdb::value::{self, ValueSink};
use crate::resp;
use crate::types::{DbIndex, ExpireAt, Mark, ReplOffset, unix_ms};
use std::rc::Rc;
use std::time::Instant;

/// From this lag on, in ms, keys that may have an expiry are read instead of replayed.
const SHORT_LAG_MS: u64 = LAG_MS / 2;

/// Where the stream stands against the source, as far as expiries care.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lag {
    /// Everything before this is acknowledged.
    pub applied: ReplOffset,
    /// What the source had written when the link came up.
    pub expected: ReplOffset,
    pub stream_end: ReplOffset,
    pub lag_ms: u64,
    /// For how long nothing has been heard of the source.
    pub down_ms: Option<u64>,
    /// The stream is still read instead of replayed, as it may have run before.
    pub in_window: bool,
}

/// What a tick makes of the lag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pressure {
    /// The target is behind, or nobody knows.
    Behind,
    /// The target is close enough: what is held back is to be released, then [`ExpiryGuard::near`].
    Near { release: bool },
    /// Neither: nothing changes.
    Between,
}

/// Held expiries, the filter of timed keys, and whether the target lags.
pub(crate) struct ExpiryGuard {
    ctx: Rc<ShardContext>,
    held: Held,
    timed: MaybeTimed,
    /// The source can be asked: what is held back can be released.
    asks: bool,
    /// Expiries are being held back.
    holding: bool,
    /// Keys may have expired on the target that the source has renewed.
    lagging: bool,
    /// Up to here, at least.
    lag_until: ReplOffset,
    /// Where the stream stood when expiries were released that are not yet known to survive a failover.
    released_at: Option<ReplOffset>,
    started: Instant,
}

impl ExpiryGuard {
    /// `loaded`: an earlier run has loaded the snapshot, so time has passed at the target.
    pub fn new(
        ctx: Rc<ShardContext>,
        held: Held,
        timed: MaybeTimed,
        asks: bool,
        loaded: bool,
    ) -> ExpiryGuard {
        ExpiryGuard {
            ctx,
            held,
            timed,
            asks,
            // What is held back is released by asking the source, and a file cannot be asked.
            holding: asks,
            lagging: loaded && asks,
            lag_until: ReplOffset(0),
            released_at: None,
            started: Instant::now(),
        }
    }

    /// Commands on timed keys are read instead of replayed.
    pub fn is_lagging(&self) -> bool {
        self.lagging
    }

    /// Expiries are held back.
    pub fn is_holding(&self) -> bool {
        self.holding
    }

    /// How many expiries are held back.
    pub fn held(&self) -> u64 {
        self.held.count
    }

    /// Whether a key may have an expiry.
    pub fn may(&self, key: &[u8]) -> bool {
        self.timed.may(key)
    }

    /// Whether a field has got an expiry and should be there.
    pub fn expects_field(&self, db: DbIndex, key: &[u8], field: &[u8]) -> bool {
        self.timed.expects_field(db, key, field)
    }

    /// How far ahead an expiry may lie and still come before we have caught up, in ms.
    fn horizon_ms(&self) -> i64 {
        let elapsed = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX);
        (self.ctx.shared.run.load_estimate_ms)
            .max(elapsed.saturating_mul(2))
            .clamp(60_000, HOLD_MS / 2)
    }

    /// The expiry to write with a key of the snapshot: far off when the true one may come before the key's renewal.
    pub fn hold_loaded(&mut self, h: &Header<'_>, mark: Mark) -> Option<ExpireAt> {
        let expire = h.expire?;
        let now = unix_ms();
        if self.ctx.job().expired == Expired::Persist && expire.0 <= now {
            return None;
        }
        if !self.asks || !matches!(mark, Mark::Snapshot { .. }) {
            return Some(expire);
        }
        if expire.0 < now.saturating_add(self.horizon_ms()) {
            self.held.note(h.db, h.key);
            return Some(ExpireAt(now.saturating_add(HOLD_MS)));
        }
        Some(expire)
    }

    /// The same for a key that the stream restores, while expiries are held back.
    pub fn hold_restored(
        &mut self,
        db: DbIndex,
        key: &[u8],
        expire: Option<ExpireAt>,
    ) -> Option<ExpireAt> {
        let now = unix_ms();
        if self.holding && expire.is_some_and(|e| e.0 < now.saturating_add(self.horizon_ms())) {
            self.held.note(db, key);
            return Some(ExpireAt(now.saturating_add(HOLD_MS)));
        }
        expire
    }

    /// Holds back the expiry that a command sets, where need be: then `out` is the command to send.
    pub fn hold_command(&mut self, db: DbIndex, raw: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        if !self.holding {
            return Ok(false);
        }
        let mut args = Vec::new();
        resp::parse_command(raw, &mut args)?;
        let cmd = Command { raw, args: &args };
        let now = unix_ms();
        let far = now.saturating_add(HOLD_MS);
        let near = now.saturating_add(self.horizon_ms());
        let Some(was) = command::expiry::hold(&cmd, near, far, out)? else {
            return Ok(false);
        };
        let key = cmd.arg(was.key_index).unwrap_or_default();
        match was.fields {
            true => self.hold_whole(db, key),
            false => self.held.note(db, key),
        }
        Ok(true)
    }

    /// Notes a key that is to be read whole with the next release: fields of it are held back.
    pub fn hold_whole(&mut self, db: DbIndex, key: &[u8]) {
        self.held.note_whole(db, key);
    }

    /// Notes what of a value has an expiry: the key, or which of its fields; without a body it may be any of them.
    pub fn note_value(&mut self, h: &Header<'_>, body: Option<(&[u8], u32)>, dialect: Dialect) {
        let fields = payload::may_have_field_expiry(h.type_id);
        if h.expire.is_some() || fields {
            self.timed.add_soon(h.key);
        }
        if fields {
            let mut sink = TimedFields {
                timed: &mut self.timed,
                db: h.db,
                key: h.key,
            };
            let told = body.is_some_and(|(body, version)| {
                value::decode(h.type_id, dialect, version, body, h.value_at, &mut sink).is_ok()
            });
            if !told {
                self.timed.add_field(h.key, None);
            }
        }
    }

    /// Whether a command touches a timed key, which only matters while lagging or where it copies one.
    fn touches_timed(&self, cmd: &Command<'_>, spec: &Spec, keys: &[KeyArg]) -> bool {
        let arg = |k: &KeyArg| cmd.arg(k.index).unwrap_or_default();
        command::expiry::carries(spec, cmd)
            || ((self.lagging || copies(spec)) && keys.iter().any(|k| self.timed.may(arg(k))))
    }

    /// Whether a command must not be replayed, as a key of it may have expired at the target meanwhile.
    pub fn must_heal(&self, cmd: &Command<'_>, spec: &Spec, keys: &[KeyArg]) -> bool {
        self.lagging && self.touches_timed(cmd, spec, keys)
    }

    /// Notes the keys that a command gives an expiry.
    pub fn observe(&mut self, cmd: &Command<'_>, spec: &Spec, keys: &[KeyArg]) {
        let carries = command::expiry::carries(spec, cmd);
        // What a timed key is renamed or copied to is timed as well.
        if !(carries || copies(spec)) || !self.touches_timed(cmd, spec, keys) {
            return;
        }
        let arg = |k: &KeyArg| cmd.arg(k.index).unwrap_or_default();
        for k in keys.iter().filter(|k| k.access == Access::Write) {
            self.timed.add(arg(k));
            if copies(spec) || spec.name == "RESTORE" {
                self.timed.add_field(arg(k), None);
            }
        }
        if let Some(key) = hash_of(cmd, spec) {
            for field in command::fields::timed(spec, cmd) {
                self.timed.add_field(key, Some(field));
            }
        }
    }

    /// Notes which keys are there after a command, and which are gone.
    pub fn observe_sent(&mut self, db: DbIndex, cmd: &Command<'_>, spec: &Spec, keys: &[KeyArg]) {
        let gone = matches!(spec.kind, Kind::Split(SplitKind::Keys)) && spec.name != "TOUCH";
        let moved = matches!(spec.name, "RENAME" | "RENAMENX" | "GETDEL");
        let written = |(_, k): &(usize, &KeyArg)| k.access == Access::Write;
        for (i, k) in keys.iter().enumerate().filter(written) {
            let key = cmd.arg(k.index).unwrap_or_default();
            self.timed.note(db, key, !(gone || (moved && i == 0)));
        }
        if let Some(key) = hash_of(cmd, spec) {
            for field in command::fields::written(spec, cmd) {
                self.timed.note_field(db, key, field, true);
            }
            for field in command::fields::deleted(spec, cmd) {
                self.timed.note_field(db, key, field, false);
            }
        }
    }

    /// Notes whether the source holds a key that was read.
    pub fn observe_read(&mut self, db: DbIndex, key: &[u8], there: bool) {
        self.timed.note(db, key, there);
    }

    /// A flush: nobody knows what is there, and a guard that fails costs a reading.
    pub fn observe_flush(&mut self) {
        self.timed.forget_absent();
    }

    /// Calls `found` with each key, and each field of a key, that must be there for the command to run.
    pub fn guards<'a>(
        &self,
        db: DbIndex,
        cmd: &Command<'a>,
        spec: &Spec,
        keys: &[KeyArg],
        mut found: impl FnMut(&'a [u8], Option<&'a [u8]>),
    ) {
        for (i, key) in keys.iter().enumerate() {
            let name = cmd.arg(key.index).unwrap_or_default();
            if self.timed.expected(db, name) && command::needs_key(spec, cmd, i, key.access) {
                found(name, None);
            }
        }
        if let Some(key) = hash_of(cmd, spec) {
            for field in command::fields::needed(spec, cmd) {
                if self.timed.expects_field(db, key, field) {
                    found(key, Some(field));
                }
            }
        }
    }

    /// Takes in how far the target is behind.
    pub fn on_lag(&mut self, lag: Lag) -> Pressure {
        if let Some(ms) = lag.down_ms {
            // What the source has written since is not known.
            self.lagging |= ms > 2 * LAG_MS;
            return Pressure::Behind;
        }
        if lag.applied >= lag.expected && lag.lag_ms < LAG_MS && !lag.in_window {
            return Pressure::Near {
                release: self.holding || self.held.count > 0,
            };
        }
        let behind = lag.applied < lag.expected;
        if behind {
            // This was written while the link was down, however lately it has arrived.
            self.lagging |= !self.holding;
        }
        self.on_short_lag(lag);
        match behind {
            true => Pressure::Behind,
            false => Pressure::Between,
        }
    }

    /// The target is [near](Pressure::Near), and what was held back is released.
    pub fn near(&mut self, lag: Lag) {
        self.holding = self.held.count > 0;
        self.lagging &= lag.applied < self.lag_until;
        self.on_short_lag(lag);
    }

    fn on_short_lag(&mut self, lag: Lag) {
        if lag.lag_ms <= SHORT_LAG_MS || !self.asks {
            return;
        }
        // During the first catching-up every near expiry is held already.
        if self.lagging || !self.holding {
            self.lagging = true;
            self.lag_until = lag.stream_end;
        }
        self.holding |= lag.lag_ms > 2 * LAG_MS;
    }

    /// All that the source had written is at the target, and its writers are held.
    pub fn drained(&mut self) {
        self.holding = false;
    }

    /// The target is in trouble: meanwhile keys expire over there.
    pub fn on_trouble(&mut self, stream_end: ReplOffset) {
        if self.asks {
            self.lagging = true;
            self.lag_until = stream_end;
        }
    }

    /// Takes what is held back, to be given the expiry that the source tells now.
    pub fn take_held(&mut self) -> Result<Releasing> {
        self.held.take()
    }

    /// All of it is on its way; `at` is where the stream stands.
    pub fn released(&mut self, releasing: Releasing, at: ReplOffset) -> Result<()> {
        releasing.done()?;
        self.released_at = Some(at);
        Ok(())
    }

    /// Everything before `at` survives a failover of the target.
    pub fn stable(&mut self, at: ReplOffset) -> Result<()> {
        if self.released_at.is_some_and(|released| released < at) {
            self.released_at = None;
            self.held.settled()?;
        }
        Ok(())
    }

    /// The target has lost a master: what was released may have gone with it.
    pub fn target_lost(&mut self) {
        self.released_at = None;
        self.held.again();
        self.holding = self.asks;
    }

    /// Writes down what is held back; returns what the disk must have before a checkpoint passes it.
    pub fn save(&mut self) -> Result<Relied> {
        Ok(Relied {
            files: self.held.save()?.into_iter().collect(),
            timed: self.timed.take_fresh()?,
        })
    }
}

fn copies(spec: &Spec) -> bool {
    matches!(spec.name, "RENAME" | "RENAMENX" | "COPY")
}

/// The key of a command on one hash.
fn hash_of<'a>(cmd: &Command<'a>, spec: &Spec) -> Option<&'a [u8]> {
    cmd.arg(1).filter(|_| spec.name.starts_with('H'))
}

/// Notes the fields of a hash that have an expiry.
struct TimedFields<'a> {
    timed: &'a mut MaybeTimed,
    db: DbIndex,
    key: &'a [u8],
}

impl ValueSink for TimedFields<'_> {
    fn hash_field(&mut self, field: &[u8], _: &[u8], expire: Option<ExpireAt>) -> Result<()> {
        if expire.is_some() {
            self.timed.add_field(self.key, Some(field));
        }
        self.timed.note_field(self.db, self.key, field, true);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
