//! What the target cannot hold: a stop with the key named, or a listed loss, as the plan's `on_loss` says.

use crate::error::{Error, ErrorKind, Result};
use crate::keyset::Put;
use crate::migrate::pump::Pump;
use crate::plan::OnLoss;
use crate::rdb::cursor::Reader;
use crate::rdb::encoding::length;
use crate::rdb::payload::Target;
use crate::rdb::value::module_name;
use crate::store::Loss;
use crate::types::{DbIndex, shown};
use std::borrow::Cow;

/// Which loss it is: its counter.
pub const MODULE: &str = "skipped.module";
pub const TYPE: &str = "skipped.type";
pub const DATABASE: &str = "skipped.no_such_database";
pub const NAME: &str = "skipped.name";
pub const FIELD_EXPIRY: &str = "skipped.field_expiry";

impl Pump {
    /// A key of the target's database `db` that cannot be held: an error, or a line in the list of losses.
    pub(super) fn lose(
        &mut self,
        db: DbIndex,
        name: &[u8],
        code: &'static str,
        why: &str,
    ) -> Result<()> {
        let key = self.source_name(name).into_owned();
        self.lose_source_key(db, &key, code, why)
    }

    /// The same of a key by the name that it has at the source.
    pub(super) fn lose_source_key(
        &mut self,
        db: DbIndex,
        key: &[u8],
        code: &'static str,
        why: &str,
    ) -> Result<()> {
        let text = format!("the target cannot hold the key {}: {why}", shown(key));
        if self.shared.job.on_loss == OnLoss::Fail && !self.shared.dry_run {
            return Err(Error::new(ErrorKind::Unsupported, text).hint(
                "leave such keys out with filter.exclude, choose a target that can hold them, or set on_loss to \"list\" to go on without them",
            ));
        }
        if self.lost.put(db, key) == Put::Known {
            return Ok(());
        }
        self.note(code, &text);
        let what = code.trim_start_matches("skipped.");
        self.losses.push(Loss {
            db,
            key: key.to_vec(),
            what,
        });
        Ok(())
    }

    /// What a key is called at the source. Within the pump, keys have the names that they get at the target.
    pub(super) fn source_name<'k>(&self, name: &'k [u8]) -> Cow<'k, [u8]> {
        (self.shared.job.renames.to_source(name)).unwrap_or(Cow::Borrowed(name))
    }

    /// Whether the plan moves a key that is called so at the target.
    pub(super) fn accepts(&self, name: &[u8]) -> bool {
        let job = &self.shared.job;
        (job.renames.to_source(name)).is_some_and(|key| job.filter.accepts(&key))
    }

    /// Why a module's value cannot go to the target; `None` when it can.
    pub(super) fn lacks_module(&self, body: &[u8]) -> Option<String> {
        let id = length(&mut Reader::new(body, 0), "a module's id").unwrap_or_default();
        let name = module_name(id);
        if has_module(&name, &self.format, &self.shared.target_modules) {
            return None;
        }
        Some(format!(
            "it is a value of the module type {name}, and the target does not have that module"
        ))
    }
}

/// Modules by the names of their types.
const PROVIDERS: [(&str, &[&str]); 11] = [
    ("ReJSON-RL", &["rejson", "json"]),
    ("MBbloom--", &["bf"]),
    ("MBbloomCF", &["bf"]),
    ("CMSk-TYPE", &["bf"]),
    ("TopK-TYPE", &["bf"]),
    ("TDIS-TYPE", &["bf"]),
    ("bloomfltr", &["bf", "bloom"]),
    ("TSDB-TYPE", &["timeseries"]),
    ("trietype0", &["search", "ft"]),
    ("graphdata", &["graph"]),
    ("hellotype", &["hellotype", "helloworld"]),
];

/// Whether a server with `modules` loaded has the type `name`.
fn has_module(name: &str, target: &Target, modules: &[String]) -> bool {
    if name == "vectorset" {
        // Built into Redis 8.
        return !target.valkey && target.version >= (8, 0, 0);
    }
    let by = PROVIDERS
        .iter()
        .find(|(of, _)| *of == name)
        .map_or(&[] as &[&str], |(_, by)| *by);
    modules.iter().any(|m| {
        by.iter().any(|b| m.eq_ignore_ascii_case(b))
            || m.eq_ignore_ascii_case(name.trim_end_matches('-'))
    })
}
