//! Snapshots as providers export them: hints of Redis Enterprise, several in one file, one file of each shard, packed
//! ones, and by standard input.

use crate::support::cluster::Cluster;
use crate::support::keyferry::{Plan, run};
use crate::support::need;
use crate::support::server::Server;
use crate::support::snapshot::{folder, key, length, snapshot, string, write};
use crate::support::wire::Command;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// The records of an append-only file's beginning.
fn preamble(keys: &[u8]) -> Vec<u8> {
    let begins = [vec![250], string("aof-preamble"), string("1")].concat();
    [&begins, keys].concat()
}

fn texts(paths: &[&Path]) -> Vec<String> {
    paths
        .iter()
        .map(|p| p.to_string_lossy().into_owned())
        .collect()
}

fn rdb(words: &[&str], paths: &[&Path]) -> crate::support::keyferry::Outcome {
    let paths = texts(paths);
    let mut all = vec!["rdb"];
    all.extend(words);
    all.extend(paths.iter().map(String::as_str));
    run(&all)
}

/// Keys `prefix:0` and on, whose value is their name.
fn keys(prefix: &str, n: usize) -> Vec<u8> {
    (0..n)
        .flat_map(|i| {
            let name = format!("{prefix}:{i}");
            key(0, &name, &string(&name))
        })
        .collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).expect("packed");
    out.finish().expect("packed")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn plan_of(path: Value, target: &Server) -> Plan {
    Plan::of(json!({
        "name": "export",
        "source": { "mode": "rdb", "path": path },
        "target": { "url": target.url() },
    }))
}

#[test]
fn hints_of_redis_enterprise_are_skipped() {
    let dir = folder();
    let records = [
        vec![121, 5],
        vec![107, 0x41, 0x02],
        key(0, "a", &string("1")),
        vec![121, 0x80, 0, 0, 0x30, 0x39, 107, 1, 252],
        4_102_444_800_000i64.to_le_bytes().to_vec(),
        vec![107, 9],
        key(0, "b", &string("2")),
    ]
    .concat();
    let path = write(&dir, "enterprise.rdb", &snapshot("REDIS0009", &records));
    let told = rdb(&["json"], &[&path]).exits(0).stdout;
    assert_eq!(told.lines().count(), 2, "{told}");
    assert!(
        told.contains("\"key\":\"b\",\"type\":\"string\",\"expire_at_ms\":4102444800000"),
        "{told}"
    );
    let path = write(&dir, "valkey.rdb", &snapshot("VALKEY080", &records));
    rdb(&["json"], &[&path])
        .exits(3)
        .says(&["byte 9", "type 121"]);
}

#[test]
fn joined_snapshots_are_one_data_set_and_other_bytes_behind_the_end_are_named() {
    let dir = folder();
    let one = snapshot("REDIS0009", &[vec![254, 3], keys("one", 3)].concat());
    let two = snapshot("VALKEY080", &keys("two", 2));
    let three = snapshot("REDIS0003", &keys("three", 1));
    let mark = b"0123456789abcdef0123456789abcdef01234567";
    let joined = [&one[..], &two, mark, &three, &one, b"\n"].concat();
    let path = write(&dir, "joined.rdb", &joined);
    let told = rdb(&["json"], &[&path]).exits(0).stdout;
    let dbs: Vec<u64> = (told.lines())
        .map(|l| {
            serde_json::from_str::<Value>(l).expect("a line")["db"]
                .as_u64()
                .expect("a number")
        })
        .collect();
    assert_eq!(
        dbs,
        [3, 3, 3, 0, 0, 0, 3, 3, 3],
        "each begins in the first database"
    );
    let summary = rdb(&["summary", "--json"], &[&path]).exits(0).json;
    assert_eq!(summary["snapshots"], 4, "{summary}");
    assert_eq!(summary["total"]["keys"], 9, "{summary}");

    for behind in [
        &b"rubbish, and more of it"[..],
        b"ab",
        b"REDIS00x9 and so on",
        &[7; 40],
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let path = write(&dir, "behind.rdb", &[&one[..], behind].concat());
        rdb(&["summary"], &[&path]).exits(3).says(&[
            &format!("byte {}", one.len()),
            "what follows the end",
            "hint: ",
        ]);
    }
    // The second one's checksum counts as well.
    let mut broken = [&one[..], &two].concat();
    let at = one.len() + 20;
    broken[at] ^= 1;
    let path = write(&dir, "broken.rdb", &broken);
    rdb(&["json"], &[&path]).exits(3).says(&["checksum"]);
    rdb(&["json", "--ignore-checksum"], &[&path]).exits(0);
    // And what is cut off in the second is an error.
    let path = write(&dir, "cut.rdb", &broken[..broken.len() - 12]);
    rdb(&["json", "--ignore-checksum"], &[&path]).exits(3);
}

