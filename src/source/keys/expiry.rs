//! What a server answers when it is asked for a key's expiry, right behind its value.

use super::unforeseen;
use crate::error::Result;
use crate::net::server::Server;
use crate::net::{is_elsewhere, refusal};
use crate::resp::Reply;
use crate::types::{ExpireAt, unix_ms};

/// What the answer says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Expiry {
    Is(Option<ExpireAt>),
    /// The key is not there any more.
    Gone,
    /// Another node has it.
    Elsewhere,
}

impl Expiry {
    /// The answer of PEXPIRETIME, or of PTTL where there is no such command.
    ///
    /// Errors: when it is refused; a key is never taken for one without an expiry only because that was not told.
    pub(super) fn of(reply: Reply, pexpiretime: bool) -> Result<Expiry> {
        let now = if pexpiretime { 0 } else { unix_ms() };
        let name = || String::from_utf8_lossy(Server::expiry_command(pexpiretime));
        Ok(match reply {
            Reply::Int(n) if n >= 0 => Expiry::Is(Some(ExpireAt(n.saturating_add(now)))),
            Reply::Int(-1) => Expiry::Is(None),
            Reply::Int(-2) => Expiry::Gone,
            Reply::Error(text) if is_elsewhere(&text) => Expiry::Elsewhere,
            Reply::Error(text) => return Err(refusal(&name(), &text)),
            _ => return Err(unforeseen(&name())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn an_answer_that_tells_no_expiry_is_not_taken_for_none() {
        let of = |reply| Expiry::of(reply, true).map_err(|e| e.kind());
        assert_eq!(of(Reply::Int(7)), Ok(Expiry::Is(Some(ExpireAt(7)))));
        assert_eq!(of(Reply::Int(-1)), Ok(Expiry::Is(None)));
        assert_eq!(of(Reply::Int(-2)), Ok(Expiry::Gone));
        let error = |text: &str| of(Reply::Error(text.into()));
        assert_eq!(error("MOVED 1 127.0.0.1:7000"), Ok(Expiry::Elsewhere));
        assert_eq!(error("ASK 1 127.0.0.1:7000"), Ok(Expiry::Elsewhere));
        assert_eq!(error("TRYAGAIN Multiple keys"), Ok(Expiry::Elsewhere));
        assert_eq!(error("NOPERM no"), Err(ErrorKind::Refused));
        assert!(error("LOADING the dataset").is_err());
        assert!(of(Reply::Nil).is_err());
        let soon = Expiry::of(Reply::Int(60_000), false);
        let Ok(Expiry::Is(Some(at))) = soon else {
            panic!("an expiry");
        };
        assert!(at.0 > unix_ms());
    }
}
