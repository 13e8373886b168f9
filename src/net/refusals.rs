//! Error replies of servers: what kind of error each is, whether it passes, where it leads, and what of it may be shown.
//!
//! Invariant: the text of an error reply gets into a message through [`said`] only, as servers repeat arguments in it.

use super::server_words::{is_known, is_quotable};
use crate::error::{Error, ErrorKind};
use std::net::SocketAddr;

/// As much of an error reply as is looked at.
const LONGEST: usize = 600;

/// What an error reply means for us, with the server's own words.
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
    let said = said(text);
    Error::new(kind, format!("the server answered {command} with: {said}"))
}

/// What of an error reply may be shown: the words that servers use of themselves. Everything else may be a value, or
/// what a script has made up, and is left out: `…`.
pub fn said(text: &str) -> String {
    let end = (0..=LONGEST.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at));
    let mut rest = text.get(..end.unwrap_or(0)).unwrap_or_default();
    if let Some(text) = leads(rest) {
        return text;
    }
    // The arguments of an unknown command.
    rest = rest.split(", with args").next().unwrap_or(rest);
    let mut said: Vec<String> = Vec::new();
    while let Some((before, quote, after)) = quoted(rest) {
        said.extend(before.split_whitespace().map(word));
        let (inside, behind) = after.split_once(quote).unwrap_or((after, ""));
        let inside = if is_quotable(inside) { inside } else { "…" };
        // What follows without a space belongs to it: a full stop, or the rest of a value that holds a quote.
        let close = behind.find(char::is_whitespace).unwrap_or(behind.len());
        let (close, behind) = behind.split_at(close);
        let close: String = close
            .chars()
            .filter(|c| ".,:;)".contains(*c))
            .take(1)
            .collect();
        said.push(format!("'{inside}'{close}"));
        rest = behind;
    }
    said.extend(rest.split_whitespace().map(word));
    said.dedup_by(|next, before| next == "…" && before == "…");
    said.join(" ")
}

/// A redirection names a slot and a server, whose name may be anything.
fn leads(text: &str) -> Option<String> {
    let mut words = text.split(' ');
    let code = words.next().filter(|w| matches!(*w, "MOVED" | "ASK"))?;
    let slot = words.next()?.parse::<u16>().ok()?;
    let to = words.next()?.parse::<SocketAddr>();
    Some(to.map_or(format!("{code} {slot} …"), |to| {
        format!("{code} {slot} {to}")
    }))
}

/// The first quote that opens a word: what comes before it, which one it is, and what comes behind.
fn quoted(text: &str) -> Option<(&str, char, &str)> {
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        if "'`\"".contains(c) && (before.is_whitespace() || "(:=".contains(before)) {
            return Some((text.get(..at)?, c, text.get(at + 1..)?));
        }
        before = c;
    }
    None
}

/// A word as it may be shown.
fn word(text: &str) -> String {
    let bare = text.trim_matches(|c: char| c.is_ascii_punctuation());
    let is_sign = bare.is_empty() && text.len() <= 2;
    match is_sign || is_known(bare) {
        true => text.to_owned(),
        false => "…".to_owned(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_of_itself_is_shown() {
        for text in [
            "LOADING Redis is loading the dataset in memory",
            "NOPERM this user has no permissions to run the 'config|set' command",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "ERR wrong number of arguments for 'psync' command",
            "READONLY You can't write against a read only replica.",
            "WRONGPASS invalid username-password pair or user is disabled.",
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "CROSSSLOT Keys in request don't hash to the same slot",
            "ERR Unknown subcommand or wrong number of arguments for 'SETUSER'. Try ACL HELP.",
            "MOVED 3999 127.0.0.1:6381",
            "ERR DUMP payload version or checksum are wrong",
            "ERR Bad data format",
            "ERR invalid expire time in 'set' command",
            "EXECABORT Transaction discarded because of previous errors.",
            "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
            "NOAUTH Authentication required.",
        ] {
            let wanted = text.replace("'SETUSER'", "'…'");
            assert_eq!(said(text), wanted);
        }
    }

    #[test]
    fn what_may_be_a_value_is_left_out() {
        for (text, wanted) in [
            (
                "ERR unknown command 'HSETEX', with args beginning with: 'h' 'PX' 'get' ",
                "ERR unknown command 'HSETEX'",
            ),
            (
                "ERR unknown command `SECRET`, with args beginning with: ",
                "ERR unknown command '…'",
            ),
            ("SECRET", "…"),
            (
                "ERR value 4111111111111111 is out of range",
                "ERR value … is out of range",
            ),
            (
                "ERR Error in ACL SETUSER modifier '>SECRET': Syntax error",
                "ERR Error in ACL … modifier '…': Syntax error",
            ),
            (
                "ERR the key 'it's SECRET' is not valid",
                "ERR the key '…' … is not valid",
            ),
            ("ERR no such key 'password", "ERR no such key '…'"),
            ("ERR \u{1b}[2J\u{202e} SECRET\u{9b}1m SECRET", "ERR …"),
            ("MOVED 1 secret.example:1", "MOVED 1 …"),
            ("ERR NOPE=SECRET=SECRET", "ERR …"),
            (
                "NOPERM User secret has no permissions to access the 'key' key",
                "NOPERM User … has no permissions to access the '…' key",
            ),
        ] {
            assert_eq!(said(text), wanted, "{text}");
        }
    }
}
