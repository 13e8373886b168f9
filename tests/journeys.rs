//! Each plan of `plans/` between the providers it is for, over TLS, with their passwords and refusals.
//!
//! `KEYFERRY_FULL=1`: 200,000 keys with 2,000 writes a second.

use crate::indexes;
use crate::modules;
use crate::support::compare::{Rules, compare};
use crate::support::dataset::{Fill, fill};
use crate::support::keyferry::Plan;
use crate::support::profile::{self, Profile, Provided};
use crate::support::story::{Endpoint, Story};
use crate::support::traffic;
use crate::support::versions::seeded;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn full() -> bool {
    std::env::var_os("KEYFERRY_FULL").is_some()
}

fn keys() -> u64 {
    if full() { 200_000 } else { 3_000 }
}

/// A plan of `plans/` as users have it.
fn shipped(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("plans/{name}.json"));
    let text = std::fs::read(path).expect("the plan is there");
    serde_json::from_slice(&text).expect("it is JSON")
}

/// The plan `name` between two providers that run, with the source filled; `None` (and said) where one cannot be had.
pub fn story(
    name: &str,
    topology: Option<&str>,
    from: &'static Profile,
    to: &'static Profile,
) -> Option<(Story, Provided, Provided)> {
    let (source, ours) = from.start()?;
    let (target, theirs) = to.start()?;
    let mut json = shipped(name);
    let environment = vec![
        ours.put_into(&source, &mut json["source"], "SOURCE_SECRET"),
        theirs.put_into(&target, &mut json["target"], "TARGET_SECRET"),
    ];
    if let Some(topology) = topology {
        json["target"]["topology"] = json!(topology);
    }
    let mut plan = Plan::of(json);
    plan.environment = environment;
    fill_with_keys(&source);
    let story = Story {
        source,
        target,
        plan,
    };
    Some((story, ours, theirs))
}

fn fill_with_keys(source: &Endpoint) {
    let what = Fill {
        field_expiry: false,
        ..Fill::new(keys())
    };
    fill(&mut source.side(), &what).expect("the source is filled");
}

fn writes(story: &Story) -> traffic::Traffic {
    let options = traffic::Options {
        rate: 2_000,
        seconds: 900,
        field_expiry: false,
        ..story.traffic_options()
    };
    traffic::start(&options).expect("the traffic starts")
}

/// Under 2,000 writes a second from beginning to end; after the freeze it is proven equal.
fn live(name: &str, from: &'static Profile, to: &'static Profile) {
    let Some((story, ours, theirs)) = story(name, None, from, to) else {
        return;
    };
    let checked = story.plan.run("check --json").exits(0).json;
    println!("{name}: {}", checked["mode"]);
    ours.refused(&story.source);
    theirs.refused(&story.target);
    let traffic = writes(&story);
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    std::thread::sleep(Duration::from_secs(if full() { 30 } else { 4 }));
    assert!(running.ended().is_none(), "{}", running.stderr_now());
    let report = traffic.stop();
    let frozen = Instant::now();
    let scans = story.plan.status()["mode"] == "scan";
    assert_eq!(checked["mode"], if scans { "scan" } else { "replica" });
    if scans {
        story
            .plan
            .wait_status(&mut running, "swept", Duration::from_secs(300), |s| {
                let lag = s["stream"]["lag_ms"].as_u64().unwrap_or(u64::MAX);
                lag.saturating_add(1_500) < frozen.elapsed().as_millis() as u64
            });
    } else {
        story
            .plan
            .wait_caught_up(&mut running, Duration::from_secs(120));
    }
    let applied = frozen.elapsed();
    let verified = story.plan.run("verify --json").exits(0);
    assert_eq!(verified.json["equal"], true, "{}", verified.stdout);
    println!(
        "{name}: {} keys, {} writes, applied {applied:?} and proven equal {:?} after the freeze",
        verified.json["keys_source"],
        report.total(),
        frozen.elapsed()
    );
    running.interrupt();
    running.wait(Duration::from_secs(30)).exits(130);
    story.judge();
    story.check_counters(&report);
    // What is refused was sent once, to find that out; the verification has sent nothing of the kind.
    for (side, found) in [
        ("source", ours.refused(&story.source)),
        ("target", theirs.refused(&story.target)),
    ] {
        println!("{name}: refused by the {side}: {found:?}");
        assert!(found.values().all(|n| *n == 1), "{side}: {found:?}");
    }
    story.plan.run("verify --json").exits(0);
    let again = (ours.refused(&story.source), theirs.refused(&story.target));
    assert!(again.0.is_empty() && again.1.is_empty(), "{again:?}");
}

#[test]
fn aiven_valkey_to_azure_managed() {
    let name = "aiven-valkey-to-azure-managed";
    live(name, &profile::AIVEN_VALKEY, &profile::AZURE_MANAGED_OSS);
}

