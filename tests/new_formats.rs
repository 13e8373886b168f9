//! Formats of servers that cannot be had here, made by hand after what is known of them (docs/rdb.md): RDB 15 of Redis
//! 8.10 with its hash templates, RDB 81 of Valkey 9.2, its compressed files, and versions that nobody knows yet.

use crate::support::keyferry::{Outcome, Plan, run};
use crate::support::need;
use crate::support::server::Server;
use crate::support::snapshot::{
    folder, key, length, listpack, payload, snapshot, string, strings, write,
};
use keyferry::ExpireAt;
use keyferry::formats::digest::{self, Width};
use keyferry::formats::rdb::file::{Item, Options, Snapshot};
use keyferry::formats::rdb::payload as envelope;
use keyferry::formats::rdb::value::ValueSink;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

fn rdb(words: &[&str], path: &Path) -> Outcome {
    let path = path.to_string_lossy();
    run(&[&["rdb"], words, &[&path]].concat())
}

/// The lines of `rdb json`, as JSON.
fn lines(outcome: &Outcome) -> Vec<Value> {
    let lines = outcome.stdout.lines();
    lines
        .map(|l| serde_json::from_str(l).expect("a line of JSON"))
        .collect()
}

fn template(id: u64, names: &[&str]) -> Vec<u8> {
    let head = [length(242), length(id), length(names.len() as u64)];
    let mut out = vec![242];
    out.extend_from_slice(&head[1]);
    out.extend_from_slice(&head[2]);
    out.extend_from_slice(&strings(names));
    out
}

/// Two templates, and a hash in each of the four forms, beside the same as a plain one.
fn templates() -> Vec<u8> {
    let names = ["ab", "abc", "zz12"];
    let fields = [length(1), length(3), strings(&names)].concat();
    let packed_fields = [length(0), listpack(&names)].concat();
    let values = strings(&["1", "two", "3333333"]);
    let packed = |id: &str| listpack(&[id, "#1", "two", "#3333333"]);
    let plain = strings(&["ab", "1", "abc", "two", "zz12", "3333333"]);
    [
        template(0, &["x"]),
        template(1, &names),
        vec![254, 0],
        key(4, "h:plain", &[length(3), plain].concat()),
        key(29, "h:29", &[packed_fields.clone(), packed("#77")].concat()),
        key(29, "h:29:long", &[fields.clone(), packed("#0")].concat()),
        key(30, "h:30", &packed("#1")),
        key(31, "h:31", &[fields, values.clone()].concat()),
        key(31, "h:31:packed", &[packed_fields, values.clone()].concat()),
        key(32, "h:32", &[length(1), values].concat()),
        key(32, "h:x", &[length(0), string("y")].concat()),
    ]
    .concat()
}

#[test]
fn a_payload_with_fewer_values_than_names_is_refused_and_the_complete_one_is_the_plain_hash() {
    let mut short = vec![0x1d, 0x00, 0x17, 0x17, 0, 0, 0, 2, 0, 0x86];
    short.extend_from_slice(
        b"field1\x07\x86field2\x07\xff\x0b\x0b\0\0\0\x02\0\0\x01\x01\x01\xff\x0f\0",
    );
    short.extend_from_slice(&[0; 8]);
    let e = envelope::open(&short).expect_err("one value is missing");
    assert!(e.to_string().contains("fewer values than names"), "{e}");

    let names = [length(0), listpack(&["field1", "field2"])].concat();
    let whole = [names, listpack(&["#0", "#1", "v2"])].concat();
    let plain = [length(2), strings(&["field2", "v2", "field1", "1"])].concat();
    let of = |p: &[u8]| {
        let digest = digest::of_payload(p, 0, Width::Bits128);
        format!("{:?}", digest.expect("a digest"))
    };
    let expected = of(&payload(4, &plain, 11));
    assert_eq!(of(&payload(29, &whole, 15)), expected);
    let array = [
        length(1),
        length(2),
        strings(&["field1", "field2", "1", "v2"]),
    ]
    .concat();
    assert_eq!(of(&payload(31, &array, 15)), expected);
    assert_eq!(
        envelope::open(&payload(31, &array, 15))
            .expect("opens")
            .type_id,
        4
    );
    for (type_id, version) in [(29, 13), (31, 14), (30, 15), (32, 15), (33, 9), (34, 15)] {
        let p = payload(type_id, &array, version);
        assert!(
            envelope::open(&p).is_err(),
            "type {type_id} of version {version}"
        );
    }
    // Names out of order, one twice, one value too many.
    for broken in [
        [
            length(1),
            length(2),
            strings(&["field2", "field1", "1", "2"]),
        ]
        .concat(),
        [
            length(1),
            length(2),
            strings(&["field1", "field1", "1", "2"]),
        ]
        .concat(),
        [
            length(1),
            length(2),
            strings(&["field1", "field2", "1", "2", "3"]),
        ]
        .concat(),
        [length(1), length(0)].concat(),
        [length(2), length(1), strings(&["a", "1"])].concat(),
    ] {
        assert!(envelope::open(&payload(31, &broken, 15)).is_err());
    }
}