#[test]
fn the_files_of_all_shards_are_one_source() {
    let Some([name]) = need(["any"]) else {
        return;
    };
    let dir = folder();
    let plain = snapshot("REDIS0009", &keys("one", 400));
    let joined = [plain.clone(), snapshot("VALKEY080", &keys("joined", 50))].concat();
    write(&dir, "shard-1.rdb", &joined);
    write(
        &dir,
        "shard-2.rdb.gz",
        &gzip(&snapshot("REDIS0011", &keys("two", 300))),
    );
    write(
        &dir,
        "shard-3.rdb.zst",
        &zstd(&snapshot("VALKEY081", &keys("three", 200))),
    );
    write(&dir, "notes.txt", b"not one of them");
    let target = Server::start(&name);
    let mut plan = plan_of(json!(dir.path().join("shard-*")), &target);
    plan.run("check --json").exits(0);
    let outcome = plan.run("migrate --json").exits(0);
    assert_eq!(outcome.json["keys_written"], 950, "{}", outcome.stdout);
    let status = plan.status();
    let total: u64 = joined.len() as u64
        + snapshot("REDIS0011", &keys("two", 300)).len() as u64
        + snapshot("VALKEY081", &keys("three", 200)).len() as u64;
    assert_eq!(status["snapshot"]["bytes_read"], total, "{status}");
    assert_eq!(status["snapshot"]["bytes_total"], total, "{status}");
    assert_eq!(status["snapshot"]["done"], true, "{status}");
    assert_eq!(target.run("DBSIZE").int(), Some(950));
    let found = plan.run("verify --json").exits(0).json;
    assert_eq!(found["keys_source"], 950, "{found}");
    for (change, list) in [
        ("SET two:7 other", "different"),
        ("DEL joined:3", "missing"),
        ("SET four:1 x", "extra"),
    ] {
        target.run(change);
        let found = plan.run("verify --json").exits(1).json;
        assert_eq!(found[format!("{list}_count")], 1, "{change}: {found}");
    }
    // `rdb` takes the glob too.
    let glob = dir.path().join("shard-*");
    let summary = rdb(&["summary", "--json"], &[&glob]).exits(0).json;
    assert_eq!(summary["total"]["keys"], 950, "{summary}");
    assert_eq!(summary["snapshots"], 4, "{summary}");

    // Nothing matches.
    plan.set("/source/path", json!([dir.path().join("none-*.rdb")]));
    for words in ["migrate --fresh", "verify"] {
        plan.run(words)
            .exits(2)
            .says(&["none-*.rdb matches no file"]);
    }
    let found = plan.run("check --json").exits(1).json;
    assert!(found.to_string().contains("snapshot_file"), "{found}");
    // An append-only file among others.
    let aof = write(&dir, "appendonly.aof", b"*1\r\n$4\r\nPING\r\n");
    plan.set("/source/path", json!([dir.path().join("shard-1.rdb"), aof]));
    plan.run("migrate --fresh")
        .exits(2)
        .says(&["appendonly.aof is an append-only file"]);
    plan.set("/source/path", json!(["-", dir.path().join("shard-1.rdb")]));
    plan.run("migrate --fresh")
        .exits(2)
        .says(&["standard input"]);
    plan.set("/source/path", json!([]));
    plan.run("migrate --fresh")
        .exits(2)
        .says(&["source.path is missing"]);
}

