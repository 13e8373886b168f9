//! The one error type, and the one table of what each kind means for the exit code, a retry and the user.
//!
//! An error reads as a sentence: verb, object, position; the cause stands below it, the remedy after it.
//! Invariant: no message holds a value from the user's data or a secret.

use std::borrow::Cow;
use std::fmt;

/// What went wrong, as far as a decision depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The command line is wrong.
    Usage,
    /// The plan file is wrong.
    Plan,
    /// Bytes that are not what their format says: a snapshot, a payload, a protocol frame.
    Corrupt,
    /// A type, opcode, command or version that this program does not know or the target cannot hold.
    Unsupported,
    /// A file or the disk.
    Disk,
    /// The spool has reached its limit.
    SpoolFull,
    /// No connection, or it was cut.
    Connection,
    /// The server refused the credentials.
    Auth,
    /// TLS could not be agreed upon.
    Tls,
    /// The server answered something the protocol does not foresee.
    Protocol,
    /// A reply takes more memory than may be held of one.
    Oversized,
    /// The server refused a command.
    Refused,
    /// The target has no memory left.
    OutOfMemory,
    /// The server is loading, failing over or otherwise not ready yet.
    NotReady,
    /// A key's slot is, or is on its way to be, another master's.
    Moved,
    /// Another process works on this plan.
    Locked,
    /// The state on disk does not fit the plan or this program.
    State,
    /// The target holds keys and the plan says to fail then.
    TargetNotEmpty,
    /// Ctrl-C or SIGTERM.
    Interrupted,
    /// A mistake in this program.
    Bug,
}

/// Whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The same call may succeed later: back off and try again.
    Later,
    /// Trying again changes nothing until a person acts.
    Never,
}

struct Meaning {
    exit: u8,
    retry: Retry,
    hint: &'static str,
}

impl ErrorKind {
    /// The single table: exit code, retry, and the hint that is shown when the error carries none of its own.
    const fn meaning(self) -> Meaning {
        use ErrorKind as K;
        use Retry::{Later, Never};
        let (exit, retry, hint) = match self {
            K::Usage => (2, Never, "see --help"),
            K::Plan => (
                2,
                Never,
                "correct the plan and check it with `keyferry plan validate PLAN`",
            ),
            K::Corrupt => (
                3,
                Never,
                "get the snapshot again; if it comes out the same, report a bug with the position",
            ),
            K::Unsupported => (3, Never, "see docs/rdb.md for what is supported"),
            K::Disk => (
                3,
                Never,
                "check the path, its permissions and the free space, then run the same command again",
            ),
            K::SpoolFull => (
                3,
                Never,
                "free disk space or raise limits.spool_bytes, then run the same command again",
            ),
            K::Connection => (
                3,
                Later,
                "check that the server is up and reachable at the plan's url, then run the same command again",
            ),
            K::Auth => (
                3,
                Never,
                "check username and password in the plan, then run the same command again",
            ),
            K::Tls => (
                3,
                Never,
                "check the url's scheme, tls.ca and tls.server_name in the plan",
            ),
            K::Protocol => (
                3,
                Never,
                "is the url that of a Redis or Valkey server? if so, report a bug",
            ),
            K::Oversized => (
                3,
                Never,
                "is the url that of a Redis or Valkey server? if so, report a bug that names the command",
            ),
            K::Refused => (
                3,
                Never,
                "give the user the right to run this command, or change the plan",
            ),
            K::OutOfMemory => (
                3,
                Never,
                "give the target more memory (maxmemory), then run the same command again",
            ),
            K::NotReady | K::Moved => (
                3,
                Later,
                "wait until the server is ready, then run the same command again",
            ),
            K::Locked => (
                3,
                Never,
                "stop the other process first, or use another --work-dir",
            ),
            K::State => (
                3,
                Never,
                "start over with --fresh, or use another --work-dir",
            ),
            K::TargetNotEmpty => (
                3,
                Never,
                "empty the target, or set on_existing in the plan: \"replace\", \"skip\", or \"reconcile\" when these are keys of this migration whose saved state was lost",
            ),
            K::Interrupted => (130, Never, "run the same command again to go on"),
            K::Bug => (3, Never, "this is a mistake in keyferry; please report it"),
        };
        Meaning { exit, retry, hint }
    }
}

