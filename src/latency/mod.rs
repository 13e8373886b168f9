//! The latency of both sides under the same traffic, measured so that a sceptic can repeat it.
//!
//! Read first: [`run`]. Requests are planned ahead (`load.rs`), the sides take turns in blocks (source, target, target,
//! source, …), and what differs is judged by intervals over blocks (`stats.rs`).
//! Invariant: without `allow_writes` nothing is written; with it, only under a prefix of our own.

mod export;
mod load;
mod stats;
mod workload;

pub use load::spin;
pub use stats::{PERCENTILES, TOLERANCE_SHARE, TOLERANCE_US};

use self::load::{Block, Lines, Measured, Rng};
use self::stats::{Verdict, differences, is_known, merged, verdict};
use self::workload::{RealKeys, Recipe, Workload, furnish};
use crate::error::{Error, ErrorKind, Result};
use crate::net::scan::{self, Scan};
use crate::net::{self, info_field, server};
use crate::plan::{Endpoint, Job, Source};
use crate::source::mix::{self, Mix};
use crate::source::private_dir;
use crate::store::{LATENCY, LatencyBlock, Lock, MIX, Store};
use crate::task::Shutdown;
use crate::types::unix_ms;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long the source's own traffic is looked at.
const WINDOW: Duration = Duration::from_secs(3);
/// The rate where none was observed.
const USUAL_RATE: f64 = 1_000.0;
/// Keys that are read are a sample of so many.
const SAMPLE: usize = 5_000;
/// Round trips that show the floor of the network.
const PINGS: u32 = 500;
/// The share of a block that is not counted.
const WARM_UP: f64 = 0.1;
/// Beyond the highest rate of the plan.
const OVERLOAD: [f64; 2] = [1.5, 2.0];
/// How long an overload lasts.
const OVERLOAD_S: f64 = 3.0;
/// A p99 of our own lateness above this share of the median colours the result.
const SLIP_SHARE: f64 = 0.2;
const SLIP_US: f64 = 100.0;

/// How a measurement is run, beside its plan.
pub struct Options {
    /// The plan's own folder.
    pub work_dir: PathBuf,
    /// Forgets blocks of a measurement that was stopped.
    pub fresh: bool,
    /// Requests at even distances.
    pub even: bool,
    /// Which requests come in which order.
    pub seed: Option<u64>,
    pub tell: Arc<dyn Fn(&str) + Send + Sync>,
}

/// One side while it is measured.
struct Side {
    name: &'static str,
    lines: Lines,
    real: RealKeys,
}

/// Measures both sides of `job`; the answer of `latency --json`. Must run inside of [`spin`].
///
/// Stopped, it goes on with the next block when it is run again.
pub async fn run(job: &Job, options: &Options, stop: &Shutdown) -> Result<Value> {
    private_dir(&options.work_dir)?;
    let dir = options.work_dir.join("latency");
    private_dir(&dir)?;
    let _lock = Lock::acquire(&dir)?;
    let mut store = Store::open(&options.work_dir)?;
    let Source::Server { endpoint, .. } = &job.source else {
        return Err(Error::new(
            ErrorKind::Plan,
            "a snapshot file has no latency that could be compared",
        ));
    };
    (options.tell)("looking at the source's own traffic");
    let mix = observe(endpoint, &mut store).await?;
    let plan = &job.latency;
    let real = sample(job, endpoint).await?;
    let mut sides = vec![
        Side {
            name: "source",
            lines: Lines::open(endpoint, plan.connections).await?,
            real: real.clone(),
        },
        Side {
            name: "target",
            lines: Lines::open(&job.target, plan.connections).await?,
            real: real.renamed(&job.renames),
        },
    ];
    if plan.allow_writes {
        for side in &mut sides {
            furnish(&mut side.lines, true).await?;
        }
    }
    let measured = measure(job, options, &mut store, &mut sides, &mix, stop).await;
    if plan.allow_writes {
        for side in &mut sides {
            furnish(&mut side.lines, false).await?;
        }
    }
    let mut answer = measured?;
    for side in &sides {
        answer["servers"][side.name] = figures(&side.lines.endpoint).await?;
    }
    store.put_json(LATENCY, &answer)?;
    export::write(&dir, &store.latency_blocks()?)?;
    answer["files"] = json!(dir.display().to_string());
    Ok(answer)
}

