//! How the writers of one side are kept from writing, let go again, or kept out for good.

use crate::cutover::hook::{self, Hook};
use crate::cutover::side::nodes::{Cut, LEASE, Nodes};
use crate::cutover::side::record::{Closed, Record, User};
use crate::cutover::side::rights::{self, Rights, Seen, WAY_BACK_USER};
use crate::error::{Error, ErrorKind, Result};
use crate::net;
use crate::plan::{CutoverPlan, Endpoint, FreezeWay, OldSide};
use crate::resp::info;
use crate::types::ReplOffset;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often a replica is asked whether it has got what its master has written.
const PASSED_ON: Duration = Duration::from_millis(2);
/// How long one that is no master any more may take to end its pause.
const PAUSED: Duration = Duration::from_secs(3);

/// How we ourselves keep everybody from writing, whoever else does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lock {
    Pause,
    Rights,
}

/// What would be done, found out without doing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foretold {
    pub way: FreezeWay,
    /// How the old side will be kept closed.
    pub closed: Closed,
}

/// The writers of one side.
pub struct Freezer {
    endpoint: Endpoint,
    plan: CutoverPlan,
    /// Where it is written down how the writers are frozen.
    home: PathBuf,
    /// `source` or `target`.
    side: &'static str,
    /// Where the clients are: told to the hooks.
    clients_at: &'static str,
    masters: Nodes,
    replicas: Nodes,
    rights: Rights,
    /// The users of masters and of replicas, as they were before anything was taken from them.
    seen: [Seen; 2],
    way: Option<FreezeWay>,
    lock: Option<Lock>,
    deadline: Instant,
    record: Record,
    may: May,
}

/// What the server lets us do.
#[derive(Debug, Clone, Copy, Default)]
struct May {
    pause: bool,
    rights: bool,
}