#[test]
fn aiven_valkey_to_azure_managed_with_active_geo_replication() {
    let name = "aiven-valkey-to-azure-managed";
    let to = &profile::AZURE_MANAGED_ACTIVE_GEO;
    live(name, &profile::AIVEN_VALKEY, to);
}

#[test]
fn azure_cache_by_scan_to_azure_managed() {
    live(
        "azure-cache-scan",
        &profile::AZURE_CACHE,
        &profile::AZURE_MANAGED_NONCLUSTERED,
    );
}

#[test]
fn a_self_hosted_cluster_to_elasticache() {
    let name = "self-hosted-cluster-to-elasticache";
    live(name, &profile::SELF_HOSTED_CLUSTER, &profile::ELASTICACHE);
}

#[test]
fn redis_cloud_to_a_valkey_cluster() {
    let name = "redis-cloud-to-valkey-cluster";
    live(name, &profile::REDIS_CLOUD, &profile::VALKEY_CLUSTER);
}

/// JSON, filters, sketches, time series, suggestions and search indexes, under writes, to a target that refuses MODULE.
#[test]
fn a_redis_stack_to_azure_managed_with_modules() {
    let (name, from) = ("redis-stack-to-azure-managed", &profile::REDIS_STACK);
    let Some((story, _, theirs)) = story(name, None, from, &profile::AZURE_MANAGED_MODULES) else {
        return;
    };
    let (source, target) = (&story.source.nodes()[0], &story.target.nodes()[0]);
    let (mut client, mut rng) = (source.client(), seeded());
    modules::begin(&mut client, &mut rng);
    indexes::fill(&mut client, 0..200);
    indexes::create(source);
    let report = story.plan.run("check --json").exits(0).json;
    let told = |id: &str| {
        let all = report["findings"].as_array().cloned().unwrap_or_default();
        let texts = all.iter().filter(|f| f["id"] == id).map(Value::to_string);
        texts.collect::<String>()
    };
    assert!(told("module_types").contains("RESTORE"), "{report}");
    assert!(told("search_indexes").contains("documents"), "{report}");
    theirs.refused(&story.target);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = modules::traffic(source, rng.next(), &stop);
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    indexes::fill(&mut client, 200..300);
    std::thread::sleep(Duration::from_secs(1));
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("the writer ends");
    story.catch_up_and_stop(running);
    story.verify();
    modules::judge(&mut story.source.side(), &mut story.target.side());
    indexes::same_answers(source, target);
    let found = theirs.refused(&story.target);
    assert!(found.values().all(|n| *n == 1), "{found:?}");
}

/// An exported file into the endpoint in front of a cluster.
#[test]
fn an_azure_export_to_azure_managed() {
    let Some((source, _)) = profile::AZURE_CACHE.start() else {
        return;
    };
    let Some((target, theirs)) = profile::AZURE_MANAGED_ENTERPRISE.start() else {
        return;
    };
    fill_with_keys(&source);
    source.nodes()[0].run("SAVE");
    let mut json = shipped("azure-cache-export-to-azure-managed");
    let secret = theirs.put_into(&target, &mut json["target"], "TARGET_SECRET");
    let mut plan = Plan::of(json);
    plan.environment = vec![secret];
    std::fs::copy(
        source.nodes()[0].dir().join("dump.rdb"),
        plan.dir().join("export.rdb"),
    )
    .expect("the snapshot is there");
    plan.run("check --json").exits(0);
    theirs.refused(&target);
    plan.run("migrate --json").exits(0);
    let verified = plan.run("verify --json").exits(0);
    assert_eq!(verified.json["equal"], true, "{}", verified.stdout);
    let found = compare(&mut source.side(), &mut target.side(), &Rules::default());
    let found = found.expect("both sides can be compared");
    assert!(found.equal(), "{found}");
    let found = theirs.refused(&target);
    assert!(found.values().all(|n| *n == 1), "{found:?}");
}

/// A live source into the endpoint in front of a cluster: scripts, transactions and several keys are parted by slot.
#[test]
fn aiven_valkey_to_an_enterprise_endpoint() {
    let (name, from) = ("aiven-valkey-to-azure-managed", &profile::AIVEN_VALKEY);
    let to = &profile::AZURE_MANAGED_ENTERPRISE;
    let Some((story, _, theirs)) = story(name, Some("proxy"), from, to) else {
        return;
    };
    let traffic = writes(&story);
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    std::thread::sleep(Duration::from_secs(4));
    let report = traffic.stop();
    story.catch_up_and_stop(running);
    story.verify();
    story.judge();
    story.check_counters(&report);
    let found = theirs.refused(&story.target);
    assert!(found.values().all(|n| *n == 1), "{found:?}");
    assert!(matches!(story.target, Endpoint::Cluster(_)));
}
