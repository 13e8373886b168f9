//! The cutover as a sceptic tries it: writers that stay at the old side for ever lose nothing unnoticed, whatever fails.
//!
//! A cutover may refuse; but when it says that it is done, every write that the source has acknowledged is at the target,
//! and any that is not is named. One or two forms of each trouble run always, all of them with KEYFERRY_FULL=1.

mod scene;
mod trouble;

use self::scene::{From, MOMENTS, Scene, WAYS, switch};
use crate::cutover::full;
use crate::support::campaign::Campaign;
use crate::support::sceptic::{SOURCE, TARGET};
use serde_json::json;
use std::time::Duration;

// 1. Nothing fails, but half of the clients are never told to move.

#[track_caller]
fn strays_write_on(way: &'static str, from: From) {
    if let Some(scene) = Scene::new(way, from, json!({"watch_s": 3})) {
        strays_write_on_at(&scene);
    }
}

#[track_caller]
fn strays_write_on_at(scene: &Scene) {
    let sceptic = scene.start();
    let outcome = scene.plan().run("cutover --json");
    // After the commit they go on.
    std::thread::sleep(Duration::from_secs(1));
    let heard = sceptic.strays_are_heard(Duration::from_secs(1));
    let report = sceptic.rest();
    let verdict = scene.conclude_with("strays", report, &outcome);
    assert!(verdict.done, "{}\n{}", outcome.stdout, outcome.stderr);
    assert!(!heard, "the old side takes writes after the commit");
    let reopened = scene.plan().run("cutover --reopen --json");
    reopened.exits(0);
    sceptic.hold(false);
    assert!(
        sceptic.strays_are_heard(Duration::from_secs(5)),
        "opened again, and nobody can write"
    );
}

#[test]
fn strays_meet_a_closed_side_by_pause() {
    strays_write_on("pause", From::Alone);
}

#[test]
fn strays_meet_a_closed_side_by_acl() {
    strays_write_on("acl", From::Alone);
}

/// Whoever takes the clients' right to write takes its own.
#[test]
fn strays_meet_a_closed_side_by_acl_as_the_same_user() {
    let Some(mut scene) = Scene::new("acl", From::Alone, json!({"watch_s": 3})) else {
        return;
    };
    scene.share_user();
    strays_write_on_at(&scene);
    scene.users_are_as_before("opened again");
}

#[test]
fn strays_meet_a_closed_side_by_hook() {
    strays_write_on("hook", From::Alone);
}

#[test]
fn strays_meet_a_closed_cluster() {
    let mut campaign = Campaign::default();
    for way in if full() { &WAYS } else { &WAYS[..1] } {
        campaign.case(way, || strays_write_on(way, From::Cluster));
    }
    campaign.end();
}

/// The writers never stop, so there is nothing to prove.
#[test]
fn an_operator_who_stops_nobody_is_refused() {
    let Some(scene) = Scene::new("operator", From::Alone, json!({"wait_s": 3})) else {
        return;
    };
    let sceptic = scene.start();
    let outcome = scene.plan().run("cutover --json");
    let verdict = scene.conclude("nobody is stopped", sceptic, &outcome);
    assert!(!verdict.done && outcome.code == 1, "{}", outcome.stdout);
}

/// The writers are stopped but stay connected; the strays write again as soon as the hook runs.
#[track_caller]
fn writers_come_back(from: From) {
    let hooks = json!({"watch_s": 2, "hooks": {"switch": switch(0.5, 1.0)}});
    let Some(scene) = Scene::new("operator", from, hooks) else {
        return;
    };
    let sceptic = scene.start();
    sceptic.hold(true);
    let outcome = scene.cutover("hook", |_| sceptic.hold(false));
    scene.conclude("they come back", sceptic, &outcome);
}

#[test]
fn an_operator_whose_writers_come_back_in_the_hook() {
    let mut campaign = Campaign::default();
    campaign.case("alone", || writers_come_back(From::Alone));
    if full() {
        campaign.case("cluster", || writers_come_back(From::Cluster));
    }
    campaign.end();
}

// 2. The process that keeps the writers frozen stands still for a while.

/// The guard of a cutover: a child process of it.
fn guard_of(cutover: u32) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|p| p.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
        let stat = read("stat").unwrap_or_default();
        let behind_name = stat.rsplit(')').next().unwrap_or_default();
        let parent = behind_name.split_ascii_whitespace().nth(1);
        parent == Some(cutover.to_string().as_str())
            && read("cmdline").is_ok_and(|words| words.contains("cutover-guard"))
    })
}

/// A process that stands still until this is dropped.
pub struct Stopped(u32);

impl Stopped {
    pub fn new(pid: u32) -> Stopped {
        Stopped::signal(pid, "STOP");
        Stopped(pid)
    }

    fn signal(pid: u32, name: &str) {
        let _ = std::process::Command::new("kill")
            .args([format!("-{name}"), pid.to_string()])
            .status();
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        Stopped::signal(self.0, "CONT");
    }
}

#[track_caller]
fn guard_stands_still(way: &'static str, moment: &str, seconds: f64) {
    let after = if moment == "hook" { seconds + 1.5 } else { 0.3 };
    let hooks = json!({"hooks": {"switch": switch(0.1, after)}});
    let Some(scene) = Scene::new(way, From::Alone, hooks) else {
        return;
    };
    let sceptic = scene.start();
    let outcome = scene.cutover(moment, |running| {
        // Behind the switch there is none any more.
        let stopped = guard_of(running.pid()).map(Stopped::new);
        assert!(stopped.is_some() || moment == "switch", "there is no guard");
        std::thread::sleep(Duration::from_secs_f64(seconds));
    });
    let what = format!("the guard stands still for {seconds} s at {moment}");
    scene.conclude(&what, sceptic, &outcome);
}

