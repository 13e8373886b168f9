//! What the target could not do: collected, then sent again, asked of another node, or healed.
//!
//! One way for everything: settle, look at each unit's fate, go on. In the snapshot phase, what is uncertain means to
//! read the snapshot again from its mark, as whole values may be written twice.

use crate::command::{self, Access, Command, Kind};
use crate::error::{Error, ErrorKind, Result, Retry};
use crate::migrate::heal::Key;
use crate::migrate::pump::Pump;
use crate::net;
use crate::resp::{self, Reply};
use crate::target::trouble::NOTHING_THERE;
use crate::target::{Fate, Unit};
use crate::types::{DbIndex, Mark, Slot, db_key, shown, split_db_key};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Instant;

/// Maximum times that a key's state, which the target keeps refusing, is written again.
const MOST_REFUSALS: u32 = 8;

impl Pump {
    /// Waits until everything sent is answered and all trouble resolved; true when the snapshot must be read again from its mark.
    pub(super) fn settle_all(&mut self) -> Result<bool> {
        loop {
            self.pipe.flush();
            if self.resolve()? {
                return Ok(true);
            }
            if self.pipe.oldest().is_none() && !self.pipe.troubled() {
                return Ok(false);
            }
        }
    }

    /// Asks the target something until it answers, as long as the plan's patience lasts.
    pub(super) fn asked<T>(
        &mut self,
        what: &str,
        mut ask: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let mut tries = net::Tries::new(self.shared.patience);
        loop {
            let e = match ask(self) {
                Ok(answer) => return Ok(answer),
                Err(e) => e,
            };
            let (runtime, stop) = (self.shared.runtime.clone(), self.shared.stop.clone());
            runtime.block_on(tries.again(e, what, &stop))?;
            self.settle_all()?;
            // Others may be its masters by now.
            if let Err(e) = self.pipe.refresh() {
                tracing::warn!("the target's topology could not be read: {e}");
            }
        }
    }

    /// Collects what the target could not do and does it again, by the way that fits each error.
    ///
    /// True when the snapshot must be read again from its saved mark, because it is not known what has run.
    pub(super) fn resolve(&mut self) -> Result<bool> {
        let before = self.floor;
        let resolved = self.resolve_all();
        // After an error the floor stays: what was not done lies above it.
        if resolved.is_ok() {
            self.floor = before;
        }
        resolved
    }

    fn resolve_all(&mut self) -> Result<bool> {
        let (began, mut backoff) = (Instant::now(), net::Backoff::new());
        let loading = self.in_load;
        loop {
            let mark = self.oldest().unwrap_or_else(|| {
                if loading {
                    self.loading_mark()
                } else {
                    self.now()
                }
            });
            // Until it is sent again, nothing else knows of it.
            self.hold(mark);
            let (units, error) = self.pipe.settle();
            if units.is_empty() && error.is_none() && self.unfinished.is_empty() {
                self.progress.set_note("");
                return Ok(false);
            }
            let expired = |u: &Unit| u.fate == nothing_there();
            let quiet = |u: &Unit| expired(u) || u.fate == Fate::Unsent;
            if error.is_none() && units.iter().any(expired) && units.iter().all(quiet) {
                // Keys that have expired over there before their commands came, and what waited behind those.
                self.count("healed.expired_there");
                self.redo(units, mark)?;
                if self.pipe.troubled() {
                    continue;
                }
                self.pipe.flush();
                return Ok(false);
            }
            self.count("faults.target");
            // Meanwhile keys expire over there.
            if !loading && self.source.is_some() {
                self.lagging = true;
                self.lag_until = self.spool.stream_end();
            }
            let why = match (
                &error,
                units.iter().find_map(|u| match &u.fate {
                    Fate::Refused(text) => Some(text),
                    _ => None,
                }),
            ) {
                (Some(e), _) => e.to_string(),
                (None, Some(text)) => format!("the target answered: {text}"),
                (None, None) => "commands were not sent".into(),
            };
            if loading && self.pipe.takes_pairs().is_some() && units.iter().any(refused_pairs) {
                // Its strings can go one by one: they are read again.
                self.shared.event("warning", "pairs", &why);
                self.pipe.no_pairs();
                self.load_again_from(mark);
                return Ok(true);
            }
            if let Some(e) = fatal(&units, loading) {
                return Err(e);
            }
            if let Some(e) = error.filter(|e| e.retry() == Retry::Never) {
                return Err(e);
            }
            if began.elapsed() > self.shared.patience {
                return Err(Error::new(
                    ErrorKind::NotReady,
                    format!(
                        "the target was not usable for {} s: {why}",
                        self.shared.patience.as_secs()
                    ),
                ));
            }
            if self.shared.stop.requested() {
                // What has not been done stays before the mark: the next run does it.
                return Err(Error::new(
                    ErrorKind::Interrupted,
                    format!("stopped while the target had trouble: {why}"),
                ));
            }
            self.progress.set_note(format!("target: {why}"));
            self.shared.event("warning", "target", &why);
            if self.wants_wait(&units) {
                std::thread::sleep(backoff.next());
            }
            if let Err(e) = self.pipe.refresh() {
                tracing::warn!("the target's topology could not be read: {e}");
                std::thread::sleep(backoff.next());
            }
            let uncertain = units.iter().any(|u| u.fate == Fate::Uncertain);
            if loading && (uncertain || self.in_large || units.iter().any(expired)) {
                self.load_again_from(mark);
                return Ok(true);
            }
            self.redo(units, mark)?;
            if !self.pipe.troubled() {
                self.pipe.flush();
                self.progress.set_note("");
                return Ok(false);
            }
        }
    }

