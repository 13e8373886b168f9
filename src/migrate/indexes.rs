//! Search indexes: made at the target as they are at the source, and waited for until they are built.
//!
//! An index lies outside of the keys, so no snapshot of keys and no SCAN brings it. FT.INFO of the source tells it once
//! the load is over; from then on the stream does, whose commands may run again on what was made already.
//! Invariant: nothing that we have not made is dropped or changed; what cannot be made alike is said by name.

mod record;

use crate::error::Result;
use crate::migrate::context::Shared;
use crate::net::search::{self, Found, NO_SEARCH, Taken, Told, led, left_out};
use crate::net::{control, server};
use crate::plan::Endpoint;
use crate::search::TOLD_BY_NOBODY;
use crate::task::failpoint;
use record::{Does, Entry, Record, State, change, read, stamp};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// What is said of an index that the target had.
const OWN: &str = "the target has another index of this name, which is left as it is: drop it there (FT.DROPINDEX) and start again, or search it as it is";

/// How long a run that ends when caught up waits for indexes to be built.
const BUILT_WITHIN: Duration = Duration::from_secs(600);
/// How often it is looked whether they are.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often it is said which are not.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Brings, and follows the stream, one shard at a time: between what is read of both sides and what is made of it, no other
/// makes or drops an index.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Makes the target's indexes those of the source, as far as they are missing; `renew`: those of ours that have become
/// others are made anew, as no stream will say so.
///
/// Errors: of a connection to either side, and what passes by itself.
pub(crate) async fn bring(shared: &Shared, nodes: &[String], renew: bool) -> Result<()> {
    let _one = ONE_AT_A_TIME.lock().await;
    let job = &shared.job;
    let Some(endpoint) = job.source.endpoint() else {
        return Ok(());
    };
    let (layout, _) = server::layout(endpoint).await?;
    let masters: Vec<String> = layout.masters.iter().map(|m| m.address.clone()).collect();
    let ours = match search::indexes(endpoint, &masters).await? {
        Told::NoSearch => return Ok(()),
        Told::Refused(_) if read(shared)?.untold => return Ok(()),
        Told::Refused(why) => {
            change(shared, |record| record.untold = true)?;
            shared.event(
                "warning",
                "indexes",
                &format!("the source does not tell its search indexes, so none is made at the target: {why}; give keyferry's user +ft._list, +ft.info and +ft.syndump there and start again, or make them by hand"),
            );
            return Ok(());
        }
        Told::Indexes(ours) => ours,
    };
    let mut record = read(shared)?;
    if ours.is_empty() && record == Record::default() {
        return Ok(());
    }
    let before = record.clone();
    let theirs = match left_out(job, shared.facts.modules.target.as_deref()) {
        Some(why) => Err(why.to_owned()),
        None => match search::indexes(&job.target, nodes).await? {
            Told::NoSearch => Err(NO_SEARCH.to_owned()),
            Told::Refused(why) => Err(format!(
                "the target does not let us look at its indexes ({why}): give keyferry's user the FT.* commands there (+@search) and start again"
            )),
            Told::Indexes(theirs) => Ok(theirs),
        },
    };
    match theirs {
        Err(why) => {
            for found in ours.values() {
                let entry = Entry::new(State::Skipped, vec![why.clone()]);
                let entry = entry.behind(record.of(found));
                record.indexes.insert(found.definition.shown(), entry);
            }
            if record != before {
                let what = format!("{}: {why}", named(ours.values()));
                shared.event("warning", "indexes", &what);
            }
        }
        Ok(theirs) => {
            if renew {
                drop_gone(shared, endpoint, &masters, nodes, &ours, &mut record).await?;
            }
            for (name, found) in &ours {
                let there = theirs.get(name);
                let entry = make(shared, nodes, found, there, record.of(found), renew).await?;
                record.indexes.insert(found.definition.shown(), entry);
            }
            make_named(shared, endpoint, &masters, nodes, &record).await?;
            look_again(shared, nodes, &ours, &mut record).await?;
            if record.without_counts() != before.without_counts() {
                say(shared, &record);
            }
        }
    }
    change(shared, |now| {
        now.merge(&before, record);
    })
}

