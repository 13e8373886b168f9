//! Where the migration of a plan is asked: one process, workers in one work folder, or workers on other machines.

use crate::error::{Error, ErrorKind, Result};
use crate::migrate::control::token::TokenFrom;
use crate::store::workers;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Workers on other machines, as they were named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// `host:port` each; a name with several addresses means all of them.
    pub addresses: Vec<String>,
    pub token: TokenFrom,
}

/// Where a migration is asked. Holds no secret, so that it may be handed to another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Where {
    /// One process, by the folder of its state.
    Folder(PathBuf),
    /// Workers of this machine: the plan's folder, and that of each worker's state.
    Workers { home: PathBuf, dirs: Vec<PathBuf> },
    /// Workers on other machines; the plan's folder here holds copies of their states.
    Tcp { home: PathBuf, remote: Remote },
}

impl Where {
    /// Finds it by what lies in the plan's folder, and by what was named.
    ///
    /// Errors: `Usage` when both are there, or workers on other machines are known and not named.
    pub fn find(home: &Path, remote: Option<&Remote>) -> Result<Where> {
        let (copies, here): (Vec<_>, Vec<_>) = workers(home)?.into_iter().partition(|w| w.remote);
        match (remote, here.first(), copies.first()) {
            (Some(_), Some(worker), _) => Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "workers have their states in this work folder, one of them in {}: they are found without --worker-at",
                    worker.dir.display()
                ),
            )
            .hint("leave --worker-at out, or name another --work-dir for a cutover of workers elsewhere")),
            (Some(remote), None, _) => Ok(Where::Tcp {
                home: home.to_owned(),
                remote: remote.clone(),
            }),
            (None, Some(_), _) => Ok(Where::Workers {
                home: home.to_owned(),
                dirs: here.into_iter().map(|w| w.dir).collect(),
            }),
            (None, None, Some(_)) => Err(Error::new(
                ErrorKind::Usage,
                "the workers of this migration are on other machines, as an earlier cutover has found",
            )
            .hint("name them with --worker-at HOST:PORT, and give --control-token-env or --control-token-file")),
            (None, None, None) => Ok(Where::Folder(home.to_owned())),
        }
    }

    /// Whether the migration is spread over workers.
    pub fn is_spread(&self) -> bool {
        !matches!(self, Where::Folder(_))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::{Claim, Store, remote_dir, worker_dir};

    fn worker(dir: &Path) {
        let claim = Claim {
            share: "--worker 0/2".into(),
            shards: vec![0],
            of: 2,
            slots: "0-8191".into(),
        };
        Store::open(dir).unwrap().put_claim(Some(&claim)).unwrap();
    }

    #[test]
    fn a_migration_is_found_where_its_state_is() {
        let home = tempfile::tempdir().unwrap();
        let remote = Remote {
            addresses: vec!["w:1".into()],
            token: TokenFrom::Env("T".into()),
        };
        let find = |remote| Where::find(home.path(), remote);
        assert!(!find(None).unwrap().is_spread());
        assert!(matches!(find(Some(&remote)).unwrap(), Where::Tcp { .. }));
        worker(&remote_dir(home.path()).join("a"));
        let e = find(None).unwrap_err();
        assert!(e.remedy().contains("--worker-at"), "{e}");
        assert!(matches!(find(Some(&remote)).unwrap(), Where::Tcp { .. }));
        let own = worker_dir(home.path(), "b");
        worker(&own);
        let there = find(None).unwrap();
        assert!(matches!(&there, Where::Workers { dirs, .. } if *dirs == [own]));
        assert_eq!(find(Some(&remote)).unwrap_err().exit_code(), 2);
        // It can be handed on.
        let text = serde_json::to_string(&there).unwrap();
        assert_eq!(serde_json::from_str::<Where>(&text).unwrap(), there);
    }
}
