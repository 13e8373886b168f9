//! Peers that fall silent without a word: no FIN, no RST, nothing comes any more.

use crate::support::cutter::Cutter;
use crate::support::keyferry::Plan;
use crate::support::server::{Server, Setup};
use crate::support::{need, skip, wait_until};
use serde_json::json;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

fn lag(status: &serde_json::Value) -> u64 {
    status["stream"]["lag_ms"].as_u64().unwrap_or(0)
}

/// The link to the source passes nothing any more: the lag says so, and it is made anew.
#[test]
fn a_silent_link_is_noticed_and_resumed() {
    let Some([name]) = need(["any"]) else { return };
    let (source, target) = (Server::start(&name), Server::start(&name));
    let cutter = Cutter::far(&source.address(), Duration::ZERO);
    let plan = Plan::new(&cutter.url(), &target.url());
    let mut running = plan.start("migrate --json");
    source.run("SET before x");
    plan.wait_caught_up(&mut running, LIMIT);
    cutter.silence();
    let began = Instant::now();
    source.run("SET after x");
    let seen = plan.wait_status(&mut running, "behind", LIMIT, |s| lag(s) > 8_000);
    assert!(began.elapsed() < Duration::from_secs(20), "{seen}");
    wait_until("it arrives", Duration::from_secs(20), || {
        target.run("EXISTS after").int() == Some(1)
    });
    plan.wait_caught_up(&mut running, LIMIT);
    running.interrupt();
    running
        .wait(LIMIT)
        .exits(130)
        .says(&["over the link", "reconnecting"]);
}

/// A source that writes nothing and does not even ping is not behind.
#[test]
fn a_quiet_source_is_not_behind() {
    let Some([name]) = need(["any"]) else { return };
    let setup = Setup::new(&name).line("repl-ping-replica-period 3600");
    let (source, target) = (setup.start(), Server::start(&name));
    let plan = Plan::new(&source.url(), &target.url());
    let mut running = plan.start("migrate --json");
    source.run("SET before x");
    plan.wait_caught_up(&mut running, LIMIT);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(28) {
        let status = plan.status();
        assert!(lag(&status) < 1_000, "{status}");
        std::thread::sleep(Duration::from_millis(500));
    }
    running.interrupt();
    let said = running.wait(LIMIT).exits(130).stderr;
    assert!(!said.contains("reconnecting"), "{said}");
}

/// A replica as the source: without a link to its master it is behind, and nobody knows how far.
#[test]
fn a_replica_without_its_master_is_behind() {
    let Some([name]) = need(["any"]) else { return };
    let mut master = Server::start(&name);
    let source = Setup::new(&name).replica_of(&master).start();
    let target = Server::start(&name);
    master.run("SET before x");
    wait_until("the replica has it", LIMIT, || {
        source.run("EXISTS before").int() == Some(1)
    });
    let mut plan = Plan::new(&source.url(), &target.url());
    plan.set("/cutover", json!({ "wait_s": 2, "max_pause_ms": 2000 }));
    let mut running = plan.start("migrate --json");
    plan.wait_caught_up(&mut running, LIMIT);
    master.kill();
    let began = Instant::now();
    let seen = plan.wait_status(&mut running, "behind", LIMIT, |s| lag(s) > 3_000);
    assert!(began.elapsed() < Duration::from_secs(10), "{seen}");
    let note = seen["shards"][0]["note"].as_str().unwrap_or_default();
    assert!(note.contains("its own master"), "{seen}");
    // Nothing is drained as long as that is so.
    plan.run("cutover --dry-run --json").exits(1);
    running.interrupt();
    running.wait(LIMIT).exits(130);
}

/// What asks a source that answers nobody any more ends by its own limit, with a word.
#[test]
fn whoever_asks_a_silent_source_ends() {
    let Some([name]) = need(["any"]) else { return };
    let (source, target) = (Server::start(&name), Server::start(&name));
    let cutter = Cutter::far(&source.address(), Duration::ZERO);
    source.run("SET before x");
    let mut plan = Plan::new(&cutter.url(), &target.url());
    plan.set("/limits", json!({ "outage_s": 5 }));
    plan.set("/cutover", json!({ "wait_s": 5, "max_pause_ms": 2000 }));
    let mut running = plan.start("migrate --json");
    plan.wait_caught_up(&mut running, LIMIT);
    cutter.silence_all();
    let (verify, cutover) = (
        plan.start("verify --json"),
        plan.start("cutover --dry-run --json"),
    );
    verify.wait(LIMIT).exits(3).says(&["no answer within"]);
    assert!([1, 3].contains(&cutover.wait(LIMIT).code));
    drop(running);
}

/// A target that takes and answers nothing any more: what was on its way is written again over new connections.
#[test]
fn a_silent_target_is_left_after_a_minute() {
    if std::env::var_os("KEYFERRY_FULL").is_none() {
        return skip("takes more than a minute: KEYFERRY_FULL=1 runs it");
    }
    let Some([name]) = need(["any"]) else { return };
    let (source, target) = (Server::start(&name), Server::start(&name));
    let cutter = Cutter::far(&target.address(), Duration::ZERO);
    let plan = Plan::new(&source.url(), &cutter.url());
    let mut running = plan.start("migrate --json");
    source.run("SET before x");
    plan.wait_caught_up(&mut running, LIMIT);
    cutter.silence();
    source.run("SET after x");
    plan.wait_status(&mut running, "behind", LIMIT, |s| lag(s) > 5_000);
    wait_until("it arrives", Duration::from_secs(75), || {
        target.run("EXISTS after").int() == Some(1)
    });
    plan.wait_caught_up(&mut running, LIMIT);
    running.interrupt();
    running.wait(LIMIT).exits(130);
}