/// Keeps which of some strings the source knows as aliases, or as dictionaries; `shard`: whose snapshot holds them.
pub(crate) async fn find_names(
    shared: &Shared,
    shard: &str,
    texts: &BTreeSet<Vec<u8>>,
    dictionaries: bool,
) -> Result<()> {
    let Some(endpoint) = shared.job.source.endpoint() else {
        return Ok(());
    };
    let (layout, _) = server::layout(endpoint).await?;
    // One that is asked knows what it has saved; where modules work together, any.
    let own = layout.masters.iter().find(|m| m.address == shard);
    let Some(master) = own.or(layout.masters.first()) else {
        return Ok(());
    };
    let words = texts.iter().map(Vec::as_slice);
    let names: Vec<Vec<u8>> = match dictionaries {
        true => {
            let named = search::dictionaries(endpoint, &master.address, words).await?;
            say_untold(shared, "dictionaries", &named.untold);
            named.found.into_keys().collect()
        }
        false => {
            let named = search::aliases(endpoint, &master.address, words).await?;
            say_untold(shared, "aliases", &named.untold);
            named.found.into_keys().collect()
        }
    };
    let names = names.into_iter();
    let found: BTreeSet<String> = names.filter_map(|n| String::from_utf8(n).ok()).collect();
    change(shared, |record| match dictionaries {
        true => record.dictionaries.extend(found),
        false => record.aliases.extend(found),
    })
}

fn say_untold(shared: &Shared, what: &str, untold: &[String]) {
    if !untold.is_empty() {
        let why = some(untold);
        let text = format!("the source does not tell {what} of its search: {why}");
        shared.event("warning", "indexes", &text);
    }
}

/// Terms that one FT.DICTADD brings.
const TERMS: usize = 1000;

/// Makes the aliases and dictionaries whose names are known.
async fn make_named(
    shared: &Shared,
    endpoint: &Endpoint,
    masters: &[String],
    nodes: &[String],
    record: &Record,
) -> Result<()> {
    let to = &shared.job.target;
    for master in masters {
        let names = record.aliases.iter().map(String::as_bytes);
        let named = search::aliases(endpoint, master, names).await?;
        say_untold(shared, "aliases", &named.untold);
        for (alias, index) in named.found {
            let words = [b"FT._ALIASADDIFNX".to_vec(), alias.clone(), index];
            if let Taken::Refused(why) = search::tell(to, nodes, &words).await? {
                let alias = String::from_utf8_lossy(&alias).into_owned();
                let what = format!("the target refuses the alias {alias} of a search index: {why}");
                shared.event("warning", "indexes", &what);
            }
        }
        let names = record.dictionaries.iter().map(String::as_bytes);
        let named = search::dictionaries(endpoint, master, names).await?;
        say_untold(shared, "dictionaries", &named.untold);
        for (name, terms) in named.found {
            for terms in terms.chunks(TERMS) {
                let head = [b"FT.DICTADD".to_vec(), name.clone()];
                let words: Vec<Vec<u8>> = head.into_iter().chain(terms.iter().cloned()).collect();
                if let Taken::Refused(why) = search::tell(to, nodes, &words).await? {
                    let name = String::from_utf8_lossy(&name);
                    let what = format!(
                        "the target refuses the dictionary {name}: {why}; give keyferry's user +ft.dictadd there and start again"
                    );
                    shared.event("warning", "indexes", &what);
                    break;
                }
            }
        }
    }
    Ok(())
}

