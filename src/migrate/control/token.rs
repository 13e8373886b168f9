//! The token that a cutover and the workers on other machines share: where it comes from, and how each end proves to the
//! other that it knows it, without sending it.
//!
//! Both send 32 random bytes; each proof is an HMAC-SHA256 over both, under the token, and so are the keys that seal
//! every line that follows. There is no forward secrecy: who learns the token can read what was recorded before.

use super::wire::{Seal, Seals, Wire};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::plan::Redacted;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac::{self, HMAC_SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A shorter token could be found by trying.
const LEAST: usize = 16;
/// More than a greeting takes.
pub const GREETING_BYTES: usize = 1024;
/// How long both ends may take to greet each other.
pub const GREETING: Duration = Duration::from_secs(5);
/// How long whoever has given a wrong proof waits for the answer.
const SLOW: Duration = Duration::from_millis(500);

/// Where the token comes from; it is read anew for each connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenFrom {
    Env(String),
    File(PathBuf),
}

impl TokenFrom {
    /// Errors: `Auth` where there is none, or a short one.
    pub fn read(&self) -> Result<Token> {
        let (text, place) = match self {
            TokenFrom::Env(name) => {
                let text = std::env::var(name).map_err(|_| {
                    Error::new(
                        ErrorKind::Auth,
                        format!("the environment variable {name}, which holds the control token, is not set"),
                    )
                    .hint(format!("set {name} to the token, the same for all workers and the cutover"))
                })?;
                (text, format!("the environment variable {name}"))
            }
            TokenFrom::File(path) => {
                let text = std::fs::read_to_string(path).context(ErrorKind::Auth, || {
                    format!("read the control token from {}", path.display())
                })?;
                (text, path.display().to_string())
            }
        };
        let text = text.trim_end_matches(['\r', '\n']);
        if text.len() < LEAST {
            return Err(Error::new(
                ErrorKind::Auth,
                format!("the control token in {place} is shorter than {LEAST} bytes"),
            )
            .hint("make one that cannot be guessed: openssl rand -hex 32"));
        }
        Ok(Token(Redacted::new(text.to_owned())))
    }
}

/// The token itself.
#[derive(Clone)]
pub struct Token(Redacted);

/// What a worker sends first.
#[derive(Serialize, Deserialize)]
struct Hello {
    keyferry: u32,
    nonce: String,
}

/// What is answered to it.
#[derive(Serialize, Deserialize)]
struct Reply {
    nonce: String,
    proof: String,
}

/// What the worker says to that.
#[derive(Serialize, Deserialize)]
struct Welcome {
    /// Absent when the proof was wrong.
    proof: Option<String>,
}

/// The form of this greeting.
const FORM: u32 = 1;

/// Why two ends do not come together.
#[derive(Debug)]
pub enum Stranger {
    /// It does not speak as a worker does.
    NoWorker(String),
    /// The worker does not know this token.
    Refused,
    /// It has not proven that it knows the token.
    Unproven,
    Gone(io::Error),
}

impl From<io::Error> for Stranger {
    fn from(e: io::Error) -> Stranger {
        match e.kind() {
            io::ErrorKind::InvalidData => Stranger::NoWorker(e.to_string()),
            _ => Stranger::Gone(e),
        }
    }
}

/// The random bytes of both ends, the worker's first.
struct Nonces([u8; 64]);

impl Nonces {
    fn of(worker: &[u8], cutover: &[u8]) -> Option<Nonces> {
        let mut both = [0; 64];
        let whole = worker.len() == 32 && cutover.len() == 32;
        both.iter_mut()
            .zip(worker.iter().chain(cutover))
            .for_each(|(to, from)| *to = *from);
        whole.then_some(Nonces(both))
    }
}

impl Token {
    fn key(&self) -> hmac::Key {
        hmac::Key::new(HMAC_SHA256, self.0.reveal().as_bytes())
    }

    fn sign(&self, what: &str, nonces: &Nonces) -> hmac::Tag {
        hmac::sign(&self.key(), &message(what, nonces))
    }

    /// In a time that does not depend on where they differ.
    fn verify(&self, what: &str, nonces: &Nonces, proof: &str) -> bool {
        let proof = BASE64.decode(proof).unwrap_or_default();
        hmac::verify(&self.key(), &message(what, nonces), &proof).is_ok()
    }

    fn seal(&self, what: &str, nonces: &Nonces) -> io::Result<Seal> {
        Seal::new(self.sign(what, nonces).as_ref())
            .ok_or_else(|| io::Error::other("a key of the wrong length"))
    }

    /// The worker's end: whether whoever has come knows the token.
    pub async fn greet(&self, wire: &mut Wire) -> std::result::Result<Seals, Stranger> {
        let ours = nonce()?;
        let hello = Hello {
            keyferry: FORM,
            nonce: BASE64.encode(ours),
        };
        send(wire, &hello).await?;
        let reply: Reply = hear(wire).await?;
        let theirs = BASE64.decode(&reply.nonce).unwrap_or_default();
        let known = Nonces::of(&ours, &theirs)
            .filter(|nonces| self.verify("cutover proves", nonces, &reply.proof));
        let Some(nonces) = known else {
            tokio::time::sleep(SLOW).await;
            send(wire, &Welcome { proof: None }).await?;
            return Err(Stranger::Unproven);
        };
        let proof = BASE64.encode(self.sign("worker proves", &nonces));
        send(wire, &Welcome { proof: Some(proof) }).await?;
        Ok(Seals {
            ours: self.seal("worker seals", &nonces)?,
            theirs: self.seal("cutover seals", &nonces)?,
        })
    }

