//! The latency of both sides under the same traffic, measured so that a sceptic can repeat it.
//!
//! Read first: [`run`]. Requests are planned ahead (`load.rs`), the sides take turns in blocks (source, target, target,
//! source, …), and what differs is judged by intervals over blocks (`stats.rs`).
//! Invariant: without `allow_writes` nothing is written; with it, only under a prefix of our own.

mod beyond;
mod compare;
mod export;
mod file;
mod lines;
mod load;
mod options;
mod own;
mod request;
mod rng;
mod sample;
mod servers;
mod side;
mod stats;
mod workload;

pub use load::spin;
pub use options::Options;
pub use stats::{TOLERANCE_SHARE, TOLERANCE_US};

use self::beyond::{Beyond, Course};
use self::compare::{Asked, conclude};
use self::load::{Block, Measured, WARM_UP};
use self::options::stopped;
use self::own::furnish;
use self::side::Side;
use self::workload::{Recipe, Workload};
use crate::error::{Error, ErrorKind, Result};
use crate::histogram::{packed, told as times};
use crate::plan::{Endpoint, Job, Source, WORKLOAD_FILE};
use crate::source::mix::{self, Mix};
use crate::store::{LATENCY, LatencyBlock, Lock, Store, recall_nodes};
use crate::task::{Shutdown, private_dir};
use crate::types::unix_ms;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The document of the measurement that is under way.
const BEGUN: &str = "latency_begun";
/// The rate where none was observed.
const USUAL_RATE: f64 = 1_000.0;
/// Round trips that show the floor of the network.
const PINGS: u32 = 500;
/// Measures both sides of `job`; the answer of `latency --json`. Must run inside of [`spin`].
///
/// Stopped, it goes on with the next block when it is run again.
pub async fn run(job: &Job, options: &Options, stop: &Shutdown) -> Result<Value> {
    private_dir(&options.work_dir)?;
    let dir = options.work_dir.join("latency");
    private_dir(&dir)?;
    let _lock = Lock::acquire(&dir)?;
    let mut store = Store::open(&options.work_dir)?;
    recall_nodes(&options.work_dir, job);
    let Source::Server { endpoint, .. } = &job.source else {
        return Err(Error::new(
            ErrorKind::Plan,
            "a snapshot file has no latency that could be compared",
        ));
    };
    let plan = &job.latency;
    let begun = begin(job, options, &mut store, endpoint).await?;
    let mix = &begun.mix;
    let (real, told) = sample::keys(job, endpoint).await?;
    let mut recipes = Vec::new();
    for name in &plan.workloads {
        recipes.push((name.clone(), Recipe::named(name, mix, plan.allow_writes)?));
    }
    let own: BTreeSet<String> = (recipes.iter())
        .filter_map(|(_, recipe)| recipe.as_ref().map(Recipe::own_names))
        .flatten()
        .collect();
    let value = real.value();
    let open = plan.connections;
    let renamed = real.renamed(&job.renames);
    let mut sides = vec![
        Side::open("source", endpoint, real.clone(), open).await?,
        Side::open("target", &job.target, renamed, open).await?,
    ];
    for (name, endpoint) in &job.also {
        sides.push(Side::open(name, endpoint, real.clone(), open).await?);
    }
    let mut before = Map::new();
    for side in &mut sides {
        let figures = servers::figures(&side.lines.endpoint).await?;
        before.insert(side.name.clone(), figures);
    }
    let measured = measure(job, options, &mut store, &mut sides, &begun, &recipes, stop).await;
    let mut removed = Ok(());
    if plan.allow_writes {
        for side in &mut sides {
            let done = furnish(&mut side.lines, false, &value, &own).await;
            removed = removed.and(done);
        }
    }
    // Why it has ended comes before what could not be tidied up then.
    let mut answer = measured?;
    removed?;
    answer["design"]["popularity"] = json!(match told {
        true => "as the source counts it (LFU)",
        false => "Zipf, the order drawn",
    });
    answer["design"]["value_bytes"] = json!(value.len());
    for side in &sides {
        answer["servers"][side.name.as_str()] = servers::figures(&side.lines.endpoint).await?;
    }
    answer["servers_before"] = before.into();
    store.put_json(LATENCY, &answer)?;
    // The next one is another.
    store.put_json(BEGUN, &Value::Null)?;
    export::write(&dir, &store.latency_blocks()?)?;
    answer["files"] = json!(dir.display().to_string());
    Ok(answer)
}

