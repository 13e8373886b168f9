//! Search indexes in a shard's loop: brought once the load is over, and followed in the stream.
//!
//! Such a command has no key to be routed by, and a node may send it elsewhere: it waits until all before it is answered,
//! is asked over a connection of its own, and what follows waits for the answer.

use crate::command::Command;
use crate::error::Result;
use crate::migrate::apply::applier::Applier;
use crate::migrate::apply::apply_loop::ApplyLoop;
use crate::migrate::heal::fenced_reader::ReadStates;
use crate::migrate::indexes;
use crate::migrate::write::wire::Wire;
use crate::net::search::{Taken, left_out, tell};
use crate::search;

impl<W: Wire, S: ReadStates> Applier<W, S> {
    /// A command of a search module.
    pub(super) fn search(&mut self, cmd: &Command<'_>) -> Result<()> {
        let ctx = self.ctx.clone();
        if let Some(why) = left_out(ctx.job(), ctx.facts().modules.target.as_deref()) {
            let what = "a command of search indexes in the stream is left out";
            ctx.note("skipped.search", &format!("{what}: {why}"));
            return Ok(());
        }
        let rename = |prefix: &[u8]| ctx.job().renames.prefix_to_target(prefix);
        let Some(streamed) = search::translated(cmd, rename) else {
            return Ok(());
        };
        if ctx.dry_run() {
            return Ok(());
        }
        let name = String::from_utf8_lossy(cmd.arg(1).unwrap_or_default()).into_owned();
        if let Some(warning) = streamed.warning {
            ctx.note("search_altered", &format!("search index {name}: {warning}"));
        }
        self.settle_all()?;
        let taken = self.asked("sending a command of search indexes", |me| {
            let nodes = me.writer.addresses();
            let (to, words) = (&ctx.job().target, &streamed.words);
            ctx.shared.runtime.block_on(tell(to, &nodes, words))
        })?;
        match taken {
            Taken::By(_) => {
                ctx.count("search_commands");
                indexes::note_streamed(&ctx.shared, &streamed.words)?;
            }
            Taken::Moot => ctx.count("search_commands_moot"),
            Taken::NoSearch => ctx.note(
                "skipped.search",
                "a command of search indexes in the stream is left out: the target does not know it",
            ),
            Taken::Refused(why) => ctx.note(
                "skipped.search_refused",
                &format!(
                    "the target refuses {} of {name}, and is left as it is: {why}",
                    String::from_utf8_lossy(cmd.name())
                ),
            ),
        }
        Ok(())
    }
}

impl ApplyLoop {
    /// Makes the target's indexes those of the source; `renew` as in [`indexes::bring`].
    pub fn bring_indexes(&mut self, renew: bool) -> Result<()> {
        let ctx = self.ctx.clone();
        if ctx.dry_run() || ctx.job().source.endpoint().is_none() {
            return Ok(());
        }
        self.applier.asked("looking at the search indexes", |me| {
            let nodes = me.writer.addresses();
            (ctx.shared.runtime).block_on(indexes::bring(&ctx.shared, &nodes, renew))
        })
    }
}