    fn load_again_from(&mut self, mark: Mark) {
        self.load_again = true;
        if let Mark::Snapshot { at, db } = mark {
            self.shard.snapshot_at = at;
            self.shard.snapshot_db = db;
            // A checkpoint before it is read again must not pass it.
            self.loading = (at, db);
        }
    }

    fn wants_wait(&self, units: &[Unit]) -> bool {
        units.iter().any(|u| match &u.fate {
            Fate::Refused(text) => {
                !text.starts_with("MOVED") && !text.starts_with("ASK") && text != NOTHING_THERE
            }
            Fate::Uncertain | Fate::Unsent => true,
        })
    }

    /// Sends again what may be sent again; heals the keys of everything else, and of what touches those.
    fn redo(&mut self, units: Vec<Unit>, mark: Mark) -> Result<()> {
        let mut healing: BTreeMap<Vec<u8>, Key> = BTreeMap::new();
        let (mut refused, mut last) = (BTreeSet::new(), None);
        for (_, key) in std::mem::take(&mut self.unfinished) {
            healing.insert(db_key(key.0, &key.1), key);
        }
        let units = match self.in_load {
            true => units.into_iter().flat_map(apart).collect(),
            // A command of the source's stays one.
            false => units,
        };
        for unit in units {
            let touched = self.keys_of(&unit);
            if self.shared.scan {
                // It is read and written again, as it is then.
                for (key, _) in touched {
                    self.heal_queue.push(key, mark);
                }
                continue;
            }
            let touches = touched
                .iter()
                .any(|(k, _)| healing.contains_key(&db_key(k.0, &k.1)));
            let passes = matches!(&unit.fate, Fate::Refused(text) if passes(text));
            let again = match &unit.fate {
                Fate::Unsent => true,
                Fate::Uncertain => touched.is_empty(),
                Fate::Refused(_) => passes,
            };
            let name = name_of(&unit);
            // What has expired over there meanwhile would be missing: such a key is read, not written to.
            let expired = !self.in_load
                && self.source.is_some()
                && name != "RESTORE"
                && !matches!(&unit.fate, Fate::Refused(text) if text.starts_with("ASK "))
                && touched.iter().any(|(k, _)| self.timed.may(&k.1));
            if touched.is_empty() {
                match name.as_str() {
                    // Every node has got it, and some have gone on: it cannot just be sent again.
                    "FLUSHALL" => self.compare_flushed(None, mark),
                    "FLUSHDB" => self.compare_flushed(Some(unit.db.index()), mark),
                    "FUNCTION" if self.source.is_some() => self.owe_functions(mark),
                    _ if again => self.resend(&unit, &touched, mark)?,
                    _ => {
                        let Fate::Refused(text) = &unit.fate else {
                            continue;
                        };
                        self.note("refused", &format!("the target answered: {text}"));
                    }
                }
                continue;
            }
            if again && !touches && !expired {
                match unit.fate {
                    Fate::Refused(ref text) if text.starts_with("ASK ") => self.ask(&unit, text)?,
                    _ => self.resend(&unit, &touched, mark)?,
                }
                continue;
            }
            if command::lookup(name.as_bytes()).is_some_and(|spec| spec.kind == Kind::Eval) {
                let why = match &unit.fate {
                    Fate::Refused(text) if text != NOTHING_THERE => text.as_str(),
                    _ => {
                        "keys that it needs may be missing at the target, or it may have run already"
                    }
                };
                return Err(self.not_run(&name, why));
            }
            if let Fate::Refused(text) = &unit.fate
                && text != NOTHING_THERE
                && !passes
            {
                self.count("healed.refused");
                // A command may be one that the target does not know; a key's state can be written in no other way.
                match unit.state {
                    true => {
                        refused.extend(touched.iter().map(|((db, key), _)| db_key(*db, key)));
                        last = Some(net::refusal(&name, text));
                    }
                    false => self.learn_form(&unit, text),
                }
            }
            for (key, access) in touched {
                if access == Access::Write {
                    healing.insert(db_key(key.0, &key.1), key);
                }
            }
        }
        for name in refused {
            let times = self.refusals.entry(name.clone()).or_default();
            *times += 1;
            if *times > MOST_REFUSALS
                && let Some(e) = last.take()
            {
                let (_, key) = split_db_key(&name);
                return Err(e.context(format!("write the key {} to the target", shown(&key))));
            }
        }
        if !healing.is_empty() {
            let keys = self.placed(healing.into_values().collect())?;
            self.heal(&keys, mark)?;
        }
        Ok(())
    }

