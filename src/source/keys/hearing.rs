//! Hears of every change of a source: its keyspace notifications, and the proof that none were missing.
//!
//! What is told is collected in [`Events`]; what is told to nobody shows in the masters' command statistics. A
//! [`Ground`] is a moment since when everything was told; it is lost for good by the first doubt.

use super::calls::{Called, Look, classes_of};
use super::events::{self, Events};
use super::side::Side;
use crate::error::Result;
use crate::net::{self, Control};
use crate::task::Shutdown;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// How long masters may take to answer that all has been heard: whoever asks may hold writers back meanwhile.
const HEARD_LIMIT: Duration = Duration::from_secs(5);

/// What the masters have said, by their addresses.
pub type Looks = BTreeMap<String, Look>;

/// A moment since when every change was told.
#[derive(Clone)]
pub struct Ground {
    looks: Looks,
    gaps: u64,
    /// What was called since, by master.
    called: BTreeMap<String, Called>,
}

impl Ground {
    /// What the masters said last.
    pub fn looks(&self) -> &Looks {
        &self.looks
    }
}

/// Listens to a source.
pub struct Hearing {
    pub events: Arc<Events>,
    side: Arc<Side>,
    runtime: Handle,
    /// Ends all listeners.
    stop: Shutdown,
    listeners: BTreeMap<String, Shutdown>,
    /// What each of them called itself when it was listened to first.
    servers: BTreeMap<String, Option<String>>,
    /// What the masters are configured to notify of; `None` where they do not tell.
    configured: BTreeMap<String, Option<String>>,
    conns: BTreeMap<String, Control>,
}

impl Hearing {
    /// Asks what is told, and begins to listen; keys that wait may take `most` bytes.
    pub fn begin(side: Arc<Side>, most: usize, runtime: Handle, stop: Shutdown) -> Result<Hearing> {
        let configured = runtime.block_on(events::configured(&side))?;
        let mut hearing = Hearing {
            events: Arc::new(Events::within(most)),
            side,
            runtime,
            stop,
            listeners: BTreeMap::new(),
            servers: BTreeMap::new(),
            configured,
            conns: BTreeMap::new(),
        };
        hearing.listen();
        Ok(hearing)
    }

    /// Whether every class of events is told by all masters; `None` where they do not say.
    pub fn is_on(&self) -> Option<bool> {
        let mut all = Some(true);
        for flags in self.configured.values() {
            match flags {
                Some(flags) if events::covers(flags) => {}
                Some(_) => return Some(false),
                None => all = None,
            }
        }
        all
    }

    /// How many masters are to be listened to; 0 without notifications.
    pub fn listeners(&self) -> usize {
        self.listeners.len()
    }

    /// Whether all masters are being listened to.
    pub fn listens(&self) -> bool {
        !self.listeners.is_empty() && self.events.listening() == self.listeners.len()
    }

    /// Whether nothing may have been missed since.
    pub fn holds(&self, ground: &Ground) -> bool {
        self.events.gaps() == ground.gaps
    }

    fn masters(&self) -> Vec<String> {
        let layout = self.side.layout();
        layout.masters.iter().map(|m| m.address.clone()).collect()
    }

    /// Listens to those that are masters now, unless they are known to tell nothing.
    fn listen(&mut self) {
        let masters = self.masters();
        // Where a server does not tell, listening costs nothing.
        let silent =
            |flags: &Option<String>| flags.as_deref().is_some_and(|f| classes_of(f).is_empty());
        let off = masters.is_empty() || self.configured.values().any(silent);
        let wanted: BTreeSet<String> = masters.into_iter().filter(|_| !off).collect();
        self.listeners.retain(|address, stop| {
            let keep = wanted.contains(address);
            if !keep {
                stop.request();
            }
            keep
        });
        for address in wanted {
            if self.listeners.contains_key(&address) {
                continue;
            }
            let own = Shutdown::default();
            let listening = events::listen(
                self.side.clone(),
                address.clone(),
                self.events.clone(),
                own.clone(),
            );
            let (all, one) = (self.stop.clone(), own.clone());
            self.runtime.spawn(async move {
                tokio::select! {
                    () = all.wait() => one.request(),
                    () = one.wait() => 0,
                }
            });
            self.runtime.spawn(listening);
            self.listeners.insert(address, own);
        }
    }

    /// Begins anew: everything that is written from now on is told; an error says why that is not so.
    pub fn ground(&mut self) -> std::result::Result<Ground, String> {
        let runtime = self.runtime.clone();
        runtime.block_on(async {
            if self.side.endpoint.from_replicas {
                return Err("keys are read from replicas, which may be behind".into());
            }
            self.conns.clear();
            let before = self.look().await?;
            self.know_servers(&before);
            let asked = events::configured(&self.side).await;
            self.configured = asked.map_err(|e| format!("the source cannot be asked: {e}"))?;
            self.listen();
            let gaps = self.events.gaps();
            let (_, looks) = self.step(before, true).await?;
            if self.listeners.is_empty() {
                return Err(
                    "the source sends no keyspace notifications (notify-keyspace-events)".into(),
                );
            }
            let all = self.masters();
            if !all.iter().all(|m| self.events.listens_to(m)) || self.events.gaps() != gaps {
                return Err(
                    "the subscription to the source's keyspace notifications is being made".into(),
                );
            }
            let called = BTreeMap::new();
            Ok(Ground {
                looks,
                gaps,
                called,
            })
        })
    }

