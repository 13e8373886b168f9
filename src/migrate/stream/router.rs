//! What becomes of each command of the stream: a decision, without carrying it out.
//!
//! Pure, but that the door asks the target once for a database it does not know: a command and a view of the state in,
//! a [`Route`] out. The loop carries it out.

use crate::command::{self, Access, Command, KeyArg, Kind, Spec, SplitKind};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::context::ShardContext;
use crate::migrate::expiry::guard::ExpiryGuard;
use crate::migrate::heal::healer::Healer;
use crate::migrate::heal::queue::Key;
use crate::migrate::stream::forms::Forms;
use crate::migrate::stream::position::StreamPosition;
use crate::migrate::write::door::{Admission, Barred, Door, Pass, Replacement};
use crate::migrate::write::losses;
use crate::plan::UnknownCommands;
use crate::resp;
use crate::types::{DbIndex, ReplOffset, Slot, shown};

/// What a decision looks at.
pub(crate) struct View<'a> {
    pub ctx: &'a ShardContext,
    pub position: &'a StreamPosition,
    pub door: &'a mut Door,
    pub healer: &'a Healer,
    pub expiry: &'a ExpiryGuard,
    pub forms: &'a Forms,
    /// One command of the target must keep to one slot.
    pub one_slot: bool,
    /// The source can be asked for the state of keys.
    pub asks: bool,
}

/// What becomes of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// It needs nothing at the target.
    Nothing,
    /// It is left out, and counted.
    Skip(&'static str),
    Select(DbIndex),
    /// A library of functions.
    Function,
    /// An index, alias, synonym or dictionary of a search module.
    Search,
    /// Every node gets it as it is.
    Broadcast,
    Flush {
        all: bool,
    },
    /// The source has removed the keys of slots that it has handed to another master.
    Trim,
    /// It goes to the node of this slot.
    Forward(Leave, Slot),
    /// Its keys lie in several slots: it is split by slot.
    Split(Leave, SplitKind),
    /// RESTORE takes the way of every value: the target may hold it in another form only.
    Restore(Leave),
    /// What it writes is read from the source.
    Heal(Reads),
    /// The target cannot hold what it writes: keys of the target's databases.
    Lose {
        keys: Vec<(DbIndex, Vec<u8>)>,
        code: &'static str,
        why: &'static str,
    },
}

/// Leave to run a command: all of its keys are admitted, to one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leave {
    /// `None` where only the target's own keys are written.
    pub pass: Option<Pass>,
    /// The target's own keys, which a file's first command on them replaces: they are claimed and removed first.
    pub replaces: Vec<(Replacement, Vec<u8>)>,
}

/// Keys that are read instead of a command's being sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reads {
    /// In the source's databases.
    pub keys: Vec<Key>,
    /// Keys for which the target lacks the database; that one is the target's.
    pub lost: Vec<(DbIndex, DbIndex, Vec<u8>)>,
    /// Keys whose slot is on its way: its new owner copies them.
    pub suspects: Vec<Vec<u8>>,
    /// What is counted beside.
    pub counts: Option<&'static str>,
}

/// A whole transaction that may run as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AsOne {
    pub slot: Slot,
    pub pass: Pass,
}

/// The command's row of the table; an error for one that is not there.
pub(crate) fn known(cmd: &Command<'_>) -> Result<&'static Spec> {
    command::lookup(cmd.name()).ok_or_else(|| unknown(cmd))
}

/// Whether a run goes on past a command that is not known; an error where the plan does not say so.
pub(crate) fn may_skip(cmd: &Command<'_>, ctx: &ShardContext) -> Result<()> {
    match ctx.job().unknown_commands {
        UnknownCommands::Fail if !ctx.dry_run() => Err(unknown(cmd)),
        _ => Ok(()),
    }
}

fn unknown(cmd: &Command<'_>) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "the stream holds the command {}, which keyferry does not know",
            shown(cmd.name())
        ),
    )
    .hint("set unknown_commands to \"skip\" in the plan and run the same command again: it goes on from here; the keys of such commands are read from the source where it says which they are, else the command is left out, `verify` says what differs, and `verify --repair` mends it")
}

