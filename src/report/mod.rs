//! The report: one honest page of what SQLite holds, as JSON and Markdown from the same model.
//!
//! Invariant: what was not proven is said as plainly as what was.

mod markdown;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::store::Store;
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Differences and events listed in the report.
const LISTED: u32 = 200;

/// Writes `report.json` and `report.md` into `out`; returns their paths.
pub fn write(store: &Store, out: &Path) -> Result<Vec<PathBuf>> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(out)
        .context(ErrorKind::Disk, || {
            format!("create the folder {}", out.display())
        })?;
    let model = model(store)?;
    let json = serde_json::to_string_pretty(&model)
        .map_err(|e| Error::new(ErrorKind::Bug, "write the report").cause(e))?;
    Ok(vec![
        whole(out, "report.json", &json)?,
        whole(out, "report.md", &markdown::page(&model))?,
    ])
}

/// A file appears whole or not at all.
fn whole(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let (path, unfinished) = (dir.join(name), dir.join(format!("{name}.new")));
    let failed = || format!("write {}", path.display());
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)
        .context(ErrorKind::Disk, failed)?;
    file.write_all(text.as_bytes())
        .context(ErrorKind::Disk, failed)?;
    std::fs::rename(&unfinished, &path).context(ErrorKind::Disk, failed)?;
    Ok(path)
}

fn model(store: &Store) -> Result<Value> {
    let run = store.run()?;
    let shards = store.shards()?;
    let counts = store.counts()?;
    let verify = store.last_verify()?;
    let sum = |f: &dyn Fn(&crate::store::ShardState) -> u64| shards.iter().map(f).sum::<u64>();
    let with = |prefix: &str| -> Value {
        counts
            .iter()
            .filter_map(|(name, n)| Some((name.strip_prefix(prefix)?.to_owned(), json!(n))))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let phases: Vec<Value> = (store.phase_history()?.into_iter())
        .map(|(name, start, end)| json!({"phase": name, "started": utc(start), "ended": end.map(utc), "ms": end.map(|e| e - start)}))
        .collect();
    let events: Vec<Value> = (store.events(LISTED)?.into_iter())
        .map(
            |e| json!({"at": utc(e.at_ms), "level": e.level, "code": e.code, "message": e.message}),
        )
        .collect();
    let differences: Vec<Value> = (store.differences(LISTED)?.into_iter())
        .map(|d| json!({"db": d.db.0, "key": crate::types::shown(&d.key), "slot": d.slot, "reason": d.reason}))
        .collect();
    let last_write = shards.iter().map(|s| s.updated_at).max().unwrap_or(0);
    let mut unproven: Vec<String> = Vec::new();
    match &verify {
        None => {
            unproven.push("The two sides were never compared: run `keyferry verify PLAN`.".into())
        }
        Some((_, false, _)) => unproven.push(
            "The last comparison found differences, or keys that could not be proven.".into(),
        ),
        Some((at, true, _)) if *at < last_write => {
            unproven.push("The source went on being followed after the last comparison; what came later is acknowledged by the target, but not compared.".into());
        }
        Some(_) => {}
    }
    if shards.iter().any(|s| !s.snapshot_loaded) {
        unproven.push("The snapshot was not loaded to its end.".into());
    }
    if store.phase()? == "failed" {
        unproven.push(
            "The last run failed; the state is saved, and running the same command again goes on."
                .into(),
        );
    }
    Ok(json!({
        "plan": run.as_ref().map(|r| r.plan.clone()),
        "source": run.as_ref().map(|r| r.source.clone()),
        "target": run.as_ref().map(|r| r.target.clone()),
        "mode": run.as_ref().map(|r| r.mode.clone()),
        "fingerprint": run.as_ref().map(|r| r.fingerprint.clone()),
        "started": run.as_ref().map(|r| utc(r.started_ms)),
        "keyferry_version": env!("CARGO_PKG_VERSION"),
        "phase": store.phase()?,
        "phases": phases,
        "moved": {
            "source_shards": shards.len(),
            "keys_read": sum(&|s| s.keys_read), "keys_written": sum(&|s| s.keys_written), "snapshot_bytes": sum(&|s| s.bytes_read),
            "commands_applied": sum(&|s| s.commands_applied), "keys_healed": sum(&|s| s.healed_keys),
        },
        "left_out": with("skipped."),
        "faults": with("faults."),
        "counters": Value::Object(counts.iter().map(|(k, v)| (k.clone(), json!(v))).collect()),
        "verification": verify.map(|(at, equal, summary)| json!({"ended": utc(at), "equal": equal, "summary": strip_lists(summary)})),
        "slots": store.slot_states()?,
        "differences": differences,
        "not_proven": unproven,
        "census": store.json("census")?,
        "events": events,
        "conditions": run.map(|r| r.redacted),
    }))
}

/// The keys are listed once, under "differences".
fn strip_lists(mut summary: Value) -> Value {
    if let Some(map) = summary.as_object_mut() {
        ["missing", "extra", "different", "unprovable"]
            .iter()
            .for_each(|k| {
                map.shift_remove(*k);
            });
    }
    summary
}

/// Unix milliseconds as UTC, "2026-11-20 22:24:01".
pub fn utc(ms: i64) -> String {
    let seconds = ms.div_euclid(1000);
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 1970 to a date, counted in 400-year eras that begin on 1 March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}",
        rest / 3600,
        rest % 3600 / 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Phase;

    #[test]
    fn times_are_utc() {
        assert_eq!(utc(0), "1970-01-01 00:00:00");
        assert_eq!(utc(1_582_934_400_000), "2020-02-29 00:00:00");
        assert_eq!(utc(4_102_444_799_000), "2099-12-31 23:59:59");
    }

    #[test]
    fn what_was_never_compared_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.enter_phase(Phase::Stream, 5).unwrap();
        let written = write(&store, &dir.path().join("report")).unwrap();
        let text = std::fs::read_to_string(&written[1]).unwrap();
        assert!(text.contains("never compared"), "{text}");
    }
}
