//! The sceptic's clients where a master fails over, a hook gives up half-way, subscribers stay, and a
//! reply comes too late.

use super::Stopped;
use super::scene::{From, MOMENTS, Scene, WAYS, say, script, switch};
use crate::cutover::full;
use crate::faults::role;
use crate::support::campaign::Campaign;
use crate::support::late_reply::LateReply;
use crate::support::sceptic::{SOURCE, TARGET};
use crate::support::story::Endpoint;
use crate::support::wait_until;
use crate::support::wire::Client;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);
/// When a failover that nobody has asked for loses no write by itself: while nobody writes.
const UNASKED: [&str; 4] = ["freeze", "drain", "fence", "hook"];

/// Time to fail in.
fn slow_hook() -> Value {
    json!({"hooks": {"switch": switch(0.1, 3.0)}})
}

// 4. Failovers.

#[track_caller]
fn a_pair_fails_over(way: &'static str, moment: &str) {
    let Some(scene) = Scene::new(way, From::Pair, slow_hook()) else {
        return;
    };
    let sceptic = scene.start();
    let outcome = scene.cutover(moment, |_| scene.fail_over_pair());
    let what = format!("the source behind one address fails over at {moment}");
    scene.conclude(&what, sceptic, &outcome);
}

#[test]
fn a_source_behind_one_address_fails_over() {
    let mut campaign = Campaign::default();
    let mut case = |way: &'static str, moment: &str| {
        campaign.case(&format!("{way} {moment}"), || {
            a_pair_fails_over(way, moment)
        });
    };
    case("pause", "hook");
    case("acl", "hook");
    for way in if full() { &WAYS[..] } else { &[] } {
        for moment in MOMENTS {
            case(way, moment);
        }
    }
    campaign.end();
}

/// A replica takes over one of the masters: as asked, or without asking, with the old master standing still until the
/// end of the test.
#[track_caller]
fn fail_over(end: &Endpoint, asked: bool) -> Option<Stopped> {
    let Endpoint::Cluster(cluster) = end else {
        panic!("not a cluster");
    };
    let (master, replica) = (&cluster.masters()[1], &cluster.replicas()[1]);
    let stopped = (!asked).then(|| Stopped::new(master.pid()));
    replica.run(match asked {
        true => "CLUSTER FAILOVER",
        false => "CLUSTER FAILOVER TAKEOVER",
    });
    wait_until("the replica is a master", SOON, || {
        role(replica) == "master"
    });
    stopped
}

#[track_caller]
fn a_cluster_fails_over(way: &'static str, moment: &str, side: usize, asked: bool) {
    let from = match side {
        SOURCE => From::Replicated,
        _ => From::Alone,
    };
    let Some(scene) = Scene::between(way, from, side == TARGET, slow_hook()) else {
        return;
    };
    let sceptic = scene.start();
    let mut stopped = None;
    let story = &scene.it.story;
    let ends = [&story.source, &story.target];
    let outcome = scene.cutover(moment, |_| stopped = fail_over(ends[side], asked));
    let how = if asked { "as asked" } else { "by force" };
    let what = format!("side {side} fails over {how} at {moment}");
    std::thread::sleep(Duration::from_secs(1));
    let mut report = sceptic.stop();
    if side == TARGET && !asked {
        // What a target loses of its own clients' writes, nobody else has.
        report = report.without(TARGET);
    }
    scene.conclude_with(&what, report, &outcome);
    drop(stopped);
}

#[test]
fn a_cluster_source_fails_over() {
    let mut campaign = Campaign::default();
    let mut case = |way: &'static str, moment: &str, asked: bool| {
        let name = format!("{way} {moment} asked={asked}");
        campaign.case(&name, || a_cluster_fails_over(way, moment, SOURCE, asked));
    };
    case("pause", "hook", true);
    for way in if full() { &WAYS[..] } else { &[] } {
        MOMENTS.iter().for_each(|moment| case(way, moment, true));
        UNASKED.iter().for_each(|moment| case(way, moment, false));
    }
    campaign.end();
}

