//! What is learnt of an endpoint while the program runs, shared by all copies of it: what it refuses, its password now.
//!
//! Invariant: a command that was refused for good is not sent a second time.

use crate::plan::secret::Redacted;
use crate::types::unix_ms;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Commands whose second word says what they do.
const CONTAINERS: [&str; 11] = [
    "ACL", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DEBUG", "FUNCTION", "MEMORY", "MODULE",
    "OBJECT", "XINFO",
];

/// Commands that nothing can be done without.
const NEEDED: [&str; 14] = [
    "CLUSTER SLOTS",
    "DEL",
    "DUMP",
    "EXEC",
    "EXISTS",
    "INFO",
    "MULTI",
    "PEXPIRETIME",
    "PING",
    "PTTL",
    "RESTORE",
    "SCAN",
    "SET",
    "TYPE",
];

/// A password as it was read.
pub struct Reading {
    pub password: Redacted,
    /// Who logs in with it, where it tells.
    pub user: Option<String>,
    /// It is read again when so much time has passed.
    pub good_for: Duration,
}

/// A password as it was read last.
#[derive(Clone)]
pub struct Held {
    pub password: Redacted,
    /// Rises when the password changes.
    pub version: u64,
    pub read_at: Instant,
    /// It is to be read again when so much time has passed.
    pub good_for: Duration,
}

/// Shared by all copies of an endpoint.
#[derive(Clone)]
pub struct Learnt {
    refused: Arc<Mutex<BTreeSet<String>>>,
    /// Commands that were answered without an error.
    allowed: Arc<Mutex<BTreeSet<String>>>,
    /// The password in use; held while it is read anew, so that one reading serves all who wait.
    pub held: Arc<tokio::sync::Mutex<Option<Held>>>,
    /// The version of the password in use.
    version: Arc<watch::Sender<u64>>,
    /// Somebody reads the password anew from time to time.
    pub refreshing: Arc<AtomicBool>,
    /// The server has taken a password.
    pub worked: Arc<AtomicBool>,
    /// Whose password it is, where that comes with it.
    user: Arc<Mutex<Option<String>>>,
    /// Announced addresses that cannot be reached, and where their nodes are reached instead.
    reached: Arc<Mutex<BTreeMap<String, String>>>,
    cluster: Arc<Mutex<Cluster>>,
}

/// What a side's servers have told of each other.
#[derive(Default)]
struct Cluster {
    /// This run has seen that it is one.
    seen: bool,
    /// Addresses of nodes, by what the cluster calls them.
    nodes: BTreeMap<String, String>,
    /// When it told them.
    told_ms: i64,
    /// Which of the plan's addresses has answered last.
    stays_at: Option<String>,
    /// Others of the plan's addresses come before it.
    strays: bool,
}

/// As many nodes of a cluster are kept as one has at most.
const NODES: usize = 1_000;

impl Default for Learnt {
    fn default() -> Learnt {
        Learnt {
            refused: Arc::default(),
            allowed: Arc::default(),
            held: Arc::default(),
            version: Arc::new(watch::Sender::new(0)),
            refreshing: Arc::default(),
            worked: Arc::default(),
            user: Arc::default(),
            reached: Arc::default(),
            cluster: Arc::default(),
        }
    }
}

impl std::fmt::Debug for Learnt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Learnt({:?})", self.list())
    }
}