/// An error with its kind, its sentence, an optional remedy and its cause.
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    #[cold]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error {
            inner: Box::new(Inner {
                kind,
                message: message.into(),
                hint: None,
                cause: None,
            }),
        }
    }

    /// The work has ended because a stop was asked for; `message` says which work.
    pub fn stopped(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Interrupted, message)
    }

    /// What the user can do about it; replaces the kind's general hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.inner.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn cause(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        self.inner.cause = Some(cause.into());
        self
    }

    /// Wraps this error in a sentence that says what was being done; kind and hint stay.
    #[must_use]
    pub fn context(self, message: impl Into<String>) -> Error {
        let kind = self.kind();
        let hint = self.inner.hint.clone();
        Error {
            inner: Box::new(Inner {
                kind,
                message: message.into(),
                hint,
                cause: Some(Box::new(self)),
            }),
        }
    }

    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// What the user can do about it.
    pub fn remedy(&self) -> &str {
        self.inner
            .hint
            .as_deref()
            .unwrap_or(self.inner.kind.meaning().hint)
    }

    pub fn retry(&self) -> Retry {
        self.inner.kind.meaning().retry
    }

    pub fn exit_code(&self) -> u8 {
        self.inner.kind.meaning().exit
    }

    /// The sentence with all causes, in one line, as a terminal may show it.
    pub fn chain(&self) -> String {
        let mut text = self.inner.message.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(c) = cause {
            let next = match c.downcast_ref::<Error>() {
                Some(e) => e.inner.message.clone(),
                None => c.to_string(),
            };
            text.push_str(": ");
            text.push_str(&next);
            cause = c.source();
        }
        printable(&text, "").into_owned()
    }
}

/// Whether a character does something to a terminal, or to the order in which others are read, instead of being seen.
pub fn acts(c: char) -> bool {
    let marks = ['\u{61c}', '\u{200e}', '\u{200f}', '\u{feff}'];
    c.is_control()
        || marks.contains(&c)
        || ('\u{2028}'..='\u{202e}').contains(&c)
        || ('\u{2066}'..='\u{2069}').contains(&c)
}

/// A text in which nothing [acts](acts) but the characters of `keep`: the others are written out, as `\u{1b}`.
pub fn printable<'a>(text: &'a str, keep: &str) -> Cow<'a, str> {
    let stays = |c: char| !acts(c) || keep.contains(c);
    if text.chars().all(stays) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match stays(c) {
            true => out.push(c),
            false => out.extend(c.escape_default()),
        }
    }
    Cow::Owned(out)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.inner.kind, self.chain())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner
            .cause
            .as_deref()
            .map(|c| c as &(dyn std::error::Error + 'static))
    }
}

/// Adds "while doing what" to any result.
pub trait Context<T> {
    /// The kind of the error below stays if it is one of ours, else it is `kind`.
    fn context(self, kind: ErrorKind, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for Result<T, Error> {
    fn context(self, _kind: ErrorKind, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| e.context(message()))
    }
}

impl<T> Context<T> for Result<T, std::io::Error> {
    fn context(self, kind: ErrorKind, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::new(kind, message()).cause(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_does_nothing_to_a_terminal() {
        let cause = std::io::Error::other("two\nlines\u{9b}1m");
        let e = Error::new(ErrorKind::Plan, "read \u{1b}[2J\u{202e}päth").cause(cause);
        assert_eq!(
            e.to_string(),
            "read \\u{1b}[2J\\u{202e}päth: two\\nlines\\u{9b}1m"
        );
        assert_eq!(printable("a\tb\n\r", "\n\t"), "a\tb\n\\r");
    }

    #[test]
    fn a_context_keeps_kind_and_hint_and_reads_as_one_line() {
        let e = Error::new(ErrorKind::Auth, "the server refused the password")
            .hint("look at SOURCE_PASSWORD");
        let e = e.context("connect to source 127.0.0.1:7000");
        assert_eq!(
            e.to_string(),
            "connect to source 127.0.0.1:7000: the server refused the password"
        );
        assert_eq!(
            (e.kind(), e.remedy(), e.exit_code()),
            (ErrorKind::Auth, "look at SOURCE_PASSWORD", 3)
        );
    }
}
