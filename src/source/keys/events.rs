//! Keyspace notifications: which keys have changed, collected without repetition.
//!
//! They are sent once and to nobody who is not there: a lost connection is a gap, and says so. Even where all are on,
//! some changes are told to nobody: what consumers of a stream's group have read and acknowledged, flushes.

use super::side::Side;
use super::unnotified::{class_of, is_no_write, may_bring_groups};
use crate::error::{Error, ErrorKind, Result};
use crate::net::{Backoff, Heard, OWN_NAME, Subscription, Telling};
use crate::task::Shutdown;
use crate::types::DbIndex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A key of a database.
pub type Name = (DbIndex, Vec<u8>);

/// What a waiting key takes beside its name: a place in the set (of which half may be free), and the allocator's share.
pub const PLACE: usize = 80;

/// What has been heard and not yet been taken.
pub struct Events {
    state: Mutex<State>,
    /// Bytes that waiting keys may take; more are forgotten as a gap, and found by the next sweep.
    most: usize,
    /// The number of the last question to all listeners whether they have heard everything.
    asked: watch::Sender<u64>,
    /// Raised with each answer, and with each gap.
    answered: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// And whether a client has written it.
    keys: HashMap<Name, bool>,
    bytes: usize,
    gaps: u64,
    /// How many changes were told so far.
    told: u64,
    /// How many keys were put back.
    put_back: u64,
    /// By master.
    listeners: BTreeMap<String, Listener>,
    /// Keys that may have become streams with groups.
    grouped: Vec<Name>,
}

/// A connection that listens.
#[derive(Default)]
struct Listener {
    /// The last question that it has answered.
    answered: u64,
    /// Classes of which an event was heard since it listens.
    classes: BTreeSet<char>,
}

/// Keys that were told and not taken.
#[derive(Debug, Default)]
pub struct Waiting {
    /// How many were written by clients.
    pub written: u64,
    /// How many have only expired, or were evicted.
    pub others: u64,
    /// Some of them, the written ones first.
    pub names: Vec<Name>,
}

