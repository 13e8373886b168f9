//! Starts real servers of a named version on free ports of 127.0.0.1, and always stops them.
//!
//! A server dies with its `Server` value, also when the test panics; and with the test's thread,
//! also when the whole test process is killed (`setpriv --pdeathsig`, where there is one).

use super::tls::Tls;
use super::versions::program;
pub use super::versions::{SERVERS, find, servers_dir};
use super::wire::Client;
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How to start a server.
#[derive(Clone, Default)]
pub struct Setup {
    name: String,
    lines: Vec<String>,
    tls: Option<Tls>,
    environment: Vec<(String, String)>,
}

impl Setup {
    pub fn new(name: &str) -> Setup {
        Setup {
            name: name.to_owned(),
            ..Setup::default()
        }
    }

    /// One line of the configuration file; it comes after the usual ones.
    pub fn line(mut self, line: &str) -> Setup {
        self.lines.push(line.to_owned());
        self
    }

    pub fn lines(self, lines: &[&str]) -> Setup {
        lines.iter().fold(self, |setup, line| setup.line(line))
    }

    /// Sends the snapshot to a replica from disk or straight from memory.
    pub fn diskless(self, yes: bool) -> Setup {
        self.line(&format!(
            "repl-diskless-sync {}",
            if yes { "yes" } else { "no" }
        ))
    }

    /// A replica of `master`.
    pub fn replica_of(self, master: &Server) -> Setup {
        let line = format!("replicaof 127.0.0.1 {}", master.port());
        self.line(&line)
    }

    /// Serves TLS on a second port, `Server::tls_port`.
    pub fn tls(mut self, tls: &Tls) -> Setup {
        self.tls = Some(tls.clone());
        self
    }

    /// What it finds in its environment.
    pub fn environment(mut self, variables: &[(String, String)]) -> Setup {
        self.environment.extend_from_slice(variables);
        self
    }

    /// A node of a cluster that is still to be formed.
    pub fn cluster(self) -> Setup {
        self.lines(&[
            "cluster-enabled yes",
            "cluster-node-timeout 15000",
            "cluster-require-full-coverage yes",
        ])
    }

    pub fn start(self) -> Server {
        // Another process may take the port between the look and the start: try again with another.
        let mut last = String::new();
        for _ in 0..5 {
            match Server::start_once(self.clone()) {
                Ok(mut server) => match server.await_ping(Duration::from_secs(20)) {
                    Ok(()) => return server,
                    Err(error) => last = format!("{error}\n{}", server.log_tail()),
                },
                Err(error) => last = error.to_string(),
            }
        }
        panic!("{} did not start: {last}", self.name);
    }
}

/// A running server.
pub struct Server {
    setup: Setup,
    port: u16,
    tls_port: u16,
    dir: TempDir,
    child: Child,
}

impl Server {
    /// A plain standalone server.
    pub fn start(name: &str) -> Server {
        Setup::new(name).start()
    }