/// The source's traffic of now; that of an earlier look where it is idle by now.
async fn observe(endpoint: &Endpoint, store: &mut Store) -> Result<Mix> {
    let now = mix::observe(endpoint, WINDOW).await?;
    if now.total() >= mix::IDLE {
        store.put_json(MIX, &serde_json::to_value(&now).unwrap_or_default())?;
        return Ok(now);
    }
    let saved = store
        .json(MIX)?
        .and_then(|v| serde_json::from_value(v).ok());
    Ok(saved.unwrap_or(now))
}

/// Keys of the source that the plan moves, by their types.
async fn sample(job: &Job, endpoint: &Endpoint) -> Result<RealKeys> {
    let mut real = RealKeys::default();
    let (layout, _) = server::layout(endpoint).await?;
    let each = SAMPLE / layout.masters.len().max(1);
    for master in &layout.masters {
        let mut conn = net::connect(endpoint, &master.address).await?;
        // Only database 0, where the target has no other.
        let dbs = scan::databases(&mut conn).await?;
        if job.databases.map(crate::types::DbIndex::ZERO).is_none() || dbs.is_empty() {
            continue;
        }
        let (mut scan, mut taken) = (Scan::new(), 0);
        while let Some(page) = scan.next(&mut conn, 500).await? {
            let wanted: Vec<Vec<u8>> = page.into_iter().filter(|k| job.filter.accepts(k)).collect();
            for key in &wanted {
                conn.push(&[b"TYPE", key]);
            }
            conn.flush().await?;
            for key in wanted {
                let kind = conn.reply().await?;
                if let Some(kind) = kind.text().filter(|k| k != "none") {
                    real.0.entry(kind.into_owned()).or_default().push(key);
                    taken += 1;
                }
            }
            if taken >= each {
                break;
            }
        }
    }
    // The popular ones are not those that come first.
    let mut rng = Rng::new(1);
    for keys in real.0.values_mut() {
        for i in (1..keys.len()).rev() {
            keys.swap(i, rng.below(i + 1));
        }
    }
    Ok(real)
}