/// Makes one index, where it is missing.
async fn make(
    shared: &Shared,
    nodes: &[String],
    ours: &Found,
    theirs: Option<&Found>,
    known: Option<&Entry>,
    renew: bool,
) -> Result<Entry> {
    let (endpoint, (wanted, notes)) = (&shared.job.target, led(&shared.job, &ours.definition));
    let created = known.is_some_and(Entry::is_ours);
    let alike = theirs.is_some_and(|t| t.definition.is_made_like(&wanted));
    let mut entry = match (created, alike) {
        (true, _) => Entry::created(known.and_then(|e| e.made.clone())),
        (false, true) => Entry::new(State::Present, Vec::new()),
        (false, false) => Entry::new(State::Different, Vec::new()),
    };
    entry.notes = notes;
    let name = wanted.name().to_vec();
    // A target whose FT.INFO tells more, or of other defaults, never tells the same: what was asked for counts.
    let stamp = stamp(&wanted.create())?;
    let renewed = created && !alike && renew && theirs.is_some() && !entry.is_made_by(&stamp);
    if renewed {
        let drop: [&[u8]; 3] = [b"FT._DROPINDEXIFX", &name, b"_FORCEKEEPDOCS"];
        let dropped = search::tell(endpoint, nodes, &drop.map(<[u8]>::to_vec)).await?;
        if let Taken::Refused(why) = dropped {
            let why = format!("it has changed, and the target refuses FT.DROPINDEX: {why}");
            entry.notes.push(why);
            return Ok(entry);
        }
    }
    if theirs.is_none() || renewed {
        let notes = std::mem::take(&mut entry.notes);
        entry = Entry::created(Some(stamp));
        entry.notes = notes;
        // Before it is sent: it must not be taken for the target's own by the run after a kill.
        change(shared, |record| {
            record
                .indexes
                .insert(ours.definition.shown(), entry.clone());
        })?;
        match search::tell(endpoint, nodes, &wanted.create()).await? {
            Taken::By(_) | Taken::Moot => failpoint("index-made"),
            Taken::NoSearch => return Ok(Entry::new(State::Skipped, vec![NO_SEARCH.to_owned()])),
            Taken::Refused(why) => {
                let why = format!("the target refuses FT.CREATE: {why}; make it there by hand");
                return Ok(Entry::new(
                    State::Refused,
                    [entry.notes, vec![why]].concat(),
                ));
            }
        };
    } else if created && alike {
        entry.made = Some(stamp);
    }
    if entry.state != State::Different {
        for (group, terms) in &ours.synonyms {
            let has = theirs.and_then(|t| t.synonyms.get(group));
            if has.is_some_and(|has| terms.is_subset(has)) {
                continue;
            }
            let head: [&[u8]; 3] = [b"FT.SYNUPDATE", &name, group];
            let words: Vec<Vec<u8>> = (head.iter().map(|w| w.to_vec()))
                .chain(terms.iter().cloned())
                .collect();
            if let Taken::Refused(why) = search::tell(endpoint, nodes, &words).await? {
                entry.notes.push(format!("the target refuses its synonyms: {why}; give keyferry's user +ft.synupdate there and start again"));
                break;
            }
        }
        if let Some(why) = &ours.untold {
            let what = format!("the source does not tell its synonyms: {why}");
            entry.notes.push(what);
        }
    }
    Ok(entry)
}

/// Drops what we have made and the source has no more; documents stay.
async fn drop_gone(
    shared: &Shared,
    endpoint: &Endpoint,
    masters: &[String],
    nodes: &[String],
    ours: &BTreeMap<Vec<u8>, Found>,
    record: &mut Record,
) -> Result<()> {
    let mut gone = record.gone(|name| ours.contains_key(name));
    if gone.is_empty() {
        return Ok(());
    }
    // One whose FT.INFO was answered by an error is listed all the same.
    let listed = search::listed(endpoint, masters).await?;
    gone.retain(|(name, _)| !listed.contains(name.as_bytes()));
    if gone.is_empty() {
        return Ok(());
    }
    if listed.is_empty() && !shared.run.accept_loss && !holds_keys(endpoint, masters).await? {
        shared.event(
            "warning",
            "indexes",
            "the source holds neither keys nor search indexes: it has lost its data or is another one, so the target's indexes stay; if it was emptied on purpose, start again with --accept-loss",
        );
        return Ok(());
    }
    for (name, is_ours) in gone {
        if is_ours {
            let drop: [&[u8]; 3] = [b"FT._DROPINDEXIFX", name.as_bytes(), b"_FORCEKEEPDOCS"];
            let drop = drop.map(<[u8]>::to_vec);
            if let Taken::Refused(why) = search::tell(&shared.job.target, nodes, &drop).await? {
                let what = format!(
                    "search index {name} is gone at the source, and the target refuses FT.DROPINDEX: {why}"
                );
                shared.event("warning", "indexes", &what);
            }
        }
        record.indexes.remove(&name);
        change(shared, |now| {
            now.indexes.remove(&name);
        })?;
    }
    Ok(())
}

