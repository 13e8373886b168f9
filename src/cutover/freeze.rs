//! How the writers of one side are kept from writing, and let go again.

use crate::cutover::hook::{self, Hook};
use crate::error::{Error, ErrorKind, Result};
use crate::net::{self, Conn, server};
use crate::plan::{CutoverPlan, Endpoint, FreezeWay};
use crate::resp::Reply;
use crate::store::{Store, frozen};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A pause ends by itself after this long, unless it is renewed.
const LEASE: Duration = Duration::from_secs(3);
/// How long a master may take to answer while writers wait.
const ANSWER: Duration = Duration::from_secs(1);
/// How often letting go is tried on a master.
const THAWS: u32 = 5;

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
    masters: Vec<Master>,
    way: Option<FreezeWay>,
    deadline: Instant,
    /// Until when the pause holds without being renewed.
    leased: Instant,
}

struct Master {
    address: String,
    conn: Conn,
}

/// What is written down, so that whoever comes after a crash can let the writers go.
#[derive(Serialize, Deserialize)]
struct Frozen {
    way: FreezeWay,
    /// By master: the users with the rules that they had.
    rules: Vec<(String, Vec<User>)>,
}

type User = (String, Vec<String>);

impl Freezer {
    pub async fn open(
        endpoint: &Endpoint,
        plan: &CutoverPlan,
        side: &'static str,
        home: PathBuf,
    ) -> Result<Freezer> {
        let mut freezer = Freezer {
            endpoint: endpoint.clone(),
            plan: plan.clone(),
            home,
            side,
            clients_at: side,
            masters: Vec::new(),
            way: None,
            deadline: Instant::now(),
            leased: Instant::now(),
        };
        freezer.look().await?;
        Ok(freezer)
    }

    /// Connects to whoever is a master now.
    async fn look(&mut self) -> Result<()> {
        let mut masters = Vec::new();
        for address in self.masters_now().await? {
            let conn = net::connect(&self.endpoint, &address).await?;
            masters.push(Master { address, conn });
        }
        self.masters = masters;
        Ok(())
    }