    /// A command of the source's was refused: perhaps the target does not know it.
    fn learn_form(&mut self, unit: &Unit, text: &str) {
        let mut args = Vec::new();
        let Ok(Some(len)) = resp::parse_command(&unit.bytes, &mut args) else {
            return;
        };
        let raw = unit.bytes.get(..len).unwrap_or_default();
        let cmd = Command { raw, args: &args };
        if self.forms.learn(&cmd, text) {
            self.shared.event(
                "info",
                "unknown_to_target",
                &format!(
                    "the target does not know {} in the form that the source sends: the keys of such commands are read from the source and written as they are",
                    name_of(unit)
                ),
            );
        }
    }

    /// The keys of a unit, in the source's databases.
    ///
    /// Where several go to the same one it is the first of them: [`Pump::placed`] looks for the right one.
    fn keys_of(&self, unit: &Unit) -> Vec<(Key, Access)> {
        let databases = &self.shared.job.databases;
        let to = unit.db.index();
        let db = match databases.is_identity() {
            true => to,
            false => databases.sources_of(to).next().unwrap_or(to),
        };
        (command::keys_in(&unit.bytes).into_iter())
            .map(|(key, access)| ((db, key), access))
            .collect()
    }

    /// Keys of [`Pump::keys_of`] with the database that really holds each.
    fn placed(&mut self, keys: Vec<Key>) -> Result<Vec<Key>> {
        if self.shared.job.databases.is_identity() || self.source.is_none() {
            return Ok(keys);
        }
        (keys.into_iter())
            .map(|(db, key)| {
                let target = self.shared.job.databases.map(db).unwrap_or(db);
                Ok((self.source_of(target, &key)?, key))
            })
            .collect()
    }

    /// The source's database that a key of the target's `db` comes from: where several go there, the one that holds it.
    pub(super) fn source_of(&mut self, db: DbIndex, key: &[u8]) -> Result<DbIndex> {
        if self.shared.job.databases.is_identity() {
            return Ok(db);
        }
        let sources: Vec<DbIndex> = self.shared.job.databases.sources_of(db).collect();
        if let [_, _, ..] = sources.as_slice() {
            let asked = self.source_name(key);
            for from in &sources {
                let there = self.fenced(|fence, rt| rt.block_on(fence.exist(*from, &[&asked])))?;
                if there == [true] {
                    return Ok(*from);
                }
            }
        }
        Ok(sources.first().copied().unwrap_or(db))
    }

    fn resend(&mut self, unit: &Unit, keys: &[(Key, Access)], mark: Mark) -> Result<()> {
        let nodes = match keys.first() {
            Some(((_, key), _)) => {
                let node = self.pipe.node_of(Slot::of(key));
                node..node + 1
            }
            None => 0..self.pipe.node_count(),
        };
        let expecting = expecting(unit);
        for node in nodes {
            let batch = self.pipe.batch(node, unit.db, mark)?;
            let first = batch.commands;
            if unit.state {
                batch.state(unit.commands);
            }
            batch.expect.extend(expecting.iter().map(|i| first + i));
            batch.bytes.extend_from_slice(&unit.bytes);
            self.pipe.added(node, unit.commands);
        }
        Ok(())
    }

