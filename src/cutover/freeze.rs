//! How the writers of one side are kept from writing, and let go again.

use crate::cutover::hook::{self, Hook};
use crate::error::{Error, ErrorKind, Result};
use crate::net::{self, Conn, server};
use crate::plan::{CutoverPlan, Endpoint, FreezeWay};
use crate::resp::Reply;
use crate::store::Store;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A pause ends by itself after this long, unless it is renewed.
const LEASE: Duration = Duration::from_secs(3);
/// The document that keeps the users' rules while they are frozen.
const RULES: &str = "cutover_frozen_users";

/// The writers of one side.
pub struct Freezer {
    plan: CutoverPlan,
    dir: PathBuf,
    /// `source` or `target`.
    side: &'static str,
    /// Where the clients are: told to the hooks.
    clients_at: &'static str,
    masters: Vec<Conn>,
    way: Option<FreezeWay>,
    deadline: Instant,
}

impl Freezer {
    /// Connects to every master of a side. `dir` is where the users' rules are kept.
    pub async fn open(
        endpoint: &Endpoint,
        plan: &CutoverPlan,
        side: &'static str,
        dir: PathBuf,
    ) -> Result<Freezer> {
        let (layout, _) = server::layout(endpoint).await?;
        let mut masters = Vec::new();
        for master in &layout.masters {
            masters.push(net::connect(endpoint, &master.address).await?);
        }
        Ok(Freezer {
            plan: plan.clone(),
            dir,
            side,
            clients_at: side,
            masters,
            way: None,
            deadline: Instant::now(),
        })
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The clients have been moved to the other side.
    pub fn moved(&mut self) {
        self.clients_at = match self.side {
            "source" => "target",
            _ => "source",
        };
    }

    pub fn is_frozen(&self) -> bool {
        self.way.is_some()
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

    /// Finds out, without freezing anything, which way will be taken.
    pub async fn rehearse(&mut self) -> Result<FreezeWay> {
        let mut why = None;
        for way in self.ways() {
            let tried = match way {
                // It has ended when it begins.
                FreezeWay::Pause => {
                    self.everywhere(&[b"CLIENT", b"PAUSE", b"0", b"WRITE"])
                        .await
                }
                FreezeWay::Acl => self.users().await.map(drop),
                _ => Ok(()),
            };
            match tried {
                Ok(()) => return Ok(way),
                Err(e) if is_refusal(&e) => why = Some(e),
                Err(e) => return Err(e),
            }
        }
        Err(no_way(why))
    }

    /// Freezes until [`Freezer::thaw`], or for the plan's `max_pause_ms`.
    pub async fn freeze(&mut self) -> Result<FreezeWay> {
        self.deadline = Instant::now() + Duration::from_millis(self.plan.max_pause_ms);
        let mut why = None;
        for way in self.ways() {
            self.way = Some(way);
            let tried = match way {
                FreezeWay::Pause => self.pause().await,
                FreezeWay::Acl => self.take_rights().await,
                FreezeWay::Hook => self.hook(true).await,
                FreezeWay::Operator | FreezeWay::Auto => Ok(()),
            };
            match tried {
                Ok(()) => return Ok(way),
                Err(e) => {
                    // Some masters may have taken it.
                    let _ = self.thaw().await;
                    if !is_refusal(&e) {
                        return Err(e);
                    }
                    why = Some(e);
                }
            }
        }
        Err(no_way(why))
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
        match self.way.take() {
            Some(FreezeWay::Pause) => self.everywhere(&[b"CLIENT", b"UNPAUSE"]).await,
            Some(FreezeWay::Acl) => self.give_rights_back().await,
            Some(FreezeWay::Hook) => self.hook(false).await,
            _ => Ok(()),
        }
    }

    /// Ends the connections of ordinary clients; what they have not got an answer to has not run.
    pub async fn cut_clients(&mut self) -> Result<()> {
        self.everywhere(&[b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes"])
            .await
    }

    async fn pause(&mut self) -> Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let ms = left.min(LEASE).as_millis().to_string();
        self.everywhere(&[b"CLIENT", b"PAUSE", ms.as_bytes(), b"WRITE"])
            .await
    }

    /// Sends a command to all masters at once.
    async fn everywhere(&mut self, command: &[&[u8]]) -> Result<()> {
        for conn in &mut self.masters {
            conn.push(command);
            conn.flush().await?;
        }
        let mut first = Ok(());
        for conn in &mut self.masters {
            let reply = conn.reply().await?;
            if let (Reply::Error(text), true) = (reply, first.is_ok()) {
                let words: Vec<_> = command
                    .iter()
                    .take(2)
                    .map(|w| String::from_utf8_lossy(w))
                    .collect();
                first = Err(net::refusal(&words.join(" "), &text));
            }
        }
        first
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

    /// The users that lose their right to write, with the rules that give it back; those of all masters alike.
    async fn users(&mut self) -> Result<Vec<(String, Vec<String>)>> {
        let mut names = self.plan.users.clone();
        let Some(conn) = self.masters.first_mut() else {
            return Ok(Vec::new());
        };
        if names.is_empty() {
            let reply = conn.call(&[b"ACL", b"USERS"]).await?;
            let list = reply.array().unwrap_or_default();
            names = list
                .iter()
                .filter_map(|n| Some(n.text()?.into_owned()))
                .collect();
        }
        let mut users = Vec::new();
        for name in names {
            let reply = conn.call(&[b"ACL", b"GETUSER", name.as_bytes()]).await?;
            let parts = match reply {
                Reply::Array(parts) => parts,
                _ => {
                    return Err(Error::new(
                        ErrorKind::Plan,
                        format!(
                            "cutover.users names {name:?}, whom the {} does not know",
                            self.side
                        ),
                    ));
                }
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
        let users = self.users().await?;
        // First, so that whoever comes after a crash can give them back.
        let mut store = Store::open(&self.dir)?;
        store.put_json(RULES, &json!(users))?;
        for (name, _) in &users {
            self.everywhere(&[b"ACL", b"SETUSER", name.as_bytes(), b"-@write"])
                .await?;
        }
        Ok(())
    }

    async fn give_rights_back(&mut self) -> Result<()> {
        let mut store = Store::open(&self.dir)?;
        let saved = store.json(RULES)?.unwrap_or_default();
        let users: Vec<(String, Vec<String>)> = serde_json::from_value(saved).unwrap_or_default();
        for (name, rules) in &users {
            let mut command: Vec<&[u8]> = vec![b"ACL", b"SETUSER", name.as_bytes(), b"-@all"];
            command.extend(rules.iter().map(String::as_bytes));
            self.everywhere(&command).await?;
        }
        store.put_json(RULES, &Value::Null)
    }

    /// Undoes what a cutover has left that was cut off together with its guard.
    pub async fn clean_up(&mut self) -> Result<()> {
        let saved = Store::open(&self.dir)?.json(RULES)?;
        if saved.is_some_and(|v| !v.is_null()) {
            self.give_rights_back().await?;
        }
        Ok(())
    }
}

fn is_refusal(e: &Error) -> bool {
    e.kind() == ErrorKind::Refused
}

fn no_way(why: Option<Error>) -> Error {
    let none = Error::new(
        ErrorKind::Refused,
        "there is no way to keep the clients from writing",
    )
    .hint("give the user the right to CLIENT PAUSE or ACL SETUSER, name programs in cutover.hooks.freeze and thaw, or set cutover.freeze to \"operator\"");
    match why {
        Some(why) => none.cause(why),
        None => none,
    }
}

/// The name of a way, as the plan has it.
pub fn name(way: FreezeWay) -> String {
    let value = serde_json::to_value(way).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

/// The opposite of [`name`].
pub fn parse(name: &str) -> Result<FreezeWay> {
    serde_json::from_value(json!(name))
        .map_err(|e| Error::new(ErrorKind::Bug, format!("freeze by {name:?}")).cause(e))
}
