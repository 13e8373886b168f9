//! Snapshots written by every server we have, with every encoding at its borders: what `rdb json` reads is what the
//! server says, what `rdb resp` writes makes the same data, and a migration of the file arrives or is refused by name.

use crate::support::compare::{Rules, compare};
use crate::support::keyferry::{Plan, program};
use crate::support::server::{self, Server, Setup};
use crate::support::side::Side;
use crate::support::versions;
use crate::support::wire::Command;
use crate::support::{borders, skip, tell};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

fn full() -> bool {
    std::env::var_os("KEYFERRY_FULL").is_some()
}

/// A server with the border values, and its snapshot.
fn snapshot_of(name: &str) -> (Server, PathBuf) {
    // Long zset members stay in a skiplist, so that the sign of zero can be told.
    let server = Setup::new(name).start();
    let mut side = Side::open(&server.url(), false).expect("a connection");
    let large = if full() { 1_000_000 } else { 20_000 };
    borders::fill(&mut side, large).unwrap_or_else(|e| panic!("{name}: {e}"));
    side.run(&Command::new("SELECT 3")).expect("a database");
    side.run(&Command::new("SET elsewhere 1"))
        .expect("a key in another database");
    server.run("SAVE");
    let path = server.dir().join("dump.rdb");
    (server, path)
}

/// Null says that a server or a format could not tell; scores are compared as numbers.
fn differs(expected: &Value, found: &Value, path: &str) -> Option<String> {
    match (expected, found) {
        (Value::Null, _) if !path.ends_with("expire_at_ms") => None,
        (_, Value::Null) if path.ends_with("_ms") || path.ends_with("_added") => None,
        (_, Value::Null) if path.ends_with("_id") || path.ends_with("_read") => None,
        (Value::String(some), Value::Number(_)) if some == "some" => None,
        (Value::Object(e), Value::Object(f)) => e.iter().find_map(|(k, v)| match f.get(k) {
            None => Some(format!("{path}.{k} is missing")),
            Some(found) => differs(v, found, &format!("{path}.{k}")),
        }),
        (Value::Array(e), Value::Array(f)) if e.len() == f.len() => e
            .iter()
            .zip(f)
            .enumerate()
            .find_map(|(i, (e, f))| differs(e, f, &format!("{path}[{i}]"))),
        (e, f) if e == f => None,
        (Value::String(e), Value::String(f)) if same_number(e, f) => None,
        (e, f) => Some(format!(
            "{path}: the server says {e:.200}, the file {f:.200}"
        )),
    }
}

fn same_number(a: &str, b: &str) -> bool {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

fn lines(out: &[u8]) -> BTreeMap<String, Value> {
    std::str::from_utf8(out)
        .expect("UTF-8")
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).expect("a line of JSON"))
        .map(|v| (format!("{} {}", v["db"], v["key"]), v))
        .collect()
}

