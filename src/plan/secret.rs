//! What no message shows.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where a password comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    Env(String),
    File(PathBuf),
    Command {
        argv: Vec<String>,
        /// Run it again before this time is over.
        refresh: Option<Duration>,
        /// Variables that hold other passwords of the plan, which it does not inherit.
        without: Vec<String>,
    },
    /// A token of Entra ID.
    Entra(Identity),
    Plain(Redacted),
}

/// Who asks Entra ID for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The managed identity of this machine.
    System,
    /// The managed identity with this client id.
    Client(String),
    /// An application, whose credentials lie in variables AZURE_….
    Environment,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::System => f.write_str("the managed identity of this machine"),
            Identity::Client(id) => write!(f, "the managed identity with the client id {id}"),
            Identity::Environment => f.write_str("the application that AZURE_CLIENT_ID names"),
        }
    }
}

impl Secret {
    /// The variable that holds it.
    pub fn variable(&self) -> Option<&str> {
        match self {
            Secret::Env(name) => Some(name),
            Secret::Entra(Identity::Environment) => Some("AZURE_CLIENT_SECRET"),
            _ => None,
        }
    }
}

/// Arguments of a command may be secrets too.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Secret::Env(name) => write!(f, "Env({name})"),
            Secret::File(path) => write!(f, "File({})", path.display()),
            Secret::Command { argv, refresh, .. } => {
                write!(
                    f,
                    "Command({} …, {refresh:?})",
                    argv.first().map_or("", String::as_str)
                )
            }
            Secret::Entra(identity) => write!(f, "Entra({identity:?})"),
            Secret::Plain(_) => f.write_str("Plain(***)"),
        }
    }
}

/// A value that no message shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Redacted(String);

impl Redacted {
    pub fn new(value: String) -> Redacted {
        Redacted(value)
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
