//! What the target cannot hold: the names of the losses.

use crate::types::DbIndex;

/// Which loss it is: its counter.
pub(crate) const MODULE: &str = "skipped.module";
pub(crate) const TYPE: &str = "skipped.type";
pub(crate) const DATABASE: &str = "skipped.no_such_database";
pub(crate) const NAME: &str = "skipped.name";
pub(crate) const SERIES_RULES: &str = "skipped.series_rules";
pub(crate) const FIELD_EXPIRY: &str = "skipped.field_expiry";

pub(crate) const MEMBER_EXPIRY: &str = "skipped.member_expiry";

/// Why a key is listed some of whose members expire (KeyDB).
pub(crate) const HAS_MEMBER_EXPIRY: &str = "some of its members expire by themselves (EXPIREMEMBER of KeyDB): those that the source has not removed before the cutover stay for good";

/// What it means for a run that the target refuses RESTORE.
pub(crate) const WITHOUT_RESTORE: &str = "the target refuses RESTORE: every value is written by commands; access times and frequencies (LRU, LFU) do not come along";

/// Why a value cannot be written that no command puts together.
pub(crate) const ONLY_BY_RESTORE: &str =
    "the target refuses RESTORE, and no command writes a value of its type";

/// Why a key is listed whose type only KeyDB has: a script that runs by the clock, a nested hash.
pub(crate) const IS_KEYDBS: &str = "it is of a type that only KeyDB has";

/// Why a key has nowhere to go whose name another one gets.
pub(crate) const NAME_TAKEN: &str =
    "by `rename`, keys of another prefix get names like its own at the target";

/// Why a key of the source's database `db` has nowhere to go.
pub(crate) fn no_database(db: DbIndex) -> String {
    format!(
        "it is in database {db}, which the target does not have (databases.map can lead it to another)"
    )
}
