//! What a dry run learns of the data: keys and bytes by type, the largest keys, what would need rebuilding.

use crate::error::Result;
use crate::migrate::context::Shared;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const LARGEST: usize = 20;

/// Counts over the keys seen by one shard.
#[derive(Default)]
pub(crate) struct DryRunStats {
    types: BTreeMap<&'static str, (u64, u64)>,
    largest: Vec<(u64, String, &'static str)>,
    ways: BTreeMap<&'static str, u64>,
}

impl DryRunStats {
    pub fn add(&mut self, kind: &'static str, key: &[u8], bytes: u64, way: &'static str) {
        let (keys, sum) = self.types.entry(kind).or_default();
        *keys += 1;
        *sum += bytes;
        *self.ways.entry(way).or_default() += 1;
        if self.largest.len() < LARGEST || self.largest.last().is_some_and(|l| l.0 < bytes) {
            let at = self.largest.partition_point(|l| l.0 >= bytes);
            self.largest
                .insert(at, (bytes, crate::types::shown(key), kind));
            self.largest.truncate(LARGEST);
        }
    }

    /// Adds to what other shards, or an earlier run, have saved.
    pub fn save(&mut self, shared: &Shared) -> Result<()> {
        if self.types.is_empty() {
            return Ok(());
        }
        let mine = std::mem::take(self);
        shared.store(|store| {
            let mut all = store
                .json("census")?
                .unwrap_or_else(|| json!({"types": {}, "ways": {}, "largest": []}));
            for (kind, (keys, bytes)) in &mine.types {
                let entry = &mut all["types"][*kind];
                *entry = json!({
                    "keys": entry["keys"].as_u64().unwrap_or(0) + keys,
                    "bytes": entry["bytes"].as_u64().unwrap_or(0) + bytes,
                });
            }
            for (way, n) in &mine.ways {
                all["ways"][*way] = json!(all["ways"][*way].as_u64().unwrap_or(0) + n);
            }
            let mut largest: Vec<Value> = all["largest"].as_array().cloned().unwrap_or_default();
            largest.extend(
                mine.largest
                    .iter()
                    .map(|(bytes, key, kind)| json!({"bytes": bytes, "key": key, "type": kind})),
            );
            largest.sort_by_key(|l| std::cmp::Reverse(l["bytes"].as_u64()));
            largest.truncate(LARGEST);
            all["largest"] = json!(largest);
            store.put_json("census", &all)
        })
    }
}
