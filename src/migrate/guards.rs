//! Which commands of the stream need a guard, and what each one tells of expiries and of what is there.

use crate::command::{self, Access, Command, Kind, Spec, SplitKind};
use crate::migrate::pump::Pump;
use crate::migrate::timed::MaybeTimed;
use crate::types::DbIndex;

impl MaybeTimed {
    /// Calls `found` with each key, and each field of a key, that must be there for the command to run.
    pub fn each_needed<'a>(
        &self,
        db: DbIndex,
        cmd: &Command<'a>,
        spec: &Spec,
        keys: &[command::KeyArg],
        mut found: impl FnMut(&'a [u8], Option<&'a [u8]>),
    ) {
        for (i, key) in keys.iter().enumerate() {
            let name = cmd.arg(key.index).unwrap_or_default();
            if self.expected(db, name) && command::needs_key(spec, cmd, i, key.access) {
                found(name, None);
            }
        }
        if let Some(key) = hash_of(cmd, spec) {
            for field in command::fields::needed(spec, cmd) {
                if self.expects_field(db, key, field) {
                    found(key, Some(field));
                }
            }
        }
    }
}

impl Pump {
    /// Notes the keys that a command gives an expiry; whether it touches a timed key, which only matters while lagging.
    pub(super) fn note_timed(
        &mut self,
        cmd: &Command<'_>,
        spec: &'static Spec,
        keys: &[command::KeyArg],
    ) -> bool {
        let arg = |k: &command::KeyArg| cmd.arg(k.index).unwrap_or_default();
        let carries = command::expiry::carries(spec, cmd);
        let copies = matches!(spec.name, "RENAME" | "RENAMENX" | "COPY");
        let timed =
            carries || ((self.lagging || copies) && keys.iter().any(|k| self.timed.may(arg(k))));
        // What a timed key is renamed or copied to is timed as well.
        if timed && (carries || copies) {
            for k in keys.iter().filter(|k| k.access == Access::Write) {
                self.timed.add(arg(k));
                if copies || spec.name == "RESTORE" {
                    self.timed.add_field(arg(k), None);
                }
            }
            if let Some(key) = hash_of(cmd, spec) {
                for field in command::fields::timed(spec, cmd) {
                    self.timed.add_field(key, Some(field));
                }
            }
        }
        timed
    }

    /// Notes which keys are there after a command, and which are gone.
    pub(super) fn note_there(
        &mut self,
        cmd: &Command<'_>,
        spec: &'static Spec,
        keys: &[command::KeyArg],
    ) {
        let gone = matches!(spec.kind, Kind::Split(SplitKind::Keys)) && spec.name != "TOUCH";
        let moved = matches!(spec.name, "RENAME" | "RENAMENX" | "GETDEL");
        for (i, k) in keys
            .iter()
            .enumerate()
            .filter(|(_, k)| k.access == Access::Write)
        {
            let key = cmd.arg(k.index).unwrap_or_default();
            self.timed.note(self.db, key, !(gone || (moved && i == 0)));
        }
        if let Some(key) = hash_of(cmd, spec) {
            for field in command::fields::written(spec, cmd) {
                self.timed.note_field(self.db, key, field, true);
            }
            for field in command::fields::deleted(spec, cmd) {
                self.timed.note_field(self.db, key, field, false);
            }
        }
    }
}

/// The key of a command on one hash.
fn hash_of<'a>(cmd: &Command<'a>, spec: &Spec) -> Option<&'a [u8]> {
    cmd.arg(1).filter(|_| spec.name.starts_with('H'))
}
