//! `keyferry status`: everything from SQLite, so also while or after another process runs the plan.

use super::{Common, human_bytes, load, print, print_json, state_dir};
use crate::error::Result;
use crate::source::unix_ms;
use crate::store::{ShardState, Store};
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Args)]
pub struct Status {
    /// The plan file
    plan: PathBuf,
    /// Print as JSON
    #[arg(long)]
    json: bool,
    /// Print again every second, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

pub fn run(args: Status, common: &Common) -> Result<u8> {
    let job = load(&args.plan)?;
    let dir = state_dir(common, &job);
    loop {
        let status = match Store::open_existing(&dir)? {
            Some(store) => status(&job.name, &store)?,
            None => describe(&job.name, "new", "", &[], Value::Null),
        };
        if args.json {
            print_json(&status)?;
        } else {
            print(&text(&status))?;
        }
        if !args.watch {
            return Ok(0);
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

fn status(name: &str, store: &Store) -> Result<Value> {
    let mode = store.run()?.map(|r| r.mode).unwrap_or_default();
    let last = store.last_verify()?.map_or(Value::Null, |(at, equal, summary)| {
        json!({"ended_at": at, "equal": equal, "slots_different": summary["slots_different"], "keys_source": summary["keys_source"],
               "keys_target": summary["keys_target"]})
    });
    Ok(describe(
        name,
        &store.phase()?,
        &mode,
        &store.shards()?,
        last,
    ))
}

fn shard(s: &ShardState) -> Value {
    let (source, applied) = (s.source_offset.map(|o| o.0), s.applied.map(|o| o.0));
    json!({
        "shard": s.shard.0, "address": s.address, "slots": s.slots,
        "snapshot": {"keys_read": s.keys_read, "keys_written": s.keys_written, "bytes_read": s.bytes_read,
                     "bytes_total": s.bytes_total, "done": s.snapshot_loaded},
        "stream": {"source_offset": source, "applied_offset": applied, "stable_offset": s.stable.map(|o| o.0),
                   "lag_bytes": source.unwrap_or(0).saturating_sub(applied.unwrap_or(0)), "lag_ms": s.lag_ms,
                   "commands_applied": s.commands_applied},
        "healed_keys": s.healed_keys, "updated_at": s.updated_at,
    })
}

fn describe(
    name: &str,
    phase: &str,
    mode: &str,
    shards: &[ShardState],
    last_verify: Value,
) -> Value {
    let sum = |f: &dyn Fn(&ShardState) -> u64| shards.iter().map(f).sum::<u64>();
    let offset = |o: Option<crate::types::ReplOffset>| o.map_or(0, |o| o.0);
    json!({
        "plan": name, "phase": phase, "mode": mode,
        "snapshot": {
            "keys_read": sum(&|s| s.keys_read), "keys_written": sum(&|s| s.keys_written), "bytes_read": sum(&|s| s.bytes_read),
            "bytes_total": sum(&|s| s.bytes_total), "done": !shards.is_empty() && shards.iter().all(|s| s.snapshot_loaded),
        },
        "stream": {
            "source_offset": sum(&|s| offset(s.source_offset)), "applied_offset": sum(&|s| offset(s.applied)),
            "stable_offset": sum(&|s| offset(s.stable)),
            "lag_bytes": sum(&|s| offset(s.source_offset).saturating_sub(offset(s.applied))),
            "lag_ms": shards.iter().map(|s| s.lag_ms).max().unwrap_or(0),
            "commands_applied": sum(&|s| s.commands_applied),
        },
        "shards": shards.iter().map(shard).collect::<Vec<_>>(),
        "last_verify": last_verify,
        "updated_at": shards.iter().map(|s| s.updated_at).max().unwrap_or(0),
    })
}

fn text(status: &Value) -> String {
    let n = |v: &Value| v.as_u64().unwrap_or(0);
    let (snapshot, stream) = (&status["snapshot"], &status["stream"]);
    let age = unix_ms() - status["updated_at"].as_i64().unwrap_or(0);
    let mut lines = vec![
        format!(
            "{}: phase {}",
            status["plan"].as_str().unwrap_or(""),
            status["phase"].as_str().unwrap_or("")
        ),
        format!(
            "snapshot: {} keys written of {} read, {} of {}{}",
            n(&snapshot["keys_written"]),
            n(&snapshot["keys_read"]),
            human_bytes(n(&snapshot["bytes_read"])),
            human_bytes(n(&snapshot["bytes_total"])),
            if snapshot["done"] == true {
                ", done"
            } else {
                ""
            }
        ),
        format!(
            "stream: {} commands applied, lag {} and {} ms",
            n(&stream["commands_applied"]),
            human_bytes(n(&stream["lag_bytes"])),
            n(&stream["lag_ms"])
        ),
    ];
    if let Some(equal) = status["last_verify"]["equal"].as_bool() {
        lines.push(format!(
            "last verification: {}",
            if equal { "equal" } else { "NOT equal" }
        ));
    }
    if n(&status["updated_at"]) > 0 {
        lines.push(format!("as of {:.1} s ago", age as f64 / 1000.0));
    }
    lines.join("\n")
}