async fn holds_keys(endpoint: &Endpoint, masters: &[String]) -> Result<bool> {
    for master in masters {
        let mut conn = control(endpoint, master).await?;
        let sizes = server::databases(&mut conn).await?;
        if sizes.into_iter().any(|(_, keys)| keys > 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Looks at what was made.
async fn look_again(
    shared: &Shared,
    nodes: &[String],
    ours: &BTreeMap<Vec<u8>, Found>,
    record: &mut Record,
) -> Result<()> {
    let Told::Indexes(theirs) = search::indexes(&shared.job.target, nodes).await? else {
        return Ok(());
    };
    for (name, found) in ours {
        let (wanted, _) = led(&shared.job, &found.definition);
        let Some(entry) = record.indexes.get_mut(&found.definition.shown()) else {
            continue;
        };
        let Some(there) = theirs.get(name) else {
            if matches!(entry.state, State::Created | State::Present) {
                entry.state = State::Refused;
                entry.notes.push(
                    "the target took FT.CREATE and does not list the index; look at its log".into(),
                );
            }
            continue;
        };
        entry.documents = there.definition.documents();
        entry.built = !there.definition.is_indexing();
        if !there.definition.is_made_like(&wanted) {
            entry.notes.push(match entry.state {
                State::Different => OWN.into(),
                _ => "FT.INFO of the target tells another schema or other options".into(),
            });
        }
        if nodes.len() > 1 && there.nodes == 1 {
            entry.notes.push(format!(
                "the search modules of the target's {} nodes do not work together: the index is on one of them and finds that node's documents only; a server that is no cluster, or a service whose search spans its shards, finds all",
                nodes.len()
            ));
        }
    }
    Ok(())
}

/// Says what has become of all of them.
fn say(shared: &Shared, record: &Record) {
    let of = |state: State| -> Vec<&str> {
        (record.indexes.iter())
            .filter(|(_, e)| e.state == state)
            .map(|(name, _)| name.as_str())
            .collect()
    };
    let made = of(State::Created);
    if !made.is_empty() {
        let what = format!("search indexes made at the target: {}", some(&made));
        shared.event("info", "indexes", &what);
        shared.event("info", "indexes", TOLD_BY_NOBODY);
    }
    for (name, entry) in &record.indexes {
        if !entry.notes.is_empty() {
            let what = format!("search index {name}: {}", entry.notes.join("; "));
            shared.event("warning", "indexes", &what);
        }
    }
}

fn named<'f>(found: impl Iterator<Item = &'f Found>) -> String {
    let names: Vec<String> = found.map(|f| f.definition.shown()).collect();
    format!("search indexes left out ({})", some(&names))
}

/// Names, as many as one line bears.
pub(crate) fn some<S: AsRef<str>>(names: &[S]) -> String {
    const SHOWN: usize = 10;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    let more = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", shown.join(", "))
}

/// Sends the target a command of the stream, and keeps what it has made or dropped; `None` where that is of an index of
/// the target's own.
///
/// Errors: as of [`search::tell`].
pub(crate) async fn follow(
    shared: &Shared,
    nodes: &[String],
    words: &[Vec<u8>],
) -> Result<Option<Taken>> {
    let _one = ONE_AT_A_TIME.lock().await;
    let to = &shared.job.target;
    let [command, name, ..] = words else {
        return search::tell(to, nodes, words).await.map(Some);
    };
    let shown = String::from_utf8_lossy(name).into_owned();
    let is_own = |e: &Entry| !e.is_ours() && e.state == State::Different;
    let known = read(shared)?.indexes.remove(&shown);
    let does = Does::of(command);
    if does == Does::Create && !known.as_ref().is_some_and(Entry::is_ours) {
        let look = [b"FT.INFO".to_vec(), name.clone()];
        let made = match search::tell(to, nodes, &look).await? {
            // Before it is sent: it must not be taken for the target's own by the run after a kill.
            Taken::Moot => Entry::created(None),
            Taken::By(_) => known.unwrap_or_else(|| Entry::new(State::Different, vec![OWN.into()])),
            taken => return Ok(Some(taken)),
        };
        let own = is_own(&made);
        change(shared, |record| {
            record.indexes.insert(shown, made);
        })?;
        if own {
            return Ok(None);
        }
        return search::tell(to, nodes, words).await.map(Some);
    }
    match (does, &known) {
        // Dropped at the source before we looked: what we make is known.
        (Does::Drop | Does::Change, None) => return Ok(Some(Taken::Moot)),
        (Does::Drop | Does::Change, Some(known)) if is_own(known) => return Ok(None),
        _ => {}
    }
    let taken = search::tell(to, nodes, words).await?;
    if does == Does::Drop && matches!(taken, Taken::By(_) | Taken::Moot) {
        change(shared, |record| {
            record.indexes.remove(&shown);
        })?;
    }
    Ok(Some(taken))
}

/// Looks whether the target has built its indexes.
pub(crate) struct Building {
    began: Instant,
    looked: Option<Instant>,
    said: Instant,
    over: bool,
}

impl Building {
    pub fn new() -> Building {
        let now = Instant::now();
        Building {
            began: now,
            looked: None,
            said: now,
            over: false,
        }
    }

    /// Whether nothing is left to wait for; asks the target now and then.
    pub async fn is_over(&mut self, shared: &Shared, nodes: &[String]) -> bool {
        if self.over || self.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return self.over;
        }
        if self.looked.is_none() {
            self.began = Instant::now();
        }
        self.looked = Some(Instant::now());
        let looked = tokio::select! {
            looked = self.look(shared, nodes) => looked,
            () = shared.stop.wait() => return false,
        };
        match looked {
            Ok(over) => self.over = over,
            // The shards meet it too, and are patient or end the run.
            Err(e) => tracing::debug!("the target's search indexes were not looked at: {e}"),
        }
        if !self.over && self.began.elapsed() > BUILT_WITHIN {
            self.over = true;
            shared.event(
                "warning",
                "indexes",
                &format!(
                    "search indexes are still being built at the target after {} min: searches find a part of the documents until FT.INFO says percent_indexed 1",
                    BUILT_WITHIN.as_secs() / 60
                ),
            );
        }
        self.over
    }

    async fn look(&mut self, shared: &Shared, nodes: &[String]) -> Result<bool> {
        if read(shared)?.is_built() {
            return Ok(true);
        }
        let theirs = match search::indexes(&shared.job.target, nodes).await? {
            Told::Indexes(theirs) => theirs,
            Told::NoSearch | Told::Refused(_) => return Ok(true),
        };
        let mut open = Vec::new();
        change(shared, |record| {
            for (name, entry) in &mut record.indexes {
                match theirs.get(name.as_bytes()).map(|f| &f.definition) {
                    Some(there) if there.is_indexing() => {
                        entry.documents = there.documents();
                        open.push(format!("{name} ({} documents so far)", entry.documents));
                    }
                    Some(there) => (entry.documents, entry.built) = (there.documents(), true),
                    None => entry.built = true,
                }
            }
        })?;
        if open.is_empty() {
            shared.event("info", "indexes", "the target has built its search indexes");
        } else if self.said.elapsed() > SAY_EVERY {
            self.said = Instant::now();
            let what = format!("the target builds its search indexes: {}", some(&open));
            shared.event("info", "indexes", &what);
        }
        Ok(open.is_empty())
    }
}
