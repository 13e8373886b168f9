//! The users of a side that lose the right to write, and get back exactly what they had.

use crate::command::{self, Spec};
use crate::cutover::side::nodes::{Nodes, Words, words};
use crate::cutover::side::record::{Rules, Taken, User};
use crate::error::{Error, ErrorKind, Result};
use crate::net;
use crate::plan::{CutoverPlan, Endpoint};
use crate::resp::Reply;
use std::time::Duration;

/// The user by which keyferry writes to a side whose users have lost that right.
pub const WAY_BACK_USER: &str = "keyferry-way-back";

/// Whose rights are taken.
pub struct Rights {
    /// The application's, as the plan names them; empty is all that may log in.
    users: Vec<String>,
    /// Ours, where the plan tells it from the application's.
    own: Option<String>,
    /// Rules that take commands of modules which write: their authors need not have put them into @write.
    modules: Vec<String>,
    side: &'static str,
}

/// The users of some servers with what they had when it was looked, in the order of the servers.
#[derive(Default)]
pub struct Seen(Vec<(String, Vec<(String, Told)>)>);

impl Seen {
    /// What gives them back what they had.
    pub fn rules(&self) -> impl Iterator<Item = (String, Vec<User>)> + '_ {
        self.0.iter().map(|(address, users)| {
            let users = users
                .iter()
                .map(|(name, told)| (name.clone(), told.rules()));
            (address.clone(), users.collect())
        })
    }

    /// All their rules, to be compared with.
    pub fn texts(&self) -> Taken {
        let texts = |users: &Vec<(String, Told)>| {
            users
                .iter()
                .map(|(name, told)| (name.clone(), told.text()))
                .collect()
        };
        self.0
            .iter()
            .map(|(address, users)| (address.clone(), texts(users)))
            .collect()
    }

    /// The servers where somebody may write who is not known to be without that right.
    pub fn open(&self, taken: &Taken) -> Vec<String> {
        let is_open = |address: &str, (name, told): &(String, Told)| {
            let known = taken.get(address).and_then(|users| users.get(name));
            told.may_write() && known != Some(&told.text())
        };
        (self.0.iter())
            .filter(|(address, users)| users.iter().any(|user| is_open(address, user)))
            .map(|(address, _)| address.clone())
            .collect()
    }
}

/// What ACL GETUSER tells.
struct Told {
    on: bool,
    commands: String,
    selectors: Vec<Selector>,
}

/// A further set of rules of a user (Redis 7.0).
struct Selector {
    commands: String,
    /// Patterns of keys and channels.
    patterns: String,
}

impl Rights {
    pub fn new(plan: &CutoverPlan, endpoint: &Endpoint, side: &'static str) -> Rights {
        let own = endpoint.user().filter(|own| own != "default");
        Rights {
            own: own.filter(|own| !plan.users.is_empty() && !plan.users.contains(own)),
            users: plan.users.clone(),
            modules: Vec::new(),
            side,
        }
    }

    /// Whose rights could be taken: without a rule, SETUSER changes nothing.
    pub async fn rehearse(&self, nodes: &mut Nodes) -> Result<Seen> {
        let seen = self.look(nodes).await?;
        set_users(nodes, &seen, |_, _| Some(Vec::new())).await?;
        Ok(seen)
    }