impl Freezer {
    /// With whatever was done to the side before.
    pub async fn open(
        endpoint: &Endpoint,
        plan: &CutoverPlan,
        side: &'static str,
        home: PathBuf,
    ) -> Result<Freezer> {
        let record = Record::load(&home, side)?;
        Ok(Freezer {
            endpoint: endpoint.clone(),
            plan: plan.clone(),
            side,
            clients_at: side,
            masters: Nodes::masters(endpoint).await?,
            replicas: Nodes::none(endpoint),
            seen: Default::default(),
            rights: Rights::new(plan, endpoint, side),
            way: record.way,
            lock: None,
            deadline: Instant::now(),
            record,
            home,
            may: May::default(),
        })
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    pub fn is_frozen(&self) -> bool {
        self.way.is_some() && self.record.closed.is_none()
    }

    /// How the side is closed since its clients have left; `None` when it is not.
    pub fn closed(&self) -> Option<Closed> {
        self.record.closed
    }

    /// An error unless the writers are frozen at this moment, as far as one round trip tells.
    pub async fn is_held(&mut self) -> Result<()> {
        self.has_no_gap()?;
        self.masters.are_masters().await?;
        self.has_no_gap()
    }

    /// An error unless the writers have been frozen without a gap since [`Freezer::freeze`], on the servers that are
    /// masters now.
    pub async fn has_held(&self) -> Result<()> {
        let changed = self.masters.changed().await?;
        self.has_no_gap()?;
        changed.map_or(Ok(()), |why| Err(not_held(&why)))
    }

    fn has_no_gap(&self) -> Result<()> {
        if self.way.is_none() {
            return Err(Error::new(
                ErrorKind::Refused,
                "the pause had to end before the clients could be moved",
            )
            .hint("allow a longer pause (cutover.max_pause_ms), or make the steps before it shorter: --dry-run shows them"));
        }
        match self.masters.has_gap() {
            true => Err(not_held(
                "the pause has ended for a moment, as this machine or its line stood still, or another server has taken over",
            )),
            false => Ok(()),
        }
    }

    /// Which ways are to be tried.
    fn ways(&self) -> Vec<FreezeWay> {
        match self.plan.freeze {
            FreezeWay::Auto => {
                let mut ways = vec![FreezeWay::Pause, FreezeWay::Acl];
                if !self.plan.hooks.freeze.is_empty() && !self.plan.hooks.thaw.is_empty() {
                    ways.push(FreezeWay::Hook);
                }
                ways.push(FreezeWay::Operator);
                ways
            }
            way => vec![way],
        }
    }

    /// Finds out, without freezing anything, what is allowed.
    pub async fn rehearse(&mut self) -> Result<Foretold> {
        let mut why = None;
        // Writes that wait would run at the old side when the pause ends.
        let pause = self.masters.rehearse_pause(self.plan.cut_clients).await;
        let pause = allowed(pause, &mut why)?;
        let seen = allowed(self.rights.rehearse(&mut self.masters).await, &mut why)?;
        if let (FreezeWay::Acl, Some(seen)) = (self.plan.freeze, &seen) {
            self.rights.are_known(seen)?;
        }
        self.may = May {
            pause: pause.is_some(),
            rights: seen.is_some(),
        };
        let allowed = |way: &FreezeWay| match way {
            FreezeWay::Pause => self.may.pause,
            FreezeWay::Acl => self.may.rights,
            _ => true,
        };
        match self.ways().into_iter().find(allowed) {
            Some(way) => Ok(Foretold {
                way,
                closed: self.closes_by(),
            }),
            None => Err(no_way(why)),
        }
    }

    fn closes_by(&self) -> Closed {
        match (self.plan.old_side, self.may) {
            (OldSide::Open, _) => Closed::Open,
            (OldSide::Closed, May { rights: true, .. }) => Closed::ByRights,
            (OldSide::Closed, May { pause: true, .. }) => Closed::ByPause,
            (OldSide::Closed, _) => Closed::Watched,
        }
    }

    /// By what everybody is kept from writing when the clients are frozen this way.
    fn lock_of(&self, way: FreezeWay) -> Option<Lock> {
        let shut = self.plan.old_side == OldSide::Closed;
        match way {
            FreezeWay::Pause => Some(Lock::Pause),
            FreezeWay::Acl => Some(Lock::Rights),
            // Whoever does not obey the hook or the operator is kept out by us.
            _ if shut && self.may.pause => Some(Lock::Pause),
            _ if shut && self.may.rights => Some(Lock::Rights),
            _ => None,
        }
    }

    /// Looks once more at what will be frozen, while writers still write: to be called right before [`Freezer::freeze`].
    pub async fn prepare(&mut self) -> Result<()> {
        self.masters = Nodes::masters(&self.endpoint).await?;
        if self.may.rights {
            self.rights.learn_modules(&mut self.masters).await?;
            // Their users are their own, and they may go away at any time.
            self.replicas = self.masters.replicas().await;
            self.replicas.keep_those_that(&[b"ACL", b"USERS"]).await;
            self.seen = [
                self.rights.look(&mut self.masters).await?,
                self.rights.look(&mut self.replicas).await?,
            ];
        }
        Ok(())
    }

    /// Freezes until [`Freezer::thaw`], or for the plan's `max_pause_ms`, by the way that [`Freezer::rehearse`] has found.
    pub async fn freeze(&mut self, way: FreezeWay) -> Result<()> {
        self.deadline = Instant::now() + Duration::from_millis(self.plan.max_pause_ms);
        self.way = Some(way);
        let frozen = self.freeze_by(way).await;
        if frozen.is_err() {
            // Some masters may have taken it.
            self.thaw().await?;
        }
        frozen
    }

    async fn freeze_by(&mut self, way: FreezeWay) -> Result<()> {
        if way == FreezeWay::Hook {
            self.record.way = Some(way);
            self.save()?;
            self.hook(true).await?;
        }
        self.lock = self.lock_of(way);
        match self.lock {
            Some(Lock::Pause) => self.renew().await?,
            Some(Lock::Rights) => self.take_rights(false).await?,
            None => {}
        }
        self.passed_on().await
    }

    /// Called twice a second while frozen.
    pub async fn renew(&mut self) -> Result<()> {
        if self.lock != Some(Lock::Pause) || !self.record.paused.is_empty() {
            return Ok(());
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        self.masters.pause(left.min(LEASE)).await
    }

    /// Where the plan names a replica, the writers were frozen at its master: waits until it has got all of it.
    pub async fn passed_on(&mut self) -> Result<()> {
        let own = self.endpoint.address();
        if self.masters.count() != 1 || self.masters.address(0) == own {
            return Ok(());
        }
        let Some(goal) = self.masters.offsets().await?.into_iter().next() else {
            return Ok(());
        };
        let mut conn = net::control(&self.endpoint, &own).await?;
        loop {
            let reply = conn.call(&[b"INFO", b"replication"]).await?;
            let at = info::offset(&reply.text().unwrap_or_default());
            if at.unwrap_or(ReplOffset(0)) >= goal {
                return Ok(());
            }
            if Instant::now() > self.deadline {
                return Err(Error::new(
                    ErrorKind::Refused,
                    format!("the replica {own} did not get in time what its master had written"),
                )
                .hint("name the master in the plan"));
            }
            tokio::time::sleep(PASSED_ON).await;
        }
    }

    /// The clients are being moved: keeps everybody from writing here from now on, until [`Freezer::thaw`].
    pub async fn close(&mut self) -> Result<Closed> {
        let closed = self.closes_by();
        match closed {
            Closed::ByRights => {
                self.take_rights(true).await?;
                self.masters.pause_is_over();
            }
            Closed::ByPause => self.pause_for_good().await?,
            Closed::Watched | Closed::Open => {}
        }
        self.record.closed = Some(closed);
        self.record.masters = self.masters.run_ids();
        self.save()?;
        Ok(closed)
    }

    async fn pause_for_good(&mut self) -> Result<()> {
        let paused: BTreeSet<String> = (self.masters.addresses().map(str::to_owned))
            .chain(std::mem::take(&mut self.record.paused))
            .collect();
        self.record.paused = paused.into_iter().collect();
        self.save()?;
        self.masters.pause_for_good().await
    }

    /// Notes what the users have now that their right was taken: whoever has more later was given it.
    pub async fn note_taken(&mut self) -> Result<()> {
        if self.record.closed == Some(Closed::ByRights) {
            self.record.taken = self.rights.look(&mut self.masters).await?.texts();
            self.save()?;
        }
        Ok(())
    }

    /// The clients have been moved to the other side: whoever is still here is sent away, and what froze them ends, but
    /// for what keeps the side closed.
    pub async fn let_go(&mut self) -> Result<Cut> {
        self.clients_at = match self.side {
            "source" => "target",
            _ => "source",
        };
        let mut cut = Cut::default();
        if self.plan.cut_clients {
            match self.masters.cut_clients().await {
                Ok(ended) => cut = ended,
                Err(e) => tracing::warn!("clients of the old side could not be cut off: {e}"),
            }
        }
        let closed = self.record.closed;
        if self.lock == Some(Lock::Pause) && closed != Some(Closed::ByPause) {
            self.unpause().await?;
        }
        if self.lock == Some(Lock::Rights) && closed != Some(Closed::ByRights) {
            self.give_rights_back().await?;
        }
        self.end_hook().await?;
        (self.way, self.lock) = (None, None);
        Ok(cut)
    }

    /// Undoes all that keeps anybody from writing here; may be called when nothing does.
    pub async fn thaw(&mut self) -> Result<()> {
        let mut done = Ok(());
        if self.lock == Some(Lock::Pause) || !self.record.paused.is_empty() {
            done = self.unpause().await;
        }
        let given = match self.record.rules.is_empty() {
            true => Ok(()),
            false => self.give_rights_back().await,
        };
        let thawed = self.end_hook().await;
        done.and(given).and(thawed)?;
        (self.way, self.lock) = (None, None);
        self.record = Record::default();
        self.save()
    }

    /// The same for what a cutover has left that was cut off together with its guard.
    pub async fn clean_up(&mut self, clients_at: &'static str) -> Result<()> {
        self.clients_at = clients_at;
        self.thaw().await
    }

    /// Somebody has opened it: it is not closed again.
    pub fn stays_open(&mut self) -> Result<()> {
        self.record.closed = Some(Closed::Open);
        self.save()
    }

    /// Ends a pause that somebody else has begun, where that is allowed.
    pub async fn unpause_if_allowed(&mut self) {
        if let Err(e) = self.masters.everywhere(&[b"CLIENT", b"UNPAUSE"]).await {
            tracing::debug!("{e}");
        }
    }

    /// Closes the side, whose clients have left it, where that was cut off; what is done already is not done again.
    pub async fn close_again(&mut self) -> Result<Closed> {
        match self.record.closed {
            Some(closed) => Ok(closed),
            None => {
                self.rehearse().await?;
                self.prepare().await?;
                self.close().await
            }
        }
    }

    /// Looks whether the closed side still is, and closes it where it is not. Returns what stood open meanwhile.
    pub async fn keep_closed(&mut self) -> Result<Option<String>> {
        let mut now = Nodes::masters(&self.endpoint).await?;
        let others = now.run_ids() != self.record.masters;
        let changed = others.then(|| {
            let named = |masters: &BTreeMap<String, Option<String>>| {
                masters.keys().cloned().collect::<Vec<_>>().join(", ")
            };
            format!(
                "the masters were {}, and are {}, or one was started anew",
                named(&self.record.masters),
                named(&now.run_ids())
            )
        });
        std::mem::swap(&mut self.masters, &mut now);
        let stood_open = match self.record.closed {
            Some(Closed::ByRights) => {
                let unknown = self.record.taken.is_empty();
                let open = self.take_again().await?;
                match (open.is_empty(), unknown) {
                    (true, false) => None,
                    // Its guard was killed before that was written down.
                    (_, true) => Some(
                        "it is not known what its users could do since the cutover was cut off"
                            .into(),
                    ),
                    (false, false) => Some(format!(
                        "users of {} could write for a while",
                        open.join(", ")
                    )),
                }
            }
            Some(Closed::ByPause) if others => {
                self.pause_for_good().await?;
                changed.clone()
            }
            _ => None,
        };
        if others {
            self.record.masters = self.masters.run_ids();
            self.save()?;
        }
        // A replica that was closed with its master has stayed so.
        Ok(stood_open.map(|open| match changed {
            Some(changed) if changed != open => format!("{changed}; {open}"),
            _ => open,
        }))
    }

    /// Takes the right to write from whoever has it again; returns the servers where somebody had.
    async fn take_again(&mut self) -> Result<Vec<String>> {
        let seen = self.rights.look(&mut self.masters).await?;
        let open = seen.open(&self.record.taken);
        if !open.is_empty() {
            self.record.remember(seen.rules());
            self.save()?;
            self.rights.take(&mut self.masters, &seen, true).await?;
        }
        if !open.is_empty() || self.record.taken.is_empty() {
            self.note_taken().await?;
        }
        Ok(open)
    }

    /// How we get in where the own user has lost the right to write: a user and its password; `None` where it has not.
    pub async fn way_back_user(&mut self) -> Result<Option<(String, String)>> {
        let own = self.endpoint.user().unwrap_or_else(|| "default".into());
        let names = |(_, users): &(String, Vec<User>)| users.iter().any(|(name, _)| *name == own);
        if !self.record.rules.iter().any(names) {
            return Ok(None);
        }
        let replicas = &mut self.masters.replicas().await;
        replicas.keep_those_that(&[b"ACL", b"USERS"]).await;
        let password = rights::make_way_back_user(&mut self.masters, replicas).await?;
        Ok(Some((WAY_BACK_USER.to_owned(), password)))
    }

    /// The address of the only master, where that is not the one that the plan names.
    pub fn master_elsewhere(&self) -> Option<&str> {
        let address = self.masters.address(0);
        (self.masters.count() == 1 && address != self.endpoint.address()).then_some(address)
    }

    /// How many calls of commands that write the masters count; `None` where they do not tell.
    pub async fn write_calls(&mut self) -> Result<Option<u64>> {
        self.masters.write_calls().await
    }

    async fn unpause(&mut self) -> Result<()> {
        self.masters.unpause().await?;
        // Some that were paused may be replicas by now.
        for address in std::mem::take(&mut self.record.paused) {
            if self.masters.addresses().any(|a| a == address) {
                continue;
            }
            let ended = tokio::time::timeout(PAUSED, async {
                let mut conn = net::control(&self.endpoint, &address).await?;
                conn.call(&[b"CLIENT", b"UNPAUSE"]).await.map(drop)
            });
            if !matches!(ended.await, Ok(Ok(()))) {
                tracing::warn!(
                    "writes to {address} are still paused there: CLIENT UNPAUSE ends it"
                );
            }
        }
        self.save()
    }

    async fn end_hook(&mut self) -> Result<()> {
        if self.way == Some(FreezeWay::Hook) {
            self.hook(false).await?;
            self.record.way = None;
            self.save()?;
        }
        Ok(())
    }

    async fn hook(&self, freeze: bool) -> Result<()> {
        let (name, argv) = match freeze {
            true => ("freeze", &self.plan.hooks.freeze),
            false => ("thaw", &self.plan.hooks.thaw),
        };
        let limit = match freeze {
            true => self.deadline.saturating_duration_since(Instant::now()),
            false => Duration::from_secs(10),
        };
        let told = json!({ "step": name, "side": self.side, "clients_at": self.clients_at });
        let without = &self.plan.hooks.without;
        let hook = Hook {
            name,
            argv,
            without,
            limit,
        };
        let ran = hook.run(&told).await?;
        hook::succeeded(name, &ran)
    }

    /// `for_good`: from everybody but our own user, and with the replicas, so that whoever is promoted is closed as well.
    async fn take_rights(&mut self, for_good: bool) -> Result<()> {
        let [ours, theirs] = &self.seen;
        self.record.remember(ours.rules());
        if for_good {
            self.record.remember(theirs.rules());
        }
        // First, so that whoever comes after a crash can give them back.
        self.save()?;
        self.rights.take(&mut self.masters, ours, for_good).await?;
        if for_good && let Err(e) = self.rights.take(&mut self.replicas, theirs, true).await {
            // One that is promoted is found open, and closed, while one watches.
            tracing::warn!("a replica could not be closed: {e}");
        }
        Ok(())
    }

    async fn give_rights_back(&mut self) -> Result<()> {
        let rules = std::mem::take(&mut self.record.rules);
        let present: Vec<String> = self.masters.addresses().map(str::to_owned).collect();
        let (left, given) = rights::give_back(&self.endpoint, rules, &present).await;
        self.record.rules = left;
        self.save()?;
        given
    }

    fn save(&self) -> Result<()> {
        self.record.save(&self.home, self.side)
    }
}

/// What was asked for, unless it was refused, which `why` keeps.
fn allowed<T>(asked: Result<T>, why: &mut Option<Error>) -> Result<Option<T>> {
    match asked {
        Ok(done) => Ok(Some(done)),
        Err(e) if e.kind() == ErrorKind::Refused => {
            *why = Some(e);
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn not_held(why: &str) -> Error {
    Error::new(
        ErrorKind::Refused,
        format!("the freeze has not held: {why}"),
    )
    .hint("run the same command again")
}

fn no_way(why: Option<Error>) -> Error {
    let none = Error::new(
        ErrorKind::Refused,
        "there is no way to keep the clients from writing",
    )
    .hint("give the user the right to CLIENT PAUSE and CLIENT KILL, or to ACL SETUSER; or name programs in cutover.hooks.freeze and thaw, or set cutover.freeze to \"operator\"");
    match why {
        Some(why) => none.cause(why),
        None => none,
    }
}