#[test]
fn hashes_with_templates_are_read_whole_and_in_parts() {
    let file = snapshot("REDIS0015", &templates());
    for limit in [1 << 20, 0] {
        let options = Options {
            whole_value_limit: limit,
            ..Options::default()
        };
        let mut read = Snapshot::open(file.as_slice(), options).expect("it opens");
        let (mut entries, mut large) = (0, 0);
        loop {
            match read.next().expect("it is read") {
                Item::End => break,
                Item::Entry(e) => {
                    entries += 1;
                    assert_eq!(e.header.type_id, 4);
                }
                Item::Large(l) => {
                    large += 1;
                    assert_eq!(l.header().type_id, 4);
                }
                _ => {}
            }
        }
        assert_eq!((entries, large), if limit == 0 { (0, 8) } else { (8, 0) });
    }
    let dir = folder();
    let path = write(&dir, "templates.rdb", &file);
    let told = rdb(&["json"], &path).exits(0);
    assert!(told.stderr.is_empty(), "{}", told.stderr);
    let told = lines(&told);
    assert_eq!(told.len(), 8);
    for line in told.iter().take(7) {
        assert_eq!(line["type"], "hash");
        assert_eq!(
            line["value"],
            json!([
                ["ab", "1", null],
                ["abc", "two", null],
                ["zz12", "3333333", null]
            ]),
            "{line}"
        );
    }
    assert_eq!(told[7]["value"], json!([["x", "y", null]]));
    let summary = rdb(&["summary", "--json"], &path).exits(0).json;
    assert_eq!(summary["types"]["hash"]["keys"], 8, "{summary}");
    assert_eq!(summary["targets"]["redis 6.2"]["as_is"], 8, "{summary}");
    rdb(&["resp"], &path).exits(0);
}

/// Else a record of a few bytes could be multiplied by all that its template names.
#[test]
fn the_names_of_a_template_count_for_the_size_of_a_value() {
    let name = "n".repeat(2000);
    let own = [length(1), length(1), strings(&[&name, "v"])].concat();
    let records = [
        template(0, &[&name]),
        key(30, "packed", &listpack(&["#0", "v"])),
        key(31, "own", &own),
        key(32, "array", &[length(0), string("v")].concat()),
    ]
    .concat();
    let file = snapshot("REDIS0015", &records);
    for (limit, large) in [(100, 3), (8000, 0)] {
        let options = Options {
            whole_value_limit: limit,
            ..Options::default()
        };
        let mut read = Snapshot::open(file.as_slice(), options).expect("it opens");
        let mut found = 0;
        loop {
            match read.next().expect("it is read") {
                Item::End => break,
                Item::Large(l) => {
                    found += 1;
                    let mut told = Fields::default();
                    l.decode(&mut told).expect("it is decoded");
                    assert_eq!(told.0, [(name.clone(), "v".to_owned())]);
                }
                _ => {}
            }
        }
        assert_eq!(found, large, "above {limit}");
    }
}

#[derive(Default)]
struct Fields(Vec<(String, String)>);

impl ValueSink for Fields {
    fn hash_field(
        &mut self,
        name: &[u8],
        value: &[u8],
        _: Option<ExpireAt>,
    ) -> keyferry::Result<()> {
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        self.0.push((text(name), text(value)));
        Ok(())
    }
}