impl Learnt {
    fn refused(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the server has refused this command before.
    pub fn refuses(&self, args: &[&[u8]]) -> bool {
        let refused = self.refused();
        !refused.is_empty() && refused.contains(&name(args))
    }

    /// Takes an error reply to a command: one that will come again is remembered.
    ///
    /// Not of a command that has worked before: then somebody is changing the user's rights right now.
    pub fn note(&self, args: &[&[u8]], error: &str) {
        let name = name(args);
        // A module may be loaded at any time, and a refusal that is repeated no longer says that there is none.
        let lacks_module =
            name.starts_with("FT.") && error.to_ascii_lowercase().contains("unknown command");
        if is_for_good(error) && !lacks_module && !self.allowed().contains(&name) {
            self.refused().insert(name);
        }
    }

    /// What the answer to this command says is said of all that go by this name.
    pub fn name(args: &[&[u8]]) -> String {
        name(args)
    }

    /// Whether a command of this name was answered without an error.
    pub fn allows(&self, name: &str) -> bool {
        self.allowed().contains(name)
    }

    /// Takes a reply that was no error.
    pub fn works(&self, args: &[&[u8]]) {
        let (mut allowed, name) = (self.allowed(), name(args));
        if !allowed.contains(&name) {
            allowed.insert(name);
        }
    }

    fn allowed(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was refused and can be done without; what cannot is tried anew by each run, as rights may have been given.
    pub fn list(&self) -> Vec<String> {
        let refused = self.refused();
        let spared = refused.iter().filter(|n| !NEEDED.contains(&n.as_str()));
        spared.cloned().collect()
    }

    pub fn add(&self, names: impl IntoIterator<Item = String>) {
        self.refused().extend(names);
    }

    /// For a new probe: rights may have been given meanwhile.
    pub fn forget_refusals(&self) {
        self.refused().clear();
        self.allowed().clear();
    }

    /// Where the node of an announced address was reached instead.
    pub fn reached_at(&self, announced: &str) -> Option<String> {
        let reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        reached.get(announced).cloned()
    }

    pub fn reach(&self, announced: &str, at: &str) {
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        reached.insert(announced.to_owned(), at.to_owned());
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_cluster(&self) -> bool {
        self.cluster().seen
    }

    /// The nodes that the cluster has told, now or in an earlier run: their addresses by what it calls them.
    pub fn nodes(&self) -> BTreeMap<String, String> {
        self.cluster().nodes.clone()
    }

    /// Takes the nodes that a cluster has told; one that tells none leaves what is known.
    pub fn meet_nodes(&self, nodes: BTreeMap<String, String>) {
        self.cluster().seen = true;
        self.recall_nodes(nodes, unix_ms());
    }

    /// Takes the nodes that an earlier run was told, unless later ones are known.
    pub fn recall_nodes(&self, nodes: BTreeMap<String, String>, told_ms: i64) {
        let mut cluster = self.cluster();
        if !nodes.is_empty() && told_ms >= cluster.told_ms {
            cluster.nodes = nodes.into_iter().take(NODES).collect();
            cluster.told_ms = told_ms;
        }
    }

    /// When the nodes that are known were told, as Unix time in ms.
    pub fn nodes_told_ms(&self) -> i64 {
        self.cluster().told_ms
    }

    /// Whether this one of the plan's addresses is kept to for as long as it answers.
    pub fn stays_at(&self, address: &str) -> bool {
        self.cluster().stays_at.as_deref() == Some(address)
    }

    /// Keeps to one of the plan's addresses; `strays`: others come before it.
    pub fn stay_at(&self, address: &str, strays: bool) {
        let mut cluster = self.cluster();
        cluster.stays_at = Some(address.to_owned());
        cluster.strays = strays;
    }

    /// The plan's addresses are tried in their order again: the one that answers may not be the one that is wanted. Says
    /// whether that may lead to another one.
    pub fn look_around(&self) -> bool {
        let mut cluster = self.cluster();
        cluster.stays_at = None;
        std::mem::take(&mut cluster.strays)
    }

    /// For servers of the same side whose users have rights of their own: what these refuse says nothing of the others.
    pub fn of_replicas(&self) -> Learnt {
        Learnt {
            refused: Arc::default(),
            allowed: Arc::default(),
            ..self.clone()
        }
    }

    /// For another server with the same password: nothing but that is known of it.
    pub fn of_another(&self) -> Learnt {
        Learnt {
            refused: Arc::default(),
            allowed: Arc::default(),
            reached: Arc::default(),
            cluster: Arc::default(),
            ..self.clone()
        }
    }

    /// Who the password in use logs in, where that came with it.
    pub fn user(&self) -> Option<String> {
        let user = self.user.lock().unwrap_or_else(PoisonError::into_inner);
        user.clone()
    }

    pub fn is_user(&self, name: Option<String>) {
        *self.user.lock().unwrap_or_else(PoisonError::into_inner) = name;
    }

    pub fn version(&self) -> u64 {
        *self.version.borrow()
    }

    /// Tells everyone that the password has changed.
    pub fn changed(&self, version: u64) {
        self.version.send_if_modified(|known| {
            let new = *known != version;
            *known = version;
            new
        });
    }

    /// Hears of changes of the password.
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub fn has_worked(&self) -> bool {
        self.worked.load(Ordering::Relaxed)
    }
}

fn name(args: &[&[u8]]) -> String {
    let word = |i: usize| {
        let word = args.get(i).copied().unwrap_or_default();
        String::from_utf8_lossy(word).to_ascii_uppercase()
    };
    let first = word(0);
    match CONTAINERS.contains(&first.as_str()) && args.len() > 1 {
        true => format!("{first} {}", word(1)),
        false => first,
    }
}

/// Whether a server will answer so each time: it does not know the command, or does not let this user run it.
pub fn is_for_good(error: &str) -> bool {
    let lower = error.to_ascii_lowercase();
    // Redis 6 says so of commands that it knows as well ("Unknown subcommand or wrong number of arguments").
    if lower.contains("or wrong number of arguments") {
        return false;
    }
    (error.starts_with("NOPERM") && lower.contains("to run the"))
        || [
            "unknown command",
            "unknown subcommand",
            "command disallowed",
        ]
        .iter()
        .any(|words| lower.contains(words))
        || lower.contains("is not allowed in cluster mode")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_that_were_told_last_are_kept() {
        let learnt = Learnt::default();
        let of = |id: &str| BTreeMap::from([(id.to_owned(), "h:1".to_owned())]);
        learnt.recall_nodes(of("new"), 20);
        learnt.recall_nodes(of("old"), 10);
        assert_eq!((learnt.nodes(), learnt.nodes_told_ms()), (of("new"), 20));
        learnt.meet_nodes(of("now"));
        learnt.meet_nodes(BTreeMap::new());
        assert_eq!(learnt.nodes(), of("now"));
    }

    #[test]
    fn what_replicas_refuse_is_not_what_their_masters_do() {
        let masters = Learnt::default();
        let (command, error) = (
            [b"ACL".as_slice(), b"USERS"],
            "NOPERM this user has no permissions to run the 'acl|users' command",
        );
        let replicas = masters.of_replicas();
        replicas.note(&command, error);
        assert!(replicas.refuses(&command) && !masters.refuses(&command));
        masters.reach("10.0.0.1:1", "h:1");
        assert_eq!(replicas.reached_at("10.0.0.1:1"), Some("h:1".into()));
    }

    #[test]
    fn what_is_refused_for_good_is_remembered() {
        let learnt = Learnt::default();
        let both = learnt.clone();
        learnt.note(
            &[b"client", b"pause", b"1"],
            "NOPERM this user has no permissions to run the 'client|pause' command",
        );
        assert!(both.refuses(&[b"CLIENT", b"PAUSE", b"100"]));
        assert!(!both.refuses(&[b"CLIENT", b"NO-EVICT", b"on"]));
        learnt.note(&[b"PSYNC", b"?", b"-1"], "ERR Command disallowed");
        learnt.note(
            &[b"WAIT"],
            "ERR unknown command 'WAIT', with args beginning with: ",
        );
        assert_eq!(both.list(), ["CLIENT PAUSE", "PSYNC", "WAIT"]);
        // These depend on the arguments or on the moment.
        learnt.note(
            &[b"ACL", b"SETUSER"],
            "ERR Unknown subcommand or wrong number of arguments for 'SETUSER'. Try ACL HELP.",
        );
        learnt.note(&[b"SELECT", b"99"], "ERR DB index is out of range");
        learnt.note(&[b"DUMP", b"k"], "NOPERM No permissions to access a key");
        learnt.note(
            &[b"DUMP", b"k"],
            "LOADING Redis is loading the dataset in memory",
        );
        assert_eq!(both.list().len(), 3);
    }
}
