//! Error replies of servers: what kind of error each is, whether it passes, where it leads.

use crate::error::{Error, ErrorKind};

/// What an error reply means for us; the server's own words are kept (they name commands and users, not data).
pub fn refusal(command: &str, text: &str) -> Error {
    let word = text.split(' ').next().unwrap_or_default();
    let kind = match word {
        _ if is_elsewhere(text) => ErrorKind::Moved,
        _ if passes(text) => ErrorKind::NotReady,
        "NOAUTH" | "WRONGPASS" => ErrorKind::Auth,
        "OOM" => ErrorKind::OutOfMemory,
        "NOPERM" => ErrorKind::Refused,
        _ if text.contains("invalid password") => ErrorKind::Auth,
        _ => ErrorKind::Refused,
    };
    let text = without_arguments(text);
    Error::new(kind, format!("the server answered {command} with: {text}"))
}

/// Whether an error reply tells of the server's state, not of what was asked: the same may be asked again later.
pub fn passes(text: &str) -> bool {
    let word = text.split(' ').next().unwrap_or_default();
    is_elsewhere(text)
        || matches!(
            word,
            "LOADING"
                | "MASTERDOWN"
                | "BUSY"
                | "CLUSTERDOWN"
                | "READONLY"
                | "NOREPLICAS"
                | "NOMASTERLINK"
                | "UNBLOCKED"
                | "MISCONF"
        )
}

/// Values never appear in error lines, except in the "with args beginning with" of an unknown command.
pub(super) fn without_arguments(text: &str) -> &str {
    text.split(", with args").next().unwrap_or(text)
}

/// Whether an error reply says that a key's slot is, or is on its way to be, another master's.
pub fn is_elsewhere(text: &str) -> bool {
    text.starts_with("MOVED ") || is_on_its_way(text)
}

/// Where an error reply MOVED or ASK leads; one that names no host means the one that was asked.
pub fn leads_to(text: &str, host: &str) -> String {
    let to = text.split(' ').nth(2).unwrap_or_default();
    match to.starts_with(':') {
        true => format!("{host}{to}"),
        false => to.to_owned(),
    }
}

/// Whether an error reply says that a key has left for another master before its slot has.
pub fn is_on_its_way(text: &str) -> bool {
    ["ASK ", "TRYAGAIN"].iter().any(|w| text.starts_with(w))
}
