//! The hot parts: frame, decode, digest and JSON of snapshots, CRC, seal, route, RESP; MB/s and keys/s (`cargo bench --bench rdb`).
//!
//! The files are made here, in memory: many small strings, large listpacks, LZF, hash tables.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use keyferry::Slot;
use keyferry::formats::command::{self, Command};
use keyferry::formats::digest;
use keyferry::formats::rdb::encoding::{Builder, Packed};
use keyferry::formats::rdb::encoding::{put_length, put_string};
use keyferry::formats::rdb::file::{Item, Options, Snapshot};
use keyferry::formats::rdb::payload;
use keyferry::formats::rdb::value::{self, ValueSink};
use keyferry::formats::resp;
use std::hint::black_box;

const BYTES: usize = 64 << 20;

struct File {
    name: &'static str,
    bytes: Vec<u8>,
    keys: u64,
}

fn file(name: &'static str, mut record: impl FnMut(&mut Vec<u8>, u64)) -> File {
    let mut bytes = b"REDIS0011\xfe\x00".to_vec();
    let mut keys = 0;
    while bytes.len() < BYTES {
        record(&mut bytes, keys);
        keys += 1;
    }
    bytes.push(0xff);
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Redis, &bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    File { name, bytes, keys }
}

fn head(out: &mut Vec<u8>, type_id: u8, n: u64) {
    out.push(type_id);
    put_string(out, format!("session:{n:012}").as_bytes());
}

fn files() -> Vec<File> {
    let text = b"the quick brown fox jumps over the lazy dog and runs away from it";
    let packed = {
        let mut pack = Builder::default();
        for i in 0..128 {
            pack.push(Packed::Bytes(format!("field:{i}").as_bytes()));
            pack.push(Packed::Bytes(text));
        }
        pack.finish()
    };
    let compressed = lzf_of_repeats(4096);
    vec![
        file("small strings", |out, n| {
            head(out, 0, n);
            put_string(out, text);
        }),
        file("hash listpacks of 128", |out, n| {
            head(out, 16, n);
            put_string(out, &packed);
        }),
        file("LZF strings of 4 KiB", |out, n| {
            head(out, 0, n);
            out.push(0xc3);
            put_length(out, compressed.len() as u64);
            put_length(out, 4096);
            out.extend_from_slice(&compressed);
        }),
        file("hash tables of 100", |out, n| {
            head(out, 4, n);
            put_length(out, 100);
            for i in 0..100 {
                put_string(out, format!("field:{i}").as_bytes());
                put_string(out, text);
            }
        }),
    ]
}

/// Literals of 8 bytes, each followed by a reference of 24: a third of the plain size.
fn lzf_of_repeats(plain: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut made = 0;
    while made < plain {
        out.push(7);
        out.extend_from_slice(&(made as u64).to_le_bytes());
        made += 8;
        let n = 24.min(plain - made);
        if n >= 9 {
            out.extend_from_slice(&[0xe0, (n - 9) as u8, 7]);
            made += n;
        }
    }
    out
}

struct Nothing;
impl ValueSink for Nothing {}

fn walk(bytes: &[u8], mut each: impl FnMut(u8, keyferry::formats::rdb::opcode::Dialect, &[u8])) {
    let mut snapshot = Snapshot::open(bytes, Options::default()).expect("a snapshot");
    let dialect = snapshot.dialect();
    loop {
        match snapshot.next().expect("a record") {
            Item::End => return,
            Item::Entry(e) => each(e.header.type_id, dialect, e.value),
            _ => {}
        }
    }
}

fn rdb(c: &mut Criterion) {
    for f in files() {
        let mut group = c.benchmark_group(f.name);
        group.sample_size(10);
        for (unit, throughput) in [
            ("bytes", Throughput::Bytes(f.bytes.len() as u64)),
            ("keys", Throughput::Elements(f.keys)),
        ] {
            group.throughput(throughput);
            group.bench_function(BenchmarkId::new("frame", unit), |b| {
                b.iter(|| {
                    walk(&f.bytes, |_, _, value| {
                        black_box(value);
                    })
                })
            });
            group.bench_function(BenchmarkId::new("decode", unit), |b| {
                b.iter(|| {
                    walk(&f.bytes, |t, d, v| {
                        value::decode(t, d, 11, v, 0, &mut Nothing).expect("a value")
                    })
                })
            });
            group.bench_function(BenchmarkId::new("digest", unit), |b| {
                b.iter(|| {
                    walk(&f.bytes, |t, d, v| {
                        black_box(digest::of_body(t, d, 11, v).expect("a value"));
                    })
                })
            });
            group.bench_function(BenchmarkId::new("json", unit), |b| {
                b.iter(|| {
                    keyferry::write_json(f.bytes.as_slice(), &mut std::io::sink(), false)
                        .expect("JSON")
                })
            });
        }
        group.finish();
    }
}

/// What a key of a snapshot, and a command of a stream, cost beside the sockets.
fn parts(c: &mut Criterion) {
    let mut group = c.benchmark_group("parts");
    for len in [110, 4096] {
        let bytes = vec![b'v'; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("crc", len), |b| {
            b.iter(|| payload::crc(black_box(&bytes)))
        });
        let mut out = Vec::with_capacity(2 * len);
        group.bench_function(BenchmarkId::new("seal", len), |b| {
            b.iter(|| {
                out.clear();
                payload::seal(&mut out, &[], 0, black_box(&bytes), 11);
            })
        });
    }
    group.throughput(Throughput::Elements(1));
    group.bench_function("slot of a key", |b| {
        b.iter(|| Slot::of(black_box(b"session:{000000012345}:data")))
    });
    let mut stream = Vec::new();
    for n in 0..1000 {
        let key = format!("key:{n}");
        resp::command(&mut stream, &[b"SET", key.as_bytes(), &[b'v'; 100]]);
        resp::command(&mut stream, &[b"INCR", key.as_bytes()]);
        resp::command(&mut stream, &[b"LPUSH", key.as_bytes(), b"element"]);
    }
    group.throughput(Throughput::Elements(3000));
    let (mut args, mut keys) = (Vec::new(), Vec::new());
    group.bench_function("parse and route a command", |b| {
        b.iter(|| {
            let mut at = 0;
            while let Some(len) = resp::parse_command(&stream[at..], &mut args).expect("RESP") {
                let raw = &stream[at..at + len];
                let cmd = Command { raw, args: &args };
                let spec = command::lookup(cmd.name()).expect("a known command");
                keys.clear();
                spec.keys(&cmd, &mut keys).expect("its keys");
                for key in &keys {
                    black_box(Slot::of(cmd.arg(key.index).expect("a key")));
                }
                at += len;
                if at == stream.len() {
                    break;
                }
            }
        })
    });
    let replies = b"+OK\r\n:12345\r\n".repeat(1500);
    group.bench_function("count a reply", |b| {
        b.iter(|| {
            let mut at = 0;
            while let Some((outcome, len)) = resp::skim_reply(&replies[at..]).expect("RESP") {
                black_box(outcome);
                at += len;
            }
        })
    });
    group.finish();
}

criterion_group!(benches, rdb, parts);
criterion_main!(benches);
