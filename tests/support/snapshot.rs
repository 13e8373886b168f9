//! Snapshots made by hand, byte by byte, with the right checksum.

use keyferry::formats::rdb::encoding::{Builder, Packed, put_length, put_string};
use keyferry::formats::rdb::payload::crc;
use std::path::PathBuf;
use tempfile::TempDir;

/// A whole snapshot: magic, records, end, and a checksum where the version has one.
pub fn snapshot(magic: &str, records: &[u8]) -> Vec<u8> {
    let mut file = [magic.as_bytes(), records, &[0xff]].concat();
    if ("REDIS0001".."REDIS0005").contains(&magic) {
        return file;
    }
    let sum = crc(&file);
    file.extend_from_slice(&sum.to_le_bytes());
    file
}

/// A string as a file has it.
pub fn string(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_string(&mut out, text.as_bytes());
    out
}

pub fn length(n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put_length(&mut out, n);
    out
}

/// A key with a value of this type.
pub fn key(type_id: u8, name: &str, body: &[u8]) -> Vec<u8> {
    [&[type_id][..], &string(name), body].concat()
}

/// Strings, one behind the other.
pub fn strings(items: &[&str]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|i| string(i)).collect();
    items
}

/// A listpack of text, as a string; what begins with `#` is a number.
pub fn listpack(items: &[&str]) -> Vec<u8> {
    let mut builder = Builder::default();
    for item in items {
        let element = match item.strip_prefix('#') {
            Some(n) => Packed::Int(n.parse().expect("a number")),
            None => Packed::Bytes(item.as_bytes()),
        };
        assert!(builder.push(element));
    }
    let mut out = Vec::new();
    put_string(&mut out, &builder.finish());
    out
}

/// A DUMP payload of a type and body.
pub fn payload(type_id: u8, body: &[u8], version: u16) -> Vec<u8> {
    let mut out = Vec::new();
    keyferry::formats::rdb::payload::seal(&mut out, &[], type_id, body, version);
    out
}

pub fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

pub fn write(dir: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).expect("a file");
    path
}
