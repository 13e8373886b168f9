//! The main job as a test tells it: two endpoints, live traffic, a migration, and two proofs that it arrived.

use super::cluster::Cluster;
use super::compare::{Comparison, Rules, compare};
use super::dataset::{Fill, fill};
use super::keyferry::{Outcome, Plan, Running};
use super::server::{Server, Setup};
use super::side::Side;
use super::traffic::{self, Options, Report, Traffic, wrong_counters};
use super::wire::{Client, Command};
use serde_json::Value;
use std::time::{Duration, Instant};

/// One end of a migration.
pub enum Endpoint {
    Alone(Box<Server>),
    Cluster(Cluster),
}

impl Endpoint {
    pub fn alone(setup: Setup) -> Endpoint {
        Endpoint::Alone(Box::new(setup.start()))
    }

    pub fn cluster(setup: Setup) -> Endpoint {
        Endpoint::Cluster(Cluster::with(&setup, 3, 0))
    }

    /// Three masters with a replica each, which takes over soon.
    pub fn replicated(setup: Setup) -> Endpoint {
        let setup = setup.lines(&[
            "cluster-node-timeout 2000",
            "cluster-replica-validity-factor 0",
        ]);
        Endpoint::Cluster(Cluster::with(&setup, 3, 1))
    }

    pub fn is_cluster(&self) -> bool {
        matches!(self, Endpoint::Cluster(_))
    }

    pub fn url(&self) -> String {
        match self {
            Endpoint::Alone(server) => server.url(),
            Endpoint::Cluster(cluster) => cluster.url(),
        }
    }

    pub fn nodes(&self) -> &[Server] {
        match self {
            Endpoint::Alone(server) => std::slice::from_ref(server),
            Endpoint::Cluster(cluster) => cluster.nodes(),
        }
    }

    /// Starts again what has crashed.
    pub fn revive(&mut self) {
        let nodes = match self {
            Endpoint::Alone(server) => std::slice::from_mut(&mut **server),
            Endpoint::Cluster(cluster) => cluster.nodes_mut(),
        };
        for node in nodes {
            if Client::connect(&node.address()).is_err() {
                node.restart();
            }
        }
    }

    #[track_caller]
    pub fn side(&self) -> Side {
        Side::open(&self.url(), self.is_cluster())
            .unwrap_or_else(|error| panic!("{} does not answer: {error}", self.url()))
    }

    /// The sum of one number of INFO over all nodes.
    #[track_caller]
    pub fn info(&self, section: &str, field: &str) -> i64 {
        self.nodes().iter().map(|n| n.info(section, field)).sum()
    }
}

/// A migration from one endpoint to another.
pub struct Story {
    pub source: Endpoint,
    pub target: Endpoint,
    pub plan: Plan,
}

impl Story {
    pub fn new(source: Endpoint, target: Endpoint) -> Story {
        let plan = Plan::new(&source.url(), &target.url());
        Story {
            source,
            target,
            plan,
        }
    }

    /// Whether both ends have expiries of hash fields; a target without them cannot hold those of the source.
    pub fn field_expiry(&self) -> bool {
        self.source.side().knows("hpexpire") && self.target.side().knows("hpexpire")
    }

