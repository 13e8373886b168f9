//! Scripts that a source replicates as they were called, instead of what they did.
//!
//! Redis 4 and older do so unless a script asks for the other way; Redis 5 to 6.2 with `lua-replicate-commands no`.
//! Such a script may write keys that the call does not name, so it can be run, which those sources keep deterministic,
//! but not made good by healing its keys.
//! Invariant: of a script that is not run, nothing is applied and the run ends: no write of it is left out in silence.

use crate::command::{Command, KeyArg, Spec};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::stream::router::View;
use crate::types::ReplOffset;

const START_OVER: &str = "start over with --fresh and \"on_existing\": \"reconcile\"";

/// An error where a script that ends at `end` would not be run at the target as the source has run it.
pub(crate) fn check(
    cmd: &Command<'_>,
    spec: &'static Spec,
    keys: &[KeyArg],
    end: ReplOffset,
    view: &View<'_>,
) -> Result<()> {
    if view.ctx.job().databases.map(view.position.db()).is_none() {
        // The plan leaves the whole database out.
        return Ok(());
    }
    match why_not_run(cmd, keys, end, view) {
        Some(why) => Err(not_run(
            spec.name,
            why,
            view.ctx.facts().scripts_can_be_effects,
            view.asks,
        )),
        None => Ok(()),
    }
}

fn why_not_run(
    cmd: &Command<'_>,
    keys: &[KeyArg],
    end: ReplOffset,
    view: &View<'_>,
) -> Option<&'static str> {
    let db = view.position.db();
    let any = |is: &dyn Fn(&[u8]) -> bool| (keys.iter()).any(|k| cmd.arg(k.index).is_some_and(is));
    let job = view.ctx.job();
    Some(if view.ctx.facts().scripts_can_be_effects {
        "the source can replicate what its scripts do instead"
    } else if keys.is_empty() {
        "it names no keys"
    } else if view.one_slot {
        "the target parts its keys by slot"
    } else if !job.filter.is_empty() || !job.renames.is_empty() || !job.databases.is_identity() {
        "the plan filters, renames or maps what it may write"
    } else if !view.ctx.shared.own.is_empty() {
        "the plan keeps keys of the target's own, which it may write"
    } else if view.position.in_window(end) {
        "it may have run already, before the last run of keyferry was cut off"
    } else if any(&|k| !view.door.slots().owns(view.ctx, k)) {
        "its slot is moving inside the source"
    } else if any(&|k| view.healer.waits(db, k)) {
        "one of its keys could not be written yet"
    } else if any(&|k| view.healer.covers(db, k, end)) {
        "one of its keys was read from the source after it had run"
    } else if view.expiry.is_lagging() && any(&|k| view.expiry.may(k)) {
        "one of its keys may have expired at the target meanwhile"
    } else {
        return None;
    })
}

/// The end of the run at a script; `asks`: there is a source to be asked, not a file.
pub(crate) fn not_run(name: &str, why: &str, can_be_effects: bool, asks: bool) -> Error {
    let remedy = if can_be_effects {
        format!(
            "run CONFIG SET lua-replicate-commands yes on every node of the source, then {START_OVER}"
        )
    } else if !asks {
        "load the file into a server of its version, and move that with source.mode \"scan\""
            .to_owned()
    } else {
        format!(
            "move this source with source.mode \"scan\", which reads keys instead of commands; or have its scripts call redis.replicate_commands() first, then {START_OVER}"
        )
    };
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "the source replicates a script as it was called ({name}), which may write keys that the call does not name, and it cannot be run here: {why}"
        ),
    )
    .hint(remedy)
}
