//! The cutover as a sceptic tries it: writers that stay at the old side for ever lose nothing unnoticed, whatever fails.
//!
//! A cutover may refuse; but when it says that it is done, every write that the source has acknowledged is at the target,
//! and any that is not is named. One or two forms of each trouble run always, all of them with KEYFERRY_FULL=1.

use crate::cutover::{Move, full};
use crate::support::campaign::Campaign;
use crate::support::clients::point;
use crate::support::far::{Far, Line};
use crate::support::keyferry::{Outcome, Plan, Running};
use crate::support::link::{Link, Place};
use crate::support::need;
use crate::support::sceptic::{Report, SOURCE, Sceptic, TARGET, Verdict};
use crate::support::server::{Server, Setup};
use crate::support::story::{Endpoint, Story};
use crate::support::wire::{Command, Value as Reply};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The longest that any cutover here may take.
const LIMIT: Duration = Duration::from_secs(150);
/// Every way to freeze the writers that needs nobody's help.
pub const WAYS: [&str; 3] = ["pause", "acl", "hook"];
/// The moments at which something fails: after the step of this name; "hook" is while the switch hook runs.
pub const MOMENTS: [&str; 6] = ["warm-up", "freeze", "drain", "fence", "hook", "switch"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Alone,
    Cluster,
    /// A cluster with a replica for each master.
    Replicated,
    /// A master and its replica behind one address, which leads to the other after a failover.
    Pair,
}

/// A migration to a cluster that has caught up, and how its ends are reached by the sceptic.
pub struct Scene {
    pub it: Move,
    pub places: [Place; 2],
    way: &'static str,
    replica: Option<Server>,
    door: Option<Far>,
}

/// A switch hook that says when it begins, and moves the clients in the middle.
pub fn switch(before_s: f64, after_s: f64) -> Value {
    script(&format!(
        "touch hook-began; sleep {before_s}; {}; sleep {after_s}; touch hook-ended",
        say("target")
    ))
}

/// Part of a hook: tells the obedient clients a word. Hooks run in the folder of the plan.
pub fn say(word: &str) -> String {
    format!("echo {word} > at.new && mv at.new clients-at")
}

pub fn script(text: &str) -> Value {
    json!(["sh", "-c", text])
}

impl Scene {
    /// `cutover` goes over the usual plan of its cutover.
    pub fn new(way: &'static str, from: From, cutover: Value) -> Option<Scene> {
        Scene::between(way, from, false, cutover)
    }

    /// `replicated`: each master of the target has a replica.
    pub fn between(
        way: &'static str,
        from: From,
        replicated: bool,
        cutover: Value,
    ) -> Option<Scene> {
        let [name] = need([match way {
            "pause" => "any:client-pause-write",
            _ => "any",
        }])?;
        let setup = Setup::new(&name).line("repl-backlog-size 64mb");
        let source = match from {
            From::Alone | From::Pair => Endpoint::alone(setup.clone()),
            From::Cluster => Endpoint::cluster(setup.clone()),
            From::Replicated => Endpoint::replicated(setup.clone()),
        };
        let target = match replicated {
            true => Endpoint::replicated(setup.clone()),
            false => Endpoint::cluster(setup.clone()),
        };
        let mut story = Story::new(source, target);
        let mut places = [Place::of(&story.source), Place::of(&story.target)];
        let (mut replica, mut door) = (None, None);
        if from == From::Pair {
            let master = &story.source.nodes()[0];
            let front = Far::start(&master.address(), Duration::ZERO);
            replica = Some(setup.replica_of(master).start());
            places[SOURCE] = Place::at(&front.address());
            story.plan.set("/source/url", json!(front.url()));
            door = Some(front);
        }
        if way == "acl" {
            // An application that is not the user of keyferry, with rights as providers give them.
            for node in story.source.nodes().iter().chain(&replica) {
                node.run("ACL SETUSER app on nopass ~* +@all -@dangerous +info +cluster");
            }
            places[SOURCE] = places[SOURCE].clone().user("app");
        }
        let mut plan = json!({
            "watch_s": 1, "max_pause_ms": 20_000, "freeze": way,
            "hooks": { "switch": switch(0.2, 0.3), "switch_back": script(&say("source")) },
        });
        if way == "hook" {
            plan["hooks"]["freeze"] = script(&say("hold"));
            plan["hooks"]["thaw"] = script(&say("$KEYFERRY_CLIENTS_AT"));
        }
        for (key, value) in cutover.as_object().into_iter().flatten() {
            match value.as_object() {
                Some(hooks) => hooks
                    .iter()
                    .for_each(|(name, hook)| plan[key][name] = hook.clone()),
                None => plan[key] = value.clone(),
            }
        }
        Some(Scene {
            it: Move::with(story, plan),
            places,
            way,
            replica,
            door,
        })
    }