#[test]
fn a_file_that_ends_early_does_not_run_into_the_next() {
    let Some([name]) = need(["any"]) else {
        return;
    };
    let dir = folder();
    let first = snapshot(
        "REDIS0009",
        &[
            keys("one", 5),
            key(0, "long", &[length(500), vec![b'x'; 500]].concat()),
        ]
        .concat(),
    );
    write(&dir, "a.rdb", &first[..first.len() - 300]);
    write(&dir, "b.rdb", &snapshot("REDIS0009", &keys("two", 50)));
    let target = Server::start(&name);
    let plan = plan_of(json!(dir.path().join("*.rdb")), &target);
    plan.run("migrate")
        .exits(3)
        .says(&["a.rdb", "the file ends here"]);
    assert_eq!(target.run("EXISTS long").int(), Some(0));
}

#[test]
fn a_run_that_is_killed_in_the_second_file_resumes_there() {
    let Some([name]) = need(["any"]) else {
        return;
    };
    let dir = folder();
    let template = [vec![242, 0, 1], string("f")].concat();
    let hashes: Vec<u8> = (0..2000)
        .flat_map(|i| key(32, &format!("two:{i}"), &[length(0), string("v")].concat()))
        .collect();
    let second = snapshot("REDIS0015", &[template, hashes].concat());
    let first = write(&dir, "a.rdb", &snapshot("VALKEY080", &keys("one", 1500)));
    // Its own second half is another snapshot, of another version.
    let joined = [second, snapshot("REDIS0003", &keys("three", 500))].concat();
    write(&dir, "b.rdb", &joined);
    write(
        &dir,
        "c.rdb.gz",
        &gzip(&snapshot("REDIS0012", &keys("four", 2000))),
    );
    for (keys, signal) in [(2400, "KILL"), (3700, "INT")] {
        let target = Server::start(&name);
        let mut plan = plan_of(json!(dir.path().join("*.rdb*")), &target);
        plan.set("/limits", json!({ "keys_per_s": 1500 }));
        let mut running = plan.start("migrate");
        plan.wait_status(
            &mut running,
            "the second file",
            Duration::from_secs(30),
            |s| s["snapshot"]["keys_written"].as_u64() >= Some(keys),
        );
        running.signal(signal);
        running.wait(Duration::from_secs(20));
        assert!(target.run("DBSIZE").int() < Some(6000));
        // What the run before has read is not read again: it could not be.
        let was = std::fs::read(&first).expect("the first file");
        let spoilt = [&was[..60], &vec![b'?'; was.len() - 60]].concat();
        std::fs::write(&first, spoilt).expect("spoilt");
        plan.set("/limits", json!({ "keys_per_s": 0 }));
        plan.run("migrate").exits(0);
        std::fs::write(&first, was).expect("as it was");
        assert_eq!(target.run("DBSIZE").int(), Some(6000));
        assert_eq!(target.run("HGET two:1999 f").text(), "v");
        plan.run("verify --json").exits(0);
    }
    // Other files than those that it began with.
    let target = Server::start(&name);
    let mut plan = plan_of(json!(dir.path().join("*.rdb*")), &target);
    plan.set("/limits", json!({ "keys_per_s": 500 }));
    let mut running = plan.start("migrate");
    plan.wait_status(&mut running, "a beginning", Duration::from_secs(30), |s| {
        s["snapshot"]["keys_written"].as_u64() >= Some(600)
    });
    running.interrupt();
    running.wait(Duration::from_secs(20));
    write(&dir, "aa.rdb", &snapshot("REDIS0009", &keys("five", 1)));
    plan.run("migrate")
        .exits(3)
        .says(&["not those that this migration began with", "--fresh"]);
}