#[test]
fn templates_that_lie_are_refused() {
    let values = strings(&["1"]);
    let huge = [
        vec![242, 0],
        b"\x81\x7f\xff\xff\xff\xff\xff\xff\xff\x01a".to_vec(),
    ]
    .concat();
    let many: Vec<u8> = (0..70u32)
        .flat_map(|n| template(u64::from(n), &["n".repeat(1 << 20).as_str()]))
        .collect();
    for (what, records) in [
        ("has the id 1", template(1, &["a"])),
        (
            "has the id 0",
            [template(0, &["a"]), template(0, &["b"])].concat(),
        ),
        ("names no field", template(0, &[])),
        ("not in order", template(0, &["b", "a"])),
        (
            "references the template 3",
            key(32, "k", &[length(3), values].concat()),
        ),
        (
            "references the template 9",
            key(30, "k", &listpack(&["#9", "#1"])),
        ),
        ("no template's id", key(30, "k", &listpack(&["#-1", "#1"]))),
        ("byte", huge),
        ("take more than", many),
    ] {
        let file = snapshot("REDIS0015", &records);
        let e = keyferry::write_json(file.as_slice(), &mut std::io::sink(), false);
        let e = e.expect_err(what).to_string();
        assert!(e.contains(what), "{what}: {e}");
    }
    // Dragonfly writes types of its own under these numbers, and version 9.
    for type_id in 29..=37 {
        let file = snapshot("REDIS0009", &key(type_id, "k", &[0; 20]));
        let e = keyferry::write_json(file.as_slice(), &mut std::io::sink(), false);
        let e = e.expect_err("unknown").to_string();
        assert!(e.contains(&format!("the value type {type_id} ")), "{e}");
    }
    for (version, type_id) in [("REDIS0014", 29), ("REDIS0015", 33)] {
        let file = snapshot(version, &key(type_id, "k", &length(5)));
        let mut out = Vec::new();
        keyferry::write_json(file.as_slice(), &mut out, false).expect("a rate limiter");
        assert!(String::from_utf8_lossy(&out).contains("\"type\":\"gcra\""));
    }
}

#[test]
fn hashes_with_templates_arrive_at_any_server() {
    let Some([name]) = need(["any"]) else {
        return;
    };
    let dir = folder();
    let path = write(&dir, "templates.rdb", &snapshot("REDIS0015", &templates()));
    let target = Server::start(&name);
    let plan = Plan::of(json!({
        "name": "templates",
        "source": { "mode": "rdb", "path": path },
        "target": { "url": target.url() },
    }));
    let outcome = plan.run("migrate --json").exits(0);
    assert_eq!(outcome.json["keys_written"], 8, "{}", outcome.stdout);
    for key in ["h:plain", "h:29", "h:30", "h:31", "h:32", "h:31:packed"] {
        assert_eq!(
            target.run(&format!("HGET {key} abc")).text(),
            "two",
            "{key}"
        );
        assert_eq!(target.run(&format!("HLEN {key}")).int(), Some(3), "{key}");
    }
    plan.run("verify --json").exits(0);
    // A field of a value that came from a template: the difference is found.
    target.run("HSET h:30 ab other");
    let found = plan.run("verify --json").exits(1).json;
    assert_eq!(found["different"][0]["key"], "h:30", "{found}");
}

fn paths() -> Vec<u8> {
    let body = [
        length(2),
        string("/a/b"),
        length(2),
        strings(&["f2", "v2", "f1", "v1"]),
        string(""),
        length(1),
        strings(&["f", "v"]),
    ]
    .concat();
    [key(23, "p", &body), key(0, "s", &string("x"))].concat()
}

#[test]
fn path_hashes_are_a_kind_of_their_own() {
    let file = snapshot("VALKEY081", &paths());
    let dir = folder();
    let path = write(&dir, "paths.rdb", &file);
    let told = lines(&rdb(&["json"], &path).exits(0));
    assert_eq!(told[0]["type"], "path-hash");
    assert_eq!(
        told[0]["value"],
        json!([["", "f", "v"], ["/a/b", "f1", "v1"], ["/a/b", "f2", "v2"]])
    );
    let summary = rdb(&["summary", "--json"], &path).exits(0).json;
    assert_eq!(summary["types"]["path-hash"]["keys"], 1, "{summary}");
    assert_eq!(summary["targets"]["valkey 9.2"]["as_is"], 2, "{summary}");
    assert_eq!(summary["targets"]["valkey 9.0"]["refused"], 1, "{summary}");
    // In parts it is the same.
    let options = Options {
        whole_value_limit: 0,
        ..Options::default()
    };
    let mut read = Snapshot::open(file.as_slice(), options).expect("it opens");
    let Item::Large(large) = read.next().expect("a key") else {
        panic!("a large value");
    };
    let mut copied = Vec::new();
    large.copy(&mut copied).expect("it is copied");
    let body = &paths()[3..];
    assert_eq!(copied, body[..copied.len()], "the bytes behind the key");
    // The same number at an older version, and at Redis, is something else.
    for magic in ["VALKEY080", "REDIS0014"] {
        let file = snapshot(magic, &paths());
        assert!(keyferry::write_json(file.as_slice(), &mut std::io::sink(), false).is_err());
    }
    let order = |fields: &[&str]| {
        let body = [length(1), string("p"), length(2), strings(fields)].concat();
        let digest = digest::of_payload(&payload(23, &body, 81), 0, Width::Bits128);
        format!("{:?}", digest.expect("a digest"))
    };
    assert_eq!(order(&["a", "1", "b", "2"]), order(&["b", "2", "a", "1"]));
    assert_ne!(order(&["a", "1", "b", "2"]), order(&["a", "2", "b", "1"]));
}