/// Whether a command's keys are looked at by [`route`], so that they have to be under the target's names.
pub(crate) fn writes_keys(spec: &Spec) -> bool {
    matches!(
        spec.kind,
        Kind::Write | Kind::Split(_) | Kind::Move | Kind::Eval | Kind::Unheld
    )
}

/// Decides on a command that ends at `end`; `keys` are its keys, in the target's names.
pub(crate) fn route(
    cmd: &Command<'_>,
    spec: &'static Spec,
    keys: &[KeyArg],
    end: ReplOffset,
    view: &mut View<'_>,
) -> Result<Route> {
    match spec.kind {
        Kind::Ping
        | Kind::Replconf
        | Kind::Read
        | Kind::Ignore
        | Kind::Multi
        | Kind::Exec
        | Kind::Discard => Ok(Route::Nothing),
        Kind::Select => {
            let db = cmd.arg(1).and_then(|n| std::str::from_utf8(n).ok());
            let db = db.and_then(|n| n.parse().ok()).ok_or_else(|| {
                Error::new(
                    ErrorKind::Protocol,
                    "the stream holds a SELECT without a number",
                )
            })?;
            Ok(Route::Select(DbIndex(db)))
        }
        // Subscribers of the target are not the source's: they are served from the cutover on.
        Kind::Publish => Ok(Route::Skip("skipped.publish")),
        Kind::Function => Ok(Route::Function),
        Kind::Search => Ok(Route::Search),
        Kind::Script => Ok(match cmd.arg(1) {
            Some(sub) if sub.eq_ignore_ascii_case(b"LOAD") => Route::Broadcast,
            _ => Route::Nothing,
        }),
        Kind::FlushDb | Kind::FlushAll => Ok(Route::Flush {
            all: spec.kind == Kind::FlushAll,
        }),
        Kind::SwapDb => Err(Error::new(
            ErrorKind::Unsupported,
            "the source ran SWAPDB, which exchanges whole databases under the migration",
        )
        .hint("start over with --fresh once the databases are as they shall stay")),
        Kind::TrimSlots => Ok(Route::Trim),
        Kind::Replay => Err(Error::new(
            ErrorKind::Unsupported,
            "the source has become an active replica of KeyDB, which wraps every write (RREPLAY)",
        )
        .hint("start over with --fresh, on_existing \"reconcile\" and source.mode \"scan\"")),
        Kind::Unheld => unheld(cmd, spec, keys, view),
        Kind::Write | Kind::Split(_) | Kind::Move | Kind::Eval => write(cmd, spec, keys, end, view),
    }
}

/// What no target holds of a command: a loss of each key that the plan moves.
fn unheld(
    cmd: &Command<'_>,
    spec: &'static Spec,
    keys: &[KeyArg],
    view: &mut View<'_>,
) -> Result<Route> {
    let mut lost = Vec::new();
    for key in keys.iter().filter_map(|k| cmd.arg(k.index)) {
        let db = view.position.db();
        if let Admission::Yes(_) | Admission::Replace(_) = view.door.admit(db, key)? {
            lost.extend(
                view.ctx
                    .job()
                    .databases
                    .map(db)
                    .map(|to| (to, key.to_vec())),
            );
        }
    }
    let (code, why) = match spec.name {
        "KEYDB.CRON" | "KEYDB.NHSET" => (losses::TYPE, losses::IS_KEYDBS),
        _ => (losses::MEMBER_EXPIRY, losses::HAS_MEMBER_EXPIRY),
    };
    Ok(Route::Lose {
        keys: lost,
        code,
        why,
    })
}