    async fn masters_now(&self) -> Result<Vec<String>> {
        let (layout, server) = server::layout(&self.endpoint).await?;
        if !layout.cluster && server.replica {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "{} is a replica: its master's clients would go on writing",
                    self.endpoint
                ),
            )
            .hint("name the master in the plan"));
        }
        Ok(layout.masters.into_iter().map(|m| m.address).collect())
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    pub fn is_frozen(&self) -> bool {
        self.way.is_some()
    }

    /// Whether the writers are frozen at this moment, on the servers that are masters now.
    pub async fn holds(&mut self) -> Result<()> {
        if self.way == Some(FreezeWay::Pause) {
            let mut frozen: Vec<String> = self.masters.iter().map(|m| m.address.clone()).collect();
            let mut now = self.masters_now().await?;
            frozen.sort();
            now.sort();
            if frozen != now || Instant::now() >= self.leased {
                return Err(Error::new(
                    ErrorKind::Refused,
                    "the pause has not held: a master has changed, or could not be asked in time",
                )
                .hint("run the same command again"));
            }
        }
        match self.way {
            Some(_) if Instant::now() < self.deadline => Ok(()),
            _ => Err(Error::new(
                ErrorKind::Refused,
                "the pause had to end before the clients could be moved",
            )
            .hint("allow a longer pause (cutover.max_pause_ms), or make the steps before it shorter: --dry-run shows them")),
        }
    }

    /// The clients have been moved to the other side.
    pub fn moved(&mut self) {
        self.clients_at = match self.side {
            "source" => "target",
            _ => "source",
        };
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

    /// Finds out, without freezing anything, which way is allowed.
    pub async fn rehearse(&mut self) -> Result<FreezeWay> {
        let mut why = None;
        for way in self.ways() {
            let tried = match way {
                FreezeWay::Pause => self.rehearse_pause().await,
                FreezeWay::Acl => self.rehearse_acl().await,
                _ => Ok(()),
            };
            match tried {
                Ok(()) => return Ok(way),
                Err(e) if e.kind() == ErrorKind::Refused => why = Some(e),
                Err(e) => return Err(e),
            }
        }
        Err(no_way(why))
    }

    async fn rehearse_pause(&mut self) -> Result<()> {
        // It has ended when it begins.
        self.everywhere(&[b"CLIENT", b"PAUSE", b"0", b"WRITE"])
            .await?;
        match self.plan.cut_clients {
            // Writes that wait would run at the old side when the pause ends.
            true => {
                let nobody: &[&[u8]] = &[
                    b"CLIENT",
                    b"KILL",
                    b"TYPE",
                    b"normal",
                    b"ADDR",
                    b"0.0.0.0:1",
                ];
                self.everywhere(nobody).await
            }
            false => Ok(()),
        }
    }

    async fn rehearse_acl(&mut self) -> Result<()> {
        for at in 0..self.masters.len() {
            for (user, _) in self.users(at).await? {
                // Without a rule it changes nothing.
                self.ask(at, &[b"ACL", b"SETUSER", user.as_bytes()]).await?;
            }
        }
        Ok(())
    }

    /// Freezes until [`Freezer::thaw`], or for the plan's `max_pause_ms`, by the way that [`Freezer::rehearse`] has found.
    pub async fn freeze(&mut self, way: FreezeWay) -> Result<()> {
        // Since the first look much may have changed.
        self.look().await?;
        self.deadline = Instant::now() + Duration::from_millis(self.plan.max_pause_ms);
        self.way = Some(way);
        let frozen = match way {
            FreezeWay::Pause => self.pause().await,
            FreezeWay::Acl => self.take_rights().await,
            FreezeWay::Hook => {
                self.write_down(&Frozen {
                    way,
                    rules: Vec::new(),
                })?;
                self.hook(true).await
            }
            FreezeWay::Operator | FreezeWay::Auto => Ok(()),
        };
        if frozen.is_err() {
            // Some masters may have taken it.
            self.thaw().await?;
        }
        frozen
    }

    /// Called twice a second while frozen.
    pub async fn renew(&mut self) -> Result<()> {
        match self.way {
            Some(FreezeWay::Pause) => self.pause().await,
            _ => Ok(()),
        }
    }

    /// Lets the writers go on; may be called when nothing is frozen.
    pub async fn thaw(&mut self) -> Result<()> {
        match self.way {
            Some(FreezeWay::Pause) => {
                let mut last = Ok(());
                for at in 0..self.masters.len() {
                    let thawed = self.insist(at, &[b"CLIENT", b"UNPAUSE"]).await;
                    // What cannot be reached ends by itself.
                    last = last.and(thawed);
                }
                last?;
            }
            Some(FreezeWay::Acl) => self.give_rights_back().await?,
            Some(FreezeWay::Hook) => {
                self.hook(false).await?;
                self.forget()?;
            }
            _ => {}
        }
        self.way = None;
        Ok(())
    }

    /// Ends a pause that somebody else has begun, where that is allowed.
    pub async fn unpause(&mut self) {
        if let Err(e) = self.everywhere(&[b"CLIENT", b"UNPAUSE"]).await {
            tracing::debug!("{e}");
        }
    }

    /// Ends the connections of ordinary clients; what they have not got an answer to has not run.
    pub async fn cut_clients(&mut self) -> Result<()> {
        self.everywhere(&[b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes"])
            .await
    }

    async fn pause(&mut self) -> Result<()> {
        let now = Instant::now();
        let lease = self.deadline.saturating_duration_since(now).min(LEASE);
        let ms = lease.as_millis().to_string();
        self.everywhere(&[b"CLIENT", b"PAUSE", ms.as_bytes(), b"WRITE"])
            .await?;
        self.leased = now + lease;
        Ok(())
    }

    /// Sends a command to all masters at once; the first failure, after all have been tried.
    async fn everywhere(&mut self, command: &[&[u8]]) -> Result<()> {
        let asked = self
            .masters
            .iter_mut()
            .map(|m| answered(&mut m.conn, command));
        let mut first = Ok(());
        for answer in futures::future::join_all(asked).await {
            first = first.and(answer.map(drop));
        }
        first
    }

    async fn ask(&mut self, at: usize, command: &[&[u8]]) -> Result<Reply> {
        match self.masters.get_mut(at) {
            Some(master) => answered(&mut master.conn, command).await,
            None => Err(Error::new(ErrorKind::Bug, "a master that is not there")),
        }
    }

    /// The same, over a new connection where the old one is gone.
    async fn insist(&mut self, at: usize, command: &[&[u8]]) -> Result<()> {
        let mut last = None;
        for _ in 0..THAWS {
            match self.ask(at, command).await {
                Ok(_) => return Ok(()),
                Err(e) => last = Some(e),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            if let Some(master) = self.masters.get_mut(at)
                && let Ok(conn) = net::connect(&self.endpoint, &master.address).await
            {
                master.conn = conn;
            }
        }
        last.map_or(Ok(()), Err)
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
        let ran = Hook { name, argv, limit }.run(&told).await?;
        hook::succeeded(name, &ran)
    }

    /// The users of a master that lose their right to write, with the rules that give it back.
    async fn users(&mut self, at: usize) -> Result<Vec<User>> {
        let mut names = self.plan.users.clone();
        if names.is_empty() {
            let reply = self.ask(at, &[b"ACL", b"USERS"]).await?;
            let list = reply.array().unwrap_or_default();
            names = list
                .iter()
                .filter_map(|n| Some(n.text()?.into_owned()))
                .collect();
        }
        let mut users = Vec::new();
        for name in names {
            let reply = self.ask(at, &[b"ACL", b"GETUSER", name.as_bytes()]).await?;
            let Reply::Array(parts) = reply else {
                return Err(Error::new(
                    ErrorKind::Plan,
                    format!(
                        "cutover.users names {name:?}, whom the {} does not know",
                        self.side
                    ),
                ));
            };
            let of = |field: &[u8]| {
                let at = parts.iter().position(|p| p.bytes() == Some(field))?;
                parts.get(at + 1)
            };
            let flags = of(b"flags").and_then(Reply::array).unwrap_or_default();
            let on = flags.iter().any(|f| f.bytes() == Some(b"on"));
            let rules = of(b"commands").and_then(|c| Some(c.text()?.into_owned()));
            if let (true, Some(rules)) = (on, rules) {
                users.push((name, rules.split(' ').map(str::to_owned).collect()));
            }
        }
        Ok(users)
    }

    async fn take_rights(&mut self) -> Result<()> {
        let mut rules = Vec::new();
        for at in 0..self.masters.len() {
            let address = self.masters.get(at).map(|m| m.address.clone());
            rules.push((address.unwrap_or_default(), self.users(at).await?));
        }
        // First, so that whoever comes after a crash can give them back.
        self.write_down(&Frozen {
            way: FreezeWay::Acl,
            rules: rules.clone(),
        })?;
        for (at, (_, users)) in rules.iter().enumerate() {
            for (name, _) in users {
                self.ask(at, &[b"ACL", b"SETUSER", name.as_bytes(), b"-@write"])
                    .await?;
            }
        }
        Ok(())
    }

    async fn give_rights_back(&mut self) -> Result<()> {
        let Some(saved) = self.written_down()? else {
            return Ok(());
        };
        let mut last = Ok(());
        for (address, users) in &saved.rules {
            let Some(at) = self.masters.iter().position(|m| m.address == *address) else {
                last = Err(Error::new(
                    ErrorKind::Refused,
                    format!("{address} is no master any more: its users are still without @write"),
                )
                .hint("give it back to them there (ACL SETUSER user +@write), or run `keyferry rollback` when it is a master again"));
                continue;
            };
            for (name, rules) in users {
                let mut command: Vec<&[u8]> = vec![b"ACL", b"SETUSER", name.as_bytes(), b"-@all"];
                command.extend(rules.iter().map(String::as_bytes));
                let given = self.insist(at, &command).await;
                last = last.and(given);
            }
        }
        last?;
        self.forget()
    }

    fn write_down(&self, frozen_by: &Frozen) -> Result<()> {
        let value = serde_json::to_value(frozen_by)
            .map_err(|e| Error::new(ErrorKind::Bug, "write down a freeze").cause(e))?;
        Store::open(&self.home)?.put_json(&frozen(self.side), &value)
    }

    fn written_down(&self) -> Result<Option<Frozen>> {
        let saved = Store::open(&self.home)?.json(&frozen(self.side))?;
        Ok(saved.and_then(|v| serde_json::from_value(v).ok()))
    }

    fn forget(&self) -> Result<()> {
        Store::open(&self.home)?.put_json(&frozen(self.side), &Value::Null)
    }

    /// Undoes what a cutover has left that was cut off together with its guard; a pause ends by itself.
    pub async fn clean_up(&mut self, clients_at: &'static str) -> Result<()> {
        if let Some(saved) = self.written_down()? {
            self.clients_at = clients_at;
            self.way = Some(saved.way);
            self.thaw().await?;
        }
        Ok(())
    }
}

/// One command and its answer, which may not be long in coming.
async fn answered(conn: &mut Conn, command: &[&[u8]]) -> Result<Reply> {
    let asked = tokio::time::timeout(ANSWER, conn.call(command)).await;
    asked.unwrap_or_else(|_| {
        Err(Error::new(
            ErrorKind::Connection,
            format!("no answer within {} s", ANSWER.as_secs()),
        ))
    })
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