    /// The cutover's end.
    pub async fn knock(&self, wire: &mut Wire) -> std::result::Result<Seals, Stranger> {
        let hello: Hello = hear(wire).await?;
        if hello.keyferry != FORM {
            return Err(Stranger::NoWorker(
                "it is of another version of keyferry".into(),
            ));
        }
        let theirs = BASE64.decode(&hello.nonce).unwrap_or_default();
        let ours = nonce()?;
        let nonces = Nonces::of(&theirs, &ours)
            .ok_or_else(|| Stranger::NoWorker("it greets in another way".into()))?;
        let reply = Reply {
            nonce: BASE64.encode(ours),
            proof: BASE64.encode(self.sign("cutover proves", &nonces)),
        };
        send(wire, &reply).await?;
        let welcome: Welcome = hear(wire).await?;
        match welcome.proof {
            None => return Err(Stranger::Refused),
            Some(proof) if !self.verify("worker proves", &nonces, &proof) => {
                return Err(Stranger::Unproven);
            }
            Some(_) => {}
        }
        Ok(Seals {
            ours: self.seal("cutover seals", &nonces)?,
            theirs: self.seal("worker seals", &nonces)?,
        })
    }
}

fn message(what: &str, nonces: &Nonces) -> Vec<u8> {
    let mut text = format!("keyferry control {FORM}, {what}:").into_bytes();
    text.extend_from_slice(&nonces.0);
    text
}

fn nonce() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the system has no random numbers"))?;
    Ok(bytes)
}

/// A number that nobody else has.
pub fn number() -> Result<u64> {
    let mut bytes = [0; 8];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::new(ErrorKind::Disk, "the system has no random numbers"))?;
    Ok(u64::from_le_bytes(bytes))
}

async fn send(wire: &mut Wire, what: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(what).map_err(io::Error::other)?;
    wire.send(&text).await
}

async fn hear<T: for<'a> Deserialize<'a>>(wire: &mut Wire) -> std::result::Result<T, Stranger> {
    let line = wire.line().await?;
    let line = line.ok_or_else(|| Stranger::Gone(io::ErrorKind::UnexpectedEof.into()))?;
    serde_json::from_slice(&line)
        .map_err(|_| Stranger::NoWorker("what it says is not understood".into()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn wires() -> (Wire, Wire) {
        let (a, b) = tokio::io::duplex(1 << 16);
        let ends = [a, b].map(|end| {
            let (read, write) = tokio::io::split(end);
            Wire::new(read, write, GREETING_BYTES)
        });
        ends.into()
    }

    fn token(text: &str) -> Token {
        Token(Redacted::new(text.into()))
    }

    #[tokio::test]
    async fn both_ends_know_the_token_or_nothing_is_said() {
        let (mut worker, mut cutover) = wires();
        let (a, b) = (token("the same token"), token("the same token"));
        let (greeted, knocked) = tokio::join!(a.greet(&mut worker), b.knock(&mut cutover));
        worker.seal(greeted.unwrap(), 100);
        cutover.seal(knocked.unwrap(), 100);
        cutover.send(b"there").await.unwrap();
        assert_eq!(worker.line().await.unwrap().unwrap(), b"there");
        worker.send(b"and back").await.unwrap();
        assert_eq!(cutover.line().await.unwrap().unwrap(), b"and back");

        let (mut worker, mut cutover) = wires();
        let other = token("another token");
        let (greeted, knocked) = tokio::join!(a.greet(&mut worker), other.knock(&mut cutover));
        assert!(matches!(greeted, Err(Stranger::Unproven)));
        assert!(matches!(knocked, Err(Stranger::Refused)));
    }

    /// Whoever only repeats what it hears proves nothing.
    #[tokio::test]
    async fn an_echo_is_no_worker() {
        let (mut worker, mut cutover) = wires();
        let echo = async {
            let hello = Hello {
                keyferry: FORM,
                nonce: BASE64.encode([7; 32]),
            };
            send(&mut worker, &hello).await.unwrap();
            let reply: Reply = hear(&mut worker).await.unwrap();
            let proof = Some(reply.proof);
            send(&mut worker, &Welcome { proof }).await.unwrap();
        };
        let cutover_token = token("a token");
        let ((), knocked) = tokio::join!(echo, cutover_token.knock(&mut cutover));
        assert!(matches!(knocked, Err(Stranger::Unproven)));
    }

    #[test]
    fn a_short_token_and_none_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let from = TokenFrom::File(file.path().into());
        std::fs::write(file.path(), "0123456789abcde\n").unwrap();
        let e = from.read().err().unwrap();
        assert!(e.to_string().contains("shorter than 16 bytes"), "{e}");
        assert!(e.remedy().contains("openssl rand"));
        std::fs::write(file.path(), "0123456789abcdef\n").unwrap();
        assert_eq!(from.read().unwrap().0.reveal(), "0123456789abcdef");
        let none = TokenFrom::Env("KEYFERRY_TEST_NO_SUCH_TOKEN".into()).read();
        assert!(none.err().unwrap().to_string().contains("is not set"));
    }
}
