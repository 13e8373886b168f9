//! The commands of search modules: their indexes, aliases, synonyms and dictionaries, which are no keys.
//!
//! A master sends the forms with an underscore, which run twice without harm; valkey-search the plain ones.

use super::table::{Spec, plain, write};
use super::what::Kind;

pub static SPECS: &[Spec] = &[
    plain("FT.CREATE", Kind::Search),
    plain("FT.ALTER", Kind::Search),
    plain("FT.DROP", Kind::Search),
    plain("FT.DROPINDEX", Kind::Search),
    plain("FT.ALIASADD", Kind::Search),
    plain("FT.ALIASUPDATE", Kind::Search),
    plain("FT.ALIASDEL", Kind::Search),
    plain("FT.SYNADD", Kind::Search),
    plain("FT.SYNUPDATE", Kind::Search),
    plain("FT.SYNFORCEUPDATE", Kind::Search),
    plain("FT.DICTADD", Kind::Search),
    plain("FT.DICTDEL", Kind::Search),
    plain("FT._CREATEIFNX", Kind::Search),
    plain("FT._ALTERIFNX", Kind::Search),
    plain("FT._ALIASADDIFNX", Kind::Search),
    plain("FT._ALIASDELIFX", Kind::Search),
    plain("FT._DROPIFX", Kind::Search),
    plain("FT._DROPINDEXIFX", Kind::Search),
    // Between the shards of a cluster.
    plain("_FT.CREATE", Kind::Search),
    plain("_FT.ALTER", Kind::Search),
    plain("_FT.DROP", Kind::Search),
    plain("_FT.DROPINDEX", Kind::Search),
    plain("_FT.ALIASADD", Kind::Search),
    plain("_FT.ALIASUPDATE", Kind::Search),
    plain("_FT.ALIASDEL", Kind::Search),
    plain("_FT.SYNUPDATE", Kind::Search),
    plain("_FT.DICTADD", Kind::Search),
    plain("_FT.DICTDEL", Kind::Search),
    plain("_FT._CREATEIFNX", Kind::Search),
    plain("_FT._ALTERIFNX", Kind::Search),
    plain("_FT._ALIASADDIFNX", Kind::Search),
    plain("_FT._ALIASDELIFX", Kind::Search),
    plain("_FT._DROPIFX", Kind::Search),
    plain("_FT._DROPINDEXIFX", Kind::Search),
    // valkey-search: a definition in a form of its own, beside the FT.CREATE that made it.
    plain("FT.INTERNAL_UPDATE", Kind::Search),
    // Suggestions are keys.
    write("FT.SUGADD"),
    write("FT.SUGDEL"),
];
