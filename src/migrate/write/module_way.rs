//! Which way a module's value goes to this run's target, and what of time series is noted on the way.

use crate::error::Result;
use crate::migrate::context::ShardContext;
use crate::rdb::cursor::Reader;
use crate::rdb::encoding::length;
use crate::rdb::modules;
use crate::rdb::modules::ways::Way;
use crate::rdb::payload::Target;
use crate::rdb::value::{module_name, module_version};

const SERIES: &str = "TSDB-TYPE";
/// Why a value that only commands bring is a loss.
pub(super) const TOO_LARGE: &str = "the target takes it by commands only, and it is larger than the memory for one value: raise limits.memory_bytes";
/// What becomes of rules whose names cannot be found.
pub(super) const RULES_OF_RENAMED: &str = "a time series gets another name, and where its encoding version, or its size, hides the names in it, the target drops its compaction rules: look at TS.INFO there, and create them with TS.CREATERULE";
/// What DUMP does not tell.
const RULES_OF_DUMP: &str = "time series were read by DUMP, which does not tell their compaction rules: look at TS.INFO of the source, and create those that lack at the target with TS.CREATERULE";

/// The type and encoding version of a value that begins with its id.
fn type_of(body: &[u8]) -> (String, u16) {
    let id = length(&mut Reader::new(body, 0), "a module's id").unwrap_or_default();
    (module_name(id), module_version(id))
}

/// Which way a value goes; `head` begins with its id.
pub(super) fn way(ctx: &ShardContext, format: &Target, head: &[u8]) -> Way {
    let (name, version) = type_of(head);
    ctx.facts().modules.way(&name, version, format)
}

pub(super) fn is_series(head: &[u8]) -> bool {
    type_of(head).0 == SERIES
}

/// Notes what a payload of DUMP lacks.
pub(crate) fn note_dumped(ctx: &ShardContext, body: &[u8]) {
    if is_series(body) {
        ctx.note("series_rules", RULES_OF_DUMP);
    }
}

/// Whether a value can be held when it is unpacked.
pub(super) fn can_be_held(ctx: &ShardContext, body: &[u8]) -> Result<bool> {
    Ok(modules::unpacked(body)? <= ctx.job().limits.element() as u64)
}