#[test]
fn a_path_hash_is_a_named_loss_where_the_target_has_none() {
    let Some([name]) = need(["any"]) else {
        return;
    };
    let dir = folder();
    let path = write(&dir, "paths.rdb", &snapshot("VALKEY081", &paths()));
    let target = Server::start(&name);
    let mut plan = Plan::of(json!({
        "name": "paths",
        "source": { "mode": "rdb", "path": path },
        "target": { "url": target.url() },
        "on_loss": "fail",
    }));
    plan.run("migrate --json").exits(3).says(&["path hash"]);
    plan.set("/on_loss", json!("list"));
    plan.run("migrate --json --fresh").exits(0);
    assert_eq!(target.run("GET s").text(), "x");
    assert_eq!(target.run("DBSIZE").int(), Some(1));
}

#[test]
fn a_command_amid_the_keys_is_refused_with_a_remedy() {
    let update = b"\xf2*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n";
    let dir = folder();
    let records = [&key(0, "s", &string("x"))[..], update].concat();
    let path = write(&dir, "update.rdb", &snapshot("VALKEY081", &records));
    let told = rdb(&["json"], &path).exits(3);
    let told = told.says(&["byte 14", "242 (UPDATE)", "hint: write the snapshot"]);
    assert_eq!(lines(&told).len(), 1, "what stands before it is told");
}

#[test]
fn compressed_files_are_unpacked() {
    let plain = snapshot("VALKEY081", &paths());
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
    lz4.write_all(&plain).expect("packed");
    let lz4 = lz4.finish().expect("packed");
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    let zstd = ruzstd::encoding::compress_to_vec(plain.as_slice(), level);
    let dir = folder();
    let expected = rdb(&["json"], &write(&dir, "plain", &plain))
        .exits(0)
        .stdout;
    // Two frames are one file.
    let half = plain.len() / 2;
    let two: Vec<u8> = [&plain[..half], &plain[half..]]
        .iter()
        .flat_map(|p| ruzstd::encoding::compress_to_vec(*p, level))
        .collect();
    for (name, head, frames) in [
        ("vkcs-lz4", &b"VKCS\x01\x01\x00\x00"[..], &lz4),
        ("vkcs-zstd", b"VKCS\x01\x02\x01\x00", &zstd),
        ("vcs-lz4", b"VCS\x01\x01\x00\x01", &lz4),
        ("vcs-zstd", b"VCS\x01\x02\x00\x01", &zstd),
        ("lz4", b"", &lz4),
        ("zstd", b"", &zstd),
        ("zstd-two", b"", &two),
    ] {
        let path = write(&dir, name, &[head, frames].concat());
        assert_eq!(rdb(&["json"], &path).exits(0).stdout, expected, "{name}");
        // Cut off, it is an error.
        let cut = [head, &frames[..frames.len() - 6]].concat();
        rdb(&["json"], &write(&dir, "cut", &cut)).exits(3);
    }
    for (name, bytes) in [
        (
            "a codec that is none",
            [&b"VCS\x01\x07\x00\x01"[..], &zstd].concat(),
        ),
        (
            "a newer envelope",
            [&b"VCS\x02\x01\x00\x01"[..], &lz4].concat(),
        ),
        (
            "raw blocks",
            [&b"VKCS\x01\x01\x00\x00"[..], &plain].concat(),
        ),
    ] {
        let told = rdb(&["summary"], &write(&dir, "other", &bytes));
        assert_eq!(told.code, 3, "{name}");
        told.says(&["compressed by Valkey", "hint: write it again with"]);
    }
}