    /// Waits until all that has been told up to now is heard, and looks whether that was everything; an error says why
    /// it may not have been.
    pub fn advance(&mut self, ground: &mut Ground) -> std::result::Result<Called, String> {
        const INTERRUPTED: &str =
            "the subscription to the source's keyspace notifications was interrupted";
        if !self.holds(ground) {
            return Err(INTERRUPTED.into());
        }
        let runtime = self.runtime.clone();
        let all = self.masters();
        runtime.block_on(async {
            let events = self.events.clone();
            let heard = events.all_heard(&all, HEARD_LIMIT);
            let (heard, looked) = tokio::join!(heard, self.step(ground.looks.clone(), false));
            let (called, looks) = looked?;
            if !heard || self.events.gaps() != ground.gaps {
                return Err(INTERRUPTED.into());
            }
            ground.looks = looks;
            let mut sum = Called::default();
            for (address, called) in called {
                sum.add(called.clone());
                ground.called.entry(address).or_default().add(called);
            }
            for (address, called) in &ground.called {
                if let Some(command) = called.beyond(&self.known(address)) {
                    return Err(format!(
                        "no keyspace notification shows that the source tells of {}",
                        command.replace('|', " ").to_uppercase()
                    ));
                }
            }
            Ok(sum)
        })
    }

    /// Asks whoever answers at the masters' addresses now from then on: another server may have taken one's place, while
    /// a connection to the first is still there.
    pub fn ask_anew(&mut self) {
        self.conns.clear();
    }

    /// Ends what listens to a server that another has taken the place of.
    fn know_servers(&mut self, looks: &Looks) {
        for (address, look) in looks {
            let known = self
                .servers
                .insert(address.clone(), look.run_id().map(str::to_owned));
            let other = known.is_some_and(|known| known.as_deref() != look.run_id());
            if other && let Some(listener) = self.listeners.remove(address) {
                listener.request();
            }
        }
    }

    /// What the masters say now; an error where they do not.
    pub fn looks(&mut self) -> std::result::Result<Looks, String> {
        let runtime = self.runtime.clone();
        runtime.block_on(self.look())
    }

    /// The classes of notifications that a master is known to send.
    fn known(&self, address: &str) -> BTreeSet<char> {
        match self.configured.get(address) {
            Some(Some(flags)) => classes_of(flags),
            _ => self.events.classes(address),
        }
    }

    /// What was called since a look, and another look; `asked`: we have asked for the configuration in between.
    async fn step(
        &mut self,
        before: Looks,
        asked: bool,
    ) -> std::result::Result<(BTreeMap<String, Called>, Looks), String> {
        let looks = self.look().await?;
        if !looks.keys().eq(before.keys()) {
            return Err("the masters of the source have changed".into());
        }
        let mut called = BTreeMap::new();
        for ((address, mut before), later) in before.into_iter().zip(looks.values()) {
            if asked && self.configured.get(&address).is_some_and(Option::is_some) {
                before.expect_config(later);
            }
            called.insert(address, before.until(later)?);
        }
        Ok((called, looks))
    }

    async fn look(&mut self) -> std::result::Result<Looks, String> {
        let all = self.masters();
        let mut conns = std::mem::take(&mut self.conns);
        let side = self.side.clone();
        let looked = all.iter().map(|address| {
            let conn = conns.remove(address);
            look_at(&side, address, conn)
        });
        let looked = futures::future::try_join_all(looked).await;
        let looked = looked.map_err(|e| format!("the source cannot be asked: {e}"))?;
        let mut looks = Looks::new();
        for (address, (look, conn)) in all.into_iter().zip(looked) {
            looks.insert(address.clone(), look);
            self.conns.insert(address, conn);
        }
        Ok(looks)
    }
}

async fn look_at(side: &Side, address: &str, conn: Option<Control>) -> Result<(Look, Control)> {
    if let Some(mut conn) = conn
        && let Ok(look) = ask(side, &mut conn).await
    {
        return Ok((look, conn));
    }
    // One that has stood idle may be gone.
    let mut conn = net::control(&side.endpoint, address).await?;
    let look = ask(side, &mut conn).await?;
    Ok((look, conn))
}

async fn ask(side: &Side, conn: &mut Control) -> Result<Look> {
    let mut questions: Vec<&[&[u8]]> = vec![
        &[b"INFO", b"server"],
        &[b"INFO", b"replication"],
        &[b"INFO", b"commandstats"],
        &[b"INFO", b"stats"],
        &[b"INFO", b"persistence"],
    ];
    if side.cluster {
        questions.push(&[b"CLUSTER", b"INFO"]);
    }
    let mut text = String::new();
    for reply in conn.ask_all(&questions).await? {
        text.push_str(&reply.text().unwrap_or_default());
        text.push_str("\r\n");
    }
    Ok(Look::parse(&text))
}

/// How many commands may have written at all masters between two looks; `None` where that is not told.
pub fn writes_between(before: &Looks, later: &Looks) -> Option<u64> {
    let mut writes = 0u64;
    for (address, look) in before {
        writes = writes.saturating_add(look.writes_until(later.get(address)?)?);
    }
    Some(writes)
}
