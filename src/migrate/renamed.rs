//! Commands of the stream under the names that their keys get at the target (`rename` of the plan).

use crate::command::{self, Access, Command, Kind, Spec};
use crate::error::Result;
use crate::migrate::bulk::NAME_TAKEN;
use crate::migrate::heal::Key;
use crate::migrate::losses;
use crate::migrate::pump::Pump;
use crate::resp;
use crate::types::{DbIndex, Mark};
use std::borrow::Cow;
use std::ops::Range;

/// Room for a command that is written anew.
#[derive(Default)]
pub(super) struct Room {
    raw: Vec<u8>,
    args: Vec<Range<usize>>,
}

impl Pump {
    /// The command with the names of the target; `None` when it cannot be sent as it is and its keys are dealt with.
    pub(super) fn renamed<'a>(
        &mut self,
        cmd: &'a Command<'a>,
        spec: &'static Spec,
        mark: Mark,
        room: &'a mut Room,
    ) -> Result<Option<Command<'a>>> {
        if self.shared.job.renames.is_empty() {
            return Ok(Some(*cmd));
        }
        let job = self.shared.job.clone();
        let mut keys = Vec::new();
        spec.keys(cmd, &mut keys)?;
        let names: Vec<Option<Cow<[u8]>>> = (keys.iter())
            .map(|k| job.renames.to_target(cmd.arg(k.index).unwrap_or_default()))
            .collect();
        // What names keys beside its arguments (patterns, a script's own text) cannot be sent under other names.
        let elsewhere = spec.kind == Kind::Eval || spec.name == "SORT";
        if (!elsewhere || keys.is_empty()) && names.iter().all(Option::is_some) {
            let mut args: Vec<&[u8]> = (0..cmd.len()).filter_map(|i| cmd.arg(i)).collect();
            for (key, name) in keys.iter().zip(&names) {
                if let (Some(place), Some(name)) = (args.get_mut(key.index), name) {
                    *place = name;
                }
            }
            room.raw.clear();
            resp::command(&mut room.raw, &args);
            resp::parse_command(&room.raw, &mut room.args)?;
            return Ok(Some(Command {
                raw: &room.raw,
                args: &room.args,
            }));
        }
        let mut dbs = vec![self.db];
        dbs.extend(command::copy_db(cmd).map(DbIndex));
        let mut written: Vec<Key> = Vec::new();
        for (key, name) in keys.iter().zip(names) {
            let old = cmd.arg(key.index).unwrap_or_default();
            if key.access != Access::Write || !job.filter.accepts(old) {
                continue;
            }
            match name {
                Some(name) => written.extend(dbs.iter().map(|db| (*db, name.to_vec()))),
                None => {
                    if let Some(to) = job.databases.map(self.db) {
                        self.lose_source_key(to, old, losses::NAME, NAME_TAKEN)?;
                    }
                }
            }
        }
        self.count("renamed.read_again");
        self.heal(&written, mark)?;
        Ok(None)
    }
}