#[test]
fn a_guard_that_stands_still() {
    let mut campaign = Campaign::default();
    let mut case = |way: &'static str, moment: &str, seconds: f64| {
        let name = format!("{way} {moment} {seconds} s");
        campaign.case(&name, || guard_stands_still(way, moment, seconds));
    };
    case("pause", "hook", 4.5);
    // Longer than the lease, and renewed before anybody looks.
    case("pause", "freeze", 4.0);
    for way in if full() { &WAYS[..] } else { &[] } {
        for moment in MOMENTS {
            for seconds in [1.0, 3.0, 6.0] {
                case(way, moment, seconds);
            }
        }
    }
    campaign.end();
}

// 3. A partition between keyferry and the source while the hook runs; the clients reach it all the time.

/// It heals after `seconds`, or never while the cutover runs.
#[track_caller]
fn partition_in_the_hook(way: &'static str, from: From, seconds: Option<f64>) {
    let after = seconds.unwrap_or(3.0) + 1.0;
    let mut plan = json!({"hooks": {"switch": switch(0.1, after)}});
    if seconds.is_none() {
        // So long it is tried to close the old side.
        plan["max_pause_ms"] = json!(8_000);
    }
    let Some(mut scene) = Scene::new(way, from, plan) else {
        return;
    };
    let (line, _fars) = scene.line_to_source();
    let sceptic = scene.start();
    let outcome = scene.cutover("hook", |_| {
        line.silence(true);
        if let Some(seconds) = seconds {
            std::thread::sleep(Duration::from_secs_f64(seconds));
            line.silence(false);
        }
    });
    line.silence(false);
    let what = match seconds {
        Some(seconds) => format!("a partition of {seconds} s"),
        None => "a partition for ever".to_owned(),
    };
    let told = &outcome.json["clients_at"];
    if seconds.is_none() && told != "target" {
        // What could not be undone without the source is undone when it is back; where nobody knows, somebody looks.
        println!("{what}: {}\n{}", outcome.stdout, outcome.stderr);
        let at = scene.it.at();
        let seen = match told.as_str() {
            Some("source") => String::new(),
            _ => format!("--clients-at {at}"),
        };
        let back = scene.plan().run(&format!("rollback --json {seen}"));
        let back = back.exits(0);
        std::thread::sleep(Duration::from_millis(300));
        let report = match at.as_str() {
            // The hook has led them back: there is nothing to bring back from the target.
            "source" => sceptic.stop().without(TARGET),
            _ => sceptic.stop(),
        };
        scene.conclude_with(&what, report, &back);
        return;
    }
    scene.conclude(&what, sceptic, &outcome);
}

#[test]
fn a_partition_in_the_hook_that_heals() {
    let mut campaign = Campaign::default();
    let mut case = |way: &'static str, from: From, seconds: f64| {
        let name = format!("{way} {from:?} {seconds} s");
        campaign.case(&name, || partition_in_the_hook(way, from, Some(seconds)));
    };
    case("pause", From::Alone, 4.0);
    for way in if full() { &WAYS[..] } else { &[] } {
        for seconds in [1.0, 4.0, 8.0] {
            case(way, From::Alone, seconds);
        }
        case(way, From::Cluster, 4.0);
    }
    campaign.end();
}

#[test]
fn a_partition_in_the_hook_that_never_heals() {
    let mut campaign = Campaign::default();
    for way in if full() { &WAYS } else { &WAYS[..1] } {
        campaign.case(way, || partition_in_the_hook(way, From::Alone, None));
    }
    campaign.end();
}

// 8. The way back while strays write to the closed side.

#[track_caller]
fn back_again(way: &'static str, from: From, shared: bool) {
    let Some(mut scene) = Scene::new(way, from, json!({})) else {
        return;
    };
    if shared {
        scene.share_user();
    }
    let sceptic = scene.start();
    let there = scene.plan().run("cutover --json");
    println!("{}\n{}", there.stdout, there.stderr);
    assert_eq!(there.json["clients_at"], "target", "{}", there.stdout);
    std::thread::sleep(Duration::from_secs(1));
    let back = scene.plan().run("rollback --json").exits(0);
    assert_eq!(scene.it.at(), "source");
    assert!(
        sceptic.strays_are_heard(Duration::from_secs(3)),
        "the source stayed closed"
    );
    let report = sceptic.rest();
    let verdict = scene.judge(&format!("back by {way}"), report, &[&there, &back]);
    assert!(verdict.done && verdict.acknowledged[TARGET] > 20);
    scene.users_are_as_before(&back.stdout);
    assert!(scene.is_writable(SOURCE, Duration::ZERO));
}

#[test]
fn the_way_back_under_strays() {
    let mut campaign = Campaign::default();
    for way in &WAYS[..if full() { 3 } else { 2 }] {
        let mut case = |from: From, shared: bool| {
            let name = format!("{way} {from:?} shared={shared}");
            campaign.case(&name, || back_again(way, from, shared));
        };
        case(From::Alone, false);
        if full() {
            case(From::Alone, true);
            case(From::Cluster, false);
        }
    }
    campaign.end();
}
