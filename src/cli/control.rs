//! The flags by which a cutover and workers on other machines find and trust each other.

use crate::cutover::Remote;
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::control::port::Listen;
use crate::migrate::control::token::TokenFrom;
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where the shared token comes from; never from the command line itself.
#[derive(Args)]
struct TokenArgs {
    /// The environment variable that holds the control token, the same for the cutover and all workers
    #[arg(long, value_name = "NAME", conflicts_with = "control_token_file")]
    control_token_env: Option<String>,
    /// The file that holds the control token
    #[arg(long, value_name = "PATH")]
    control_token_file: Option<PathBuf>,
}

impl TokenArgs {
    fn from(&self, flag: &str) -> Result<TokenFrom> {
        match (&self.control_token_env, &self.control_token_file) {
            (Some(name), _) => Ok(TokenFrom::Env(name.clone())),
            (None, Some(path)) => Ok(TokenFrom::File(path.clone())),
            (None, None) => Err(Error::new(
                ErrorKind::Usage,
                format!("{flag} needs a token: whoever reaches a control port can stop the migration or move its clients"),
            )
            .hint("name where the token is: --control-token-env NAME or --control-token-file PATH; `openssl rand -hex 32` makes one")),
        }
    }

    /// One that nobody uses is a mistake.
    fn unused(&self, flag: &str) -> Result<()> {
        match self.control_token_env.is_some() || self.control_token_file.is_some() {
            false => Ok(()),
            true => Err(Error::new(
                ErrorKind::Usage,
                format!("a control token without {flag} is of no use"),
            )
            .hint(format!("give {flag} as well, or leave the token out"))),
        }
    }
}

/// A worker's side.
#[derive(Args)]
pub struct ListenArgs {
    /// Let `keyferry cutover --worker-at` on another machine ask this worker at ADDR, as 0.0.0.0:7411; needs a token
    #[arg(long, value_name = "ADDR")]
    control_listen: Option<SocketAddr>,
    #[command(flatten)]
    token: TokenArgs,
}

impl ListenArgs {
    /// `spread`: this process moves a share of the source's masters.
    pub fn listen(&self, spread: bool) -> Result<Option<Listen>> {
        let Some(address) = self.control_listen else {
            return self.token.unused("--control-listen").map(|()| None);
        };
        if !spread {
            return Err(Error::new(
                ErrorKind::Usage,
                "--control-listen is for workers: a migration by one process is cut over from its own work folder",
            )
            .hint("leave it out, or give the share of this worker (--worker, --workers or --shards)"));
        }
        let token = self.token.from("--control-listen")?;
        Ok(Some(Listen { address, token }))
    }
}

/// A cutover's side.
#[derive(Args)]
pub struct RemoteArgs {
    /// A worker on another machine, by its --control-listen; a name with several addresses means all of them; may be
    /// given more than once. Workers in this work folder are found by themselves
    #[arg(long, value_name = "HOST:PORT")]
    worker_at: Vec<String>,
    #[command(flatten)]
    token: TokenArgs,
}

impl RemoteArgs {
    pub fn remote(&self) -> Result<Option<Remote>> {
        if self.worker_at.is_empty() {
            return self.token.unused("--worker-at").map(|()| None);
        }
        let token = self.token.from("--worker-at")?;
        token.read()?;
        Ok(Some(Remote {
            addresses: self.worker_at.clone(),
            token,
        }))
    }
}
