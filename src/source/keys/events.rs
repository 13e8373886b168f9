//! Keyspace notifications: which keys have changed, collected without repetition.
//!
//! They are sent once and to nobody who is not there: a lost connection is a gap, and says so. Even where all are on,
//! some changes are told to nobody: what consumers of a stream's group have read and acknowledged, flushes.

use super::side::Side;
use crate::error::{Error, ErrorKind, Result};
use crate::net::{Backoff, Conn};
use crate::resp::Reply;
use crate::task::Shutdown;
use crate::types::DbIndex;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a waiting key takes beside its name: a place in the set (of which half may be free), and the allocator's share.
const PLACE: usize = 80;

/// What has been heard and not yet been taken.
pub struct Events {
    state: Mutex<State>,
    /// Bytes that waiting keys may take; more are forgotten as a gap, and found by the next sweep.
    most: usize,
}

#[derive(Default)]
struct State {
    keys: HashSet<(DbIndex, Vec<u8>)>,
    bytes: usize,
    gap: bool,
    /// How many changes were told so far.
    told: u64,
    /// How many masters are being listened to.
    listening: usize,
}

impl Events {
    pub fn within(most: usize) -> Events {
        Events {
            state: Mutex::default(),
            most,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes some of the keys.
    pub fn take(&self, most: usize) -> Vec<(DbIndex, Vec<u8>)> {
        let mut state = self.state();
        let some: Vec<_> = state.keys.iter().take(most).cloned().collect();
        for name in &some {
            state.keys.remove(name);
            state.bytes -= name.1.len() + PLACE;
        }
        some
    }

    /// Whether something may have been missed since this was asked last.
    pub fn take_gap(&self) -> bool {
        std::mem::take(&mut self.state().gap)
    }

    /// Puts keys back, which are to be read again.
    pub fn put(&self, keys: impl IntoIterator<Item = (DbIndex, Vec<u8>)>) {
        let mut state = self.state();
        for key in keys {
            let bytes = key.1.len() + PLACE;
            if state.bytes + bytes > self.most && !state.keys.contains(&key) {
                state.gap = true;
                return;
            }
            if state.keys.insert(key) {
                state.bytes += bytes;
            }
        }
    }

    fn take_message(&self, message: &Reply) {
        if let Some((db, key)) = changed(message) {
            self.state().told += 1;
            self.put([(db, key)]);
        }
    }

    /// How many changes were told so far.
    pub fn told(&self) -> u64 {
        self.state().told
    }

    pub fn listening(&self) -> usize {
        self.state().listening
    }
}

/// Whether a server sends notifications of every change; `None` where it does not tell.
pub async fn are_on(side: &Side) -> Result<Option<bool>> {
    for master in &side.layout().masters {
        let mut conn = side.connect(&master.address).await?;
        let reply = conn
            .ask(&[b"CONFIG", b"GET", b"notify-keyspace-events"])
            .await?;
        let Some(flags) = reply
            .array()
            .and_then(|p| p.get(1)?.text().map(|t| t.into_owned()))
        else {
            return Ok(None);
        };
        if !covers(&flags) {
            return Ok(Some(false));
        }
    }
    Ok(Some(true))
}

/// Every class of events that changes a key, on channels that name the key.
fn covers(flags: &str) -> bool {
    let channel = flags.contains('K') || flags.contains('E');
    let classes = ['g', '$', 'l', 's', 'h', 'z', 'x', 't'];
    channel && (flags.contains('A') || classes.iter().all(|c| flags.contains(*c)))
}

/// After so much silence a server is asked whether it is still there.
const PING_AFTER: Duration = Duration::from_secs(20);

/// Listens to one master until `stop`, reconnecting after each cut.
pub async fn listen(side: Arc<Side>, address: String, events: Arc<Events>, stop: Shutdown) {
    let mut backoff = Backoff::new();
    loop {
        let heard = tokio::select! {
            () = stop.wait() => return,
            heard = hear(&side, &address, &events) => heard,
        };
        // Whatever happened meanwhile was told to nobody.
        events.state().gap = true;
        if let Err(e) = heard {
            tracing::warn!("keyspace notifications of {address} were lost: {e}");
        }
        if !stop.sleep(backoff.next()).await {
            return;
        }
    }
}

/// Counts a listener for as long as it lives.
struct Listening<'a>(&'a Events);

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.state().listening -= 1;
    }
}