async fn measure(
    job: &Job,
    options: &Options,
    store: &mut Store,
    sides: &mut [Side],
    begun: &Begun,
    recipes: &[(String, Option<Recipe>)],
    stop: &Shutdown,
) -> Result<Value> {
    let (plan, mix, seed) = (&job.latency, &begun.mix, begun.seed);
    let base = match mix.total() {
        rate if rate >= mix::IDLE => rate,
        _ => USUAL_RATE,
    };
    let mut floor = Map::new();
    for side in sides.iter_mut() {
        let pings = side.lines.floor(PINGS).await?;
        floor.insert(side.name.clone(), times(&pings));
    }
    let mut done = store.latency_blocks()?;
    done.retain(|b| b.about == begun.run);
    let (mut results, mut skipped) = (Vec::new(), Vec::new());
    let apart = sides.iter().any(|s| s.lines.masters() > 1);
    let mut beyond: Option<Beyond> = None;
    for (name, recipe) in recipes {
        let loads = recipe.as_ref().and_then(|recipe| {
            let of = |side: &Side| Workload::new(recipe, &side.real, plan.allow_writes, apart);
            sides.iter().map(of).collect::<Option<Vec<_>>>()
        });
        let (Some(recipe), Some(loads)) = (recipe, loads) else {
            skipped.push(json!({
                "workload": name,
                "why": match name.as_str() {
                    "observed" => "the source runs nothing that may be imitated",
                    _ if plan.allow_writes => "the source has no keys of the types that it reads",
                    _ => "there are no keys that it could read, and latency.allow_writes is not set",
                },
            }));
            continue;
        };
        for rate in &plan.rates {
            let per_s = base * rate;
            (options.tell)(&format!("{name} at {per_s:.0}/s"));
            if plan.allow_writes {
                // Anew each time: they end by themselves, and a long measurement outlives them.
                for side in sides.iter_mut() {
                    let value = side.real.value();
                    furnish(&mut side.lines, true, &value, &BTreeSet::new()).await?;
                }
            }
            let mut blocks: Vec<LatencyBlock> = (done.iter())
                .filter(|b| b.workload == *name && b.rate == *rate)
                .cloned()
                .collect();
            for turn in 0..plan.blocks {
                // There and back again (ABBA): whatever drifts with time meets all alike.
                let back = (turn + u32::from(seed % 2 == 1)) % 2 == 1;
                let mut order: Vec<usize> = (0..sides.len()).collect();
                if back {
                    order.reverse();
                }
                for at in order {
                    let (Some(side), Some(of_side)) = (sides.get_mut(at), loads.get(at)) else {
                        continue;
                    };
                    if blocks
                        .iter()
                        .any(|b| b.block == turn && b.side == side.name)
                    {
                        continue;
                    }
                    if stop.requested() {
                        return Err(stopped());
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
                    let measured = load::run(&mut side.lines, of_side, &block).await?;
                    let row = row(
                        &begun.run, name, *rate, turn, &side.name, started_ms, &measured,
                    )?;
                    store.save_latency_block(&row)?;
                    blocks.push(row);
                }
            }
            let asked = Asked {
                workload: name,
                rate: *rate,
                per_s,
                recipe,
                load: loads.first(),
                seed,
            };
            results.push(conclude(&asked, sides, &blocks)?);
        }
        // What a side can do at most is told by the first workload that can be run.
        if beyond.is_none() {
            let highest = plan.rates.iter().copied().fold(0.0, f64::max) * base;
            let course = Course {
                name,
                of_sides: &loads,
                block_s: plan.block_s,
                even: options.even,
                tell: &*options.tell,
                stop,
            };
            beyond = Some(beyond::run(sides, &course, highest, plan.sweep).await?);
        }
    }
    let beyond = beyond.unwrap_or_default();
    let client = client(&results, &beyond);
    let peaks = beyond.peak.as_ref().map(|peaks| {
        let each = sides.iter().zip(peaks);
        each.map(|(side, peak)| (side.name.to_owned(), json!(peak)))
            .collect::<Map<_, _>>()
    });
    let mut endpoints = Map::new();
    endpoints.insert("source".into(), json!(job.source.to_string()));
    let others = [("target", &job.target)].into_iter();
    let others = others.chain(job.also.iter().map(|(name, at)| (name.as_str(), at)));
    endpoints.extend(others.map(|(name, at)| (name.to_owned(), json!(at.redacted_url()))));
    let names: Vec<&str> = sides.iter().map(|s| s.name.as_str()).collect();
    Ok(json!({
        "plan": job.name,
        "measured_at": unix_ms(),
        "endpoints": endpoints,
        "design": {
            "blocks": plan.blocks, "block_s": plan.block_s, "connections": plan.connections,
            "pipelining": 1, "order": format!("{}, …", names.iter().chain(names.iter().rev()).copied().collect::<Vec<_>>().join(", ")), "begins_with": names.get(if seed % 2 == 1 { names.len() - 1 } else { 0 }),
            "arrivals": if options.even { "even" } else { "Poisson" }, "seed": seed,
            "base_rate_per_s": base, "warm_up_share": WARM_UP,
            "tolerance": { "us": TOLERANCE_US, "share": TOLERANCE_SHARE },
            "allow_writes": plan.allow_writes,
            "keys_read": sides.first().map(|s| s.real.count()),
            "keys_there": sides.iter().map(|s| (s.name.clone(), json!(s.there))).collect::<Map<_, _>>(),
        },
        "observed": mix,
        "floor": floor,
        "results": results,
        "skipped": skipped,
        "sweep": beyond.sweep,
        "peak_per_s": peaks,
        "overload": beyond.overload,
        "client": client,
    }))
}

/// What this program itself, which uses one core, has held.
fn client(results: &[Value], beyond: &Beyond) -> Value {
    let blocks = results.iter().flat_map(|r| {
        let sides = r["endpoints"].as_object().into_iter().flatten();
        sides.map(|(_, side)| (side, r["rate_per_s"].as_f64()))
    });
    let held = blocks.filter(|(side, _)| side["shed"] == 0);
    let stages = beyond.sweep.iter().chain(&beyond.overload);
    let stages = stages.filter(|s| s["shed_by_client"] == 0);
    let rates = (held.filter_map(|(_, rate)| rate))
        .chain(stages.filter_map(|s| s["answered_per_s"].as_f64()));
    let at_limit = (beyond.sweep.iter().chain(&beyond.overload)).any(|s| s["shed_by_client"] != 0);
    json!({
        "held_per_s": rates.fold(0.0, f64::max).round(),
        // False: it was never asked for more than it could do.
        "was_the_limit": at_limit,
    })
}

/// What a measurement keeps to, also when it goes on after a stop.
#[derive(Serialize, Deserialize)]
struct Begun {
    /// The plan's part of it; blocks of another one do not belong to these.
    about: String,
    /// Names its blocks.
    run: String,
    mix: Mix,
    seed: u64,
}

/// Goes on with a measurement that was stopped, or looks at the source for a new one.
async fn begin(
    job: &Job,
    options: &Options,
    store: &mut Store,
    endpoint: &Endpoint,
) -> Result<Begun> {
    // As it may be stored: further servers may have passwords.
    let plan = job.redacted["latency"].to_string();
    let mut about = format!("{} {plan} {}", job.fingerprint, options.even);
    for name in &job.latency.workloads {
        // A file that was changed is another workload.
        if let Some(bytes) = name
            .strip_prefix(WORKLOAD_FILE)
            .and_then(|f| std::fs::read(f).ok())
        {
            about += &format!(
                " {:016x}",
                crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, &bytes)
            );
        }
    }
    let saved = store.json(BEGUN)?;
    let saved = saved.and_then(|v| serde_json::from_value::<Begun>(v).ok());
    let fits = |b: &Begun| b.about == about && options.seed.is_none_or(|seed| seed == b.seed);
    if let Some(begun) = saved.filter(|b| !options.fresh && fits(b)) {
        (options.tell)("going on with the measurement that was stopped");
        return Ok(begun);
    }
    (options.tell)("looking at the source's own traffic");
    let now = unix_ms();
    let begun = Begun {
        run: format!("{now} {about}"),
        about,
        mix: sample::observe(endpoint, store).await?,
        seed: options.seed.unwrap_or(now.unsigned_abs()),
    };
    store.put_json(BEGUN, &serde_json::to_value(&begun).unwrap_or_default())?;
    Ok(begun)
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
