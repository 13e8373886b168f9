//! The users of a side that lose the right to write, and get back exactly what they had.

use crate::command::{self, Spec};
use crate::cutover::side::nodes::{Nodes, Words, words};
use crate::error::{Error, ErrorKind, Result};
use crate::net;
use crate::plan::{CutoverPlan, Endpoint};
use crate::resp::Reply;
use std::collections::HashMap;
use std::time::Duration;

/// A user and the rules that give back what it had.
pub type User = (String, Vec<String>);
/// By server: its users.
pub type Rules = Vec<(String, Vec<User>)>;

/// The user by which keyferry writes to a side whose users have lost that right.
pub const WAY_BACK_USER: &str = "keyferry-way-back";

/// Whose rights are taken.
pub struct Rights {
    /// As the plan names them; empty is all that may log in.
    users: Vec<String>,
    side: &'static str,
    /// By server and user: the rules that a user has had since its right was taken.
    taken: HashMap<(String, String), String>,
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
    pub fn new(plan: &CutoverPlan, side: &'static str) -> Rights {
        Rights {
            users: plan.users.clone(),
            side,
            taken: HashMap::new(),
        }
    }

    /// Whether they could be taken: without a rule, SETUSER changes nothing.
    pub async fn rehearse(&self, nodes: &mut Nodes) -> Result<()> {
        let seen = self.look(nodes).await?;
        set_users(nodes, &seen, |_| Some(Vec::new())).await
    }

    /// The users of all these servers, with what they have now.
    pub async fn look(&self, nodes: &mut Nodes) -> Result<Seen> {
        let mut names = vec![self.users.clone(); nodes.count()];
        if self.users.is_empty() {
            let told = nodes.everywhere(&[b"ACL", b"USERS"]).await?;
            let listed = |reply: &Reply| {
                let list = reply.array().unwrap_or_default();
                let names = list.iter().filter_map(|n| Some(n.text()?.into_owned()));
                names.filter(|name| name != WAY_BACK_USER).collect()
            };
            names = told.iter().map(listed).collect();
        }
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
                match told_by(reply)? {
                    Some(told) => users.push((name, told)),
                    None if self.users.is_empty() => {}
                    None => {
                        return Err(Error::new(
                            ErrorKind::Plan,
                            format!(
                                "cutover.users names {name:?}, whom the {} does not know",
                                self.side
                            ),
                        ));
                    }
                }
            }
            users.retain(|(_, told)| told.on);
            seen.push((nodes.address(at).to_owned(), users));
        }
        Ok(Seen(seen))
    }

    /// Takes the right to write from those who were seen to have it: one round trip.
    pub async fn take(&mut self, nodes: &mut Nodes, seen: &Seen) -> Result<()> {
        self.taken.clear();
        let without = |told: &Told| told.may_write().then(|| told.without_writes());
        set_users(nodes, seen, without).await
    }

    /// Takes it from whoever has it again. Returns the servers where somebody had; the first time there is nothing to
    /// compare with, and by their rules alone one cannot always tell that users may not write.
    pub async fn keep_taken(&mut self, nodes: &mut Nodes) -> Result<Vec<String>> {
        let first = self.taken.is_empty();
        let seen = self.look(nodes).await?;
        let is_known = |address: &str, name: &str, told: &Told| {
            let place = (address.to_owned(), name.to_owned());
            self.taken.get(&place) == Some(&told.text())
        };
        let open = |(address, users): &(String, Vec<(String, Told)>)| {
            let open = (users.iter())
                .any(|(name, told)| told.may_write() && !is_known(address, name, told));
            open.then(|| address.clone())
        };
        let open: Vec<String> = seen.0.iter().filter_map(open).collect();
        let mut now = seen;
        if !open.is_empty() {
            self.take(nodes, &now).await?;
            now = self.look(nodes).await?;
        }
        for (address, users) in &now.0 {
            for (name, told) in users {
                let place = (address.clone(), name.clone());
                self.taken.insert(place, told.text());
            }
        }
        Ok(if first { Vec::new() } else { open })
    }
}

/// Gives users rules, where `rules` has any; all at once.
async fn set_users(
    nodes: &mut Nodes,
    seen: &Seen,
    rules: impl Fn(&Told) -> Option<Vec<String>>,
) -> Result<()> {
    let command = |(name, told): &(String, Told)| {
        let mut command = words(&[b"ACL", b"SETUSER", name.as_bytes()]);
        command.extend(rules(told)?.into_iter().map(String::into_bytes));
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
        let patterns = [text(parts, b"keys"), text(parts, b"channels")];
        Some(Selector {
            commands: text(parts, b"commands"),
            patterns: patterns.join(" "),
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
    fn without_writes(&self) -> Vec<String> {
        let mut rules = vec!["-@write".to_owned()];
        if !self.selectors.is_empty() {
            rules.push("clearselectors".into());
            rules.extend(self.selectors.iter().map(|s| s.rule(" -@write")));
        }
        rules
    }

    /// All of its rules.
    fn text(&self) -> String {
        self.rules().join(" ")
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

/// Gives all of them back what they had; returns what could not be given back, and why.
pub async fn give_back(endpoint: &Endpoint, rules: Rules) -> (Rules, Result<()>) {
    let (mut left, mut last) = (Vec::new(), Ok(()));
    for (address, users) in rules {
        if let Err(e) = give_back_at(endpoint, &address, &users).await {
            left.push((address, users));
            last = Err(e);
        }
    }
    (left, last)
}

async fn give_back_at(endpoint: &Endpoint, address: &str, users: &[User]) -> Result<()> {
    let mut tries = 5;
    loop {
        let given = async {
            let mut conn = net::connect(endpoint, address).await?;
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

/// Makes the user by which keyferry writes; returns its password.
pub async fn make_way_back_user(nodes: &mut Nodes) -> Result<String> {
    let reply = nodes.ask(0, &[b"ACL", b"GENPASS"]).await?;
    let password = reply.text().unwrap_or_default().into_owned();
    if password.len() < 32 {
        return Err(Error::new(
            ErrorKind::Protocol,
            "ACL GENPASS gave no password",
        ));
    }
    let given = format!(">{password}");
    for at in 0..nodes.count() {
        let user = WAY_BACK_USER.as_bytes();
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
        nodes.ask(at, rules).await?;
        // Redis 6.0 knows no channels.
        let _ = nodes
            .ask(at, &[b"ACL", b"SETUSER", user, b"allchannels"])
            .await;
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
            ("+@all -@write -@dangerous +xinfo", false),
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
            told.without_writes(),
            [
                "-@write",
                "clearselectors",
                "(-@all +set ~app:* &* -@write)"
            ]
        );
    }
}
