//! A command of the stream that keyferry does not know: the one place that decides what becomes of it.

use crate::command::Command;
use crate::error::Result;
use crate::migrate::apply::applier::Applier;
use crate::migrate::heal::fenced_reader::ReadStates;
use crate::migrate::heal::queue::Key;
use crate::migrate::stream::router;
use crate::migrate::write::losses;
use crate::migrate::write::wire::Wire;
use crate::types::Mark;

impl<W: Wire, S: ReadStates> Applier<W, S> {
    /// Stops, or reads the keys that the source says it has, or leaves it out.
    pub(super) fn unknown(&mut self, cmd: &Command<'_>, mark: Mark) -> Result<()> {
        let ctx = self.ctx.clone();
        router::may_skip(cmd, &ctx)?;
        let at = match mark {
            Mark::Stream { at, .. } => at,
            Mark::Snapshot { .. } => self.position.at(),
        };
        let keys = self.keys_told(cmd)?;
        ctx.note_unknown(cmd.name(), at, keys.is_some());
        let Some(keys) = keys else {
            // Nobody knows which: a verification of what has changed has to look at all of them.
            self.marks.touch_all();
            return Ok(());
        };
        let (db, job) = (self.position.db(), ctx.job());
        let mut named: Vec<Key> = Vec::new();
        for key in keys.iter().filter(|key| job.filter.accepts(key)) {
            match job.renames.to_target(key) {
                Some(name) => named.push((db, name.into_owned())),
                None => {
                    if let Some(to) = job.databases.map(db) {
                        ctx.lose_source_key(to, key, losses::NAME, losses::NAME_TAKEN)?;
                    }
                }
            }
        }
        for (db, name) in &named {
            self.marks.touch(*db, name);
        }
        self.heal_due()?;
        let reads = router::reads(named, false, &mut self.view())?;
        self.read(reads, mark)
    }

    /// The command's keys by their names at the source, where that says at which places they stand.
    fn keys_told(&mut self, cmd: &Command<'_>) -> Result<Option<Vec<Vec<u8>>>> {
        if !self.reader.asks() {
            return Ok(None);
        }
        let Some((first, last, step)) = self.reader.key_places(cmd.name())? else {
            return Ok(None);
        };
        let keys: Vec<Vec<u8>> = cmd
            .places(first, last, step)
            .into_iter()
            .flatten()
            .filter_map(|i| cmd.arg(i).map(<[u8]>::to_vec))
            .collect();
        // What was too long to be held may have been a key.
        let whole = !self.position.is_cut() || keys.iter().all(|key| !key.is_empty());
        Ok((whole && !keys.is_empty()).then_some(keys))
    }
}