    /// A slot on its way to another node: that node takes the command after ASKING.
    fn ask(&mut self, unit: &Unit, text: &str) -> Result<()> {
        let endpoint = self.pipe.endpoint().clone();
        let address = net::leads_to(text, &endpoint.host);
        let mut backoff = net::Backoff::new();
        for _ in 0..40 {
            let answer: Result<Option<String>> = self.shared.runtime.block_on(async {
                let mut conn = net::connect(&endpoint, &address).await?;
                conn.select(unit.db.index()).await?;
                conn.push(&[b"ASKING"]);
                conn.outgoing().extend_from_slice(&unit.bytes);
                conn.flush().await?;
                conn.reply().await?;
                let mut error = None;
                for _ in 0..unit.commands {
                    if let (Reply::Error(text), None) = (conn.reply().await?, &error) {
                        error = Some(text);
                    }
                }
                Ok(error)
            });
            match answer {
                Ok(None) => return Ok(()),
                Ok(Some(text)) if text.starts_with("TRYAGAIN") => {
                    std::thread::sleep(backoff.next())
                }
                // The migration of the slot has ended in between: the new topology knows.
                _ => break,
            }
        }
        let touched = self.keys_of(unit);
        let mark = self.oldest().unwrap_or_else(|| self.now());
        if self.in_load {
            return self.resend(unit, &touched, mark);
        }
        let keys: Vec<Key> = touched
            .into_iter()
            .filter(|(_, a)| *a == Access::Write)
            .map(|(k, _)| k)
            .collect();
        let keys = self.placed(keys)?;
        self.heal(&keys, mark)
    }
}

/// Which commands of a unit expect their key to be there; inside a transaction they answer QUEUED.
fn expecting(unit: &Unit) -> Vec<u32> {
    let mut args = Vec::new();
    if unit.commands != 1 || !matches!(resp::parse_command(&unit.bytes, &mut args), Ok(Some(_))) {
        return Vec::new();
    }
    let name = args.first().and_then(|r| unit.bytes.get(r.clone()));
    if name.is_some_and(command::expiry::expects_key) {
        vec![0]
    } else {
        Vec::new()
    }
}

fn nothing_there() -> Fate {
    Fate::Refused(NOTHING_THERE.into())
}

/// Errors that pass: the same command or transaction may be sent again.
fn passes(text: &str) -> bool {
    net::passes(text) || text.starts_with("EXECABORT")
}

/// An MSET of ours that the target will not run at all; when it is full, nothing else would run either.
fn refused_pairs(unit: &Unit) -> bool {
    let Fate::Refused(text) = &unit.fate else {
        return false;
    };
    name_of(unit) == "MSET" && !text.starts_with("OOM") && !passes(text)
}

/// Strings set together whose slot is on its way: its new node takes keys that are not there one by one only.
fn apart(unit: Unit) -> Vec<Unit> {
    let mut args = Vec::new();
    let on_its_way = matches!(&unit.fate, Fate::Refused(text) if net::is_on_its_way(text));
    if !on_its_way
        || name_of(&unit) != "MSET"
        || resp::parse_command(&unit.bytes, &mut args).is_err()
    {
        return vec![unit];
    }
    let arg = |range: &Range<usize>| unit.bytes.get(range.clone()).unwrap_or_default();
    (args.get(1..).unwrap_or_default().chunks_exact(2))
        .filter_map(|pair| {
            let [key, value] = pair else { return None };
            let mut bytes = Vec::new();
            resp::command(&mut bytes, &[b"SET", arg(key), arg(value)]);
            let commands = 1;
            Some(Unit {
                bytes,
                commands,
                ..unit.clone()
            })
        })
        .collect()
}

/// Errors that trying again does not mend.
fn fatal(units: &[Unit], loading: bool) -> Option<Error> {
    for unit in units {
        let Fate::Refused(text) = &unit.fate else {
            continue;
        };
        let command = name_of(unit);
        if text.starts_with("OOM") {
            return Some(Error::new(
                ErrorKind::OutOfMemory,
                format!("the target is full: it answered {command} with: {text}"),
            ));
        }
        if text.starts_with("NOPERM") || text.starts_with("NOAUTH") {
            return Some(net::refusal(&command, text).context("write to the target"));
        }
        // A value written whole, or a heal: there is no better way left to write it.
        let last_resort = loading || (unit.state && command == "RESTORE");
        if last_resort && !passes(text) && text != NOTHING_THERE && command != "FUNCTION" {
            let key = key_of(unit);
            return Some(
                net::refusal(&command, text)
                    .context(format!("write the key {} to the target", shown(&key))),
            );
        }
    }
    None
}

fn name_of(unit: &Unit) -> String {
    let mut args = Vec::new();
    let _ = resp::parse_command(&unit.bytes, &mut args);
    args.first()
        .and_then(|r| unit.bytes.get(r.clone()))
        .map(|n| String::from_utf8_lossy(n).to_uppercase())
        .unwrap_or_default()
}

fn key_of(unit: &Unit) -> Vec<u8> {
    let mut args = Vec::new();
    let _ = resp::parse_command(&unit.bytes, &mut args);
    args.get(1)
        .and_then(|r| unit.bytes.get(r.clone()))
        .unwrap_or_default()
        .to_vec()
}