async fn hear(side: &Side, address: &str, events: &Events) -> Result<()> {
    let mut passwords = side.endpoint.learnt.versions();
    passwords.mark_unchanged();
    let mut conn = subscribe(side, address).await?;
    {
        let mut state = events.state();
        state.listening += 1;
        // Until now nobody listened.
        state.gap = true;
    }
    let _counted = Listening(events);
    let (mut asked, mut pongs) = (false, 0);
    loop {
        let heard = tokio::select! {
            heard = tokio::time::timeout(PING_AFTER, conn.reply()) => heard,
            Ok(()) = passwords.changed() => {
                // A connection that listens cannot log in again: another takes over, and this one is read to its end.
                let next = subscribe(side, address).await?;
                finish(&mut conn, events, pongs).await?;
                conn = next;
                (asked, pongs) = (false, 0);
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
            conn.push(&[b"PING"]);
            conn.flush().await?;
            asked = true;
            pongs += 1;
            continue;
        };
        asked = false;
        let message = message?;
        pongs -= u32::from(is_pong(&message));
        events.take_message(&message);
    }
}

async fn subscribe(side: &Side, address: &str) -> Result<Conn> {
    let mut conn = side.connect(address).await?;
    conn.call(&[b"PSUBSCRIBE", b"__key*@*__:*"]).await?;
    conn.stays_as_it_is();
    Ok(conn)
}

/// Takes what a listening connection has been sent up to now.
///
/// `pongs`: how many answers to earlier PINGs are still to come.
async fn finish(conn: &mut Conn, events: &Events, mut pongs: u32) -> Result<()> {
    pongs += 1;
    conn.push(&[b"PING"]);
    conn.flush().await?;
    loop {
        let message = conn.reply().await?;
        if is_pong(&message) {
            pongs -= 1;
            if pongs == 0 {
                return Ok(());
            }
        }
        events.take_message(&message);
    }
}

fn is_pong(message: &Reply) -> bool {
    (message.array()).and_then(|p| p.first()?.bytes()) == Some(b"pong")
}

/// The key that a message is about: `__keyspace@0__:KEY` EVENT or `__keyevent@0__:EVENT` KEY.
fn changed(message: &Reply) -> Option<(DbIndex, Vec<u8>)> {
    let parts = message.array()?;
    let (channel, payload) = (parts.get(2)?.bytes()?, parts.get(3)?.bytes()?);
    let (kind, rest) = match channel {
        c if c.starts_with(b"__keyevent@") => (true, c.get(11..)?),
        c if c.starts_with(b"__keyspace@") => (false, c.get(11..)?),
        _ => return None,
    };
    let end = memchr::memmem::find(rest, b"__:")?;
    let db = std::str::from_utf8(rest.get(..end)?).ok()?.parse().ok()?;
    let key = if kind { payload } else { rest.get(end + 3..)? };
    Some((DbIndex(db), key.to_vec()))
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
        assert!(waiting(&events) == 2 && !events.take_gap());
        events.put([key(3), key(2)]);
        assert!(waiting(&events) == 2 && events.take_gap());
        assert_eq!(events.take(1).len(), 1);
        events.put([key(3)]);
        assert!(waiting(&events) == 2 && !events.take_gap());
    }

    #[test]
    fn both_kinds_of_channels_name_the_key() {
        let bulk = |b: &[u8]| Reply::Bulk(b.to_vec());
        let message = |channel: &[u8], payload: &[u8]| {
            Reply::Array(vec![
                bulk(b"pmessage"),
                bulk(b"__key*@*__:*"),
                bulk(channel),
                bulk(payload),
            ])
        };
        let expected = Some((DbIndex(3), b"a__:b".to_vec()));
        assert_eq!(changed(&message(b"__keyevent@3__:set", b"a__:b")), expected);
        assert_eq!(changed(&message(b"__keyspace@3__:a__:b", b"set")), expected);
        assert_eq!(changed(&message(b"news", b"x")), None);
    }

    #[test]
    fn only_all_classes_are_enough() {
        assert!(covers("AKE") && covers("g$lshzxtE"));
        assert!(!covers("KEg$") && !covers("A") && !covers(""));
    }
}