#[test]
fn a_version_that_nobody_knows_is_read_with_a_warning() {
    let Some([name]) = need(["any"]) else {
        return;
    };
    let dir = folder();
    let records = [
        key(0, "a", &string("1")),
        key(4, "h", &[length(1), strings(&["f", "v"])].concat()),
    ]
    .concat();
    for magic in ["REDIS0099", "VALKEY999"] {
        let version = magic.trim_start_matches(|c: char| !c.is_ascii_digit() || c == '0');
        let path = write(&dir, &format!("{magic}.rdb"), &snapshot(magic, &records));
        for words in [&["json"][..], &["summary"], &["resp"]] {
            let told = rdb(words, &path).exits(0);
            told.says(&["warning", &format!("version {version} ")]);
            let strict = [words, &["--strict"]].concat();
            rdb(&strict, &path)
                .exits(3)
                .says(&[&format!("version {version} "), "--strict"]);
        }
    }
    let unknown = [&records[..], &key(77, "key", &string("?"))].concat();
    let path = write(&dir, "unknown.rdb", &snapshot("REDIS0099", &unknown));
    let told = rdb(&["json"], &path).exits(3);
    let at = format!("byte {}", 9 + records.len());
    let told = told.says(&[&at, "the value type 77", "version 99", "newer keyferry"]);
    assert_eq!(lines(&told).len(), 2);
    // What no server writes is no version.
    for magic in ["VALKEY079", "REDIS0000", "REDIS00x1"] {
        let path = write(&dir, "none.rdb", &snapshot(magic, &records));
        rdb(&["json"], &path).exits(3);
    }

    let target = Server::start(&name);
    let path = dir.path().join("REDIS0099.rdb");
    let plan = Plan::of(json!({
        "name": "newer",
        "source": { "mode": "rdb", "path": path },
        "target": { "url": target.url() },
    }));
    let found = plan.run("check --json").json;
    let ids: Vec<&Value> = (found["findings"].as_array().into_iter().flatten())
        .map(|f| &f["id"])
        .collect();
    assert!(ids.contains(&&json!("newer_format")), "{found}");
    plan.run("migrate --strict")
        .exits(3)
        .says(&["version 99 ", "--strict"]);
    plan.run("migrate --json").exits(0).says(&["version 99 "]);
    assert_eq!(target.run("HGET h f").text(), "v");
    plan.run("verify --json").exits(0);
    plan.run("report").exits(0);
    let report = plan.work_dir().join("newer/report/report.json");
    let report = std::fs::read_to_string(report).expect("a report");
    assert!(
        report.contains("version 99 "),
        "the report names the version"
    );
}

#[test]
fn cut_or_changed_they_end_in_an_error() {
    for file in [
        snapshot("REDIS0015", &templates()),
        snapshot("VALKEY081", &paths()),
    ] {
        for cut in 0..file.len() {
            let read = keyferry::write_json(&file[..cut], &mut std::io::sink(), true);
            assert!(read.is_err(), "cut at {cut}");
        }
        for i in 0..file.len() {
            for change in [1, 4, 64, 255] {
                let mut broken = file.clone();
                broken[i] ^= change;
                let _ = keyferry::write_resp(broken.as_slice(), &mut std::io::sink(), true);
                let read = keyferry::write_json(broken.as_slice(), &mut std::io::sink(), false);
                assert!(read.is_err() || i < 9, "byte {i} changed by {change}");
            }
        }
    }
}

/// Valkey 9.1 and later choose the version of what they send by the one that a replica announces; hash fields with an
/// expiry are in no version below 80.
#[test]
fn a_valkey_sends_a_version_that_was_tried() {
    for (source, version) in [("valkey-9.1", 80), ("valkey-8.1", 11)] {
        let Some([source]) = need([source]) else {
            return;
        };
        let (ours, theirs) = (Server::start(&source), Server::start(&source));
        ours.run("HSET h f v g w");
        if version == 80 {
            ours.run("HPEXPIREAT h 4102444800000 FIELDS 1 f");
        }
        let plan = Plan::new(&ours.url(), &theirs.url());
        plan.run("migrate --until caught-up").exits(0);
        let state = plan.work_dir().join("test/state.sqlite");
        let state = rusqlite::Connection::open(state).expect("the state");
        let told: u32 = state
            .query_row("SELECT snapshot_version FROM shard", [], |row| row.get(0))
            .expect("a shard");
        assert_eq!(told, version, "{source}");
        assert_eq!(theirs.run("HGET h f").text(), "v");
        if version == 80 {
            let at = theirs.run("HPEXPIRETIME h FIELDS 1 f");
            assert_eq!(at.items()[0].int(), Some(4_102_444_800_000));
        }
    }
}
