//! A source that comes back without its data: the target keeps what it got until a person says otherwise.

use crate::support::keyferry::{Outcome, Plan};
use crate::support::need;
use crate::support::server::{Server, Setup};
use crate::support::story::{Endpoint, Story};
use crate::support::wait_until;
use crate::support::wire::{Client, Command};
use serde_json::json;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

fn fill(client: &mut Client, name: &str, keys: std::ops::Range<u32>) {
    for n in keys {
        let set = Command::new("SET").key(format!("{name}:{n}")).arg("value");
        client.run(&set).expect("SET");
    }
}

fn size(server: &Server) -> i64 {
    server.run("DBSIZE").int().unwrap_or(0)
}

/// Starts it again without its data: what a snapshot for a replica has left on its disk goes as well.
fn emptied(server: &mut Server) {
    server.kill();
    let _ = std::fs::remove_file(server.dir().join("dump.rdb"));
    server.restart();
}

/// Migrates, follows, loses the source's data under the migration, and returns how it ended.
fn loses(plan: &Plan, source: &mut Server, target: &Server) -> Outcome {
    let mut running = plan.start("migrate --json");
    let status = |s: &serde_json::Value| s["snapshot"]["done"] == true;
    plan.wait_status(&mut running, "loaded", LIMIT, status);
    wait_until("all is there", LIMIT, || size(target) == 5_000);
    emptied(source);
    running.wait(LIMIT)
}

#[test]
fn an_emptied_source_does_not_empty_the_target() {
    let Some([name]) = need(["any"]) else { return };
    let (mut source, target) = (Server::start(&name), Server::start(&name));
    fill(&mut source.client(), "key", 0..5_000);
    let plan = Plan::new(&source.url(), &target.url());
    loses(&plan, &mut source, &target).exits(3).says(&[
        "5000 keys",
        "does not hold 5000",
        "--accept-loss",
    ]);
    assert_eq!(size(&target), 5_000);
    // It is not forgotten, neither with the snapshot that is there nor with another new one.
    let again = || plan.run("migrate --json --until caught-up");
    again().exits(3).says(&["does not hold 5000"]);
    emptied(&mut source);
    again().exits(3).says(&["does not hold 5000"]);
    // What is there again need not go.
    fill(&mut source.client(), "key", 0..3_900);
    again().exits(3).says(&["5000 keys", "does not hold 1100"]);
    fill(&mut source.client(), "key", 3_900..4_000);
    again().exits(0);
    assert_eq!(size(&target), 4_000);
    assert_eq!(plan.run("verify --json").exits(0).json["equal"], true);
}

#[test]
fn a_loss_may_be_accepted_once() {
    let Some([name]) = need(["any"]) else { return };
    let (mut source, target) = (Server::start(&name), Server::start(&name));
    fill(&mut source.client(), "key", 0..5_000);
    let plan = Plan::new(&source.url(), &target.url());
    loses(&plan, &mut source, &target).exits(3);
    // Another data set behind the same address, larger than the one before.
    fill(&mut source.client(), "other", 0..5_000);
    (plan.run("migrate --json --until caught-up").exits(3)).says(&["does not hold 5000"]);
    let mut running = plan.start("migrate --json --accept-loss");
    wait_until("the old keys go", LIMIT, || {
        size(&target) == 5_000 && target.run("EXISTS key:1").int() == Some(0)
    });
    plan.wait_caught_up(&mut running, LIMIT);
    // A second loss is another one.
    emptied(&mut source);
    (running.wait(LIMIT).exits(3)).says(&["does not hold 5000"]);
    assert_eq!(size(&target), 5_000);
}

/// Some keys may go, and all when the source says so in its stream.
#[test]
fn what_the_source_removes_is_no_loss() {
    let Some([name]) = need(["any"]) else { return };
    let (mut source, target) = (Server::start(&name), Server::start(&name));
    fill(&mut source.client(), "key", 0..5_000);
    let mut plan = Plan::new(&source.url(), &target.url());
    plan.set("/max_loss_percent", json!(100));
    let mut running = plan.start("migrate --json");
    wait_until("all is there", LIMIT, || size(&target) == 5_000);
    emptied(&mut source);
    wait_until("100 percent may go", LIMIT, || size(&target) == 0);
    plan.wait_caught_up(&mut running, LIMIT);
    fill(&mut source.client(), "key", 0..5_000);
    wait_until("all is there", LIMIT, || size(&target) == 5_000);
    running.interrupt();
    running.wait(LIMIT).exits(130);
    plan.set("/max_loss_percent", json!(0));
    let mut running = plan.start("migrate --json");
    plan.wait_caught_up(&mut running, LIMIT);
    source.run("FLUSHALL");
    wait_until("the flush arrives", LIMIT, || size(&target) == 0);
    running.interrupt();
    running.wait(LIMIT).exits(130);
}

/// Each shard is guarded by its own keys.
#[test]
fn one_emptied_master_of_a_cluster_is_noticed() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = Story::new(
        Endpoint::cluster(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    story.plan.set("/max_loss_percent", json!(90));
    let mut side = story.source.side();
    for n in 0..5_000 {
        let set = Command::new("SET").key(format!("key:{n}")).arg("value");
        side.run(&set).expect("SET");
    }
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    story.plan.wait_caught_up(&mut running, LIMIT);
    match &mut story.source {
        Endpoint::Cluster(cluster) => emptied(cluster.node_mut(1)),
        Endpoint::Alone(_) => unreachable!(),
    }
    (running.wait(LIMIT).exits(3)).says(&["lost data", "--accept-loss"]);
    assert_eq!(size(&story.target.nodes()[0]), 5_000);
}

/// Mode "scan": neither a sweep nor what was told right before takes the keys away.
#[test]
fn a_scan_of_an_emptied_source_removes_nothing() {
    let Some([name]) = need(["any"]) else { return };
    for line in ["notify-keyspace-events AKE", "notify-keyspace-events \"\""] {
        let mut source = Setup::new(&name).line(line).start();
        let target = Server::start(&name);
        fill(&mut source.client(), "key", 0..5_000);
        let mut plan = Plan::new(&source.url(), &target.url());
        plan.set("/source/mode", json!("scan"));
        // Everything is written once more, and the source goes while that is being read.
        let mut running = plan.start("migrate --json");
        wait_until("all is there", LIMIT, || size(&target) == 5_000);
        plan.wait_status(&mut running, "swept", LIMIT, |s| {
            s["snapshot"]["done"] == true
        });
        fill(&mut source.client(), "key", 0..5_000);
        emptied(&mut source);
        (running.wait(LIMIT).exits(3)).says(&["5000 keys", "does not hold 5000"]);
        assert_eq!(size(&target), 5_000);
        fill(&mut source.client(), "other", 0..50_000);
        let again = || plan.run("migrate --json --until caught-up");
        again().exits(3).says(&["does not hold 5000"]);
        plan.run("migrate --json --until caught-up --accept-loss")
            .exits(0);
        assert_eq!(size(&target), 50_000);
    }
}