fn write(
    cmd: &Command<'_>,
    spec: &'static Spec,
    keys: &[KeyArg],
    end: ReplOffset,
    view: &mut View<'_>,
) -> Result<Route> {
    if keys.is_empty() {
        let wrong = format!("{} without a key", spec.name);
        return Err(Error::new(ErrorKind::Protocol, wrong));
    }
    let db = view.position.db();
    let key = |k: &KeyArg| cmd.arg(k.index).unwrap_or_default();
    let mut leave = Leave {
        pass: None,
        replaces: Vec::new(),
    };
    for k in keys {
        match view.door.admit(db, key(k))? {
            Admission::Yes(pass) => leave.pass = Some(pass),
            Admission::Replace(own) if !view.asks && k.access == Access::Write => {
                // A file cannot be asked, but in it the key was not there before this command.
                leave.replaces.push((own, key(k).to_vec()));
            }
            Admission::No(Barred::Slot) => {
                // Its new owner copies it.
                return Ok(Route::Heal(Reads {
                    suspects: vec![key(k).to_vec()],
                    ..Reads::default()
                }));
            }
            _ => return admitted_of(cmd, spec, keys, view),
        }
    }
    if view.ctx.job().filter.looks_inside() {
        return admitted_of(cmd, spec, keys, view);
    }
    let written = |view: &View<'_>| {
        // What is already there is left.
        let mut written = written(db, cmd, keys);
        written.retain(|(db, k)| !view.healer.covers(*db, k, end));
        written
    };
    let waits = !view.healer.is_idle() && keys.iter().any(|k| waits(view, db, key(k)));
    // What was too long to be held cannot run.
    let read = view.position.in_window(end)
        || view.position.is_cut()
        || is_timeless(cmd, spec, view)
        || view.expiry.must_heal(cmd, spec, keys);
    if read || waits || view.forms.has(cmd) {
        return Ok(Route::Heal(Reads {
            keys: written(view),
            ..Reads::default()
        }));
    }
    // Of a mixed state a command cannot run on, what is not there yet is read.
    if view.healer.is_ahead() && keys.iter().any(|k| view.healer.covers(db, key(k), end)) {
        return Ok(Route::Heal(Reads {
            keys: written(view),
            ..Reads::default()
        }));
    }
    if is_restore(spec) {
        return Ok(Route::Restore(leave));
    }
    if !runs_as_it_is(cmd, spec, view) {
        let elsewhere = command::copy_db(cmd).is_some();
        return Ok(Route::Heal(Reads {
            keys: self::written(db, cmd, keys),
            counts: elsewhere.then_some("cross_database"),
            ..Reads::default()
        }));
    }
    let slot = keys.first().map_or(Slot::of(b""), |k| Slot::of(key(k)));
    let together = !view.one_slot || keys.iter().all(|k| Slot::of(key(k)) == slot);
    Ok(match (together, spec.kind) {
        (true, _) => Route::Forward(leave, slot),
        (false, Kind::Split(kind)) => Route::Split(leave, kind),
        (false, _) => Route::Heal(Reads {
            keys: self::written(db, cmd, keys),
            counts: Some("cross_slot"),
            ..Reads::default()
        }),
    })
}

/// Whether a key waits to be healed, from whichever of the source's databases that lead to the same one of the target.
fn waits(view: &View<'_>, db: DbIndex, key: &[u8]) -> bool {
    let databases = &view.ctx.job().databases;
    match databases.map(db).filter(|_| !databases.is_identity()) {
        Some(to) => (databases.sources_of(to)).any(|from| view.healer.waits(from, key)),
        None => view.healer.waits(db, key),
    }
}

/// Some key of a command is not simply admitted, so the command cannot run: what it writes is healed as far as each
/// key's own admission goes, in whichever database it is.
fn admitted_of(
    cmd: &Command<'_>,
    spec: &'static Spec,
    keys: &[KeyArg],
    view: &mut View<'_>,
) -> Result<Route> {
    let removes = matches!(spec.kind, Kind::Split(SplitKind::Keys));
    reads(written(view.position.db(), cmd, keys), removes, view).map(Route::Heal)
}

/// What of some keys is read from the source, by each key's own admission; they have the target's names.
pub(crate) fn reads(keys: Vec<Key>, removes: bool, view: &mut View<'_>) -> Result<Reads> {
    let mut reads = Reads::default();
    let mut barred = None;
    for (db, name) in keys {
        match view.door.admit(db, &name)? {
            Admission::Yes(_) | Admission::Replace(_) => reads.keys.push((db, name)),
            Admission::No(Barred::NoDatabase(to)) if !removes => reads.lost.push((db, to, name)),
            Admission::No(Barred::NoDatabase(_)) => {}
            Admission::No(Barred::Slot) => reads.suspects.push(name),
            Admission::No(why) => {
                barred.get_or_insert(why);
            }
        }
    }
    let counted = barred.filter(|why| reads.keys.is_empty() || *why == Barred::Own);
    reads.counts = counted.map(Barred::counter);
    Ok(reads)
}