    fn start_once(setup: Setup) -> io::Result<Server> {
        let dir = tempfile::Builder::new()
            .prefix("keyferry-server-")
            .tempdir()?;
        let (port, tls_port) = (free_port()?, free_port()?);
        let child = spawn(&setup, dir.path(), port, tls_port)?;
        Ok(Server {
            setup,
            port,
            tls_port,
            dir,
            child,
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn tls_port(&self) -> u16 {
        self.tls_port
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn name(&self) -> &str {
        &self.setup.name
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it follows its master, and has what that has written until now.
    #[track_caller]
    pub fn wait_in_step(&self) {
        let told = |client: &mut Client, field: &str| client.info("replication", field).ok();
        super::wait_until("the replica is in step", Duration::from_secs(30), || {
            let mut own = self.client();
            if told(&mut own, "master_link_status").as_deref() != Some("up") {
                return false;
            }
            // With the link just up, what was written since the snapshot may still be held back.
            let port = told(&mut own, "master_port").unwrap_or_default();
            let mut master = match Client::connect(&format!("127.0.0.1:{port}")) {
                Ok(master) => master,
                Err(_) => return false,
            };
            let number = |text: Option<String>| text?.parse::<i64>().ok();
            match number(told(&mut master, "master_repl_offset")) {
                Some(written) => number(told(&mut own, "slave_repl_offset")) >= Some(written),
                // It wants a password.
                None => true,
            }
        });
    }

    #[track_caller]
    pub fn client(&self) -> Client {
        match Client::connect(&self.address()) {
            Ok(client) => client,
            Err(error) => panic!(
                "{} at {} does not answer: {error}\n{}",
                self.name(),
                self.address(),
                self.log_tail()
            ),
        }
    }

    /// Runs one command of plain words on a fresh connection; an error reply fails the test.
    #[track_caller]
    pub fn run(&self, words: &str) -> super::wire::Value {
        self.client()
            .words(words)
            .unwrap_or_else(|error| panic!("{words}: {error}"))
    }

    /// One number out of INFO.
    #[track_caller]
    pub fn info(&self, section: &str, field: &str) -> i64 {
        let text = self
            .client()
            .info(section, field)
            .unwrap_or_else(|error| panic!("{error}"));
        text.parse()
            .unwrap_or_else(|_| panic!("INFO {section} {field} is {text}"))
    }

    /// Kills it; `restart` brings it back on the same port with what it had saved.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn restart(&mut self) {
        for attempt in 0.. {
            self.kill();
            self.child = spawn(&self.setup, self.dir.path(), self.port, self.tls_port)
                .expect("the server starts again");
            match self.await_ping(Duration::from_secs(20)) {
                Ok(()) => return,
                Err(error) if attempt < 6 => println!("{error}\n{}", self.log_tail()),
                Err(error) => panic!("the server answers again: {error}\n{}", self.log_tail()),
            }
            self.mend_nodes();
        }
    }

    /// Valkey 8.1 now and then saves another shard id for a replica than for its master, and later calls that file
    /// corrupted ("corrupted cluster config file").
    fn mend_nodes(&self) {
        let path = self.dir.path().join("nodes.conf");
        let Ok(text) = std::fs::read_to_string(&path) else {
            return;
        };
        let shard = |line: &str| {
            let id = line.split_once("shard-id=")?.1;
            Some(id[..id.find([' ', ','])?].to_owned())
        };
        let ids: HashMap<&str, String> = (text.lines())
            .filter_map(|line| Some((line.split(' ').next()?, shard(line)?)))
            .collect();
        let lines = text.lines().map(|line| {
            let master = line.split(' ').nth(3).and_then(|id| ids.get(id));
            match (shard(line), master) {
                (Some(own), Some(right)) => line.replace(&own, right),
                _ => line.to_owned(),
            }
        });
        let mended: Vec<String> = lines.collect();
        std::fs::write(&path, mended.join("\n") + "\n").expect("nodes.conf is written");
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn await_ping(&mut self, limit: Duration) -> io::Result<()> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("it ended: {status}")));
            }
            let answer = Client::connect(&self.address())
                .and_then(|mut c| c.run(&super::wire::Command::new("PING")));
            // NOAUTH and the like are answers too.
            if answer.is_ok_and(|a| !a.text().starts_with("LOADING")) {
                return Ok(());
            }
            if started.elapsed() > limit {
                return Err(io::Error::other("it does not answer"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(setup: &Setup, dir: &Path, port: u16, tls_port: u16) -> io::Result<Child> {
    let program = program(&setup.name)
        .ok_or_else(|| io::Error::other(format!("there is no {}", setup.name)))?;
    let mut config = format!(
        "port {port}\nbind 127.0.0.1\nprotected-mode no\ndaemonize no\ndir \"{}\"\nlogfile \"{}\"\n\
         save \"\"\nappendonly no\nrepl-diskless-sync-delay 0\nrepl-backlog-size 64mb\n",
        dir.display(),
        dir.join("log").display()
    );
    if let Some(tls) = &setup.tls {
        let (cert, key, ca) = (tls.cert(), tls.key(), tls.ca());
        config.push_str(&format!(
            "tls-port {tls_port}\ntls-cert-file \"{}\"\ntls-key-file \"{}\"\ntls-ca-cert-file \"{}\"\ntls-auth-clients optional\n",
            cert.display(),
            key.display(),
            ca.display()
        ));
    }
    for line in &setup.lines {
        config.push_str(line);
        config.push('\n');
    }
    let file = dir.join("server.conf");
    std::fs::write(&file, config)?;
    let mut command = mortal(&program);
    command
        .arg(&file)
        .envs(setup.environment.iter().map(|(k, v)| (k, v)))
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// A command that dies with the thread that starts it, where `setpriv` is there.
pub fn mortal(program: &Path) -> Command {
    if !has_setpriv() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

fn has_setpriv() -> bool {
    static HAS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *HAS.get_or_init(|| {
        let probe = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "true"])
            .stderr(Stdio::null())
            .status();
        probe.is_ok_and(|s| s.success())
    })
}

/// A port that is free now, and whose cluster bus port (10,000 above) is free too; below the range of outgoing ports.
pub fn free_port() -> io::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() as u16).wrapping_mul(61) % 10_000;
    for _ in 0..10_000 {
        let port = 12_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000) % 10_000;
        let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 10_000) {
            return Ok(port);
        }
    }
    Err(io::Error::other("no free port"))
}