#[test]
fn a_target_fails_over() {
    let mut campaign = Campaign::default();
    let mut case = |way: &'static str, moment: &str, asked: bool| {
        let name = format!("{way} {moment} asked={asked}");
        campaign.case(&name, || a_cluster_fails_over(way, moment, TARGET, asked));
    };
    case("pause", "hook", true);
    for way in if full() { &WAYS[..] } else { &[] } {
        MOMENTS.iter().for_each(|moment| case(way, moment, true));
        UNASKED.iter().for_each(|moment| case(way, moment, false));
    }
    campaign.end();
}

// 5. A hook that moves half of the clients and fails, in a plan that cannot lead them back.

#[track_caller]
fn half_are_moved(way: &'static str, ends: &str, then: &str) {
    let hook = format!("touch hook-began; {}; sleep 0.5; {ends}", say("half"));
    let hooks = json!({"hooks": {"switch": script(&hook), "switch_back": []}});
    let Some(scene) = Scene::new(way, From::Alone, hooks) else {
        return;
    };
    let sceptic = scene.start();
    let first = scene.plan().run("cutover --json");
    println!("{}\n{}", first.stdout, first.stderr);
    assert_eq!(
        first.code, 3,
        "half of them have moved, and it says that it knows where they are"
    );
    let status = scene.plan().status();
    assert_eq!(status["cutover"]["stage"], "switching", "{status}");
    let heard = sceptic.strays_are_heard(Duration::from_secs(2));
    println!("while nobody knows where the clients are, the source takes writes: {heard}");
    scene.tell_clients(then);
    let what = format!("half were moved, then all to the {then}, by {way}");
    if then == "target" {
        let second = scene.plan().run("cutover --json --clients-at target");
        std::thread::sleep(Duration::from_secs(1));
        let report = sceptic.stop();
        let verdict = scene.judge(&what, report, &[&first, &second]);
        assert_eq!(verdict.clients_at, "target", "{}", second.stdout);
        assert!(
            verdict.done || heard,
            "{}\n{}",
            second.stdout,
            second.stderr
        );
        return;
    }
    let second = scene.plan().run("rollback --json --clients-at source");
    let second = second.exits(0);
    assert_eq!(second.json["clients_at"], "source", "{}", second.stdout);
    let heard = sceptic.strays_are_heard(Duration::from_secs(3));
    assert!(heard, "the clients are at the source, which stayed closed");
    // What the half has written to the target in between is for those to judge who have moved them back.
    let report = sceptic.stop().without(TARGET);
    scene.judge(&what, report, &[&first, &second]);
    assert!(scene.is_writable(SOURCE, Duration::ZERO));
}

#[test]
fn a_hook_that_has_moved_half_and_fails() {
    let mut campaign = Campaign::default();
    let mut case = |way: &'static str, ends: &str, then: &str| {
        let name = format!("{way}, {ends}, then to the {then}");
        campaign.case(&name, || half_are_moved(way, ends, then));
    };
    case("pause", "exit 1", "target");
    case("acl", "kill -9 $$", "source");
    for way in if full() { &WAYS[..] } else { &[] } {
        for ends in ["exit 1", "kill -9 $$", "sleep 60"] {
            case(way, ends, "target");
            case(way, ends, "source");
        }
    }
    campaign.end();
}

// 6. Subscribers.

#[track_caller]
fn subscribers_are_ended(way: &'static str, from: From) {
    let Some(scene) = Scene::new(way, from, json!({})) else {
        return;
    };
    let sceptic = scene.start();
    let source = &scene.it.story.source.nodes()[0];
    let words = ["SUBSCRIBE news", "PSUBSCRIBE news*"];
    let mut ended = Vec::new();
    for words in words {
        let mut client = source.client();
        client.patience(Duration::from_secs(60)).expect("a socket");
        client.words(words).expect("it is subscribed");
        let gone = Arc::new(AtomicBool::new(false));
        ended.push(gone.clone());
        std::thread::spawn(move || hear_out(client, &gone));
    }
    let outcome = scene.plan().run("cutover --json");
    std::thread::sleep(Duration::from_millis(200));
    let heard_of_it: Vec<bool> = ended.iter().map(|e| e.load(SeqCst)).collect();
    let verdict = scene.conclude("subscribers", sceptic, &outcome);
    assert!(verdict.done, "{}\n{}", outcome.stdout, outcome.stderr);
    assert_eq!(
        heard_of_it, [true; 2],
        "subscribers were left at the old side"
    );
    assert!(
        outcome.stdout.contains("\"pubsub\": 2"),
        "{}",
        outcome.stdout
    );
}