    #[track_caller]
    pub fn fill(&self, keys: u64) {
        let what = Fill {
            field_expiry: self.field_expiry(),
            ..Fill::new(keys)
        };
        fill(&mut self.source.side(), &what).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Traffic as usual here; change the options before `traffic::start` for anything else.
    pub fn traffic_options(&self) -> Options {
        Options {
            field_expiry: self.field_expiry(),
            ..Options::new(&self.source.url(), self.source.is_cluster())
        }
    }

    #[track_caller]
    pub fn traffic(&self) -> Traffic {
        traffic::start(&self.traffic_options())
            .unwrap_or_else(|error| panic!("the traffic does not start: {error}"))
    }

    pub fn migrate(&self) -> Running {
        self.plan.start("migrate --json")
    }

    /// Waits until the snapshot is loaded.
    #[track_caller]
    pub fn wait_loaded(&self, running: &mut Running) {
        self.plan
            .wait_status(running, "loaded", Duration::from_secs(180), |s| {
                s["snapshot"]["done"] == true
            });
    }

    /// Waits until nothing is left to apply, then ends the migration as a person does: Ctrl-C.
    #[track_caller]
    pub fn catch_up_and_stop(&self, mut running: Running) -> Outcome {
        if self.plan.status()["mode"] == "scan" {
            // Only a sweep that began since then tells.
            let began = Instant::now();
            let swept = |s: &Value| {
                let lag = s["stream"]["lag_ms"].as_u64().unwrap_or(u64::MAX);
                u128::from(lag.saturating_add(1_500)) < began.elapsed().as_millis()
            };
            self.plan
                .wait_status(&mut running, "swept", Duration::from_secs(120), swept);
        } else {
            self.plan
                .wait_caught_up(&mut running, Duration::from_secs(120));
        }
        running.interrupt();
        running.wait(Duration::from_secs(30)).exits(130)
    }

    /// keyferry's own proof.
    #[track_caller]
    pub fn verify(&self) -> Outcome {
        let outcome = self.plan.run("verify --json");
        for key in outcome.json["different"].as_array().into_iter().flatten() {
            let name = key["key"].as_str().unwrap_or_default();
            for (side, end) in [("source", &self.source), ("target", &self.target)] {
                let mut side_of = end.side();
                for command in ["DUMP", "PTTL"] {
                    let command = Command::new(command).key(name);
                    println!("{side} {name}: {:?}", side_of.run(&command));
                }
            }
        }
        let outcome = outcome.exits(0);
        assert_eq!(outcome.json["equal"], true, "{}", outcome.stdout);
        outcome
    }

    /// The independent proof.
    #[track_caller]
    pub fn judge(&self) -> Comparison {
        self.judge_by(&Rules::default())
    }

    #[track_caller]
    pub fn judge_by(&self, rules: &Rules) -> Comparison {
        let (mut a, mut b) = (self.source.side(), self.target.side());
        let found = compare(&mut a, &mut b, rules).unwrap_or_else(|error| panic!("{error}"));
        assert!(found.equal(), "{found}");
        found
    }

    /// Every acknowledged increment arrived, and none twice.
    #[track_caller]
    pub fn check_counters(&self, report: &Report) {
        assert!(
            report.broken.is_empty(),
            "connections of the traffic broke: {:?}",
            report.broken
        );
        for (name, end) in [("source", &self.source), ("target", &self.target)] {
            let wrong = wrong_counters(&mut end.side(), &report.counters)
                .unwrap_or_else(|error| panic!("{error}"));
            assert!(wrong.is_empty(), "{name}: {wrong:?}");
        }
    }

    /// The whole story: fill, migrate under traffic, follow, stop, prove.
    #[track_caller]
    pub fn tell(&self, keys: u64, follow: Duration) -> Report {
        self.fill(keys);
        self.follow(follow)
    }

    /// The same with the keys that are there.
    #[track_caller]
    pub fn follow(&self, follow: Duration) -> Report {
        let (report, _) = self.carry(follow);
        self.judge();
        self.check_counters(&report);
        report
    }

    /// Up to keyferry's own proof, which is returned: for plans by which the two sides are not to be alike.
    #[track_caller]
    pub fn carry(&self, follow: Duration) -> (Report, Outcome) {
        let traffic = self.traffic();
        let mut running = self.migrate();
        self.wait_loaded(&mut running);
        std::thread::sleep(follow);
        let report = traffic.stop();
        let outcome = self.catch_up_and_stop(running);
        assert!(
            outcome.json["keys_written"].as_u64().unwrap_or(0) > 0,
            "{}",
            outcome.stdout
        );
        (report, self.verify())
    }
}