/// What a command writes, in whichever database of the source it is.
fn written(db: DbIndex, cmd: &Command<'_>, keys: &[KeyArg]) -> Vec<Key> {
    let written = (keys.iter())
        .filter(|k| k.access == Access::Write)
        .filter_map(|k| cmd.arg(k.index));
    match command::copy_db(cmd).map(DbIndex) {
        None => written.map(|k| (db, k.to_vec())).collect(),
        // COPY leaves its first key as it is, MOVE takes it away.
        Some(other) => written
            .flat_map(|k| [(db, k.to_vec()), (other, k.to_vec())])
            .filter(|(db, _)| *db == other || cmd.name().eq_ignore_ascii_case(b"MOVE"))
            .collect(),
    }
}

/// Whether a command sets an expiry that counts from a moment which nobody knows.
fn is_timeless(cmd: &Command<'_>, spec: &'static Spec, view: &View<'_>) -> bool {
    view.ctx.facts().relative_ttls
        && spec.carries_expiry
        && view.asks
        && command::expiry::is_relative(cmd)
        && view.ctx.spool.written_ms(view.position.at()).is_none()
}

/// Whether the target may run a command itself, its keys being admitted; else they are healed.
fn runs_as_it_is(cmd: &Command<'_>, spec: &'static Spec, view: &View<'_>) -> bool {
    // What the target could not hold of the one key is missing in the other as well, and has to be listed.
    let copies_loss =
        view.ctx.facts().loses_field_expiry && matches!(spec.name, "RENAME" | "RENAMENX" | "COPY");
    let elsewhere = command::copy_db(cmd).is_some();
    // Of a file only its commands are to be had.
    let repeats = !view.asks || command::repeats(cmd, spec);
    let unsure = spec.name == "HIMPORT" || !repeats;
    !elsewhere && !unsure && !copies_loss && !is_restore(spec) && !view.forms.has(cmd)
}

fn is_restore(spec: &Spec) -> bool {
    matches!(spec.name, "RESTORE" | "RESTORE-ASKING")
}

/// The commands of a transaction, without its MULTI and EXEC.
pub(crate) fn parts<'a>(whole: &'a [u8], ends: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    ends.windows(2)
        .filter_map(|pair| whole.get(*pair.first()?..*pair.get(1)?))
}

/// Decides whether a transaction up to `end` may run as it is: it needs nothing special, all of its keys are admitted,
/// and in one slot where that matters. `None`: its commands are routed one by one.
pub(crate) fn transaction(
    whole: &[u8],
    ends: &[usize],
    end: ReplOffset,
    view: &mut View<'_>,
) -> Result<Option<AsOne>> {
    let job = view.ctx.job();
    let special = view.position.in_window(end)
        || view.healer.is_ahead()
        || !view.healer.is_idle()
        || view.expiry.is_holding()
        || view.expiry.is_lagging()
        || view.ctx.facts().relative_ttls
        || !job.filter.is_empty()
        || !job.renames.is_empty();
    if special {
        return Ok(None);
    }
    let (mut found, mut args, mut keys) = (None, Vec::new(), Vec::new());
    for raw in parts(whole, ends) {
        resp::parse_command(raw, &mut args)?;
        let cmd = Command { raw, args: &args };
        let Some(spec) = command::lookup(cmd.name()) else {
            return Ok(None);
        };
        let in_two = !view.ctx.facts().target_has_set_pxat && command::expiry::is_set_at(&cmd);
        let plain = matches!(spec.kind, Kind::Write | Kind::Split(_)) && !in_two;
        if !plain || !runs_as_it_is(&cmd, spec, view) {
            return Ok(None);
        }
        spec.keys(&cmd, &mut keys)?;
        for key in &keys {
            let key = cmd.arg(key.index).unwrap_or_default();
            let Admission::Yes(pass) = view.door.admit(view.position.db(), key)? else {
                return Ok(None);
            };
            let slot = Slot::of(key);
            if view.one_slot && found.is_some_and(|as_one: AsOne| as_one.slot != slot) {
                view.ctx.count("transactions_split");
                return Ok(None);
            }
            found = Some(AsOne { slot, pass });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