#[test]
fn an_append_only_file_resumes_amid_its_preamble() {
    let Some([name]) = need(["any"]) else {
        return;
    };
    let dir = folder();
    let head = preamble(&keys("one", 2000));
    let commands = b"*3\r\n$3\r\nSET\r\n$5\r\none:7\r\n$5\r\nafter\r\n";
    let file = [&snapshot("REDIS0009", &head)[..], commands].concat();
    let path = write(&dir, "appendonly.aof", &file);
    let target = Server::start(&name);
    let mut plan = plan_of(json!(path), &target);
    plan.set("/limits", json!({ "keys_per_s": 1000 }));
    let mut running = plan.start("migrate");
    plan.wait_status(&mut running, "a beginning", Duration::from_secs(30), |s| {
        s["snapshot"]["keys_written"].as_u64() >= Some(600)
    });
    running.interrupt();
    running.wait(Duration::from_secs(20));
    assert!(target.run("DBSIZE").int() < Some(2000));
    // It may have grown meanwhile.
    let more = b"*3\r\n$3\r\nSET\r\n$5\r\none:8\r\n$4\r\nmore\r\n";
    write(&dir, "appendonly.aof", &[&file[..], more].concat());
    plan.set("/limits", json!({ "keys_per_s": 0 }));
    plan.run("migrate").exits(0);
    assert_eq!(target.run("DBSIZE").int(), Some(2000));
    assert_eq!(target.run("GET one:7").text(), "after");
    assert_eq!(target.run("GET one:8").text(), "more");
}

#[test]
fn a_glob_that_matches_more_or_fewer_files_than_before_is_refused() {
    let Some([name]) = need(["any"]) else {
        return;
    };
    let dir = folder();
    let one = snapshot("REDIS0009", &keys("one", 2000));
    write(&dir, "b.rdb", &one);
    for more in [true, false] {
        let target = Server::start(&name);
        let mut plan = plan_of(json!(dir.path().join("*.rdb")), &target);
        plan.set("/limits", json!({ "keys_per_s": 500 }));
        let mut running = plan.start("migrate");
        plan.wait_status(&mut running, "a beginning", Duration::from_secs(30), |s| {
            s["snapshot"]["keys_written"].as_u64() >= Some(400)
        });
        running.interrupt();
        running.wait(Duration::from_secs(20));
        let other = dir.path().join("a.rdb");
        match more {
            true => drop(write(
                &dir,
                "a.rdb",
                &snapshot("REDIS0009", &keys("two", 9)),
            )),
            false => std::fs::remove_file(&other).expect("removed"),
        }
        plan.run("migrate")
            .exits(3)
            .says(&["not those that this migration began with", "--fresh"]);
    }
    // A file of the same name that has grown meanwhile is another one too.
    let target = Server::start(&name);
    let plan = plan_of(json!(dir.path().join("*.rdb")), &target);
    plan.run("migrate").exits(0);
    plan.run("migrate").exits(0);
    write(&dir, "b.rdb", &snapshot("REDIS0009", &keys("one", 2001)));
    plan.run("migrate").exits(3).says(&["--fresh"]);
}

/// Short strings wait for others of their slot, and a list goes at once: the later one counts all the same.
#[test]
fn a_key_in_two_snapshots_is_what_the_later_one_says() {
    let Some([name]) = need(["any"]) else {
        return;
    };
    let lists: Vec<u8> = (0..60)
        .flat_map(|i| key(1, &format!("k:{i}"), &[length(1), string("x")].concat()))
        .collect();
    let (strings, lists) = (
        snapshot("REDIS0009", &keys("k", 60)),
        snapshot("REDIS0009", &lists),
    );
    for joined in [false, true] {
        let dir = folder();
        match joined {
            true => drop(write(&dir, "a.rdb", &[&strings[..], &lists].concat())),
            false => {
                write(&dir, "a.rdb", &strings);
                write(&dir, "b.rdb", &lists);
            }
        }
        let target = Cluster::start(&name, 3);
        let plan = Plan::of(json!({
            "name": "twice",
            "source": { "mode": "rdb", "path": dir.path().join("*.rdb") },
            "target": { "url": target.url(), "topology": "cluster" },
        }));
        plan.run("migrate --json").exits(0);
        let mut side = target.side();
        for i in 0..60 {
            let kind = side
                .run(&Command::new("TYPE").key(format!("k:{i}")))
                .expect("a type");
            assert_eq!(kind.text(), "list", "k:{i}, joined: {joined}");
        }
        let found = plan.run("verify --json").exits(0).json;
        assert_eq!(found["different_count"], 0, "{found}");
        side.run(&Command::new("SET").key("k:7").arg("k:7"))
            .expect("set");
        let found = plan.run("verify --json").exits(1).json;
        assert_eq!(found["different_count"], 1, "the first one's: {found}");
    }
}

