//! Snapshots of versions that no package offers, against what their servers themselves answered.

use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;

fn fixtures() -> Vec<std::path::PathBuf> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/rdb");
    let entries = std::fs::read_dir(dir).expect("the fixtures");
    let mut paths: Vec<_> = entries
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "rdb"))
        .collect();
    paths.sort();
    paths
}

/// By database and key; functions by their text.
fn by_key(lines: &str) -> BTreeMap<String, Value> {
    let parsed = lines
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).expect("a line of JSON"));
    parsed
        .map(|v| (format!("{} {} {}", v["db"], v["key"], v["function"]), v))
        .collect()
}

/// Null in what is expected means that the server had no way to tell; a long string is given by its length.
fn differs(expected: &Value, found: &Value, path: &str) -> Option<String> {
    match (expected, found) {
        (Value::Null, _) => None,
        // What the layout of the file does not hold, while the server still knew it.
        (_, Value::Null)
            if [
                ".max_deleted_id",
                ".entries_added",
                ".entries_read",
                ".active_ms",
            ]
            .iter()
            .any(|k| path.ends_with(k)) =>
        {
            None
        }
        (Value::Object(e), Value::String(f)) if e.contains_key("sha256") => {
            (e["len"] != f.len()).then(|| format!("{path}: length {}", f.len()))
        }
        (Value::Object(e), Value::Object(f))
            if e.contains_key("sha256") && f.contains_key("base64") =>
        {
            None
        }
        (Value::Object(e), Value::Object(f)) => e.iter().find_map(|(k, v)| match f.get(k) {
            None if v.is_null() || k == "not_stored_in_rdb" => None,
            None => Some(format!("{path}.{k} is missing")),
            Some(found) => differs(v, found, &format!("{path}.{k}")),
        }),
        (Value::Array(e), Value::Array(f)) if e.len() == f.len() => e
            .iter()
            .zip(f)
            .enumerate()
            .find_map(|(i, (e, f))| differs(e, f, &format!("{path}[{i}]"))),
        (e, f) if e == f => None,
        (e, f) => Some(format!("{path}: expected {e:.200}, found {f:.200}")),
    }
}

#[test]
fn every_sample_reads_as_its_server_told() {
    let mut wrong = Vec::new();
    let mut compared = 0;
    for path in fixtures() {
        let name = path
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let mut out = Vec::new();
        let file = std::fs::File::open(&path).expect("the snapshot");
        if let Err(e) = keyferry::write_json(file, &mut out, false) {
            wrong.push(format!("{name}: {e}"));
        }
        let mut text = String::new();
        let gz = std::fs::File::open(path.with_extension("ndjson.gz")).expect("the content");
        flate2::read::GzDecoder::new(gz)
            .read_to_string(&mut text)
            .expect("gzip");
        let (expected, found) = (
            by_key(&text),
            by_key(&String::from_utf8(out).expect("UTF-8")),
        );
        for (key, value) in &expected {
            compared += 1;
            match found.get(key) {
                None => wrong.push(format!("{name}: {key} is missing")),
                Some(f) => {
                    wrong.extend(differs(value, f, "").map(|d| format!("{name}: {key} {d}")))
                }
            }
        }
        wrong.extend(
            found
                .keys()
                .filter(|k| !expected.contains_key(*k))
                .map(|k| format!("{name}: {k} is too much")),
        );
    }
    assert!(compared > 1000, "only {compared} keys were compared");
    assert!(
        wrong.is_empty(),
        "{} of {compared}:\n{:.6000}",
        wrong.len(),
        wrong.join("\n")
    );
}
