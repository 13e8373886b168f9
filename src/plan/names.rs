//! What the commands of a side are called there, where it has renamed them (`rename-command`).

use std::collections::BTreeMap;
use std::sync::Arc;

/// Commands that are asked one by one, and never stand in a batch of writes or in a stream.
const ASKED: [&str; 28] = [
    "ACL", "AUTH", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DBSIZE", "DEBUG", "DUMP", "ECHO",
    "INFO", "KEYS", "LATENCY", "MEMORY", "MODULE", "MONITOR", "OBJECT", "PING", "PSYNC", "PUBSUB",
    "REPLCONF", "ROLE", "SCAN", "SLOWLOG", "SYNC", "TIME", "TYPE", "WAIT",
];

/// Names of commands by those that everybody knows; in capitals on that side.
#[derive(Clone, Default)]
pub struct CommandNames(Arc<BTreeMap<Vec<u8>, Vec<u8>>>);

impl CommandNames {
    pub fn new(names: &BTreeMap<String, String>) -> CommandNames {
        let names = names.iter();
        let names = names.map(|(known, here)| (known.to_ascii_uppercase(), here.clone()));
        CommandNames(Arc::new(
            names
                .map(|(k, h)| (k.into_bytes(), h.into_bytes()))
                .collect(),
        ))
    }

    /// What a command is called, by the name that everybody knows.
    pub fn of<'a>(&'a self, command: &'a [u8]) -> &'a [u8] {
        if self.0.is_empty() {
            return command;
        }
        let here = self.0.get(&command.to_ascii_uppercase());
        here.map_or(command, Vec::as_slice)
    }

    /// A command as this side wants it: its first word, and the command that ACL DRYRUN asks about.
    pub fn words<'a>(&'a self, words: &[&'a [u8]]) -> Vec<&'a [u8]> {
        let is = |i: usize, name: &[u8]| words.get(i).is_some_and(|w| w.eq_ignore_ascii_case(name));
        let asks_about = is(0, b"ACL") && is(1, b"DRYRUN");
        let named = words.iter().enumerate().map(|(i, word)| match i {
            0 => self.of(word),
            3 if asks_about => self.of(word),
            _ => word,
        });
        named.collect()
    }

    /// Whether PSYNC has another name: servers look at the word, and answer any other as they answer SYNC, which tells
    /// neither an id nor an offset.
    pub fn hide_psync(&self) -> bool {
        !self.of(b"PSYNC").eq_ignore_ascii_case(b"PSYNC")
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The command by another name without which nobody can listen for notifications: these are sent as they are known.
    pub fn keeps_from_listening(&self) -> Option<&'static str> {
        let is_other =
            |name: &&str| !(self.of(name.as_bytes())).eq_ignore_ascii_case(name.as_bytes());
        ["PSUBSCRIBE", "PING"].into_iter().find(is_other)
    }

    /// The known name with the other, where there is one: `PSYNC (here: secret)`.
    pub fn shown(&self, command: &str) -> String {
        let first = command.split(' ').next().unwrap_or_default();
        match self.of(first.as_bytes()) {
            here if here == first.as_bytes() => command.to_owned(),
            here => format!("{command} (here: {})", String::from_utf8_lossy(here)),
        }
    }

    /// The commands that clients write with, or that writes are sent by.
    pub fn of_writes(names: &BTreeMap<String, String>) -> Vec<String> {
        let known = names.keys().map(|known| known.to_ascii_uppercase());
        known.filter(|n| !ASKED.contains(&n.as_str())).collect()
    }
}

impl std::fmt::Debug for CommandNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CommandNames({})", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_called_otherwise_is_renamed() {
        let plan = [("config", "c9"), ("PSYNC", "secret")];
        let plan = plan.map(|(k, h)| (k.to_owned(), h.to_owned())).into();
        let names = CommandNames::new(&plan);
        let of = |text: &'static str| {
            let words: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
            String::from_utf8(names.words(&words).join(&b' ')).unwrap_or_default()
        };
        assert_eq!(of("CONFIG PSYNC"), "c9 PSYNC");
        assert_eq!(of("psync"), "secret");
        assert_eq!(of("GET CONFIG"), "GET CONFIG");
        assert_eq!(
            of("ACL DRYRUN PSYNC PSYNC PSYNC"),
            "ACL DRYRUN PSYNC secret PSYNC"
        );
        assert_eq!(names.shown("CONFIG GET"), "CONFIG GET (here: c9)");
        assert_eq!(names.shown("SCAN"), "SCAN");
    }
}