async fn measure(
    job: &Job,
    options: &Options,
    store: &mut Store,
    sides: &mut [Side],
    mix: &Mix,
    stop: &Shutdown,
) -> Result<Value> {
    let plan = &job.latency;
    let base = match mix.total() {
        rate if rate >= mix::IDLE => rate,
        _ => USUAL_RATE,
    };
    let mut floor = Map::new();
    for side in sides.iter_mut() {
        let pings = side.lines.floor(PINGS).await?;
        floor.insert(side.name.into(), times(&pings));
    }
    let about = about(job, mix, options);
    let mut done = store.latency_blocks()?;
    done.retain(|b| b.about == about && !options.fresh);
    let seed = options.seed.unwrap_or_else(|| unix_ms().unsigned_abs());
    let (mut results, mut skipped) = (Vec::new(), Vec::new());
    let apart = sides.iter().any(|s| s.lines.masters() > 1);
    for name in &plan.workloads {
        let recipe = Recipe::named(name, mix, plan.allow_writes);
        let loads = recipe.as_ref().and_then(|recipe| {
            let of = |side: &Side| Workload::new(recipe, &side.real, plan.allow_writes, apart);
            sides.iter().map(of).collect::<Option<Vec<_>>>()
        });
        let (Some(recipe), Some(loads)) = (recipe, loads) else {
            skipped.push(json!({
                "workload": name,
                "why": match name.as_str() {
                    "observed" => "the source runs nothing that may be imitated",
                    _ => "there are no keys that it could read, and latency.allow_writes is not set",
                },
            }));
            continue;
        };
        for rate in &plan.rates {
            let per_s = base * rate;
            (options.tell)(&format!("{name} at {per_s:.0}/s"));
            let mut blocks: Vec<LatencyBlock> = (done.iter())
                .filter(|b| b.workload == *name && b.rate == *rate)
                .cloned()
                .collect();
            for turn in 0..plan.blocks {
                // ABBA: whatever drifts with time meets both alike.
                let first = usize::from((turn + u32::from(seed % 2 == 1)) % 2 == 1);
                for at in [first, 1 - first] {
                    let (Some(side), Some(load)) = (sides.get_mut(at), loads.get(at)) else {
                        continue;
                    };
                    if blocks
                        .iter()
                        .any(|b| b.block == turn && b.side == side.name)
                    {
                        continue;
                    }
                    if stop.requested() {
                        return Err(Error::new(
                            ErrorKind::Interrupted,
                            "the measurement was stopped; run again, it goes on with the next block",
                        ));
                    }
                    let block = Block {
                        rate: per_s,
                        seconds: f64::from(plan.block_s),
                        warm_up: f64::from(plan.block_s) * WARM_UP,
                        // Both sides get the same requests at the same distances.
                        seed: seed.wrapping_add(u64::from(turn)),
                        even: options.even,
                    };
                    let started_ms = unix_ms();
                    let measured = side.lines.run(load, &block).await?;
                    let row = row(&about, name, *rate, turn, side.name, started_ms, &measured)?;
                    store.save_latency_block(&row)?;
                    blocks.push(row);
                }
            }
            results.push(conclude(name, *rate, per_s, &recipe, &blocks, seed)?);
        }
    }
    let overload = overload(job, options, sides, mix, base, stop).await?;
    Ok(json!({
        "plan": job.name,
        "measured_at": unix_ms(),
        "endpoints": {
            "source": job.source.to_string(), "target": job.target.redacted_url(),
        },
        "design": {
            "blocks": plan.blocks, "block_s": plan.block_s, "connections": plan.connections,
            "pipelining": 1, "order": "source, target, target, source, …", "begins_with": if seed % 2 == 1 { "target" } else { "source" },
            "arrivals": if options.even { "even" } else { "Poisson" }, "seed": seed,
            "base_rate_per_s": base, "warm_up_share": WARM_UP,
            "tolerance": { "us": TOLERANCE_US, "share": TOLERANCE_SHARE },
            "allow_writes": plan.allow_writes,
            "keys_read": sides.first().map(|s| s.real.count()),
        },
        "observed": mix,
        "floor": floor,
        "results": results,
        "skipped": skipped,
        "overload": overload,
    }))
}

/// Blocks of another plan, traffic or way of measuring do not belong to these.
fn about(job: &Job, mix: &Mix, options: &Options) -> String {
    let plan = &job.latency;
    format!(
        "{} {} {} {} {} {} {}",
        job.fingerprint,
        plan.blocks,
        plan.block_s,
        plan.connections,
        plan.allow_writes,
        mix.seen_ms,
        options.even
    )
}

fn row(
    about: &str,
    workload: &str,
    rate: f64,
    block: u32,
    side: &str,
    started_ms: i64,
    m: &Measured,
) -> Result<LatencyBlock> {
    let kinds: Map<String, Value> = m
        .kinds
        .iter()
        .map(|(kind, h)| ((*kind).to_owned(), times(h)))
        .collect();
    Ok(LatencyBlock {
        about: about.to_owned(),
        workload: workload.to_owned(),
        rate,
        block,
        side: side.to_owned(),
        started_ms,
        errors: m.errors,
        shed: m.shed,
        planned: m.planned,
        response: packed(&m.response)?,
        service: packed(&m.service)?,
        detail: json!({
            "kinds": kinds, "slip": times(&m.slip), "first_error": m.first_error,
        }),
    })
}

fn packed(h: &Histogram<u64>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match V2DeflateSerializer::new().serialize(h, &mut bytes) {
        Ok(_) => Ok(bytes),
        Err(e) => Err(Error::new(
            ErrorKind::Bug,
            format!("pack a histogram: {e:?}"),
        )),
    }
}