    /// An error where the plan names users that these servers do not know.
    pub fn are_known(&self, seen: &Seen) -> Result<()> {
        for (_, users) in &seen.0 {
            let known = |name: &String| users.iter().any(|(known, _)| known == name);
            if let Some(name) = self.users.iter().find(|name| !known(name)) {
                return Err(Error::new(
                    ErrorKind::Plan,
                    format!(
                        "cutover.users names {name:?}, whom the {} does not know",
                        self.side
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Learns which commands of modules write.
    pub async fn learn_modules(&mut self, nodes: &mut Nodes) -> Result<()> {
        self.modules = (nodes.module_writes().await?.iter())
            .map(|name| format!("-{name}"))
            .collect();
        Ok(())
    }

    /// The users of all these servers, with what they have now.
    pub async fn look(&self, nodes: &mut Nodes) -> Result<Seen> {
        let told = nodes.everywhere(&[b"ACL", b"USERS"]).await?;
        let listed = |reply: &Reply| -> Vec<String> {
            let list = reply.array().unwrap_or_default();
            let names = list.iter().filter_map(|n| Some(n.text()?.into_owned()));
            names
                .filter(|name| name != WAY_BACK_USER && Some(name) != self.own.as_ref())
                .collect()
        };
        let names: Vec<Vec<String>> = told.iter().map(listed).collect();
        let ask = |names: &Vec<String>| {
            let ask = |name: &String| words(&[b"ACL", b"GETUSER", name.as_bytes()]);
            names.iter().map(ask).collect()
        };
        let asked: Vec<Vec<Words>> = names.iter().map(ask).collect();
        let told = nodes.each(&asked).await?;
        let mut seen = Vec::new();
        for (at, (names, replies)) in names.into_iter().zip(told).enumerate() {
            let mut users = Vec::new();
            for (name, reply) in names.into_iter().zip(replies) {
                // One may have been removed meanwhile.
                users.extend(told_by(reply)?.map(|told| (name, told)));
            }
            seen.push((nodes.address(at).to_owned(), users));
        }
        Ok(Seen(seen))
    }

    /// Takes the right to write from those who were seen to have it: from the application's users, or from `all` but our
    /// own. One round trip.
    pub async fn take(&self, nodes: &mut Nodes, seen: &Seen, all: bool) -> Result<()> {
        let meant =
            |name: &str| all || self.users.is_empty() || self.users.iter().any(|u| u == name);
        let without = |name: &str, told: &Told| {
            (meant(name) && told.may_write()).then(|| told.without_writes(&self.modules))
        };
        set_users(nodes, seen, without).await
    }
}

/// Gives users rules, where `rules` has any; all at once.
async fn set_users(
    nodes: &mut Nodes,
    seen: &Seen,
    rules: impl Fn(&str, &Told) -> Option<Vec<String>>,
) -> Result<()> {
    let command = |(name, told): &(String, Told)| {
        let mut command = words(&[b"ACL", b"SETUSER", name.as_bytes()]);
        command.extend(rules(name, told)?.into_iter().map(String::into_bytes));
        Some(command)
    };
    let mut commands = Vec::new();
    for at in 0..nodes.count() {
        // Another server than was looked at keeps what it has: the masters are compared afterwards.
        let of = (seen.0.iter()).find(|(address, _)| address == nodes.address(at));
        let users = of.map(|(_, users)| users.iter().filter_map(command).collect());
        commands.push(users.unwrap_or_default());
    }
    for reply in nodes.each(&commands).await?.into_iter().flatten() {
        if let Reply::Error(text) = reply {
            return Err(net::refusal("ACL SETUSER", &text));
        }
    }
    Ok(())
}

/// What a user has; `None` when the server does not know it.
fn told_by(reply: Reply) -> Result<Option<Told>> {
    let parts = match reply {
        Reply::Error(text) => return Err(net::refusal("ACL GETUSER", &text)),
        Reply::Array(parts) => parts,
        _ => return Ok(None),
    };
    let flags = of(&parts, b"flags").and_then(Reply::array);
    let selectors = of(&parts, b"selectors").and_then(Reply::array);
    let text = |parts: &[Reply], field: &[u8]| {
        let text = of(parts, field).and_then(Reply::text);
        text.map(|t| t.into_owned()).unwrap_or_default()
    };
    let selector = |reply: &Reply| {
        let parts = reply.array()?;
        // Keys, channels, and what newer servers add: databases.
        let fields = parts
            .chunks(2)
            .filter(|f| f.first().and_then(Reply::bytes) != Some(b"commands"));
        let patterns = fields.filter_map(|f| Some(f.get(1)?.text()?.into_owned()));
        Some(Selector {
            commands: text(parts, b"commands"),
            patterns: patterns.collect::<Vec<_>>().join(" "),
        })
    };
    Ok(Some(Told {
        on: (flags.unwrap_or_default().iter()).any(|f| f.bytes() == Some(b"on")),
        commands: text(&parts, b"commands"),
        selectors: (selectors.unwrap_or_default().iter())
            .filter_map(selector)
            .collect(),
    }))
}

/// The value of a field in a list of fields and values.
fn of<'r>(parts: &'r [Reply], field: &[u8]) -> Option<&'r Reply> {
    let at = parts.iter().position(|p| p.bytes() == Some(field))?;
    parts.get(at + 1)
}

impl Told {
    /// Rules that give a user what it has, whatever it has then.
    fn rules(&self) -> Vec<String> {
        let words =
            |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
        let mut rules = words(&self.commands);
        if !self.selectors.is_empty() {
            rules.push("clearselectors".into());
            rules.extend(self.selectors.iter().map(|s| s.rule("")));
        }
        rules
    }

    /// Rules that leave a user what it has, but for writes.
    fn without_writes(&self, modules: &[String]) -> Vec<String> {
        let mut rules = vec!["-@write".to_owned()];
        rules.extend(modules.iter().cloned());
        if !self.selectors.is_empty() {
            let also = format!(" {}", rules.join(" "));
            rules.push("clearselectors".into());
            rules.extend(self.selectors.iter().map(|s| s.rule(&also)));
        }
        rules
    }

    /// All of its rules.
    fn text(&self) -> String {
        let on = if self.on { "on" } else { "off" };
        format!("{on} {}", self.rules().join(" "))
    }

    fn may_write(&self) -> bool {
        let all = self.selectors.iter().map(|s| s.commands.as_str());
        all.chain([self.commands.as_str()]).any(may_write)
    }
}

impl Selector {
    fn rule(&self, also: &str) -> String {
        format!("({} {}{also})", self.commands, self.patterns)
    }
}

/// Whether these rules allow some command that writes; when in doubt they do.
fn may_write(rules: &str) -> bool {
    let mut may = false;
    for rule in rules.split_whitespace() {
        may = match rule {
            "-@all" | "nocommands" | "-@write" => false,
            "+@read" | "+@connection" | "+@pubsub" | "+@transaction" | "+@scripting" => may,
            _ if rule.starts_with("+@") || rule == "allcommands" => true,
            _ => may || rule.strip_prefix('+').is_some_and(writes),
        };
    }
    may
}

fn writes(name: &str) -> bool {
    let name = name.split('|').next().unwrap_or_default();
    // One that is not known is a module's, or only reads.
    command::lookup(name.as_bytes()).is_none_or(Spec::may_write)
}

/// Gives all of them back what they had; returns what could not be given back, and why. A server that is none of the
/// `present` ones is tried once, and then forgotten: it may never come back.
pub async fn give_back(
    endpoint: &Endpoint,
    rules: Rules,
    present: &[String],
) -> (Rules, Result<()>) {
    let given = rules.into_iter().map(|(address, users)| async move {
        let must = present.contains(&address);
        let given = give_back_at(endpoint, &address, &users, if must { 5 } else { 1 }).await;
        (must, address, users, given)
    });
    let (mut left, mut last) = (Vec::new(), Ok(()));
    for (must, address, users, given) in futures::future::join_all(given).await {
        match given {
            Ok(()) => {}
            Err(e) if !must => {
                tracing::warn!(
                    "{address} is no master now, and is left as it is: {}",
                    e.chain()
                );
            }
            Err(e) => {
                left.push((address, users));
                last = Err(e);
            }
        }
    }
    (left, last)
}

async fn give_back_at(
    endpoint: &Endpoint,
    address: &str,
    users: &[User],
    mut tries: u32,
) -> Result<()> {
    loop {
        let given = async {
            let mut conn = net::control(endpoint, address).await?;
            for (name, rules) in users {
                let mut command: Vec<&[u8]> = vec![b"ACL", b"SETUSER", name.as_bytes(), b"-@all"];
                command.extend(rules.iter().map(String::as_bytes));
                conn.call(&command).await?;
            }
            conn.call(&[b"ACL", b"DELUSER", WAY_BACK_USER.as_bytes()])
                .await
                .map(drop)
        };
        let limit = Duration::from_secs(3);
        let given = tokio::time::timeout(limit, given).await;
        let e = match given {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(e)) => e,
            Err(_) => Error::new(
                ErrorKind::Connection,
                format!("no answer within {} s", limit.as_secs()),
            ),
        };
        tries -= 1;
        if tries == 0 || e.kind() == ErrorKind::Refused {
            return Err(e
                .context(format!("the users of {address} are still without @write"))
                .hint("run `keyferry rollback` or `keyferry cutover PLAN --reopen` when it answers, or give it back there: ACL SETUSER user +@write"));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Makes the user by which keyferry writes, on masters and on whoever may take their place; returns its password.
pub async fn make_way_back_user(masters: &mut Nodes, replicas: &mut Nodes) -> Result<String> {
    let reply = masters.ask(0, &[b"ACL", b"GENPASS"]).await?;
    let password = reply.text().unwrap_or_default().into_owned();
    if password.len() < 32 {
        return Err(Error::new(
            ErrorKind::Protocol,
            "ACL GENPASS gave no password",
        ));
    }
    let (user, given) = (WAY_BACK_USER.as_bytes(), format!(">{password}"));
    let rules: &[&[u8]] = &[
        b"ACL",
        b"SETUSER",
        user,
        b"reset",
        b"on",
        given.as_bytes(),
        b"~*",
        b"+@all",
    ];
    // Redis 6.0 knows no channels.
    let channels: &[&[u8]] = &[b"ACL", b"SETUSER", user, b"allchannels"];
    masters.everywhere(rules).await?;
    let _ = masters.everywhere(channels).await;
    if replicas.everywhere(rules).await.is_ok() {
        let _ = replicas.everywhere(channels).await;
    }
    Ok(password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_tell_whether_somebody_may_write() {
        for (rules, may) in [
            ("+@all", true),
            ("-@all", false),
            ("+@all -@write", false),
            ("-@all +@read", false),
            ("-@all +json.set", true),
            ("-@all +@read +set", true),
            ("-@all +@string", true),
            ("+@all -@write -@dangerous +publish", false),
            // Whether it only reads is not known here.
            ("-@all +xinfo", true),
            ("+@all -@write +incr", true),
            ("-@all +publish +ping", false),
        ] {
            assert_eq!(may_write(rules), may, "{rules}");
        }
    }

    #[test]
    fn selectors_are_taken_and_given_back() {
        let told = Told {
            on: true,
            commands: "-@all +@read".into(),
            selectors: vec![Selector {
                commands: "-@all +set".into(),
                patterns: "~app:* &*".into(),
            }],
        };
        assert!(told.may_write());
        assert_eq!(
            told.rules(),
            [
                "-@all",
                "+@read",
                "clearselectors",
                "(-@all +set ~app:* &*)"
            ]
        );
        assert_eq!(
            told.without_writes(&["-json.set".into()]),
            [
                "-@write",
                "-json.set",
                "clearselectors",
                "(-@all +set ~app:* &* -@write -json.set)"
            ]
        );
    }
}