/// As an object store's client would: `az storage blob download … | keyferry migrate PLAN`.
#[test]
fn a_packed_snapshot_comes_through_a_pipe() {
    let Some([name]) = need(["any"]) else {
        return;
    };
    let dir = folder();
    let joined = [
        snapshot("REDIS0009", &keys("one", 500)),
        snapshot("REDIS0011", &keys("two", 100)),
    ]
    .concat();
    for (n, packed) in [gzip(&joined), zstd(&joined), joined.clone()]
        .iter()
        .enumerate()
    {
        let file = write(&dir, "dump", packed);
        let target = Server::start(&name);
        let plan = plan_of(json!("-"), &target);
        let mut cat = std::process::Command::new("cat")
            .arg(&file)
            .stdout(Stdio::piped())
            .spawn()
            .expect("cat starts");
        let from = cat.stdout.take().expect("its output");
        let migrated = crate::support::keyferry::program()
            .arg("migrate")
            .arg(plan.path())
            .arg("--work-dir")
            .arg(plan.work_dir())
            .args(["--json", "--no-progress"])
            .stdin(from)
            .output()
            .expect("keyferry runs");
        cat.wait().expect("cat ends");
        let said = String::from_utf8_lossy(&migrated.stderr);
        assert!(migrated.status.success(), "{n}: {said}");
        let told: Value = serde_json::from_slice(&migrated.stdout).expect("an answer");
        assert_eq!(told["keys_written"], 600, "{told}");
        assert_eq!(target.run("GET two:99").text(), "two:99");
    }
}

/// An append-only file with a preamble goes on with commands, whatever is in them.
#[test]
fn commands_behind_a_preamble_are_no_rubbish() {
    let Some([name]) = need(["any"]) else {
        return;
    };
    let dir = folder();
    let head = preamble(&keys("one", 3));
    let value = "REDIS0009".repeat(3);
    let commands = format!(
        "*3\r\n$3\r\nSET\r\n$8\r\nafter:it\r\n${}\r\n{value}\r\n",
        value.len()
    );
    let file = [snapshot("REDIS0009", &head), commands.into_bytes()].concat();
    let path = write(&dir, "appendonly.aof", &file);
    assert_eq!(rdb(&["json"], &[&path]).exits(0).stdout.lines().count(), 3);
    let target = Server::start(&name);
    let plan = plan_of(json!([path]), &target);
    plan.run("migrate --json").exits(0);
    assert_eq!(target.run("GET after:it").text(), value);
    assert_eq!(target.run("DBSIZE").int(), Some(4));

    // Packed, the commands are out of reach: that is said.
    let packed = write(&dir, "appendonly.aof.gz", &gzip(&file));
    let whole = write(&dir, "whole.rdb.gz", &gzip(&snapshot("REDIS0009", &head)));
    let wanted = [
        "commands follow the snapshot",
        "unpack the append-only file",
    ];
    for words in ["json", "resp", "summary"] {
        rdb(&[words], &[&packed]).exits(3).says(&wanted);
        rdb(&[words], &[&whole]).exits(0);
    }
    for path in [json!([packed]), json!([whole, packed])] {
        let target = Server::start(&name);
        let plan = plan_of(path, &target);
        plan.run("migrate").exits(3).says(&wanted);
        plan.run("verify").exits(3).says(&wanted);
    }
    let mut cat = std::process::Command::new("cat")
        .arg(&path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("cat starts");
    let from = cat.stdout.take().expect("its output");
    let target = Server::start(&name);
    let plan = plan_of(json!("-"), &target);
    let migrated = crate::support::keyferry::program()
        .arg("migrate")
        .arg(plan.path())
        .arg("--work-dir")
        .arg(plan.work_dir())
        .arg("--no-progress")
        .stdin(from)
        .output()
        .expect("keyferry runs");
    cat.wait().expect("cat ends");
    assert_eq!(migrated.status.code(), Some(3));
    let said = String::from_utf8_lossy(&migrated.stderr);
    assert!(said.contains(wanted[0]), "{said}");
}