/// Reads until the connection ends.
fn hear_out(mut client: Client, gone: &AtomicBool) {
    while client.read().is_ok() {}
    gone.store(true, SeqCst);
}

#[test]
fn subscribers_of_the_old_side_are_ended_and_counted() {
    let mut campaign = Campaign::default();
    campaign.case("pause", || subscribers_are_ended("pause", From::Alone));
    if full() {
        campaign.case("acl", || subscribers_are_ended("acl", From::Alone));
        campaign.case("hook", || subscribers_are_ended("hook", From::Cluster));
    }
    campaign.end();
}

// A provider that allows neither CLIENT PAUSE nor ACL: nobody can close the old side, so it has to be watched.

/// The strays begin to write at this moment; nobody but them has seen the freeze.
#[track_caller]
fn nobody_can_close(moment: &str) {
    let hooks = json!({"watch_s": 4, "hooks": {"switch": switch(0.5, 1.0)}});
    let Some(scene) = Scene::new("refused", From::Alone, hooks) else {
        return;
    };
    let sceptic = scene.start();
    sceptic.hold(true);
    let mut heard = false;
    let outcome = scene.cutover(moment, |_| {
        sceptic.hold(false);
        heard = sceptic.strays_are_heard(Duration::from_secs(1));
        sceptic.hold(true);
    });
    assert!(heard, "nobody could have closed the source");
    let report = sceptic.stop();
    let what = format!("a side that nobody can close, from {moment} on,");
    let verdict = scene.judge(&what, report, &[&outcome]);
    assert!(!verdict.done, "{}", outcome.stdout);
}

#[test]
fn late_writes_to_a_side_that_nobody_can_close_are_named() {
    let mut campaign = Campaign::default();
    campaign.case("hook", || nobody_can_close("hook"));
    campaign.case("switch", || nobody_can_close("switch"));
    campaign.end();
}

// 7. A freeze that is answered too late.

/// The answer to the first `command` (some bytes of it) comes after 1.5 s, and nothing sent behind it arrives.
#[track_caller]
fn a_late_answer(way: &'static str, command: &str) {
    let Some(mut scene) = Scene::new(way, From::Alone, json!({})) else {
        return;
    };
    let address = scene.it.story.source.nodes()[0].address();
    let late = LateReply::start(&address, command, Duration::from_millis(1_500));
    scene.it.story.plan.set("/source/url", json!(late.url()));
    let sceptic = scene.start();
    let outcome = scene.plan().run("cutover --json");
    let free = scene.is_writable(SOURCE, Duration::ZERO);
    assert!(
        late.has_struck(),
        "the command never came by: {}",
        outcome.stderr
    );
    let verdict = scene.conclude("an answer that is late", sceptic, &outcome);
    if verdict.clients_at == "source" {
        assert!(
            free,
            "it says that the writers go on, and they do not: {}",
            outcome.stdout
        );
    }
}

#[test]
fn a_late_answer_to_a_freeze_is_not_that_of_the_next_command() {
    let mut campaign = Campaign::default();
    // Not the one of the preflight, which pauses for 0 ms.
    let pause = "$5\r\nPAUSE\r\n$4\r\n3000\r\n";
    campaign.case("pause", || a_late_answer("pause", pause));
    campaign.case("acl", || a_late_answer("acl", "-@write"));
    for way in if full() { &WAYS[..] } else { &[] } {
        campaign.case(&format!("{way} renewed late"), || late_renewals(way));
    }
    campaign.end();
}

/// The line is slow for a moment, in which the pause is to be renewed.
#[track_caller]
fn late_renewals(way: &'static str) {
    let Some(mut scene) = Scene::new(way, From::Alone, slow_hook()) else {
        return;
    };
    let (line, _fars) = scene.line_to_source();
    let sceptic = scene.start();
    let outcome = scene.cutover("hook", |_| {
        line.delay(Duration::from_millis(1_500));
        std::thread::sleep(Duration::from_millis(700));
        line.delay(Duration::ZERO);
    });
    scene.conclude("renewals that are late", sceptic, &outcome);
}
