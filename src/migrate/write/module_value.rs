//! A module's value onto the target: by RESTORE, under other names where it holds its own, or by the module's commands.

use crate::error::{ErrorKind, Result};
use crate::migrate::write::door::Pass;
use crate::migrate::write::losses;
use crate::migrate::write::module_way::{RULES_OF_RENAMED, TOO_LARGE, can_be_held, is_series, way};
use crate::migrate::write::target_writer::TargetWriter;
use crate::migrate::write::value::restore;
use crate::migrate::write::wire::Wire;
use crate::rdb::file::Header;
use crate::rdb::modules::ways::Way;
use crate::rdb::modules::{self, commands};
use crate::rdb::opcode::MODULE_2;
use crate::rdb::payload;
use crate::types::{ExpireAt, Mark, Slot, shown};
use std::borrow::Cow;

const NOT_MADE: &str = "its compaction rules are not made at the target, which it reaches by commands: create them with TS.CREATERULE";
const ACROSS_SLOTS: &str = "a compaction rule fills a series of another slot, which a cluster drops: give both names the same hash tag {…}, and create the rule there";
const OTHERWISE: &str = "its payload is laid out otherwise than this version of its module is known to do it, and the target does not take it by RESTORE";
const NO_NAME: &str =
    "by `rename`, a series that its rules fill or that it is filled from has no name at the target";

impl<W: Wire> TargetWriter<W> {
    /// Writes a module's value; false when it is a listed loss.
    pub(super) fn put_module(
        &mut self,
        pass: Pass,
        h: &Header<'_>,
        body: &[u8],
        expire: Option<ExpireAt>,
        mark: Mark,
    ) -> Result<bool> {
        let ctx = self.ctx.clone();
        let lost = |why: &str| ctx.lose(pass.db(), h.key, losses::MODULE, why);
        match way(&ctx, &self.format, body) {
            Way::Lost(why) => {
                lost(&why)?;
                Ok(false)
            }
            Way::Restore => {
                let Some(body) = self.under_its_names(h.key, body)? else {
                    lost(NO_NAME)?;
                    return Ok(false);
                };
                self.lose_rules_across_slots(pass, h.key, &body)?;
                let footer = payload::footer_version(&self.format);
                self.commands(pass, Slot::of(h.key), mark, |batch| {
                    batch.state(1);
                    restore(&mut batch.bytes, h, &[], h.type_id, &body, footer, expire);
                    1
                })?;
                Ok(true)
            }
            Way::Commands => {
                let named = |e: crate::error::Error| {
                    e.context(format!("make the key {} by commands", shown(h.key)))
                };
                let looked_at = || -> Result<_> {
                    let held = can_be_held(&ctx, body)?;
                    let why = match held {
                        true => commands::inexact(body)?,
                        false => Some(TOO_LARGE),
                    };
                    let rules =
                        why.is_none() && is_series(body) && !modules::rules(body)?.is_empty();
                    Ok((why, rules))
                };
                let (why, rules) = match looked_at() {
                    Err(e) if e.kind() == ErrorKind::Corrupt => (Some(OTHERWISE), false),
                    looked_at => looked_at.map_err(named)?,
                };
                if let Some(why) = why {
                    lost(why)?;
                    return Ok(false);
                }
                if rules {
                    ctx.lose(pass.db(), h.key, losses::SERIES_RULES, NOT_MADE)?;
                }
                let node = self.wire.node_of(Slot::of(h.key));
                let wire = &mut self.wire;
                commands::write(h.key, body, expire, &mut Vec::new(), |bytes, n| {
                    let batch = wire.batch(node, pass.database(), mark)?;
                    batch.state(n);
                    batch.bytes.append(bytes);
                    wire.added(node, n);
                    Ok(())
                })
                .map_err(named)?;
                Ok(true)
            }
        }
    }

    /// Writes a large value that only commands bring; false when it is a listed loss.
    pub fn put_large_module(
        &mut self,
        pass: Pass,
        key: &[u8],
        body: &[u8],
        expire: Option<ExpireAt>,
        mark: Mark,
    ) -> Result<bool> {
        let h = Header {
            db: pass.db(),
            key,
            expire,
            idle_s: None,
            freq: None,
            meta: &[],
            type_id: MODULE_2,
            at: 0,
            value_at: 0,
        };
        self.put_module(pass, &h, body, expire, mark)
    }

    /// Names a series whose rules the target drops, as they fill series of other slots than its own.
    fn lose_rules_across_slots(&self, pass: Pass, key: &[u8], body: &[u8]) -> Result<()> {
        if !self.wire.one_slot() || !is_series(body) {
            return Ok(());
        }
        let slot = Slot::of(key);
        // One that is laid out otherwise is the target's to judge.
        let rules = modules::rules(body).unwrap_or_default();
        match rules.iter().all(|to| Slot::of(to) == slot) {
            true => Ok(()),
            false => (self.ctx).lose(pass.db(), key, losses::SERIES_RULES, ACROSS_SLOTS),
        }
    }

    /// A value with the names in it that keys have at the target; `None` when one of them has none there.
    fn under_its_names<'b>(&self, key: &[u8], body: &'b [u8]) -> Result<Option<Cow<'b, [u8]>>> {
        let renames = &self.ctx.job().renames;
        if renames.is_empty() || !is_series(body) {
            return Ok(Some(Cow::Borrowed(body)));
        }
        let known = modules::holds_known_names(body).unwrap_or(false);
        if !known || !can_be_held(&self.ctx, body).unwrap_or(false) {
            self.ctx.note("series_rules", RULES_OF_RENAMED);
            return Ok(Some(Cow::Borrowed(body)));
        }
        let name = |name: &[u8]| renames.to_target(name).map(Cow::into_owned);
        match modules::renamed(body, name) {
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                self.ctx.note("series_rules", RULES_OF_RENAMED);
                Ok(Some(Cow::Borrowed(body)))
            }
            Err(e) => Err(e.context(format!("rename the key {}", shown(key)))),
            Ok(new) => Ok(new.map(Cow::Owned)),
        }
    }
}
