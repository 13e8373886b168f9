//! The slots that one shard may write to.

use crate::migrate::context::ShardContext;
use crate::migrate::slots::ownership::Mine;
use crate::types::Slot;

/// A shard's own view of [`Ownership`](crate::migrate::slots::ownership::Ownership), brought up to date by
/// [`OwnedSlots::refresh`].
#[derive(Default)]
pub(crate) struct OwnedSlots {
    mine: Mine,
    /// Slots are being copied: keys are written that are not ours yet.
    adopting: bool,
}

impl OwnedSlots {
    /// Whether this shard writes a key, by its name at the target.
    pub fn may_write(&self, ctx: &ShardContext, name: &[u8]) -> bool {
        self.adopting || self.owns(ctx, name)
    }

    /// Whether this shard's commands on a key are to be applied, by its name at the target.
    pub fn owns(&self, ctx: &ShardContext, name: &[u8]) -> bool {
        ctx.shared.ownership.is_none() || self.mine.has(Slot::of(&ctx.source_name(name)))
    }

    /// The same of a key by its name at the source.
    pub fn has_slot_of(&self, ctx: &ShardContext, key: &[u8]) -> bool {
        ctx.shared.ownership.is_none() || self.mine.has(Slot::of(key))
    }

    pub fn has(&self, slot: Slot) -> bool {
        self.mine.has(slot)
    }

    /// Whether slots have moved since the last [`OwnedSlots::refresh`].
    pub fn is_stale(&self, ctx: &ShardContext) -> bool {
        (ctx.shared.ownership.as_ref()).is_some_and(|all| all.changed(&self.mine))
    }

    /// Takes in which slots are ours now, once everything written before is answered; "0-5460,6000".
    pub fn refresh(&mut self, ctx: &ShardContext) -> String {
        if let Some(all) = &ctx.shared.ownership {
            all.meet(ctx.id, &mut self.mine);
        }
        self.mine.text()
    }

    pub fn adopt(&mut self, adopting: bool) {
        self.adopting = adopting;
    }

    pub fn adopting(&self) -> bool {
        self.adopting
    }
}
