//! Commands of the stream under the names that their keys get at the target (`rename` of the plan).

use crate::command::{self, Access, Command, Kind, Spec};
use crate::error::Result;
use crate::migrate::heal::queue::Key;
use crate::plan::Job;
use crate::resp;
use crate::types::DbIndex;
use std::borrow::Cow;
use std::ops::Range;

/// Room for a command that is written anew.
#[derive(Default)]
pub(crate) struct Room {
    raw: Vec<u8>,
    args: Vec<Range<usize>>,
}

/// A command under the target's names.
pub(crate) enum Renamed<'a> {
    Command(Command<'a>),
    /// It cannot be sent under other names: these keys are read from the source, and those have nowhere to go; the
    /// latter by their names at the source, with the target's database.
    Keys {
        healed: Vec<Key>,
        lost: Vec<(DbIndex, Vec<u8>)>,
    },
}

/// Gives a command of the source's database `db` the names of the target.
pub(crate) fn renamed<'a>(
    job: &Job,
    db: DbIndex,
    cmd: &'a Command<'a>,
    spec: &'static Spec,
    room: &'a mut Room,
) -> Result<Renamed<'a>> {
    if job.renames.is_empty() {
        return Ok(Renamed::Command(*cmd));
    }
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
        return Ok(Renamed::Command(Command {
            raw: &room.raw,
            args: &room.args,
        }));
    }
    let mut dbs = vec![db];
    dbs.extend(command::copy_db(cmd).map(DbIndex));
    let (mut healed, mut lost) = (Vec::new(), Vec::new());
    for (key, name) in keys.iter().zip(names) {
        let old = cmd.arg(key.index).unwrap_or_default();
        if key.access != Access::Write || !job.filter.accepts(old) {
            continue;
        }
        match name {
            Some(name) => healed.extend(dbs.iter().map(|db| (*db, name.to_vec()))),
            None => lost.extend(job.databases.map(db).map(|to| (to, old.to_vec()))),
        }
    }
    Ok(Renamed::Keys { healed, lost })
}