    pub fn plan(&self) -> &Plan {
        self.it.plan()
    }

    /// The sceptic's clients, at a migration that has caught up.
    pub fn start(&self) -> Sceptic {
        self.it.story.fill(500);
        self.plan().run("migrate --until caught-up --json").exits(0);
        let sceptic = Sceptic::start(&self.it.file, &self.places);
        std::thread::sleep(Duration::from_millis(500));
        sceptic
    }

    /// Puts a line between keyferry and the source, on which clients do not depend.
    pub fn line_to_source(&mut self) -> (Line, Vec<Far>) {
        let line = Line::default();
        let fars = match &self.it.story.source {
            Endpoint::Cluster(cluster) => {
                let (fars, map) = Far::before(cluster, &line);
                self.it.story.plan.set("/source/address_map", map);
                fars
            }
            Endpoint::Alone(server) => {
                let far = Far::with(&server.address(), line.clone());
                self.it.story.plan.set("/source/url", json!(far.url()));
                vec![far]
            }
        };
        (line, fars)
    }

    /// A cutover in which something happens at a moment.
    #[track_caller]
    pub fn cutover(&self, moment: &str, trouble: impl FnOnce(&Running)) -> Outcome {
        let mut running = self.plan().start("cutover --json");
        self.await_moment(&mut running, moment);
        trouble(&running);
        running.wait(LIMIT)
    }

