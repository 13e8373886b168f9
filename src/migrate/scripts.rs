//! Scripts that a source replicates as they were called, instead of what they did.
//!
//! Redis 4 and older do so unless a script asks for the other way; Redis 5 to 6.2 with `lua-replicate-commands no`.
//! Such a script may write keys that the call does not name, so it can be run, which those sources keep deterministic,
//! but not made good by healing its keys.
//! Invariant: of a script that is not run, nothing is applied and the run ends: no write of it is left out in silence.

use crate::command::{Command, Spec};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::pump::Pump;
use crate::types::ReplOffset;

const START_OVER: &str = "start over with --fresh and \"on_existing\": \"reconcile\"";

impl Pump {
    /// An error where the script would not be run at the target as the source has run it.
    pub(super) fn check_script(
        &self,
        cmd: &Command<'_>,
        spec: &'static Spec,
        end: ReplOffset,
    ) -> Result<()> {
        if self.shared.job.databases.map(self.db).is_none() {
            // The plan leaves the whole database out.
            return Ok(());
        }
        match self.why_not_run(cmd, spec, end)? {
            Some(why) => Err(self.not_run(spec.name, why)),
            None => Ok(()),
        }
    }

    fn why_not_run(
        &self,
        cmd: &Command<'_>,
        spec: &'static Spec,
        end: ReplOffset,
    ) -> Result<Option<&'static str>> {
        let mut keys = Vec::new();
        spec.keys(cmd, &mut keys)?;
        let any =
            |is: &dyn Fn(&[u8]) -> bool| (keys.iter()).any(|k| cmd.arg(k.index).is_some_and(is));
        let job = &self.shared.job;
        Ok(if self.shared.scripts_can_be_effects {
            Some("the source can replicate what its scripts do instead")
        } else if keys.is_empty() {
            Some("it names no keys")
        } else if self.pipe.topology().one_slot {
            Some("the target parts its keys by slot")
        } else if !job.filter.is_empty() || !job.renames.is_empty() || !job.databases.is_identity()
        {
            Some("the plan filters, renames or maps what it may write")
        } else if !self.shared.own.is_empty() {
            Some("the plan keeps keys of the target's own, which it may write")
        } else if end <= self.window_end {
            Some("it may have run already, before the last run of keyferry was cut off")
        } else if any(&|k| !self.owns(k)) {
            Some("its slot is moving inside the source")
        } else if any(&|k| self.is_fenced(self.db, k, end)) {
            Some("one of its keys was read from the source after it had run")
        } else if self.lagging && any(&|k| self.timed.may(k)) {
            Some("one of its keys may have expired at the target meanwhile")
        } else {
            None
        })
    }

    /// The end of the run at a script.
    pub(super) fn not_run(&self, name: &str, why: &str) -> Error {
        let remedy = if self.shared.scripts_can_be_effects {
            format!(
                "run CONFIG SET lua-replicate-commands yes on every node of the source, then {START_OVER}"
            )
        } else if self.source.is_none() {
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
}