fn unpacked(bytes: &[u8]) -> Result<Histogram<u64>> {
    let read = Deserializer::new().deserialize(&mut std::io::Cursor::new(bytes));
    read.map_err(|e| {
        Error::new(
            ErrorKind::State,
            format!("a saved histogram is damaged: {e:?}"),
        )
    })
}

/// One workload at one rate: both sides, their difference, the verdict.
fn conclude(
    workload: &str,
    rate: f64,
    per_s: f64,
    recipe: &Recipe,
    blocks: &[LatencyBlock],
    seed: u64,
) -> Result<Value> {
    let mut of_sides = Vec::new();
    let mut endpoints = Map::new();
    let (mut trouble, mut late) = (None, 0.0f64);
    for side in ["source", "target"] {
        let mut own: Vec<&LatencyBlock> = blocks.iter().filter(|b| b.side == side).collect();
        own.sort_by_key(|b| b.block);
        let response: Vec<Histogram<u64>> = own
            .iter()
            .map(|b| unpacked(&b.response))
            .collect::<Result<_>>()?;
        let service: Vec<Histogram<u64>> = own
            .iter()
            .map(|b| unpacked(&b.service))
            .collect::<Result<_>>()?;
        let (all, served) = (merged(&response), merged(&service));
        let sum = |of: fn(&LatencyBlock) -> u64| own.iter().map(|b| of(b)).sum::<u64>();
        let slips: Vec<f64> = (own.iter())
            .filter_map(|b| b.detail["slip"]["p99_us"].as_f64())
            .collect();
        let slip = median(slips);
        let (shed, errors) = (sum(|b| b.shed), sum(|b| b.errors));
        let middle = all.value_at_quantile(0.5) as f64;
        if slip > SLIP_US.max(middle * SLIP_SHARE) {
            late = late.max(slip);
        }
        if shed > 0 {
            trouble = Some(format!(
                "the {side} did not keep up: {shed} requests were shed; see the overload stage"
            ));
        }
        endpoints.insert(
            side.into(),
            json!({
                "count": all.len(), "errors": errors, "shed": shed, "planned": sum(|b| b.planned),
                "first_error": own.iter().find_map(|b| b.detail["first_error"].as_str()),
                "response": times(&all), "service": times(&served),
                "client_late_p99_us": slip,
                "kinds": own.last().map(|b| b.detail["kinds"].clone()),
                "blocks": own.iter().zip(&response).map(|(b, h)| json!({
                    "block": b.block, "started_at": b.started_ms, "response": times(h),
                })).collect::<Vec<_>>(),
            }),
        );
        of_sides.push(response);
    }
    let [source, target] = of_sides.as_slice() else {
        return Err(Error::new(
            ErrorKind::Bug,
            "a comparison of other than two sides",
        ));
    };
    let found = differences(source, target, seed);
    // What is many times as large as our own lateness is not made by it.
    let judged = found.iter().filter(|d| stats::is_judged(d));
    let largest = judged
        .map(|d| d.difference_us.value.abs())
        .fold(0.0, f64::max);
    if late > 0.0 && late > largest * SLIP_SHARE {
        trouble.get_or_insert(format!(
            "this program itself was late: {late:.0} µs at its p99; measure from a host with a core to spare"
        ));
    }
    let (verdict, why) = verdict(&found, source.len().min(target.len()), trouble);
    let by_name = |of: &dyn Fn(&stats::Difference) -> Value| -> Map<String, Value> {
        found.iter().map(|d| (d.name.to_owned(), of(d))).collect()
    };
    Ok(json!({
        "workload": workload,
        "rate": rate,
        "rate_per_s": per_s,
        "requests": recipe.parts.iter().map(|(what, weight)| json!({"kind": what.name(), "weight": weight})).collect::<Vec<_>>(),
        "left_out": recipe.left_out.iter().map(|(what, share)| json!({"what": what, "share": share})).collect::<Vec<_>>(),
        "endpoints": endpoints,
        "difference_us": by_name(&|d| json!(d.difference_us)),
        "ratio": by_name(&|d| json!(d.ratio)),
        "verdict": verdict,
        "why": why,
        "conclusive": verdict != Verdict::Refused,
    }))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// What happens beyond the highest rate: how much is answered, how late, and how much is shed.
async fn overload(
    job: &Job,
    options: &Options,
    sides: &mut [Side],
    mix: &Mix,
    base: f64,
    stop: &Shutdown,
) -> Result<Vec<Value>> {
    let plan = &job.latency;
    let highest = plan.rates.iter().copied().fold(0.0, f64::max) * base;
    let apart = sides.iter().any(|s| s.lines.masters() > 1);
    let mut stages = Vec::new();
    // The first workload that can be run.
    for name in &plan.workloads {
        let Some(recipe) = Recipe::named(name, mix, plan.allow_writes) else {
            continue;
        };
        for times_highest in OVERLOAD {
            for side in sides.iter_mut() {
                let Some(load) = Workload::new(&recipe, &side.real, plan.allow_writes, apart)
                else {
                    continue;
                };
                if stop.requested() {
                    return Err(Error::new(
                        ErrorKind::Interrupted,
                        "the measurement was stopped",
                    ));
                }
                let rate = highest * times_highest;
                (options.tell)(&format!(
                    "overload: {name} at {rate:.0}/s on the {}",
                    side.name
                ));
                let block = Block {
                    rate,
                    seconds: OVERLOAD_S.min(f64::from(plan.block_s)),
                    warm_up: OVERLOAD_S.min(f64::from(plan.block_s)) * WARM_UP,
                    seed: 7,
                    even: options.even,
                };
                let m = side.lines.run(&load, &block).await?;
                stages.push(json!({
                    "workload": name, "times_highest_rate": times_highest, "rate_per_s": rate,
                    "side": side.name, "planned": m.planned, "answered": m.response.len(),
                    "shed": m.shed, "errors": m.errors, "response": times(&m.response),
                    "service": times(&m.service),
                }));
            }
        }
        if !stages.is_empty() {
            break;
        }
    }
    Ok(stages)
}

/// A distribution as the answer has it; percentiles only where there are requests enough.
fn times(h: &Histogram<u64>) -> Value {
    let mut out = Map::new();
    out.insert("count".into(), json!(h.len()));
    out.insert("mean_us".into(), json!((h.mean() * 10.0).round() / 10.0));
    for (name, q) in PERCENTILES {
        let value = is_known(q, h.len()).then(|| h.value_at_quantile(q));
        out.insert(name.into(), json!(value));
    }
    out.insert("max_us".into(), json!(h.max()));
    Value::Object(out)
}

/// What the servers of a side say of themselves.
async fn figures(endpoint: &Endpoint) -> Result<Value> {
    let (layout, server) = server::layout(endpoint).await?;
    let mut sums: Map<String, Value> = Map::new();
    for master in &layout.masters {
        let mut conn = net::connect(endpoint, &master.address).await?;
        let reply = conn.ask(&[b"INFO", b"everything"]).await?;
        let info = reply.text().unwrap_or_default().into_owned();
        for field in [
            "used_memory",
            "used_memory_rss",
            "evicted_keys",
            "expired_keys",
            "keyspace_hits",
            "keyspace_misses",
            "connected_clients",
            "used_cpu_sys",
            "used_cpu_user",
        ] {
            let Some(n) = info_field(&info, field).and_then(|v| v.parse::<f64>().ok()) else {
                continue;
            };
            let before = sums.get(field).and_then(Value::as_f64).unwrap_or(0.0);
            sums.insert(field.into(), json!(before + n));
        }
    }
    let read = sums.clone();
    let n = |field: &str| read.get(field).and_then(Value::as_f64);
    if let (Some(hits), Some(misses)) = (n("keyspace_hits"), n("keyspace_misses")) {
        sums.insert("hit_ratio".into(), json!(hits / (hits + misses).max(1.0)));
    }
    if let (Some(rss), Some(used)) = (n("used_memory_rss"), n("used_memory")) {
        sums.insert("fragmentation".into(), json!(rss / used.max(1.0)));
    }
    sums.insert("server".into(), json!(server.to_string()));
    sums.insert("masters".into(), json!(layout.masters.len()));
    Ok(Value::Object(sums))
}
