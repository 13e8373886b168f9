//! Mode "scan" far from both sides: what is read ahead arrives in order, and distance costs little.

use crate::support::far::{Far, Line};
use crate::support::need;
use crate::support::server::Setup;
use crate::support::story::{Endpoint, Story};
use crate::support::traffic::{self, Options};
use crate::support::wait_until;
use crate::support::wire::Command;
use serde_json::json;
use std::time::{Duration, Instant};

const ONE_WAY: Duration = Duration::from_millis(20);
const SOON: Duration = Duration::from_secs(60);

/// A story whose servers are this far from keyferry, in mode "scan".
fn far(mut story: Story) -> (Story, Line, Vec<Far>) {
    let line = Line::default();
    line.delay(ONE_WAY);
    let mut all = Vec::new();
    for (side, end) in [("source", &story.source), ("target", &story.target)] {
        let addresses = end.nodes().iter().map(|n| n.address());
        let (fars, map) = Far::before(addresses, &line);
        match end {
            Endpoint::Cluster(_) => story.plan.set(&format!("/{side}/address_map"), map),
            Endpoint::Alone(_) => story
                .plan
                .set(&format!("/{side}/url"), json!(fars[0].url())),
        }
        all.extend(fars);
    }
    story.plan.set("/source/mode", json!("scan"));
    (story, line, all)
}

fn story(name: &str, notify: &str, cluster: bool) -> Story {
    let source = Setup::new(name).line(&format!("notify-keyspace-events \"{notify}\""));
    let target = match cluster {
        true => Endpoint::cluster(Setup::new(name)),
        false => Endpoint::alone(Setup::new(name)),
    };
    Story::new(Endpoint::alone(source), target)
}

/// Some values larger than a window, and one larger than what is read whole.
fn fill(story: &Story, keys: u64) {
    story.fill(keys);
    let mut side = story.source.side();
    for (name, len) in [("big:1", 3 << 20), ("big:2", 2_500_000), ("huge", 9 << 20)] {
        let set = Command::new("SETRANGE").arg(name).arg(len).arg("x");
        side.run(&set).expect("an answer");
    }
}

/// Writers work while it is copied and swept; at their end both sides are alike.
fn stays_alike(name: &str, notify: &str, cluster: bool) {
    let (story, line, _fars) = far(story(name, notify, cluster));
    fill(&story, 20_000);
    let options = Options {
        rate: 500,
        seconds: 100,
        ..story.traffic_options()
    };
    let traffic = traffic::start(&options).expect("the traffic starts");
    let began = Instant::now();
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    println!("loaded after {:?}", began.elapsed());
    (story.plan).wait_status(&mut running, "swept", SOON, |s| {
        s["stream"]["scan"]["sweeps"].as_u64() > Some(0)
    });
    let report = traffic.stop();
    story.catch_up_and_stop(running);
    println!(
        "alike after {:?}: {}",
        began.elapsed(),
        story.plan.status()["stream"]["scan"]
    );
    line.delay(Duration::ZERO);
    story.verify();
    story.judge();
    story.check_counters(&report);
}

#[test]
fn far_by_notifications_to_a_cluster() {
    let Some([name]) = need(["any"]) else { return };
    stays_alike(&name, "AKE", true);
}

#[test]
fn far_by_sweeps_alone() {
    let Some([name]) = need(["any"]) else { return };
    stays_alike(&name, "", false);
}

/// What a copy waits for does not grow with the number of windows.
#[test]
fn a_far_copy_takes_few_round_trips() {
    let Some([name]) = need(["any"]) else { return };
    let took = [1, 30].map(|thousands| {
        let (story, _line, _fars) = far(story(&name, "AKE", false));
        for n in 0..thousands {
            let mut set = Command::new("MSET");
            for i in 0..1_000 {
                set = set
                    .arg(format!("more:{}", n * 1_000 + i))
                    .arg("x".repeat(50));
            }
            story.source.side().run(&set).expect("an answer");
        }
        let began = Instant::now();
        story.plan.run("migrate --until caught-up --json").exits(0);
        began.elapsed()
    });
    println!("{took:?}");
    // Copied and swept window by window, 60 of each at 40 ms, that was more than 10 s.
    assert!(took[1] < took[0] + Duration::from_secs(8), "{took:?}");
}

/// Killed in the middle of the copy it goes on; a source that comes back empty is refused.
#[test]
fn a_far_copy_that_is_killed_goes_on() {
    let Some([name]) = need(["any"]) else { return };
    let (mut story, _line, _fars) = far(story(&name, "", false));
    story.plan.set("/limits", json!({ "keys_per_s": 4_000 }));
    fill(&story, 15_000);
    let running = story.migrate();
    wait_until("keys arrive", SOON, || {
        story.target.side().size().is_ok_and(|n| n > 4_000)
    });
    std::thread::sleep(Duration::from_millis(500));
    running.signal("KILL");
    running.wait(Duration::from_secs(10));
    story.plan.set("/limits", json!({}));
    story.source.nodes()[0].run("DEL counter:1 hash:1");
    story.plan.run("migrate --until caught-up --json").exits(0);
    story.judge();
    let mut side = story.source.side();
    side.everywhere("FLUSHALL").expect("an answer");
    let again = "migrate --until caught-up --json";
    story.plan.run(again).exits(3).says(&["--accept-loss"]);
    let left = story.target.side().size().expect("an answer");
    assert!(left > 10_000, "{left} keys are left");
}

/// Its source is replaced by an empty one while it sweeps: nothing is removed, the run ends.
#[test]
fn a_far_source_that_comes_back_empty_is_refused() {
    let Some([name]) = need(["any"]) else { return };
    let (story, line, fars) = far(story(&name, "", false));
    story.fill(10_000);
    let mut running = story.migrate();
    story.plan.wait_status(&mut running, "swept", SOON, |s| {
        s["stream"]["scan"]["sweeps"].as_u64() > Some(0)
    });
    let other = crate::support::server::Server::start(&name);
    let before = story.target.side().size().expect("an answer");
    fars[0].lead_to(&other.address());
    line.cut();
    let outcome = running.wait(SOON);
    outcome.exits(3).says(&["--accept-loss"]);
    let left = story.target.side().size().expect("an answer");
    assert!(left * 100 > before * 98, "{left} of {before} keys are left");
}
