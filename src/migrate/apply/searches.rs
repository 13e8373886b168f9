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
use crate::net::search::{Taken, left_out};
use crate::rdb::value::AuxTexts;
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
            let followed = indexes::follow(&ctx.shared, &nodes, &streamed.words);
            ctx.shared.runtime.block_on(followed)
        })?;
        let Some(taken) = taken else {
            let what = format!(
                "{} of the search index {name} is left out: the target has an index of its own of this name, which is left as it is",
                String::from_utf8_lossy(cmd.name())
            );
            ctx.note("skipped.search_own", &what);
            return Ok(());
        };
        match taken {
            Taken::By(_) => ctx.count("search_commands"),
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
    /// What a search module has saved outside of keys: names of aliases and of dictionaries, which nothing else tells,
    /// are among these strings, and the source says which.
    pub(super) fn search_names(&mut self, module: &str, found: &AuxTexts) -> Result<()> {
        let ctx = self.ctx.clone();
        if !self.applier.reader.asks() {
            ctx.note("skipped.indexes", "the file holds definitions of search indexes or dictionaries, which are not made at the target: load the file into a server with the search module, where FT._LIST and FT.INFO tell them, and move that server, or run FT.CREATE at the target");
            return Ok(());
        }
        let left_out = left_out(ctx.job(), ctx.facts().modules.target.as_deref()).is_some();
        let texts = &found.texts;
        if texts.is_empty() || left_out || ctx.dry_run() {
            return Ok(());
        }
        let dictionaries = module.starts_with("scdtype");
        if found.cut {
            let what = match dictionaries {
                true => "dictionaries",
                false => "aliases of search indexes",
            };
            let names = texts.len();
            ctx.note("search_names_cut", &format!("the snapshot holds more than {names} strings that may be names of {what}: those behind are not looked at; make what is missing at the target by hand (FT.DICTADD, FT.ALIASADD)"));
        }
        self.applier
            .asked("looking for aliases and dictionaries", |_| {
                let found = indexes::find_names(&ctx.shared, &ctx.address, texts, dictionaries);
                ctx.shared.runtime.block_on(found)
            })
    }

    /// Makes the target's indexes those of the source; `renew` as in [`indexes::bring`].
    pub fn bring_indexes(&mut self, renew: bool) -> Result<()> {
        let ctx = self.ctx.clone();
        if ctx.dry_run() || !ctx.facts().source_has_modules {
            return Ok(());
        }
        self.applier.asked("looking at the search indexes", |me| {
            let nodes = me.writer.addresses();
            (ctx.shared.runtime).block_on(indexes::bring(&ctx.shared, &nodes, renew))
        })
    }
}