fn json_is_what_the_server_says(name: &str) {
    if server::find(name).is_none() {
        return skip(&format!("{name} is not here"));
    }
    let (server, path) = snapshot_of(name);
    let mut side = Side::open(&server.url(), false).expect("a connection");
    let expected = tell::tell(&mut side, 0).unwrap_or_else(|e| panic!("{e}"));
    // In 64 MiB of address space, whatever lies in it.
    let out = std::process::Command::new("bash")
        .args(["-c", "ulimit -v 65536; exec \"$0\" rdb json \"$1\""])
        .arg(env!("CARGO_BIN_EXE_keyferry"))
        .arg(&path)
        .output()
        .expect("it runs");
    assert!(
        out.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    let found = lines(&out.stdout);
    assert_eq!(
        found.len(),
        expected.len() + 1,
        "{name}: the number of keys"
    );
    let wrong: Vec<String> = expected
        .iter()
        .filter_map(|(key, line)| {
            let label = format!("0 {}", tell::text(key));
            match found.get(&label) {
                None => Some(format!("{label:.80} is missing")),
                Some(f) => differs(line, f, "").map(|d| format!("{label:.80} {d}")),
            }
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "{name}: {} of {}:\n{:.4000}",
        wrong.len(),
        expected.len(),
        wrong.join("\n")
    );
    assert!(found.contains_key("3 \"elsewhere\""));
}

/// The commands of `rdb resp`, sent to a fresh server of the same version, make the same data.
fn resp_makes_the_same(name: &str) {
    if server::find(name).is_none() {
        return skip(&format!("{name} is not here"));
    }
    let (source, path) = snapshot_of(name);
    let target = Server::start(name);
    let mut child = program()
        .args(["rdb", "resp"])
        .arg(&path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut out = child.stdout.take().expect("its output");
    let mut to = std::net::TcpStream::connect(target.address()).expect("a connection");
    let mut replies = to.try_clone().expect("the same connection");
    // The replies must be read meanwhile, or the server stops reading.
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        std::io::Read::read_to_end(&mut replies, &mut all).map(|_| all)
    });
    std::io::copy(&mut out, &mut to).expect("the commands are sent");
    to.shutdown(std::net::Shutdown::Write).expect("the end");
    let replies = reader.join().expect("the reader").expect("the replies");
    assert!(child.wait().expect("its end").success());
    let errors: Vec<String> = String::from_utf8_lossy(&replies)
        .lines()
        .filter(|l| l.starts_with('-'))
        .map(str::to_owned)
        .collect();
    assert!(errors.is_empty(), "{name}: {errors:?}");
    equal(&source, &target, name);
}

fn equal(source: &Server, target: &Server, label: &str) {
    let open = |s: &Server| Side::open(&s.url(), false).expect("a connection");
    let found = compare(&mut open(source), &mut open(target), &Rules::default())
        .unwrap_or_else(|e| panic!("{label}: {e}"));
    assert!(found.equal(), "{label}: {found}");
}

/// Whether `from` has values that `to` cannot hold.
fn cannot_hold(from: &str, to: &str) -> bool {
    let timed = |name: &str| matches!(name, "redis-8.0" | "valkey-9.1");
    timed(from) && !timed(to)
}

/// From one server's snapshot into every target, through `migrate`.
fn reaches_every_target(name: &str, targets: &[&str]) {
    if server::find(name).is_none() {
        return skip(&format!("{name} is not here"));
    }
    let (source, path) = snapshot_of(name);
    for to in targets.iter().filter(|t| server::find(t).is_some()) {
        let label = format!("{name} to {to}");
        let target = Server::start(to);
        let mut plan = Plan::of(
            json!({"name": "file", "source": {"mode": "rdb", "path": path}, "target": {"url": target.url()}}),
        );
        if cannot_hold(name, to) {
            plan.run("migrate --json")
                .exits(3)
                .says(&["cannot hold the key", "hx:"]);
            // The list names each of them, and everything else arrives.
            plan.set("/on_loss", json!("list"));
            let outcome = plan.run("migrate --json").exits(0);
            assert_eq!(
                outcome.json["skipped"]["field_expiry"], 4,
                "{label}: {}",
                outcome.stdout
            );
        } else {
            plan.run("migrate --json").exits(0);
        }
        equal(&source, &target, &label);
    }
}

macro_rules! servers {
    ($($module:ident $name:literal -> $($target:literal)+;)*) => { $(
        mod $module {
            #[test]
            fn json_is_what_the_server_says() {
                super::json_is_what_the_server_says($name);
            }
            #[test]
            fn every_target_takes_it() {
                let short = [$($target),+];
                super::reaches_every_target($name, if super::full() { &crate::support::server::SERVERS } else { &short });
            }
        }
    )* };
}

servers! {
    redis_6_0 "redis-6.0" -> "valkey-9.1";
    redis_6_2 "redis-6.2" -> "redis-8.0";
    redis_7_0 "redis-7.0" -> "redis-6.0";
    redis_8_0 "redis-8.0" -> "valkey-9.1" "redis-7.0";
    redict_7_3 "redict-7.3" -> "redis-7.0";
    valkey_8_0 "valkey-8.0" -> "redis-6.2";
    valkey_8_1 "valkey-8.1" -> "redict-7.3";
    valkey_9_1 "valkey-9.1" -> "redis-8.0" "valkey-8.1";
}

#[test]
fn resp_recreates_the_data() {
    for name in ["redis-7.0", "redis-8.0", "valkey-9.1"] {
        resp_makes_the_same(name);
    }
}

/// A snapshot that comes gzipped, or through a pipe, is read as it is.
#[test]
fn gzip_and_standard_input() {
    use std::io::Write;
    let fixture = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/rdb/redis-7.4-cluster.rdb"
    );
    let plain = std::fs::read(fixture).expect("the snapshot");
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("dump.rdb.gz");
    let file = std::fs::File::create(&path).expect("a file");
    let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    gz.write_all(&plain).expect("it is written");
    gz.finish().expect("it is written");
    let run = |path: &str, input: &[u8]| {
        let mut child = program()
            .args(["rdb", "json", path])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        child
            .stdin
            .take()
            .expect("its input")
            .write_all(input)
            .expect("the input");
        child.wait_with_output().expect("its output").stdout
    };
    let expected = run(fixture, b"");
    assert!(expected.len() > 1000);
    assert_eq!(run(path.to_str().expect("UTF-8"), b""), expected);
    assert_eq!(run("-", &std::fs::read(&path).expect("the file")), expected);
    assert_eq!(run("-", &plain), expected);
    // And as a source, which resumes by position in what was unpacked.
    let Some(name) = server::find("any") else {
        return skip("needs a server");
    };
    let target = Server::start(&name);
    let plan = Plan::of(
        json!({"name": "gz", "on_loss": "list", "source": {"mode": "rdb", "path": path}, "target": {"url": target.url()}}),
    );
    plan.run("migrate --json").exits(0);
    let keys = target.run("DBSIZE").int().unwrap_or(0);
    let named = (lines(&expected).values())
        .filter(|l| l.get("key").is_some())
        .count();
    // All fields of one hash have expired long ago: where fields do, it goes sooner or later.
    let gone = usize::from(versions::has(&name, "field-expiry"));
    assert!(
        (named - gone..=named).contains(&(keys as usize)),
        "{keys} of {named}"
    );
}

