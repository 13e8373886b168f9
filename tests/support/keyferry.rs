//! Runs the program under test: plans in a temporary folder, signals, exit codes and JSON answers.

use super::server::mortal;
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A plan file with its own folder and work folder.
pub struct Plan {
    dir: TempDir,
    pub json: Value,
    /// What the program finds in its environment, beside our own.
    pub environment: Vec<(String, String)>,
}

impl Plan {
    /// A plan from one url to another.
    pub fn new(source: &str, target: &str) -> Plan {
        Plan::of(
            json!({ "name": "test", "source": { "url": source, "mode": "replica" }, "target": { "url": target } }),
        )
    }

    pub fn of(json: Value) -> Plan {
        let dir = tempfile::Builder::new()
            .prefix("keyferry-plan-")
            .tempdir()
            .expect("a temporary folder");
        let environment = Vec::new();
        let plan = Plan {
            dir,
            json,
            environment,
        };
        plan.save();
        plan
    }

    /// Changes the plan: `set("/source/password", …)`; missing objects on the way are made.
    pub fn set(&mut self, pointer: &str, value: Value) {
        let mut at = &mut self.json;
        for part in pointer.trim_start_matches('/').split('/') {
            at = &mut at[part];
        }
        *at = value;
        self.save();
    }

    fn save(&self) {
        let text = serde_json::to_vec_pretty(&self.json).expect("a plan is JSON");
        std::fs::write(self.path(), text).expect("the plan is written");
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("plan.json")
    }