impl Events {
    pub fn within(most: usize) -> Events {
        Events {
            state: Mutex::default(),
            most,
            asked: watch::Sender::new(0),
            answered: watch::Sender::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes some of the keys, each with whether a client has written it.
    pub fn take(&self, most: usize) -> Vec<(Name, bool)> {
        let mut state = self.state();
        if most >= state.keys.len() {
            state.bytes = 0;
            return std::mem::take(&mut state.keys).into_iter().collect();
        }
        let some: Vec<_> = (state.keys.iter().take(most))
            .map(|(name, written)| (name.clone(), *written))
            .collect();
        for (name, _) in &some {
            state.keys.remove(name);
            state.bytes -= name.1.len() + PLACE;
        }
        some
    }

    /// How often something may have been missed so far.
    pub fn gaps(&self) -> u64 {
        self.state().gaps
    }

    /// Puts keys back, which are to be read again.
    pub fn put(&self, keys: impl IntoIterator<Item = Name>) {
        let mut state = self.state();
        for key in keys {
            state.put_back = state.put_back.saturating_add(1);
            self.add(&mut state, key, true);
        }
    }

    /// How many keys were put back so far.
    pub fn put_back(&self) -> u64 {
        self.state().put_back
    }

    fn add(&self, state: &mut State, key: Name, written: bool) {
        if let Some(known) = state.keys.get_mut(&key) {
            *known |= written;
            return;
        }
        let bytes = key.1.len() + PLACE;
        if state.bytes + bytes > self.most {
            state.gaps = state.gaps.saturating_add(1);
            return;
        }
        state.keys.insert(key, written);
        state.bytes += bytes;
    }

    fn gap(&self) {
        {
            let gaps = &mut self.state().gaps;
            *gaps = gaps.saturating_add(1);
        }
        self.answered.send_modify(|n| *n = n.saturating_add(1));
    }

    fn hear(&self, address: &str, heard: &Heard) {
        let (channel, payload) = match heard {
            Heard::Message { channel, payload } => (channel, payload),
            Heard::Pong(token) => {
                let number = std::str::from_utf8(token).ok().and_then(|t| t.parse().ok());
                if let Some(listener) = self.state().listeners.get_mut(address) {
                    listener.answered = listener.answered.max(number.unwrap_or(0));
                }
                self.answered.send_modify(|n| *n = n.saturating_add(1));
                return;
            }
        };
        let Some(((db, key), event)) = changed(channel, payload) else {
            return;
        };
        let mut state = self.state();
        if let Some(class) = class_of(event)
            && let Some(listener) = state.listeners.get_mut(address)
        {
            listener.classes.insert(class);
        }
        // What is looked for in vain has not changed.
        if event == b"keymiss" {
            return;
        }
        state.told = state.told.saturating_add(1);
        if may_bring_groups(event) {
            let room = state.grouped.len() * (key.len() + PLACE) < self.most / 4;
            match room {
                true => state.grouped.push((db, key.clone())),
                false => state.gaps = state.gaps.saturating_add(1),
            }
        }
        self.add(&mut state, (db, key), !is_no_write(event));
    }

    /// How many changes were told so far.
    pub fn told(&self) -> u64 {
        self.state().told
    }

    /// Keys that may have become streams with groups, since this was asked last.
    pub fn take_grouped(&self) -> Vec<Name> {
        std::mem::take(&mut self.state().grouped)
    }

    /// What waits of the keys that are `wanted`, with up to so many names.
    pub fn waiting(&self, most: usize, wanted: impl Fn(&Name) -> bool) -> Waiting {
        let state = self.state();
        let all = || state.keys.iter().filter(|(name, _)| wanted(name));
        let of = |kind: bool| {
            all()
                .filter(move |(_, w)| **w == kind)
                .map(|(name, _)| name)
        };
        Waiting {
            written: of(true).count() as u64,
            others: of(false).count() as u64,
            names: of(true).chain(of(false)).take(most).cloned().collect(),
        }
    }

    pub fn listening(&self) -> usize {
        self.state().listeners.len()
    }

    pub fn listens_to(&self, address: &str) -> bool {
        self.state().listeners.contains_key(address)
    }

    /// The classes of which an event was heard from a master.
    pub fn classes(&self, address: &str) -> BTreeSet<char> {
        let state = self.state();
        (state.listeners.get(address)).map_or_else(BTreeSet::new, |l| l.classes.clone())
    }

    /// Waits until all that these masters have sent up to now is heard; false when something may have been missed, or
    /// one of them does not answer in time.
    pub async fn all_heard(&self, masters: &[String], limit: Duration) -> bool {
        let mut answered = self.answered.subscribe();
        let gaps = self.gaps();
        let mut number = 0;
        self.asked.send_modify(|n| {
            *n = n.saturating_add(1);
            number = *n;
        });
        let all = async {
            loop {
                answered.mark_unchanged();
                {
                    let state = self.state();
                    if state.gaps != gaps {
                        return false;
                    }
                    let there = |m| state.listeners.get(m).is_some_and(|l| l.answered >= number);
                    if masters.iter().all(there) {
                        return true;
                    }
                }
                if answered.changed().await.is_err() {
                    return false;
                }
            }
        };
        tokio::time::timeout(limit, all).await.unwrap_or(false)
    }
}

/// What each master is configured to notify of (`notify-keyspace-events`); `None` where it does not tell.
pub async fn configured(side: &Side) -> Result<BTreeMap<String, Option<String>>> {
    let mut all = BTreeMap::new();
    for master in &side.layout().masters {
        let mut conn = side.control(&master.address).await?;
        let reply = conn
            .ask(&[b"CONFIG", b"GET", b"notify-keyspace-events"])
            .await?;
        let flags = reply
            .array()
            .and_then(|p| p.get(1)?.text().map(|t| t.into_owned()));
        all.insert(master.address.clone(), flags);
    }
    Ok(all)
}

/// Whether a configuration sends every class of events that changes a key, on channels that name the key.
pub fn covers(flags: &str) -> bool {
    let channel = flags.contains('K') || flags.contains('E');
    let classes = ['g', '$', 'l', 's', 'h', 'z', 'x', 't'];
    channel && (flags.contains('A') || classes.iter().all(|c| flags.contains(*c)))
}

/// After so much silence a server is asked whether it is still there.
const PING_AFTER: Duration = Duration::from_secs(20);

/// After so long the next cut is another one.
const HEARD: Duration = Duration::from_secs(5);

/// Listens to one master until `stop`, reconnecting after each cut.
pub async fn listen(side: Arc<Side>, address: String, events: Arc<Events>, stop: Shutdown) {
    let (mut backoff, mut telling) = (Backoff::new(), Telling::default());
    loop {
        let began = Instant::now();
        let heard = tokio::select! {
            () = stop.wait() => return,
            heard = hear(&side, &address, &events) => heard,
        };
        // Whatever happens meanwhile is told to nobody.
        events.gap();
        if began.elapsed() > HEARD {
            (backoff, telling) = (Backoff::new(), Telling::default());
        }
        if let Err(e) = heard {
            match telling.is_due() {
                true => tracing::warn!("keyspace notifications of {address} were lost: {e}"),
                false => tracing::debug!("keyspace notifications of {address} were lost: {e}"),
            }
        }
        if !stop.sleep(backoff.next()).await {
            return;
        }
    }
}

/// Counts a listener for as long as it lives.
struct Listening<'a>(&'a Events, &'a str);

impl<'a> Listening<'a> {
    fn begin(events: &'a Events, address: &'a str) -> Listening<'a> {
        let listener = Listener::default();
        (events.state().listeners).insert(address.to_owned(), listener);
        // Until now nobody listened.
        events.gap();
        Listening(events, address)
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.state().listeners.remove(self.1);
    }
}

async fn hear(side: &Side, address: &str, events: &Events) -> Result<()> {
    let mut passwords = side.endpoint.learnt.versions();
    passwords.mark_unchanged();
    let mut questions = events.asked.subscribe();
    let mut conn = subscribe(side, address).await?;
    let _counted = Listening::begin(events, address);
    let mut asked = false;
    loop {
        let heard = tokio::select! {
            heard = tokio::time::timeout(PING_AFTER, conn.next()) => heard,
            Ok(()) = questions.changed() => {
                // The answer comes behind all that was told before.
                let number = questions.borrow_and_update().to_string();
                conn.ping(number.as_bytes());
                continue;
            }
            Ok(()) = passwords.changed() => {
                // A connection that listens cannot log in again: another takes over, and this one is read to its end.
                let next = subscribe(side, address).await?;
                conn.finish(|heard| events.hear(address, heard)).await?;
                conn = next;
                asked = false;
                continue;
            }
        };
        let Ok(message) = heard else {
            if asked {
                return Err(Error::new(
                    ErrorKind::Connection,
                    format!("{address} does not answer PING"),
                ));
            }
            // Silence is no fault of a quiet server; its answer comes among the messages.
            conn.ping(b"");
            asked = true;
            continue;
        };
        asked = false;
        events.hear(address, &message?);
    }
}

async fn subscribe(side: &Side, address: &str) -> Result<Subscription> {
    let mut conn = side.connect(address).await?;
    // A cutover ends subscribers when the clients have left; not this one. Where it is refused, so is that.
    let _ = conn.ask(&[b"CLIENT", b"SETNAME", OWN_NAME]).await?;
    let mut subscription = Subscription::over(conn).await?;
    subscription.listen(b"__key*@*__:*").await?;
    Ok(subscription)
}

/// The key that a message is about: `__keyspace@0__:KEY` EVENT or `__keyevent@0__:EVENT` KEY.
fn changed<'a>(channel: &'a [u8], payload: &'a [u8]) -> Option<(Name, &'a [u8])> {
    let (kind, rest) = match channel {
        c if c.starts_with(b"__keyevent@") => (true, c.get(11..)?),
        c if c.starts_with(b"__keyspace@") => (false, c.get(11..)?),
        _ => return None,
    };
    let end = memchr::memmem::find(rest, b"__:")?;
    let db = std::str::from_utf8(rest.get(..end)?).ok()?.parse().ok()?;
    let named = rest.get(end + 3..)?;
    let (key, event) = if kind {
        (payload, named)
    } else {
        (named, payload)
    };
    Some(((DbIndex(db), key.to_vec()), event))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_beyond_the_room_are_a_gap() {
        let events = Events::within(2 * (PLACE + 100));
        let key = |n: u8| (DbIndex(0), vec![n; 100]);
        let waiting = |events: &Events| events.state().keys.len();
        events.put([key(1), key(2), key(1)]);
        assert!(waiting(&events) == 2 && events.gaps() == 0);
        events.put([key(3), key(2)]);
        assert!(waiting(&events) == 2 && events.gaps() == 1);
        assert_eq!(events.take(1).len(), 1);
        events.put([key(3)]);
        assert!(waiting(&events) == 2 && events.gaps() == 1);
        assert_eq!(events.take(usize::MAX).len(), 2);
        events.put([key(1), key(2)]);
        assert!(waiting(&events) == 2 && events.gaps() == 1);
    }

    #[test]
    fn what_expires_is_no_clients_write() {
        let events = Events::within(1 << 20);
        let tell = |event: &str, key: &str| {
            let channel = format!("__keyevent@0__:{event}").into_bytes();
            let payload = key.as_bytes().to_vec();
            events.hear("m", &Heard::Message { channel, payload });
        };
        tell("keymiss", "none");
        assert_eq!(
            (events.waiting(9, |_| true).names.len(), events.told()),
            (0, 0)
        );
        tell("expired", "old");
        tell("set", "new");
        tell("xgroup-create", "stream");
        let waiting = events.waiting(1, |_| true);
        assert_eq!((waiting.written, waiting.others), (2, 1));
        assert_eq!(waiting.names.len(), 1);
        assert_eq!(events.take_grouped(), [(DbIndex(0), b"stream".to_vec())]);
        tell("del", "old");
        assert_eq!(events.waiting(0, |_| true).written, 3);
    }

    #[test]
    fn both_kinds_of_channels_name_the_key() {
        let expected = Some(((DbIndex(3), b"a__:b".to_vec()), &b"set"[..]));
        assert_eq!(changed(b"__keyevent@3__:set", b"a__:b"), expected);
        assert_eq!(changed(b"__keyspace@3__:a__:b", b"set"), expected);
        assert_eq!(changed(b"news", b"x"), None);
    }

    #[test]
    fn only_all_classes_are_enough() {
        assert!(covers("AKE") && covers("g$lshzxtE"));
        assert!(!covers("KEg$") && !covers("A") && !covers(""));
    }
}
