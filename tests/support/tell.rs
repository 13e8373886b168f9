//! What a server itself says of its keys, in the form of `rdb json`, through plain typed commands only.

use super::side::Side;
use super::wire::{Command, Value};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::io;

/// A byte string as `rdb json` prints it.
pub fn text(bytes: &[u8]) -> Json {
    match std::str::from_utf8(bytes) {
        Ok(s) => json!(s),
        Err(_) => {
            use base64::Engine;
            json!({"base64": base64::engine::general_purpose::STANDARD.encode(bytes)})
        }
    }
}

/// Every key of the selected database: its line by its name.
pub fn tell(side: &mut Side, db: u32) -> io::Result<BTreeMap<Vec<u8>, Json>> {
    let mut found = BTreeMap::new();
    let mut cursor = "0".to_owned();
    loop {
        let reply = side.run(&Command::new("SCAN").arg(&cursor).arg("COUNT").arg(1000))?;
        cursor = reply.items()[0].text();
        for key in reply.items()[1].items() {
            let key = key.bytes().to_vec();
            let line = one(side, db, &key)?;
            found.insert(key, line);
        }
        if cursor == "0" {
            return Ok(found);
        }
    }
}

fn one(side: &mut Side, db: u32, key: &[u8]) -> io::Result<Json> {
    let kind = side.run(&Command::new("TYPE").key(key))?.text();
    let expire = if side.knows("pexpiretime") {
        let at = side
            .run(&Command::new("PEXPIRETIME").key(key))?
            .int()
            .unwrap_or(-1);
        json!((at >= 0).then_some(at))
    } else {
        // Without PEXPIRETIME only whether there is one can be told.
        let left = side.run(&Command::new("PTTL").key(key))?.int();
        if left.unwrap_or(-1) >= 0 {
            json!("some")
        } else {
            Json::Null
        }
    };
    let value = match kind.as_str() {
        "string" => text(side.run(&Command::new("GET").key(key))?.bytes()),
        "list" => {
            let items = side.run(&Command::new("LRANGE").key(key).arg("0").arg("-1"))?;
            items.items().iter().map(|i| text(i.bytes())).collect()
        }
        "set" => {
            let items = side.run(&Command::new("SMEMBERS").key(key))?;
            let mut items: Vec<&[u8]> = items.items().iter().map(Value::bytes).collect();
            items.sort_unstable();
            items.into_iter().map(text).collect()
        }
        "zset" => {
            let all = Command::new("ZRANGE")
                .key(key)
                .args(["0", "-1", "WITHSCORES"]);
            let all = side.run(&all)?;
            let mut pairs: Vec<(&[u8], String)> = all
                .items()
                .chunks(2)
                .map(|p| (p[0].bytes(), p[1].text()))
                .collect();
            pairs.sort_unstable();
            pairs
                .into_iter()
                .map(|(m, s)| {
                    let score: f64 = s.parse().unwrap_or(f64::NAN);
                    // Compared as numbers: servers differ in how they write them. Small encodings lose the sign of zero.
                    json!([text(m), if score == 0.0 { 0.0 } else { score }.to_string()])
                })
                .collect()
        }
        "hash" => hash(side, key)?,
        "stream" => stream(side, key)?,
        other => json!({ "unknown type": other }),
    };
    Ok(json!({"db": db, "key": text(key), "type": kind, "expire_at_ms": expire, "value": value}))
}

fn hash(side: &mut Side, key: &[u8]) -> io::Result<Json> {
    let all = side.run(&Command::new("HGETALL").key(key))?;
    let mut pairs: Vec<(&[u8], &[u8])> = all
        .items()
        .chunks(2)
        .map(|p| (p[0].bytes(), p[1].bytes()))
        .collect();
    pairs.sort_unstable();
    let mut times = vec![-1; pairs.len()];
    if side.knows("hpexpiretime") && !pairs.is_empty() {
        let names = pairs.iter().map(|p| p.0);
        let ask = Command::new("HPEXPIRETIME")
            .key(key)
            .arg("FIELDS")
            .arg(pairs.len());
        let reply = side.run(&ask.args(names))?;
        times = reply
            .items()
            .iter()
            .map(|t| t.int().unwrap_or(-1))
            .collect();
    }
    Ok(pairs
        .iter()
        .zip(times)
        .map(|((f, v), at)| json!([text(f), text(v), (at >= 0).then_some(at)]))
        .collect())
}

fn of<'v>(map: &'v Value, name: &str) -> Option<&'v Value> {
    let pair = map.items().chunks(2).find(|pair| pair[0].text() == name)?;
    pair.get(1)
}

fn number(map: &Value, name: &str) -> Json {
    json!(of(map, name).and_then(Value::int))
}

fn stream(side: &mut Side, key: &[u8]) -> io::Result<Json> {
    let full = Command::new("XINFO STREAM")
        .key(key)
        .args(["FULL", "COUNT", "0"]);
    let info = side.run(&full)?;
    let id = |map: &Value, name: &str| of(map, name).map_or(Json::Null, |v| json!(v.text()));
    let entries = side.run(&Command::new("XRANGE").key(key).args(["-", "+"]))?;
    let entries: Json = entries
        .items()
        .iter()
        .map(|e| {
            let fields: Json = e.items()[1]
                .items()
                .chunks(2)
                .map(|p| json!([text(p[0].bytes()), text(p[1].bytes())]))
                .collect();
            json!([e.items()[0].text(), fields])
        })
        .collect();
    let nothing = Value::Array(Vec::new());
    let list = |map: &Value, name: &str| of(map, name).unwrap_or(&nothing).items().to_vec();
    let by_name = |mut list: Vec<Value>| {
        list.sort_by_key(|g| of(g, "name").map(|n| n.bytes().to_vec()));
        list
    };
    let groups: Json = by_name(list(&info, "groups"))
        .iter()
        .map(|g| {
            let mut pel = list(g, "pending");
            pel.sort_by_key(|p| split_id(&p.items()[0].text()));
            let pel: Json = pel
                .iter()
                .map(|p| {
                    let p = p.items();
                    json!([p[0].text(), text(p[1].bytes()), p[2].int(), p[3].int()])
                })
                .collect();
            let consumers: Json = by_name(list(g, "consumers"))
                .iter()
                .map(|c| {
                    let mut ids: Vec<String> =
                        list(c, "pending").iter().map(|p| p.items()[0].text()).collect();
                    ids.sort_by_key(|id| split_id(id));
                    json!({"name": text(of(c, "name").unwrap_or(&nothing).bytes()), "seen_ms": number(c, "seen-time"),
                        "active_ms": number(c, "active-time"), "pel": ids})
                })
                .collect();
            json!({"name": text(of(g, "name").unwrap_or(&nothing).bytes()), "last_id": id(g, "last-delivered-id"),
                "entries_read": number(g, "entries-read"), "pel": pel, "consumers": consumers})
        })
        .collect();
    Ok(
        json!({"length": number(&info, "length"), "last_id": id(&info, "last-generated-id"),
        "max_deleted_id": id(&info, "max-deleted-entry-id"), "entries_added": number(&info, "entries-added"),
        "entries": entries, "groups": groups}),
    )
}

fn split_id(id: &str) -> (u64, u64) {
    let (ms, seq) = id.split_once('-').unwrap_or((id, "0"));
    (ms.parse().unwrap_or(0), seq.parse().unwrap_or(0))
}