    pub fn work_dir(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// Starts `keyferry WORDS… PLAN`, where the words may include flags.
    pub fn start(&self, words: &str) -> Running {
        self.start_with(words, &[])
    }

    /// The same with more in its environment.
    pub fn start_with(&self, words: &str, environment: &[(&str, &str)]) -> Running {
        let mut command = program();
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        command.envs(environment.iter().copied());
        let mut words = words.split_ascii_whitespace();
        command
            .args(words.next())
            .arg(self.path())
            .args(words)
            .arg("--work-dir")
            .arg(self.work_dir());
        command.arg("--no-progress").current_dir(self.dir());
        Running::start(command)
    }

    /// Runs it to its end.
    pub fn run(&self, words: &str) -> Outcome {
        self.start(words).wait(Duration::from_secs(300))
    }

    /// The answer of `status --json`; null while there is none.
    pub fn status(&self) -> Value {
        self.run("status --json").json
    }

    /// Waits until everything the source has written is applied.
    #[track_caller]
    pub fn wait_caught_up(&self, running: &mut Running, limit: Duration) -> Value {
        // Where writers go on, hardly a look finds nothing on its way: then what was written some time ago is enough.
        let later = keyferry::unix_ms() + 1_500;
        let mut written = None;
        self.wait_status(running, "caught up", limit, |status| {
            let stream = &status["stream"];
            if status["mode"] == "scan" {
                // A sweep rests half a second after each, and its lag runs from 0 to that: one has to begin after the call.
                let proven = |shard: &Value| {
                    Some(shard["updated_at"].as_i64()? - shard["stream"]["lag_ms"].as_i64()?)
                };
                let later = later - 1_500;
                return status["snapshot"]["done"] == true
                    && (status["shards"].as_array())
                        .is_some_and(|s| s.iter().all(|shard| proven(shard) >= Some(later)));
            }
            // While a link is down, nobody knows what is still to come: its lag grows.
            let near = |shard: &Value| shard["stream"]["lag_ms"].as_u64().unwrap_or(u64::MAX) < 500;
            let up = (status["shards"].as_array()).is_some_and(|s| s.iter().all(near));
            if up && written.is_none() && status["updated_at"].as_i64() >= Some(later) {
                written = stream["source_offset"].as_u64();
            }
            let earlier = written.is_some() && stream["applied_offset"].as_u64() >= written;
            status["snapshot"]["done"] == true
                && up
                && (stream["lag_bytes"] == 0 || applied(stream) || earlier)
        })
    }

    /// Waits until the status is as wanted; fails when the program ends before.
    #[track_caller]
    pub fn wait_status(
        &self,
        running: &mut Running,
        what: &str,
        limit: Duration,
        mut done: impl FnMut(&Value) -> bool,
    ) -> Value {
        let started = Instant::now();
        loop {
            let status = self.status();
            // What an earlier run has left behind says nothing of this one.
            let of_this_run = status["updated_at"].as_i64() >= Some(running.started_ms);
            if of_this_run && done(&status) {
                return status;
            }
            if let Some(code) = running.ended() {
                panic!(
                    "keyferry ended ({code}) before it was {what}; status {status}\n{}",
                    running.stderr_now()
                );
            }
            assert!(
                started.elapsed() < limit,
                "not {what} within {limit:?}: {status}\n{}",
                running.stderr_now()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn applied(stream: &Value) -> bool {
    stream["source_offset"].is_number() && stream["source_offset"] == stream["applied_offset"]
}

/// The program with an environment that no test depends on; `KEYFERRY_BIN` names another build of it, to see a test red.
pub fn program() -> Command {
    let built = env!("CARGO_BIN_EXE_keyferry");
    let program = std::env::var_os("KEYFERRY_BIN").unwrap_or_else(|| built.into());
    let mut command = mortal(Path::new(&program));
    command
        .env("NO_COLOR", "1")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// Runs the program with the given arguments, outside any plan.
pub fn run(args: &[&str]) -> Outcome {
    let mut command = program();
    command.args(args);
    Running::start(command).wait(Duration::from_secs(60))
}

/// What a finished run left.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; -1 when it was ended by a signal.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    /// Standard output as JSON; null when it is not.
    pub json: Value,
}

impl Outcome {
    /// Fails the test, with everything that was printed, unless the exit code is this one.
    #[track_caller]
    pub fn exits(self, code: i32) -> Outcome {
        assert_eq!(
            self.code, code,
            "exit code\nstdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self
    }

    /// Fails the test unless standard error names all of these, whatever the case.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Outcome {
        let text = self.stderr.to_lowercase();
        for word in words {
            assert!(
                text.contains(&word.to_lowercase()),
                "standard error does not say {word:?}: {}",
                self.stderr
            );
        }
        self
    }
}

/// A run under way; it is killed when it is dropped.
pub struct Running {
    child: Child,
    started_ms: i64,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: tempfile::NamedTempFile,
}

impl Running {
    fn start(mut command: Command) -> Running {
        let started_ms = keyferry::unix_ms();
        let stderr = tempfile::NamedTempFile::new().expect("a temporary file");
        let file = stderr.reopen().expect("the temporary file");
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .expect("keyferry starts");
        let mut pipe = child.stdout.take();
        let stdout = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(pipe) = &mut pipe {
                let _ = pipe.read_to_end(&mut bytes);
            }
            bytes
        });
        Running {
            child,
            started_ms,
            stdout: Some(stdout),
            stderr,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub fn stderr_now(&self) -> String {
        std::fs::read_to_string(self.stderr.path()).unwrap_or_default()
    }

    /// Ctrl-C.
    pub fn interrupt(&self) {
        self.signal("INT");
    }

    pub fn signal(&self, name: &str) {
        let _ = Command::new("sh")
            .arg("-c")
            .arg(format!("kill -{name} {}", self.pid()))
            .status();
    }

    /// The most memory it has had, in bytes, while it runs.
    pub fn peak_memory(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmHWM:"))
            .unwrap_or("0");
        line.split_ascii_whitespace()
            .next()
            .and_then(|kb| kb.parse::<u64>().ok())
            .unwrap_or(0)
            * 1024
    }

    /// Waits for the end; a run that takes longer is killed and fails the test.
    #[track_caller]
    pub fn wait(mut self, limit: Duration) -> Outcome {
        let from = Instant::now();
        let status = loop {
            if let Some(status) = self.ended() {
                break status;
            }
            if from.elapsed() > limit {
                let said = self.stderr_now();
                panic!("keyferry did not end within {limit:?}\n{said}");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let bytes = self
            .stdout
            .take()
            .and_then(|t| t.join().ok())
            .unwrap_or_default();
        let stdout = String::from_utf8_lossy(&bytes).into_owned();
        let json = serde_json::from_str(&stdout).unwrap_or(Value::Null);
        // For a hunt: what every run has said.
        if let Some(dir) = std::env::var_os("KEYFERRY_LOGS") {
            let name = format!("{}-{}.log", std::process::id(), self.started_ms);
            let _ = std::fs::copy(self.stderr.path(), Path::new(&dir).join(name));
        }
        Outcome {
            code: status.code().unwrap_or(-1),
            stdout,
            stderr: self.stderr_now(),
            json,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
