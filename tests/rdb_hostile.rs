//! Hostile snapshots: cut at every byte, every byte changed, lying lengths. Always an error, never a panic, never memory.

use keyferry::{write_json, write_resp};
use std::path::PathBuf;
use std::process::Command;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/rdb")).join(name)
}

/// Reads it both ways; what comes out does not matter, that it ends does.
fn read(bytes: &[u8]) {
    let mut sink = std::io::sink();
    let _ = write_json(bytes, &mut sink, true);
    let _ = write_resp(bytes, &mut sink, true);
}

const SMALL: [&str; 5] = [
    "redis-4.0rc1-module.rdb",
    "redis-7.2-module.rdb",
    "redis-8.8-keymeta.rdb",
    "valkey-9.1-module.rdb",
    "redis-8.6-lfu.rdb",
];

#[test]
fn every_cut_ends_in_an_error() {
    for name in SMALL.iter().chain(&["redis-7.4-cluster.rdb"]) {
        let whole = std::fs::read(fixture(name)).expect("the snapshot");
        for n in 0..whole.len() {
            let cut = &whole[..n];
            // Where an old module's value ends is found by what follows, so there the checksum has the last word.
            let ignore_checksum = !name.contains("4.0rc1");
            assert!(
                write_json(cut, &mut std::io::sink(), ignore_checksum).is_err(),
                "{name} cut at {n}"
            );
        }
    }
}

#[test]
fn every_changed_byte_ends_in_order() {
    let full = std::env::var_os("KEYFERRY_FULL").is_some();
    for name in SMALL {
        let mut bytes = std::fs::read(fixture(name)).expect("the snapshot");
        for i in 0..bytes.len() {
            let was = bytes[i];
            let all = [1, 2, 4, 8, 16, 32, 64, 128, 255];
            // Otherwise one change of each byte, another from byte to byte.
            let changes = if full {
                all.as_slice()
            } else {
                &all[i % 9..=i % 9]
            };
            for change in changes {
                bytes[i] = was ^ change;
                read(&bytes);
                let checked = write_json(bytes.as_slice(), &mut std::io::sink(), false);
                // The version's digits may turn into another version that is read as well; the rest is covered.
                assert!(
                    checked.is_err() || i < 9,
                    "{name}: byte {i} changed by {change}"
                );
            }
            bytes[i] = was;
        }
    }
}

/// What claims much and holds little.
#[test]
fn lies_are_refused_in_little_memory() {
    let huge: [&[u8]; 16] = [
        b"\x00\x01k\x81\x7f\xff\xff\xff\xff\xff\xff\xff", // a string of 2^63 bytes
        b"\x00\x01k\x80\xff\xff\xff\xffabc",              // of 4 GB
        b"\x01\x01k\x81\x80\x00\x00\x00\x00\x00\x00\x00", // a list of 2^63 items
        b"\x04\x01k\x81\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00", // a hash of 2^64-1
        b"\x00\x01k\xc3\x04\x81\x00\x00\x00\x10\x00\x00\x00\x00abcd", // LZF to 64 GB
        b"\x00\x81\x00\x00\x00\x40\x00\x00\x00\x00k",     // a key of 256 GB
        b"\x0f\x01k\x81\x00\x00\x00\x40\x00\x00\x00\x00", // a stream of 2^38 nodes
        b"\x12\x01k\x02\x01\x81\x00\x00\x00\x40\x00\x00\x00\x00", // a list node of 256 GB
        b"\x1c\x01k\x81\x00\x00\x00\x40\x00\x00\x00\x00\x00", // an array
        b"\xf2\x00\x81\x00\x00\x00\x40\x00\x00\x00\x00\x01a", // a template of 2^38 names
        b"\xf2\x00\x01\x81\x00\x00\x00\x40\x00\x00\x00\x00", // a name of 256 GB
        b"\x1d\x01k\x00\x81\x00\x00\x00\x40\x00\x00\x00\x00", // a listpack of names
        b"\x1f\x01k\x01\x81\x00\x00\x00\x40\x00\x00\x00\x00\x01a", // 2^38 names in a hash
        b"\xf2\x00\x01\x01a\x20\x01k\x00\x81\x00\x00\x00\x40\x00\x00\x00\x00", // a value of 256 GB
        b"\xf2\x00\x01\x01a\x1e\x01k\xc3\x04\x81\x00\x00\x00\x10\x00\x00\x00\x00abcd", // LZF to 64 GB
        b"\xfa\x81\x00\x00\x00\x40\x00\x00\x00\x00k", // an AUX name
    ];
    let dir = tempfile::tempdir().expect("a folder");
    for (i, record) in huge.iter().enumerate() {
        let path = dir.path().join(format!("lie-{i}.rdb"));
        std::fs::write(&path, [b"REDIS0015".as_slice(), record].concat()).expect("it is written");
        for form in ["json", "resp", "summary"] {
            let out = limited(64)
                .arg(format!(
                    "exec \"$0\" rdb {form} --ignore-checksum '{}'",
                    path.display()
                ))
                .output()
                .expect("it runs");
            let error = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(3), "lie {i}, {form}: {error}");
            assert!(error.contains("byte "), "lie {i}, {form}: {error}");
        }
    }
}

/// A shell that runs its script with so many MiB of memory.
fn limited(mib: u64) -> Command {
    let mut shell = Command::new("bash");
    shell
        .args(["-c", &format!("ulimit -v {}; eval \"$1\"", mib * 1024)])
        .env("RUST_BACKTRACE", "0")
        .arg(env!("CARGO_BIN_EXE_keyferry"));
    shell
}

/// A sorted set of millions of members: `rdb json` sorts it in 64 MiB.
#[test]
fn a_huge_sorted_set_is_sorted_in_little_memory() {
    let members: u64 = if std::env::var_os("KEYFERRY_FULL").is_some() {
        10_000_000
    } else {
        1_000_000
    };
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("huge.rdb");
    write_huge(&path, members);
    // A quarter of it is the program's own code, of a build that is not optimised.
    let out = limited(80)
        .arg(format!("exec \"$0\" rdb json '{}' | tr ']' '\\n' | grep '^,' | LC_ALL=C sort -c -t'\"' -k2,2 -S 20M && exec \"$0\" rdb json '{}' | tr -cd '[' | wc -c", path.display(), path.display()))
        .output()
        .expect("it runs");
    let count: u64 = String::from_utf8_lossy(&out.stdout)
        .trim()
        .parse()
        .unwrap_or(0);
    let error = String::from_utf8_lossy(&out.stderr);
    assert_eq!(count, members + 1, "{error}");
}

fn write_huge(path: &std::path::Path, members: u64) {
    use std::io::Write;
    let mut out = std::io::BufWriter::new(std::fs::File::create(path).expect("a file"));
    let mut put = |bytes: &[u8]| out.write_all(bytes).expect("it is written");
    put(b"REDIS0009\x05\x04huge\x81");
    put(&members.to_be_bytes());
    for i in 0..members {
        // An odd multiplier visits every number once.
        let member = format!("{:016x}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        put(&[16]);
        put(member.as_bytes());
        put(&(i as f64).to_le_bytes());
    }
    put(&[0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
}
