//! Where the sceptic tries a cutover: servers, a plan whose hooks tell the clients by a file, and how each case ends.

use crate::cutover::Move;
use crate::support::clients::point;
use crate::support::far::{Far, Line};
use crate::support::keyferry::{Outcome, Plan, Running};
use crate::support::link::{Link, Place};
use crate::support::need;
use crate::support::sceptic::{Report, SOURCE, Sceptic, Verdict};
use crate::support::server::{Server, Setup};
use crate::support::story::{Endpoint, Story};
use crate::support::wire::Command;
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
    /// The users of the source at the beginning.
    users: Vec<String>,
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
    /// `way` is the plan's `freeze`; "refused" is "hook" at a source that nobody can close. `cutover` goes over the usual
    /// plan of its cutover.
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
            // Where a subcommand can be refused.
            "refused" => "any:acl-selectors",
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
        if way == "refused" {
            // As some providers: keyferry can neither pause clients nor take their rights.
            let rights = "on >secret ~* &* +@all -acl -client|pause -client|kill";
            story.source.nodes()[0].run(&format!("ACL SETUSER ferry {rights}"));
            story.plan.set("/source/username", json!("ferry"));
            story.plan.set("/source/password", json!("secret"));
        }
        let freeze = if way == "refused" { "hook" } else { way };
        let mut plan = json!({
            "watch_s": 1, "max_pause_ms": 20_000, "freeze": freeze,
            "hooks": { "switch": switch(0.2, 0.3), "switch_back": script(&say("source")) },
        });
        if freeze == "hook" {
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
        let mut scene = Scene {
            it: Move::with(story, plan),
            places,
            way,
            replica,
            door,
            users: Vec::new(),
        };
        scene.users = scene.users_now();
        Some(scene)
    }

    /// The clients are the same user as keyferry.
    pub fn share_user(&mut self) {
        self.places[SOURCE] = self.places[SOURCE].clone().user("");
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
                let (fars, map) = Far::before(cluster.addresses(), &line);
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
        println!("{}", outcome.stderr);
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
            self.users_are_as_before(&outcome.stdout);
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
    fn users_now(&self) -> Vec<String> {
        // Of a master and its replica, keyferry may see only one.
        let nodes: &[Server] = match &self.it.story.source {
            Endpoint::Alone(server) if self.door.is_none() => std::slice::from_ref(server),
            Endpoint::Cluster(cluster) if cluster.replicas().is_empty() => cluster.nodes(),
            _ => &[],
        };
        let mut users = Vec::new();
        for node in nodes {
            let list = node.run("ACL LIST");
            users.push(node.address());
            // The same rules may come in another order: Redis up to 7.0 keeps none.
            users.extend(list.items().iter().map(|user| sorted(&user.text())));
        }
        users
    }

    /// Nobody has lost a right, and nobody is new.
    #[track_caller]
    pub fn users_are_as_before(&self, said: &str) {
        let now = self.users_now();
        let gone: Vec<&String> = self.users.iter().filter(|u| !now.contains(u)).collect();
        let new: Vec<&String> = now.iter().filter(|u| !self.users.contains(u)).collect();
        assert!(
            gone.is_empty() && new.is_empty(),
            "users were: {gone:?}\nand are: {new:?}\n{said}"
        );
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

/// The words of a text in their order of letters.
fn sorted(text: &str) -> String {
    let mut words: Vec<&str> = text.split(' ').collect();
    words.sort_unstable();
    words.join(" ")
}