    #[track_caller]
    pub fn await_moment(&self, running: &mut Running, moment: &str) {
        let began = Instant::now();
        let hook = self.plan().dir().join("hook-began");
        let ended_step = |line: &str| line.starts_with(moment) && !line.ends_with('…');
        loop {
            let reached = match moment {
                "hook" => hook.exists(),
                _ => running.stderr_now().lines().any(ended_step),
            };
            if reached {
                return;
            }
            let over = running.ended().is_some() || began.elapsed() > LIMIT;
            assert!(!over, "never at {moment}: {}", running.stderr_now());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether an application can write to a side at this moment.
    pub fn is_writable(&self, side: usize, within: Duration) -> bool {
        let mut link = Link::new(&self.places[side], Duration::from_millis(300));
        let set = Command::new("SET").key("writable").arg("1");
        let began = Instant::now();
        loop {
            if link.run("writable", &set).is_ok_and(|r| !r.is_error()) {
                return true;
            }
            link.forget();
            if began.elapsed() > within {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The end of a cutover under trouble: judged; and where nothing has moved, it is as it was before.
    #[track_caller]
    pub fn conclude(&self, what: &str, sceptic: Sceptic, outcome: &Outcome) -> Verdict {
        let at_source = outcome.json["clients_at"] == "source";
        std::thread::sleep(Duration::from_millis(if at_source { 300 } else { 2_000 }));
        self.conclude_with(what, sceptic.stop(), outcome)
    }

    #[track_caller]
    pub fn conclude_with(&self, what: &str, report: Report, outcome: &Outcome) -> Verdict {
        let what = format!("{} by {}", what, self.way);
        assert!(
            matches!(outcome.code, 0 | 1 | 3),
            "{what}: {} {}",
            outcome.code,
            outcome.stderr
        );
        let verdict = self.judge(&what, report, &[outcome]);
        assert!(verdict.acknowledged[SOURCE] > 100, "{}", verdict.summary());
        if !verdict.done && verdict.clients_at == "source" {
            assert_eq!(
                self.it.at(),
                "source",
                "{what}: the moved half was left there"
            );
            assert!(
                self.is_writable(SOURCE, Duration::from_secs(1)),
                "{what}: the source was left frozen"
            );
        }
        verdict
    }

    /// The judge's word, with the times of the hook.
    #[track_caller]
    pub fn judge(&self, what: &str, mut report: Report, answers: &[&Outcome]) -> Verdict {
        for (file, says) in [("hook-began", "the hook"), ("hook-ended", "its end")] {
            let changed =
                std::fs::metadata(self.plan().dir().join(file)).and_then(|m| m.modified());
            let ago = changed.ok().and_then(|at| at.elapsed().ok());
            if let Some(at) = ago.and_then(|ago| Instant::now().checked_sub(ago)) {
                report.mark(says, at);
            }
        }
        report.judge(what, &self.places, answers)
    }

    /// Every user of every node of the source, with all rights.
    pub fn users(&self) -> Vec<String> {
        let nodes = self.it.story.source.nodes().iter().chain(&self.replica);
        let mut users = Vec::new();
        for node in nodes {
            let list = node.run("ACL LIST");
            users.extend(list.items().iter().map(Reply::text));
            for name in node.run("ACL USERS").items() {
                let user = node.run(&format!("ACL GETUSER {}", name.text()));
                users.push(format!("{user:?}"));
            }
        }
        users
    }

    /// A clean failover of the pair's master: nothing it has acknowledged is missing at its replica, to which the one
    /// address leads from then on.
    #[track_caller]
    pub fn fail_over_pair(&self) {
        let (Some(door), Some(replica)) = (&self.door, &self.replica) else {
            panic!("there is no pair");
        };
        let master = &self.it.story.source.nodes()[0];
        door.line().down(true);
        let offset = |node: &Server| node.info("replication", "master_repl_offset");
        crate::support::wait_until("the replica has it all", Duration::from_secs(10), || {
            offset(master) == offset(replica)
        });
        replica.run("REPLICAOF NO ONE");
        door.lead_to(&replica.address());
        door.line().down(false);
    }

    /// As a person moves them, by hand.
    #[track_caller]
    pub fn tell_clients(&self, word: &str) {
        point(&self.it.file, word).expect("the file is written");
    }
}

// 1. Nothing fails, but half of the clients are never told to move.

#[track_caller]
fn strays_write_on(way: &'static str, from: From) {
    let Some(scene) = Scene::new(way, from, json!({"watch_s": 3})) else {
        return;
    };
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
    let hooks = json!({"hooks": {"switch": switch(0.1, after)}});
    let Some(mut scene) = Scene::new(way, from, hooks) else {
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
fn back_again(way: &'static str, from: From) {
    let Some(scene) = Scene::new(way, from, json!({})) else {
        return;
    };
    let before = scene.users();
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
    assert_eq!(scene.users(), before, "rights, or a user, are left over");
    assert!(scene.is_writable(SOURCE, Duration::ZERO));
}

#[test]
fn the_way_back_under_strays() {
    let mut campaign = Campaign::default();
    for way in &WAYS[..if full() { 3 } else { 2 }] {
        let name = format!("{way} Alone");
        campaign.case(&name, || back_again(way, From::Alone));
        if full() {
            let name = format!("{way} Cluster");
            campaign.case(&name, || back_again(way, From::Cluster));
        }
    }
    campaign.end();
}