/// Append-only files: one with an RDB preamble, and a folder of parts.
#[test]
fn append_only_files_are_a_source() {
    for name in ["redis-6.2", "redis-7.0", "valkey-9.1"] {
        if server::find(name).is_none() {
            skip(&format!("{name} is not here"));
            continue;
        }
        let source = Setup::new(name)
            .lines(&[
                "appendonly yes",
                "appendfsync always",
                "aof-use-rdb-preamble yes",
            ])
            .start();
        let mut client = source.client();
        for i in 0..500 {
            client
                .words(&format!("RPUSH list:{} a{i} b{i}", i % 50))
                .expect("a push");
        }
        source.run("BGREWRITEAOF");
        crate::support::wait_until("the rewrite is done", Duration::from_secs(20), || {
            source.info("persistence", "aof_rewrite_in_progress") == 0
                && source.info("persistence", "aof_rewrite_scheduled") == 0
        });
        for i in 0..500 {
            client
                .words(&format!("INCRBY counter:{} {i}", i % 20))
                .expect("a count");
            client
                .words(&format!("LPOP list:{}", i % 50))
                .expect("a pop");
        }
        client.words("SELECT 2").expect("a database");
        client.words("SET other 1 EX 1000").expect("a key");
        client.words("SELECT 0").expect("a database");
        client.words("MULTI").expect("a transaction");
        client.words("INCR counter:0").expect("queued");
        client.words("DEL list:1").expect("queued");
        client.words("EXEC").expect("it runs");
        let folder = source.dir().join("appendonlydir");
        let path = if folder.is_dir() {
            folder
        } else {
            source.dir().join("appendonly.aof")
        };
        let target = Server::start(name);
        let plan = Plan::of(
            json!({"name": "aof", "source": {"mode": "rdb", "path": path}, "target": {"url": target.url()}}),
        );
        let outcome = plan.run("migrate --json").exits(0);
        assert!(
            outcome.json["commands_applied"].as_u64().unwrap_or(0) > 1000,
            "{}",
            outcome.stdout
        );
        equal(&source, &target, name);
        // Run again, nothing runs twice.
        plan.run("migrate --json").exits(0);
        equal(&source, &target, name);
    }
}
