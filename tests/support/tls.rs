//! A certificate authority and a certificate for 127.0.0.1, made anew for each test by the openssl program.

use super::clock::skewed;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use tempfile::TempDir;

const LOCAL: &str = "subjectAltName=DNS:localhost,IP:127.0.0.1\n";

/// The files of one authority; they go when the last user goes.
#[derive(Clone)]
pub struct Tls {
    dir: Arc<TempDir>,
}

impl Tls {
    /// `None` where there is no openssl program.
    pub fn make() -> Option<Tls> {
        Tls::made(0, LOCAL)
    }

    /// Whose certificate has these extensions, a line each; without any it is one of X.509 version 1.
    pub fn with_extensions(lines: &str) -> Option<Tls> {
        Tls::made(0, lines)
    }

    /// Certificates of 30 days that were made so many days ago; `None` also where there is no C compiler.
    pub fn of_days_ago(days: i64) -> Option<Tls> {
        Tls::made(-days * 86_400, LOCAL)
    }

    fn made(skew_s: i64, extensions: &str) -> Option<Tls> {
        let clock = match skew_s {
            0 => Vec::new(),
            seconds => skewed(seconds)?.to_vec(),
        };
        let openssl = |at: &Path, args: &[&str]| openssl(at, args, &clock);
        let dir = tempfile::Builder::new()
            .prefix("keyferry-tls-")
            .tempdir()
            .ok()?;
        let at = dir.path();
        std::fs::write(at.join("ext"), extensions).ok()?;
        let key = ["-newkey", "rsa:2048", "-nodes", "-days", "30"];
        let authority = [
            "req",
            "-x509",
            "-subj",
            "/CN=keyferry test CA",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
        ];
        openssl(at, &[&authority[..], &key[..]].concat())?;
        let request = [
            "req",
            "-subj",
            "/CN=localhost",
            "-keyout",
            "server.key",
            "-out",
            "server.csr",
        ];
        openssl(at, &[&request[..], &key[..3]].concat())?;
        let sign = [
            "x509",
            "-req",
            "-in",
            "server.csr",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "30",
            "-out",
            "server.crt",
        ];
        let with: &[&str] = match extensions {
            "" => &[],
            _ => &["-extfile", "ext"],
        };
        openssl(at, &[&sign[..], with].concat())?;
        Some(Tls { dir: Arc::new(dir) })
    }

    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    pub fn cert(&self) -> PathBuf {
        self.dir.path().join("server.crt")
    }

    pub fn key(&self) -> PathBuf {
        self.dir.path().join("server.key")
    }
}

fn openssl(dir: &Path, args: &[&str], clock: &[(String, String)]) -> Option<()> {
    let quiet = Command::new("openssl")
        .args(args)
        .current_dir(dir)
        .envs(clock.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    quiet.ok()?.success().then_some(())
}
