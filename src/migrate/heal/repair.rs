//! Keys that a verification found to differ: read from the source and written again, in step with the stream.
//!
//! `verify --repair` writes them to SQLite; the shard of their slots heals them and takes them off the list.

use crate::error::Result;
use crate::migrate::context::ShardContext;
use crate::migrate::slots::owned::OwnedSlots;
use crate::store::REPAIR_FUNCTIONS;
use crate::types::DbIndex;

/// Keys taken at a time.
const CHUNK: u32 = 1000;

/// A key of the target's database, by its name at the source.
pub(crate) type Asked = (DbIndex, Vec<u8>);

/// Whether the libraries of functions are to be compared.
pub(crate) fn wants_functions(ctx: &ShardContext) -> Result<bool> {
    Ok(ctx.shared.store(|s| s.json(REPAIR_FUNCTIONS))? == Some(true.into()))
}

pub(crate) fn functions_done(ctx: &ShardContext) -> Result<()> {
    (ctx.shared).store(|s| s.put_json(REPAIR_FUNCTIONS, &false.into()))
}

/// What has been asked for, of all shards.
pub(crate) fn asked(ctx: &ShardContext) -> Result<Vec<Asked>> {
    ctx.shared.store(|s| s.repairs(CHUNK))
}

/// What of it is this shard's to do.
pub(crate) fn of(ctx: &ShardContext, slots: &OwnedSlots, asked: Vec<Asked>) -> Vec<Asked> {
    (asked.into_iter())
        .filter(|(_, key)| slots.has_slot_of(ctx, key))
        .collect()
}

/// These keys are healed.
pub(crate) fn done(ctx: &ShardContext, keys: &[Asked]) -> Result<()> {
    ctx.add("repaired", keys.len() as u64);
    ctx.shared.store(|s| s.repaired(keys))
}
